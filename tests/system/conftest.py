"""The processes that system tests share, and their logs beside the report of a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import Gateway, Simulator, Stage

_LONGEST_LOG = 20_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is a system test."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the logs of the processes that a failed test could use."""
    report = yield
    if report.failed:
        stages = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Stage)]
        for name, text in [entry for stage in stages for entry in stage.logs()]:
            report.sections.append((f"log of {name}", text[-_LONGEST_LOG:]))
    return report


@pytest.fixture(scope="session")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The processes of the whole run: five simulators, since starting one costs more than most tests."""
    stage = Stage(tmp_path_factory.mktemp("hall"))
    try:
        for _ in range(4):
            stage.simulator(ready=False)
        slow = stage.simulator(ready=False, seconds_per_image=0.4)
        for simulator in (*stage.processes[:4], slow):
            simulator.await_ready()
        yield stage
    finally:
        stage.clear()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """The processes of one test."""
    stage = Stage(tmp_path)
    try:
        yield stage
    finally:
        stage.clear()


@pytest.fixture
def fast(hall: Stage, stage: Stage) -> list[Simulator]:
    """Four simulators that take 0.1 s an image, as if they had just been started."""
    return _afresh(hall.processes[:4])


@pytest.fixture
def simulator(fast: list[Simulator]) -> Simulator:
    """One of the fast simulators."""
    return fast[0]


@pytest.fixture
def slow(hall: Stage, stage: Stage) -> Simulator:
    """A simulator that takes 0.4 s an image, as if it had just been started."""
    [simulator] = _afresh(hall.processes[4:5])
    return simulator


def _afresh(simulators: list[Simulator]) -> list[Simulator]:
    for simulator in simulators:
        simulator.reset()
    return simulators


@pytest.fixture(scope="session")
def house(hall: Stage) -> Gateway:
    """The gateway of the tests that need no settings of their own; its WebUI is the last of the fast simulators."""
    return hall.gateway([hall.processes[3]])


@pytest.fixture
def its_simulator(house: Gateway, fast: list[Simulator]) -> Simulator:
    """The WebUI of :func:`house`."""
    return fast[3]
