"""One HTTP request and its answer, on a connection of its own, so that three questions always have an answer:

was a connection made (else nothing was sent), may the request still be completed, and when does it end at the latest. ``requests``
alone answers none: its sessions may pick up a connection that the other side has just closed, it sends a request in one go, and its
read timeout starts anew with every byte.

A server runs a request only when it is complete. So the last byte of the body is sent by itself, after the question whether it may
be; a process that was stopped in the middle of sending asks when it goes on. Only the ``send`` behind the question is unguarded.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from app.webui.errors import AnswerTooLarge, ConnectionBroken, JobTimeout, Unreachable, WebuiError, Withheld

_CHUNK = 1 << 20
#: A body of at most so many bytes is copied behind its head rather than sent by itself.
_COPIED_BYTES = 1 << 16
_NO_CONTENT = 204
#: A Content-Length with more digits than an exabyte has says nothing; such an answer ends with its connection.
_MOST_LENGTH_DIGITS = 18
#: Interim answers (RFC 9110, section 15.2) that are skipped before the final one.
_MOST_INTERIM_ANSWERS = 100


@dataclass(frozen=True)
class Reply:
    """An answer that arrived whole: the HTTP status, the body's bytes and the header ``Date``, empty where there is none."""

    status: int
    body: bytes
    date: str = ""


class Exchange:
    """The connection of one request, which a clock or another thread may cut."""

    def __init__(
        self,
        on_open: Callable[[], None] | None = None,
        on_status: Callable[[int], None] | None = None,
        may_complete: Callable[[], bool] | None = None,
    ) -> None:
        """:param on_open: called when the connection is made and the request is about to go out; it may hold that back.
        :param on_status: called with the status of the answer when its head has arrived, before its body is read.
        :param may_complete: asked right before the last byte of the request's body is sent, whether it may be.
        """
        self.may_complete = may_complete
        self._on_open = on_open
        self._on_status = on_status
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._connected = False
        self._cut = False
        self._expired = False

    def opened(self, connection: socket.socket) -> None:
        """Note that the connection is made; called before the first byte of the request is sent."""
        # Our own descriptor of the connection, closed under our lock: cutting can never hit a number that the process
        # has given to something else meanwhile. It also lies below TLS, where shutting down is safe from any thread.
        line = socket.fromfd(connection.fileno(), connection.family, connection.type)
        with self._lock:
            self._line = line
            self._connected = True
            if self._cut:
                _shut(line)
        if self._on_open is not None:
            self._on_open()

    def answered(self, status: int) -> None:
        """Note that the head of the answer has arrived."""
        if self._on_status is not None:
            self._on_status(status)

    def cut(self) -> None:
        """Break the connection now, or as soon as it is made."""
        with self._lock:
            self._cut = True
            if self._line is not None:
                _shut(self._line)

    def expire(self) -> None:
        """Break the connection because its time is up."""
        self._expired = True
        self.cut()

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.close()

    @property
    def broken(self) -> bool:
        """Whether it was cut, so that an answer that ends with the connection only seems to be whole."""
        return self._cut

    def failure(self) -> WebuiError:
        """Return what a failed request means, by how far it got."""
        if not self._connected:
            return Unreachable()
        return JobTimeout() if self._expired else ConnectionBroken()


def _shut(line: socket.socket) -> None:
    # The other side may have closed it already.
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


class Clock:
    """Cuts exchanges whose time is up: one thread for all of them, for starting one each costs milliseconds on a busy process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: Few at a time: a generation and a query or two.
        self._running: dict[Exchange, float] = {}
        self._thread: threading.Thread | None = None
        #: When the thread looks again by itself; it is not woken for a later deadline, nor for one that is taken back.
        self._wakes_at = math.inf

    @contextlib.contextmanager
    def limit(self, exchange: Exchange, seconds: float) -> Iterator[None]:
        """Cut the exchange unless the body of this context ends within so many seconds."""
        self._set(exchange, time.monotonic() + seconds)
        try:
            yield
        finally:
            with self._changed:
                del self._running[exchange]

    @contextlib.contextmanager
    def paused(self, exchange: Exchange, seconds: float) -> Iterator[None]:
        """Within :meth:`limit`: count nothing while the body of this context runs, and then so many seconds anew."""
        self._set(exchange, math.inf)
        yield
        self._set(exchange, time.monotonic() + seconds)

    def _set(self, exchange: Exchange, deadline: float) -> None:
        with self._changed:
            self._running[exchange] = deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="clock", daemon=True)
                self._thread.start()
            elif deadline < self._wakes_at:
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for exchange in [exchange for exchange, deadline in self._running.items() if deadline <= now]:
                    exchange.expire()
                self._wakes_at = min(
                    (deadline for deadline in self._running.values() if deadline > now), default=math.inf
                )
                self._changed.wait(min(self._wakes_at - now, threading.TIMEOUT_MAX))


@dataclass(frozen=True)
class _Sending:
    """An exchange under way, and its time."""

    exchange: Exchange
    clock: Clock
    seconds: float


#: What the current thread sends; urllib3 makes its connections without asking for whom.
_CURRENT: ContextVar[_Sending] = ContextVar("sending")


def _connected(connection: HTTPConnection) -> None:
    # The connect timeout must not bound the sending of a large body too; the clock bounds the whole.
    connection.sock.settimeout(None)
    sending = _CURRENT.get()
    with sending.clock.paused(sending.exchange, sending.seconds):
        sending.exchange.opened(connection.sock)


class _FinalResponse(http.client.HTTPResponse):
    """Skips every interim answer, such as 103 Early Hints; ``http.client`` itself knows only 100 Continue."""

    def _read_status(self) -> tuple[str, int, str]:
        read: Callable[[], tuple[str, int, str]] = super()._read_status  # type: ignore[misc]
        for _ in range(_MOST_INTERIM_ANSWERS):
            version, status, reason = read()
            if not _is_interim(status):
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.BadStatusLine("too many interim answers")


def _is_interim(status: int) -> bool:
    return http.client.CONTINUE <= status < http.client.OK and status != http.client.SWITCHING_PROTOCOLS


class _HeadWithBody(http.client.HTTPConnection):
    """Sends the head of a request whose last byte is held back together with the rest of its body.

    Each ``send`` lets another thread have the interpreter, for up to 5 ms, and a GPU waits for the end of the request.
    """

    #: The head, from when it is complete until it is sent; None before.
    _head: bytes | None = None

    def send(self, data: Any) -> None:
        if _CURRENT.get().exchange.may_complete is None:
            super().send(data)
        elif self._head is None:
            self._head = bytes(data)
        else:
            head, self._head = self._head, b""
            if len(data) <= _COPIED_BYTES:
                super().send(head + bytes(data))
            else:
                super().send(head)
                super().send(data)


class _Plain(_HeadWithBody, HTTPConnection):
    response_class = _FinalResponse

    def connect(self) -> None:
        super().connect()
        _connected(self)


class _Tls(_HeadWithBody, HTTPSConnection):
    response_class = _FinalResponse

    def connect(self) -> None:
        super().connect()
        _connected(self)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain

    def _put_conn(self, conn: Any) -> None:
        """Never keep a connection: the next request makes its own, so that it knows whether anything was sent."""
        if conn is not None:
            conn.close()


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _Tls

    def _put_conn(self, conn: Any) -> None:
        """Close the connection instead of keeping it, as the pool of plain connections does."""
        if conn is not None:
            conn.close()


class _OwnConnections(HTTPAdapter):
    """An adapter that makes a connection for each request and tells the current exchange of it."""

    def __init__(self) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}


def adapter() -> HTTPAdapter:
    """Make what :func:`send` sends with; threads may share it, and no connection outlives its request."""
    return _OwnConnections()


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one exchange: its time, and the size of its answer.

    ``connect_seconds`` bound the connecting, for each address of the host; a slow name server may add its own time. ``seconds``
    bound it until the connection is made, and again from the first byte of the request to the last one of the answer. ``body`` is
    the most bytes of the answer's body; the rest of a larger one is not read.
    """

    connect_seconds: float
    seconds: float
    body: int


def send(
    sender: HTTPAdapter,
    clock: Clock,
    request: requests.PreparedRequest,
    exchange: Exchange,
    limits: Limits,
) -> Reply:
    """Send a request on a new connection and read its answer whole: no retry, no redirect, no proxy, no cookies.

    :raises Unreachable: no connection was made, so nothing was sent.
    :raises Withheld: ``exchange.may_complete`` said no: the connection was broken before the last byte of the request.
    :raises ConnectionBroken: it ended before the answer was complete.
    :raises AnswerTooLarge: the body of a 200 is, or says that it is, larger than ``limits.body``. That of an error is cut off
        there: what
        it says stands at its beginning.
    :raises JobTimeout: its time was up before the answer was complete.
    """
    current = _CURRENT.set(_Sending(exchange, clock, limits.seconds))
    timeout = (min(limits.connect_seconds, limits.seconds), None)
    if exchange.may_complete is not None and isinstance(request.body, bytes):
        # Its Content-Length stands in the head already.
        body: Any = _in_two(request.body, exchange.may_complete)
        request.body = body
    try:
        with clock.limit(exchange, limits.seconds), sender.send(request, stream=True, timeout=timeout) as response:
            exchange.answered(response.status_code)
            reply = Reply(response.status_code, _read(response, limits.body), response.headers.get("Date", ""))
            whole = bool(reply.body) or _says_empty(response)
    except (AnswerTooLarge, Withheld):
        raise
    except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        raise exchange.failure() from error
    finally:
        _CURRENT.reset(current)
        exchange.close()
    if exchange.broken:
        raise exchange.failure()
    if not whole:
        raise ConnectionBroken
    return reply


def _in_two(body: bytes, may_complete: Callable[[], bool]) -> Iterator[memoryview]:
    """The body as it is sent: all but its last byte, and that one after the question."""
    view = memoryview(body)
    yield view[:-1]
    if not may_complete():
        raise Withheld
    yield view[-1:]


def _read(response: requests.Response, limit: int) -> bytes:
    declared = _declared_length(response)
    good = response.status_code == HTTPStatus.OK
    if declared is not None and declared > limit and good:
        raise AnswerTooLarge
    if declared is not None and declared <= limit and "Content-Encoding" not in response.headers:
        # At one go: twice as fast as in chunks, and the next job waits for it.
        whole: bytes = response.raw.read()
        return whole
    body = bytearray()
    for chunk in response.iter_content(_CHUNK):
        body += chunk
        if len(body) > limit:
            if good:
                raise AnswerTooLarge
            break
    del body[limit:]
    return bytes(body)


def _declared_length(response: requests.Response) -> int | None:
    """The length of the body as sent, bytes; None where the head does not say it, or its value is not credible."""
    length = response.headers.get("Content-Length", "")
    if "Transfer-Encoding" in response.headers or not length.isdecimal() or len(length) > _MOST_LENGTH_DIGITS:
        return None
    return int(length)


def _says_empty(response: requests.Response) -> bool:
    """Whether an empty body is meant; without a length it may be a connection that ended amid the head (http.client)."""
    return response.status_code == _NO_CONTENT or not {"Content-Length", "Transfer-Encoding"}.isdisjoint(
        response.headers
    )


def prepare(
    method: str, url: str, body: bytes | None, credentials: tuple[bytes, bytes] | None, headers: Mapping[str, str]
) -> requests.PreparedRequest:
    """Build a request from its parts alone: nothing of the environment (proxies, .netrc) takes part.

    :param credentials: user and password for HTTP Basic.
    """
    request = requests.PreparedRequest()
    request.prepare(method=method, url=url, headers=headers, data=body, auth=credentials, hooks={})
    return request
