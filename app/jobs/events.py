"""The transitions of jobs, reported in one place: one log line each.

A transition is reported once, after the commit that made it true. The line is a list of ``key=value`` pairs, always in the order
of the parameters of :func:`transition`::

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
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, Literal

from app.jobs.model import Job

_LOG = logging.getLogger(__name__)

Event = Literal["accepted", "claimed", "sent", "answered", "stored", "failed", "given back", "deleted"]

#: Transitions whose ``seconds`` are counted from the acceptance of the job.
_SINCE_ACCEPTANCE: Final = ("claimed", "stored", "failed")
_QUOTED: Final = re.compile(r'[\s"\\=]')


def transition(
    event: Event,
    job: Job,
    *,
    webui: str | None = None,
    attempt: int | None = None,
    seconds: float | None = None,
    slug: str | None = None,
    file: str | None = None,
) -> None:
    """Report a transition that was committed.

    :param webui: the key of the WebUI's slot.
    :param attempt: the number of the claim.
    :param seconds: how long the WebUI took, for ``answered``; for claimed, stored and failed the time since acceptance is used.
    :param slug: why the job failed, or why the attempt ended.
    :param file: the only file that was deleted, when the rest of the record stays.
    """
    if event in _SINCE_ACCEPTANCE:
        seconds = max(time.time() - job.created_at / 1000, 0.0)
    fields = {
        "event": event,
        "user": job.user_id,
        "job": job.name,
        "type": job.type,
        "webui": webui,
        "attempt": attempt,
        "seconds": None if seconds is None else f"{seconds:.3f}",
        "slug": slug,
        "file": file,
    }
    level = logging.WARNING if event == "failed" else logging.INFO
    _LOG.log(level, " ".join(f"{key}={_text(value)}" for key, value in fields.items() if value is not None))


class Backlog:
    """Transitions that are reported later, in their order, off the path where the time matters.

    Writing a line releases the interpreter, and a thread that decodes pictures may then keep it for a while.
    """

    def __init__(self) -> None:
        self._waiting: deque[partial[None]] = deque()
        self._writing = threading.Lock()

    def add(self, event: Event, job: Job, **fields: Any) -> None:
        """Keep a transition, with the parameters of :func:`transition`, for the next :meth:`write`."""
        self._waiting.append(partial(transition, event, job, **fields))

    def write(self) -> None:
        """Report all that was added; afterwards every earlier one has been reported, by whichever thread."""
        with self._writing:
            for report in self._take():
                report()

    def _take(self) -> Iterator[partial[None]]:
        while self._waiting:
            yield self._waiting.popleft()


def _text(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not _QUOTED.search(text):
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    """The character as it stands in a JSON string; everything that is not printable by its number."""
    return character if character.isprintable() and character not in '"\\' else json.dumps(character)[1:-1]
