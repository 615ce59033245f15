"""The wheel, built once, and virtual environments in which nothing but it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.harness import CHECKOUT
from tests.wheel.installed import Environment, Place

#: What the wheel is built from; in a folder of its own, where no earlier build has left anything.
SOURCES = ("app", "setup.py", "setup.cfg", "README.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder needs the wheel."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.wheel)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--use-pep517", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", built, source], check=True)
    [made] = built.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def environment_with(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Environment]]:
    """Makes an environment with the wheel and some extras, or gives the one that was made."""
    made: dict[str, Environment] = {}

    def make(extras: str) -> Environment:
        if extras not in made:
            made[extras] = Environment(tmp_path_factory.mktemp("environment"), wheel, extras)
        return made[extras]

    yield make
    for environment in made.values():
        environment.be_writable()


@pytest.fixture
def place_with(environment_with: Callable[[str], Environment], tmp_path: Path) -> Iterator[Callable[[str], Place]]:
    """Makes the folder in which a test uses an environment; in the end, nothing may have been written into that."""
    places: list[Place] = []

    def make(extras: str) -> Place:
        places.append(Place(environment_with(extras), tmp_path / "place"))
        return places[-1]

    yield make
    for place in places:
        place.clear()
        assert place.environment.written() == set()
