"""Problems as Flask's answers: from exceptions of the other packages, of Flask itself, and from stored errors."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from flask import Flask, Response, current_app
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from app.problems import INTERNAL_ERROR, PROBLEMS, encoded

_SLUG_OF_STATUS: Mapping[int, str] = MappingProxyType(
    {
        404: "not-found",
        405: "method-not-allowed",
        413: "body-too-large",
        415: "unsupported-media-type",
        416: "range-not-satisfiable",
    }
)

_DETAIL_OF_STATUS: Mapping[int, str] = MappingProxyType(
    {
        404: "There is no such path. id, type, filename and name are single path segments: "
        "none may be empty or contain a slash, percent-encoded or not.",
        405: "The Allow header lists the methods of this path.",
        416: "The Range header asks for bytes that the file does not have.",
    }
)


def respond(slug: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any) -> Response:
    """A problem as an HTTP response; parameters as :func:`app.problems.encoded` has them, ``headers`` win over its own."""
    status, own, body = encoded(slug, detail, **extra)
    return Response(body, status, {**own, **(headers or {})})


def register_handlers(app: Flask) -> None:
    """Make every exception that leaves a view, and every refusal of Flask's own, a problem."""
    app.register_error_handler(HTTPException, _http_refusal)
    app.register_error_handler(Exception, _exception)


def _http_refusal(error: HTTPException) -> Response | WerkzeugResponse:
    """Answer what Flask and Werkzeug raise: no route, wrong method, a Range that the file hasn't, a malformed request."""
    code = error.code or 500
    if code < HTTPStatus.BAD_REQUEST:  # Werkzeug raises redirects too
        return error.get_response()
    other = "invalid-request" if code < HTTPStatus.INTERNAL_SERVER_ERROR else INTERNAL_ERROR
    slug = _SLUG_OF_STATUS.get(code, other)
    detail = _DETAIL_OF_STATUS.get(code, PROBLEMS[slug].title + ".")
    kept = {name: value for name, value in error.get_headers() if name in ("Allow", "Content-Range")}
    return respond(slug, detail, headers=kept)


def _exception(error: Exception) -> Response:
    """The problem of a package's exception, by its slug; anything else is a bug, of which only the log hears more."""
    slug = getattr(error, "slug", None)
    if not isinstance(slug, str) or slug not in PROBLEMS or slug == INTERNAL_ERROR:
        current_app.logger.error("unexpected exception", exc_info=error)
        return respond(INTERNAL_ERROR, "The gateway failed in an unexpected way; its log says why.")
    if error.__cause__ is not None and PROBLEMS[slug].status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        current_app.logger.warning("%s", slug, exc_info=error)
    extra = {name: getattr(error, name, None) for name in ("errors", "accepted", "retry_after")}
    return respond(slug, str(error), **extra)
