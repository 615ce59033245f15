"""The job table: four write statements carry a job from acceptance to its end (accept, claim, heartbeat, finish).

The queue is fair by start-time fair queueing (P. Goyal, H. Vin, H. Cheng, "Start-Time Fair Queueing", SIGCOMM 1996): a job's
start tag is the later of the virtual clock and the finish tag of its user's previous job, the lowest start tag goes first, and
the clock moves to the start tag of the job that was claimed. So a user with many jobs delays only himself.

Leases are in seconds of the database's clock. Every change to a claimed job is a compare-and-set on the job's identity, the owner,
the number of the claim and its task id: a worker that lost the claim changes nothing.

A sequence number names a row within one transaction only. What is kept longer (a claim, a waiting client, an idempotency key, a
refusal, files to be removed) names the job by its identity: see :class:`app.jobs.model.Identity`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from sqlalchemy import (
    Connection,
    delete,
    insert,
    select,
    update,
)

from app.jobs import leases, places, speeds
from app.jobs.cancellation import Cancellation
from app.jobs.deletion import JobDeletion
from app.jobs.errors import (
    QueueFull,
    UserQueueFull,
)
from app.jobs.keys import find_key, remember_key
from app.jobs.losses import Losses
from app.jobs.model import Claim, End, Failure, IdempotencyKey, Identity, Job, NewJob, Success, to_json
from app.jobs.queries import JobQueries
from app.jobs.revisions import Revisions
from app.jobs.rows import move_rev, now_ms
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import (
    JOBS,
    REFUSALS,
)
from app.runtime.jsontext import loads

#: Attempts that ended at a WebUI (an answer, a timeout, a broken connection), and losses of our own process.
MAX_ATTEMPTS: Final = 3

SlotState = Literal["clean", "unclean"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most unfinished jobs that may stand in the table."""

    total: int
    per_user: int


@dataclass(frozen=True, slots=True)
class Serving:
    """The requirements that a WebUI can be asked for: all up to ``known`` but ``unservable``.

    ``doubt`` is what the slot's row said about the WebUI's model when that was judged; a claim finds nothing where the row says
    something else by now.
    """

    known: int
    unservable: frozenset[int]
    doubt: str | None = None


class NotReady(Exception):
    """``ready`` refused the commit; nothing was changed."""


def _always(_claim: Claim | None) -> bool:
    return True


class JobTable:
    """Jobs in the database, for any number of processes: here the writes that carry a job from acceptance to its end.

    ``queries`` reads, ``cancellation`` and ``deletion`` end jobs for clients, ``losses`` takes jobs back from workers that are
    gone, and ``revisions`` tells what changed when. Raises DatabaseUnavailable from every method.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.queries: Final = JobQueries(database)
        self.cancellation: Final = Cancellation(database)
        self.deletion: Final = JobDeletion(database)
        self.losses: Final = Losses(database)
        self.revisions: Final = Revisions(database)

    # -- accept ------------------------------------------------------------------------------------------------------

    def accept(self, new: NewJob, bounds: Bounds, key: IdempotencyKey | None = None) -> tuple[Job, bool]:
        """Commit a job as queued; (job, True), or (the earlier job, False) for a repeated key.

        :raises KeyReused, KeyOfDeletedJob: see :meth:`find_key`.
        :raises QueueFull, UserQueueFull: nothing was accepted.
        """
        with self.database.write("accept") as connection:
            known = find_key(connection, new.user_id, key)
            if known is not None:
                return known, False
            found = sql.BEFORE_ACCEPTING.first(connection, {"p_user": new.user_id, "p_body": new.requirements})
            tag = self._reserve(connection, new, bounds, found)
            number = found.requirements_id or sql.ADD_REQUIREMENTS.first(connection, {"body": new.requirements}).id
            values = _row_of(new) | {"start_tag": tag, "requirements_id": number, "p_cancel_after": new.cancel_after}
            job = Job.of(sql.ADD_JOB.first(connection, values))
            sql.COUNT_IN.change(connection)
            if key is not None:
                remember_key(connection, key, job.identity)
            return job, True

    def find_key(self, user_id: str, key: IdempotencyKey) -> Job | None:
        """The job that this key made within the last 24 hours.

        :raises KeyReused: it was another request.
        :raises KeyOfDeletedJob: the job was deleted.
        """
        with self.database.read() as connection:
            return find_key(connection, user_id, key)

    def _reserve(self, connection: Connection, new: NewJob, bounds: Bounds, found: Any) -> float:
        """Count the job in for its user and return its start tag; ``found`` is a row of ``BEFORE_ACCEPTING``."""
        if found.unfinished >= bounds.total:
            raise QueueFull(places.seconds_until_room(connection))
        known = found.user_finish is not None
        if known and found.user_unfinished >= bounds.per_user:
            raise UserQueueFull(places.seconds_until_room(connection, new.user_id))
        tag = max(found.virtual, found.user_finish) if known else found.virtual
        finish = tag + new.cost
        if not known:
            sql.ADD_USER.change(connection, {"user_id": new.user_id, "finish": finish, "unfinished": 1})
        else:
            sql.COUNT_USER_IN.change(connection, {"p_user": new.user_id, "p_finish": finish})
        return float(tag)

    # -- claim -------------------------------------------------------------------------------------------------------

    def claim(
        self,
        slot: str,
        owner: str,
        task_id: str,
        serving: Serving,
        *,
        expected: bool = False,
        ready: Callable[[Claim | None], bool] = _always,
    ) -> Claim | None:
        """Take the next job that this WebUI can serve, and its clean slot, in one transaction.

        None when there is none, the slot is not clean, or there are requirements that ``serving`` does not know.

        The claim is seen by all and outlives every process before anything is sent; that it outlives a power cut is the
        business of :meth:`flush`, beside the sending. A cut in between takes the claim back: the job waits as before, and all
        that is lost is what the WebUI had begun.

        :param expected: a job is known to wait. Without that a cheap read comes first: an idle gateway should not write, nor hold
            up writers, once a second for each WebUI.
        :param ready: see :meth:`answered`; asked only when there is a claim.
        :raises NotReady: it said no, and nothing was changed.
        """
        if not expected:
            with self.database.read() as connection:
                if _next_job(connection, slot, serving) is None:
                    return None
        with self.database.write("claim", flushed=False) as connection:
            claim = _claim(connection, slot, owner, task_id, serving)
            if claim is None:
                # Nothing was changed, so nothing is flushed and no failpoint is passed.
                connection.rollback()
            elif not ready(claim):
                raise NotReady
            return claim

    def answered(
        self,
        claim: Claim,
        seconds: float | None,
        next_task_id: str | None,
        serving: Serving,
        *,
        ready: Callable[[Claim | None], bool] = _always,
    ) -> Claim | None:
        """The WebUI replied: free its slot, and in the same transaction claim the next job for it.

        The job keeps its own lease and enters the phase ``storing``. With ``next_task_id`` None nothing is claimed, nor while
        there are requirements that ``serving`` does not know.

        :param seconds: what the generation took, None when the reply was no result and says nothing about speed.
        :param ready: asked right before the commit, with the next job's claim or None; all writers wait meanwhile.
        :raises NotReady: it said no, and nothing was changed.
        """
        with self.database.write("answered", flushed=False) as connection:
            row = None if next_task_id is None else _next_job(connection, claim.slot, serving, lock=True)
            following = None
            if row is None or next_task_id is None:
                held = sql.FREE_SLOT.change(connection, sql.held_by(claim)) == 1
            else:
                leased_at = leases.now()
                held = sql.PASS_SLOT.change(connection, sql.held_by(claim) | {"p_task": next_task_id}) == 1
                if held:
                    following = _start(connection, row, claim.slot, claim.owner, next_task_id, leased_at)
            stores = sql.BEGIN_STORING.change(connection, sql.owned_by(claim))
            speeds.measure(connection, claim, seconds if held else None)
            if following is not None:
                sql.ADVANCE_CLOCK.change(connection, {"p_tag": following.job.start_tag})
            elif stores:
                move_rev(connection)
            if not stores:
                sql.BEGIN_DISCARDING.change(connection, sql.owned_by(claim))
            if not ready(following):
                raise NotReady
            return following

    def flush(self) -> None:
        """Make what was claimed and answered outlive a power cut; see :meth:`claim`."""
        self.database.flush()

    # -- heartbeat --------------------------------------------------------------------------------------------------------

    def report(self, claim: Claim, progress: float, eta: float | None) -> None:
        """Note how far a running job is: ``progress`` 0…1, ``eta`` seconds left or None."""
        with self.database.write() as connection:
            sql.REPORT.change(connection, sql.owned_by(claim) | {"p_progress": progress, "p_eta": eta})

    def watched(self, *jobs: Job) -> None:
        """Somebody asked for these running jobs: their WebUIs are asked for progress while that goes on."""
        with self.database.read() as connection:
            stale = [job for job in jobs if sql.STALE_WATCH.first(connection, sql.row_of(job)) is not None]
        if stale:
            with self.database.write() as connection:
                for job in stale:
                    sql.WATCH.change(connection, sql.row_of(job))

    # -- finish ------------------------------------------------------------------------------------------------------

    def succeed(self, claim: Claim, success: Success) -> End:
        """Commit the result; the caller removes its files unless the job has succeeded with them."""
        values = {
            "p_finished": success.finished_at,
            "p_args": to_json(success.args),
            "p_images": to_json(success.images),
            "p_webui": to_json(success.webui),
            "p_simulated": success.simulated,
        }
        return self._finish(claim, "succeeded", sql.SUCCEED, values)

    def fail(self, claim: Claim, failure: Failure) -> End:
        """Commit that the job failed."""
        values = {"p_finished": now_ms(), "p_slug": failure.slug, "p_detail": failure.detail}
        return self._finish(claim, "failed", sql.FAIL, values)

    def _finish(self, claim: Claim, end: End, statement: Prepared, values: dict[str, Any]) -> End:
        with self.database.write("finish") as connection:
            if statement.change(connection, sql.owned_by(claim) | values) == 1:
                move_rev(connection, [claim.job.user_id])
                return end
            ended_early = _end_early(connection, claim)
            if ended_early is not None:
                return ended_early
            # Where the answer to a commit was lost it is repeated, and the first one stands: a claim has its number for itself.
            ended = sql.FINISHED_BY.first(connection, sql.owned_by(claim))
            return "lost" if ended is None else cast("End", ended.status)

    def give_back(
        self,
        claim: Claim,
        *,
        slot: SlotState,
        failure: Failure | None = None,
        one_by_one: bool = False,
        note: Mapping[str, Any] | None = None,
        elsewhere: bool = False,
    ) -> End | Literal["queued"]:
        """End an attempt without a result: the job goes back to its place in the queue.

        :param slot: how the attempt leaves the slot, where it still holds it.
        :param failure: why the attempt ended at the WebUI, which counts it; the last one allowed fails the job with it. None
            counts nothing: the POST never went out, or we stop.
        :param one_by_one: next time, one picture after another (after an out-of-memory answer).
        :param note: what the attempt found out, to be read in ``Job.tried`` by those to come.
        :param elsewhere: this WebUI is not to get the job again.
        :returns: what has become of the job: it ends where its end was asked for meanwhile.
        """
        with self.database.write("give back") as connection:
            (sql.FREE_SLOT if slot == "clean" else sql.LEAVE_SLOT).change(connection, sql.held_by(claim))
            mine = select(JOBS.c.attempts, JOBS.c.one_by_one, JOBS.c.tried).where(sql.WANTED)
            row = connection.execute(mine, sql.owned_by(claim)).first()
            if row is None:
                return _end_early(connection, claim) or "lost"
            attempts = row.attempts + (failure is not None)
            values = {**sql.FREE, "attempts": attempts, "one_by_one": row.one_by_one or one_by_one, "rev": sql.NEXT_REV}
            if note is not None:
                values["tried"] = to_json([*(loads(row.tried) if row.tried else ()), dict(note)])
            if elsewhere:
                _refuse(connection, claim)
            failed = failure if attempts >= MAX_ATTEMPTS else None
            values |= {"status": "queued", "progress": None} if failed is None else _failed(failed)
            connection.execute(update(JOBS).where(sql.OWNED).values(**values), sql.owned_by(claim))
            move_rev(connection, [] if failed is None else [claim.job.user_id])
            return "queued" if failed is None else "failed"

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def restore(self, new: NewJob, success: Success, started_at: int | None, claims: int) -> bool:
        """Add the row of a record that only the folder knows; False when a row, also a deleted one, exists."""
        values = _row_of(new) | {
            "status": "succeeded", "args": to_json(success.args), "images": to_json(success.images),
            "webui": to_json(success.webui), "simulated": success.simulated, "started_at": started_at,
            "finished_at": success.finished_at, "claims": claims, "start_tag": 0.0,
        }  # fmt: skip
        with self.database.write("restore") as connection:
            there = sql.ANY_NAMED.first(connection, sql.named(Identity(new.user_id, new.type, new.name)))
            if there is None:
                # It will never be claimed, so it requires nothing.
                connection.execute(insert(JOBS).values(values | {"requirements_id": 0, "rev": sql.NEXT_REV}))
                move_rev(connection)
            return there is None


def _row_of(new: NewJob) -> dict[str, Any]:
    return {
        "user_id": new.user_id, "type": new.type, "name": new.name, "status": "queued", "created_at": new.created_at,
        "args": to_json(new.args), "init_image": to_json(new.init_image) if new.init_image else None, "simulated": False,
        "cost": new.cost, "claims": 0, "attempts": 0, "losses": 0, "one_by_one": False, "pending_unlink": False,
        "request": new.request,
    }  # fmt: skip


def _failed(failure: Failure) -> dict[str, Any]:
    return {
        "status": "failed",
        "finished_at": now_ms(),
        "error_slug": failure.slug,
        "error_detail": failure.detail,
    }


def _claim(connection: Connection, slot: str, owner: str, task_id: str, serving: Serving) -> Claim | None:
    row = _next_job(connection, slot, serving, lock=True)
    if row is None:
        return None
    leased_at = leases.now()
    wanted = {
        "c_slot": slot, "c_doubt": serving.doubt or "", "p_owner": owner, "p_task": task_id,
    }  # fmt: skip
    if sql.TAKE_SLOT.change(connection, wanted) != 1:
        return None
    claim = _start(connection, row, slot, owner, task_id, leased_at)
    sql.ADVANCE_CLOCK.change(connection, {"p_tag": row.start_tag})
    return claim


def _start(connection: Connection, row: Any, slot: str, owner: str, task_id: str, leased_at: float) -> Claim:
    """The chosen job runs, on a slot that was taken for it."""
    start = {"c_seq": row.seq, "p_owner": owner, "p_slot": slot, "p_task": task_id, "p_started": now_ms()}
    job = Job.of(sql.START_JOB.first(connection, start))
    return Claim(job, owner, slot, task_id, row.requirements_body, leased_at)


def _end_early(connection: Connection, claim: Claim) -> Literal["cancelled", "deleted"] | None:
    """Cancel a claimed job if its end was asked for, or end the claim of one that was deleted; None if it was neither."""
    if sql.END.change(connection, sql.owned_by(claim) | {"p_finished": now_ms()}) == 1:
        move_rev(connection, [claim.job.user_id])
        return "cancelled"
    return "deleted" if sql.END_DELETED.change(connection, sql.owned_by(claim)) == 1 else None


def _next_job(connection: Connection, slot: str, serving: Serving, *, lock: bool = False) -> Any:
    """The waiting job that starts next on a WebUI that can serve so much.

    None also when there are newer requirements: one of them may be the next job's, which is not to be passed by.
    """
    parameters: dict[str, Any] = {"p_known": serving.known, "c_slot": slot}
    if not serving.unservable:
        row = (sql.TAKE_NEXT if lock else sql.NEXT).first(connection, parameters)
    else:
        parameters["p_unservable"] = sorted(serving.unservable)
        row = connection.execute(sql.TAKE_NEXT_SERVABLE if lock else sql.NEXT_SERVABLE, parameters).first()
    return row if row is not None and row.newest_requirements <= serving.known else None


def _refuse(connection: Connection, claim: Claim) -> None:
    """Keep the job away from the slot that the claim is for."""
    refusal = {**claim.job.identity._asdict(), "slot": claim.slot}
    connection.execute(delete(REFUSALS).filter_by(**refusal))
    connection.execute(insert(REFUSALS).values(refusal))
