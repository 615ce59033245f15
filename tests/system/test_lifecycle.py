"""Stopping, crashing and coming back: of the gateway, of its worker process, of its WebUI."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.harness import Gateway, Simulator, Stage, children, until
from tests.system.sse import EventClient


def statuses(gateway: Gateway, jobs: list[dict[str, str]]) -> list[str]:
    return [gateway.status(job["url"]) for job in jobs]


def clients_of(port: int) -> bool:
    """Whether anybody is connected to a loopback port, accepted or not."""
    lines = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
    return any(line.split()[1:4:2] == [f"0100007F:{port:04X}", "01"] for line in lines)


def test_sigterm_answers_who_waits_finishes_what_runs_and_keeps_what_is_queued(stage: Stage, slow: Simulator) -> None:
    gateway = stage.gateway([slow])
    with ThreadPoolExecutor() as pool:
        # Four pictures of 0.4 s: long enough to be running still when the signal comes.
        waiting = pool.submit(gateway.post, id="waits", batch_size=4)
        [running] = until(lambda: gateway.jobs("waits"), "the job is accepted")
        until(lambda: gateway.status(running["url"]) == "running", "the job runs")
        queued = [gateway.post(seed=str(seed), prefer="respond-async").json() for seed in range(3)]

        gateway.running.terminate()
        signalled = time.monotonic()
        answer = waiting.result()
        assert time.monotonic() - signalled < 2
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert answer.headers["Location"] == running["url"]
    assert gateway.alive, "the process waits for the picture"
    assert gateway.stop() == 0
    # The picture was finished before the end, and nothing else was begun.
    assert slow.stats()["generations"] == 1
    assert slow.stats()["interrupts"] == 0
    assert len([name for name in gateway.files() if name.endswith(".png")]) == 4

    gateway.restart()
    [record] = gateway.history("waits")
    assert (record["name"], len(gateway.images(record))) == (running["name"], 4)
    finished = [gateway.finished(job["url"]) for job in queued]
    assert [job["status"] for job in finished] == ["succeeded"] * 3
    assert slow.stats()["generations"] == 4
    assert slow.stats()["max_in_flight"] == 1


def test_what_does_not_end_in_time_is_interrupted_and_made_again(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], SDG_DRAIN_TIMEOUT=0)
    simulator.fault("hang")
    job = gateway.post(prefer="respond-async").json()
    until(lambda: gateway.status(job["url"]) == "running", "the job runs")
    until(lambda: simulator.http.get("/sdapi/v1/progress").json()["state"]["job_count"] != 0, "the WebUI works")

    assert gateway.stop() == 0
    assert simulator.stats()["interrupts"] == 1
    assert gateway.files() == set()

    gateway.restart()
    again = gateway.finished(job["url"])
    assert again["status"] == "succeeded"
    whole = gateway.succeeded(gateway.post())
    assert gateway.images(again) == gateway.images(whole), "a half picture was kept"


def test_a_killed_worker_process_is_replaced_at_once(stage: Stage, slow: Simulator) -> None:
    gateway = stage.gateway([slow])
    for round_ in range(2):
        job = gateway.post(seed=str(round_), prefer="respond-async", batch_size=2).json()
        until(lambda url=job["url"]: gateway.status(url) == "running", "the job runs")
        killed = gateway.worker_pid()
        os.kill(killed, signal.SIGKILL)
        gone = time.monotonic()

        until(lambda pid=killed: gateway.worker_pid() != pid, "another process took over", 5)
        assert time.monotonic() - gone < 2
        done = gateway.finished(job["url"])
        assert (done["status"], [image["seed"] for image in done["images"]]) == (
            "succeeded",
            [str(round_), str(round_ + 1)],
        )

    assert [job["status"] for job in gateway.jobs()] == ["succeeded"] * 2
    assert [record["args"]["seed"] for record in gateway.history()] == ["1", "0"]
    # The WebUI went on with the picture of the dead process; nothing was sent before that was over.
    assert slow.stats()["max_in_flight"] == 1
    # Four pictures, two parameter files, and nothing of the attempts that were lost.
    assert len(gateway.files()) == 6
    assert all(len(gateway.images(record)) == 2 for record in gateway.history())


@pytest.mark.soak
def test_the_death_of_the_master_alone_ends_its_processes_as_sigterm_does(stage: Stage, slow: Simulator) -> None:
    gateway = stage.gateway([slow])
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(gateway.post, id="waits", batch_size=4)
        [running] = until(lambda: gateway.jobs("waits"), "the job is accepted")
        until(lambda: gateway.status(running["url"]) == "running", "the job runs")
        queued = gateway.post(prefer="respond-async").json()
        processes = children(gateway.running.pid)
        gateway.kill_master()
        killed = time.monotonic()
        assert waiting.result().status_code == 202
        assert time.monotonic() - killed < 2
    # The port is free soon enough for a server that is started at once.
    gateway.restart()
    assert [gateway.finished(job["url"])["status"] for job in (running, queued)] == ["succeeded"] * 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "the old processes are gone")
    assert (slow.stats()["generations"], slow.stats()["max_in_flight"]) == (2, 1)
    assert len(gateway.images(gateway.finished(running["url"]))) == 4


def test_a_process_that_began_when_its_master_died_ends_too_whoever_waits(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1)
    [first] = children(gateway.running.pid)
    os.kill(first, signal.SIGKILL)
    [second] = until(lambda: [pid for pid in children(gateway.running.pid) if pid != first], "another one begins")
    # Before it could ask the kernel to be told of its master's death.
    os.kill(second, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(EventClient, gateway.url, "/jobs/user/events")
        until(lambda: clients_of(gateway.port), "a client has connected")
        gateway.kill_master()
        os.kill(second, signal.SIGCONT)
        with watching.result() as client:
            last = client.rest()[-1]
        assert last.name in ("restart", "busy")
    until(lambda: not Path(f"/proc/{second}").exists(), "it is gone", 5)
    gateway.restart()


def test_a_webui_that_is_down_is_waited_for(stage: Stage) -> None:
    """Two gateways, so that the ten seconds between two probes of a silent WebUI pass only once."""
    missing = Simulator("missing", stage.folder)
    before_it = stage.gateway([missing], ready=False, processes=1)
    killed = stage.simulator()
    beside_it = stage.gateway([killed], processes=1)
    before_it.await_ready("degraded")

    refused = before_it.post(prefer="respond-async")
    assert (refused.status_code, refused.json()["type"]) == (503, "no-catalogue")
    assert int(refused.headers["Retry-After"]) >= 1
    assert before_it.jobs() == []

    killed.fault("hang")
    jobs = [beside_it.post(seed=str(seed), prefer="respond-async").json() for seed in range(3)]
    until(lambda: statuses(beside_it, jobs) == ["running", "queued", "queued"], "one runs and two wait")
    killed.kill()
    until(lambda: statuses(beside_it, jobs) == ["queued"] * 3, "the job of the dead WebUI waits again")
    until(lambda: beside_it.readiness() == "degraded", "the gateway knows that its WebUI is gone")
    # What the WebUI offers is still known, so that requests are judged and accepted.
    assert beside_it.post(style="no such style").json()["type"] == "unknown-name"
    jobs.append(beside_it.post(seed="3", prefer="respond-async").json())
    assert statuses(beside_it, jobs) == ["queued"] * 4

    killed.launch()
    stage.add(missing)
    missing.await_ready()
    until(lambda: before_it.readiness() == "ok", "the late WebUI is found", 13)
    before_it.succeeded(before_it.post())
    finished = [beside_it.finished(job["url"]) for job in jobs]
    assert [job["status"] for job in finished] == ["succeeded"] * 4
    assert killed.stats()["generations"] == 4
    assert killed.stats()["max_in_flight"] == 1
    assert beside_it.readiness() == "ok"
