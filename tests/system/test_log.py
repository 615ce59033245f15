"""The log: one line for each transition of a job, and few besides."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import struct
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.system.harness import Gateway, Simulator, Stage, free_port, until

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


def test_a_start_tells_of_a_migration_once_and_of_nothing_else_of_the_database(gateway: Gateway) -> None:
    assert gateway.stop() == 0
    gateway.restart()
    lines = [
        line for line in gateway.text().splitlines() if "alembic" in line or "schema" in line or "database" in line
    ]
    [migrated] = lines
    assert re.search(
        r"\[INFO\] app\.jobs\.sql\.database: the database was migrated from schema none to \d{4}$", migrated
    )


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
    before = simulator.stats()["generations"]
    job = gateway.post(prefer="respond-async").json()
    until(lambda: events(gateway, job["name"]) == ["accepted", "claimed", "sent"], "the job is sent")
    # Else the fault could meet the next attempt.
    until(lambda: simulator.stats()["generations"] > before, "the WebUI has begun")
    gateway.kill()
    # It interrupts what the WebUI still makes for the lost attempt, before it claims.
    gateway.restart()
    gateway.finished(job["url"], seconds=30)
    found = transitions(gateway, job["name"])
    assert [line["event"] for line in found[:5]] == ["accepted", "claimed", "sent", "given back", "claimed"]
    assert (found[3]["webui"], found[3]["attempt"], found[3]["slug"]) == ("big", "1", "worker-lost")


@contextlib.contextmanager
def a_server_that_answers(status: HTTPStatus, body: bytes = b"{}") -> Iterator[int]:
    """A server that answers everything so; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_webui_that_is_down_is_named_as_configured_and_with_the_reason(stage: Stage, simulator: Simulator) -> None:
    with (
        a_server_that_answers(HTTPStatus.UNAUTHORIZED) as locked,
        a_server_that_answers(HTTPStatus.NOT_FOUND) as bare,
        a_server_that_answers(HTTPStatus.OK, b"<html>") as other,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        nobody, mute = free_port(), silent.getsockname()[1]
        urls = [
            simulator.url,
            f"http://127.0.0.1:{nobody}/sub/",
            f"http://me:p%40ss@localhost:{locked}",
            f"bare=http://127.0.0.1:{bare}",
            f"other=http://127.0.0.1:{other}",
            f"mute=http://127.0.0.1:{mute}",
        ]
        gateway = stage.gateway(",".join(urls))
        for line in [
            f"[INFO] app.jobs.worker.monitor: WebUI {simulator.url} is up\n",
            f"[WARNING] app.jobs.worker.monitor: WebUI http://127.0.0.1:{nobody}/sub is down: connection refused\n",
            f"WebUI http://localhost:{locked} is down: The WebUI refuses the gateway's credentials (status 401)\n",
            "WebUI bare is down: The WebUI has no API (status 404): it must be started with --api\n",
            "WebUI other is down: its answer is not JSON\n",
            "WebUI mute is down: no answer in time\n",
        ]:
            until(lambda line=line: line in gateway.text(), line)
    assert "p%40ss" not in gateway.text()
    assert "p@ss" not in gateway.text()


def test_a_webui_that_goes_away_under_a_job_is_down_for_a_reason(stage: Stage) -> None:
    simulator = stage.simulator()
    gateway = stage.gateway(f"big={simulator.url}")
    # A new WebUI must be seen idle first; after a picture it is known.
    gateway.succeeded(gateway.post())
    simulator.kill()
    job = gateway.post(prefer="respond-async").json()
    until(lambda: "WebUI big is down: connection refused" in gateway.text(), "the reason in the log")
    until(lambda: events(gateway, job["name"]) == ["accepted", "claimed", "given back"], "the job is back in the queue")


_HEAD = b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "upload",
    [
        _HEAD + b"Content-Length: 100000\r\n\r\n" + b" " * 500,
        _HEAD + b"Content-Length: 3000000\r\n\r\n" + b" " * 2_000_000,
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + b" " * 500,
    ],
    ids=["small", "large", "chunked"],
)
def test_a_client_that_resets_its_upload_is_one_line_of_information(house: Gateway, upload: bytes) -> None:
    before = len(house.text())
    with socket.create_connection(("127.0.0.1", int(house.url.rpartition(":")[2]))) as client:
        client.sendall(upload)
        # Closed so, it sends a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: "broke off" in house.text()[before:], "a line about the upload")
    assert house.http.get("/livez").status_code == 200
    [line] = house.text()[before:].splitlines()
    assert "[INFO] app.api.http.request: the body of a request broke off" in line


@pytest.mark.parametrize("path", [b"/txt2img", b"/nowhere"])
def test_malformed_chunks_are_refused_without_a_traceback(house: Gateway, path: bytes) -> None:
    before = len(house.text())
    head = _HEAD.replace(b"/txt2img", path) + b"Transfer-Encoding: chunked\r\n\r\n"
    assert house.http.raw(head + b"nonsense\r\n")[:2] == (400, "application/problem+json")
    assert all("[INFO] app.api.http.request: the body" in line for line in house.text()[before:].splitlines())
