"""Waiting for jobs to finish: sync is async plus waiting.

One watcher thread per process polls the database for all its waiters with one query; a hint (a job finished in this process,
or a neighbour said so) makes a waiter look at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from app.jobs.errors import DatabaseUnavailable, NoFreeWaiter
from app.jobs.model import UNFINISHED, Job
from app.jobs.table import JobTable

_POLL_SECONDS: Final = 0.25
_END_SECONDS: Final = 3.0
#: More than can finish between the acceptance of a job and the waiting for it.
_REMEMBERED: Final = 256


class Waiters:
    """The clients of this process that wait for a job; at most ``limit`` at a time."""

    def __init__(self, table: JobTable, limit: int) -> None:
        self._table = table
        self._free = threading.BoundedSemaphore(limit)
        self._waiting: dict[int, list[threading.Event]] = {}
        self._lock = threading.Lock()
        self._somebody_waits = threading.Event()
        #: Jobs that were said to be finished, perhaps before their clients had begun to wait.
        self._lately: deque[int] = deque(maxlen=_REMEMBERED)
        self._draining = threading.Event()
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place for one waiting client.

        :raises NoFreeWaiter: all are taken; with the seconds after which one may be free.
        """
        if not self._free.acquire(blocking=False):
            raise NoFreeWaiter(self._table.seconds_until_room())
        try:
            yield
        finally:
            self._free.release()

    def wait(self, seq: int, seconds: float) -> Job | None:
        """Wait for the end of a job: the job, or None after ``seconds`` or at once when the process is about to stop.

        :raises JobNotFound: it was deleted meanwhile.
        """
        done = threading.Event()
        with self._lock:
            self._waiting.setdefault(seq, []).append(done)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="waiters", daemon=True)
                self._watcher.start()
            if seq in self._lately:
                done.set()
        deadline = time.monotonic() + min(seconds, threading.TIMEOUT_MAX)
        self._somebody_waits.set()
        try:
            # Draining is looked at after the event was cleared, and set before the event is set: it is never missed.
            while not self._draining.is_set() and done.wait(max(deadline - time.monotonic(), 0.0)):
                done.clear()
                job = self._finished(seq)
                if job is not None:
                    return job
            return None
        finally:
            self._leave(seq, done)

    def _finished(self, seq: int) -> Job | None:
        """A hint is no proof: the attempt may have ended and the job be queued again."""
        with contextlib.suppress(DatabaseUnavailable):
            job = self._table.by_seq(seq)
            return job if job.finished else None
        return None

    def _leave(self, seq: int, done: threading.Event) -> None:
        with self._lock:
            left = [event for event in self._waiting.get(seq, []) if event is not done]
            if left:
                self._waiting[seq] = left
            else:
                self._waiting.pop(seq, None)

    def finished(self, seq: int) -> None:
        """A hint that this job is finished: its waiters look at once."""
        with self._lock:
            self._lately.append(seq)
            events = self._waiting.get(seq, [])
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
                seqs = list(self._waiting)
            if not seqs:
                self._somebody_waits.wait()
            self._somebody_waits.clear()
            with contextlib.suppress(DatabaseUnavailable):
                self._release_finished(seqs)
            # A job that was accepted just now needs no look, and whoever is about to claim it needs the interpreter.
            self._draining.wait(_POLL_SECONDS)

    def _release_finished(self, seqs: list[int]) -> None:
        statuses = self._table.statuses(seqs) if seqs else {}
        for seq in seqs:
            if statuses.get(seq) not in UNFINISHED:
                self.finished(seq)
