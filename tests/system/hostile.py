"""Clients that mean no good: many connections of one kind, held for as long as the server lets them.

Each client that was closed, or could not connect, tries again a second later, as a flood from many machines would. One thread
drives all of them, so that a thousand cost the test little. Nothing here judges: the test asks the gateway meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

_AGAIN_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.1
_CONNECTING: Final = (0, errno.EINPROGRESS, errno.EAGAIN)
#: The least that Linux gives; a client that does not read then stops its server after few bytes.
_SMALL_BUFFER: Final = 2048


@dataclass(frozen=True)
class Kind:
    """One kind of hostile client: the bytes that it sends, and whether it reads the answer."""

    name: str
    sends: bytes
    reads: bool = True


SILENT: Final = Kind("silent", b"")
HALF_HEAD: Final = Kind("half head", b"GET /livez HTTP/1.1\r\nHost: gateway\r\nX-Half: ")
HALF_BODY: Final = Kind(
    "half body",
    b"POST /txt2img HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: 8000000\r\n\r\n"
    b'{"prompt": "' + b"a" * 30_000,
)


def not_reading(path: str = "/openapi.json", times: int = 200) -> Kind:
    """Ask for ``path`` so many times at once and read no answer; together they should be more than the buffers of a socket."""
    return Kind("not reading", b"GET %s HTTP/1.1\r\nHost: gateway\r\n\r\n" % path.encode("ascii") * times, reads=False)


class Hostile:
    """A number of clients of one kind; a context manager, which ends them all.

    :param url: the server, ``http://host:port``.
    """

    def __init__(self, url: str, kind: Kind, count: int) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._kind = kind
        self._count = count
        self._epoll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        #: When clients that have no connection are due to make one.
        self._due: list[float] = [0.0] * count
        self._sent: set[int] = set()
        self._closed = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"hostile clients: {kind.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        for connection in self._open.values():
            connection.close()
        self._epoll.close()

    @property
    def connected(self) -> int:
        """Clients that are connected now and have sent what they send."""
        return len(self._sent)

    @property
    def closed(self) -> int:
        """Connections that the server has closed or refused so far."""
        return self._closed

    def _run(self) -> None:
        while not self._ending.is_set():
            now = time.monotonic()
            due = [moment for moment in self._due if moment <= now]
            self._due = [moment for moment in self._due if moment > now]
            for _ in due:
                self._connect()
            for descriptor, events in self._epoll.poll(_TICK_SECONDS):
                self._happened(descriptor, events)

    def _connect(self) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        if not self._kind.reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        if connection.connect_ex(self._address) not in _CONNECTING:
            connection.close()
            self._lost()
            return
        self._open[connection.fileno()] = connection
        self._epoll.register(connection.fileno(), select.EPOLLOUT | select.EPOLLRDHUP)

    def _happened(self, descriptor: int, events: int) -> None:
        connection = self._open[descriptor]
        gone = bool(events & (select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP))
        with contextlib.suppress(BlockingIOError):
            try:
                if events & select.EPOLLOUT and not gone:
                    connection.sendall(self._kind.sends)
                    self._sent.add(descriptor)
                    wanted = select.EPOLLIN if self._kind.reads else 0
                    self._epoll.modify(descriptor, wanted | select.EPOLLRDHUP)
                elif events & select.EPOLLIN:
                    gone = not connection.recv(65536) or gone
            except ConnectionError:
                gone = True
        if gone:
            self._epoll.unregister(descriptor)
            del self._open[descriptor]
            self._sent.discard(descriptor)
            connection.close()
            self._lost()

    def _lost(self) -> None:
        self._closed += 1
        self._due.append(time.monotonic() + _AGAIN_SECONDS)
