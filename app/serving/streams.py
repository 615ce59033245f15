"""Streams of events to clients, written by the main thread as the sockets take them.

An event that its client has not begun to take may be replaced by a newer one of the same name. More than :data:`MOST_BEHIND` bytes
behind the event that is being written drop the connection: the client comes back and resumes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

#: Bytes that may wait behind the event that is being written.
MOST_BEHIND: Final = 64 * 1024
#: Seconds without a byte after which the comment is sent.
QUIET_SECONDS: Final = 15.0


_Whose = TypeVar("_Whose")


class _Event(NamedTuple):
    name: str | None
    data: bytes


class Line(Protocol):
    """A connection that never blocks."""

    def send(self, data: bytes, /) -> int:
        """Write what the connection takes; how many bytes.

        :raises BlockingIOError: it takes none now.
        :raises OSError: it is broken.
        """
        ...


class Stream(Generic[_Whose]):
    """What is on its way to one client: the sink of a source. There are thousands, so an idle one holds next to nothing.

    :param line: its connection, which only the main thread uses.
    :param flush_soon: has :meth:`flush` called in the main thread; it is told whose stream it is.
    """

    __slots__ = (
        "_asked",
        "_behind",
        "_bytes_behind",
        "_ends",
        "_flush_soon",
        "_line",
        "_lock",
        "_overrun",
        "_rest",
        "_whose",
        "sent_at",
    )

    def __init__(self, line: Line, flush_soon: Callable[[_Whose], object], whose: _Whose) -> None:
        self._line = line
        self._flush_soon = flush_soon
        self._whose = whose
        self._lock = threading.Lock()
        self._behind: list[_Event] = []
        self._bytes_behind = 0
        self._asked = self._ends = self._overrun = False
        #: The rest of the event that is being written; of the main thread alone.
        self._rest = b""
        self.sent_at = time.monotonic()

    def push(self, data: bytes, *, replaces: str | None = None) -> None:
        """See :class:`app.runtime.parking.Sink`."""
        self.put(data, replaces=replaces)
        self._ask()

    def put(self, data: bytes, *, replaces: str | None = None) -> None:
        """The same for the main thread, which flushes by itself."""
        with self._lock:
            self._add(_Event(replaces, data))
            self._overrun = self._overrun or self._bytes_behind > MOST_BEHIND

    def _add(self, event: _Event) -> None:
        self._bytes_behind += len(event.data)
        if event.name is not None:
            for place, other in enumerate(self._behind):
                if other.name == event.name:
                    self._bytes_behind -= len(other.data)
                    self._behind[place] = event
                    return
        self._behind.append(event)

    def end(self) -> None:
        """See :class:`app.runtime.parking.Sink`."""
        with self._lock:
            self._ends = True
        self._ask()

    def _ask(self) -> None:
        with self._lock:
            asked, self._asked = self._asked, True
        if not asked:
            self._flush_soon(self._whose)

    def flush(self) -> bool | None:
        """Write what the connection takes. True when it takes no more now, False when nothing is left to write, None at the end.

        :raises OSError: the connection is broken, or its client does not keep up.
        """
        with self._lock:
            self._asked = False
        while self._rest or self._next():
            try:
                self._rest = self._rest[self._line.send(self._rest) :]
            except BlockingIOError:
                if self._overrun:
                    raise TimeoutError("the client does not keep up with its events") from None
                return True
            self.sent_at = time.monotonic()
        with self._lock:
            return None if self._ends and not self._behind else False

    def _next(self) -> bool:
        """Take the next event to be written; whether there is one."""
        with self._lock:
            if not self._behind:
                self._overrun = False
                return False
            event = self._behind.pop(0)
            self._bytes_behind -= len(event.data)
        self._rest = event.data
        return bool(event.data)
