"""The names that one WebUI offers, as a value that can be stored, and those that one job requires.

A :class:`Catalogue` is read from the WebUI's list routes by :meth:`app.webui.client.Webui.catalogue` and kept as JSON in the
database, so that names can be checked while the WebUI is down. Route names and shapes: ``modules/api/models.py`` of the WebUI.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from app.webui.bounds import is_name
from app.webui.models import Model, Models, stored_model, to_store, told_apart

Kind = Literal["sampler", "scheduler", "model", "style", "hires", "upscaler"]
"""A kind of name. ``hires`` is the upscaling of txt2img (latent modes and upscalers), ``upscaler`` that of img2img."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Scheduler:
    """One noise schedule; the WebUI takes its name and its label alike."""

    name: str
    label: str

    @property
    def spellings(self) -> tuple[str, str]:
        """Both of its names."""
        return self.name, self.label


@dataclass(frozen=True)
class Sampling:
    """The sampler and the scheduler to send to one WebUI; None sends no scheduler."""

    sampler: str
    scheduler: str | None


#: The first version is that of version 0.1.0 of the gateway, whose texts don't say.
_REQUIREMENTS_VERSION = 2


@dataclass(frozen=True)
class Requirements:
    """The names that a WebUI must have to make one job's pictures; None where the job needs none."""

    type: str
    sampler_name: str
    model: str
    scheduler: str | None = None
    #: A style of the WebUI; a preset of the gateway requires nothing under its own name.
    style: str | None = None
    hr_upscaler: str | None = None
    #: The hash that the request put behind the model's name, in lower case.
    digest: str | None = None
    #: How ``model`` is to be read: before version 2 as :meth:`app.webui.models.Models.named_exactly` does.
    version: int = _REQUIREMENTS_VERSION

    def to_json(self) -> str:
        """Return the one text that stands for these requirements: equal ones have equal texts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Requirements:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: for any other text.
        """
        try:
            return cls(**{"version": 1} | json.loads(text))
        except TypeError as error:
            raise ValueError("not requirements") from error


@dataclass(frozen=True)
class Catalogue:
    """The names that one WebUI offers, in its own order, and the traits that change what is sent to it."""

    samplers: tuple[str, ...] = ()
    #: Empty before WebUI 1.9.1, where the schedule is a part of the sampler's name.
    schedulers: tuple[Scheduler, ...] = ()
    upscalers: tuple[str, ...] = ()
    latent_modes: tuple[str, ...] = ()
    #: Prompt styles; the dividers between style files, which fail when used, are left out.
    styles: tuple[str, ...] = ()
    #: Those of them whose texts hold a ``#``, at which a WebUI may cut the prompt that they are put round.
    commented_styles: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()
    #: ``Model.checkpoint`` of the model that its options name; None when they name none of the list.
    loaded_model: str | None = None
    #: The value that its options show for ``enable_prompt_comments`` (it cuts ``#`` to the end of the line out of prompts); None
    #: where they show none, which does not mean that it has no such option.
    prompt_comments: bool | None = None
    #: It serves ``/internal/progress``, so that a task can be followed by its id.
    task_ids: bool = False
    #: It is a Forge, whose hires fix needs two more fields.
    forge: bool = False

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Return what to show people who ask for the names of a kind; schedulers by their labels."""
        return _listed(self)[kind]

    def has(self, kind: Kind, name: str) -> bool:
        """Whether this WebUI takes ``name``; exactly as written, since the WebUI compares so too."""
        if kind == "scheduler":
            return any(name in scheduler.spellings for scheduler in self.schedulers)
        if kind == "sampler":
            return self.sampling(name) is not None
        if kind == "model":
            return self.model(name) is not None
        return name in self.names(kind)

    def serves(self, requirements: Requirements) -> bool:
        """Whether this WebUI has every name that the job needs."""
        upscaling: Kind = "hires" if requirements.type == "txt2img" else "upscaler"
        return (
            self.sampling(requirements.sampler_name, requirements.scheduler) is not None
            and self.model_of(requirements) is not None
            and (requirements.style is None or self.has("style", requirements.style))
            and (requirements.hr_upscaler is None or self.has(upscaling, requirements.hr_upscaler))
        )

    # -- models ------------------------------------------------------------------------------------------------------

    @cached_property
    def _models(self) -> Models:
        return Models(self.models)

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """The shortest unambiguous name of each model; one that this WebUI can't be told to take is left out."""
        names = (self._models.name_of(model) for model in self.models)
        return tuple(name for name in names if name is not None)

    def model(self, text: str) -> Model | None:
        """Return the model that a title, a model_name or a stem means, with or without hash; None when it means none or several."""
        return self._models.one(text)

    def name_of(self, model: Model) -> str | None:
        """Return the shortest name that means this model alone; None where there is none."""
        return self._models.name_of(model)

    def models_meant(self, text: str) -> Sequence[Model]:
        """Return every model that ``text`` may mean."""
        return self._models.meant(text)

    def model_or_guess(self, text: str) -> Model | None:
        """Return the model that ``text`` means, and where it means several the one that version 0.1.0 took, by its model_name.

        For texts that were written for that version: settings, presets and what it stored.
        """
        return self.model(text) or (self._models.named_exactly(text) if self.models_meant(text) else None)

    def model_of(self, requirements: Requirements) -> Model | None:
        """Return the model for a job, or None when this WebUI hasn't the one that it was accepted for."""
        if requirements.version < _REQUIREMENTS_VERSION:
            return self._models.named_exactly(requirements.model)
        model = self.model(requirements.model)
        if model is None or requirements.digest is None:
            return model
        return model.required(requirements.digest) if model.agrees(requirements.digest) else None

    def with_loaded(self, model: Model) -> Catalogue:
        """Return this catalogue with ``model`` as the one that the WebUI has loaded."""
        return replace(self, loaded_model=model.checkpoint)

    # -- samplers ----------------------------------------------------------------------------------------------------

    def sampling(self, sampler: str, scheduler: str | None = None) -> Sampling | None:
        """Return what to send for a sampler and a scheduler, or None where this WebUI can't do that.

        Before version 1.9 of the WebUI the scheduler was the end of the sampler's name. Where schedulers have a list of their own,
        such a name means both; where they haven't, a scheduler that the sampler's name ends in says nothing new.
        """
        if sampler in self.samplers:
            if scheduler is None or self.has("scheduler", scheduler):
                return Sampling(sampler, scheduler)
            return Sampling(sampler, None) if ends_in_scheduler(sampler, scheduler) else None
        bare, named = self._split(sampler)
        if named is None or (scheduler is not None and scheduler not in named.spellings):
            return None
        return Sampling(bare, named.label)

    def scheduler_in(self, sampler: str) -> Scheduler | None:
        """Return the scheduler that the name of a sampler ends in, where the rest names a sampler and the whole none."""
        return self._split(sampler)[1]

    def _split(self, sampler: str) -> tuple[str, Scheduler | None]:
        if sampler not in self.samplers:
            for scheduler in self.schedulers:
                for name in scheduler.spellings:
                    bare = sampler.removesuffix(f" {name}")
                    if bare in self.samplers:
                        return bare, scheduler
        return sampler, None

    def to_json(self) -> str:
        """Return the catalogue as JSON, to be kept in the database."""
        fields = asdict(replace(self, models=())) | {"models": [to_store(model) for model in self.models]}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Catalogue:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: for any other text.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["schedulers"] = tuple(Scheduler(**entry) for entry in fields["schedulers"])
            entries = fields["models"]
            fields["models"] = told_apart(stored_model(entry) for entry in entries)
            if any("names" in entry for entry in entries):
                # Version 0.1.0 kept its own name of the loaded model.
                named = zip(entries, fields["models"], strict=True)
                loaded = (model.checkpoint for entry, model in named if entry["model_name"] == fields["loaded_model"])
                fields["loaded_model"] = next(loaded, None)
            for name in ("samplers", "upscalers", "latent_modes", "styles", "commented_styles"):
                fields[name] = tuple(fields.get(name, ()))
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise ValueError("not a catalogue") from error


def _listed(catalogue: Catalogue) -> dict[Kind, tuple[str, ...]]:
    return {
        "sampler": catalogue.samplers,
        "scheduler": tuple(scheduler.label for scheduler in catalogue.schedulers),
        "model": catalogue.model_names,
        "style": catalogue.styles,
        "hires": catalogue.latent_modes + catalogue.upscalers,
        "upscaler": catalogue.upscalers,
    }


def ends_in_scheduler(sampler: str, scheduler: str) -> bool:
    """Whether a sampler's name ends in that of a scheduler, given by its name (``sgm_uniform``) or label (``SGM Uniform``)."""
    if scheduler.islower():
        sampler, scheduler = sampler.lower(), scheduler.replace("_", " ")
    return sampler.endswith(f" {scheduler}")


def union(lists: Iterable[Sequence[str]]) -> list[str]:
    """Return every name once, in the order of first sight."""
    return list(dict.fromkeys(name for names in lists for name in names))


def read_names(entries: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Read the names of a list route; an entry without a usable name is left out."""
    return tuple(union([entry["name"]] for entry in entries if is_name(entry.get("name"))))


def read_styles(entries: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Read ``/sdapi/v1/prompt-styles`` without its dividers, whose prompts are null."""
    return read_names(entry for entry in entries if entry.get("prompt") is not None)


def read_commented_styles(entries: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Read which styles of ``/sdapi/v1/prompt-styles`` hold a ``#`` in one of their texts."""
    return read_names(entry for entry in entries if "#" in f"{entry.get('prompt')}{entry.get('negative_prompt')}")


def read_schedulers(entries: Iterable[Mapping[str, Any]]) -> tuple[Scheduler, ...]:
    """Read ``/sdapi/v1/schedulers``; one without a label is shown by its name."""
    return tuple(
        Scheduler(entry["name"], entry["label"] if is_name(entry.get("label")) else entry["name"])
        for entry in entries
        if is_name(entry.get("name"))
    )
