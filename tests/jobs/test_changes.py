"""The thread that tells what changed: nothing is missed, whoever comes and goes, and a restored database is noticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import text

from app.jobs import changes as changes_module
from app.jobs.changes import Changes
from app.jobs.model import Identity
from app.jobs.revisions import Change, Version
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import Bounds, JobTable
from tests.inprocess import make_clean, until
from tests.jobs.conftest import Gate

MANY = Bounds(10_000, 10_000)


class Watcher:
    """A follower that notes what it is told."""

    def __init__(self) -> None:
        self.active = False
        self.immediate = False
        self.changes: list[Change] = []
        self.lost: list[Version] = []
        self.reads = 0

    def follows(self) -> bool:
        return self.active

    def wants_immediate_reads(self) -> bool:
        return self.immediate

    def changed(self, changes: Sequence[Change], version: Version) -> None:
        del version
        self.changes += changes
        self.reads += 1

    def lost_track(self, version: Version) -> None:
        self.lost.append(version)


@pytest.fixture
def gate(sqlite: Database) -> Gate:
    slots = Slots(sqlite)
    slots.register("host/one", "host", ["gpu0"], only=True)
    make_clean(slots, "gpu0")
    return Gate(JobTable(sqlite))


@pytest.fixture
def changes(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Changes]:
    monkeypatch.setattr(changes_module, "_POLL_SECONDS", 0.02)
    changes = Changes(gate.table.revisions)
    yield changes
    changes.end()


@pytest.fixture
def watcher(changes: Changes) -> Watcher:
    watcher = Watcher()
    changes.add(watcher)
    return watcher


def follow(changes: Changes, watcher: Watcher, since: int | None = None) -> None:
    watcher.active = True
    changes.follow(since)


def names(watcher: Watcher) -> set[str]:
    return {change.identity.name for change in watcher.changes}


def test_changes_since_a_rev_are_told_once_each_and_in_order(gate: Gate, changes: Changes, watcher: Watcher) -> None:
    before = gate.table.revisions.current().rev
    jobs = [gate.accept() for _ in range(5)]
    follow(changes, watcher, before)
    until(lambda: len(watcher.changes) == 5)
    gate.run_next()
    until(lambda: watcher.changes[-1].status == "succeeded")
    revs = [change.rev for change in watcher.changes]
    assert revs == sorted(revs)
    assert [change.identity for change in watcher.changes[:5]] == [job.identity for job in jobs]


def test_one_who_comes_with_an_older_rev_misses_nothing(gate: Gate, changes: Changes, watcher: Watcher) -> None:
    start = gate.table.revisions.current().rev
    early = gate.accept()
    follow(changes, watcher, gate.table.revisions.current().rev)
    until(lambda: watcher.reads)
    assert early.name not in names(watcher)
    changes.follow(start)
    until(lambda: early.name in names(watcher))


def test_nobody_is_read_for_while_nobody_follows(gate: Gate, changes: Changes, watcher: Watcher) -> None:
    follow(changes, watcher)
    until(lambda: watcher.reads)
    watcher.active = False
    gate.accept()
    # The read that was under way is the last one.
    until(lambda: changes._up_to is None)
    reads = watcher.reads
    assert not threading.Event().wait(0.2)
    assert watcher.reads == reads


def test_hundreds_of_one_rev_are_all_told(gate: Gate, changes: Changes, watcher: Watcher) -> None:
    jobs = [gate.accept(bounds=MANY) for _ in range(620)]
    follow(changes, watcher, gate.table.revisions.current().rev)
    gate.table.cancellation.cancel_queued("u1")
    until(lambda: len(watcher.changes) >= len(jobs))
    assert names(watcher) == {job.name for job in jobs}
    assert {change.status for change in watcher.changes} == {"cancelled"}


class TestAnotherDatabase:
    def set_back(self, gate: Gate, rev: int) -> None:
        with gate.table.database.write() as connection:
            connection.execute(text("UPDATE clock SET rev = :rev"), {"rev": rev})

    def test_a_lower_rev_is_noticed_also_after_a_pause(self, gate: Gate, changes: Changes, watcher: Watcher) -> None:
        start = gate.table.revisions.current().rev
        for _ in range(5):
            gate.accept()
        follow(changes, watcher)
        until(lambda: watcher.reads)
        watcher.active = False
        until(lambda: changes._up_to is None)
        self.set_back(gate, start)
        before = gate.table.revisions.epoch_of(start + 1)
        follow(changes, watcher)
        until(lambda: watcher.lost)
        assert gate.table.revisions.epoch_of(start + 1) != before

    def test_a_rev_that_only_a_follower_has_seen_counts(self, gate: Gate, changes: Changes, watcher: Watcher) -> None:
        """The database was set back before this thread had read what the follower had."""
        follow(changes, watcher)
        until(lambda: watcher.reads)
        changes.follow(gate.table.revisions.current().rev + 5)
        until(lambda: watcher.lost)

    def test_what_was_purged_before_it_was_told_is_lost(self, gate: Gate, changes: Changes, watcher: Watcher) -> None:
        job = gate.accept()
        gate.run_next()
        since = gate.table.revisions.current().rev
        gate.table.deletion.delete(*job.identity)
        with gate.table.database.write() as connection:
            connection.execute(text("UPDATE clock SET purged_rev = rev"))
            connection.execute(text("DELETE FROM jobs WHERE name = :name"), {"name": job.name})
            connection.execute(text("UPDATE clock SET rev = rev + 1"))
        follow(changes, watcher, since)
        until(lambda: watcher.lost)
        assert watcher.changes == []


def test_the_latest_change_of_hundreds_of_jobs(gate: Gate) -> None:
    jobs = [gate.accept(bounds=MANY).identity for _ in range(520)]
    latest = gate.table.revisions.latest([*jobs, Identity("u1", "txt2img", "gone")])
    assert list(latest) == jobs
