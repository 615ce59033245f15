"""The id that the database shares with its data folder, on both engines."""

from __future__ import annotations

from pathlib import Path

from app.jobs.sql import database_id
from app.jobs.sql.database import Database
from app.jobs.sql.database_id import DatabaseId
from tests.jobs.conftest import Gate


def test_the_first_proposal_stands(database: Database) -> None:
    assert database_id.read(database) is None
    assert database_id.propose(database, "one") == DatabaseId("one", finished=False)
    assert database_id.propose(database, "two") == DatabaseId("one", finished=False)
    assert database_id.read(database) == DatabaseId("one", finished=False)


def test_an_assigned_id_is_finished(database: Database) -> None:
    database_id.propose(database, "one")
    database_id.assign(database, "one")
    assert database_id.propose(database, "two") == DatabaseId("one", finished=True)
    database_id.assign(database, "three")
    assert database_id.read(database) == DatabaseId("three", finished=True)


def test_jobs_and_records_are_counted(database: Database, gate: Gate) -> None:
    assert (database_id.count_jobs(database), database_id.count_jobs(database, records=True)) == (0, 0)
    gate.accept()
    gate.run_next()
    gate.accept()
    assert (database_id.count_jobs(database), database_id.count_jobs(database, records=True)) == (2, 1)


def test_a_database_without_tables_has_none_and_is_left_so(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    database = Database(f"sqlite:///{path}")
    for make in (lambda: None, path.touch):
        make()
        before = path.exists()
        assert not database.exists
        assert database_id.read(database) is None
        assert database_id.count_jobs(database) == 0
        assert path.exists() == before
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (id INTEGER)")
    assert database.exists
    assert database_id.read(database) is None
    assert database_id.count_jobs(database, records=True) == 0
    database.close()
