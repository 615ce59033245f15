"""Schemas of the answers, for the documentation; the services' dicts go through as they are.

Descriptions are translated by :mod:`app.api.chinese`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from marshmallow import EXCLUDE, Schema, fields

from app.api.schemas import examples
from app.jobs.model import HEALTHS, SLOT_STATES, STATUSES, WAITS_FOR
from app.parameters import TYPES, Parameter, Parameters


def _text(description: str, **metadata: Any) -> fields.String:
    return fields.String(required=True, metadata={"description": description, **metadata})


def _texts(description: str) -> fields.List[str]:
    return fields.List(fields.String(), required=True, metadata={"description": description})


def _count(description: str, **metadata: Any) -> fields.Integer:
    return fields.Integer(required=True, metadata={"description": description, **metadata})


def _or_null(schema: str, description: str) -> fields.Raw:
    """A component or null; OpenAPI 3.0 has no other way to say it that a validator understands."""
    null = {"type": "object", "nullable": True, "enum": [None]}
    choice = [{"$ref": f"#/components/schemas/{schema}"}, null]
    return fields.Raw(required=True, metadata={"anyOf": choice, "description": description})


class Answer(Schema):
    """Base of the answers; ``EXAMPLES`` are whole answers by a name that tells them apart."""

    EXAMPLES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    class Meta:
        """Fields may be added to an answer, so that the documentation must not rule them out."""

        unknown = EXCLUDE

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """Give the object as it is: tests hold the answers against the documentation, no request pays for it."""
        del many
        return obj


class Problem(Answer):
    """An error, RFC 9457."""

    type = _text("Which error it is: a word that never changes.", example="validation-failed")
    title = _text("What the type means; the same for every occurrence.")
    status = _count("The HTTP status code.")
    detail = _text("What went wrong this time.")
    errors = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        metadata={"description": "With 422: what is wrong, by field."},
    )
    accepted = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        metadata={"description": "With unknown-name: what would be accepted, by field."},
    )
    url = fields.String(metadata={"description": "Of a POST whose job failed: the URL of the job."})
    request = fields.String(
        metadata={
            "description": "The id of the request that was answered with it, as in X-Request-ID; absent in a job's error."
        }
    )
    retry_after = fields.Integer(
        metadata={
            "minimum": 1,
            "description": "With 429 and 503: the seconds after which to try again, as in Retry-After.",
        }
    )


#: Where a job's parameters say something else than the request did.
_IN_ARGS: Mapping[str, str] = MappingProxyType(
    {
        "seed": "The seed of the first image.",
        "model": "The shortest name that means this model's file and no other.",
        "scheduler": "The scheduler, named or the end of the sampler's name; absent: none.",
        "init_images": "img2img: a data URI.",
    }
)
_JSON_FIELDS: Mapping[str, type[fields.Field[Any]]] = MappingProxyType(
    {"integer": fields.Integer, "number": fields.Float, "boolean": fields.Boolean}
)


class _CompleteArgs(Answer):
    EXAMPLES: ClassVar = {"txt2img": examples.TXT2IMG_ARGS}


def args(parameters: Parameters) -> type[Schema]:
    """The parameters of a job: what was posted with the seed really used, and every optional that took effect."""
    return Answer.from_dict(_args_fields(p for p in parameters if p.kind != "image"), name="Args")


def complete_args(parameters: Parameters) -> type[Schema]:
    """The parameters with the reference image: a body that can be posted again as it stands."""
    return _CompleteArgs.from_dict(_args_fields(parameters), name="CompleteArgs")


def _args_fields(parameters: Iterable[Parameter]) -> dict[str, fields.Field[Any]]:
    return {parameter.name: _args_field(parameter) for parameter in parameters}


def _args_field(parameter: Parameter) -> fields.Field[Any]:
    about = {"title": parameter.title, "description": _IN_ARGS.get(parameter.name, parameter.description)}
    about |= {"pattern": "^[0-9]+$"} if parameter.kind == "seed" else {}
    always = parameter.required and parameter.types == TYPES
    return _JSON_FIELDS.get(parameter.kind, fields.String)(required=always, metadata=about)


class StoredImage(Answer):
    """A picture of a record."""

    filename = _text("The file name.")
    url = _text("The URL of the image.", format="uri-reference")
    thumbnail_url = _text("The URL of a small image in WebP.", format="uri-reference")
    seed = _text("The seed of this image.", pattern="^[0-9]+$")
    width = _count("Pixels.")
    height = _count("Pixels.")
    bytes = _count("The size of the file in bytes.")
    media_type = _text("image/png, image/jpeg or image/webp.")
    infotext = _text("The parameters as the WebUI writes them into its pictures.")


class InitImage(Answer):
    """The reference image of an img2img job, as it is kept: a PNG, upright, without metadata."""

    filename = _text("The file name.")
    url = _text("The URL of the image.", format="uri-reference")
    thumbnail_url = _text("The URL of a small image in WebP.", format="uri-reference")
    width = _count("Pixels.")
    height = _count("Pixels.")
    bytes = _count("The size of the file in bytes.")
    media_type = _text("Always image/png.")


class Webui(Answer):
    """The model, the sampler and the version of the WebUI that made the pictures."""

    model = fields.String(required=True, allow_none=True, metadata={"description": "The model."})
    sampler = fields.String(required=True, allow_none=True, metadata={"description": "The sampler."})
    version = fields.String(required=True, allow_none=True, metadata={"description": "The version of the WebUI."})


class Job(Answer):
    """One accepted request, from acceptance until it is deleted."""

    EXAMPLES: ClassVar = {"succeeded": examples.TXT2IMG_JOB, "queued": examples.QUEUED_TXT2IMG_JOB}

    id = _text("The user.")
    type = _text("What was asked for.", enum=list(TYPES))
    name = _text("The name of the job and its record.")
    status = _text("The state of the job.", enum=list(STATUSES))
    cancel_requested = fields.Boolean(
        required=True, metadata={"description": "Its end was asked for; a running job ends when its WebUI has replied."}
    )
    simulated = fields.Boolean(required=True, metadata={"description": "The pictures come from a simulator."})
    created_at = _text("When it was accepted.", format="date-time")
    started_at = fields.DateTime(
        required=True, allow_none=True, metadata={"description": "Start of the last attempt; null: there was none."}
    )
    finished_at = fields.DateTime(
        required=True, allow_none=True, metadata={"description": "When the job ended; null: it has not."}
    )
    position = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "The place in the queue: 1 starts next; null: not queued."},
    )
    progress = fields.Float(
        required=True, metadata={"minimum": 0, "maximum": 1, "description": "How much of it is done, 0 to 1."}
    )
    eta = fields.Float(
        required=True, allow_none=True, metadata={"description": "Seconds until the job ends; null: unknown."}
    )
    #: The component that :func:`args` makes of the table.
    args = fields.Raw(
        required=True,
        metadata={
            "allOf": [{"$ref": "#/components/schemas/Args"}],
            "description": "What was posted with the seed really used, and every optional field that took effect.",
        },
    )
    images = fields.List(
        fields.Nested(StoredImage), required=True, metadata={"description": "Empty until it succeeded."}
    )
    init_image = _or_null("InitImage", "img2img: the reference image.")
    webui = _or_null("Webui", "What made the pictures; null until it is known.")
    error = _or_null("Problem", "Why the job failed.")
    url = _text("The URL of the job.", format="uri-reference")


class History(Answer):
    """A page of succeeded jobs, newest first."""

    EXAMPLES: ClassVar = {"txt2img": {"records": [examples.TXT2IMG_JOB], "next": None}}

    records = fields.List(fields.Nested(Job), required=True, metadata={"description": "The jobs of this page."})
    next = fields.String(
        required=True, allow_none=True, metadata={"description": "The URL of the next page; null on the last one."}
    )


class Jobs(Answer):
    """A page of jobs, newest first."""

    EXAMPLES: ClassVar = {"both types": {"jobs": [examples.IMG2IMG_JOB, examples.TXT2IMG_JOB], "next": None}}

    jobs = fields.List(fields.Nested(Job), required=True, metadata={"description": "The jobs of this page."})
    next = fields.String(
        required=True, allow_none=True, metadata={"description": "The URL of the next page; null on the last one."}
    )


class QueueEntry(Answer):
    """One unfinished job as the queue shows it. Jobs of other users have no name here."""

    redacted = fields.Boolean(required=True, metadata={"description": "It is the job of another user."})
    id = fields.String(metadata={"description": "The user."})
    type = fields.String(metadata={"enum": list(TYPES), "description": "What was asked for."})
    name = fields.String(metadata={"description": "The name of the job and its record."})
    created_at = fields.DateTime(metadata={"description": "When it was accepted."})
    position = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "The place in the queue: 1 starts next; null: not queued."},
    )
    progress = fields.Float(
        required=True, metadata={"minimum": 0, "maximum": 1, "description": "How much of it is done, 0 to 1."}
    )
    eta = fields.Float(
        required=True, allow_none=True, metadata={"description": "Seconds until the job ends; null: unknown."}
    )
    waits_for = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "enum": [*WAITS_FOR, None],
            "description": "Why it is not started: the queue is paused, no worker is running, no WebUI answers, or none that "
            "answers offers what it needs; null: it only waits for its turn.",
        },
    )
    url = fields.String(metadata={"format": "uri-reference", "description": "The URL of the job."})


class QueueCounts(Answer):
    """The number of unfinished jobs."""

    running = _count("Jobs that run or are being stored.")
    waiting = _count("Jobs that wait.")


class Queue(Answer):
    """The running jobs and a page of the waiting ones, in the order in which they will start."""

    EXAMPLES: ClassVar = examples.QUEUES

    running = fields.List(fields.Nested(QueueEntry), required=True, metadata={"description": "All jobs that run."})
    waiting = fields.List(fields.Nested(QueueEntry), required=True, metadata={"description": "The jobs of this page."})
    counts = fields.Nested(QueueCounts, required=True, metadata={"description": "The jobs of all pages."})
    oldest_wait = fields.Float(
        required=True,
        allow_none=True,
        metadata={"description": "For how many seconds the oldest waiting job has waited; null: none waits."},
    )
    seconds_to_empty = fields.Float(
        required=True,
        allow_none=True,
        metadata={"description": "Seconds until all of them have ended, if none is added; null: unknown."},
    )
    paused = fields.Boolean(required=True, metadata={"description": "No job is started at present."})
    next = fields.String(
        required=True, allow_none=True, metadata={"description": "The URL of the next page; null on the last one."}
    )


class WebuiStatus(Answer):
    """One configured WebUI."""

    name = _text("Its name in the settings, or its address without credentials.")
    state = _text("The state of its slot.", enum=list(SLOT_STATES))
    health = _text("Whether it answered when it was asked last.", enum=list(HEALTHS))
    model = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The model of the job that runs there, else the loaded one; null: unknown."},
    )
    since = fields.DateTime(
        required=True, allow_none=True, metadata={"description": "Since when it has this health; null: unknown."}
    )
    seconds_per_cost = fields.Float(
        required=True,
        allow_none=True,
        metadata={
            "description": "Seconds that it takes with this model for a unit of cost, which is one step for one pixel; null: not "
            "measured yet."
        },
    )


class Webuis(Answer):
    """The configured WebUIs."""

    EXAMPLES: ClassVar = {"one": examples.WEBUIS}

    webuis = fields.List(
        fields.Nested(WebuiStatus), required=True, metadata={"description": "In the order of the settings."}
    )


class Cancelled(Answer):
    """The answer to cancelling all jobs of a user that wait."""

    EXAMPLES: ClassVar = {"two": {"cancelled": 2}}

    cancelled = _count("How many jobs were cancelled.")


class Deleted(Answer):
    """The answer of a DELETE."""

    EXAMPLES: ClassVar = {"record": examples.DELETED}

    deleted = _texts("The names of the deleted files.")


class Options(Answer):
    """The names that a request may use."""

    EXAMPLES: ClassVar = {"options": examples.OPTIONS}

    samplers = _texts("For sampler_name.")
    schedulers = _texts("For scheduler; empty where the WebUI has none.")
    upscalers = _texts("For hr_upscaler.")
    latent_modes = _texts("For hr_upscaler of txt2img.")
    styles = _texts("For style: the gateway's presets, then the WebUI's.")
    models = _texts("For model.")
    default_model = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The model of requests that name none; null: none is known."},
    )


class Liveness(Answer):
    """The process answers."""

    EXAMPLES: ClassVar = {"ok": {"status": "ok"}}

    status = _text("Always ok.", enum=["ok"])


class Readiness(Answer):
    """Whether pictures can be made now."""

    EXAMPLES: ClassVar = examples.READINESS

    status = _text("ok, or degraded for the reasons given.", enum=["ok", "degraded"])
    reasons = fields.List(
        fields.String(),
        metadata={"description": "One sentence each. Left out where the request has no token and needs one."},
    )


class Session(Answer):
    """What a session allows."""

    EXAMPLES: ClassVar = {"session": {"users": ["shop-*"], "scopes": ["generate", "read"], "seconds": 43200}}

    users = _texts("The users of the token; a `*` at the end stands for all that begin so.")
    scopes = _texts("What it allows.")
    seconds = fields.Integer(required=True, metadata={"description": "How long the session lasts."})


_SIGNATURE = "exp=1795000500&kid=1&sig=BL9cYPSZ8Jrkj1JyQZ2mGtqxPRBBZEIIRWHXpLWo4_E"


class SignedUrls(Answer):
    """URLs that need no token."""

    EXAMPLES: ClassVar = {
        "signed": {
            "urls": [
                f"/get_images/{examples.USER}/txt2img/{examples.IMAGE}?size=320&{_SIGNATURE}",
            ]
        }
    }

    urls = _texts("Valid until `exp`, seconds since 1970.")
