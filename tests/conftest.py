"""Fixtures for every test: settings in a temporary folder, the two database engines, a gateway and its WebUI."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from app.config import Config, load
from app.jobs.sql.database import Database
from app.simulator import SimulatorServer
from tests.inprocess import Gateway, simulator
from tests.postgresql import PostgresServer, programs
from tests.system.leaks import WATCH


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect without looking for garbage, and never look for it among what was collected: there are a million objects, and all
    of them stay.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("gateway", deadline=None)
hypothesis.settings.load_profile("gateway")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests that start processes to the front: else the run ends with one long file while the other workers are idle."""
    for item in items:
        if item.get_closest_marker("alone") and not item.get_closest_marker("soak"):
            raise pytest.UsageError(
                f"{item.nodeid} measures time, and beside other tests that is luck: mark it soak too"
            )
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent not in (here / "system", here / "crash"))


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_logged() -> Iterator[None]:
    """Search the logs of all processes that tests have started, when all of them have ended; what is found fails the last test."""
    yield
    WATCH.check()


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """An empty instance folder."""
    folder = tmp_path / "instance"
    folder.mkdir()
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Settings that keep everything a test writes in its own folder."""
    return {
        "SDG_DATA_DIR": str(tmp_path / "data"),
        "SDG_DATABASE_URL": f"sqlite:///{tmp_path}/gateway.db",
        "SDG_HOST_ID": "testhost",
    }


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite file with the tables, to be copied: migrating costs more than most tests."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def sqlite(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Database]:
    """A migrated, empty SQLite file, for what does not depend on the engine."""
    database = Database(f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'gateway.db')}")
    yield database
    database.close()


@pytest.fixture
def config(environ: dict[str, str], instance: Path) -> Config:
    """The parsed settings of :func:`environ`."""
    return load(environ, instance)


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    """A simulated WebUI in this process that takes no time for its pictures."""
    with simulator() as server:
        yield server


@pytest.fixture
def gateway(tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> Iterator[Gateway]:
    """A gateway in this process in front of :func:`server`; it accepts, and works once the test starts it."""
    with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
        yield gateway


def _postgresql_server(folders: pytest.TempPathFactory) -> PostgresServer:
    place = programs()
    if place is None:
        pytest.skip("PostgreSQL's programs are not installed")
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    # Those of the processes of one run stand side by side.
    own = folders.getbasetemp()
    return PostgresServer(place, own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this run's own, reachable by a Unix socket only."""
    server = _postgresql_server(tmp_path_factory)
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@pytest.fixture
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL server that one test may stop and freeze."""
    server = _postgresql_server(tmp_path_factory)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what tests recorded for people to read; where tests run in several processes, only this one has the terminal."""
    for report in terminalreporter.getreports("passed"):
        for text in [value for name, value in report.user_properties if name == "shown"]:
            terminalreporter.section(report.nodeid)
            terminalreporter.write_line(text)
