"""The audit log: who has changed what, in the log and in a file of the instance folder that is kept apart from it."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Any, Final

from app.runtime import logs, modes

#: The file in the instance folder.
FILENAME: Final = "audit.log"
_LOG: Final = logging.getLogger(logs.AUDIT)


def audit(event: str, **fields: Any) -> None:
    """Write a line about something that was changed, to the log and to the file.

    :param event: what was done, such as ``token-created``.
    :param fields: to what, and ``by`` whom; no secrets. Those that are None are left out.
    """
    logs.write(_LOG, logging.INFO, event, fields)


def keep(instance: Path, log_format: str) -> None:
    """Write the lines of this process to the file of an instance folder from now on. It is made with the first line."""
    file = AuditFile(instance / FILENAME)
    file.setFormatter(logs.formatter(log_format))
    for handler in [handler for handler in _LOG.handlers if isinstance(handler, AuditFile)]:
        _LOG.removeHandler(handler)
        handler.close()
    _LOG.addHandler(file)
    # Whatever the log leaves out.
    _LOG.setLevel(logging.INFO)


class AuditFile(logging.handlers.WatchedFileHandler):
    """Appends to a file that others append to as well, and that may be rotated: then it goes on in the new one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)

    def _open(self) -> io.TextIOWrapper:
        return open(
            self.baseFilename, "a", encoding=self.encoding, opener=lambda name, flags: os.open(name, flags, modes.FILE)
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        try:
            super().emit(record)
        except OSError:
            # It can't be opened, which the library leaves to those who log.
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the name is the base class's
        """Say in the log that a line is missing in the file; the line itself stands in the log."""
        error = sys.exc_info()[1]
        why = getattr(error, "strerror", None) or error
        logging.getLogger(__name__).error(
            "a line is missing in %s: %s: %s", self.baseFilename, record.getMessage(), why
        )
