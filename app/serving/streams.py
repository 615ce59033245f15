"""Streams of events to clients, written by the main thread as the sockets take them.

An event that its client has not begun to take may be replaced by a newer one of the same name. A client that takes nothing while
more than :data:`MOST_BEHIND` bytes are added behind what it has not taken is dropped: it comes back and resumes. What was pushed at
once, such as the beginning of a stream, does not count: a client that reads must be able to get it, however large it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

#: Bytes that may be added while the client takes nothing.
MOST_BEHIND: Final = 64 * 1024


_Whose = TypeVar("_Whose")


class _Event(NamedTuple):
    name: str | None
    data: bytes


class NonBlockingSocket(Protocol):
    """A connection that never blocks."""

    def send(self, data: bytes, /) -> int:
        """Write what the connection takes; how many bytes.

        :raises BlockingIOError: it takes none now.
        :raises OSError: it is broken.
        """
        ...


class Stream(Generic[_Whose]):
    """What is on its way to one client: the sink of a source. There are thousands, so an idle one holds next to nothing.

    :param socket: its connection, which only the main thread uses.
    :param flush_soon: has :meth:`flush` called in the main thread; it is told whose stream it is.
    """

    __slots__ = (
        "_added",
        "_asked",
        "_behind",
        "_ends",
        "_flush_soon",
        "_lock",
        "_rest",
        "_socket",
        "_whose",
        "sent_at",
    )

    def __init__(self, socket: NonBlockingSocket, flush_soon: Callable[[_Whose], object], whose: _Whose) -> None:
        self._socket = socket
        self._flush_soon = flush_soon
        self._whose = whose
        self._lock = threading.Lock()
        self._behind: list[_Event] = []
        #: Bytes that were added since the client has taken nothing; None while it takes what there is.
        self._added: int | None = None
        self._asked = self._ends = False
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
            replaced = self._add(_Event(replaces, data))
            if self._added is not None:
                self._added += len(data) - replaced

    def _add(self, event: _Event) -> int:
        """Add an event; the bytes of the one that it replaces."""
        if event.name is not None:
            for place, other in enumerate(self._behind):
                if other.name == event.name:
                    self._behind[place] = event
                    return len(other.data)
        self._behind.append(event)
        return 0

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
                self._rest = self._rest[self._socket.send(self._rest) :]
            except BlockingIOError:
                self._check_pace()
                return True
            with self._lock:
                self._added = None
            self.sent_at = time.monotonic()
        with self._lock:
            return None if self._ends and not self._behind else False

    def _check_pace(self) -> None:
        with self._lock:
            self._added = self._added or 0
            if self._added > MOST_BEHIND:
                raise TimeoutError("the client does not keep up with its events")

    def _next(self) -> bool:
        """Take the next event to be written; whether there is one."""
        with self._lock:
            if not self._behind:
                return False
            self._rest = self._behind.pop(0).data
        return True
