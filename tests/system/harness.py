"""Real processes for black-box tests: simulated WebUIs, gateways under gunicorn, and the ``sd-gateway`` command.

Nothing here knows the inside of the gateway: processes are started as a person would start them, spoken to over HTTP and
judged by their answers, files and exit codes. A :class:`Stage` owns the processes of one test and ends them for sure; their
logs stay in files, and a failing test shows them (``conftest.py``).

The interpreter that runs the tests runs the processes, so that both use one set of packages. Most programs are forked by a
launcher that has imported everything already (``launcher.py``); with ``cold`` one is started from nothing, and ``make soak`` does
that with all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import quote

import pytest
import requests

from tests.system.launcher import Launched, can_start, launcher
from tests.system.leaks import WATCH

CHECKOUT = Path(__file__).resolve().parents[2]
#: The command as pip installed it beside the interpreter.
COMMAND = str(Path(sys.executable).parent / "sd-gateway")

#: Whether each program is started from nothing.
ALL_COLD = "TESTS_START_COLD" in os.environ

#: Starting a process means importing everything, on a machine that may be busy.
START_SECONDS = 30.0
#: A job of the fast simulators takes a tenth of a second; this is for a machine that is busy with other things.
JOB_SECONDS = 20.0
UNFINISHED = ("queued", "running")
#: From prctl(2) and capabilities(7).
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2
#: How the files of the data folder begin that are no records': the worker's lock, and the id.

#: What a request must hold, small and quick to draw.
PICTURE: dict[str, Any] = {
    "id": "user",
    "prompt": "a lighthouse",
    "negative_prompt": "",
    "width": 64,
    "height": 64,
    "seed": "42",
    "steps": 4,
    "hr_upscaler": "",
    "cfg_scale": 7.0,
    "style": "",
    "batch_size": 1,
}

#: What every problem says besides, whoever answers.
PROBLEM_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

_T = TypeVar("_T")
_P = TypeVar("_P", bound="Process")


def picture(**changes: Any) -> dict[str, Any]:
    """The body of a txt2img request, with some fields changed."""
    body = {**PICTURE, **changes}
    # Here, for a test may send it by other means than those below.
    WATCH.sent(body)
    return body


def until(condition: Callable[[], _T], what: str, seconds: float = JOB_SECONDS) -> _T:
    """Ask again and again until ``condition()`` is true, and return what it was; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def allow_descriptors(count: int) -> None:
    """Let this process, and those that it starts, open so many files; where that is not allowed the test is skipped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft if soft == resource.RLIM_INFINITY else max(soft, count), hard))


def children(pid: int) -> list[int]:
    """The processes that a process has started and not outlived."""
    with contextlib.suppress(FileNotFoundError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    return []


def at_once(calls: Iterable[Callable[[], _T]]) -> list[_T]:
    """Run the calls in one thread each, let them go together, and return their results in order."""
    calls = list(calls)
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], _T]) -> _T:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class Answer(NamedTuple):
    """An answer as it came, read whole."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def problem(self) -> str | None:
        """The type of the problem that it is."""
        is_one = dict(self.headers).get("Content-Type") == "application/problem+json"
        return json.loads(self.body)["type"] if is_one else None


class Http:
    """Plain HTTP to one server: a new connection for each request, no proxy, no redirect followed, bodies read whole."""

    def __init__(self, base: str) -> None:
        self.base = base

    def request(self, method: str, path: str, *, timeout: float = 60.0, **options: Any) -> requests.Response:
        """``path`` is a rooted path, percent-encoded, as the gateway gives it in every ``url``."""
        WATCH.sent(options.get("json"))
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.base + path, timeout=timeout, allow_redirects=False, **options)

    def raw(self, request: bytes) -> tuple[int, str, bytes]:
        """Send these very bytes, as no client library would; status, media type and body of the answer."""
        host, _, port = self.base.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode("latin-1"))
            try:
                answer.begin()
                return answer.status, answer.headers.get_content_type(), answer.read()
            finally:
                answer.close()

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def delete(self, path: str, **options: Any) -> requests.Response:
        return self.request("DELETE", path, **options)


class Line:
    """One kept connection to a server, which sends what it is told and nothing more."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        self._connection.connect()

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request without a body, and read its answer."""
        self._connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.getheaders(), answer.read())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def ask(url: str, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""
    line = Line(url)
    try:
        return line.ask(method, path, headers)
    finally:
        line.close()


class Process:
    """One program: its log in a file, its end certain. ``start`` may be called again after it ended."""

    def __init__(self, name: str, command: Sequence[str], environ: dict[str, str], folder: Path) -> None:
        self.name = name
        self.command = list(command)
        self.environ = environ
        self.log = folder / f"{name}.log"
        WATCH.settings(environ)
        #: Started by the operating system and not by the launcher, as a person would do it.
        self.cold = ALL_COLD
        self._running: subprocess.Popen[bytes] | Launched | None = None

    @property
    def running(self) -> subprocess.Popen[bytes] | Launched:
        assert self._running is not None, f"{self.name} was not started"
        return self._running

    @property
    def alive(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def launch(self) -> None:
        """Start the program; whether it is ready is another question. A session of its own makes its group killable."""
        with self.open_log() as log:
            self._running = start(self.command, self.environ, log, log, cold=self.cold)

    def open_log(self) -> IO[bytes]:
        """The log, to be written by the program, and to be searched for secrets at the end of the test run."""
        WATCH.log(self.log)
        return self.log.open("ab")

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait for the end of the program; its exit code."""
        return self.running.wait(seconds)

    def stop(self, seconds: float = 40.0) -> int:
        """Ask it to end (SIGTERM) and wait; a program that does not end in time is killed, and the test fails."""
        if self.alive:
            self.running.terminate()
        try:
            return self.running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End the program and its children at once (SIGKILL)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.wait()

    def text(self) -> str:
        """The output so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


def start(
    command: Sequence[str],
    environ: Mapping[str, str],
    output: IO[bytes],
    errors: IO[bytes],
    *,
    before: Callable[[], None] | None = None,
    cold: bool = ALL_COLD,
) -> subprocess.Popen[bytes] | Launched:
    """Start a program in the checkout, in a session of its own; without ``cold`` a launcher does it, if it can.

    :param before: called in the new process before the program begins, which then starts cold.
    """
    if before is None and not cold and can_start(command, environ):
        with Path(os.devnull).open("rb") as nothing:
            return launcher().start(command, environ, [file.fileno() for file in (nothing, output, errors)])
    return subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
        preexec_fn=before,  # noqa: PLW1509 -- what tests call there takes no lock
    )


def run(
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    before: Callable[[], None] | None = None,
    cold: bool = ALL_COLD,
) -> subprocess.CompletedProcess[str]:
    """Run a program in the checkout to its end; see :func:`start`."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        running = start(command, environ, output, errors, before=before, cold=cold)
        try:
            code = running.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            raise
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    WATCH.settings(environ)
    WATCH.output(" ".join(command), texts[1])
    return subprocess.CompletedProcess(command, code, *texts)


def obey_file_modes() -> None:
    """Take from root, for the program that is started next, the right to write where the mode of a file forbids it."""
    if os.geteuid() == 0:
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def clean_environ(folder: Path, **settings: Any) -> dict[str, str]:
    """An environment with nothing of the tests' own, and with these settings; a setting that is None is left out."""
    environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LANG": "C.UTF-8"}
    return environ | {name: str(value) for name, value in settings.items() if value is not None}


class Worker(Process):
    """``sd-gateway worker`` for a gateway under SDG_WORKER=external."""

    def __init__(self, name: str, gateway: Gateway, folder: Path) -> None:
        super().__init__(name, [COMMAND, "worker"], gateway.environ, folder)


class Simulator(Process):
    """``sd-gateway simulate`` on a port of its own, which it keeps when it is started again."""

    def __init__(self, name: str, folder: Path, *options: str, seconds_per_image: float = 0.1) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = Http(self.url)
        command = [COMMAND, "simulate", "--port", str(self.port), "--seconds-per-image", str(seconds_per_image)]
        super().__init__(name, [*command, *options], clean_environ(folder), folder)

    def await_ready(self) -> None:
        until(self._ready, f"{self.name} listens", START_SECONDS)

    def _ready(self) -> bool:
        assert self.alive, f"{self.name} ended by itself:\n{self.text()}"
        return listens(self.port)

    def stats(self) -> dict[str, Any]:
        """``GET /simulator/stats``."""
        stats: dict[str, Any] = self.http.get("/simulator/stats").json()
        return stats

    def requests(self) -> list[dict[str, Any]]:
        """``GET /simulator/requests``: the payloads of every POST that was to make or enlarge pictures."""
        payloads: list[dict[str, Any]] = self.http.get("/simulator/requests").json()
        return payloads

    def fault(self, kind: str, **details: Any) -> None:
        """Arm a fault for the next generation; see ``sd-gateway simulate --help``."""
        answer = self.http.request("POST", "/simulator/faults", json={"kind": kind, **details})
        assert answer.status_code == 200, answer.text

    def interrupt(self) -> None:
        """Interrupt the generation, as a person does with the WebUI's Interrupt button; it ends a ``hang`` too."""
        self.http.request("POST", "/sdapi/v1/interrupt")

    def reset(self) -> None:
        """Faults disarmed, numbers at zero, nothing running."""
        self.http.delete("/simulator/faults")
        self.interrupt()
        until(lambda: self.http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0, "the simulator is idle")
        self.http.request("POST", "/simulator/reset")


class Gateway(Process):
    """``gunicorn wsgi:app`` in the checkout, with its data, its database and its port for itself.

    :param urls: the text of SDG_WEBUI_URLS, or simulators, or None to leave the setting out.
    :param application: what gunicorn serves, as ``module:name``.
    :param settings: further settings by their names; None leaves one out.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        urls: str | Sequence[Simulator] | None,
        *,
        processes: int = 2,
        options: Sequence[str] = (),
        application: str = "wsgi:app",
        **settings: Any,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = Http(self.url)
        # A folder each: the processes of one gateway find each other by sockets beside the database.
        self.data = folder / name / "data"
        self.database = folder / name / "gateway.db"
        self.database.parent.mkdir(parents=True, exist_ok=True)
        if urls is not None and not isinstance(urls, str):
            urls = ",".join(simulator.url for simulator in urls)
        environ = clean_environ(
            folder,
            **{
                "SDG_INSTANCE": self.database.parent,
                "SDG_BIND": f"127.0.0.1:{self.port}",
                "SDG_WEBUI_URLS": urls,
                "SDG_HOST_ID": "testhost",
                "SDG_DATA_DIR": self.data,
                "SDG_DATABASE_URL": f"sqlite:///{self.database}",
                "WEB_CONCURRENCY": processes,
                # Most tests are about something else than who may ask; test_tokens.py has those that are.
                "SDG_AUTH": "none",
                **settings,
            },
        )
        super().__init__(name, [sys.executable, "-m", "gunicorn", *options, application], environ, folder)

    # -- life --------------------------------------------------------------------------------------------------------

    def await_ready(self, status: str = "ok", seconds: float = START_SECONDS) -> None:
        """Wait until ``/readyz`` says ``ok`` (or ``degraded``)."""
        until(lambda: self.readiness() == status, f"{self.name} is {status}", seconds)

    def readiness(self) -> str | None:
        """The status that ``/readyz`` answers; None while nobody listens."""
        assert self.alive, f"{self.name} ended by itself:\n{self.text()}"
        try:
            status: str = self.http.get("/readyz").json()["status"]
        except requests.ConnectionError:
            return None
        return status

    def kill_master(self) -> None:
        """End the process that was started, not those that it has started (SIGKILL)."""
        os.kill(self.running.pid, signal.SIGKILL)
        self.running.wait()

    def restart(self) -> None:
        """Start again after an end, on the same data."""
        self.launch()
        self.await_ready()

    def worker_pid(self) -> int | None:
        """The process that runs the embedded worker. No answer tells it; the database's table of workers does."""
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            owners = [row[0] for row in connection.execute("SELECT owner FROM workers ORDER BY heartbeat_at DESC")]
        return int(owners[0].rpartition("/")[2].partition("-")[0]) if owners else None

    def row(self, name: str) -> dict[str, Any]:
        """The row of a job, for what no answer tells."""
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return dict(connection.execute("SELECT * FROM jobs WHERE name = ?", [name]).fetchone())

    # -- asking ------------------------------------------------------------------------------------------------------

    def post(
        self, kind: str = "txt2img", *, prefer: str | None = None, key: str | None = None, **changes: Any
    ) -> requests.Response:
        """Ask for :data:`PICTURE` with some fields changed."""
        return self.send(kind, picture(**changes), prefer=prefer, key=key)

    def send(self, kind: str, body: Any, *, prefer: str | None = None, key: str | None = None) -> requests.Response:
        """Post a body as it stands."""
        headers = {"Prefer": prefer, "Idempotency-Key": key}
        given = {name: value for name, value in headers.items() if value is not None}
        return self.http.request("POST", f"/{kind}", json=body, headers=given)

    def succeeded(self, response: requests.Response) -> dict[str, Any]:
        """The finished job of a POST, waited for if need be."""
        assert response.status_code in (200, 202), response.text
        job: dict[str, Any] = response.json()
        if job["status"] in UNFINISHED:
            job = self.finished(job["url"])
        assert job["status"] == "succeeded", job
        return job

    def finished(self, url: str, seconds: float = JOB_SECONDS) -> dict[str, Any]:
        """The job at ``url`` as soon as it is over, however it ended."""

        def ended() -> dict[str, Any] | None:
            job: dict[str, Any] = self.http.get(url).json()
            return None if job["status"] in UNFINISHED else job

        return until(ended, f"{url} is finished", seconds)

    def status(self, url: str) -> str:
        """The status of the job at ``url``."""
        status: str = self.http.get(url).json()["status"]
        return status

    def jobs(self, user: str = "user", member: str = "jobs", path: str = "jobs") -> list[dict[str, Any]]:
        """All jobs of a user, newest first, over all pages."""
        found: list[dict[str, Any]] = []
        following: str | None = f"/{path}/{quote(user, safe='')}"
        while following is not None:
            page = self.http.get(following).json()
            found += page[member]
            following = page["next"]
        return found

    def history(self, user: str = "user", kind: str = "txt2img") -> list[dict[str, Any]]:
        """All records of a user, newest first."""
        return self.jobs(user, "records", {"txt2img": "t2ihistory", "img2img": "i2ihistory"}[kind])

    def images(self, job: dict[str, Any]) -> list[bytes]:
        """The bytes of a record's images."""
        answers = [self.http.get(image["url"]) for image in job["images"]]
        assert all(answer.status_code == 200 for answer in answers), answers
        return [answer.content for answer in answers]

    # -- beside it ---------------------------------------------------------------------------------------------------

    def files(self) -> set[str]:
        """The names of all files of records; hidden ones of the data folder itself are the gateway's own."""
        # Unlike rglob, os.walk does not mind a folder that goes meanwhile.
        return {name for folder, _, names in os.walk(self.data) if Path(folder) != self.data for name in names}

    def find(self, filename: str) -> Path:
        """The path of a file in the data folder, found by its name."""
        [path] = self.data.rglob(filename)
        return path

    def cli(self, *arguments: str, cold: bool = ALL_COLD, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run ``sd-gateway`` with the gateway's settings to its end."""
        environ = self.environ | {name: str(value) for name, value in settings.items()}
        return run([COMMAND, *arguments], environ, cold=cold)


#: Debian puts it where only root's PATH looks.
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
_TEMPORARY_PATHS = " ".join(
    f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """A configuration with some of its lines changed; each must stand there once."""
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old} must stand once in the configuration"
        text = text.replace(old, new)
    return text


class Nginx(Process):
    """nginx with exactly the configuration of ``deploy/nginx/``, but for its port, the gateway's address, users and paths.

    :param bind: the gateway's SDG_BIND.
    :param data: the data folder whose files it may send.
    :param user: of the ``user`` directive; the shipped one may not read the temporary folder of a test that root runs.
    :param changes: more to be changed in ``sd-gateway.conf``, such as limits that a test could not reach.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        bind: str,
        data: Path,
        user: str = "root",
        changes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        assert NGINX is not None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = Http(self.url)
        prefix = folder / name
        prefix.mkdir()
        shipped = CHECKOUT / "deploy/nginx"
        main = {
            "user www-data;": f"daemon off; user {user};" if os.geteuid() == 0 else "daemon off;",
            "pid /run/nginx.pid;": "pid nginx.pid;",
            "error_log /var/log/nginx/error.log warn;": "error_log stderr warn;",
            "access_log /var/log/nginx/access.log sd_gateway;": f"access_log access.log sd_gateway; {_TEMPORARY_PATHS}",
            "include /etc/nginx/conf.d/*.conf;": "include site.conf;",
        }
        (prefix / "nginx.conf").write_text(replaced((shipped / "nginx.conf").read_text("utf-8"), main))
        site = {
            "server unix:/run/sd-gateway/gateway.sock;": f"server {bind};",
            "listen 80 default_server": f"listen 127.0.0.1:{self.port} default_server",
            "alias /var/lib/sd-gateway/data/;": f"alias {data}/;",
            "proxy_cache_path /var/lib/nginx/sd-gateway ": f"proxy_cache_path {prefix}/pictures ",
            **changes,
        }
        (prefix / "site.conf").write_text(replaced((shipped / "sd-gateway.conf").read_text("utf-8"), site))
        command = [NGINX, "-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", "stderr"]
        super().__init__(name, command, clean_environ(folder), folder)
        self._access_log = prefix / "access.log"

    def await_ready(self) -> None:
        """Wait until it listens."""
        until(self._ready, f"{self.name} listens", START_SECONDS)
        WATCH.log(self._access_log)

    def _ready(self) -> bool:
        assert self.alive, f"{self.name} ended by itself:\n{self.text()}"
        return listens(self.port)


class Stage:
    """The processes of one test, in one folder; :meth:`clear` ends whatever still runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Of how many processes a gateway is of which a test says nothing else.
        self.concurrency = 2
        self.processes: list[Process] = []

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.processes)}"

    def add(self, process: _P) -> _P:
        """Launch a process that this stage will end."""
        self.processes.append(process)
        process.launch()
        return process

    def simulator(
        self, *options: str, ready: bool = True, cold: bool = ALL_COLD, seconds_per_image: float = 0.1
    ) -> Simulator:
        """A new simulator."""
        made = Simulator(self._name("simulator"), self.folder, *options, seconds_per_image=seconds_per_image)
        made.cold = cold
        self.add(made)
        if ready:
            made.await_ready()
        return made

    def gateway(
        self, urls: str | Sequence[Simulator] | None, *, ready: bool = True, cold: bool = ALL_COLD, **settings: Any
    ) -> Gateway:
        """A new gateway; with ``ready`` as soon as it is."""
        settings = {"processes": self.concurrency} | settings
        gateway = Gateway(self._name("gateway"), self.folder, urls, **settings)
        gateway.cold = cold
        self.add(gateway)
        if ready:
            gateway.await_ready()
        return gateway

    def nginx(
        self,
        gateway: Gateway | str,
        data: Path,
        user: str = "root",
        changes: Mapping[str, str] = MappingProxyType({}),
    ) -> Nginx:
        """A new nginx in front of a gateway (or of whatever listens at an address), which may send the files of a folder."""
        bind = gateway if isinstance(gateway, str) else gateway.environ["SDG_BIND"]
        nginx = self.add(Nginx(self._name("nginx"), self.folder, bind, data, user, changes))
        nginx.await_ready()
        return nginx

    def worker(self, gateway: Gateway, *, cold: bool = ALL_COLD) -> Worker:
        """An external worker for a gateway."""
        worker = Worker(self._name("worker"), gateway, self.folder)
        worker.cold = cold
        return self.add(worker)

    def clear(self) -> None:
        """End everything, the youngest first. What a test wanted to end well, it has stopped itself."""
        for process in reversed(self.processes):
            process.kill()

    def logs(self) -> list[tuple[str, str]]:
        """Name and output of every process."""
        return [(process.name, process.text()) for process in self.processes]
