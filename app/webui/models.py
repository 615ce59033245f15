"""The checkpoint files of one WebUI, and which of them a text means.

A WebUI knows a file by several names (``CheckpointInfo`` in its ``modules/sd_models.py``): the *title* is the path below the
models folder, followed by ``[hash]`` once that is known; *model_name* is that path without extension, its slashes replaced by
``_``; the *stem* is the bare file name without extension. Two files may share a stem or a model_name, and the WebUI then takes
the one that it registered last. So a text that means two files means none here, and what is sent is always the title.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from app.webui.bounds import is_name

#: The field of :class:`Model` that is not stored.
_RIVALS = "rivals"
_DIGEST = re.compile(r"[0-9a-fA-F]{1,128}")
_HASH_AT_END = re.compile(r"\s*\[([0-9a-fA-F]+)\]\Z")


@dataclass(frozen=True)
class Model:
    """One checkpoint file of a WebUI, under all its names."""

    #: As the WebUI's list shows it.
    title: str
    #: The title without its hash.
    bare_title: str
    model_name: str
    stem: str
    #: The SHA-256 or its beginning, in lower case; None until the WebUI has calculated it.
    digest: str | None = None
    #: What ``override_settings.sd_model_checkpoint`` has to say so that the WebUI takes this file and no other.
    checkpoint: str = ""
    #: Whether a result has to show the digest as well, because its name alone does not tell which file made it.
    by_digest: bool = False
    #: Where the digest is not known: the known ones of the files that a result shows by the same model_name, and by the same stem.
    rivals: tuple[frozenset[str], ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name of this file, the shortest first."""
        return tuple(sorted((self.stem, self.model_name, self.bare_title, self.title), key=len))

    def agrees(self, digest: str) -> bool:
        """Whether this may be the file with that SHA-256, or beginning of one; an unknown digest agrees with every other."""
        return self.digest is None or _same_digest(self.digest, digest)

    def digest_in(self, text: str) -> str | None:
        """Return the hash that ``text`` gives behind one of this model's names, in lower case; None when it gives none."""
        return None if text in (self.stem, self.model_name, self.bare_title) else split_digest(text)[1]

    def required(self, digest: str) -> Model:
        """Return this model as one whose results have to show ``digest``, which a request named."""
        return replace(self, digest=digest, by_digest=True)

    def fits(self, shown_name: object, shown_digest: object) -> bool:
        """Whether a result whose info shows this name and short hash was made by this model."""
        if shown_name not in (self.stem, self.model_name):
            return False
        if not self.by_digest or not isinstance(shown_digest, str) or not shown_digest:
            return True
        if self.digest is not None:
            return _same_digest(self.digest, shown_digest)
        return not any(_same_digest(rival, shown_digest) for rivals in self.rivals for rival in rivals)


class Models:
    """The files of one WebUI by everything that may be written to mean one of them."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._by_title: dict[str, list[Model]] = defaultdict(list)
        self._by_short_name: dict[str, list[Model]] = defaultdict(list)
        for model in models:
            for title in {model.title, model.bare_title}:
                self._by_title[title].append(model)
            for name in {model.model_name, model.stem}:
                self._by_short_name[name].append(model)

    def meant(self, text: str) -> Sequence[Model]:
        """Return every model that ``text`` may mean: one when it is unambiguous, none when it is unknown.

        A text is a title with or without hash, a model_name or a stem; the latter two may be followed by a hash in brackets too.
        Titles take precedence over short names. A hash decides between files as far as theirs are known.
        """
        for names in (self._by_title, self._by_short_name):
            if text in names:
                return names[text]
        name, digest = split_digest(text)
        if digest is None:
            return ()
        for names in (self._by_title, self._by_short_name):
            found = [model for model in names.get(name, ()) if model.agrees(digest)]
            known = [model for model in found if model.digest is not None]
            # A file without a known hash that shares its title can't be named to the WebUI.
            named = known or [model for model in found if len(self._by_title[model.bare_title]) == 1]
            if named:
                return named
        return ()

    def one(self, text: str) -> Model | None:
        """Return the one model that ``text`` means; None when it is unknown or ambiguous."""
        found = self.meant(text)
        return found[0] if len(found) == 1 else None

    def named_exactly(self, text: str) -> Model | None:
        """Return the model that version 0.1.0 took for ``text``, which knew no stems: by model_name, else by title."""
        named = [model for model in self._by_short_name.get(text, ()) if model.model_name == text]
        if len(named) == 1:
            return named[0]
        titled = self._by_title.get(text, ())
        return titled[0] if len(titled) == 1 else None

    def name_of(self, model: Model) -> str | None:
        """Return the shortest name that means this model and no other; None where the WebUI can't tell it from another."""
        return next((name for name in model.spellings if self.meant(name) == [model]), None)


def split_digest(text: str) -> tuple[str, str | None]:
    """Split ``name [hash]`` into the name and the hash in lower case, which is None where there is none."""
    found = _HASH_AT_END.search(text)
    return (text, None) if found is None else (text[: found.start()], found[1].lower())


def read_models(entries: Iterable[Mapping[str, Any]]) -> tuple[Model, ...]:
    """Read ``/sdapi/v1/sd-models``; an entry without usable names is left out, and two of one title are one."""
    usable = [entry for entry in entries if is_name(entry.get("title")) and _model_name(entry)]
    return told_apart({str(entry["title"]): _read(entry) for entry in usable}.values())


def told_apart(models: Iterable[Model]) -> tuple[Model, ...]:
    """Return the models of one WebUI, each with what tells it from the others."""
    listed = tuple(models)
    by_title, by_shown_name = defaultdict[str, list[Model]](list), defaultdict[str, list[Model]](list)
    for model in listed:
        by_title[model.bare_title].append(model)
        for name in {model.model_name, model.stem}:
            by_shown_name[name].append(model)

    # Made once for each name: a list may hold thousands of files of one stem.
    digests = {
        name: frozenset(model.digest for model in named if model.digest is not None)
        for name, named in by_shown_name.items()
    }

    def related(model: Model) -> Model:
        shown = (model.model_name, model.stem)
        # The WebUI may take the short name of another file (``x.ckpt.safetensors`` has the stem ``x.ckpt``) for this one's title.
        taken = chain(by_title[model.bare_title], by_shown_name[model.bare_title])
        return replace(
            model,
            checkpoint=model.bare_title if all(other.title == model.title for other in taken) else model.title,
            by_digest=any(len(by_shown_name[name]) > 1 for name in shown),
            rivals=() if model.digest is not None else tuple(digests[name] for name in shown),
        )

    return tuple(related(model) for model in listed)


def stored_model(entry: Mapping[str, Any]) -> Model:
    """Read a model from a stored catalogue.

    :raises TypeError, KeyError: for anything else.
    """
    if "names" in entry:
        return _stored_by_0_1_0(entry)
    return Model(**{name: value for name, value in entry.items() if name != _RIVALS})


def to_store(model: Model) -> dict[str, Any]:
    """The JSON that :func:`stored_model` reads, without ``rivals``, which :func:`told_apart` finds anew."""
    return {name: value for name, value in vars(model).items() if name != _RIVALS}


def _stored_by_0_1_0(entry: Mapping[str, Any]) -> Model:
    """Read what version 0.1.0 stored: ``names`` held the WebUI's model_name and, where it is another, the stem."""
    title, names = str(entry["title"]), entry["names"]
    bare_title, digest = split_digest(title)
    return Model(title, bare_title, model_name=names[0], stem=names[-1], digest=digest)


def _read(entry: Mapping[str, Any]) -> Model:
    title = str(entry["title"])
    digest = _digest(entry.get("sha256")) or _digest(entry.get("hash"))
    bare_title, shown = split_digest(title)
    if shown is None or (digest is not None and not _same_digest(digest, shown)):
        # The brackets belong to the file's name.
        bare_title, shown = title, None
    filename = entry.get("filename")
    file = filename if isinstance(filename, str) and filename and is_name(filename) else bare_title
    # The WebUI may run on Windows, whatever the gateway runs on.
    base = re.split(r"[\\/]", file)[-1]
    return Model(title, bare_title, _model_name(entry), base.rpartition(".")[0] or base, digest or shown)


def _model_name(entry: Mapping[str, Any]) -> str:
    name = entry.get("model_name")
    return name if isinstance(name, str) and is_name(name) else ""


def _digest(text: object) -> str | None:
    return text.lower() if isinstance(text, str) and _DIGEST.fullmatch(text) else None


def _same_digest(one: str, other: str) -> bool:
    one, other = one.lower(), other.lower()
    return one.startswith(other) or other.startswith(one)
