"""The connection to a client as a request thread uses it: it waits for the client, but not for one that does not keep up."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

#: The least bytes a second of a body, the seconds over which they are averaged, and the most seconds of a whole body.
_BODY_RATE: Final = 1024
_BODY_WINDOW: Final = 10.0
BODY_SECONDS: Final = 300.0
#: Seconds in which a client must take at least one byte of its answer.
_ANSWER_SECONDS: Final = 10.0
#: The bounds above are shortened to this when more than half of the threads wait for their clients, all connections are in use,
#: or the process stops.
SHORT_SECONDS: Final = 2.0
#: How often a waiting thread checks the pace of its client.
_LOOK_SECONDS: Final = 1.0


class BodyTooSlow(TimeoutError):
    """The client sends its request too slowly."""


class AnswerNotTaken(TimeoutError):
    """The client does not read its answer."""


class ClientWaits:
    """Counts the threads that wait for their clients, and shortens the time limits when they are too many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the calling thread meanwhile."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def shorten(self) -> None:
        """Shorten all limits from now on, because the process stops."""
        self._limit = -1

    def limit(self, seconds: float) -> float:
        """A time limit as it is now, in seconds."""
        return seconds if self._waiting <= self._limit else min(seconds, SHORT_SECONDS)


class _Pace:
    """Measures how fast a body arrives. Only time in which a thread waited for bytes counts, so that our own delays do not."""

    def __init__(self) -> None:
        self.received = 0
        self._waited = 0.0
        #: Pairs of seconds waited and bytes received by then, about one a second.
        self._marks = deque([(0.0, 0)], maxlen=int(_BODY_WINDOW) + 2)

    def waited(self, seconds: float, window: float) -> None:
        """Count time in which nothing was there to read.

        :raises BodyTooSlow: too little arrived within the last ``window`` seconds, or the whole takes too long.
        """
        self._waited += seconds
        before = [received for at, received in self._marks if at <= self._waited - window]
        if before and self.received - before[-1] < window * _BODY_RATE:
            raise BodyTooSlow(f"less than {_BODY_RATE} bytes a second")
        if self._waited >= BODY_SECONDS:
            raise BodyTooSlow(f"not complete after {BODY_SECONDS:.0f} s")
        if self._waited - self._marks[-1][0] >= _LOOK_SECONDS:
            self._marks.append((self._waited, self.received))


class ClientSocket(socket.socket):
    """The connection to a client, non-blocking underneath; its methods wait, within the time limits of this module.

    The parser reads with :meth:`recv`, gunicorn's answers are written with :meth:`sendall` and :meth:`sendfile`; it stands in the
    WSGI environ as ``gunicorn.socket``.
    """

    __slots__ = ("_continue", "_deadline", "_pace", "_patient", "_waits")

    def __init__(self, accepted: socket.socket, waits: ClientWaits) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self.setblocking(False)
        self._waits = waits
        self.begin_request()

    def begin_request(self) -> None:
        """Begin to measure anew."""
        self._pace: _Pace | None = None
        self._deadline: float | None = None
        self._patient = True
        self._continue = False

    def expect_continue(self) -> None:
        """Send ``100 Continue`` when :meth:`recv` has to wait for the body (RFC 9110, section 10.1.1)."""
        self._continue = True

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Have :meth:`recv` raise BlockingIOError instead of waiting."""
        self._patient = False
        try:
            yield
        finally:
            self._patient = True

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Have :meth:`recv` raise TimeoutError when so many seconds have passed in all, however the bytes come."""
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None
            self.setblocking(False)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Read what has come, or wait for it.

        :raises BodyTooSlow: the client does not keep the pace of a body.
        :raises TimeoutError: the time of :meth:`within` is up.
        """
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the time of the body is up")
            self.settimeout(left)
        while True:
            try:
                data = super().recv(size, flags)
            except BlockingIOError:
                if not self._patient:
                    raise
                self._await_bytes()
            else:
                if self._pace is not None:
                    self._pace.received += len(data)
                return data

    def _await_bytes(self) -> None:
        if self._continue:
            self._continue = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._pace = self._pace or _Pace()
        began = time.monotonic()
        with self._waits.counted():
            self._poll(select.POLLIN)
            self._pace.waited(time.monotonic() - began, self._waits.limit(_BODY_WINDOW))

    # The types of what Python declares as any buffer and any file.
    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Write all of ``data``. Python's own method applies its timeout to the whole of it.

        :raises AnswerNotTaken: the client takes nothing for too long.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[self.send(left, flags) :]
            except BlockingIOError:
                self._await_room()

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Write a part of a file, or the rest of it.

        :raises AnswerNotTaken: the client takes nothing for too long.
        :raises OSError: the file has become shorter.
        """
        descriptor = file.fileno()
        end = os.fstat(descriptor).st_size if count is None else offset + count
        at = offset
        while at < end:
            try:
                sent = os.sendfile(self.fileno(), descriptor, at, end - at)
            except BlockingIOError:
                self._await_room()
                continue
            if sent == 0:
                raise OSError(errno.EIO, "a file became shorter while it was sent")
            at += sent
        return at - offset

    def _await_room(self) -> None:
        """Wait until more can be written. The kernel reports that late, at a third of its buffer; less is progress too."""
        outstanding, silent = self._outstanding(), 0.0
        with self._waits.counted():
            while not self._poll(select.POLLOUT):
                left = self._outstanding()
                silent = silent + _LOOK_SECONDS if left >= outstanding else 0.0
                outstanding = left
                if silent >= self._waits.limit(_ANSWER_SECONDS):
                    raise AnswerNotTaken(f"no byte of the answer was taken for {silent:.0f} s")

    def _outstanding(self) -> int:
        """Bytes written that the client has not acknowledged (tcp(7), SIOCOUTQ, the same number as TIOCOUTQ)."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self, termios.TIOCOUTQ, bytes(4)))[0])
        except OSError:
            return 0

    def _poll(self, event: int) -> bool:
        poll = select.poll()
        poll.register(self, event)
        return bool(poll.poll(_LOOK_SECONDS * 1000))

    def reset(self) -> None:
        """Close with a reset: the client can't take a broken answer for a whole one, and the kernel drops what was not sent."""
        with contextlib.suppress(OSError):
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()
