"""The id that the database shares with its data folder: one row of ``notes``, which every schema since the first has.

The row is written before the file in the folder, marked unfinished, and the mark is removed once the file is there. So a first
start that was killed in between can be told from a data folder that is not mounted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, delete, func, insert, inspect, select, true

from app.jobs.sql.database import Database
from app.jobs.sql.schema import JOBS, NOTES, SUCCEEDED

_KEY: Final = "data_folder_id"
_UNFINISHED: Final = " unfinished"


@dataclass(frozen=True, slots=True)
class DatabaseId:
    """The id in the database; ``finished`` says that the data folder was seen to carry it too."""

    value: str
    finished: bool


def read(database: Database) -> DatabaseId | None:
    """The id; None where the database is missing, empty or older than the ids. Creates and migrates nothing.

    :raises DatabaseUnavailable: it can't be read.
    """
    if not database.exists:
        return None
    with database.read() as connection:
        return _read(connection) if inspect(connection).has_table(NOTES.name) else None


def propose(database: Database, value: str) -> DatabaseId:
    """Give a migrated database this id, marked unfinished, unless it has one; the id that it has now.

    :raises DatabaseUnavailable: nothing was changed.
    """
    with database.write("begin id") as connection:
        known = _read(connection)
        if known is None:
            _write(connection, value + _UNFINISHED)
        return known or DatabaseId(value, finished=False)


def assign(database: Database, value: str) -> None:
    """Give a migrated database the id that its data folder carries, whatever it had before.

    :raises DatabaseUnavailable: nothing was changed.
    """
    with database.write("end id") as connection:
        _write(connection, value)


def count_jobs(database: Database, *, records: bool = False) -> int:
    """The number of jobs, deleted ones too; with ``records`` those that succeeded. 0 where the database is missing or empty.

    :raises DatabaseUnavailable: it can't be read.
    """
    if not database.exists:
        return 0
    with database.read() as connection:
        if not inspect(connection).has_table(JOBS.name):
            return 0
        chosen = JOBS.c.status == SUCCEEDED if records else true()
        return connection.execute(select(func.count()).select_from(JOBS).where(chosen)).scalar_one()


def _read(connection: Connection) -> DatabaseId | None:
    text: str | None = connection.execute(select(NOTES.c.value).where(NOTES.c.key == _KEY)).scalar()
    return None if text is None else DatabaseId(text.removesuffix(_UNFINISHED), not text.endswith(_UNFINISHED))


def _write(connection: Connection, text: str) -> None:
    connection.execute(delete(NOTES).where(NOTES.c.key == _KEY))
    connection.execute(insert(NOTES).values(key=_KEY, value=text))
