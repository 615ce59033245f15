"""Cancelling through the real server, at every moment of a job's life: one end each, nothing else is hit, nothing stays on disk."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from PIL import Image

from tests.system.harness import Gateway, Simulator, Stage, picture, until

#: A picture that takes far longer than a test.
LONG = 600.0
#: Enough for an interrupt to find the job in the middle.
STEPS = 20


BODY = json.dumps(picture()).encode()


def _png() -> str:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


PNG = _png()


@pytest.fixture
def endless(stage: Stage) -> Simulator:
    return stage.simulator(seconds_per_image=LONG)


@pytest.fixture
def gateway(stage: Stage, endless: Simulator) -> Gateway:
    return stage.gateway([endless])


def cancel(gateway: Gateway, job: dict[str, Any]) -> requests.Response:
    return gateway.http.request("POST", f"{job['url']}/cancel")


def accept(gateway: Gateway, kind: str = "txt2img", **fields: Any) -> dict[str, Any]:
    job: dict[str, Any] = gateway.post(kind, prefer="respond-async", **{"steps": STEPS} | fields).json()
    return job


def running(gateway: Gateway, simulator: Simulator, **fields: Any) -> dict[str, Any]:
    """A job whose picture is being made."""
    before = simulator.stats()["generations"]
    job = accept(gateway, **fields)
    until(lambda: simulator.stats()["generations"] > before, "its picture is being made")
    return job


def rows(gateway: Gateway, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{gateway.database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def check_counts(gateway: Gateway) -> None:
    """Both counts of unfinished jobs say how many there are."""
    [(unfinished,)] = rows(gateway, "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")
    assert rows(gateway, "SELECT unfinished FROM clock") == [(unfinished,)]
    assert sum(row[0] for row in rows(gateway, "SELECT unfinished FROM users")) == unfinished


def check_interrupts(gateway: Gateway, simulators: Sequence[Simulator]) -> None:
    """Interrupts hit nothing but tasks of jobs that are to end."""
    to_end = {row[0] for row in rows(gateway, "SELECT task_id FROM jobs WHERE status IN ('cancelled', 'deleted')")}
    hit = {task for simulator in simulators for task in simulator.stats()["interrupted"]}
    assert hit - {None} <= to_end


def check_files(gateway: Gateway) -> None:
    """No picture of a cancelled job, and nothing of a deleted one, is on disk."""
    cancelled = {row[0] for row in rows(gateway, "SELECT name FROM jobs WHERE status = 'cancelled'")}
    deleted = {row[0] for row in rows(gateway, "SELECT name FROM jobs WHERE status = 'deleted'")}

    def left() -> list[str]:
        files = [name.lstrip(".") for name in gateway.files()]
        return [f for f in files if f[:27] in deleted or (f[:27] in cancelled and not f.endswith("-init.png"))]

    until(lambda: not left(), f"no file of {cancelled | deleted} is left")


class TestOne:
    def test_a_job_that_runs_and_its_waiting_client(self, gateway: Gateway, endless: Simulator) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.post, key="k", steps=STEPS)
            [job] = until(gateway.jobs, "it is accepted")
            until(lambda: endless.stats()["generations"] == 1, "its picture is being made")
            answer = cancel(gateway, job)
            assert (answer.status_code, answer.json()["cancel_requested"]) == (200, True)
            assert answer.headers["ETag"].startswith('W/"')
            told = waiting.result()
        assert (told.status_code, told.json()["type"]) == (409, "job-cancelled")
        assert told.json()["url"] == job["url"]
        again = gateway.post(key="k", steps=STEPS)
        assert (again.status_code, again.json()["type"], again.json()["url"]) == (409, "job-cancelled", job["url"])
        ended = cancel(gateway, job).json()
        assert (ended["status"], ended["cancel_requested"], ended["error"]["type"]) == (
            "cancelled", True, "job-cancelled",
        )  # fmt: skip
        assert gateway.http.get(job["url"]).json() == ended
        check_counts(gateway)
        check_interrupts(gateway, [endless])
        check_files(gateway)
        until(lambda: gateway.text().count("event=cancelled") == 1, "its end is logged once")

    def test_a_job_that_waits_and_its_waiting_client(self, gateway: Gateway, endless: Simulator) -> None:
        running(gateway, endless, id="first")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.post, steps=STEPS)
            [job] = until(gateway.jobs, "it is accepted")
            assert cancel(gateway, job).json()["status"] == "cancelled"
            told = waiting.result()
        assert (told.status_code, told.json()["type"]) == (409, "job-cancelled")
        assert endless.stats()["interrupts"] == 0
        check_counts(gateway)

    def test_a_client_whose_job_is_deleted_is_told_that_it_is_gone(self, gateway: Gateway, endless: Simulator) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.post, "img2img", key="k", steps=STEPS, init_images=PNG)
            [job] = until(gateway.jobs, "it is accepted")
            until(lambda: endless.stats()["generations"] == 1, "its picture is being made")
            answer = gateway.http.delete(f"/delete/user/img2img/{job['name']}")
            assert (answer.status_code, answer.json()) == (200, {"deleted": []})
            told = waiting.result()
        assert (told.status_code, told.json()["type"]) == (404, "job-not-found")
        again = gateway.post("img2img", key="k", steps=STEPS, init_images=PNG)
        assert (again.status_code, again.json()["type"]) == (404, "key-of-deleted-job")
        assert gateway.http.get(job["url"]).status_code == cancel(gateway, job).status_code == 404
        until(lambda: endless.stats()["interrupted"], "its WebUI is stopped")
        check_counts(gateway)
        check_interrupts(gateway, [endless])
        check_files(gateway)

    def test_a_finished_job_is_answered_as_it_ended(self, house: Gateway) -> None:
        job = house.succeeded(house.post())
        answer = cancel(house, job)
        assert (answer.status_code, answer.json()) == (200, job)

    def test_clients_that_cancel_at_once_all_get_the_job(self, gateway: Gateway, endless: Simulator) -> None:
        job = running(gateway, endless)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: cancel(gateway, job), range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.json()["cancel_requested"] for answer in answers)
        assert gateway.finished(job["url"])["status"] == "cancelled"
        assert len(endless.stats()["interrupted"]) == 1
        check_counts(gateway)


class TestAllThatWait:
    """InvokeAI's queue stopped the running item when waiting ones were cancelled (invoke-ai/InvokeAI #6049, #6089)."""

    def test_the_running_job_and_other_users_are_left_alone(self, gateway: Gateway, endless: Simulator) -> None:
        first = running(gateway, endless)
        waiting = [accept(gateway) for _ in range(3)]
        other = accept(gateway, id="other")
        answer = gateway.http.request("POST", "/jobs/user/cancel?status=queued")
        assert (answer.status_code, answer.json()) == (200, {"cancelled": 3})
        assert {gateway.status(job["url"]) for job in waiting} == {"cancelled"}
        assert gateway.http.request("POST", "/jobs/user/cancel?status=queued").json() == {"cancelled": 0}
        # Longer than a heartbeat and what follows from it take.
        threading.Event().wait(3.0)
        assert (gateway.status(first["url"]), gateway.status(other["url"])) == ("running", "queued")
        assert endless.stats()["interrupts"] == 0
        check_counts(gateway)

    @pytest.mark.parametrize("query", ["", "?status=running", "?status=queued&status=queued"])
    def test_nothing_else_can_be_named(self, house: Gateway, query: str) -> None:
        answer = house.http.request("POST", f"/jobs/user/cancel{query}")
        assert (answer.status_code, answer.json()["type"]) == (422, "validation-failed")


class TestCancelAfter:
    def post(self, gateway: Gateway, value: str, prefer: str = "wait=60", key: str | None = None) -> requests.Response:
        headers = {"Cancel-After": value, "Prefer": prefer} | ({"Idempotency-Key": key} if key else {})
        return gateway.http.request("POST", "/txt2img", json=picture(steps=STEPS), headers=headers)

    def test_jobs_end_when_their_time_is_up(self, gateway: Gateway, endless: Simulator) -> None:
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: self.post(gateway, "5s"), range(2)))
        assert [(answer.status_code, answer.json()["type"]) for answer in answers] == [(409, "deadline-passed")] * 2
        assert endless.stats()["generations"] == 1
        check_interrupts(gateway, [endless])
        check_counts(gateway)
        check_files(gateway)

    def test_a_repeats_own_does_not_count(self, gateway: Gateway, endless: Simulator) -> None:
        first = self.post(gateway, "1h", "respond-async", "k").json()
        again = self.post(gateway, "5", "respond-async", "k").json()
        assert first["name"] == again["name"]
        [(created, deadline)] = rows(gateway, "SELECT created_at, deadline FROM jobs")
        assert abs(deadline - created / 1000 - 3600) < 60

    @pytest.mark.parametrize("value", ["1", "0s", "1y", "25h", "", "5m5"])
    def test_no_other_time_is_taken(self, house: Gateway, value: str) -> None:
        answer = self.post(house, value)
        assert (answer.status_code, answer.json()["type"]) == (400, "invalid-request")

    def test_it_is_given_once(self, house: Gateway) -> None:
        status, _, body = house.http.raw(
            b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nCancel-After: 60\r\nCancel-After: 60\r\n"
            b"Content-Length: " + str(len(BODY)).encode() + b"\r\nConnection: close\r\n\r\n" + BODY
        )
        assert (status, b"invalid-request" in body) == (400, True)


class OtherGateway:
    """Another gateway at the same WebUI: its generations come and go behind ours, under task ids of their own."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._stop = threading.Event()
        self.answers: list[int] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        body = {"prompt": "theirs", "steps": 20, "width": 64, "height": 64}
        while not self._stop.is_set():
            task = {"force_task_id": f"theirs {len(self.answers)}"}
            posted = requests.post(f"{self._simulator.url}/sdapi/v1/txt2img", json=body | task, timeout=60)
            self.answers.append(posted.status_code)

    def __enter__(self) -> OtherGateway:  # noqa: PYI034
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def storm(gateway: Gateway, seed: int, jobs: int) -> None:
    """Post jobs, and cancel or delete each at a random moment of its life, or never."""
    chance = random.Random(seed)
    plans = [(chance.choice(["cancel", "cancel", "delete", "never"]), chance.uniform(0.0, 3.0)) for _ in range(jobs)]

    def live(number: int) -> None:
        what, pause = plans[number]
        kind = "img2img" if number % 3 == 0 else "txt2img"
        extra = {"init_images": PNG, "hr_upscaler": "Lanczos" if number % 2 else ""} if kind == "img2img" else {}
        job = accept(gateway, kind, id=f"u{number % 4}", **extra)
        threading.Event().wait(pause)
        if what == "cancel":
            assert cancel(gateway, job).status_code == 200
        elif what == "delete":
            name = f"/delete/u{number % 4}/{kind}/{job['name']}"
            assert gateway.http.delete(name).status_code == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(jobs)))


def check_after_a_storm(gateway: Gateway, simulators: Sequence[Simulator]) -> None:
    until(
        lambda: rows(gateway, "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')") == [(0,)],
        "every job has ended",
        60,
    )
    assert {row[0] for row in rows(gateway, "SELECT status FROM jobs")} <= {"succeeded", "cancelled", "deleted"}
    until(lambda: not rows(gateway, "SELECT 1 FROM jobs WHERE owner IS NOT NULL"), "no claim is left")
    until(lambda: {row[0] for row in rows(gateway, "SELECT state FROM slots")} == {"clean"}, "clean slots")
    check_counts(gateway)
    check_interrupts(gateway, simulators)
    check_files(gateway)
    assert gateway.cli("records", "verify").returncode == 0
    ended = [
        (line.partition(" job=")[2].split()[0])
        for line in gateway.text().splitlines()
        if any(f"event={event} " in line for event in ("stored", "failed", "cancelled"))
    ]
    assert len(ended) == len(set(ended)), "a job ended twice"


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 8))])
def test_a_storm_of_cancels_with_another_gateway_behind_ours(stage: Stage, seed: int) -> None:
    simulator = stage.simulator(seconds_per_image=0.8)
    simulator.fault("extras-hang", count=1000, seconds=0.4)
    gateway = stage.gateway([simulator], SDG_MAX_QUEUE_PER_USER=1000)
    # A new slot is quiesced first, which others at its WebUI would hold up.
    gateway.succeeded(gateway.post())
    with OtherGateway(simulator) as other:
        storm(gateway, seed, 16)
        check_after_a_storm(gateway, [simulator])
    assert set(other.answers) == {200}


@pytest.fixture
def two_workers(stage: Stage) -> tuple[Gateway, list[Simulator]]:
    """Two external workers for two WebUIs; either of them may have a job."""
    simulators = [stage.simulator(seconds_per_image=0.6) for _ in range(2)]
    gateway = stage.gateway(simulators, ready=False, SDG_WORKER="external", SDG_MAX_QUEUE_PER_USER=1000)
    for _ in range(2):
        stage.worker(gateway)
    gateway.await_ready()
    return gateway, simulators


def test_a_storm_over_two_workers(two_workers: tuple[Gateway, list[Simulator]]) -> None:
    gateway, simulators = two_workers
    storm(gateway, 11, 16)
    check_after_a_storm(gateway, simulators)


def test_a_worker_that_dies_with_a_cancelled_job_leaves_its_end_to_the_next(
    gateway: Gateway, endless: Simulator
) -> None:
    job = running(gateway, endless)
    endless.fault("lost-interrupt", count=1000)
    assert cancel(gateway, job).json()["status"] == "running"
    gateway.kill()
    gateway.restart()
    ended = gateway.finished(job["url"])
    assert (ended["status"], ended["error"]["type"]) == ("cancelled", "job-cancelled")
    [line] = until(lambda: [one for one in gateway.text().splitlines() if "event=cancelled" in one], "it is logged")
    assert " slug=job-cancelled " in line
    check_counts(gateway)
    check_files(gateway)


def test_a_waiting_job_whose_worker_died_while_storing_leaves_no_picture_when_it_is_cancelled(
    stage: Stage, simulator: Simulator
) -> None:
    failpoints = stage.folder / "failpoints"
    gateway = stage.gateway([simulator], processes=1, SDG_TEST_CRASH_AT=failpoints)
    failpoints.with_name("failpoints.stop").write_text("before commit finish")
    job = accept(gateway, "img2img", init_images=PNG)
    stored = {f"{job['name']}-1-0.png", f"{job['name']}-1.json"}
    until(lambda: stored <= gateway.files(), "its files are on disk")
    until(lambda: not failpoints.with_name("failpoints.stop").exists(), "its worker is suspended")
    gateway.kill()
    assert gateway.cli("queue", "pause").returncode == 0
    gateway.restart()
    until(lambda: gateway.status(job["url"]) == "queued", "it waits again")
    assert stored <= gateway.files()
    assert cancel(gateway, job).json()["status"] == "cancelled"
    assert gateway.cli("records", "upkeep").returncode == 0
    assert gateway.files() == {f"{job['name']}-init.png"}
