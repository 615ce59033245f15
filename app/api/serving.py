"""gunicorn's gthread worker and its logger, as gunicorn.conf.py names them."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]  # the package ships no types
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from app import startup


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's own worker, but for its signals and for how it tells that it can't start."""

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


class Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger, which with a ``logconfig_dict`` would put every line of an access log together and then drop it."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write a line to the access log, where one was asked for."""
        if self.cfg.accesslog or self.cfg.syslog:
            super().access(resp, req, environ, request_time)
