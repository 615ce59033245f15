"""Where waiting jobs stand and when they will end: the queue is played with each WebUI's own speed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.jobs import places as places_module
from app.jobs.model import Place
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import JobTable
from tests.inprocess import make_clean
from tests.jobs.conftest import BOUNDS, EVERYTHING, Gate, success_of

SMALL, LARGE = '{"model":"small"}', '{"model":"large"}'
ROOMY = BOUNDS.__class__(total=10_000, per_user=10_000)


@pytest.fixture
def slots(database: Database) -> Slots:
    """Three WebUIs that are up."""
    slots = Slots(database)
    keys = ["gpu0", "gpu1", "gpu2"]
    slots.register("host/one", "host", keys, only=True)
    make_clean(slots, *keys)
    for key in keys:
        slots.set_health(key, "up")
    return slots


@pytest.fixture
def measured(gate: Gate, table: JobTable) -> Callable[..., None]:
    """Let WebUIs have taken so many seconds for a unit of cost."""

    def measure(requirements: str = SMALL, **seconds: float) -> None:
        for slot, each in seconds.items():
            gate.accept("measure", requirements=requirements)
            claim = gate.claim(slot)
            table.answered(claim, each, None, EVERYTHING)
            table.succeed(claim, success_of(claim))

    return measure


def etas(table: JobTable, jobs) -> list[float | None]:
    found = table.queries.places(jobs)
    return [found[job.identity].eta for job in jobs]


class TestPlayed:
    def test_a_job_goes_to_the_webui_that_is_free_first(self, gate: Gate, table: JobTable, measured) -> None:
        measured(gpu0=1.0, gpu1=2.0, gpu2=4.0)
        jobs = [gate.accept(f"u{number}", cost=10.0, requirements=SMALL) for number in range(6)]
        # 10, 20 and 40 s each: the fast one takes three of six, and the slow one a single one.
        assert etas(table, jobs) == [10.0, 20.0, 40.0, 20.0, 30.0, 40.0]
        assert [table.queries.place(job) for job in jobs] == [
            Place(position, eta) for position, eta in enumerate((10.0, 20.0, 40.0, 20.0, 30.0, 40.0), 1)
        ]

    def test_it_begins_with_what_runs(self, gate: Gate, table: JobTable, measured, advance) -> None:
        measured(gpu0=1.0, gpu1=1.0, gpu2=1.0)
        for slot in ("gpu0", "gpu1", "gpu2"):
            gate.accept("u1", cost=30.0, requirements=SMALL)
            claim = gate.claim(slot)
            if slot == "gpu1":
                table.report(claim, 0.5, 9.0)
        advance(4.0)
        waiting = gate.accept("u1", cost=10.0, requirements=SMALL)
        # The WebUI's own estimate counts, where there is one; else 30 s less the four that have passed.
        assert table.queries.place(waiting).eta == pytest.approx(5.0 + 10.0, abs=0.5)

    def test_each_model_has_its_own_speed(self, gate: Gate, table: JobTable, slots: Slots, measured) -> None:
        for key in ("gpu1", "gpu2"):
            slots.set_health(key, "down")
        measured(SMALL, gpu0=1.0)
        measured(LARGE, gpu0=5.0)
        jobs = [gate.accept(f"u{need}", cost=10.0, requirements=need) for need in (SMALL, LARGE)]
        assert etas(table, jobs) == [10.0, 60.0]

    def test_only_webuis_that_are_up_count(self, gate: Gate, table: JobTable, slots: Slots, measured) -> None:
        measured(gpu0=1.0, gpu1=2.0, gpu2=4.0)
        slots.set_health("gpu0", "down")
        slots.set_health("gpu1", "down")
        jobs = [gate.accept(cost=10.0, requirements=SMALL) for _ in range(2)]
        assert etas(table, jobs) == [40.0, 80.0]

    def test_only_webuis_that_offer_what_the_job_needs_count(self, gate: Gate, table: JobTable, measured) -> None:
        measured(SMALL, gpu0=1.0, gpu1=1.0)
        measured(LARGE, gpu0=1.0, gpu1=1.0)
        table.queries.judge = lambda: lambda need: {"gpu1"} if need == LARGE else {"gpu0", "gpu1"}
        jobs = [gate.accept(f"u{n}", cost=10.0, requirements=need) for n, need in enumerate((LARGE, LARGE, SMALL))]
        # The third does not wait for the first two, which only one WebUI can make.
        assert etas(table, jobs) == [10.0, 20.0, 10.0]

    def test_a_job_that_was_claimed_since_it_was_read_is_the_first(self, gate: Gate, table: JobTable, measured) -> None:
        measured(gpu0=1.0)
        job = gate.accept(cost=10.0, requirements=SMALL)
        assert gate.claim() is not None
        assert job.status == "queued"
        place = table.queries.place(job)
        assert (place.position, place.eta) == (1, pytest.approx(10.0, abs=0.5))


class TestReasons:
    def waits(self, table: JobTable, job) -> tuple[float | None, str | None]:
        place = table.queries.place(job)
        return place.eta, place.waits_for

    def test_each_reason_is_told_and_the_time_is_unknown_then(
        self, gate: Gate, table: JobTable, slots: Slots, measured, database: Database, advance
    ) -> None:
        measured(gpu0=1.0)
        job = gate.accept(cost=10.0, requirements=SMALL)
        assert self.waits(table, job) == (10.0, None)
        table.queries.judge = lambda: lambda need: frozenset()
        assert self.waits(table, job) == (None, "model")
        for key in ("gpu0", "gpu1", "gpu2"):
            slots.set_health(key, "down")
        assert self.waits(table, job) == (None, "webui-down")
        advance(11.0)
        assert self.waits(table, job) == (None, "no-worker")
        assert places_module.ALIVE_SECONDS < 11.0


class TestLongQueues:
    def test_a_long_queue_is_reckoned_like_a_short_one(
        self, gate: Gate, table: JobTable, measured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured(gpu0=1.0, gpu1=2.0, gpu2=4.0)
        jobs = [gate.accept(f"u{number % 9}", cost=10.0, requirements=SMALL, bounds=ROOMY) for number in range(150)]
        last = max(jobs, key=lambda job: (job.start_tag, job.seq))
        played = table.queries.place(last)
        monkeypatch.setattr(places_module, "PLAYED", 0)
        summed = table.queries.place(last)
        assert summed.position == played.position == 150
        assert summed.eta == pytest.approx(played.eta, rel=0.05)

    def test_many_jobs_are_placed_in_one_pass_as_each_by_itself(self, gate: Gate, table: JobTable, measured) -> None:
        measured(gpu0=1.0, gpu1=2.0, gpu2=4.0)
        jobs = [gate.accept(f"u{number % 7}", cost=1.0 + number % 5, requirements=SMALL) for number in range(60)]
        together = table.queries.places(jobs[::3])
        assert together == {job.identity: table.queries.place(job) for job in jobs[::3]}
        assert sorted(place.position for place in table.queries.places(jobs).values()) == list(range(1, 61))
