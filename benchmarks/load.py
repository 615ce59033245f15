"""A client that fetches one URL again and again on many kept connections: ``wrk`` where it is installed, else this module.

``python -m benchmarks.load PORT PATH CONNECTIONS SECONDS [FIELD...]`` runs as a process of its own, so that its threads do not
share an interpreter with anything that is measured, and prints what it counted as JSON. It costs more CPU than wrk does, which the
servers then lack; so the same client is used for every server, and their ratio is judged.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from benchmarks.harness import CHECKOUT, BenchmarkError

_BUFFER = 1 << 20
_WRK_COUNTS = re.compile(r"(\d+) requests in ([\d.]+)(ms|s|m), ([\d.]+)(B|KB|MB|GB|TB) read")
_WRK_BAD = re.compile(r"Non-2xx|Socket errors: connect [1-9]")
#: wrk's units of bytes are powers of 1024, its times are these many seconds.
_UNITS = ("B", "KB", "MB", "GB", "TB")
_TIMES = {"ms": 0.001, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Load:
    """The answers that a client got: their number, their bytes with the heads, and the seconds that they took."""

    requests: int
    bytes: float
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    def __str__(self) -> str:
        return f"{self.rate:.0f}/s, {self.bytes / self.seconds / 1e6:.0f} MB/s"


def client() -> str:
    """The name of the client that :func:`fetch` uses."""
    return "wrk" if shutil.which("wrk") else "benchmarks.load"


def fetch(
    port: int, path: str, connections: int, seconds: float, headers: Mapping[str, str] = MappingProxyType({})
) -> Load:
    """Fetch a path of a loopback server for some seconds.

    :param headers: header fields of each request besides Host.
    :raises BenchmarkError: an answer was no 200, or the client failed.
    """
    fields = [f"{name}: {value}" for name, value in headers.items()]
    if client() == "wrk":
        return _wrk(port, path, connections, seconds, fields)
    command = [sys.executable, "-m", "benchmarks.load", str(port), path, str(connections), str(seconds), *fields]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT, timeout=seconds + 60)
    if done.returncode:
        raise BenchmarkError(f"the client failed: {done.stderr[-500:]}")
    return Load(**json.loads(done.stdout))


def _wrk(port: int, path: str, connections: int, seconds: float, fields: Sequence[str]) -> Load:
    url = f"http://127.0.0.1:{port}{path}"
    more = [option for field in fields for option in ("-H", field)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", *more, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    found = _WRK_COUNTS.search(done.stdout)
    if found is None or _WRK_BAD.search(done.stdout):
        raise BenchmarkError(f"wrk failed: {(done.stdout + done.stderr)[-500:]}")
    count, elapsed, time_unit, size, unit = found.groups()
    return Load(int(count), float(size) * 1024 ** _UNITS.index(unit), float(elapsed) * _TIMES[time_unit])


class _Client:
    """One connection in one thread."""

    def __init__(self, port: int, request: bytes, deadline: float) -> None:
        self.requests = 0
        self.bytes = 0
        self.failure: str | None = None
        self._port = port
        self._request = request
        self._deadline = deadline
        self._buffer = bytearray(_BUFFER)

    def run(self) -> None:
        """Ask until the time is up."""
        try:
            while time.perf_counter() < self._deadline:
                self._on_one_connection()
        except (OSError, ValueError) as error:
            self.failure = repr(error)

    def _on_one_connection(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kept = True
            while kept and time.perf_counter() < self._deadline:
                line.sendall(self._request)
                kept = self._read_answer(line)

    def _read_answer(self, line: socket.socket) -> bool:
        """Read one answer whole; whether the connection is kept."""
        head, rest = self._read_head(line)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(head[:100])
        fields = dict(field.split(b": ", 1) for field in head.lower().split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        missing = length - rest
        while missing > 0:
            missing -= self._receive(line)
        self.requests += 1
        self.bytes += len(head) + length
        return fields.get(b"connection") != b"close"

    def _read_head(self, line: socket.socket) -> tuple[bytes, int]:
        """The head of an answer and how many bytes of its body came with it."""
        received = b""
        while b"\r\n\r\n" not in received:
            count = self._receive(line)
            received += bytes(self._buffer[:count])
        head, _, body = received.partition(b"\r\n\r\n")
        return head, len(body)

    def _receive(self, line: socket.socket) -> int:
        count = line.recv_into(self._buffer)
        if not count:
            raise ValueError("the connection ended within an answer")
        return count


def _main(port: int, path: str, connections: int, seconds: float, fields: Sequence[str]) -> None:
    request = "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]).encode()
    begun = time.perf_counter()
    clients = [_Client(port, request, begun + seconds) for _ in range(connections)]
    threads = [threading.Thread(target=each.run) for each in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [each.failure for each in clients if each.failure is not None]
    if failures:
        sys.exit(failures[0])
    elapsed = time.perf_counter() - begun
    load = Load(sum(each.requests for each in clients), float(sum(each.bytes for each in clients)), elapsed)
    print(json.dumps(asdict(load)))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
