"""Clients that read an answer slowly, many at once, and what they leave of the server for others."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness import BenchmarkError, Line
from benchmarks.report import Sample, milliseconds

_READERS = 128
#: Bytes a second, and how often a second a reader reads.
_PACE = 100_000
_TURNS = 10
#: Little, so that what is not read stays with the server.
_BUFFER = 64 * 1024


@dataclass(frozen=True)
class Reading:
    """The number of readers, and the bytes a second that they got together."""

    readers: int
    bytes_per_second: float


def while_they_read(port: int, path: str, seconds: float) -> tuple[Sample, Reading]:
    """The times of ``GET /livez`` on new connections while all readers take the file at their pace.

    :raises BenchmarkError: an answer was not 200.
    """
    with _readers(port, path) as readers:
        got: list[float] = []
        reading = threading.Thread(target=lambda: got.append(_read(readers, seconds)))
        reading.start()
        times = []
        while reading.is_alive():
            begun = time.perf_counter()
            with Line(port) as line:
                line.get("/livez")
            times.append(milliseconds(time.perf_counter() - begun))
            time.sleep(0.01)
        reading.join()
    if not got:
        raise BenchmarkError("the slow readers got no answer")
    return Sample(times), Reading(len(readers), got[0])


@contextlib.contextmanager
def _readers(port: int, path: str) -> Iterator[list[socket.socket]]:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(socket.socket()) for _ in range(_READERS)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            reader.settimeout(30)
            reader.connect(("127.0.0.1", port))
            reader.sendall(request)
        yield readers


def _read(readers: list[socket.socket], seconds: float) -> float:
    """Read at the pace for so long; the bytes a second that all got."""
    begun, total = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        turn = time.perf_counter()
        total += sum(len(reader.recv(_PACE // _TURNS, socket.MSG_WAITALL)) for reader in readers)
        time.sleep(max(0.0, 1 / _TURNS - (time.perf_counter() - turn)))
    return total / (time.perf_counter() - begun)
