"""The data folder and the folders in it: made durably, removed when empty, and never made on an empty mount point."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.parameters import TYPES
from app.records import layout as names
from app.records.atomic import create_file, sync_folder
from app.records.errors import MissingFile, StoreUnavailable
from app.records.files import IS_OURS, entries_of, translated
from app.runtime import modes
from app.runtime.failpoints import UNWATCHED, Failpoints

#: With less room than this (bytes) the disk counts as full: no picture of a usual size fits any more.
LEAST_FREE = 2**20
#: How many day folders a store remembers as durable, to flush their parents once and not at every save.
_REMEMBERED = 4096
#: Why a folder stays: somebody uses it.
_IN_USE = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR)
#: Fits no record: stands for the day folder of a type that has none.
_NO_DAY = "0000-00-00"


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has left for users that are not root; ``free_inodes`` is None where it makes them as it needs them."""

    free_bytes: int
    free_inodes: int | None


def room_at(path: Path) -> Room:
    """The room on the file system of a file or folder.

    :raises OSError: it can't be reached.
    """
    found = os.statvfs(path)
    # A file system without a fixed number of inodes reports 0 of 0.
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


class DataFolder:
    """The folder of all records. Threads and processes may share it.

    It is made by :meth:`prepare` alone: when a disk is unmounted under a running gateway, saving must fail rather than fill the
    empty mount point. So after :meth:`expect` no folder of a user is made where the id is missing.
    """

    def __init__(self, root: Path, failpoints: Failpoints = UNWATCHED) -> None:
        self.root = root
        self._failpoints = failpoints
        self._expected: str | None = None
        #: Day folders whose parents this process has flushed, each with :meth:`_last_removal` as it was before.
        self._durable: dict[Path, int] = {}
        #: An empty file; its time of modification is that of the last removal of a folder.
        self._removals = root / ".folders-removed"

    def prepare(self) -> None:
        """Make the data folder if it is missing.

        :raises StoreUnavailable: when that can't be done.
        """
        try:
            modes.make_folders(self.root)
        except OSError as error:
            raise StoreUnavailable("The data folder cannot be made.") from error

    def check(self) -> None:
        """Ask, cheaply and without writing, whether records can be saved now.

        :raises StoreUnavailable: when the folder is missing, not writable, or its disk has no room or no inodes left.
        """
        try:
            room = room_at(self.root)
        except OSError as error:
            raise StoreUnavailable("The data folder cannot be reached.") from error
        if not self.is_writable:
            raise StoreUnavailable("The data folder cannot be written.")
        if room.free_bytes < LEAST_FREE or room.free_inodes == 0:
            raise StoreUnavailable("The disk of the data folder is full.")

    @property
    def exists(self) -> bool:
        """Whether the data folder is there."""
        return self.root.is_dir()

    @property
    def is_writable(self) -> bool:
        """Whether the data folder is there and this process may read and write it."""
        return self.root.is_dir() and os.access(self.root, os.R_OK | os.W_OK | os.X_OK)

    @property
    def has_users(self) -> bool:
        """Whether the data folder holds the folder of a user."""
        return any(names.is_user_folder(entry.name) for entry in entries_of(self.root))

    def read_id(self) -> str | None:
        """The id of the data folder; None when it has none.

        :raises StorageFailed: it can't be read.
        """
        with suppress(MissingFile), translated("read"):
            return (self.root / names.ID_FILE).read_text("ascii", "replace").strip()
        return None

    def give_id(self, value: str) -> None:
        """Give the data folder an id, unless it has one.

        :raises StorageFailed: that can't be done.
        """
        with translated("written"):
            create_file(self.root / names.ID_FILE, f"{value}\n".encode("ascii"), self._failpoints)

    def expect(self, value: str) -> None:
        """Save for new users only while the data folder has this id."""
        self._expected = value

    # The folders of a record.

    def make(self, folder: Path) -> None:
        """Make a day folder and what is missing above it, down from the root, durably.

        An empty mount point has no folder of a user, so asking for the id before one is made is enough.

        That a folder exists does not mean that another process has flushed its parent yet, so each process does it once itself.
        """
        made = False
        if (
            self._expected is not None
            and not folder.parent.parent.is_dir()
            and self.exists
            and self.read_id() != self._expected
        ):
            raise StoreUnavailable("The data folder has lost its id: its disk may not be mounted.")
        for step in (folder.parent.parent, folder.parent, folder):
            with suppress(FileExistsError):
                step.mkdir(mode=modes.FOLDER)
                made = True
        if made:
            self._flush_parents(folder)
        else:
            self.keep_durable(folder)

    def keep_durable(self, folder: Path) -> None:
        """Flush the parents of a day folder again if some folder was removed since: this one may be another of the same name."""
        if self._durable.get(folder) != self._last_removal():
            self._flush_parents(folder)

    def _flush_parents(self, folder: Path) -> None:
        # Read first: a removal in the meantime makes this flush one too many, never one too few.
        last_removal = self._last_removal()
        for parent in (self.root, folder.parent.parent, folder.parent):
            sync_folder(parent, self._failpoints)
        if len(self._durable) >= _REMEMBERED:
            self._durable.clear()
        self._durable[folder] = last_removal

    def _last_removal(self) -> int:
        """Differs as soon as any process is about to remove a folder."""
        try:
            return self._removals.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _note_removal(self) -> None:
        # A time that is given is stored to the nanosecond; that of "now" steps by milliseconds.
        now = time.time_ns()
        os.close(os.open(self._removals, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, modes.FILE))
        os.utime(self._removals, ns=(now, now))

    # Removing.

    def remove_empty_folders(self) -> int:
        """Remove every empty folder of ours, such as versions before have left; how many users' folders went.

        :raises StorageFailed: one could not be read or removed.
        """
        before = len(self._folders_in(self.root, 0))
        for user in self._folders_in(self.root, 0):
            for type_ in self._folders_in(user, 1):
                for day in self._folders_in(type_, 2):
                    self.remove_empty(day)
                # For the types and users without any folder in them.
                self.remove_empty(type_ / _NO_DAY)
            self.remove_empty(user / TYPES[0] / _NO_DAY)
        return before - len(self._folders_in(self.root, 0))

    def _folders_in(self, folder: Path, depth: int) -> list[Path]:
        found = (entry for entry in entries_of(folder) if IS_OURS[depth](entry.name))
        return [folder / entry.name for entry in found if entry.is_dir(follow_symlinks=False)]

    def flush_removals(self, folder: Path) -> None:
        """Make removals durable: what a user deleted must not come back with a power cut."""
        # Where another process has just removed the folder, nothing of it can come back.
        with translated("removed"), suppress(FileNotFoundError):
            sync_folder(folder, self._failpoints)

    def remove_empty(self, folder: Path) -> None:
        """Remove a day folder and those above it as far as they are empty: the name of a user's folder tells whose it was."""
        highest: Path | None = None
        with translated("removed"):
            for step in (folder, folder.parent, folder.parent.parent):
                empty = _is_empty(step)
                if empty is False or (empty and not self._remove_folder(step)):
                    break
                highest = step if empty else highest
        if highest is not None:
            self.flush_removals(highest.parent)

    def _remove_folder(self, folder: Path) -> bool:
        """Remove an empty folder; False when it is in use again."""
        self._note_removal()
        try:
            with self._failpoints.around("rmdir"):
                folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in _IN_USE:
                raise
            return False
        return True


def _is_empty(folder: Path) -> bool | None:
    """Whether a folder holds nothing; None when it is not there."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return False
