"""The tables of one database, as the objects that read and write them."""

from __future__ import annotations

from dataclasses import dataclass

from app.jobs.catalogues import Catalogues
from app.jobs.queue import Queue
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import JobTable


@dataclass(frozen=True, slots=True)
class Tables:
    """Jobs, slots, catalogues and the queue as a whole, which go together."""

    jobs: JobTable
    slots: Slots
    catalogues: Catalogues
    queue: Queue

    @classmethod
    def of(cls, database: Database) -> Tables:
        """Those of a database."""
        return cls(JobTable(database), Slots(database), Catalogues(database), Queue(database))
