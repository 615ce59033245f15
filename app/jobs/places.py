"""Where an unfinished job stands, and how long it will take: positions, etas and the seconds of Retry-After.

All of it comes from the table: what waits before the job in the real order, what runs, and how long the WebUIs took for a unit
of cost lately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, func, select, tuple_

from app.jobs.model import Job, Place
from app.jobs.schema import JOBS, QUEUED, RUNNING, SLOTS, db_now
from app.jobs.statements import COLUMNS

#: Retry-After when nothing was measured yet, and its bounds otherwise, seconds.
_UNKNOWN_WAIT: Final = 5.0
_SHORTEST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 3600.0

# Built once; see app/jobs/statements.py.
_NOW: Final = select(db_now())
_SPEED: Final[Select[Any]] = select(func.avg(SLOTS.c.seconds_per_cost), func.count()).where(SLOTS.c.health == "up")
_AHEAD: Final[Select[Any]] = select(func.count(), func.coalesce(func.sum(JOBS.c.cost), 0.0)).where(
    JOBS.c.status == QUEUED,
    tuple_(JOBS.c.start_tag, JOBS.c.seq) < tuple_(bindparam("p_tag"), bindparam("p_seq")),
)
_GENERATING: Final[Select[Any]] = select(*COLUMNS).where(JOBS.c.status == RUNNING, JOBS.c.phase == "generating")


def place(connection: Connection, job: Job) -> Place:
    """The place of a job; without position and eta when it is finished."""
    if job.status == "queued":
        return _in_queue(connection, job, _Speed.measured(connection))
    if job.status == "running":
        return Place(None, _seconds_left(connection, job, _Speed.measured(connection)))
    return Place(None, None)


def seconds_until_room(connection: Connection, user_id: str | None = None) -> float:
    """Seconds until the next unfinished job (of this user) is likely to end."""
    speed = _Speed.measured(connection)
    mine = [JOBS.c.user_id == user_id] if user_id is not None else []
    running = connection.execute(select(*COLUMNS).where(JOBS.c.status == RUNNING, *mine)).all()
    waits = [_seconds_left(connection, Job.of(row), speed) for row in running]
    if not waits:
        row = connection.execute(
            select(*COLUMNS).where(JOBS.c.status == QUEUED, *mine).order_by(JOBS.c.start_tag, JOBS.c.seq).limit(1)
        ).first()
        waits = [_in_queue(connection, Job.of(row), speed).eta] if row is not None else []
    known = [wait for wait in waits if wait is not None]
    return min(max(min(known, default=_UNKNOWN_WAIT), _SHORTEST_WAIT), _LONGEST_WAIT)


@dataclass(frozen=True, slots=True)
class _Speed:
    """How fast the WebUIs are: seconds per unit of cost (None before anything was measured), and how many are up."""

    seconds_per_cost: float | None
    webuis: int

    @classmethod
    def measured(cls, connection: Connection) -> _Speed:
        row = connection.execute(_SPEED).one()
        return cls(row[0], max(row[1], 1))


def _in_queue(connection: Connection, job: Job, speed: _Speed) -> Place:
    ahead = connection.execute(_AHEAD, {"p_tag": job.start_tag, "p_seq": job.seq}).one()
    if speed.seconds_per_cost is None:
        return Place(ahead[0] + 1, None)
    running = connection.execute(_GENERATING).all()
    left = sum(_seconds_left(connection, Job.of(row), speed) or 0.0 for row in running)
    waiting = (left + ahead[1] * speed.seconds_per_cost) / speed.webuis
    return Place(ahead[0] + 1, waiting + job.cost * speed.seconds_per_cost)


def _seconds_left(connection: Connection, job: Job, speed: _Speed) -> float | None:
    """What the WebUI said last, else what the measured speed promises."""
    if job.phase == "storing":
        return 0.0
    now = float(connection.execute(_NOW).scalar_one())
    if job.eta is not None and job.progress_at is not None:
        return max(job.eta - _since(job.progress_at, now), 0.0)
    if speed.seconds_per_cost is None or job.claimed_at is None:
        return None
    return max(job.cost * speed.seconds_per_cost - _since(job.claimed_at, now), 0.0)


def _since(then: float, now: float) -> float:
    """Seconds that passed; none where the clock was set back meanwhile."""
    return max(now - then, 0.0)
