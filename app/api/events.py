"""Event streams: the changes of one job, or of all jobs of a user, as they happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from flask import Response, request

from app.api.http import eventstream
from app.api.http.openapi import Blueprint, Decorator, View
from app.api.http.representation import Presenter
from app.api.http.sign_query import PARAMETER as SIGN
from app.api.schemas import examples
from app.api.schemas.path_parameters import ID, NAME, PROBLEMS_OF_A_FILE, PROBLEMS_OF_A_SIGNED_URL, TYPE
from app.gateway.feeds import Feed, StreamEvent
from app.gateway.watching import NoFreeStream
from app.jobs.errors import DatabaseUnavailable
from app.jobs.model import Identity
from app.parameters import Type
from app.services import Services

_LAST_EVENT_ID: Final = {
    "in": "header",
    "name": "Last-Event-ID",
    "description": "The `id` of the last event that the client has seen, which a browser sends by itself: the stream goes on "
    "behind it.",
    "schema": {"type": "string"},
    "example": examples.EVENT_ID,
}
_STREAM: Final[dict[str, Any]] = {"type": "string"}


def blueprint(services: Services, presenter: Presenter) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("events", __name__, description="Changes of jobs as they happen")
    for kind in (NoFreeStream, DatabaseUnavailable):
        # Also where the guard raises it.
        blp.register_error_handler(kind, eventstream.busy)
    watching = services.watching
    # What each of thousands of streams holds is one object for all.
    close = watching.close

    def respond(open_feed: Callable[[Callable[[StreamEvent], object]], Feed | None]) -> Response:
        return eventstream.respond(request, open_feed, close, presenter.signing_as_requested().events())

    @blp.route("/jobs/<id>/<type>/<name>/events", parameters=[ID, TYPE, NAME])
    @_contract(blp, examples.JOB_EVENTS)
    @blp.also(204, "The client has seen the end of the job already; a browser asks no more.")
    @blp.problems(*PROBLEMS_OF_A_FILE, "not-acceptable", *PROBLEMS_OF_A_SIGNED_URL, "no-signing-key")
    @blp.about(
        "The changes of one job · 单个任务的事件流",
        "Follow one job by server-sent events. The first `event: job` tells its present state; the stream ends with the job.",
        parameters=[_LAST_EVENT_ID, SIGN],
    )
    def list_job_events(user: str, kind: Type, name: str) -> Response:
        last = eventstream.last_event(request.headers.get("Last-Event-ID"))
        return respond(lambda tell: watching.job(Identity(user, kind, name), last, tell))

    @blp.route("/jobs/<id>/events", parameters=[ID])
    @_contract(blp, examples.USER_EVENTS)
    @blp.problems("validation-failed", "not-found", "not-acceptable", *PROBLEMS_OF_A_SIGNED_URL, "no-signing-key")
    @blp.about(
        "The changes of a user's jobs · 用户任务的事件流",
        "Follow all jobs of a user by server-sent events. `event: snapshot` lists the unfinished ones first.",
        parameters=[_LAST_EVENT_ID, SIGN],
    )
    def list_user_events(user: str) -> Response:
        last = eventstream.last_event(request.headers.get("Last-Event-ID"))
        return respond(lambda tell: watching.user(user, last, tell))

    return blp


def _contract(blp: Blueprint, example: str) -> Decorator:
    def decorate(view: View) -> View:
        content = {eventstream.MEDIA_TYPE: {"schema": _STREAM, "example": example}}
        return blp.also(200, "The events, as they happen.", content=content)(view)

    return decorate
