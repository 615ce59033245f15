"""The statements on the way of every job, built and translated once.

Building a statement costs SQLAlchemy several times what running it costs (measured: 0.5 ms against 0.08 ms), and the way from one
generation's answer to the next one's POST is made of them. Parameters are bound by name when they run: ``c_…`` name the claim
that a compare-and-set compares with, ``p_…`` new values.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Select,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from app.jobs.model import Claim, Failure, Identity, Job
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import (
    CANCELLED,
    CATALOGUES,
    CLOCK,
    DELETED,
    EPOCHS,
    FAILED,
    IDEMPOTENCY,
    JOBS,
    NOTES,
    PENDING_UNLINK,
    QUEUED,
    REFUSALS,
    REQUIREMENTS,
    RUNNING,
    SLOTS,
    SPEEDS,
    SUCCEEDED,
    USERS,
    WORKERS,
    db_now,
)

#: What :meth:`app.jobs.model.Job.of` reads.
COLUMNS: Final = tuple(JOBS.c[name] for name in Job._fields)
LEASE_SECONDS: Final = 10.0
#: The note that stands while no job is started; see :class:`app.jobs.queue.Queue`.
PAUSED: Final = "paused"
IS_PAUSED: Final = select(NOTES.c.key).where(NOTES.c.key == literal_column(f"'{PAUSED}'", Text)).exists()
KEY_SECONDS: Final = 24 * 3600.0
#: The rev of the write that is under way, for the rows that it changes (app/jobs/revisions.py). Its transaction ends by moving the
#: clock there, with COUNT_IN, ADVANCE_CLOCK or COUNT_OUT; since writers are serial, no other one takes that number.
NEXT_REV: Final = select(CLOCK.c.rev + 1).scalar_subquery()

#: What an ended attempt leaves in the row.
FREE: Final[dict[str, Any]] = {
    "owner": None,
    "lease_expires": None,
    "slot": None,
    "phase": None,
    "eta": None,
    "progress_at": None,
    "watched_at": None,
}
#: Why a job was cancelled.
JOB_CANCELLED: Final = Failure("job-cancelled", "The job was cancelled.")
DEADLINE_PASSED: Final = Failure(
    "deadline-passed", "The job had not ended within the time that its Cancel-After allows."
)
_TO_END: Final = JOBS.c.cancel_at.is_not(None)
#: Which of the two, of a job that runs and is to end: what asked for its end first.
_BY_DEADLINE: Final = JOBS.c.deadline <= JOBS.c.cancel_at
_WHY: Final[dict[str, Any]] = {
    "error_slug": case((_BY_DEADLINE, DEADLINE_PASSED.slug), else_=JOB_CANCELLED.slug),
    "error_detail": case((_BY_DEADLINE, DEADLINE_PASSED.detail), else_=JOB_CANCELLED.detail),
}
#: Whether a waiting job had a claim before, whose worker may have died with files of it on disk.
WAS_CLAIMED: Final[ColumnElement[bool]] = JOBS.c.claims > 0
#: What ends a claimed job that is to end. Its claims may have left files, which go when nobody can write any more.
_ENDED: Final[dict[str, Any]] = {
    "finished_at": bindparam("p_finished", type_=BigInteger),
    "pending_unlink": True,
    **_WHY,
}
#: The same for a job that goes back to its place in the queue; one that is to end does so instead.
BACK: Final[dict[str, Any]] = {
    "status": case((_TO_END, CANCELLED), else_=QUEUED),
    "progress": None,
    "rev": NEXT_REV,
    **{name: case((_TO_END, value), else_=JOBS.c[name]) for name, value in _ENDED.items()},
    **FREE,
}


def named(identity: Identity) -> dict[str, Any]:
    """The parameters of the statements that look a job up by its identity."""
    return {"p_user": identity.user_id, "p_type": identity.type, "p_name": identity.name}


def row_of(job: Job) -> dict[str, Any]:
    """The parameters of :data:`ROW`."""
    return {"c_seq": job.seq, "c_user": job.user_id, "c_type": job.type, "c_name": job.name}


def owned_by(claim: Claim) -> dict[str, Any]:
    """The parameters of :data:`OWNED` and of :data:`FINISHED_BY`."""
    mine = {"c_owner": claim.owner, "c_claims": claim.attempt, "c_task": claim.task_id, "c_losses": claim.job.losses}
    return row_of(claim.job) | mine


def held_by(claim: Claim) -> dict[str, Any]:
    """The parameters of :data:`HELD`."""
    return {"c_slot": claim.slot, "c_owner": claim.owner, "c_task": claim.task_id}


_SAME_JOB: Final[ColumnElement[bool]] = and_(
    JOBS.c.user_id == bindparam("c_user"), JOBS.c.type == bindparam("c_type"), JOBS.c.name == bindparam("c_name")
)
#: The row of a job that an earlier transaction has read. The number finds it, the identity says that it is still this job's.
ROW: Final[ColumnElement[bool]] = and_(JOBS.c.seq == bindparam("c_seq"), _SAME_JOB)
_CLAIM: Final[ColumnElement[bool]] = and_(
    JOBS.c.owner == bindparam("c_owner"), JOBS.c.claims == bindparam("c_claims"), JOBS.c.task_id == bindparam("c_task")
)
#: The compare of every compare-and-set on a claimed job.
OWNED: Final[ColumnElement[bool]] = and_(ROW, JOBS.c.status == RUNNING, _CLAIM)
#: The same of a job whose end nobody has asked for.
WANTED: Final[ColumnElement[bool]] = and_(OWNED, JOBS.c.cancel_at.is_(None))
#: A job that was deleted while it ran. Its claim, lease and slot stay in the row until its worker has replied or is gone, for the
#: claim may write files until then.
HELD_DELETED: Final[ColumnElement[bool]] = and_(PENDING_UNLINK, JOBS.c.status == DELETED, JOBS.c.owner.is_not(None))
#: The same for the slot that a claim holds.
HELD: Final[ColumnElement[bool]] = and_(
    SLOTS.c.key == bindparam("c_slot"), SLOTS.c.owner == bindparam("c_owner"), SLOTS.c.task_id == bindparam("c_task")
)

# -- accept ----------------------------------------------------------------------------------------------------------

#: Of an idempotency key and the job that it made.
KEY_NAMES_JOB: Final = and_(
    IDEMPOTENCY.c.name == JOBS.c.name, IDEMPOTENCY.c.type == JOBS.c.type, IDEMPOTENCY.c.user_id == JOBS.c.user_id
)
_KEY: Final = and_(IDEMPOTENCY.c.user_id == bindparam("p_user"), IDEMPOTENCY.c.key == bindparam("p_key"))
FIND_KEY: Final = Prepared(
    select(IDEMPOTENCY.c.digest, IDEMPOTENCY.c.type, IDEMPOTENCY.c.name).where(
        _KEY, IDEMPOTENCY.c.expires_at > db_now()
    )
)
FORGET_KEY: Final = Prepared(delete(IDEMPOTENCY).where(_KEY))
REMEMBER_KEY: Final = Prepared(
    insert(IDEMPOTENCY).values(expires_at=db_now() + KEY_SECONDS), ("user_id", "key", "digest", "type", "name")
)
#: All that accepting has to know, in one query: the clock, the user (None for a new one) and the number of the requirements (None
#: likewise).
BEFORE_ACCEPTING: Final = Prepared(
    select(
        CLOCK.c.virtual,
        CLOCK.c.unfinished,
        USERS.c.finish.label("user_finish"),
        USERS.c.unfinished.label("user_unfinished"),
        select(REQUIREMENTS.c.id)
        .where(REQUIREMENTS.c.body == bindparam("p_body"))
        .scalar_subquery()
        .label("requirements_id"),
    ).select_from(CLOCK.outerjoin(USERS, USERS.c.user_id == bindparam("p_user")))
)
ADD_USER: Final = Prepared(insert(USERS), ("user_id", "finish", "unfinished"))
COUNT_USER_IN: Final = Prepared(
    update(USERS)
    .where(USERS.c.user_id == bindparam("p_user"))
    .values(finish=bindparam("p_finish"), unfinished=USERS.c.unfinished + 1)
)
COUNT_IN: Final = Prepared(update(CLOCK).values(unfinished=CLOCK.c.unfinished + 1, rev=CLOCK.c.rev + 1))
ADD_REQUIREMENTS: Final = Prepared(insert(REQUIREMENTS).returning(REQUIREMENTS.c.id), ("body",))
#: What an accepted job begins with; the rest of its row is empty.
_ACCEPTED: Final = (
    "user_id", "type", "name", "status", "created_at", "args", "init_image", "simulated", "cost", "start_tag", "requirements_id",
    "claims", "attempts", "losses", "one_by_one", "pending_unlink", "request",
)  # fmt: skip
_DEADLINE: Final = db_now() + bindparam("p_cancel_after", type_=Float)
ADD_JOB: Final = Prepared(insert(JOBS).values(rev=NEXT_REV, deadline=_DEADLINE).returning(*COLUMNS), _ACCEPTED)

REQUIREMENTS_AFTER: Final = Prepared(
    select(REQUIREMENTS.c.id, REQUIREMENTS.c.body)
    .where(REQUIREMENTS.c.id > bindparam("p_known"))
    .order_by(REQUIREMENTS.c.id)
)

# -- claim -----------------------------------------------------------------------------------------------------------

_NEWEST_REQUIREMENTS: Final = (
    select(func.coalesce(func.max(REQUIREMENTS.c.id), 0)).scalar_subquery().label("newest_requirements")
)
#: What joins a refusal with its job.
REFUSES_JOB: Final[ColumnElement[bool]] = and_(
    REFUSALS.c.name == JOBS.c.name, REFUSALS.c.type == JOBS.c.type, REFUSALS.c.user_id == JOBS.c.user_id
)
#: A job is not sent again to a WebUI that can't make it.
_REFUSED: Final = select(REFUSALS.c.slot).where(REFUSES_JOB, REFUSALS.c.slot == bindparam("c_slot")).exists()
_REQUIREMENTS: Final = (
    select(REQUIREMENTS.c.body)
    .where(REQUIREMENTS.c.id == JOBS.c.requirements_id)
    .scalar_subquery()
    .label("requirements_body")
)
#: A job beyond its deadline is not begun; the upkeep ends it (app/jobs/cancellation.py).
_IN_TIME: Final = or_(JOBS.c.deadline.is_(None), JOBS.c.deadline > db_now())
_WAITING: Final[Select[Any]] = (
    select(JOBS.c.seq, JOBS.c.start_tag, _NEWEST_REQUIREMENTS, _REQUIREMENTS)
    .where(JOBS.c.status == QUEUED, JOBS.c.requirements_id <= bindparam("p_known"), ~_REFUSED, _IN_TIME, ~IS_PAUSED)
    .order_by(JOBS.c.start_tag, JOBS.c.seq)
    .limit(1)
)
_SERVABLE: Final = JOBS.c.requirements_id.not_in(bindparam("p_unservable", expanding=True))
#: The job that starts next. The second form, for a WebUI that can't serve all requirements, costs more: its list
#: can't be prepared.
NEXT: Final = Prepared(_WAITING)
NEXT_SERVABLE: Final[Select[Any]] = _WAITING.where(_SERVABLE)
TAKE_NEXT: Final = Prepared(_WAITING.with_for_update(skip_locked=True))
TAKE_NEXT_SERVABLE: Final[Select[Any]] = NEXT_SERVABLE.with_for_update(skip_locked=True)

TAKE_SLOT: Final = Prepared(
    update(SLOTS)
    .where(
        SLOTS.c.key == bindparam("c_slot"),
        SLOTS.c.state == "clean",
        # Another worker of this WebUI may have come to doubt its model; see Serving.
        func.coalesce(SLOTS.c.doubt, "") == bindparam("c_doubt"),
    )
    .values(
        state="held",
        owner=bindparam("p_owner"),
        lease_expires=db_now() + LEASE_SECONDS,
        task_id=bindparam("p_task"),
    )
)
#: By its number: the row was read and locked in this transaction.
START_JOB: Final = Prepared(
    update(JOBS)
    .where(JOBS.c.seq == bindparam("c_seq"))
    .values(
        status="running",
        phase="generating",
        claims=JOBS.c.claims + 1,
        owner=bindparam("p_owner"),
        slot=bindparam("p_slot"),
        task_id=bindparam("p_task"),
        lease_expires=db_now() + LEASE_SECONDS,
        claimed_at=db_now(),
        started_at=bindparam("p_started"),
        progress=0.0,
        eta=None,
        progress_at=None,
        watched_at=None,
        rev=NEXT_REV,
    )
    .returning(*COLUMNS)
)
_TAG: Final = bindparam("p_tag", type_=Float)
ADVANCE_CLOCK: Final = Prepared(
    update(CLOCK).values(virtual=case((CLOCK.c.virtual < _TAG, _TAG), else_=CLOCK.c.virtual), rev=CLOCK.c.rev + 1)
)

_CLEAN: Final[dict[str, Any]] = {"state": "clean", "owner": None, "lease_expires": None, "task_id": None}
FREE_SLOT: Final = Prepared(update(SLOTS).where(HELD).values(_CLEAN))
#: The same owner keeps the slot for its next job, but not one that it has begun to quiesce since.
PASS_SLOT: Final = Prepared(
    update(SLOTS)
    .where(HELD, SLOTS.c.state == "held")
    .values(task_id=bindparam("p_task"), lease_expires=db_now() + LEASE_SECONDS)
)
#: See :mod:`app.jobs.speeds`.
MEASURE: Final = Prepared(
    update(SPEEDS)
    .where(SPEEDS.c.slot == bindparam("c_slot"), SPEEDS.c.model == bindparam("c_model"))
    .values(recent=func.substr(bindparam("p_measured", type_=Text).concat(SPEEDS.c.recent), 1, bindparam("p_length")))
)
ADD_SPEED: Final = Prepared(insert(SPEEDS), ("slot", "model", "recent"))

#: The WebUI of an unclean slot may still work at the task, so its id stays for the worker that quiesces the slot.
_UNCLEAN: Final[dict[str, Any]] = {"state": "unclean", "owner": None, "lease_expires": None}
LEAVE_SLOT: Final = Prepared(update(SLOTS).where(HELD).values(_UNCLEAN))
BEGIN_STORING: Final = Prepared(
    update(JOBS).where(OWNED).values(phase="storing", progress=1.0, eta=None, progress_at=db_now(), rev=NEXT_REV)
)
#: The same where the job was deleted meanwhile; nobody sees that.
BEGIN_DISCARDING: Final = Prepared(update(JOBS).where(ROW, HELD_DELETED, _CLAIM).values(phase="storing"))

# -- heartbeat ------------------------------------------------------------------------------------------------------------

REPORT: Final = Prepared(
    update(JOBS)
    .where(OWNED, JOBS.c.phase == "generating")
    .values(progress=bindparam("p_progress"), eta=bindparam("p_eta"), progress_at=db_now())
)
STALE_WATCH: Final = Prepared(
    select(JOBS.c.seq).where(
        ROW,
        # A time in the future is one from before the clock was set back.
        or_(JOBS.c.watched_at.is_(None), JOBS.c.watched_at < db_now() - 1.0, JOBS.c.watched_at > db_now()),
    )
)
WATCH: Final = Prepared(update(JOBS).where(ROW, JOBS.c.status == RUNNING).values(watched_at=db_now()))
SECONDS_SINCE_WATCHED: Final = Prepared(select((db_now() - JOBS.c.watched_at).label("seconds")).where(OWNED))

# -- leases ----------------------------------------------------------------------------------------------------------

#: Leases that end later than any heartbeat could have made them. The slack keeps a slewed clock from causing a write each time.
JOB_LATE: Final = and_(JOBS.c.status == RUNNING, JOBS.c.lease_expires > db_now() + LEASE_SECONDS + 1.0)
DELETED_LATE: Final = and_(HELD_DELETED, JOBS.c.lease_expires > db_now() + LEASE_SECONDS + 1.0)
SLOT_LATE: Final = SLOTS.c.lease_expires > db_now() + LEASE_SECONDS + 1.0
#: The columns that a heartbeat renews.
RENEWED: Final = {"lease_expires": db_now() + LEASE_SECONDS}
RENEW_JOBS: Final = Prepared(
    update(JOBS)
    .where(JOBS.c.status == RUNNING, JOBS.c.owner == bindparam("p_owner"))
    .values(RENEWED)
    .returning(JOBS.c.task_id, JOBS.c.cancel_at)
)
RENEW_DELETED: Final = Prepared(
    update(JOBS).where(HELD_DELETED, JOBS.c.owner == bindparam("p_owner")).values(RENEWED).returning(JOBS.c.task_id)
)
RENEW_SLOTS: Final = Prepared(
    update(SLOTS).where(SLOTS.c.owner == bindparam("p_owner")).values(RENEWED).returning(SLOTS.c.task_id)
)
RENEW_WORKER: Final = Prepared(
    update(WORKERS).where(WORKERS.c.owner == bindparam("p_owner")).values(heartbeat_at=db_now())
)


def job_lapsed(owner: Any) -> ColumnElement[bool]:
    """The condition on a job whose lease ran out and that another owner holds."""
    return and_(JOBS.c.status == RUNNING, JOBS.c.owner != owner, JOBS.c.lease_expires < db_now())


def deleted_lapsed(owner: Any) -> ColumnElement[bool]:
    """The same of a job that was deleted while it ran."""
    return and_(HELD_DELETED, JOBS.c.owner != owner, JOBS.c.lease_expires < db_now())


def slot_lapsed(owner: Any) -> ColumnElement[bool]:
    """The condition on a slot whose lease ran out and that another owner holds."""
    return and_(SLOTS.c.owner != owner, SLOTS.c.lease_expires < db_now())


_LAPSED: Final = [
    select(JOBS.c.seq).where(job_lapsed(bindparam("p_owner"))),
    select(JOBS.c.seq).where(deleted_lapsed(bindparam("p_owner"))),
    select(SLOTS.c.key).where(slot_lapsed(bindparam("p_owner"))),
]
_LATE: Final = [
    select(JOBS.c.seq).where(JOB_LATE), select(JOBS.c.seq).where(DELETED_LATE), select(SLOTS.c.key).where(SLOT_LATE),
]  # fmt: skip
#: Asked every two seconds: whether there is a lease that is late, and one of somebody else that has run out.
LEASES: Final = Prepared(
    select(
        or_(*(late.exists() for late in _LATE)).label("late"),
        or_(*(lapsed.exists() for lapsed in _LAPSED)).label("lapsed"),
    )
)

#: The task ids of the jobs whose results an owner decodes or stores.
_STORED: Final = and_(JOBS.c.owner == bindparam("p_owner"), JOBS.c.phase == "storing")
STORED_BY: Final = Prepared(
    union_all(
        select(JOBS.c.task_id).where(JOBS.c.status == RUNNING, _STORED),
        select(JOBS.c.task_id).where(HELD_DELETED, _STORED),
    )
)

# -- finish ----------------------------------------------------------------------------------------------------------

SUCCEED: Final = Prepared(
    update(JOBS)
    .where(WANTED)
    .values(
        status="succeeded",
        finished_at=bindparam("p_finished"),
        args=bindparam("p_args"),
        images=bindparam("p_images"),
        webui=bindparam("p_webui"),
        simulated=bindparam("p_simulated"),
        rev=NEXT_REV,
        **FREE,
    )
)
FAIL: Final = Prepared(
    update(JOBS)
    .where(WANTED)
    .values(
        status="failed",
        finished_at=bindparam("p_finished"),
        error_slug=bindparam("p_slug"),
        error_detail=bindparam("p_detail"),
        attempts=JOBS.c.attempts + 1,
        rev=NEXT_REV,
        **FREE,
    )
)
#: What a claim does instead when the end of its job was asked for.
END: Final = Prepared(
    update(JOBS).where(OWNED, _TO_END).values(status="cancelled", progress=None, rev=NEXT_REV, **_ENDED, **FREE)
)
#: The end of a claim whose job was deleted meanwhile: from now on nobody writes files of it.
END_DELETED: Final = Prepared(update(JOBS).where(ROW, HELD_DELETED, _CLAIM).values(FREE))
#: Why a job failed whose worker was lost too often.
WORKER_LOST: Final = "worker-lost"
#: How a claim has ended its job already. A job that failed as lost, or was cancelled when its claim was lost, was ended by another
#: worker.
FINISHED_BY: Final = Prepared(
    select(JOBS.c.status).where(
        _SAME_JOB,
        JOBS.c.claims == bindparam("c_claims"),
        JOBS.c.task_id == bindparam("c_task"),
        or_(
            JOBS.c.status == SUCCEEDED,
            and_(JOBS.c.status == FAILED, JOBS.c.error_slug != WORKER_LOST),
            and_(JOBS.c.status == CANCELLED, JOBS.c.losses == bindparam("c_losses")),
        ),
    )
)
STILL_WANTED: Final = Prepared(select(JOBS.c.seq).where(WANTED))
#: Jobs that an owner holds on a slot without knowing it. Something may have been sent, so the slot is left unclean.
RELEASE_JOB: Final = Prepared(
    update(JOBS)
    .where(
        JOBS.c.status == RUNNING,
        JOBS.c.owner == bindparam("c_owner"),
        JOBS.c.slot == bindparam("c_slot"),
        JOBS.c.phase == "generating",
    )
    .values(BACK)
    .returning(*COLUMNS)
)
RELEASE_DELETED: Final = Prepared(
    update(JOBS)
    .where(
        HELD_DELETED,
        JOBS.c.owner == bindparam("c_owner"),
        JOBS.c.slot == bindparam("c_slot"),
        JOBS.c.phase == "generating",
    )
    .values(FREE)
)
RELEASE_SLOT: Final = Prepared(
    update(SLOTS).where(SLOTS.c.key == bindparam("c_slot"), SLOTS.c.owner == bindparam("c_owner")).values(_UNCLEAN)
)
COUNT_OUT: Final = Prepared(
    update(CLOCK).values(unfinished=CLOCK.c.unfinished - bindparam("p_count"), rev=CLOCK.c.rev + 1)
)
COUNT_USER_OUT: Final = Prepared(
    update(USERS).where(USERS.c.user_id == bindparam("p_user")).values(unfinished=USERS.c.unfinished - 1)
)

# -- cancel ----------------------------------------------------------------------------------------------------------

#: The virtual clock, and the finish tag of the last unfinished job of a user.
USER_TAGS: Final = Prepared(
    select(
        CLOCK.c.virtual,
        select(func.max(JOBS.c.start_tag + JOBS.c.cost))
        .where(JOBS.c.user_id == bindparam("p_user"), JOBS.c.status.in_([QUEUED, RUNNING]))
        .scalar_subquery()
        .label("finish"),
    )
)
SET_FINISH: Final = Prepared(
    update(USERS).where(USERS.c.user_id == bindparam("p_user")).values(finish=bindparam("p_finish"))
)
#: Unfinished jobs beyond their deadline whose end nobody has asked for.
OVERDUE: Final = Prepared(
    select(*COLUMNS).where(
        JOBS.c.deadline <= db_now(),
        JOBS.c.finished_at.is_(None),
        JOBS.c.cancel_at.is_(None),
        JOBS.c.status.in_([QUEUED, RUNNING]),
    )
)

# -- look up ---------------------------------------------------------------------------------------------------------

_SHOWN: Final = JOBS.c.status != DELETED
_NAMED: Final[ColumnElement[bool]] = and_(
    JOBS.c.name == bindparam("p_name"), JOBS.c.type == bindparam("p_type"), JOBS.c.user_id == bindparam("p_user")
)
_BY_NAME: Final[Select[Any]] = select(*COLUMNS).where(_NAMED, _SHOWN)
BY_NAME: Final = Prepared(_BY_NAME)
LOCK_BY_NAME: Final = Prepared(_BY_NAME.with_for_update())
#: Whether there is a row, also a deleted one.
ANY_NAMED: Final = Prepared(select(JOBS.c.seq).where(_NAMED))
#: When a job was deleted, in the order of changes.
DELETED_AT: Final = Prepared(select(JOBS.c.rev).where(_NAMED, JOBS.c.status == DELETED))
#: The last claim of a job, also of a deleted one.
CLAIM_SHOWN: Final = Prepared(select(JOBS.c.claims, JOBS.c.task_id).where(_NAMED))
IMAGES: Final = Prepared(select(JOBS.c.images, JOBS.c.init_image).where(_NAMED, _SHOWN))
#: By the name alone, which is random: SQLite's IN takes no list of rows.
LATEST: Final[Select[Any]] = select(JOBS.c.rev, JOBS.c.user_id, JOBS.c.type, JOBS.c.name, JOBS.c.status).where(
    JOBS.c.name.in_(bindparam("p_names", expanding=True))
)

#: Jobs by their names, also of other users with the same name; SQLite's IN takes no list of rows.
JOBS_NAMED: Final[Select[Any]] = select(*COLUMNS).where(_SHOWN, JOBS.c.name.in_(bindparam("p_names", expanding=True)))
RUNNING_JOBS: Final = Prepared(select(*COLUMNS).where(JOBS.c.status == RUNNING))
UNFINISHED_OF_USER: Final = Prepared(
    select(*COLUMNS)
    .where(JOBS.c.user_id == bindparam("p_user"), JOBS.c.status.in_([QUEUED, RUNNING]))
    .order_by(JOBS.c.seq)
    .limit(bindparam("p_limit"))
)

_BEFORE: Final = JOBS.c.seq < bindparam("p_before")
_OF_USER: Final = JOBS.c.user_id == bindparam("p_user")


def _page(*where: ColumnElement[bool]) -> Prepared:
    return Prepared(select(*COLUMNS).where(*where, _BEFORE).order_by(JOBS.c.seq.desc()).limit(bindparam("p_limit")))


HISTORY: Final = _page(_OF_USER, JOBS.c.type == bindparam("p_type"), JOBS.c.status == SUCCEEDED)
OF_USER: Final = _page(_OF_USER, _SHOWN)
OF_USER_IN: Final = _page(_OF_USER, JOBS.c.status == bindparam("p_status"))

# -- the order of changes ---------------------------------------------------------------------------------------------


def _epoch_of(rev: ColumnElement[Any]) -> Select[Any]:
    return select(EPOCHS.c.epoch).where(EPOCHS.c.first_rev <= rev).order_by(EPOCHS.c.epoch.desc()).limit(1)


_EPOCH_GIVEN: Final = _epoch_of(bindparam("p_rev", type_=BigInteger))
EPOCH_OF: Final = Prepared(_EPOCH_GIVEN)
CURRENT_VERSION: Final = Prepared(select(_epoch_of(CLOCK.c.rev).scalar_subquery().label("epoch"), CLOCK.c.rev))
PURGED_REV: Final = Prepared(select(CLOCK.c.purged_rev))
#: What decides whether a client can go on from a rev.
RESUMING: Final = Prepared(select(_EPOCH_GIVEN.scalar_subquery().label("epoch"), CLOCK.c.rev, CLOCK.c.purged_rev))
_CHANGED: Final[Select[Any]] = (
    select(JOBS.c.rev, JOBS.c.user_id, JOBS.c.type, JOBS.c.name, JOBS.c.status)
    .where(JOBS.c.rev > bindparam("p_after"))
    .order_by(JOBS.c.rev, JOBS.c.seq)
    .limit(bindparam("p_limit"))
)
CHANGES: Final = Prepared(_CHANGED)
CHANGES_OF_USER: Final = Prepared(_CHANGED.where(_OF_USER))

# -- catalogues ------------------------------------------------------------------------------------------------------

CONFIGURED: Final = Prepared(select(WORKERS.c.webuis).order_by(WORKERS.c.owner))
#: The time at which a refresh was wanted, and that of this WebUI's last one; a monitor asks once a second.
REFRESH_WANTED: Final = Prepared(
    select(NOTES.c.value, CATALOGUES.c.seen_at, db_now().label("now"))
    .select_from(NOTES.outerjoin(CATALOGUES, CATALOGUES.c.key == bindparam("p_slot")))
    .where(NOTES.c.key == bindparam("p_key"))
)
#: The lists of the workers in their order, the versions of the catalogues and one note, in one query, for every request asks.
CURRENT_CATALOGUES: Final = Prepared(
    union_all(
        select(
            literal_column("'webuis'").label("kind"),
            WORKERS.c.owner.label("key"),
            WORKERS.c.webuis.label("text"),
            literal_column("0").label("version"),
        ),
        select(literal_column("'catalogue'"), CATALOGUES.c.key, literal_column("''"), CATALOGUES.c.version),
        select(literal_column("'note'"), NOTES.c.key, NOTES.c.value, literal_column("0")).where(
            NOTES.c.key == bindparam("p_key")
        ),
    ).order_by("kind", "key")
)
