"""Clients that wait: how many, for how long, and what wakes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from app.jobs import changes as changes_module
from app.jobs.changes import Changes
from app.jobs.errors import DatabaseUnavailable, JobNotFound, NoFreeWaiter
from app.jobs.model import Identity, Job
from app.jobs.slots import Slots
from app.jobs.sql import database as database_module
from app.jobs.sql.database import Database
from app.jobs.table import JobTable
from app.jobs.waiters import Waiter, Waiters
from tests.inprocess import DEADLINE, make_clean
from tests.jobs.conftest import Gate

NEVER = 3600.0
PLACES = 4


@pytest.fixture
def gate(sqlite: Database) -> Gate:
    slots = Slots(sqlite)
    slots.register("host/one", "host", ["gpu0"], only=True)
    make_clean(slots, "gpu0")
    return Gate(JobTable(sqlite))


@pytest.fixture
def waiters(gate: Gate) -> Iterator[Waiters]:
    changes = Changes(gate.table.revisions)
    waiters = Waiters(gate.table, changes, PLACES)
    changes.add(waiters)
    yield waiters
    waiters.drain()
    changes.end()


class Client:
    """A client that waits, and looks whenever it is woken."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.woken = threading.Event()
        waiter.begin(self.woken.set)

    def result(self) -> Job:
        """The job at the end of the wait, which must come of itself."""
        while True:
            assert self.woken.wait(DEADLINE), "nobody woke the client"
            self.woken.clear()
            job = self.waiter.check()
            if job is not None:
                return job


@pytest.fixture
def waiting(waiters: Waiters) -> Callable[..., Client]:
    """Begin to wait for a job."""

    def wait(job: Identity, seconds: float = NEVER) -> Client:
        waiter = waiters.reserve()
        waiter.await_end(job, seconds)
        return Client(waiter)

    return wait


@pytest.fixture
def without_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "_POLL_SECONDS", NEVER)


def free_places(waiters: Waiters) -> int:
    """The number of places that can be taken now; all are given back."""
    taken = []
    try:
        while True:
            taken.append(waiters.reserve())
    except NoFreeWaiter:
        return len(taken)
    finally:
        for waiter in taken:
            waiter.leave()


class TestPlaces:
    def test_only_so_many_may_wait(self, waiters: Waiters) -> None:
        for _ in range(PLACES):
            waiters.reserve()
        with pytest.raises(NoFreeWaiter) as refused:
            waiters.reserve()
        assert refused.value.retry_after >= 1

    def test_a_place_is_free_again_however_often_it_is_left(self, gate: Gate, waiters: Waiters) -> None:
        waiter = waiters.reserve()
        waiter.await_end(gate.accept().identity, NEVER)
        for _ in range(3):
            waiter.leave()
        assert free_places(waiters) == PLACES

    def test_the_end_of_a_wait_gives_its_place_back(
        self, gate: Gate, waiters: Waiters, waiting: Callable[..., Client]
    ) -> None:
        client = waiting(gate.accept().identity)
        assert free_places(waiters) == PLACES - 1
        gate.run_next()
        client.result()
        assert free_places(waiters) == PLACES

    def test_so_does_a_job_that_is_deleted(self, gate: Gate, waiters: Waiters, waiting: Callable[..., Client]) -> None:
        job = gate.accept()
        client = waiting(job.identity)
        gate.run_next()
        gate.table.deletion.delete(*job.identity)
        with pytest.raises(JobNotFound):
            client.result()
        assert free_places(waiters) == PLACES


class TestWait:
    def test_a_job_that_is_finished_is_noticed_by_looking(self, gate: Gate, waiting: Callable[..., Client]) -> None:
        client = waiting(gate.accept().identity)
        gate.run_next()
        assert client.result().status == "succeeded"

    @pytest.mark.usefixtures("without_polling")
    def test_a_notification_wakes_without_looking(
        self, gate: Gate, waiters: Waiters, waiting: Callable[..., Client]
    ) -> None:
        mine, other = gate.accept(), gate.accept()
        both, neighbour = [waiting(mine.identity), waiting(mine.identity)], waiting(other.identity)
        gate.run_next()
        waiters.finished(mine.identity)
        for client in both:
            assert client.result().identity == mine.identity
        assert not neighbour.woken.is_set()

    @pytest.mark.usefixtures("without_polling")
    def test_a_notification_from_before_the_wait_is_not_missed(
        self, gate: Gate, waiters: Waiters, waiting: Callable[..., Client]
    ) -> None:
        job = gate.accept()
        gate.run_next()
        waiters.finished(job.identity)
        assert waiting(job.identity).result().status == "succeeded"

    @pytest.mark.usefixtures("without_polling")
    def test_a_notification_is_no_proof(self, gate: Gate, waiters: Waiters, waiting: Callable[..., Client]) -> None:
        job = gate.accept()
        client = waiting(job.identity)
        waiters.finished(job.identity)
        assert client.woken.wait(DEADLINE)
        client.woken.clear()
        assert client.waiter.check() is None
        client.waiter.begin(client.woken.set)
        assert not client.woken.is_set()
        gate.run_next()
        waiters.finished(job.identity)
        assert client.result().status == "succeeded"

    def test_a_notification_for_nobody_does_no_harm(self, waiters: Waiters) -> None:
        waiters.finished(Identity("u9", "txt2img", "unknown"))

    def test_the_job_is_told_as_it_is_when_the_time_is_up(
        self, gate: Gate, waiters: Waiters, waiting: Callable[..., Client]
    ) -> None:
        client = waiting(gate.accept().identity, 0.0)
        job = client.waiter.check()
        assert job is not None
        assert job.status == "queued"
        assert free_places(waiters) == PLACES

    def test_no_patience_is_too_long(self, gate: Gate, waiting: Callable[..., Client]) -> None:
        client = waiting(gate.accept().identity, 1e12)
        assert client.waiter.deadline > threading.TIMEOUT_MAX / 2
        gate.run_next()
        assert client.result().finished

    def test_one_thread_serves_all(self, gate: Gate, waiting: Callable[..., Client]) -> None:
        before = threading.active_count()
        clients = [waiting(gate.accept().identity) for _ in range(3)]
        assert threading.active_count() == before + 1
        for _ in clients:
            gate.run_next()
        for client in clients:
            assert client.result().finished


class TestTrouble:
    def test_draining_lets_everybody_go_and_nobody_wait(
        self, gate: Gate, waiters: Waiters, waiting: Callable[..., Client]
    ) -> None:
        clients = [waiting(gate.accept().identity) for _ in range(2)]
        waiters.drain()
        clients.append(waiting(gate.accept().identity))
        assert [client.result().status for client in clients] == ["queued"] * 3

    def test_a_database_that_fails_for_a_while_only_delays(
        self, gate: Gate, sqlite: Database, waiting: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.05)
        job = gate.accept()
        client = waiting(job.identity)
        with sqlite.write() as connection:
            connection.execute(text("ALTER TABLE jobs RENAME TO hidden"))
        assert client.waiter.check() is None
        with sqlite.write() as connection:
            connection.execute(text("ALTER TABLE hidden RENAME TO jobs"))
        gate.run_next()
        assert client.result().finished

    def test_and_at_the_end_of_the_wait_it_is_told(
        self, gate: Gate, sqlite: Database, waiters: Waiters, waiting: Callable[..., Client]
    ) -> None:
        client = waiting(gate.accept().identity, 0.0)
        with sqlite.write() as connection:
            connection.execute(text("ALTER TABLE jobs RENAME TO hidden"))
        with pytest.raises(DatabaseUnavailable):
            client.waiter.check()
        with sqlite.write() as connection:
            connection.execute(text("ALTER TABLE hidden RENAME TO jobs"))
        assert free_places(waiters) == PLACES
