"""The jobs of a user, in any state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from flask import Response, request
from werkzeug.datastructures import ETags

from app.api.http import prefer
from app.api.http.guard import note_change
from app.api.http.openapi import Blueprint
from app.api.http.representation import Presenter
from app.api.http.sign_query import PARAMETER as SIGN
from app.api.http.waiting import answered
from app.api.schemas.path_parameters import ID, NAME, PROBLEMS_OF_A_FILE, TYPE
from app.api.schemas.requests import CancelQuery, JobsQuery
from app.api.schemas.responses import Cancelled, Job, Jobs
from app.jobs.model import Identity
from app.jobs.revisions import Version
from app.parameters import Type
from app.services import Services

_VERSION: Final = {
    "ETag": {
        "description": "The version of the job: another one after each change of it but `position`, `progress` and `eta`.",
        "schema": {"type": "string"},
    }
}
_HEADERS: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "in": "header",
        "name": "Prefer",
        "description": "`wait=30`: answer at the end of the job, after 30 seconds at the latest (RFC 7240).",
        "schema": {"type": "string"},
    },
    {
        "in": "header",
        "name": "If-None-Match",
        "description": "With `Prefer: wait`: answer as soon as the job has another version than this ETag, or 304 after the wait.",
        "schema": {"type": "string"},
    },
)


def blueprint(services: Services, presenter: Presenter) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("jobs", __name__, description="Jobs in any state")
    archive, long_polls = services.archive, services.long_polls

    @blp.route("/jobs/<id>", parameters=[ID])
    @blp.arguments(JobsQuery, location="query")
    @blp.answers(200, Jobs, "Newest first; empty for an unknown user.")
    @blp.problems("validation-failed", "not-found", "database-unavailable")
    @blp.about("The jobs of a user · 查询用户任务", "List the jobs of a user in any state, or in one.")
    def list_jobs(query: dict[str, Any], user: str) -> dict[str, Any]:
        views, before = archive.jobs(user, query.get("status"), query["limit"], query.get("before"))
        return presenter.signing_as_requested().page("jobs", views, before, ("jobs", user))

    @blp.route("/jobs/<id>/<type>/<name>", parameters=[ID, TYPE, NAME])
    @blp.answers(200, Job, "The job as it is now, or at the end of the wait.", headers=_VERSION)
    @blp.also(304, "The job has not changed within the wait.")
    @blp.problems(*PROBLEMS_OF_A_FILE, "no-signing-key")
    @blp.about(
        "One job · 查询任务",
        "Get one job in any state, for example to follow its progress.",
        parameters=(*_HEADERS, SIGN),
    )
    def get_job(user: str, kind: Type, name: str) -> Response:
        writer, preference = presenter.signing_as_requested(), prefer.parse(request.headers.getlist("Prefer"))
        wait = min(preference.wait or 0, services.config.sync_timeout)
        reading = long_polls.job(Identity(user, kind, name), wait=wait, knows=_versions(request.if_none_match))
        return answered(reading, lambda now: writer.read(now, preference))

    _add_cancelling(blp, services, presenter)
    return blp


def _versions(etags: ETags) -> Callable[[Version], bool] | None:
    """Whether a client has a version; None if it names none."""
    return (lambda version: etags.contains_weak(str(version))) if etags else None


def _add_cancelling(blp: Blueprint, services: Services, presenter: Presenter) -> None:
    archive = services.archive

    @blp.route("/jobs/<id>/<type>/<name>/cancel", methods=["POST"], parameters=[ID, TYPE, NAME])
    @blp.answers(200, Job, "The job as it is now; a finished one as it ended.", headers=_VERSION)
    @blp.problems(*PROBLEMS_OF_A_FILE)
    @blp.about(
        "Cancel a job · 取消任务",
        "Cancel a job that waits, or have one that runs stopped: that ends when its WebUI has replied.",
    )
    def cancel_job(user: str, kind: Type, name: str) -> Response:
        reading = archive.cancel(user, kind, name)
        note_change("job-cancelled", user, type=kind, job=name)
        return presenter.read(reading)

    @blp.route("/jobs/<id>/cancel", methods=["POST"], parameters=[ID])
    @blp.arguments(CancelQuery, location="query")
    @blp.answers(200, Cancelled, "How many jobs were cancelled.")
    @blp.problems("validation-failed", "not-found", "database-unavailable")
    @blp.about("Cancel all waiting jobs of a user · 取消用户所有排队中的任务", "Cancel all jobs of a user that wait.")
    def cancel_queued_jobs(_query: dict[str, Any], user: str) -> dict[str, Any]:
        count = archive.cancel_queued(user)
        note_change("jobs-cancelled", user, count=count)
        return {"cancelled": count}
