"""What stands between two that talk, and may spoil it: the frame that the tests' proxies share."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod


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
