"""What the log tells of each job: one line for each transition."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.system.harness import Gateway, Simulator, Stage, until

LINE = re.compile(
    r"^\[[^]]+\] \[\d+\] \[(?P<level>INFO|WARNING)\] app\.jobs\.events: (?P<fields>event=.*)$", re.MULTILINE
)


def transitions(gateway: Gateway, job: str) -> list[dict[str, str]]:
    """The fields of the lines about a job, in their order."""
    lines = (
        dict(pair.split("=", 1) for pair in shlex.split(found["fields"])) for found in LINE.finditer(gateway.text())
    )
    return [line for line in lines if line["job"] == job]


def events(gateway: Gateway, job: str) -> list[str]:
    return [line["event"] for line in transitions(gateway, job)]


@pytest.fixture
def gateway(stage: Stage, simulator: Simulator) -> Gateway:
    return stage.gateway(f"big={simulator.url}")


STORED = ["accepted", "claimed", "sent", "answered", "stored"]


def test_every_transition_of_a_job_is_one_line_with_its_fields(gateway: Gateway) -> None:
    job = gateway.succeeded(gateway.post(id="two words", batch_size=2))
    image = job["images"][1]["filename"]
    for filename in (image, job["name"]):
        assert gateway.http.delete(f"/delete/two%20words/txt2img/{filename}").status_code == 200

    found = transitions(gateway, job["name"])
    assert [line.pop("event") for line in found] == [*STORED, "deleted", "deleted"]
    common = {"user": "two words", "job": job["name"], "type": "txt2img"}
    assert all(line.items() >= common.items() for line in found)
    for line in found[1:5]:
        assert (line["webui"], line["attempt"]) == ("big", "1")
    waited, took, total = (float(found[index]["seconds"]) for index in (1, 3, 4))
    # 0.2 s of simulated generation for two pictures.
    assert 0 <= waited < took + waited <= total
    assert took >= 0.2
    assert [found[index].get("file") for index in (5, 6)] == [image, None]


def test_many_jobs_one_behind_the_other_have_their_lines_in_order(gateway: Gateway) -> None:
    jobs = [gateway.post(prefer="respond-async", seed=str(number)).json() for number in range(6)]
    for job in jobs:
        gateway.finished(job["url"])
    for job in jobs:
        until(lambda job=job: events(gateway, job["name"]) == STORED, "the lines of a job")


def test_a_failed_job_says_its_slug(gateway: Gateway, simulator: Simulator) -> None:
    simulator.fault("error-422")
    answer = gateway.post()
    [job] = gateway.jobs()
    assert answer.json()["type"] == "webui-refused"
    failed = transitions(gateway, job["name"])[-1]
    assert (failed["event"], failed["slug"], failed["attempt"]) == ("failed", "webui-refused", "1")
    assert events(gateway, job["name"]) == ["accepted", "claimed", "sent", "answered", "failed"]


def test_a_repeated_attempt_is_given_back_first(gateway: Gateway, simulator: Simulator) -> None:
    simulator.fault("close")
    job = gateway.succeeded(gateway.post())
    until(lambda: len(events(gateway, job["name"])) == 8, "the lines of two attempts")
    found = transitions(gateway, job["name"])
    assert [line["event"] for line in found] == [
        *["accepted", "claimed", "sent", "given back"],
        *["claimed", "sent", "answered", "stored"],
    ]
    assert (found[3]["slug"], found[3]["attempt"], found[4]["attempt"]) == ("webui-disconnected", "1", "2")


def test_what_a_killed_process_held_is_given_back_by_the_next_one(gateway: Gateway, simulator: Simulator) -> None:
    simulator.fault("hang")
    job = gateway.post(prefer="respond-async").json()
    until(lambda: events(gateway, job["name"]) == ["accepted", "claimed", "sent"], "the job is sent")
    gateway.kill()
    gateway.restart()
    simulator.interrupt()
    gateway.finished(job["url"], seconds=30)
    found = transitions(gateway, job["name"])
    assert [line["event"] for line in found[:5]] == ["accepted", "claimed", "sent", "given back", "claimed"]
    assert (found[3]["webui"], found[3]["attempt"], found[3]["slug"]) == ("big", "1", "worker-lost")
