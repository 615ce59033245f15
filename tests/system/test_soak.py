"""Killed again and again, restarted and shut down under load: every request still ends in exactly one record.

The clients know nothing but their Idempotency-Keys: they repeat a request until they are told how it ended.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from PIL import Image

from tests.system.harness import START_SECONDS, Gateway, Simulator, Stage, children, picture, until

_TWO_HOURS = 7200.0


@dataclass(frozen=True)
class Request:
    """One request and its key."""

    kind: str
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return f"key {self.body['seed']}".replace(" ", "-")


def requests_of(jobs: int, users: int) -> list[Request]:
    """Seeds from 1000 on, each user in turn; every fifth request has a reference image."""
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(png, "PNG")
    reference = base64.b64encode(png.getvalue()).decode("ascii")
    made = []
    for number in range(jobs):
        body = picture(id=f"user {number % users}", seed=str(1000 + number))
        made.append(
            Request("img2img", body | {"init_images": reference}) if number % 5 == 4 else Request("txt2img", body)
        )
    return made


def post_until_it_ends(gateway: Gateway, request: Request, deadline: float) -> dict[str, Any]:
    """Repeat a POST until its answer is the end of the job, although the server is killed or restarted meanwhile."""
    answer = "no answer yet"
    while time.monotonic() < deadline:
        # Refused, reset or cut off in the middle of the answer: nobody knows what became of the request.
        with contextlib.suppress(requests.RequestException):
            response = gateway.send(request.kind, request.body, key=request.key)
            if response.status_code == 200:
                job: dict[str, Any] = response.json()
                return job
            answer = f"{response.status_code} {response.text}"
            # Accepted and not done, or for once nobody can take it; anything else is an end that should not be.
            assert response.status_code in (202, 503), answer
        time.sleep(0.05)
    raise AssertionError(f"{request.key} has no end: {answer}")


@contextlib.contextmanager
def clients(gateway: Gateway, wanted: list[Request], seconds: float) -> Iterator[list[Future[dict[str, Any]]]]:
    """A client for each request, all at once."""
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(len(wanted)) as pool:
        yield [pool.submit(post_until_it_ends, gateway, request, deadline) for request in wanted]


class Killer:
    """Ends a process of a server at a time, without warning; the same choice each run, as far as its own dice go."""

    def __init__(self, gateway: Gateway, seed: int) -> None:
        self.gateway = gateway
        self.kills: Counter[str] = Counter()
        self._dice = random.Random(seed)

    def strike(self) -> None:
        """Kill a web process, the one that runs the worker, gunicorn's master alone, or everything; what is gone then is started
        again.
        """
        victim = self._dice.choice(("web process", "worker", "master", "everything"))
        if victim == "master":
            self.gateway.kill_master()
            self._start_again()
        elif victim == "everything":
            self.gateway.kill()
            self._start_again()
        else:
            processes = children(self.gateway.running.pid)
            elected = self._elected()
            others = [pid for pid in processes if pid != elected]
            candidates = [elected] if victim == "worker" and elected in processes else others
            if not candidates:
                # Both are being started again just now.
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._dice.choice(candidates), signal.SIGKILL)
        self.kills[victim] += 1

    def _start_again(self) -> None:
        # Who listens may be a process whose master is dead; the new server has the port when it has processes.
        self.gateway.launch()
        until(lambda: children(self.gateway.running.pid), "the server is back", START_SECONDS)

    def _elected(self) -> int | None:
        with contextlib.suppress(sqlite3.OperationalError):
            return self.gateway.worker_pid()
        return None


def rows(gateway: Gateway, statement: str) -> list[Any]:
    """The rows that a read-only statement finds in the gateway's database."""
    with contextlib.closing(sqlite3.connect(f"file:{gateway.database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def records(gateway: Gateway, users: int) -> list[dict[str, Any]]:
    """All records of all users, as their histories show them."""
    return [
        record
        for user in range(users)
        for kind in ("txt2img", "img2img")
        for record in gateway.history(f"user {user}", kind)
    ]


def pictures(gateway: Gateway, found: list[dict[str, Any]]) -> dict[str, bytes]:
    """The bytes of every image by its seed."""
    return {
        image["seed"]: content
        for record in found
        for image, content in zip(record["images"], gateway.images(record), strict=True)
    }


def files_of(*found: dict[str, Any]) -> set[str]:
    """The names of the files that these records should have."""
    images = {image["filename"] for record in found for image in record["images"]}
    documents = {filename.rpartition("-")[0] + ".json" for filename in images}
    return images | documents | {record["init_image"]["filename"] for record in found if record["init_image"]}


def check_files(gateway: Gateway, found: list[dict[str, Any]]) -> None:
    """No stray file is left by the sweep, and everything opens."""
    then = time.time() - _TWO_HOURS
    for path in gateway.data.rglob("*"):
        if path.is_file():
            # A reference image of a request that was never accepted goes when it is old.
            os.utime(path, (then, then))
    assert gateway.cli("records", "sweep").returncode == 0
    assert gateway.files() == files_of(*found)
    assert gateway.cli("records", "sweep").stdout == "0 stray files removed\n"
    verify = gateway.cli("records", "verify")
    assert (verify.returncode, verify.stdout) == (0, f"{len(found)} records looked at, 0 problems\n")


@dataclass(frozen=True)
class Form:
    """The size of a soak: jobs, users, seconds a picture, seconds between two kills, kills at most, seconds in all."""

    jobs: int
    users: int
    picture_seconds: float
    pause: float
    most_kills: int
    seconds: float


SHORT = Form(jobs=10, users=4, picture_seconds=0.3, pause=0.7, most_kills=6, seconds=80)
FULL = Form(jobs=40, users=8, picture_seconds=0.6, pause=1.0, most_kills=10_000, seconds=600)


def soak(stage: Stage, house: Gateway, form: Form) -> None:
    """Ask for everything at once and kill until everything is there."""
    wanted = requests_of(form.jobs, form.users)
    # Undisturbed, on another server: a simulated picture depends on the request and its seed alone.
    expected: dict[str, bytes] = {}
    with clients(house, wanted, form.seconds) as undisturbed:
        for future in undisturbed:
            expected |= pictures(house, [future.result()])

    simulator = stage.simulator(seconds_per_image=form.picture_seconds)
    gateway = stage.gateway([simulator])
    killer = Killer(gateway, seed=20261122)
    over = threading.Event()
    with clients(gateway, wanted, form.seconds) as asked:
        while not all(future.done() for future in asked) and killer.kills.total() < form.most_kills:
            over.wait(form.pause)
            killer.strike()
        answers = [future.result() for future in asked]
    # The last blow may have hit after the last answer.
    gateway.await_ready()

    found = records(gateway, form.users)
    assert len(found) == form.jobs
    assert Counter(record["args"]["seed"] for record in found) == {request.body["seed"]: 1 for request in wanted}
    assert {record["name"] for record in found} == {answer["name"] for answer in answers}
    assert rows(gateway, "SELECT count(*), sum(attempts) FROM jobs") == [(form.jobs, 0)]
    assert pictures(gateway, found) == expected
    stats, kills = simulator.stats(), killer.kills.total()
    assert stats["max_in_flight"] == 1
    assert form.jobs <= stats["generations"] <= form.jobs + 3 * kills, killer.kills
    assert rows(gateway, "SELECT state, owner FROM slots") == [("clean", None)]
    assert rows(gateway, "SELECT unfinished FROM clock") == [(0,)]
    check_files(gateway, found)


@pytest.mark.timeout(120)
def test_kill_9_of_anything_at_any_moment_loses_no_job_and_makes_none_twice(stage: Stage, house: Gateway) -> None:
    soak(stage, house, SHORT)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_forty_jobs_of_eight_users_outlive_a_kill_9_each_second(stage: Stage, house: Gateway) -> None:
    soak(stage, house, FULL)


@pytest.mark.soak
class TestRestarts:
    """Restarts as ``systemctl restart`` makes them: SIGTERM, wait for the end, start."""

    JOBS = 8

    def _restarted_under_load(
        self, stage: Stage, simulator: Simulator, restarts: int, **settings: Any
    ) -> tuple[Gateway, list[dict[str, Any]]]:
        gateway = stage.gateway([simulator], **settings)
        with clients(gateway, requests_of(self.JOBS, 4), 80) as asked:
            for _ in range(restarts):
                done = sum(future.done() for future in asked)
                self._await(lambda done=done: sum(future.done() for future in asked) > done)
                assert gateway.stop() == 0
                assert gateway.alive is False
                gateway.restart()
            return gateway, [future.result() for future in asked]

    @staticmethod
    def _await(condition: Callable[[], bool]) -> None:
        until(condition, "another job is finished")

    def test_a_restart_under_load_loses_nothing_and_makes_nothing_twice(self, stage: Stage, slow: Simulator) -> None:
        gateway, answers = self._restarted_under_load(stage, slow, restarts=2)
        assert len({answer["name"] for answer in answers}) == self.JOBS
        # What ran was finished before each end: one claim a job, and no attempt or loss was counted.
        assert rows(gateway, "SELECT count(*), max(claims), sum(attempts), sum(losses) FROM jobs") == [
            (self.JOBS, 1, 0, 0)
        ]
        assert slow.stats()["generations"] == self.JOBS
        assert slow.stats()["interrupts"] == 0
        assert gateway.files() == files_of(*records(gateway, 4))

    @pytest.mark.soak
    def test_a_restart_that_cannot_wait_gives_the_running_job_back_uncounted(
        self, stage: Stage, slow: Simulator
    ) -> None:
        gateway, answers = self._restarted_under_load(stage, slow, restarts=2, SDG_DRAIN_TIMEOUT=0)
        assert len({answer["name"] for answer in answers}) == self.JOBS
        [(jobs, claims, attempts, losses)] = rows(
            gateway, "SELECT count(*), sum(claims), sum(attempts), sum(losses) FROM jobs"
        )
        assert (jobs, attempts, losses) == (self.JOBS, 0, 0)
        assert self.JOBS <= slow.stats()["generations"] <= claims <= self.JOBS + 2
        assert slow.stats()["max_in_flight"] == 1
        assert gateway.files() == files_of(*records(gateway, 4))
