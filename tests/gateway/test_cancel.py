"""A running job is cancelled: its WebUI is stopped if it is at it and at nothing else, and no picture of it stays on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from app.simulator import SimulatorServer
from tests.inprocess import Gateway, arm, hurry, simulator, stats, until

#: Far longer than a test takes.
LONG = 600.0
STEPS = {"steps": 20}


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def slow() -> Iterator[SimulatorServer]:
    with simulator(seconds_per_image=LONG) as server:
        yield server


def opened(tmp_path: Path, empty: Path, server: SimulatorServer) -> Gateway:
    gateway = Gateway(tmp_path, empty, [server.url]).start()
    # A new slot is quiesced first, which others at its WebUI would hold up.
    gateway.clean_slot()
    return gateway


@pytest.fixture
def gateway(tmp_path: Path, migrated_sqlite: Path, slow: SimulatorServer) -> Iterator[Gateway]:
    with opened(tmp_path, migrated_sqlite, slow) as gateway:
        yield gateway


def cancel(gateway: Gateway, view: dict[str, Any]) -> dict[str, Any]:
    return gateway.services.archive.cancel(view["id"], view["type"], view["name"])[0]


def running(gateway: Gateway, server: SimulatorServer, type_: str = "txt2img", **fields: Any) -> dict[str, Any]:
    """A job whose pictures the WebUI is making."""
    before = stats(server)["generations"]
    view = gateway.accept(type_, **STEPS | fields)
    until(lambda: stats(server)["generations"] == before + 1)
    assert server.simulator.engine.wait_busy(30)
    return view


def pictures(gateway: Gateway) -> set[str]:
    return {name for name in gateway.files() if not name.endswith("-init.png")}


def quicken(server: SimulatorServer) -> None:
    """From now on a picture takes no time."""
    object.__setattr__(server.simulator.settings, "seconds_per_image", 0.0)


class OtherGateway:
    """Another gateway's request at the same WebUI, under its own task id."""

    def __init__(self, server: SimulatorServer) -> None:
        self._server = server
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.simulator.engine.interrupt()
        self._pool.shutdown()

    def post(self) -> Future[requests.Response]:
        body = {"prompt": "theirs", "steps": 20, "width": 64, "height": 64, "force_task_id": "theirs"}
        return self._pool.submit(requests.post, f"{self._server.url}/sdapi/v1/txt2img", json=body, timeout=60)

    def runs(self) -> bool:
        return bool(self._server.simulator.engine.task_progress("theirs", -1)["active"])

    def waits(self) -> bool:
        return "theirs" in self._server.simulator.engine.pending()["tasks"]


def test_the_webui_is_stopped_and_no_picture_stays(gateway: Gateway, slow: SimulatorServer) -> None:
    view = running(gateway, slow, "img2img")
    task = gateway.slot().task_id
    shown = cancel(gateway, view)
    assert (shown["status"], shown["cancel_requested"], shown["error"]) == ("running", True, None)
    job = gateway.finished(view)
    assert (job.status, job.error_slug, job.attempts, job.losses) == ("cancelled", "job-cancelled", 0, 0)
    assert stats(slow)["interrupted"] == [task]
    gateway.clean_slot()
    assert pictures(gateway) == set()
    quicken(slow)
    assert gateway.post()["status"] == "succeeded"


def test_the_client_that_waits_is_told(gateway: Gateway, slow: SimulatorServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.post, **STEPS)
        [job] = until(lambda: gateway.services.archive.jobs("u1", "running", 9, None)[0])
        assert slow.simulator.engine.wait_busy(30)
        cancel(gateway, job)
        view = waiting.result(30)
    assert (view["status"], view["error"]["slug"]) == ("cancelled", "job-cancelled")


def test_an_interrupt_that_gets_lost_is_repeated(gateway: Gateway, slow: SimulatorServer) -> None:
    arm(slow, "lost-interrupt", 3)
    view = running(gateway, slow)
    cancel(gateway, view)
    assert gateway.finished(view).status == "cancelled"
    counted = stats(slow)
    assert (counted["interrupts"], len(counted["interrupted"])) == (4, 1)


def test_a_job_whose_webui_is_still_loading_its_model_is_stopped_then(tmp_path: Path, migrated_sqlite: Path) -> None:
    with (
        simulator(seconds_per_image=LONG, seconds_per_first_load=1.0) as server,
        opened(tmp_path, migrated_sqlite, server) as gateway,
    ):
        view = gateway.accept(**STEPS)
        until(lambda: server.simulator.engine.pending()["size"] == 1)
        task = gateway.slot().task_id
        cancel(gateway, view)
        assert gateway.finished(view).status == "cancelled"
        assert stats(server)["interrupted"] == [task]


@pytest.mark.parametrize("flavour", ["a1111-1.10", "forge", "nowebui"])
def test_upscaling_is_never_interrupted_and_its_reply_thrown_away(
    tmp_path: Path, migrated_sqlite: Path, flavour: str
) -> None:
    with (
        simulator(flavour=flavour, seconds_per_upscale=1.0) as server,
        opened(tmp_path, migrated_sqlite, server) as gateway,
    ):
        view = gateway.accept("img2img", hr_upscaler="Lanczos", hr_scale=2.0)
        until(lambda: server.simulator.engine.progress()["state"]["job"] == "Upscale")
        cancel(gateway, view)
        until(lambda: stats(server)["generations"] == 1)
        assert gateway.finished(view).status == "cancelled"
        assert stats(server)["interrupts"] == 0
        assert server.simulator.engine.progress()["state"]["job_count"] == 0
        assert pictures(gateway) == set()
        assert gateway.post()["status"] == "succeeded"


def test_a_job_that_waits_behind_another_gateways_is_stopped_when_its_turn_comes(
    gateway: Gateway, slow: SimulatorServer
) -> None:
    with OtherGateway(slow) as other:
        theirs = other.post()
        until(other.runs)
        view = gateway.accept(**STEPS)
        until(lambda: slow.simulator.engine.pending()["size"] == 1)
        task = gateway.slot().task_id
        cancel(gateway, view)
        asked_again = threading.Event()
        asked_again.wait(0.5)
        assert other.runs()
        assert stats(slow)["interrupts"] == 0
        # Somebody else stops theirs.
        slow.simulator.engine.interrupt()
        assert theirs.result(30).status_code == 200
        assert gateway.finished(view).status == "cancelled"
        assert stats(slow)["interrupted"] == [task]


def test_another_gateways_job_behind_ours_is_not_hit(gateway: Gateway, slow: SimulatorServer) -> None:
    # A step takes four seconds; before the first one is done nobody knows how soon the job ends.
    view = running(gateway, slow, steps=150)
    task = gateway.slot().task_id
    with OtherGateway(slow) as other:
        other.post()
        until(other.waits)
        cancel(gateway, view)
        assert gateway.finished(view).status == "cancelled"
        until(other.runs)
        asked_again = threading.Event()
        asked_again.wait(0.5)
        assert other.runs()
        assert stats(slow)["interrupted"] == [task]


def test_a_job_that_ends_by_itself_in_a_moment_is_not_interrupted(tmp_path: Path, migrated_sqlite: Path) -> None:
    """The next one might have begun when the interrupt arrives."""
    with simulator(seconds_per_image=0.45) as server, opened(tmp_path, migrated_sqlite, server) as gateway:
        gateway.post(steps=150)
        view = gateway.accept(steps=150)
        gateway.claimed(view)
        until(lambda: server.simulator.engine.progress()["state"]["sampling_step"] > 1)
        cancel(gateway, view)
        assert gateway.finished(view).status == "cancelled"
        assert stats(server)["interrupts"] == 0
        assert pictures(gateway) == {name for name in pictures(gateway) if view["name"] not in name}


class TestInvokeAI:
    """Its queue cancelled the running item when a waiting one was cancelled (invoke-ai/InvokeAI #6049, #6089)."""

    def test_cancelling_a_waiting_job_leaves_the_running_one_alone(
        self, gateway: Gateway, slow: SimulatorServer
    ) -> None:
        first = running(gateway, slow)
        second = gateway.accept()
        assert cancel(gateway, second)["status"] == "cancelled"
        assert gateway.job(first).status == "running"
        third = gateway.accept()
        assert gateway.services.archive.cancel_queued("u1") == 1
        assert gateway.job(third).status == "cancelled"
        gateway.services.worker.renew_soon()
        asked_again = threading.Event()
        asked_again.wait(0.5)
        assert gateway.job(first).status == "running"
        assert stats(slow)["interrupts"] == 0


def test_a_running_job_that_is_deleted_is_stopped_and_leaves_nothing(gateway: Gateway, slow: SimulatorServer) -> None:
    view = running(gateway, slow, "img2img")
    task = gateway.slot().task_id
    assert gateway.services.archive.delete("u1", "img2img", view["name"]) == []
    gateway.clean_slot()
    assert stats(slow)["interrupted"] == [task]
    gateway.services.archive.tidy()
    assert gateway.files() == set()
    assert gateway.sql("SELECT status, owner, pending_unlink FROM jobs") == [("deleted", None, 0)]


def test_a_job_beyond_its_deadline_is_stopped(gateway: Gateway, slow: SimulatorServer) -> None:
    view = running(gateway, slow)
    gateway.sql("UPDATE jobs SET deadline = 1")
    job = gateway.finished(view)
    assert (job.status, job.error_slug) == ("cancelled", "deadline-passed")
    assert len(stats(slow)["interrupted"]) == 1


def test_another_process_of_the_host_is_told_at_once(
    tmp_path: Path, migrated_sqlite: Path, slow: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the next heartbeat, which is all that another host's worker has."""
    monkeypatch.setattr("app.jobs.worker.timing.HEARTBEAT_SECONDS", 6.0)
    with opened(tmp_path, migrated_sqlite, slow) as owner:
        view = running(owner, slow)
        with Gateway(tmp_path, migrated_sqlite, [slow.url]) as other:
            other.services.start(worker=False)
            began = time.monotonic()
            cancel(other, view)
            owner.finished(view)
            assert time.monotonic() - began < 4.0


def test_another_host_is_told_by_its_heartbeat(tmp_path: Path, migrated_sqlite: Path, slow: SimulatorServer) -> None:
    """A process that has not opened the channel of notifications stands for one of another host."""
    with opened(tmp_path, migrated_sqlite, slow) as owner, Gateway(tmp_path, migrated_sqlite, [slow.url]) as other:
        view = running(owner, slow)
        cancel(other, view)
        assert owner.finished(view).status == "cancelled"


def test_what_a_worker_that_died_has_written_is_removed(gateway: Gateway, slow: SimulatorServer) -> None:
    """It had stored the pictures when it died, and its job was cancelled before that was noticed."""
    view = gateway.accept("img2img")
    job = gateway.claimed(view)
    records = gateway.services.records
    records.save("u1", "img2img", job.name, 1, [(f"{job.name}-1-0.png", b"picture")], {"format": 1})
    cancel(gateway, view)
    gateway.finished(view)
    gateway.services.archive.tidy()
    assert gateway.files() == {f"{job.name}-init.png"}
