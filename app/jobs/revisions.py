"""The order of changes: which job changed when, as clients and other processes may follow it.

Every write transaction that changes what a client sees of jobs (status, images, a request to cancel, deletion) takes the next *rev*
and writes it into the rows that it changes. Writers are serial, so the order of the revs is that of the commits, over all processes
and hosts. Heartbeats and progress take none.

A rev alone is no lasting name of a moment: commits that were not flushed are lost with the power, and databases are restored from
dumps; then the same numbers are given again. So a rev is told together with its *epoch* (:class:`Version`). A new epoch begins with
each worker and wherever a process sees a rev below one that it has seen before.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple, Self

from sqlalchemy import Connection, delete, func, insert, select

from app.jobs.errors import JobNotFound
from app.jobs.model import Identity
from app.jobs.rows import portions
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import CLOCK, EPOCHS, db_now

_PAGE: Final = 500
#: As :meth:`Version.__str__` writes it; numbers that a 64-bit column takes.
_VERSION: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


class Version(NamedTuple):
    """A moment in the order of changes: after the change ``rev`` of the epoch ``epoch``."""

    epoch: int
    rev: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.rev}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The opposite of ``str()``; None for anything else."""
        match = _VERSION.fullmatch(text)
        return None if match is None else cls(int(match[1]), int(match[2]))


class Change(NamedTuple):
    """The last change of one job: its rev, and its status since (``deleted`` for a deleted job)."""

    rev: int
    identity: Identity
    status: str


class Revisions:
    """Reads the order of changes, for any number of processes. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def current(self) -> Version:
        """The last change that was committed."""
        with self.database.read() as connection:
            row = sql.CURRENT_VERSION.first(connection)
            return Version(row.epoch or 0, row.rev)

    def purged_rev(self) -> int:
        """The highest rev of a row that is gone for good: what happened before it can't be told whole any more."""
        with self.database.read() as connection:
            return int(sql.PURGED_REV.first(connection).purged_rev)

    def latest(self, jobs: Collection[Identity]) -> dict[Identity, Change]:
        """The last change of each of these jobs that has a row."""
        found: dict[Identity, Change] = {}
        with self.database.read() as connection:
            for names in portions([job.name for job in jobs]):
                rows = connection.execute(sql.LATEST, {"p_names": names})
                found |= {change.identity: change for change in map(_change, rows)}
        return {job: found[job] for job in jobs if job in found}

    def epoch_of(self, rev: int) -> int:
        """The epoch that a rev of this database belongs to: the newest one that began with it or before it."""
        with self.database.read() as connection:
            row = sql.EPOCH_OF.first(connection, {"p_rev": rev})
            return int(row.epoch) if row is not None else 0

    def version_of(self, rev: int) -> Version:
        """A rev with its epoch."""
        return Version(self.epoch_of(rev), rev)

    def is_resumable(self, epoch: int, rev: int) -> bool:
        """Whether :meth:`changes` after this rev are all that its holder has missed.

        Not so for a rev of another epoch than this database gave it in (an epoch that a restored dump has forgotten, a rev that was
        lost with one), for one that is yet to come, and for one that was followed by changes of rows that are gone for good.
        """
        with self.database.read() as connection:
            row = sql.RESUMING.first(connection, {"p_rev": rev})
            return bool(row.epoch == epoch and row.purged_rev <= rev <= row.rev)

    def changes(self, after_rev: int, limit: int) -> list[Change]:
        """The jobs that changed after a rev, each with its last change, in the order of (rev, seq); at most ``limit``.

        Jobs that share a rev may be cut apart by the limit: whoever reads on begins again before the last rev, or asks for more.
        """
        return self._read(sql.CHANGES, {"p_after": after_rev, "p_limit": limit})

    def of_user(self, user_id: str, after_rev: int, limit: int) -> list[Change]:
        """The same for the jobs of one user."""
        return self._read(sql.CHANGES_OF_USER, {"p_user": user_id, "p_after": after_rev, "p_limit": limit})

    def between(self, after_rev: int, up_to_rev: int, user_id: str | None = None) -> list[Change]:
        """The jobs (of a user) that changed after one rev, up to another one, in their order.

        A job that has changed again since ``up_to_rev`` is left out.
        """
        found: dict[Identity, Change] = {}
        limit = _PAGE
        while True:
            page = self.changes(after_rev, limit) if user_id is None else self.of_user(user_id, after_rev, limit)
            found |= {change.identity: change for change in page if change.rev <= up_to_rev}
            if len(page) < limit or page[-1].rev > up_to_rev:
                return list(found.values())
            if page[0].rev < page[-1].rev:
                # Of the last rev some jobs may be missing.
                after_rev = page[-1].rev - 1
            else:
                limit *= 2

    def rev_of_deleted(self, job: Identity) -> int:
        """The rev of the deletion of a job.

        :raises JobNotFound: nothing is known of it any more.
        """
        with self.database.read() as connection:
            row = sql.DELETED_AT.first(connection, sql.named(job))
        if row is None:
            raise JobNotFound
        return int(row.rev)

    def _read(self, statement: Prepared, values: dict[str, object]) -> list[Change]:
        with self.database.read() as connection:
            return [_change(row) for row in statement.all(connection, values)]

    def begin_epoch(self) -> int:
        """Begin a new epoch with the next change, and return its number: this process has seen a higher rev than there is now."""
        with self.database.write("begin epoch") as connection:
            return begin_epoch(connection)


def _change(row: Any) -> Change:
    return Change(row.rev, Identity(row.user_id, row.type, row.name), row.status)


def begin_epoch(connection: Connection) -> int:
    """Begin a new epoch with the next change, within a write transaction; its number.

    That is the larger of the last one plus 1 and the seconds since 1970 by the database's clock. So an epoch that a restored dump
    has forgotten does not come back under the same number: a client that still holds it is told to begin anew.
    """
    known = select(CLOCK.c.rev, select(func.max(EPOCHS.c.epoch)).scalar_subquery().label("last"), db_now().label("now"))
    row = connection.execute(known).one()
    epoch, first_rev = max((row.last or 0) + 1, int(row.now)), row.rev + 1
    # An epoch in which nothing changed has given no version that is still true; so their number does not grow by starts alone.
    connection.execute(delete(EPOCHS).where(EPOCHS.c.first_rev >= first_rev))
    connection.execute(insert(EPOCHS).values(epoch=epoch, first_rev=first_rev))
    return epoch
