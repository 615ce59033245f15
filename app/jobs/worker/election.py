"""The election of the process that runs the embedded worker of a host: the one that holds an advisory lock on a file.

The kernel frees ``flock(2)`` when the last descriptor of the open file is closed, so also at ``kill -9``, and the next process
that waits for it has it at once. A child process would inherit the descriptor and keep the lock alive: the holder never forks.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from app.runtime import modes


class HostLock:
    """An exclusive lock for the life of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._releasing = threading.Lock()

    def acquire(self) -> None:
        """Wait until no other process holds the lock, then hold it.

        :raises OSError: the file can't be opened.
        """
        modes.make_folders(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, modes.FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the next process have it; nothing happens when it is not held."""
        with self._releasing:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
