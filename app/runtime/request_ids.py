"""The id of the request that a thread serves, for whatever it logs, and for what is written about the request.

A client names its request by the header field ``X-Request-ID``; otherwise the gateway makes an id. Who begins to serve a request in
a thread says so here, and the layers below need to know neither the server nor Flask. A thread that works at a job serves the
request that the job came with.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

#: The header field of requests and answers, and its member in a WSGI environ.
HEADER: Final = "X-Request-ID"
ENVIRON: Final = "HTTP_X_REQUEST_ID"

_TAKEN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CURRENT: Final[ContextVar[str | None]] = ContextVar("request id", default=None)


def accepted_or_new(given: str | None) -> str:
    """The id of a request: the one that its client gave, if it can be taken, else a new one."""
    return given if given is not None and _TAKEN.fullmatch(given) else secrets.token_hex(8)


def current() -> str | None:
    """The id of the request that this thread serves; None if it serves none."""
    return _CURRENT.get()


def begin(request: str | None) -> None:
    """Note that this thread serves a request from now on, or none."""
    _CURRENT.set(request)


@contextlib.contextmanager
def serving(request: str | None) -> Iterator[None]:
    """Have this thread serve a request in the body of this context."""
    token = _CURRENT.set(request)
    try:
        yield
    finally:
        _CURRENT.reset(token)
