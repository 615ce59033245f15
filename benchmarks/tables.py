"""Tables filled directly: copies of one real row, so that they hold what the gateway itself would have written."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Past:
    """A user's finished jobs: so many, evenly spread over the last so many days."""

    user: str
    jobs: int
    days: int


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes fast and unsafely, in one transaction."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=MEMORY")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-400000")
        connection.execute("PRAGMA threads=2")
        connection.execute("BEGIN EXCLUSIVE")
        yield connection
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")


def _copy(connection: sqlite3.Connection, changes: Mapping[str, str], source: str) -> None:
    """Insert a copy of the youngest job for each row of ``source``; ``changes`` are SQL expressions by column.

    In them ``old`` is the row that is copied.
    """
    columns = [row[1] for row in connection.execute("PRAGMA table_info(jobs)") if row[1] != "seq"]
    values = ", ".join(changes.get(column, f"old.{column}") for column in columns)
    youngest = "(SELECT * FROM jobs ORDER BY seq DESC LIMIT 1)"
    connection.execute(f"CREATE TEMP TABLE old AS SELECT * FROM {youngest}")
    connection.execute(f"INSERT INTO jobs ({', '.join(columns)}) SELECT {values} FROM {source}")
    connection.execute("DROP TABLE old")


def _count_to(connection: sqlite3.Connection, last: int) -> None:
    """Make the table ``numbers`` with 0 … last - 1."""
    connection.execute("CREATE TEMP TABLE numbers (i INTEGER PRIMARY KEY)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) INSERT INTO numbers SELECT i FROM n",
        (last,),
    )


def fill_history(database: Path, pasts: Sequence[Past]) -> None:
    """Add finished jobs, in the order of their times, all users mixed as they would have come."""
    with _opened(database) as connection:
        # Built at the end they cost a third; the partial ones do not concern finished jobs.
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'jobs' AND sql NOT LIKE '% WHERE %'"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        _count_to(connection, max(past.jobs for past in pasts))
        connection.execute("CREATE TEMP TABLE plan (at INTEGER, user_id TEXT, name TEXT)")
        [now] = connection.execute("SELECT max(created_at) FROM jobs").fetchone()
        for index, past in enumerate(pasts):
            _plan(connection, past, now, (index, len(pasts)))
        changes = {
            "user_id": "new.user_id",
            "name": "new.name",
            "created_at": "new.at",
            "started_at": "new.at + 5",
            "finished_at": "new.at + 5000",
            "images": "replace(old.images, old.name, new.name)",
        }
        _copy(connection, changes, "(SELECT * FROM plan ORDER BY at) AS new, old")
        for _, sql in indexes:
            connection.execute(sql)


def _plan(connection: sqlite3.Connection, past: Past, now: int, share: tuple[int, int]) -> None:
    """Add the times and names of one user's jobs; ``share``, which user of how many this is, keeps names apart."""
    index, users = share
    connection.execute(
        "INSERT INTO plan SELECT at, :user,"
        " strftime('%Y%m%dT%H%M%S', at / 1000, 'unixepoch') || printf('%03d-%08x', at % 1000, number)"
        " FROM (SELECT :now - i * :length / :jobs AS at, i * :users + :index AS number FROM numbers WHERE i < :jobs)",
        {
            "user": past.user,
            "now": now,
            "length": past.days * _DAY_MS,
            "jobs": past.jobs,
            "users": users,
            "index": index,
        },
    )


def fill_queue(database: Path, jobs: int, users: int) -> None:
    """Add waiting jobs of so many users, in the order in which fair queueing would have let them in."""
    with _opened(database) as connection:
        _count_to(connection, jobs)
        [virtual] = connection.execute("SELECT virtual FROM clock").fetchone()
        [cost] = connection.execute("SELECT cost FROM jobs ORDER BY seq DESC LIMIT 1").fetchone()
        made = "substr(old.name, 1, 19) || printf('%08x', i)"
        changes = {"user_id": f"'waiting' || (i % {users})", "name": made, "status": "'queued'"}
        changes |= {"start_tag": f"{virtual!r} + (i / {users}) * {cost!r}", "simulated": "0"}
        changes |= dict.fromkeys(("claims", "attempts", "losses"), "0")
        changes |= dict.fromkeys(("images", "webui", "started_at", "finished_at", "claimed_at", "progress"), "NULL")
        _copy(connection, changes, "numbers, old")
        connection.execute(
            f"INSERT INTO users (user_id, finish, unfinished) SELECT 'waiting' || (i % {users}),"
            f" {virtual!r} + count(*) * {cost!r}, count(*) FROM numbers GROUP BY 1"
        )
        connection.execute("UPDATE clock SET unfinished = unfinished + ?", (jobs,))


def fill_day(database: Path, user: str, jobs: int) -> None:
    """Give a user so many copies of the youngest record, all of its day."""
    with _opened(database) as connection:
        _count_to(connection, jobs)
        made = "substr(old.name, 1, 19) || printf('%08x', i)"
        changes = {"user_id": f"'{user}'", "name": made, "images": f"replace(old.images, old.name, {made})"}
        _copy(connection, changes, "numbers, old")


def names_of(database: Path, user: str) -> list[str]:
    """The names of a user's jobs, the oldest first."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name FROM jobs WHERE user_id = ? ORDER BY seq", (user,))
        return [name for (name,) in rows]


def sequence_before_middle(database: Path, user: str, page: int) -> int:
    """The number that a page in the middle of a user's history begins below."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        [count] = connection.execute("SELECT count(*) FROM jobs WHERE user_id = ?", (user,)).fetchone()
        [seq] = connection.execute(
            "SELECT seq FROM jobs WHERE user_id = ? ORDER BY seq DESC LIMIT 1 OFFSET ?",
            (user, max(0, (count - page) // 2 - 1)),
        ).fetchone()
        return int(seq)
