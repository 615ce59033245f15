"""Clients that wait for the end of a job, or for a change of it: sync is async plus waiting.

They are told by the thread that reads the changes of all jobs (:mod:`app.jobs.changes`); a notification that a job is finished (in
this process, or from another one) wakes its waiters at once. A waiter holds no thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

from app.jobs.changes import Changes
from app.jobs.errors import DatabaseUnavailable, NoFreeWaiter
from app.jobs.model import UNFINISHED, Identity, Job
from app.jobs.revisions import Change, Version
from app.jobs.table import JobTable

#: Clients of a process that may wait at the same time to read the jobs of one user.
PER_READER: Final = 20
#: How often the rows of all awaited jobs are checked: of one that has vanished with a restored database there is no change to read.
_CHECK_SECONDS: Final = 5.0
#: Less often where there are more rows than this for each second, as checking a thousand takes 10 ms of CPU time.
_CHECKED_PER_SECOND: Final = 50
#: More than can finish between the acceptance of a job and the waiting for it.
_REMEMBERED: Final = 256


class Waiters:
    """The clients of this process that wait for a job; at most ``limit`` at a time."""

    def __init__(self, table: JobTable, changes: Changes, limit: int) -> None:
        self._table = table
        self._changes = changes
        self._limit = limit
        self._places = 0
        #: Waiting clients that only read, by the user of the job.
        self._readers: Counter[str] = Counter()
        self._waiting: dict[Identity, list[Waiter]] = {}
        #: Jobs whose waiters came since the last read of changes, and may have ended before.
        self._fresh: set[Identity] = set()
        #: Waiters for any change of their job.
        self._change_waiters = 0
        self._check_at = 0.0
        self._lock = threading.Lock()
        #: Jobs that were said to be finished, perhaps before their clients had begun to wait.
        self._recently_finished: deque[Identity] = deque(maxlen=_REMEMBERED)
        self._draining = threading.Event()

    def reserve(self, reader: str | None = None) -> Waiter:
        """Take a place for one waiting client, who leaves it by :meth:`Waiter.leave` or at the end of the wait.

        :param reader: the user whose job a client only reads, of whom at most :data:`PER_READER` may wait; a client that has posted
            is bounded by the jobs that the user may have.
        :raises NoFreeWaiter: all are taken; with the seconds after which one may be free.
        """
        with self._lock:
            free = self._places < self._limit and (reader is None or self._readers[reader] < PER_READER)
            self._places += free
            if free and reader is not None:
                self._readers[reader] += 1
        if not free:
            raise NoFreeWaiter(self._table.queries.seconds_until_room())
        return Waiter(self, reader)

    def current(self, job: Identity) -> Job:
        """The job as it is now; see :meth:`app.jobs.queries.JobQueries.current`."""
        return self._table.queries.current(job)

    def enter(self, waiter: Waiter, job: Identity) -> bool:
        """Wake this waiter when the job ends or changes; True if that may have been already."""
        with self._lock:
            self._waiting.setdefault(job, []).append(waiter)
            self._fresh.add(job)
            self._change_waiters += waiter.awaits_change
            ended = job in self._recently_finished
        self._changes.follow()
        return ended or self._draining.is_set()

    def leave(self, waiter: Waiter, job: Identity | None) -> None:
        """Free the place of a waiter, who waited for this job if it had begun."""
        with self._lock:
            self._places -= 1
            if waiter.reader is not None:
                self._readers[waiter.reader] -= 1
                if not self._readers[waiter.reader]:
                    del self._readers[waiter.reader]
            if job is not None:
                self._change_waiters -= waiter.awaits_change
                left = [other for other in self._waiting.get(job, []) if other is not waiter]
                if left:
                    self._waiting[job] = left
                else:
                    self._waiting.pop(job, None)

    @property
    def draining(self) -> bool:
        """Whether nobody waits any more, because the process is about to stop."""
        return self._draining.is_set()

    def finished(self, job: Identity) -> None:
        """A notification that this job is finished: its waiters look at once."""
        with self._lock:
            self._recently_finished.append(job)
            waiters = list(self._waiting.get(job, []))
        for waiter in waiters:
            waiter.wake()

    def drain(self) -> None:
        """Let every waiter go now; later ones don't wait."""
        self._draining.set()
        with self._lock:
            waiters = [waiter for waiters in self._waiting.values() for waiter in waiters]
        for waiter in waiters:
            waiter.wake()

    # -- following changes; see app.jobs.changes.Follower --------------------------------------------------------------

    def follows(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def wants_immediate_reads(self) -> bool:
        """Whether anybody waits for more than the end of a job, of which there are notifications."""
        return self._change_waiters > 0

    def changed(self, changes: Sequence[Change], version: Version) -> None:
        """Wake the waiters of jobs that have ended or changed."""
        del version
        unsure = self._to_be_checked()
        try:
            latest = self._table.revisions.latest(unsure) if unsure else {}
        except DatabaseUnavailable:
            with self._lock:
                self._fresh |= unsure
            raise
        for job in unsure:
            self._wake(job, latest.get(job))
        for change in changes:
            self._wake(change.identity, change)

    def _to_be_checked(self) -> set[Identity]:
        now = time.monotonic()
        with self._lock:
            fresh = {job for job in self._fresh if job in self._waiting}
            self._fresh.clear()
            if now >= self._check_at:
                self._check_at = now + max(_CHECK_SECONDS, len(self._waiting) / _CHECKED_PER_SECOND)
                fresh |= self._waiting.keys()
        return fresh

    def lost_track(self, version: Version) -> None:
        """Wake everybody: jobs may have vanished."""
        del version
        with self._lock:
            jobs = list(self._waiting)
        for job in jobs:
            self._wake(job, None)

    def _wake(self, job: Identity, change: Change | None) -> None:
        """Wake those whom the last change of a job concerns; all if it has no row any more."""
        with self._lock:
            waiters = [
                waiter for waiter in self._waiting.get(job, ()) if change is None or waiter.is_concerned_by(change)
            ]
        for waiter in waiters:
            waiter.wake()


class Waiter:
    """The place of one client. It waits from :meth:`await_end` or :meth:`await_change` until it leaves, without a thread.

    Used by one thread at a time, but for :meth:`wake` and :meth:`leave`.
    """

    def __init__(self, waiters: Waiters, reader: str | None) -> None:
        self._waiters = waiters
        self.reader: Final = reader
        self._lock = threading.Lock()
        self._job: Identity | None = None
        #: Of a waiter for any change, the rev of the job that its client knows.
        self._known: int | None = None
        self._left = self._woken = False
        self._wake: Callable[[], object] = _nobody
        #: The :func:`time.monotonic` at which the wait is over.
        self.deadline = 0.0

    def await_end(self, job: Identity, seconds: float) -> None:
        """Begin to wait for the end of a job, at most so many seconds."""
        self.deadline = time.monotonic() + min(seconds, threading.TIMEOUT_MAX)
        self._job = job
        if self._waiters.enter(self, job):
            self.wake()

    def await_change(self, job: Identity, rev: int, seconds: float) -> None:
        """Begin to wait for the first change of a job after a rev, at most so many seconds."""
        self._known = rev
        self.await_end(job, seconds)

    def is_concerned_by(self, change: Change) -> bool:
        """Whether its wait may be over with this change of its job."""
        return change.status not in UNFINISHED if self._known is None else change.rev != self._known

    @property
    def awaits_change(self) -> bool:
        """Whether it waits for any change of its job."""
        return self._known is not None

    def begin(self, wake: Callable[[], object]) -> None:
        """Have ``wake`` called when the wait may be over, at once if it may be over already; it replaces an earlier one."""
        with self._lock:
            self._wake = wake
            woken = self._woken
        if woken:
            wake()

    def wake(self) -> None:
        """Say that the wait may be over."""
        with self._lock:
            self._woken = True
            wake = self._wake
        wake()

    def give_up(self) -> None:
        """Let the time be up now."""
        self.deadline = 0.0

    def leave(self) -> None:
        """Give up the place: the wait is over, or the client is gone. Later calls do nothing."""
        with self._lock:
            if self._left:
                return
            self._left = True
            self._wake = _nobody
        self._waiters.leave(self, self._job)

    def check(self) -> Job | None:
        """The job once the wait is over, because the job has ended (or changed), the time is up or the process is about to stop;
        else None.

        Looked up each time, for a notification is no proof: the attempt may have ended and the job be queued again. The place is
        given up with the end of the wait.

        :raises JobNotFound: it was deleted meanwhile.
        :raises JobLost: its row has vanished.
        :raises DatabaseUnavailable: the time is up, and it can't be told how the job is.
        """
        if self._job is None:
            raise RuntimeError("the wait has not begun")
        with self._lock:
            self._woken = False
        # Asked before the job is: what changes later wakes again.
        over = self._waiters.draining or time.monotonic() >= self.deadline
        try:
            job = self._waiters.current(self._job)
        except DatabaseUnavailable:
            if over:
                self.leave()
                raise
            return None
        except BaseException:
            self.leave()
            raise
        ended = job.finished if self._known is None else job.rev != self._known
        if not (over or ended):
            return None
        self.leave()
        return job


def _nobody() -> None:
    """Wake nobody."""
