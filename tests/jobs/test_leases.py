"""What a worker knows about the age of its leases, over both engines."""

from __future__ import annotations

from collections.abc import Callable

from app.jobs import leases
from app.jobs.slots import Slots
from app.jobs.sql.statements import LEASE_SECONDS
from app.jobs.table import JobTable
from tests.jobs.conftest import EVERYTHING, Gate

Advance = Callable[[float], None]


def seconds_ago(seconds: float) -> float:
    return leases.now() - seconds


def test_a_lease_is_held_until_shortly_before_it_runs_out() -> None:
    clock = leases.Leases()
    last = LEASE_SECONDS - leases.MARGIN_SECONDS
    assert clock.held("task", seconds_ago(0))
    assert clock.held("task", seconds_ago(last - 1))
    assert not clock.held("task", seconds_ago(last))


def test_a_heartbeat_renews_the_leases_that_it_found() -> None:
    clock = leases.Leases()
    clock.renewed(seconds_ago(1), ["mine"])
    assert clock.held("mine", seconds_ago(60))
    assert not clock.held("lost", seconds_ago(60))


def test_a_heartbeat_that_was_sent_long_ago_renews_nothing() -> None:
    clock = leases.Leases()
    clock.renewed(seconds_ago(LEASE_SECONDS), ["mine"])
    assert not clock.held("mine", seconds_ago(60))
    assert clock.held("mine", seconds_ago(0))


def test_a_claim_and_a_following_one_say_when_their_leases_began(gate: Gate, table: JobTable, slots: Slots) -> None:
    gate.accept()
    gate.accept()
    before = leases.now()
    first = gate.claim()
    between = leases.now()
    second = table.answered(first, 1.0, "second", EVERYTHING)
    assert before <= first.leased_at <= between <= second.leased_at <= leases.now()


def test_the_heartbeat_of_a_worker_that_slept_too_long_does_not_bring_its_lease_back(
    gate: Gate, table: JobTable, slots: Slots, advance: Advance
) -> None:
    gate.accept()
    claim = gate.claim(owner="host/one", task="slept")
    assert slots.heartbeat("host/one").known
    assert slots.leases.held("slept", seconds_ago(60))
    advance(LEASE_SECONDS + 1)
    [taken] = table.losses.reclaim("host/two")
    assert taken.seq == claim.job.seq
    # The database still knows the worker, but it holds nothing any more.
    assert slots.heartbeat("host/one").known
    assert not slots.leases.held("slept", seconds_ago(60))


def test_a_repair_says_when_its_lease_began(slots: Slots) -> None:
    before = leases.now()
    leased_at = slots.begin_repair("gpu0", "host/one", "probe")
    assert leased_at is not None
    assert before <= leased_at <= leases.now()
    assert slots.begin_repair("gpu0", "host/two", "probe") is None
