"""Writing that survives a power cut: after :func:`write_files` returned, all files are there for good; after it raised, none is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from app.records.names import temporary_filename
from app.steps import UNWATCHED, Steps


def write_files(
    folder: Path,
    files: Sequence[tuple[str, bytes]],
    steps: Steps = UNWATCHED,
    at_the_end: Callable[[], None] = lambda: None,
) -> None:
    """Write files (name, bytes) into an existing folder, each seen by readers either whole or not at all.

    One flush per file and one for the folder: names become durable together. Raises ``OSError`` and leaves nothing behind.

    :param at_the_end: called when all files are there; what it raises takes them back.
    """
    written: list[Path] = []
    try:
        renames: list[tuple[Path, Path]] = []
        for filename, data in files:
            temporary = folder / temporary_filename(filename)
            written.append(temporary)
            _write_durably(temporary, data, steps)
            renames.append((temporary, folder / filename))
        for temporary, final in renames:
            # Noted first: an interruption right after the rename must find it.
            written.append(final)
            with steps.around(f"rename {final.suffix}"):
                temporary.replace(final)
        sync_folder(folder, steps)
        at_the_end()
    except BaseException:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise


def _write_durably(path: Path, data: bytes, steps: Steps) -> None:
    with _create(path) as file:
        file.write(data)
        file.flush()
        with steps.around("fsync file"):
            os.fsync(file.fileno())


def _create(path: Path) -> BinaryIO:
    """Open a new file. One that is there was left by a killed process: a temporary name has one writer."""
    try:
        return path.open("xb")
    except FileExistsError:
        path.unlink(missing_ok=True)
        return path.open("xb")


def sync_folder(folder: Path, steps: Steps = UNWATCHED) -> None:
    """Make the names in a folder durable: fsync of a file does not cover its directory entry (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with steps.around("fsync folder"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
