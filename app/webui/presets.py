"""The gateway's own styles: prompt templates that a person keeps in ``instance/styles.toml``.

Each table of the file is one style::

    ["oil painting"]
    prompt = "an oil painting of {prompt}, visible brush strokes"
    negative_prompt = "photo"
    model = "dreamshaper_8"
    sampler = "DPM++ 2M"

All four keys are optional. A style of the same name in a WebUI is hidden by the preset.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

#: Where the posted prompt goes inside a preset's prompt; the WebUI's own styles use the same mark.
PLACE = "{prompt}"


class PresetError(ValueError):
    """A styles file that cannot be used; the message names the file and the place in it."""


@dataclass(frozen=True)
class Preset:
    """One style: texts added to the prompts, and the model and sampler used where a request names none."""

    prompt: str = ""
    negative_prompt: str = ""
    model: str | None = None
    sampler: str | None = None


@dataclass(frozen=True)
class Presets:
    """All presets by name, in the order of the file."""

    entries: Mapping[str, Preset] = field(default_factory=dict)

    def get(self, style: str) -> Preset | None:
        """Return the preset of that name, or None."""
        return self.entries.get(style)

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of the file."""
        return tuple(self.entries)

    def apply(self, style: str, prompt: str, negative_prompt: str) -> tuple[str, str]:
        """Return prompt and negative prompt with the preset put in; unchanged where ``style`` is no preset."""
        preset = self.get(style)
        if preset is None:
            return prompt, negative_prompt
        template = preset.prompt
        styled = template.replace(PLACE, prompt) if PLACE in template else _joined(prompt, template)
        return styled, _joined(negative_prompt, preset.negative_prompt)


def _joined(*texts: str) -> str:
    return ", ".join(text for text in texts if text)


def load_presets(path: Path) -> Presets:
    """Read a styles file; a missing one holds no presets.

    :raises PresetError: naming the file and what in it is wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Presets()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PresetError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        return Presets({name: _preset(name, entry) for name, entry in table.items()})
    except ValueError as error:
        raise PresetError(f"{path}: {error}") from error


def _preset(name: str, entry: Any) -> Preset:
    if not name.strip():
        raise ValueError("a style needs a name")
    if not isinstance(entry, dict):
        raise ValueError(f"{name} must be a table, such as [{name}]")
    known = [key.name for key in fields(Preset)]
    for key, value in entry.items():
        if key not in known:
            raise ValueError(f"[{name}] has an unknown key {key}; known are {', '.join(known)}")
        if not isinstance(value, str):
            raise ValueError(f"[{name}] {key} must be a string")
        if key in ("model", "sampler") and not value:
            raise ValueError(f"[{name}] {key} must not be empty; leave it out instead")
    return Preset(**entry)
