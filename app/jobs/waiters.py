"""Waiting for jobs to finish: sync is async plus waiting.

One watcher thread per process polls the database for all its waiters with one query; a notification (a job finished in this
process, or another process told so) wakes a waiter at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from app.jobs.errors import DatabaseUnavailable, NoFreeWaiter
from app.jobs.model import UNFINISHED, Identity, Job
from app.jobs.table import JobTable

_POLL_SECONDS: Final = 0.25
_END_SECONDS: Final = 3.0
#: How often a waiter asks whether its client is gone.
_GONE_SECONDS: Final = 0.25
#: More than can finish between the acceptance of a job and the waiting for it.
_REMEMBERED: Final = 256


class Waiters:
    """The clients of this process that wait for a job; at most ``limit`` at a time."""

    def __init__(self, table: JobTable, limit: int) -> None:
        self._table = table
        self._free = threading.BoundedSemaphore(limit)
        self._waiting: dict[Identity, list[threading.Event]] = {}
        self._lock = threading.Lock()
        self._somebody_waits = threading.Event()
        #: Jobs that were said to be finished, perhaps before their clients had begun to wait.
        self._lately: deque[Identity] = deque(maxlen=_REMEMBERED)
        self._draining = threading.Event()
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place for one waiting client.

        :raises NoFreeWaiter: all are taken; with the seconds after which one may be free.
        """
        if not self._free.acquire(blocking=False):
            raise NoFreeWaiter(self._table.queries.seconds_until_room())
        try:
            yield
        finally:
            self._free.release()

    def wait(self, job: Identity, seconds: float, gone: Callable[[], bool] = lambda: False) -> Job | None:
        """Wait for the end of a job: the job, or None after ``seconds`` or at once when the process is about to stop.

        :param gone: asked four times a second; when it says that the client is gone, the wait ends too.
        :raises JobNotFound: it was deleted meanwhile.
        :raises JobLost: its row has vanished.
        """
        done = threading.Event()
        with self._lock:
            self._waiting.setdefault(job, []).append(done)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="waiters", daemon=True)
                self._watcher.start()
            if job in self._lately:
                done.set()
        deadline = time.monotonic() + min(seconds, threading.TIMEOUT_MAX)
        self._somebody_waits.set()
        try:
            # Draining is looked at after the event was cleared, and set before the event is set: it is never missed.
            while not self._draining.is_set():
                left = max(deadline - time.monotonic(), 0.0)
                if done.wait(min(left, _GONE_SECONDS)):
                    done.clear()
                    ended = self._finished(job)
                    if ended is not None:
                        return ended
                elif left <= _GONE_SECONDS or gone():
                    return None
            return None
        finally:
            self._leave(job, done)

    def _finished(self, job: Identity) -> Job | None:
        """A notification is no proof: the attempt may have ended and the job be queued again."""
        with contextlib.suppress(DatabaseUnavailable):
            current = self._table.queries.current(job)
            return current if current.finished else None
        return None

    def _leave(self, job: Identity, done: threading.Event) -> None:
        with self._lock:
            left = [event for event in self._waiting.get(job, []) if event is not done]
            if left:
                self._waiting[job] = left
            else:
                self._waiting.pop(job, None)

    def finished(self, job: Identity) -> None:
        """A notification that this job is finished: its waiters look at once."""
        with self._lock:
            self._lately.append(job)
            events = self._waiting.get(job, [])
        for event in events:
            event.set()

    def drain(self) -> None:
        """Let every waiter go now; later ones don't wait."""
        self._draining.set()
        with self._lock:
            events = [event for events in self._waiting.values() for event in events]
        for event in events:
            event.set()
        self._somebody_waits.set()

    def end(self) -> None:
        """Drain, and wait until the watcher has looked into the database for the last time, if that does not hang."""
        self.drain()
        if self._watcher is not None:
            self._watcher.join(_END_SECONDS)

    def _watch(self) -> None:
        while not self._draining.is_set():
            with self._lock:
                jobs = list(self._waiting)
            if not jobs:
                self._somebody_waits.wait()
            self._somebody_waits.clear()
            with contextlib.suppress(DatabaseUnavailable):
                self._release_finished(jobs)
            # A job that was accepted just now needs no query yet, and the thread that claims it needs the interpreter.
            self._draining.wait(_POLL_SECONDS)

    def _release_finished(self, jobs: list[Identity]) -> None:
        """Wake the waiters of the jobs that are finished, deleted or gone."""
        statuses = self._table.queries.statuses(jobs) if jobs else {}
        for job in jobs:
            if statuses.get(job) not in UNFINISHED:
                self.finished(job)
