"""The queue over two processes: one generation at a time on a WebUI, every job once, in a fair order."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest

from tests.system.harness import Gateway, Simulator, Stage, at_once, until

USERS = 8
JOBS = 40


def test_webuis_named_twice_never_get_two_generations_at_once(stage: Stage, fast: list[Simulator]) -> None:
    names = ("localhost", "127.0.0.1")
    urls = ",".join(f"http://{name}:{simulator.port}" for simulator in fast for name in names)
    # Which of the two processes a connection reaches is the kernel's choice: either must be able to hold them all.
    gateway = stage.gateway(urls, SDG_MAX_WAITERS=JOBS)
    until(lambda: all(simulator.http.get("/simulator/stats").ok for simulator in fast), "all simulators answer")

    calls = [partial(gateway.post, id=f"user {number % USERS}", seed=str(1000 + number)) for number in range(JOBS)]
    answers = at_once(calls)

    assert Counter(answer.status_code for answer in answers) == {200: JOBS}
    stats = [simulator.stats() for simulator in fast]
    assert [entry["max_in_flight"] for entry in stats] == [1, 1, 1, 1]
    assert sum(entry["generations"] for entry in stats) == JOBS
    records = [record for number in range(USERS) for record in gateway.history(f"user {number}")]
    seeds = Counter(image["seed"] for record in records for image in record["images"])
    assert seeds == {str(1000 + number): 1 for number in range(JOBS)}
    assert len({content for record in records for content in gateway.images(record)}) == JOBS

    before = gateway.files()
    with ThreadPoolExecutor() as pool:
        verify, sweep = pool.map(lambda name: gateway.cli("records", name), ("verify", "sweep"))
    assert (verify.returncode, verify.stdout) == (0, f"{JOBS} records looked at, 0 problems\n")
    assert (sweep.returncode, sweep.stdout) == (0, "0 stray files removed\n")
    assert gateway.files() == before


@pytest.mark.soak
@pytest.mark.alone
def test_a_waiting_job_tells_its_place_and_a_running_one_how_far_it_is(stage: Stage, slow: Simulator) -> None:
    gateway = stage.gateway([slow])
    # The speed measured with one job is what the others' times are told from.
    post = partial(gateway.post, steps=40)
    gateway.succeeded(post(id="measure"))

    started = time.monotonic()
    first = post(id="first", batch_size=8, prefer="wait=1")
    waited = time.monotonic() - started
    assert first.status_code == 202
    assert 1 <= waited < 2.5
    assert first.headers["Preference-Applied"] == "wait=1"
    assert first.headers["Location"] == first.json()["url"]

    # Turn by turn between users of the same cost, first come first served within one.
    waiting = [
        post(id="greedy", seed="1", prefer="respond-async").json(),
        post(id="greedy", seed="2", prefer="respond-async").json(),
        post(id="modest", seed="3", prefer="respond-async").json(),
    ]
    now = [gateway.http.get(job["url"]).json() for job in waiting]
    assert [(job["status"], job["position"], job["progress"]) for job in now] == [
        ("queued", 1, 0.0),
        ("queued", 3, 0.0),
        ("queued", 2, 0.0),
    ]
    # Eight pictures of 0.4 s, of which a second or so is over, and then 0.4 s for each place.
    assert 0.4 <= now[0]["eta"] <= 3.6
    assert 0.3 <= now[2]["eta"] - now[0]["eta"] <= 0.7
    assert 0.3 <= now[1]["eta"] - now[2]["eta"] <= 0.7

    seen = []

    def ended() -> bool:
        seen.append((time.monotonic(), gateway.http.get(first.headers["Location"]).json()))
        return seen[-1][1]["status"] not in ("queued", "running")

    until(ended, "the first job is finished")
    end, done = seen[-1]
    running = [(at, job) for at, job in seen if job["status"] == "running"]
    assert done["status"] == "succeeded"
    assert (done["position"], done["progress"], done["eta"]) == (None, 1.0, None)
    assert all(job["position"] is None for _, job in running)
    steps = [job["progress"] for _, job in running]
    assert all(0 <= earlier <= later <= 1 for earlier, later in pairwise(steps))
    assert any(0 < step < 1 for step in steps), steps
    at, job = next((at, job) for at, job in running if job["eta"] is not None)
    assert abs(job["eta"] - (end - at)) < 1.5

    finished = [gateway.finished(job["url"]) for job in waiting]
    assert [job["status"] for job in finished] == ["succeeded"] * 3
    order = sorted(finished, key=lambda job: job["started_at"])
    assert [job["args"]["seed"] for job in order] == ["1", "3", "2"]


def test_two_posts_with_one_key_make_one_job(house: Gateway, its_simulator: Simulator) -> None:
    def post() -> tuple[int, str]:
        answer = house.post(id="twice", key="one", seed="-1")
        return answer.status_code, answer.json()["name"]

    # Each connection reaches one process or the other, so that eight reach both.
    answers = at_once([post] * 8)

    [job] = house.jobs("twice")
    assert set(answers) == {(200, job["name"])}
    assert its_simulator.stats()["generations"] == 1
    other = house.post(id="twice", key="one", seed="7")
    assert (other.status_code, other.json()["type"]) == (422, "idempotency-key-reused")
    # Another user's key of the same text is another key, and Prefer is no part of the request.
    assert house.post(id="somebody else", key="one", seed="-1").json()["name"] != job["name"]
    assert house.post(id="twice", key="one", seed="-1", prefer="respond-async").json() == job


def test_the_key_of_a_failed_job_answers_its_problem_again(house: Gateway, its_simulator: Simulator) -> None:
    its_simulator.fault("error-422")
    first = house.post(id="unlucky", key="k")
    again = house.post(id="unlucky", key="k")

    assert (first.status_code, first.json()["type"]) == (502, "webui-refused")
    assert first.headers["Content-Type"] == "application/problem+json"
    # But for the id, which is that of the request that is answered.
    assert (again.status_code, again.json() | {"request": ""}) == (502, first.json() | {"request": ""})
    job = house.http.get(first.json()["url"]).json()
    assert (job["status"], job["error"]["type"], job["images"]) == ("failed", "webui-refused", [])
    assert len(its_simulator.requests()) == 1
    assert [entry["name"] for entry in house.jobs("unlucky")] == [job["name"]]
    assert house.history("unlucky") == []


def test_the_key_of_a_deleted_job_answers_404(house: Gateway, its_simulator: Simulator) -> None:
    job = house.succeeded(house.post(id="forgetful", key="k"))
    deleted = house.http.delete(f"/delete/forgetful/txt2img/{job['name']}")
    again = house.post(id="forgetful", key="k")

    assert deleted.status_code == 200
    assert (again.status_code, again.json()["type"]) == (404, "key-of-deleted-job")
    assert its_simulator.stats()["generations"] == 1
    assert house.jobs("forgetful") == []


def test_a_client_goes_on_waiting_while_its_job_is_tried_again(house: Gateway, its_simulator: Simulator) -> None:
    its_simulator.fault("error-500")
    its_simulator.fault("oom-batch")

    answer = house.post(id="patient", batch_size=2)

    assert answer.status_code == 200, answer.text
    assert [image["seed"] for image in answer.json()["images"]] == ["42", "43"]
    assert its_simulator.stats()["generations"] == 3
