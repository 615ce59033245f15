"""The two POSTs that ask for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from flask import Response, request

from app.api.http import prefer
from app.api.http.openapi import Blueprint, Decorator, View
from app.api.http.representation import Presenter
from app.api.http.request import GatewayRequest
from app.api.ports import Services
from app.api.schemas.requests import picture_request
from app.api.schemas.responses import Job
from app.parameters import Type

_REFUSED = (
    "invalid-json",
    "key-of-deleted-job",
    "body-too-large",
    "no-room-for-body",
    "unsupported-media-type",
    "validation-failed",
    "unknown-name",
    "bad-image",
    "idempotency-key-reused",
    "user-queue-full",
    "queue-full",
    "no-free-waiter",
    "no-catalogue",
    "no-default-model",
    "database-unavailable",
    "storage-unavailable",
)
_ENDED_BADLY = (
    "job-cancelled",
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

_TXT2IMG_EXAMPLE: Mapping[str, Any] = MappingProxyType(
    {
        "id": "demo",
        "prompt": "a lighthouse on a cliff at dusk, 灯塔",
        "negative_prompt": "blurry",
        "width": 512,
        "height": 512,
        "seed": "-1",
        "steps": 20,
        "hr_upscaler": "",
        "cfg_scale": 7.0,
        "style": "",
        "batch_size": 1,
    }
)
#: 64 × 64 pixels, four bands of colour.
_EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAMAAACdt4HsAAAADFBMVEUYKFBgWIzmlm4UHjCDtQPfAAAAL0lEQVR42u3MMREAIAwEsEL9e2bBwW9/iYDM"
    "AHwnJBAIeoIbEggEPcGGBAJBTfAA1t8YAcvRfzcAAAAASUVORK5CYII="
)
_IMG2IMG_EXAMPLE: Mapping[str, Any] = MappingProxyType({**_TXT2IMG_EXAMPLE, "init_images": _EXAMPLE_PNG})

_HEADERS: tuple[Mapping[str, Any], ...] = (
    {
        "in": "header",
        "name": "Prefer",
        "description": "RFC 7240. respond-async: answer 202 at once. wait=N: answer 202 when N seconds did not suffice. "
        "Without: the gateway's own limit of waiting.",
        "schema": {"type": "string"},
        "example": "wait=30",
    },
    {
        "in": "header",
        "name": "Idempotency-Key",
        "description": "The same key and body of a user answer with the same job for 24 hours.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
)
_APPLIED = {"description": "The preferences that were honoured.", "schema": {"type": "string"}}
_LOCATION = {"description": "The URL of the job.", "schema": {"type": "string", "format": "uri-reference"}}


def blueprint(services: Services, presenter: Presenter) -> Blueprint:
    """The endpoints over these services, with the limits of their settings."""
    blp = Blueprint("generation", __name__, description="Ask for pictures")

    @blp.route("/txt2img", methods=["POST"])
    @blp.arguments(picture_request("txt2img", services.config, services.parameters), example=_TXT2IMG_EXAMPLE)
    @_contract(blp, "Text to image · 文生图接口", "Make pictures from a prompt.")
    def txt2img(fields: dict[str, Any]) -> Response:
        return _post(services, presenter, "txt2img", fields)

    @blp.route("/img2img", methods=["POST"])
    @blp.arguments(picture_request("img2img", services.config, services.parameters), example=_IMG2IMG_EXAMPLE)
    @_contract(blp, "Image to image · 图生图接口", "Make pictures from a prompt and a reference image.")
    def img2img(fields: dict[str, Any]) -> Response:
        return _post(services, presenter, "img2img", fields)

    return blp


def _contract(blp: Blueprint, summary: str, description: str) -> Decorator:
    """What both POSTs promise besides their bodies."""
    decorators: list[Decorator] = [
        blp.answers(200, Job, "The finished job.", headers={"Preference-Applied": _APPLIED}),
        blp.also(
            202,
            "The job as it is now; it goes on.",
            content={"application/json": {"schema": Job}},
            headers={"Location": _LOCATION, "Preference-Applied": _APPLIED},
        ),
        blp.problems(*_REFUSED, *_ENDED_BADLY),
        blp.about(summary, description, parameters=_HEADERS),
    ]

    def decorate(view: View) -> View:
        for decorator in decorators:
            view = decorator(view)
        return view

    return decorate


def _post(services: Services, presenter: Presenter, kind: Type, fields: dict[str, Any]) -> Response:
    posted = cast("GatewayRequest", request)
    preference = prefer.parse(posted.headers.getlist("Prefer"))
    key = posted.idempotency_key
    # Only a repeated key is compared, and a reference image is megabytes.
    fingerprint = posted.fingerprint if key is not None else ""
    posted.forget_document()
    view = services.submissions.post(
        kind,
        fields,
        fingerprint=fingerprint,
        idempotency_key=key,
        wait=preference.seconds(services.config.sync_timeout),
        before_waiting=posted.let_go,
        gone=posted.client_gone,
    )
    return presenter.posted(view, preference)
