"""Transactions and migrations, and that every frequent query is answered by an index."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.exc import IntegrityError

from app.jobs import places
from app.jobs.errors import DatabaseUnavailable, KeyOfDeletedJob, KeyReused, SchemaTooNew, UserQueueFull
from app.jobs.model import IdempotencyKey, Identity
from app.jobs.slots import Slots
from app.jobs.speeds import read_speeds
from app.jobs.sql import database as database_module
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import CLOCK
from app.jobs.table import Bounds, JobTable, Serving
from tests.inprocess import make_clean
from tests.jobs.conftest import Gate, migrate_to

CHECKOUT = Path(__file__).resolve().parents[3]
MIGRATE = (
    "import sys; from app.jobs.sql.database import Database; sys.stdin.readline(); Database(sys.argv[1]).migrate()"
)


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table, whose folder does not exist yet either."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new/folder/gateway.db"
        return
    url = request.getfixturevalue("migrated_postgresql")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE fresh"))
    yield url.replace("/postgres?", "/fresh?")
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE fresh WITH (FORCE)"))
    admin.dispose()


class TestMigrate:
    def test_a_second_time_changes_nothing(self, fresh: str) -> None:
        database = Database(fresh)
        database.migrate()
        with database.write() as connection:
            connection.execute(text("UPDATE clock SET virtual = 5"))
        database.migrate()
        with database.read() as connection:
            assert connection.execute(text("SELECT virtual FROM clock")).scalars().all() == [5.0]
        database.close()

    def test_processes_that_start_at_once_make_one_schema(self, fresh: str) -> None:
        command = [sys.executable, "-c", MIGRATE, fresh]
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, cwd=CHECKOUT, **pipes) for _ in range(2)]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
        database = Database(fresh)
        database.check()
        with database.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM clock")).scalar_one() == 1
        database.close()

    def test_a_newer_schema_is_refused_and_left_alone(self, fresh: str) -> None:
        database = Database(fresh)
        database.migrate()
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999_later'"))
        with pytest.raises(SchemaTooNew, match="9999_later"):
            database.migrate()
        with database.read() as connection:
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999_later"
        database.close()

    def test_a_folder_with_a_percent_sign_is_no_trouble(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path}/50%(x)s/gateway.db")
        database.migrate()
        database.check()
        database.close()

    @pytest.mark.parametrize("obstacle", ["no database", "a file for a folder"])
    def test_what_can_not_be_a_database_is_unavailable(self, obstacle: str, tmp_path: Path) -> None:
        path = tmp_path / "gateway.db"
        path.write_bytes(b"this is no database, though it is longer than a header" * 100)
        database = Database(f"sqlite:///{path if obstacle == 'no database' else path / 'below.db'}")
        with pytest.raises(DatabaseUnavailable) as refused:
            database.migrate()
        assert str(tmp_path) not in str(refused.value)
        database.close()


class TestIdentityMigration:
    """Schema 0004: what named a job by its number names it by its identity."""

    KEYS = ("of a record", "of a deleted job", "of a job without a row")

    @pytest.fixture
    def before(self, fresh: str) -> Iterator[Database]:
        """A database of schema 0002 with a record, a deleted job and a queued one that gpu0 is not to get again."""
        database = Database(fresh)
        if database.folder is not None:
            database.folder.mkdir(parents=True)
        migrate_to(database, "0002")
        with database.engine.begin() as connection:
            for seq, status in ((1, "succeeded"), (2, "deleted"), (4, "queued")):
                connection.execute(text(self.JOB), {"seq": seq, "name": f"job {seq}", "status": status})
            for seq, key in enumerate(self.KEYS, start=1):
                connection.execute(text(self.KEY), {"key": key, "job": seq})
            for seq in (3, 4):
                connection.execute(text("INSERT INTO refusals (job, slot) VALUES (:job, 'gpu0')"), {"job": seq})
            connection.execute(
                text("INSERT INTO slots (key, state, job, health, probed_at) VALUES ('gpu0', 'clean', 4, 'up', 0)")
            )
            connection.execute(text("INSERT INTO demands (id, body) VALUES (1, '{}')"))
        yield database
        database.close()

    JOB = (
        "INSERT INTO jobs (seq, user_id, type, name, status, created_at, args, simulated, cost, start_tag, demand, claims,"
        " attempts, losses, one_by_one, debris)"
        " VALUES (:seq, 'u1', 'txt2img', :name, :status, 1, '{}', false, 1.0, 0.0, 1, 0, 0, 0, false, false)"
    )
    KEY = "INSERT INTO idempotency (user_id, key, digest, job, expires_at) VALUES ('u1', :key, 'digest', :job, 9e9)"

    def test_keys_answer_as_before(self, before: Database) -> None:
        before.migrate()
        table = JobTable(before)
        record, deleted, gone = (IdempotencyKey(key, "digest") for key in self.KEYS)
        found = table.find_key("u1", record)
        assert found is not None
        assert found.name == "job 1"
        for key in (deleted, gone):
            with pytest.raises(KeyOfDeletedJob):
                table.find_key("u1", key)
            with pytest.raises(KeyReused):
                table.find_key("u1", IdempotencyKey(key.key, "another digest"))

    def test_a_job_is_still_kept_from_the_webui_that_can_not_make_it(self, before: Database) -> None:
        before.migrate()
        table = JobTable(before)
        [refused] = table.queries.refused()
        assert (refused.job.name, refused.slots) == ("job 4", {"gpu0"})
        serving = Serving(9, frozenset())
        assert table.claim("gpu0", "host/one", "task", serving) is None
        slots = Slots(before)
        slots.register("host/one", "host", ["gpu0", "gpu1"], only=True)
        make_clean(slots, "gpu1")
        claim = table.claim("gpu1", "host/one", "task", serving)
        assert claim is not None
        assert claim.job.name == "job 4"


class TestSpeedsMigration:
    """Schema 0008: the one speed of each WebUI counts for all its models until there is something newer."""

    def test_what_was_measured_before_is_carried_over(self, fresh: str) -> None:
        database = Database(fresh)
        if database.folder is not None:
            database.folder.mkdir(parents=True)
        migrate_to(database, "0007")
        with database.engine.begin() as connection:
            for key, speed in (("gpu0", 2.5), ("gpu1", None)):
                connection.execute(
                    text(
                        "INSERT INTO slots (key, state, health, probed_at, seconds_per_cost)"
                        " VALUES (:key, 'clean', 'up', 0, :speed)"
                    ),
                    {"key": key, "speed": speed},
                )
        database.migrate()
        speeds = read_speeds(database)
        assert speeds.measured("gpu0", "any model") == 2.5
        assert speeds.measured("gpu1", "any model") is None
        database.close()


class TestTransactions:
    def test_writers_take_turns_so_that_nothing_they_read_changes(self, database: Database) -> None:
        """Two objects stand for two processes: they share no lock but the database's."""
        neighbour = Database(database.url.render_as_string(hide_password=False))
        start = threading.Barrier(8)

        def count(number: int) -> None:
            start.wait()
            with (database, neighbour)[number % 2].write() as connection:
                value = connection.execute(text("SELECT unfinished FROM clock")).scalar_one()
                connection.execute(text("UPDATE clock SET unfinished = :value"), {"value": value + 1})

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))
        with neighbour.read() as connection:
            assert connection.execute(text("SELECT unfinished FROM clock")).scalar_one() == 8
        neighbour.close()

    def test_a_writer_is_the_only_one_from_its_first_moment(self, sqlite: Database) -> None:
        other = sqlite3.connect(sqlite.url.database, timeout=0, isolation_level=None)
        with sqlite.write(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        with sqlite.read() as connection:
            connection.execute(text("SELECT * FROM clock")).all()
            other.execute("BEGIN IMMEDIATE")
        other.close()

    def test_a_reader_sees_one_state_while_others_write(self, sqlite: Database) -> None:
        with sqlite.read() as connection:
            before = connection.execute(text("SELECT virtual FROM clock")).scalar_one()
            with sqlite.write() as writing:
                writing.execute(text("UPDATE clock SET virtual = virtual + 1"))
            assert connection.execute(text("SELECT virtual FROM clock")).scalar_one() == before
        with sqlite.read() as connection:
            assert connection.execute(text("SELECT virtual FROM clock")).scalar_one() == before + 1

    def test_what_fails_is_rolled_back(self, database: Database) -> None:
        def fail() -> None:
            with database.write() as connection:
                connection.execute(text("UPDATE clock SET virtual = 9"))
                raise LookupError

        with pytest.raises(LookupError):
            fail()
        with database.read() as connection:
            assert connection.execute(text("SELECT virtual FROM clock")).scalar_one() == 0

    def test_what_the_body_takes_back_is_no_commit(self, database: Database) -> None:
        with database.write("a step") as connection:
            connection.execute(text("UPDATE clock SET virtual = 9"))
            connection.rollback()
        with database.read() as connection:
            assert connection.execute(text("SELECT virtual FROM clock")).scalar_one() == 0

    def test_a_broken_rule_of_the_schema_is_told_as_such(self, database: Database) -> None:
        for access in (database.write, database.read):
            with pytest.raises(IntegrityError), access() as connection:
                connection.execute(text("INSERT INTO clock (id, virtual, unfinished) VALUES (1, 0, 0)"))

    def test_a_database_that_stays_locked_is_unavailable(
        self, sqlite: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.05)
        waiting = Database(str(sqlite.url))
        with sqlite.write(), pytest.raises(DatabaseUnavailable), waiting.write():
            pytest.fail("two writers at once")
        waiting.check()
        with waiting.write() as connection:
            connection.execute(text("UPDATE clock SET virtual = 1"))
        waiting.close()

    def test_a_database_without_tables_is_unavailable(self, fresh: str, tmp_path: Path) -> None:
        (tmp_path / "new" / "folder").mkdir(parents=True)
        database = Database(fresh)
        with pytest.raises(DatabaseUnavailable) as refused:
            database.check()
        assert "clock" not in str(refused.value)
        database.close()

    def test_what_is_committed_survives_a_power_cut(self, sqlite: Database) -> None:
        with sqlite.read() as connection:
            values = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        assert values == ["wal", 2, 1]

    def test_only_what_says_so_leaves_its_flush_to_later(self, sqlite: Database) -> None:
        def how(*, flushed: bool) -> int:
            with sqlite.write(flushed=flushed) as connection:
                value: int = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
                return value

        full, normal = 2, 1
        # One connection serves them all in turn.
        assert [how(flushed=flushed) for flushed in (True, False, True, False)] == [full, normal, full, normal]

    def test_flushing_needs_no_log_and_tells_when_it_can_not(self, sqlite: Database, tmp_path: Path) -> None:
        with sqlite.write(flushed=False) as connection:
            connection.exec_driver_sql("UPDATE clock SET virtual = 1")
        sqlite.flush()
        sqlite.close()
        log = Path(f"{sqlite.url.database}-wal")
        log.unlink(missing_ok=True)
        sqlite.flush()
        log.symlink_to(log)
        with pytest.raises(DatabaseUnavailable):
            sqlite.flush()
        log.unlink()

    def test_a_commit_makes_no_path(self, sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """Making one interns its parts, and Python's table of interned strings takes a new place each time."""
        interned, intern = list[str](), sys.intern

        def note(text: str) -> str:
            interned.append(text)
            return intern(text)

        monkeypatch.setattr(sys, "intern", note)
        Path("made/here")
        with sqlite.write() as connection:
            connection.execute(CLOCK.update().values(virtual=1.0))
        sqlite.flush()
        monkeypatch.undo()
        assert {"here", *Path(str(sqlite.url.database)).parts}.intersection(interned) == {"here"}

    def test_where_the_file_is_gone_no_new_one_is_made(self, sqlite: Database) -> None:
        sqlite.migrate()
        path = Path(sqlite.url.database)
        query = Prepared(select(CLOCK.c.virtual))
        with sqlite.read() as connection:
            assert query.first(connection).virtual == 0.0
            path.unlink()
            # The one that is in use is as good as before, but a second one can't be made.
            assert query.first(connection).virtual == 0.0
            for use in (sqlite.read, sqlite.write):
                with pytest.raises(DatabaseUnavailable), use():
                    pytest.fail("it was used")
        assert not path.exists()

    def test_only_a_file_has_a_folder(self, database: Database) -> None:
        expected = Path(database.url.database).parent if database.is_sqlite else None
        assert database.folder == expected


@pytest.fixture
def plans(sqlite: Database) -> Callable[[Callable[[], object]], str]:
    """SQLite's query plans of every SELECT, UPDATE and DELETE on jobs that an action sends."""
    seen: list[tuple[str, Any]] = []

    class Cursor(sqlite3.Cursor):
        def execute(self, statement: str, values: Any = ()) -> Self:
            seen.append((statement, tuple(values)))
            return super().execute(statement, values)

    class Noting(sqlite3.Connection):
        def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
            seen.append((statement, tuple(values)))
            return super().execute(statement, values)

        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    @event.listens_for(sqlite.engine, "do_connect")
    def note(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
        options["factory"] = Noting

    # Whoever has used it before has not been noted.
    sqlite.close()

    def explain(action: Callable[[], object]) -> str:
        seen.clear()
        action()
        asked = [(sql, values) for sql, values in seen if re.search(r"(FROM|UPDATE|JOIN) jobs\b", sql)]
        assert asked
        with sqlite.engine.connect() as connection:
            rows = [
                row
                for sql, values in asked
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()
            ]
        return "\n".join(row.detail for row in rows)

    return explain


class TestQueryPlans:
    """A table of a million records must be no slower than one of ten."""

    @pytest.fixture
    def gate(self, sqlite: Database) -> Gate:
        slots = Slots(sqlite)
        slots.register("host/one", "host", ["gpu0", "gpu1"], only=True)
        make_clean(slots, "gpu0", "gpu1")
        return Gate(JobTable(sqlite))

    @pytest.mark.parametrize("before", [None, 10])
    def test_history(self, plans: Callable[..., str], gate: Gate, before: int | None) -> None:
        plan = plans(lambda: gate.table.queries.history("u1", "txt2img", 50, before))
        assert plan.startswith("SEARCH jobs USING INDEX jobs_history (user_id=? AND type=? AND status=?")
        assert "TEMP B-TREE" not in plan

    @pytest.mark.parametrize(("status", "index"), [(None, "jobs_of_user_any"), ("failed", "jobs_of_user")])
    def test_the_jobs_of_a_user(self, plans: Callable[..., str], gate: Gate, status: str | None, index: str) -> None:
        plan = plans(lambda: gate.table.queries.of_user("u1", status, 50, 10))
        assert plan.startswith(f"SEARCH jobs USING INDEX {index} (")
        assert "TEMP B-TREE" not in plan

    @pytest.mark.parametrize("unservable", [frozenset(), frozenset({3, 4})])
    def test_a_claim_reads_the_queue_in_order(
        self, plans: Callable[..., str], gate: Gate, unservable: frozenset[int]
    ) -> None:
        gate.accept()
        plan = plans(lambda: gate.claim(serving=Serving(9, unservable)))
        assert "SCAN jobs USING INDEX jobs_queue" in plan
        assert "TEMP B-TREE" not in plan
        self.no_full_scan(plan)

    def test_a_place_in_a_short_queue_reads_it_in_its_order_and_no_row(
        self, plans: Callable[..., str], gate: Gate
    ) -> None:
        job = gate.accept()
        plan = plans(lambda: gate.table.queries.place(job))
        assert "SEARCH jobs USING COVERING INDEX jobs_queue (start_tag<?)" in plan
        assert "TEMP B-TREE" not in plan
        assert [line for line in plan.splitlines() if "jobs_queue" in line and "COVERING" not in line] == []

    def test_a_place_in_a_long_queue_reads_two_ranges_of_it_and_no_row(
        self, plans: Callable[..., str], gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(places, "PLAYED", 0)
        job = gate.accept()
        queue = "SEARCH jobs USING COVERING INDEX jobs_queue"
        plan = plans(lambda: gate.table.queries.place(job)).splitlines()
        assert [line for line in plan if "jobs_queue" in line] == [
            f"{queue} (start_tag<?)",
            f"{queue} (start_tag=? AND seq<?)",
        ]

    def test_retry_after_looks_at_one_waiting_job(self, plans: Callable[..., str], gate: Gate) -> None:
        gate.accept()
        assert "SCAN jobs USING COVERING INDEX jobs_queue\n" in plans(gate.table.queries.seconds_until_room)
        plan = plans(partial(pytest.raises, UserQueueFull, gate.accept, bounds=Bounds(9, 1)))
        assert "SEARCH jobs USING INDEX jobs_of_user (user_id=? AND status=?)" in plan
        assert "TEMP B-TREE" not in plan
        self.no_full_scan(plan)

    def test_what_a_crash_left_of_deletions(self, plans: Callable[..., str], gate: Gate) -> None:
        assert plans(gate.table.deletion.pending_unlink) == "SEARCH jobs USING INDEX jobs_pending_unlink (seq>?)"

    @pytest.mark.parametrize("user", [None, "u1"])
    def test_what_changed_since(self, plans: Callable[..., str], gate: Gate, user: str | None) -> None:
        revisions = gate.table.revisions
        if user is None:
            plan = plans(lambda: revisions.changes(5, 100))
            assert plan == "SEARCH jobs USING INDEX jobs_rev (rev>?)"
        else:
            plan = plans(lambda: revisions.of_user(user, 5, 100))
            assert plan == "SEARCH jobs USING INDEX jobs_of_user_rev (user_id=? AND rev>?)"

    def test_everything_that_runs_again_and_again(self, plans: Callable[..., str], gate: Gate) -> None:
        job = gate.accept()
        claim = gate.claim()
        table, slots = gate.table, Slots(gate.table.database)
        actions: list[Callable[[], object]] = [
            lambda: slots.heartbeat("host/one"),
            lambda: table.losses.reclaim("host/one"),
            lambda: table.losses.take_over("host", "host/one"),
            lambda: table.losses.lose_unknown("host/one", list),
            table.deletion.forget_deleted,
            table.deletion.forget_refusals,
            table.queries.queued_requirements,
            table.queries.refused,
            lambda: table.revisions.latest([job.identity, Identity("u2", "txt2img", "gone")]),
            lambda: table.queries.get("u1", "txt2img", job.name),
            lambda: table.queries.rows_named(job.name, "txt2img"),
            lambda: table.queries.place(job),
            lambda: table.queries.place(table.queries.current(job.identity)),
            table.queries.seconds_until_room,
            lambda: table.report(claim, 0.5, 1.0),
            lambda: table.watched(claim.job),
            lambda: table.queries.seconds_since_watched(claim),
            lambda: table.cancellation.cancel(claim.job.identity),
            lambda: slots.heartbeat("host/one"),
            table.cancellation.end_overdue,
            lambda: table.cancellation.cancel_queued("u1"),
            lambda: gate.finish(claim),
            lambda: table.losses.lose_unknown("host/one", lambda: ()),
            lambda: table.deletion.delete("u1", "txt2img", job.name),
        ]
        for action in actions:
            self.no_full_scan(plans(action))

    @staticmethod
    def no_full_scan(plan: str) -> None:
        scans = [line for line in plan.splitlines() if re.fullmatch(r"SCAN jobs( USING INDEX (?!jobs_).*)?", line)]
        assert scans == []
