"""One try at a job on one WebUI, and the open attempts of a WebUI.

The states of an attempt, and which thread moves it::

    PREPARED ──▶ SENT ──▶ ANSWERED ──▶ STORING ──▶ DONE     (a failure skips STORING)
    (runner)   (helper)   (runner)   (store pool)
        └─────────┴───────────┴───────────┴──────▶ ABANDONED (reason, in the log)

* ``PREPARED``: its claim is being committed, or is; the request is being made ready.
* ``SENT``: the request is on its way.
* ``ANSWERED``: the reply is here. It may be decoded while the slot is being freed.
* ``STORING``: the slot is free and the claim still holds, so files may be written.
* ``DONE``: nothing more is done about it here: its end is committed, or the worker stops.
* ``ABANDONED``: no answer of it is used; its job goes back to the queue, fails, or belongs to another worker.

An attempt that was abandoned while it ran is interrupted (app/jobs/worker/monitor.py), again and again until its reply is here. An
interrupt names no task: it stops whatever the WebUI makes when it arrives. So nothing else of ours is sent there while one is under
way (:meth:`Attempt.begin_interrupt`), and none is sent when the generation is over (:meth:`Attempt.end_generation`).

All attempts of one WebUI are guarded by one lock, that of :class:`Attempts`. No other lock is taken while it is held.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Collection
from typing import Final

from app.jobs.leases import Lease
from app.jobs.model import Claim
from app.jobs.table import SlotState

_LOG = logging.getLogger(__name__)

#: Answers of one WebUI that may wait to be stored before its runner waits too.
MOST_UNSTORED: Final = 2


class State(enum.Enum):
    """The states of an attempt; see the drawing above."""

    PREPARED = "prepared"
    SENT = "sent"
    ANSWERED = "answered"
    STORING = "storing"
    DONE = "done"
    ABANDONED = "abandoned"


class Attempt:
    """One try at a job on one WebUI.

    :param lease: the lease of its claim.
    :param attempts: those of its WebUI, whose lock guards it.
    """

    def __init__(self, claim: Claim, lease: Lease, attempts: Attempts) -> None:
        self.claim: Final = claim
        self.lease: Final = lease
        self._attempts = attempts
        self._changed = attempts.changed
        self._state = State.PREPARED
        self._slot_is_free = False
        self._sent_at: float | None = None
        self._seconds: float | None = None
        self._generation_is_over = False
        self._interrupting = False
        #: An interrupt got no answer, so that it may still arrive.
        self._interrupt_is_open = False

    @property
    def state(self) -> State:
        """The present state."""
        with self._changed:
            return self._state

    @property
    def seconds(self) -> float | None:
        """Seconds from the first byte of the request to the reply; None before that."""
        with self._changed:
            return self._seconds

    def sent(self) -> None:
        """Note that the request is on its way."""
        with self._changed:
            self._sent_at = time.monotonic()
            self._move(State.PREPARED, State.SENT)

    def may_complete(self) -> bool:
        """Whether the last byte of a request of it may be sent: its lease is held, and it was not abandoned."""
        return self.lease.held() and self.state is not State.ABANDONED

    def begin_interrupt(self) -> bool:
        """Whether its generation may be interrupted now, by this thread; if so, :meth:`end_interrupt` follows."""
        with self._changed:
            if self._sent_at is None or self._generation_is_over or self._interrupting:
                return False
            self._interrupting = True
            return True

    def end_interrupt(self, *, answered: bool) -> None:
        """Note that the interrupt was answered or not sent, or else got no answer."""
        with self._changed:
            self._interrupting = False
            self._interrupt_is_open |= not answered
            self._changed.notify_all()

    def end_generation(self) -> bool:
        """Note that the reply to its generation is here: from now on it is not interrupted. Blocks while an interrupt is under way.

        :returns: whether its pictures are still wanted.
        """
        with self._changed:
            self._generation_is_over = True
            self._changed.wait_for(lambda: not self._interrupting)
            return self._state is not State.ABANDONED

    @property
    def leaves_slot(self) -> SlotState:
        """The state in which its reply leaves the slot."""
        with self._changed:
            return "unclean" if self._interrupt_is_open else "clean"

    def answered(self) -> bool:
        """Note that the reply is here; False if the attempt was abandoned before, so that the reply is not used."""
        with self._changed:
            if self._sent_at is not None:
                self._seconds = time.monotonic() - self._sent_at
            if self._state is State.ABANDONED:
                return False
            self._state = State.ANSWERED
            self._attempts.unstored.add(self)
            return True

    def abandon(self, reason: str) -> bool:
        """Use no answer of it; False if it was abandoned before, or is done."""
        with self._changed:
            if self._state in (State.ABANDONED, State.DONE):
                return False
            self._abandon(reason)
            return True

    def abandon_run(self, reason: str) -> bool:
        """Use no answer of it if it has none yet; whether it is abandoned now. For :meth:`Attempts.abandon_running`."""
        with self._changed:
            if self._state in (State.PREPARED, State.SENT):
                self._abandon(reason)
            return self._state is State.ABANDONED

    def _abandon(self, reason: str) -> None:
        self._state = State.ABANDONED
        _LOG.debug("attempt %d at job %s is abandoned: %s", self.claim.attempt, self.claim.job.name, reason)

    def free_slot(self) -> None:
        """Note that the slot is free, or in the hands of the next attempt."""
        with self._changed:
            self._slot_is_free = True
            self._changed.notify_all()

    def await_free_slot(self) -> None:
        """Block until the slot is free: before that nothing of the answer may be written."""
        with self._changed:
            self._changed.wait_for(lambda: self._slot_is_free)

    def storing(self) -> None:
        """Note that its files are going to be written."""
        with self._changed:
            self._move(State.ANSWERED, State.STORING)

    def done(self) -> None:
        """Note that nothing more is done about its answer; makes room for the next one."""
        with self._changed:
            if self._state is not State.ABANDONED:
                self._state = State.DONE
            self._attempts.unstored.discard(self)
            self._changed.notify_all()

    def _move(self, before: State, after: State) -> None:
        if self._state is before:
            self._state = after


class Attempts:
    """The open attempts of one WebUI: at most one that runs, and those whose answers are not stored yet."""

    def __init__(self) -> None:
        #: Guards every attempt of this WebUI, and tells of changes.
        self.changed: Final = threading.Condition()
        #: Those whose answers are here and not stored. Used under the lock alone.
        self.unstored: Final[set[Attempt]] = set()
        self._running: Attempt | None = None
        #: The task ids of the attempts that nobody wants, as the last heartbeat told them.
        self._unwanted: frozenset[str] = frozenset()

    @property
    def running(self) -> Attempt | None:
        """The attempt whose answer the WebUI owes us; None between two of them."""
        with self.changed:
            return self._running

    def begin(self, attempt: Attempt) -> None:
        """Note that the claim of an attempt is committed: it runs."""
        with self.changed:
            self._running = attempt
            self._abandon_unwanted()

    def end_run(self) -> None:
        """Note that the WebUI owes no answer any more."""
        with self.changed:
            self._running = None

    def abandon_running(self, reason: str) -> Attempt | None:
        """Use no answer of the attempt that runs, which is returned; None if none runs, or its answer is here already."""
        with self.changed:
            return self._running if self._running is not None and self._running.abandon_run(reason) else None

    def abandon_unwanted(self, task_ids: Collection[str]) -> None:
        """Use no answer of the attempt that runs if it has one of these task ids: its job is to end, or was deleted."""
        with self.changed:
            self._unwanted = frozenset(task_ids)
            self._abandon_unwanted()

    def _abandon_unwanted(self) -> None:
        if self._running is not None and self._running.claim.task_id in self._unwanted:
            self._running.abandon_run("its job is to end, or was deleted")

    def has_room(self) -> bool:
        """Whether one more answer may wait to be stored."""
        with self.changed:
            return len(self.unstored) < MOST_UNSTORED

    def await_room(self) -> None:
        """Block until one more answer may wait to be stored."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.unstored) < MOST_UNSTORED)

    def unstored_task_ids(self) -> set[str]:
        """The task ids of the attempts whose answers are not stored yet."""
        with self.changed:
            return {attempt.claim.task_id for attempt in self.unstored}
