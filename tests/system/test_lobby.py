"""Requests that wait hold no thread, over the real server: far more of them than threads, and everybody else is served."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Gateway, Simulator, Stage, children, picture, until
from tests.system.sse import EventClient, Told

THREADS = 4
CLIENTS = 40


@pytest.fixture
def gateway(stage: Stage, simulator: Simulator) -> Gateway:
    """One process of few threads, whose WebUI hangs at its next picture."""
    gateway = stage.gateway(
        [simulator], processes=1, SDG_THREADS=THREADS, SDG_MAX_WAITERS=CLIENTS, SDG_MAX_QUEUE_PER_USER=CLIENTS + 1
    )
    simulator.fault("hang")
    return gateway


def request(gateway: Gateway, *, prefer: str | None = None, **changes: object) -> bytes:
    """A POST for a picture as it goes over the line."""
    body = json.dumps(picture(**changes)).encode()
    head = [
        "POST /txt2img HTTP/1.1",
        f"Host: 127.0.0.1:{gateway.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *([f"Prefer: {prefer}"] if prefer is not None else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


class Line:
    """A raw connection, and the answers that it brings."""

    def __init__(self, gateway: Gateway) -> None:
        self.socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
        self._answers = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, object]]:
        """Status and JSON of the next answer."""
        status = int(self._answers.readline().split()[1])
        length = 0
        while (field := self._answers.readline()) != b"\r\n":
            if field.lower().startswith(b"content-length:"):
                length = int(field.split(b":")[1])
        return status, json.loads(self._answers.read(length))

    def is_silent(self) -> bool:
        """Whether no byte of an answer is here."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.socket.recv(1, socket.MSG_PEEK)
            return False
        self.socket.settimeout(60)
        return True

    def close(self) -> None:
        self._answers.close()
        self.socket.close()


@pytest.fixture
def lines(gateway: Gateway, simulator: Simulator) -> Iterator[list[Line]]:
    """Clients that wait, as many as may."""
    made: list[Line] = []
    try:
        for seed in range(CLIENTS):
            line = Line(gateway)
            made.append(line)
            line.send(request(gateway, seed=str(seed)))
        until(lambda: len(gateway.jobs()) == CLIENTS, "all are accepted")
        until(lambda: simulator.stats()["generations"] == 1, "the picture that hangs has begun")
        yield made
    finally:
        for line in made:
            line.close()


def threads(gateway: Gateway) -> int:
    [pid] = children(gateway.running.pid)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))


def test_far_more_clients_than_threads_wait_and_all_get_their_picture(
    gateway: Gateway, simulator: Simulator, lines: list[Line]
) -> None:
    assert gateway.http.get("/livez").status_code == 200
    assert gateway.post(id="late").json()["type"] == "no-free-waiter"
    assert all(line.is_silent() for line in lines)
    # Those of the worker, the database and the requests; not one for each client.
    assert threads(gateway) < CLIENTS
    simulator.interrupt()
    answers = [line.answer() for line in lines]
    assert [status for status, _ in answers] == [200] * CLIENTS
    assert {job["args"]["seed"] for _, job in answers} == {str(seed) for seed in range(CLIENTS)}
    assert simulator.stats()["max_in_flight"] == 1


def test_the_next_request_of_a_connection_waits_for_the_answer_to_the_first(
    gateway: Gateway, simulator: Simulator
) -> None:
    """Sent at once, as a client that pipelines does: it must not be read, and not be lost."""
    line = Line(gateway)
    line.send(request(gateway, seed="1") + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: simulator.stats()["generations"] == 1, "the picture that hangs has begun")
    line.send(b"GET /options HTTP/1.1\r\nHost: x\r\n\r\n")
    assert gateway.http.get("/livez").status_code == 200
    assert line.is_silent()
    simulator.interrupt()
    status, job = line.answer()
    assert (status, job["status"]) == (200, "succeeded")
    assert line.answer() == (200, {"status": "ok"})
    assert line.answer()[0] == 200
    line.close()


@pytest.mark.parametrize("way", ["closes", "closes its half", "resets"])
def test_the_place_of_a_client_that_is_gone_is_free_at_once(
    gateway: Gateway, simulator: Simulator, lines: list[Line], way: str
) -> None:
    line = lines[-1]
    if way == "closes":
        line.close()
    elif way == "closes its half":
        line.socket.shutdown(socket.SHUT_WR)
    else:
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        line.close()
    late = Line(gateway)
    lines.append(late)

    def is_accepted() -> bool:
        late.send(request(gateway, id="late"))
        until(lambda: not late.is_silent() or bool(gateway.jobs("late")), "it is refused, or waits")
        return late.is_silent() or late.answer()[0] != 503

    until(is_accepted, "there is a place", 5)
    simulator.interrupt()
    assert late.answer()[0] == 200
    # The job of the one that went is made all the same.
    until(lambda: all(job["status"] == "succeeded" for job in gateway.jobs()), "all jobs are made")


def test_the_time_of_a_client_ends_while_all_threads_are_free(gateway: Gateway) -> None:
    began = time.monotonic()
    line = Line(gateway)
    line.send(request(gateway, prefer="wait=1"))
    status, job = line.answer()
    assert status == 202
    assert job["status"] in ("queued", "running")
    assert 1.0 <= time.monotonic() - began < 3.0
    line.close()


def test_all_are_answered_when_the_gateway_stops(gateway: Gateway, simulator: Simulator, lines: list[Line]) -> None:
    began = time.monotonic()
    stopping = threading.Thread(target=gateway.stop)
    stopping.start()
    answers = [line.answer() for line in lines]
    assert time.monotonic() - began < 3.0
    assert [status for status, _ in answers] == [202] * CLIENTS
    simulator.interrupt()
    stopping.join()


def test_a_process_that_has_served_its_last_request_answers_all_who_wait(stage: Stage, simulator: Simulator) -> None:
    """With ``--max-requests`` gunicorn replaces a process without any signal."""
    gateway = stage.gateway([simulator], processes=1, options=["--max-requests", "1000"])
    [pid] = children(gateway.running.pid)
    simulator.fault("hang")
    waiting = Line(gateway)
    waiting.send(request(gateway))
    [job] = until(gateway.jobs, "it is accepted")
    until(lambda: simulator.stats()["generations"] == 1, "the picture that hangs has begun")
    with EventClient(gateway.url, f"{job['url']}/events") as watching:
        watching.upto("job")
        other = Line(gateway)
        while "Autorestarting worker" not in gateway.text():
            other.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert other.answer() == (200, {"status": "ok"})
        began = time.monotonic()
        status, answer = waiting.answer()
        assert (status, answer["name"]) == (202, job["name"])
        assert watching.rest()[-1] == Told("restart", {})
        assert time.monotonic() - began < 3.0
    waiting.close()
    other.close()
    simulator.interrupt()
    until(lambda: pid not in children(gateway.running.pid), "the process has ended")
    assert gateway.finished(job["url"])["status"] == "succeeded"
    assert gateway.succeeded(gateway.post())
