"""The worker over a real table, driving backends that do what a test tells them."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.jobs import slots as slots_module
from app.jobs.catalogues import Catalogues
from app.jobs.errors import DatabaseUnavailable
from app.jobs.events import Announcer, Transition
from app.jobs.leases import Lease
from app.jobs.model import Claim, Failure, Identity, Job, Success
from app.jobs.queries import JobQueries
from app.jobs.queue import Queue
from app.jobs.slots import Slots
from app.jobs.sql import database as database_module
from app.jobs.sql.database import Database
from app.jobs.table import MAX_ATTEMPTS, JobTable, Serving
from app.jobs.tables import Tables
from app.jobs.worker import timing
from app.jobs.worker.attempt import Attempt
from app.jobs.worker.backend import Answer, AttemptLost, BackendDown, Checked, LeaseLost, NotSent, Poll, Retry
from app.jobs.worker.election import HostLock
from app.jobs.worker.supervisor import Duties, Worker
from tests.inprocess import DEADLINE, hurry, make_clean, until
from tests.jobs.conftest import EVERYTHING, Gate, success_of

BROKEN = Failure("webui-disconnected", "It broke.")
FAILED = Failure("webui-error", "It failed.")
HOST = "host"


class ScriptedBackend:
    """A WebUI whose every answer waits until the test gives it; what was asked of it is written down."""

    def __init__(self, key: str = "gpu0") -> None:
        self.key = key
        self.name = key
        self.started: queue.Queue[Claim] = queue.Queue()
        self.replies: queue.Queue[Answer | Exception] = queue.Queue()
        self.verdicts: queue.Queue[Success | Failure | Retry | Exception] = queue.Queue()
        self.calls: list[str] = []
        self.quiesced: list[tuple[str | None, float]] = []
        self.discarded: list[int] = []
        self.polls = 0
        self.refreshes = 0
        self.down = threading.Event()
        self.refresh_error: Exception | None = None
        self.complete = True
        self.wrong = threading.Event()
        self.idle = True
        self.poll_answer: Poll | None = Poll(0.5, 3.0, idle=False)
        self.serves = EVERYTHING
        self.storing = threading.Semaphore(0)
        self.may_store = threading.Event()
        self.may_store.set()
        self.heeds_interrupt = True
        self.interrupt_is_answered = True
        self.prepared: Attempt | None = None
        self.broken = False

    def refresh(self) -> bool:
        self.refreshes += 1
        self.wrong.clear()
        if self.refresh_error is not None:
            raise self.refresh_error
        if self.down.is_set():
            raise BackendDown
        return self.complete

    def outdated(self) -> bool:
        return self.wrong.is_set()

    def serving(self, *, fresh: bool = True) -> Serving:
        return self.serves

    def knows(self, claim: Claim) -> bool:
        return True

    def quiesce(self, task_id: str | None, *, patience: float, stopping: threading.Event) -> bool:
        self.quiesced.append((task_id, patience))
        return self.idle

    def prepare(self, attempt: Attempt) -> None:
        self.prepared = attempt

    def cancel(self) -> None:
        self.prepared = None

    def generate(self, attempt: Attempt, on_sent: Callable[[], None]) -> Answer:
        on_sent()
        self.started.put(attempt.claim)
        reply = self.replies.get(timeout=DEADLINE * 2)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def needs_repair(self) -> bool:
        return self.broken

    def repair(self, lease: Lease) -> None:
        self.calls.append("repair")
        self.broken = False

    def poll(self, claim: Claim) -> Poll | None:
        self.polls += 1
        return self.poll_answer

    def interrupt(self, claim: Claim) -> bool:
        self.calls.append("interrupt")
        if self.heeds_interrupt:
            self.replies.put(Answer(ok=True, content="half a picture"))
        return self.interrupt_is_answered

    def abort(self) -> None:
        self.calls.append("abort")
        self.replies.put(AttemptLost(BROKEN))

    def check(self, claim: Claim, answer: Answer) -> Checked | Failure | Retry:
        return Checked(answer.content)

    def store(self, claim: Claim, checked: Checked) -> Success | Failure | Retry:
        self.calls.append("store")
        self.storing.release()
        assert self.may_store.wait(DEADLINE)
        verdict = success_of(claim) if self.verdicts.empty() else self.verdicts.get()
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    def discard(self, claim: Claim) -> None:
        self.discarded.append(claim.attempt)

    # -- what a test does --------------------------------------------------------------------------------------------

    def begins(self) -> Claim:
        return self.started.get(timeout=DEADLINE)

    def begins_nothing(self) -> None:
        """Assert that no generation begins for 0.15 s; a fault that needs longer to show would be missed, never invented."""
        with pytest.raises(queue.Empty):
            self.started.get(timeout=0.15)

    def answers(self, reply: Answer | Exception | None = None) -> None:
        self.replies.put(reply or Answer(ok=True, content="pictures"))

    def stores(self) -> None:
        """Wait until a result is being stored."""
        assert self.storing.acquire(timeout=DEADLINE)


class House:
    """A table, backends, and the workers that a test starts."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.table = JobTable(database)
        self.slots = Slots(database)
        self.catalogues = Catalogues(database)
        self.gate = Gate(self.table)
        self.told: queue.Queue[Identity] = queue.Queue()
        self.workers: list[Worker] = []
        self.backends: list[ScriptedBackend] = []
        self.tidied: list[str] = []
        self.upkeep: Callable[[], object] = list
        self.tidy: Callable[[], None] = lambda: self.tidied.append("tidy")

    def worker(self, *keys: str, host: str = HOST, lock: Path | None = None) -> Worker:
        """Start one; its backends are the last of :attr:`backends`."""
        backends = [ScriptedBackend(key) for key in keys or ("gpu0",)]
        self.backends += backends
        self._know([backend.key for backend in backends])
        tables = Tables(self.table, self.slots, self.catalogues, Queue(self.database))
        duties = Duties(lambda: backends, self.tidy, self.upkeep)
        announcer = Announcer([self._tell])
        worker = Worker(tables, host, duties, announcer, HostLock(lock) if lock is not None else None)
        self.workers.append(worker)
        worker.start()
        return worker

    def _tell(self, transition: Transition) -> None:
        if transition.is_end:
            self.told.put(transition.job.identity)

    def _know(self, keys: Sequence[str]) -> None:
        """Make the slots that are not there yet, clean as an earlier worker left them."""
        known = [{"key": key} for key in keys if self.slots.get(key) is None]
        with self.database.write() as connection:
            for slot in known:
                statement = "INSERT INTO slots (key, state, health, probed_at) VALUES (:key, 'clean', 'unknown', 0)"
                connection.execute(text(statement), slot)

    def start(self, *keys: str, **options: Any) -> ScriptedBackend:
        """Start a worker and wait until its first WebUI is up."""
        self.worker(*keys, **options)
        backend = self.backends[-len(keys or ("gpu0",))]
        until(lambda: (slot := self.slots.get(backend.key)) is not None and slot.health == "up")
        return backend

    def finished(self, job: Job) -> Job:
        until(lambda: self.table.queries.current(job.identity).finished, "the end of the job")
        return self.table.queries.current(job.identity)

    def sql(self, statement: str, **values: object) -> None:
        with self.database.write() as connection:
            connection.execute(text(statement), values)

    def slot(self, key: str = "gpu0") -> str:
        slot = self.slots.get(key)
        return slot.state if slot is not None else "gone"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(timing, "INTERRUPT_SECONDS", 0.3)


@pytest.fixture
def house(sqlite: Database, quick: None) -> Iterator[House]:
    house = House(sqlite)
    yield house
    for backend in house.backends:
        backend.may_store.set()
    for worker in house.workers:
        worker.drain(0)


class TestAttempt:
    def test_a_job_is_claimed_generated_stored_and_told(self, house: House) -> None:
        backend = house.start()
        job = house.gate.accept()
        claim = backend.begins()
        assert (claim.job.seq, claim.attempt, house.slot()) == (job.seq, 1, "held")
        backend.answers()
        assert house.told.get(timeout=DEADLINE) == job.identity
        assert house.table.queries.current(job.identity).status == "succeeded"
        assert house.slot() == "clean"

    def test_the_next_job_starts_while_the_last_one_is_stored(self, house: House) -> None:
        backend = house.start()
        backend.may_store.clear()
        first, second = house.gate.accept(), house.gate.accept()
        backend.begins()
        backend.answers()
        assert backend.begins().job.seq == second.seq
        assert house.table.queries.current(first.identity).phase == "storing"
        backend.may_store.set()
        backend.answers()
        assert {house.finished(first).status, house.finished(second).status} == {"succeeded"}

    def test_a_runner_waits_while_two_results_are_not_decoded(self, house: House) -> None:
        backend = house.start()
        backend.may_store.clear()
        jobs = [house.gate.accept() for _ in range(3)]
        for _ in range(2):
            backend.begins()
            backend.answers()
            backend.stores()
        backend.begins_nothing()
        assert house.table.queries.current(jobs[2].identity).status == "queued"
        assert house.slot() == "clean"
        backend.may_store.set()
        assert backend.begins().job.seq == jobs[2].seq
        backend.answers()
        house.finished(jobs[2])

    def test_storing_for_one_webui_holds_up_no_other(self, house: House) -> None:
        backend = house.start("gpu0", "gpu1")
        other = house.backends[1]
        backend.may_store.clear()
        jobs = [house.gate.accept() for _ in range(2)]
        by_seq = {one.begins().job.seq: one for one in (backend, other)}
        for one in (backend, other):
            one.answers()
        mine, others = sorted(jobs, key=lambda job: by_seq[job.seq] is other)
        assert house.finished(others).status == "succeeded"
        assert house.table.queries.current(mine.identity).status == "running"
        backend.may_store.set()
        house.finished(mine)

    def test_a_notification_starts_a_job_at_once(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timing, "CLAIM_POLL_SECONDS", 3600.0)
        backend = house.start()
        for _ in range(3):
            job = house.gate.accept()
            house.workers[0].wake()
            assert backend.begins().job.seq == job.seq
            backend.answers()
            house.finished(job)
            until(lambda: house.slot() == "clean")

    def test_only_what_the_webui_serves_is_sent(self, house: House) -> None:
        backend = house.start()
        backend.serves = Serving(1000, frozenset({1}))
        refused = house.gate.accept(requirements='{"model":"a"}')
        wanted = house.gate.accept(requirements='{"model":"b"}')
        assert backend.begins().job.seq == wanted.seq
        backend.answers()
        house.finished(wanted)
        assert house.table.queries.current(refused.identity).status == "queued"


class TestFailure:
    def test_a_connection_never_made_counts_nothing_and_keeps_the_place(self, house: House) -> None:
        backend = house.start()
        backend.down.set()
        first, second = house.gate.accept(), house.gate.accept()
        assert backend.begins().job.seq == first.seq
        backend.answers(NotSent())
        until(lambda: house.slots.get("gpu0").health == "down")
        kept = house.table.queries.current(first.identity)
        assert (kept.status, kept.attempts, kept.losses) == ("queued", 0, 0)
        assert house.table.queries.place(kept).position == 1
        assert house.slot() == "clean"
        backend.begins_nothing()
        backend.down.clear()
        for job in (first, second):
            assert backend.begins().job.seq == job.seq
            backend.answers()
        assert house.finished(first).attempts == 0
        assert backend.quiesced == []

    def test_a_lost_attempt_leaves_a_slot_that_is_quiesced_before_the_next(self, house: House) -> None:
        backend = house.start()
        job = house.gate.accept()
        lost = backend.begins()
        backend.answers(AttemptLost(BROKEN))
        again = backend.begins()
        assert [task for task, _ in backend.quiesced] == [lost.task_id]
        assert (again.attempt, again.job.attempts) == (2, 1)
        assert again.task_id != lost.task_id
        backend.answers()
        assert house.finished(job).status == "succeeded"

    @pytest.mark.parametrize(
        ("reply", "slug"),
        [(AttemptLost(BROKEN), "webui-disconnected"), (LookupError("a bug"), "internal-error")],
        ids=["lost", "unexpected"],
    )
    def test_attempts_that_end_without_an_answer_are_limited(self, house: House, reply: Exception, slug: str) -> None:
        backend = house.start()
        job = house.gate.accept()
        for _ in range(MAX_ATTEMPTS):
            backend.begins()
            backend.answers(reply)
        assert house.told.get(timeout=DEADLINE) == job.identity
        failed = house.table.queries.current(job.identity)
        assert (failed.status, failed.error_slug, failed.attempts) == ("failed", slug, MAX_ATTEMPTS)
        assert "a bug" not in failed.error_detail
        until(lambda: house.slot() == "clean")
        assert len(backend.quiesced) == MAX_ATTEMPTS

    def test_a_final_failure_is_kept_and_told(self, house: House) -> None:
        backend = house.start()
        backend.verdicts.put(FAILED)
        job = house.gate.accept()
        backend.begins()
        backend.answers(Answer(ok=False, content=None))
        assert house.told.get(timeout=DEADLINE) == job.identity
        failed = house.table.queries.current(job.identity)
        assert (failed.error_slug, failed.error_detail, failed.attempts) == ("webui-error", "It failed.", 1)

    def test_a_retry_is_another_attempt_and_wakes_no_waiter(self, house: House) -> None:
        backend = house.start()
        backend.verdicts.put(Retry(FAILED, one_by_one=True))
        job = house.gate.accept()
        backend.begins()
        backend.answers(Answer(ok=False, content=None))
        again = backend.begins()
        assert (again.attempt, again.job.attempts, again.job.one_by_one) == (2, 1, True)
        assert house.told.empty()
        backend.answers()
        assert house.told.get(timeout=DEADLINE) == job.identity
        assert backend.quiesced == []

    def test_the_last_retry_allowed_ends_the_job(self, house: House) -> None:
        backend = house.start()
        job = house.gate.accept()
        for _ in range(MAX_ATTEMPTS):
            backend.verdicts.put(Retry(FAILED))
            backend.begins()
            backend.answers(Answer(ok=False, content=None))
        assert house.told.get(timeout=DEADLINE) == job.identity
        assert house.table.queries.current(job.identity).error_slug == "webui-error"

    def test_a_result_that_can_not_be_stored_is_an_honest_error(self, house: House) -> None:
        backend = house.start()
        backend.verdicts.put(OSError("/secret/path is full"))
        job = house.gate.accept()
        backend.begins()
        backend.answers()
        failed = house.finished(job)
        assert failed.error_slug == "internal-error"
        assert "secret" not in failed.error_detail

    def test_a_database_that_is_away_while_a_result_is_stored_costs_no_picture(self, house: House) -> None:
        backend = house.start()
        backend.verdicts.put(DatabaseUnavailable())
        job = house.gate.accept()
        backend.begins()
        backend.answers()
        assert house.finished(job).status == "succeeded"

    def test_only_results_tell_how_fast_a_webui_is(self, house: House) -> None:
        backend = house.start()
        backend.verdicts.put(FAILED)
        for ok in (False, True):
            job = house.gate.accept()
            backend.begins()
            backend.answers(Answer(ok=ok, content=None))
            house.finished(job)
            with house.database.read() as connection:
                measured = connection.execute(text("SELECT count(*) FROM speeds")).scalar_one()
            assert (measured > 0) is ok


class TestQuiescing:
    def test_a_webui_that_does_not_become_idle_is_suspect_and_quiesced_again(self, house: House) -> None:
        backend = house.start()
        backend.idle = False
        job = house.gate.accept()
        lost = backend.begins()
        backend.answers(AttemptLost(BROKEN))
        until(lambda: len(backend.quiesced) >= 3)
        assert backend.quiesced[0] == (lost.task_id, timing.STUCK_SECONDS)
        assert set(backend.quiesced[1:]) == {(lost.task_id, 0.0)}
        assert house.table.queries.current(job.identity).status == "queued"
        backend.idle = True
        backend.begins()
        backend.answers()
        assert house.finished(job).attempts == 1

    def test_quiescing_that_fails_leaves_the_slot_suspect(
        self, house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = house.start()
        failing = threading.Event()
        failing.set()

        def quiesce(_task: str | None, **_: Any) -> bool:
            if failing.is_set():
                raise LookupError("a bug")
            return True

        monkeypatch.setattr(backend, "quiesce", quiesce)
        job = house.gate.accept()
        backend.begins()
        backend.answers(AttemptLost(BROKEN))
        until(lambda: house.slot() == "suspect")
        until(lambda: "the runner of WebUI gpu0 failed" in caplog.text)
        failing.clear()
        backend.begins()
        backend.answers()
        house.finished(job)

    def test_a_slot_that_another_worker_quiesces_is_left_to_it(self, house: House) -> None:
        house.slots.register("other/one", "other", ["gpu0"], only=False)
        house.sql("UPDATE slots SET state = 'quiescing', owner = 'other/one', lease_expires = 9e9")
        backend = house.start()
        job = house.gate.accept()
        backend.begins_nothing()
        assert backend.quiesced == []
        house.slots.end_quiescing("gpu0", "other/one", "clean")
        backend.begins()
        backend.answers()
        house.finished(job)


class CountingQueries(JobQueries):
    """Counts how often the monitor asked whether anybody watches the job."""

    asked = 0

    def seconds_since_watched(self, claim: Claim) -> float | None:
        self.asked += 1
        return super().seconds_since_watched(claim)


class TestMonitor:
    @pytest.fixture
    def house(self, sqlite: Database, quick: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
        house = House(sqlite)
        house.table = JobTable(sqlite)
        house.table.queries = self.queries = CountingQueries(sqlite)
        house.gate = Gate(house.table)
        yield house
        for worker in house.workers:
            worker.drain(0)

    def await_monitor(self, house: House, times: int = 5) -> None:
        """Wait until the monitor has come round so often."""
        before = self.queries.asked
        until(lambda: self.queries.asked >= before + times)

    def test_a_webui_whose_job_nobody_watches_is_not_polled(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "UNWATCHED_POLL_SECONDS", 3600.0)
        backend = house.start()
        job = house.gate.accept()
        claim = backend.begins()
        self.await_monitor(house)
        assert backend.polls == 0
        house.table.watched(claim.job)
        until(lambda: backend.polls >= 3)
        until(lambda: house.table.queries.current(job.identity).progress == 0.5)
        assert house.table.queries.place(house.table.queries.current(job.identity)).eta == pytest.approx(3.0, abs=1.0)
        house.sql("UPDATE jobs SET watched_at = watched_at - 60")
        self.await_monitor(house)
        before = backend.polls
        self.await_monitor(house)
        assert backend.polls == before
        backend.answers()
        house.finished(job)

    def test_an_unwatched_job_is_polled_now_and_then_and_nothing_is_written(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "UNWATCHED_POLL_SECONDS", 0.05)
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        until(lambda: backend.polls >= 3)
        assert house.table.queries.current(job.identity).progress == 0.0
        backend.answers()
        house.finished(job)

    def test_a_webui_that_does_not_say_changes_nothing(self, house: House) -> None:
        backend = house.start()
        backend.poll_answer = None
        job = house.gate.accept()
        claim = backend.begins()
        house.table.watched(claim.job)
        until(lambda: backend.polls >= 3)
        assert house.table.queries.current(job.identity).progress == 0.0
        backend.answers()
        house.finished(job)

    def test_one_that_owes_an_answer_but_is_idle_for_long_is_given_up(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "UNWATCHED_POLL_SECONDS", 0.02)
        monkeypatch.setattr(timing, "STUCK_SECONDS", 0.2)
        backend = house.start()
        backend.poll = lambda claim: Poll(1.0, None, idle=claim.attempt == 1)
        job = house.gate.accept()
        backend.begins()
        again = backend.begins()
        assert backend.calls == ["abort"]
        assert (again.attempt, again.job.attempts) == (2, 1)
        backend.answers()
        assert house.finished(job).status == "succeeded"

    def test_one_that_answers_is_never_given_up_however_often_it_was_seen_idle(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fast generations whose pictures take long to encode: each poll may fall into that time, of another job."""
        monkeypatch.setattr(timing, "UNWATCHED_POLL_SECONDS", 0.0)
        monkeypatch.setattr(timing, "STUCK_SECONDS", 0.0)
        backend = house.start()
        seen: set[int] = set()

        def idle_once(claim: Claim) -> Poll | None:
            if claim.job.seq in seen:
                return None
            seen.add(claim.job.seq)
            return Poll(1.0, None, idle=True)

        monkeypatch.setattr(backend, "poll", idle_once)
        jobs = [house.gate.accept() for _ in range(8)]
        for job in jobs:
            backend.begins()
            until(lambda seq=job.seq: seq in seen)
            self.await_monitor(house, 2)
            backend.answers()
            until(lambda job=job: house.table.queries.current(job.identity).phase != "generating")
        assert [house.finished(job).attempts for job in jobs] == [0] * len(jobs)
        assert "abort" not in backend.calls

    def test_one_that_works_is_never_given_up(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timing, "UNWATCHED_POLL_SECONDS", 0.0)
        monkeypatch.setattr(timing, "STUCK_SECONDS", 0.0)
        backend = house.start()
        answers = iter([Poll(0.0, None, idle=True), *[Poll(0.1, None, idle=False), Poll(1.0, None, idle=True)] * 50])
        monkeypatch.setattr(backend, "poll", lambda _claim: next(answers, Poll(0.1, None, idle=False)))
        job = house.gate.accept()
        backend.begins()
        self.await_monitor(house, 12)
        assert backend.calls == []
        backend.answers()
        house.finished(job)

    def test_the_catalogue_is_refreshed_now_and_then(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timing, "REFRESH_SECONDS", 0.0)
        backend = house.start()
        until(lambda: backend.refreshes >= 3)

    def test_one_that_is_up_is_not_asked_all_the_time(self, house: House) -> None:
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        self.await_monitor(house)
        assert backend.refreshes == 1
        backend.answers()
        house.finished(job)

    def test_one_without_a_default_model_is_asked_until_there_is_one(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "FRESH_SECONDS", 0.0)
        house.worker("gpu0")
        [backend] = house.backends
        backend.complete = False
        until(lambda: backend.refreshes >= 3)
        backend.complete = True
        job = house.gate.accept()
        backend.begins()
        self.await_monitor(house)
        before = backend.refreshes
        self.await_monitor(house)
        assert backend.refreshes == before
        backend.answers()
        house.finished(job)

    def test_a_wrong_answer_and_a_wish_of_anybody_are_reasons_to_ask_again(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "REFRESH_AGAIN_SECONDS", 0.0)
        backend = house.start()
        before = backend.refreshes
        backend.wrong.set()
        until(lambda: backend.refreshes > before)
        until(lambda: not backend.wrong.is_set())
        house.catalogues.put("gpu0", "a", house.catalogues.now() - 1)
        before = backend.refreshes
        house.catalogues.want_refresh()
        until(lambda: backend.refreshes > before)

    def test_neither_is_answered_at_once_where_it_was_asked_lately(self, house: House) -> None:
        backend = house.start()
        backend.wrong.set()
        house.catalogues.want_refresh()
        house.workers[-1].refresh_soon()
        job = house.gate.accept()
        backend.begins()
        self.await_monitor(house)
        assert backend.refreshes == 1
        backend.answers()
        house.finished(job)

    def test_a_notification_is_heard_before_the_next_second(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "POLL_SECONDS", DEADLINE * 10)
        backend = house.start()
        monkeypatch.setattr(timing, "REFRESH_AGAIN_SECONDS", 0.0)
        house.catalogues.want_refresh()

        def heard() -> bool:
            # It may have been on its way to sleep.
            house.workers[-1].refresh_soon()
            return backend.refreshes >= 2

        until(heard)

    def test_a_silent_one_is_probed_by_one_process_only(self, house: House) -> None:
        backend = house.start()
        backend.down.set()
        house.gate.accept()
        backend.begins()
        backend.answers(NotSent())
        until(lambda: house.slots.get("gpu0").health == "down")
        house.sql("UPDATE slots SET probed_at = probed_at + 1000")  # the future counts as long ago
        until(lambda: backend.refreshes >= 3)

    def test_one_that_goes_down_between_jobs_is_noticed(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timing, "REFRESH_SECONDS", 0.0)
        backend = house.start()
        backend.down.set()
        until(lambda: house.slots.get("gpu0").health == "down")
        backend.down.clear()
        until(lambda: house.slots.get("gpu0").health == "up")

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (LookupError("a bug"), "what WebUI gpu0 offers can't be read"),
            (DatabaseUnavailable(), "the database is unavailable"),
        ],
    )
    def test_it_outlives_what_nobody_expected(
        self,
        house: House,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        words: str,
    ) -> None:
        monkeypatch.setattr(timing, "REFRESH_SECONDS", 0.0)
        monkeypatch.setattr(slots_module, "PROBE_SECONDS", 0.0)
        backend = house.start()
        backend.refresh_error = error
        until(lambda: words in caplog.text)
        before, backend.refresh_error = backend.refreshes, None
        until(lambda: backend.refreshes > before)


class TestDrain:
    def test_what_runs_may_finish_in_time(self, house: House) -> None:
        backend = house.start()
        running, waiting = house.gate.accept(), house.gate.accept()
        backend.begins()
        with ThreadPoolExecutor(1) as pool:
            drained = pool.submit(house.workers[0].drain, DEADLINE)
            backend.answers()
            drained.result(DEADLINE)
        assert house.table.queries.current(running.identity).status == "succeeded"
        assert house.table.queries.current(waiting.identity).status == "queued"
        assert backend.calls == ["store"]
        assert house.slot() == "clean"

    def test_a_half_picture_is_thrown_away_and_the_job_goes_back_uncounted(self, house: House) -> None:
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        house.workers[0].drain(0)
        kept = house.table.queries.current(job.identity)
        assert (kept.status, kept.attempts, kept.losses) == ("queued", 0, 0)
        assert backend.calls == ["interrupt"]
        assert house.slot() == "clean"

    def test_a_webui_that_does_not_stop_is_left_to_the_next_worker(self, house: House) -> None:
        backend = house.start()
        backend.heeds_interrupt = False
        job = house.gate.accept()
        claim = backend.begins()
        house.workers[0].drain(0)
        kept = house.table.queries.current(job.identity)
        assert (kept.status, kept.attempts, kept.losses) == ("queued", 0, 0)
        assert backend.calls[-1] == "abort"
        assert set(backend.calls[:-1]) == {"interrupt"}
        assert house.slot() == "unclean"
        assert house.slots.get("gpu0").task_id == claim.task_id
        successor = house.start()
        successor.begins()
        assert [task for task, _ in successor.quiesced] == [claim.task_id]
        successor.answers()
        assert house.finished(job).attempts == 0

    def test_an_attempt_lost_while_draining_is_not_counted(self, house: House) -> None:
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        backend.heeds_interrupt = False
        backend.interrupt = lambda _claim: backend.answers(AttemptLost(BROKEN))
        house.workers[0].drain(0)
        kept = house.table.queries.current(job.identity)
        assert (kept.status, kept.attempts) == ("queued", 0)
        assert house.slot() == "unclean"

    def test_a_result_that_is_being_stored_is_waited_for(self, house: House) -> None:
        backend = house.start()
        backend.may_store.clear()
        job = house.gate.accept()
        backend.begins()
        backend.answers()
        backend.stores()
        with ThreadPoolExecutor(1) as pool:
            drained = pool.submit(house.workers[0].drain, DEADLINE)
            assert not drained.done()
            backend.may_store.set()
            drained.result(DEADLINE)
        assert house.table.queries.current(job.identity).status == "succeeded"

    def test_no_job_is_taken_after_that(self, house: House) -> None:
        backend = house.start()
        house.workers[0].stop_claiming()
        job = house.gate.accept()
        house.workers[0].wake()
        backend.begins_nothing()
        assert house.table.queries.current(job.identity).status == "queued"


class TestElection:
    def test_one_works_and_the_next_takes_over(self, house: House, tmp_path: Path) -> None:
        first = house.start(lock=tmp_path / "lock")
        house.worker(lock=tmp_path / "lock")
        job = house.gate.accept()
        first.begins()
        assert house.backends[1].refreshes == 0
        first.answers()
        house.finished(job)
        house.workers[0].drain(DEADLINE)
        second = house.backends[1]
        job = house.gate.accept()
        assert second.begins().job.seq == job.seq
        second.answers()
        house.finished(job)

    def test_what_a_dead_process_of_the_host_held_is_freed_at_once(self, house: House, tmp_path: Path) -> None:
        house.slots.register(f"{HOST}/dead", HOST, ["gpu0"], only=True)
        make_clean(house.slots, "gpu0")
        job = house.gate.accept()
        dead = house.gate.claim(owner=f"{HOST}/dead", task="orphan")
        assert dead is not None
        backend = house.start(lock=tmp_path / "lock")
        again = backend.begins()
        assert (again.job.seq, again.job.losses, again.job.attempts) == (job.seq, 1, 0)
        assert [task for task, _ in backend.quiesced] == ["orphan"]
        backend.answers()
        house.finished(job)

    def test_a_process_that_stopped_while_it_waited_never_keeps_the_lock(self, house: House, tmp_path: Path) -> None:
        house.start(lock=tmp_path / "lock")
        waiting = house.worker(lock=tmp_path / "lock")
        waiting.drain(DEADLINE)
        house.workers[0].drain(DEADLINE)
        house.start(lock=tmp_path / "lock")
        assert house.backends[1].refreshes == 0

    def test_a_folder_that_can_not_be_used_yet_is_tried_again(
        self, house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        place = tmp_path / "data"
        place.touch()
        house.worker(lock=place / "lock")
        until(lambda: "lock file can't be used" in caplog.text)
        place.unlink()
        until(lambda: house.backends[0].refreshes)

    def test_stopping_before_being_elected_is_possible(self, house: House, tmp_path: Path) -> None:
        place = tmp_path / "data"
        place.touch()
        worker = house.worker(lock=place / "lock")
        worker.drain(0)
        assert house.backends[0].refreshes == 0


class TestTwoWorkers:
    def test_two_external_workers_share_no_slot(self, house: House) -> None:
        one = house.start("gpu0", host="a")
        two = house.start("gpu0", host="b")
        jobs = [house.gate.accept() for _ in range(6)]
        for _ in jobs:
            until(lambda: one.started.qsize() + two.started.qsize() > 0)
            assert one.started.qsize() + two.started.qsize() == 1
            busy = one if one.started.qsize() else two
            busy.begins()
            (two if busy is one else one).begins_nothing()
            busy.answers()
        assert {house.finished(job).status for job in jobs} == {"succeeded"}

    def test_the_late_answer_of_a_lost_lease_is_thrown_away(self, house: House) -> None:
        loser = house.start("gpu0", host="a")
        job = house.gate.accept()
        loser.begins()
        # The loser's process stood still: its lease ran out, and somebody noticed.
        house.sql("UPDATE jobs SET lease_expires = 0, owner = 'a/still'")
        house.sql("UPDATE slots SET lease_expires = 0, owner = 'a/still'")
        until(lambda: house.table.queries.current(job.identity).losses == 1)
        assert house.slot() in ("unclean", "quiescing", "clean")
        winner = house.start("gpu1", host="b")
        again = winner.begins()
        assert (again.job.seq, again.attempt) == (job.seq, 2)
        loser.answers()
        [runner] = house.workers[0]._runners
        until(lambda: not runner.attempts.unstored_task_ids())
        assert loser.calls == []
        assert not loser.storing.acquire(blocking=False)
        assert house.table.queries.current(job.identity).status == "running"
        winner.answers()
        assert house.finished(job).claims == 2
        assert house.told.get(timeout=DEADLINE) == job.identity
        assert house.told.empty()
        assert (loser.discarded, winner.discarded) == ([], [])


class TestCancel:
    """A running job is cancelled, or deleted, at each point of its attempt."""

    WAYS = ("cancelled", "deleted")

    @staticmethod
    def end(house: House, way: str, job: Job) -> None:
        if way == "deleted":
            house.table.deletion.delete(*job.identity)
        else:
            house.table.cancellation.cancel(job.identity)
        house.workers[0].renew_soon()

    @staticmethod
    def ended(house: House, way: str, job: Job) -> None:
        """As it was meant, once, and its claim is over."""
        until(lambda: house.table.revisions.latest([job.identity])[job.identity].status == way)
        [runner] = house.workers[0]._runners
        until(lambda: not runner.attempts.unstored_task_ids() and runner.attempts.running is None)
        until(lambda: house.slot() == "clean")
        with house.database.read() as connection:
            assert connection.execute(text("SELECT owner, slot, phase FROM jobs")).all() == [(None, None, None)]
            assert connection.execute(text("SELECT unfinished FROM clock")).scalar_one() == 0

    @pytest.mark.parametrize("way", WAYS)
    def test_while_it_is_made_it_is_interrupted_and_its_reply_thrown_away(self, house: House, way: str) -> None:
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        self.end(house, way, job)
        self.ended(house, way, job)
        assert "store" not in backend.calls
        assert set(backend.calls) == {"interrupt"}

    @pytest.mark.parametrize("way", WAYS)
    def test_the_log_says_why_an_answer_is_not_stored(
        self, house: House, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        # The answer comes before the worker learns that nobody wants it.
        monkeypatch.setattr(timing, "HEARTBEAT_SECONDS", 60.0)
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        with caplog.at_level(logging.INFO):
            if way == "deleted":
                house.table.deletion.delete(*job.identity)
            else:
                house.table.cancellation.cancel(job.identity)
            backend.answers()
            self.ended(house, way, job)
            told = "was deleted; its answer is not stored" if way == "deleted" else "event=cancelled"
            until(lambda: told in caplog.text)
        assert "was lost" not in caplog.text
        assert backend.calls == []

    @pytest.mark.parametrize("way", WAYS)
    def test_an_interrupt_is_repeated_until_the_reply(self, house: House, way: str) -> None:
        backend = house.start()
        backend.heeds_interrupt = False
        job = house.gate.accept()
        backend.begins()
        self.end(house, way, job)
        until(lambda: backend.calls.count("interrupt") >= 3)
        assert house.slot() == "held"
        backend.answers()
        self.ended(house, way, job)
        assert "store" not in backend.calls

    @pytest.mark.parametrize("way", WAYS)
    def test_an_interrupt_without_an_answer_leaves_a_slot_that_is_quiesced(self, house: House, way: str) -> None:
        """It may still arrive, and hit the next job."""
        backend = house.start()
        backend.interrupt_is_answered = False
        job = house.gate.accept()
        claim = backend.begins()
        self.end(house, way, job)
        self.ended(house, way, job)
        assert [task for task, _ in backend.quiesced] == [claim.task_id]

    @pytest.mark.parametrize("way", WAYS)
    def test_after_the_reply_its_files_are_removed(self, house: House, way: str) -> None:
        backend = house.start()
        backend.may_store.clear()
        job = house.gate.accept()
        backend.begins()
        backend.answers()
        backend.stores()
        self.end(house, way, job)
        backend.may_store.set()
        self.ended(house, way, job)
        assert (backend.calls, backend.discarded) == (["store"], [1])

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(
        "reply", [NotSent("no connection"), AttemptLost(BROKEN), LeaseLost(), RuntimeError("a bug")], ids=repr
    )
    def test_without_a_reply_it_is_not_tried_again(self, house: House, way: str, reply: Exception) -> None:
        backend = house.start()
        backend.heeds_interrupt = False
        job = house.gate.accept()
        backend.begins()
        self.end(house, way, job)
        until(lambda: "interrupt" in backend.calls)
        backend.answers(reply)
        self.ended(house, way, job)
        assert backend.started.empty()

    @pytest.mark.parametrize(
        "verdict", [Failure("webui-error", "x"), Retry(Failure("webui-error", "x"), one_by_one=True)]
    )
    def test_a_verdict_that_comes_too_late_changes_nothing(self, house: House, verdict: Failure | Retry) -> None:
        backend = house.start()
        backend.may_store.clear()
        backend.verdicts.put(verdict)
        job = house.gate.accept()
        backend.begins()
        backend.answers()
        backend.stores()
        self.end(house, "cancelled", job)
        backend.may_store.set()
        self.ended(house, "cancelled", job)
        assert backend.started.empty()

    def test_before_its_request_is_complete_nothing_is_sent(self, house: House) -> None:
        """What is asked before the last byte of a request."""
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        [runner] = house.workers[0]._runners
        attempt = runner.attempts.running
        assert attempt.may_complete()
        self.end(house, "cancelled", job)
        until(lambda: not attempt.may_complete())

    def test_the_next_job_is_not_hit(self, house: House) -> None:
        backend = house.start()
        first, second = house.gate.accept(), house.gate.accept()
        backend.begins()
        self.end(house, "cancelled", first)
        assert backend.begins().job.seq == second.seq
        interrupts = backend.calls.count("interrupt")
        house.workers[0].renew_soon()
        backend.begins_nothing()
        assert backend.calls.count("interrupt") == interrupts
        backend.answers()
        assert house.finished(second).status == "succeeded"
        assert house.finished(first).status == "cancelled"

    def test_its_end_is_announced_once(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        self.end(house, "cancelled", job)
        assert house.told.get(timeout=DEADLINE) == job.identity
        self.ended(house, "cancelled", job)
        until(lambda: "event=cancelled" in caplog.text)
        assert caplog.text.count("event=cancelled") == 1
        assert house.told.empty()


class TestRestoredDatabase:
    """While a worker holds a job, the database is restored from an older dump, or a replica that lagged behind takes over."""

    ANOTHER_JOB = "UPDATE jobs SET user_id = 'bob', name = 'another'"
    #: After a lost lease, for comparison.
    NEXT_CLAIM = "UPDATE jobs SET task_id = 'another', claims = 2"
    ANOTHER_CLAIM = "UPDATE jobs SET task_id = 'another'"

    @pytest.mark.parametrize("change", [ANOTHER_JOB, ANOTHER_CLAIM, "DELETE FROM jobs"])
    def test_the_answer_to_a_lost_claim_is_not_stored(
        self, house: House, change: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        house.sql(change)
        backend.answers()
        until(lambda: f"the claim of job {job.name} was lost" in caplog.text)
        assert not backend.storing.acquire(blocking=False)
        assert backend.discarded == []
        assert house.table.queries.of_user("bob", None, 9, None) == house.table.queries.of_user(
            "bob", "running", 9, None
        )

    @pytest.mark.parametrize(
        ("change", "discarded"),
        [(ANOTHER_JOB, [1]), ("DELETE FROM jobs", [1]), (NEXT_CLAIM, [1]), (ANOTHER_CLAIM, [])],
    )
    def test_files_that_were_written_before_are_removed_unless_they_may_be_another_claims(
        self, house: House, change: str, discarded: list[int]
    ) -> None:
        backend = house.start()
        backend.may_store.clear()
        house.gate.accept()
        backend.begins()
        backend.answers()
        backend.stores()
        house.sql(change)
        backend.may_store.set()
        [runner] = house.workers[0]._runners
        until(lambda: not runner.attempts.unstored_task_ids())
        assert backend.discarded == discarded
        assert house.table.queries.of_user("bob", None, 9, None) == house.table.queries.of_user(
            "bob", "running", 9, None
        )

    def test_a_job_that_it_stores_by_the_row_alone_goes_back_to_the_queue(self, house: House) -> None:
        """The dump is of a moment when it was stored; its own heartbeats would keep it for ever."""
        rounds: list[float] = []
        house.upkeep = lambda: rounds.append(time.monotonic())
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        backend.may_store.clear()
        backend.answers()
        backend.stores()
        stored = house.table.queries.current(job.identity)
        assert stored.phase == "storing"
        # Upkeep comes by while it really is stored.
        before = len(rounds)
        until(lambda: len(rounds) >= before + 2)
        assert house.table.queries.current(job.identity).claims == 1
        backend.may_store.set()
        house.finished(job)
        house.sql(
            "UPDATE jobs SET status = 'running', phase = 'storing', owner = :owner, slot = 'gpu0', lease_expires = 9e9,"
            " images = NULL",
            owner=stored.owner,
        )
        for table in ("clock", "users"):
            house.sql(f"UPDATE {table} SET unfinished = 1")
        backend.begins()
        backend.answers()
        assert house.finished(job).losses == 1


class TestUpkeep:
    @pytest.mark.parametrize(
        ("error", "words"),
        [(LookupError("a bug"), "the worker's upkeep failed"), (DatabaseUnavailable(), "the database is unavailable")],
    )
    def test_it_goes_on_after_trouble(
        self, house: House, caplog: pytest.LogCaptureFixture, error: Exception, words: str
    ) -> None:
        trouble, done = iter([error]), threading.Event()

        def upkeep() -> None:
            for each in trouble:
                raise each
            done.set()

        house.upkeep = upkeep
        house.start()
        assert done.wait(DEADLINE)
        assert words in caplog.text

    def test_files_of_deletions_are_tidied_before_anything_else(self, house: House) -> None:
        backend = house.start()
        assert house.tidied == ["tidy"]
        house.gate.accept()
        backend.begins()
        backend.answers()

    @pytest.mark.parametrize("error", [DatabaseUnavailable(), OSError("no such device")])
    def test_a_start_that_fails_is_tried_again(self, house: House, error: Exception) -> None:
        trouble = iter([error])

        def tidy() -> None:
            for each in trouble:
                raise each
            house.tidied.append("tidy")

        house.tidy = tidy
        house.start()
        assert house.tidied == ["tidy"]

    def test_a_start_that_never_works_can_be_stopped(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        def tidy() -> None:
            raise OSError("no such device")

        house.tidy = tidy
        worker = house.worker()
        until(lambda: "the worker can't begin" in caplog.text)
        worker.drain(0)
        until(lambda: not worker._supervisor.is_alive())

    def test_a_worker_that_the_table_forgot_registers_again(self, house: House) -> None:
        house.start()
        house.sql("DELETE FROM workers")
        until(lambda: house.slots.configured() == ["gpu0"])

    def test_leases_are_renewed(self, house: House) -> None:
        backend = house.start()
        house.gate.accept()
        backend.begins()
        house.sql("UPDATE jobs SET lease_expires = lease_expires - 5")
        house.sql("UPDATE slots SET lease_expires = lease_expires - 5")

        def left(table: str) -> float:
            now = "((julianday('now') - 2440587.5) * 86400.0)"
            with house.database.read() as connection:
                return connection.execute(text(f"SELECT lease_expires - {now} FROM {table}")).scalar_one()

        until(lambda: left("jobs") > 9 and left("slots") > 9)
        backend.answers()

    def test_the_heartbeat_goes_on_after_an_unexpected_error(
        self, house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        errors = iter([LookupError("a bug"), DatabaseUnavailable()])
        heartbeat = house.slots.heartbeat

        def failing(owner: str) -> bool:
            for error in errors:
                raise error
            return heartbeat(owner)

        monkeypatch.setattr(house.slots, "heartbeat", failing)
        house.start()
        until(
            lambda: (
                "unavailable; leases were not renewed" in caplog.text and "the leases were not renewed" in caplog.text
            )
        )
        house.sql("UPDATE workers SET heartbeat_at = 0")
        until(house.slots.worker_alive)


class TestDatabaseTrouble:
    @pytest.fixture
    def house(
        self, migrated_sqlite: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[House]:
        """A worker whose database waits for a lock for 0.05 s only."""
        monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.05)
        path = tmp_path / "gateway.db"
        path.write_bytes(migrated_sqlite.read_bytes())
        database = Database(f"sqlite:///{path}")
        house = House(database)
        yield house
        for worker in house.workers:
            worker.drain(0)
        database.close()

    @pytest.fixture
    def lock(self, house: House) -> Iterator[sqlite3.Connection]:
        """Another process that may hold the write lock."""
        connection = sqlite3.connect(house.database.url.database, timeout=DEADLINE, isolation_level=None)
        yield connection
        connection.close()

    @pytest.mark.parametrize("reply", [None, AttemptLost(BROKEN)], ids=["answered", "lost"])
    def test_an_end_that_can_not_be_written_is_written_later(
        self, house: House, lock: sqlite3.Connection, caplog: pytest.LogCaptureFixture, reply: Exception | None
    ) -> None:
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        lock.execute("BEGIN IMMEDIATE")
        backend.answers(reply)
        until(lambda: "the database can't be written; trying again" in caplog.text)
        lock.execute("COMMIT")
        if reply is not None:
            backend.begins()
            backend.answers()
        assert house.finished(job).status == "succeeded"
        assert house.told.get(timeout=DEADLINE) == job.identity

    def test_a_success_that_can_not_be_written_is_written_later(
        self, house: House, lock: sqlite3.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = house.start()
        backend.may_store.clear()
        job = house.gate.accept()
        backend.begins()
        backend.answers()
        backend.stores()
        lock.execute("BEGIN IMMEDIATE")
        caplog.clear()
        backend.may_store.set()
        until(lambda: "the database can't be written; trying again" in caplog.text)
        lock.execute("COMMIT")
        assert house.finished(job).status == "succeeded"

    def test_a_worker_that_stops_meanwhile_lets_the_lease_run_out(
        self, house: House, lock: sqlite3.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = house.start()
        job = house.gate.accept()
        backend.begins()
        lock.execute("BEGIN IMMEDIATE")
        backend.answers()
        until(lambda: "the database can't be written; trying again" in caplog.text)
        house.workers[0].drain(0)
        lock.execute("COMMIT")
        assert house.table.queries.current(job.identity).status == "running"
        assert backend.discarded == []

    def test_claiming_goes_on_when_the_database_is_back(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        backend = house.start()
        house.sql("ALTER TABLE slots RENAME TO hidden")
        until(lambda: "the database is unavailable" in caplog.text)
        house.sql("ALTER TABLE hidden RENAME TO slots")
        job = house.gate.accept()
        backend.begins()
        backend.answers()
        house.finished(job)
