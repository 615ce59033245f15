"""Cancelling jobs, and ending those whose deadline has passed.

A job that waits ends at once. One that runs is only marked (``cancel_at``): the worker that has it learns that with its next
heartbeat, stops the WebUI, and ends the job when the WebUI has replied. From the mark on the job is never queued or claimed again:
every statement that would give it back, or finish it in another way, ends it as cancelled instead (app/jobs/table.py,
app/jobs/losses.py). Whichever commits first wins, the mark or the finish.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from sqlalchemy import Connection, select, update

from app.jobs.model import Identity, Job
from app.jobs.rows import by_name, lower_finish_tag, move_rev, now_ms
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.schema import JOBS, QUEUED, db_now

_BY_CLIENT: Final = {
    "cancel_at": db_now(),
    "error_slug": sql.JOB_CANCELLED.slug,
    "error_detail": sql.JOB_CANCELLED.detail,
}
_BY_DEADLINE: Final = {"error_slug": sql.DEADLINE_PASSED.slug, "error_detail": sql.DEADLINE_PASSED.detail}


class Cancellation:
    """Ends jobs before they are done. Raises DatabaseUnavailable from every method.

    Each method reads first, so that no writer waits for a request that has nothing to end, such as a repeated one.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def cancel(self, identity: Identity) -> tuple[Job, bool]:
        """End a job that waits, or ask for the end of one that runs: (the job as it is now, whether this call has changed it).

        A finished job stays as it ended, and a repeated call changes nothing.

        :raises JobNotFound: there is none, or it was deleted.
        """
        with self.database.read() as connection:
            job = by_name(connection, identity)
            if not _can_be_ended(job):
                return job, False
        with self.database.write("cancel") as connection:
            job = by_name(connection, identity, lock=True)
            if job.status == "queued":
                return _end(connection, [job], _BY_CLIENT)[0], True
            if _can_be_ended(job):
                return _ask(connection, [job])[0], True
            # Nothing was changed, so nothing is flushed and no failpoint is passed.
            connection.rollback()
            return job, False

    def cancel_queued(self, user_id: str) -> list[Job]:
        """End all jobs of a user that wait; the jobs as they are now, newest first."""
        waiting = select(*sql.COLUMNS).where(JOBS.c.user_id == user_id, JOBS.c.status == QUEUED)
        with self.database.read() as connection:
            if connection.execute(waiting.limit(1)).first() is None:
                return []
        with self.database.write("cancel queued") as connection:
            jobs = [Job.of(row) for row in connection.execute(waiting)]
            if not jobs:
                connection.rollback()
                return []
            return _end(connection, jobs, _BY_CLIENT)

    def end_overdue(self) -> list[Job]:
        """End the jobs that wait beyond their deadline, and ask for the end of those that run; the jobs as they are now."""
        with self.database.read() as connection:
            if sql.OVERDUE.first(connection) is None:
                return []
        with self.database.write("end overdue") as connection:
            jobs = [Job.of(row) for row in sql.OVERDUE.all(connection)]
            waiting = [job for job in jobs if job.status == "queued"]
            running = [job for job in jobs if job.status == "running"]
            ended = _end(connection, waiting, _BY_DEADLINE) if waiting else []
            return ended + (_ask(connection, running) if running else [])


def _can_be_ended(job: Job) -> bool:
    """Whether the job waits, or runs and nobody has asked for its end."""
    return job.status == "queued" or (job.status == "running" and job.cancel_at is None)


def _end(connection: Connection, jobs: Collection[Job], why: dict[str, Any]) -> list[Job]:
    """Cancel queued jobs; they are returned as they are now, newest first."""
    end = (
        update(JOBS)
        .where(JOBS.c.seq.in_([job.seq for job in jobs]))
        .values(status="cancelled", finished_at=now_ms(), rev=sql.NEXT_REV, pending_unlink=sql.WAS_CLAIMED, **why)
        .returning(*sql.COLUMNS)
    )
    ended = _newest_first(connection.execute(end))
    for user_id in dict.fromkeys(job.user_id for job in ended):
        lower_finish_tag(connection, user_id)
    move_rev(connection, [job.user_id for job in ended])
    return ended


def _ask(connection: Connection, jobs: Collection[Job]) -> list[Job]:
    """Ask for the end of running jobs; they are returned as they are now, newest first."""
    mark = (
        update(JOBS)
        .where(JOBS.c.seq.in_([job.seq for job in jobs]))
        .values(cancel_at=db_now(), rev=sql.NEXT_REV)
        .returning(*sql.COLUMNS)
    )
    marked = _newest_first(connection.execute(mark))
    move_rev(connection)
    return marked


def _newest_first(rows: Iterable[Any]) -> list[Job]:
    return sorted(map(Job.of, rows), key=lambda job: job.seq, reverse=True)
