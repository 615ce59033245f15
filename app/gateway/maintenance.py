"""What is done now and then so that nothing stays that nobody needs: files, rows, keys, users, refusals, room in the database.

The worker does it in small steps beside everything else; ``sd-gateway records upkeep`` does it once, to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from app.gateway.archive import Archive
from app.jobs.deletion import MOST_FORGOTTEN
from app.jobs.sql.space import Space
from app.jobs.table import JobTable
from app.records.store import RecordStore

#: The worker looks so often whether there is something to do.
STEP_SECONDS: Final = 60.0


class Upkeep:
    """Removes what is left over."""

    def __init__(self, table: JobTable, space: Space, records: RecordStore, archive: Archive) -> None:
        self._table = table
        self._space = space
        self._records = records
        self._archive = archive
        self._next_at = 0.0

    def step(self) -> None:
        """Do a part of it if its time has come; again at the next call if there is more.

        :raises DatabaseUnavailable: nothing can be done now.
        """
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + STEP_SECONDS
        self._archive.tidy()
        full = [forget() >= MOST_FORGOTTEN for forget in self._batches().values()]
        if self._space.step() or any(full):
            self._next_at = 0.0

    def run(self) -> Mapping[str, int]:
        """Do all of it; what was removed, and how much of it.

        :raises DatabaseUnavailable, StorageFailed: it stopped half way; a repetition goes on from there.
        """
        done = {"deletions finished": self._archive.tidy(), "refusals": self._table.deletion.forget_refusals()}
        done |= {what: _until_nothing(forget) for what, forget in self._batches().items()}
        done["users' folders"] = self._records.folder.remove_empty_folders()
        return done | {"bytes of the database": self._space.make_small()}

    def _batches(self) -> Mapping[str, Callable[[], int]]:
        # Keys first: the row of a deleted job stays while one names it.
        return {
            "keys": self._table.deletion.forget_keys,
            "rows of deleted jobs": self._table.deletion.forget_deleted,
            "rows of users": self._table.deletion.forget_users,
        }


def _until_nothing(forget: Callable[[], int]) -> int:
    total = 0
    while count := forget():
        total += count
    return total
