"""Notifications between processes: they arrive, they never fail, and dead neighbours leave nothing behind."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.jobs.notifications import ACCEPTED, Notifier
from tests.inprocess import DEADLINE

CHECKOUT = Path(__file__).resolve().parents[2]
NEIGHBOUR = """
import sys
from pathlib import Path
from app.jobs.notifications import Notifier
wake = Notifier(Path(sys.argv[1]), lambda message: print(message.decode(), flush=True))
print("ready", flush=True)
for line in sys.stdin:
    wake.tell(line.strip().encode())
"""


class Process:
    """One end of the channel, and what it heard."""

    def __init__(self, folder: Path) -> None:
        self.heard: queue.Queue[bytes] = queue.Queue()
        self.wake = Notifier(folder, self.heard.put)

    def hears(self) -> bytes:
        return self.heard.get(timeout=DEADLINE)


@pytest.fixture
def join() -> Iterator[Callable[[Path], Process]]:
    joined: list[Process] = []

    def make(folder: Path) -> Process:
        joined.append(Process(folder))
        return joined[-1]

    yield make
    for process in joined:
        process.wake.close()


def sockets(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_notification_reaches_every_process_and_the_sender(join: Callable[[Path], Process], tmp_path: Path) -> None:
    one, two, three = (join(tmp_path) for _ in range(3))
    one.wake.tell(ACCEPTED)
    assert [process.hears() for process in (one, two, three)] == [ACCEPTED] * 3
    three.wake.tell(b"finished 5")
    assert [process.hears() for process in (one, two, three)] == [b"finished 5"] * 3


def test_the_folder_is_made(join: Callable[[Path], Process], tmp_path: Path) -> None:
    join(tmp_path / "not" / "there")
    assert len(sockets(tmp_path / "not" / "there")) == 1


def test_a_path_longer_than_a_socket_address_works(join: Callable[[Path], Process], tmp_path: Path) -> None:
    folder = tmp_path / ("长" * 60) / ("x" * 120)
    one, two = join(folder), join(folder)
    assert len(os.fsencode(folder)) > 108
    one.wake.tell(b"far")
    assert two.hears() == b"far"
    two.wake.tell(b"back")
    assert (one.hears(), one.hears()) == (b"far", b"back")


def test_another_process_hears_and_tells(join: Callable[[Path], Process], tmp_path: Path) -> None:
    one = join(tmp_path)
    command = [sys.executable, "-c", NEIGHBOUR, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=CHECKOUT, **pipes) as neighbour:
        assert neighbour.stdout.readline() == "ready\n"
        one.wake.tell(b"finished 1")
        assert neighbour.stdout.readline() == "finished 1\n"
        neighbour.stdin.write("accepted\n")
        assert (one.hears(), one.hears()) == (b"finished 1", b"accepted")
        neighbour.kill()
        neighbour.wait(DEADLINE)
        assert len(sockets(tmp_path)) == 2
        one.wake.tell(b"anyone?")
        assert len(sockets(tmp_path)) == 1


def test_the_socket_of_a_dead_process_is_removed(join: Callable[[Path], Process], tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(tmp_path / ".wake-1-dead"))
    dead.close()
    one = join(tmp_path)
    one.wake.tell(ACCEPTED)
    assert one.hears() == ACCEPTED
    assert ".wake-1-dead" not in sockets(tmp_path)
    assert len(sockets(tmp_path)) == 1


def test_something_else_in_the_folder_is_left_alone(join: Callable[[Path], Process], tmp_path: Path) -> None:
    (tmp_path / "gateway.db").touch()
    one = join(tmp_path)
    one.wake.tell(ACCEPTED)
    assert "gateway.db" in sockets(tmp_path)


def test_a_neighbour_that_does_not_listen_blocks_nobody(join: Callable[[Path], Process], tmp_path: Path) -> None:
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    deaf.bind(str(tmp_path / ".wake-1-deaf"))
    one, two = join(tmp_path), join(tmp_path)
    for _ in range(2000):
        one.wake.tell(ACCEPTED)
    assert ".wake-1-deaf" in sockets(tmp_path)
    assert two.hears() == ACCEPTED
    deaf.close()


def test_an_empty_datagram_is_no_notification(join: Callable[[Path], Process], tmp_path: Path) -> None:
    one, two = join(tmp_path), join(tmp_path)
    two.wake._sender.sendto(b"", two.wake._address(one.wake._name))
    two.wake.tell(b"real")
    assert one.hears() == b"real"


def test_a_folder_that_went_away_keeps_nobody_from_telling(join: Callable[[Path], Process], tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    one = join(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    one.wake.tell(ACCEPTED)
    assert one.hears() == ACCEPTED


def test_closing_removes_the_socket_and_a_later_notification_is_harmless(tmp_path: Path) -> None:
    one = Process(tmp_path)
    one.wake.close()
    assert sockets(tmp_path) == []
    one.wake.tell(ACCEPTED)
    assert one.hears() == ACCEPTED
