"""What clients are told about the end of their jobs comes true."""

from __future__ import annotations

import statistics
from datetime import datetime
from typing import Any

import pytest

from tests.system.harness import Gateway, Simulator, Stage, until

#: The part of the true time by which an estimate may be wrong.
TOLERANCE = 0.25

pytestmark = [pytest.mark.soak, pytest.mark.alone]


def ask(gateway: Gateway, user: str, **fields: Any) -> dict[str, Any]:
    response = gateway.post(id=user, prefer="respond-async", **fields)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def took(job: dict[str, Any]) -> float:
    """Seconds from the acceptance of a finished job to its end."""
    begun, ended = (datetime.fromisoformat(job[member]) for member in ("created_at", "finished_at"))
    return (ended - begun).total_seconds()


def errors(gateway: Gateway, jobs: list[dict[str, Any]]) -> list[float]:
    """By which part of the true time the eta of each job was wrong when it was accepted."""
    true = [took(gateway.finished(job["url"], 60)) for job in jobs]
    return [abs(job["eta"] - seconds) / seconds for job, seconds in zip(jobs, true, strict=True)]


def test_after_ten_jobs_an_eta_is_right(stage: Stage) -> None:
    gateway = stage.gateway([stage.simulator(seconds_per_image=1.0)])
    for number in range(10):
        gateway.succeeded(gateway.post(seed=str(number)))
    jobs = [ask(gateway, "one", batch_size=size) for size in (1, 2, 1, 3, 1)]
    found = errors(gateway, jobs)
    assert max(found) <= TOLERANCE, found


def test_with_two_users_and_three_webuis_of_different_speed_the_median_is_right(stage: Stage) -> None:
    speeds = (0.3, 0.6, 1.2)
    simulators = [stage.simulator(ready=False, seconds_per_image=seconds) for seconds in speeds]
    for simulator in simulators:
        simulator.await_ready()
    gateway = stage.gateway(simulators)
    until(
        lambda: [w["health"] for w in gateway.http.get("/webuis").json()["webuis"]] == ["up"] * 3, "all WebUIs are up"
    )
    for job in [ask(gateway, "measure", seed=str(number)) for number in range(16)]:
        gateway.finished(job["url"], 60)
    measured = [w["seconds_per_cost"] for w in gateway.http.get("/webuis").json()["webuis"]]
    assert all(measured), measured
    jobs = [ask(gateway, f"user {number % 2}", batch_size=1 + number % 3) for number in range(20)]
    found = errors(gateway, jobs)
    assert statistics.median(found) <= TOLERANCE, found


def test_what_was_measured_is_known_after_a_restart(stage: Stage, slow: Simulator) -> None:
    gateway = stage.gateway([slow])
    for number in range(3):
        gateway.succeeded(gateway.post(seed=str(number)))
    gateway.stop()
    gateway.restart()
    jobs = [ask(gateway, "one") for _ in range(4)]
    found = errors(gateway, jobs)
    assert max(found[1:]) <= TOLERANCE, found
