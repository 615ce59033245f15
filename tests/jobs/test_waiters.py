"""Clients that wait: how many, for how long, and what wakes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import text

from app.jobs import waiters as waiters_module
from app.jobs.errors import NoFreeWaiter
from app.jobs.model import Identity
from app.jobs.slots import Slots
from app.jobs.sql import database as database_module
from app.jobs.sql.database import Database
from app.jobs.table import JobTable
from app.jobs.waiters import Waiters
from tests.inprocess import DEADLINE, make_clean, until
from tests.jobs.conftest import Gate

NEVER = 3600.0


@pytest.fixture
def gate(sqlite: Database) -> Gate:
    slots = Slots(sqlite)
    slots.register("host/one", "host", ["gpu0"], only=True)
    make_clean(slots, "gpu0")
    return Gate(JobTable(sqlite))


@pytest.fixture
def waiters(gate: Gate) -> Iterator[Waiters]:
    waiters = Waiters(gate.table, 2)
    yield waiters
    waiters.drain()


@pytest.fixture
def waiting(waiters: Waiters) -> Iterator[Callable[..., Future[None]]]:
    """Start to wait in another thread; returns once that has begun."""
    with ThreadPoolExecutor(4) as pool:

        def wait(job: Identity, seconds: float = NEVER) -> Future[None]:
            before = sum(len(events) for events in waiters._waiting.values())
            future = pool.submit(waiters.wait, job, seconds)
            until(lambda: future.done() or sum(len(events) for events in waiters._waiting.values()) > before)
            return future

        yield wait
        waiters.drain()


class TestPlaces:
    def test_only_so_many_may_wait(self, waiters: Waiters) -> None:
        with waiters.reserve(), waiters.reserve():
            with pytest.raises(NoFreeWaiter) as refused, waiters.reserve():
                pytest.fail("three waiters of two")
            assert refused.value.retry_after >= 1
        with waiters.reserve(), waiters.reserve():
            pass

    def test_a_client_whose_request_fails_leaves_its_place(self, waiters: Waiters) -> None:
        for _ in range(5):
            with pytest.raises(LookupError), waiters.reserve():
                raise LookupError


class TestWait:
    def test_a_job_that_is_finished_is_noticed_by_looking(
        self, gate: Gate, waiting: Callable[..., Future[None]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiters_module, "_POLL_SECONDS", 0.02)
        job = gate.accept()
        future = waiting(job.identity)
        gate.run_next()
        future.result(DEADLINE)

    def test_a_hint_wakes_without_looking(
        self,
        gate: Gate,
        waiters: Waiters,
        waiting: Callable[..., Future[None]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(waiters_module, "_POLL_SECONDS", NEVER)
        mine, other = gate.accept(), gate.accept()
        both, neighbour = [waiting(mine.identity), waiting(mine.identity)], waiting(other.identity)
        gate.run_next()
        waiters.finished(mine.identity)
        for future in both:
            future.result(DEADLINE)
        assert not neighbour.done()

    def test_a_hint_for_nobody_does_no_harm(self, waiters: Waiters) -> None:
        waiters.finished(Identity("u9", "txt2img", "unknown"))

    def test_a_job_that_was_finished_before_needs_no_wait(
        self, gate: Gate, waiting: Callable[..., Future[None]]
    ) -> None:
        job = gate.accept()
        gate.run_next()
        waiting(job.identity).result(DEADLINE)

    def test_the_patience_of_a_client_ends(self, gate: Gate, waiters: Waiters) -> None:
        job = gate.accept()
        waiters.wait(job.identity, 0.05)
        assert gate.table.queries.current(job.identity).status == "queued"
        assert waiters._waiting == {}

    def test_no_patience_is_too_long(self, gate: Gate, waiting: Callable[..., Future[None]]) -> None:
        job = gate.accept()
        future = waiting(job.identity, 1e12)
        gate.run_next()
        future.result(DEADLINE)

    def test_one_watcher_serves_all(self, gate: Gate, waiting: Callable[..., Future[None]]) -> None:
        before = threading.active_count()
        jobs = [gate.accept() for _ in range(3)]
        futures = [waiting(job.identity) for job in jobs]
        assert [thread.name for thread in threading.enumerate()].count("waiters") >= 1
        assert threading.active_count() <= before + len(jobs) + 1
        for _ in jobs:
            gate.run_next()
        for future in futures:
            future.result(DEADLINE)


class TestTrouble:
    def test_draining_lets_everybody_go_and_nobody_wait(
        self, gate: Gate, waiters: Waiters, waiting: Callable[..., Future[None]]
    ) -> None:
        jobs = [gate.accept(), gate.accept()]
        futures = [waiting(job.identity) for job in jobs]
        waiters.drain()
        for future in futures:
            future.result(DEADLINE)
        waiters.wait(jobs[0].identity, NEVER)
        assert gate.table.queries.current(jobs[0].identity).status == "queued"

    def test_a_database_that_fails_for_a_while_only_delays(
        self,
        gate: Gate,
        sqlite: Database,
        waiting: Callable[..., Future[None]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.05)
        monkeypatch.setattr(waiters_module, "_POLL_SECONDS", 0.02)
        job = gate.accept()
        with sqlite.write() as connection:
            connection.execute(text("ALTER TABLE jobs RENAME TO hidden"))
        future = waiting(job.identity)
        with sqlite.write() as connection:
            connection.execute(text("ALTER TABLE hidden RENAME TO jobs"))
        gate.run_next()
        future.result(DEADLINE)
