"""A simulator that listens: its WSGI server, and the connection faults that only a server can have."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from typing import Any, Self

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from app.simulator.faults import REFUSE
from app.simulator.routes import create_simulator
from app.simulator.settings import SimulatorSettings
from app.simulator.simulator import Simulator

_LOG = logging.getLogger(__name__)

#: Seconds between two looks of the accept loop at whether it should end.
_POLL = 0.02


class _Handler(WSGIRequestHandler):
    """HTTP/1.1 with kept connections, which werkzeug's own handler closes after every answer.

    The application reads every body to its end and sets every Content-Length, so that the next request line is where it
    should be. The moment at which the headers were read is handed on as ``simulator.received``, and a function that sends
    bytes at once, ahead of the answer, as ``simulator.send``.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def run_wsgi(self) -> None:
        """Answer one request; a client that has left ends the connection and nothing else."""
        received = time.perf_counter()
        if not _lines(self.server).answers(self.server):
            # Linux hands out what arrives on a line although it was shut for reading.
            self.close_connection = True
            return
        self.environ = self.make_environ()
        self.environ["simulator.received"] = received
        self.environ["simulator.send"] = self.wfile.write
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> Any:
            started[:] = [(status, headers)]
            return self.wfile.write

        body = self.server.app(self.environ, start_response)
        try:
            self._send_head(*started[0])
            for data in body:
                self.wfile.write(data)
        except OSError:
            self.close_connection = True
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()

    def _send_head(self, status: str, headers: list[tuple[str, str]]) -> None:
        code, _, reason = status.partition(" ")
        self.send_response(int(code), reason)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The header Date, by the server's own clock."""
        ahead = self.server.app.extensions["simulator"].settings.clock_ahead  # type: ignore[attr-defined]
        return super().date_time_string((time.time() if timestamp is None else timestamp) + ahead)

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 -- the name is the base class's
        """Say nothing: a test's output is for the test."""

    def setup(self) -> None:
        """Tell the server of the connection, so that it can be cut."""
        super().setup()
        _lines(self.server).add(self.connection)

    def finish(self) -> None:
        """The connection is over."""
        _lines(self.server).discard(self.connection)
        # The client may have left in the middle of an answer.
        with contextlib.suppress(OSError):
            super().finish()


class _Lines:
    """The open connections of one server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening: BaseWSGIServer | None = None

    def listen(self, server: BaseWSGIServer) -> None:
        """From now on this one's requests are answered."""
        with self._lock:
            self._listening = server

    def answers(self, server: BaseWSGIServer) -> bool:
        """Whether a request that has arrived now is answered: not after its lines were cut."""
        with self._lock:
            return server is self._listening

    def add(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def discard(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def count(self) -> int:
        """The number of open connections."""
        with self._lock:
            return len(self._open)

    def cut(self, how: int) -> None:
        """Shut every connection and answer no more requests; with ``SHUT_RD`` an answer under way still goes out."""
        with self._lock:
            self._listening = None
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(how)


def _lines(server: BaseWSGIServer) -> _Lines:
    lines: _Lines = server.simulator_lines  # type: ignore[attr-defined]
    return lines


def _log_error(_request: object, _client: object) -> None:
    """Log an exception that ends a connection, unless it is the connection that has ended."""
    if not isinstance(sys.exc_info()[1], ConnectionError):
        _LOG.exception("a request could not be answered")


class SimulatorServer:
    """A simulator on a port of its own (0: a free one, bound at once); a context manager starts and stops it."""

    def __init__(self, settings: SimulatorSettings, host: str = "127.0.0.1", port: int = 0) -> None:
        self._app = create_simulator(settings)
        self.simulator: Simulator = self._app.extensions["simulator"]
        self.simulator.refuse = self.refuse
        self._host = host
        self._lines = _Lines()
        self._change = threading.Lock()
        self._listening: tuple[BaseWSGIServer, threading.Thread | None] | None = (self._bind(port), None)
        self.port: int = self._listening[0].server_port
        self._reopening: threading.Timer | None = None
        self._stopped = False

    @property
    def url(self) -> str:
        """The address of the server, without a slash at the end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    def connections(self) -> int:
        """The number of open connections, with or without a request on them."""
        return self._lines.count()

    def start(self) -> None:
        """Serve from a daemon thread."""
        with self._change:
            if self._listening is not None and self._listening[1] is None:
                self._serve(self._listening[0])
        fault = self.simulator.faults.remove(REFUSE)
        if fault is not None:
            self.refuse(fault.lasts(fault.count))

    def stop(self) -> None:
        """Stop listening, let go of every waiting request, cut every connection. May be called twice."""
        with self._change:
            self._stopped = True
            if self._reopening is not None:
                self._reopening.cancel()
            self._close()
        # First the lines: half a picture that was let go must not reach anybody as an answer.
        self._lines.cut(socket.SHUT_RDWR)
        self.simulator.engine.stop()

    def refuse(self, seconds: float) -> None:
        """Refuse connections for so long; answers under way still go out, idle connections end."""
        with self._change:
            if self._stopped or self._listening is None:
                return
            self._close()
            self._lines.cut(socket.SHUT_RD)
            self._reopening = threading.Timer(seconds, self._reopen)
            self._reopening.daemon = True
            self._reopening.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _bind(self, port: int) -> BaseWSGIServer:
        server = make_server(self._host, port, self._app, threaded=True, request_handler=_Handler)
        server.simulator_lines = self._lines  # type: ignore[attr-defined]
        # The server's own writes to standard error.
        server.handle_error = _log_error  # type: ignore[assignment, method-assign]
        return server

    def _serve(self, server: BaseWSGIServer) -> None:
        self._lines.listen(server)
        thread = threading.Thread(target=server.serve_forever, args=(_POLL,), name="simulator", daemon=True)
        thread.start()
        self._listening = (server, thread)

    def _close(self) -> None:
        if self._listening is None:
            return
        server, thread = self._listening
        self._listening = None
        if thread is not None:
            server.shutdown()
            thread.join()
        server.server_close()

    def _reopen(self) -> None:
        with self._change:
            if not self._stopped:
                self._serve(self._bind(self.port))
