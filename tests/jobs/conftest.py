"""The job table over both engines, and short ways to fill it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import text

from app.config import load
from app.jobs.catalogues import Catalogues
from app.jobs.model import Claim, IdempotencyKey, Job, NewJob, Success
from app.jobs.slots import Slots
from app.jobs.sql.database import MIGRATIONS, Database
from app.jobs.sql.schema import CLOCK, EPOCHS, METADATA
from app.jobs.table import Bounds, JobTable, Serving
from tests.inprocess import make_clean

EVERYTHING = Serving(known=1000, unservable=frozenset())
BOUNDS = Bounds(total=1000, per_user=100)


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The server's URL as SQLAlchemy takes it; its database has the tables."""
    url = load({"SDG_DATABASE_URL": postgresql}, tmp_path_factory.mktemp("instance")).database_url
    database = Database(url)
    database.migrate()
    database.close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated, empty database of each engine."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    database = Database(request.getfixturevalue("migrated_postgresql"))
    yield database
    tables = ", ".join(table.name for table in METADATA.sorted_tables if table not in (CLOCK, EPOCHS))
    with database.engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
        connection.execute(text("UPDATE clock SET virtual = 0, unfinished = 0"))
    database.close()


@pytest.fixture
def table(database: Database) -> JobTable:
    return JobTable(database)


@pytest.fixture
def slots(database: Database) -> Slots:
    slots = Slots(database)
    slots.register("host/one", "host", ["gpu0", "gpu1"], only=True)
    make_clean(slots, "gpu0", "gpu1")
    return slots


@pytest.fixture
def catalogues(database: Database) -> Catalogues:
    return Catalogues(database)


class Gate:
    """Accepts and claims jobs in one line each."""

    def __init__(self, table: JobTable) -> None:
        self.table = table
        self._numbers = itertools.count(1)

    def new(
        self,
        user: str = "u1",
        *,
        cost: float = 1.0,
        requirements: str = "{}",
        type_: str = "txt2img",
        cancel_after: float | None = None,
    ) -> NewJob:
        number = next(self._numbers)
        return NewJob(
            user_id=user,
            type=type_,
            name=f"20261122T0615{number // 1000 % 60:02d}{number % 1000:03d}-{number:08x}",
            created_at=1_795_000_000_000 + number,
            args={"prompt": f"p{number}", "seed": str(number)},
            init_image=None,
            requirements=requirements,
            cost=cost,
            cancel_after=cancel_after,
        )

    def accept(
        self, user: str = "u1", *, bounds: Bounds = BOUNDS, key: IdempotencyKey | None = None, **fields: object
    ) -> Job:
        return self.table.accept(self.new(user, **fields), bounds, key)[0]

    def claim(
        self, slot: str = "gpu0", owner: str = "host/one", task: str = "task", serving: Serving = EVERYTHING
    ) -> Claim | None:
        return self.table.claim(slot, owner, task, serving)

    def finish(self, claim: Claim) -> bool:
        self.table.answered(claim, 1.0, None, EVERYTHING)
        return self.table.succeed(claim, success_of(claim)) == "succeeded"

    def run_next(self, slot: str = "gpu0") -> Job:
        claim = self.claim(slot)
        assert claim is not None
        assert self.finish(claim)
        return claim.job


def success_of(claim: Claim) -> Success:
    image = {"filename": f"{claim.job.name}-{claim.attempt}-0.png", "seed": claim.job.args["seed"]}
    return Success(1_795_000_100_000, claim.job.args, [image], {"model": "m"}, simulated=True)


@pytest.fixture
def gate(table: JobTable, slots: Slots) -> Gate:
    return Gate(table)


def migrate_to(database: Database, revision: str) -> None:
    """Bring an empty or earlier database to a schema that is not the newest."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def move_clock(database: Database, seconds: float) -> None:
    """Let so many seconds pass (or have the clock set back) for every lease, probe and key, by moving what the rows say."""
    columns = {
        "jobs": ["lease_expires", "claimed_at", "progress_at", "watched_at", "cancel_at", "deadline"],
        "slots": ["lease_expires", "probed_at", "health_since"],
        "workers": ["heartbeat_at"],
        "idempotency": ["expires_at"],
        "catalogues": ["seen_at"],
    }
    with database.write() as connection:
        for table_name, names in columns.items():
            moved = ", ".join(f"{name} = {name} - :s" for name in names)
            connection.execute(text(f"UPDATE {table_name} SET {moved}"), {"s": seconds})
        moved = "UPDATE notes SET value = CAST(CAST(value AS FLOAT) - :s AS TEXT) WHERE key = 'refresh_wanted_at'"
        connection.execute(text(moved), {"s": seconds})


@pytest.fixture
def advance(database: Database) -> Callable[[float], None]:
    """:func:`move_clock` of the test's database."""
    return partial(move_clock, database)
