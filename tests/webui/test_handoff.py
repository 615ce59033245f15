"""Whether a generation was stopped: its flag, other tasks on the same WebUI, and its time."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from app.config import WebuiAddress
from app.simulator import SimulatorServer, SimulatorSettings
from app.webui import bounds
from app.webui.client import ServerState, Webui
from app.webui.handoff import Cancelled, Circumstances, InterruptQuery, Prepared
from app.webui.pace import Pace
from tests.webui.peer import Peer, answer, says

LIMIT = bounds.OF_PROBE.size
IDLE = {"progress": 0.0, "eta": 0.0, "job": "", "job_count": 0, "job_no": 0, "sampling_step": 0, "sampling_steps": 0}


def state(**changes):
    return ServerState(**IDLE | {"interrupted": False, "skipped": False, "job_timestamp": "20261126081500"} | changes)


# -- what the state says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "timestamp", "expected"),
    [
        (state(), "20261126081500", False),
        (state(interrupted=True), "20261126081500", False),
        (state(), "20261126081459", True),
        # Another one runs now, even one that began within the same second.
        (state(job="scripts_txt2img", job_count=1), "20261126081500", True),
        (state(job="scripts_txt2img", job_count=-1), "20261126081500", True),
        # What a failed extras call leaves behind is none, but for its timestamp.
        (state(job="Upscale", job_count=1, progress=1.0), "20261126081500", False),
        # Without timestamps only a task that runs is seen.
        (state(job_timestamp=""), "20261126081500", False),
        (state(), None, False),
        (state(), "", False),
        # Nothing could be asked.
        (None, "20261126081500", True),
        (None, None, True),
    ],
)
def test_whether_another_task_has_begun_since(seen, timestamp, expected):
    assert Circumstances(flagged=False, state=seen, seconds=1.0).another_began(timestamp) is expected


# -- asking ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    with ThreadPoolExecutor(6) as made:
        yield made


@pytest.fixture(params=["a1111-1.10", "forge"])
def simulator(request):
    with SimulatorServer(SimulatorSettings(flavour=request.param, seconds_per_image=0.6)) as server:
        yield server


def client(url, query_timeout=30.0):
    return Webui(WebuiAddress("main", url), job_timeout=60, query_timeout=query_timeout)


def arm(server, kind, **values):
    requests.post(f"{server.url}/simulator/faults", json={"kind": kind, **values}, timeout=30).raise_for_status()


def payload(task_id):
    return {"prompt": "x", "seed": 1, "steps": 4, "width": 64, "height": 64, "force_task_id": task_id}


def generate(webui, pool, *, watch=False, task_id="ours", before_asking=lambda: None):
    """One generation with the question about it, as the gateway asks it; returns how it ended, its timestamp, its seconds."""
    inquiry = InterruptQuery(webui, pool)
    began = time.monotonic()

    def answered(status):
        before_asking()
        inquiry.ask(status)

    try:
        reply = webui.generate(
            "txt2img",
            payload(task_id),
            LIMIT,
            lambda: inquiry.prepare(task_id if watch else None, None),
            answered,
        )
    finally:
        inquiry.end()
    inquiry.yield_until_sent()
    assert inquiry.wait(30)
    timestamp = None
    if reply.status == 200:
        timestamp = json.loads(json.loads(reply.body)["info"])["job_timestamp"]
    return inquiry.result(), timestamp, time.monotonic() - began


def until(webui, *, busy):
    pause = threading.Event()
    for _ in range(1000):
        if webui.server_state().busy is busy:
            return
        pause.wait(0.01)
    raise AssertionError(webui.server_state())


def test_a_generation_that_nobody_stopped(simulator, pool):
    ended, timestamp, seconds = generate(client(simulator.url), pool)
    assert not ended.flagged
    assert not ended.another_began(timestamp)
    assert 0.6 <= ended.seconds <= seconds


@pytest.mark.parametrize("stop", ["interrupt", "skip"])
def test_a_generation_that_somebody_stopped_is_flagged(simulator, pool, stop):
    webui = client(simulator.url)
    running = pool.submit(generate, webui, pool)
    until(webui, busy=True)
    requests.post(f"{simulator.url}/sdapi/v1/{stop}", timeout=30).raise_for_status()
    ended, timestamp, _ = running.result(30)
    assert ended.flagged
    assert not ended.another_began(timestamp)


def test_an_interrupt_that_the_next_task_hides_shows_by_that_task_and_by_the_time(simulator, pool):
    webui, stranger = client(simulator.url), client(simulator.url)
    arm(simulator, "interrupted")
    measure = Pace()
    for _ in range(5):
        measure.add("kind", 0.6)
    others = []

    def let_another_begin():
        others.append(pool.submit(stranger.generate, "txt2img", payload("theirs"), LIMIT))
        until(stranger, busy=True)

    ended, timestamp, _ = generate(webui, pool, before_asking=let_another_begin)
    assert not ended.flagged
    assert ended.another_began(timestamp)
    assert ended.state.busy
    # Its time ends with the answer; half of the work was done.
    assert ended.seconds >= 0.3
    assert measure.is_too_fast("kind", 0.3)
    assert others[0].result(30).status == 200


def test_waiting_behind_another_task_is_not_counted_where_the_start_is_watched(simulator, pool):
    webui, stranger = client(simulator.url), client(simulator.url)
    watched = {}
    for watch in (True, False):
        other = pool.submit(stranger.generate, "txt2img", payload("theirs"), LIMIT)
        until(webui, busy=True)
        ended, timestamp, seconds = generate(webui, pool, watch=watch, task_id=f"ours {watch}")
        other.result(30)
        assert not ended.flagged
        assert not ended.another_began(timestamp)
        # Never less than the work itself took.
        assert ended.seconds >= 0.6
        watched[watch] = ended.seconds / seconds
    assert watched[True] < watched[False]
    # All of it but the way of the answer.
    assert watched[False] > 0.9


@pytest.mark.parametrize("kind", ["error-500", "error-422"])
def test_a_generation_that_failed_is_not_asked_about(simulator, pool, kind):
    arm(simulator, kind)
    ended, _, _ = generate(client(simulator.url), pool)
    assert (ended.flagged, ended.state) == (False, None)


def test_a_generation_without_an_answer_ends_the_question(simulator, pool):
    arm(simulator, "close")
    webui = client(simulator.url)
    inquiry = InterruptQuery(webui, pool)
    with contextlib.suppress(Exception):
        webui.generate("txt2img", payload("ours"), LIMIT, lambda: inquiry.prepare("ours", None), inquiry.ask)
    inquiry.end()
    inquiry.yield_until_sent()
    assert inquiry.wait(0)
    ended = inquiry.result()
    assert (ended.flagged, ended.state) == (False, None)
    assert ended.another_began(None)


STATE = json.dumps({"progress": 0, "state": {"interrupted": True, "job_count": 0}}).encode()


def asked(peer, pool, query_timeout=30.0):
    """Ask about a generation that was answered, with a peer in the WebUI's place."""
    inquiry = InterruptQuery(client(peer.url, query_timeout), pool)
    inquiry.prepare(None, None)
    inquiry.ask(200)
    inquiry.end()
    assert inquiry.wait(30)
    return inquiry.result()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"", id="closed"),
        pytest.param(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", id="told to come again"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]", id="unreadable"),
    ],
)
def test_a_proxy_that_keeps_no_silent_connection_is_asked_anew(pool, first):
    answers = [first, answer(STATE)]
    with Peer(lambda connection: connection.sendall(answers.pop(0))) as peer:
        ended = asked(peer, pool)
    assert ended.flagged
    assert len(peer.requests) == 2


def test_a_webui_that_does_not_answer_in_time_is_asked_once(pool):
    with Peer(lambda connection: connection.recv(1)) as peer:
        ended = asked(peer, pool, query_timeout=0.3)
    assert (ended.flagged, ended.state) == (False, None)
    assert len(peer.requests) == 1


def test_a_prepared_request_has_its_connection_and_sends_nothing_until_it_is_released(pool):
    with Peer(says(answer(STATE))) as peer:
        webui = client(peer.url)
        prepared = Prepared(pool, webui.server_state)
        sending = threading.Event()
        assert not prepared.sent.done()
        assert not peer.requests
        prepared.release(sending.set)
        assert prepared.sent.result(30).interrupted
        assert sending.is_set()
        # Without effect after the release.
        prepared.cancel()
    assert [request.partition(b" ")[0] for request in peer.requests] == [b"GET"]


def test_a_cancelled_request_sends_nothing(pool):
    with Peer(says(answer(STATE))) as peer:
        prepared = Prepared(pool, client(peer.url).server_state)
        prepared.cancel()
        with pytest.raises(Cancelled):
            prepared.sent.result(30)
    assert not any(request.strip() for request in peer.requests)
