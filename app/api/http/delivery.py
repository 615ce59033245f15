"""Sending of stored files: by Flask itself, or by the nginx in front of it (``SDG_ACCEL=nginx``).

Flask judges every request for a file: whether it exists, its conditions, its range. With nginx, the answer to a plain GET then
has no body but X-Accel-Redirect, the place of the file below an internal location of ``deploy/nginx/sd-gateway.conf``, and nginx
sends the bytes, so that a slow reader holds no thread here.
"""

from __future__ import annotations

import io
import re
import time
from http import HTTPStatus
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote

from flask import Request, Response
from werkzeug.utils import send_file

from app.api.http import conditions
from app.api.http.refusals import FileGone, PreconditionFailed
from app.api.http.request import present_request
from app.gateway.archive import File

#: A stored file never changes under its name, so a cache may keep it for a year (31536000 s, the most that RFC 2616, section
#: 14.21, allowed); it is somebody's own picture, so only the client's own cache may.
_CACHE_CONTROL: Final = "private, max-age=31536000, immutable"
#: How long nginx may serve the picture of a signed URL without asking, so also how long after it was deleted.
_NGINX_SECONDS: Final = 60
#: A picture opened in a browser's tab is never taken for a page of the gateway's origin.
_POLICY: Final = "default-src 'none'; sandbox"
#: The internal location of deploy/nginx/sd-gateway.conf.
_INTERNAL: Final = "/sd-gateway-files/"
#: The forms of Range that Flask and nginx read alike.
_PLAIN_RANGE: Final = re.compile(r"bytes=(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})")


class Delivery:
    """Sends stored files.

    :param data_folder: the folder that nginx may send files of; ``None`` when there is no nginx.
    """

    def __init__(self, data_folder: Path | None) -> None:
        self._data_folder = data_folder

    def send(self, file: File, *, download: bool = False, until: float | None = None) -> Response:
        """The answer to a GET or HEAD of a file, with conditions and ranges as RFC 9110 has them.

        :param download: whether a browser is to save it rather than show it.
        :param until: of a signed URL, the :func:`time.time` at which it expires. Then the bytes are sent from here, and nginx keeps
            them for a moment, which it does not do where an answer only names a file.
        :raises FileGone: it was deleted a moment ago.
        :raises PreconditionFailed: If-Match names another version.
        :raises InvalidRequest: a condition is too long.
        """
        asked = present_request()
        conditional = conditions.present(asked.environ)
        by_nginx = self._data_folder is not None and asked.method == "GET" and bool(file.place) and until is None
        if by_nginx and not conditional:
            return self._leave_to_nginx(file, download=download)
        if conditional:
            # As it came: nginx gets the range that the client sent.
            by_nginx = by_nginx and _both_read_alike(asked, file.etag)
            conditions.tidy(asked.environ)
            conditions.judge(asked.environ, file.etag, *_measured(file))
        response = _answer(asked, file, conditional=conditional, by_nginx=by_nginx, download=download)
        _limit(response, until)
        if by_nginx and "X-Sendfile" in response.headers:
            _hand_over(response, self._inside(file))
        elif response.status_code == HTTPStatus.OK:
            response.headers["Accept-Ranges"] = "bytes"
        return response

    def _leave_to_nginx(self, file: File, *, download: bool) -> Response:
        """The answer to a plain GET: nginx takes length, Last-Modified and Accept-Ranges from the file.

        So the gateway need not look at the file as ``send_file`` does, for a third of the application's CPU time.
        """
        fields = {
            "Content-Type": file.media_type,
            "Content-Disposition": f"{'attachment' if download else 'inline'}; filename={file.name}",
            # nginx keeps the connection only after an answer that says that it has no body.
            "Content-Length": "0",
            "ETag": f'"{file.etag}"',
            "Cache-Control": _CACHE_CONTROL,
            "Content-Security-Policy": _POLICY,
            "X-Accel-Redirect": self._inside(file),
        }
        return Response(headers=fields)

    def _inside(self, file: File) -> str:
        """The file's path below the internal location of nginx."""
        return _INTERNAL + quote(file.place.removeprefix(f"{self._data_folder}/"))


def _limit(response: Response, until: float | None) -> None:
    """Say how long a picture may be kept, and that it may do nothing in a browser.

    With a signed URL, which expires then: by the client until that, by nginx for a moment.
    """
    # What send_file does not set is added: an assignment would look for it first.
    response.headers.add("Content-Security-Policy", _POLICY)
    if until is None:
        response.headers["Cache-Control"] = _CACHE_CONTROL
        return
    left = max(int(until - time.time()), 0)
    response.headers["Cache-Control"] = f"private, max-age={left}"
    response.headers.add("X-Accel-Expires", str(min(left, _NGINX_SECONDS)))


def _both_read_alike(asked: Request, etag: str) -> bool:
    """Whether nginx would do with these conditions and this range what Flask does."""
    if "If-Match" in asked.headers or "If-Unmodified-Since" in asked.headers:
        # nginx would judge them again, by an ETag of its own.
        return False
    if asked.headers.get("If-Range") not in (None, f'"{etag}"'):
        return False
    range_ = asked.headers.get("Range")
    return range_ is None or bool(_PLAIN_RANGE.fullmatch(range_))


def _measured(file: File) -> tuple[int, int]:
    try:
        return file.measure()
    except FileNotFoundError as error:
        raise FileGone("The file was deleted.") from error


def _answer(asked: Request, file: File, *, conditional: bool, by_nginx: bool, download: bool) -> Response:
    """The answer as Flask gives it; with ``by_nginx``, X-Sendfile stands for the bytes of the file."""
    content = io.BytesIO(file.data) if file.data is not None and not by_nginx else file.place
    modified = file.modified_ns // 10**9 if isinstance(content, io.BytesIO) else None
    try:
        # Not Flask's send_file, which takes use_x_sendfile from the whole application's configuration.
        response = send_file(
            content,
            asked.environ,
            mimetype=file.media_type,
            as_attachment=download,
            download_name=file.name,
            conditional=conditional,
            etag=file.etag,
            last_modified=modified,
            use_x_sendfile=by_nginx,
            response_class=Response,
        )
    except FileNotFoundError as error:
        raise FileGone("The file was deleted.") from error
    if response.status_code == HTTPStatus.PRECONDITION_FAILED:
        response.close()
        raise PreconditionFailed("The file has another ETag than If-Match names.")
    return cast("Response", response)


def _hand_over(response: Response, internal: str) -> None:
    """Leave the body, its length and its range to nginx."""
    del response.headers["X-Sendfile"]
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        response.status_code = HTTPStatus.OK
        del response.headers["Content-Range"]
    else:
        # nginx adds it to a whole file, and would then send it twice.
        response.headers.pop("Accept-Ranges", None)
    # nginx keeps the connection only after an answer that says that it has no body.
    response.content_length = 0
    response.headers["X-Accel-Redirect"] = internal
