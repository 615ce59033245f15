"""Notifications between the processes of one host: "a job was accepted", "this job is finished", "a running job is to
end", "refresh the catalogues".

Each process binds a Unix datagram socket in one folder beside the database and sends to all the others. A lost notification costs
nothing but time, for everybody who waits also polls the database.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from app.runtime import modes

_PREFIX: Final = ".wake-"
#: What sockaddr_un holds on Linux is 108 bytes (unix(7)); longer paths go round through an open folder.
_LONGEST_PATH: Final = 100
#: More than the longest name of a job takes: a user id is at most 64 characters of up to 4 bytes.
_LONGEST_MESSAGE: Final = 1024
ACCEPTED: Final = b"accepted"
#: Something that a client sees of some job has changed.
CHANGED: Final = b"changed"
#: A request named what no WebUI was known to have; see :meth:`app.jobs.catalogues.Catalogues.want_refresh`.
REFRESH_WANTED: Final = b"refresh wanted"
#: A job that runs is to end, or was deleted; which one, its worker learns with its next heartbeat.
END_WANTED: Final = b"end wanted"
#: A token was made, revoked or rotated.
TOKENS_CHANGED: Final = b"tokens changed"


class Notifier:
    """This process's socket and those of its neighbours.

    ``on_message`` is called from one background thread with each message of another process, and from the caller's thread with
    this process's own.
    """

    def __init__(self, folder: Path, on_message: Callable[[bytes], None]) -> None:
        self._folder = folder
        self._on_message = on_message
        self._name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        modes.make_folders(folder)
        self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Linux makes the file of a socket with the mode of the socket; other systems refuse, and leave it to the umask.
        with contextlib.suppress(OSError):
            os.fchmod(self._socket.fileno(), modes.PRIVATE_FILE)
        self._socket.bind(self._address(self._name))
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="wake", daemon=True)
        self._thread.start()

    def _address(self, name: str) -> str:
        path = self._folder / name
        if len(os.fsencode(path)) <= _LONGEST_PATH:
            return str(path)
        return f"/proc/self/fd/{self._folder_fd}/{name}"

    def tell(self, message: bytes) -> None:
        """Hand a notification to this process and to every other process of the host; never blocks, never fails."""
        self._on_message(message)
        for name in self._neighbours():
            try:
                self._sender.sendto(message, self._address(name))
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    # Its process was killed; nobody will bind this name again.
                    (self._folder / name).unlink(missing_ok=True)

    def _neighbours(self) -> list[str]:
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 -- it is on the way of every job, and a Path for each name costs most
            return [name for name in names if name.startswith(_PREFIX) and name != self._name]
        except OSError:
            return []

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                message = self._socket.recv(_LONGEST_MESSAGE)
            except OSError:
                return
            if message:
                self._on_message(message)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)
        self._thread.join(timeout=1)
        for end in (self._socket, self._sender):
            end.close()
        (self._folder / self._name).unlink(missing_ok=True)
        os.close(self._folder_fd)
