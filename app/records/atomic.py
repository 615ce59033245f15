"""Writing that survives a power cut: after :func:`write_files` returned, all files are there for good; after it raised, none is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from app.records.names import fresh_temporary_filename, temporary_filename
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
            temporary = _write_temporary(folder, filename, data, steps, written)
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


def _write_temporary(folder: Path, filename: str, data: bytes, steps: Steps, written: list[Path]) -> Path:
    """Write a file under a temporary name, which is also appended to ``written``."""
    for name in (temporary_filename(filename), fresh_temporary_filename(filename)):
        # Noted first: an interruption right after the file was made must find it.
        written.append(folder / name)
        try:
            _write_durably(folder / name, data, steps)
        except FileExistsError:
            # A killed process left it, or one still writes it that has lost its claim to a database of an earlier state.
            written.pop()
        else:
            return folder / name
    raise FileExistsError


def _write_durably(path: Path, data: bytes, steps: Steps) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        with steps.around("fsync file"):
            os.fsync(file.fileno())


def sync_folder(folder: Path, steps: Steps = UNWATCHED) -> None:
    """Make the names in a folder durable: fsync of a file does not cover its directory entry (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with steps.around("fsync folder"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
