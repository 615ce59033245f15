"""Connections to PostgreSQL that never hang, also when the server, a proxy or the network has gone silent.

Four limits, from the inside out:

=============================  =======  ==========================================================================================
``idle_in_transaction_…``      10 s     the server ends a transaction whose client is stopped or gone, and frees its locks
``statement_timeout``          12 s     the server gives up a statement, such as one that waits for a lock
``tcp_user_timeout``, …        15 s     the operating system gives up a connection whose packets are not acknowledged
watchdog                       15 s     this process gives up a query without an answer, which none of the others can notice
                                        where a proxy acknowledges everything and forwards nothing
=============================  =======  ==========================================================================================

Parameters in the database URL, and settings of the server, win. Nothing is put into the startup packet (``options``), for PgBouncer
refuses that; what the server has to know is SET after connecting.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, text

from app.jobs.errors import DriverMissing, ReadOnlyDatabase

#: Seconds that a query may go without an answer; more where ``statement_timeout`` was set to more.
ANSWER_SECONDS: Final = 15.0
#: The same for the ``SELECT 1`` that tries a pooled connection before its use. Together with a new connection, and then a query, a
#: request must not take longer than 20 s.
_PING_SECONDS: Final = 4.0
_CHECK_SECONDS: Final = 0.5
#: What the watchdog leaves to the server, seconds.
_AFTER_STATEMENT_SECONDS: Final = 3.0
#: Parameters of libpq; seconds, but ``tcp_user_timeout`` in milliseconds.
_CONNECTING: Final[Mapping[str, int]] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
_STATEMENT_TIMEOUT: Final = "statement_timeout"
#: Settings of the session, milliseconds.
_SESSION: Final[Mapping[str, int]] = {_STATEMENT_TIMEOUT: 12_000, "idle_in_transaction_session_timeout": 10_000}
_SET_ALREADY: Final = "SELECT name, setting::bigint FROM pg_settings WHERE name = ANY(%s) AND source <> 'default'"


class _Line:
    """The socket of a connection. The driver may close it at any time, and its number then be given to something else."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._inode = os.fstat(descriptor).st_ino

    def shut_down(self) -> None:
        """End the connection, if it is still there; whoever waits for its answer gets an error."""
        with contextlib.suppress(OSError):
            copy = os.dup(self._descriptor)
            if os.fstat(copy).st_ino != self._inode:
                os.close(copy)
                return
            with socket.socket(fileno=copy) as connection:
                connection.shutdown(socket.SHUT_RDWR)


class Watchdog:
    """Shuts a connection down when nothing comes back on it in time; one thread, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The lines that a thread waits at, and until when (monotonic).
        self._awaited: dict[_Line, float] = {}
        self._stop: threading.Event | None = None

    @contextlib.contextmanager
    def limit(self, line: _Line, seconds: float) -> Iterator[None]:
        """Shut the connection down unless the body of this context ends within so many seconds; what waits then gets an error."""
        with self._lock:
            self._awaited[line] = time.monotonic() + seconds
            if self._stop is None:
                self._stop = threading.Event()
                threading.Thread(target=self._watch, args=(self._stop,), name="database watchdog", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._awaited[line]

    def close(self) -> None:
        """End the thread; the next :meth:`limit` starts another."""
        with self._lock:
            if self._stop is not None:
                self._stop.set()
                self._stop = None

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(_CHECK_SECONDS):
            now = time.monotonic()
            with self._lock:
                for line in [line for line, until in self._awaited.items() if until <= now]:
                    self._awaited[line] = now + ANSWER_SECONDS
                    line.shut_down()


def make_engine(url: URL, watchdog: Watchdog, **options: Any) -> Engine:
    """Make an engine whose connections are limited as this module says.

    :raises DriverMissing: the driver is not installed.
    """
    given = {name: value for name, value in _CONNECTING.items() if name not in url.query}
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args=given, **options)
    except ImportError as error:
        # psycopg is not there, or the library that it needs.
        raise DriverMissing from error
    connection_class = _watched(engine.dialect.loaded_dbapi, watchdog)
    event.listen(engine, "do_connect", lambda _dialect, _record, args, named: connection_class.connect(*args, **named))
    event.listen(engine, "connect", _set_timeouts)
    return engine


def _watched(driver: Any, watchdog: Watchdog) -> Any:
    """The driver's class of connections, but that every wait for the server has a limit."""

    class Watched(driver.Connection):  # type: ignore[misc]
        """:attr:`answer_seconds` is the limit, None for none."""

        answer_seconds: float | None = ANSWER_SECONDS
        #: Whether it runs maintenance, which takes as long as it takes.
        maintains = False
        _line: _Line | None = None

        def wait(self, *args: Any, **named: Any) -> Any:
            # Besides maintenance only pings, and what sets a new session up, run without a transaction.
            limit = _PING_SECONDS if self.autocommit else self.answer_seconds
            if limit is None or self.maintains:
                return super().wait(*args, **named)
            if self._line is None:
                self._line = _Line(self.pgconn.socket)
            with watchdog.limit(self._line, limit):
                return super().wait(*args, **named)

    return Watched


def _set_timeouts(connection: Any, _record: Any) -> None:
    connection.autocommit = True
    chosen = dict(connection.execute(_SET_ALREADY, [list(_SESSION)]).fetchall())
    for name, milliseconds in _SESSION.items():
        if name not in chosen:
            connection.execute("SELECT set_config(%s, %s, false)", [name, str(milliseconds)])
    connection.autocommit = False
    statement_seconds = chosen.get(_STATEMENT_TIMEOUT, 0) / 1000
    connection.answer_seconds = max(ANSWER_SECONDS, statement_seconds + _AFTER_STATEMENT_SECONDS)


@contextlib.contextmanager
def unlimited(connection: Connection) -> Iterator[None]:
    """Let the transaction of this connection take as long as it likes: a migration or maintenance of a large table."""
    driver: Any = connection.connection.dbapi_connection
    limit, driver.answer_seconds = driver.answer_seconds, None
    try:
        for name in _SESSION:
            connection.execute(text(f"SET LOCAL {name} TO 0"))
        yield
    finally:
        driver.answer_seconds = limit


@contextlib.contextmanager
def maintaining(connection: Connection) -> Iterator[None]:
    """Let the statements of this connection, each without a transaction, take as long as they like: VACUUM and REINDEX."""
    connection.execution_options(isolation_level="AUTOCOMMIT")
    driver: Any = connection.connection.dbapi_connection
    limit = connection.exec_driver_sql(f"SHOW {_STATEMENT_TIMEOUT}").scalar_one()
    driver.maintains = True
    try:
        connection.exec_driver_sql(f"SET {_STATEMENT_TIMEOUT} TO 0")
        yield
        connection.exec_driver_sql(f"SET {_STATEMENT_TIMEOUT} TO '{limit}'")
    except BaseException:
        # Its settings are not known any more.
        connection.invalidate()
        raise
    finally:
        driver.maintains = False


def refuse_read_only(connection: Connection) -> None:
    """Refuse a server that nothing can be written to.

    :raises ReadOnlyDatabase: it is a read replica, or its transactions are read-only.
    """
    question = text("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'")
    if connection.execute(question).scalar_one():
        raise ReadOnlyDatabase
