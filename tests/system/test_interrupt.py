"""Ctrl-C in the terminal: every process of the group gets SIGINT at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import requests

from tests.system.harness import Gateway, Process, Simulator, Stage, listens, until

CLIENTS = 5


def press_ctrl_c(process: Process) -> None:
    os.killpg(process.running.pid, signal.SIGINT)


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        yield pool


def waiting(gateway: Gateway, simulator: Simulator, clients: ThreadPoolExecutor) -> list[Future[requests.Response]]:
    """Clients that wait for pictures, the first of which is being made."""
    posts = [clients.submit(gateway.post, id=f"u{number}") for number in range(CLIENTS)]
    until(lambda: all(gateway.jobs(f"u{number}") for number in range(CLIENTS)), "every request is accepted")
    until(lambda: simulator.stats()["max_in_flight"] == 1, "a picture is being made")
    return posts


# Before it was handled, it went wrong every fourth time.
@pytest.mark.parametrize("_time", [0, *(pytest.param(again, marks=pytest.mark.soak) for again in range(1, 5))])
def test_with_work_in_flight_it_drains_as_sigterm_does(
    stage: Stage, slow: Simulator, clients: ThreadPoolExecutor, _time: int
) -> None:
    gateway = stage.gateway([slow])
    posts = waiting(gateway, slow, clients)
    press_ctrl_c(gateway)
    assert [post.result().status_code for post in posts] == [202] * CLIENTS
    assert gateway.wait() == 0
    assert not listens(port_of(gateway))
    assert "Traceback" not in gateway.text()
    # The picture that was being made was finished, and the others wait.
    assert 'event="given back"' not in gateway.text()
    gateway.restart()
    for number in range(CLIENTS):
        [job] = gateway.jobs(f"u{number}")
        assert gateway.finished(job["url"])["status"] == "succeeded"
    assert slow.stats()["generations"] == CLIENTS


def test_a_second_one_ends_at_once_and_loses_nothing(
    stage: Stage, simulator: Simulator, clients: ThreadPoolExecutor
) -> None:
    gateway = stage.gateway([simulator])
    simulator.fault("hang", seconds=20)
    posts = waiting(gateway, simulator, clients)
    press_ctrl_c(gateway)
    assert [post.result().status_code for post in posts] == [202] * CLIENTS
    assert gateway.alive
    press_ctrl_c(gateway)
    # Of 25 s that the first one allows, it takes none.
    assert gateway.wait(5) == 0
    assert not listens(port_of(gateway))
    assert "Traceback" not in gateway.text()
    simulator.interrupt()
    gateway.restart()
    for number in range(CLIENTS):
        [job] = gateway.jobs(f"u{number}")
        assert gateway.finished(job["url"], seconds=60)["status"] == "succeeded"


def test_a_worker_of_its_own_drains_and_a_second_one_ends_it(stage: Stage, slow: Simulator) -> None:
    gateway = stage.gateway([slow], ready=False, SDG_WORKER="external")
    worker = stage.worker(gateway)
    gateway.await_ready()
    job = gateway.post(prefer="respond-async").json()
    until(lambda: gateway.status(job["url"]) == "running", "the job runs")
    press_ctrl_c(worker)
    assert worker.wait() == 0
    assert "Traceback" not in worker.text()
    assert gateway.status(job["url"]) == "succeeded"

    worker.launch()
    slow.fault("hang", seconds=20)
    lost = gateway.post(prefer="respond-async").json()
    until(lambda: gateway.status(lost["url"]) == "running", "the job runs")
    press_ctrl_c(worker)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1)
    press_ctrl_c(worker)
    assert worker.wait(5) == -signal.SIGINT
    assert "Traceback" not in worker.text()


def test_a_simulator_ends(stage: Stage) -> None:
    simulator = stage.simulator(cold=True)
    press_ctrl_c(simulator)
    assert simulator.wait() == 0
    assert "Traceback" not in simulator.text()
