"""The worker of a process: it is elected, takes over what a dead worker held, and runs one runner and one monitor for each WebUI.

What a WebUI is, and what a result is, the worker does not know: it drives a :class:`~app.jobs.worker.backend.Backend` for each.
Answers are checked and stored by a small pool, so that the next generation starts in the meantime. One more thread renews all
leases, and the supervisor does what has to be done now and then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from app.jobs.errors import DatabaseUnavailable
from app.jobs.events import Announcer, Event, Transition
from app.jobs.model import Job
from app.jobs.sql.statements import DEADLINE_PASSED
from app.jobs.tables import Tables
from app.jobs.worker import timing
from app.jobs.worker.backend import Backend
from app.jobs.worker.context import WorkerContext, new_owner
from app.jobs.worker.election import HostLock
from app.jobs.worker.monitor import Monitor
from app.jobs.worker.runner import Runner

_LOG = logging.getLogger(__name__)

#: How the end of a job whose worker was lost is announced.
_ENDS_OF_LOST: Final[Mapping[str, Event]] = MappingProxyType({"failed": "failed", "cancelled": "cancelled"})


@dataclass(frozen=True, slots=True)
class Duties:
    """The work that the worker does for the use cases, which it doesn't know.

    ``backends`` makes a backend for each WebUI; called once, when this process is the one that works. ``tidy`` is called once
    before the first claim, to finish what a crash left of deletions. ``upkeep`` is called every few seconds for what only the use
    cases can judge.
    """

    backends: Callable[[], Sequence[Backend]]
    tidy: Callable[[], object]
    upkeep: Callable[[], object]


class Worker:
    """The worker of this process.

    :param lock: elects one process of the host; None for an external worker, which takes over only by leases.
    """

    def __init__(self, tables: Tables, host: str, duties: Duties, announcer: Announcer, lock: HostLock | None) -> None:
        self._context = WorkerContext(
            tables.jobs,
            tables.slots,
            tables.catalogues,
            new_owner(host),
            announcer,
            threading.Event(),
            threading.Event(),
        )
        self._host = host
        self._duties = duties
        self._lock = lock
        self._runners: list[Runner] = []
        self._monitors: list[Monitor] = []
        #: Held while this process begins to work, so that a drain never meets half a worker.
        self._beginning = threading.Lock()
        self._begun = False
        self._pool: ThreadPoolExecutor | None = None
        #: Set when leases are to be renewed at once.
        self._renew = threading.Event()
        #: What works beside the supervisor.
        self._threads: list[threading.Thread] = []
        self._supervisor = threading.Thread(target=self._supervise, name="worker", daemon=True)

    def start(self) -> None:
        """Begin: wait to be elected, take over, work. Returns at once."""
        self._supervisor.start()

    @property
    def works(self) -> bool:
        """Whether this process was elected and takes jobs."""
        return self._begun and not self._context.stopping.is_set()

    def wake(self) -> None:
        """Wake the runners: a notification said that a job may wait."""
        for runner in self._runners:
            runner.wake.set()

    def refresh_soon(self) -> None:
        """Wake the monitors: a notification said that a refresh of the catalogues is wanted."""
        for monitor in self._monitors:
            monitor.wake()

    def renew_soon(self) -> None:
        """A notification that somebody wants a job to end that runs: the next heartbeat tells which."""
        self._renew.set()

    def stop_claiming(self) -> None:
        """Take no more jobs; what runs goes on."""
        self._context.stopping.set()
        self.wake()

    def drain(self, timeout: float) -> None:
        """Stop: let what runs finish within ``timeout`` seconds, then interrupt it and give it back uncounted.

        Nothing of this worker runs any more when the next one of this host may begin, but for what hangs.
        """
        self.stop_claiming()
        with self._beginning:
            # From here on nothing begins; what began is whole, and has taken over before the lock is released.
            begun = self._begun
        if begun:
            deadline = time.monotonic() + timeout
            if not self._await_idle(deadline):
                for runner in self._runners:
                    runner.interrupt()
                self._await_idle(time.monotonic() + timing.INTERRUPT_SECONDS)
                for runner in self._runners:
                    runner.abandon()
        self._context.stopped.set()
        self.refresh_soon()
        self.renew_soon()
        if begun:
            self._await_end(time.monotonic() + timing.END_SECONDS)
        if self._lock is not None:
            self._lock.release()

    def _await_end(self, deadline: float) -> None:
        for thread in (self._supervisor, *self._threads):
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _await_idle(self, deadline: float) -> bool:
        for runner in self._runners:
            runner.thread.join(max(deadline - time.monotonic(), 0.0))
        while not all(runner.idle() for runner in self._runners) and time.monotonic() < deadline:
            self._context.stopped.wait(0.01)
        return all(runner.idle() for runner in self._runners)

    # -- the supervisor ----------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        if self._lock is not None:
            self._be_elected()
        if not self._get_ready():
            return
        while not self._context.stopping.wait(timing.UPKEEP_SECONDS):
            self._look_after()

    def _be_elected(self) -> None:
        """Wait for the lock of this host; a folder that can't be written is no reason to give up for good."""
        while self._lock is not None and not self._context.stopping.is_set():
            try:
                self._lock.acquire()
            except OSError:
                _LOG.exception("the worker's lock file can't be used; trying again")
                self._context.stopping.wait(timing.RETRY_SECONDS)
            else:
                break
        if self._context.stopping.is_set() and self._lock is not None:
            # Too late to work: release the lock, so that the next process need not wait for this one's end.
            self._lock.release()

    def _get_ready(self) -> bool:
        """Begin, however often it takes: this process holds the lock, so no other one would. False when told to stop."""
        while not self._context.stopping.is_set():
            try:
                with self._beginning:
                    if not self._context.stopping.is_set():
                        self._begin()
                    return self._begun
            except Exception:
                _LOG.exception("the worker can't begin; trying again")
                self._context.stopping.wait(timing.RETRY_SECONDS)
        return False

    def _begin(self) -> None:
        if self._lock is not None:
            # The lock says that the earlier worker of this host is dead; its leases need not run out first.
            self._announce_lost(self._context.table.losses.take_over(self._host, self._context.owner))
        if not self._runners:
            backends = self._duties.backends()
            self._pool = ThreadPoolExecutor(max_workers=min(len(backends) + 1, 4), thread_name_prefix="store")
            self._runners = [Runner(backend, self._context, self._pool) for backend in backends]
        self._register()
        self._duties.tidy()
        self._threads = [threading.Thread(target=self._renew_leases, name="heartbeat", daemon=True)]
        self._monitors = [Monitor(runner, self._context) for runner in self._runners]
        for monitor, runner in zip(self._monitors, self._runners, strict=True):
            self._threads += [monitor.thread, runner.thread]
        for thread in self._threads:
            thread.start()
        self._begun = True

    def _register(self) -> None:
        keys = [runner.backend.key for runner in self._runners]
        self._context.slots.register(self._context.owner, self._host, keys, only=self._lock is not None)

    def _renew_leases(self) -> None:
        while True:
            self._renew.wait(timing.HEARTBEAT_SECONDS)
            self._renew.clear()
            if self._context.stopped.is_set():
                return
            try:
                heartbeat = self._context.slots.heartbeat(self._context.owner)
                self._abandon_unwanted(heartbeat.unwanted)
                if not heartbeat.known:
                    self._register()
            except DatabaseUnavailable:
                _LOG.warning("the database is unavailable; leases were not renewed")
            except Exception:
                _LOG.exception("the leases were not renewed")

    def _abandon_unwanted(self, task_ids: Collection[str]) -> None:
        """Stop the attempts that nobody wants any more; the answer of one that is here already is not stored."""
        for monitor, runner in zip(self._monitors, self._runners, strict=True):
            runner.attempts.abandon_unwanted(task_ids)
            if task_ids:
                monitor.wake()

    def _unstored_task_ids(self) -> set[str]:
        return {task_id for runner in self._runners for task_id in runner.attempts.unstored_task_ids()}

    def _look_after(self) -> None:
        context = self._context
        try:
            self._announce_lost(context.table.losses.reclaim(context.owner))
            self._announce_lost(context.table.losses.lose_unknown(context.owner, self._unstored_task_ids))
            self._announce_overdue(context.table.cancellation.end_overdue())
            context.slots.forget_workers(context.owner, self._host)
            context.catalogues.drop_unconfigured()
            context.table.deletion.forget_keys()
            self._duties.upkeep()
        except DatabaseUnavailable:
            _LOG.warning("the database is unavailable")
        except Exception:
            _LOG.exception("the worker's upkeep failed")

    def _announce_lost(self, jobs: Sequence[Job]) -> None:
        """Announce the end of attempts whose worker died or lost its lease; the runners may claim the jobs at once."""
        for job in jobs:
            event: Event = _ENDS_OF_LOST.get(job.status, "given back")
            self._context.announcer.announce(Transition(event, job, job.slot, job.claims, slug=job.error_slug))
        if jobs:
            self.wake()

    def _announce_overdue(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            event: Event = "cancelled" if job.finished else "cancel requested"
            self._context.announcer.announce(Transition(event, job, slug=DEADLINE_PASSED.slug))
