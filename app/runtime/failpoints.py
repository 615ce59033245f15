"""Failpoints: each step that outlives a crash has one, where a test can kill or suspend the process before and after it.

In production :data:`UNWATCHED` lets them pass. :class:`CrashAt` is what ``SDG_TEST_CRASH_AT`` asks for, which only tests set: it
lists the failpoints that are passed, kills the process with SIGKILL at the chosen one, and suspends it with SIGSTOP where a file
says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

#: Each line of the list of failpoints has this length, so that the place of a line is its number.
_LINE: Final = 64


class Failpoints(Protocol):
    """The points at which something becomes durable."""

    def around(self, name: str) -> AbstractContextManager[None]:
        """Surround one fsync, rename, removal or commit."""

    def reach(self, name: str) -> None:
        """Pass a point where nothing becomes durable: it is not listed, and the process can only be suspended there."""


class _Unwatched:
    def around(self, _name: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def reach(self, _name: str) -> None:
        pass


UNWATCHED: Final[Failpoints] = _Unwatched()


class CrashAt:
    """Lists the failpoints that all processes with one file pass, and kills this one at a given number.

    The first process to pass the failpoint that the file ``<path>.stop`` names (``before NAME``, ``after NAME``, or ``at NAME``
    for a point) removes that file and suspends itself until it gets SIGCONT. A test writes the file again as often as it likes.

    :param path: where to write the list, one line of 64 bytes each: ``before NAME`` and ``after NAME``.
    :param number: the line, counted from 1, at which to die; 0 only lists.
    """

    def __init__(self, path: Path, number: int) -> None:
        self._number = number
        self._stop = path.with_name(f"{path.name}.stop")
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @contextlib.contextmanager
    def around(self, name: str) -> Iterator[None]:
        """Pass, or die, before and after the step."""
        self._pass(f"before {name}")
        yield
        self._pass(f"after {name}")

    def reach(self, name: str) -> None:
        """Pass, or be suspended."""
        self._suspend(f"at {name}")

    def _suspend(self, text: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._stop.read_text("ascii") == text:
                # Of several processes only the one that removes it is suspended.
                self._stop.unlink()
                # To this thread, which then goes no further: a signal to the process may reach another one first.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def _pass(self, text: str) -> None:
        # One append of whole lines: it lands behind those of other processes, and its end tells its number. Threads share
        # the offset, so one of them at a time, or a number could pass unseen.
        with self._lock:
            os.write(self._file, text[: _LINE - 1].ljust(_LINE - 1).encode("ascii") + b"\n")
            if os.lseek(self._file, 0, os.SEEK_CUR) // _LINE == self._number:
                os.kill(os.getpid(), signal.SIGKILL)
        self._suspend(text)


def crash_at(text: str) -> Failpoints:
    """Read ``<file>`` or ``<file>:<number>``; an empty text watches nothing.

    :raises ValueError: for a number that is none.
    """
    if not text:
        return UNWATCHED
    path, _, number = text.partition(":")
    return CrashAt(Path(path), int(number or 0))
