"""One client does not starve the others: what it sends and asks for is bounded in time, length, depth and count."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from tests.system.harness import Gateway, Line, Simulator, Stage, at_once, picture, until

MEGABYTE = 10**6
LARGE = 31 * MEGABYTE
PAGE = 8 * MEGABYTE
RECORDS = 90


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of one process, which everybody shares."""
    stage = Stage(tmp_path_factory.mktemp("bounds"))
    try:
        yield stage.gateway("simulator", processes=1)
    finally:
        stage.clear()


class Watch:
    """Asks for ``/livez`` all the time; ``longest`` is the longest wait for an answer, seconds."""

    def __init__(self, gateway: Gateway) -> None:
        self._line = Line(gateway.url)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.longest = 0.0

    def _look(self) -> None:
        while not self._end.wait(0.01):
            began = time.monotonic()
            assert self._line.ask("GET", "/livez").status == 200
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._line.close()


def memory(pid: int | None, what: str) -> int:
    """VmHWM (the most that was ever resident) or VmRSS (what is now) of a process, bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) * 1024


@contextlib.contextmanager
def little_memory(gateway: Gateway, most: int) -> Iterator[None]:
    """The process takes at most so many bytes more than it has now."""
    pid = gateway.worker_pid()
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew, proc(5)
    before = memory(pid, "VmRSS")
    yield
    assert memory(pid, "VmHWM") - before < most


def send(gateway: Gateway, body: bytes) -> requests.Response:
    return gateway.http.request("POST", "/txt2img", data=body, headers={"Content-Type": "application/json"})


def full_of(unit: bytes) -> bytes:
    return unit * (LARGE // len(unit))


GOOD = json.dumps(picture()).encode()[:-1]
#: Each makes its body when it is needed: together they are hundreds of megabytes.
BODIES: dict[str, Callable[[], bytes]] = {
    "unknown members": lambda: b"{" + b",".join(b'"field%07d":1' % number for number in range(LARGE // 16)) + b"}",
    "empty lists": lambda: GOOD + b',"more":[' + full_of(b"[],") + b"[]]}",
    "texts": lambda: GOOD + b',"more":[' + full_of(b'"",') + b'""]}',
    "one long name": lambda: GOOD + b',"' + full_of(b"x") + b'":1}',
    "one long text full of escapes and marks": lambda: GOOD + b',"more":"' + full_of(b'\\",[\\\\') + b'"}',
    "one long number": lambda: GOOD + b',"more":' + full_of(b"9") + b"}",
    "the same member": lambda: GOOD + b"," + full_of(b'"more":1,') + b'"more":1}',
    "depth": lambda: GOOD + b',"more":' + full_of(b'{"":['),
    "9,000 unknown members": lambda: GOOD + b"," + b",".join(b'"field%d":1' % number for number in range(9000)) + b"}",
}


def test_large_hostile_bodies_are_refused_while_others_are_served(gateway: Gateway) -> None:
    with little_memory(gateway, 300 * MEGABYTE):
        for kind, make in BODIES.items():
            body = make()
            with Watch(gateway) as watch:
                answer = send(gateway, body)
            assert answer.status_code in (400, 422), kind
            assert answer.headers["Content-Type"] == "application/problem+json", kind
            assert len(answer.content) < 4000, kind
            assert len(answer.json().get("errors", {})) <= 20, kind
            assert answer.elapsed.total_seconds() < 10, kind
            # It was 3.5 s where the bodies were parsed first.
            assert watch.longest < 1.5, kind


def test_many_unknown_fields_are_counted(gateway: Gateway) -> None:
    problem = send(gateway, BODIES["9,000 unknown members"]()).json()
    assert len(problem["errors"]) == 20
    assert "8981 more" in problem["detail"]


HEADERS = ("Prefer", "If-None-Match", "If-Match", "Range", "If-Modified-Since", "Accept", "Cookie", "X-Forwarded-For")
UNITS = ('"', '\\"', 'a;b="', ", ")


@pytest.mark.parametrize("lines", [1, 10])
def test_headers_of_any_length_hold_nobody_up(gateway: Gateway, lines: int) -> None:
    job = gateway.succeeded(gateway.post())
    body = json.dumps(picture()).encode()
    heads = (f"POST /txt2img HTTP/1.1\r\nContent-Length: {len(body)}", f"GET {job['images'][0]['url']} HTTP/1.1")
    with Watch(gateway) as watch:
        for head, unit in itertools.product(heads, UNITS):
            fields = [f"{name}: {unit * (8000 // len(unit))}" for name in HEADERS] * lines
            request = "\r\n".join(
                [head, "Host: g", "Connection: close", "Content-Type: application/json", *fields, "", ""]
            )
            began = time.monotonic()
            status, _, _ = gateway.http.raw(request.encode() + (body if head.startswith("POST") else b""))
            assert time.monotonic() - began < 5, unit
            assert status < 500, unit
    # Once 40 kB of quotation marks took 4 s, and 248 kB ended the process.
    assert watch.longest < 1.5


# -- pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich(gateway: Gateway) -> list[str]:
    """The names of a user's many records with the longest prompts and the most pictures, newest first."""
    made = gateway.succeeded(gateway.post(id="rich", prompt="灯" * 20_000, negative_prompt="b" * 20_000, batch_size=8))
    names = [f"20260101T{number:09}-00000000" for number in range(RECORDS)]
    with contextlib.closing(sqlite3.connect(gateway.database, timeout=30)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(jobs)") if row[1] not in ("seq", "name")]
        listed = ", ".join(columns)
        copy = f"INSERT INTO jobs (name, {listed}) SELECT ?, {listed} FROM jobs WHERE name = ?"
        connection.executemany(copy, [(name, made["name"]) for name in names])
    return [*reversed(names), made["name"]]


@pytest.mark.parametrize(("path", "member"), [("/t2ihistory/rich", "records"), ("/jobs/rich", "jobs")])
def test_a_page_ends_at_eight_megabytes_and_the_next_one_goes_on(
    gateway: Gateway, rich: list[str], path: str, member: str
) -> None:
    found: list[str] = []
    sizes: list[int] = []
    following: str | None = f"{path}?limit=500"
    # The page is once text, once rows and once JSON; all of the records are five times the page.
    with little_memory(gateway, 80 * MEGABYTE):
        while following is not None:
            answer = gateway.http.get(following)
            page: dict[str, Any] = answer.json()
            assert page.keys() == {member, "next"}
            sizes.append(len(answer.content))
            found += [job["name"] for job in page[member]]
            following = page["next"]
            assert following is None or "limit=500" in following
    assert found == rich
    assert len(sizes) > 4
    assert all(0.8 * PAGE < size <= PAGE for size in sizes[:-1])
    assert sizes[-1] <= PAGE


def test_a_record_that_is_larger_than_a_page_is_one(gateway: Gateway, rich: list[str]) -> None:
    args = json.dumps({"prompt": "x" * (PAGE + 1)})
    with contextlib.closing(sqlite3.connect(gateway.database, timeout=30)) as connection, connection:
        for number, user in ((1, "giant"), (2, "giant"), (3, "giant")):
            columns = [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]
            kept = ", ".join(column for column in columns if column not in ("seq", "name", "user_id", "args"))
            copy = f"INSERT INTO jobs (name, user_id, args, {kept}) SELECT ?, ?, ?, {kept} FROM jobs WHERE name = ?"
            connection.execute(copy, [f"20260102T{number:09}-00000000", user, args, rich[-1]])
    first = gateway.http.get("/t2ihistory/giant").json()
    assert [len(first["records"]), first["next"] is None] == [1, False]
    assert [job["name"][17] for job in gateway.jobs("giant", "records", "t2ihistory")] == ["3", "2", "1"]


# -- unknown names ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_unknown_names_hold_only_a_few_threads_while_a_webui_is_asked_again(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1, SDG_THREADS=8, SDG_MAX_WAITERS=4)

    def ask() -> float:
        answer = gateway.post(model="no such model", id="unknown", prefer="respond-async")
        assert answer.json()["type"] == "unknown-name"
        return answer.elapsed.total_seconds()

    os.kill(simulator.running.pid, signal.SIGSTOP)
    try:
        # A WebUI that was asked within the last five seconds is not asked again.
        until(lambda: ask() > 1.5, "a request waits for the WebUI")
        with Watch(gateway) as watch:
            times = at_once([ask] * 32)
    finally:
        os.kill(simulator.running.pid, signal.SIGCONT)
    assert 1.5 < max(times) < 4.0
    assert watch.longest < 1.0
