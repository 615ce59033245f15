"""Every error the gateway answers with: one table from slug to HTTP status and title, written as RFC 9457 problems.

An exception of any room says what went wrong by its class attribute ``slug`` and, in ``str(exc)``, by one sentence that
may be shown to a client. It may also carry ``retry_after`` (seconds), ``errors`` (messages by field) and ``accepted``
(names that would do, by field). The statuses stand here only: the packages that raise problems know none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from app.runtime import request_ids
from app.runtime.jsontext import dumps

#: The header fields of every answer, a problem or not, unless it has a field of the same name of its own. No answer is taken for
#: another media type, runs or loads anything, is shown in a frame, or is kept by a cache; and no URL, which may be a signed one, is
#: told to another site.
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
    }
)
#: RFC 9457, section 6.1.
MEDIA_TYPE = "application/problem+json"

#: RFC 6750, section 3; the same for every reason.
CHALLENGE = 'Bearer realm="sd-gateway"'

INTERNAL_ERROR = "internal-error"

_LONGEST_SHOWN = 64
_JITTER = 1.2


@dataclass(frozen=True)
class Problem:
    """The meaning of a slug over HTTP: the status code and a short title that never changes.

    ``retry_after`` (seconds) is the Retry-After where the exception names none; every 429 and 503 has one.
    """

    status: int
    title: str
    retry_after: int | None = None


PROBLEMS: Mapping[str, Problem] = MappingProxyType(
    {
        "invalid-json": Problem(400, "The body is not readable JSON"),
        "invalid-request": Problem(400, "The request is malformed"),
        "token-missing": Problem(401, "The request needs a token"),
        "token-invalid": Problem(401, "The token is not valid"),
        "scope-missing": Problem(403, "The token may not do this"),
        "open-only-to-this-machine": Problem(403, "Without tokens only this machine is served"),
        "cross-site-request": Problem(403, "The request comes from another site"),
        "url-expired": Problem(403, "The signed URL has expired"),
        "bad-signature": Problem(403, "The signature of the URL is wrong"),
        "not-found": Problem(404, "Nothing is here"),
        "unknown-type": Problem(404, "There is no such type of job"),
        "job-not-found": Problem(404, "There is no such job"),
        "file-missing": Problem(404, "There is no such file"),
        "key-of-deleted-job": Problem(404, "The job of this Idempotency-Key was deleted"),
        "method-not-allowed": Problem(405, "The path does not take this method"),
        "not-acceptable": Problem(406, "The path has nothing that the Accept header takes"),
        "request-timeout": Problem(408, "The request arrived too slowly"),
        "job-cancelled": Problem(409, "The job was cancelled"),
        "deadline-passed": Problem(409, "The job's time was up"),
        "precondition-failed": Problem(412, "A condition of the request does not hold"),
        "body-too-large": Problem(413, "The body is too large"),
        "uri-too-long": Problem(414, "The request line is too long"),
        "unsupported-media-type": Problem(415, "The body must be application/json"),
        "range-not-satisfiable": Problem(416, "The file has no such range"),
        "expectation-failed": Problem(417, "The Expect header cannot be met"),
        "validation-failed": Problem(422, "The request breaks the contract"),
        "unknown-name": Problem(422, "A name is not known to any WebUI"),
        "bad-image": Problem(422, "The reference image cannot be used"),
        "webui-cannot": Problem(422, "The WebUI can't make these pictures"),
        "idempotency-key-reused": Problem(422, "The Idempotency-Key belongs to another request"),
        "too-many-failures": Problem(429, "Too many requests with bad tokens", 60),
        "user-queue-full": Problem(429, "The user has too many unfinished jobs", 10),
        "headers-too-large": Problem(431, "The header is too large"),
        INTERNAL_ERROR: Problem(500, "The gateway failed"),
        "file-damaged": Problem(500, "The stored file is damaged"),
        "webui-refused": Problem(502, "The WebUI refused the job"),
        "webui-out-of-memory": Problem(502, "The WebUI ran out of memory"),
        "webui-error": Problem(502, "The WebUI failed"),
        "webui-bad-answer": Problem(502, "The WebUI sent an unreadable answer"),
        "webui-interrupted": Problem(502, "The WebUI was interrupted"),
        "webui-wrong-model": Problem(502, "The WebUI used another model"),
        "webui-unreachable": Problem(502, "The WebUI cannot be reached"),
        "webui-disconnected": Problem(502, "The connection to the WebUI broke"),
        "no-longer-available": Problem(502, "No WebUI can serve the job any more"),
        "worker-lost": Problem(502, "The worker was lost too often"),
        "queue-full": Problem(503, "The queue is full", 10),
        "job-lost": Problem(503, "The accepted job was lost", 5),
        "no-free-waiter": Problem(503, "Too many clients are waiting", 10),
        "no-free-stream": Problem(503, "Too many clients are watching", 5),
        "no-catalogue": Problem(503, "No WebUI was ever seen", 10),
        "no-default-model": Problem(503, "No default model is known", 2),
        "database-unavailable": Problem(503, "The database is not available", 5),
        "no-room-for-body": Problem(503, "There is no room for the body", 5),
        "variants-busy": Problem(503, "Too many variants of images are being made", 1),
        "no-signing-key": Problem(503, "No URL can be signed", 60),
        "storage-unavailable": Problem(503, "The data folder is not available", 10),
        "storage-failed": Problem(503, "The pictures could not be stored", 10),
        "webui-timeout": Problem(504, "The WebUI took too long"),
    }
)


def shown(text: str) -> str:
    """A name that a client sent, fit for a message: short, and without anything that no UTF-8 text can hold."""
    cut = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


def problem(slug: str, detail: str, **extra: Any) -> dict[str, Any]:
    """The problem object of a slug.

    :param slug: a key of :data:`PROBLEMS`; any other means that two versions of the gateway disagree (a stored job
        carries its slug), and counts as an internal error.
    :param detail: one sentence for the client.
    :param extra: further members; those that are ``None`` are left out.
    """
    slug = slug if slug in PROBLEMS else INTERNAL_ERROR
    entry = PROBLEMS[slug]
    members = {name: value for name, value in extra.items() if value is not None}
    return {"type": slug, "title": entry.title, "status": entry.status, "detail": detail, **members}


def encoded(
    slug: str, detail: str, *, retry_after: float | None = None, **extra: Any
) -> tuple[int, dict[str, str], bytes]:
    """A problem as status, header and body of an answer, with the id of the request; parameters as :func:`problem` has them.

    :param retry_after: seconds after which another try makes sense; None for those of the table. Header and body tell up to a fifth
        more, at random, so that clients that were refused together don't come back together.
    """
    body = problem(slug, detail, **extra, request=request_ids.current())
    headers = {"Content-Type": MEDIA_TYPE, **HEADERS}
    if body["status"] == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = CHALLENGE
    seconds = PROBLEMS[body["type"]].retry_after if retry_after is None else retry_after
    if seconds is not None:
        body["retry_after"] = _jittered(seconds)
        headers["Retry-After"] = str(body["retry_after"])
    return body["status"], headers, dumps(body)


def _jittered(seconds: float) -> int:
    """Whole seconds, at least these and at least one, and at most a fifth more."""
    least = max(math.ceil(seconds), 1)
    return random.randint(least, max(math.floor(seconds * _JITTER), least))  # noqa: S311 -- nobody gains by guessing it
