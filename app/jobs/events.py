"""The transitions of jobs, announced in one place: to listeners, and as one log line each.

A transition is announced once, after the commit that made it true. Its log line is a list of ``key=value`` pairs, always in this
order::

    event=stored user=u1 job=20261122T061530123-9f2c4e7a type=txt2img webui=big attempt=1 seconds=4.210

A value that holds anything but printable characters without spaces, quotes, backslashes and ``=`` is written as a JSON string, so
a user id with a line break can't forge a line.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from app.jobs.model import Job

_LOG = logging.getLogger(__name__)

Event = Literal[
    "accepted", "claimed", "sent", "answered", "stored", "failed", "cancel requested", "cancelled", "given back", "deleted"
]  # fmt: skip

#: Events whose ``seconds`` are counted from the acceptance of the job.
_SINCE_ACCEPTANCE: Final = ("claimed", "stored", "failed", "cancelled")
_QUOTED: Final = re.compile(r'[\s"\\=]')


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
    """

    def __init__(self, *listeners: Callable[[Transition], object]) -> None:
        self._listeners = listeners

    def announce(self, transition: Transition) -> None:
        """Tell the listeners of a transition, and log it."""
        self.tell(transition)
        log(transition)

    def tell(self, transition: Transition) -> None:
        """Tell the listeners alone; the caller logs it later."""
        for listener in self._listeners:
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
                log(self._waiting.popleft())


def log(transition: Transition) -> None:
    """Write the line of a transition. ``seconds`` of claimed, stored and failed are counted from the acceptance of the job."""
    job, seconds = transition.job, transition.seconds
    if transition.event in _SINCE_ACCEPTANCE:
        seconds = max(time.time() - job.created_at / 1000, 0.0)
    fields = {
        "event": transition.event,
        "user": job.user_id,
        "job": job.name,
        "type": job.type,
        "webui": transition.webui,
        "attempt": transition.attempt,
        "seconds": None if seconds is None else f"{seconds:.3f}",
        "slug": transition.slug,
        "file": transition.file,
    }
    level = logging.WARNING if transition.event == "failed" else logging.INFO
    _LOG.log(level, " ".join(f"{key}={_text(value)}" for key, value in fields.items() if value is not None))


def _text(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not _QUOTED.search(text):
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    """The character as it stands in a JSON string; everything that is not printable by its number."""
    return character if character.isprintable() and character not in '"\\' else json.dumps(character)[1:-1]
