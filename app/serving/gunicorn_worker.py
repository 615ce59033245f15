"""gunicorn's gthread worker with bounds on its clients, and its logger, as gunicorn_conf.py names them.

A request gets a thread when its head has arrived, and loses it when its client does not keep up. This replaces of gunicorn 27:

* **Heads** are read by the main loop, without a thread, and have 10 s. gunicorn reads them in a request thread, for ever.
* **Bodies and answers**: while a thread waits for its client, the client must keep a pace (:class:`ClientSocket`). gunicorn waits
  for ever. ``100 Continue`` is sent when the application begins to read; gunicorn sends it before the application is called.
* **An unread body** closes the connection after the answer, and is not waited for. gunicorn's request thread reads on for 5 s.
* **Closing** (RFC 9112, section 9.6) is left to the main loop's selector: FIN is sent, and what still comes is read and thrown away
  for a bounded time. gunicorn's main thread waits up to 2 s for each connection.
* **Too many connections**: when accept() fails it is tried again later; gunicorn's process would end. When all places are taken,
  silent connections are closed early.
* **What gunicorn refuses** is answered with a problem document, like everything else.

HTTP/1 over plain TCP or a Unix socket only. gunicorn's own deques of waiting connections stay empty.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import selectors
import signal
import socket
import struct
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from enum import Enum
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Any, Final

from gunicorn import util  # type: ignore[import-untyped]  # the package ships no types
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    ExpectationFailed,
    InvalidHeader,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request  # type: ignore[import-untyped]
from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker  # type: ignore[import-untyped]

from app import problems
from app.config import CannotStart

#: Seconds for a whole head, from its first byte; the first head of a connection, from the accept().
_HEAD_SECONDS: Final = 10.0
#: Bytes of a head; gunicorn's own bounds of its parts (``limit_request_*``) would add up to 800 kB.
_HEAD_BYTES: Final = 64 * 1024
#: The least bytes a second of a body, the seconds over which they are averaged, and the most seconds of a whole body.
_BODY_RATE: Final = 1024
_BODY_WINDOW: Final = 10.0
_BODY_SECONDS: Final = 300.0
#: Seconds in which a client must take at least one byte of its answer.
_ANSWER_SECONDS: Final = 10.0
#: The bounds above are shortened to this when more than half of the threads wait for their clients, all connections are in use,
#: or the process stops.
_SHORT_SECONDS: Final = 2.0
#: How often a waiting thread checks the pace of its client.
_LOOK_SECONDS: Final = 1.0

#: How long the client's FIN is awaited after the last answer.
_FIN_SECONDS: Final = 1.0
#: A client whose request was not read to its end may still be sending it, and a reset would cost it the answer. So its bytes are
#: read and thrown away: the longest silence, the least bytes a second, and the most bytes in all.
_UNREAD_SECONDS: Final = 3.0
_UNREAD_RATE: Final = 16 * 1024
_UNREAD_BYTES: Final = 64 * 1024 * 1024
#: The most bytes of an unread body that are read before the answer, so that the connection can be kept.
_READY_BYTES: Final = 256 * 1024

#: How often the main thread checks the time limits of its connections.
_TICK_SECONDS: Final = 0.25
_BUFFER_BYTES: Final = 64 * 1024
#: The pause of accept() when there is no descriptor or no memory for a connection, and how often it is logged.
_PAUSE_SECONDS: Final = 0.5
_WARNING_SECONDS: Final = 60.0
#: Errors about one connection that is gone: those of the network that accept(2) lists, and a firewall's.
_NETWORK_ERRORS: Final = frozenset(
    (
        errno.EAGAIN,
        errno.EWOULDBLOCK,
        errno.EINTR,
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ENOTCONN,
    )
)
#: The problem of each exception; the first class that fits counts. RFC 9110 would allow 501 for an unknown Transfer-Encoding and
#: 505 for an unknown version, but both are the client's to change.
_SLUGS: Final = {
    InvalidResponseHeader: problems.INTERNAL_ERROR,
    InvalidResponseHeaderName: problems.INTERNAL_ERROR,
    LimitRequestLine: "uri-too-long",
    LimitRequestHeaders: "headers-too-large",
    ExpectationFailed: "expectation-failed",
    ParseException: "invalid-request",
    TimeoutError: "request-timeout",
}
_HTTP_1_1: Final = (1, 1)
#: RFC 3986, section 3.2.2, with an optional port.
_HOST: Final = re.compile(r"(\[[0-9A-Za-z:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
#: POLLRDHUP (the client has closed its half of the connection) exists on Linux only.
_GONE: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL


class BodyTooSlow(TimeoutError):
    """The client sends its request too slowly."""


class AnswerNotTaken(TimeoutError):
    """The client does not read its answer."""


class _ClientWaits:
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
        return seconds if self._waiting <= self._limit else min(seconds, _SHORT_SECONDS)


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
        if self._waited >= _BODY_SECONDS:
            raise BodyTooSlow(f"not complete after {_BODY_SECONDS:.0f} s")
        if self._waited - self._marks[-1][0] >= _LOOK_SECONDS:
            self._marks.append((self._waited, self.received))


class ClientSocket(socket.socket):
    """The connection to a client, non-blocking underneath; its methods wait, within the time limits of this module.

    The parser reads with :meth:`recv`, gunicorn's answers are written with :meth:`sendall` and :meth:`sendfile`; it stands in the
    WSGI environ as ``gunicorn.socket``.
    """

    __slots__ = ("_continue", "_pace", "_patient", "_waits")

    def __init__(self, accepted: socket.socket, waits: _ClientWaits) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self.setblocking(False)
        self._waits = waits
        self.begin_request()

    def begin_request(self) -> None:
        """Begin to measure anew."""
        self._pace: _Pace | None = None
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

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Read what has come, or wait for it.

        :raises BodyTooSlow: the client does not keep the pace of a body.
        """
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

    def gone(self) -> bool:
        """Whether the client has closed the connection, or its half of it, even if bytes of a next request are unread."""
        poll = select.poll()
        poll.register(self, _GONE)
        return bool(poll.poll(0))

    def reset(self) -> None:
        """Close with a reset: the client can't take a broken answer for a whole one, and the kernel drops what was not sent."""
        with contextlib.suppress(OSError):
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


class _Request(Request):  # type: ignore[misc]  # gunicorn ships no types
    """A request whose connection is closed after the answer if its body has not arrived by then."""

    version: tuple[int, int]
    _over: bool | None = None

    def body_is_over(self) -> bool:
        """Whether the next byte begins the next request. Decided once, when the answer's ``Connection`` field is written."""
        if self._over is None:
            self._over = not self.body.failed and self._skip_body()
        return self._over

    def _skip_body(self) -> bool:
        if getattr(self.body.reader, "length", None) == 0:
            # There is no body, or the application has read it.
            return True
        # Neither malformed chunks nor a broken connection end a body.
        with self.unreader.sock.without_waiting(), contextlib.suppress(OSError, ParseException):
            for _ in range(_READY_BYTES // _BUFFER_BYTES):
                if not self.body.read(_BUFFER_BYTES):
                    return True
        return False

    def should_close(self) -> bool:
        """Whether the connection ends with this request. gunicorn reads only a ``Connection`` field of one word."""
        wants_close = "close" in (
            word.strip(" \t").lower() for value in self._fields("CONNECTION") for word in value.split(",")
        )
        return wants_close or not self.body_is_over() or super().should_close()

    def check_head(self) -> None:
        """Check what gunicorn leaves to the application (RFC 9112, sections 3.2 and 6.1; RFC 9110, section 2.5).

        :raises InvalidHeader: HTTP/1.1 without one Host, or a Host that is none.
        :raises UnsupportedTransferCoding: a coding besides chunked, which nobody would undo.
        """
        hosts = self._fields("HOST")
        if (self.version >= _HTTP_1_1 and len(hosts) != 1) or not all(map(_HOST.fullmatch, hosts)):
            raise InvalidHeader("HOST")
        for coding in self._fields("TRANSFER-ENCODING"):
            if coding.strip(" \t").lower() != "chunked":
                raise UnsupportedTransferCoding(coding)
        # The status line names the version that we conform to.
        self.version = min(self.version, _HTTP_1_1)

    def _fields(self, name: str) -> list[str]:
        return [value for field, value in self.headers if field == name]


class _Parser(RequestParser):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's parser of one connection, which makes requests of our class."""

    mesg_class = _Request


class _Ending(Enum):
    """The fate of a connection after a request."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"


class _Connection:
    """A connection: in a request thread, or in the main thread, waiting for a head or for the client's FIN."""

    __slots__ = (
        "client",
        "closing",
        "end",
        "head",
        "idle",
        "parser",
        "server",
        "since",
        "sock",
        "timeout",
        "too_long",
        "unread",
    )

    def __init__(self, sock: ClientSocket, client: Any, server: Any, cfg: Any) -> None:
        self.sock, self.client, self.server = sock, client, server
        self.parser = _Parser(cfg, sock, client)
        #: What has arrived of the next head, and perhaps of what follows it.
        self.head = bytearray()
        self.too_long = False
        #: Whether a request was served and no byte of the next one has arrived.
        self.idle = False
        self.closing = False
        #: Bytes that may still be read and thrown away.
        self.unread = _UNREAD_BYTES
        self.wait(_HEAD_SECONDS)

    def wait(self, timeout: float, end: float = inf) -> None:
        """Begin a wait of so many seconds, which ends at ``end`` at the latest."""
        self.since, self.timeout, self.end = time.monotonic(), timeout, end

    def add(self, data: bytes | memoryview, longest_line: int) -> bool:
        """Add bytes to the head; True if it is complete, or malformed (RFC 9112, section 2.2) so that the parser will refuse it."""
        head, old = self.head, len(self.head)
        head += data
        end = head.find(b"\r\n\r\n", max(old - 3, 0))
        self.too_long = max(end, 0 if end >= 0 else len(head)) > _HEAD_BYTES
        if end >= 0 or self.too_long:
            return True
        last = max(old - 1, 0)
        bare = head.count(b"\n", old) != head.count(b"\r\n", last)
        return bare or (len(head) > longest_line + 2 and head.find(b"\n") < 0)

    def next_request(self) -> _Request:
        """Parse the head."""
        head = bytes(self.head)
        self.head.clear()
        # gunicorn would look for the rest of the last request's body.
        self.parser.mesg = None
        if self.too_long:
            raise LimitRequestHeaders(f"the head has more than {_HEAD_BYTES} bytes")
        self.parser.unreader.unread(head)
        request: _Request = next(self.parser)
        request.check_head()
        return request


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's worker with the bounds above, our signals, and one line that says why it can't start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits = _ClientWaits(self.cfg.threads // 2)
        self._waiting: set[_Connection] = set()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._next_tick = self._accept_again = self._next_warning = 0.0

    # -- signals and start -------------------------------------------------------------------------------------------

    def init_signals(self) -> None:
        """Leave Ctrl-C to the master, which the terminal sends it too: it lets its processes end as SIGTERM does."""
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def handle_quit(self, *_: object) -> None:
        """End at once: it was the second Ctrl-C. The next process takes over what this one held, as after a crash."""
        os._exit(0)

    def load_wsgi(self) -> None:
        """Load the application; what it can't start with is told in one line."""
        try:
            super().load_wsgi()
        except CannotStart as error:
            self.log.critical("the gateway can't start: %s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    # -- the main thread: connections without a request ----------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        """Begin to read a new connection. gunicorn gives it to a thread, and lets the errors of the system call end the process."""
        try:
            accepted, client = listener.accept()
        except OSError as error:
            if error.errno not in _NETWORK_ERRORS:
                self._pause(error)
            return
        self.nr_conns += 1
        self._read_head(_Connection(ClientSocket(accepted, self._waits), client, listener.getsockname(), self.cfg))

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a moment: the listening socket stays readable, so the loop would spin."""
        now = time.monotonic()
        self._accept_again = now + _PAUSE_SECONDS
        self.set_accept_enabled(False)
        if now >= self._next_warning:
            self._next_warning = now + _WARNING_SECONDS
            self.log.warning("no new connections for now: %s", error.strerror)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept or not; never during a pause."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accept_again)

    def _wait(self, conn: _Connection, on_readable: Callable[[_Connection, object], None]) -> None:
        if conn not in self._waiting:
            self._waiting.add(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(on_readable, conn))

    def _stop_waiting(self, conn: _Connection) -> None:
        if conn in self._waiting:
            self._waiting.discard(conn)
            self.poller.unregister(conn.sock)

    def _receive(self, conn: _Connection) -> memoryview | None:
        """The bytes that have arrived: empty at the end of the connection, None if nothing has."""
        try:
            return self._buffer[: conn.sock.recv_into(self._buffer)]
        except BlockingIOError:
            return None
        except OSError:
            return self._buffer[:0]

    def _read_head(self, conn: _Connection, _sock: object = None) -> None:
        data = self._receive(conn)
        if data is None:
            self._wait(conn, self._read_head)
        elif not data:
            self._release(conn)
        else:
            if not conn.head and conn.idle:
                conn.wait(_HEAD_SECONDS, conn.end)
            self._take_head(conn, data)

    def _take_head(self, conn: _Connection, data: bytes | memoryview) -> None:
        """Give a complete head to a thread; else wait for the rest."""
        if conn.add(data, self.cfg.limit_request_line):
            self._stop_waiting(conn)
            self.enqueue_req(conn)
        else:
            self._wait(conn, self._read_head)

    def finish_request(self, conn: _Connection, fs: Future[_Ending]) -> None:
        """Go on with a connection after a request; gunicorn's closes it here, and may wait for the client."""
        ending = _Ending.RESET if fs.cancelled() or fs.exception() else fs.result()
        if ending is _Ending.KEEP:
            self._await_request(conn)
        elif ending is _Ending.CLOSE:
            self._close(conn)
        else:
            self._release(conn, reset=True)

    def _await_request(self, conn: _Connection) -> None:
        """Wait for the next head, whose beginning may have been read with the last request."""
        ahead = conn.parser.unreader.take_buffered()
        conn.idle = not ahead
        conn.wait(self.cfg.keepalive if conn.idle else _HEAD_SECONDS, self._end())
        self._take_head(conn, ahead)

    def _end(self) -> float:
        """The time at which a new wait of a connection must end: soon if the process stops, never otherwise."""
        return inf if self.alive else time.monotonic() + STOP_KEEPALIVE_LINGER

    def _close(self, conn: _Connection, *, unread: bool = False) -> None:
        """Send FIN and await the client's, throwing away what it still sends."""
        request = conn.parser.mesg
        unread = unread or request is None or not request.body_is_over()
        conn.closing = True
        conn.wait(_UNREAD_SECONDS if unread else _FIN_SECONDS, min(self._end(), time.monotonic() + _BODY_SECONDS))
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            # It is reset, or closed already.
            self._release(conn)
            return
        self._throw_away(conn)

    def _throw_away(self, conn: _Connection, _sock: object = None) -> None:
        data = self._receive(conn)
        if data is not None:
            conn.unread -= len(data)
            conn.since = min(conn.since + len(data) / _UNREAD_RATE, time.monotonic())
            if not data or conn.unread < 0:
                self._release(conn)
                return
        self._wait(conn, self._throw_away)

    def _release(self, conn: _Connection, *, reset: bool = False) -> None:
        self._stop_waiting(conn)
        self.nr_conns -= 1
        if reset:
            conn.sock.reset()
        else:
            conn.sock.close()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, but no longer than until the time limits must be checked."""
        super().wait_for_and_dispatch_events(
            min(timeout, _TICK_SECONDS) if self._waiting or self._accept_again else timeout
        )

    def murder_keepalived(self, force: bool = False) -> None:
        """Give up connections that have waited too long, or all, after each wait for events. gunicorn's does so with idle ones."""
        now = time.monotonic()
        if not force and now < self._next_tick:
            return
        self._next_tick = now + _TICK_SECONDS
        most = _SHORT_SECONDS if self.nr_conns >= self.worker_connections else inf
        late = [c for c in self._waiting if force or now - c.since >= min(c.timeout, most) or now >= c.end]
        for conn in late:
            self._give_up(conn)

    def _give_up(self, conn: _Connection) -> None:
        # A line end alone is no request: some clients send one behind a body (RFC 9112, section 2.2).
        if conn.closing or not conn.head.strip(b"\r\n"):
            self._release(conn)
            return
        self._stop_waiting(conn)
        with contextlib.suppress(OSError):
            conn.sock.send(_refusal("request-timeout", "The head of the request did not arrive in time."))
        self._close(conn, unread=True)

    def _cap_keepalive(self, deadline: float) -> None:
        """Let the process that stops wait until then for what is not yet a request, and briefly for slow clients. gunicorn's waits
        for those as long as a stop may take.
        """
        self._waits.shorten()
        for conn in self._waiting:
            conn.end = min(conn.end, deadline)

    # -- the request threads -------------------------------------------------------------------------------------------

    def handle(self, conn: _Connection) -> _Ending:
        """Serve the request whose head has come. gunicorn's also waits for data, speaks TLS and HTTP/2, and writes tracebacks about
        clients that are slow.
        """
        request = None
        try:
            conn.sock.begin_request()
            request = conn.next_request()
            if request._expected_100_continue:  # noqa: SLF001  # gunicorn would send it before the application is called
                request._expected_100_continue = False  # noqa: SLF001
                conn.sock.expect_continue()
            return _Ending.KEEP if self.handle_request(request, conn) else _Ending.CLOSE
        except (NoMoreData, StopIteration) as error:
            self.log.debug("A connection ends: %s", error)
        except BodyTooSlow as error:
            self.handle_error(request, conn.sock, conn.client, error)
        except OSError as error:
            # AnswerNotTaken, or the network's: nobody can be told. Any other is our own, such as of a disk.
            if isinstance(error, ConnectionError | TimeoutError) or error.errno in _NETWORK_ERRORS:
                self.log.debug("A client is gone: %s", error)
            else:
                self.log.exception("An answer broke off.")
            return _Ending.RESET
        except Exception as error:  # noqa: BLE001  # it is logged and answered
            self.handle_error(request, conn.sock, conn.client, error)
        return _Ending.CLOSE

    def handle_error(self, req: Any, client: ClientSocket, addr: Any, exc: Exception) -> None:
        """Answer a request that the application has not seen with a problem; gunicorn's answers in HTML.

        Signature and callers are gunicorn's.
        """
        del addr
        slug = _slug(exc)
        if slug == problems.INTERNAL_ERROR:
            self.log.error("Error handling request %s", getattr(req, "uri", None), exc_info=exc)
            detail = "The gateway failed in an unexpected way; its log says why."
        else:
            detail = f"The request can't be read as HTTP/1.1: {problems.shown(str(exc))}"
            self.log.info("%s: %s", slug, detail)
        with contextlib.suppress(OSError):
            client.sendall(_refusal(slug, detail))


def _slug(error: Exception) -> str:
    """The problem that an exception stands for: all of gunicorn's are the client's fault, but for those about our own header."""
    kinds = (kind for kind in _SLUGS if isinstance(error, kind))
    return _SLUGS.get(next(kinds, Exception), problems.INTERNAL_ERROR)


def _refusal(slug: str, detail: str) -> bytes:
    """A whole answer, after which the connection ends."""
    status, headers, body = problems.encoded(slug, detail)
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Server: gunicorn",
        f"Date: {util.http_date()}",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger, which with a ``logconfig_dict`` would put every line of an access log together and then drop it."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write a line to the access log, where one was asked for."""
        if self.cfg.accesslog or self.cfg.syslog:
            super().access(resp, req, environ, request_time)
