"""Figure 9: thousands of clients that watch, or wait, at once.

Their memory and CPU time, what they leave of the gateway for others, and how soon all are answered when it stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from benchmarks import crowd, machine, reaching
from benchmarks.crowd import BATCH, Crowd
from benchmarks.harness import ASYNC, COMMAND, Bench, BenchmarkError, Gateway, Line, picture, until
from benchmarks.report import Row, Sample, judged, milliseconds, say

_CLIENTS, _FEW_CLIENTS = 2000, 300
#: Of that many streams one is of all jobs of a user; the others are of one job each.
_STREAMS_OF_A_USER = 20
_JOBS_OF_A_USER = 5
_PICTURE_BYTES = 20_000
_PROCESSES = 2
_IDLE_SECONDS = 20.0
_ROUNDS, _REQUESTS = 10, 20
_IDLE_GOAL, _RATIO_GOAL, _STOP_GOAL = 1.0, 1.5, 3.0
#: Clients that read their answer to its end and never close.
_UNCLOSED, _UNCLOSED_GOAL_MS = 50, 50.0
#: Longer than any of them waits here.
_SYNC_SECONDS = 3600
_PATIENCE = 120.0


@dataclass(frozen=True)
class _Kind:
    """A kind of client: the memory that each may take, and what it is sent when the gateway stops."""

    name: str
    goal_kb: float
    last: bytes


_STREAM = _Kind("event streams", 8.0, b"event: restart\n")
_POST = _Kind("waiting POSTs", 16.0, b"HTTP/1.1 202 ")


def run(bench: Bench) -> None:
    """Add the rows of streams, of waiting POSTs, and of changes that reach their watchers."""
    clients = _FEW_CLIENTS if bench.quick else _CLIENTS
    with _pair(bench, clients) as pair:
        _streams(bench, pair, clients)
    with _pair(bench, clients) as pair:
        _posts(bench, pair, clients)
    reaching.run(bench)
    _never_closing(bench)


@dataclass(frozen=True)
class _Pair:
    """Two gateways with the same settings, each with the path of a stored picture; the second one gets no crowd."""

    crowded: Gateway
    alone: Gateway
    pictures: Sequence[str]


@contextlib.contextmanager
def _pair(bench: Bench, clients: int) -> Iterator[_Pair]:
    # Each process alone could take them all: which one accepts a connection is the kernel's choice.
    limits = {"WEB_CONCURRENCY": _PROCESSES, "SDG_MAX_WAITERS": clients + BATCH, "SDG_MAX_STREAMS": clients + BATCH}
    with bench.stage() as stage:
        simulator = stage.simulator(0.0)
        crowded, alone = (
            stage.gateway([simulator], SDG_SYNC_TIMEOUT=_SYNC_SECONDS, **limits).start() for _ in range(2)
        )
        pictures = [gateway.stored_picture(_PICTURE_BYTES) for gateway in (crowded, alone)]
        # Nothing changes from now on but what the rows are about.
        for gateway in (crowded, alone):
            subprocess.run([COMMAND, "queue", "pause"], env=gateway.environ, check=True, capture_output=True)
        yield _Pair(crowded, alone, pictures)


def _streams(bench: Bench, pair: _Pair, clients: int) -> None:
    say(f"{clients} event streams")
    of_users = clients // _STREAMS_OF_A_USER
    posts = _posted(clients - of_users, ASYNC)
    _warm_up(pair.crowded, posts, b"HTTP/1.1 202 ")
    requests = _stream_requests(pair.crowded, _users(len(posts)), of_users)
    _warm_up(pair.crowded, requests[-2 * BATCH :], b"\nevent: ")
    before = _resident_kb(pair.crowded)
    with Crowd(pair.crowded.port) as watching:
        watching.gather(requests, lambda: watching.await_each(b"\nevent: ", _PATIENCE))
        _while_they_wait(bench, pair, watching, _STREAM, before)


def _posts(bench: Bench, pair: _Pair, clients: int) -> None:
    say(f"{clients} waiting POSTs")
    # As many jobs as will wait, so that tables and caches are as large before as they are then.
    _warm_up(pair.crowded, _posted(clients, ASYNC), b"HTTP/1.1 202 ")
    with pair.crowded.line() as line:
        for job in _waiting_jobs(line, _users(clients)):
            line.send("DELETE", f"/delete/{job['id']}/{job['type']}/{job['name']}").json()
        before = _resident_kb(pair.crowded)
        with Crowd(pair.crowded.port) as waiting:
            waiting.gather(_posted(clients, {}), lambda: _await_queue(line, len(waiting)))
            _while_they_wait(bench, pair, waiting, _POST, before)


def _users(jobs: int) -> list[str]:
    """The users of so many jobs."""
    return [f"user-{number}" for number in range(-(-jobs // _JOBS_OF_A_USER))]


def _posted(jobs: int, headers: crowd.Fields) -> list[bytes]:
    """So many requests for pictures, of many users."""
    users = _users(jobs)
    return [
        crowd.request("POST", "/txt2img", headers, json.dumps(picture(id=users[number % len(users)])).encode())
        for number in range(jobs)
    ]


def _stream_requests(gateway: Gateway, users: Sequence[str], of_users: int) -> list[bytes]:
    """A request for the stream of each waiting job, and for those of some users."""
    with gateway.line() as line:
        jobs = _waiting_jobs(line, users)
    paths = [*(f"{job['url']}/events" for job in jobs), *(f"/jobs/{user}/events" for user in users[:of_users])]
    return [crowd.request("GET", path) for path in paths]


def _waiting_jobs(line: Line, users: Sequence[str]) -> list[dict[str, Any]]:
    return [job for user in users for job in line.get(f"/jobs/{user}?status=queued")["jobs"]]


def _warm_up(gateway: Gateway, requests: Sequence[bytes], answer: bytes) -> None:
    """Ask what clients ask who don't stay, so many at a time that all threads have served somebody."""
    for start in range(0, len(requests), BATCH):
        with Crowd(gateway.port) as passing:
            passing.gather(requests[start : start + BATCH], lambda: passing.await_each(answer, _PATIENCE))


def _await_queue(line: Line, jobs: int) -> None:
    until(lambda: line.get("/queue?limit=1")["counts"]["waiting"] >= jobs, f"{jobs} jobs wait", _PATIENCE)


# -- while they wait -----------------------------------------------------------------------------------------------------


def _while_they_wait(bench: Bench, pair: _Pair, clients: Crowd, kind: _Kind, before: float) -> None:
    """Add the rows of a crowd that waits; ``before`` is the memory without it, in kB."""
    many = f"{len(clients)} {kind.name}"
    idle = _idle(pair, 5.0 if bench.quick else _IDLE_SECONDS)
    each = (_resident_kb(pair.crowded) - before) / len(clients)
    bench.add(
        Row(
            f"memory of each of {many}, {_PROCESSES} processes",
            f"{each:.1f} kB",
            f"{before / 1000:.0f} MB in all before",
            f"≤ {kind.goal_kb:g} kB",
            judged(each <= kind.goal_kb),
        )
    )
    bench.add(
        Row(
            f"CPU time while {many} wait and nothing changes",
            f"{idle[0]:.2f} % of a core",
            f"without them {idle[1]:.2f} %",
            f"≤ {_IDLE_GOAL:g} %",
            judged(idle[0] <= _IDLE_GOAL),
        )
    )
    bench.add(_asked(bench, pair, f"/livez while {many} wait", ("/livez", "/livez")))
    bench.add(_asked(bench, pair, f"a picture of 20 kB while {many} wait", pair.pictures))
    bench.add(_stopped(pair.crowded, clients, kind))


def _resident_kb(gateway: Gateway) -> float:
    """The memory of the web processes, in kilobytes of 1,000 bytes."""
    return sum(machine.resident_mb(pid) for pid in machine.family(gateway.pid)[1:]) * 1000


def _idle(pair: _Pair, seconds: float) -> list[float]:
    """The CPU time of both gateways while nothing happens, in percent of one core."""
    time.sleep(2.0)
    pids = (pair.crowded.pid, pair.alone.pid)
    before = [machine.cpu_seconds(pid) for pid in pids]
    time.sleep(seconds)
    return [(machine.cpu_seconds(pid) - used) / seconds * 100 for pid, used in zip(pids, before, strict=True)]


def _asked(bench: Bench, pair: _Pair, what: str, paths: Sequence[str]) -> Row:
    """The times of GET on new connections to both gateways, in turns."""
    ways = [(gateway.port, path) for gateway, path in zip((pair.crowded, pair.alone), paths, strict=True)]
    times: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
    for number in range(bench.count(_ROUNDS) + 1):
        for way in ways:
            taken = [_milliseconds_of(*way) for _ in range(_REQUESTS)]
            # The first ones fill the caches.
            times[way] += taken if number else []
    crowded, alone = (Sample(times[way]) for way in ways)
    ratios = (crowded.median / alone.median, crowded.p95 / alone.p95)
    return Row(
        what,
        str(crowded),
        f"without them {alone}; ratios {ratios[0]:.2f}, {ratios[1]:.2f}",
        f"ratios ≤ {_RATIO_GOAL:g}",
        judged(max(ratios) <= _RATIO_GOAL),
    )


def _milliseconds_of(port: int, path: str) -> float:
    begun = time.perf_counter()
    with Line(port) as line:
        reply = line.send("GET", path)
        taken = milliseconds(time.perf_counter() - begun)
    if reply.status != HTTPStatus.OK:
        raise BenchmarkError(f"{path} was answered with {reply.status}")
    return taken


def _stopped(gateway: Gateway, clients: Crowd, kind: _Kind) -> Row:
    begun = time.perf_counter()
    os.kill(gateway.pid, signal.SIGTERM)
    seconds = clients.await_ends(kind.last, _PATIENCE) - begun
    return Row(
        f"from SIGTERM until the last of {len(clients)} {kind.name} was answered",
        f"{seconds:.2f} s",
        "",
        f"≤ {_STOP_GOAL:g} s",
        judged(seconds <= _STOP_GOAL),
    )


# -- clients that never close --------------------------------------------------------------------------------------------


def _never_closing(bench: Bench) -> None:
    say(f"{_UNCLOSED} clients that never close")
    ask = crowd.request("GET", "/livez", {"Connection": "close"})
    with bench.stage() as stage:
        gateway = stage.gateway([stage.simulator(0.0)], WEB_CONCURRENCY=_PROCESSES).start()
        without = Sample([_milliseconds_of(gateway.port, "/livez") for _ in range(_UNCLOSED)])
        with Crowd(gateway.port) as staying:
            times = []
            for _ in range(_UNCLOSED):
                staying.ask(ask)
                times.append(_milliseconds_of(gateway.port, "/livez"))
            staying.await_each(b"\r\n\r\n", _PATIENCE)
            times += [_milliseconds_of(gateway.port, "/livez") for _ in range(_UNCLOSED)]
    found = Sample(times)
    bench.add(
        Row(
            f"/livez while {_UNCLOSED} clients never close their connections",
            f"{found}, longest {max(times):.1f} ms",
            f"without them {without}",
            f"p95 ≤ {_UNCLOSED_GOAL_MS:g} ms",
            judged(found.p95 <= _UNCLOSED_GOAL_MS),
        )
    )
