"""The base class of the tests' proxies, which stand between two programs and may disturb their connections."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from abc import ABC, abstractmethod
from pathlib import Path

_BUFFER = 1 << 16
_SELECT_SECONDS = 0.05


class Proxy(ABC):
    """Serves each connection of a listening socket in a thread of its own, until it is closed."""

    def __init__(self, listener: socket.socket) -> None:
        """Begin; whatever :meth:`serve` needs must be there before."""
        self._listener = listener
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self.serve(client)

    @abstractmethod
    def serve(self, client: socket.socket) -> None:
        """Play the proxy's part with one client; it is closed afterwards."""

    def close(self) -> None:
        """Take no more connections."""
        # Closing alone would not wake who accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class TcpProxy(Proxy):
    """Forwards the connections of a loopback port to a Unix socket or another port, until it is told to stop doing so."""

    def __init__(self, target: Path | int) -> None:
        self._target = target
        self._silent = threading.Event()
        #: Raised by one to cut every connection that is older.
        self._cuts = 0
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        super().__init__(listener)

    def fall_silent(self) -> None:
        """From now on acknowledge everything, on old and new connections, and forward nothing."""
        self._silent.set()

    def speak_again(self) -> None:
        """Forward new connections again. One that was silenced has lost bytes, so it stays silent until its client closes it."""
        self._silent.clear()

    def cut(self) -> None:
        """Break all connections with RST."""
        self._cuts += 1

    def serve(self, client: socket.socket) -> None:
        cuts = self._cuts
        by_path = isinstance(self._target, Path)
        with socket.socket(socket.AF_UNIX if by_path else socket.AF_INET) as server:
            silenced = self._silent.is_set()
            if not silenced:
                server.connect(str(self._target) if by_path else ("127.0.0.1", self._target))
            while cuts == self._cuts:
                readable, _, _ = select.select([client] if silenced else [client, server], [], [], _SELECT_SECONDS)
                silenced = silenced or self._silent.is_set()
                for source, other in ((client, server), (server, client)):
                    if source in readable:
                        data = source.recv(_BUFFER)
                        if not data:
                            return
                        if not silenced:
                            other.sendall(data)
            # Closed without waiting for anything, it sends RST.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
