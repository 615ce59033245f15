"""The queue as people see it: what waits and why, paused and resumed, over processes and restarts; and the WebUIs."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from benchmarks import tables
from tests.system.harness import JOB_SECONDS, Gateway, Simulator, Stage, until

#: Longer than a worker may be silent before it counts as gone.
GONE_SECONDS = 20.0


def ask(gateway: Gateway, user: str, **fields: Any) -> dict[str, Any]:
    response = gateway.post(id=user, prefer="respond-async", **fields)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def queue(gateway: Gateway, query: str = "") -> dict[str, Any]:
    answer = gateway.http.get(f"/queue{query}")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def command(gateway: Gateway, *arguments: str) -> str:
    done = gateway.cli("queue", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def paused(stage: Stage, simulator: Simulator) -> Gateway:
    """A gateway that was measured once, and is paused."""
    gateway = stage.gateway([simulator])
    gateway.succeeded(gateway.post(id="measure"))
    assert command(gateway, "pause") == "the queue is paused\n"
    return gateway


class TestPaused:
    def test_what_runs_is_finished_and_nothing_else_is_started_over_a_restart(
        self, stage: Stage, slow: Simulator
    ) -> None:
        gateway = stage.gateway([slow])
        running = ask(gateway, "one", batch_size=4)
        until(lambda: gateway.status(running["url"]) == "running", "it runs")
        waiting = ask(gateway, "one")
        command(gateway, "pause")
        assert command(gateway, "pause") == "the queue was paused already\n"
        assert gateway.finished(running["url"])["status"] == "succeeded"

        later = ask(gateway, "two")
        gateway.stop()
        gateway.restart()
        assert queue(gateway)["paused"]
        answer = gateway.post(id="three", prefer="wait=2")
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        assert slow.stats()["generations"] == 1
        health = gateway.http.get("/readyz").json()
        assert health["status"] == "ok"
        assert "paused" in health["reasons"][0]

        assert command(gateway, "resume") == "jobs are started again\n"
        assert command(gateway, "resume") == "the queue was not paused\n"
        for job in (waiting, later, answer.json()):
            assert gateway.finished(job["url"])["status"] == "succeeded"
        assert gateway.http.get("/readyz").json()["reasons"] == []

    def test_it_holds_for_workers_in_processes_of_their_own(self, stage: Stage, fast: list[Simulator]) -> None:
        gateway = stage.gateway(fast[:2], ready=False, SDG_WORKER="external")
        for _ in range(2):
            stage.worker(gateway)
        gateway.await_ready()
        gateway.succeeded(gateway.post())
        before = sum(simulator.stats()["generations"] for simulator in fast[:2])
        command(gateway, "pause")
        jobs = [ask(gateway, f"u{number}") for number in range(6)]
        # Longer than both of their polls.
        time.sleep(2.5)
        assert sum(simulator.stats()["generations"] for simulator in fast[:2]) == before
        command(gateway, "resume")
        assert {gateway.finished(job["url"])["status"] for job in jobs} == {"succeeded"}

    def test_the_operator_cancels_one_job_or_all_that_wait(self, paused: Gateway) -> None:
        one, *others = [ask(paused, "one") for _ in range(3)]
        other = ask(paused, "two")
        assert command(paused, "cancel", "one", "txt2img", one["name"]) == "the job is cancelled\n"
        assert command(paused, "cancel", "one", "txt2img", one["name"]) == "the job is cancelled\n"
        assert command(paused, "cancel", "one", "--waiting") == "2 jobs cancelled\n"
        assert {paused.status(job["url"]) for job in (one, *others)} == {"cancelled"}
        assert paused.status(other["url"]) == "queued"
        assert paused.cli("queue", "cancel", "one", "txt2img", "20261122T061530123-9f2c4e7a").returncode == 1
        for wrong in (["one"], ["one", "txt2img"], ["one", "txt2img", one["name"], "--waiting"]):
            assert paused.cli("queue", "cancel", *wrong).returncode == 2

    def test_the_operator_stops_a_job_that_runs(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator])
        simulator.fault("hang")
        job = ask(gateway, "one")
        until(lambda: simulator.stats()["generations"] == 1, "it runs")
        assert command(gateway, "cancel", "one", "txt2img", job["name"]) == "the job is asked to end\n"
        assert gateway.finished(job["url"])["status"] == "cancelled"

    def test_the_operator_sees_every_name(self, paused: Gateway) -> None:
        job = ask(paused, "modest one")
        first, last = command(paused, "list").splitlines()
        assert first == f"1 modest one txt2img {job['name']}, ends in unknown time, waits for: paused"
        assert last == "paused, 0 running, 1 waiting, empty in unknown time"


class TestRedaction:
    def test_other_users_are_not_named_anywhere(self, paused: Gateway) -> None:
        jobs = {user: [ask(paused, user) for _ in range(3)] for user in ("alice", "somebody-else", "用户")}
        texts = []
        following: str | None = "/queue?id=alice&limit=2"
        named: list[str] = []
        while following is not None:
            answer = paused.http.get(following)
            texts.append(answer.text)
            page = answer.json()
            named += [entry["name"] for entry in page["waiting"] if not entry["redacted"]]
            assert all(
                set(e) == {"redacted", "position", "progress", "eta", "waits_for"}
                for e in page["waiting"]
                if e["redacted"]
            )
            following = page["next"]
        assert named == [job["name"] for job in jobs["alice"]]
        assert len(texts) == 5
        texts.append(paused.http.get("/queue?id=nobody").text)
        others = [user for user in jobs if user != "alice"] + [
            job["name"] for u in jobs for job in jobs[u] if u != "alice"
        ]
        assert [name for name in others for text in texts if name in text or ascii(name)[1:-1] in text] == []
        nameless = paused.http.get("/queue").text
        assert [name for name in (*others, *named, "alice") if name in nameless] == []
        own = queue(paused, "?id=alice")["waiting"][0]
        assert paused.http.get(own["url"]).json()["name"] == own["name"] == jobs["alice"][0]["name"]


class TestReasons:
    def reasons(self, gateway: Gateway) -> set[str | None]:
        return {entry["waits_for"] for entry in queue(gateway)["waiting"]}

    def test_a_job_that_only_waits_for_its_turn_waits_for_nothing_else(self, stage: Stage, slow: Simulator) -> None:
        gateway = stage.gateway([slow])
        gateway.succeeded(gateway.post())
        jobs = [ask(gateway, "one", batch_size=2) for _ in range(3)]
        until(lambda: len(queue(gateway)["running"]) == 1, "one runs")
        shown = queue(gateway, "?id=one")
        assert [entry["name"] for entry in shown["running"]] == [jobs[0]["name"]]
        assert [(entry["position"], entry["waits_for"]) for entry in shown["waiting"]] == [(1, None), (2, None)]
        assert shown["counts"] == {"running": 1, "waiting": 2}
        assert 0 < shown["oldest_wait"] < JOB_SECONDS
        assert 0 < shown["waiting"][0]["eta"] < shown["waiting"][1]["eta"] <= shown["seconds_to_empty"]
        for job in jobs:
            gateway.finished(job["url"])
        assert queue(gateway)["seconds_to_empty"] == 0.0

    def test_the_queue_is_paused(self, paused: Gateway) -> None:
        ask(paused, "one")
        assert self.reasons(paused) == {"paused"}

    def test_no_webui_answers(self, stage: Stage) -> None:
        simulator = stage.simulator()
        gateway = stage.gateway([simulator])
        simulator.kill()
        ask(gateway, "one")
        until(lambda: self.reasons(gateway) == {"webui-down"}, "the WebUI is seen down")

    def test_the_only_webui_with_the_model_is_down(self, stage: Stage) -> None:
        has, lacks = stage.simulator("--model", "special"), stage.simulator("--model", "other")
        gateway = stage.gateway([has, lacks])
        until(lambda: "special" in gateway.http.get("/options").json()["models"], "both were seen")
        has.kill()
        job = ask(gateway, "one", model="special")
        until(lambda: self.reasons(gateway) == {"model"}, "its WebUI is seen down")
        assert gateway.http.get(job["url"]).json()["eta"] is None
        gateway.succeeded(gateway.post(id="two", model="other"))

    def test_no_worker_is_running(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator], ready=False, SDG_WORKER="external")
        worker = stage.worker(gateway)
        gateway.await_ready()
        worker.kill()
        ask(gateway, "one")
        until(lambda: self.reasons(gateway) == {"no-worker"}, "the worker is seen to be gone", GONE_SECONDS)


class TestLong:
    WAITING = 5000

    @pytest.fixture
    def long(self, paused: Gateway) -> Gateway:
        paused.stop()
        tables.fill_queue(paused.database, self.WAITING, 100)
        paused.restart()
        return paused

    def test_thousands_of_waiting_jobs_cost_milliseconds(self, long: Gateway) -> None:
        def seconds(path: str) -> float:
            taken = []
            for _ in range(9):
                begun = time.perf_counter()
                assert long.http.get(path).status_code == 200
                taken.append(time.perf_counter() - begun)
            return statistics.median(taken)

        first = queue(long, "?id=waiting7")
        assert first["counts"] == {"running": 0, "waiting": self.WAITING}
        assert [entry["position"] for entry in first["waiting"]] == list(range(1, 51))
        plain = seconds("/livez")
        assert seconds("/queue?id=waiting7") < plain + 0.05
        following, positions = "/queue?limit=500", []
        while following is not None:
            page = long.http.get(following).json()
            positions += [entry["position"] for entry in page["waiting"]]
            following = page["next"]
        assert positions == list(range(1, self.WAITING + 1))


class TestWebuis:
    def test_each_is_listed_with_its_state(self, stage: Stage, fast: list[Simulator]) -> None:
        one, other = fast[:2]
        secret = other.url.replace("http://", "http://user:secret@")
        gateway = stage.gateway(f"big={one.url},{secret}")
        until(lambda: {(w["health"], w["state"]) for w in self.listed(gateway)} == {("up", "clean")}, "both are ready")
        for webui in self.listed(gateway):
            assert webui["since"].endswith("Z")
            assert webui["seconds_per_cost"] is None
            assert webui["model"] == "simulated-one"
        text = gateway.http.get("/webuis").text
        assert "secret" not in text
        assert "user" not in text
        assert [w["name"] for w in self.listed(gateway)] == ["big", f"http://testhost:{other.port}"]
        for _ in range(3):
            gateway.succeeded(gateway.post())
        measured = [w["seconds_per_cost"] for w in self.listed(gateway) if w["seconds_per_cost"] is not None]
        # 0.1 s for 4 steps of 64 × 64 pixels.
        assert measured
        assert all(0.1 / 16384 <= speed < 0.3 / 16384 for speed in measured)

    @staticmethod
    def listed(gateway: Gateway) -> list[dict[str, Any]]:
        webuis: list[dict[str, Any]] = gateway.http.get("/webuis").json()["webuis"]
        return webuis
