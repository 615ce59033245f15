"""With every waiter waiting the other endpoints answer as ever, and the next client is told so before anything is accepted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests

from tests.system.harness import Gateway, Simulator, Stage, until

REQUESTS = 200
CLIENTS = 2


def timed(gateway: Gateway, paths: list[str]) -> list[float]:
    """Seconds that each of these takes, one after another over one connection, as a real client would."""
    seconds = []
    with requests.Session() as session:
        session.trust_env = False
        for path in paths:
            began = time.perf_counter()
            answer = session.get(gateway.url + path, timeout=30)
            seconds.append(time.perf_counter() - began)
            assert answer.status_code == 200, (path, answer.text)
    return seconds


class Crowd:
    """A gateway whose waiters all wait, for one picture that hangs."""

    def __init__(self, stage: Stage, simulator: Simulator, pool: ThreadPoolExecutor) -> None:
        self.gateway = stage.gateway([simulator], processes=1, SDG_THREADS=8, SDG_MAX_WAITERS=4)
        done = self.gateway.succeeded(self.gateway.post(id="done"))
        self.paths = [done["images"][0]["url"], "/t2ihistory/done", "/livez", "/readyz"]
        simulator.fault("hang")
        self.waiting = [pool.submit(self.gateway.post, seed=str(seed)) for seed in range(4)]
        # A job is accepted by a client that has its place already.
        until(lambda: len(self.gateway.jobs()) == 4, "all waiters wait")


def test_other_endpoints_are_answered_and_the_next_post_is_refused(stage: Stage, simulator: Simulator) -> None:
    with ThreadPoolExecutor() as pool:
        with released(simulator):
            crowd = Crowd(stage, simulator, pool)
            gateway = crowd.gateway
            assert len(timed(gateway, crowd.paths)) == len(crowd.paths)

            refused = gateway.post(id="late")
            assert (refused.status_code, refused.json()["type"]) == (503, "no-free-waiter")
            assert refused.headers["Content-Type"] == "application/problem+json"
            assert int(refused.headers["Retry-After"]) >= 1
            assert gateway.jobs("late") == []
            assert len(gateway.jobs()) == 4

            accepted = gateway.post(id="late", prefer="respond-async")
            assert accepted.status_code == 202
            assert [job["name"] for job in gateway.jobs("late")] == [accepted.json()["name"]]

            assert not any(future.done() for future in crowd.waiting)
        assert [future.result().status_code for future in crowd.waiting] == [200] * 4
    assert gateway.succeeded(accepted)


@pytest.mark.soak
@pytest.mark.alone
def test_other_endpoints_are_quick(stage: Stage, simulator: Simulator) -> None:
    with ThreadPoolExecutor() as pool, released(simulator):
        crowd = Crowd(stage, simulator, pool)
        paths = crowd.paths * (REQUESTS // CLIENTS // len(crowd.paths))
        seconds = [one for part in pool.map(lambda _: timed(crowd.gateway, paths), range(CLIENTS)) for one in part]
        assert len(seconds) == REQUESTS
        assert statistics.quantiles(seconds, n=20)[-1] < 0.05
        assert not any(future.done() for future in crowd.waiting)


@contextmanager
def released(simulator: Simulator) -> Iterator[None]:
    """End a hanging generation in the end, also when the test failed: its clients would be waited for."""
    try:
        yield
    finally:
        simulator.interrupt()


def test_each_process_has_waiters_of_its_own(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=2, SDG_THREADS=4, SDG_MAX_WAITERS=2)
    simulator.fault("hang")

    with ThreadPoolExecutor(8) as pool:
        with released(simulator):

            def post_until_accepted(seed: int) -> requests.Response:
                # Which process answers is the kernel's choice; a full one refuses, the other takes it at some later try.
                return until(lambda: _unless_refused(gateway.post(seed=str(seed))), "a waiter is free")

            waiting = [pool.submit(post_until_accepted, seed) for seed in range(4)]
            until(lambda: len(gateway.jobs()) == 4, "all waiters of both processes wait")
            until(lambda: simulator.stats()["generations"] == 1, "the picture that hangs has begun")

            refused = [gateway.post(id="late") for _ in range(20)]
            assert {answer.status_code for answer in refused} == {503}
            assert gateway.jobs("late") == []
            assert len(gateway.jobs()) == 4
            assert gateway.readiness() == "ok"

        assert [future.result().status_code for future in waiting] == [200] * 4


def _unless_refused(answer: requests.Response) -> requests.Response | None:
    return None if answer.status_code == 503 else answer
