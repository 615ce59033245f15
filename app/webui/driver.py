"""Asking a WebUI how far it is, stopping it, and waiting until it is idle."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from app.webui.client import Webui
from app.webui.errors import Unreachable, WebuiError

_LOG = logging.getLogger(__name__)

#: Seen idle twice, at least so many seconds apart, a WebUI is idle.
_IDLE_TWICE_SECONDS: Final = 0.3
#: A task that ends by itself so soon is not interrupted: the next one may have begun when the interrupt arrives.
_ENDS_BY_ITSELF_SECONDS: Final = 0.5


class _NotOurs(Exception):
    """The WebUI is at another task, or at none, or ours was stopped already."""


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """The progress of a WebUI with a task: ``progress`` 0…1, ``eta`` seconds or None; ``idle`` when it works at nothing of ours.

    ``by_task`` is False where the WebUI can't be asked for a task: it then also looks idle while it still loads its model.
    """

    progress: float
    eta: float | None
    idle: bool
    by_task: bool = True


class Driver:
    """Asks and stops one WebUI; generations are sent elsewhere (app/gateway/sending.py).

    :param queued_for_ever: seconds after which a task that is still queued is none: a request that failed before its turn.
    """

    def __init__(self, webui: Webui, queued_for_ever: float) -> None:
        self._webui = webui
        self._queued_for_ever = queued_for_ever
        self._queued_since: tuple[str, float] | None = None

    def poll(self, task_id: str, *, by_task: bool) -> TaskProgress | None:
        """Ask how far a task of ours is; None if the WebUI does not say.

        :param by_task: whether the WebUI can be asked for one task.
        """
        try:
            task = self._webui.task(task_id) if by_task else None
            if task is not None and (task.active or task.queued):
                return TaskProgress(task.progress or 0.0, task.eta, idle=False)
            state = self._webui.server_state()
        except WebuiError:
            return None
        idle = state.job_count == 0
        if task is not None:
            # Not ours any more: the extras of the same job, the encoding of its pictures, or nothing at all.
            return TaskProgress(1.0 if task.completed else 0.0, None, idle)
        return TaskProgress(state.progress, state.eta or None, idle, by_task=False)

    def interrupt(self, task_id: str) -> bool:
        """Stop a task of ours if it is the one that runs, and was not stopped before.

        Interrupts get lost, so this is repeated until the reply to the task is here.

        :returns: False if it got no answer, and may still arrive.
        """
        sent, answered = self._interrupt(task_id)
        return answered or not sent

    def _interrupt(self, task_id: str) -> tuple[bool, bool]:
        """Send an interrupt if the task should be stopped; whether it was sent, and whether it was answered.

        An interrupt names no task: it stops whatever runs when it arrives. So its connection is made first, and only then the WebUI
        is asked what runs.
        """
        sent = False

        def refuse_others() -> None:
            nonlocal sent
            if not self._should_stop(task_id):
                raise _NotOurs
            sent = True

        try:
            self._webui.interrupt(refuse_others)
        except _NotOurs:
            return False, False
        except WebuiError:
            _LOG.warning("WebUI %s could not be interrupted", self._webui.name)
            return sent, False
        return True, True

    def _should_stop(self, task_id: str) -> bool:
        state = self._webui.server_state()
        if state.job_count == 0 or state.interrupted:
            # The flag stays until the next task begins: an interrupt that has arrived is not repeated into that one.
            return False
        task = self._webui.task(task_id)
        if task is None:
            # Tasks can't be asked for: what runs on a slot that we hold is ours.
            return state.eta >= _ENDS_BY_ITSELF_SECONDS
        if not task.active:
            return False
        if task.eta is None:
            # No step is done, so nobody knows how soon the task ends: with one step it may be now. What the gateway has measured
            # would not tell either, since models load meanwhile and a lost task has no record of when it was sent. So it is stopped
            # only while nobody waits behind it. Else it gets as far as its eta, which costs little: WebUIs stop between two steps.
            return self._webui.waiting_tasks() == []
        return task.eta >= _ENDS_BY_ITSELF_SECONDS

    def quiesce(self, task_id: str | None, *, patience: float, stopping: threading.Event) -> bool:
        """Wait until the WebUI is idle, after one interrupt if our lost task is the one that runs (the orphan rule).

        :param patience: seconds to wait; with 0 it is only asked, and not interrupted.
        :returns: whether it is idle: seen so twice, some time apart.
        :raises Unreachable: nobody listens there. It is not asked again here: a starting WebUI can be killed by requests.
        """
        deadline = time.monotonic() + patience
        seen_idle, interrupted = False, patience == 0
        while not stopping.is_set():
            try:
                idle = self._is_idle(task_id)
                if idle and seen_idle:
                    return True
                # On a new slot no task is known: what runs there is not ours to stop. The first look spares connections.
                if not idle and not interrupted and task_id is not None and self._should_stop(task_id):
                    interrupted, _ = self._interrupt(task_id)
            except Unreachable:
                raise
            except WebuiError:
                idle = False
            if not idle and time.monotonic() >= deadline:
                return False
            seen_idle = idle
            stopping.wait(_IDLE_TWICE_SECONDS)
        return False

    def _is_idle(self, task_id: str | None) -> bool:
        state = self._webui.server_state()
        task = self._webui.task(task_id) if task_id is not None else None
        active = task is not None and task.active
        if state.busy or (active and state.job_count != 0):
            return False
        if task is None or task_id is None or not task.queued:
            self._queued_since = None
            return True
        return self._is_queued_for_ever(task_id)

    def _is_queued_for_ever(self, task_id: str) -> bool:
        now = time.monotonic()
        if self._queued_since is None or self._queued_since[0] != task_id:
            self._queued_since = (task_id, now)
        return now - self._queued_since[1] >= self._queued_for_ever
