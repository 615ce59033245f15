"""A PostgreSQL server of a test's own, which can be stopped, started again and frozen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

SOCKET = ".s.PGSQL.5432"
_START_SECONDS = 60.0


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where they are not installed."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


class PostgresServer:
    """A server with an empty database, reachable by a Unix socket only."""

    def __init__(self, place: Path, shared: Path) -> None:
        """:param place: the folder of PostgreSQL's programs.
        :param shared: a folder of this run of the tests, where the first server keeps a copy of its new files for the others:
            to make them takes more than a second of CPU time.
        """
        self._place = place
        # The server refuses to run as root; any other user will do, and a short path fits into a socket's address.
        user = "nobody" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="sdg-pg-"))
        if user is not None:
            shutil.chown(self.folder, user)
        self._options: dict[str, Any] = {
            "user": user,
            "cwd": self.folder,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        self._server: subprocess.Popen[bytes] | None = None
        with (shared / "postgresql.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / "postgresql").exists():
                self._make(shared)
        shutil.copytree(shared / "postgresql", self.folder / "data")
        if user is not None:
            for path in (self.folder / "data", *(self.folder / "data").rglob("*")):
                shutil.chown(path, user)

    def _make(self, shared: Path) -> None:
        """Make the files of a server, and move them there."""
        data = ["-D", self.folder / "made"]
        command = [self._place / "initdb", *data, "-U", "gateway", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        subprocess.run(command, check=True, **self._options)
        shutil.move(self.folder / "made", shared / "postgresql")

    @property
    def url(self) -> str:
        """Its address, for SDG_DATABASE_URL."""
        return f"postgresql://gateway@/postgres?host={self.folder}"

    @property
    def socket(self) -> Path:
        """The socket that it listens at."""
        return self.folder / SOCKET

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self._place / "postgres", "-D", self.folder / "data", "-k", self.folder]
        self._server = subprocess.Popen([*command, "-c", "listen_addresses=", "-c", "fsync=off"], **self._options)
        deadline = time.monotonic() + _START_SECONDS
        ready = [self._place / "pg_isready", "-h", self.folder, "-U", "gateway", "-t", "1"]
        while subprocess.run(ready, check=False, **self._options).returncode != 0:
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once, whoever is connected."""
        assert self._server is not None
        self._server.send_signal(signal.SIGINT)
        self._server.wait(30)

    def freeze(self) -> None:
        """Suspend all of its processes: it keeps every connection and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._server is not None
        pid = self._server.pid
        # The parent first when they stop, so that it starts no other child meanwhile.
        os.kill(pid, number)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
            # One that served a connection may have ended meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    def remove(self) -> None:
        """End it for sure, and remove its files."""
        if self._server is not None and self._server.poll() is None:
            self.thaw()
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
