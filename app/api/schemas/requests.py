"""The bodies of the two POSTs and the queries of the lists: strict schemas whose limits come from the settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validate, validates_schema

from app.api.http import cursor, sign_query
from app.api.schemas import examples
from app.api.schemas.fields import (
    DEFAULT_PAGE,
    LARGEST_PAGE,
    Choice,
    Cursor,
    JsonBoolean,
    JsonInteger,
    JsonNumber,
    OneImage,
    PageLimit,
    QueueCursor,
    Seed,
    SignSeconds,
    Text,
    UserId,
)
from app.config import PREFIX, Config
from app.gateway.signing import LONGEST, SHORTEST
from app.jobs.model import STATUSES
from app.parameters import (
    DEFAULT_HR_SCALE,
    LARGEST_SEED,
    LONGEST_NAME,
    RANDOM_SEEDS,
    Parameter,
    Parameters,
    Type,
    upscales,
)

#: Faults that one answer lists; a body may hold thousands of unknown fields.
_MOST_FAULTS = 20
#: URLs that are signed at once, and characters of each.
_MOST_URLS = 500
_LONGEST_URL = 2000
#: The kinds of fields whose bounds are part of their own rules.
_UNBOUNDED: Mapping[str, Callable[..., fields.Field[Any]]] = MappingProxyType(
    {"user id": UserId, "boolean": JsonBoolean, "seed": Seed, "image": OneImage}
)


class PictureRequest(Schema):
    """The part that txt2img and img2img share: rules over several fields, and the refusal of unknown fields by name."""

    class Meta:
        """Unknown fields are errors."""

        unknown = RAISE

    #: Of the settings; set on the instance.
    max_output_pixels = 0

    def load(self, data: Any, **kwargs: Any) -> Any:
        """Load a request; unknown fields are left to :meth:`check_unknown`, for marshmallow takes long over thousands of them."""
        return super().load(data, **{**kwargs, "unknown": EXCLUDE})

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def check_unknown(self, _data: Any, original: Mapping[str, Any], **_kwargs: Any) -> None:
        """Refuse unknown fields; :meth:`handle_error` names them."""
        if not original.keys() <= self.fields.keys():
            raise ValidationError("There are unknown fields.")

    def handle_error(self, error: ValidationError, data: Any, **_kwargs: Any) -> None:
        """Say of each unknown field which known one is nearest; of many, the last place says how many more there are."""
        unknown = [name for name in data if name not in self.fields]
        faults = cast("dict[str, Any]", error.messages)
        if not unknown:
            return
        known = {name: messages for name, messages in faults.items() if name in self.fields}
        room = _MOST_FAULTS - len(known)
        named = unknown if len(unknown) <= room else unknown[: room - 1]
        error.messages = {**known, **{name: [self._unknown(name)] for name in named}}
        if more := len(unknown) - len(named):
            error.messages["_schema"] = [f"{more} more unknown fields."]

    @validates_schema(skip_on_field_errors=True)
    def check_seed(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Every image of a batch has the seed of the one before plus 1, and the last one must be a seed too."""
        if data["seed"] not in RANDOM_SEEDS and int(data["seed"]) + data["batch_size"] - 1 > LARGEST_SEED:
            raise ValidationError(
                {"seed": [f"The seed of the last image of the batch must not exceed {LARGEST_SEED}."]}
            )

    @validates_schema(skip_on_field_errors=True)
    def check_pixels(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Bound what the WebUI must hold in memory; the message stands at the field that broke the bound."""
        picture = data["width"] * data["height"]
        scale = data.get("hr_scale", DEFAULT_HR_SCALE) if upscales(data) else 1
        totals = {
            "width": picture,
            "hr_scale" if "hr_scale" in data else "hr_upscaler": picture * scale**2,
            "batch_size": picture * scale**2 * data["batch_size"],
        }
        for field, pixels in totals.items():
            if pixels > self.max_output_pixels:
                message = "Final width × height × batch_size, upscaling included, must not exceed {} pixels."
                raise ValidationError({field: [message.format(self.max_output_pixels)]})

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.fields, n=1) if len(name) <= LONGEST_NAME else []
        return f"Unknown field; did you mean {near[0]}?" if near else "Unknown field."


def picture_request(type_: Type, config: Config, parameters: Parameters) -> Schema:
    """The schema of ``POST /txt2img`` or ``POST /img2img``: the fields of the table, within the bounds of the settings."""
    taken = {parameter.name: _field(parameter, type_, config) for parameter in parameters if type_ in parameter.types}
    generated = PictureRequest.from_dict(taken, name=f"{type_.capitalize()}Request")
    schema = cast("type[PictureRequest]", generated)()
    schema.max_output_pixels = config.max_output_pixels
    return schema


def _field(parameter: Parameter, type_: Type, config: Config) -> fields.Field[Any]:
    about = _about(parameter, type_)
    if parameter.kind in _UNBOUNDED:
        return _UNBOUNDED[parameter.kind](**about)
    if parameter.kind == "choice":
        return Choice(tuple(parameter.choices), **about)
    lowest, highest = parameter.lowest, _bound(parameter.highest, config)
    if parameter.kind == "number":
        return JsonNumber(lowest=lowest, highest=highest, **about)
    if parameter.kind == "text":
        return Text(shortest=int(lowest), longest=int(highest), **about)
    step = parameter.step
    return JsonInteger(lowest=int(lowest), highest=int(highest) // step * step, step=step, **about)


def _bound(bound: float | str, config: Config) -> float:
    """The bound itself, or the value of the setting that it names."""
    return bound if isinstance(bound, int | float) else float(getattr(config, bound.removeprefix(PREFIX).lower()))


def _about(parameter: Parameter, type_: Type) -> dict[str, Any]:
    metadata = {"title": parameter.title, "description": parameter.description}
    if parameter.choices:
        # Generated clients name the class of an enumeration after its title, and this one is for people.
        metadata = {"description": f"{parameter.title}\n\n{parameter.description}"}
    default = parameter.default_of(type_)
    if default is not None and not parameter.shown_default:
        metadata["default"] = default
    return {"required": parameter.required, "metadata": metadata}


class _Limited(Schema):
    """What the queries of all paged lists share; what they don't know they ignore."""

    class Meta:
        """Unknown parameters are left alone."""

        unknown = EXCLUDE

    limit = PageLimit(
        load_default=DEFAULT_PAGE,
        metadata={"description": "Jobs of a page.", "minimum": 1, "maximum": LARGEST_PAGE},
    )


class PageQuery(_Limited):
    """The query of a list of jobs, newest first."""

    before = Cursor(metadata={"description": "The cursor of a next URL.", "pattern": cursor.PATTERN})
    sign = SignSeconds(metadata=sign_query.METADATA)


class JobsQuery(PageQuery):
    """The query of a user's jobs."""

    status = Choice(STATUSES, metadata={"description": "Only jobs in this state."})


class SessionRequest(Schema):
    """The body that begins a session."""

    token = fields.String(required=True, metadata={"description": "The token, as it was shown when it was made."})


class SignRequest(Schema):
    """The body that asks for signed URLs."""

    paths = fields.List(
        fields.String(validate=validate.Length(max=_LONGEST_URL)),
        required=True,
        validate=validate.Length(max=_MOST_URLS),
        metadata={
            "description": "The `url`, `thumbnail_url` or path of pictures, and the paths of event streams.",
            "example": [f"/get_images/{examples.USER}/txt2img/{examples.IMAGE}?size=320"],
        },
    )
    seconds = JsonInteger(
        lowest=SHORTEST,
        highest=LONGEST,
        required=True,
        metadata={"description": "For how long they are to be valid; at most 3600 for event streams.", "example": 3600},
    )


class QueueQuery(_Limited):
    """The query of the queue."""

    id = UserId(metadata={"description": "The user whose jobs are named."})
    before = QueueCursor(metadata={"description": "The cursor of a next URL.", "pattern": cursor.PLACE_PATTERN})


class CancelQuery(Schema):
    """The query of a user's jobs that are to be cancelled; what it does not know it ignores."""

    class Meta:
        """Unknown parameters are left alone."""

        unknown = EXCLUDE

    status = Choice(
        ("queued",),
        required=True,
        metadata={"description": "Which jobs: only those that wait can be cancelled all at once.", "example": "queued"},
    )
