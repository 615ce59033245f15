"""The job table: four write statements carry a job from acceptance to its end (accept, claim, beat, finish).

The queue is fair by start-time fair queueing (P. Goyal, H. Vin, H. Cheng, "Start-Time Fair Queueing", SIGCOMM 1996): a job's
start tag is the later of the virtual clock and the finish tag of its user's previous job, the lowest start tag goes first, and
the clock moves to the start tag of the job that was claimed. So a user with many jobs delays only himself.

Leases are in seconds of the database's clock. Every change to a claimed job is a compare-and-set on the job's identity, the owner,
the number of the claim and its task id: whoever lost the claim changes nothing.

A sequence number names a row within one transaction only. What is kept longer (a claim, a waiting client, an idempotency key, a
refusal, files to be removed) names the job by its identity: see :class:`app.jobs.model.Identity`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    false,
    func,
    insert,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from app.jobs import leases, places
from app.jobs.errors import (
    JobLost,
    JobNotFound,
    JobUnfinished,
    KeyOfDeletedJob,
    KeyReused,
    QueueFull,
    UserQueueFull,
)
from app.jobs.model import Claim, Failure, IdempotencyKey, Identity, Job, NewJob, Place, Success, to_json
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import (
    CLOCK,
    DEBRIS,
    DELETED,
    DEMANDS,
    IDEMPOTENCY,
    JOBS,
    QUEUED,
    REFUSALS,
    RUNNING,
    SLOTS,
    SUCCEEDED,
    USERS,
    db_now,
)
from app.runtime.jsontext import loads

#: Attempts that ended at a WebUI (an answer, a timeout, a broken connection), and losses of our own process.
MAX_ATTEMPTS: Final = 3
MAX_LOSSES: Final = 20
_LATE_BEAT_SECONDS: Final = 60.0
#: Rows that one transaction of the upkeep deletes at most.
MOST_FORGOTTEN: Final = 500
#: Far longer than a waiting client's process takes to see that its job has ended (app/jobs/waiters.py), in milliseconds.
_SEEN_MS: Final = 10_000
#: Above every number of a job.
_AFTER_ALL: Final = 2**63 - 1

SlotState = Literal["clean", "unclean"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many unfinished jobs may stand in the table."""

    total: int
    per_user: int


@dataclass(frozen=True, slots=True)
class Serving:
    """The demands that a WebUI can be asked for: all up to ``known`` but ``unservable``.

    ``doubt`` is what the slot's row said about the WebUI's model when that was judged; a claim finds nothing where the row says
    something else by now.
    """

    known: int
    unservable: frozenset[int]
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A queued job, the canonical JSON of what it needs of a WebUI, and the slots that it is not sent to again."""

    job: Job
    demand: str
    slots: set[str]


class NotReady(Exception):
    """Whoever wanted the change can't let it be committed yet; nothing was changed."""


def _always(_what: Claim | Job | None) -> bool:
    return True


class JobTable:
    """Jobs in the database, for any number of processes. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- accept ------------------------------------------------------------------------------------------------------

    def accept(self, new: NewJob, bounds: Bounds, key: IdempotencyKey | None = None) -> tuple[Job, bool]:
        """Commit a job as queued; (job, True), or (the earlier job, False) for a repeated key.

        :raises KeyReused, KeyOfDeletedJob: see :meth:`find_key`.
        :raises QueueFull, UserQueueFull: nothing was accepted.
        """
        with self.database.write("accept") as connection:
            known = self._find_key(connection, new.user_id, key)
            if known is not None:
                return known, False
            found = sql.LOOK_ROUND.first(connection, {"p_user": new.user_id, "p_body": new.demand})
            tag = self._reserve(connection, new, bounds, found)
            demand = found.demand or sql.ADD_DEMAND.first(connection, {"body": new.demand}).id
            values = _row_of(new) | {"start_tag": tag, "demand": demand}
            job = Job.of(sql.ADD_JOB.first(connection, values))
            if key is not None:
                self._remember_key(connection, key, job.identity)
            return job, True

    def find_key(self, user_id: str, key: IdempotencyKey) -> Job | None:
        """The job that this key made within the last 24 hours.

        :raises KeyReused: it was another request.
        :raises KeyOfDeletedJob: the job was deleted.
        """
        with self.database.read() as connection:
            return self._find_key(connection, user_id, key)

    def _find_key(self, connection: Connection, user_id: str, key: IdempotencyKey | None) -> Job | None:
        if key is None:
            return None
        row = sql.FIND_KEY.first(connection, {"p_user": user_id, "p_key": key.key})
        if row is None:
            return None
        if row.digest != key.digest:
            raise KeyReused
        found = sql.BY_NAME.first(connection, sql.named(Identity(user_id, row.type, row.name)))
        if found is None:
            raise KeyOfDeletedJob
        return Job.of(found)

    def _remember_key(self, connection: Connection, key: IdempotencyKey, job: Identity) -> None:
        sql.FORGET_KEY.change(connection, {"p_user": job.user_id, "p_key": key.key})
        sql.REMEMBER_KEY.change(connection, {"key": key.key, "digest": key.digest, **job._asdict()})

    def _reserve(self, connection: Connection, new: NewJob, bounds: Bounds, found: Any) -> float:
        """Count the job in and return its start tag; ``found`` is a row of ``LOOK_ROUND``."""
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
        sql.COUNT_IN.change(connection)
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

        None when there is none, the slot is not clean, or there are demands that ``serving`` does not know.

        The claim is seen by all and outlives every process before anything is sent; that it outlives a power cut is the
        business of :meth:`flush`, beside the sending. A cut in between takes the claim back: the job waits as before, and all
        that is lost is what the WebUI had begun.

        :param expected: a job is known to wait. Without that a cheap look comes first: an idle gateway should not write, nor hold
            up writers, once a second for each WebUI.
        :param ready: see :meth:`answered`; asked only when there is a claim.
        :raises NotReady: it said no, and nothing was changed.
        """
        if not expected:
            with self.database.read() as connection:
                if _next_job(connection, slot, serving) is None:
                    return None
        with self.database.write("claim", flushed=False) as connection:
            claim = self._claim(connection, slot, owner, task_id, serving)
            if claim is None:
                # Nothing to make durable, so nothing is: whether a hint finds a job is chance, and no step of a job's way.
                connection.rollback()
            elif not ready(claim):
                raise NotReady
            return claim

    def _claim(self, connection: Connection, slot: str, owner: str, task_id: str, serving: Serving) -> Claim | None:
        row = _next_job(connection, slot, serving, lock=True)
        if row is None:
            return None
        leased_at = leases.now()
        wanted = {
            "c_slot": slot, "c_doubt": serving.doubt or "", "p_owner": owner, "p_task": task_id,
        }  # fmt: skip
        if sql.TAKE_SLOT.change(connection, wanted) != 1:
            return None
        return self._start(connection, row, slot, owner, task_id, leased_at)

    def _start(self, connection: Connection, row: Any, slot: str, owner: str, task_id: str, leased_at: float) -> Claim:
        """The chosen job runs, on a slot that was taken for it."""
        start = {"c_seq": row.seq, "p_owner": owner, "p_slot": slot, "p_task": task_id, "p_started": _now_ms()}
        job = Job.of(sql.START_JOB.first(connection, start))
        sql.ADVANCE_CLOCK.change(connection, {"p_tag": row.start_tag})
        return Claim(job, owner, slot, task_id, row.demand_body, leased_at)

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
        there are demands that ``serving`` does not know.

        :param seconds: what the generation took, None when the reply was no result and says nothing about speed.
        :param ready: asked right before the commit, with the next job's claim or None; all writers wait meanwhile.
        :raises NotReady: it said no, and nothing was changed.
        """
        with self.database.write("answered", flushed=False) as connection:
            row = None if next_task_id is None else _next_job(connection, claim.slot, serving, lock=True)
            following = None
            if row is None or next_task_id is None:
                statement, values = sql.free_slot(claim, seconds)
                statement.change(connection, values)
            else:
                leased_at = leases.now()
                statement, values = sql.pass_slot(claim, seconds, next_task_id)
                if statement.change(connection, values) == 1:
                    following = self._start(connection, row, claim.slot, claim.owner, next_task_id, leased_at)
            sql.BEGIN_STORING.change(connection, sql.owned_by(claim))
            if not ready(following):
                raise NotReady
            return following

    def flush(self) -> None:
        """Make what was claimed and answered outlive a power cut; see :meth:`claim`."""
        self.database.flush()

    # -- beat --------------------------------------------------------------------------------------------------------

    def report(self, claim: Claim, progress: float, eta: float | None) -> None:
        """Note how far a running job is: ``progress`` 0…1, ``eta`` seconds left or None."""
        with self.database.write() as connection:
            sql.REPORT.change(connection, sql.owned_by(claim) | {"p_progress": progress, "p_eta": eta})

    def looked_at(self, job: Job) -> None:
        """Somebody asked for this running job: its WebUI is asked for progress while that goes on."""
        with self.database.read() as connection:
            if sql.STALE_LOOK.first(connection, sql.row_of(job)) is None:
                return
        with self.database.write() as connection:
            sql.LOOK.change(connection, sql.row_of(job))

    def seconds_since_look(self, claim: Claim) -> float | None:
        """How long ago somebody looked at the claimed job; None when nobody did, or the claim is lost."""
        with self.database.read() as connection:
            row = sql.SECONDS_SINCE_LOOK.first(connection, sql.owned_by(claim))
            return None if row is None else row.seconds

    # -- finish ------------------------------------------------------------------------------------------------------

    def owns(self, claim: Claim) -> bool:
        """Whether the job's row still shows this claim."""
        with self.database.read() as connection:
            return sql.STILL_OWNED.first(connection, sql.owned_by(claim)) is not None

    def shares_number(self, claim: Claim) -> bool:
        """Whether the job's row shows another claim with the number of this one, whose files then have the same names.

        So it is after the database has lost this claim but not the job, as a replica that lagged behind does.
        """
        with self.database.read() as connection:
            row = sql.CLAIM_SHOWN.first(connection, sql.named(claim.job.identity))
        return row is not None and row.claims == claim.attempt and row.task_id != claim.task_id

    def succeed(self, claim: Claim, success: Success) -> bool:
        """Commit the result; False when the claim was lost, and then the caller removes its files."""
        values = {
            "p_finished": success.finished_at,
            "p_args": to_json(success.args),
            "p_images": to_json(success.images),
            "p_webui": to_json(success.webui),
            "p_simulated": success.simulated,
        }
        return self._finish(claim, sql.SUCCEED, values)

    def fail(self, claim: Claim, failure: Failure) -> bool:
        """Commit that the job failed; False when the claim was lost."""
        values = {"p_finished": _now_ms(), "p_slug": failure.slug, "p_detail": failure.detail}
        return self._finish(claim, sql.FAIL, values)

    def _finish(self, claim: Claim, statement: Prepared, values: dict[str, Any]) -> bool:
        with self.database.write("finish") as connection:
            if statement.change(connection, sql.owned_by(claim) | values) != 1:
                # Where the answer to a commit was lost it is repeated, and the first one stands: a claim has its number for itself.
                return sql.FINISHED_BY.first(connection, sql.owned_by(claim)) is not None
            _count_out(connection, [claim.job.user_id])
            return True

    def give_back(
        self,
        claim: Claim,
        *,
        slot: SlotState,
        failure: Failure | None = None,
        one_by_one: bool = False,
        note: Mapping[str, Any] | None = None,
        elsewhere: bool = False,
    ) -> str:
        """End an attempt without a result: the job goes back to its place in the queue.

        :param slot: how the attempt leaves the slot, where it still holds it.
        :param failure: why the attempt ended at the WebUI, which counts it; the last one allowed fails the job with it. None
            counts nothing: the POST never went out, or we stop.
        :param one_by_one: next time, one picture after another (after an out-of-memory answer).
        :param note: what the attempt found out, to be read in ``Job.tried`` by those to come.
        :param elsewhere: this WebUI is not to get the job again.
        :returns: ``queued``, ``failed``, or ``lost`` when the claim was not ours any more.
        """
        with self.database.write("give back") as connection:
            (sql.FREE_SLOT if slot == "clean" else sql.LEAVE_SLOT).change(connection, sql.held_by(claim))
            mine = select(JOBS.c.attempts, JOBS.c.one_by_one, JOBS.c.tried).where(sql.OWNED)
            row = connection.execute(mine, sql.owned_by(claim)).first()
            if row is None:
                return "lost"
            attempts = row.attempts + (failure is not None)
            values = {**sql.FREE, "attempts": attempts, "one_by_one": row.one_by_one or one_by_one}
            if note is not None:
                values["tried"] = to_json([*(loads(row.tried) if row.tried else ()), dict(note)])
            if elsewhere:
                _refuse(connection, claim)
            if failure is not None and attempts >= MAX_ATTEMPTS:
                values |= _failed(failure)
                _count_out(connection, [claim.job.user_id])
            else:
                values |= {"status": "queued", "progress": None}
            connection.execute(update(JOBS).where(sql.OWNED).values(**values), sql.owned_by(claim))
            return str(values["status"])

    # -- take-over ---------------------------------------------------------------------------------------------------

    def let_go(self, slot: str, owner: str) -> list[Job]:
        """Give back what the rows say that this owner holds on a slot, though its runner has nothing in hand; the jobs.

        So it is when the answer to a commit was lost: it was made, nobody knew, and this owner's beats would keep it for ever.
        """
        with self.database.write("let go") as connection:
            mine = {"c_slot": slot, "c_owner": owner}
            back = [Job.of(row) for row in sql.LET_JOB_GO.all(connection, mine)]
            sql.LET_SLOT_GO.change(connection, mine)
            return back

    def take_over(self, host: str, owner: str) -> list[Job]:
        """Give back what other processes of this host held (``flock`` says that they are dead); the jobs, see :meth:`_lose`."""
        prefix = f"{host}/"

        def dead(column: ColumnElement[Any]) -> ColumnElement[bool]:
            return and_(func.substr(column, 1, len(prefix)) == prefix, column != owner)

        jobs, slots = and_(JOBS.c.status == RUNNING, dead(JOBS.c.owner)), dead(SLOTS.c.owner)
        with self.database.read() as connection:
            nothing = not connection.execute(select(JOBS.c.seq).where(jobs)).first()
            if nothing and not connection.execute(select(SLOTS.c.key).where(slots)).first():
                return []
        return self._lose(jobs, slots)

    def reclaim(self, owner: str) -> list[Job]:
        """Give back what any other owner held whose lease ran out; the jobs, see :meth:`_lose`."""
        with self.database.read() as connection:
            found = sql.LEASES.first(connection, {"p_owner": owner})
        if found.late:
            self._clip_leases()
        return self._lose(sql.job_lapsed(owner), sql.slot_lapsed(owner)) if found.lapsed else []

    def lose_unknown(self, owner: str, in_hand: Callable[[], Collection[str]]) -> list[Job]:
        """Give back the jobs that this owner stores by their rows, but not in fact; the jobs, see :meth:`_lose`.

        So it is after the database was restored from a dump of a moment when it did: its own heartbeats would keep them for ever.

        :param in_hand: the task ids of the claims whose results this owner decodes or stores; asked after the rows were read, so
            that one that ends meanwhile is not taken for unknown.
        """
        with self.database.read() as connection:
            shown = [row.task_id for row in sql.STORED_BY.all(connection, {"p_owner": owner})]
        unknown = set(shown) - set(in_hand()) if shown else set()
        if not unknown:
            return []
        mine = and_(JOBS.c.status == RUNNING, JOBS.c.owner == owner, JOBS.c.phase == "storing")
        return self._lose(and_(mine, JOBS.c.task_id.in_(unknown)), false())

    def _clip_leases(self) -> None:
        """Bound every lease by what a beat could have given: after the clock was set back, a dead owner's would last for hours.

        A live owner loses nothing by it, for its next beat gives the same.
        """
        with self.database.write("clip leases") as connection:
            connection.execute(update(JOBS).where(sql.JOB_LATE).values(sql.BEATEN))
            connection.execute(update(SLOTS).where(sql.SLOT_LATE).values(sql.BEATEN))

    def _lose(self, jobs: ColumnElement[bool], slots: ColumnElement[bool]) -> list[Job]:
        """Take these jobs and slots from their owners; the jobs as they were held, but for what became of them: ``status`` is
        queued or failed, and ``error_slug`` says why.
        """
        with self.database.write("take over") as connection:
            rows = [Job.of(row) for row in connection.execute(select(*sql.COLUMNS).where(jobs))]
            lost = [row.seq for row in rows if row.losses >= MAX_LOSSES]
            back = [row.seq for row in rows if row.losses < MAX_LOSSES]
            count = JOBS.c.losses + 1
            connection.execute(update(JOBS).where(JOBS.c.seq.in_(back)).values(losses=count, **sql.BACK))
            connection.execute(
                update(JOBS)
                .where(JOBS.c.seq.in_(lost))
                .values(
                    status="failed", losses=count, finished_at=_now_ms(), error_slug=sql.WORKER_LOST,
                    error_detail="The gateway was stopped again and again while it worked at this job.", **sql.FREE,
                )
            )  # fmt: skip
            _count_out(connection, [row.user_id for row in rows if row.losses >= MAX_LOSSES])
            connection.execute(update(SLOTS).where(slots).values(state="unclean", owner=None, lease_expires=None))
            ends = dict.fromkeys(back, "queued") | dict.fromkeys(lost, "failed")
            return [row._replace(status=ends[row.seq], error_slug=sql.WORKER_LOST) for row in rows]

    def fail_queued(
        self, failure: Failure, *, demands: Collection[int] = (), jobs: Collection[Identity] = ()
    ) -> list[Job]:
        """Fail every queued job with one of these demands, and these jobs where they are queued; the jobs as they were queued."""
        with self.database.write("fail queued") as connection:
            chosen = or_(JOBS.c.demand.in_(demands), JOBS.c.name.in_([job.name for job in jobs]))
            found = connection.execute(select(*sql.COLUMNS).where(JOBS.c.status == QUEUED, chosen))
            rows = [job for job in map(Job.of, found) if job.demand in demands or job.identity in jobs]
            connection.execute(
                update(JOBS)
                .where(JOBS.c.seq.in_([row.seq for row in rows]))
                .values(status="failed", finished_at=_now_ms(), error_slug=failure.slug, error_detail=failure.detail)
            )
            _count_out(connection, [row.user_id for row in rows])
            return rows

    def refused(self) -> list[Refused]:
        """The queued jobs that some WebUI is not to get again."""
        with self.database.read() as connection:
            rows = connection.execute(
                select(*sql.COLUMNS, DEMANDS.c.body, REFUSALS.c.slot.label("refused_by"))
                .select_from(REFUSALS.join(JOBS, sql.REFUSES_JOB).join(DEMANDS, DEMANDS.c.id == JOBS.c.demand))
                .where(JOBS.c.status == QUEUED)
                .order_by(JOBS.c.seq)
            ).all()
        found: dict[int, Refused] = {}
        for row in rows:
            found.setdefault(row.seq, Refused(Job.of(row), row.body, set())).slots.add(row.refused_by)
        return list(found.values())

    def forget_refusals(self) -> int:
        """Drop the refusals of jobs that have ended; how many."""
        unfinished = or_(JOBS.c.status == QUEUED, JOBS.c.status == RUNNING)
        ended = ~select(JOBS.c.seq).where(sql.REFUSES_JOB, unfinished).exists()
        with self.database.read() as connection:
            if connection.execute(select(REFUSALS.c.slot).where(ended).limit(1)).first() is None:
                return 0
        with self.database.write() as connection:
            return connection.execute(delete(REFUSALS).where(ended)).rowcount

    # -- demands -----------------------------------------------------------------------------------------------------

    def demands_after(self, known: int) -> Sequence[tuple[int, str]]:
        """Demands with a number above ``known``, as (number, canonical JSON)."""
        with self.database.read() as connection:
            rows = sql.DEMANDS_AFTER.all(connection, {"p_known": known})
            return [(row.id, row.body) for row in rows]

    def queued_demands(self) -> Mapping[int, str]:
        """The demands that queued jobs have."""
        with self.database.read() as connection:
            waiting = select(JOBS.c.demand).where(JOBS.c.status == QUEUED).distinct()
            rows = connection.execute(select(DEMANDS.c.id, DEMANDS.c.body).where(DEMANDS.c.id.in_(waiting)))
            return {row.id: row.body for row in rows}

    # -- look up -----------------------------------------------------------------------------------------------------

    def get(self, user_id: str, type_: str, name: str) -> Job:
        """One job by the names that clients use.

        :raises JobNotFound: there is none, or it was deleted.
        """
        with self.database.read() as connection:
            return _by_name(connection, Identity(user_id, type_, name))

    def current(self, job: Identity) -> Job:
        """A job that was accepted, as it is now.

        :raises JobNotFound: it was deleted.
        :raises JobLost: there is no row of it any more.
        """
        with self.database.read() as connection:
            row = sql.BY_NAME.first(connection, sql.named(job))
            if row is None and sql.ANY_NAMED.first(connection, sql.named(job)) is None:
                raise JobLost
            return _found(row)

    def images(self, user_id: str, type_: str, name: str) -> list[dict[str, Any]]:
        """The images of one job, its reference image last: a narrow look, for every picture that is served asks it.

        :raises JobNotFound: there is no such job, or it was deleted.
        """
        with self.database.read() as connection:
            row = sql.IMAGES.first(connection, sql.named(Identity(user_id, type_, name)))
        if row is None:
            raise JobNotFound
        images, init_image = row
        listed: list[dict[str, Any]] = loads(images) if images else []
        return listed + ([loads(init_image)] if init_image else [])

    def statuses(self, jobs: Collection[Identity]) -> dict[Identity, str]:
        """The status of each of these jobs that has a row; a deleted one shows as ``deleted``."""
        with self.database.read() as connection:
            rows = connection.execute(sql.STATUSES, {"p_names": [job.name for job in jobs]})
            found = {Identity(row.user_id, row.type, row.name): row.status for row in rows}
        return {job: found[job] for job in jobs if job in found}

    def history(
        self, user_id: str, type_: str, limit: int, before: int | None, wanted: Callable[[Job], bool] = _always
    ) -> list[Job]:
        """Succeeded jobs of one type, newest first, below the number ``before``.

        :param wanted: asked for each in turn; the first one that it refuses ends the list, and no later one is read.
        """
        return self._page(sql.HISTORY, {"p_user": user_id, "p_type": type_}, limit, before, wanted)

    def of_user(
        self, user_id: str, status: str | None, limit: int, before: int | None, wanted: Callable[[Job], bool] = _always
    ) -> list[Job]:
        """Jobs of both types in any state, or in one; parameters as :meth:`history` has them."""
        if status is None:
            return self._page(sql.OF_USER, {"p_user": user_id}, limit, before, wanted)
        return self._page(sql.OF_USER_IN, {"p_user": user_id, "p_status": status}, limit, before, wanted)

    def _page(
        self,
        statement: Prepared,
        where: dict[str, Any],
        limit: int,
        before: int | None,
        wanted: Callable[[Job], bool],
    ) -> list[Job]:
        page = {"p_before": _AFTER_ALL if before is None else before, "p_limit": limit}
        with self.database.read() as connection, closing(statement.walk(connection, where | page)) as rows:
            return [*takewhile(wanted, map(Job.of, rows))]

    def succeeded(self, after: int, limit: int) -> list[Job]:
        """Succeeded jobs in the order of acceptance, above the number ``after``: to walk through all of them."""
        with self.database.read() as connection:
            rows = connection.execute(
                select(*sql.COLUMNS)
                .where(JOBS.c.seq > after, JOBS.c.status == SUCCEEDED)
                .order_by(JOBS.c.seq)
                .limit(limit)
            )
            return [Job.of(row) for row in rows]

    def rows_named(self, name: str, type_: str) -> list[tuple[Job, bool]]:
        """Every row with this name, deleted ones too, each with whether its lease is live; for the sweep.

        A lease that ran out a moment ago counts: its owner may be alive and just not have beaten yet, and may still finish.
        """
        live = and_(JOBS.c.status == RUNNING, JOBS.c.lease_expires > db_now() - _LATE_BEAT_SECONDS).label("live")
        with self.database.read() as connection:
            rows = connection.execute(select(*sql.COLUMNS, live).where(JOBS.c.name == name, JOBS.c.type == type_))
            return [(Job.of(row), bool(row.live)) for row in rows]

    # -- places ------------------------------------------------------------------------------------------------------

    def place(self, job: Job) -> Place:
        """Where an unfinished job stands in the queue, and how long it will take at the speed measured so far."""
        if job.finished:
            return Place(None, None)
        with self.database.read() as connection:
            return places.place(connection, job)

    def seconds_until_room(self) -> float:
        """Seconds until the next unfinished job is likely to end; for Retry-After."""
        with self.database.read() as connection:
            return places.seconds_until_room(connection)

    # -- delete ------------------------------------------------------------------------------------------------------

    def delete(self, user_id: str, type_: str, name: str) -> Job:
        """Commit that a finished job is gone (its row stays as a mark, emptied) and return what it was.

        :raises JobNotFound, JobUnfinished: nothing was changed.
        """
        with self.database.write("delete") as connection:
            job = _by_name(connection, Identity(user_id, type_, name), lock=True)
            _mark_deleted(connection, job)
            return job

    def delete_image(self, user_id: str, type_: str, name: str, filename: str) -> tuple[Job, bool]:
        """Commit that one image of a record is gone, and the record with its last one: (what it was, whether all went).

        :raises JobNotFound: no such job, or it has no such image.
        :raises JobUnfinished: nothing was changed.
        """
        with self.database.write("delete image") as connection:
            job = _by_name(connection, Identity(user_id, type_, name), lock=True)
            left = [image for image in job.images if image["filename"] != filename]
            if len(left) == len(job.images):
                raise JobNotFound
            if not left:
                _mark_deleted(connection, job)
            else:
                connection.execute(update(JOBS).where(JOBS.c.seq == job.seq).values(images=to_json(left), debris=True))
            return job, not left

    def debris(self, after: int = 0, limit: int = _AFTER_ALL) -> list[tuple[Job, bool]]:
        """Rows above a number whose deleted files may still be on disk, each with whether the whole record was deleted."""
        wanted = select(*sql.COLUMNS).where(DEBRIS, JOBS.c.seq > after).order_by(JOBS.c.seq).limit(limit)
        with self.database.read() as connection:
            return [(Job.of(row), row.status == "deleted") for row in connection.execute(wanted).all()]

    def debris_removed(self, job: Job) -> None:
        """The files of what was deleted of this job are gone."""
        with self.database.write("debris removed") as connection:
            connection.execute(update(JOBS).where(sql.ROW).values(debris=False), sql.row_of(job))

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
                # It will never be claimed, so it demands nothing.
                connection.execute(insert(JOBS).values(values | {"demand": 0}))
            return there is None

    def forget_keys(self) -> int:
        """Drop idempotency keys that have expired, at most :data:`MOST_FORGOTTEN`; how many."""
        return self._forget(IDEMPOTENCY, IDEMPOTENCY.c.expires_at <= db_now())

    def forget_deleted(self) -> int:
        """Drop rows of deleted jobs, at most :data:`MOST_FORGOTTEN`; how many.

        A row stays while files of it may be left, and while an idempotency key names it. It also stays until every client that
        waited for the job has seen its end.
        """
        now = _now_ms()
        # A time in the future is one from before the clock was set back.
        waited_for = JOBS.c.finished_at.between(now - _SEEN_MS, now)
        named = select(IDEMPOTENCY.c.key).where(sql.KEY_NAMES_JOB).exists()
        gone = and_(JOBS.c.status == DELETED, not_(DEBRIS), not_(func.coalesce(waited_for, false())), not_(named))
        return self._forget(JOBS, gone)

    def forget_users(self) -> int:
        """Drop what fair queueing need not know of users any more, at most :data:`MOST_FORGOTTEN` rows; how many.

        A user without unfinished jobs whose finish tag the clock has passed begins like a new one, and so does everybody once
        nothing at all is unfinished.
        """
        virtual = select(CLOCK.c.virtual).scalar_subquery()
        unfinished = select(CLOCK.c.unfinished).scalar_subquery()
        idle = and_(USERS.c.unfinished <= 0, or_(USERS.c.finish <= virtual, unfinished <= 0))
        return self._forget(USERS, idle)

    def _forget(self, table: Table, where: ColumnElement[bool]) -> int:
        """Delete rows of a table, at most :data:`MOST_FORGOTTEN`; how many.

        In batches that are chosen before, so that no writer waits long and PostgreSQL's autovacuum keeps up.
        """
        columns = list(table.primary_key.columns)
        with self.database.read() as connection:
            rows = connection.execute(select(*columns).where(where).limit(MOST_FORGOTTEN)).all()
        if not rows:
            return 0
        key = columns[0].in_([row[0] for row in rows]) if len(columns) == 1 else tuple_(*columns).in_(map(tuple, rows))
        with self.database.write() as connection:
            # Asked again: a user may have come back, and a key may have been given anew.
            return connection.execute(delete(table).where(key, where)).rowcount


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _row_of(new: NewJob) -> dict[str, Any]:
    return {
        "user_id": new.user_id, "type": new.type, "name": new.name, "status": "queued", "created_at": new.created_at,
        "args": to_json(new.args), "init_image": to_json(new.init_image) if new.init_image else None, "simulated": False,
        "cost": new.cost, "claims": 0, "attempts": 0, "losses": 0, "one_by_one": False, "debris": False,
    }  # fmt: skip


def _failed(failure: Failure) -> dict[str, Any]:
    return {
        "status": "failed",
        "finished_at": _now_ms(),
        "error_slug": failure.slug,
        "error_detail": failure.detail,
    }


def _next_job(connection: Connection, slot: str, serving: Serving, *, lock: bool = False) -> Any:
    """The waiting job that starts next on a WebUI that can serve so much.

    None also when there are newer demands: one of them may be the next job's, which is not to be passed by.
    """
    parameters: dict[str, Any] = {"p_known": serving.known, "c_slot": slot}
    if not serving.unservable:
        row = (sql.TAKE_NEXT if lock else sql.NEXT).first(connection, parameters)
    else:
        parameters["p_unservable"] = sorted(serving.unservable)
        row = connection.execute(sql.TAKE_NEXT_SERVABLE if lock else sql.NEXT_SERVABLE, parameters).first()
    return row if row is not None and row.newest_demand <= serving.known else None


def _refuse(connection: Connection, claim: Claim) -> None:
    """Keep the job away from the slot that the claim is for."""
    refusal = {**claim.job.identity._asdict(), "slot": claim.slot}
    connection.execute(delete(REFUSALS).filter_by(**refusal))
    connection.execute(insert(REFUSALS).values(refusal))


def _found(row: Any) -> Job:
    if row is None:
        raise JobNotFound
    return Job.of(row)


def _by_name(connection: Connection, job: Identity, *, lock: bool = False) -> Job:
    return _found((sql.LOCK_BY_NAME if lock else sql.BY_NAME).first(connection, sql.named(job)))


def _count_out(connection: Connection, users: Sequence[str]) -> None:
    """Take finished jobs out of the counts of unfinished ones."""
    if not users:
        return
    sql.COUNT_OUT.change(connection, {"p_count": len(users)})
    for user_id in users:
        sql.COUNT_USER_OUT.change(connection, {"p_user": user_id})


def _mark_deleted(connection: Connection, job: Job) -> None:
    if not job.finished:
        raise JobUnfinished
    # Without its batch size nobody would know how many files may be left of it.
    left = {name: value for name, value in job.args.items() if name == "batch_size"}
    connection.execute(
        update(JOBS)
        .where(JOBS.c.seq == job.seq)
        .values(
            status="deleted", args=to_json(left), images=None, init_image=None, webui=None, error_slug=None, error_detail=None,
            debris=True,
        )
    )  # fmt: skip
