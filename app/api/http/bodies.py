"""Bodies on their way in: while a large one arrives and waits for its turn it lies on a disk, so that any number may come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import SpooledTemporaryFile
from typing import Self

from app.api.http.refusals import NoRoomForBody

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE
#: A body of more bytes is a large one.
LARGE = MEBIBYTE


class Body:
    """A body as it arrives: a small one in memory, a large one in an unnamed file of the system's temporary folder."""

    def __init__(self) -> None:
        # Not in the data folder: it is no record, and must leave that disk's room to those. The kernel removes it with the
        # last descriptor, however the process ends.
        self._file = SpooledTemporaryFile(max_size=LARGE)  # noqa: SIM115  # closed by our own exit
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What a full disk has refused once it refuses again when it is flushed for the last time.
        with suppress(OSError):
            self._file.close()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    @property
    def large(self) -> bool:
        """Whether it lies on the disk."""
        return self._size > LARGE

    def add(self, chunk: bytes) -> None:
        """Keep what has come.

        :raises NoRoomForBody: the disk is full, or takes no file.
        """
        with _room():
            self._file.write(chunk)
        self._size += len(chunk)

    def read(self) -> bytes:
        """All of it.

        :raises NoRoomForBody: the disk is full, or can't be read.
        """
        with _room():
            self._file.seek(0)
            return self._file.read()


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoRoomForBody from error
