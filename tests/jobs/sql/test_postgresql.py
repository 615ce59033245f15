"""PostgreSQL that goes silent, that holds locks of the dead, that can only be read: what a process notices of it, and how soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, text

from app.config import load
from app.jobs.errors import DatabaseUnavailable, ReadOnlyDatabase
from app.jobs.sql import postgresql as module
from app.jobs.sql.database import Database
from tests.postgresql import SOCKET
from tests.proxy import TcpProxy

#: Seconds after which these tests give up a silent connection; tens of times what a query takes.
ANSWER_SECONDS = 1.0
#: The most that giving up may take longer than that, on a busy machine.
SLACK_SECONDS = 4.0


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after a second instead of fifteen."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", ANSWER_SECONDS)
    monkeypatch.setattr(module, "_PING_SECONDS", ANSWER_SECONDS / 2)
    monkeypatch.setattr(module, "_CHECK_SECONDS", 0.05)


@pytest.fixture
def proxy(postgresql: str) -> Iterator[TcpProxy]:
    proxy = TcpProxy(Path(postgresql.partition("host=")[2]) / SOCKET)
    yield proxy
    proxy.close()


@pytest.fixture
def make(soon: None, proxy: TcpProxy, migrated_postgresql: str, tmp_path: Path) -> Iterator[Callable[..., Database]]:
    """Databases behind the proxy; named values are parameters of the URL."""
    made: list[Database] = []

    def make_one(**parameters: str) -> Database:
        query = "&".join(f"{name}={quote(value)}" for name, value in parameters.items())
        url = f"postgresql://gateway@127.0.0.1:{proxy.port}/postgres?{query}"
        made.append(Database(load({"SDG_DATABASE_URL": url}, tmp_path).database_url))
        return made[-1]

    yield make_one
    for database in made:
        database.close()


def ask(database: Database, statement: str = "SELECT 1") -> Any:
    with database.read() as connection:
        return connection.execute(text(statement)).scalar()


def change(database: Database, before: Callable[[], object] = lambda: None) -> None:
    """One write transaction, in which something happens before its statement."""
    with database.write() as connection:
        before()
        connection.execute(text("UPDATE clock SET virtual = virtual"))


class TestSilence:
    def test_a_query_without_an_answer_is_given_up(self, make: Callable[..., Database], proxy: TcpProxy) -> None:
        database = make()
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            change(database, proxy.fall_silent)
        assert ANSWER_SECONDS <= time.monotonic() - began < ANSWER_SECONDS + SLACK_SECONDS
        proxy.speak_again()
        assert ask(database) == 1

    def test_so_is_a_commit_without_an_answer(self, make: Callable[..., Database], proxy: TcpProxy) -> None:
        database = make()
        with pytest.raises(DatabaseUnavailable), database.write():
            proxy.fall_silent()
        proxy.speak_again()
        change(database)

    def test_neither_a_kept_connection_nor_a_new_one_hangs(
        self, make: Callable[..., Database], proxy: TcpProxy
    ) -> None:
        # libpq's shortest connect_timeout.
        database = make(connect_timeout="2")
        assert ask(database) == 1
        proxy.fall_silent()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                ask(database)
        assert time.monotonic() - began < 2 * (ANSWER_SECONDS / 2 + 2) + SLACK_SECONDS
        proxy.speak_again()
        assert ask(database) == 1

    def test_many_threads_at_once_are_all_let_go(self, make: Callable[..., Database], proxy: TcpProxy) -> None:
        database = make()
        asked = threading.Barrier(9)

        def ask_twice() -> None:
            with database.read() as connection:
                connection.execute(text("SELECT 1"))
                asked.wait()
                asked.wait()
                connection.execute(text("SELECT 1"))

        def hang(_number: int) -> bool:
            with pytest.raises(DatabaseUnavailable):
                ask_twice()
            return True

        with ThreadPoolExecutor(8) as pool:
            results = pool.map(hang, range(8))
            asked.wait()
            proxy.fall_silent()
            asked.wait()
            assert all(results)
        proxy.speak_again()
        assert ask(database) == 1

    def test_connections_that_are_reset_are_replaced(self, make: Callable[..., Database], proxy: TcpProxy) -> None:
        database = make()
        cut = threading.Event()

        def ask_until_cut() -> None:
            with database.read() as connection:
                while True:
                    connection.execute(text("SELECT 1"))
                    if not cut.is_set():
                        cut.set()
                        proxy.cut()

        with pytest.raises(DatabaseUnavailable):
            ask_until_cut()
        assert ask(database) == 1


class TestLimits:
    def test_a_transaction_whose_client_is_stopped_loses_its_locks(
        self, make: Callable[..., Database], migrated_postgresql: str
    ) -> None:
        stopped = make(options="-c idle_in_transaction_session_timeout=300")
        neighbour = Database(migrated_postgresql)
        with pytest.raises(DatabaseUnavailable):
            change(stopped, lambda: change(neighbour))
        neighbour.close()

    def test_what_the_url_does_not_set_is_set_after_connecting(self, make: Callable[..., Database]) -> None:
        database = make()
        assert ask(database, "SHOW statement_timeout") == "12s"
        assert ask(database, "SHOW idle_in_transaction_session_timeout") == "10s"

    def test_parameters_of_the_url_win(self, make: Callable[..., Database]) -> None:
        database = make(options="-c statement_timeout=100", tcp_user_timeout="7000")
        assert ask(database, "SHOW statement_timeout") == "100ms"
        assert ask(database, "SHOW idle_in_transaction_session_timeout") == "10s"
        with database.engine.connect() as connection:
            assert connection.connection.dbapi_connection.info.get_parameters()["tcp_user_timeout"] == "7000"
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            ask(database, "SELECT pg_sleep(30)")
        assert time.monotonic() - began < SLACK_SECONDS

    def test_a_longer_statement_timeout_of_the_url_is_waited_for(self, make: Callable[..., Database]) -> None:
        database = make(options="-c statement_timeout=20000")
        assert ask(database, f"SELECT 1 FROM pg_sleep({ANSWER_SECONDS + 0.5})") == 1

    def test_maintenance_has_no_limit(self, make: Callable[..., Database]) -> None:
        database = make()
        assert ask(database) == 1
        database.be_patient()
        assert ask(database, f"SELECT 1 FROM pg_sleep({ANSWER_SECONDS + 0.5})") == 1
        assert ask(database, "SHOW statement_timeout") == "0"


def test_a_migration_waits_for_another_one_without_a_limit(
    make: Callable[..., Database], migrated_postgresql: str
) -> None:
    database = make()
    admin = create_engine(migrated_postgresql)
    with ThreadPoolExecutor(1) as pool:
        with admin.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": 0x5D6A7E})
            migrating = pool.submit(database.migrate)
            connection.execute(text(f"SELECT pg_sleep({2 * ANSWER_SECONDS})"))
            assert not migrating.done()
        migrating.result(30)
    admin.dispose()


def test_a_database_that_can_only_be_read_is_refused(make: Callable[..., Database]) -> None:
    database = make(options="-c default_transaction_read_only=on")
    with pytest.raises(ReadOnlyDatabase, match="primary"):
        database.migrate()
