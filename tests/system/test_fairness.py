"""Fairness as users see it, in numbers: who asks for much delays himself only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.system.harness import Gateway, Simulator, Stage, until

#: The table's own fairness stands in tests/jobs/test_table.py; this is what users see of it, which takes its time.
pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Simulator]]:
    """A gateway that lets one user wait with 60 jobs, and its simulator, which takes no time."""
    stage = Stage(tmp_path_factory.mktemp("fairness"))
    try:
        simulator = stage.simulator("--precomputed", ready=False, seconds_per_image=0.0)
        gateway = stage.gateway([simulator], processes=1, SDG_MAX_QUEUE_PER_USER=60)
        yield gateway, simulator
    finally:
        stage.clear()


def hold(gateway: Gateway, simulator: Simulator, user: str) -> None:
    """Let a job of this user run until the simulator is interrupted, and forget what was before."""
    simulator.reset()
    simulator.fault("hang")
    job = gateway.post(id=user, prompt="held", prefer="respond-async").json()
    until(lambda: gateway.status(job["url"]) == "running", "the WebUI is busy")


def ask(gateway: Gateway, user: str, number: int, **fields: Any) -> dict[str, Any]:
    """A job that can be told apart by its prompt."""
    response = gateway.post(id=user, prompt=f"{user} {number}", prefer="respond-async", **fields)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def served(gateway: Gateway, simulator: Simulator, jobs: list[dict[str, Any]]) -> list[str]:
    """Let everything go on to its end; the prompts in the order in which the WebUI saw them, without the held one."""
    simulator.interrupt()
    for job in jobs:
        assert gateway.finished(job["url"])["status"] == "succeeded"
    prompts = [entry["payload"]["prompt"] for entry in simulator.requests()]
    return [prompt for prompt in prompts if prompt != "held"]


def in_order_of_position(gateway: Gateway, jobs: list[dict[str, Any]]) -> list[str]:
    """The prompts as the positions that their users see promise them, from 1 without a gap."""
    now = sorted((gateway.http.get(job["url"]).json() for job in jobs), key=lambda job: job["position"])
    assert [job["position"] for job in now] == list(range(1, len(jobs) + 1))
    return [job["args"]["prompt"] for job in now]


def test_the_one_job_of_a_user_starts_before_the_twenty_of_another(counter: tuple[Gateway, Simulator]) -> None:
    gateway, simulator = counter
    hold(gateway, simulator, "flood")
    jobs = [ask(gateway, "flood", number) for number in range(20)]
    jobs.append(ask(gateway, "modest", 0))
    promised = in_order_of_position(gateway, jobs)
    assert promised == ["modest 0", *(f"flood {number}" for number in range(20))]
    # The held job was interrupted, so it is made again, in the place that it had: before all others of its user.
    assert served(gateway, simulator, jobs) == promised


def test_eight_at_a_time_and_one_at_a_time_share_the_webui_evenly(counter: tuple[Gateway, Simulator]) -> None:
    gateway, simulator = counter
    hold(gateway, simulator, "somebody")
    jobs = [ask(gateway, "batches", number, batch_size=8) for number in range(5)]
    jobs += [ask(gateway, "singles", number) for number in range(45)]
    promised = in_order_of_position(gateway, jobs)
    order = served(gateway, simulator, jobs)
    assert order == promised

    while_both_waited = order[: order.index("batches 4")]
    counts = {user: sum(prompt.startswith(user) for prompt in while_both_waited) for user in ("batches", "singles")}
    assert counts["batches"] == 4
    assert 6 <= counts["singles"] / counts["batches"] <= 10
    # Between any two batches too, not only on average.
    at = [index for index, prompt in enumerate(while_both_waited) if prompt.startswith("batches")]
    assert all(6 <= later - earlier - 1 <= 10 for earlier, later in pairwise(at))
