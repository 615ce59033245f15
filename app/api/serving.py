"""gunicorn's gthread worker and logger, each without a cost that every request of ours would pay; gunicorn.conf.py names them.

Profiled with small files on kept connections: of the time that threads of a process held the interpreter, 70 % went into handing
connections to and fro between the main thread and the pool, and a tenth of the rest into an access log that nobody reads.
"""

from __future__ import annotations

import select
from typing import Any, Final

from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]  # the package ships no types
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

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
        super().init_process()

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


class Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger, which with a ``logconfig_dict`` would put every line of an access log together and then drop it."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write a line to the access log, where one was asked for."""
        if self.cfg.accesslog or self.cfg.syslog:
            super().access(resp, req, environ, request_time)
