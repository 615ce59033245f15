"""Removal of rows that are not needed any more, and of no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from app.jobs import deletion
from app.jobs.errors import KeyOfDeletedJob
from app.jobs.model import Failure, IdempotencyKey
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import JobTable
from tests.jobs.conftest import EVERYTHING, Gate

Advance = Callable[[float], None]
KEY = IdempotencyKey("key", "digest")
DAY = 24 * 3600


def rows(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(text(statement)).all()]


def an_hour_passes(database: Database) -> None:
    """Move the end, or the deletion, of every job an hour back."""
    with database.write() as connection:
        connection.execute(text("UPDATE jobs SET finished_at = finished_at - 3600001 WHERE finished_at IS NOT NULL"))


class TestDeletedJobs:
    @pytest.fixture
    def name(self, gate: Gate, table: JobTable, database: Database) -> str:
        """A finished job."""
        job = gate.accept()
        gate.run_next()
        return job.name

    def delete(self, table: JobTable, name: str) -> None:
        table.deletion.delete("u1", "txt2img", name)
        for job, _ in table.deletion.pending_unlink():
            table.deletion.unlinked(job)

    def test_the_row_goes_when_its_files_are_gone(self, table: JobTable, database: Database, name: str) -> None:
        table.deletion.delete("u1", "txt2img", name)
        an_hour_passes(database)
        assert table.deletion.forget_deleted() == 0
        for job, _ in table.deletion.pending_unlink():
            table.deletion.unlinked(job)
        assert table.deletion.forget_deleted() == 1
        assert rows(database, "SELECT * FROM jobs") == []
        assert table.deletion.forget_deleted() == 0

    def test_what_was_not_deleted_stays(self, gate: Gate, table: JobTable, database: Database, name: str) -> None:
        gate.accept()
        table.fail(gate.claim(), Failure("webui-error", "x"))
        gate.accept()
        self.delete(table, name)
        an_hour_passes(database)
        assert table.deletion.forget_deleted() == 1
        assert rows(database, "SELECT status FROM jobs ORDER BY seq") == [("failed",), ("queued",)]

    def test_of_a_record_with_one_deleted_image_the_row_stays(
        self, gate: Gate, table: JobTable, database: Database, name: str
    ) -> None:
        with database.write() as connection:
            two = '[{"filename": "a"}, {"filename": "b"}]'
            connection.execute(text("UPDATE jobs SET images = :two"), {"two": two})
        table.deletion.delete_image("u1", "txt2img", name, "a")
        an_hour_passes(database)
        assert table.deletion.forget_deleted() == 0
        assert table.queries.get("u1", "txt2img", name).images == ({"filename": "b"},)

    def test_it_stays_for_minutes_so_that_watchers_who_were_away_are_told(
        self, table: JobTable, database: Database, name: str
    ) -> None:
        """From the deletion on, however long ago the job has finished."""
        an_hour_passes(database)
        start = table.revisions.current()
        self.delete(table, name)
        assert table.deletion.forget_deleted() == 0
        # Not even the command removes it before the other processes can have seen the deletion.
        assert table.deletion.forget_deleted(deletion.SEEN_SECONDS) == 0
        assert [change.status for change in table.revisions.changes(start.rev, 9)] == ["deleted"]
        assert table.revisions.is_resumable(*start)
        with database.write() as connection:
            connection.execute(text("UPDATE jobs SET finished_at = finished_at - 60000"))
        assert table.deletion.forget_deleted() == 0
        assert table.deletion.forget_deleted(deletion.SEEN_SECONDS) == 1
        assert not table.revisions.is_resumable(*start)

    def test_a_clock_that_was_set_back_keeps_no_row(self, table: JobTable, database: Database, name: str) -> None:
        self.delete(table, name)
        with database.write() as connection:
            connection.execute(text("UPDATE jobs SET finished_at = 9999999999999"))
        assert table.deletion.forget_deleted() == 1

    def test_the_row_stays_while_a_key_names_it(
        self, gate: Gate, table: JobTable, database: Database, advance: Advance
    ) -> None:
        job = gate.accept(key=KEY)
        gate.run_next()
        self.delete(table, job.name)
        an_hour_passes(database)
        advance(DAY - 60)
        table.deletion.forget_keys()
        assert table.deletion.forget_deleted() == 0
        with pytest.raises(KeyOfDeletedJob):
            table.find_key("u1", KEY)
        advance(61)
        table.deletion.forget_keys()
        assert table.deletion.forget_deleted() == 1
        assert table.find_key("u1", KEY) is None
        assert gate.accept(key=KEY).seq > job.seq

    def test_numbers_are_not_used_again(self, gate: Gate, table: JobTable, database: Database, name: str) -> None:
        seq = table.queries.get("u1", "txt2img", name).seq
        self.delete(table, name)
        an_hour_passes(database)
        assert table.deletion.forget_deleted() == 1
        assert gate.accept().seq > seq

    def test_very_many_rows_go_in_batches(
        self, gate: Gate, table: JobTable, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deletion, "MOST_FORGOTTEN", 3)
        for number in range(7):
            job = gate.accept(key=IdempotencyKey(f"key {number}", "digest"))
            gate.run_next()
            table.deletion.delete("u1", "txt2img", job.name)
        with database.write() as connection:
            connection.execute(text("UPDATE jobs SET pending_unlink = false"))
            connection.execute(text("UPDATE idempotency SET expires_at = 0"))
        an_hour_passes(database)
        assert [table.deletion.forget_keys() for _ in range(4)] == [3, 3, 1, 0]
        assert [table.deletion.forget_deleted() for _ in range(4)] == [3, 3, 1, 0]


class TestUsers:
    def users(self, database: Database) -> set[str]:
        return {user for (user,) in rows(database, "SELECT user_id FROM users")}

    def test_all_go_when_nothing_is_unfinished(self, gate: Gate, table: JobTable, database: Database) -> None:
        for user in ("u1", "u2"):
            gate.accept(user, cost=100.0)
        gate.run_next()
        assert table.deletion.forget_users() == 0
        gate.run_next()
        assert table.deletion.forget_users() == 2
        assert self.users(database) == set()

    def test_one_goes_when_the_clock_has_passed_what_he_took(
        self, gate: Gate, table: JobTable, database: Database
    ) -> None:
        gate.accept("light", cost=1.0)
        gate.accept("heavy", cost=50.0)
        for _ in range(2):
            gate.run_next()
        for _ in range(4):
            gate.accept("busy", cost=10.0)
        # The clock stands at the start of the job that was claimed last.
        for _ in range(3):
            gate.run_next()
        assert rows(database, "SELECT virtual FROM clock") == [(20.0,)]
        assert table.deletion.forget_users() == 1
        assert self.users(database) == {"heavy", "busy"}

    def test_nobody_gains_a_place_by_being_forgotten(self, gate: Gate, table: JobTable, database: Database) -> None:
        gate.accept("heavy", cost=50.0)
        gate.run_next()
        gate.accept("busy", cost=10.0)
        table.deletion.forget_users()
        late = gate.accept("heavy", cost=50.0)
        assert late.start_tag == 50.0

    def test_a_user_with_an_unfinished_job_stays(self, gate: Gate, table: JobTable, database: Database) -> None:
        gate.accept("u1", cost=0.0)
        gate.accept("u1", cost=0.0)
        gate.run_next()
        assert table.deletion.forget_users() == 0
        assert rows(database, "SELECT user_id, unfinished FROM users") == [("u1", 1)]

    def test_who_comes_back_is_counted_from_the_start(self, gate: Gate, table: JobTable, database: Database) -> None:
        gate.accept("u1")
        gate.run_next()
        assert table.deletion.forget_users() == 1
        gate.accept("u1")
        assert rows(database, "SELECT user_id, unfinished FROM users") == [("u1", 1)]
        gate.run_next()
        assert rows(database, "SELECT unfinished FROM users UNION ALL SELECT unfinished FROM clock") == [(0,), (0,)]


def test_refusals_of_ended_jobs_are_counted_as_they_go(gate: Gate, table: JobTable, slots: Slots) -> None:
    gate.accept()
    table.give_back(gate.claim(), slot="clean", failure=Failure("webui-cannot", "x"), elsewhere=True)
    assert table.deletion.forget_refusals() == 0
    claim = table.claim("gpu1", "host/one", "task", EVERYTHING)
    assert gate.finish(claim)
    assert table.deletion.forget_refusals() == 1
    assert table.deletion.forget_refusals() == 0
