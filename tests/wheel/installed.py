"""A virtual environment with the wheel in it, and a folder in which its command is used."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.system.harness import CHECKOUT, Http, Process, clean_environ, free_port, obey_file_modes, until

_P = TypeVar("_P", bound=Process)
_REQUIREMENTS = CHECKOUT / "requirements.txt"
_INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


class Environment:
    """A virtual environment with nothing but the wheel, in the versions of requirements.txt; nobody may write into it."""

    def __init__(self, folder: Path, wheel: Path, extras: str) -> None:
        """:param extras: the extras to install, separated by commas; empty for none."""
        self.folder = folder / "venv"
        self.command = str(self.folder / "bin" / "sd-gateway")
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        # A constraint names no extras.
        pinned = re.sub(r"\[.*?\]", "", _REQUIREMENTS.read_text("utf-8"))
        constraints = folder / "constraints.txt"
        constraints.write_text(pinned, "utf-8")
        wanted = f"{wheel}[{extras}]" if extras else str(wheel)
        subprocess.run([self.folder / "bin" / "python", *_INSTALL, "-c", constraints, wanted], check=True)
        self._set_modes(lambda mode: mode & ~0o222)
        self._found = self._state()

    def be_writable(self) -> None:
        """Let the folder be removed."""
        self._set_modes(lambda mode: mode | 0o200)

    def written(self) -> set[str]:
        """The files and folders that were made, changed or removed since it was installed."""
        return {str(path) for path, _ in self._state() ^ self._found}

    def _set_modes(self, change: Any) -> None:
        for path in (self.folder, *self.folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(change(path.stat().st_mode))

    def _state(self) -> set[tuple[Path, tuple[int, int]]]:
        """Every path with its size and the time of its last change."""
        states = {path: path.lstat() for path in (self.folder, *self.folder.rglob("*"))}
        return {(path, (state.st_size, state.st_mtime_ns)) for path, state in states.items()}


class Installed(Process):
    """A program of an environment, in a folder outside the checkout; it obeys file modes also where root runs the tests."""

    def __init__(self, name: str, place: Place, *arguments: str, **settings: Any) -> None:
        environ = clean_environ(place.folder, **settings)
        super().__init__(name, [place.environment.command, *arguments], environ, place.folder.parent)
        self._place = place

    def launch(self) -> None:
        """Start it."""
        with self.open_log() as log:
            self._running = subprocess.Popen(
                self.command,
                cwd=self._place.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=obey_file_modes,  # noqa: PLW1509 -- it takes no lock
            )


class Served(Installed):
    """``sd-gateway serve`` at a port of its own."""

    def __init__(self, name: str, place: Place, *options: str, **settings: Any) -> None:
        self.port = free_port()
        self.http = Http(f"http://127.0.0.1:{self.port}")
        super().__init__(name, place, "serve", *options, **{"SDG_BIND": f"127.0.0.1:{self.port}", **settings})

    def await_ready(self) -> None:
        """Wait until pictures can be made."""
        until(self._ready, f"{self.name} is ready", 60)

    def _ready(self) -> bool:
        assert self.alive, f"{self.name} ended by itself:\n{self.text()}"
        try:
            return bool(self.http.get("/readyz").json()["reasons"] == [])
        except OSError:
            return False


class Place:
    """The folder in which a person uses an environment: it is the current folder of every command."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment = environment
        self.folder = folder
        #: Where the gateway keeps everything, unless it is told otherwise.
        self.instance = folder / "sd-gateway"
        self._processes: list[Process] = []
        folder.mkdir()

    def run(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            [self.environment.command, *arguments],
            cwd=self.folder,
            env=clean_environ(self.folder, **settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=obey_file_modes,
        )

    def start(self, *arguments: str, **settings: Any) -> Installed:
        """Start the command."""
        return self._started(Installed(self._name(arguments[0]), self, *arguments, **settings))

    def simulator(self, seconds_per_image: float = 0.1) -> str:
        """Start a simulated WebUI; its URL."""
        port = free_port()
        self.start("simulate", "--port", str(port), "--seconds-per-image", str(seconds_per_image))
        http = Http(f"http://127.0.0.1:{port}")
        until(lambda: _answers(http, "/sdapi/v1/sd-models"), "the simulator answers", 60)
        return http.base

    def serve(self, *options: str, **settings: Any) -> Served:
        """Start the gateway."""
        return self._started(Served(self._name("serve"), self, *options, **settings))

    def clear(self) -> None:
        """End what still runs, and show what it has printed where the test fails."""
        for process in reversed(self._processes):
            process.kill()
            print(f"--- {process.name}\n{process.text()}")

    def files(self, pattern: str) -> Sequence[Path]:
        """The files of the instance folder that fit."""
        return [path for path in self.instance.rglob(pattern) if path.is_file()]

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self._processes)}"

    def _started(self, process: _P) -> _P:
        self._processes.append(process)
        process.launch()
        return process


def _answers(http: Http, path: str) -> bool:
    try:
        return http.get(path).ok
    except OSError:
        return False
