"""The names in a request: checked against what the WebUIs offer, and turned into what the job will really use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.parameters import DEFAULT_SAMPLER, PARAMETERS, Parameters, Type, effective, upscales
from app.webui.catalogue import Catalogue, Kind, Requirements, ends_in_scheduler, union
from app.webui.errors import NoDefaultModel, UnknownNames
from app.webui.models import Model
from app.webui.presets import Preset, Presets

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
    requirements: Requirements


@dataclass(frozen=True)
class _Want:
    """A name that the job would use, the field to blame for it, and why it stands there when nobody typed it."""

    field: str
    kind: Kind
    name: str
    origin: str = ""
    #: The sampler that a scheduler goes with.
    sampler: str = ""
    #: The hash that was written behind the name of a model.
    digest: str | None = None

    def met(self, catalogue: Catalogue) -> bool:
        """Whether a WebUI has it."""
        if (
            self.kind == "scheduler"
            and self.sampler in catalogue.samplers
            and ends_in_scheduler(self.sampler, self.name)
        ):
            return True
        if self.kind == "model" and self.digest is not None:
            model = catalogue.model(self.name)
            return model is not None and model.agrees(self.digest)
        return catalogue.has(self.kind, self.name)

    def unknown(self, catalogues: Sequence[Catalogue]) -> str:
        if self.kind == "model" and any(catalogue.models_meant(self.name) for catalogue in catalogues):
            return f"The model {self.shown} is the name of several files{self.origin}; write which one, as listed in accepted."
        return f"No WebUI has the {_WORDS.get(self.kind, self.kind)} {self.shown}{self.origin}."

    @property
    def shown(self) -> str:
        """The name in quotation marks, cut to what fits into a message."""
        return repr(self.name if len(self.name) <= _LONGEST_SHOWN else self.name[:_LONGEST_SHOWN] + "…")


def resolve(
    type_: Type,
    fields: Mapping[str, Any],
    catalogues: Sequence[Catalogue],
    presets: Presets,
    default_model: str | None,
    parameters: Parameters = PARAMETERS,
) -> Resolved:
    """Check every name of a request against the WebUIs, and fill in what it leaves open.

    :param fields: the request as its schema passed it, with a fixed seed; optional fields may be absent.
    :param catalogues: of the configured WebUIs, at least one.
    :param default_model: what :func:`choose_default_model` found.
    :param parameters: the table that says which fields ``args`` keep, and their defaults.
    :raises UnknownNames: with every unknown name at once, or for names that no single WebUI has together.
    :raises NoDefaultModel: when nothing names a model.
    """
    wants = _wants(type_, fields, catalogues, presets, default_model)
    unknown = [want for want in wants if not any(map(want.met, catalogues))]
    if unknown:
        raise UnknownNames(
            _messages([(want.field, want.unknown(catalogues)) for want in unknown]),
            {want.field: _accepted(want, catalogues, presets) for want in unknown},
        )
    chosen: dict[str, Any] = {_FIELDS[want.kind]: want.name for want in wants}
    if "model" not in chosen:
        raise NoDefaultModel
    digest = next((want.digest for want in wants if want.kind == "model"), None)
    requirements = Requirements(type=type_, **chosen, digest=digest)
    serving = [catalogue for catalogue in catalogues if catalogue.serves(requirements)]
    if not serving:
        raise _two_schedulers(wants, catalogues) or _not_together(wants, catalogues)
    requirements = _with_scheduler(requirements, serving)
    names = {
        "sampler_name": requirements.sampler_name,
        "model": requirements.model,
        "scheduler": requirements.scheduler,
    }
    return Resolved(effective(parameters, type_, {**fields, **names}), requirements)


def _with_scheduler(requirements: Requirements, serving: Sequence[Catalogue]) -> Requirements:
    """Return the requirements with the scheduler that its sampler's name ends in, where one of the WebUIs takes it apart."""
    if requirements.scheduler is not None:
        return requirements
    named = (catalogue.scheduler_in(requirements.sampler_name) for catalogue in serving)
    label = next((scheduler.label for scheduler in named if scheduler is not None), None)
    return replace(requirements, scheduler=label)


def _two_schedulers(wants: Sequence[_Want], catalogues: Sequence[Catalogue]) -> UnknownNames | None:
    """Blame a scheduler beside a sampler whose name ends in that of another one; None where that is not what is wrong."""
    wanted = next((want for want in wants if want.kind == "scheduler"), None)
    if wanted is None:
        return None
    sampler = next(want for want in wants if want.kind == "sampler")
    named = [scheduler for scheduler in (one.scheduler_in(sampler.name) for one in catalogues) if scheduler is not None]
    if not named or any(wanted.name in scheduler.spellings for scheduler in named):
        return None
    message = f"The name of the sampler {sampler.shown}{sampler.origin} already names a scheduler, {named[0].label!r}."
    return UnknownNames(
        {"scheduler": [message]},
        {"scheduler": union([[scheduler.label for scheduler in named]])},
        "The sampler's name already names another scheduler; leave `scheduler` out, or name the sampler alone.",
    )


def _wants(
    type_: str,
    fields: Mapping[str, Any],
    catalogues: Sequence[Catalogue],
    presets: Presets,
    default_model: str | None,
) -> list[_Want]:
    style = fields["style"]
    preset = presets.get(style)
    sampler = _sampler(fields, preset)
    wants = [sampler, _model(fields, preset, catalogues, default_model)]
    if "scheduler" in fields:
        wants.append(_Want("scheduler", "scheduler", fields["scheduler"], sampler=sampler.name))
    if style and preset is None:
        wants.append(_Want("style", "style", style))
    if upscales(fields):
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
        return _model_want("model", fields["model"], "", catalogues, Catalogue.model)
    if preset is not None and preset.model is not None:
        return _model_want("style", preset.model, ", which this style uses", catalogues, Catalogue.model_or_guess)
    if default_model is None or _model_name(default_model, catalogues, Catalogue.model) is None:
        return None
    return _model_want("model", default_model, ", which is used where none is named", catalogues, Catalogue.model)


_Meaning = Callable[[Catalogue, str], Model | None]


def _model_want(field: str, text: str, origin: str, catalogues: Sequence[Catalogue], meaning: _Meaning) -> _Want:
    name = _model_name(text, catalogues, meaning)
    if name is None:
        return _Want(field, "model", text, origin)
    digests = (model.digest_in(text) for model in _models(text, catalogues, meaning))
    return _Want(field, "model", name, origin, digest=next(digests))


def _models(text: str, catalogues: Sequence[Catalogue], meaning: _Meaning) -> Iterator[Model]:
    """Yield the model that a text means in each WebUI where it means one."""
    return (model for model in (meaning(catalogue, text) for catalogue in catalogues) if model is not None)


def _model_name(text: str, catalogues: Sequence[Catalogue], meaning: _Meaning) -> str | None:
    """Return the shortest name that in every WebUI means the same model as ``text`` there, and none where that means none.

    None when ``text`` means no model anywhere. Where no name means the same in all, the one of the first WebUI that has the model.
    """
    meant = [(catalogue, meaning(catalogue, text)) for catalogue in catalogues]
    names = union(model.spellings for _, model in meant if model is not None)
    for name in [*sorted(names, key=len), text]:
        if names and all(catalogue.model(name) == model for catalogue, model in meant):
            return name
    own = (catalogue.name_of(model) for catalogue, model in meant if model is not None)
    return next((name for name in own if name is not None), None)


def model_names(catalogues: Sequence[Catalogue]) -> list[str]:
    """Return the names of all models, as ``args`` would carry them for a request that names the model by its title."""
    if len(catalogues) == 1:
        return list(catalogues[0].model_names)
    return _names_of([model for catalogue in catalogues for model in catalogue.models], catalogues)


def _names_of(models: Sequence[Model], catalogues: Sequence[Catalogue]) -> list[str]:
    names = (_model_name(model.checkpoint, catalogues, Catalogue.model) for model in models)
    return union([[name for name in names if name is not None]])


def _messages(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    messages: dict[str, list[str]] = {}
    for field, message in pairs:
        messages.setdefault(field, []).append(message)
    return messages


def _accepted(want: _Want, catalogues: Sequence[Catalogue], presets: Presets) -> list[str]:
    if want.field == "style":
        return _styles(catalogues, presets)
    if want.kind == "model":
        ambiguous = [model for catalogue in catalogues for model in catalogue.models_meant(want.name)]
        return union([_names_of(ambiguous, catalogues), model_names(catalogues)])
    return union(catalogue.names(want.kind) for catalogue in catalogues)


def _styles(catalogues: Sequence[Catalogue], presets: Presets) -> list[str]:
    """Presets first, but for those whose model or sampler no WebUI has: they would be refused."""
    usable = [name for name, preset in presets.entries.items() if _usable(preset, catalogues)]
    hidden = presets.entries.keys()
    return union([usable, *([name for name in one.styles if name not in hidden] for one in catalogues)])


def _usable(preset: Preset, catalogues: Sequence[Catalogue]) -> bool:
    has_model = preset.model is None or any(_models(preset.model, catalogues, Catalogue.model_or_guess))
    return has_model and (
        preset.sampler is None or any(catalogue.has("sampler", preset.sampler) for catalogue in catalogues)
    )


def _not_together(wants: Sequence[_Want], catalogues: Sequence[Catalogue]) -> UnknownNames:
    """Blame the names that not every WebUI has; accepted is what the WebUIs with all the other names offer instead."""
    involved = [want for want in wants if not all(map(want.met, catalogues))]
    message = "No single WebUI has this together with the other names of the request."
    accepted = {
        want.field: union(
            catalogue.names(want.kind)
            for catalogue in catalogues
            if all(other.met(catalogue) for other in wants if other is not want)
        )
        for want in involved
        if want.field == _FIELDS[want.kind]
    }
    return UnknownNames(
        {want.field: [message] for want in involved},
        accepted,
        "Each of these names is known, but no single WebUI has all of them.",
    )


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
        "models": model_names(catalogues),
        "default_model": default_model,
    }


def choose_default_model(configured: str, stored: str | None, catalogues: Sequence[Catalogue]) -> str | None:
    """Return the name of the model of requests that name none, or None when there is none to give.

    :param configured: the text of ``SDG_DEFAULT_MODEL``, whatever ``model`` takes; nothing else is taken in its place.
    :param stored: what was chosen before; kept as long as a WebUI has it, so that the default does not wander with
        whatever a WebUI loaded last.
    """
    if configured:
        return _model_name(configured, catalogues, Catalogue.model_or_guess)
    kept = _model_name(stored, catalogues, Catalogue.model_or_guess) if stored else None
    loaded = (catalogue.loaded_model for catalogue in catalogues if catalogue.loaded_model)
    names = (_model_name(checkpoint, catalogues, Catalogue.model) for checkpoint in loaded)
    return kept or next((name for name in names if name is not None), None)


def guesses(texts: Sequence[str], catalogues: Mapping[str, Catalogue]) -> list[tuple[str, str, str]]:
    """Return (text, WebUI, title of the file taken) for texts that mean several models of a WebUI, of which one is taken.

    :param texts: names of models that were not written in a request: see :meth:`Catalogue.model_or_guess`.
    """
    return [
        (text, key, guessed.title)
        for text in texts
        for key, catalogue in catalogues.items()
        if catalogue.model(text) is None and (guessed := catalogue.model_or_guess(text)) is not None
    ]
