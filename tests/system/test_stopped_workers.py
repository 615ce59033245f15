"""External workers that are suspended for longer than their lease: another one takes over, and the WebUI never has two requests.

A worker suspends itself with SIGSTOP at a named point of a claim (app/runtime/failpoints.py); the test wakes it when its
lease has run out.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.harness import Gateway, Simulator, Stage, Worker, until
from tests.system.test_soak import check_files, post_until_it_ends, records, requests_of, rows

#: A lease is 10 s; the other worker looks for lapsed ones every 2 s.
_AFTER_LEASE_SECONDS = 14.0
_USERS = 4
_MOST_JOBS = 10_000
#: Where a worker can be suspended between finding a job and the last byte of its request. By the number of clients: where there is
#: one, each job is claimed when the WebUI is idle; where there are many, with the answer of the one before.
POINTS = {
    1: ("before commit claim", "after commit claim", "at check lease"),
    8: ("before commit answered", "after commit answered", "at check lease"),
}


def state(pid: int) -> str:
    """The state of a process as the kernel names it: T when it is suspended."""
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]


class Storm:
    """A gateway with two external workers on one WebUI, of which now and then one is suspended."""

    def __init__(self, stage: Stage, simulator: Simulator) -> None:
        self.simulator = simulator
        self._failpoints = stage.folder / "failpoints"
        self.gateway: Gateway = stage.gateway(
            [simulator], ready=False, SDG_WORKER="external", SDG_TEST_CRASH_AT=self._failpoints
        )
        self.workers: list[Worker] = [stage.worker(self.gateway) for _ in range(2)]
        self.gateway.await_ready()

    def suspend_one(self, point: str) -> None:
        """Have a worker suspend itself at a point, and let it go on when its lease has run out."""
        order = self._failpoints.with_name("failpoints.stop")
        written = self._failpoints.with_name("order")
        written.write_text(point)
        # Whole or not at all.
        written.rename(order)
        [pid] = until(self._suspended, f"a worker is suspended {point}", 30)
        assert not order.exists()
        time.sleep(_AFTER_LEASE_SECONDS)
        os.kill(pid, signal.SIGCONT)

    def _suspended(self) -> list[int]:
        return [worker.running.pid for worker in self.workers if state(worker.running.pid) == "T"]

    def run(self, points: Sequence[str], clients: int) -> None:
        """Suspend workers at these points while clients ask for one picture after another; each gets exactly one result."""
        wanted = iter(requests_of(_MOST_JOBS, _USERS))
        over = threading.Event()
        deadline = time.monotonic() + 60 + 30 * len(points)

        def ask() -> list[tuple[str, str]]:
            """A client: seed and record of each of its pictures."""
            made = []
            while not over.is_set():
                request = next(wanted)
                made.append((request.body["seed"], post_until_it_ends(self.gateway, request, deadline)["name"]))
            return made

        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(ask) for _ in range(clients)]
            try:
                for point in points:
                    self.suspend_one(point)
            finally:
                over.set()
            answers = [answer for client in asking for answer in client.result()]
        found, jobs = records(self.gateway, _USERS), len(answers)
        assert sorted((record["args"]["seed"], record["name"]) for record in found) == sorted(answers)
        assert self.simulator.stats()["max_in_flight"] == 1
        assert rows(self.gateway, "SELECT count(*), sum(attempts) FROM jobs") == [(jobs, 0)]
        assert rows(self.gateway, "SELECT unfinished FROM clock") == [(0,)]
        check_files(self.gateway, found)


@pytest.mark.timeout(180)
def test_a_worker_that_wakes_after_its_lease_sends_nothing_more(stage: Stage, slow: Simulator) -> None:
    storm = Storm(stage, slow)
    storm.run(["at check lease"], clients=2)
    woken = "".join(worker.text() for worker in storm.workers)
    assert woken.count("ran out before its request was complete") == 1


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("clients", POINTS)
def test_a_worker_may_be_suspended_at_any_point_of_a_claim(stage: Stage, slow: Simulator, clients: int) -> None:
    Storm(stage, slow).run(2 * POINTS[clients], clients)
