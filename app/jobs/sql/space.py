"""The room that the database takes: what deleted rows have left is given back to the file system, or kept for new rows.

SQLite never makes its file smaller by itself. A file made by this version can be made smaller in small steps
(https://www.sqlite.org/pragma.html#pragma_auto_vacuum); one of an earlier version has to be written anew once (``VACUUM``). Its
log is cut to :data:`LOG_BYTES` when it has been copied into the file. PostgreSQL's autovacuum keeps the room for new rows, but not
that of indexes whose pages are nearly empty; those are written anew on request (``REINDEX``).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final

from app.jobs.sql.database import LOG_BYTES, Database
from app.jobs.sql.postgresql import maintaining
from app.jobs.sql.schema import METADATA

#: Free pages that one step gives back: about a millisecond during which writers wait.
STEP_PAGES: Final = 200
#: Fewer free pages than this share of all are kept: the next rows need them.
_KEPT_SHARE: Final = 0.05
_LEFT_BY_REINDEX: Final = (
    "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE NOT indisvalid "
    "AND relname ~ '_ccnew[0-9]*$' AND relnamespace = current_schema()::regnamespace"
)
#: Seconds that writers may wait while the log is being cut.
_CUT_SECONDS: Final = 0.2


class Space:
    """Gives room back. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def step(self) -> bool:
        """Give some free pages back if there are many, and cut a long log; whether more can be given back."""
        if not self._database.is_sqlite:
            return False
        self._cut_log(LOG_BYTES)
        free, pages = self._pages()
        if free < STEP_PAGES or free < pages * _KEPT_SHARE or not self._shrinks():
            return False
        self._give_back(STEP_PAGES)
        return True

    def make_small(self) -> int:
        """Give everything back that can be; by how many bytes the files became smaller: 0 on PostgreSQL, which keeps the room."""
        if not self._database.is_sqlite:
            self._vacuum_postgresql()
            return 0
        before = self._bytes()
        if not self._shrinks():
            self._database.rewrite()
        while self._shrinks() and self._pages()[0]:
            self._give_back(STEP_PAGES)
        self._cut_log(0)
        return max(before - self._bytes(), 0)

    def _shrinks(self) -> bool:
        return bool(self._pragma("auto_vacuum"))

    def _pages(self) -> tuple[int, int]:
        """The number of free pages, and of all pages."""
        return self._pragma("freelist_count"), self._pragma("page_count")

    def _pragma(self, name: str) -> int:
        with self._database.read() as connection:
            # Reading a page makes a connection see what another one has changed.
            connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    def _give_back(self, pages: int) -> None:
        with self._database.write(flushed=False) as connection:
            driver: Any = connection.connection.dbapi_connection
            for _ in range(pages):
                # The driver takes one step of a statement without columns, and a step frees one page, whatever number is asked for.
                driver.execute("PRAGMA incremental_vacuum(1)").close()

    def _cut_log(self, longest: int) -> None:
        """Copy the log into the file and cut it, if it is longer; not now if somebody reads for long."""
        database = str(self._database.url.database)
        with contextlib.suppress(FileNotFoundError):
            if Path(f"{database}-wal").stat().st_size > longest:
                self._database.checkpoint(_CUT_SECONDS)

    def _bytes(self) -> int:
        database = Path(str(self._database.url.database))
        files = (database, database.with_name(f"{database.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def _vacuum_postgresql(self) -> None:
        """Free the room of deleted rows for new ones, and write the indexes anew, beside all other work.

        A page of an index is used again only when it is empty: of many deleted rows a few that stay keep most pages.
        """
        with self._database.read() as connection, maintaining(connection):
            # What a REINDEX that was broken off has left, by the name that PostgreSQL gave it.
            for name in connection.exec_driver_sql(_LEFT_BY_REINDEX).scalars().all():
                connection.exec_driver_sql(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"')
            for table in METADATA.sorted_tables:
                connection.exec_driver_sql(f"VACUUM {table.name}")
                connection.exec_driver_sql(f"REINDEX TABLE CONCURRENTLY {table.name}")
