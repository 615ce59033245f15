"""The database: connections, transactions and migrations, for SQLite and PostgreSQL alike.

All writers are serial: on SQLite by ``BEGIN IMMEDIATE`` (a deferred transaction that reads and then writes fails at once when
another wrote in between, https://www.sqlite.org/lang_transaction.html), on PostgreSQL by locking the one row of ``clock``
first. So no two write transactions can deadlock or see half of each other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.jobs.errors import DatabaseUnavailable, SchemaTooNew, SchemaTooOld
from app.jobs.sql import postgresql
from app.jobs.sql.schema import CLOCK
from app.runtime import modes
from app.runtime.failpoints import UNWATCHED, Failpoints

_LOG = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
#: Seconds that a statement waits for another process's write before it gives up.
BUSY_TIMEOUT = 30
#: Bytes to which SQLite's log is cut when it is longer and has been copied into the file. Four times what it usually grows to.
LOG_BYTES = 2**24
#: Of every engine. More connections than threads could ask for would only hide a leak; a waiter's poll and the worker share these.
#: Errors are logged, and must not show what stands in rows.
_ENGINE: dict[str, Any] = {"pool_size": 8, "max_overflow": 64, "pool_timeout": BUSY_TIMEOUT, "hide_parameters": True}
#: Any constant; PostgreSQL's advisory locks are numbers that programs agree on.
_MIGRATION_LOCK = 0x5D6A7E


class Database:
    """Hands out connections: :meth:`read` for queries, :meth:`write` for a serial write transaction.

    Both raise :class:`DatabaseUnavailable` when the database can't be reached, is locked for long or can't be written.
    """

    def __init__(self, url: str, failpoints: Failpoints = UNWATCHED) -> None:
        self.failpoints = failpoints
        self._watchdog = postgresql.Watchdog()
        #: Whether every transaction may take as long as it likes.
        self._patient = False
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # Made once: each transaction asks for them, and making a Path takes longer than asking.
        self._path = Path(self.url.database or "")
        self._log_path = Path(f"{self.url.database}-wal")
        self.engine = self._create_engine()
        driver = self.engine.dialect.loaded_dbapi
        #: A broken rule of the schema, which is a bug, and everything else that a database can refuse.
        self._broken_rule = (IntegrityError, driver.IntegrityError)
        self._refusal = (DBAPIError, PoolTimeoutError, driver.Error)
        #: Device and inode of the SQLite file as it was migrated.
        self._migrated: tuple[int, int] | None = None
        self._writing = self.engine.execution_options(writing="FULL")
        self._writing_ahead = self.engine.execution_options(writing="NORMAL")
        # Threads of one process queue here in order; SQLite's own busy handler sleeps and polls, which is slower.
        self._writer = threading.Lock() if self.is_sqlite else contextlib.nullcontext()

    @property
    def folder(self) -> Path | None:
        """The folder of a SQLite file; None for PostgreSQL."""
        return self._path.parent if self.is_sqlite and self.url.database else None

    @property
    def file(self) -> Path | None:
        """The SQLite file; None for PostgreSQL."""
        return self._path if self.is_sqlite and self.url.database else None

    @property
    def exists(self) -> bool:
        """Whether there is something to connect to; a SQLite file that was never written does not count."""
        if not self.is_sqlite:
            return True
        try:
            status = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # Connecting will say what is wrong with it.
            return True
        return not stat.S_ISREG(status.st_mode) or status.st_size > 0

    def _create_engine(self) -> Engine:
        if not self.is_sqlite:
            return postgresql.make_engine(self.url, self._watchdog, **_ENGINE)
        engine = self._create_sqlite()
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _create_sqlite(self) -> Engine:
        engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False}, **_ENGINE)
        # A connection that is made anew would make a new file, where the old one is gone.
        event.listen(engine, "do_connect", lambda *_: self._refuse_another_file())
        event.listen(engine, "connect", _prepare_sqlite)
        return engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection whose queries see one state of the database."""
        with self._translated(), self.engine.connect() as connection, self._limits(connection):
            yield connection

    @contextlib.contextmanager
    def write(self, failpoint: str | None = None, *, flushed: bool = True) -> Iterator[Connection]:
        """One write transaction, serial with all others; committed at the end, rolled back when the body raises or rolls it back.

        :param failpoint: the name of the commit for crash tests; None for one that no promise hangs on.
        :param flushed: False leaves it to the next flushed commit, or to :meth:`flush`, to make this one outlive a power cut; all
            processes see it at once and it outlives them. A power cut drops the newest unflushed commits only.
        """
        self._refuse_another_file()
        engine = self._writing if flushed else self._writing_ahead
        with (
            self._translated(),
            self._writer,
            engine.connect() as connection,
            connection.begin() as transaction,
            self._limits(connection),
        ):
            if not self.is_sqlite:
                _begin_postgresql(connection, flushed=flushed)
            yield connection
            if transaction.is_active:
                with self.failpoints.around(f"commit {failpoint}") if failpoint else contextlib.nullcontext():
                    transaction.commit()

    def _limits(self, connection: Connection) -> contextlib.AbstractContextManager[None]:
        return postgresql.unlimited(connection) if self._patient and not self.is_sqlite else contextlib.nullcontext()

    def be_patient(self) -> None:
        """From now on wait for PostgreSQL as long as it takes: for maintenance, which nobody waits for."""
        self._patient = True

    def flush(self) -> None:
        """Make every commit outlive a power cut.

        SQLite's own flush of a commit is one of its log, too (https://www.sqlite.org/pragma.html#pragma_synchronous); PostgreSQL
        flushes within a second by itself (synchronous_commit in its manual).

        :raises DatabaseUnavailable: the log can't be flushed.
        """
        if not self.is_sqlite:
            return
        try:
            # Without a log everything is in the file itself, and was flushed with it.
            with contextlib.suppress(FileNotFoundError), self._log_path.open("rb") as log:
                os.fsync(log.fileno())
        except OSError as error:
            raise DatabaseUnavailable from error

    def check(self) -> None:
        """Raise :class:`DatabaseUnavailable` unless a query works."""
        self._refuse_another_file()
        with self.read() as connection:
            connection.execute(select(CLOCK.c.id)).scalar_one()

    def migrate(self) -> None:
        """Bring the schema to this version's; safe when several processes start at once.

        :raises DatabaseUnavailable: when it can't be reached or is no database, or its folder can't be made.
        :raises SchemaTooNew: when the database already has a newer schema.
        :raises ReadOnlyDatabase: when nothing can be written to it.
        """
        if self.folder is not None:
            _make_file(self._path)
        config = _alembic()
        with self._translated(), self._writer, self._writing.begin() as connection:
            if self.is_sqlite:
                before, after = _upgrade(connection, config)
            else:
                postgresql.refuse_read_only(connection)
                with postgresql.unlimited(connection):
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                    before, after = _upgrade(connection, config)
        if after != before:
            _LOG.info("the database was migrated from schema %s to %s", before or "none", after)
            if self.is_sqlite:
                self.rewrite()
        self._migrated = self._file()

    def refuse_newer(self) -> str | None:
        """Refuse a schema that only a newer version knows. A database that does not exist is not made.

        :returns: its schema; None where the database is missing or empty.
        :raises DatabaseUnavailable: when it can't be read.
        :raises SchemaTooNew: when the database has a newer schema.
        """
        if not self.exists:
            return None
        with self.read() as connection:
            return _refuse_newer(connection, ScriptDirectory.from_config(_alembic()))

    def open_migrated(self) -> None:
        """Use an existing database as it is, without migrating it.

        :raises DatabaseUnavailable: when it can't be read.
        :raises SchemaTooNew, SchemaTooOld: when its schema is not this version's.
        """
        scripts = ScriptDirectory.from_config(_alembic())
        with self.read() as connection:
            if _refuse_newer(connection, scripts) != scripts.get_current_head():
                raise SchemaTooOld
        self._migrated = self._file()

    @contextlib.contextmanager
    def _own_connection(self, timeout: float) -> Iterator[sqlite3.Connection]:
        """A connection to the SQLite file outside of the pool, which waits so many seconds for others."""
        self._refuse_another_file()
        connection = sqlite3.connect(str(self.url.database), timeout=timeout, isolation_level=None)
        with contextlib.closing(connection):
            _prepare_sqlite(connection, None)
            yield connection

    def rewrite(self) -> bool:
        """Write a SQLite file of an earlier version anew, as one that can become smaller; whether it is one now.

        Where the disk has no room for that, the log says so and nothing changes.
        """
        with self._translated(), self._own_connection(BUSY_TIMEOUT) as connection:
            if connection.execute("PRAGMA auto_vacuum").fetchone()[0]:
                return True
            pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
            free = shutil.disk_usage(self._path.parent).free
            if free < 2 * pages * size:
                _LOG.warning(
                    "the database can't be written anew to become smaller: %d MB must be free on its disk, %d MB are;"
                    " make room and run sd-gateway records upkeep",
                    2 * pages * size // 10**6 + 1,
                    free // 10**6,
                )
                return False
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL").close()
            try:
                connection.execute("VACUUM").close()
            except sqlite3.OperationalError as error:
                # The temporary folder, where SQLite puts a copy, may be full, or somebody may be writing all the time.
                _LOG.warning("the database could not be written anew to become smaller: %s", error)
                return False
            return True

    def checkpoint(self, seconds: float) -> None:
        """Copy SQLite's log into the file and cut it; not now if readers or writers are in the way for so long."""
        with self._translated(), self._own_connection(seconds) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _file(self) -> tuple[int, int] | None:
        if not self.is_sqlite or not self.url.database:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _refuse_another_file(self) -> None:
        """Refuse to write when the SQLite file was deleted or replaced: open connections would go on with one that has no name,
        and what they commit would be gone after a restart.
        """
        if self._migrated is not None and self._file() != self._migrated:
            raise DatabaseUnavailable

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Every failure of the database as :class:`DatabaseUnavailable`, but for a broken rule of the schema."""
        try:
            yield
        except self._broken_rule:
            raise
        except self._refusal as error:
            raise DatabaseUnavailable from error

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self.engine.dispose()
        self._watchdog.close()


def _make_file(path: Path) -> None:
    """Make the file of a new SQLite database and its folders; SQLite would leave its mode to the umask.

    :raises DatabaseUnavailable: that can't be done.
    """
    try:
        modes.make_folders(path.parent)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, modes.PRIVATE_FILE))
    except OSError as error:
        raise DatabaseUnavailable from error


def _upgrade(connection: Connection, config: AlembicConfig) -> tuple[str | None, str | None]:
    """Bring the schema to this version's; what it was and is."""
    before = _refuse_newer(connection, ScriptDirectory.from_config(config))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before, _revision(connection)


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> str | None:
    """The schema of the database, None where it is empty."""
    known = {script.revision for script in scripts.walk_revisions()}
    current = _revision(connection)
    if current is not None and current not in known:
        raise SchemaTooNew(f"The database has schema {current}, which this version of sd-gateway does not know.")
    return current


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Leave BEGIN to us (the driver's own begins deferred) and choose durability over speed."""
    connection.isolation_level = None
    if not connection.execute("PRAGMA page_count").fetchone()[0]:
        # Only a file without any page can be made one that may become smaller (app/jobs/sql/space.py).
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL").close()
    _switch_to_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", f"journal_size_limit={LOG_BYTES}"):
        connection.execute(f"PRAGMA {pragma}").close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; several processes may do so at once.

    SQLite's busy timeout does not cover this switch, so it is repeated here for as long.
    """
    ends = time.monotonic() + connection.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= ends:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    driver: Any = connection.connection.dbapi_connection
    if writing:
        # Only outside of a transaction, and for this connection alone.
        driver.execute(f"PRAGMA synchronous={writing}")
    driver.execute("BEGIN IMMEDIATE" if writing else "BEGIN")


def _begin_postgresql(connection: Connection, *, flushed: bool) -> None:
    if not flushed:
        connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
    connection.execute(select(CLOCK.c.id).with_for_update())
