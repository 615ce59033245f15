"""How a stored file is sent: by Flask itself, or by the nginx in front of it (``SDG_ACCEL=nginx``).

Flask judges every request for a file: whether it exists, its conditions, its range. With nginx, the answer to a plain GET then
has no body but X-Accel-Redirect, the place of the file below an internal location of ``deploy/nginx/sd-gateway.conf``, and nginx
sends the bytes, so that a slow reader holds no thread here.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote

from flask import Request, Response, request, send_file

from app.api.ports import File
from app.api.refusals import FileGone, PreconditionFailed

#: A stored file never changes under its name, so that a cache may keep it; it is somebody's own picture, so that only the
#: client's cache may. Seconds: the year that RFC 2616, section 14.21, took for ever.
FILE_MAX_AGE: Final = 31_536_000
#: A picture opened in a browser's tab is never taken for a page of the gateway's origin.
_POLICY: Final = "default-src 'none'; sandbox"
#: The internal location of deploy/nginx/sd-gateway.conf.
_INTERNAL: Final = "/sd-gateway-files/"
#: nginx would judge these again, by an ETag of its own.
_NEVER_ACCELERATED: Final = ("If-Match", "If-Unmodified-Since")
#: The forms of Range that Flask and nginx read alike.
_PLAIN_RANGE: Final = re.compile(r"bytes=(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})")


class Delivery:
    """Sends stored files.

    :param data_folder: the folder that nginx may send files of; ``None`` when there is no nginx.
    """

    def __init__(self, data_folder: Path | None) -> None:
        self._data_folder = data_folder

    def send(self, file: File) -> Response:
        """The answer to a GET or HEAD of a file, with conditions and ranges as RFC 9110 has them.

        :raises FileGone: it was deleted a moment ago.
        :raises PreconditionFailed: If-Match names another version.
        """
        response = _from_flask(file)
        response.cache_control.public = False
        response.cache_control.private = True
        response.cache_control.immutable = True
        response.headers["Content-Security-Policy"] = _POLICY
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            # Content-Range says it already, and nginx does not send it either.
            del response.headers["Accept-Ranges"]
        if self._data_folder is not None and _may_accelerate(request, response):
            _hand_over(response, file.path.relative_to(self._data_folder))
        return response


def _from_flask(file: File) -> Response:
    if request.range is not None and request.range.units != "bytes":
        # A unit that is not understood must be ignored (RFC 9110, section 14.2); werkzeug would refuse it.
        del request.environ["HTTP_RANGE"]
    try:
        response = send_file(
            file.path, mimetype=file.media_type, etag=file.etag, conditional=True, max_age=FILE_MAX_AGE
        )
    except FileNotFoundError as error:
        raise FileGone("The file was deleted.") from error
    if response.status_code == HTTPStatus.PRECONDITION_FAILED:
        response.close()
        raise PreconditionFailed("The file has another ETag than If-Match names.")
    return response


def _may_accelerate(asked: Request, response: Response) -> bool:
    """Whether nginx would send what Flask would, which is so but for a HEAD, a refusal and the rarer forms of a request."""
    if asked.method != "GET" or any(name in asked.headers for name in _NEVER_ACCELERATED):
        return False
    range_ = asked.headers.get("Range")
    if range_ is None:
        return response.status_code == HTTPStatus.OK
    unchanged = (None, response.headers["ETag"], response.headers["Last-Modified"])
    partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
    return partial and asked.headers.get("If-Range") in unchanged and bool(_PLAIN_RANGE.fullmatch(range_))


def _hand_over(response: Response, place: Path) -> None:
    """Leave the body, its length and its range to nginx."""
    response.close()
    response.response = ()
    response.status_code = HTTPStatus.OK
    for name in ("Content-Length", "Content-Range", "Accept-Ranges"):
        response.headers.pop(name, None)
    response.headers["X-Accel-Redirect"] = _INTERNAL + quote(str(place))
