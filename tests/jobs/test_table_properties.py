"""The job table under random interleavings of clients and workers, against a model of what it promises.

The model is a plain reading of the rules: who owns what until when, who comes next. After every step the rows must say the same as
the model, and the invariants, which are written down once more without it, must hold.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Row, text

from app.jobs import losses
from app.jobs.errors import (
    JobNotFound,
    KeyOfDeletedJob,
    KeyReused,
    QueueFull,
    UserQueueFull,
)
from app.jobs.model import Claim, Failure, IdempotencyKey, Identity, Job, NewJob, Success
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.sql.schema import CLOCK, EPOCHS, METADATA
from app.jobs.sql.statements import LEASE_SECONDS
from app.jobs.table import MAX_ATTEMPTS, Bounds, JobTable
from tests.inprocess import make_clean
from tests.jobs.conftest import EVERYTHING, move_clock

USERS = ("u1", "用户")
OWNERS = ("h1/a", "h1/b")
SLOTS = ("gpu0", "gpu1")
BOUNDS = Bounds(total=5, per_user=3)
#: Few enough to be reached.
MAX_LOSSES = 1
KEY_SECONDS = 24 * 3600.0
#: A lease that lies further ahead than a heartbeat could have put it is clipped.
_SLACK = 1.0
FAILURE = Failure("webui-error", "It failed.")
#: Which one of those there are, whatever their number.
_PICK = st.integers(0, 2**16)


@dataclass
class ModelJob:
    """The expected row of a job."""

    seq: int
    name: str
    user: str
    cost: float
    tag: float
    status: str = "queued"
    claims: int = 0
    attempts: int = 0
    losses: int = 0
    owner: str | None = None
    slot: str | None = None
    phase: str | None = None
    lease: float = 0.0
    images: list[str] = field(default_factory=list)
    wins: int = 0
    #: Why its end was asked for while it ran.
    asked: str | None = None
    #: Seconds of the model's clock.
    deadline: float | None = None
    error: str | None = None
    #: It failed because its workers were lost too often.
    lost: bool = False

    @property
    def unfinished(self) -> bool:
        return self.status in ("queued", "running")

    def free(self, status: str) -> None:
        self.status, self.owner, self.slot, self.phase = status, None, None, None

    def give_back(self, otherwise: str = "queued") -> str:
        """It goes back to the queue, or becomes what is said; unless its end was asked for. What has become of it."""
        self.free("cancelled" if self.asked else otherwise)
        self.error = self.asked
        self.wins += not self.unfinished
        return self.status

    def cancel(self, error: str) -> None:
        """It waits no longer, or its end is asked for."""
        if self.status == "queued":
            self.free("cancelled")
            self.error = error
            self.wins += 1
        else:
            self.asked = error


@dataclass
class ModelSlot:
    """The expected row of a slot."""

    state: str = "clean"
    owner: str | None = None
    task: str | None = None
    lease: float = 0.0

    def leave(self, state: str) -> None:
        self.state, self.owner = state, None
        self.task = None if state == "clean" else self.task


@dataclass
class Attempt:
    """A claim that somebody got, whatever has become of it since."""

    claim: Claim
    job: ModelJob
    #: The WebUI's reply was reported; only then a worker stores and finishes.
    answered: bool = False

    @property
    def owns(self) -> bool:
        return self.job.status == "running" and self.shown

    @property
    def shown(self) -> bool:
        """The row shows the claim: as long as it holds, and for a while where the job was deleted."""
        return (self.job.owner, self.job.claims) == (self.claim.owner, self.claim.attempt)

    def finish(self, status: str) -> str:
        """The model's side of a finish; what it answers."""
        if self.owns:
            return self.job.give_back(status)
        return "deleted" if self.lose() else self.repeated()

    def repeated(self) -> str:
        """A finish that is repeated, since the answer to the commit was lost, is answered like the first one."""
        job = self.job
        mine = job.claims == self.claim.attempt and not job.lost
        if job.status == "cancelled":
            mine = mine and job.losses == self.claim.job.losses
        return job.status if mine and job.status in ("succeeded", "failed", "cancelled") else "lost"

    def lose(self) -> bool:
        """The claim of a deleted job has ended: nobody writes files of it any more. Whether it was one that still held."""
        held = self.shown
        if held:
            self.job.free("deleted")
        return held


class TableMachine(RuleBasedStateMachine):
    """Clients, workers of two hosts, a clock that is moved."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        empty(self.database)
        self.table = JobTable(self.database)
        self.rows = Slots(self.database)
        for owner in OWNERS:
            self.rows.register(owner, owner.partition("/")[0], SLOTS, only=False)
        make_clean(self.rows, *SLOTS)
        self.jobs: list[ModelJob] = []
        self.attempts: list[Attempt] = []
        self.slots = {key: ModelSlot() for key in SLOTS}
        self.keys: dict[tuple[str, str], tuple[str, ModelJob, float]] = {}
        self.now = 0.0
        self.virtual = 0.0
        self.finish: dict[str, float] = {}
        self._numbers = itertools.count(1)
        #: What a client saw of each job after the last step, and the last rev then.
        self.seen: dict[str, tuple[Any, ...]] = {}
        self.rev = self.table.revisions.current().rev

    # -- clients -----------------------------------------------------------------------------------------------------

    @rule(
        user=st.sampled_from(USERS),
        cost=st.sampled_from([1.0, 2.0, 8.0]),
        key=st.sampled_from([None, None, "k1", "k2"]),
        digest=st.sampled_from(["a", "a", "a", "b"]),
        cancel_after=st.sampled_from([None, None, None, 10.0, 7200.0]),
    )
    def accept(self, user: str, cost: float, key: str | None, digest: str, cancel_after: float | None) -> None:
        new = self._new(user, cost, cancel_after)
        given = IdempotencyKey(key, digest) if key is not None else None
        refusal = self._refusal(user, key, digest)
        if refusal is not None:
            with pytest.raises(refusal):
                self.table.accept(new, BOUNDS, given)
            return
        job, created = self.table.accept(new, BOUNDS, given)
        known = self._known(user, key)
        if known is not None:
            assert (job.seq, created) == (known[1].seq, False)
            return
        assert created
        tag = max(self.virtual, self.finish.get(user, 0.0))
        self.finish[user] = tag + cost
        deadline = None if cancel_after is None else self.now + cancel_after
        model = ModelJob(job.seq, new.name, user, cost, tag, deadline=deadline)
        self.jobs.append(model)
        if key is not None:
            self.keys[user, key] = (digest, model, self.now + KEY_SECONDS)

    def _new(self, user: str, cost: float, cancel_after: float | None = None) -> NewJob:
        number = next(self._numbers)
        return NewJob(
            user_id=user,
            type="txt2img",
            name=f"20261122T061530{number % 1000:03d}-{number:08x}",
            created_at=1_795_000_000_000 + number,
            args={"seed": str(number)},
            init_image=None,
            requirements="{}",
            cost=cost,
            cancel_after=cancel_after,
        )

    def _known(self, user: str, key: str | None) -> tuple[str, ModelJob, float] | None:
        known = self.keys.get((user, key)) if key is not None else None
        return known if known is not None and known[2] > self.now else None

    def _refusal(self, user: str, key: str | None, digest: str) -> type[Exception] | None:
        known = self._known(user, key)
        if known is not None:
            if known[0] != digest:
                return KeyReused
            return KeyOfDeletedJob if known[1].status == "deleted" else None
        unfinished = [job.user for job in self.jobs if job.unfinished]
        if len(unfinished) >= BOUNDS.total:
            return QueueFull
        return UserQueueFull if unfinished.count(user) >= BOUNDS.per_user else None

    @rule(pick=_PICK)
    def delete(self, pick: int) -> None:
        job = self._any_job(pick)
        if job is None:
            return
        if job.status == "deleted":
            with pytest.raises(JobNotFound):
                self.table.deletion.delete(job.user, "txt2img", job.name)
            return
        assert self.table.deletion.delete(job.user, "txt2img", job.name).status == job.status
        waited = job.status == "queued"
        job.status, job.images = "deleted", []
        if waited:
            self._charge_no_longer(job.user)

    def _charge_no_longer(self, user: str) -> None:
        left = [job.tag + job.cost for job in self.jobs if job.user == user and job.unfinished]
        self.finish[user] = max(self.virtual, *left, 0.0)

    def _is_late(self, job: ModelJob) -> bool:
        return job.deadline is not None and job.deadline <= self.now

    @rule(pick=_PICK)
    def cancel(self, pick: int) -> None:
        job = self._any_job(pick)
        if job is None:
            return
        identity = Identity(job.user, "txt2img", job.name)
        if job.status == "deleted":
            with pytest.raises(JobNotFound):
                self.table.cancellation.cancel(identity)
            return
        before = job.status
        changes = before == "queued" or (before == "running" and job.asked is None)
        if changes:
            job.cancel("deadline-passed" if self._is_late(job) and before == "running" else "job-cancelled")
        now, changed = self.table.cancellation.cancel(identity)
        assert (now.status, changed) == (job.status, changes)
        if before == "queued":
            self._charge_no_longer(job.user)

    @rule(user=st.sampled_from(USERS))
    def cancel_all_that_wait(self, user: str) -> None:
        waiting = [job for job in self.jobs if (job.user, job.status) == (user, "queued")]
        ended = self.table.cancellation.cancel_queued(user)
        assert [job.name for job in ended] == [job.name for job in reversed(waiting)]
        for job in waiting:
            job.cancel("job-cancelled")
        if waiting:
            self._charge_no_longer(user)

    @rule()
    def end_overdue(self) -> None:
        late = [job for job in self.jobs if job.unfinished and job.asked is None and self._is_late(job)]
        waited = {job.user for job in late if job.status == "queued"}
        ended = self.table.cancellation.end_overdue()
        for job in late:
            job.cancel("deadline-passed")
        assert sorted((job.name, job.status) for job in ended) == sorted((job.name, job.status) for job in late)
        for user in waited:
            self._charge_no_longer(user)

    @rule(pick=_PICK, index=st.integers(0, 2))
    def delete_image(self, pick: int, index: int) -> None:
        job = self._any_job(pick)
        if job is None:
            return
        filename = job.images[index] if index < len(job.images) else f"{job.name}-99-0.png"
        if filename not in job.images:
            with pytest.raises(JobNotFound):
                self.table.deletion.delete_image(job.user, "txt2img", job.name, filename)
            return
        _, whole = self.table.deletion.delete_image(job.user, "txt2img", job.name, filename)
        job.images.remove(filename)
        assert whole == (not job.images)
        job.status = "deleted" if whole else job.status

    @rule(pick=_PICK)
    def reindex(self, pick: int) -> None:
        """A row that is there in any state, deleted ones too, is not made again."""
        job = self._any_job(pick)
        if job is None:
            return
        new = self._new(job.user, 0.0)
        success = Success(1, {}, [{"filename": "x"}], {}, simulated=True)
        assert not self.table.restore(NewJob(**{**_fields(new), "name": job.name}), success, None, 1)

    def _queue(self) -> list[ModelJob]:
        return sorted((job for job in self.jobs if job.status == "queued"), key=lambda job: (job.tag, job.seq))

    def _startable(self) -> list[ModelJob]:
        return [job for job in self._queue() if not self._is_late(job)]

    def _any_job(self, pick: int) -> ModelJob | None:
        return self.jobs[pick % len(self.jobs)] if self.jobs else None

    # -- workers -----------------------------------------------------------------------------------------------------

    def _attempt(self, pick: int) -> Attempt | None:
        """Mostly one that is under way, now and then one whose worker does not know yet that it was lost."""
        living = [attempt for attempt in self.attempts if attempt.owns]
        overtaken = [attempt for attempt in self.attempts if attempt.job.status == "running" and not attempt.owns]
        choice = (self.attempts, overtaken or living, living, living)[pick % 4]
        return choice[pick // 4 % len(choice)] if choice else None

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS))
    def claim(self, slot: str, owner: str) -> None:
        task = f"task {next(self._numbers)}"
        self._taken(self.table.claim(slot, owner, task, EVERYTHING), slot, owner, task)

    def _taken(self, claim: Claim | None, slot: str, owner: str, task: str) -> None:
        queue = self._startable()
        if not queue or self.slots[slot].state != "clean":
            assert claim is None
            return
        job = queue[0]
        assert claim is not None
        assert claim.job.seq == job.seq
        job.status, job.phase, job.owner, job.slot = "running", "generating", owner, slot
        job.claims += 1
        job.lease = self.now + LEASE_SECONDS
        self.slots[slot] = ModelSlot("held", owner, task, job.lease)
        self.virtual = max(self.virtual, job.tag)
        self.attempts.append(Attempt(claim, job))

    @rule(pick=_PICK, following=st.booleans())
    def answered(self, pick: int, following: bool) -> None:
        attempt = self._attempt(pick)
        if attempt is not None:
            self._answer(attempt, following)

    def _answer(self, attempt: Attempt, following: bool) -> None:
        claim = attempt.claim
        attempt.answered = True
        task = f"task {next(self._numbers)}" if following else None
        after = self.table.answered(claim, 1.0, task, EVERYTHING)
        held = self._holds(claim)
        # A slot that its owner has begun to quiesce since is not passed on.
        passed = task is not None and bool(self._startable())
        if held and (self.slots[claim.slot].state == "held" or not passed):
            self.slots[claim.slot].leave("clean")
        if attempt.shown:
            attempt.job.phase = "storing"
        if held and task is not None:
            self._taken(after, claim.slot, claim.owner, task)
        else:
            assert after is None

    def _holds(self, claim: Claim) -> bool:
        slot = self.slots[claim.slot]
        return (slot.owner, slot.task) == (claim.owner, claim.task_id)

    @rule(pick=_PICK, images=st.integers(1, 3))
    def succeed(self, pick: int, images: int) -> None:
        attempt = self._attempt(pick)
        if attempt is None:
            return
        if not attempt.answered:
            self._answer(attempt, following=False)
        self._succeed(attempt, images)

    def _succeed(self, attempt: Attempt, images: int) -> None:
        claim = attempt.claim
        names = [f"{claim.job.name}-{claim.attempt}-{index}.png" for index in range(images)]
        success = Success(1, claim.job.args, [{"filename": name} for name in names], {}, simulated=True)
        owned = attempt.owns
        end = attempt.finish("succeeded")
        assert self.table.succeed(claim, success) == end
        if owned and end == "succeeded":
            attempt.job.images = names

    @rule(pick=_PICK)
    def fail(self, pick: int) -> None:
        attempt = self._attempt(pick)
        if attempt is None:
            return
        if not attempt.answered:
            self._answer(attempt, following=True)
        owned = attempt.owns
        end = attempt.finish("failed")
        assert self.table.fail(attempt.claim, FAILURE) == end
        attempt.job.attempts += owned and end == "failed"

    @rule(pick=_PICK, clean=st.booleans(), counted=st.sampled_from([True, True, True, False]))
    def give_back(self, pick: int, clean: bool, counted: bool) -> None:
        attempt = self._attempt(pick)
        if attempt is not None:
            self._give_back(attempt, "clean" if clean else "unclean", counted=counted)

    def _give_back(self, attempt: Attempt, state: str, *, counted: bool) -> None:
        claim, job = attempt.claim, attempt.job
        status = self.table.give_back(claim, slot=state, failure=FAILURE if counted else None)
        if self._holds(claim):
            self.slots[claim.slot].leave(state)
        if not attempt.owns:
            assert status == ("deleted" if attempt.lose() else "lost")
            return
        job.attempts += counted and job.asked is None
        assert status == job.give_back("failed" if counted and job.attempts >= MAX_ATTEMPTS else "queued")

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS))
    def release_orphans(self, slot: str, owner: str) -> None:
        """The worker does not know what it holds: the answer to the commit of the claim was lost."""
        held = [job for job in self.jobs if (job.slot, job.owner, job.phase) == (slot, owner, "generating")]
        released = self.table.losses.release_orphans(slot, owner)
        running = [job for job in held if job.status == "running"]
        for job in held:
            job.give_back() if job.status == "running" else job.free("deleted")
        assert [(job.name, job.status) for job in released] == [(job.name, job.status) for job in running]
        if self.slots[slot].owner == owner:
            self.slots[slot].leave("unclean")

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS))
    def begin_quiescing(self, slot: str, owner: str) -> None:
        model = self.slots[slot]
        taken = self.rows.begin_quiescing(slot, owner)
        assert (taken is not None) == (model.owner is None and model.state in ("unclean", "suspect"))
        if taken is not None:
            assert taken.task_id == model.task
            model.state, model.owner, model.lease = "quiescing", owner, self.now + LEASE_SECONDS

    @rule(slot=st.sampled_from(SLOTS))
    def quiesce(self, slot: str) -> None:
        """The usual end: the WebUI is found idle."""
        self.begin_quiescing(slot, OWNERS[0])
        self.end_quiescing(slot, OWNERS[0], "clean")

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS), state=st.sampled_from(["unclean", "suspect"]))
    def end_quiescing(self, slot: str, owner: str, state: str) -> None:
        self.rows.end_quiescing(slot, owner, state)
        model = self.slots[slot]
        if (model.state, model.owner) == ("quiescing", owner):
            model.leave(state)

    @rule(owner=st.sampled_from(OWNERS))
    def heartbeat(self, owner: str) -> None:
        assert self.rows.heartbeat(owner).known
        for held in (*self.jobs, *self.slots.values()):
            if held.owner == owner:
                held.lease = self.now + LEASE_SECONDS

    # -- losses ------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([4.0, 4.0, KEY_SECONDS + 60.0, -3600.0]), owner=st.sampled_from(OWNERS))
    def time_passes(self, seconds: float, owner: str) -> None:
        """No lease ends within a second of any sum of these, so that the time of the test itself does not matter."""
        move_clock(self.database, seconds)
        self.now += seconds
        self.reclaim(owner)

    @rule(owner=st.sampled_from(OWNERS))
    def leases_run_out(self, owner: str) -> None:
        """No worker sends a heartbeat for longer than a lease, and then one of them reclaims."""
        self.time_passes(11.0, owner)

    @rule(owner=st.sampled_from(OWNERS))
    def reclaim(self, owner: str) -> None:
        longest = self.now + LEASE_SECONDS
        for held in (*self.jobs, *self.slots.values()):
            if held.owner is not None and held.lease > longest + _SLACK:
                held.lease = longest
        lost = [job for job in self.jobs if job.owner not in (None, owner) and job.lease < self.now]
        slots = [slot for slot in self.slots.values() if slot.owner not in (None, owner) and slot.lease < self.now]
        self._lose(self.table.losses.reclaim(owner), lost, slots)

    @rule(owner=st.sampled_from(OWNERS))
    def take_over(self, owner: str) -> None:
        host = owner.partition("/")[0]

        def dead(other: str | None) -> bool:
            return other is not None and other != owner and other.startswith(f"{host}/")

        lost = [job for job in self.jobs if dead(job.owner)]
        slots = [slot for slot in self.slots.values() if dead(slot.owner)]
        self._lose(self.table.losses.take_over(host, owner), lost, slots)

    def _lose(self, told: list[Job], jobs: list[ModelJob], slots: list[ModelSlot]) -> None:
        running = [job for job in jobs if job.status == "running"]
        for job in jobs:
            if job.status == "deleted":
                job.free("deleted")
        for job in running:
            job.lost = job.losses >= MAX_LOSSES and job.asked is None
            job.give_back("failed" if job.lost else "queued")
            job.losses += 1
        assert sorted((job.name, job.status) for job in told) == sorted((job.name, job.status) for job in running)
        for slot in slots:
            slot.leave("unclean")

    @rule()
    def upkeep(self) -> None:
        self.table.deletion.forget_keys()
        self.table.deletion.forget_users()
        # Nobody whose finish tag still matters is forgotten; when nothing is unfinished, none does.
        if not any(job.unfinished for job in self.jobs):
            self.finish.clear()

    # -- stories: steps that rarely meet by chance ----------------------------------------------------------------------

    def _claimed(self, slot: str, owner: str) -> Attempt | None:
        """A new attempt, where there is a job and the slot can be had."""
        self.quiesce(slot)
        before = len(self.attempts)
        self.claim(slot, owner)
        return self.attempts[-1] if len(self.attempts) > before else None

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS))
    def tries_in_vain(self, slot: str, owner: str) -> None:
        """The WebUI fails it; the same job is next again."""
        attempt = self._claimed(slot, owner)
        if attempt is not None:
            self._give_back(attempt, "clean", counted=True)

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS), seconds=st.sampled_from([0.0, -3600.0]))
    def sleeps_and_comes_back_to_a_job_that_it_lost(self, slot: str, owner: str, seconds: float) -> None:
        """A worker without a heartbeat, maybe under a clock that was set back; its late answer meets its own later claim."""
        attempt = self._claimed(slot, owner)
        if attempt is None:
            return
        other = next(each for each in OWNERS if each != owner)
        if seconds:
            self.time_passes(seconds, other)
        self.leases_run_out(other)
        again = self._claimed(slot, owner)
        self._answer(attempt, following=False)
        self._succeed(attempt, 1)
        if again is not None:
            self._answer(again, following=False)
            self._succeed(again, 2)

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS))
    def hears_of_an_answer_while_it_quiesces(self, slot: str, owner: str) -> None:
        """A worker without a heartbeat takes back the slot that it lost, to quiesce it; then its lost attempt is answered."""
        attempt = self._claimed(slot, owner)
        if attempt is None:
            return
        self.leases_run_out(next(each for each in OWNERS if each != owner))
        self.begin_quiescing(slot, owner)
        self._answer(attempt, following=True)

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS))
    def dies(self, slot: str, owner: str) -> None:
        if self._claimed(slot, owner) is not None:
            self.take_over(next(each for each in OWNERS if each != owner))

    @rule(slot=st.sampled_from(SLOTS), owner=st.sampled_from(OWNERS))
    def quiesces_what_another_quiesces(self, slot: str, owner: str) -> None:
        attempt = self._claimed(slot, owner)
        if attempt is not None:
            self._give_back(attempt, "unclean", counted=False)
        self.begin_quiescing(slot, owner)
        self.end_quiescing(slot, next(each for each in OWNERS if each != owner), "suspect")

    # -- what must hold ----------------------------------------------------------------------------------------------

    def _all(self, statement: str) -> list[Row[Any]]:
        with self.database.read() as connection:
            return list(connection.execute(text(statement)).all())

    @invariant()
    def every_promise_is_kept(self) -> None:
        jobs = self._all(
            "SELECT seq, name, user_id, status, claims, attempts, losses, owner, slot, phase, start_tag, images, args, task_id,"
            " error_slug, cancel_at"
            " FROM jobs ORDER BY seq"
        )
        slots = self._all("SELECT key, state, owner, task_id FROM slots ORDER BY key")
        self._the_rows_say_what_the_rules_say(jobs, slots)
        self._a_slot_is_held_for_one_job_at_most(jobs, slots)
        self._no_job_ends_twice_or_is_tried_for_ever(jobs)
        self._the_counters_count_the_unfinished(jobs)
        self._who_came_first_of_a_user_goes_first(jobs)
        self._positions_are_those_of_the_real_order()
        self._every_change_and_nothing_else_has_a_new_rev(jobs)

    def _the_rows_say_what_the_rules_say(self, jobs: list[Row[Any]], slots: list[Row[Any]]) -> None:
        """So no accepted job vanishes, none comes back from its deletion, and the next is always the one that should be."""
        assert [tuple(row)[:11] for row in jobs] == [
            (job.seq, job.name, job.user, job.status, job.claims, job.attempts, job.losses, job.owner, job.slot, job.phase, job.tag)
            for job in self.jobs
        ]  # fmt: skip
        assert [tuple(row) for row in slots] == [
            (key, slot.state, slot.owner, slot.task) for key, slot in self.slots.items()
        ]
        assert all(row.images is None and row.args == "{}" for row in jobs if row.status == "deleted")
        assert [(row.error_slug, row.cancel_at is not None) for row in jobs if row.status == "running"] == [
            (None, job.asked is not None) for job in self.jobs if job.status == "running"
        ]
        assert [row.error_slug for row in jobs if row.status == "cancelled"] == [
            job.error for job in self.jobs if job.status == "cancelled"
        ]
        assert all(row.cancel_at is None for row in jobs if row.status in ("queued", "succeeded", "failed"))

    def _a_slot_is_held_for_one_job_at_most(self, jobs: list[Row[Any]], slots: list[Row[Any]]) -> None:
        generating = sorted((row.slot, row.task_id, row.owner) for row in jobs if row.phase == "generating")
        assert generating == sorted((row.key, row.task_id, row.owner) for row in slots if row.state == "held")

    def _no_job_ends_twice_or_is_tried_for_ever(self, jobs: list[Row[Any]]) -> None:
        assert all(job.wins <= 1 for job in self.jobs)
        for row in jobs:
            assert row.attempts <= MAX_ATTEMPTS
            assert row.losses <= MAX_LOSSES + 1
            assert row.attempts + row.losses <= row.claims
            assert row.status in ("running", "deleted") or (row.owner, row.slot, row.phase) == (None, None, None)

    def _the_counters_count_the_unfinished(self, jobs: list[Row[Any]]) -> None:
        unfinished = Counter(row.user_id for row in jobs if row.status in ("queued", "running"))
        assert self._all("SELECT unfinished FROM clock")[0][0] == unfinished.total() <= BOUNDS.total
        counted = {row.user_id: row.unfinished for row in self._all("SELECT user_id, unfinished FROM users")}
        assert all(counted[user] == unfinished[user] <= BOUNDS.per_user for user in counted)

    def _who_came_first_of_a_user_goes_first(self, jobs: list[Row[Any]]) -> None:
        for user in USERS:
            waiting = [(row.start_tag, row.seq) for row in jobs if (row.user_id, row.status) == (user, "queued")]
            assert [seq for _, seq in sorted(waiting)] == [seq for _, seq in waiting]

    def _positions_are_those_of_the_real_order(self) -> None:
        queue = self._queue()
        positions = [
            self.table.queries.place(self.table.queries.get(job.user, "txt2img", job.name)).position for job in queue
        ]
        assert positions == list(range(1, len(queue) + 1))

    def _every_change_and_nothing_else_has_a_new_rev(self, jobs: list[Row[Any]]) -> None:
        """So a client that reads on from the last rev that it knows misses nothing, and the order of revs is that of commits."""
        seen = {
            row.name: (row.status, row.status == "running" and row.phase, row.claims, row.images, row.cancel_at is None)
            for row in jobs
        }
        changed = {name for name, shown in seen.items() if shown != self.seen.get(name)}
        changes = self.table.revisions.changes(self.rev, len(jobs) + 1)
        assert {change.identity.name for change in changes} == changed
        assert all(change.status == seen[change.identity.name][0] for change in changes)
        now = self.table.revisions.current().rev
        assert [change.rev for change in changes] == sorted(change.rev for change in changes if change.rev <= now)
        for user in USERS:
            of_user = self.table.revisions.of_user(user, self.rev, len(jobs) + 1)
            assert of_user == [change for change in changes if change.identity.user_id == user]
        self.seen, self.rev = seen, now


def _fields(new: NewJob) -> dict[str, object]:
    return {name: getattr(new, name) for name in NewJob.__slots__}


def empty(database: Database) -> None:
    """No rows but the one of the clock."""
    with database.write() as connection:
        for table in METADATA.sorted_tables:
            if table not in (CLOCK, EPOCHS):
                connection.execute(table.delete())
        connection.execute(text("UPDATE clock SET virtual = 0, unfinished = 0"))


@pytest.fixture
def machine(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[TableMachine]]:
    monkeypatch.setattr(losses, "MAX_LOSSES", MAX_LOSSES)
    yield type("TableMachine", (TableMachine,), {"database": database})
    empty(database)


def test_random_interleavings_keep_every_promise(machine: type[TableMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=24 if machine.database.is_sqlite else 8,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            # A failure is told at once, with all its steps; Phase.shrink makes them few, which takes minutes.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
