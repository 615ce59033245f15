"""The content of the data folder: its files and folders as they are found, whatever should be there."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.parameters import TYPES
from app.records import layout as names
from app.records.errors import MissingFile, StorageFailed
from app.records.layout import FileName

#: What a folder's name must look like to be one of ours, by its depth below the root.
IS_OURS = (names.is_user_folder, TYPES.__contains__, names.is_day)


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


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Operating system errors as this package's; a file or folder that is not there is a missing file unless one writes."""
    try:
        yield
    except OSError as error:
        if doing == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise MissingFile from error
        raise StorageFailed(error, doing=doing) from error


def find(root: str, parts: Iterable[str]) -> tuple[str, os.stat_result]:
    """The path of what lies below a folder, as text, and its status: making a Path takes longer than finding a file.

    A symbolic link is never followed: it may lead out of the data folder.

    :param parts: the names of the folders on the way, and its own.
    :raises MissingFile: it is not there, or there is a link on the way.
    """
    place, status = root, None
    with translated("read"):
        for part in parts:
            place = f"{place}/{part}"
            status = os.lstat(place)
            if stat.S_ISLNK(status.st_mode):
                raise MissingFile
    if status is None:
        raise MissingFile
    return place, status


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, by name; none when it is not there."""
    with suppress(MissingFile), translated("read"), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


def scan(root: Path) -> Iterator[StoredFile]:
    """Every regular file of the data folder, also foreign ones in our folders; files that come and go meanwhile do no harm.

    Left out are hidden files beside the user folders (the worker's lock is one) and folders that are not ours.

    :raises StorageFailed: when one of our folders can't be read.
    """
    yield from _walk(root, ())


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[StoredFile]:
    yield from list_files(folder, parts)
    if len(parts) == len(IS_OURS):
        return
    for entry in entries_of(folder):
        if IS_OURS[len(parts)](entry.name) and entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, (*parts, entry.name))


def list_files(folder: Path, parts: tuple[str, ...]) -> Iterator[StoredFile]:
    """The files of one folder, whose place below the data folder is ``parts``."""
    for entry in entries_of(folder):
        if parts or not entry.name.startswith("."):
            file = _examine(entry, folder, parts)
            if file is not None:
                yield file


def _examine(entry: os.DirEntry[str], folder: Path, parts: tuple[str, ...]) -> StoredFile | None:
    """A directory entry as a file of the tree; ``None`` when it is no regular file or has just gone."""
    with suppress(MissingFile), translated("read"):
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
