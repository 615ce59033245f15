"""The jobs of a user, in any state."""

from __future__ import annotations

from typing import Any, Final

from app.api.http.openapi import Blueprint
from app.api.http.representation import Presenter
from app.api.schemas.path_parameters import ID, NAME, PROBLEMS_OF_A_FILE, TYPE
from app.api.schemas.requests import CancelQuery, JobsQuery
from app.api.schemas.responses import Cancelled, Job, Jobs
from app.parameters import Type
from app.services import Services

_VERSION: Final = {
    "ETag": {
        "description": "The version of the job: another one after each change of it but `position`, `progress` and `eta`.",
        "schema": {"type": "string"},
    }
}


def blueprint(services: Services, presenter: Presenter) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("jobs", __name__, description="Jobs in any state")
    archive = services.archive

    @blp.route("/jobs/<id>", parameters=[ID])
    @blp.arguments(JobsQuery, location="query")
    @blp.answers(200, Jobs, "Newest first; empty for an unknown user.")
    @blp.problems("validation-failed", "not-found", "database-unavailable")
    @blp.about("The jobs of a user · 查询用户任务", "List the jobs of a user in any state, or in one.")
    def list_jobs(query: dict[str, Any], user: str) -> dict[str, Any]:
        views, before = archive.jobs(user, query.get("status"), query["limit"], query.get("before"))
        return presenter.page("jobs", views, before, ("jobs", user))

    @blp.route("/jobs/<id>/<type>/<name>", parameters=[ID, TYPE, NAME])
    @blp.answers(200, Job, "The job as it is now.", headers=_VERSION)
    @blp.problems(*PROBLEMS_OF_A_FILE)
    @blp.about("One job · 查询任务", "Get one job in any state, for example to follow its progress.")
    def get_job(user: str, kind: Type, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        view, version = archive.job(user, kind, name)
        return presenter.job(view), presenter.version(version)

    _add_cancelling(blp, services, presenter)
    return blp


def _add_cancelling(blp: Blueprint, services: Services, presenter: Presenter) -> None:
    archive = services.archive

    @blp.route("/jobs/<id>/<type>/<name>/cancel", methods=["POST"], parameters=[ID, TYPE, NAME])
    @blp.answers(200, Job, "The job as it is now; a finished one as it ended.", headers=_VERSION)
    @blp.problems(*PROBLEMS_OF_A_FILE)
    @blp.about(
        "Cancel a job · 取消任务",
        "Cancel a job that waits, or have one that runs stopped: that ends when its WebUI has replied.",
    )
    def cancel_job(user: str, kind: Type, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        view, version = archive.cancel(user, kind, name)
        return presenter.job(view), presenter.version(version)

    @blp.route("/jobs/<id>/cancel", methods=["POST"], parameters=[ID])
    @blp.arguments(CancelQuery, location="query")
    @blp.answers(200, Cancelled, "How many jobs were cancelled.")
    @blp.problems("validation-failed", "not-found", "database-unavailable")
    @blp.about("Cancel all waiting jobs of a user · 取消用户所有排队中的任务", "Cancel all jobs of a user that wait.")
    def cancel_queued_jobs(_query: dict[str, Any], user: str) -> dict[str, Any]:
        return {"cancelled": archive.cancel_queued(user)}
