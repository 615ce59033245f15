"""What one WebUI offers by name, as a value that can be stored, and what one job demands of a WebUI.

A :class:`Catalogue` is read from the WebUI's list routes by :meth:`app.webui.client.Webui.catalogue` and kept as JSON in the
database, so that names can be checked while the WebUI is down. Route names and shapes: ``modules/api/models.py`` of the WebUI.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Kind = Literal["sampler", "scheduler", "model", "style", "hires", "upscaler"]
"""What a name names. ``hires`` is the upscaling of txt2img (latent modes and upscalers), ``upscaler`` that of img2img."""

KINDS: tuple[Kind, ...] = get_args(Kind)
#: Posted as ``hr_upscaler``, these mean no upscaling; the second is the WebUI's own word for it.
NO_UPSCALER = ("", "None")

_HASH_IN_TITLE = re.compile(r"\s*\[[0-9a-fA-F]+\]\Z")


@dataclass(frozen=True)
class Model:
    """One checkpoint of a WebUI."""

    #: As the WebUI's list shows it: the file's name below the models folder, with ``[hash]`` once that is known.
    title: str
    #: What requests, ``args`` and ``/options`` call it: the WebUI's model_name, or the title without its hash where two files
    #: of this WebUI share a model_name (``x.ckpt`` beside ``x.safetensors``).
    model_name: str
    #: What ``override_settings.sd_model_checkpoint`` has to say so that the WebUI takes this file and no other.
    checkpoint: str
    #: What ``info.sd_model_name`` may show after a generation. model_name joins sub folders with ``_``, while the info shows
    #: the stem of the bare file name (``CheckpointInfo.name_for_extra``, ``modules/sd_models.py``).
    names: tuple[str, ...]
    #: The short hash to compare as well, where another model of this WebUI shows one of the same names; else None.
    digest: str | None = None

    @property
    def bare_title(self) -> str:
        """The title without its hash."""
        return _bare_title(self.title)

    def fits(self, shown_name: object, shown_digest: object) -> bool:
        """Whether a result whose info shows this name and short hash was made by this model."""
        same_digest = self.digest is None or not shown_digest or shown_digest == self.digest
        return shown_name in self.names and same_digest

    def called(self, text: str) -> bool:
        """Whether a person who writes ``text`` means this model; a title counts with and without its hash."""
        return text in (self.model_name, self.title, _bare_title(self.title))


@dataclass(frozen=True)
class Scheduler:
    """One noise schedule; the WebUI takes its name and its label alike."""

    name: str
    label: str


@dataclass(frozen=True)
class Demand:
    """The names that a WebUI must have to make one job's pictures; None where the job needs none."""

    type: str
    sampler_name: str
    model: str
    scheduler: str | None = None
    #: A style of the WebUI; a preset of the gateway demands nothing under its own name.
    style: str | None = None
    hr_upscaler: str | None = None

    def wants(self) -> tuple[tuple[Kind, str], ...]:
        """Return the demanded names with their kinds."""
        upscaling: Kind = "hires" if self.type == "txt2img" else "upscaler"
        pairs: tuple[tuple[Kind, str | None], ...] = (
            ("sampler", self.sampler_name),
            ("model", self.model),
            ("scheduler", self.scheduler),
            ("style", self.style),
            (upscaling, self.hr_upscaler),
        )
        return tuple((kind, name) for kind, name in pairs if name is not None)

    def to_json(self) -> str:
        """Return the one text that stands for this demand: equal demands have equal texts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Demand:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: for any other text.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError("not a demand") from error


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
    models: tuple[Model, ...] = ()
    #: model_name of the checkpoint that its options name; None when it names none of the list.
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
            return any(name in (scheduler.name, scheduler.label) for scheduler in self.schedulers)
        return name in self.names(kind)

    def serves(self, demand: Demand) -> bool:
        """Whether this WebUI has every name that the job needs."""
        return all(self.has(kind, name) for kind, name in demand.wants())

    def model(self, text: str) -> Model | None:
        """Return the model that a title or model_name means, or None; an exact model_name goes first."""
        exact = (model for model in self.models if model.model_name == text)
        return next(exact, None) or next((model for model in self.models if model.called(text)), None)

    def with_loaded(self, model: Model) -> Catalogue:
        """Return this catalogue with ``model`` as the one that the WebUI has loaded."""
        return replace(self, loaded_model=model.model_name)

    def to_json(self) -> str:
        """Return the catalogue as JSON, to be kept in the database."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Catalogue:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: for any other text.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["schedulers"] = tuple(Scheduler(**entry) for entry in fields["schedulers"])
            fields["models"] = tuple(Model(**entry | {"names": tuple(entry["names"])}) for entry in fields["models"])
            for name in ("samplers", "upscalers", "latent_modes", "styles"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise ValueError("not a catalogue") from error


def _listed(catalogue: Catalogue) -> dict[Kind, tuple[str, ...]]:
    return {
        "sampler": catalogue.samplers,
        "scheduler": tuple(scheduler.label for scheduler in catalogue.schedulers),
        "model": tuple(model.model_name for model in catalogue.models),
        "style": catalogue.styles,
        "hires": catalogue.latent_modes + catalogue.upscalers,
        "upscaler": catalogue.upscalers,
    }


def union(lists: Iterable[Sequence[str]]) -> list[str]:
    """Return every name once, in the order of first sight."""
    return list(dict.fromkeys(name for names in lists for name in names))


def read_names(entries: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Read the names of a list route; an entry without a text for a name is left out."""
    return tuple(union([entry["name"]] for entry in entries if isinstance(entry.get("name"), str)))


def read_styles(entries: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Read ``/sdapi/v1/prompt-styles`` without its dividers, whose prompts are null."""
    return read_names(entry for entry in entries if entry.get("prompt") is not None)


def read_schedulers(entries: Iterable[Mapping[str, Any]]) -> tuple[Scheduler, ...]:
    """Read ``/sdapi/v1/schedulers``; one without a label is shown by its name."""
    return tuple(
        Scheduler(entry["name"], entry["label"] if isinstance(entry.get("label"), str) else entry["name"])
        for entry in entries
        if isinstance(entry.get("name"), str)
    )


def read_models(entries: Iterable[Mapping[str, Any]]) -> tuple[Model, ...]:
    """Read ``/sdapi/v1/sd-models``, telling apart the files that share a name."""
    usable = [entry for entry in entries if isinstance(entry.get("title"), str) and entry.get("model_name")]
    sharing = Counter(str(entry["model_name"]) for entry in usable)
    showing = Counter(name for entry in usable for name in _shown_names(entry))
    return tuple(
        _model(
            entry,
            shared=sharing[str(entry["model_name"])] > 1,
            alike=any(showing[name] > 1 for name in _shown_names(entry)),
        )
        for entry in usable
    )


def _model(entry: Mapping[str, Any], *, shared: bool, alike: bool) -> Model:
    title, model_name, digest = str(entry["title"]), str(entry["model_name"]), entry.get("hash")
    return Model(
        title=title,
        model_name=_bare_title(title) if shared else model_name,
        checkpoint=title if shared else model_name,
        names=_shown_names(entry),
        digest=digest if alike and isinstance(digest, str) else None,
    )


def _shown_names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    filename = entry.get("filename")
    file = filename if isinstance(filename, str) and filename else _bare_title(str(entry["title"]))
    # The WebUI may run on Windows, whatever the gateway runs on.
    base = re.split(r"[\\/]", file)[-1]
    stem = base.rpartition(".")[0] or base
    return tuple(union([[str(entry["model_name"]), stem]]))


def _bare_title(title: str) -> str:
    return _HASH_IN_TITLE.sub("", title)
