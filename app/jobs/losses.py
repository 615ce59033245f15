"""Jobs whose worker died, lost its lease or forgot them go back to the queue; those that nothing can serve any more fail."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, false, func, or_, select, update

from app.jobs.model import Failure, Identity, Job, Status
from app.jobs.rows import move_rev, now_ms
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.schema import JOBS, QUEUED, RUNNING, SLOTS

#: Attempts that our own process ended, so that the next loss fails the job.
MAX_LOSSES: Final = 20


@dataclass(frozen=True, slots=True)
class _Held:
    """The rows to be taken from their owners, as conditions: running jobs, jobs that were deleted while they ran, and slots."""

    jobs: ColumnElement[bool]
    deleted: ColumnElement[bool]
    slots: ColumnElement[bool]

    def exists(self, connection: Connection) -> bool:
        """Whether there is such a row."""
        rows = (
            select(JOBS.c.seq).where(self.jobs),
            select(JOBS.c.seq).where(self.deleted),
            select(SLOTS.c.key).where(self.slots),
        )
        return any(connection.execute(each.limit(1)).first() is not None for each in rows)


def _end_of_lost(job: Job) -> Status:
    """The status of a job after the loss of its claim."""
    if job.cancel_at is not None:
        return "cancelled"
    return "failed" if job.losses >= MAX_LOSSES else "queued"


class Losses:
    """Takes jobs and slots from owners that are gone. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def release_orphans(self, slot: str, owner: str) -> list[Job]:
        """Release rows still assigned to this owner although its runner is idle: the COMMIT succeeded but its
        acknowledgement was lost.

        :returns: the jobs that went back to the queue, or were cancelled because their end was asked for.
        """
        with self.database.write("release orphans") as connection:
            mine = {"c_slot": slot, "c_owner": owner, "p_finished": now_ms()}
            released = [Job.of(row) for row in sql.RELEASE_JOB.all(connection, mine)]
            sql.RELEASE_DELETED.change(connection, mine)
            sql.RELEASE_SLOT.change(connection, mine)
            if released:
                move_rev(connection, [job.user_id for job in released if job.finished])
            return released

    def take_over(self, host: str, owner: str) -> list[Job]:
        """Give back what other processes of this host held (``flock`` says that they are dead); the jobs, see :meth:`_lose`."""
        prefix = f"{host}/"

        def dead(column: ColumnElement[Any]) -> ColumnElement[bool]:
            return and_(func.substr(column, 1, len(prefix)) == prefix, column != owner)

        held = _Held(
            and_(JOBS.c.status == RUNNING, dead(JOBS.c.owner)),
            and_(sql.HELD_DELETED, dead(JOBS.c.owner)),
            dead(SLOTS.c.owner),
        )
        with self.database.read() as connection:
            if not held.exists(connection):
                return []
        return self._lose(held)

    def reclaim(self, owner: str) -> list[Job]:
        """Give back what any other owner held whose lease ran out; the jobs, see :meth:`_lose`."""
        with self.database.read() as connection:
            found = sql.LEASES.first(connection, {"p_owner": owner})
        if found.late:
            self._clip_leases()
        if not found.lapsed:
            return []
        return self._lose(_Held(sql.job_lapsed(owner), sql.deleted_lapsed(owner), sql.slot_lapsed(owner)))

    def lose_unknown(self, owner: str, in_hand: Callable[[], Collection[str]]) -> list[Job]:
        """Give back the jobs whose rows say that this owner stores their results, though it does not; the jobs, see :meth:`_lose`.

        That happens when the database is restored from a dump of a moment when it did: its own heartbeats would keep them for ever.

        :param in_hand: the task ids of the claims whose results this owner decodes or stores; asked after the rows were read, so
            that one that ends meanwhile is not taken for unknown.
        """
        with self.database.read() as connection:
            shown = [row.task_id for row in sql.STORED_BY.all(connection, {"p_owner": owner})]
        unknown = set(shown) - set(in_hand()) if shown else set()
        if not unknown:
            return []
        mine = and_(JOBS.c.owner == owner, JOBS.c.phase == "storing", JOBS.c.task_id.in_(unknown))
        return self._lose(_Held(and_(JOBS.c.status == RUNNING, mine), and_(sql.HELD_DELETED, mine), false()))

    def _clip_leases(self) -> None:
        """Shorten every lease to at most one heartbeat: after the clock was set back, a dead owner's would last for hours.

        A live owner loses nothing by it, for its next heartbeat gives the same.
        """
        with self.database.write("clip leases") as connection:
            connection.execute(update(JOBS).where(sql.JOB_LATE).values(sql.RENEWED))
            connection.execute(update(JOBS).where(sql.DELETED_LATE).values(sql.RENEWED))
            connection.execute(update(SLOTS).where(sql.SLOT_LATE).values(sql.RENEWED))

    def _lose(self, held: _Held) -> list[Job]:
        """Take these jobs and slots from their owners; the jobs as they were held, but for what became of them: ``status`` is
        queued, failed or cancelled, and ``error_slug`` says why it was lost or cancelled.
        """
        with self.database.write("take over") as connection:
            rows = [Job.of(row) for row in connection.execute(select(*sql.COLUMNS).where(held.jobs))]
            ends = {row.seq: _end_of_lost(row) for row in rows}
            lost = [row.seq for row in rows if ends[row.seq] == "failed"]
            others = [row.seq for row in rows if ends[row.seq] != "failed"]
            count = JOBS.c.losses + 1
            back = (
                update(JOBS)
                .where(JOBS.c.seq.in_(others))
                .values(losses=count, **sql.BACK)
                .returning(JOBS.c.seq, JOBS.c.error_slug)
            )
            gone_back = connection.execute(back, {"p_finished": now_ms()}).all()
            # Of those that were to end: why.
            slugs: dict[int, str | None] = {row.seq: row.error_slug for row in gone_back}
            connection.execute(
                update(JOBS)
                .where(JOBS.c.seq.in_(lost))
                .values(
                    status="failed", losses=count, finished_at=now_ms(), error_slug=sql.WORKER_LOST,
                    error_detail="The gateway was stopped again and again while it worked at this job.",
                    rev=sql.NEXT_REV, pending_unlink=True, **sql.FREE,
                )
            )  # fmt: skip
            connection.execute(update(JOBS).where(held.deleted).values(sql.FREE))
            connection.execute(update(SLOTS).where(held.slots).values(state="unclean", owner=None, lease_expires=None))
            if rows:
                move_rev(connection, [row.user_id for row in rows if ends[row.seq] != "queued"])
            return [
                row._replace(status=ends[row.seq], error_slug=slugs.get(row.seq) or sql.WORKER_LOST) for row in rows
            ]

    def fail_queued(
        self, failure: Failure, *, requirement_sets: Collection[int] = (), jobs: Collection[Identity] = ()
    ) -> list[Job]:
        """Fail every queued job with one of these requirements, and these jobs if they are queued; the jobs as they were."""
        with self.database.write("fail queued") as connection:
            chosen = or_(JOBS.c.requirements_id.in_(requirement_sets), JOBS.c.name.in_([job.name for job in jobs]))
            found = connection.execute(select(*sql.COLUMNS).where(JOBS.c.status == QUEUED, chosen))
            rows = [
                job for job in map(Job.of, found) if job.requirements_id in requirement_sets or job.identity in jobs
            ]
            connection.execute(
                update(JOBS)
                .where(JOBS.c.seq.in_([row.seq for row in rows]))
                .values(
                    status="failed", finished_at=now_ms(), error_slug=failure.slug, error_detail=failure.detail,
                    rev=sql.NEXT_REV, pending_unlink=sql.WAS_CLAIMED,
                )
            )  # fmt: skip
            if rows:
                move_rev(connection, [row.user_id for row in rows])
            return rows
