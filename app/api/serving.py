"""gunicorn's gthread worker, its answers and its logger, each without a cost that every request of ours would pay; gunicorn.conf.py
names worker and logger.

Profiled with small files on kept connections: of the time that threads of a process held the interpreter, 70 % went into handing
connections to and fro between the main thread and the pool, and a tenth of the rest into an access log that nobody reads.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import Any, Final

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]  # the package ships no types
from gunicorn.http import wsgi  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from app import startup

#: Milliseconds that a thread waits for the next request of the connection that it has just answered.
_PATIENCE: Final = 100
#: One of so many threads of a process may wait so at a time: the others are free for whoever comes.
_OF_THREADS: Final = 4


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """A gthread worker whose threads stay with a connection for a moment.

    gunicorn's own gives each connection back to the main thread after each answer: a wake-up of the main thread by a pipe, three
    calls of epoll, a future, and a wake-up of another thread, all of them waiting for the interpreter in turn. A client that has
    many pictures to fetch, or a proxy with many clients, sends its next request at once.
    """

    def init_process(self) -> None:
        """Serve until told to stop."""
        # A list as a bag of permits: its pop and append are atomic, and cost a tenth of a semaphore's.
        self._permits = [None] * max(1, self.cfg.threads // _OF_THREADS)
        # There is no setting for it, and this process serves nothing else.
        wsgi.Response = Response
        super().init_process()

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
        except startup.ERRORS as error:
            self.log.critical("the gateway can't start: %s", " ".join(str(error).split()))
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def handle(self, conn: TConn) -> Any:
        """Answer the requests of a connection until it ends or rests; what gunicorn shall do with it then."""
        outcome = super().handle(conn)
        # True: the connection is kept. There is also an object that means "no request yet".
        while outcome is True and self.alive and self._asks_again(conn):
            outcome = super().handle(conn)
        return outcome

    def _asks_again(self, conn: TConn) -> bool:
        """Whether the next request begins to arrive within the patience."""
        try:
            self._permits.pop()
        except IndexError:
            return False
        try:
            poll = select.poll()
            poll.register(conn.sock, select.POLLIN)
            return bool(poll.poll(_PATIENCE))
        finally:
            self._permits.append(None)


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's answer, but the head of a file goes out with its first bytes: a packet, and a wake-up of the client, less."""

    def sendfile(self, respiter: Any) -> bool:
        """Send head and file; whether it was done so."""
        if self._is_special():
            return bool(super().sendfile(respiter))
        lines = self.default_headers() + [f"{name}: {value}\r\n" for name, value in self.headers]
        self.sock.sendall("".join([*lines, "\r\n"]).encode("latin-1"), socket.MSG_MORE)
        self.headers_sent = True
        left: int = self.response_length
        # socket.sendfile would make a selector for each file. Without an offset it reads on from where the file is.
        while left and (count := os.sendfile(self.sock.fileno(), respiter.filelike.fileno(), None, left)):
            left -= count
        if left:
            # The file was cut short meanwhile. That the connection ends is all that can still be told.
            self.force_close()
        return True

    def _is_special(self) -> bool:
        """Whether gunicorn's own way is needed: only bytes of a known number, sent in clear by Linux, can do without."""
        plain = self.response_length and not self.headers_sent and not self._omits_body and hasattr(socket, "MSG_MORE")
        return not plain or self.cfg.is_ssl or not self.can_sendfile()


class Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger, which with a ``logconfig_dict`` would put every line of an access log together and then drop it."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write a line to the access log, where one was asked for."""
        if self.cfg.accesslog or self.cfg.syslog:
            super().access(resp, req, environ, request_time)
