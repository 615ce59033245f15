"""The age of the leases of this process, by a clock that also counts while the process or the machine sleeps.

The database alone decides who holds a lease. A process that was stopped for a while (SIGSTOP, a suspended machine) does not notice
that it has lost one, so before it sends anything that only the holder may send, it asks here. An age counts from *before* the
statement that began or renewed the lease was sent, so a lease is never older than that; the answer can only err towards no.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from app.jobs.sql.statements import LEASE_SECONDS
from app.runtime.failpoints import UNWATCHED, Failpoints

#: A lease that ends within so many seconds counts as lost: clocks differ a little, and what is sent needs time to arrive.
MARGIN_SECONDS: Final = 2.0
#: CLOCK_MONOTONIC stands still while a Linux machine is suspended; other systems have one clock for both.
_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds since the machine started, suspension included."""
    return time.clock_gettime(_CLOCK)


class Leases:
    """The times at which one owner's leases on WebUIs were last renewed, by the task ids of its attempts. Safe under threads."""

    def __init__(self, failpoints: Failpoints = UNWATCHED) -> None:
        self._failpoints = failpoints
        #: The last heartbeat that was committed: when it was sent, and the tasks whose slots it found to be the owner's. One value,
        #: so that it is read and replaced whole without a lock.
        self._heartbeat: tuple[float, frozenset[str]] = (-math.inf, frozenset())

    def renewed(self, sent_at: float, task_ids: Collection[str]) -> None:
        """A heartbeat that was sent at that time (:func:`now`) is committed, and has renewed the leases of these tasks alone."""
        self._heartbeat = sent_at, frozenset(task_ids)

    def held(self, task_id: str, leased_at: float) -> bool:
        """Whether the lease of an attempt is still held for sure; False when it may have run out.

        :param leased_at: :func:`now` before the statement that began the lease was sent.
        """
        self._failpoints.reach("check lease")
        sent_at, renewed = self._heartbeat
        # A heartbeat renews only what was not lost before: a lease that it did not find is as old as it was.
        since = max(leased_at, sent_at) if task_id in renewed else leased_at
        return now() - since < LEASE_SECONDS - MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of one attempt: ``leased_at`` is :func:`now` before the statement that began it was sent."""

    leases: Leases
    task_id: str
    leased_at: float

    def held(self) -> bool:
        """Whether it is still held for sure; see :meth:`Leases.held`."""
        return self.leases.held(self.task_id, self.leased_at)
