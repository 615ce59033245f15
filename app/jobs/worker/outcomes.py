"""The end of an attempt: answers are checked and stored by a pool of threads, attempts without an answer go back or fail.

The backend decodes and checks an answer at once, while the WebUI makes the next picture. Files are written when the slot of the
attempt is free, and only if its claim still holds; then the row is committed, and the transition reported.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final

from app.jobs import events
from app.jobs.errors import DatabaseUnavailable
from app.jobs.model import Claim, Failure, Success
from app.jobs.table import SlotState
from app.jobs.worker.attempt import Attempt
from app.jobs.worker.backend import Answer, Backend, Checked, Retry
from app.jobs.worker.context import WorkerContext
from app.runtime import request_ids

_LOG = logging.getLogger(__name__)

#: How the end of an attempt without a result is announced. One whose claim was lost is announced by its new owner, and a deletion
#: was by whoever deleted the job.
_ANNOUNCED: Final[Mapping[str, events.Event]] = MappingProxyType(
    {"queued": "given back", "failed": "failed", "cancelled": "cancelled"}
)
_FAILED_TO_STORE = Failure("internal-error", "The gateway failed to store the result.")


class Outcomes:
    """Records what became of the attempts of one WebUI.

    :param pool: runs what must not hold up the runner.
    :param wake: wakes the runner when a job went back to the queue.
    """

    def __init__(
        self,
        backend: Backend,
        context: WorkerContext,
        pool: ThreadPoolExecutor,
        wake: threading.Event,
    ) -> None:
        self._backend = backend
        self._context = context
        self._pool = pool
        self._wake = wake
        #: Transitions that are reported once the next request is on its way.
        self._backlog = events.Backlog(context.announcer)

    def store(self, attempt: Attempt, answer: Answer) -> None:
        """Have an answer checked and stored; returns at once."""
        self._pool.submit(self._store, attempt, answer)

    def sent(self, attempt: Attempt) -> None:
        """Report that a request is on its way, and make its claim durable beside it; returns at once."""
        self.note("sent", attempt.claim)
        self._pool.submit(self._flush)

    def _flush(self) -> None:
        """Runs in the pool."""
        try:
            self._context.table.flush()
        except DatabaseUnavailable:
            # The next commit is flushed with it, or fails and is reported.
            _LOG.warning("the claim was not flushed")
        self._backlog.write()

    def _store(self, attempt: Attempt, answer: Answer) -> None:
        """Runs in the pool."""
        needed_repair = self._backend.needs_repair()
        with request_ids.serving(attempt.claim.job.request):
            try:
                verdict = self._verdict(attempt, answer)
                if verdict is not None:
                    self._conclude(attempt.claim, verdict)
            except Exception:
                _LOG.exception("job %s could not be concluded", attempt.claim.job.name)
            finally:
                attempt.done()
        if needed_repair:
            # The picture may have shown that the WebUI is whole again, or the runner waited for it before a repair.
            self._wake.set()

    def _verdict(self, attempt: Attempt, answer: Answer) -> Success | Failure | Retry | None:
        """The verdict on an answer; None if nobody wants it, or the worker was stopped while the database was away."""
        claim, context = attempt.claim, self._context
        try:
            checked = context.retry_until_stopped(lambda: self._backend.check(claim, answer))
            attempt.await_free_slot()
            if not isinstance(checked, Checked):
                return checked
            if not self._still_wanted(claim):
                self._drop(attempt)
                return None
            attempt.storing()
            return context.retry_until_stopped(lambda: self._backend.store(claim, checked))
        except Exception:
            _LOG.exception("storing job %s failed", claim.job.name)
            attempt.await_free_slot()
            return _FAILED_TO_STORE

    def _still_wanted(self, claim: Claim) -> bool:
        """Whether the claim holds and its job is not to end; assumed while the database is away, because the commit compares again.

        Asked because the files of a later claim may have the same names; see :meth:`JobQueries.shares_number`.
        """
        try:
            return self._context.table.queries.wants(claim)
        except DatabaseUnavailable:
            return True

    def _drop(self, attempt: Attempt) -> None:
        """End an attempt whose answer is not used: its claim was lost, or its job is to end or was deleted."""
        attempt.abandon("its answer is not wanted")
        status = self._context.retry_until_stopped(
            lambda: self._context.table.give_back(attempt.claim, slot="clean", failure=None)
        )
        if status == "lost":
            _LOG.warning("the claim of job %s was lost; its answer is not stored", attempt.claim.job.name)
        elif status == "deleted":
            _LOG.info("job %s was deleted; its answer is not stored", attempt.claim.job.name)
        self._announce_end(attempt.claim, status, None)

    def _conclude(self, claim: Claim, verdict: Success | Failure | Retry) -> None:
        """Commit what became of the attempt, and announce it."""
        table, retry = self._context.table, self._context.retry_until_stopped
        if isinstance(verdict, Success):
            self._succeeded(claim, verdict)
        elif isinstance(verdict, Failure):
            self._announce_end(claim, retry(lambda: table.fail(claim, verdict)), verdict)
        else:
            status = retry(
                lambda: table.give_back(
                    claim,
                    slot="clean",
                    failure=verdict.failure if verdict.counted else None,
                    one_by_one=verdict.one_by_one,
                    note=verdict.note,
                    elsewhere=verdict.elsewhere,
                )
            )
            self._announce_end(claim, status, verdict.failure)
            self._wake.set()

    def _succeeded(self, claim: Claim, success: Success) -> None:
        end = self._context.retry_until_stopped(lambda: self._context.table.succeed(claim, success))
        if end == "succeeded":
            self.note("stored", claim)
        elif end is not None:
            self._discard(claim)
            self._announce_end(claim, end, None)
        self._backlog.write()

    def _discard(self, claim: Claim) -> None:
        """Remove the files of a claim that has not succeeded, unless another claim with its number may have made them."""
        if self._context.retry_until_stopped(lambda: self._context.table.queries.shares_number(claim)) is False:
            self._backend.discard(claim)

    def give_back(self, attempt: Attempt, slot: SlotState, failure: Failure | None) -> None:
        """Commit that an attempt ended without an answer, with the state its slot is left in, and announce it."""
        claim = attempt.claim
        status = self._context.retry_until_stopped(
            lambda: self._context.table.give_back(claim, slot=slot, failure=failure)
        )
        self._announce_end(claim, status, failure)

    def note(self, event: events.Event, claim: Claim, *, seconds: float | None = None, slug: str | None = None) -> None:
        """Announce a transition; its log line is written with the backlog."""
        self._backlog.add(events.Transition(event, claim.job, claim.slot, claim.attempt, seconds, slug))

    def _announce_end(self, claim: Claim, status: str | None, failure: Failure | None) -> None:
        """Announce that an attempt ended without a result, as its status says (None: that could not be committed)."""
        event = None if status is None else _ANNOUNCED.get(status)
        if event is not None:
            slug = failure.slug if failure is not None and event != "cancelled" else None
            self.note(event, claim, slug=slug)
        self._backlog.write()
