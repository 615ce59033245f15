"""The room that deleted rows leave goes back to the file system."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from app.jobs.errors import DatabaseUnavailable
from app.jobs.sql.database import LOG_BYTES, Database
from app.jobs.sql.space import STEP_PAGES, Space
from tests.jobs.conftest import migrate_to

INCREMENTAL = 2
#: About 8 MB of pages.
ROWS = 2000


def file_of(database: Database) -> Path:
    return Path(str(database.url.database))


def log_of(database: Database) -> Path:
    return file_of(database).with_name(file_of(database).name + "-wal")


def pragma(database: Database, name: str) -> int:
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def fill(database: Database, rows: int = ROWS) -> None:
    with database.write() as connection:
        connection.execute(
            text("INSERT INTO notes (key, value) VALUES (:key, :value)"),
            [{"key": f"note {number}", "value": random.randbytes(2000).hex()} for number in range(rows)],
        )


def empty(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("DELETE FROM notes WHERE key LIKE 'note %'"))


def of_an_earlier_version(database: Database) -> None:
    """Make the file one that never becomes smaller, with the tables of an earlier schema."""
    with closing(sqlite3.connect(file_of(database), isolation_level=None)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        for [table] in tables.fetchall():
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA auto_vacuum=NONE")
        connection.execute("VACUUM")
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    migrate_to(database, "0005")


class TestSqlite:
    def test_a_new_file_can_become_smaller(self, sqlite: Database) -> None:
        assert pragma(sqlite, "auto_vacuum") == INCREMENTAL

    def test_steps_give_free_pages_back_until_few_are_left(self, sqlite: Database) -> None:
        space = Space(sqlite)
        assert not space.step()
        fill(sqlite)
        empty(sqlite)
        free, steps = pragma(sqlite, "freelist_count"), 0
        while space.step():
            steps += 1
            assert free - pragma(sqlite, "freelist_count") == STEP_PAGES * steps
        assert steps == free // STEP_PAGES
        assert pragma(sqlite, "freelist_count") < STEP_PAGES

    def test_a_file_that_is_mostly_used_is_left_alone(self, sqlite: Database) -> None:
        fill(sqlite)
        with sqlite.write() as connection:
            connection.execute(text("DELETE FROM notes WHERE key LIKE 'note 1_'"))
        assert not Space(sqlite).step()

    def test_all_of_it_is_given_back_at_once_when_asked_for(self, sqlite: Database) -> None:
        space = Space(sqlite)
        space.make_small()
        before = file_of(sqlite).stat().st_size
        fill(sqlite)
        empty(sqlite)
        assert space.make_small() > ROWS * 4000
        assert file_of(sqlite).stat().st_size == before
        assert log_of(sqlite).stat().st_size == 0
        assert space.make_small() == 0

    def test_a_long_log_is_cut(self, sqlite: Database) -> None:
        fill(sqlite, 3 * LOG_BYTES // 4000)
        assert log_of(sqlite).stat().st_size > LOG_BYTES
        Space(sqlite).step()
        assert log_of(sqlite).stat().st_size == 0

    def test_a_reader_keeps_the_log_for_a_while_and_nobody_waits_for_long(self, sqlite: Database) -> None:
        fill(sqlite, 3 * LOG_BYTES // 4000)
        space = Space(sqlite)
        with sqlite.read() as connection:
            connection.execute(text("SELECT count(*) FROM notes")).scalar_one()
            fill_one(sqlite)
            space.step()
            assert log_of(sqlite).stat().st_size > 0
        fill_one(sqlite, "later")
        space.step()
        assert log_of(sqlite).stat().st_size <= LOG_BYTES

    def test_a_file_that_was_replaced_is_not_touched(self, sqlite: Database) -> None:
        sqlite.migrate()
        fill(sqlite)
        empty(sqlite)
        file_of(sqlite).rename(file_of(sqlite).with_suffix(".old"))
        shutil.copy(file_of(sqlite).with_suffix(".old"), file_of(sqlite))
        with pytest.raises(DatabaseUnavailable):
            Space(sqlite).make_small()


def fill_one(database: Database, key: str = "one") -> None:
    with database.write() as connection:
        connection.execute(text("INSERT INTO notes (key, value) VALUES (:key, 'x')"), {"key": key})


class TestEarlierFiles:
    """A file of an earlier version is written anew once, when it is migrated."""

    @pytest.fixture
    def earlier(self, sqlite: Database) -> Database:
        fill(sqlite)
        empty(sqlite)
        sqlite.close()
        of_an_earlier_version(sqlite)
        fill(sqlite)
        empty(sqlite)
        assert not Space(sqlite).step()
        return sqlite

    def test_migrating_makes_it_small(self, earlier: Database) -> None:
        used = pragma(earlier, "page_count") - pragma(earlier, "freelist_count")
        earlier.migrate()
        assert pragma(earlier, "auto_vacuum") == INCREMENTAL
        assert pragma(earlier, "freelist_count") == 0
        assert pragma(earlier, "page_count") < used + 20

    def test_without_room_the_log_says_so_and_upkeep_does_it_later(
        self, earlier: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        usage = namedtuple("usage", "total used free")  # noqa: PYI024
        with monkeypatch.context() as full, caplog.at_level(logging.WARNING):
            full.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**6))
            earlier.migrate()
        assert "make room and run sd-gateway records upkeep" in caplog.text
        assert pragma(earlier, "auto_vacuum") == 0
        earlier.migrate()
        assert pragma(earlier, "auto_vacuum") == 0
        assert Space(earlier).make_small() > ROWS * 4000
        assert pragma(earlier, "auto_vacuum") == INCREMENTAL


def test_on_postgresql_the_room_is_kept_for_new_rows(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("of PostgreSQL only")
    sizes = []
    space = Space(database)
    for _ in range(3):
        fill(database)
        with database.read() as connection:
            sizes.append(connection.execute(text("SELECT pg_total_relation_size('notes')")).scalar_one())
        empty(database)
        assert space.make_small() == 0
    assert max(sizes) <= sizes[0] * 1.2
    assert not space.step()


def test_on_postgresql_indexes_of_which_little_is_left_are_written_anew(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("of PostgreSQL only")
    space = Space(database)

    def size() -> int:
        with database.read() as connection:
            return int(connection.execute(text("SELECT pg_indexes_size('users')")).scalar_one())

    with database.write() as connection:
        connection.execute(
            text("INSERT INTO users SELECT 'user' || number, 0, number % 50 FROM generate_series(1, 20000) AS number")
        )
    full = size()
    with database.write() as connection:
        # Each page keeps a few.
        connection.execute(text("DELETE FROM users WHERE unfinished <> 0"))
    with database.read() as connection:
        limit = connection.execute(text("SHOW statement_timeout")).scalar_one()
    space.make_small()
    assert size() < full / 5
    with database.read() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == limit
        assert connection.execute(text("SELECT count(*) FROM users")).scalar_one() == 400
