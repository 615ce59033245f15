"""Questions about a database as a whole, for those who look for faults. Nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, select, text

from app.jobs.errors import ReadOnlyDatabase
from app.jobs.slots import ALIVE_SECONDS, keys_of
from app.jobs.sql.inspected import InspectedDatabase
from app.jobs.sql.schema import JOBS, SLOTS, WORKERS, db_now


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that has sent a heartbeat lately: its host, and the keys of its WebUIs."""

    host: str
    webuis: Sequence[str]


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A slot that a worker holds whose lease has run out: its key, and the worker's host."""

    key: str
    host: str


class Inspection:
    """What a database of this version's schema tells. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: InspectedDatabase) -> None:
        self._database = database

    def refuse_read_only(self) -> None:
        """:raises ReadOnlyDatabase: a PostgreSQL server that takes no writes."""
        question = text("SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'")
        if not self._database.is_sqlite:
            with self._database.read() as connection:
                if connection.execute(question).scalar_one():
                    raise ReadOnlyDatabase

    def clock_ahead(self) -> float:
        """How far the database's clock is ahead of this machine's, seconds; negative when it is behind. The time of the query is
        left out of it: a clock that may be right is 0.
        """
        with self._database.read() as connection:
            before = time.time()
            theirs = connection.execute(select(db_now())).scalar_one()
            return outside(theirs, before, time.time())

    def newest_job(self) -> float | None:
        """When the newest job was accepted, seconds since 1970 by the clock of the gateway that did it; None without jobs."""
        with self._database.read() as connection:
            newest = select(JOBS.c.created_at).order_by(JOBS.c.seq.desc()).limit(1)
            milliseconds = connection.execute(newest).scalar()
        return None if milliseconds is None else milliseconds / 1000

    def live_workers(self) -> list[LiveWorker]:
        """The workers of all hosts that are alive."""
        # A heartbeat from the future is one from before the clock was set back.
        alive = WORKERS.c.heartbeat_at.between(db_now() - ALIVE_SECONDS, db_now() + 1.0)
        with self._database.read() as connection:
            rows = connection.execute(select(WORKERS.c.host, WORKERS.c.webuis).where(alive))
            return [LiveWorker(row.host, keys_of([row.webuis])) for row in rows]

    def abandoned_slots(self) -> list[HeldSlot]:
        """The slots whose holder has vanished and that nobody has taken over."""
        gone = and_(SLOTS.c.owner.is_not(None), SLOTS.c.lease_expires < db_now() - ALIVE_SECONDS)
        with self._database.read() as connection:
            rows = connection.execute(select(SLOTS.c.key, SLOTS.c.owner).where(gone))
            return [HeldSlot(row.key, row.owner.partition("/")[0]) for row in rows]


def outside(theirs: float, earliest: float, latest: float) -> float:
    """How far a time lies outside of a span: positive behind it, negative before it, 0 within."""
    return max(theirs - latest, 0.0) or min(theirs - earliest, 0.0)
