"""Interrupts: only our own task is stopped, and never one that ends by itself while another's waits behind it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import requests

from app.config import WebuiAddress
from app.simulator import SimulatorServer
from app.webui.client import Webui
from app.webui.driver import Driver
from tests.inprocess import DEADLINE, simulator, until
from tests.proxy import Proxy
from tests.webui.peer import read_request

OURS, THEIRS = "ours", "theirs"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    """A WebUI that takes a second for a picture, whatever its number of steps."""
    with simulator(seconds_per_image=1.0) as server:
        yield server
        server.simulator.engine.interrupt()


def driver_of(url: str) -> Driver:
    return Driver(Webui(WebuiAddress("main", url), job_timeout=60.0), 60.0)


def quiesce(url: str) -> bool:
    return driver_of(url).quiesce(OURS, patience=DEADLINE, stopping=threading.Event())


def begin(server: SimulatorServer, pool: ThreadPoolExecutor, task: str, steps: int) -> Future[requests.Response]:
    """Post a generation under a task id, and wait until the WebUI has it."""
    body = {"prompt": task, "steps": steps, "width": 64, "height": 64, "force_task_id": task}
    posted = pool.submit(requests.post, f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60)
    engine = server.simulator.engine
    until(lambda: engine.task_progress(task, -1)["active"] or task in engine.pending()["tasks"])
    return posted


def stats(server: SimulatorServer) -> dict[str, Any]:
    return server.simulator.stats.as_dict()


@pytest.mark.parametrize("way", ["interrupt", "quiesce"])
def test_a_task_of_which_no_step_is_done_is_left_alone_while_another_waits_behind_it(
    server: SimulatorServer, pool: ThreadPoolExecutor, way: str
) -> None:
    """With one step it may end at any moment, and the interrupt would stop the other one."""
    ours, theirs = begin(server, pool, OURS, 1), begin(server, pool, THEIRS, 1)
    if way == "interrupt":
        assert driver_of(server.url).interrupt(OURS)
    else:
        assert quiesce(server.url)
    assert [ours.result(DEADLINE).status_code, theirs.result(DEADLINE).status_code] == [200, 200]
    assert (stats(server)["interrupts"], stats(server)["interrupted"]) == (0, [])


@pytest.mark.parametrize("way", ["interrupt", "quiesce"])
def test_a_task_of_which_no_step_is_done_is_stopped_where_nobody_waits(
    server: SimulatorServer, pool: ThreadPoolExecutor, way: str
) -> None:
    ours = begin(server, pool, OURS, 1)
    assert server.simulator.engine.wait_busy(DEADLINE)
    if way == "interrupt":
        assert driver_of(server.url).interrupt(OURS)
    else:
        assert quiesce(server.url)
    assert ours.result(DEADLINE).status_code == 200
    assert stats(server)["interrupted"] == [OURS]


def test_a_task_that_is_far_from_its_end_is_stopped_with_another_behind_it(pool: ThreadPoolExecutor) -> None:
    with simulator(seconds_per_image=20.0) as server:
        begin(server, pool, OURS, 100)
        begin(server, pool, THEIRS, 100)
        driver = driver_of(server.url)
        until(lambda: driver.interrupt(OURS) and stats(server)["interrupts"] == 1)
        until(lambda: server.simulator.engine.task_progress(THEIRS, -1)["active"])
        assert driver.interrupt(OURS)
        assert stats(server)["interrupted"] == [OURS]
        server.simulator.engine.interrupt()


class _Recorder(Proxy):
    """Passes each request on to a WebUI, and keeps the order in which connections came and requests followed on them."""

    def __init__(self, server: SimulatorServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._connections = 0
        #: The connection, counted from 1, and the path of each request, in the order of the requests.
        self.requests: list[tuple[int, str]] = []
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        super().__init__(listener)

    def serve(self, client: socket.socket) -> None:
        with self._lock:
            self._connections += 1
            number = self._connections
        request = read_request(client)
        if not request.strip():
            return
        with self._lock:
            self.requests.append((number, request.split(b" ", 2)[1].decode().partition("?")[0]))
        host, _, port = self._server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as webui:
            webui.sendall(request)
            while data := webui.recv(65536):
                client.sendall(data)


@pytest.mark.parametrize("way", ["interrupt", "quiesce"])
def test_the_webui_is_asked_what_runs_when_the_connection_of_the_interrupt_is_made(
    pool: ThreadPoolExecutor, way: str
) -> None:
    """However long connecting takes, nothing can begin there between the question and the interrupt but within one way."""
    with simulator(seconds_per_image=20.0) as server:
        begin(server, pool, OURS, 100)
        assert server.simulator.engine.wait_busy(DEADLINE)
        proxy = _Recorder(server)
        try:
            if way == "interrupt":
                assert driver_of(proxy.url).interrupt(OURS)
            else:
                assert quiesce(proxy.url)
        finally:
            proxy.close()
        paths = [path for _, path in proxy.requests]
        sent = paths.index("/sdapi/v1/interrupt")
        state = max(number for number, path in enumerate(paths[:sent]) if path == "/sdapi/v1/progress")
        assert proxy.requests[sent][0] < proxy.requests[state][0]
        assert stats(server)["interrupted"] == [OURS]
