"""The log: how a line is written, as text or as JSON, in every process.

A line has a message, and perhaps fields: those of an event (:func:`write`), and the id of the request that the thread serves
(:mod:`app.runtime.request_ids`). As text, fields are ``key=value`` pairs::

    [2026-11-22 06:15:30 +0000] [811] [INFO] app.jobs.events: event=stored user=u1 … seconds=4.210 request=5f0c7a1e9b3d2468

A value that holds anything but printable characters without spaces, quotes, backslashes and ``=`` is written as a JSON string.
Control characters of a message are escaped, and the lines of a traceback are indented: nothing that is logged can pass for another
line.

As JSON (``SDG_LOG_FORMAT=json``) each line is one object of ASCII characters, written by python-json-logger.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter as LibraryFormatter

from app.runtime import request_ids
from app.runtime.redaction import redacted

#: The loggers of requests and of what people have changed.
ACCESS: Final = "app.access"
AUDIT: Final = "app.audit"

#: The member of a WSGI environ that holds the id of the client's token, which the application sets for the access log.
TOKEN: Final = "sd_gateway.token"  # noqa: S105 -- a name

_QUOTED: Final = re.compile(r'[\s"\\=]')
#: Loggers of which the text does not show the name.
_NAMELESS: Final = "gunicorn.error"

#: What the library calls a traceback and a stack.
_RENAMED: Final = {"exc_info": "exception", "stack_info": "stack"}

_Exception = tuple[type[BaseException], BaseException, TracebackType | None]


def write(logger: logging.Logger, level: int, event: str, fields: Mapping[str, Any]) -> None:
    """Log an event with its fields; those that are None are left out."""
    named = {name: value for name, value in fields.items() if value is not None}
    logger.log(level, Fields({"event": event, **named}))


class Fields(dict[str, Any]):
    """A message that is made of fields, the first of which is the event. As text it is ``key=value`` pairs."""

    def __str__(self) -> str:
        return " ".join(f"{name}={_text(value)}" for name, value in self.items())


def _request(record: logging.LogRecord) -> str | None:
    """The request that a line is about; the one among its fields counts, since another thread may write the line."""
    named = isinstance(record.msg, Fields) and "request" in record.msg
    return None if named else request_ids.current()


class TextFormatter(logging.Formatter):
    """One line of text; a traceback stands below it."""

    def __init__(self) -> None:
        super().__init__(datefmt="[%Y-%m-%d %H:%M:%S %z]")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        request = _request(record)
        served = "" if request is None else f" request={request}"
        logger = "" if record.name == _NAMELESS else f"{record.name}: "
        head = f"{self.formatTime(record, self.datefmt)} [{record.process}] [{record.levelname}] {logger}"
        lines = [redacted(record.getMessage() + served), *self._below(record)]
        return head + "\n  ".join(map(_printable, lines))

    def _below(self, record: logging.LogRecord) -> list[str]:
        """The lines of the traceback and of the stack."""
        shown = [self.formatException(record.exc_info)] if record.exc_info else []
        shown += [record.stack_info] if record.stack_info else []
        return redacted("\n".join(shown)).split("\n") if shown else []


class JsonFormatter(LibraryFormatter):
    """One JSON object."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Make the object, in place: called by the library, which has formatted the message and the exception."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        log_data |= {
            "time": time,
            "process": record.process,
            "level": record.levelname,
            "logger": record.name,
            "message": message_dict.get("event", record.message),
        }
        log_data |= {_RENAMED.get(name, name): value for name, value in message_dict.items()}
        if (request := _request(record)) is not None:
            log_data["request"] = request

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The object without secrets, and without what no UTF-8 text can hold."""
        return {name: _safe(value) if isinstance(value, str) else value for name, value in log_data.items()}


def formatter(log_format: str) -> logging.Formatter:
    """The formatter of ``text`` or ``json``."""
    return JsonFormatter() if log_format == "json" else TextFormatter()


def _safe(text: str) -> str:
    return redacted(text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _text(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text and text.isprintable() and not _QUOTED.search(text):
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    """The character as it stands in a JSON string; everything that is not printable by its number."""
    return character if character.isprintable() and character not in '"\\' else json.dumps(character)[1:-1]


def _printable(text: str) -> str:
    """A message on one line, without control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


# -- the settings of a process -------------------------------------------------------------------------------------------


def settings(log_format: str, *, access_log: bool = False) -> dict[str, Any]:
    """The configuration of logging of a process, as :func:`logging.config.dictConfig` takes it: everything to standard error.

    :param log_format: ``text`` or ``json``.
    :param access_log: whether each request has a line.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": formatter, "log_format": log_format}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"},
        },
        "root": {"level": "INFO", "handlers": ["stderr"]},
        "loggers": {
            # gunicorn's own, which takes part in no other logger.
            "gunicorn.error": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
            # The database itself says when it was migrated.
            "alembic": {"level": "WARNING"},
            ACCESS: {"level": "INFO" if access_log else "CRITICAL"},
        },
    }


def configure(log_format: str) -> None:
    """Configure logging for a process that is not gunicorn's, unless it is configured already."""
    if not logging.getLogger().handlers:
        logging.config.dictConfig(settings(log_format))
        catch_everything()


def catch_everything() -> None:
    """Log what Python itself would write to standard error: uncaught exceptions, and warnings."""
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    logging.captureWarnings(capture=True)


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("app").critical("an exception was not caught", exc_info=(kind, error, traceback))


def _uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
    thread = "a thread" if given.thread is None else f"the thread {given.thread.name}"
    if given.exc_value is not None and not issubclass(given.exc_type, SystemExit):
        error: _Exception = (given.exc_type, given.exc_value, given.exc_traceback)
        logging.getLogger("app").critical("%s ended by an exception", thread, exc_info=error)


def _unraisable(given: Any) -> None:
    if given.exc_value is not None:
        error: _Exception = (given.exc_type, given.exc_value, given.exc_traceback)
        logging.getLogger("app").error("%s", given.err_msg or "an exception was ignored", exc_info=error)


def last_words(log_format: str, message: str) -> str:
    """What a process says that can't start, with a line of the log's format; as text, the message alone, for a person."""
    if log_format != "json":
        return redacted(message)
    record = logging.LogRecord("app", logging.CRITICAL, "", 0, message, None, None)
    return formatter(log_format).format(record)
