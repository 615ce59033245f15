"""The transitions of jobs, announced in one place: to listeners, and as one log line each.

A transition is announced once, after the commit that made it true. Its log line has these fields, always in this order, written as
:mod:`app.runtime.logs` writes them::

    event=stored user=u1 job=20261122T061530123-9f2c4e7a type=txt2img webui=big attempt=1 seconds=4.210 request=5f0c7a1e9b3d2468

The request is the one that the job came with, whoever changed it since.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from app.jobs.model import Job
from app.runtime import logs

_LOG = logging.getLogger(__name__)

Event = Literal[
    "accepted", "claimed", "sent", "answered", "stored", "failed", "cancel requested", "cancelled", "given back", "deleted"
]  # fmt: skip

#: Events whose ``seconds`` are counted from the acceptance of the job.
_SINCE_ACCEPTANCE: Final = ("claimed", "stored", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of a job that was committed.

    ``webui`` is the key of the WebUI's slot, ``attempt`` the number of the claim, ``seconds`` how long the WebUI took (for
    ``answered``), ``slug`` why the job failed or the attempt ended, and ``file`` the only file that was deleted, if the rest of the
    record stays.
    """

    event: Event
    job: Job
    webui: str | None = None
    attempt: int | None = None
    seconds: float | None = None
    slug: str | None = None
    file: str | None = None
    #: When it was committed, :func:`time.time`: it may be logged later.
    at: float = field(default_factory=time.time, compare=False)

    @property
    def is_end(self) -> bool:
        """Whether nobody waits for the job any more: it is finished by it, or was deleted before."""
        return self.event in ("stored", "failed", "cancelled") or (self.event == "deleted" and not self.job.finished)

    @property
    def stops_an_attempt(self) -> bool:
        """Whether an attempt that runs is not wanted any more: its worker is to renew its lease, and learns that."""
        return self.event == "cancel requested" or (self.event == "deleted" and self.job.status == "running")


class Announcer:
    """Tells every listener of each transition, and logs it.

    :param listeners: called one after the other, in the thread that committed the transition, so they must be quick. What one of
        them raises is logged and harms neither the job nor the others.
    :param later: likewise, but when the transition is logged.
    """

    def __init__(
        self,
        listeners: Iterable[Callable[[Transition], object]] = (),
        later: Iterable[Callable[[Transition], object]] = (),
    ) -> None:
        self._listeners = list(listeners)
        self._later = list(later)

    def announce(self, transition: Transition) -> None:
        """Tell the listeners of a transition, and log it."""
        self.tell(transition)
        self.log(transition)

    def tell(self, transition: Transition) -> None:
        """Tell the first listeners alone; the caller has it logged later."""
        _tell(self._listeners, transition)

    def log(self, transition: Transition) -> None:
        """Log a transition that was told, and tell the other listeners."""
        log(transition)
        _tell(self._later, transition)


def _tell(listeners: Iterable[Callable[[Transition], object]], transition: Transition) -> None:
    for listener in listeners:
        try:
            listener(transition)
        except Exception:  # noqa: BLE001 -- the job itself went well
            _LOG.exception("a listener failed at event=%s of job %s", transition.event, transition.job.name)


class Backlog:
    """Transitions that are told at once and logged later, in their order, off the path where the time matters.

    Writing a line releases the interpreter, and a thread that decodes pictures may then keep it for a while.
    """

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._waiting: deque[Transition] = deque()
        self._writing = threading.Lock()

    def add(self, transition: Transition) -> None:
        """Tell of a transition, and keep it for the next :meth:`write`."""
        self._announcer.tell(transition)
        self._waiting.append(transition)

    def write(self) -> None:
        """Log all that was added; afterwards every earlier one has been logged, by whichever thread."""
        with self._writing:
            while self._waiting:
                self._announcer.log(self._waiting.popleft())


def log(transition: Transition) -> None:
    """Write the line of a transition. ``seconds`` of claimed, stored and failed are counted from the acceptance of the job."""
    job, seconds = transition.job, transition.seconds
    if transition.event in _SINCE_ACCEPTANCE:
        seconds = max(transition.at - job.created_at / 1000, 0.0)
    fields = {
        "user": job.user_id,
        "job": job.name,
        "type": job.type,
        "webui": transition.webui,
        "attempt": transition.attempt,
        "seconds": None if seconds is None else round(seconds, 3),
        "slug": transition.slug,
        "file": transition.file,
        "request": job.request,
    }
    level = logging.WARNING if transition.event == "failed" else logging.INFO
    logs.write(_LOG, level, transition.event, fields)
