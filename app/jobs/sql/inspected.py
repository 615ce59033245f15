"""A database that is only looked at, which may be that of a gateway that runs: nothing in it or beside it is made or changed.

SQLite in write-ahead mode makes two files beside the database as soon as anybody reads it, and removes them with the last
connection. Where there are none, nobody has it open, and it is read as a file that does not change (``immutable``,
https://www.sqlite.org/uri.html). Where there are, they are used. Nothing is set in a session of PostgreSQL, for PgBouncer would
hand the session to a gateway.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from app.jobs.sql.database import Database

#: Seconds that a read waits for others.
_BUSY_SECONDS: Final = 5.0


class InspectedDatabase(Database):
    """A database for :meth:`~Database.read` alone."""

    def _create_engine(self) -> Engine:
        engine = super()._create_engine()
        if not self.is_sqlite:
            event.listen(engine, "begin", _read_only)
        return engine

    def _create_sqlite(self, **_options: Any) -> Engine:
        return create_engine(self.url, creator=self._connect, poolclass=NullPool)

    def _connect(self) -> sqlite3.Connection:
        how = "mode=ro" if self._log_path.exists() else "mode=ro&immutable=1"
        uri = f"{Path(str(self.url.database)).absolute().as_uri()}?{how}"
        # BEGIN is left to the engine.
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _read_only(connection: Connection) -> None:
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")
