"""setup.cfg declares what the code imports, and requirements.txt pins what setup.cfg declares."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("postgres", "test")


def parsed(text: str) -> dict[str, Requirement]:
    """Requirements by their canonical names; comments are left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


@pytest.fixture(scope="module")
def declared() -> dict[str, Requirement]:
    """The requirements of the package in setup.cfg, by name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return parsed(setup["options"]["install_requires"])


@pytest.fixture(scope="module")
def of_extras() -> dict[str, Requirement]:
    """The requirements of the extras in setup.cfg, by name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return parsed("\n".join(setup["options.extras_require"][extra] for extra in EXTRAS))


def imported() -> set[str]:
    """The top-level packages that the modules of ``app`` import."""
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "app").rglob("*.py")]
    names = {alias.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module or "" for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def test_every_library_that_is_imported_is_declared(declared: dict[str, Requirement]) -> None:
    libraries = imported() - sys.stdlib_module_names - {"app"}
    distributions = importlib.metadata.packages_distributions()
    homes = {canonicalize_name(home) for library in libraries for home in distributions[library]}
    assert homes - declared.keys() == set()


def test_the_pinned_versions_are_within_the_bounds(
    declared: dict[str, Requirement], of_extras: dict[str, Requirement]
) -> None:
    pinned = parsed((ROOT / "requirements.txt").read_text("utf-8"))
    for name, requirement in {**declared, **of_extras}.items():
        [pin] = pinned[name].specifier
        assert pin.operator == "=="
        assert pin.version in requirement.specifier, f"{name} {pin.version}"
