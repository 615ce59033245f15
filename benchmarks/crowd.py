"""Thousands of clients in one process and one thread, each with one connection and one request; and when each got what."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Self

from benchmarks.harness import BenchmarkError

#: Header fields.
Fields = Mapping[str, str]
_BUFFER = 64 * 1024
#: The clients that send their request before the first of them must have been served.
BATCH = 50


class Crowd:
    """Clients of one server that send a request each and then only read.

    What arrives while nothing is awaited stays in the sockets, so that the crowd takes no CPU time from what is measured.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._texts: dict[socket.socket, bytearray] = {}
        self._ended: set[socket.socket] = set()
        _raise_limit_of_files()

    def __len__(self) -> int:
        return len(self._texts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close all connections, as clients do that are no longer interested."""
        self._selector.close()
        for line in self._texts:
            line.close()

    def ask(self, request: bytes) -> None:
        """One more client connects and sends its request."""
        line = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        self._texts[line] = bytearray()
        line.sendall(request)
        line.setblocking(False)
        self._selector.register(line, selectors.EVENT_READ)

    def await_each(self, text: bytes, seconds: float) -> float:
        """Read until every client has got this text; the :func:`time.perf_counter` when the last one had.

        :raises BenchmarkError: a connection ended without it, or not within ``seconds``.
        """
        return self._read_until(text, seconds, lambda line: text in self._texts[line])

    def await_ends(self, text: bytes, seconds: float) -> float:
        """Read until the server has closed every connection, having sent each client this text; when the last one was closed.

        :raises BenchmarkError: a connection ended without it, or not within ``seconds``.
        """
        return self._read_until(text, seconds, lambda line: line in self._ended)

    def _read_until(self, text: bytes, seconds: float, served: Callable[[socket.socket], bool]) -> float:
        left = {line for line in self._texts if not served(line)}
        deadline = time.monotonic() + seconds
        while left:
            for line in self._read(max(deadline - time.monotonic(), 0.0)):
                if line in self._ended and text not in self._texts[line]:
                    raise BenchmarkError(f"a connection ended without {text!r}: {bytes(self._texts[line])[:300]!r}")
                if served(line):
                    left.discard(line)
            if left and time.monotonic() > deadline:
                raise BenchmarkError(f"{len(left)} of {len(self)} clients did not get {text!r} within {seconds:g} s")
        return time.perf_counter()

    def _read(self, seconds: float) -> Iterator[socket.socket]:
        """Read what has arrived, or arrives within some seconds; the clients who got something, or lost their connection."""
        for key, _ in self._selector.select(seconds):
            line: socket.socket = key.fileobj  # type: ignore[assignment]  # only sockets are registered
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = line.recv(_BUFFER)
            self._texts[line] += data
            if not data:
                self._ended.add(line)
                self._selector.unregister(line)
            yield line

    def gather(self, requests: Sequence[bytes], served: Callable[[], object]) -> None:
        """Send all requests, some at a time: ``served`` waits until those sent so far are being served."""
        for start in range(0, len(requests), BATCH):
            for request in requests[start : start + BATCH]:
                self.ask(request)
            served()


def request(method: str, path: str, headers: Fields = MappingProxyType({}), body: bytes = b"") -> bytes:
    """A request as a client sends it; the body is JSON."""
    fields = {"Host": "127.0.0.1", "Accept": "*/*", **headers}
    if body:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return (
        "\r\n".join(
            [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        ).encode()
        + body
    )


def _raise_limit_of_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
