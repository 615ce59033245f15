"""The machine's clock is set back an hour (its rows then lie in the future): nothing waits for that hour to pass again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.jobs.errors import KeyReused
from app.jobs.model import IdempotencyKey
from app.jobs.slots import PROBE_SECONDS, Slots
from app.jobs.sql.database import Database
from app.jobs.sql.statements import LEASE_SECONDS
from app.jobs.table import JobTable
from tests.jobs.conftest import Gate, success_of

Advance = Callable[[float], None]
HOUR = 3600.0


@pytest.fixture
def set_back(advance: Advance) -> Callable[[], None]:
    return lambda: advance(-HOUR)


def test_the_job_and_slot_of_a_dead_worker_come_back_after_one_lease(
    gate: Gate, table: JobTable, slots: Slots, advance: Advance, set_back: Callable[[], None]
) -> None:
    job = gate.accept()
    gate.claim(task="lost")
    set_back()
    assert table.losses.reclaim("host/two") == []
    advance(LEASE_SECONDS + 1)
    assert [back.seq for back in table.losses.reclaim("host/two")] == [job.seq]
    assert (table.queries.current(job.identity).status, table.queries.current(job.identity).losses) == ("queued", 1)
    assert slots.get("gpu0").state == "unclean"
    assert slots.begin_quiescing("gpu0", "host/two").task_id == "lost"


def test_a_slot_whose_settler_died_comes_back_after_one_lease(
    gate: Gate, table: JobTable, slots: Slots, advance: Advance, set_back: Callable[[], None]
) -> None:
    gate.accept()
    table.give_back(gate.claim(), slot="unclean")
    slots.begin_quiescing("gpu0", "host/one")
    set_back()
    table.losses.reclaim("host/two")
    advance(LEASE_SECONDS + 1)
    table.losses.reclaim("host/two")
    assert slots.begin_quiescing("gpu0", "host/two") is not None


def test_a_living_worker_loses_nothing(
    gate: Gate, table: JobTable, slots: Slots, advance: Advance, set_back: Callable[[], None]
) -> None:
    gate.accept()
    claim = gate.claim()
    set_back()
    assert table.losses.reclaim("host/two") == []
    assert slots.heartbeat("host/one").known
    advance(LEASE_SECONDS - 2)
    assert table.losses.reclaim("host/two") == []
    assert table.succeed(claim, success_of(claim)) == "succeeded"


def test_leases_that_are_right_are_left_alone(gate: Gate, table: JobTable, database: Database) -> None:
    gate.accept()
    gate.claim()
    before = leases(database)
    assert table.losses.reclaim("host/two") == []
    assert leases(database) == before


def leases(database: Database) -> list[tuple[float, ...]]:
    with database.read() as connection:
        return [
            tuple(row)
            for table in ("jobs", "slots")
            for row in connection.exec_driver_sql(f"SELECT lease_expires FROM {table} WHERE lease_expires > 0")
        ]


def test_a_silent_webui_is_probed_now_and_not_in_an_hour(
    slots: Slots, advance: Advance, set_back: Callable[[], None]
) -> None:
    assert slots.may_probe("gpu0")
    set_back()
    assert slots.may_probe("gpu0")
    assert not slots.may_probe("gpu0")
    advance(PROBE_SECONDS)
    assert slots.may_probe("gpu0")


def test_a_worker_that_died_before_counts_as_dead_at_once_and_a_living_one_after_its_next_beat(
    slots: Slots, set_back: Callable[[], None]
) -> None:
    set_back()
    assert not slots.worker_alive()
    assert slots.heartbeat("host/one").known
    assert slots.worker_alive()


def test_a_look_at_a_job_counts_again_at_once(gate: Gate, table: JobTable, set_back: Callable[[], None]) -> None:
    job = gate.accept()
    claim = gate.claim()
    table.watched(job)
    set_back()
    table.watched(job)
    assert 0 <= table.queries.seconds_since_watched(claim) < 60


def test_keys_are_kept_an_hour_longer_and_not_for_ever(
    gate: Gate, table: JobTable, advance: Advance, set_back: Callable[[], None]
) -> None:
    job = gate.accept(key=IdempotencyKey("k", "digest"))
    set_back()
    assert table.find_key("u1", IdempotencyKey("k", "digest")).seq == job.seq
    with pytest.raises(KeyReused):
        table.find_key("u1", IdempotencyKey("k", "other"))
    advance(25 * HOUR + 1)
    assert table.find_key("u1", IdempotencyKey("k", "digest")) is None


def test_the_time_left_is_never_more_than_was_said(
    gate: Gate, table: JobTable, slots: Slots, set_back: Callable[[], None]
) -> None:
    gate.accept()
    claim = gate.claim()
    table.report(claim, 0.5, 20.0)
    set_back()
    assert 0 <= table.queries.place(table.queries.current(claim.job.identity)).eta <= 20.0


def test_newest_first_is_by_acceptance(gate: Gate, table: JobTable, set_back: Callable[[], None]) -> None:
    first = gate.accept()
    set_back()
    second = gate.accept()
    assert [job.seq for job in table.queries.of_user("u1", None, 10, None)] == [second.seq, first.seq]
