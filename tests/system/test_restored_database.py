"""The database is restored from an older dump: jobs since then are lost, their numbers go to others, and nobody gets another's.

The gateway of alice's host stands still (SIGSTOP) while that happens, as if all of it took less time than its next query.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.postgresql import programs as postgresql_programs
from tests.system.harness import Gateway, Simulator, Stage, until

psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")

#: A generation goes on for so long, so that its answer comes when all is restored; seconds.
_ANSWER_SECONDS = 8.0
_LOST = ("job-lost", 503)


class Dumped:
    """A PostgreSQL database of a test's own that can be dumped and restored as an operator does it."""

    def __init__(self, server: str, folder: Path) -> None:
        programs = postgresql_programs()
        assert programs is not None
        self.url = server.replace("/postgres?", "/restored?")
        self._server = server
        self._programs = programs
        self._file = folder / "gateway.dump"
        self._admin("CREATE DATABASE restored")

    def _admin(self, *statements: str) -> None:
        with closing(psycopg.connect(self._server, autocommit=True)) as connection:
            for statement in statements:
                connection.execute(statement)

    def dump(self) -> None:
        subprocess.run([self._programs / "pg_dump", "-Fc", "-f", self._file, "-d", self.url], check=True)

    def restore(self) -> None:
        """Into a new database of the same name; everybody's connections break."""
        self._admin("DROP DATABASE restored WITH (FORCE)", "CREATE DATABASE restored")
        subprocess.run([self._programs / "pg_restore", "-d", self.url, self._file], check=True)

    def drop(self) -> None:
        self._admin("DROP DATABASE restored WITH (FORCE)")

    def row(self, name: str) -> dict[str, Any] | None:
        """The row of a job; None where there is none."""
        with closing(psycopg.connect(self.url, row_factory=psycopg.rows.dict_row)) as connection:
            found: dict[str, Any] | None = connection.execute("SELECT * FROM jobs WHERE name = %s", [name]).fetchone()
            return found

    def name_of(self, user: str) -> str:
        """The name of a user's only job."""
        with closing(psycopg.connect(self.url)) as connection:
            [(name,)] = connection.execute("SELECT name FROM jobs WHERE user_id = %s", [user]).fetchall()
            return str(name)


@pytest.fixture
def database(postgresql: str, tmp_path: Path, stage: Stage) -> Iterator[Dumped]:
    database = Dumped(postgresql, tmp_path)
    yield database
    stage.clear()
    database.drop()


def test_the_number_of_a_lost_job_goes_to_another_user_while_a_client_and_a_worker_hold_it(
    stage: Stage, simulator: Simulator, database: Dumped
) -> None:
    settings = {"SDG_DATABASE_URL": database.url, "SDG_DATA_DIR": stage.folder / "data"}
    alices = stage.gateway([simulator], SDG_HOST_ID="one", **settings)
    for seed in range(3):
        alices.succeeded(alices.post(id="carol", seed=str(seed)))
    database.dump()

    simulator.fault("hang", seconds=_ANSWER_SECONDS)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alices.post, id="alice", key="alices-key", prompt="hers alone")
        until(lambda: simulator.stats()["generations"] == 4, "alice's job runs")
        lost = database.row(database.name_of("alice"))
        assert lost is not None
        os.killpg(alices.running.pid, signal.SIGSTOP)
        database.restore()
        other = stage.gateway([stage.simulator()], SDG_HOST_ID="two", **settings)
        bobs = other.succeeded(other.post(id="bob", prompt="his alone"))
        os.killpg(alices.running.pid, signal.SIGCONT)
        answer = waiting.result(60)

    row = database.row(bobs["name"])
    assert row is not None
    assert row["seq"] == lost["seq"]
    assert (answer.json()["type"], answer.status_code) == _LOST
    assert int(answer.headers["Retry-After"]) >= 1
    assert "bob" not in answer.text
    assert bobs["name"] not in answer.text

    # The worker of the lost job gets its answer, and knows that nobody wants it.
    until(lambda: f"the claim of job {lost['name']} was lost" in alices.text(), "the answer comes", 60)
    assert {name for name in _files(stage) if lost["name"] in name} == set()
    assert database.row(bobs["name"]) == row
    assert len(other.images(bobs)) == 1

    # Her key is as new: the host that never saw her job and her own answer with one job of hers.
    again = other.succeeded(other.post(id="alice", key="alices-key", prompt="hers alone"))
    repeated = until(
        lambda: (found := alices.post(id="alice", key="alices-key", prompt="hers alone")).ok and found, "alice's host"
    )
    assert repeated.json()["name"] == again["name"] not in (lost["name"], bobs["name"])
    assert alices.http.get(f"/jobs/alice/txt2img/{lost['name']}").status_code == 404
    assert [job["name"] for job in other.jobs("bob")] == [bobs["name"]]
    verify = other.cli("records", "verify")
    assert (verify.returncode, verify.stdout) == (0, "5 records looked at, 0 problems\n")
    alices.succeeded(alices.post(id="carol"))


def _files(stage: Stage) -> set[str]:
    return {path.name for path in (stage.folder / "data").rglob("*") if path.is_file()}


def test_a_sqlite_file_that_is_replaced_by_an_older_copy_is_not_written_and_a_restart_gives_nobody_anothers_job(
    stage: Stage, simulator: Simulator
) -> None:
    gateway = stage.gateway([simulator], SDG_DRAIN_TIMEOUT=1)
    kept = gateway.succeeded(gateway.post(id="carol"))
    copy = _copy(gateway)
    simulator.fault("hang")
    posted = gateway.post(id="alice", key="alices-key", prefer="respond-async").json()
    until(lambda: gateway.status(posted["url"]) == "running", "alice's job runs")
    lost = gateway.row(posted["name"])

    copy.replace(gateway.database)
    refused = gateway.post(id="bob")
    assert (refused.status_code, refused.json()["type"]) == (503, "database-unavailable")
    assert gateway.stop() == 0
    for suffix in ("-wal", "-shm"):
        # They belong to the file that was replaced.
        Path(f"{gateway.database}{suffix}").unlink(missing_ok=True)
    simulator.interrupt()
    gateway.restart()

    bobs = gateway.succeeded(gateway.post(id="bob"))
    assert gateway.row(bobs["name"])["seq"] == lost["seq"]
    assert gateway.http.get(posted["url"]).status_code == 404
    again = gateway.succeeded(gateway.post(id="alice", key="alices-key"))
    assert again["name"] not in (posted["name"], bobs["name"])
    assert {name for name in gateway.files() if posted["name"] in name} == set()
    assert [job["name"] for job in gateway.history("carol")] == [kept["name"]]


def _copy(gateway: Gateway) -> Path:
    """A copy of the database as ``sqlite3 gateway.db ".backup copy.db"`` makes it."""
    path = gateway.database.with_name("copy.db")
    with closing(sqlite3.connect(gateway.database)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)
    return path
