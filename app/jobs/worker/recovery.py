"""Making a WebUI usable again: waiting until it is idle after an attempt that was lost, and having it load another model."""

from __future__ import annotations

import logging
import time

from app.jobs.events import Event, Transition
from app.jobs.leases import Lease
from app.jobs.slots import Quiesced
from app.jobs.worker import timing
from app.jobs.worker.backend import AttemptLost, Backend, BackendDown, LeaseLost
from app.jobs.worker.context import WorkerContext, new_task_id
from app.jobs.worker.health import Health

_LOG = logging.getLogger(__name__)


class Recovery:
    """Brings the slot of one WebUI back to clean. Used by its runner thread alone."""

    def __init__(self, backend: Backend, context: WorkerContext, health: Health) -> None:
        self._backend = backend
        self._context = context
        self._health = health
        self._try_again_at = 0.0

    def quiesce(self) -> bool:
        """Wait for the WebUI to be idle if its slot was not released cleanly; True if the slot has become clean by that."""
        slots, owner = self._context.slots, self._context.owner
        slot = slots.get(self._backend.key)
        if slot is None or slot.state == "clean":
            return False
        if slot.owner == owner:
            # Only this thread claims and quiesces here, and it does neither now.
            for job in self._context.table.losses.release_orphans(slot.key, slot.owner):
                event: Event = "cancelled" if job.finished else "given back"
                self._context.announcer.announce(Transition(event, job, slot.key, job.claims, slug=job.error_slug))
        if slot.state == "suspect" and time.monotonic() < self._try_again_at:
            return False
        return self._await_idle(patience=0.0 if slot.state == "suspect" else timing.STUCK_SECONDS)

    def _await_idle(self, patience: float) -> bool:
        context = self._context
        slot = context.slots.begin_quiescing(self._backend.key, context.owner)
        if slot is None:
            return False
        left: Quiesced = "suspect"
        try:
            idle = self._backend.quiesce(slot.task_id, patience=patience, stopping=context.stopping)
            if idle or context.stopping.is_set():
                left = "clean" if idle else "unclean"
        except BackendDown as down:
            # It may be starting: the monitor asks it gently, and the runner comes back here when it is up.
            self._health.found_down(str(down))
            left = "unclean"
        finally:
            self._try_again_at = time.monotonic() + timing.SUSPECT_SECONDS
            context.retry_until_stopped(lambda: context.slots.end_quiescing(slot.key, context.owner, left))
        return left == "clean"

    def repair(self) -> bool:
        """Have the WebUI load another model if jobs have to wait for that and none does it; True if it was asked to."""
        context, key = self._context, self._backend.key
        if context.stopping.is_set() or not self._backend.needs_repair():
            return False
        task_id = new_task_id()
        leased_at = context.slots.begin_repair(key, context.owner, task_id)
        if leased_at is None:
            return False
        left: Quiesced = "unclean"
        try:
            self._backend.repair(Lease(context.slots.leases, task_id, leased_at))
            left = "clean"
        except BackendDown as down:
            self._health.found_down(str(down))
        except AttemptLost:
            _LOG.warning("WebUI %s did not answer while it was to load another model", self._backend.name)
        except LeaseLost:
            # Nothing was sent, so nothing of this runs there.
            left = "clean"
        finally:
            context.retry_until_stopped(lambda: context.slots.end_quiescing(key, context.owner, left))
        return left == "clean"
