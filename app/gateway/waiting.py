"""Clients that wait for a job without a thread: for its end after a POST, and for its end or a change of it at a GET.

What is given to them is a pending answer, as :mod:`app.runtime.parking` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, TypeVar

from app.jobs.errors import DatabaseUnavailable, NoFreeWaiter
from app.jobs.model import Identity, Job
from app.jobs.revisions import Version
from app.jobs.table import JobTable
from app.jobs.view import describe
from app.jobs.waiters import Waiter, Waiters

_Answer = TypeVar("_Answer")


class PendingJob(Generic[_Answer]):
    """The answer to a client that waits for a job.

    :param tell: makes the answer of the job as it is when the wait is over.
    """

    def __init__(self, waiter: Waiter, tell: Callable[[Job], _Answer]) -> None:
        self._waiter = waiter
        self._tell = tell
        #: Begin to wait, with a function to be called when the wait may be over.
        self.begin: Final = waiter.begin
        #: Let the time be up now.
        self.give_up: Final = waiter.give_up
        #: Give up the place of a client that is gone.
        self.leave: Final = waiter.leave

    @property
    def deadline(self) -> float:
        """The :func:`time.monotonic` at which the wait is over in any case."""
        return self._waiter.deadline

    def answer(self) -> _Answer | None:
        """The answer at the end of the wait; None while that goes on. Raises as :meth:`Waiter.check` does."""
        job = self._waiter.check()
        return None if job is None else self._tell(job)


class Reading(NamedTuple):
    """A job as it was read: its description, its version, and whether that is one that the client has already.

    ``waited`` tells whether the client has waited for it. ``retry_after`` is the seconds after which it may try to wait, where too
    many clients wait already.
    """

    view: dict[str, Any]
    version: Version
    is_known: bool = False
    waited: bool = False
    retry_after: float | None = None


class LongPolls:
    """Reads jobs for clients, now or at their next change."""

    def __init__(self, table: JobTable, waiters: Waiters) -> None:
        self._table = table
        self._waiters = waiters

    def job(
        self, identity: Identity, *, wait: float = 0.0, knows: Callable[[Version], bool] | None = None
    ) -> Reading | PendingJob[Reading]:
        """One job as it is now, or with ``wait`` seconds one that is waited for.

        While it runs, its WebUI is asked how far it is, which changes no version. Where too many clients wait already the answer is
        that of now.

        :param knows: with ``wait``, whether the client has a version already: then the wait is for the next change. Without it the
            wait is for the end of the job.
        :raises JobNotFound: there is none.
        """
        job = self._table.queries.get(*identity)
        if job.status == "running":
            # It only makes its worker poll more often: where the disk is full, a job can still be shown.
            with suppress(DatabaseUnavailable):
                self._table.watched(job)
        knows = knows if wait > 0 else None
        now = self._read(job, knows)
        if wait <= 0 or not (now.is_known if knows else not job.finished):
            return now
        try:
            waiter = self._waiters.reserve(identity.user_id)
        except NoFreeWaiter as full:
            return now._replace(retry_after=full.retry_after)
        if knows is None:
            waiter.await_end(identity, wait)
        else:
            waiter.await_change(identity, job.rev, wait)
        return PendingJob(waiter, lambda changed: self._read(changed, knows)._replace(waited=True))

    def _read(self, job: Job, knows: Callable[[Version], bool] | None) -> Reading:
        view = describe(job, self._table.queries.place(job))
        version = self._table.revisions.version_of(job.rev)
        return Reading(view, version, knows is not None and knows(version))
