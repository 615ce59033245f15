"""Type checking as the WebUI's pydantic does it: coercions, nulls, and the shape of a 422.

Version 1 (A1111) turns "2" and 2.7 into 2 and 5 into "5"; version 2 (Forge) refuses the last two. Unknown fields are dropped.
Field names, order and defaults are those of ``modules/api/models.py`` and the server's own OpenAPI document.
"""

from __future__ import annotations

import copy
import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.simulator.errors import HttpError, InvalidError
from app.simulator.settings import Flavour


@dataclass(frozen=True)
class Field:
    """One field of a request: its type by name, its default, whether null passes, its bounds."""

    name: str
    kind: str
    default: Any = None
    nullable: bool = True
    ge: float | None = None
    le: float | None = None
    gt: float | None = None
    required: bool = False


class _MismatchError(Exception):
    """A value of the wrong type: type slug and message, as pydantic words them."""

    def __init__(self, slug: str, message: str, context: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.slug = slug
        self.context = context

    def item(self, place: tuple[Any, ...], value: Any, version: int) -> dict[str, Any]:
        """One entry of ``detail``; version 2 echoes the value and links to its manual."""
        context = {} if self.context is None else {"ctx": self.context}
        if version == 1:
            return {"loc": list(place), "msg": str(self), "type": self.slug, **context}
        link = f"https://errors.pydantic.dev/2.8/v/{self.slug}"
        return {"type": self.slug, "loc": list(place), "msg": str(self), "input": value, **context, "url": link}


_TRUE = ("1", "on", "t", "true", "y", "yes")
_FALSE = ("0", "off", "f", "false", "n", "no")


def _bool_of(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else value
    if word in _TRUE or word == 1:
        return True
    return False if word in _FALSE or word == 0 else None


def _str1(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    raise _MismatchError("type_error.str", "str type expected")


def _int1(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise _MismatchError("type_error.integer", "value is not a valid integer") from None


def _float1(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _MismatchError("type_error.float", "value is not a valid float") from None


def _bool1(value: Any) -> bool:
    found = _bool_of(value)
    if found is None:
        raise _MismatchError("type_error.bool", "value could not be parsed to a boolean")
    return found


def _list1(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise _MismatchError("type_error.list", "value is not a valid list")


def _dict1(value: Any) -> dict[str, Any]:
    try:
        # pydantic 1 hands any value to dict(), so that an empty list is an empty object.
        return dict(value)
    except (TypeError, ValueError):
        raise _MismatchError("type_error.dict", "value is not a valid dict") from None


def _str2(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _MismatchError("string_type", "Input should be a valid string")


def _int2(value: Any) -> int:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _MismatchError("finite_number", "Input should be a finite number")
        if not value.is_integer():
            raise _MismatchError(
                "int_from_float", "Input should be a valid integer, got a number with a fractional part"
            )
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise _MismatchError("int_parsing", message) from None
    if isinstance(value, int | float):
        return int(value)
    raise _MismatchError("int_type", "Input should be a valid integer")


def _float2(value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        raise _MismatchError("float_type", "Input should be a valid number")
    try:
        return float(value)
    except ValueError:
        message = "Input should be a valid number, unable to parse string as a number"
        raise _MismatchError("float_parsing", message) from None


def _bool2(value: Any) -> bool:
    found = _bool_of(value)
    if found is not None:
        return found
    if isinstance(value, str | int | float):
        raise _MismatchError("bool_parsing", "Input should be a valid boolean, unable to interpret input")
    raise _MismatchError("bool_type", "Input should be a valid boolean")


def _list2(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise _MismatchError("list_type", "Input should be a valid list")


def _dict2(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise _MismatchError("dict_type", "Input should be a valid dictionary")


_Reader = Callable[[Any], Any]
_READERS: Mapping[int, Mapping[str, _Reader]] = {
    1: {"str": _str1, "int": _int1, "float": _float1, "bool": _bool1, "list": _list1, "dict": _dict1},
    2: {"str": _str2, "int": _int2, "float": _float2, "bool": _bool2, "list": _list2, "dict": _dict2},
}


def _null(kind: str, version: int) -> _MismatchError:
    """Version 2 has no word of its own for null: it is a value of the wrong type."""
    if version == 2:
        reader: _Reader = _READERS[2].get(kind, _list2)
        try:
            reader(None)
        except _MismatchError as mismatch:
            return mismatch
    return _MismatchError("type_error.none.not_allowed", "none is not an allowed value")


_LIMITS: tuple[tuple[str, Callable[[Any, Any], bool], str, str], ...] = (
    ("ge", operator.ge, "greater than or equal to", "greater_than_equal"),
    ("gt", operator.gt, "greater than", "greater_than"),
    ("le", operator.le, "less than or equal to", "less_than_equal"),
)


def _bounded(field: Field, value: Any, version: int) -> Any:
    """Check the bounds; each version words them in its own way."""
    for short, holds, words, slug in _LIMITS:
        limit: float | None = getattr(field, short)
        if limit is None or holds(value, limit):
            continue
        if version == 1:
            message = f"ensure this value is {words} {limit:g}"
            raise _MismatchError(f"value_error.number.not_{short}", message, {"limit_value": limit})
        raise _MismatchError(slug, f"Input should be {words} {limit:g}", {short: float(limit)})
    return value


def _choice(value: Any, version: int) -> int:
    """The 0-or-1 field of the extras routes (a Literal): no coercion."""
    if value in (0, 1) and isinstance(value, int):
        return value
    if version == 1:
        context = {"given": value, "permitted": [0, 1]}
        raise _MismatchError("value_error.const", "unexpected value; permitted: 0, 1", context)
    raise _MismatchError("literal_error", "Input should be 0 or 1", {"expected": "0 or 1"})


_ItemReader = Callable[[tuple[Any, ...], Any], Any]


def _items(place: tuple[Any, ...], values: Any, read: _ItemReader, version: int) -> list[Any]:
    """A list, each item read at its own place; all errors of all items are collected."""
    found, errors = [], []
    for index, value in enumerate(_READERS[version]["list"](values)):
        try:
            found.append(read((*place, index), value))
        except InvalidError as invalid:
            errors += invalid.errors
    if errors:
        raise InvalidError(errors)
    return found


def _read(field: Field, place: tuple[Any, ...], value: Any, version: int) -> Any:
    """One value, or :class:`InvalidError` with the entry that says what is wrong with it."""
    try:
        if value is None:
            if field.nullable:
                return None
            raise _null(field.kind, version)
        if field.kind == "strs":
            return _items(place, value, lambda at, item: _read(_ITEM, at, item, version), version)
        if field.kind == "files":
            return _items(place, value, lambda at, item: read_fields(_FILE, item, version, at), version)
        if field.kind == "choice":
            return _choice(value, version)
        return _bounded(field, _READERS[version][field.kind](value), version)
    except _MismatchError as mismatch:
        raise InvalidError([mismatch.item(place, value, version)]) from None


_ITEM = Field("item", "str", nullable=False)
_FILE = (Field("data", "str", required=True, nullable=False), Field("name", "str", required=True, nullable=False))


def _missing(place: tuple[Any, ...], value: Any, version: int) -> dict[str, Any]:
    if version == 1:
        return _MismatchError("value_error.missing", "field required").item(place, value, version)
    return _MismatchError("missing", "Field required").item(place, value, version)


def read_fields(
    fields: tuple[Field, ...], payload: Any, version: int, place: tuple[Any, ...] = ("body",)
) -> dict[str, Any]:
    """Every field of a model, coerced, defaults filled in untouched; :class:`InvalidError` lists all that is wrong."""
    try:
        values = _READERS[version]["dict"](payload)
    except _MismatchError as error:
        message = "Input should be a valid dictionary or object to extract fields from"
        mismatch = error if version == 1 else _MismatchError("model_attributes_type", message)
        raise InvalidError([mismatch.item(place, payload, version)]) from None
    found: dict[str, Any] = {}
    errors: list[dict[str, Any]] = []
    for field in fields:
        try:
            found[field.name] = _field(field, values, version, place)
        except InvalidError as invalid:
            errors += invalid.errors
    if errors:
        raise InvalidError(errors)
    return found


def _field(field: Field, values: dict[str, Any], version: int, place: tuple[Any, ...]) -> Any:
    if field.name in values:
        return _read(field, (*place, field.name), values[field.name], version)
    if field.required:
        raise InvalidError([_missing((*place, field.name), values, version)])
    return copy.copy(field.default)


def read_body(data: bytes, content_type: str | None, version: int) -> Any:
    """Read a request body as FastAPI does: JSON only under a JSON content type or none, else the bare bytes' text.

    :raises InvalidError: for broken JSON and for no body at all, also a JSON null.
    :raises HttpError: 400 for bytes that are no text or nest too deep.
    """
    subtype = (content_type or "application/json").partition(";")[0].strip().lower()
    value: Any = None
    if data and (subtype == "application/json" or subtype.endswith("+json")):
        value = _parse(data, version)
    elif data:
        value = data.decode("utf-8", "replace")
    if value is None:
        raise InvalidError([_missing(("body",), None, version)])
    return value


def _parse(data: bytes, version: int) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        if version == 2:
            item = {"type": "json_invalid", "loc": ["body", error.pos], "msg": "JSON decode error"}
            raise InvalidError([{**item, "input": {}, "ctx": {"error": error.msg}}]) from error
        context: dict[str, Any] = {
            "msg": error.msg,
            "doc": error.doc,
            "pos": error.pos,
            "lineno": error.lineno,
            "colno": error.colno,
        }
        mismatch = _MismatchError("value_error.jsondecode", str(error), context)
        raise InvalidError([mismatch.item(("body", error.pos), None, version)]) from error
    except (UnicodeDecodeError, RecursionError):
        raise HttpError(400, "There was an error parsing the body") from None


def read_flag(name: str, text: str | None, version: int) -> bool:
    """A boolean of the query string, false when absent."""
    if text is None:
        return False
    return bool(_read(Field(name, "bool", nullable=False), ("query", name), text, version))


def read_object(payload: Any, version: int) -> dict[str, Any]:
    """A body that may hold any keys, as POST /options takes it."""
    try:
        return dict(_READERS[version]["dict"](payload))
    except _MismatchError as mismatch:
        raise InvalidError([mismatch.item(("body",), payload, version)]) from None


def _many(kind: str, default: Any, *names: str) -> tuple[Field, ...]:
    return tuple(Field(name, kind, default) for name in names)


def _when(condition: bool, *fields: Field) -> tuple[Field, ...]:
    return fields if condition else ()


def _processing(flavour: Flavour, denoising: Field) -> tuple[Field, ...]:
    """The fields that both generation routes share, in the server's order."""
    return (
        *_many("str", "", "prompt", "negative_prompt"),
        Field("styles", "strs"),
        *_many("int", -1, "seed", "subseed"),
        Field("subseed_strength", "float", 0),
        *_many("int", -1, "seed_resize_from_h", "seed_resize_from_w"),
        Field("sampler_name", "str"),
        *_when(flavour.schedulers, Field("scheduler", "str")),
        *_many("int", 1, "batch_size", "n_iter"),
        Field("steps", "int", 50),
        Field("cfg_scale", "float", 7.0),
        *_when(flavour.forge, Field("distilled_cfg_scale", "float", 3.5)),
        *_many("int", 512, "width", "height"),
        *_many("bool", None, "restore_faces", "tiling"),
        *_many("bool", False, "do_not_save_samples", "do_not_save_grid"),
        Field("eta", "float"),
        denoising,
        *_many("float", None, "s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise"),
        Field("override_settings", "dict"),
        Field("override_settings_restore_afterwards", "bool", default=True),
        Field("refiner_checkpoint", "str"),
        Field("refiner_switch_at", "float"),
        Field("disable_extra_networks", "bool", default=False),
        Field("firstpass_image", "str"),
        Field("comments", "dict"),
    )


def _hires(flavour: Flavour) -> tuple[Field, ...]:
    return (
        Field("enable_hr", "bool", default=False),
        *_many("int", 0, "firstphase_width", "firstphase_height"),
        Field("hr_scale", "float", 2.0),
        Field("hr_upscaler", "str"),
        *_many("int", 0, "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"),
        Field("hr_checkpoint_name", "str"),
        *_when(flavour.forge, Field("hr_additional_modules", "list")),
        Field("hr_sampler_name", "str"),
        *_when(flavour.schedulers, Field("hr_scheduler", "str")),
        *_many("str", "", "hr_prompt", "hr_negative_prompt"),
        *_when(flavour.forge, Field("hr_cfg", "float", 1.0), Field("hr_distilled_cfg", "float", 3.5)),
    )


_INIT = (
    Field("init_images", "list"),
    Field("resize_mode", "int", 0),
    Field("image_cfg_scale", "float"),
    Field("mask", "str"),
    *_many("int", 4, "mask_blur_x", "mask_blur_y"),
    Field("mask_blur", "int"),
    Field("mask_round", "bool", default=True),
    Field("inpainting_fill", "int", 0),
    Field("inpaint_full_res", "bool", default=True),
    *_many("int", 0, "inpaint_full_res_padding", "inpainting_mask_invert"),
    Field("initial_noise_multiplier", "float"),
    Field("latent_mask", "str"),
)
_TASK_ID = Field("force_task_id", "str")
_SAMPLER_INDEX = Field("sampler_index", "str", "Euler", nullable=False)
_TAIL = (
    Field("script_name", "str"),
    Field("script_args", "list", [], nullable=False),
    Field("send_images", "bool", default=True, nullable=False),
    Field("save_images", "bool", default=False, nullable=False),
    Field("alwayson_scripts", "dict", {}, nullable=False),
    Field("infotext", "str"),
)


def generation_fields(flavour: Flavour, kind: str, *, task_ids: bool = True) -> tuple[Field, ...]:
    """The request model of ``txt2img`` or ``img2img``; without ``task_ids`` that of versions before 1.8."""
    task_id = _when(task_ids, _TASK_ID)
    if kind == "txt2img":
        denoising = Field("denoising_strength", "float")
        return (*_processing(flavour, denoising), *_hires(flavour), *task_id, _SAMPLER_INDEX, *_TAIL)
    denoising = Field("denoising_strength", "float", 0.75, nullable=False)
    echo = Field("include_init_images", "bool", default=False, nullable=False)
    task = (*task_id, *_when(flavour.forge, Field("hr_distilled_cfg", "float", 3.5)), _SAMPLER_INDEX)
    return (*_processing(flavour, denoising), *_INIT, *task, echo, *_TAIL)


def _share(name: str) -> Field:
    return Field(name, "float", 0, nullable=False, ge=0, le=1)


def extras_fields(flavour: Flavour, *, batch: bool) -> tuple[Field, ...]:
    """The request model of the extras routes, for one image or for several."""
    factor = Field("upscaling_resize", "float", 2, nullable=False, gt=0)
    if flavour.extras_limit:
        factor = Field("upscaling_resize", "float", 2, nullable=False, ge=1, le=8)
    images = Field("imageList", "files", required=True, nullable=False) if batch else Field("image", "str", "")
    return (
        Field("resize_mode", "choice", 0, nullable=False),
        Field("show_extras_results", "bool", default=True),
        *(_share(name) for name in ("gfpgan_visibility", "codeformer_visibility", "codeformer_weight")),
        factor,
        *(Field(name, "int", 512, nullable=False, ge=1) for name in ("upscaling_resize_w", "upscaling_resize_h")),
        Field("upscaling_crop", "bool", default=True),
        *_many("str", "None", "upscaler_1", "upscaler_2"),
        _share("extras_upscaler_2_visibility"),
        Field("upscale_first", "bool", default=False),
        images,
    )


PROGRESS_FIELDS = (
    Field("id_task", "str"),
    Field("id_live_preview", "int", -1),
    Field("live_preview", "bool", default=True),
)
PNG_INFO_FIELDS = (Field("image", "str", required=True, nullable=False),)
INTERROGATE_FIELDS = (Field("image", "str", ""), Field("model", "str", "clip"))
