"""The layers of the code: imports run downwards only, and each library is imported by the packages that own it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parent.parent / "app"

#: A module may import from its own package and from any layer below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("app",),
    ("app.api", "app.cli"),
    ("app.doctor",),
    ("app.startup", "app.services"),
    ("app.gateway",),
    ("app.jobs", "app.webui", "app.records", "app.simulator", "app.migrations", "app.serving"),
    ("app.config", "app.parameters", "app.problems"),
    ("app.runtime",),
)
#: Packages of one layer of which the first may import the second.
NEIGHBOURS = {
    ("app.startup", "app.services"),
    ("app.migrations", "app.jobs"),
}
#: gunicorn's side knows the application by name only, and is started by these.
USERS_OF_SERVING = ("app.api", "app.cli")
#: The only packages that may import a library.
OWNERS = {
    "requests": ("app.webui",),
    "urllib3": ("app.webui",),
    "gunicorn": ("app.serving", "app.api.http"),
    "orjson": ("app.runtime",),
    "pythonjsonlogger": ("app.runtime",),
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


def package_of(module: str) -> str:
    """The longest name in the layers that the module lies in."""
    names = [name for layer in LAYERS for name in layer if module == name or module.startswith(name + ".")]
    return max(names, key=len)


def layer_of(package: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if package in layer)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # "from app import api" names the package in the alias.
            yield from ([f"app.{alias.name}" for alias in node.names] if node.module == "app" else [node.module])


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    here = package_of(module_of(path))
    for name in imports(path):
        if not name.startswith("app"):
            continue
        there = package_of(name)
        downwards = layer_of(there) > layer_of(here)
        assert there == here or downwards or (here, there) in NEIGHBOURS, f"{here} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_api_and_command_use_the_serving_side(path: Path) -> None:
    here = package_of(module_of(path))
    used = [name for name in imports(path) if name.startswith("app.serving")]
    assert here in (*USERS_OF_SERVING, "app.serving") or used == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_library_is_imported_by_its_owners_alone(path: Path) -> None:
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
    "path", sorted(path for name in ("jobs", "webui", "records") for path in (APP / name).rglob("*.py")), ids=module_of
)
def test_leaf_packages_know_no_http_of_ours(path: Path) -> None:
    """Status codes and Flask belong to the API; app.webui speaks HTTP as a client, and its simulator serves it."""
    if "simulator" in path.parts:
        return
    assert not {name.split(".")[0] for name in imports(path)} & {"flask", "werkzeug", "flask_smorest"}
