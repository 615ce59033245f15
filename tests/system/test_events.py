"""Event streams over the real server: of one job and of a user, resumed over restarts, dropped and refused."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from tests.system.harness import Gateway, Simulator, Stage, children, until
from tests.system.sse import EventClient, Told


@pytest.fixture
def gateway(stage: Stage, simulator: Simulator) -> Gateway:
    return stage.gateway([simulator], processes=2)


@pytest.fixture
def held(simulator: Simulator) -> Iterator[Simulator]:
    """A WebUI whose next picture hangs until it is interrupted."""
    simulator.fault("hang")
    yield simulator
    simulator.interrupt()


def accepted(gateway: Gateway, **changes: object) -> dict[str, object]:
    answer = gateway.post(prefer="respond-async", **changes)
    assert answer.status_code == 202, answer.text
    job: dict[str, object] = answer.json()
    return job


def of_job(gateway: Gateway, job: dict[str, object], *, last: str | None = None) -> EventClient:
    return EventClient(gateway.url, f"{job['url']}/events", last=last)


def users(gateway: Gateway) -> list[tuple[str]]:
    """The users whose rows the upkeep has not removed."""
    with contextlib.closing(sqlite3.connect(f"file:{gateway.database}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT user_id FROM users").fetchall()


def statuses(told: list[Told]) -> list[str]:
    return [event.data["status"] for event in told if event.name == "job"]


def in_order(told: list[Told]) -> bool:
    """Whether the ids of events rise."""
    numbers = [tuple(map(int, event.id.split("-"))) for event in told if event.id is not None]
    return numbers == sorted(set(numbers))


class TestOneJob:
    def test_each_change_is_told_until_the_end(self, gateway: Gateway, held: Simulator) -> None:
        job = accepted(gateway)
        with of_job(gateway, job) as client:
            assert client.status == 200
            assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert client.headers["cache-control"] == "no-store"
            assert client.headers["x-accel-buffering"] == "no"
            assert client.headers["connection"] == "close"
            assert "transfer-encoding" not in client.headers
            first = client.upto("job")[0]
            assert 2000 <= (client.retry or 0) <= 4000
            until(lambda: held.stats()["generations"] == 1, "it runs")
            held.interrupt()
            told = [first, *client.rest()]
        assert statuses(told)[-1] == "succeeded"
        assert told[-1] == Told("end", {})
        assert in_order(told)
        assert told[-2].data == gateway.http.get(str(job["url"])).json()
        assert gateway.http.get(str(job["url"])).headers["ETag"] == f'W/"{told[-2].id}"'

    def test_progress_comes_without_an_id(self, stage: Stage) -> None:
        simulator = stage.simulator("--seconds-per-image", "3")
        gateway = stage.gateway([simulator])
        with of_job(gateway, accepted(gateway)) as client:
            told = client.rest()
        progress = [event for event in told if event.name == "progress" and event.data["progress"] > 0]
        assert progress
        assert all(event.id is None for event in progress)
        assert set(progress[0].data) == {"name", "type", "progress", "eta", "position"}
        assert [event.data["progress"] for event in progress] == sorted(event.data["progress"] for event in progress)

    def test_a_waiting_job_is_told_another_estimate_although_no_job_changes(
        self, gateway: Gateway, simulator: Simulator
    ) -> None:
        gateway.succeeded(gateway.post())
        simulator.fault("hang")
        _, waiting = accepted(gateway), accepted(gateway)
        until(lambda: simulator.stats()["generations"] == 2, "the first one runs")
        with of_job(gateway, waiting) as client:
            place = client.upto("job")[-1].data
            while (place["position"], place["eta"] is None) != (1, False):
                place = client.upto("progress")[-1].data
            assert gateway.cli("queue", "pause").returncode == 0
            while place["eta"] is not None:
                place = client.upto("progress")[-1].data
            assert gateway.cli("queue", "resume").returncode == 0
            while place["eta"] is None:
                place = client.upto("progress")[-1].data
        simulator.interrupt()

    def test_a_waiting_job_is_told_its_place_once(self, gateway: Gateway) -> None:
        assert gateway.cli("queue", "pause").returncode == 0
        with of_job(gateway, accepted(gateway)) as client:
            assert client.upto("job")[-1].data["position"] == 1
            job = accepted(gateway, id="another")
            with of_job(gateway, job) as other:
                assert other.upto("job")[-1].data["position"] == 2
                client.socket.settimeout(3)
                with pytest.raises(TimeoutError):
                    client.next()

    def test_a_finished_job_is_told_and_ends(self, gateway: Gateway) -> None:
        job = gateway.succeeded(gateway.post())
        with of_job(gateway, job) as client:
            told = client.rest()
        assert [event.name for event in told] == ["job", "end"]
        assert told[0].data == job

    def test_whoever_has_seen_the_end_is_told_to_stop(self, gateway: Gateway) -> None:
        job = gateway.succeeded(gateway.post())
        with of_job(gateway, job) as client:
            [state, _] = client.rest()
        with of_job(gateway, job, last=state.id) as again:
            assert (again.status, again.headers.get("content-length", "0")) == (204, "0")

    @pytest.mark.parametrize("last", ["x", "1-1", "0-0", "-", "9" * 300, "99999999999-1", "1-99999999999999999999"])
    def test_an_id_that_is_none_of_ours_begins_anew(self, gateway: Gateway, last: str) -> None:
        job = gateway.succeeded(gateway.post())
        with of_job(gateway, job, last=last) as client:
            assert [event.name for event in client.rest()] == ["reset", "job", "end"]

    def test_an_id_of_a_rev_to_come_begins_anew(self, gateway: Gateway) -> None:
        job = gateway.succeeded(gateway.post())
        with of_job(gateway, job) as client:
            epoch, rev = client.rest()[0].id.split("-")
        with of_job(gateway, job, last=f"{epoch}-{int(rev) + 50}") as client:
            assert [event.name for event in client.rest()] == ["reset", "job", "end"]

    def test_a_deleted_job_is_gone(self, gateway: Gateway) -> None:
        job = gateway.succeeded(gateway.post())
        with of_job(gateway, job) as client:
            [state, _] = client.rest()
        assert gateway.http.delete(f"/delete/user/txt2img/{job['name']}").status_code == 200
        with of_job(gateway, job, last=state.id) as client:
            told = client.rest()
        assert [(event.name, event.data) for event in told] == [
            ("gone", {"name": job["name"], "type": "txt2img"}),
            ("end", {}),
        ]
        with of_job(gateway, job) as client:
            assert client.status == 404

    def test_a_job_that_never_was(self, gateway: Gateway) -> None:
        with EventClient(gateway.url, "/jobs/user/txt2img/20261122T061530123-9f2c4e7a/events") as client:
            assert (client.status, client.headers["content-type"]) == (404, "application/problem+json")

    @pytest.mark.parametrize(
        ("accept", "status"),
        [
            ("*/*", 200),
            ("text/*", 200),
            ("text/event-stream; charset=utf-8", 200),
            ("application/json, text/event-stream;q=0.1", 200),
            ("application/json", 406),
            ("text/event-stream;q=0, */*", 406),
        ],
    )
    def test_accept(self, gateway: Gateway, accept: str, status: int) -> None:
        job = gateway.succeeded(gateway.post())
        with EventClient(gateway.url, f"{job['url']}/events", Accept=accept) as client:
            assert client.status == status

    def test_head(self, gateway: Gateway) -> None:
        job = gateway.succeeded(gateway.post())
        unknown = gateway.http.request("HEAD", "/jobs/user/txt2img/20261122T061530123-9f2c4e7a/events")
        assert unknown.status_code == 404
        answer = gateway.http.request("HEAD", f"{job['url']}/events")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")


class TestOneUser:
    def test_a_snapshot_and_then_each_change(self, gateway: Gateway, held: Simulator) -> None:
        waiting = accepted(gateway)
        other = accepted(gateway, id="other")
        with EventClient(gateway.url, "/jobs/user/events") as client:
            [snapshot] = client.upto("snapshot")
            assert snapshot.id is not None
            assert snapshot.data["more"] is False
            [shown] = snapshot.data["jobs"]
            assert set(shown) == {"id", "type", "name", "status", "position", "progress", "eta", "url"}
            assert (shown["name"], shown["url"]) == (waiting["name"], waiting["url"])
            until(lambda: held.stats()["generations"] == 1, "it runs")
            held.interrupt()
            late = accepted(gateway)
            told: list[Told] = []
            while not {waiting["name"], late["name"]} <= {
                event.data["name"] for event in told if event.name == "job" and event.data["status"] == "succeeded"
            }:
                event = client.next()
                assert event is not None
                told.append(event)
        assert other["name"] not in {event.data["name"] for event in told}
        assert in_order([snapshot, *told])

    def test_a_deletion_is_told_for_two_minutes_and_then_the_client_begins_anew(self, gateway: Gateway) -> None:
        with EventClient(gateway.url, "/jobs/user/events") as client:
            [snapshot] = client.upto("snapshot")
        gone = gateway.succeeded(gateway.post())
        assert gateway.http.delete(f"/delete/user/txt2img/{gone['name']}").status_code == 200
        for seconds_ago, told in ((30, ("gone", {"name": gone["name"], "type": "txt2img"})), (120, ("reset", {}))):
            gateway.stop()
            # What the worker removes with the rows of jobs, at its start: nothing stands for it but the rows.
            for statement in (
                f"UPDATE jobs SET finished_at = finished_at - {seconds_ago * 1000}",
                "INSERT INTO users (user_id, finish, unfinished) VALUES ('idle', 0, 0)",
            ):
                with contextlib.closing(sqlite3.connect(gateway.database)) as connection, connection:
                    connection.execute(statement)
            gateway.restart()
            until(lambda: not users(gateway), "the upkeep has run")
            with EventClient(gateway.url, "/jobs/user/events", last=snapshot.id) as client:
                event = client.next()
            assert event is not None
            assert (event.name, event.data) == told

    def test_what_was_missed_is_told_instead_of_a_snapshot(self, gateway: Gateway) -> None:
        with EventClient(gateway.url, "/jobs/user/events") as client:
            [snapshot] = client.upto("snapshot")
        done = gateway.succeeded(gateway.post())
        gone = gateway.succeeded(gateway.post())
        gateway.http.delete(f"/delete/user/txt2img/{gone['name']}")
        gateway.restart()
        gateway.await_ready()
        with EventClient(gateway.url, "/jobs/user/events", last=snapshot.id) as client:
            told = [client.next(), client.next()]
        assert [(event.name, event.data["name"]) for event in told] == [("job", done["name"]), ("gone", gone["name"])]
        assert told[0].data == gateway.http.get(done["url"]).json()

    def test_twenty_streams_and_no_more(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator], processes=1)
        with contextlib.ExitStack() as open_:
            for _ in range(20):
                client = open_.enter_context(EventClient(gateway.url, "/jobs/user/events"))
                client.upto("snapshot")
            with EventClient(gateway.url, "/jobs/user/events") as refused:
                assert refused.status == 200
                [busy] = refused.upto("busy")
                assert (refused.retry, busy.data["type"], busy.data["retry_after"]) == (5000, "no-free-stream", 5)
                assert refused.next() is None
            with EventClient(gateway.url, "/jobs/other/events") as other:
                other.upto("snapshot")
            client.close()
            with EventClient(gateway.url, "/jobs/user/events") as late:
                late.upto("snapshot")

    def test_all_streams_of_a_process_and_no_more(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator], processes=1, SDG_MAX_STREAMS=3)
        with contextlib.ExitStack() as open_:
            for user in range(3):
                open_.enter_context(EventClient(gateway.url, f"/jobs/u{user}/events")).upto("snapshot")
            with EventClient(gateway.url, "/jobs/u3/events") as refused:
                refused.upto("busy")

    def test_a_stream_that_has_ended_gives_its_place_back(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator], processes=1)
        job = gateway.succeeded(gateway.post())
        for _ in range(25):
            with of_job(gateway, job) as client:
                assert [event.name for event in client.rest()] == ["job", "end"]

    def test_too_much_that_was_missed_is_a_snapshot(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator], SDG_MAX_QUEUE_PER_USER=600, SDG_MAX_QUEUE=600)
        with EventClient(gateway.url, "/jobs/user/events") as client:
            [first] = client.upto("snapshot")
        assert gateway.cli("queue", "pause").returncode == 0
        for seed in range(501):
            accepted(gateway, seed=str(seed))
        with EventClient(gateway.url, "/jobs/user/events", last=first.id) as client:
            told = client.upto("snapshot")
        assert [event.name for event in told] == ["reset", "snapshot"]
        assert (len(told[-1].data["jobs"]), told[-1].data["more"]) == (200, True)

    def test_many_large_jobs_that_change_at_once_are_all_told(self, stage: Stage, simulator: Simulator) -> None:
        """Far more than 64 KiB, over a socket with a small buffer: a client that reads gets it all."""
        gateway = stage.gateway([simulator], processes=1)
        assert gateway.cli("queue", "pause").returncode == 0
        jobs = [accepted(gateway, seed=str(seed), prompt="a lighthouse " * 1500) for seed in range(20)]
        with EventClient(gateway.url, "/jobs/user/events", receive_buffer=4096) as client:
            client.upto("snapshot")
            assert gateway.http.request("POST", "/jobs/user/cancel?status=queued").json() == {"cancelled": 20}
            told: list[Told] = []
            while len(statuses(told)) < len(jobs):
                event = client.next()
                assert event is not None
                told.append(event)
        assert statuses(told) == ["cancelled"] * 20
        assert [event.id is not None for event in told if event.name == "job"] == [False] * 19 + [True]

    def test_a_database_that_is_restored_begins_every_stream_anew(self, gateway: Gateway) -> None:
        gateway.succeeded(gateway.post())
        engine = create_engine(f"sqlite:///{gateway.database}")
        with engine.connect() as connection:
            before = connection.execute(text("SELECT rev FROM clock")).scalar_one()
        job = gateway.succeeded(gateway.post())
        with EventClient(gateway.url, "/jobs/user/events") as client:
            [snapshot] = client.upto("snapshot")
            with engine.begin() as connection:
                # As a dump of that moment has it.
                connection.execute(text("DELETE FROM jobs WHERE name = :name"), {"name": job["name"]})
                connection.execute(text("UPDATE clock SET rev = :rev"), {"rev": before})
            told = client.upto("snapshot")
            assert [event.name for event in told] == ["reset", "snapshot"]
            assert told[-1].id != snapshot.id
        engine.dispose()
        with EventClient(gateway.url, "/jobs/user/events", last=snapshot.id) as client:
            assert [event.name for event in client.upto("snapshot")] == ["reset", "snapshot"]


class TestTheProcess:
    def test_a_stop_ends_every_stream_with_a_word(self, gateway: Gateway) -> None:
        with contextlib.ExitStack() as open_:
            clients = [open_.enter_context(EventClient(gateway.url, f"/jobs/u{user}/events")) for user in range(10)]
            for client in clients:
                client.upto("snapshot")
            began = time.monotonic()
            gateway.stop()
            assert time.monotonic() - began < 10
            assert [[event.name for event in client.rest()] for client in clients] == [["restart"]] * 10

    def test_a_watcher_that_reads_nothing_is_dropped_and_harms_nobody(self, stage: Stage, simulator: Simulator) -> None:
        jobs = 40
        gateway = stage.gateway([simulator], processes=1, SDG_MAX_QUEUE_PER_USER=jobs)
        lazy = EventClient(gateway.url, "/jobs/user/events", receive_buffer=4096)
        with lazy, EventClient(gateway.url, "/jobs/user/events") as eager:
            lazy.upto("snapshot")
            eager.upto("snapshot")
            prompt = "a lighthouse " * 1500
            names = {accepted(gateway, seed=str(seed), prompt=prompt)["name"] for seed in range(jobs)}
            while names:
                event = eager.next()
                assert event is not None
                if event.name == "job" and event.data["status"] == "succeeded":
                    names.discard(event.data["name"])
            # What it had not taken was dropped with its connection.
            assert len([status for status in statuses(lazy.rest()) if status == "succeeded"]) < jobs
        assert children(gateway.running.pid)

    def test_a_watcher_that_is_gone_gives_its_place_back(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator], processes=1, SDG_MAX_STREAMS=1)
        for _ in range(3):
            with EventClient(gateway.url, "/jobs/user/events") as client:
                client.upto("snapshot")

            def is_free() -> bool:
                with EventClient(gateway.url, "/jobs/user/events") as again:
                    event = again.next()
                    return event is not None and event.name == "snapshot"

            until(is_free, "the place is free", 5)


class TestLongPolls:
    def test_an_unchanged_job_is_304_after_the_wait(self, gateway: Gateway, held: Simulator) -> None:
        job = accepted(gateway)
        until(lambda: gateway.http.get(str(job["url"])).json()["status"] == "running", "it runs")
        etag = gateway.http.get(str(job["url"])).headers["ETag"]
        began = time.monotonic()
        answer = gateway.http.get(str(job["url"]), headers={"If-None-Match": etag, "Prefer": "wait=1"})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
        assert answer.headers["Preference-Applied"] == "wait=1"
        assert 1.0 <= time.monotonic() - began < 3
        # Without the wait, the condition does not count.
        assert gateway.http.get(str(job["url"]), headers={"If-None-Match": etag}).status_code == 200

    def test_a_change_is_answered_at_once(self, gateway: Gateway, held: Simulator) -> None:
        job = accepted(gateway)
        until(lambda: gateway.http.get(str(job["url"])).json()["status"] == "running", "it runs")
        etag = gateway.http.get(str(job["url"])).headers["ETag"]
        held.interrupt()
        began = time.monotonic()
        answer = gateway.http.get(str(job["url"]), headers={"If-None-Match": f'"x", {etag}', "Prefer": "wait=20"})
        assert answer.status_code == 200
        assert answer.headers["ETag"] != etag
        assert time.monotonic() - began < 10

    def test_wait_alone_is_for_the_end(self, gateway: Gateway, held: Simulator) -> None:
        job = accepted(gateway)
        answer = gateway.http.get(str(job["url"]), headers={"Prefer": "wait=1"})
        assert (answer.status_code, answer.json()["status"] in ("queued", "running")) == (200, True)
        until(lambda: held.stats()["generations"] == 1, "it runs")
        held.interrupt()
        answer = gateway.http.get(str(job["url"]), headers={"Prefer": "wait=20"})
        assert answer.json()["status"] == "succeeded"

    def test_readers_leave_places_for_those_who_post(self, stage: Stage, held: Simulator) -> None:
        gateway = stage.gateway([held], processes=1, SDG_MAX_WAITERS=21)
        job = accepted(gateway)
        wait = {"Prefer": "wait=20"}
        with ThreadPoolExecutor(21) as pool:
            reading = [pool.submit(gateway.http.get, str(job["url"]), headers=wait) for _ in range(21)]
            until(lambda: sum(future.done() for future in reading) == 1, "one of them finds no place")
            posted = pool.submit(gateway.post)
            until(lambda: len(gateway.jobs()) == 2, "the post is accepted")
            until(lambda: held.stats()["generations"] == 1, "the first one runs")
            held.interrupt()
            assert posted.result().status_code == 200
            applied = [future.result().headers.get("Preference-Applied") for future in reading]
            assert sorted(applied, key=str) == [None] + ["wait=20"] * 20
            refused = next(future.result() for future in reading if "Preference-Applied" not in future.result().headers)
            assert int(refused.headers["Retry-After"]) >= 1

    def test_without_a_free_place_the_answer_comes_at_once(self, stage: Stage, held: Simulator) -> None:
        gateway = stage.gateway([held], processes=1, SDG_MAX_WAITERS=1)
        job = accepted(gateway)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.post)
            until(lambda: len(gateway.jobs()) == 2, "the only place is taken")
            until(lambda: held.stats()["generations"] == 1, "the first one runs")
            began = time.monotonic()
            assert gateway.http.get(str(job["url"]), headers={"Prefer": "wait=20"}).status_code == 200
            assert time.monotonic() - began < 5
            held.interrupt()
            assert waiting.result().status_code == 200
