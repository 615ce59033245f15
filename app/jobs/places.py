"""The queue position and eta of an unfinished job, and the seconds of Retry-After.

All of it comes from the table: what waits before the job in the real order, what runs, and how long the WebUIs took for a unit
of cost lately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, func, select, union_all

from app.jobs.model import Job, Place
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import JOBS, QUEUED, RUNNING, SLOTS, db_now

#: Retry-After when nothing was measured yet, and its bounds otherwise, seconds.
_UNKNOWN_WAIT: Final = 5.0
_SHORTEST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 3600.0

# Built once; see app/jobs/sql/statements.py.
_SPEED: Final = Prepared(
    select(func.avg(SLOTS.c.seconds_per_cost), func.count(), db_now()).where(SLOTS.c.health == "up")
)
_WAITING: Final[Select[Any]] = select(func.count(), func.coalesce(func.sum(JOBS.c.cost), 0.0)).where(
    JOBS.c.status == QUEUED
)
#: What waits before a job, in two rows. Each is a range of the index and nothing else: comparing (start_tag, seq) as a pair, SQLite
#: looks at the pair of every entry once more (1.2 ms for 10,000 entries instead of 0.8; PostgreSQL takes the same for both).
_AHEAD: Final = Prepared(
    union_all(
        _WAITING.where(JOBS.c.start_tag < bindparam("p_tag")),
        _WAITING.where(JOBS.c.start_tag == bindparam("p_tag"), JOBS.c.seq < bindparam("p_seq")),
    )
)
_PROGRESS: Final[Select[Any]] = select(
    JOBS.c.phase, JOBS.c.cost, JOBS.c.claimed_at, JOBS.c.eta, JOBS.c.progress_at
).where(JOBS.c.status == RUNNING)
_RUNNING: Final = Prepared(_PROGRESS)
_GENERATING: Final = Prepared(_PROGRESS.where(JOBS.c.phase == "generating"))
_OF_USER: Final = JOBS.c.user_id == bindparam("p_user")
_RUNNING_OF_USER: Final = Prepared(_PROGRESS.where(_OF_USER))
_WAITS: Final[Select[Any]] = (
    select(JOBS.c.seq, JOBS.c.start_tag, JOBS.c.cost)
    .where(JOBS.c.status == QUEUED)
    .order_by(JOBS.c.start_tag, JOBS.c.seq)
    .limit(1)
)
_FIRST: Final = Prepared(_WAITS)
#: Within a user first in is first out.
_FIRST_OF_USER: Final = Prepared(_WAITS.where(_OF_USER).order_by(None).order_by(JOBS.c.seq))


def place(connection: Connection, job: Job) -> Place:
    """The place of a job; without position and eta when it is finished."""
    if job.status == "queued":
        return _in_queue(connection, job, _Speed.measured(connection))
    if job.status == "running":
        return Place(None, _Speed.measured(connection).seconds_left(job))
    return Place(None, None)


def seconds_until_room(connection: Connection, user_id: str | None = None) -> float:
    """Seconds until the next unfinished job (of this user) is likely to end."""
    speed = _Speed.measured(connection)
    mine = {} if user_id is None else {"p_user": user_id}
    running = (_RUNNING_OF_USER if mine else _RUNNING).all(connection, mine)
    waits = [speed.seconds_left(row) for row in running]
    if not waits:
        row = (_FIRST_OF_USER if mine else _FIRST).first(connection, mine)
        waits = [_in_queue(connection, row, speed).eta] if row is not None else []
    known = [wait for wait in waits if wait is not None]
    return min(max(min(known, default=_UNKNOWN_WAIT), _SHORTEST_WAIT), _LONGEST_WAIT)


@dataclass(frozen=True, slots=True)
class _Speed:
    """The speed of the WebUIs: seconds per unit of cost (None before anything was measured), how many are up, and what time it is
    by the database's clock.
    """

    seconds_per_cost: float | None
    webuis: int
    now: float

    @classmethod
    def measured(cls, connection: Connection) -> _Speed:
        row = _SPEED.first(connection)
        return cls(row[0], max(row[1], 1), float(row[2]))

    def seconds_left(self, job: Job | Any) -> float | None:
        """The WebUI's own estimate, else that of the measured speed."""
        if job.phase == "storing":
            return 0.0
        if job.eta is not None and job.progress_at is not None:
            return max(job.eta - self._since(job.progress_at), 0.0)
        if self.seconds_per_cost is None or job.claimed_at is None:
            return None
        return max(job.cost * self.seconds_per_cost - self._since(job.claimed_at), 0.0)

    def _since(self, then: float) -> float:
        """Seconds that passed; none where the clock was set back meanwhile."""
        return max(self.now - then, 0.0)


def _in_queue(connection: Connection, job: Job | Any, speed: _Speed) -> Place:
    ranges = _AHEAD.all(connection, {"p_tag": job.start_tag, "p_seq": job.seq})
    jobs, cost = (sum(column) for column in zip(*ranges, strict=True))
    if speed.seconds_per_cost is None:
        return Place(jobs + 1, None)
    left = sum(speed.seconds_left(row) or 0.0 for row in _GENERATING.all(connection))
    waiting = (left + cost * speed.seconds_per_cost) / speed.webuis
    return Place(jobs + 1, waiting + job.cost * speed.seconds_per_cost)
