"""The order of changes: which versions are told, and who may go on from one."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from app.jobs.model import IdempotencyKey
from app.jobs.revisions import Revisions, Version
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import JobTable, Serving
from tests.jobs.conftest import Gate


@pytest.fixture
def revisions(table: JobTable) -> Revisions:
    return table.revisions


def restore_a_dump(database: Database, rev: int, *, forget: int) -> None:
    """The database as it stood at ``rev``, without the rows that came later, and without the epoch ``forget``."""
    with database.write() as connection:
        connection.execute(text("UPDATE clock SET rev = :rev"), {"rev": rev})
        connection.execute(text("DELETE FROM jobs WHERE rev > :rev"), {"rev": rev})
        connection.execute(text("DELETE FROM epochs WHERE epoch = :epoch"), {"epoch": forget})


class TestVersion:
    def test_is_written_and_read(self) -> None:
        assert Version.parse(str(Version(1_795_000_000, 48211))) == (1_795_000_000, 48211)

    @pytest.mark.parametrize(
        "text", ["", "7", "7-", "-7", "7-7-7", "a-1", " 7-7", "7-7\n", "+7-7", "٧-7", f"{10**18}-1"]
    )
    def test_nothing_else_is_one(self, text: str) -> None:
        assert Version.parse(text) is None


class TestChanges:
    def test_each_job_is_told_once_with_its_last_change(self, gate: Gate, revisions: Revisions) -> None:
        start = revisions.current().rev
        first, second = gate.accept("u1"), gate.accept("u2")
        claim = gate.claim()
        assert claim is not None
        gate.finish(claim)
        changes = revisions.changes(start, 10)
        assert [(change.identity, change.status) for change in changes] == [
            (second.identity, "queued"),
            (first.identity, "succeeded"),
        ]
        assert changes[-1].rev == revisions.current().rev
        assert revisions.changes(changes[0].rev, 10) == changes[1:]
        assert revisions.changes(start, 1) == changes[:1]
        assert revisions.of_user("u1", start, 10) == changes[1:]

    def test_a_deleted_job_is_told_as_deleted(self, gate: Gate, revisions: Revisions) -> None:
        job = gate.run_next() if gate.accept() else None
        assert job is not None
        before = revisions.current().rev
        gate.table.deletion.delete(*job.identity)
        assert [(change.identity, change.status) for change in revisions.changes(before, 10)] == [
            (job.identity, "deleted")
        ]

    def test_a_job_carries_the_rev_of_its_last_change(self, gate: Gate, revisions: Revisions) -> None:
        job = gate.accept()
        assert job.rev == revisions.current().rev
        claim = gate.claim()
        assert claim is not None
        assert claim.job.rev == revisions.current().rev == job.rev + 1

    def test_heartbeats_progress_and_watchers_change_nothing(
        self, gate: Gate, slots: Slots, revisions: Revisions
    ) -> None:
        gate.accept()
        claim = gate.claim()
        assert claim is not None
        before = revisions.current()
        slots.heartbeat("host/one")
        gate.table.report(claim, 0.5, 1.0)
        gate.table.watched(claim.job)
        assert (revisions.current(), revisions.changes(before.rev, 10)) == (before, [])

    def test_what_is_refused_or_repeated_changes_nothing(self, gate: Gate, revisions: Revisions) -> None:
        key = IdempotencyKey("k", "digest")
        gate.accept(key=key)
        before = revisions.current()
        gate.accept(key=key)
        assert gate.claim(serving=Serving(known=0, unservable=frozenset())) is None
        assert revisions.current() == before


class TestEpochs:
    def test_every_rev_has_one_from_the_beginning(self, database: Database, revisions: Revisions) -> None:
        assert revisions.epoch_of(0) > 0
        assert revisions.current() == revisions.version_of(revisions.current().rev)

    def test_begins_with_the_next_change(self, gate: Gate, revisions: Revisions) -> None:
        gate.accept()
        before = revisions.current()
        epoch = revisions.begin_epoch()
        assert revisions.current() == before
        assert epoch > before.epoch
        gate.accept()
        assert revisions.current() == Version(epoch, before.rev + 1)
        assert revisions.version_of(before.rev) == before

    def test_begins_with_a_worker(self, gate: Gate, slots: Slots, revisions: Revisions) -> None:
        gate.accept()
        before = revisions.current()
        slots.register("host/two", "host", ["gpu0"], only=True)
        gate.accept()
        assert revisions.current().epoch > before.epoch

    def test_its_number_is_the_time_where_that_is_later(self, gate: Gate, revisions: Revisions) -> None:
        with gate.table.database.write() as connection:
            connection.execute(text("UPDATE epochs SET epoch = 5 WHERE epoch = (SELECT max(epoch) FROM epochs)"))
            connection.execute(text("DELETE FROM epochs WHERE epoch > 5"))
        assert abs(revisions.begin_epoch() - time.time()) < 60
        assert revisions.begin_epoch() > revisions.epoch_of(0)

    def test_those_without_a_change_are_not_kept(self, gate: Gate, revisions: Revisions) -> None:
        def count() -> int:
            with gate.table.database.read() as connection:
                return connection.execute(text("SELECT count(*) FROM epochs")).scalar_one()

        gate.accept()
        revisions.begin_epoch()
        before = count()
        last = [revisions.begin_epoch() for _ in range(3)][-1]
        assert count() == before
        gate.accept()
        assert revisions.current().epoch == last


class TestResuming:
    def test_a_version_that_was_told_can_be_resumed(self, gate: Gate, revisions: Revisions) -> None:
        told = [revisions.current()]
        for _ in range(3):
            gate.accept()
            told.append(revisions.current())
            revisions.begin_epoch()
        assert all(revisions.is_resumable(*version) for version in told)

    def test_no_other_one_can(self, gate: Gate, revisions: Revisions) -> None:
        gate.accept()
        before = revisions.current()
        epoch = revisions.begin_epoch()
        gate.accept()
        now = revisions.current()
        for other in (
            Version(now.epoch, now.rev + 1),
            Version(before.epoch, now.rev),
            Version(epoch, before.rev),
            Version(epoch + 1, now.rev),
            Version(0, 0),
        ):
            assert not revisions.is_resumable(*other), other

    def test_what_a_restored_dump_has_lost_can_not(self, gate: Gate, revisions: Revisions) -> None:
        """Neither a rev that is given a second time, nor one of an epoch that only the lost part of the database knew."""
        revs = []
        for _ in range(3):
            gate.accept()
            revs.append(revisions.current().rev)
            if len(revs) == 2:
                revisions.begin_epoch()
        with gate.table.database.write() as connection:
            connection.execute(text("UPDATE epochs SET epoch = epoch - 1000"))
        kept, lost, lost_too = map(revisions.version_of, revs)
        assert lost_too.epoch > lost.epoch
        restore_a_dump(gate.table.database, kept.rev, forget=lost_too.epoch)
        assert revisions.begin_epoch() > lost_too.epoch
        for _ in range(3):
            gate.accept()
        assert revisions.is_resumable(*kept)
        assert not revisions.is_resumable(*lost)
        assert not revisions.is_resumable(*lost_too)

    def test_rows_that_are_gone_for_good_can_not_be_told_any_more(self, gate: Gate, revisions: Revisions) -> None:
        start = revisions.current()
        gate.accept()
        job = gate.run_next()
        gate.table.deletion.delete(*job.identity)
        deleted = revisions.current()
        gate.accept()
        assert revisions.is_resumable(*start)
        gate.table.deletion.unlinked(job)
        with gate.table.database.write() as connection:
            connection.execute(text("UPDATE jobs SET finished_at = 1 WHERE status = 'deleted'"))
        assert gate.table.deletion.forget_deleted() == 1
        assert not revisions.is_resumable(*start)
        assert revisions.is_resumable(*deleted)
        assert revisions.is_resumable(*revisions.current())
