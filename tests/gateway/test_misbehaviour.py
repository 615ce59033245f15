"""The world misbehaves over time, and comes back: a WebUI starts slowly or dies in the middle, files can't be removed for a while.

Single bad answers of a WebUI stand in test_generation.py.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from app.records.errors import StorageFailed
from app.simulator import SimulatorServer
from app.simulator.faults import Fault
from tests.inprocess import USER, Gateway, arm, hurry, stats, until


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def gateway(gateway: Gateway) -> Gateway:
    return gateway.start()


def restart(server: SimulatorServer, *, slowly: bool = False) -> SimulatorServer:
    """The same WebUI once more after its process was killed; with ``slowly`` its routes appear after a while."""
    server.stop()
    again = SimulatorServer(server.simulator.settings, port=server.port)
    if slowly:
        again.simulator.faults.arm(Fault("slow-start", seconds=0.5))
    again.start()
    return again


def test_a_webui_that_starts_slowly_is_sent_nothing_before_it_is_ready(
    gateway: Gateway, server: SimulatorServer
) -> None:
    server.stop()
    view = gateway.accept()
    until(lambda: gateway.slot().health == "down", "the WebUI is missed")
    with restart(server, slowly=True) as again:
        fault = again.simulator.faults
        job = gateway.finished(view)
        assert fault.armed() == [], "a job was sent while the WebUI was still starting"
        assert (job.status, job.attempts, job.losses) == ("succeeded", 0, 0)
        assert stats(again)["generations"] == 1


def test_a_webui_that_dies_in_the_middle_of_a_picture_costs_one_attempt(
    gateway: Gateway, server: SimulatorServer
) -> None:
    arm(server, "hang")
    view = gateway.accept()
    waiting = gateway.accept(seed="8")
    until(lambda: stats(server)["generations"] == 1, "the WebUI works at it")
    with restart(server, slowly=True) as again:
        job = gateway.finished(view)
        assert (job.status, job.attempts, job.losses, job.claims) == ("succeeded", 1, 0, 2)
        assert gateway.finished(waiting).attempts == 0
        assert gateway.clean_slot().health == "up"
        # Nobody works at the first attempt any more; the second one's picture and the other job's are all that was made.
        assert (stats(again)["generations"], stats(again)["max_in_flight"]) == (2, 1)
        assert stats(again)["interrupts"] == 0
    assert {name for name in gateway.files() if view["name"] in name} == {
        f"{view['name']}-2-0.png",
        f"{view['name']}-2.json",
    }


def test_a_webui_that_dies_with_every_picture_fails_the_job_and_not_the_next(
    gateway: Gateway, server: SimulatorServer
) -> None:
    arm(server, "hang")
    view = gateway.accept()
    for attempt in (1, 2, 3):
        await_attempt(gateway, server, view, attempt)
        server.stop()
        server = SimulatorServer(server.simulator.settings, port=server.port)
        if attempt < 3:
            # Before it listens, so that no attempt slips through.
            arm(server, "hang")
        server.start()
    with server:
        job = gateway.finished(view)
        assert (job.status, job.error_slug, job.attempts) == ("failed", "webui-disconnected", 3)
        assert gateway.post()["status"] == "succeeded"
        assert not [name for name in gateway.files() if view["name"] in name]


def await_attempt(gateway: Gateway, server: SimulatorServer, view: dict[str, Any], number: int) -> None:
    """Until the WebUI works at this attempt."""
    until(lambda: gateway.job(view).claims >= number and stats(server)["generations"] == 1, f"attempt {number}")


def test_files_that_could_not_be_removed_go_later_without_a_restart(
    tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gateway.maintenance.STEP_SECONDS", 0.05)
    with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
        view = gateway.start().post()
        with monkeypatch.context() as broken:

            def refuse(*_: object) -> None:
                raise StorageFailed(OSError(errno.EROFS, "read-only"), doing="removed")

            broken.setattr(gateway.services.records, "remove_files", refuse)
            assert gateway.services.archive.delete(USER, "txt2img", view["name"])
            assert len(gateway.files()) == 2
        until(lambda: gateway.files() == set(), "the files are gone")
        until(lambda: gateway.services.table.deletion.pending_unlink() == [], "nothing is left to do")
