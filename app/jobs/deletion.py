"""Deleting jobs and images, and dropping the rows that nobody needs any more.

A deletion commits the row first, which keeps what is needed to find the files (``pending_unlink``); the row goes when they
are gone.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, false, func, not_, or_, select, tuple_, update

from app.jobs.errors import JobNotFound
from app.jobs.model import Identity, Job, to_json
from app.jobs.rows import AFTER_ALL, by_name, lower_finish_tag, move_rev, now_ms
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.schema import (
    CLOCK,
    DELETED,
    IDEMPOTENCY,
    JOBS,
    PENDING_UNLINK,
    QUEUED,
    REFUSALS,
    RUNNING,
    USERS,
    db_now,
)

#: Rows that one transaction of the upkeep deletes at most.
MOST_FORGOTTEN: Final = 500
#: How long the row of a deleted job is kept as a mark, seconds: so long a client that watches may be away and still be told of the
#: deletion. A mark that goes makes every older ``Last-Event-ID`` one from which nobody can resume, also of other users. Not longer,
#: since the room of deleted rows is to be used again while thousands of jobs are made and deleted.
MARK_SECONDS: Final = 120.0
#: The least: far longer than other processes take to see that a job has ended or was deleted (app/jobs/changes.py).
SEEN_SECONDS: Final = 10.0


class JobDeletion:
    """Deletes jobs for good. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def delete(self, user_id: str, type_: str, name: str) -> Job:
        """Commit that a job is gone (its row stays as a mark, emptied) and return what it was.

        One that waits is never begun. The row of one that runs keeps claim, lease and slot until its worker has ended the attempt
        or is gone: the worker learns of the deletion with its next heartbeat, and files are removed until then.

        :raises JobNotFound: nothing was changed.
        """
        identity = self._existing(user_id, type_, name)
        with self.database.write("delete") as connection:
            job = by_name(connection, identity, lock=True)
            _mark_deleted(connection, job)
            if job.status == "queued":
                lower_finish_tag(connection, user_id)
            move_rev(connection, [] if job.finished else [user_id])
            return job

    def delete_image(self, user_id: str, type_: str, name: str, filename: str) -> tuple[Job, bool]:
        """Commit that one image of a record is gone, and the record with its last one: (what it was, whether all went).

        :raises JobNotFound: no such job, or it has no such image.
        """
        identity = self._existing(user_id, type_, name)
        with self.database.write("delete image") as connection:
            job = by_name(connection, identity, lock=True)
            left = [image for image in job.images if image["filename"] != filename]
            if len(left) == len(job.images):
                raise JobNotFound
            if not left:
                _mark_deleted(connection, job)
            else:
                values = {"images": to_json(left), "pending_unlink": True, "rev": sql.NEXT_REV}
                connection.execute(update(JOBS).where(JOBS.c.seq == job.seq).values(values))
            move_rev(connection)
            return job, not left

    def _existing(self, user_id: str, type_: str, name: str) -> Identity:
        """The identity of a job that is there: no writer waits for a request that names none.

        :raises JobNotFound: there is none, or it was deleted.
        """
        identity = Identity(user_id, type_, name)
        with self.database.read() as connection:
            by_name(connection, identity)
        return identity

    def pending_unlink(self, after: int = 0, limit: int = AFTER_ALL) -> list[tuple[Job, bool]]:
        """Rows above a number of which unnamed files may be on disk, each with whether the whole record was deleted."""
        wanted = select(*sql.COLUMNS).where(PENDING_UNLINK, JOBS.c.seq > after).order_by(JOBS.c.seq).limit(limit)
        with self.database.read() as connection:
            return [(Job.of(row), row.status == "deleted") for row in connection.execute(wanted).all()]

    def unlinked(self, job: Job) -> None:
        """The files of what was deleted of this job are gone. While a claim may still write some, they will be removed again."""
        nobody_writes = JOBS.c.owner.is_(None)
        with self.database.write("unlinked") as connection:
            gone = update(JOBS).where(sql.ROW, nobody_writes).values(pending_unlink=False)
            connection.execute(gone, sql.row_of(job))

    def forget_keys(self) -> int:
        """Drop idempotency keys that have expired, at most :data:`MOST_FORGOTTEN`; how many."""
        return self._forget(IDEMPOTENCY, IDEMPOTENCY.c.expires_at <= db_now())

    def forget_deleted(self, kept_seconds: float = MARK_SECONDS) -> int:
        """Drop rows of jobs that were deleted so long ago, at most :data:`MOST_FORGOTTEN`; how many.

        A row stays while files of it may be left, and while an idempotency key names it.
        """
        now = now_ms()
        # A time in the future is one from before the clock was set back.
        deleted_lately = JOBS.c.finished_at.between(now - round(kept_seconds * 1000), now)
        named = select(IDEMPOTENCY.c.key).where(sql.KEY_NAMES_JOB).exists()
        gone = and_(
            JOBS.c.status == DELETED, not_(PENDING_UNLINK), not_(func.coalesce(deleted_lately, false())), not_(named)
        )
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

    def forget_refusals(self) -> int:
        """Drop the refusals of jobs that have ended; how many."""
        unfinished = or_(JOBS.c.status == QUEUED, JOBS.c.status == RUNNING)
        ended = ~select(JOBS.c.seq).where(sql.REFUSES_JOB, unfinished).exists()
        with self.database.read() as connection:
            if connection.execute(select(REFUSALS.c.slot).where(ended).limit(1)).first() is None:
                return 0
        with self.database.write() as connection:
            return connection.execute(delete(REFUSALS).where(ended)).rowcount

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
            gone = delete(table).where(key, where)
            if table is not JOBS:
                return connection.execute(gone).rowcount
            revs = connection.execute(gone.returning(JOBS.c.rev)).scalars().all()
            _note_purged(connection, max(revs, default=0))
            return len(revs)


def _note_purged(connection: Connection, rev: int) -> None:
    """Note that rows up to this rev are gone for good: a client that has seen less can't resume."""
    connection.execute(update(CLOCK).where(CLOCK.c.purged_rev < rev).values(purged_rev=rev))


def _mark_deleted(connection: Connection, job: Job) -> None:
    # Without its batch size nobody would know how many files may be left of it.
    left = {name: value for name, value in job.args.items() if name == "batch_size"}
    connection.execute(
        update(JOBS)
        .where(JOBS.c.seq == job.seq)
        .values(
            status="deleted", args=to_json(left), images=None, init_image=None, webui=None, error_slug=None, error_detail=None,
            pending_unlink=True, rev=sql.NEXT_REV, finished_at=now_ms(),
        )
    )  # fmt: skip
