"""One worker per host: the kernel decides, also when a process is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.jobs.worker.election import HostLock
from tests.inprocess import DEADLINE

CHECKOUT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from app.jobs.worker.election import HostLock
HostLock(Path(sys.argv[1])).acquire()
print("elected", flush=True)
sys.stdin.read()
"""


class Candidate:
    """A thread that waits to be elected."""

    def __init__(self, path: Path) -> None:
        self.lock = HostLock(path)
        self.elected = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self.lock.acquire()
        self.elected.set()


def holder(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    return subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_is_followed_at_once(tmp_path: Path) -> None:
    path = tmp_path / ".worker-host.lock"
    with holder(path) as process:
        assert process.stdout.readline() == "elected\n"
        next_one = Candidate(path)
        assert not next_one.elected.wait(0.1)
        process.kill()
        assert next_one.elected.wait(DEADLINE)
    next_one.lock.release()


def test_another_process_waits_while_the_lock_is_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    mine = HostLock(path)
    mine.acquire()
    with holder(path) as process:
        mine.release()
        assert process.stdout.readline() == "elected\n"
        process.kill()


def test_releasing_lets_the_next_one_in(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = HostLock(path)
    first.acquire()
    second = Candidate(path)
    assert not second.elected.wait(0.1)
    first.release()
    assert second.elected.wait(DEADLINE)
    second.lock.release()


def test_releasing_what_is_not_held_does_nothing(tmp_path: Path) -> None:
    lock = HostLock(tmp_path / "lock")
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()


def test_the_folder_is_made(tmp_path: Path) -> None:
    lock = HostLock(tmp_path / "new" / "folder" / "lock")
    lock.acquire()
    lock.release()
    assert (tmp_path / "new" / "folder" / "lock").exists()


def test_a_place_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        HostLock(tmp_path / "file" / "lock").acquire()
