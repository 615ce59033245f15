"""Writing that survives a power cut: after :func:`write_files` returned, all files are there for good; after it raised, none is.

The files are named relative to a descriptor of their folder, not as a Path each: pathlib interns every part of a Path, and
interning new names for each job makes Python's table of interned strings (2 MB and more) grow and be copied again and again.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.records.layout import fresh_temporary_filename, temporary_filename
from app.runtime import modes
from app.runtime.failpoints import UNWATCHED, Failpoints

#: What link(2) answers on file systems that have no hard links, such as exFAT.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def write_files(
    folder: Path,
    files: Sequence[tuple[str, bytes]],
    failpoints: Failpoints = UNWATCHED,
    at_the_end: Callable[[], None] = lambda: None,
) -> None:
    """Write files (name, bytes) into an existing folder, each seen by readers either whole or not at all.

    One flush per file and one for the folder: names become durable together. Raises ``OSError`` and leaves nothing behind.

    :param at_the_end: called when all files are there; what it raises takes them back.
    """
    with _opened(folder) as descriptor:
        written: list[str] = []
        try:
            temporaries = [_write_temporary(descriptor, *file, failpoints, written) for file in files]
            for temporary, (filename, _) in zip(temporaries, files, strict=True):
                # Noted first: an interruption right after the rename must find it.
                written.append(filename)
                with failpoints.around(f"rename {suffix(filename)}"):
                    os.replace(temporary, filename, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            _flush_folder(descriptor, failpoints)
            at_the_end()
        except BaseException:
            for name in written:
                with suppress(OSError):
                    os.unlink(name, dir_fd=descriptor)
            raise


def replace_file(folder: Path, filename: str, data: bytes, failpoints: Failpoints = UNWATCHED) -> None:
    """Write one file that can be made again into an existing folder, in place of one that is there.

    Readers see it whole or not at all, also after a power cut; but a power cut may take it away, since its folder is not flushed.

    :raises OSError: it was not written, and nothing was left behind.
    """
    with _opened(folder) as descriptor:
        written: list[str] = []
        try:
            temporary = _write_temporary(descriptor, filename, data, failpoints, written)
            with failpoints.around(f"rename {suffix(filename)}"):
                os.replace(temporary, filename, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        except BaseException:
            for name in written:
                with suppress(OSError):
                    os.unlink(name, dir_fd=descriptor)
            raise


def create_file(path: Path, data: bytes, failpoints: Failpoints = UNWATCHED, *, mode: int = modes.FILE) -> bool:
    """Make a file unless there is one, durably; say whether it was made. Readers see it whole or not at all.

    Of several processes that try at once only one makes it. A file system without hard links can't promise that.

    :raises OSError: the file was not made.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_durably(temporary, data, failpoints, mode=mode)
        made = _link(temporary, path, failpoints)
    finally:
        temporary.unlink(missing_ok=True)
    # The file is there now, so nobody needs what processes that were killed here have left.
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        left.unlink(missing_ok=True)
    sync_folder(path.parent, failpoints)
    return made


def _link(temporary: Path, path: Path, failpoints: Failpoints) -> bool:
    """Give a file its final name unless that is taken; say whether it was free."""
    try:
        with failpoints.around("link"):
            os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if path.exists():
            return False
        temporary.replace(path)
    return True


def _write_temporary(folder: int, filename: str, data: bytes, failpoints: Failpoints, written: list[str]) -> str:
    """Write a file under a temporary name, which is returned and also appended to ``written``."""
    for name in (temporary_filename(filename), fresh_temporary_filename(filename)):
        # Noted first: an interruption right after the file was made must find it.
        written.append(name)
        try:
            _write_durably(name, data, failpoints, folder)
        except FileExistsError:
            # A killed process left it, or one still writes it that has lost its claim to a database of an earlier state.
            written.pop()
        else:
            return name
    raise FileExistsError


def _write_durably(
    path: str | Path, data: bytes, failpoints: Failpoints, folder: int | None = None, *, mode: int = modes.FILE
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, mode, dir_fd=folder), "wb") as file:
        file.write(data)
        file.flush()
        with failpoints.around("fsync file"):
            os.fsync(file.fileno())


def sync_folder(folder: Path, failpoints: Failpoints = UNWATCHED) -> None:
    """Make the names in a folder durable: fsync of a file does not cover its directory entry (fsync(2))."""
    with _opened(folder) as descriptor:
        _flush_folder(descriptor, failpoints)


def _flush_folder(descriptor: int, failpoints: Failpoints) -> None:
    with failpoints.around("fsync folder"):
        os.fsync(descriptor)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def suffix(filename: str) -> str:
    """The end of a file name from its last dot on."""
    return "." + filename.rpartition(".")[2]
