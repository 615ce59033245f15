"""The thread that takes jobs to one WebUI: claim, send, record what came of it, one job at a time.

What makes the pause between two pictures short: the next job is claimed in the transaction that frees the slot, its request is
prepared while that transaction commits, and the last answer is stored only once the next request is on its way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.jobs.errors import DatabaseUnavailable
from app.jobs.leases import Lease
from app.jobs.model import Claim, Failure
from app.jobs.table import NotReady, Serving, SlotState
from app.jobs.worker import timing
from app.jobs.worker.attempt import Attempt, Attempts, State
from app.jobs.worker.backend import Answer, AttemptLost, Backend, LeaseLost, NotSent
from app.jobs.worker.context import WorkerContext, new_task_id
from app.jobs.worker.health import Health
from app.jobs.worker.outcomes import Outcomes
from app.jobs.worker.recovery import Recovery
from app.runtime import request_ids

_LOG = logging.getLogger(__name__)

_FAILED_TO_SEND = Failure("internal-error", "The gateway failed while it worked at the job.")
_STOPPING = "the gateway stops"


class Runner:
    """Takes jobs to one WebUI. Its thread runs from ``thread.start()`` until the context is stopping."""

    def __init__(self, backend: Backend, context: WorkerContext, pool: ThreadPoolExecutor) -> None:
        self.backend = backend
        self.health = Health()
        self.attempts = Attempts()
        #: Set when there may be a job to claim.
        self.wake = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"runner {backend.key}", daemon=True)
        self._context = context
        self._outcomes = Outcomes(backend, context, pool, self.wake)
        self._recovery = Recovery(backend, context, self.health)
        #: The last answer, until the next job is on its way.
        self._unstored: tuple[Attempt, Answer] | None = None
        #: Whether the last transaction that freed the slot found no job to follow: a later accept wakes this thread.
        self._queue_was_empty = False
        #: The attempt whose request was prepared last, within the transaction of its claim.
        self._prepared: Attempt | None = None

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._context.stopping.is_set():
            woken = self.wake.is_set()
            self.wake.clear()
            try:
                claim_again = self._work(woken)
            except DatabaseUnavailable:
                _LOG.warning("the database is unavailable")
                self._context.stopping.wait(timing.RETRY_SECONDS)
            except Exception:
                _LOG.exception("the runner of WebUI %s failed", self.backend.name)
                self._context.stopping.wait(timing.RETRY_SECONDS)
            else:
                if not claim_again and not self._context.stopping.is_set():
                    self.wake.wait(timing.CLAIM_POLL_SECONDS)
            finally:
                # The request of a claim that could not be committed, also when this thread is about to end.
                self.backend.cancel()

    def _work(self, woken: bool) -> bool:
        """Run attempts as long as one follows the other; True if there may be another job to claim at once."""
        if not self.health.up:
            return False
        # A claim takes only a clean slot, so the slot is looked at only when there was nothing to claim.
        attempt = self._claim(woken) or (self._claim(woken) if self._recovery.quiesce() else None)
        if attempt is None:
            return self._repair()
        while attempt is not None:
            attempt = self._run_attempt(attempt)
            self.attempts.await_room()
        return not self._queue_was_empty

    def _repair(self) -> bool:
        # What is being stored may be the picture of another model, or a job that goes back to be tried with one.
        return not self.attempts.unstored_task_ids() and self._recovery.repair()

    def _run_attempt(self, attempt: Attempt) -> Attempt | None:
        """Send one job and free the slot; the attempt at the next job, which was claimed with that, or None."""
        following = None
        try:
            with request_ids.serving(attempt.claim.job.request):
                answer = self._send(attempt)
            if answer is not None:
                following = self._free_slot(attempt, answer)
        finally:
            if following is None:
                self._store_last_answer()
        return following

    # -- claiming ----------------------------------------------------------------------------------------------------

    def _claim(self, woken: bool) -> Attempt | None:
        """Claim by the requirements that are known; if that finds nothing and there are new ones, once more."""
        serving = self.backend.serving(fresh=False)
        attempt = self._claim_with(serving, expected=woken)
        if attempt is not None:
            return attempt
        fresh = self.backend.serving()
        return None if fresh == serving else self._claim_with(fresh, expected=False)

    def _claim_with(self, serving: Serving, *, expected: bool) -> Attempt | None:
        def ready(claim: Claim | None) -> bool:
            # Asked within the transaction, so that nothing is taken that was accepted after the worker had been told to stop.
            return claim is not None and not self._context.stopping.is_set() and self._prepare(claim)

        try:
            claim = self._context.table.claim(
                self.backend.key, self._context.owner, new_task_id(), serving, expected=expected, ready=ready
            )
        except NotReady:
            return None
        return self._claimed(claim)

    def _prepare(self, claim: Claim) -> bool:
        """Make the request of a claim ready while that is being committed; False if its requirements are not known."""
        if not self.backend.knows(claim):
            return False
        lease = Lease(self._context.slots.leases, claim.task_id, claim.leased_at)
        self._prepared = Attempt(claim, lease, self.attempts)
        self.backend.prepare(self._prepared)
        return True

    def _claimed(self, claim: Claim | None) -> Attempt | None:
        """The attempt at a claim that was committed, which is the one prepared last; None if there was nothing to claim."""
        if claim is None:
            return None
        self._outcomes.note("claimed", claim)
        return self._prepared

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send(self, attempt: Attempt) -> Answer | None:
        """Send a job and wait for the answer; None if the attempt ended without one, which is recorded."""
        try:
            answer = self._generate(attempt)
        except NotSent as error:
            # In this order, so that a WebUI that is seen down holds no job.
            self._give_back(attempt, "clean", None)
            self.health.found_down(str(error))
        except AttemptLost as lost:
            self._give_back(attempt, "unclean", lost.failure)
        except (LeaseLost, DatabaseUnavailable) as error:
            # The WebUI has begun nothing: the request was not complete, or what must be kept before it could not be kept.
            if attempt.state is not State.ABANDONED:
                why = "its lease ran out before its request was complete"
                why = why if isinstance(error, LeaseLost) else "the database is unavailable"
                _LOG.warning("job %s was not sent: %s", attempt.claim.job.name, why)
            self._give_back(attempt, attempt.leaves_slot, None)
        except Exception:
            # Nothing else would ever end this attempt: its lease is renewed as long as this process lives.
            _LOG.exception("sending job %s failed", attempt.claim.job.name)
            self._give_back(attempt, "unclean", _FAILED_TO_SEND)
        else:
            if attempt.answered():
                return answer
            self._give_back(attempt, attempt.leaves_slot, None)
        return None

    def _generate(self, attempt: Attempt) -> Answer:
        self.attempts.begin(attempt)
        try:
            return self.backend.generate(attempt, lambda: self._on_sent(attempt))
        finally:
            attempt.end_generation()
            self.attempts.end_run()

    def _on_sent(self, attempt: Attempt) -> None:
        """Do what need not be done before the request is on its way; runs in the thread that sends."""
        attempt.sent()
        self._outcomes.sent(attempt)
        self._store_last_answer()

    def _give_back(self, attempt: Attempt, slot: SlotState, failure: Failure | None) -> None:
        """End an attempt without an answer; it is not counted if the worker had abandoned it."""
        self._queue_was_empty = False
        abandoned_here = attempt.abandon("it got no answer")
        self._outcomes.give_back(attempt, slot, failure if abandoned_here else None)

    # -- the slot ----------------------------------------------------------------------------------------------------

    def _free_slot(self, attempt: Attempt, answer: Answer) -> Attempt | None:
        """Free the slot, or pass it on to the next job in the same transaction; the attempt at that."""
        next_task = new_task_id() if self.attempts.has_room() and not self._context.stopping.is_set() else None
        # If the request of this job was never seen on its way, the answer before it is still here.
        self._store_last_answer()
        self._unstored = attempt, answer
        try:
            if self._queue_was_empty and not self.wake.is_set():
                # Probably no job follows again: then decoding holds up nobody, nor does waiting for the checks.
                self._store_last_answer()
                answer.await_checks(None)
            following = self._commit_answer(attempt, answer, next_task)
            self._queue_was_empty = following is None and next_task is not None
            return following
        finally:
            attempt.free_slot()
            answer.await_checks(None)

    def _commit_answer(self, attempt: Attempt, answer: Answer, next_task: str | None) -> Attempt | None:
        """Commit that the answer is here. The slot becomes free only once the checks are done; a next job need not wait."""

        def ready(following: Claim | None) -> bool:
            if following is not None:
                return self._prepare(following)
            # Decoding holds up nobody now.
            self._store_last_answer()
            # No waiting here: this runs within the transaction, and every writer would wait with it.
            return answer.await_checks(0)

        try:
            return self._answered(attempt, answer, next_task, ready)
        except NotReady:
            answer.await_checks(None)
            return self._answered(attempt, answer, next_task, ready)

    def _answered(
        self, attempt: Attempt, answer: Answer, next_task: str | None, ready: Callable[[Claim | None], bool]
    ) -> Attempt | None:
        serving = self.backend.serving(fresh=False)
        seconds = attempt.seconds if answer.ok else None

        def commit() -> Claim | None:
            following = self._context.table.answered(attempt.claim, seconds, next_task, serving, ready=ready)
            if attempt.seconds is not None:
                self._outcomes.note("answered", attempt.claim, seconds=attempt.seconds)
            return following

        return self._claimed(self._context.retry_until_stopped(commit))

    def _store_last_answer(self) -> None:
        """Hand the last answer to the pool."""
        last, self._unstored = self._unstored, None
        if last is not None:
            self._outcomes.store(*last)

    # -- stopping ----------------------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether the thread has ended, and every answer is stored."""
        return not self.thread.is_alive() and not self.attempts.unstored_task_ids()

    def interrupt(self) -> None:
        """Stop what runs; its half picture is not used, and the job goes back without counting an attempt."""
        self.attempts.abandon_running(_STOPPING)
        self.interrupt_abandoned()

    def interrupt_abandoned(self) -> None:
        """Interrupt the attempt that runs if its answer is not used, and the WebUI is at it."""
        attempt = self.attempts.running
        if attempt is None or attempt.state is not State.ABANDONED or not attempt.begin_interrupt():
            return
        answered = False
        try:
            answered = self.backend.interrupt(attempt.claim)
        finally:
            attempt.end_interrupt(answered=answered)

    def abandon(self) -> None:
        """Give back what still runs and leave the WebUI to the next worker, which waits for it to be idle."""
        attempt = self.attempts.abandon_running(_STOPPING)
        if attempt is not None:
            self._outcomes.give_back(attempt, "unclean", None)
            self.backend.abort()
