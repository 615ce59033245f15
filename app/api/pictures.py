"""The short way to a picture: most requests by far are a plain GET of a stored file, and Flask costs them more than all the rest.

:class:`Pictures` stands before Flask as WSGI middleware (PEP 3333). It answers the plain case only, with the bytes that the
view ``get_images`` would answer, and hands every other request to Flask untouched: conditions, ranges, queries, and whatever
has to be refused. So each odd request has one reader, and each problem one source.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.http import http_date
from werkzeug.wsgi import wrap_file

from app.api.paths import TYPES, has_encoded_slash, is_given, user_id_fault
from app.api.ports import Archive, JobType, OpenFile
from app.api.present import FILE_MAX_AGE

_PATH: Final = "/get_images/"
#: With one of these the answer may be another one: conditions (RFC 9110, section 13.1), ranges (14.2), another protocol (7.8).
_NOT_PLAIN: Final = (
    "HTTP_RANGE",
    "HTTP_IF_RANGE",
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
    "HTTP_UPGRADE",
)
_CACHE_CONTROL: Final = f"max-age={FILE_MAX_AGE}, private, immutable"
#: A file up to this many bytes costs less to read and write than to set up sendfile for, and in all threads at once it is little.
_READ_WHOLE: Final = 64 * 1024

Place = tuple[str, JobType, str]


class Pictures:
    """Answers plain requests for pictures, and passes the others on."""

    def __init__(self, flask: WSGIApplication, archive: Archive) -> None:
        self._flask = flask
        self._archive = archive

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        place = _plain(environ)
        found = None if place is None else self._open(place)
        if place is None or found is None:
            return self._flask(environ, start_response)
        return _send(place[-1], found, environ, start_response)

    def _open(self, place: Place) -> OpenFile | None:
        """The picture that a row names; ``None`` after any problem at all, which Flask then meets again and tells."""
        try:
            return self._archive.opened(*place)
        except Exception:  # noqa: BLE001
            return None


def _plain(environ: WSGIEnvironment) -> Place | None:
    """Whose picture of which type and name a request asks for, when it asks for nothing else."""
    path: str = environ.get("PATH_INFO", "")
    if not path.startswith(_PATH) or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return None
    if environ.get("QUERY_STRING") or environ.get("SCRIPT_NAME") or not environ.keys().isdisjoint(_NOT_PLAIN):
        return None
    return None if has_encoded_slash(environ) else _place(path)


def _place(path: str) -> Place | None:
    """What a well-formed path names; ``None`` for any other."""
    try:
        members = path.encode("latin-1").decode("utf-8").removeprefix(_PATH).split("/")
    except UnicodeError:
        return None
    if len(members) != len(("id", "type", "filename")):
        return None
    user, type_, filename = members
    kind = next((kind for kind in TYPES if kind == type_), None)
    if kind is None or user_id_fault(user) or not is_given("filename", filename):
        return None
    return user, kind, filename


def _send(name: str, file: OpenFile, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    status = os.fstat(file.stream.fileno())
    start_response("200 OK", _headers(name, file, status))
    if environ["REQUEST_METHOD"] == "HEAD":
        file.stream.close()
        return ()
    if status.st_size > _READ_WHOLE:
        return wrap_file(environ, file.stream)
    with file.stream:
        return (file.stream.read(status.st_size),)


#: Writing one takes as long as opening a file.
_date = lru_cache(4096)(http_date)


def _headers(name: str, file: OpenFile, status: os.stat_result) -> list[tuple[str, str]]:
    """As :func:`flask.send_file`, the view and ``after_request`` set them."""
    return [
        ("Content-Disposition", f"inline; filename={name}"),
        ("Content-Type", file.media_type),
        ("Content-Length", str(status.st_size)),
        ("Last-Modified", _date(int(status.st_mtime))),
        ("Cache-Control", _CACHE_CONTROL),
        ("Expires", _date(int(time.time() + FILE_MAX_AGE))),
        ("ETag", f'"{file.etag}"'),
        ("Accept-Ranges", "bytes"),
        ("X-Content-Type-Options", "nosniff"),
    ]
