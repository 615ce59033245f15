"""Statements that run on the driver itself behave as SQLAlchemy's own would, on both engines."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import bindparam, insert, literal, select, text, update

from app.jobs.errors import DatabaseUnavailable
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import CLOCK, USERS

TICK = Prepared(update(CLOCK).values(virtual=CLOCK.c.virtual + bindparam("p_by")))
VIRTUAL = Prepared(select(CLOCK.c.virtual))


def virtual(database: Database) -> float:
    with database.read() as connection:
        value: float = VIRTUAL.first(connection).virtual
        return value


def test_rows_have_names_and_python_s_own_values(database: Database) -> None:
    query = Prepared(
        select(literal(True).label("yes"), literal(None).label("none"), CLOCK.c.virtual, CLOCK.c.unfinished + 1)
    )
    with database.read() as connection:
        [row] = query.all(connection)
        assert (row.yes, row.none, row.virtual) == (True, None, 0.0)
        assert type(row.yes) is bool
        assert row[3] == 1


def test_what_there_is_none_of_is_none(database: Database) -> None:
    query = Prepared(select(USERS.c.finish).where(USERS.c.user_id == bindparam("p_user")))
    with database.read() as connection:
        assert query.first(connection, {"p_user": "nobody"}) is None
        assert query.all(connection, {"p_user": "nobody"}) == []


def test_it_takes_part_in_the_transaction(database: Database) -> None:
    with database.write() as connection:
        assert TICK.change(connection, {"p_by": 2.0}) == 1
        connection.rollback()
    assert virtual(database) == 0.0
    with database.write() as connection:
        TICK.change(connection, {"p_by": 2.0})
    assert virtual(database) == 2.0
    with database.read() as connection:
        before = VIRTUAL.first(connection)
        if database.is_sqlite:
            with database.write() as writing:
                TICK.change(writing, {"p_by": 2.0})
        assert VIRTUAL.first(connection) == before


def test_a_value_that_is_missing_is_a_bug_and_not_null(database: Database) -> None:
    with pytest.raises(KeyError, match="p_by"), database.write() as connection:
        TICK.change(connection)


def tick_once_cut_off(database: Database) -> None:
    with database.write() as connection:
        process = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with database.read() as killer:
            killer.execute(text("SELECT pg_terminate_backend(:process, 10000)"), {"process": process})
        TICK.change(connection, {"p_by": 1.0})


def test_a_broken_rule_is_told_as_such_and_anything_else_as_unavailable(database: Database) -> None:
    add = Prepared(insert(USERS), ("user_id", "finish", "unfinished"))
    same = {"user_id": "u1", "finish": 0.0, "unfinished": 0}
    with database.write() as connection:
        add.change(connection, same)
    with pytest.raises(database.engine.dialect.loaded_dbapi.IntegrityError), database.write() as connection:
        add.change(connection, same)
    with database.write() as connection:
        connection.execute(text("ALTER TABLE users RENAME TO gone"))
    with pytest.raises(DatabaseUnavailable), database.write() as connection:
        add.change(connection, same)
    with database.write() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO users"))


def test_a_connection_that_broke_amid_a_transaction_is_given_up(
    migrated_postgresql: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(migrated_postgresql)
    with pytest.raises(DatabaseUnavailable):
        tick_once_cut_off(database)
    assert virtual(database) == 0.0
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    database.close()
