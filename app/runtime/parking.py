"""The waiting of a connection without a thread: what the API and the server that it runs under say to one another.

A view that has to wait returns a response whose ``__call__`` gives a :class:`Parked` to a server that puts :data:`PARKS` into the
environ. The server keeps the connection without a thread, and calls :attr:`Parked.resume` in one of its threads when the wait is
over: there the request goes on where it stopped, so that nothing of it runs twice. A stream of events is a :class:`Streamed`,
which the server writes as its events come. Any other server knows nothing of this; the response then blocks the thread that
calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

#: Seconds without a byte after which a stream sends its comment.
QUIET_SECONDS: Final = 15.0
#: The member of a WSGI environ by which a server says that it takes a :class:`Parked` or a :class:`Streamed` for an answer.
PARKS: Final = "sd_gateway.parks"


class Awaited(Protocol):
    """Something that one client waits for."""

    @property
    def deadline(self) -> float:
        """The :func:`time.monotonic` at which the wait is over in any case."""
        ...

    def begin(self, wake: Callable[[], object]) -> None:
        """Begin to wait.

        :param wake: to be called when the wait may be over, from any thread, once or more often, perhaps before ``begin``
            returns. It must return at once.
        """
        ...

    def give_up(self) -> None:
        """End the wait now: the client sends nothing more, and may be gone. It is answered with what there is."""
        ...

    def leave(self) -> None:
        """End the wait: the client is gone. Nothing happens if it is over already."""
        ...


@dataclass(frozen=True, slots=True)
class Parked:
    """An answer that is still awaited.

    ``resume`` is a WSGI application; it is called when the wait may be over, with a new environ of the same request. It may return
    another Parked, to wait on.
    """

    awaited: Awaited
    resume: Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes] | Parked]


class Sink(Protocol):
    """The client of a stream. Its methods may be called from any thread; they return at once and raise nothing."""

    def push(self, data: bytes, *, replaces: str | None = None) -> None:
        """Send these bytes, whole, behind what was pushed before.

        :param replaces: instead of what was pushed under the same name and is not on its way yet.
        """
        ...

    def end(self) -> None:
        """Close the connection behind what was pushed."""
        ...


class Source(Protocol):
    """The origin of what one stream sends."""

    def open(self, sink: Sink) -> None:
        """Begin to push; called once, when the head was sent."""
        ...

    def close(self) -> None:
        """Push no more: the client is gone, or does not keep up. Nothing happens if the stream has ended already."""
        ...


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer without a known end: status line and header fields as WSGI has them, and where the bytes come from.

    ``comment`` is sent where nothing was for a while, so that proxies and clients see that the connection lives.
    """

    status: str
    headers: Sequence[tuple[str, str]]
    source: Source
    comment: bytes
