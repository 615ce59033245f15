"""The documents say what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from app.cli import main
from app.config import SETTINGS
from app.problems import PROBLEMS

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| `(?P<name>[A-Z_]+)` \| (?P<default>.*?) \| (?P<sentence>.*) \|$", re.MULTILINE)


def test_the_readmes_settings_are_the_codes() -> None:
    rows = [
        match.group("name", "default", "sentence") for match in ROW.finditer((ROOT / "README.md").read_text("utf-8"))
    ]
    shown = {
        setting.name: setting.shown or (f"`{setting.default}`" if setting.default else "empty") for setting in SETTINGS
    }
    assert rows == [(setting.name, shown[setting.name], setting.sentence) for setting in SETTINGS]


def commands(group: click.Group, name: str) -> Iterator[tuple[str, str]]:
    """Every command below a group, with the first paragraph of its help."""
    for short, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {short}")
        else:
            yield f"{name} {short}", " ".join((command.help or "").split("\n\n")[0].split())


def test_the_readmes_commands_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| `(sd-gateway [a-z ]+)` \| (.*) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert rows == list(commands(main, "sd-gateway"))


def test_the_readmes_targets_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text("utf-8")))
    assert named <= targets


def test_every_path_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`((?:app|tests|docs)/[\w./]+)`", text))
    rooms = set(re.findall(r"^  (\w+(?:\.py|/)) ", text, re.MULTILINE))
    assert named
    assert rooms
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [room for room in rooms if not (ROOT / "app" / room).exists()] == []


def test_every_module_of_the_upper_floors_stands_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    modules = {path.name for path in (ROOT / "app").glob("*.py")}
    assert sorted(name for name in modules if name not in text) == []


def test_the_http_document_lists_every_problem() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert sorted(slug for slug in PROBLEMS if f"`{slug}`" not in text) == []
