"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): reading the request, writing the stream.

Under our own server a stream holds no thread (:mod:`app.runtime.parking`); under any other one it holds that of its request.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Self

from flask import Request, Response
from werkzeug.datastructures import MIMEAccept

from app import problems
from app.api.http.guard import Guard, caller, present_guard
from app.api.http.refusals import NotAcceptable
from app.gateway.access import Caller
from app.gateway.feeds import Feed, StreamEvent
from app.gateway.revocation import Hold
from app.jobs.revisions import Version
from app.runtime.jsontext import dumps
from app.runtime.parking import PARKS, QUIET_SECONDS, Sink, Streamed

MEDIA_TYPE: Final = "text/event-stream"
#: Sent where nothing was for a while.
COMMENT: Final = b":\n\n"
_HEADERS: Final = {
    "Content-Type": f"{MEDIA_TYPE}; charset=utf-8",
    "Cache-Control": "no-store",
    # nginx would hold events back.
    "X-Accel-Buffering": "no",
}
#: Milliseconds after which a client comes back; different ones, so that they don't come all at once after a restart.
_RETRY: Final = range(2000, 4001)
_RETRY_BUSY: Final = 5000
#: A version that no database gives: its holder is told to begin anew.
_UNKNOWN: Final = Version(0, 0)


def respond(
    request: Request,
    open_feed: Callable[[Callable[[StreamEvent], object]], Feed | None],
    close_feed: Callable[[Feed], object],
    data: Callable[[StreamEvent], Mapping[str, Any]],
) -> Response:
    """The answer to a request for a stream. Refusals that may pass soon are raised; the caller answers them with :func:`busy`.

    :param open_feed: begins a feed, with a function that is told its events; None if the client has seen the last one.
    :param close_feed: ends it.
    :param data: writes the data of an event.
    :raises NotAcceptable: the client takes no event streams.
    """
    _check_accept(request.accept_mimetypes)
    events = _Events(present_guard(), caller(), close_feed, data)
    events.begin(open_feed)
    if request.method == "HEAD":
        events.close()
        return Response(status=HTTPStatus.OK if events.feed else HTTPStatus.NO_CONTENT, headers=_HEADERS)
    return EventStream(events)


def _check_accept(accepted: MIMEAccept) -> None:
    """Refuse a client that takes no event streams.

    :raises NotAcceptable: its Accept field excludes them.
    """
    if accepted and not _quality(accepted):
        raise NotAcceptable(f"This path answers with {MEDIA_TYPE}, which the Accept header excludes.")


def _quality(accepted: MIMEAccept) -> float:
    """The weight of event streams in an Accept field (RFC 9110, section 12.5.1), whatever parameters they are asked for with."""
    found: dict[str, float] = {}
    for name, quality in accepted:
        media_range = name.partition(";")[0].strip().lower()
        found[media_range] = max(quality, found.get(media_range, 0.0))
    return next((found[media_range] for media_range in (MEDIA_TYPE, "text/*", "*/*") if media_range in found), 0.0)


def last_event(header: str | None) -> Version | None:
    """The version that a Last-Event-ID names; None without one."""
    return (Version.parse(header) or _UNKNOWN) if header else None


def encode(event: StreamEvent, data: Mapping[str, Any]) -> bytes:
    """An event as it goes over the line."""
    number = f"id: {event.version}\n" if event.version is not None else ""
    return f"{number}event: {event.name}\ndata: ".encode() + dumps(data) + b"\n\n"


def busy(error: Exception) -> Response:
    """A stream that only says why there is none: a browser comes back after that, but never after an answer of 503.

    :param error: an exception whose problem is a 503.
    """
    slug = str(getattr(error, "slug", problems.INTERNAL_ERROR))
    problem = problems.problem(slug, str(error), retry_after=_RETRY_BUSY // 1000)
    body = f"retry: {_RETRY_BUSY}\n\n".encode() + encode(StreamEvent("busy", {}), problem)
    return Response(body, headers=_HEADERS)


class EventStream(Response):
    """The stream of one feed."""

    def __init__(self, events: _Events) -> None:
        super().__init__(headers=_HEADERS)
        self._events = events
        if events.feed is None:
            self.status_code = HTTPStatus.NO_CONTENT

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """The Streamed of this feed, or, under a server that takes none, its bytes as they come."""
        if self._events.feed is None:
            return super().__call__(environ, start_response)
        headers = [(name, value) for name, value in self.headers.items() if name != "Content-Length"]
        if environ.get(PARKS):
            return Streamed(self.status, headers, self._events, COMMENT)
        start_response(self.status, headers)
        sink = _Queue(self._events.close)
        self._events.open(sink)
        return sink

    def close(self) -> None:
        """End the feed."""
        self._events.close()
        super().close()


class _Events:
    """The events of one feed as the source of a stream; see :mod:`app.runtime.parking`. It outlives its response."""

    __slots__ = ("_caller", "_close_feed", "_data", "_early", "_guard", "_hold", "_lock", "_sink", "feed")

    def __init__(
        self,
        guard: Guard,
        whose: Caller,
        close_feed: Callable[[Feed], object],
        data: Callable[[StreamEvent], Mapping[str, Any]],
    ) -> None:
        self._guard = guard
        self._caller = whose
        self._data = data
        self._close_feed = close_feed
        self._lock = threading.Lock()
        #: Events from before the head was sent, ready to be sent.
        self._early: Sequence[_Encoded] = ()
        self._sink: Sink | None = None
        self._hold: Hold | None = None
        self.feed: Feed | None = None

    def begin(self, open_feed: Callable[[Callable[[StreamEvent], object]], Feed | None]) -> None:
        """Begin the feed; there is none if the client has seen its last event."""
        self.feed = open_feed(self._told)

    def _told(self, event: StreamEvent) -> None:
        # Encoded here, in the thread that has read the job, and not in the main thread, which serves all connections.
        data = self._data(event)
        replaces = f"progress {data['type']} {data['name']}" if event.name == "progress" else None
        encoded = _Encoded(encode(event, data), replaces, event.is_last)
        with self._lock:
            if self._sink is None:
                self._early = (*self._early, encoded)
            else:
                _push(self._sink, encoded)

    def open(self, sink: Sink) -> None:
        """Push the events that came before the head was sent, and from now on each new one."""
        with self._lock:
            sink.push(f"retry: {secrets.choice(_RETRY)}\n\n".encode())
            for encoded in self._early:
                _push(sink, encoded)
            self._early = ()
            self._sink = sink
        self._hold = self._guard.hold(self._caller, self._revoke)

    def _revoke(self) -> None:
        """End the stream of a client that may not watch any more; it is refused when it comes back."""
        self.close()
        with self._lock:
            if self._sink is not None:
                self._sink.end()

    def close(self) -> None:
        """End the feed."""
        if self._hold is not None:
            self._guard.release(self._hold)
        if self.feed is not None:
            self._close_feed(self.feed)


class _Encoded(NamedTuple):
    """An event as it goes over the line."""

    data: bytes
    replaces: str | None
    is_last: bool


def _push(sink: Sink, encoded: _Encoded) -> None:
    sink.push(encoded.data, replaces=encoded.replaces)
    if encoded.is_last:
        sink.end()


class _Queue:
    """The sink of a stream whose thread waits for events, and the iterable that a WSGI server reads; closing it ends the feed."""

    def __init__(self, close: Callable[[], object]) -> None:
        self._events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.close: Final = close

    def push(self, data: bytes, *, replaces: str | None = None) -> None:
        """Hand over an event; the thread takes it at once, so there is nothing to replace."""
        del replaces
        self._events.put(data)

    def end(self) -> None:
        """End the stream."""
        self._events.put(None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            data = self._events.get(timeout=QUIET_SECONDS)
        except queue.Empty:
            return COMMENT
        if data is None:
            raise StopIteration
        return data
