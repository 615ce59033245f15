"""gunicorn's logger without a cost that every request would pay; gunicorn.conf.py names it."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]  # the package ships no types


class Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger, which with a ``logconfig_dict`` would put every line of an access log together and then drop it."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write a line to the access log, where one was asked for."""
        if self.cfg.accesslog or self.cfg.syslog:
            super().access(resp, req, environ, request_time)
