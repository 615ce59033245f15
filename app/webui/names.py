"""The names in a request: checked against what the WebUIs offer, and turned into what the job will really use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.webui.catalogue import NO_UPSCALER, Catalogue, Demand, Kind, union
from app.webui.errors import NoDefaultModel, UnknownNames
from app.webui.presets import Preset, Presets

#: Used where neither the request nor its preset names a sampler; the default of the WebUI's API.
DEFAULT_SAMPLER = "Euler"
HIRES_STRENGTH = 0.7
IMG2IMG_STRENGTH = 0.75
HR_SCALE = 2
RESIZE_MODE = "stretch"

#: The documented fields that a job keeps as they were posted; the reference image is kept apart, as a file.
DOCUMENTED = (
    "id", "prompt", "negative_prompt", "width", "height", "seed", "steps", "hr_upscaler", "cfg_scale", "style", "batch_size",
)  # fmt: skip

_FIELDS: dict[Kind, str] = {
    "sampler": "sampler_name",
    "scheduler": "scheduler",
    "model": "model",
    "style": "style",
    "hires": "hr_upscaler",
    "upscaler": "hr_upscaler",
}
_WORDS: dict[Kind, str] = {"hires": "upscaler or latent mode"}
_LONGEST_SHOWN = 80


@dataclass(frozen=True)
class Resolved:
    """A request whose names are valid: the job's ``args`` without the reference image, and what a WebUI must have for it."""

    args: dict[str, Any]
    demand: Demand


@dataclass(frozen=True)
class _Want:
    """A name that the job would use, the field to blame for it, and why it stands there when nobody typed it."""

    field: str
    kind: Kind
    name: str
    origin: str = ""

    def unknown(self) -> str:
        shown = self.name if len(self.name) <= _LONGEST_SHOWN else self.name[:_LONGEST_SHOWN] + "…"
        return f"No WebUI has the {_WORDS.get(self.kind, self.kind)} {shown!r}{self.origin}."


def resolve(
    type_: str,
    fields: Mapping[str, Any],
    catalogues: Sequence[Catalogue],
    presets: Presets,
    default_model: str | None,
) -> Resolved:
    """Check every name of a request against the WebUIs, and fill in what it leaves open.

    :param type_: ``txt2img`` or ``img2img``.
    :param fields: the request as its schema passed it, with a fixed seed; optional fields may be absent.
    :param catalogues: of the configured WebUIs, at least one.
    :param default_model: what :func:`choose_default_model` found.
    :raises UnknownNames: with every unknown name at once, or for names that no single WebUI has together.
    :raises NoDefaultModel: when nothing names a model.
    """
    wants = _wants(type_, fields, catalogues, presets, default_model)
    unknown = [want for want in wants if not _somewhere(want, catalogues)]
    if unknown:
        raise UnknownNames(
            _messages([(want.field, want.unknown()) for want in unknown]),
            {want.field: _accepted(want, catalogues, presets) for want in unknown},
        )
    chosen = {_FIELDS[want.kind]: want.name for want in wants}
    if "model" not in chosen:
        raise NoDefaultModel
    demand = Demand(type=type_, **chosen)
    if not any(catalogue.serves(demand) for catalogue in catalogues):
        raise _not_together(wants, catalogues)
    return Resolved(_effective(type_, fields, demand), demand)


def _wants(
    type_: str,
    fields: Mapping[str, Any],
    catalogues: Sequence[Catalogue],
    presets: Presets,
    default_model: str | None,
) -> list[_Want]:
    style = fields["style"]
    preset = presets.get(style)
    wants = [_sampler(fields, preset), _model(fields, preset, catalogues, default_model)]
    if "scheduler" in fields:
        wants.append(_Want("scheduler", "scheduler", fields["scheduler"]))
    if style and preset is None:
        wants.append(_Want("style", "style", style))
    if fields["hr_upscaler"] not in NO_UPSCALER:
        wants.append(_Want("hr_upscaler", "hires" if type_ == "txt2img" else "upscaler", fields["hr_upscaler"]))
    return [want for want in wants if want is not None]


def _sampler(fields: Mapping[str, Any], preset: Preset | None) -> _Want:
    if "sampler_name" in fields:
        return _Want("sampler_name", "sampler", fields["sampler_name"])
    if preset is not None and preset.sampler is not None:
        return _Want("style", "sampler", preset.sampler, ", which this style uses")
    return _Want("sampler_name", "sampler", DEFAULT_SAMPLER, ", which is used where none is named")


def _model(
    fields: Mapping[str, Any], preset: Preset | None, catalogues: Sequence[Catalogue], default_model: str | None
) -> _Want | None:
    if "model" in fields:
        return _Want("model", "model", _model_name(fields["model"], catalogues) or fields["model"])
    if preset is not None and preset.model is not None:
        wanted = _model_name(preset.model, catalogues) or preset.model
        return _Want("style", "model", wanted, ", which this style uses")
    default = _model_name(default_model, catalogues) if default_model else None
    return None if default is None else _Want("model", "model", default, ", which is used where none is named")


def _model_name(text: str, catalogues: Sequence[Catalogue]) -> str | None:
    """Return the model_name that a title or model_name stands for in the first WebUI that has it."""
    found = (catalogue.model(text) for catalogue in catalogues)
    return next((model.model_name for model in found if model is not None), None)


def _somewhere(want: _Want, catalogues: Sequence[Catalogue]) -> bool:
    return any(catalogue.has(want.kind, want.name) for catalogue in catalogues)


def _messages(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    messages: dict[str, list[str]] = {}
    for field, message in pairs:
        messages.setdefault(field, []).append(message)
    return messages


def _accepted(want: _Want, catalogues: Sequence[Catalogue], presets: Presets) -> list[str]:
    if want.field == "style":
        return _styles(catalogues, presets)
    return union(catalogue.names(want.kind) for catalogue in catalogues)


def _styles(catalogues: Sequence[Catalogue], presets: Presets) -> list[str]:
    """Presets first, but for those whose model or sampler no WebUI has: they would be refused."""
    usable = [name for name, preset in presets.entries.items() if _usable(preset, catalogues)]
    hidden = presets.entries.keys()
    return union([usable, *([name for name in one.styles if name not in hidden] for one in catalogues)])


def _usable(preset: Preset, catalogues: Sequence[Catalogue]) -> bool:
    has_model = preset.model is None or _model_name(preset.model, catalogues) is not None
    return has_model and (
        preset.sampler is None or any(catalogue.has("sampler", preset.sampler) for catalogue in catalogues)
    )


def _not_together(wants: Sequence[_Want], catalogues: Sequence[Catalogue]) -> UnknownNames:
    """Blame the names that not every WebUI has; accepted is what the WebUIs with all the other names offer instead."""
    involved = [want for want in wants if not all(catalogue.has(want.kind, want.name) for catalogue in catalogues)]
    message = "No single WebUI has this together with the other names of the request."
    accepted = {
        want.field: union(
            catalogue.names(want.kind)
            for catalogue in catalogues
            if all(catalogue.has(other.kind, other.name) for other in wants if other is not want)
        )
        for want in involved
        if want.field == _FIELDS[want.kind]
    }
    return UnknownNames(
        {want.field: [message] for want in involved},
        accepted,
        "Each of these names is known, but no single WebUI has all of them.",
    )


def _effective(
    type_: str,
    fields: Mapping[str, Any],
    demand: Demand,
) -> dict[str, Any]:
    """Build ``args``: the documented fields as posted, and the optional ones that make a difference for this job."""
    args = {name: fields[name] for name in DOCUMENTED}
    args |= {"sampler_name": demand.sampler_name, "model": demand.model}
    if demand.scheduler is not None:
        args["scheduler"] = demand.scheduler
    if type_ == "img2img" or demand.hr_upscaler is not None:
        strength = IMG2IMG_STRENGTH if type_ == "img2img" else HIRES_STRENGTH
        args["denoising_strength"] = fields.get("denoising_strength", strength)
    if demand.hr_upscaler is not None:
        args["hr_scale"] = fields.get("hr_scale", HR_SCALE)
    if type_ == "img2img":
        args["resize_mode"] = fields.get("resize_mode", RESIZE_MODE)
    return args


def merge_options(
    catalogues: Sequence[Catalogue], presets: Presets, default_model: str | None
) -> dict[str, list[str] | str | None]:
    """Return the body of ``GET /options``: what any of the WebUIs offers, each name once."""
    return {
        "samplers": union(catalogue.samplers for catalogue in catalogues),
        "schedulers": union(catalogue.names("scheduler") for catalogue in catalogues),
        "upscalers": union(catalogue.upscalers for catalogue in catalogues),
        "latent_modes": union(catalogue.latent_modes for catalogue in catalogues),
        "styles": _styles(catalogues, presets),
        "models": union(catalogue.names("model") for catalogue in catalogues),
        "default_model": default_model,
    }


def choose_default_model(configured: str, stored: str | None, catalogues: Sequence[Catalogue]) -> str | None:
    """Return the model_name of requests that name none, or None when there is none to give.

    :param configured: the text of ``SDG_DEFAULT_MODEL``, a title or a model_name; nothing else is taken in its place.
    :param stored: what was chosen before; kept as long as a WebUI has it, so that the default does not wander with
        whatever a WebUI loaded last.
    """
    if configured:
        return _model_name(configured, catalogues)
    kept = _model_name(stored, catalogues) if stored else None
    return kept or next((catalogue.loaded_model for catalogue in catalogues if catalogue.loaded_model), None)
