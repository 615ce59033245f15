"""The bodies of the two POSTs and the queries of the lists: strict schemas whose limits come from the settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validates_schema

from app.api.ports import JobType
from app.api.schemas.fields import (
    DEFAULT_PAGE,
    LARGEST_PAGE,
    LARGEST_SEED,
    SEED_PATTERN,
    Choice,
    Cursor,
    JsonInteger,
    JsonNumber,
    OneImage,
    PageLimit,
    Seed,
    Text,
    UserId,
)
from app.api.schemas.responses import STATUSES
from app.config import Config

SMALLEST_SIDE = 64
SIDE_STEP = 8
DEFAULT_HR_SCALE = 2
RESIZE_MODES = ("stretch", "crop", "fill")
LONGEST_NAME = 255
#: Faults that one answer lists; a body may hold thousands of unknown fields.
_MOST_FAULTS = 20


def needs_upscaling(hr_upscaler: str) -> bool:
    """Whether a posted ``hr_upscaler`` asks for upscaling at all."""
    return hr_upscaler not in ("", "None")


class PictureRequest(Schema):
    """What txt2img and img2img share: the rules that join several fields, and unknown fields refused by name."""

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
        if data["seed"] not in ("", "-1") and int(data["seed"]) + data["batch_size"] - 1 > LARGEST_SEED:
            raise ValidationError(
                {"seed": [f"The seed of the last image of the batch must not exceed {LARGEST_SEED}."]}
            )

    @validates_schema(skip_on_field_errors=True)
    def check_pixels(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Bound what the WebUI must hold in memory; the message stands at the field that broke the bound."""
        picture = data["width"] * data["height"]
        scale = data.get("hr_scale", DEFAULT_HR_SCALE) if needs_upscaling(data["hr_upscaler"]) else 1
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


def picture_request(kind: JobType, config: Config) -> Schema:
    """The schema of ``POST /txt2img`` or ``POST /img2img`` under these settings."""
    own = _img2img_fields() if kind == "img2img" else {}
    generated = PictureRequest.from_dict(
        {**_documented_fields(config), **own, **_optional_fields(kind)}, name=f"{kind.capitalize()}Request"
    )
    schema = cast("type[PictureRequest]", generated)()
    schema.max_output_pixels = config.max_output_pixels
    return schema


def _about(title: str, description: str, **metadata: Any) -> dict[str, Any]:
    return {"required": True, "metadata": {"title": title, "description": description, **metadata}}


def _documented_fields(config: Config) -> dict[str, fields.Field[Any]]:
    side = {"lowest": SMALLEST_SIDE, "highest": config.max_side // SIDE_STEP * SIDE_STEP, "step": SIDE_STEP}
    seed = {"oneOf": [{"type": "string", "pattern": SEED_PATTERN}, {"type": "integer", "minimum": -1}]}
    return {
        "id": UserId(**_about("User id · 用户id", "Printable characters without slash and backslash; not . or ..")),
        "prompt": Text(longest=config.max_prompt_chars, **_about("Prompt · 正向提示词", "What to see.")),
        "negative_prompt": Text(
            longest=config.max_prompt_chars, **_about("Negative prompt · 反向提示词", "What not to see.")
        ),
        "width": JsonInteger(**side, **_about("Width · 宽", "Pixels.")),
        "height": JsonInteger(**side, **_about("Height · 高", "Pixels.")),
        "seed": Seed(
            **_about(
                "Seed · 种子", f'"" or "-1": a random one; else 0 to {LARGEST_SEED}, as a string or an integer.', **seed
            )
        ),
        "steps": JsonInteger(lowest=1, highest=config.max_steps, **_about("Steps · 采样步数", "Sampling steps.")),
        "hr_upscaler": Text(
            longest=LONGEST_NAME,
            **_about(
                "Upscaler · 高清化采样器",
                '"" or "None": no upscaling. txt2img: the hires fix, an upscaler or a latent mode of GET /options; '
                "img2img: the results are enlarged, upscalers only.",
            ),
        ),
        "cfg_scale": JsonNumber(
            lowest=0, highest=100, **_about("CFG scale · 提示词关联程度", "How closely the prompt is followed.")
        ),
        "style": Text(longest=LONGEST_NAME, **_about("Style · 风格", '"": none; else a style of GET /options.')),
        "batch_size": JsonInteger(
            lowest=1, highest=config.max_batch_size, **_about("Batch size · 作图数量", "How many images.")
        ),
    }


def _img2img_fields() -> dict[str, fields.Field[Any]]:
    text = {"type": "string", "minLength": 1}
    choice = {"oneOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": 1}]}
    about = "One PNG, JPEG or WebP in base64, plain or as a data URI, or a list of one; a URL is never fetched."
    return {"init_images": OneImage(**_about("Reference image · 参考图", about, **choice))}


def _optional_fields(kind: JobType) -> dict[str, fields.Field[Any]]:
    def about(description: str) -> dict[str, Any]:
        return {"metadata": {"description": description}}

    default = "0.75" if kind == "img2img" else "0.7, for the hires fix"
    name: dict[str, Any] = {"shortest": 1, "longest": LONGEST_NAME}
    found: dict[str, fields.Field[Any]] = {
        "sampler_name": Text(**name, **about("A sampler of GET /options; default: the preset's, else Euler.")),
        "scheduler": Text(**name, **about("A scheduler of GET /options; default: the WebUI's own.")),
        "model": Text(**name, **about("A model of GET /options; default: the preset's, else default_model.")),
        "denoising_strength": JsonNumber(lowest=0, highest=1, **about(f"Default {default}.")),
        "hr_scale": JsonNumber(lowest=1, highest=4, **about(f"Factor of the upscaling; default {DEFAULT_HR_SCALE}.")),
    }
    if kind == "img2img":
        found["resize_mode"] = Choice(
            RESIZE_MODES, **about("How the reference image is brought to width × height; default stretch.")
        )
    return found


class PageQuery(Schema):
    """The query of a paged list; what it does not know it ignores."""

    class Meta:
        """Unknown parameters are left alone."""

        unknown = EXCLUDE

    limit = PageLimit(
        load_default=DEFAULT_PAGE,
        metadata={"description": "Jobs of a page.", "minimum": 1, "maximum": LARGEST_PAGE},
    )
    before = Cursor(metadata={"description": "The cursor of a next URL."})


class JobsQuery(PageQuery):
    """The query of a user's jobs."""

    status = Choice(STATUSES, metadata={"description": "Only jobs in this state."})
