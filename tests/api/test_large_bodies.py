"""Large bodies: on a disk until their turn, and never in the way of others."""

from __future__ import annotations

import errno
import io
import json
import tempfile
import threading
from typing import Any

import pytest

from tests.api.conftest import make_app
from tests.api.fakes import IMG2IMG, TXT2IMG, job_view, queued_view

MIB = 1024 * 1024
DEADLINE = 30


def large(**changes: Any) -> bytes:
    return json.dumps({**IMG2IMG, "init_images": "A" * 2 * MIB, **changes}).encode()


def post(client: Any, body: bytes, **how: Any) -> Any:
    return client.post("/img2img", data=body, content_type="application/json", **how)


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 3 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_was_posted_arrives_whatever_its_size(client, services, size, chunked):
    services.answers["post"] = job_view()
    text = "A" * (size - len(large(init_images="")))
    body = large(init_images=text)
    how = {"environ_overrides": {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}} if chunked else {}
    response = post(client, body, **how)
    assert (len(body), response.status_code) == (size, 200)
    assert services.calls[0][2] == {**IMG2IMG, "init_images": text}


class Services:
    """Accepts everything, and waits as long as the test likes before and after it lets go of the request."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.accepting = threading.Event()
        self.waiting = threading.Event()

    def post(self, *_args: Any, client: Any, wait: float, **_kwargs: Any) -> Any:
        self.entered.release()
        assert self.accepting.wait(DEADLINE)
        if wait:
            client.release_body()
            self.waiting.wait(DEADLINE)
        return queued_view()


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An app whose services hold their callers, and a way to post to it from many threads."""
    app, fake = make_app()
    services = Services()
    monkeypatch.setattr(type(fake), "acceptance", property(lambda _self: services))
    started: list[threading.Thread] = []
    answers: list[int] = []

    def start(body: bytes, count: int = 1, **how: Any) -> None:
        def run() -> None:
            answers.append(post(app.test_client(), body, **how).status_code)

        threads = [threading.Thread(target=run) for _ in range(count)]
        started.extend(threads)
        for thread in threads:
            thread.start()

    def finish() -> list[int]:
        for thread in started:
            thread.join(DEADLINE)
        return answers

    services.start, services.finish = start, finish
    return services


def test_only_a_few_large_bodies_are_worked_on_at_once_and_small_ones_pass(crowd: Any) -> None:
    crowd.start(large(), 6)
    assert crowd.entered.acquire(timeout=DEADLINE)
    assert crowd.entered.acquire(timeout=DEADLINE)
    assert not crowd.entered.acquire(timeout=0.3)
    crowd.start(json.dumps(IMG2IMG).encode())
    assert crowd.entered.acquire(timeout=DEADLINE), "a small body waits for the large ones"
    crowd.accepting.set()
    crowd.waiting.set()
    assert crowd.finish() == [202] * 7


def test_a_turn_ends_before_the_client_waits_for_its_picture(crowd: Any) -> None:
    crowd.accepting.set()
    crowd.start(large(), 6)
    for _ in range(6):
        assert crowd.entered.acquire(timeout=DEADLINE)
    crowd.waiting.set()
    assert crowd.finish() == [202] * 6


class Slow(io.RawIOBase):
    """The body of a client that stops in the middle."""

    def __init__(self, body: bytes) -> None:
        self.stopped, self.goes_on = threading.Event(), threading.Event()
        self._body = io.BytesIO(body)
        self._left = len(body) // 2

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            self.stopped.set()
            assert self.goes_on.wait(DEADLINE)
            return self._body.readinto(buffer)
        count = self._body.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count


def test_clients_that_stop_in_the_middle_hold_no_turn(crowd: Any) -> None:
    crowd.accepting.set()
    crowd.waiting.set()
    slow = [Slow(large()) for _ in range(4)]
    for stream in slow:
        environ = {"wsgi.input": stream, "wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
        crowd.start(b"", environ_overrides=environ)
        assert stream.stopped.wait(DEADLINE)
    crowd.start(large(), 3)
    for _ in range(3):
        assert crowd.entered.acquire(timeout=DEADLINE), "a slow client is in the way"
    for stream in slow:
        stream.goes_on.set()
    assert crowd.finish() == [202] * 7


@pytest.mark.parametrize("chunked", [False, True])
def test_without_a_temporary_folder_only_large_bodies_are_refused(client, services, monkeypatch, chunked):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    services.answers["post"] = job_view()
    body = large()
    stream = io.BytesIO(body)
    how = {"environ_overrides": {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}} if chunked else {}
    refused = post(client, b"", input_stream=stream, content_length=len(body), **how)
    assert (refused.status_code, refused.json["type"]) == (503, "no-room-for-body")
    assert "/nowhere" not in refused.text
    assert client.post("/txt2img", json=TXT2IMG).status_code == 200


class FullDisk(io.FileIO):
    """A file on a disk that is full at its second megabyte."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MIB + MIB // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_temporary_disk_is_a_problem_and_no_failure(client, services, monkeypatch, tmp_path):
    def open_full(*_args: Any, **_kwargs: Any) -> Any:
        return io.BufferedRandom(FullDisk(tmp_path / "body", "w+"))

    monkeypatch.setattr(tempfile, "TemporaryFile", open_full)
    refused = post(client, large())
    assert (refused.status_code, refused.json["type"]) == (503, "no-room-for-body")
    assert services.calls == []
    monkeypatch.undo()
    services.answers["post"] = job_view()
    assert post(client, large()).status_code == 200
