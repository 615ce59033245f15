"""The disk space of cached variants: counted in one file, and bounded by evicting the least recently used.

Each process adds what it writes to the count. When the count exceeds the budget, a thread of its own walks all files and evicts
down to 90 %, so that the cost of a walk is spread over a tenth of all variants that fit. No request waits for it: meanwhile the
cache exceeds its budget by what is written.

The last use of a variant is the time of access of its file, to the minute. The gateway sets it itself, since file systems note it
late or never (``relatime`` and ``noatime``, mount(8)).
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from app.records.errors import RecordsError
from app.runtime import modes

_LOG = logging.getLogger(__name__)

#: Share of the budget still used after eviction.
_KEPT: Final = 0.9
_BLOCK: Final = 4096
_MINUTE: Final = 60
#: Digits of a count, at most.
_DIGITS: Final = 20


class Kept(NamedTuple):
    """A file that takes room: its path and its status."""

    place: str
    status: os.stat_result

    @property
    def room(self) -> int:
        """Bytes of whole blocks."""
        return room_of(self.status.st_size)

    @property
    def minute(self) -> int:
        """The minute of its last use."""
        return int(self.status.st_atime) // _MINUTE


def room_of(size: int) -> int:
    """The room that a file takes, in bytes: a disk gives it whole blocks."""
    return -(-size // _BLOCK) * _BLOCK


def note_use(place: str, status: os.stat_result) -> None:
    """Note that a file was used just now; its time of modification stays."""
    now = time.time_ns()
    if now - status.st_atime_ns > _MINUTE * 10**9:
        # A disk that can't be written needs no order of removal.
        with suppress(OSError):
            os.utime(place, ns=(now, status.st_mtime_ns), follow_symlinks=False)


class CacheBudget:
    """The budget of disk space for all files below a folder. Threads and processes may share it.

    :param folder: the folder of the count.
    :param most: the budget, bytes.
    :param walk: lists all files.
    :param remove: removes one of them.
    """

    def __init__(
        self, folder: Path, most: int, walk: Callable[[], Iterator[Kept]], remove: Callable[[str], None]
    ) -> None:
        self.most = most
        self._count = folder / ".room"
        self._turn = folder / ".making-room"
        self._evicting = threading.Lock()
        self._exceeded = False
        self._walk = walk
        self._remove = remove

    def begin(self) -> None:
        """Set the count of a new, empty folder to 0; in others a missing count means a recount. Never raises."""
        with _logged(), suppress(FileExistsError):
            descriptor = os.open(self._count, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, modes.FILE)
            try:
                os.write(descriptor, _written(0))
            finally:
                os.close(descriptor)

    def add(self, change: int) -> None:
        """Add bytes written, or with a negative number bytes removed, to the count.

        Never raises: a count that can't be written is logged, and corrected by the next recount.
        """
        with _logged():
            self._exceeded = self._add(change) > self.most

    def evict_soon(self) -> None:
        """Start a thread that evicts if the last count exceeded the budget, unless one runs already. Never raises."""
        if self._exceeded and self._evicting.acquire(blocking=False):
            try:
                threading.Thread(target=self._evict, name="eviction", daemon=True).start()
            except RuntimeError as error:
                self._evicting.release()
                _LOG.warning("no thread to evict variants of pictures could be started: %s", error)

    def _evict(self) -> None:
        try:
            self._exceeded = False
            self.recount()
        finally:
            self._evicting.release()

    def recount(self) -> None:
        """Recount all files and evict the least recently used. Returns at once if another process does it. Never raises."""
        with _logged():
            self._recount()

    def _recount(self) -> None:
        with _locked(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            if alone is not None:
                before = self._add(0)
                # What others have added meanwhile stays; the walk may have met it too, and then it counts twice until the next one.
                self._add(self._evicted() - before)

    def _add(self, change: int) -> int:
        """The count after a change; over the budget when it is not known."""
        with _locked(self._count, fcntl.LOCK_EX) as file:
            if file is None:
                raise BlockingIOError
            text = os.pread(file, _DIGITS, 0)
            count = max(int(text) + change, 0) if text.isdigit() else self.most + 1
            os.pwrite(file, _written(count), 0)
        return count

    def _evicted(self) -> int:
        """Evict if the budget is exceeded; the bytes that are used afterwards."""
        used: Counter[int] = Counter()
        for kept in self._walk():
            used[kept.minute] += kept.room
        taken = sum(used.values())
        if taken <= self.most:
            return taken
        return taken - self._remove_oldest(used, taken - int(self.most * _KEPT))

    def _remove_oldest(self, used: Counter[int], excess: int) -> int:
        """Remove files until so many bytes are free; how many were."""
        last, left = _last_minute(used, excess)
        freed = 0
        for kept in self._walk():
            if kept.minute > last or (kept.minute == last and left <= 0):
                continue
            self._remove(kept.place)
            freed += kept.room
            left -= kept.room if kept.minute == last else 0
        _LOG.info("removed %.1f MiB of variants of pictures, the least recently used", freed / 2**20)
        return freed


def _written(count: int) -> bytes:
    return b"%0*d" % (_DIGITS, count)


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except (OSError, RecordsError) as error:
        _LOG.warning("the disk space of variants of pictures can't be counted: %s", error)


def _last_minute(used: Counter[int], excess: int) -> tuple[int, int]:
    """The minute of the last files that must go for so many bytes, and how many bytes of that minute must."""
    left = excess
    for minute in sorted(used):
        if used[minute] >= left:
            return minute, left
        left -= used[minute]
    return max(used), left


@contextmanager
def _locked(path: Path, how: int) -> Iterator[int | None]:
    """The descriptor of a file that this thread alone holds (flock(2)), made if it is missing; None where another one holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, modes.FILE)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
