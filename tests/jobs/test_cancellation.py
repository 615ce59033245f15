"""Cancelling and deadlines in the job table: every statement that would give a cancelled job back ends it instead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from app.jobs.errors import JobNotFound
from app.jobs.losses import MAX_LOSSES
from app.jobs.model import Claim, Failure, Identity
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import MAX_ATTEMPTS, Bounds, JobTable
from tests.inprocess import DEADLINE
from tests.jobs.conftest import EVERYTHING, Gate, success_of

FAILURE = Failure("webui-error", "It failed.")
#: Everything that ends a claim without a result, or with one that is too late; each says what it made of the job.
ENDS: dict[str, Callable[[JobTable, Claim], str]] = {
    "succeed": lambda table, claim: table.succeed(claim, success_of(claim)),
    "fail": lambda table, claim: table.fail(claim, FAILURE),
    "give back": lambda table, claim: table.give_back(claim, slot="clean"),
    "the last attempt fails": lambda table, claim: table.give_back(
        claim, slot="unclean", failure=FAILURE, one_by_one=True, elsewhere=True
    ),
    "release orphans": lambda table, claim: table.losses.release_orphans(claim.slot, claim.owner)[0].status,
    "take over": lambda table, claim: table.losses.take_over("host", "host/next")[0].status,
    "lose unknown": lambda table, claim: (
        table.answered(claim, 1.0, None, EVERYTHING) or table.losses.lose_unknown(claim.owner, lambda: ())[0].status
    ),
}


@pytest.fixture
def claim(gate: Gate) -> Claim:
    gate.accept()
    claim = gate.claim()
    assert claim is not None
    return claim


def counts(database: Database) -> tuple[int, int]:
    """Unfinished jobs, as the clock and as the users count them."""
    with database.read() as connection:
        total = connection.execute(text("SELECT unfinished FROM clock")).scalar_one()
        return total, connection.execute(text("SELECT sum(unfinished) FROM users")).scalar_one()


class TestWaiting:
    def test_a_waiting_job_ends_at_once(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        ended, changed = table.cancellation.cancel(job.identity)
        assert (ended.status, changed, ended.error_slug, ended.claims) == ("cancelled", True, "job-cancelled", 0)
        assert ended.cancel_at is not None
        assert ended.finished_at is not None
        assert counts(table.database) == (0, 0)
        assert gate.claim() is None

    def test_again_it_is_told_and_nothing_changes(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        ended, _ = table.cancellation.cancel(job.identity)
        assert table.cancellation.cancel(job.identity) == (ended, False)

    def test_a_finished_job_stays_as_it_ended(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        job = gate.run_next()
        shown, changed = table.cancellation.cancel(job.identity)
        assert (shown.status, shown.cancel_at, changed) == ("succeeded", None, False)

    @pytest.mark.parametrize("deleted", [True, False])
    def test_what_is_not_there_can_not_be_cancelled(self, gate: Gate, table: JobTable, deleted: bool) -> None:
        identity = gate.accept().identity if deleted else Identity("u1", "txt2img", "nothing")
        if deleted:
            table.deletion.delete(*identity)
        with pytest.raises(JobNotFound):
            table.cancellation.cancel(identity)

    def test_all_of_a_user_that_wait_and_no_other(self, gate: Gate, table: JobTable) -> None:
        running = gate.accept("u1")
        gate.claim()
        waiting = [gate.accept("u1") for _ in range(3)]
        other = gate.accept("u2")
        ended = table.cancellation.cancel_queued("u1")
        assert [job.name for job in ended] == [job.name for job in reversed(waiting)]
        assert {job.status for job in ended} == {"cancelled"}
        statuses = {
            job: last.status for job, last in table.revisions.latest([running.identity, other.identity]).items()
        }
        assert statuses == {running.identity: "running", other.identity: "queued"}
        assert table.cancellation.cancel_queued("u1") == []
        assert counts(table.database) == (2, 2)

    def test_the_user_is_charged_no_longer(self, gate: Gate, table: JobTable) -> None:
        first, second, third = (gate.accept("u1", cost=10.0) for _ in range(3))
        assert [job.start_tag for job in (first, second, third)] == [0.0, 10.0, 20.0]
        table.cancellation.cancel(second.identity)
        assert gate.accept("u1").start_tag == 30.0
        table.cancellation.cancel_queued("u1")
        assert gate.accept("u1").start_tag == 0.0

    def test_room_is_there_at_once(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept(bounds=Bounds(1, 1))
        table.cancellation.cancel(job.identity)
        gate.accept(bounds=Bounds(1, 1))

    def test_files_of_its_claims_are_to_be_removed(self, gate: Gate, table: JobTable) -> None:
        never, claimed = gate.accept("u1"), gate.accept("u2")
        table.cancellation.cancel(never.identity)
        assert gate.claim() is not None
        [lost] = table.losses.take_over("host", "host/next")
        assert lost.identity == claimed.identity
        table.cancellation.cancel(lost.identity)
        assert [(found.name, whole) for found, whole in table.deletion.pending_unlink()] == [(claimed.name, False)]


def test_where_there_is_nothing_to_end_no_writer_waits(gate: Gate, table: JobTable) -> None:
    """Else whoever asks again and again takes the right to write from all others."""
    gate.accept()
    gate.run_next()
    [succeeded] = table.queries.of_user("u1", "succeeded", 1, None)
    cancelled, _ = table.cancellation.cancel(gate.accept().identity)
    gate.accept()
    assert gate.claim() is not None
    [running] = table.queries.of_user("u1", "running", 1, None)
    asked, _ = table.cancellation.cancel(running.identity)
    nothing = Identity("u1", "txt2img", "nothing")
    with ThreadPoolExecutor(1) as pool, table.database.write():
        for job in (succeeded, cancelled, asked):
            shown, changed = pool.submit(table.cancellation.cancel, job.identity).result(DEADLINE)
            assert (shown.identity, shown.status, changed) == (job.identity, job.status, False)
        assert pool.submit(table.cancellation.cancel_queued, "u1").result(DEADLINE) == []
        for ask in (table.cancellation.cancel, lambda job: table.deletion.delete(*job)):
            with pytest.raises(JobNotFound):
                pool.submit(ask, nothing).result(DEADLINE)
        with pytest.raises(JobNotFound):
            pool.submit(table.deletion.delete_image, *nothing, "nothing-1-0.png").result(DEADLINE)


class TestRunning:
    def test_a_running_job_is_marked_once(self, claim: Claim, table: JobTable, slots: Slots) -> None:
        assert slots.heartbeat("host/one").unwanted == set()
        asked, changed = table.cancellation.cancel(claim.job.identity)
        assert (asked.status, changed, asked.owner, asked.slot) == ("running", True, claim.owner, claim.slot)
        assert asked.rev > claim.job.rev
        assert table.cancellation.cancel(claim.job.identity) == (asked, False)
        assert slots.heartbeat("host/one").unwanted == {claim.task_id}
        assert slots.heartbeat("host/two").unwanted == set()
        assert not table.queries.wants(claim)

    @pytest.mark.parametrize("end", ENDS)
    def test_it_ends_as_cancelled_whatever_its_claim_comes_to(self, claim: Claim, table: JobTable, end: str) -> None:
        with table.database.write() as connection:
            last = {"attempts": MAX_ATTEMPTS - 1, "losses": MAX_LOSSES}
            connection.execute(text("UPDATE jobs SET attempts = :attempts, losses = :losses"), last)
        table.cancellation.cancel(claim.job.identity)
        assert ENDS[end](table, claim) == "cancelled"
        job = table.queries.current(claim.job.identity)
        assert (job.status, job.error_slug, job.owner, job.slot) == ("cancelled", "job-cancelled", None, None)
        assert job.finished_at is not None
        assert counts(table.database) == (0, 0)
        assert [(found.name, whole) for found, whole in table.deletion.pending_unlink()] == [(job.name, False)]

    @pytest.mark.parametrize("end", ["succeed", "fail"])
    def test_a_repeated_finish_is_answered_like_the_first(self, claim: Claim, table: JobTable, end: str) -> None:
        table.cancellation.cancel(claim.job.identity)
        assert [ENDS[end](table, claim) for _ in range(2)] == ["cancelled", "cancelled"]

    def test_who_has_lost_the_claim_has_not_ended_it(
        self, claim: Claim, table: JobTable, advance: Callable[[float], None]
    ) -> None:
        table.cancellation.cancel(claim.job.identity)
        advance(11)
        [lost] = table.losses.reclaim("host/two")
        assert (lost.status, lost.error_slug) == ("cancelled", "job-cancelled")
        assert table.succeed(claim, success_of(claim)) == "lost"

    def test_the_finish_wins_where_it_commits_first(self, claim: Claim, table: JobTable) -> None:
        assert table.succeed(claim, success_of(claim)) == "succeeded"
        job, changed = table.cancellation.cancel(claim.job.identity)
        assert (job.status, changed) == ("succeeded", False)

    def test_its_slot_stays_until_the_reply(self, claim: Claim, table: JobTable, slots: Slots, gate: Gate) -> None:
        gate.accept("u2")
        table.cancellation.cancel(claim.job.identity)
        assert gate.claim() is None
        following = table.answered(claim, None, "next task", EVERYTHING)
        assert following is not None
        assert table.give_back(claim, slot="clean") == "cancelled"
        slot = slots.get("gpu0")
        assert slot is not None
        assert (slot.state, slot.task_id) == ("held", "next task")


class TestDeadline:
    def test_a_job_beyond_it_is_not_begun_but_ended(
        self, gate: Gate, table: JobTable, advance: Callable[[float], None]
    ) -> None:
        late, in_time = gate.accept(cancel_after=5.0), gate.accept(cancel_after=60.0)
        advance(6)
        claim = gate.claim()
        assert claim is not None
        assert claim.job.name == in_time.name
        [ended] = table.cancellation.end_overdue()
        assert (ended.name, ended.status, ended.error_slug) == (late.name, "cancelled", "deadline-passed")
        assert ended.cancel_at is None
        assert table.cancellation.end_overdue() == []
        assert counts(table.database) == (1, 1)

    def test_a_running_job_is_marked_once(
        self, gate: Gate, table: JobTable, slots: Slots, advance: Callable[[float], None]
    ) -> None:
        gate.accept(cancel_after=5.0)
        claim = gate.claim()
        assert claim is not None
        assert table.cancellation.end_overdue() == []
        advance(6)
        [asked] = table.cancellation.end_overdue()
        assert (asked.status, asked.error_slug) == ("running", None)
        assert table.cancellation.end_overdue() == []
        assert slots.heartbeat("host/one").unwanted == {claim.task_id}
        assert table.succeed(claim, success_of(claim)) == "cancelled"
        assert table.queries.current(asked.identity).error_slug == "deadline-passed"

    def test_who_cancelled_before_it_is_told_so(
        self, gate: Gate, table: JobTable, advance: Callable[[float], None]
    ) -> None:
        job = gate.accept(cancel_after=5.0)
        claim = gate.claim()
        assert claim is not None
        table.cancellation.cancel(job.identity)
        advance(6)
        assert table.cancellation.end_overdue() == []
        assert table.give_back(claim, slot="clean") == "cancelled"
        assert table.queries.current(job.identity).error_slug == "job-cancelled"

    def test_a_job_that_ended_in_time_keeps_its_end(
        self, gate: Gate, table: JobTable, advance: Callable[[float], None]
    ) -> None:
        gate.accept(cancel_after=5.0)
        job = gate.run_next()
        advance(6)
        assert table.cancellation.end_overdue() == []
        assert table.queries.current(job.identity).status == "succeeded"
