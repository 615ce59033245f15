"""Checks before a server starts: its address, and enough open files."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from pathlib import Path
from typing import Final

from app.config import CannotStart, Config

#: How long another program may take to give the address free: a gateway that is just stopping does.
_BIND_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1
#: The soft limit of open files is raised so far, where the hard one allows it.
_FILES: Final = 65536
#: What a process has open besides its clients: libraries, sockets, locks; for each thread a database connection (two files of
#: SQLite), and a picture or a body; for each WebUI the connections that its threads hold ready.
_FILES_OF_A_PROCESS: Final = 96
_FILES_OF_A_THREAD: Final = 3
_FILES_OF_A_WEBUI: Final = 16
#: Connections besides those that have a thread or wait for a picture: kept for a next request, sending their head, closing.
_CONNECTIONS_BESIDES: Final = 1000


def await_address(address: tuple[str, int] | str, seconds: float = _BIND_SECONDS) -> None:
    """Wait until gunicorn can listen at an address: host and port, or the path of a Unix socket.

    :raises CannotStart: it can't, or another program still listens there after so many seconds.
    """
    if isinstance(address, str):
        folder = Path(address).parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CannotStart(f"SDG_BIND: the folder {folder} of the socket is missing or can't be written.")
        return
    deadline = time.monotonic() + seconds
    host, port = address[:2]
    while (failure := failure_to_bind(host, port)) is not None:
        if failure.errno != errno.EADDRINUSE:
            raise CannotStart(f"SDG_BIND: can't listen at {host}:{port}: {failure.strerror or failure}.") from failure
        if time.monotonic() >= deadline:
            raise CannotStart(
                f"SDG_BIND: {host}:{port} is in use by another program. Stop that, or choose another address."
            ) from failure
        time.sleep(_POLL_SECONDS)


def room_for_connections(config: Config) -> int:
    """Raise the limit of open files of this process and its children; how many connections one of them may then have at a time.

    :raises CannotStart: there is no room for as many connections as threads and waiting clients take.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # -1 stands for no limit.
    soft, allowed = (limit % 2**64 for limit in (soft, hard))
    if soft < _FILES:
        soft = min(allowed, _FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    others = _FILES_OF_A_PROCESS + _FILES_OF_A_THREAD * config.threads + _FILES_OF_A_WEBUI * len(config.webuis)
    served = config.threads + config.max_waiters + config.max_streams
    if soft < others + served:
        raise CannotStart(
            f"SDG_THREADS, SDG_MAX_WAITERS, SDG_MAX_STREAMS: {config.threads} threads, {config.max_waiters} waiting clients and "
            f"{config.max_streams} streams need {others + served} open files, and the limit is {soft}.",
            "Raise it (ulimit -Hn, LimitNOFILE of systemd), or set fewer of them.",
        )
    return min(soft - others, served + _CONNECTIONS_BESIDES)


def failure_to_bind(host: str, port: int) -> OSError | None:
    """The reason why nobody could listen there now; None when it works."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
