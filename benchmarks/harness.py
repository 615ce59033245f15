"""Real processes to measure: simulated WebUIs and gateways under gunicorn, each on a free loopback port, in one folder.

Everything a :class:`Stage` starts ends with it, whatever happens.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar

from benchmarks import machine
from benchmarks.report import Row, say

CHECKOUT = Path(__file__).resolve().parent.parent
#: The command as pip installed it beside the interpreter.
COMMAND = str(Path(sys.executable).parent / "sd-gateway")
START_SECONDS = 60.0
#: Unfinished jobs that a measured gateway lets in.
NO_BOUND = 1_000_000
ASYNC: Mapping[str, str] = {"Prefer": "respond-async"}

_T = TypeVar("_T")
_P = TypeVar("_P", bound="Process")

#: The body of a request; a real person's length of prompt.
REQUEST: Mapping[str, Any] = {
    "id": "bench",
    "prompt": "a lighthouse on a cliff at dusk, oil painting, dramatic clouds, warm light in the windows, 灯塔",
    "negative_prompt": "blurry, low quality, watermark, text",
    "width": 512,
    "height": 512,
    "seed": "42",
    "steps": 20,
    "hr_upscaler": "",
    "cfg_scale": 7.0,
    "style": "",
    "batch_size": 1,
}


class BenchmarkError(Exception):
    """A figure could not be measured; the message says why."""


@dataclass
class Bench:
    """One run: where its files lie, how thorough it is, and the rows so far."""

    folder: Path
    quick: bool
    rows: list[Row] = field(default_factory=list)

    def count(self, thorough: int) -> int:
        """The number of repetitions: ``thorough``, or in a quick run a fifth of it and at least 5."""
        return max(5, thorough // 5) if self.quick else thorough

    def add(self, row: Row) -> None:
        """Keep a row for the table, and show it now."""
        self.rows.append(row)
        say(f"  {row.verdict}: {row.what}: {row.measured}; baseline: {row.baseline}; goal: {row.goal}")

    @contextlib.contextmanager
    def stage(self) -> Iterator[Stage]:
        """A fresh folder and its processes; at the end both are gone."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        stage = Stage(folder)
        try:
            yield stage
        finally:
            stage.clear()
            shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], _T], what: str, seconds: float = START_SECONDS, pause: float = 0.02) -> _T:
    """Ask again and again until ``condition()`` is true, and return what it was.

    :raises BenchmarkError: not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return found


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Reply:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        :raises BenchmarkError: the answer is no success, so that no error is ever measured as a fast answer.
        """
        if not http.client.OK <= self.status < http.client.MULTIPLE_CHOICES:
            raise BenchmarkError(f"status {self.status}: {self.body[:300].decode('utf-8', 'replace')}")
        return json.loads(self.body)


class Line:
    """A kept connection to one server, with as little of a client as there can be; it opens again when the server closed it."""

    def __init__(self, port: int, timeout: float = 120.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        self._connection.close()

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and read its answer."""
        given = dict(headers or {}) | ({"Content-Type": "application/json"} if body is not None else {})
        self._connection.request(method, path, body, given)
        answer = self._connection.getresponse()
        return Reply(answer.status, dict(answer.headers.items()), answer.read())

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self.send("GET", path).json()

    def post(self, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Any:
        """Post JSON, and the JSON of the answer."""
        return self.send("POST", path, json.dumps(value).encode(), headers).json()


class Process:
    """One program in a group of its own; its log in a file, its end certain."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.command = list(command)
        self.environ = dict(environ)
        self.log = log
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The number of the process.

        :raises BenchmarkError: it was not started.
        """
        if self._running is None:
            raise BenchmarkError(f"{self.log.stem} was not started")
        return self._running.pid

    def launch(self, cwd: Path = CHECKOUT) -> None:
        """Start the program; whether it is ready is another question."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.command,
                cwd=cwd,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the program and its children at once (SIGKILL), and wait until they let go of their files."""
        if self._running is None:
            return
        family = machine.family(self._running.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        self._running.wait()
        until(lambda: not any(machine.runs(pid) for pid in family), f"{self.log.stem} is gone")

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._running is not None and self._running.poll() is not None

    def check(self) -> None:
        """Make sure that it still runs.

        :raises BenchmarkError: it ended; with the end of its log.
        """
        if self.ended():
            raise BenchmarkError(f"{self.log.stem} ended by itself:\n{self.text()[-3000:]}")

    def text(self) -> str:
        """The output so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


class Server(Process):
    """A program that listens on a loopback port of its own."""

    def __init__(self, port: int, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(command, environ, log)

    def line(self) -> Line:
        """A connection to it."""
        return Line(self.port)

    def await_listening(self) -> None:
        """Wait until it accepts connections."""
        until(self._listens, f"{self.log.stem} listens")

    def _listens(self) -> bool:
        self.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class Simulator(Server):
    """``sd-gateway simulate --precomputed``."""

    def stats(self) -> dict[str, Any]:
        """``GET /simulator/stats``."""
        with self.line() as line:
            stats: dict[str, Any] = line.get("/simulator/stats")
            return stats

    def requests(self) -> list[dict[str, Any]]:
        """``GET /simulator/requests``: the last payloads with the moments of their arrival."""
        with self.line() as line:
            requests: list[dict[str, Any]] = line.get("/simulator/requests")
            return requests

    def arrivals(self) -> list[float]:
        """The times at which the headers of each generation were read, in seconds of ``time.perf_counter``: one clock for all
        processes of a Linux machine (CLOCK_MONOTONIC).
        """
        return [request["received_at"] for request in self.requests()]

    def reset(self) -> None:
        """Its numbers start afresh."""
        with self.line() as line:
            line.post("/simulator/reset", {})

    def await_generations(self, count: int, seconds: float) -> None:
        """Wait until so many generations have begun and nothing is in flight any more."""
        until(lambda: self.stats()["generations"] >= count, f"{count} generations", seconds, pause=0.25)
        with self.line() as line:
            until(lambda: line.get("/sdapi/v1/progress")["state"]["job_count"] == 0, "the simulator is idle")


@contextlib.contextmanager
def paused(simulators: Sequence[Simulator]) -> Iterator[None]:
    """Stop WebUIs where they are (SIGSTOP) while a queue is filled, so that its first job waits as long as its last one."""
    for simulator in simulators:
        os.kill(simulator.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for simulator in simulators:
            os.kill(simulator.pid, signal.SIGCONT)


class Gateway(Server):
    """``gunicorn wsgi:app`` with its data and its database for itself, without bounds of the queue."""

    def __init__(self, port: int, environ: Mapping[str, str], log: Path, data: Path, database: Path) -> None:
        self.data = data
        self.database = database
        super().__init__(port, [sys.executable, "-m", "gunicorn", "wsgi:app"], environ, log)

    def start(self) -> Self:
        """Launch it and wait until all is well."""
        self.launch()
        self.await_ready()
        return self

    def await_ready(self) -> None:
        """Wait until ``/readyz`` says ok."""
        self.await_listening()
        with self.line() as line:
            until(lambda: line.get("/readyz")["status"] == "ok", f"{self.log.stem} is ready")

    def queue(self, count: int, user: str = "bench", **changes: Any) -> None:
        """Post so many requests that nobody waits for."""
        body = json.dumps(picture(id=user, **changes)).encode()
        with self.line() as line:
            for _ in range(count):
                line.send("POST", "/txt2img", body, ASYNC).json()

    def make(self, **changes: Any) -> dict[str, Any]:
        """Post a request and wait for its picture.

        :raises BenchmarkError: there is none.
        """
        with self.line() as line:
            job: dict[str, Any] = line.post("/txt2img", picture(**changes))
        if job["status"] != "succeeded":
            raise BenchmarkError(f"the job is {job['status']}")
        return job

    def file(self, job: Mapping[str, Any]) -> Path:
        """The path of a job's first picture in the data folder."""
        return next(self.data.rglob(job["images"][0]["filename"]))

    def stored_picture(self, size: int, copy: Path | None = None) -> str:
        """The path of a new picture whose file has so many bytes.

        :param copy: where the same bytes are put, too.
        """
        job = self.make(width=64, height=64)
        data = os.urandom(size)
        for place in filter(None, (self.file(job), copy)):
            place.write_bytes(data)
        path: str = job["images"][0]["url"]
        return path

    def make_token(self) -> str:
        """A token that may do everything for every user; nothing is served without one from then on."""
        command = [COMMAND, "tokens", "create", "--name", "bench"]
        done = subprocess.run(command, env=self.environ, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"no token was made: {done.stderr[-500:]}")
        with self.line() as line:
            until(lambda: line.send("GET", "/queue").status == HTTPStatus.UNAUTHORIZED, "a token is needed")
        return done.stdout.strip()


class Stage:
    """The processes of one measurement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[Process] = []

    def _log(self, kind: str) -> Path:
        return self.folder / f"{kind}{len(self._processes)}.log"

    def add(self, process: _P) -> _P:
        """End this process with the stage."""
        self._processes.append(process)
        return process

    def clear(self) -> None:
        """End everything, the youngest first."""
        for process in reversed(self._processes):
            process.kill()

    def simulator(self, seconds_per_image: float, *, listening: bool = True) -> Simulator:
        """A new simulator that serves precomputed pictures."""
        port = free_port()
        options = ["--port", str(port), "--seconds-per-image", str(seconds_per_image), "--precomputed"]
        simulator = Simulator(port, [COMMAND, "simulate", *options], clean_environ(self.folder), self._log("simulator"))
        self.add(simulator).launch()
        if listening:
            simulator.await_listening()
        return simulator

    def gateway(self, simulators: Sequence[Simulator], **settings: Any) -> Gateway:
        """A new gateway, not yet started."""
        port, log = free_port(), self._log("gateway")
        home = self.folder / log.stem
        (home / "instance").mkdir(parents=True)
        given = {
            "SDG_BIND": f"127.0.0.1:{port}",
            "SDG_WEBUI_URLS": ",".join(simulator.url for simulator in simulators),
            "SDG_HOST_ID": "bench",
            # Not that of the checkout, which has settings, keys and an audit log of its own.
            "SDG_INSTANCE": home / "instance",
            "SDG_DATA_DIR": home / "data",
            "SDG_DATABASE_URL": f"sqlite:///{home / 'gateway.db'}",
            "SDG_MAX_QUEUE": NO_BOUND,
            "SDG_MAX_QUEUE_PER_USER": NO_BOUND,
            **settings,
        }
        environ = clean_environ(self.folder, **given)
        return self.add(Gateway(port, environ, log, home / "data", home / "gateway.db"))

    def worker(self, gateway: Gateway) -> Process:
        """An external worker for a gateway under SDG_WORKER=external."""
        process = self.add(Process([COMMAND, "worker"], gateway.environ, self._log("worker")))
        process.launch()
        return process

    def server(self, kind: str, port: int, command: Sequence[str], **settings: Any) -> Server:
        """Any other program that listens on a port."""
        server = self.add(Server(port, command, clean_environ(self.folder, **settings), self._log(kind)))
        server.launch()
        server.await_listening()
        return server


def clean_environ(folder: Path, **settings: Any) -> dict[str, str]:
    """An environment with these settings and nothing that the caller's shell may have set."""
    environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LANG": "C.UTF-8"}
    return environ | {name: str(value) for name, value in settings.items()}


def picture(**changes: Any) -> dict[str, Any]:
    """The body of a request, with some fields changed."""
    return {**REQUEST, **changes}


def webui_payload(simulator: Simulator) -> dict[str, Any]:
    """The payload of the gateway's last generation without its task id, to be posted again without the gateway."""
    payload: dict[str, Any] = dict(simulator.requests()[-1]["payload"])
    payload.pop("force_task_id", None)
    return payload


def post_by_hand(line: Line, body: bytes) -> list[bytes]:
    """Post a payload straight to a WebUI; its pictures."""
    answer = line.send("POST", "/sdapi/v1/txt2img", body).json()
    return [base64.b64decode(image) for image in answer["images"]]
