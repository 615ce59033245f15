"""The documents say what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from app.config import SETTINGS
from app.parameters import PARAMETERS, TYPES, Parameter
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


def bound(value: float | str) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:.10g}"


def takes(parameter: Parameter) -> str:
    span = f"{bound(parameter.lowest)} to {bound(parameter.highest)}"
    length = span if parameter.lowest else f"at most {bound(parameter.highest)}"
    return {
        "user id": f"string, {length} characters",
        "text": f"string, {length} characters",
        "integer": f"integer, {span}" + (f", multiples of {parameter.step}" if parameter.step > 1 else ""),
        "number": f"number, {span}",
        "boolean": "`true` or `false`",
        "choice": " · ".join(f"`{word}`" for word in parameter.choices),
        "seed": f"string or integer, {span}",
        "image": "string, or a list of one",
    }[parameter.kind]


def default(parameter: Parameter) -> str:
    if parameter.required or parameter.shown_default:
        return parameter.shown_default or "required"
    values = {type_: parameter.default_of(type_) for type_ in parameter.types}
    if len(set(values.values())) > 1:
        return ", ".join(f"`{json.dumps(value)}` ({type_})" for type_, value in values.items())
    value = next(iter(values.values()))
    return "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def table_of_request_fields() -> str:
    rows = [
        (
            f"`{parameter.name}`" + ("" if parameter.types == TYPES else f" ({', '.join(parameter.types)} only)"),
            takes(parameter),
            default(parameter),
            f"`{parameter.payload}`" if parameter.payload else "",
            parameter.english,
        )
        for parameter in PARAMETERS
    ]
    head = ("field", "takes", "default", "WebUI's field", "meaning")
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def test_the_table_of_request_fields_is_the_codes() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    [section] = re.findall(r"^## Asking for pictures\n(.*?)^#", text, re.MULTILINE | re.DOTALL)
    written = "".join(line for line in section.splitlines(keepends=True) if line.startswith("|"))
    assert written == table_of_request_fields(), f"docs/api.md must have this table:\n{table_of_request_fields()}"


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
