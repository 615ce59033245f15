"""The two POSTs that ask for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flask import Response, request

from app.api.http import cancel_after, prefer
from app.api.http.openapi import PROBLEMS_OF_A_BODY, Blueprint, Decorator, View
from app.api.http.representation import Presenter
from app.api.http.request import GatewayRequest
from app.api.http.sign_query import PARAMETER as SIGN
from app.api.http.waiting import answered
from app.api.schemas import examples
from app.api.schemas.requests import picture_request
from app.api.schemas.responses import Job
from app.parameters import Type
from app.services import Services

_REFUSED = (
    *PROBLEMS_OF_A_BODY,
    "job-not-found",
    "key-of-deleted-job",
    "unknown-name",
    "bad-image",
    "idempotency-key-reused",
    "user-queue-full",
    "queue-full",
    "no-free-waiter",
    "no-catalogue",
    "no-default-model",
    "no-signing-key",
    "database-unavailable",
    "storage-unavailable",
)
_ENDED_BADLY = (
    "job-cancelled",
    "deadline-passed",
    "webui-refused",
    "webui-cannot",
    "webui-out-of-memory",
    "webui-error",
    "webui-bad-answer",
    "webui-interrupted",
    "webui-wrong-model",
    "webui-unreachable",
    "webui-disconnected",
    "webui-timeout",
    "no-longer-available",
    "worker-lost",
    "job-lost",
    "storage-failed",
)

_HEADERS: tuple[Mapping[str, Any], ...] = (
    {
        "in": "header",
        "name": "Prefer",
        "description": "`respond-async`: answer 202 at once. `wait=30`: answer 202 if the job is not finished within 30 seconds. "
        "Without it the gateway waits for as long as its settings say (RFC 7240).",
        "schema": {"type": "string"},
        "example": "wait=30",
    },
    {
        "in": "header",
        "name": "Idempotency-Key",
        "description": "Makes it safe to repeat the request: for 24 hours the same key and body of a user answer with the same "
        "job.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    {
        "in": "header",
        "name": "Cancel-After",
        "description": "Cancel the job unless it has ended so long after its acceptance: seconds, or hours, minutes and seconds "
        "such as `1h30m`; 5 seconds to 24 hours.",
        "schema": {"type": "string", "pattern": cancel_after.PATTERN},
        "example": "5m",
    },
)
_APPLIED = {"description": "The preferences of `Prefer` that were honoured.", "schema": {"type": "string"}}
_LOCATION = {"description": "The URL of the job.", "schema": {"type": "string", "format": "uri-reference"}}


def blueprint(services: Services, presenter: Presenter) -> Blueprint:
    """The endpoints over these services, with the limits of their settings."""
    blp = Blueprint("generation", __name__, description="Ask for pictures")

    @blp.route("/txt2img", methods=["POST"])
    @blp.arguments(picture_request("txt2img", services.config, services.parameters), example=examples.TXT2IMG_REQUEST)
    @_contract(blp, examples.TXT2IMG_JOB, examples.QUEUED_TXT2IMG_JOB)
    @blp.about("Text to image · 文生图接口", "Make pictures from a prompt.", parameters=(*_HEADERS, SIGN))
    def create_txt2img(fields: dict[str, Any]) -> Response:
        return _post(services, presenter, "txt2img", fields)

    @blp.route("/img2img", methods=["POST"])
    @blp.arguments(picture_request("img2img", services.config, services.parameters), example=examples.IMG2IMG_REQUEST)
    @_contract(blp, examples.IMG2IMG_JOB, examples.QUEUED_IMG2IMG_JOB)
    @blp.about(
        "Image to image · 图生图接口",
        "Make pictures from a prompt and a reference image.",
        parameters=(*_HEADERS, SIGN),
    )
    def create_img2img(fields: dict[str, Any]) -> Response:
        return _post(services, presenter, "img2img", fields)

    return blp


def _contract(blp: Blueprint, finished: Mapping[str, Any], queued: Mapping[str, Any]) -> Decorator:
    """The answers of both POSTs, with an example of a finished and of a queued job."""
    decorators: list[Decorator] = [
        blp.answers(200, Job, "The finished job.", headers={"Preference-Applied": _APPLIED}, example=finished),
        blp.also(
            202,
            "The job as it is now. It goes on; `url` and `Location` say where to ask for it again.",
            content={"application/json": {"schema": Job, "example": queued}},
            headers={"Location": _LOCATION, "Preference-Applied": _APPLIED},
        ),
        blp.problems(*_REFUSED, *_ENDED_BADLY),
    ]

    def decorate(view: View) -> View:
        for decorator in decorators:
            view = decorator(view)
        return view

    return decorate


def _post(services: Services, presenter: Presenter, kind: Type, fields: dict[str, Any]) -> Response:
    # The request itself, and no proxy: it is handed on.
    posted = cast("GatewayRequest", cast("Any", request)._get_current_object())  # noqa: SLF001 -- documented by werkzeug
    writer = presenter.signing_as_requested()
    preference = prefer.parse(posted.headers.getlist("Prefer"))
    key = posted.idempotency_key
    # Only a repeated key is compared, and a reference image is megabytes.
    fingerprint = posted.fingerprint if key is not None else ""
    posted.forget_document()
    posted_job = services.acceptance.post(
        kind,
        fields,
        fingerprint=fingerprint,
        idempotency_key=key,
        wait=preference.seconds(services.config.sync_timeout),
        client=posted,
    )
    return answered(posted_job, lambda view: writer.posted(view, preference))
