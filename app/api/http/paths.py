"""Checks of paths, made for every route at once and before any view runs, so that no view can forget them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from flask import Request

from app.api.http.refusals import InvalidRequest, NotFound, UnknownType, ValidationFailed
from app.parameters import TYPES, user_id_fault
from app.problems import shown
from app.records.layout import parse_filename


def check(request: Request) -> None:
    """Check the path and the query of a request, and hand ``id`` and ``type`` to its view as ``user`` and ``kind``.

    Called even when no route fits: a malformed path gets its 400, not a 404.

    :raises InvalidRequest: path or query is not UTF-8.
    :raises NotFound: the path holds %2F, or a name that the gateway never gives.
    :raises ValidationFailed: the id is no user id.
    :raises UnknownType: the type is not one of :data:`app.parameters.TYPES`.
    """
    _check_encoding(request.environ)
    check_values(request.view_args or {})


def check_values(values: dict[str, Any]) -> None:
    """Check the members of a path, and hand ``id`` and ``type`` on as ``user`` and ``kind``; raises as :func:`check` does."""
    if "id" in values:
        values["user"] = _user(values.pop("id"))
    if "type" in values:
        values["kind"] = _kind(values.pop("type"))
    for member in ("filename", "name"):
        if member in values and not _is_given(member, values[member]):
            raise NotFound(f"The {member} {shown(values[member])!r} is none that the gateway gives.")


def _is_given(member: str, text: str) -> bool:
    """Whether the gateway could have given this name."""
    parsed = parse_filename(text)
    return parsed is not None and (member == "filename" or parsed.kind == "record")


def _check_encoding(environ: Mapping[str, Any]) -> None:
    path: str = environ.get("PATH_INFO", "")
    if not _is_utf8(path.encode("latin-1", "replace")):  # WSGI: the bytes of the path, one character each
        raise InvalidRequest("The path is not UTF-8, percent-encoded.")
    if not _is_utf8(unquote_to_bytes(environ.get("QUERY_STRING", "").encode("latin-1", "replace"))):
        raise InvalidRequest("The query is not UTF-8, percent-encoded.")
    if _has_encoded_slash(environ):
        raise NotFound("id, type, filename and name are single path segments: none may contain %2F.")


def _has_encoded_slash(environ: Mapping[str, Any]) -> bool:
    """Whether a member of the path was sent with a slash in it, as %2F.

    Both servers in use keep the path as it came; where none does, the decoded slash makes another path.
    """
    raw: str = environ.get("RAW_URI", "")
    return "%2f" in raw.partition("?")[0].lower()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _user(text: str) -> str:
    fault = user_id_fault(text)
    if fault:
        raise ValidationFailed({"id": [fault]})
    return text


def _kind(text: str) -> str:
    if text not in TYPES:
        raise UnknownType(f"The type {shown(text)!r} is none; the types are {' and '.join(TYPES)}.")
    return text
