"""From the services' views to what a client sees: the ``url`` members, a stored error as a problem, pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode

from flask import Response, jsonify, request

from app import problems
from app.api.http import cursor, sign_query
from app.api.http.prefer import Preference
from app.api.http.problems import respond
from app.gateway.feeds import StreamEvent
from app.gateway.signing import SignedPicture, Signing
from app.gateway.waiting import Reading
from app.jobs.queue import Cursor

_NO_PREFERENCE: Final = Preference()
_THUMBNAIL_FORMAT: Final = "webp"


@dataclass(frozen=True)
class Presenter:
    """Writes answers; ``public_url`` stands before every URL, and when it is empty they are rooted paths.

    ``thumbnail_size`` is the longest side of a thumbnail, pixels. With ``lifetime`` seconds the URLs of pictures are signed.
    """

    public_url: str
    sync_timeout: float
    thumbnail_size: int
    signing: Signing
    lifetime: int | None = None

    def signing_as_requested(self) -> Presenter:
        """The presenter that signs URLs as the present request asks for it (``?sign=``).

        :raises ValidationFailed: it asks for it in a wrong way.
        :raises NoSigningKey: nothing can be signed.
        """
        lifetime = sign_query.read(request)
        if lifetime is None:
            return self
        self.signing.check_key()
        return replace(self, lifetime=lifetime)

    def job(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """The job object of the contract."""
        return self._job(view, self._root())

    def _job(self, view: Mapping[str, Any], root: str) -> dict[str, Any]:
        # Quoted once for all: the other segments are names that the gateway gave, of letters, digits, dots and dashes.
        user = quote(view["id"], safe="")
        images = f"{root}/get_images/{user}/{view['type']}/"
        image = view["init_image"]
        return {
            **view,
            "images": [self._picture(view, images, entry) for entry in view["images"]],
            "init_image": None if image is None else self._picture(view, images, image),
            "error": None if view["error"] is None else problems.problem(**view["error"]),
            "url": f"{root}/jobs/{user}/{view['type']}/{view['name']}",
        }

    def _picture(self, view: Mapping[str, Any], folder: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        name = entry["filename"]
        url = folder + name
        thumbnail_url = f"{url}?size={self.thumbnail_size}&format={_THUMBNAIL_FORMAT}"
        if self.lifetime is not None:
            of_user = (view["id"], view["type"], name)
            size = str(self.thumbnail_size)
            url += "?" + self.signing.sign(SignedPicture(*of_user), self.lifetime).query
            small = SignedPicture(*of_user, size, _THUMBNAIL_FORMAT)
            thumbnail_url += "&" + self.signing.sign(small, self.lifetime).query
        return {"filename": name, "url": url, "thumbnail_url": thumbnail_url, **entry}

    def read(self, reading: Reading, preference: Preference = _NO_PREFERENCE) -> Response:
        """One job with its version; 304 for a client that has this version already.

        The entity tag is weak, since ``progress`` and the like change without it; for the same reason nobody may keep the answer.
        """
        response = Response(status=HTTPStatus.NOT_MODIFIED) if reading.is_known else jsonify(self.job(reading.view))
        response.headers.update({"ETag": f'W/"{reading.version}"', "Cache-Control": "no-store"})
        if reading.waited and preference.wait is not None and preference.wait <= self.sync_timeout:
            response.headers["Preference-Applied"] = f"wait={preference.wait}"
        if reading.retry_after is not None:
            response.headers["Retry-After"] = str(math.ceil(reading.retry_after))
        return response

    def events(self) -> Callable[[StreamEvent], Mapping[str, Any]]:
        """Writes the data of events, with the URLs of the present request."""
        return self._events(self._root())

    # Kept, so that thousands of streams share one.
    @lru_cache(maxsize=16)  # noqa: B019 -- there is one presenter for each process
    def _events(self, root: str) -> Callable[[StreamEvent], Mapping[str, Any]]:
        def data(event: StreamEvent) -> Mapping[str, Any]:
            if event.name == "job":
                return self._job(event.view, root)
            if event.name == "snapshot":
                return {**event.view, "jobs": [_brief(self._job(view, root)) for view in event.view["jobs"]]}
            return event.view

        return data

    def posted(self, view: Mapping[str, Any], preference: Preference) -> Response:
        """The answer to a POST: the finished job, the job as it is with 202, or why there is no picture."""
        if view["status"] == "succeeded":
            response = jsonify(self.job(view))
        elif view["status"] in ("queued", "running"):
            response = jsonify(self.job(view))
            response.status_code = HTTPStatus.ACCEPTED
            response.headers["Location"] = self._job_url(view)
        else:
            response = self._ended_badly(view)
        accepted_only = response.status_code == HTTPStatus.ACCEPTED
        applied = preference.applied(self.sync_timeout, accepted_only=accepted_only)
        if applied:
            response.headers["Preference-Applied"] = applied
        response.headers["Vary"] = "Prefer"
        return response

    def page(
        self, member: str, views: Sequence[Mapping[str, Any]], before: int | None, path: Sequence[str]
    ) -> dict[str, Any]:
        """One page of jobs under ``member``, and ``next``: the URL of the page after it, which keeps the query."""
        following = None if before is None else self._next(path, cursor.encode(before))
        root = self._root()
        return {member: [self._job(view, root) for view in views], "next": following}

    def queue(self, shown: Mapping[str, Any], following: Cursor | None) -> dict[str, Any]:
        """One page of the queue, with the URLs of the jobs that it names and of the page after it."""
        entries = {member: [self._with_job_url(entry) for entry in shown[member]] for member in ("running", "waiting")}
        return {
            **shown,
            **entries,
            "next": None if following is None else self._next(["queue"], cursor.encode_place(following)),
        }

    def _with_job_url(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return dict(entry) if entry["redacted"] else {**entry, "url": self._job_url(entry)}

    def _ended_badly(self, view: Mapping[str, Any]) -> Response:
        error = view["error"] or {"slug": "job-cancelled", "detail": "The job was cancelled before it had a picture."}
        return respond(**error, url=self._job_url(view))

    def _next(self, path: Sequence[str], before: str) -> str:
        kept = {name: request.args[name] for name in ("id", "limit", "status", sign_query.NAME) if name in request.args}
        return self._url(*path) + "?" + urlencode({**kept, "before": before})

    def _job_url(self, view: Mapping[str, Any]) -> str:
        return self._url("jobs", view["id"], view["type"], view["name"])

    def _url(self, *segments: str) -> str:
        return self._root() + "".join("/" + quote(segment, safe="") for segment in segments)

    def _root(self) -> str:
        # The path that a proxy mounted the gateway under belongs to a rooted path.
        return self.public_url or quote(request.script_root)


def _brief(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("id", "type", "name", "status", "position", "progress", "eta", "url")}
