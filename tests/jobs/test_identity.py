"""A database that was restored from an older dump, or a replica that lagged behind, gives a sequence number to another job while
somebody still holds the old one: whatever outlives a transaction knows its job by user, type and name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text

from app.jobs import changes as changes_module
from app.jobs.changes import Changes
from app.jobs.errors import JobLost, JobNotFound
from app.jobs.model import Claim, Failure, IdempotencyKey, Identity, Job
from app.jobs.sql.database import Database
from app.jobs.sql.schema import JOBS, METADATA
from app.jobs.table import JobTable
from app.jobs.waiters import Waiter, Waiters
from tests.inprocess import DEADLINE
from tests.jobs.conftest import BOUNDS, EVERYTHING, Gate, success_of

NEVER = 3600.0
KEY = IdempotencyKey("alice's key", "digest")
Dump = dict[str, list[dict[str, Any]]]
#: What a worker or a client does about a job that it knows of; each returns nothing true for one that is lost.
ENDS: dict[str, Callable[[JobTable, Claim], object]] = {
    "succeed": lambda table, claim: table.succeed(claim, success_of(claim)) != "lost",
    "fail": lambda table, claim: table.fail(claim, Failure("webui-error", "It failed.")) != "lost",
    "give back": lambda table, claim: (
        table.give_back(claim, slot="clean", failure=Failure("webui-error", "It failed."), elsewhere=True) != "lost"
    ),
    "give back, WebUI unknown": lambda table, claim: table.give_back(claim, slot="unclean") != "lost",
    "answered": lambda table, claim: table.answered(claim, 1.0, "next task", EVERYTHING),
    "report": lambda table, claim: table.report(claim, 0.5, 1.0),
    "watched": lambda table, claim: table.watched(claim.job._replace(status="running")),
    "seconds since it was watched": lambda table, claim: table.queries.seconds_since_watched(claim),
    "wants": lambda table, claim: table.queries.wants(claim),
}


def dump(database: Database) -> Dump:
    """Every row of every table."""
    with database.read() as connection:
        return {
            table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in METADATA.sorted_tables
        }


def restore(database: Database, dumped: Dump) -> None:
    """Put the rows back in one transaction, and the sequences too."""
    with database.write() as connection:
        for table in METADATA.sorted_tables:
            connection.execute(delete(table))
            if dumped[table.name]:
                connection.execute(insert(table), dumped[table.name])
        for table, column in (("jobs", "seq"), ("requirements", "id")):
            newest = max((row[column] for row in dumped[table]), default=0)
            if database.is_sqlite:
                statement = "UPDATE sqlite_sequence SET seq = :newest WHERE name = :table"
            else:
                statement = "SELECT setval(pg_get_serial_sequence(:table, :column), :newest + 1, false)"
            connection.execute(text(statement).bindparams(table=table, newest=newest, **_column(statement, column)))


def _column(statement: str, column: str) -> dict[str, str]:
    return {"column": column} if ":column" in statement else {}


@pytest.fixture
def older(gate: Gate, database: Database) -> Dump:
    """A dump of a while ago: some jobs are done."""
    for _ in range(3):
        gate.accept("carol")
        gate.run_next()
    return dump(database)


def take_the_number(gate: Gate, older: Dump, lost: Job) -> Job:
    """The dump is restored, and bob's job gets the number of a job that the dump does not know."""
    restore(gate.table.database, older)
    job = gate.accept("bob")
    assert job.seq == lost.seq
    return job


def end_of(waiter: Waiter) -> Job:
    """The job at the end of a wait, for which this thread waits."""
    woken = threading.Event()
    waiter.begin(woken.set)
    while True:
        assert woken.wait(DEADLINE), "nobody woke the client"
        woken.clear()
        job = waiter.check()
        if job is not None:
            return job


class TestWaiting:
    @pytest.fixture
    def waiters(self, table: JobTable, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(changes_module, "_POLL_SECONDS", 0.02)
        changes = Changes(table.revisions)
        waiters = Waiters(table, changes, 4)
        changes.add(waiters)
        yield waiters
        waiters.drain()
        changes.end()

    @pytest.fixture
    def waiting(self, waiters: Waiters) -> Any:
        with ThreadPoolExecutor(1) as pool:

            def wait(job: Job) -> Future[Job]:
                waiter = waiters.reserve()
                waiter.await_end(job.identity, NEVER)
                return pool.submit(end_of, waiter)

            yield wait
            waiters.drain()

    def test_a_client_is_told_that_its_job_is_lost_and_never_gets_the_one_with_its_number(
        self, gate: Gate, older: Dump, waiting: Callable[[Job], Future[Job]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alices = gate.accept("alice")
        future = waiting(alices)
        take_the_number(gate, older, alices)
        gate.run_next()
        with pytest.raises(JobLost):
            future.result(DEADLINE)

    def test_that_the_job_with_the_number_is_finished_wakes_nobody_else(
        self, gate: Gate, older: Dump, waiters: Waiters, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alices = gate.accept("alice")
        bobs = take_the_number(gate, older, alices)
        waiter, woken = waiters.reserve(), threading.Event()
        waiter.await_end(alices.identity, NEVER)
        waiter.begin(woken.set)
        waiters.finished(bobs.identity)
        assert not woken.is_set()
        waiters.finished(alices.identity)
        assert woken.is_set()

    def test_a_client_whose_job_stands_in_the_dump_goes_on_waiting(
        self, gate: Gate, database: Database, waiting: Callable[[Job], Future[Job]]
    ) -> None:
        alices = gate.accept("alice")
        older = dump(database)
        future = waiting(alices)
        gate.accept("bob")
        restore(database, older)
        gate.run_next()
        ended = future.result(DEADLINE)
        assert ended is not None
        assert (ended.identity, ended.status) == (alices.identity, "succeeded")

    def test_a_client_whose_record_was_indexed_anew_under_another_number_gets_it(
        self, gate: Gate, older: Dump, table: JobTable, waiting: Callable[[Job], Future[Job]]
    ) -> None:
        new = gate.new("alice")
        alices, _ = table.accept(new, BOUNDS)
        claim = gate.claim()
        assert claim is not None
        bobs = take_the_number(gate, older, alices)
        assert table.restore(new, success_of(claim), 1, 1)
        ended = waiting(alices).result(DEADLINE)
        assert ended is not None
        assert (ended.identity, ended.status) == (alices.identity, "succeeded")
        assert ended.seq != bobs.seq

    def test_a_deleted_job_is_not_lost(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept("alice")
        gate.run_next()
        table.deletion.delete("alice", "txt2img", job.name)
        with pytest.raises(JobNotFound):
            table.queries.current(job.identity)


class TestClaims:
    """The worst case: the same worker takes bob's job on the same WebUI, so that even owner and number of the claim agree."""

    @pytest.fixture
    def lost(self, gate: Gate, older: Dump) -> Claim:
        """The claim of a worker on alice's job, which the database has lost; bob's job now has its number, and runs."""
        job = gate.accept("alice")
        claim = gate.claim(task="alice's task")
        assert claim is not None
        take_the_number(gate, older, job)
        bobs = gate.claim(task="bob's task")
        assert bobs is not None
        assert (bobs.job.seq, bobs.owner, bobs.slot, bobs.attempt) == (job.seq, claim.owner, claim.slot, claim.attempt)
        return claim

    @pytest.mark.parametrize("end", ENDS)
    def test_a_lost_claim_changes_nothing_of_the_job_with_its_number(
        self, lost: Claim, table: JobTable, database: Database, end: str
    ) -> None:
        before = dump(database)
        assert not ENDS[end](table, lost)
        assert dump(database) == before

    def test_its_files_are_nobody_elses(self, lost: Claim, table: JobTable) -> None:
        assert not table.queries.shares_number(lost)

    def test_the_job_with_the_number_ends_as_ever(self, lost: Claim, gate: Gate, table: JobTable) -> None:
        [bobs] = table.queries.of_user("bob", "running", 9, None)
        mine = Claim(bobs, lost.owner, lost.slot, "bob's task", "{}", lost.leased_at)
        assert gate.finish(mine)
        assert table.queries.current(bobs.identity).status == "succeeded"

    def test_upkeep_fails_no_job_with_the_number(self, gate: Gate, older: Dump, table: JobTable) -> None:
        alices = gate.accept("alice")
        bobs = take_the_number(gate, older, alices)
        assert table.losses.fail_queued(Failure("webui-cannot", "It can't."), jobs=[alices.identity]) == []
        assert table.queries.current(bobs.identity).status == "queued"

    def test_files_that_are_still_to_be_removed_stay_known(self, gate: Gate, older: Dump, table: JobTable) -> None:
        alices = gate.accept("alice")
        gate.run_next()
        table.deletion.delete("alice", "txt2img", alices.name)
        [(pending_unlink, _)] = table.deletion.pending_unlink()
        bobs = take_the_number(gate, older, alices)
        gate.run_next()
        table.deletion.delete("bob", "txt2img", bobs.name)
        table.deletion.unlinked(pending_unlink)
        assert [job.identity for job, _ in table.deletion.pending_unlink()] == [bobs.identity]


class TestHeartbeats:
    def test_a_job_that_its_owner_only_seems_to_store_goes_back_to_the_queue(self, gate: Gate, table: JobTable) -> None:
        jobs = [gate.accept("alice"), gate.accept("bob")]
        first = gate.claim(task="task 0")
        assert first is not None
        second = table.answered(first, 1.0, "task 1", EVERYTHING)
        assert second is not None
        assert table.losses.lose_unknown("host/one", lambda: [first.task_id]) == []
        # The second one is not stored yet; its slot says who sends it.
        [lost] = table.losses.lose_unknown("host/one", list)
        assert (lost.identity, lost.status) == (jobs[0].identity, "queued")
        assert [table.queries.current(job.identity).status for job in jobs] == ["queued", "running"]


class TestForgottenClaims:
    """A replica that lagged behind knows the job but not that it was claimed: its claims get the same numbers once more."""

    @pytest.fixture
    def twice(self, gate: Gate, database: Database) -> tuple[Claim, Claim]:
        gate.accept("alice")
        queued = dump(database)
        first = gate.claim(task="first task")
        restore(database, queued)
        second = gate.claim(task="second task")
        assert first is not None
        assert second is not None
        assert (first.job.identity, first.owner, first.attempt) == (second.job.identity, second.owner, second.attempt)
        return first, second

    def test_only_the_claim_that_the_row_shows_ends_the_job(self, twice: tuple[Claim, Claim], table: JobTable) -> None:
        first, second = twice
        assert not table.queries.wants(first)
        assert table.succeed(first, success_of(first)) == "lost"
        assert table.succeed(second, success_of(second)) == "succeeded"
        assert table.succeed(first, success_of(first)) == "lost"
        # Its own commit once more, whose answer was lost.
        assert table.succeed(second, success_of(second)) == "succeeded"

    def test_files_of_that_number_are_the_other_claims(self, twice: tuple[Claim, Claim], table: JobTable) -> None:
        first, second = twice
        assert table.queries.shares_number(first)
        assert not table.queries.shares_number(second)
        table.succeed(second, success_of(second))
        assert table.queries.shares_number(first)


class TestKeys:
    def test_a_key_of_a_lost_job_never_answers_with_the_job_that_has_its_number(
        self, gate: Gate, older: Dump, table: JobTable
    ) -> None:
        alices = gate.accept("alice", key=KEY)
        bobs = take_the_number(gate, older, alices)
        assert table.find_key("alice", KEY) is None
        again = gate.accept("alice", key=KEY)
        assert again.identity not in (alices.identity, bobs.identity)
        assert table.find_key("alice", KEY) == again

    def test_a_key_finds_its_job_whatever_its_number(self, gate: Gate, table: JobTable, database: Database) -> None:
        job = gate.accept("alice", key=KEY)
        other = gate.accept("alice")
        with database.write() as connection:
            for seq, name in ((-1, job.name), (job.seq, other.name), (other.seq, job.name)):
                connection.execute(text("UPDATE jobs SET seq = :seq WHERE name = :name"), {"seq": seq, "name": name})
        found = table.find_key("alice", KEY)
        assert found is not None
        assert (found.identity, found.seq) == (job.identity, other.seq)


class TestStatuses:
    def test_of_jobs_with_one_name_each_has_its_own(self, gate: Gate, table: JobTable, database: Database) -> None:
        """Names are random, but nothing forbids that two users' jobs have the same one."""
        alices, bobs = gate.accept("alice"), gate.accept("bob")
        gate.run_next()
        with database.write() as connection:
            connection.execute(JOBS.update().values(name=alices.name))
        wanted = [Identity(user, "txt2img", alices.name) for user in ("alice", "bob", "nobody")]
        latest = table.revisions.latest(wanted)
        assert {job: change.status for job, change in latest.items()} == {
            wanted[0]: "succeeded",
            wanted[1]: bobs.status,
        }
