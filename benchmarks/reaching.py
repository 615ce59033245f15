"""How soon a change of a job reaches a client that watches it, on the host of its worker and on another one.

The watcher's process never runs the worker. A change is committed by the time at which another client has the answer that its job
was accepted, the simulator has read the request of a claimed job, or the simulator has answered.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from benchmarks import crowd
from benchmarks.harness import ASYNC, COMMAND, Bench, BenchmarkError, Gateway, Simulator, Stage, picture
from benchmarks.report import SKIPPED, Row, Sample, judged, milliseconds, say
from tests.postgresql import PostgresServer, programs

#: The seconds of a picture are more than pass between two reads of what changed, so that no change hides the one before it.
_JOBS, _PICTURE_SECONDS = 30, 0.1
_JOBS_OVER_HOSTS, _PICTURE_SECONDS_OVER_HOSTS = 10, 1.0
_PATIENCE = 30.0
_GOAL_MS, _GOAL_OVER_HOSTS_MS = 50.0, 1000.0
_ON_ONE_HOST = "a change reaches its watcher, in another process than the worker's"
_OVER_HOSTS = "a change reaches its watcher on another host, PostgreSQL"


def run(bench: Bench) -> None:
    """Add a row for one host and one for two."""
    say("changes reach their watchers")
    with bench.stage() as stage:
        simulator = stage.simulator(_PICTURE_SECONDS)
        gateway = stage.gateway([simulator], SDG_WORKER="external")
        gateway.launch()
        stage.worker(gateway)
        gateway.await_ready()
        reach = _Reach(simulator, gateway, gateway, _PICTURE_SECONDS)
        found = reach.measure(bench.count(_JOBS))
    bench.add(_row(_ON_ONE_HOST, found, _GOAL_MS))
    _over_hosts(bench)


def _over_hosts(bench: Bench) -> None:
    place = programs()
    if place is None:
        say("  not judged: there is no PostgreSQL on this machine")
        bench.add(Row(_OVER_HOSTS, "", "PostgreSQL is not installed", "", SKIPPED))
        return
    server = PostgresServer(place, bench.folder)
    try:
        server.start()
        with bench.stage() as stage:
            found = _over_two_hosts(stage, server.url).measure(bench.count(_JOBS_OVER_HOSTS))
    finally:
        server.remove()
    bench.add(_row(_OVER_HOSTS, found, _GOAL_OVER_HOSTS_MS))


def _over_two_hosts(stage: Stage, database: str) -> _Reach:
    """A gateway with a worker, and one without on another host.

    A folder of the data for each, so that no notification gets from one to the other.
    """
    simulator = stage.simulator(_PICTURE_SECONDS_OVER_HOSTS)
    one = stage.gateway([simulator], SDG_DATABASE_URL=database, SDG_HOST_ID="one").start()
    two = stage.gateway([simulator], SDG_DATABASE_URL=database, SDG_HOST_ID="two", SDG_WORKER="external")
    shutil.copytree(one.data, two.data, ignore=shutil.ignore_patterns(".wake-*", ".worker-*"))
    return _Reach(simulator, one, two.start(), _PICTURE_SECONDS_OVER_HOSTS)


def _row(what: str, found: Mapping[str, Sample], goal: float) -> Row:
    return Row(
        what,
        "; ".join(f"{change} {sample}" for change, sample in found.items()),
        "",
        f"medians ≤ {goal:g} ms",
        judged(*(sample.median <= goal for sample in found.values())),
    )


@dataclass(frozen=True)
class _Reach:
    """A gateway that jobs are posted to, and one where they are watched; they may be the same."""

    simulator: Simulator
    posted: Gateway
    watched: Gateway
    #: How long a picture takes.
    seconds: float

    def measure(self, count: int) -> dict[str, Sample]:
        """The times from a change to its event, by the kind of change."""
        self.posted.make()
        self.simulator.reset()
        pauses = random.Random(5)
        with _Watcher(self.watched.port) as watcher:
            told = []
            for _ in range(count):
                name, _ = _post(self.posted, pauses)
                told.append((watcher.await_status(name, "running"), watcher.await_status(name, "succeeded")))
            arrivals = self.simulator.arrivals()
            # Or a job would be told of only when it is claimed already.
            subprocess.run([COMMAND, "queue", "pause"], env=self.posted.environ, check=True, capture_output=True)
            accepted = []
            for _ in range(count):
                name, answered = _post(self.posted, pauses)
                accepted.append(watcher.await_status(name, "queued") - answered)
        return {
            "accepted": _sample(accepted),
            "claimed": _sample([begun - at for (begun, _), at in zip(told, arrivals, strict=True)]),
            "finished": _sample([ended - at - self.seconds for (_, ended), at in zip(told, arrivals, strict=True)]),
        }


def _post(gateway: Gateway, pauses: random.Random) -> tuple[str, float]:
    """Post a job at an odd moment; its name, and the :func:`time.perf_counter` when that was known."""
    time.sleep(pauses.uniform(0.0, 0.5))
    with gateway.line() as line:
        name: str = line.post("/txt2img", picture(), ASYNC)["name"]
        return name, time.perf_counter()


def _sample(seconds: Sequence[float]) -> Sample:
    return Sample([milliseconds(each) for each in seconds])


class _Watcher:
    """A client that watches all jobs of the user of these benchmarks."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self._socket.sendall(crowd.request("GET", "/jobs/bench/events"))
        self._lines = self._socket.makefile("rb")
        self._next("snapshot")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def await_status(self, name: str, status: str) -> float:
        """Read until a job is told to be so; the :func:`time.perf_counter` when that was there.

        :raises BenchmarkError: it was not told so in time.
        """
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            job = self._next("job")
            if (job["name"], job["status"]) == (name, status):
                return time.perf_counter()
        raise BenchmarkError(f"no event told that a job is {status}")

    def _next(self, name: str) -> dict[str, Any]:
        """The data of the next event of a name.

        :raises BenchmarkError: the stream ended.
        """
        event = b""
        for line in self._lines:
            if line.startswith(b"event: "):
                event = line.removeprefix(b"event: ").rstrip()
            elif line.startswith(b"data: ") and event == name.encode():
                data: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                return data
        raise BenchmarkError("the stream of events ended")
