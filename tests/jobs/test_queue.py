"""The queue as a whole: paused and resumed, and read page by page."""

from __future__ import annotations

import pytest

from app.jobs.queue import BEGINNING, Queue
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import JobTable
from tests.jobs.conftest import EVERYTHING, Gate, success_of


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


class TestPaused:
    def test_nothing_is_claimed_until_the_queue_is_resumed(self, gate: Gate, queue: Queue) -> None:
        assert queue.pause()
        job = gate.accept()
        assert gate.claim() is None
        assert queue.resume()
        assert gate.claim().job.seq == job.seq

    def test_an_answer_frees_the_slot_and_no_job_follows(self, gate: Gate, table: JobTable, queue: Queue) -> None:
        first, second = gate.accept(), gate.accept()
        claim = gate.claim()
        queue.pause()
        assert table.answered(claim, 1.0, "next task", EVERYTHING) is None
        assert table.succeed(claim, success_of(claim))
        assert table.queries.current(second.identity).status == "queued"
        queue.resume()
        assert gate.claim().job.seq == second.seq
        assert first.seq < second.seq

    def test_it_is_said_whether_anything_changed(self, queue: Queue) -> None:
        assert [queue.resume(), queue.pause(), queue.pause(), queue.paused()] == [False, True, False, True]
        assert [queue.resume(), queue.resume(), queue.paused()] == [True, False, False]

    def test_waiting_jobs_wait_for_it(self, gate: Gate, table: JobTable, slots: Slots, queue: Queue) -> None:
        slots.set_health("gpu0", "up")
        gate.accept()
        gate.run_next()
        job = gate.accept()
        assert table.queries.place(job).eta == 1.0
        queue.pause()
        place = table.queries.place(job)
        assert (place.position, place.eta, place.waits_for) == (1, None, "paused")


class TestPage:
    def test_an_empty_queue(self, queue: Queue, slots: Slots) -> None:
        page = queue.page(10)
        assert (list(page.running), list(page.waiting), page.count) == ([], [], 0)
        assert (page.oldest_wait, page.seconds_to_empty, page.paused, page.next) == (None, 0.0, False, None)

    def test_pages_follow_the_order_of_the_queue_and_survive_its_changes(self, gate: Gate, queue: Queue) -> None:
        for number in range(9):
            gate.accept(f"u{number % 4}", cost=1.0 + number % 3)
        seen, place = [], BEGINNING
        while place is not None:
            page = queue.page(2, place)
            seen += [entry.job for entry in page.waiting]
            place = page.next
        whole = queue.page(100)
        assert [entry.job for entry in whole.waiting] == seen
        assert [entry.place.position for entry in whole.waiting] == list(range(1, 10))
        first = queue.page(3)
        for _ in range(4):
            gate.run_next()
        # The jobs before the cursor are gone, and the one behind it too.
        assert [entry.job for entry in queue.page(3, first.next).waiting] == seen[4:7]

    def test_numbers_about_the_whole_queue(self, gate: Gate, table: JobTable, slots: Slots, queue: Queue) -> None:
        slots.set_health("gpu0", "up")
        gate.accept(cost=10.0)
        claim = gate.claim()
        table.answered(claim, 20.0, None, EVERYTHING)
        assert len(queue.page(9).running) == 1
        table.succeed(claim, success_of(claim))
        for _ in range(3):
            gate.accept(cost=10.0)
        running = gate.claim()
        page = queue.page(1)
        assert (page.count, len(page.running), len(page.waiting)) == (2, 1, 1)
        assert page.seconds_to_empty == pytest.approx(60.0, abs=1.0)
        [entry] = page.running
        assert (entry.job, entry.slot, entry.place.position) == (running.job.identity, "gpu0", None)
        assert page.oldest_wait is not None
        assert page.oldest_wait >= 0
