"""Start programs of the checkout without the second of CPU time that an interpreter takes to import all of it.

``python -m tests.system.launcher FD`` imports the gateway and gunicorn once, and then forks a process for each program that it is
asked to start over the socket with that descriptor. The process has its own arguments, environment, working folder, session and
standard streams, and runs what the program is: the script of a command, or the module after ``-m``. Importing opens and starts
nothing (gunicorn.conf.py relies on that too), so that it makes no difference to a program that this was done before the fork.
How a program starts from nothing is tested with ``cold=True`` (``harness.py``).

:class:`Launcher` is the side of the test.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
#: What a program may get from its environment after the interpreter has started; for anything else it starts anew.
_READ_LATE = ("PATH", "HOME", "LANG", "WEB_CONCURRENCY")
_STREAMS = 3


class Launched:
    """A program that was started, with the part of :class:`subprocess.Popen` that tests use."""

    def __init__(self, command: Sequence[str], pid: int, ended: int) -> None:
        self.args = command
        self.pid = pid
        self.returncode: int | None = None
        # The launcher writes the exit status there.
        self._ended = ended

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or the negative number of the signal that ended it.

        :raises subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            status = os.read(self._ended, 16)
            os.close(self._ended)
            assert status, f"the launcher ended before {self.args}"
            self.returncode = int(status)
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)


class Launcher:
    """The process that forks programs, and its socket; one for each process of tests, made by :func:`launcher`."""

    def __init__(self) -> None:
        self._socket, its = socket.socketpair()
        # One request and its answer at a time: tests start programs from several threads.
        self._lock = threading.Lock()
        command = [sys.executable, "-m", __name__, str(its.fileno())]
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"LANG": "C.UTF-8"}
        with its:
            self._process = subprocess.Popen(
                command, cwd=_CHECKOUT, env=environ, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()]
            )

    def start(self, command: Sequence[str], environ: Mapping[str, str], streams: Sequence[int]) -> Launched:
        """Start a program in the checkout, in a session of its own, with these descriptors as its standard streams."""
        request = json.dumps({"command": list(command), "environ": dict(environ)}).encode()
        ended, its_end = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._socket, [b"%9d" % len(request)], [*streams, its_end])
                self._socket.sendall(request)
                pid = self._socket.recv(16)
        finally:
            os.close(its_end)
        return Launched(command, int(pid), ended)

    def close(self) -> None:
        """End the launcher; what it has started goes on."""
        self._socket.close()
        self._process.wait()


@cache
def launcher() -> Launcher:
    """The launcher of this process; it ends with it."""
    made = Launcher()
    atexit.register(made.close)
    return made


def can_start(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a launcher starts this just as the operating system would: our command or gunicorn, with nothing in its environment
    that an interpreter reads when it starts.
    """
    known = command[0] == str(Path(sys.executable).parent / "sd-gateway") or list(command[:3]) == [
        sys.executable,
        "-m",
        "gunicorn",
    ]
    return known and all(name in _READ_LATE or name.startswith("SDG_") for name in environ)


# -- the process of the launcher ---------------------------------------------------------------------------------------


def _serve(control: socket.socket) -> list[str]:
    """Start what is asked for and tell how it ended, until nobody asks any more; in a forked process, return its command."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([control, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _tell_ends(running)
        if control not in readable:
            continue
        head, given, _, _ = socket.recv_fds(control, 9, _STREAMS + 1)
        if not head:
            os._exit(0)
        request = json.loads(control.recv(int(head), socket.MSG_WAITALL))
        *streams, ended = given
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            for descriptor in (woken, wake, ended, *running.values()):
                os.close(descriptor)
            _become(request["environ"], streams)
            command: list[str] = request["command"]
            return command
        running[pid] = ended
        for descriptor in streams:
            os.close(descriptor)
        control.sendall(str(pid).encode())


def _tell_ends(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError):
                os.write(running[pid], str(os.waitstatus_to_exitcode(status)).encode())
            os.close(running.pop(pid))


def _become(environ: Mapping[str, str], streams: Sequence[int]) -> None:
    """Take over what belongs to the program and not to the launcher."""
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environ)


def _run(command: list[str]) -> None:
    """Run a script or a module as the interpreter does it that was started for it alone."""
    if command[0] == sys.executable:
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


def _import_everything() -> None:
    """Import what a gateway, a worker, a simulator and a command of the data folder need."""
    for name in (
        "app.cli",
        "app.serving.gunicorn_worker",
        "gunicorn.app.wsgiapp",
        "sqlalchemy.dialects.sqlite.pysqlite",
    ):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("psycopg")
    # What is there now is garbage of no process: don't look at it again in each of them.
    gc.freeze()


if __name__ == "__main__":
    # Ctrl-C at the terminal is for the tests, which end their programs themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    _command = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _run(_command)
