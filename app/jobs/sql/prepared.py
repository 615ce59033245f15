"""Statements that are translated once and run on the driver's own connection.

For what lies on the way of every job: SQLAlchemy's own way to run a statement takes longer than the statement itself, and several
times as long when the process has just slept through a generation. What a statement says stays SQLAlchemy's, for both engines.
"""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Boolean, CompoundSelect, Connection, Dialect, Select
from sqlalchemy.sql.dml import Delete, Insert, Update

_NOTHING: Final[Mapping[str, Any]] = {}
#: Rows that PostgreSQL's driver has in memory at a time while it walks through them.
_STEP: Final = 16


@dataclass(frozen=True, slots=True)
class Translation:
    """A statement in the words of one engine."""

    text: str
    #: Makes a row of what the driver returns.
    row: Callable[[Sequence[Any]], Any]
    #: The names of the values, in the order of their places where the driver takes them by place.
    _names: Sequence[str]
    _by_place: bool
    #: The values that the statement itself holds.
    _own: Mapping[str, Any]

    def values(self, given: Mapping[str, Any]) -> Any:
        """The values as the driver takes them.

        :raises KeyError: one is missing.
        """
        named = {**self._own, **given}
        return [named[name] for name in self._names] if self._by_place else {name: named[name] for name in self._names}


class Prepared:
    """A statement in which ``bindparam`` stands for whatever differs from run to run; its rows are named tuples.

    A list that SQLAlchemy writes out (``IN``) has no place in it. It runs in the transaction of the connection that it is given,
    and raises the driver's own errors, which :class:`app.jobs.sql.database.Database` translates.

    :param columns: those that are given to an INSERT when it runs.
    """

    def __init__(
        self,
        statement: Select[*tuple[Any, ...]] | CompoundSelect[*tuple[Any, ...]] | Insert | Update | Delete,
        columns: Sequence[str] | None = None,
    ) -> None:
        self._statement = statement
        self._columns = columns
        self._translations: dict[str, Translation] = {}

    def all(self, connection: Connection, values: Mapping[str, Any] = _NOTHING) -> list[Any]:
        """The rows."""
        return [*map(self.translated(connection.dialect).row, self._run(connection, values).fetchall())]

    def walk(self, connection: Connection, values: Mapping[str, Any] = _NOTHING) -> Generator[Any]:
        """The rows one after the other; those behind the last one that was asked for are never in memory.

        The iterator is closed before the transaction ends.
        """
        translation = self.translated(connection.dialect)
        if not connection.in_transaction():
            connection.begin()
        driver: Any = connection.connection.dbapi_connection
        if connection.dialect.name == "postgresql":
            # A cursor of the server: libpq reads all rows of an ordinary one at once.
            cursor = driver.cursor("walk")
            cursor.itersize = _STEP
        else:
            cursor = driver.cursor()
        with contextlib.closing(cursor):
            cursor.execute(translation.text, translation.values(values))
            yield from map(translation.row, cursor)

    def first(self, connection: Connection, values: Mapping[str, Any] = _NOTHING) -> Any:
        """The first row, or None."""
        rows = self.all(connection, values)
        return rows[0] if rows else None

    def change(self, connection: Connection, values: Mapping[str, Any] = _NOTHING) -> int:
        """The number of rows that it changed."""
        return int(self._run(connection, values).rowcount)

    def _run(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        translation = self.translated(connection.dialect)
        if not connection.in_transaction():
            connection.begin()
        # Where the connection broke, SQLAlchemy finds out when it rolls back, and makes another.
        driver: Any = connection.connection.dbapi_connection
        return driver.execute(translation.text, translation.values(values))

    def translated(self, dialect: Dialect) -> Translation:
        """The statement for an engine; the first time, it is translated."""
        known = self._translations.get(dialect.name)
        if known is None:
            known = self._translations[dialect.name] = self._translate(dialect)
        return known

    def _translate(self, dialect: Dialect) -> Translation:
        compiled: Any = self._statement.compile(dialect=dialect, column_keys=self._columns)
        own = {name: bind.effective_value for name, bind in compiled.binds.items() if not bind.required}
        by_place = compiled.positiontup is not None
        names = compiled.positiontup if by_place else tuple(compiled.binds)
        return Translation(compiled.string, self._row_maker(), names, by_place, own)

    def _row_maker(self) -> Callable[[Sequence[Any]], Any]:
        columns = list(self._statement.exported_columns)
        names = [column.key or "" for column in columns]
        row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024 -- they are known only now
        # All else the drivers return as Python has it; SQLite knows no truth but 0 and 1.
        truths = [place for place, column in enumerate(columns) if isinstance(column.type, Boolean)]

        def make_with_truths(values: Sequence[Any]) -> Any:
            read = list(values)
            for place in truths:
                read[place] = None if read[place] is None else bool(read[place])
            return row._make(read)

        return make_with_truths if truths else row._make
