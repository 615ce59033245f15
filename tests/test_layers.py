"""The walls of the house: imports run downwards only, and each room keeps its tools to itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parent.parent / "app"

#: A module may import from its own room and from any floor below it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("app",),
    ("app.api", "app.cli"),
    ("app.startup", "app.services"),
    ("app.gateway",),
    ("app.jobs", "app.webui", "app.records", "app.simulator", "app.migrations", "app.serving"),
    ("app.config", "app.parameters", "app.problems"),
    ("app.runtime",),
)
#: Rooms of one floor that do know each other, in this direction.
NEIGHBOURS = {
    ("app.startup", "app.services"),
    ("app.migrations", "app.jobs"),
}
#: gunicorn's side knows the application by name only, and is started from the top.
USERS_OF_SERVING = ("app.api", "app.cli")
#: The only users of a tool.
OWNERS = {
    "requests": ("app.webui",),
    "urllib3": ("app.webui",),
    "gunicorn": ("app.serving", "app.api.http"),
    "orjson": ("app.runtime",),
    "PIL": ("app.records", "app.simulator"),
    "sqlalchemy": ("app.jobs", "app.migrations"),
    "alembic": ("app.jobs", "app.migrations"),
    "flask_smorest": ("app.api",),
    "marshmallow": ("app.api",),
}
SOURCES = sorted(APP.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(APP.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    """The longest name on a floor that the module lies in."""
    rooms = [room for floor in FLOORS for room in floor if module == room or module.startswith(room + ".")]
    return max(rooms, key=len)


def floor_of(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # "from app import api" names the room in the alias.
            yield from ([f"app.{alias.name}" for alias in node.names] if node.module == "app" else [node.module])


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    here = room_of(module_of(path))
    for name in imports(path):
        if not name.startswith("app"):
            continue
        there = room_of(name)
        downwards = floor_of(there) > floor_of(here)
        assert there == here or downwards or (here, there) in NEIGHBOURS, f"{here} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_api_and_command_use_the_serving_side(path: Path) -> None:
    here = room_of(module_of(path))
    used = [name for name in imports(path) if name.startswith("app.serving")]
    assert here in (*USERS_OF_SERVING, "app.serving") or used == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_tool_has_its_room(path: Path) -> None:
    module = module_of(path)
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or module.startswith(owners), f"{module} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_import_hides_in_a_function(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert hidden == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_config_reads_the_environment(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if module_of(path) != "app.config":
        assert "os.environ" not in text
        assert "getenv" not in text


@pytest.mark.parametrize(
    "path", sorted(path for room in ("jobs", "webui", "records") for path in (APP / room).rglob("*.py")), ids=module_of
)
def test_leaf_rooms_know_no_http_of_ours(path: Path) -> None:
    """Status codes and Flask belong to the API; the WebUI room speaks HTTP as a client, and its simulator serves it."""
    if "simulator" in path.parts:
        return
    assert not {name.split(".")[0] for name in imports(path)} & {"flask", "werkzeug", "flask_smorest"}
