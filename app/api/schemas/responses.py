"""What the answers look like, for the documentation; the services' dicts go through as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from marshmallow import EXCLUDE, Schema, fields

from app.jobs.model import STATUSES
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
    """Base of the answers."""

    class Meta:
        """Fields may be added to an answer, so that the documentation must not rule them out."""

        unknown = EXCLUDE

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """Give the object as it is: tests hold the answers against the documentation, no request pays for it."""
        del many
        return obj


class Problem(Answer):
    """An error, RFC 9457."""

    type = _text("A stable slug.", example="validation-failed")
    title = _text("What the slug means; the same for every occurrence.")
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
    url = fields.String(metadata={"description": "Where a POST ended without a picture: the job."})


#: Where a job's parameters say something else than the request did.
_IN_ARGS: Mapping[str, str] = MappingProxyType(
    {
        "seed": "The seed of the first image.",
        "model": "The shortest name that means this model's file and no other.",
        "scheduler": "The scheduler, named or the end of the sampler's name; absent: none.",
        "init_images": "A data URI.",
    }
)
_JSON_FIELDS: Mapping[str, type[fields.Field[Any]]] = MappingProxyType(
    {"integer": fields.Integer, "number": fields.Float, "boolean": fields.Boolean}
)


def args(parameters: Parameters) -> type[Schema]:
    """The parameters of a job: what was posted with the seed really used, and every optional that took effect."""
    return Answer.from_dict(_args_fields(p for p in parameters if p.kind != "image"), name="Args")


def complete_args(parameters: Parameters) -> type[Schema]:
    """The parameters with the reference image: a body that can be posted again as it stands."""
    return Answer.from_dict(_args_fields(parameters), name="CompleteArgs")


def _args_fields(parameters: Iterable[Parameter]) -> dict[str, fields.Field[Any]]:
    return {parameter.name: _args_field(parameter) for parameter in parameters}


def _args_field(parameter: Parameter) -> fields.Field[Any]:
    about = {"title": parameter.title, "description": _IN_ARGS.get(parameter.name, parameter.description)}
    about |= {"pattern": "^[0-9]+$"} if parameter.kind == "seed" else {}
    always = parameter.required and parameter.types == TYPES
    return _JSON_FIELDS.get(parameter.kind, fields.String)(required=always, metadata=about)


class StoredImage(Answer):
    """A picture of a record."""

    filename = _text("Its name; part of its path.")
    url = _text("Where it is.", format="uri-reference")
    seed = _text("Its own seed.", pattern="^[0-9]+$")
    width = _count("Pixels.")
    height = _count("Pixels.")
    bytes = _count("The size of the file.")
    media_type = _text("image/png, image/jpeg or image/webp.")
    infotext = _text("The parameters as the WebUI wrote them.")


class InitImage(Answer):
    """The reference image of an img2img job, as it is kept: a PNG, upright, without metadata."""

    filename = _text("Its name; part of its path.")
    url = _text("Where it is.", format="uri-reference")
    width = _count("Pixels.")
    height = _count("Pixels.")
    bytes = _count("The size of the file.")
    media_type = _text("image/png.")


class Webui(Answer):
    """What made the pictures."""

    model = fields.String(required=True, allow_none=True)
    sampler = fields.String(required=True, allow_none=True)
    version = fields.String(required=True, allow_none=True)


class Job(Answer):
    """One accepted request, from acceptance until it is deleted."""

    id = _text("The user.")
    type = _text("What was asked for.", enum=list(TYPES))
    name = _text("The name of the job and its record.")
    status = _text("Where the job is.", enum=list(STATUSES))
    simulated = fields.Boolean(required=True, metadata={"description": "The pictures come from a simulator."})
    created_at = _text("When it was accepted.", format="date-time")
    started_at = fields.DateTime(required=True, allow_none=True, metadata={"description": "Start of the last attempt."})
    finished_at = fields.DateTime(required=True, allow_none=True, metadata={"description": "When it ended."})
    position = fields.Integer(
        required=True, allow_none=True, metadata={"description": "1 starts next; null: not queued."}
    )
    progress = fields.Float(required=True, metadata={"minimum": 0, "maximum": 1})
    eta = fields.Float(
        required=True, allow_none=True, metadata={"description": "Seconds until its end; null: unknown."}
    )
    #: The component that :func:`args` makes of the table.
    args = fields.Raw(
        required=True,
        metadata={
            "allOf": [{"$ref": "#/components/schemas/Args"}],
            "description": "What was posted with the seed really used, and every optional that took effect.",
        },
    )
    images = fields.List(
        fields.Nested(StoredImage), required=True, metadata={"description": "Empty until it succeeded."}
    )
    init_image = _or_null("InitImage", "img2img: the reference image.")
    webui = _or_null("Webui", "What made the pictures; null until it is known.")
    error = _or_null("Problem", "Why the job failed.")
    url = _text("Where the job is.", format="uri-reference")


class History(Answer):
    """A page of succeeded jobs, newest first."""

    records = fields.List(fields.Nested(Job), required=True)
    next = fields.String(required=True, allow_none=True, metadata={"description": "The next page; null on the last."})


class Jobs(Answer):
    """A page of jobs, newest first."""

    jobs = fields.List(fields.Nested(Job), required=True)
    next = fields.String(required=True, allow_none=True, metadata={"description": "The next page; null on the last."})


class Deleted(Answer):
    """What a DELETE removed."""

    deleted = _texts("The names of the deleted files.")


class Options(Answer):
    """The names that a request may use."""

    samplers = _texts("For sampler_name.")
    schedulers = _texts("For scheduler; empty where the WebUI has none.")
    upscalers = _texts("For hr_upscaler.")
    latent_modes = _texts("For hr_upscaler of txt2img.")
    styles = _texts("For style: the gateway's presets, then the WebUI's.")
    models = _texts("For model.")
    default_model = fields.String(required=True, allow_none=True, metadata={"description": "What no model means."})


class Liveness(Answer):
    """The process answers."""

    status = _text("Always ok.", enum=["ok"])


class Readiness(Answer):
    """Whether pictures can be made now."""

    status = _text("ok, or degraded for the reasons given.", enum=["ok", "degraded"])
    reasons = _texts("One sentence each.")
