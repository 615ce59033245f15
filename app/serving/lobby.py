"""Connections whose requests wait without a thread, and those of event streams, watched by the main thread of a gunicorn process.

A connection stands here from the moment when its view has said that it waits (:mod:`app.runtime.parking`) until it is woken, its
time is up, or its client is gone; that of a stream until the stream has ended or its client is gone. Everything here runs in the
main thread, but for the calls that wake or push.

``select.epoll`` is used by itself, and stands in gunicorn's selector as one file: ``selectors`` can't ask for EPOLLRDHUP alone,
and with EPOLLIN a client that sends its next request already would make the loop spin. A client that has closed its half of the
connection may be gone or not, as the operating system can't tell: it waits no longer, as with nginx, and its job goes on; the
answer is sent all the same, for the case that it reads on.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Any, Final, Generic, Protocol, TypeVar

from app.runtime.parking import QUIET_SECONDS, Parked, Streamed
from app.serving.streams import NonBlockingSocket, Stream

#: Whether this system tells that a client has closed its half of a connection; otherwise requests block their threads.
WATCHES_CLIENTS: Final = hasattr(select, "EPOLLRDHUP")
_GONE: Final = getattr(select, "EPOLLRDHUP", 0)
_ROOM: Final = getattr(select, "EPOLLOUT", 0)
#: Deadlines of empty seats that are kept besides as many as there are others.
_MOST_STALE: Final = 100
#: Streams whose comments are due within so many seconds get them together.
_TOGETHER_SECONDS: Final = 0.5


class Connection(Protocol):
    """A connection, by its file."""

    @property
    def sock(self) -> NonBlockingSocket:
        """Its socket, which never blocks."""
        ...

    def fileno(self) -> int:
        """The number of its file."""
        ...


_Connection = TypeVar("_Connection", bound=Connection)


class _Seat(Generic[_Connection]):
    """The seat of a connection; empty (``None``) once it has left."""

    __slots__ = ("connection",)

    def __init__(self, connection: _Connection) -> None:
        self.connection: _Connection | None = connection


class _ParkedSeat(_Seat[_Connection]):
    """The seat of a request that waits."""

    __slots__ = ("parked",)

    def __init__(self, connection: _Connection, parked: Parked) -> None:
        super().__init__(connection)
        self.parked: Parked | None = parked

    def leave(self) -> None:
        """Say that the client is gone."""
        parked, self.parked = self.parked, None
        if parked is not None:
            parked.awaited.leave()


class _StreamSeat(_Seat[_Connection]):
    """The seat of a stream."""

    __slots__ = ("awaits_room", "comment", "source", "stream")

    def __init__(self, connection: _Connection, streamed: Streamed) -> None:
        super().__init__(connection)
        self.source, self.comment = streamed.source, streamed.comment
        self.stream: Stream[_StreamSeat[_Connection]]
        #: Whether the connection takes nothing more for now.
        self.awaits_room = False

    def leave(self) -> None:
        """Say that the stream is over, or its client gone."""
        self.source.close()


_AnySeat = _ParkedSeat[_Connection] | _StreamSeat[_Connection]


def _silent_until(sent_at: float) -> float:
    """The time at which a stream that was written to last at ``sent_at`` gets a comment: the same for many, to wake up seldom."""
    return (sent_at + QUIET_SECONDS) // _TOGETHER_SECONDS * _TOGETHER_SECONDS


class Lobby(Generic[_Connection]):
    """The connections of this process that wait. Made after the fork, for an epoll file is shared with a child.

    :param defer: calls a function with arguments in the main thread, soon; it may be called from any thread.
    :param resume: goes on with the request of a connection whose wait may be over.
    :param end: closes a connection whose stream has ended.
    :param drop: closes a connection whose client is gone.
    """

    def __init__(
        self,
        defer: Callable[..., object],
        resume: Callable[[_Connection, Parked], object],
        end: Callable[[_Connection], object],
        drop: Callable[[_Connection], object],
    ) -> None:
        self._defer = defer
        self._resume = resume
        self._end = end
        self._drop = drop
        # Where there is none, nothing is ever parked.
        self._epoll: Any = select.epoll() if WATCHES_CLIENTS else None
        self._seats: dict[int, _AnySeat[_Connection]] = {}
        #: Deadlines in their order, also of seats that are empty by now. The number keeps seats from being compared.
        self._deadlines: list[tuple[float, int, _AnySeat[_Connection]]] = []
        self._numbers = itertools.count()
        #: Deadlines of empty seats.
        self._stale = 0
        #: One object for all streams.
        self._flush_soon = partial(defer, self._flush)

    def fileno(self) -> int:
        """The file that is readable when a client is gone, or takes more of its stream."""
        number: int = self._epoll.fileno()
        return number

    def park(self, connection: _Connection, parked: Parked) -> None:
        """Keep a connection until its wait may be over."""
        seat = _ParkedSeat(connection, parked)
        self._take(seat, connection, parked.awaited.deadline)
        with self._released_on_failure(seat):
            parked.awaited.begin(partial(self._defer, self._wake, seat))

    def stream(self, connection: _Connection, streamed: Streamed) -> None:
        """Keep a connection, and write to it what its source pushes."""
        seat = _StreamSeat(connection, streamed)
        seat.stream = Stream(connection.sock, self._flush_soon, seat)
        self._take(seat, connection, _silent_until(seat.stream.sent_at))
        with self._released_on_failure(seat):
            seat.source.open(seat.stream)

    @contextlib.contextmanager
    def _released_on_failure(self, seat: _AnySeat[_Connection]) -> Iterator[None]:
        """Leave the connection to the caller when the body raises, which is a bug."""
        try:
            yield
        except BaseException:
            if self._leave(seat) is not None:
                seat.leave()
            raise

    def _take(self, seat: _AnySeat[_Connection], connection: _Connection, deadline: float) -> None:
        self._seats[connection.fileno()] = seat
        self._epoll.register(connection.fileno(), _GONE)
        self._schedule(seat, deadline)

    def _schedule(self, seat: _AnySeat[_Connection], when: float) -> None:
        heapq.heappush(self._deadlines, (when, next(self._numbers), seat))

    def seconds_left(self) -> float:
        """Seconds until the next deadline; infinite without one."""
        return max(self._deadlines[0][0] - time.monotonic(), 0.0) if self._deadlines else inf

    def check_clients(self, _file: object = None) -> None:
        """Let go of the connections whose clients are gone, and write to those that take more."""
        for number, events in self._epoll.poll(0):
            seat = self._seats[number]
            if isinstance(seat, _StreamSeat) and not events & ~_ROOM:
                self._flush(seat)
            elif isinstance(seat, _ParkedSeat) and seat.parked is not None and not events & ~_GONE:
                seat.parked.awaited.give_up()
                self._wake(seat)
            else:
                self._dismiss(seat)

    def check_deadlines(self) -> None:
        """Go on with those whose time is up, and show silent streams that their connection lives."""
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            seat = heapq.heappop(self._deadlines)[2]
            if seat.connection is None:
                self._stale -= 1
            elif isinstance(seat, _ParkedSeat):
                self._wake(seat, scheduled=False)
            else:
                self._check_silence(seat, now)

    def _check_silence(self, seat: _StreamSeat[_Connection], now: float) -> None:
        if _silent_until(seat.stream.sent_at) <= now:
            seat.stream.put(seat.comment, replaces="comment")
            self._flush(seat)
        self._schedule(seat, _silent_until(max(seat.stream.sent_at, now)))

    def dismiss_all(self) -> None:
        """Let go of everybody: the process ends."""
        for seat in list(self._seats.values()):
            self._dismiss(seat)

    def _wake(self, seat: _ParkedSeat[_Connection], *, scheduled: bool = True) -> None:
        parked, connection = seat.parked, self._leave(seat, scheduled=scheduled)
        if connection is not None and parked is not None:
            # Its deadline may be minutes away, and keeps the seat until then.
            seat.parked = None
            self._resume(connection, parked)

    def _flush(self, seat: _StreamSeat[_Connection]) -> None:
        if seat.connection is None:
            return
        try:
            awaits_room = seat.stream.flush()
        except OSError:
            self._dismiss(seat)
            return
        if awaits_room is None:
            connection = self._leave(seat)
            seat.leave()
            if connection is not None:
                self._end(connection)
        elif awaits_room != seat.awaits_room:
            seat.awaits_room = awaits_room
            self._epoll.modify(seat.connection.fileno(), _GONE | (_ROOM if awaits_room else 0))

    def _dismiss(self, seat: _AnySeat[_Connection]) -> None:
        connection = self._leave(seat)
        if connection is not None:
            seat.leave()
            self._drop(connection)

    def _leave(self, seat: _AnySeat[_Connection], *, scheduled: bool = True) -> _Connection | None:
        """Empty a seat.

        :param scheduled: whether its deadline is still to come.
        """
        connection, seat.connection = seat.connection, None
        if connection is not None:
            del self._seats[connection.fileno()]
            self._epoll.unregister(connection.fileno())
            self._stale += scheduled
            if self._stale > len(self._seats) + _MOST_STALE:
                self._deadlines = [entry for entry in self._deadlines if entry[2].connection is not None]
                heapq.heapify(self._deadlines)
                self._stale = 0
        return connection
