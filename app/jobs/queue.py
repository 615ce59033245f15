"""The queue as a whole: paused and resumed, and read page by page in the order in which its jobs will start.

Pausing leaves a note in the database, which every claim looks for in its own transaction: no worker of any host starts another job
until the queue is resumed. What runs is finished, and requests are accepted as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select

from app.jobs.model import Identity, Place
from app.jobs.places import PLAYED, Offers, Snapshot, Waiting, play, shared_seconds
from app.jobs.rows import now_ms
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import JOBS, NOTES, QUEUED, db_now

_WAITING: Final = JOBS.c.status == QUEUED
_TOTALS: Final = Prepared(
    select(func.count(), func.coalesce(func.sum(JOBS.c.cost), 0.0), func.min(JOBS.c.seq)).where(_WAITING)
)
_ACCEPTED: Final = Prepared(select(JOBS.c.created_at).where(JOBS.c.seq == bindparam("p_seq")))
_SHOWN: Final = ("seq", "start_tag", "cost", "requirements_id", "user_id", "type", "name", "created_at")
_PAGE: Final = Prepared(
    select(*(JOBS.c[name] for name in _SHOWN))
    .where(
        _WAITING,
        JOBS.c.start_tag >= bindparam("p_tag"),
        or_(JOBS.c.start_tag > bindparam("p_tag"), JOBS.c.seq > bindparam("p_seq")),
    )
    .order_by(JOBS.c.start_tag, JOBS.c.seq)
    .limit(bindparam("p_limit"))
)


class Cursor(NamedTuple):
    """A place in the order of the queue; it stays where it is whatever becomes of the job that had it."""

    start_tag: float
    seq: int


#: Before every waiting job.
BEGINNING: Final = Cursor(float("-inf"), 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One unfinished job as the queue shows it; ``created_at`` milliseconds since 1970, ``progress`` 0…1."""

    job: Identity
    created_at: int
    progress: float
    place: Place
    #: The slot of the WebUI that it runs on.
    slot: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the queue, and numbers about the whole of it.

    ``oldest_wait`` is the age of the oldest waiting job in seconds, ``seconds_to_empty`` the time until all unfinished jobs have
    ended; both None when there is none or it is unknown. ``next`` is the place of the last job shown, None on the last page.
    """

    running: Sequence[Entry]
    waiting: Sequence[Entry]
    count: int
    oldest_wait: float | None
    seconds_to_empty: float | None
    paused: bool
    next: Cursor | None


class Queue:
    """The queue of all users. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def pause(self) -> bool:
        """Start no job from now on; False when that is so already."""
        with self.database.write("pause") as connection:
            if self._paused(connection):
                return False
            since = str(connection.execute(select(db_now())).scalar_one())
            connection.execute(insert(NOTES).values(key=sql.PAUSED, value=since))
            return True

    def resume(self) -> bool:
        """Start jobs again; False when they are started anyway. The workers see it within a second, or when they are notified."""
        with self.database.write("resume") as connection:
            return connection.execute(delete(NOTES).where(NOTES.c.key == sql.PAUSED)).rowcount > 0

    def paused(self) -> bool:
        """Whether no job is started."""
        with self.database.read() as connection:
            return self._paused(connection)

    @staticmethod
    def _paused(connection: Connection) -> bool:
        return connection.execute(select(NOTES.c.key).where(NOTES.c.key == sql.PAUSED)).first() is not None

    def page(self, limit: int, after: Cursor = BEGINNING, offers: Offers | None = None) -> Page:
        """All running jobs, and at most ``limit`` waiting ones behind a place in the order.

        :param offers: which WebUIs offer what a job needs.
        """
        with self.database.read() as connection:
            snapshot = Snapshot(connection, offers)
            parameters = {"p_tag": after.start_tag, "p_seq": after.seq, "p_limit": limit + 1}
            rows = _PAGE.all(connection, parameters)
            shown = rows[:limit]
            whole = snapshot.unfinished <= PLAYED
            played = play(connection, snapshot, map(Waiting.of, shown), whole=whole)
            count, cost, oldest = _TOTALS.first(connection)
            accepted = None if oldest is None else _ACCEPTED.first(connection, {"p_seq": oldest})
        seconds = played.seconds if whole else shared_seconds(snapshot, cost, snapshot.speeds_for(None))
        return Page(
            [_running(snapshot, row) for row in snapshot.running],
            # On PostgreSQL, whose statements each see their own moment, one may have been claimed meanwhile.
            [_entry(row, 0.0, played.places[row.seq]) for row in shown if row.seq in played.places],
            count,
            None if accepted is None else max(now_ms() - accepted.created_at, 0) / 1000,
            seconds,
            snapshot.paused,
            Cursor(shown[-1].start_tag, shown[-1].seq) if len(rows) > limit else None,
        )


def _running(snapshot: Snapshot, row: Any) -> Entry:
    return _entry(row, row.progress or 0.0, Place(None, snapshot.seconds_left(row)), row.slot)


def _entry(row: Any, progress: float, place: Place, slot: str | None = None) -> Entry:
    return Entry(Identity(row.user_id, row.type, row.name), row.created_at, progress, place, slot)
