"""The state that all threads of one worker share."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from app.jobs.catalogues import Catalogues
from app.jobs.errors import DatabaseUnavailable
from app.jobs.events import Announcer
from app.jobs.slots import Slots
from app.jobs.table import JobTable
from app.jobs.worker import timing

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """The tables, the owner's name, and whether to go on. Immutable but for its two events."""

    table: JobTable
    slots: Slots
    catalogues: Catalogues
    owner: str
    #: Told of every transition.
    announcer: Announcer
    #: Set when the worker takes no more jobs.
    stopping: threading.Event
    #: Set when its threads are to end.
    stopped: threading.Event

    def retry_until_stopped(self, action: Callable[[], _T]) -> _T | None:
        """Retry a database action until it works; None when the worker was stopped before that.

        After None the lease runs out, and another worker takes the job.
        """
        while True:
            try:
                return action()
            except DatabaseUnavailable:
                _LOG.exception("the database can't be written; trying again")
                if self.stopped.wait(timing.RETRY_SECONDS):
                    return None


def new_task_id() -> str:
    """A ``force_task_id`` that no WebUI has seen."""
    return f"task(sdg-{secrets.token_hex(8)})"


def new_owner(host: str) -> str:
    """The name of this process as a holder of leases."""
    return f"{host}/{os.getpid()}-{secrets.token_hex(6)}"
