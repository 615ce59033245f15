"""Variants of images: made at most once, kept in a hidden folder of the data folder, and gone with their image.

::

    <data>/.variants/<size>|whole/<user folder>/<type>/<YYYY-MM-DD>/<file name of the image>.(png|jpg|webp)
                     .room, .making-room      the count of bytes, and the lock for evicting (app/records/cache_budget.py)

The folders of sizes are few and can be listed, so that whoever removes an image knows all its variants without listing more.

**Made once.** Whoever makes a variant holds a lock (flock(2)) on the file of the image: another thread or process that wants one of
the same image waits, and finds it made. The kernel frees the lock with the descriptor. It is opened for writing because NFS gives
exclusive locks to no other, though nothing is written.

**Gone with the image.** A removal takes the image first, then its variants. A maker writes the variant, then looks whether the
image is still there, and else removes what it wrote. Whichever way the two meet, the later one removes the variant. Besides, a
variant is found only while its image is there. What a maker leaves that is killed between the two steps, a sweep removes.

**Nobody else waits.** The threads of a process that make a variant, or wait for one that is being made, are bounded; further
requests for what is not made yet are refused at once, so that slow ones never hold all threads.

A variant that can't be kept, for example because the disk is full, is sent all the same.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from app.records import layout as names
from app.records.atomic import replace_file, sync_folder
from app.records.cache_budget import CacheBudget, Kept, note_use, room_of
from app.records.errors import MissingFile, VariantsBusy
from app.records.files import IS_OURS, entries_of, find, translated
from app.records.layout import Variant
from app.records.rendering import render
from app.runtime import modes
from app.runtime.failpoints import UNWATCHED, Failpoints

_LOG = logging.getLogger(__name__)

#: Images that a process decodes at the same time: each may take hundreds of megabytes.
_AT_ONCE: Final = 2
#: Files that one step of a sweep looks at: tens of milliseconds on a local disk.
_SWEPT_AT_ONCE: Final = 1000
#: Attempts to create a folder that a concurrent removal may delete while it is empty.
_MOST_TRIES: Final = 8
#: Age in seconds after which a temporary file counts as abandoned.
_LEFT_SECONDS: Final = 3600.0
#: Seconds between two such warnings.
_COMPLAIN_SECONDS: Final = 60.0
#: Why an image can't be opened for writing; most file systems lock it all the same.
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


class Source(NamedTuple):
    """An image: the names of its user folder, its type, its day and its file."""

    parts: tuple[str, str, str, str]

    @property
    def folder(self) -> tuple[str, str, str]:
        """The names of its user folder, its type and its day."""
        return self.parts[0], self.parts[1], self.parts[2]

    @property
    def filename(self) -> str:
        """Its file name."""
        return self.parts[-1]


@dataclass(frozen=True, slots=True)
class StoredVariant:
    """A variant to be sent. ``data`` holds its bytes when it was made just now; ``place`` is empty when it could not be kept."""

    place: str
    #: Nanoseconds since the epoch. Another variant of the same image, size and format, made after this one was removed, has another
    #: time, so that it may differ in bytes, as after an update of the encoder.
    modified_ns: int
    data: bytes | None = None


class Variants:
    """The variants of all images below one data folder. Threads and processes may share it.

    :param most: the disk space for all of them, bytes.
    :param makers: how many threads may make variants at a time, or wait for one that is being made.
    """

    def __init__(self, root: Path, most: int, makers: int, failpoints: Failpoints = UNWATCHED) -> None:
        self._data = str(root)
        self._root = root / names.VARIANTS
        self._failpoints = failpoints
        self._places = threading.BoundedSemaphore(makers)
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._complained_at = -_COMPLAIN_SECONDS
        self._budget = CacheBudget(self._root, most, self._walk, self._remove_kept)

    def get(self, source: Source, variant: Variant) -> StoredVariant:
        """A variant of an image, made unless it was made before.

        :raises MissingFile, DamagedImage, TooLargeForFormat, VariantsBusy, StorageFailed: see
            :meth:`app.records.store.RecordStore.variant`.
        """
        found = self._find(source, variant)
        if found is not None and _is_there(self._place(source)):
            return found
        place, status = find(self._data, source.parts)
        if not stat.S_ISREG(status.st_mode):
            raise MissingFile
        with self._place_of_a_maker(), _locked(place) as image:
            # Whoever held the lock may have made it.
            stored = self._find(source, variant) or self._make(source, variant, image)
        self._budget.evict_soon()
        return stored

    def remove(self, folder: tuple[str, str, str], filenames: Iterable[str]) -> None:
        """Remove all variants of images that were removed before from this folder (user folder, type and day), durably.

        :raises StorageFailed: one could not be removed; a repetition goes on from there.
        """
        images = [filename for filename in filenames if names.is_image(filename)]
        freed = 0
        with translated("removed"):
            for size in self._sizes() if images else ():
                with suppress(MissingFile):
                    place, status = find(self._data, (names.VARIANTS, size, *folder))
                    if stat.S_ISDIR(status.st_mode):
                        freed += _remove_variants(Path(place), images)
        if freed:
            self._budget.add(-freed)

    def sweep(self, *, dry_run: bool = False) -> int:
        """Remove the variants whose image is gone, and what killed processes left; how many files, with ``dry_run`` of those that
        would go. The bytes are recounted.

        :raises StorageFailed: one could not be removed.
        """
        count = sum(self.sweep_in_steps(dry_run=dry_run))
        if not dry_run and self._is_ours():
            self._budget.recount()
        return count

    def sweep_in_steps(self, *, dry_run: bool = False) -> Iterator[int]:
        """Do the same, but for the counting, in short steps; how many files each removes.

        :raises StorageFailed: one could not be removed; the iterator then ends.
        """
        walk = self._walk()
        with translated("removed"):
            while step := list(islice(walk, _SWEPT_AT_ONCE)):
                now = time.time()
                strays = [kept for kept in step if self._is_stray(kept, now)]
                if strays and not dry_run:
                    for kept in strays:
                        self._remove_kept(kept.place)
                    self._budget.add(-sum(kept.room for kept in strays))
                yield len(strays)

    # Finding and making.

    @contextmanager
    def _place_of_a_maker(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise VariantsBusy
        try:
            yield
        finally:
            self._places.release()

    def _place(self, source: Source) -> str:
        return f"{self._data}/{'/'.join(source.parts)}"

    def _parts(self, source: Source, variant: Variant) -> tuple[str, ...]:
        return (names.VARIANTS, variant.folder, *source.folder, variant.filename(source.filename))

    def _find(self, source: Source, variant: Variant) -> StoredVariant | None:
        try:
            place, status = find(self._data, self._parts(source, variant))
        except MissingFile:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        note_use(place, status)
        return StoredVariant(place, status.st_mtime_ns)

    def _make(self, source: Source, variant: Variant, image: int) -> StoredVariant:
        with self._turns:
            with translated("read"):
                # Of the descriptor that holds the lock: the file may be gone, and then this was for nothing.
                data = _read(image)
            data = render(data, variant)
        place = self._keep(self._parts(source, variant), data)
        self._check_there(source)
        try:
            return StoredVariant(place, os.lstat(place).st_mtime_ns, data)
        except FileNotFoundError:
            # It was not kept, or is evicted already.
            return StoredVariant("", time.time_ns(), data)

    def _keep(self, parts: tuple[str, ...], data: bytes) -> str:
        """Write a variant; its path, empty when it can't be kept."""
        room = room_of(len(data))
        # One that takes most of the budget would be evicted for the next one.
        if room > self._budget.most // 2:
            return ""
        path = Path(self._data, *parts)
        try:
            self._write(path, data)
        except OSError as error:
            _remove_empty(path.parent)
            self._complain(error)
            return ""
        self._budget.add(room)
        return str(path)

    def _write(self, path: Path, data: bytes) -> None:
        for _ in range(_MOST_TRIES - 1):
            # A removal may take the folder, which is empty until now, or the unfinished file together with its image.
            with suppress(FileNotFoundError):
                self._write_once(path, data)
                break
        else:
            self._write_once(path, data)

    def _write_once(self, path: Path, data: bytes) -> None:
        self._make_root()
        _make_folder(self._root.parent, path.parent)
        replace_file(path.parent, path.name, data, self._failpoints)

    def _make_root(self) -> None:
        with suppress(FileExistsError):
            self._root.mkdir(mode=modes.FOLDER)
            self._budget.begin()

    def _complain(self, error: OSError) -> None:
        """Log that variants can't be kept, but not for each one."""
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_SECONDS:
            self._complained_at = now
            _LOG.warning("a variant of a picture can't be kept, and is made anew each time: %s", error.strerror)

    def _check_there(self, source: Source) -> None:
        """Remove what was made of an image that has gone meanwhile.

        :raises MissingFile: it has.
        """
        try:
            with translated("read"):
                # Not stat: opening asks an NFS server, whatever this host remembers.
                os.close(os.open(self._place(source), os.O_RDONLY | os.O_CLOEXEC))
        except MissingFile:
            self.remove(source.folder, [source.filename])
            raise

    # Removing.

    def _is_ours(self) -> bool:
        """Whether the folder of variants is there and no link, which may lead out of the data folder."""
        return self._root.is_dir() and not self._root.is_symlink()

    def _sizes(self) -> list[str]:
        return [entry.name for entry in entries_of(self._root) if names.is_size_folder(entry.name)]

    def _walk(self) -> Iterator[Kept]:
        """Every variant, and every file on its way to be one."""
        if self._is_ours():
            yield from _walk(self._root, (names.is_size_folder, *IS_OURS))

    def _is_stray(self, kept: Kept, now: float) -> bool:
        _, *folder, filename = Path(kept.place).relative_to(self._root).parts
        image = names.image_of_variant(filename)
        on_its_way = filename.startswith(".")
        gone = image is None or not Path(self._data, *folder, image).exists()
        return gone or (on_its_way and now - kept.status.st_mtime > _LEFT_SECONDS)

    def _remove_kept(self, place: str) -> None:
        path = Path(place)
        with self._failpoints.around("unlink variant"):
            path.unlink(missing_ok=True)
        _remove_empty(path.parent)


def _make_folder(root: Path, folder: Path) -> None:
    """Make a folder and what is missing above it, down from an existing one.

    :raises NotADirectoryError: a symbolic link is on the way, which may lead out of the data folder.
    """
    for step in [*reversed(folder.relative_to(root).parents), folder.relative_to(root)][1:]:
        place = root / step
        with suppress(FileExistsError):
            place.mkdir(mode=modes.FOLDER)
        if not stat.S_ISDIR(place.lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _is_there(place: str) -> bool:
    with suppress(OSError):
        os.lstat(place)
        return True
    return False


@contextmanager
def _locked(place: str) -> Iterator[int]:
    """The descriptor of an image of which nobody else makes a variant meanwhile."""
    with translated("read"):
        descriptor = _opened(place)
    try:
        # Where there are no locks, two may make the same variant; the later one stays.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(place: str) -> int:
    how = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(place, os.O_RDWR | how)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return os.open(place, os.O_RDONLY | how)


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _walk(folder: Path, ours: Sequence[Callable[[str], bool]]) -> Iterator[Kept]:
    """The files of variants below a folder; ``ours`` tell the names of folders that are ours, by their depth."""
    for entry in entries_of(folder):
        with suppress(FileNotFoundError):
            if ours:
                if ours[0](entry.name) and entry.is_dir(follow_symlinks=False):
                    yield from _walk(folder / entry.name, ours[1:])
            elif names.image_of_variant(entry.name) is not None:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield Kept(entry.path, status)


def _remove_variants(folder: Path, images: Iterable[str]) -> int:
    """Remove the variants of images from one folder, durably, and the folder if it is empty; how much room that gave."""
    removed = freed = 0
    for filename in (filename for image in images for filename in names.variant_filenames(image)):
        place = f"{folder}/{filename}"
        with suppress(FileNotFoundError):
            freed += room_of(os.lstat(place).st_size)
            os.unlink(place)  # noqa: PTH108 -- no Path for each name; see app/records/atomic.py
            removed += 1
    left = _remove_empty(folder)
    if removed:
        with suppress(FileNotFoundError):
            sync_folder(left)
    return freed


def _remove_empty(folder: Path) -> Path:
    """Remove a day folder, and those of its type and its user, as far as they are empty; the lowest folder that stays."""
    for step in (folder, folder.parent, folder.parent.parent):
        try:
            step.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return step
    return folder.parent.parent.parent
