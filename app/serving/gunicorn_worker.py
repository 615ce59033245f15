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
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Any, Final

from gunicorn import util  # type: ignore[import-untyped]  # the package ships no types
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]
from gunicorn.http import wsgi  # type: ignore[import-untyped]
from gunicorn.http.errors import (  # type: ignore[import-untyped]
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
)
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker  # type: ignore[import-untyped]

from app import problems
from app.config import CannotStart
from app.runtime import request_ids
from app.runtime.cors import CrossOrigin
from app.runtime.parking import PARKS, Parked, Streamed
from app.runtime.redaction import redacted
from app.serving import access_log
from app.serving.client_socket import BODY_SECONDS, SHORT_SECONDS, BodyTooSlow, ClientSocket, ClientWaits
from app.serving.connection import BUFFER_BYTES, HEAD_SECONDS, ClientRequest, Connection, Ending
from app.serving.lobby import WATCHES_CLIENTS, Lobby

#: How long the client's FIN is awaited after the last answer.
_FIN_SECONDS: Final = 1.0
#: A client whose request was not read to its end may still be sending it, and a reset would cost it the answer. So its bytes are
#: read and thrown away: the longest silence, and the least bytes a second.
_UNREAD_SECONDS: Final = 3.0
_UNREAD_RATE: Final = 16 * 1024

#: How often the main thread checks the time limits of its connections.
_TICK_SECONDS: Final = 0.25
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

#: Header fields that gunicorn's own access log could be told to show.
_HIDDEN: Final = frozenset(
    ("{authorization}i", "{cookie}i", "{http_authorization}e", "{http_cookie}e", "{set-cookie}o")
)


class _ConnectionWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """The main thread of a process: connections without a request, in the lobby, or closing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits = ClientWaits(self.cfg.threads // 2)
        self._waiting: set[Connection] = set()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._next_tick = self._accept_again = self._next_warning = 0.0
        #: Called once when the process begins to stop, for whatever reason; must return at once. gunicorn_conf.py sets it.
        self.on_stopping: Callable[[], object] = _nothing
        #: The pages of other origins that may read what is refused here. gunicorn_conf.py sets it.
        self.cross_origin = CrossOrigin(frozenset())
        self._lobby: Lobby[Connection]
        self.alive: bool

    def init_process(self) -> None:
        """Make the lobby of this process, after the fork. gunicorn's also runs the process until its end."""
        self._lobby = Lobby(self.method_queue.defer, self._resume, self._close, self._drop)
        super().init_process()

    def run(self) -> None:
        """Serve until the process is to end."""
        if WATCHES_CLIENTS:
            self.poller.register(self._lobby, selectors.EVENT_READ, self._lobby.check_clients)
        super().run()

    def accept(self, listener: Any) -> None:
        """Begin to read a new connection. gunicorn gives it to a thread, and lets the errors of the system call end the process."""
        try:
            accepted, client = listener.accept()
        except OSError as error:
            if error.errno not in _NETWORK_ERRORS:
                self._pause(error)
            return
        self.nr_conns += 1
        self._read_head(Connection(ClientSocket(accepted, self._waits), client, listener.getsockname(), self.cfg))

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

    def _wait(self, conn: Connection, on_readable: Callable[[Connection, object], None]) -> None:
        if conn not in self._waiting:
            self._waiting.add(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(on_readable, conn))

    def _stop_waiting(self, conn: Connection) -> None:
        if conn in self._waiting:
            self._waiting.discard(conn)
            self.poller.unregister(conn.sock)

    def _receive(self, conn: Connection) -> memoryview | None:
        """The bytes that have arrived: empty at the end of the connection, None if nothing has."""
        try:
            return self._buffer[: conn.sock.recv_into(self._buffer)]
        except BlockingIOError:
            return None
        except OSError:
            return self._buffer[:0]

    def _read_head(self, conn: Connection, _sock: object = None) -> None:
        data = self._receive(conn)
        if data is None:
            self._wait(conn, self._read_head)
        elif not data:
            self._release(conn)
        else:
            if not conn.head and conn.idle:
                conn.wait(HEAD_SECONDS, conn.end)
            self._take_head(conn, data)

    def _take_head(self, conn: Connection, data: bytes | memoryview) -> None:
        """Give a complete head to a thread; else wait for the rest."""
        if conn.add(data, self.cfg.limit_request_line):
            self._stop_waiting(conn)
            self.enqueue_req(conn)
        else:
            self._wait(conn, self._read_head)

    def finish_request(self, conn: Connection, fs: Future[Ending]) -> None:
        """Go on with a connection after a request; gunicorn's closes it here, and may wait for the client."""
        try:
            self._go_on(conn, fs)
        except Exception:
            # A bug costs one connection, and not the process with all of them.
            self.log.exception("A connection could not be served on.")
            self._release(conn, reset=True)

    def _go_on(self, conn: Connection, fs: Future[Ending]) -> None:
        ending = Ending.RESET if fs.cancelled() or fs.exception() else fs.result()
        if ending is Ending.KEEP:
            self._await_request(conn)
        elif ending is Ending.CLOSE:
            self._close(conn)
        elif isinstance(conn.waits, Parked):
            self._lobby.park(conn, conn.waits)
        elif isinstance(streamed := conn.waits, Streamed):
            conn.forget_request()
            self._lobby.stream(conn, streamed)
        else:
            self._release(conn, reset=True)

    def _resume(self, conn: Connection, parked: Parked) -> None:
        """Give a request whose wait may be over a thread again."""
        conn.waits = parked
        self.enqueue_req(conn)

    def _await_request(self, conn: Connection) -> None:
        """Wait for the next head, whose beginning may have been read with the last request."""
        ahead = conn.parser.unreader.take_buffered()
        conn.idle = not ahead
        conn.wait(self.cfg.keepalive if conn.idle else HEAD_SECONDS, self._end())
        self._take_head(conn, ahead)

    def _end(self) -> float:
        """The time at which a new wait of a connection must end: soon if the process stops, never otherwise."""
        return inf if self.alive else time.monotonic() + STOP_KEEPALIVE_LINGER

    def _close(self, conn: Connection, *, unread: bool = False) -> None:
        """Send FIN and await the client's, throwing away what it still sends."""
        unread = unread or conn.may_send_on()
        conn.closing = True
        conn.wait(_UNREAD_SECONDS if unread else _FIN_SECONDS, min(self._end(), time.monotonic() + BODY_SECONDS))
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            # It is reset, or closed already.
            self._release(conn)
            return
        self._throw_away(conn)

    def _throw_away(self, conn: Connection, _sock: object = None) -> None:
        data = self._receive(conn)
        if data is not None:
            conn.unread -= len(data)
            conn.since = min(conn.since + len(data) / _UNREAD_RATE, time.monotonic())
            if not data or conn.unread < 0:
                self._release(conn)
                return
        self._wait(conn, self._throw_away)

    def _release(self, conn: Connection, *, reset: bool = False) -> None:
        self._stop_waiting(conn)
        self.nr_conns -= 1
        if reset:
            conn.sock.reset()
        else:
            conn.sock.close()

    def _drop(self, conn: Connection) -> None:
        """Close the connection of a client that is gone. One that waited still has a request, which the access log tells of now."""
        if conn.request is not None and access_log.wanted():
            with request_ids.serving(conn.request.id):
                access_log.write(conn.request, conn.client, access_log.CLIENT_GONE, 0, conn.began, conn.request.known)
        self._release(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, but no longer than until the time limits must be checked."""
        tick = _TICK_SECONDS if self._waiting or self._accept_again else timeout
        super().wait_for_and_dispatch_events(min(timeout, tick, self._lobby.seconds_left()))

    def murder_keepalived(self, force: bool = False) -> None:
        """Give up connections that have waited too long, or all, after each wait for events. gunicorn's does so with idle ones."""
        self._lobby.check_deadlines()
        if force:
            self._lobby.dismiss_all()
        now = time.monotonic()
        if not force and now < self._next_tick:
            return
        self._next_tick = now + _TICK_SECONDS
        most = SHORT_SECONDS if self.nr_conns >= self.worker_connections else inf
        late = [c for c in self._waiting if force or now - c.since >= min(c.timeout, most) or now >= c.end]
        for conn in late:
            self._give_up(conn)

    def _give_up(self, conn: Connection) -> None:
        # A line end alone is no request: some clients send one behind a body (RFC 9112, section 2.2).
        if conn.closing or not conn.head.strip(b"\r\n"):
            self._release(conn)
            return
        self._stop_waiting(conn)
        with request_ids.serving(request_ids.accepted_or_new(None)), contextlib.suppress(OSError):
            _note_refusal(None, conn.client, "request-timeout")
            conn.sock.send(self._refusal(conn, "request-timeout", "The head of the request did not arrive in time."))
        self._close(conn, unread=True)

    def _refusal(self, conn: Connection, slug: str, detail: str) -> bytes:
        """A whole answer to the request that this thread serves, after which the connection ends."""
        status, headers, body = problems.encoded(slug, detail)
        if self.cross_origin.origins:
            headers |= {"Vary": "Origin", **self.cross_origin.fields(conn.origin())}
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Server: gunicorn",
            f"Date: {util.http_date()}",
            "Connection: close",
            f"Content-Length: {len(body)}",
            f"{request_ids.HEADER}: {request_ids.current()}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def _cap_keepalive(self, deadline: float) -> None:
        """Begin to stop: wait until then for what is not yet a request, and briefly for slow clients. gunicorn's waits for those as
        long as a stop may take.

        gunicorn calls this whenever its loop has ended: after SIGTERM, after ``max_requests``, without its master, at a reload.
        """
        self.alive = False
        self.on_stopping()
        self._waits.shorten()
        for conn in self._waiting:
            conn.end = min(conn.end, deadline)


class Worker(_ConnectionWorker):
    """gunicorn's worker with the bounds above, our signals, and one line that says why it can't start; here its request threads."""

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

    # -- the request threads -------------------------------------------------------------------------------------------

    def handle(self, conn: Connection) -> Ending:
        """Serve the request whose head has come. gunicorn's also waits for data, speaks TLS and HTTP/2, and writes tracebacks about
        clients that are slow.
        """
        try:
            request = conn.request if conn.waits and conn.request else self._next_request(conn)
            request_ids.begin(request.id)
            return self.handle_request(request, conn)
        except (NoMoreData, StopIteration) as error:
            self.log.debug("A connection ends: %s", error)
        except BodyTooSlow as error:
            self._refuse(conn, error)
        except OSError as error:
            # AnswerNotTaken, or the network's: nobody can be told. Any other is our own, such as of a disk.
            if isinstance(error, ConnectionError | TimeoutError) or error.errno in _NETWORK_ERRORS:
                self.log.debug("A client is gone: %s", error)
            else:
                self.log.exception("An answer broke off.")
            return Ending.RESET
        except Exception as error:  # noqa: BLE001  # it is logged and answered
            self._refuse(conn, error)
        finally:
            request_ids.begin(None)
        return Ending.CLOSE

    def _next_request(self, conn: Connection) -> ClientRequest:
        conn.request = None
        conn.sock.begin_request()
        request = conn.next_request()
        if request._expected_100_continue:  # noqa: SLF001  # gunicorn would send it before the application is called
            request._expected_100_continue = False  # noqa: SLF001
            conn.sock.expect_continue()
        return request

    def handle_request(self, req: Any, conn: Connection) -> Ending:
        """Call the application, or go on where it waited, and send its answer, unless it waits (again).

        Name and parameters are gunicorn's, whose own knows no waiting. Its hooks are called once for each request.
        """
        waited, conn.waits = conn.waits, None
        if waited is None:
            self._count(req, conn)
        response, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg)
        environ |= {"wsgi.multithread": True, PARKS: WATCHES_CLIENTS, request_ids.ENVIRON: req.id, **req.known}
        if not self.alive or not self.cfg.keepalive:
            response.force_close()
        try:
            application = waited.resume if isinstance(waited, Parked) else self.wsgi
            conn.waits = self._send(response, application(environ, response.start_response), environ, conn)
        except OSError:
            raise
        except Exception:
            if not response.headers_sent:
                raise
            # What was sent is no whole answer; with a reset nobody takes it for one.
            self.log.exception("Error handling request %s", req.path)
            return Ending.RESET
        finally:
            if not isinstance(conn.waits, Parked):
                self.cfg.post_request(self, req, environ, response)
        if conn.waits is not None:
            return Ending.PARK
        return Ending.CLOSE if response.should_close() else Ending.KEEP

    def _count(self, req: Any, conn: Connection) -> None:
        """Begin to serve a request, the last one if it is as many as the process is to serve (``max_requests``)."""
        conn.began = time.monotonic()
        self.cfg.pre_request(self, req)
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False

    def _send(self, response: Any, answer: Any, environ: dict[str, Any], conn: Connection) -> Parked | Streamed | None:
        """Write an answer, and a line of the access log. What goes on without a thread is returned, of a stream behind its head."""
        if isinstance(answer, Parked):
            response.req.keep(environ)
            return answer
        if isinstance(answer, Streamed):
            # Its line says when it began; it may go on for an hour.
            _begin_stream(response, answer)
            self._note_access(response, environ, conn)
            return answer
        try:
            if isinstance(answer, environ["wsgi.file_wrapper"]):
                response.write_file(answer)
                if response.req.method != "HEAD" and not response.sent:
                    # gunicorn does not count what the kernel sends.
                    response.sent = response.response_length
            else:
                for item in answer:
                    response.write(item)
            response.close()
        finally:
            self._note_access(response, environ, conn)
            if hasattr(answer, "close"):
                answer.close()
        return None

    def _refuse(self, conn: Connection, error: Exception) -> None:
        """Answer a request that the application has not seen with a problem; gunicorn's ``handle_error`` answers in HTML."""
        slug, req = _slug(error), conn.request
        with request_ids.serving(request_ids.accepted_or_new(None) if req is None else req.id):
            if slug == problems.INTERNAL_ERROR:
                self.log.error("Error handling request %s", getattr(req, "path", None), exc_info=error)
                detail = "The gateway failed in an unexpected way; its log says why."
            else:
                detail = f"The request can't be read as HTTP/1.1: {problems.shown(str(error))}"
                # Not the detail: it shows what was sent, which may be a part of a body or a header field with a token.
                self.log.info("%s: the request can't be read as HTTP/1.1 (%s)", slug, type(error).__name__)
            _note_refusal(req, conn.client, slug)
            with contextlib.suppress(OSError):
                conn.sock.sendall(self._refusal(conn, slug, detail))

    def _note_access(self, response: Any, environ: dict[str, Any], conn: Connection) -> None:
        """Write the lines of a request to the access logs that were asked for: ours, and gunicorn's by its own options."""
        if access_log.wanted():
            access_log.write(response.req, conn.client, response.status_code, response.sent, conn.began, environ)
        if self.cfg.accesslog or self.cfg.syslog:
            self.log.access(response, response.req, environ, timedelta(seconds=time.monotonic() - conn.began))


def _nothing() -> None:
    """Stands where gunicorn_conf.py has set nothing."""


def _note_refusal(req: Any, peer: Any, slug: str) -> None:
    """Write the line of a request that the application has not seen."""
    if access_log.wanted():
        access_log.write(req, peer, problems.PROBLEMS[slug].status, 0, None, {})


def _begin_stream(response: Any, streamed: Streamed) -> None:
    """Send the head of a stream, whose end is the end of the connection. It is not chunked: each event is written as it is."""
    try:
        response.force_close()
        response.start_response(streamed.status, streamed.headers)
        response.chunked = False
        response.send_headers()
    except BaseException:
        streamed.source.close()
        raise


def _slug(error: Exception) -> str:
    """The problem that an exception stands for: all of gunicorn's are the client's fault, but for those about our own header."""
    kinds = (kind for kind in _SLUGS if isinstance(error, kind))
    return _SLUGS.get(next(kinds, Exception), problems.INTERNAL_ERROR)


class Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger; what its own access log shows, where one is asked for by its options, holds no secrets."""

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        """The values that an access log may show, by their names in its format."""
        shown = super().atoms(resp, req, environ, request_time)
        shown |= dict.fromkeys(_HIDDEN & shown.keys(), "…")
        return {name: redacted(value) if isinstance(value, str) else value for name, value in shown.items()}
