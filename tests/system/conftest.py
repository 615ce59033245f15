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
    """The processes that tests share, each started when it is first asked for: starting one costs more than most tests."""
    stage = Stage(tmp_path_factory.mktemp("hall"))
    try:
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


@pytest.fixture(scope="session")
def pool() -> dict[float, list[Simulator]]:
    """The shared simulators by their seconds per image; nothing but :func:`_borrow` touches it."""
    return {}


def _borrow(hall: Stage, pool: dict[float, list[Simulator]], count: int, seconds: float) -> list[Simulator]:
    """``count`` simulators of this speed from the pool, as if they had just been started."""
    known = pool.setdefault(seconds, [])
    known += [hall.simulator(ready=False, seconds_per_image=seconds) for _ in range(count - len(known))]
    for simulator in known[:count]:
        simulator.await_ready()
        simulator.reset()
    return known[:count]


# These ask for the stage too, whose gateways are then gone before a simulator is lent again.


@pytest.fixture
def fast(hall: Stage, pool: dict[float, list[Simulator]], stage: Stage) -> list[Simulator]:
    """Four simulators that take 0.1 s an image."""
    return _borrow(hall, pool, 4, 0.1)


@pytest.fixture
def simulator(hall: Stage, pool: dict[float, list[Simulator]], stage: Stage) -> Simulator:
    """A simulator that takes 0.1 s an image."""
    [simulator] = _borrow(hall, pool, 1, 0.1)
    return simulator


@pytest.fixture
def slow(hall: Stage, pool: dict[float, list[Simulator]], stage: Stage) -> Simulator:
    """A simulator that takes 0.4 s an image."""
    [simulator] = _borrow(hall, pool, 1, 0.4)
    return simulator


@pytest.fixture(scope="session")
def houses_simulator(hall: Stage) -> Simulator:
    """The WebUI of :func:`house`, which has it for itself."""
    return hall.simulator(ready=False)


@pytest.fixture(scope="session")
def house(hall: Stage, houses_simulator: Simulator) -> Gateway:
    """The gateway of the tests that need no settings of their own."""
    # Not before its WebUI listens: one that was silent is only asked again ten seconds later.
    houses_simulator.await_ready()
    return hall.gateway([houses_simulator])


@pytest.fixture
def its_simulator(house: Gateway, houses_simulator: Simulator) -> Simulator:
    """The WebUI of :func:`house`, with its numbers at zero."""
    houses_simulator.reset()
    return houses_simulator
