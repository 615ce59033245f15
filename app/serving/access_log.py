"""The access log: one line for each request, of the logger ``app.access``, where ``SDG_ACCESS_LOG`` asks for it.

A line stands where an answer ends, or a stream begins. The status 499 is that of a client that hung up while it waited, as nginx
has it: nothing was sent.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote, unquote_plus

from app.runtime import logs

CLIENT_GONE: Final = 499

_LOG: Final = logging.getLogger(logs.ACCESS)
#: The parameters of queries whose values are shown. Any other may be a secret, or something that a user has written.
_SHOWN: Final = frozenset(
    (
        "limit",
        "before",
        "status",
        "id",
        "size",
        "format",
        "download",
        "sign",
        "exp",
        "kid",
    )
)
_NAME: Final = re.compile(r"[a-z_-]{1,20}")
_LONGEST_VALUE: Final = 64


def wanted() -> bool:
    """Whether lines are written at all."""
    return _LOG.isEnabledFor(logging.INFO)


def write(
    request: Any, peer: Any, status: int | None, sent: int, began: float | None, known: Mapping[str, Any]
) -> None:
    """Write the line of a request.

    :param request: as gunicorn has parsed it; None if it could not be parsed.
    :param peer: the address of the client's end of the connection, as the operating system has it.
    :param sent: bytes of the answer's body.
    :param began: the :func:`time.monotonic` when the request was complete, None if it never was.
    :param known: members of the environ.
    """
    path, query = getattr(request, "path", None), getattr(request, "query", None)
    logs.write(
        _LOG,
        logging.INFO,
        "request",
        {
            "method": getattr(request, "method", None),
            "path": unquote(path) if path is not None else None,
            "query": _without_secrets(query) if query else None,
            "status": status,
            "bytes": sent,
            "seconds": None if began is None else round(time.monotonic() - began, 4),
            "client": known.get("REMOTE_ADDR") or (peer[0] if isinstance(peer, tuple) else None),
            "token": known.get(logs.TOKEN),
        },
    )


def _without_secrets(query: str) -> str:
    return "&".join(map(_parameter, query.split("&")))


def _parameter(text: str) -> str:
    name, separator, value = text.partition("=")
    if name in _SHOWN:
        return name + separator + unquote_plus(value)[:_LONGEST_VALUE]
    return f"{name}=…" if separator and _NAME.fullmatch(name) else "…"
