"""The records on disk: the only code that touches the data folder. :mod:`app.records.layout` draws its tree.

Nothing here decides what should exist (the job table does): files appear whole or not at all, are found by name, and go.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.records import layout as names
from app.records.atomic import create_file, sync_folder, write_files
from app.records.errors import BadDocument, BadImage, MissingFile, StorageFailed, StoreUnavailable
from app.records.images import sniff
from app.records.layout import FileName
from app.runtime.failpoints import UNWATCHED, Steps

#: With less room than this (bytes) the disk counts as full: no picture of a usual size fits any more.
LEAST_FREE = 2**20
#: How many day folders a store remembers as durable, to flush their parents once and not at every save.
_REMEMBERED = 4096
#: How often a save makes its folder that others remove when it is empty.
_MOST_TRIES = 8
#: With more possible names than this, listing the folder costs less than trying them.
_MOST_NAMES = 5000
#: Why a folder stays: somebody uses it.
_IN_USE = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR)
#: The document goes first, so that a half-deleted record can't be indexed again from its folder.
_REMOVAL_ORDER = {"document": 0, "image": 1, "init": 2}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as found in the data folder.

    ``parsed`` is ``None`` for a foreign file, one that the gateway can't have written there. ``temporary`` marks one that was
    never finished; its ``parsed`` says what it was to become. For foreign files above a day folder the folders they are not
    in are ``""``. ``size`` is in bytes.
    """

    user_folder: str
    type: str
    day: str
    filename: str
    parsed: FileName | None
    path: Path
    age_seconds: float
    size: int
    temporary: bool


class RecordStore:
    """The files of all records under one folder. Threads and processes may share it.

    The folder itself is made by :meth:`prepare` alone: when a disk is unmounted under a running gateway, saving must fail
    rather than fill the empty mount point. So after :meth:`expect` no folder of a user is made where the id is missing.
    """

    def __init__(self, root: Path, steps: Steps = UNWATCHED) -> None:
        self._root = root
        self._steps = steps
        self._expected: str | None = None
        #: Day folders whose parents this store has flushed, each with :meth:`_last_removal` as it was before.
        self._durable: dict[Path, int] = {}
        #: An empty file; its time of modification is that of the last removal of a folder.
        self._removals = root / ".folders-removed"

    # The folder as a whole.

    def prepare(self) -> None:
        """Make the data folder if it is missing.

        :raises StoreUnavailable: when that can't be done.
        """
        try:
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable("The data folder cannot be made.") from error

    def check(self) -> None:
        """Ask, cheaply and without writing, whether records can be saved now.

        :raises StoreUnavailable: when the folder is missing, not writable, or its disk has no room or no inodes left.
        """
        try:
            room = os.statvfs(self._root)
        except OSError as error:
            raise StoreUnavailable("The data folder cannot be reached.") from error
        if not self._root.is_dir() or not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreUnavailable("The data folder cannot be written.")
        # A file system without a fixed number of inodes reports 0 of 0.
        if room.f_bavail * room.f_frsize < LEAST_FREE or (room.f_files and not room.f_favail):
            raise StoreUnavailable("The disk of the data folder is full.")

    @property
    def exists(self) -> bool:
        """Whether the data folder is there."""
        return self._root.is_dir()

    @property
    def has_users(self) -> bool:
        """Whether the data folder holds the folder of a user."""
        return any(names.is_user_folder(entry.name) for entry in _entries(self._root))

    def read_id(self) -> str | None:
        """The id of the data folder; None when it has none.

        :raises StorageFailed: it can't be read.
        """
        with suppress(MissingFile), _translated("read"):
            return (self._root / names.ID_FILE).read_text("ascii", "replace").strip()
        return None

    def give_id(self, value: str) -> None:
        """Give the data folder an id, unless it has one.

        :raises StorageFailed: that can't be done.
        """
        with _translated("written"):
            create_file(self._root / names.ID_FILE, f"{value}\n".encode("ascii"), self._steps)

    def expect(self, value: str) -> None:
        """Save for new users only while the data folder has this id."""
        self._expected = value

    # Writing.

    def save_init(self, user_id: str, type_: str, name: str, png: bytes) -> str:
        """Store the reference image of a job and return its file name.

        :raises StorageFailed: nothing was stored.
        """
        return self._save(user_id, type_, name, [(names.init_filename(name), png)])[0]

    def save(
        self,
        user_id: str,
        type_: str,
        name: str,
        attempt: int,
        images: Sequence[tuple[bytes, str]],
        document: dict[str, Any] | None = None,
    ) -> list[str]:
        """Store the images of one attempt, given as (bytes, extension), and its parameter document; their file names in that order.

        The document is JSON (RFC 8259) in UTF-8, and appears when all images have.

        :raises StorageFailed: none of them was stored.
        """
        files = [
            (names.image_filename(name, attempt, index, extension), data)
            for index, (data, extension) in enumerate(images)
        ]
        if document is not None:
            files.append((names.document_filename(name, attempt), _dump(document)))
        return self._save(user_id, type_, name, files)

    def _save(self, user_id: str, type_: str, name: str, files: Sequence[tuple[str, bytes]]) -> list[str]:
        folder = self._folder(user_id, type_, name)
        with _translated("written"):
            for left in reversed(range(_MOST_TRIES)):
                try:
                    self._make(folder)
                    write_files(folder, files, self._steps, lambda: self._keep_durable(folder))
                    break
                except FileNotFoundError:
                    # The folder was empty until now, and whoever deleted its last record removed it just now. Where the data
                    # folder itself is gone, nothing helps.
                    if not left:
                        raise
        return [filename for filename, _ in files]

    def _make(self, folder: Path) -> None:
        """Make a day folder and what is missing above it, down from the root, durably.

        An empty mount point has no folder of a user, so asking for the id before one is made is enough.

        That a folder exists does not mean that another process has flushed its parent yet, so each store does it once itself.
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
                step.mkdir(mode=0o755)
                made = True
        if made:
            self._flush_parents(folder)
        else:
            self._keep_durable(folder)

    def _keep_durable(self, folder: Path) -> None:
        """Flush the parents of a day folder again if some folder was removed since: this one may be another of the same name."""
        if self._durable.get(folder) != self._last_removal():
            self._flush_parents(folder)

    def _flush_parents(self, folder: Path) -> None:
        # Read first: a removal in the meantime makes this flush one too many, never one too few.
        last_removal = self._last_removal()
        for parent in (self._root, folder.parent.parent, folder.parent):
            sync_folder(parent, self._steps)
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
        os.close(os.open(self._removals, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        os.utime(self._removals, ns=(now, now))

    # Reading.

    def path(self, user_id: str, type_: str, filename: str) -> Path:
        """:meth:`place` as a Path."""
        return Path(self.place(user_id, type_, filename))

    def place(self, user_id: str, type_: str, filename: str) -> str:
        """The path of an existing file, as text: making a Path takes longer than finding the file.

        Any text may be given: only names that the gateway writes can be found. A symbolic link below the data folder is never
        followed: it may lead out of it.

        :raises MissingFile: when there is no such file.
        """
        place, mode = str(self._root), 0
        with _translated("read"):
            for part in _parts(user_id, type_, filename):
                place = f"{place}/{part}"
                mode = os.lstat(place).st_mode
                if stat.S_ISLNK(mode):
                    raise MissingFile
        if not stat.S_ISREG(mode):
            raise MissingFile
        return place

    def read_init(self, user_id: str, type_: str, name: str) -> bytes:
        """The reference image of a job, a PNG.

        :raises MissingFile: when there is none.
        """
        path = self.path(user_id, type_, f"{name}-init.png")
        with _translated("read"):
            return path.read_bytes()

    def files_of(self, user_id: str, type_: str, name: str) -> list[StoredFile]:
        """Every file of a record, whatever attempt it is of and unfinished ones too, in the order in which they should go."""
        try:
            folder = self._folder(user_id, type_, name)
        except ValueError:
            return []
        found = [
            (_removal_order(file.parsed, temporary=file.temporary), file)
            for file in self._list(folder, (folder.parts[-3], type_, folder.name))
            if file.parsed is not None and file.parsed.name == name
        ]
        return [file for _, file in sorted(found, key=lambda pair: pair[0])]

    # Removing. Nothing is listed unless the names can't be known: what a removal costs does not depend on its folder.

    def discard(self, user_id: str, type_: str, name: str, attempt: int, *, images: int) -> None:
        """Remove what one attempt has left, finished or not; never the reference image.

        :param images: how many pictures it was to make.
        :raises StorageFailed: some file could not be removed.
        """
        self._remove(user_id, type_, name, _with_temporaries(names.filenames_of(name, [attempt], images)))

    def remove(self, user_id: str, type_: str, name: str, *, claims: int, images: int | None) -> list[str]:
        """Remove every file of a record, of whatever attempt, documents first; return the names of the finished ones.

        Folders that are empty then go, too.

        :param claims: the number of its last attempt.
        :param images: how many pictures an attempt was to make; None where nobody knows, and then the folder is listed.
        :raises StorageFailed: some file could not be removed; a repetition goes on from there.
        """
        if images is None or claims * images * len(names.EXTENSIONS) > _MOST_NAMES:
            filenames = [file.filename for file in self.files_of(user_id, type_, name)]
        else:
            finished = names.filenames_of(name, range(1, claims + 1), images)
            filenames = _with_temporaries([*finished, f"{name}-init.png"])
        removed = self._remove(user_id, type_, name, filenames)
        return [filename for filename in removed if names.parse_filename(filename) is not None]

    def remove_files(self, user_id: str, type_: str, name: str, filenames: Iterable[str]) -> list[str]:
        """Remove these files of a record, in this order, and folders that are empty then; the names of those that were there.

        Any text may be given: nothing but a file of this record is removed.

        :raises StorageFailed: one could not be removed; a repetition goes on from there.
        """
        parsed = [(filename, names.parse_filename(filename)) for filename in filenames]
        own = [
            filename for filename, file in parsed if file is not None and file.name == name and file.kind != "record"
        ]
        return self._remove(user_id, type_, name, own)

    def remove_stored(self, stored: StoredFile) -> bool:
        """Remove a file that :meth:`scan` or :meth:`files_of` found; say whether it was still there.

        :raises ValueError: for a foreign file: those are not ours to remove.
        :raises StorageFailed: it could not be removed.
        """
        if stored.parsed is None:
            raise ValueError("a foreign file is never removed")
        removed = self._unlink(stored.path)
        self._remove_empty(stored.path.parent)
        return removed

    def remove_empty_folders(self) -> int:
        """Remove every empty folder of ours, such as versions before have left; how many users' folders went.

        :raises StorageFailed: one could not be read or removed.
        """
        before = len(self._folders_in(self._root, 0))
        for user in self._folders_in(self._root, 0):
            for type_ in self._folders_in(user, 1):
                for day in self._folders_in(type_, 2):
                    self._remove_empty(day)
                # For the types and users without any folder in them.
                self._remove_empty(type_ / _NO_DAY)
            self._remove_empty(user / names.TYPES[0] / _NO_DAY)
        return before - len(self._folders_in(self._root, 0))

    def _folders_in(self, folder: Path, depth: int) -> list[Path]:
        found = (entry for entry in _entries(folder) if _IS_OURS[depth](entry.name))
        return [folder / entry.name for entry in found if entry.is_dir(follow_symlinks=False)]

    def _remove(self, user_id: str, type_: str, name: str, filenames: Iterable[str]) -> list[str]:
        try:
            folder = self._folder(user_id, type_, name)
        except ValueError:
            return []
        if any(step.is_symlink() for step in (folder, folder.parent, folder.parent.parent)):
            # It may lead out of the data folder.
            return []
        removed = [filename for filename in filenames if self._unlink(folder / filename)]
        if removed:
            self._settle(folder)
        self._remove_empty(folder)
        return removed

    def _unlink(self, path: Path) -> bool:
        with _translated("removed"):
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    return False
                with self._steps.around(f"unlink {path.suffix}"):
                    path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def _settle(self, folder: Path) -> None:
        """Make removals durable: what a user deleted must not come back with a power cut."""
        # Where another process has just removed the folder, nothing of it can come back.
        with _translated("removed"), suppress(FileNotFoundError):
            sync_folder(folder, self._steps)

    def _remove_empty(self, folder: Path) -> None:
        """Remove a day folder and those above it as far as they are empty: the name of a user's folder tells whose it was."""
        highest: Path | None = None
        with _translated("removed"):
            for step in (folder, folder.parent, folder.parent.parent):
                empty = _is_empty(step)
                if empty is False or (empty and not self._remove_folder(step)):
                    break
                highest = step if empty else highest
        if highest is not None:
            self._settle(highest.parent)

    def _remove_folder(self, folder: Path) -> bool:
        """Remove an empty folder; False when it is in use again."""
        self._note_removal()
        try:
            with self._steps.around("rmdir"):
                folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in _IN_USE:
                raise
            return False
        return True

    # The whole tree, for sweep, verify and reindex.

    def scan(self) -> Iterator[StoredFile]:
        """Every regular file of the data folder, also foreign ones in our folders; files that come and go meanwhile do no harm.

        Left out are hidden files beside the user folders (the worker's lock is one) and folders that are not ours.

        :raises StorageFailed: when one of our folders can't be read.
        """
        yield from self._walk(self._root, ())

    def _walk(self, folder: Path, parts: tuple[str, ...]) -> Iterator[StoredFile]:
        yield from self._list(folder, parts)
        if len(parts) == len(_IS_OURS):
            return
        for entry in _entries(folder):
            if _IS_OURS[len(parts)](entry.name) and entry.is_dir(follow_symlinks=False):
                yield from self._walk(folder / entry.name, (*parts, entry.name))

    def _list(self, folder: Path, parts: tuple[str, ...]) -> Iterator[StoredFile]:
        for entry in _entries(folder):
            if parts or not entry.name.startswith("."):
                file = _examine(entry, folder, parts)
                if file is not None:
                    yield file

    def has(self, stored: StoredFile) -> bool:
        """Whether a file that :meth:`scan` found is still there."""
        return stored.path.exists()

    def read_stored(self, stored: StoredFile) -> dict[str, Any]:
        """The parameter document that :meth:`scan` found, for which no user id is needed.

        :raises MissingFile: when it has gone.
        :raises BadDocument: when it is damaged.
        """
        with _translated("read"):
            return _load(stored.path.read_bytes())

    def verify_file(self, path: Path) -> None:
        """Prove that a file of ours opens: an image is whole and of the format its name says, a document is a JSON object.

        :raises MissingFile: when it is not there.
        :raises BadImage: for a damaged image.
        :raises BadDocument: for a damaged document.
        """
        parsed = names.parse_filename(path.name)
        if parsed is None or parsed.kind == "record":
            raise MissingFile
        with _translated("read"):
            data = path.read_bytes()
        if parsed.kind == "document":
            _load(data)
        elif sniff(data).extension != parsed.extension:
            raise BadImage("The image is not of the format that its name says.")

    def _folder(self, user_id: str, type_: str, name: str) -> Path:
        """The day folder of a record; raises ``ValueError`` when these can't be a record's."""
        parsed = names.parse_filename(name)
        if type_ not in names.TYPES or parsed is None or parsed.kind != "record":
            raise ValueError("no record can have this type and name")
        return self._root.joinpath(names.user_folder(user_id), type_, names.day_of(name))


# What a folder's name must look like to be one of ours, by its depth below the root.
_IS_OURS = (names.is_user_folder, names.TYPES.__contains__, names.is_day)


# Fits no record: stands for the day folder of a type that has none.
_NO_DAY = "0000-00-00"


def _with_temporaries(filenames: Sequence[str]) -> list[str]:
    return [*filenames, *map(names.temporary_filename, filenames)]


def _is_empty(folder: Path) -> bool | None:
    """Whether a folder holds nothing; None when it is not there."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return False


def _parts(user_id: str, type_: str, filename: str) -> tuple[str, str, str, str]:
    """The folders below the data folder in which a file of this name would lie, and its name."""
    parsed = names.parse_filename(filename)
    if parsed is None or parsed.kind == "record" or type_ not in names.TYPES:
        raise MissingFile
    try:
        folder = names.user_folder(user_id)
    except ValueError as error:
        raise MissingFile from error
    return folder, type_, names.day_of(parsed.name), filename


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Operating system errors as this package's; a file or folder that is not there is a missing file unless one writes."""
    try:
        yield
    except OSError as error:
        if doing == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise MissingFile from error
        raise StorageFailed(error, doing=doing) from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name; nothing when it is not there."""
    with suppress(MissingFile), _translated("read"), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


def _examine(entry: os.DirEntry[str], folder: Path, parts: tuple[str, ...]) -> StoredFile | None:
    """A directory entry as a file of the tree; ``None`` when it is no regular file or has just gone."""
    with suppress(MissingFile), _translated("read"):
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return None
        user, type_, day = (*parts, "", "", "")[:3]
        unfinished = names.parse_temporary(entry.name)
        parsed = unfinished or names.parse_filename(entry.name)
        if parsed is not None and (parsed.kind == "record" or names.day_of(parsed.name) != day):
            parsed = None
        return StoredFile(
            user_folder=user,
            type=type_,
            day=day,
            filename=entry.name,
            parsed=parsed,
            path=folder / entry.name,
            age_seconds=max(0.0, time.time() - status.st_mtime),
            size=status.st_size,
            temporary=parsed is not None and unfinished is not None,
        )
    return None


def _removal_order(parsed: FileName, *, temporary: bool) -> tuple[bool, int, int, int]:
    return temporary, _REMOVAL_ORDER[parsed.kind], parsed.attempt or 0, parsed.index or 0


def _dump(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        # A WebUI's text may hold an unpaired surrogate, which UTF-8 can't; escaped it survives.
        return json.dumps(document, allow_nan=False).encode("ascii")


def _load(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadDocument from error
    if not isinstance(document, dict):
        raise BadDocument
    return document
