"""Helpers for rows of the job table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from app.jobs.errors import JobNotFound
from app.jobs.model import Identity, Job
from app.jobs.sql import statements as sql

#: Above every sequence number of a job.
AFTER_ALL: Final = 2**63 - 1


#: Names that one statement asks for: engines bind only so many values.
_NAMES: Final = 500


def portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names in portions of which each fits into one statement."""
    for begin in range(0, len(names), _NAMES):
        yield names[begin : begin + _NAMES]


def now_ms() -> int:
    """Milliseconds since 1970 by this machine's clock."""
    return time.time_ns() // 1_000_000


def found(row: Any) -> Job:
    """The job of a row.

    :raises JobNotFound: there is none.
    """
    if row is None:
        raise JobNotFound
    return Job.of(row)


def by_name(connection: Connection, job: Identity, *, lock: bool = False) -> Job:
    """The job with these names; with ``lock`` no other writer changes it until the transaction ends.

    :raises JobNotFound: there is none, or it was deleted.
    """
    return found((sql.LOCK_BY_NAME if lock else sql.BY_NAME).first(connection, sql.named(job)))


def lower_finish_tag(connection: Connection, user_id: str) -> None:
    """Charge a user no longer for jobs that were taken out of the queue: his next job begins behind those that he still has."""
    tags = sql.USER_TAGS.first(connection, {"p_user": user_id})
    finish = max(tags.virtual, tags.finish or 0.0)
    sql.SET_FINISH.change(connection, {"p_user": user_id, "p_finish": finish})


def move_rev(connection: Connection, ended: Sequence[str] = ()) -> None:
    """Move the clock to the rev of the rows that this transaction has changed (``NEXT_REV``), as the last thing that it does.

    :param ended: the user of each job that is not unfinished any more, to be taken out of the counts.
    """
    sql.COUNT_OUT.change(connection, {"p_count": len(ended)})
    for user_id in ended:
        sql.COUNT_USER_OUT.change(connection, {"p_user": user_id})
