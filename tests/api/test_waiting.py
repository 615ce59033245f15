"""Answers that are not ready yet, under servers that know nothing of connections without a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server

from tests.api import fakes
from tests.api.conftest import make_app


class FakePending:
    """An answer that comes when a test says so."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.deadline = time.monotonic() + seconds
        self.begun = threading.Event()
        self.outcomes: list[Any] = []
        self._wake: Callable[[], object] = lambda: None

    def begin(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        if self.outcomes:
            wake()
        self.begun.set()

    def give_up(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def say(self, *outcomes: Any) -> None:
        self.outcomes += outcomes
        self._wake()

    def answer(self) -> Any:
        outcome = self.outcomes.pop(0) if self.outcomes else fakes.queued_view()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def pending() -> FakePending:
    return FakePending()


@pytest.fixture
def server(pending: FakePending) -> Iterator[str]:
    """The application under Werkzeug's server, with an answer that is pending."""
    app, services = make_app()
    services.answers["post"] = pending
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_server_waits_in_its_thread(pending: FakePending, server: str) -> None:
    def finish() -> None:
        pending.begun.wait(30)
        pending.say(None, fakes.job_view())

    threading.Thread(target=finish).start()
    answer = requests.post(f"{server}/txt2img", json=fakes.TXT2IMG, timeout=30)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert pending.outcomes == []


def test_the_time_that_is_up_is_an_answer(client: Any, services: fakes.FakeServices) -> None:
    services.answers["post"] = FakePending(0.05)
    answer = client.post("/txt2img", json=fakes.TXT2IMG)
    assert (answer.status_code, answer.json["status"]) == (202, "queued")


@pytest.mark.parametrize(("slug", "status"), [("job-not-found", 404), ("database-unavailable", 503)])
def test_what_goes_wrong_in_the_end_is_a_problem(
    client: Any, services: fakes.FakeServices, slug: str, status: int
) -> None:
    pending = FakePending()
    pending.outcomes = [fakes.domain_error(slug)]
    services.answers["post"] = pending
    answer = client.post("/txt2img", json=fakes.TXT2IMG)
    assert (answer.status_code, answer.json["type"]) == (status, slug)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_so_is_a_bug(client: Any, services: fakes.FakeServices) -> None:
    pending = FakePending()
    pending.outcomes = [LookupError("secret")]
    services.answers["post"] = pending
    answer = client.post("/txt2img", json=fakes.TXT2IMG)
    assert (answer.status_code, answer.json["type"]) == (500, "internal-error")
    assert b"secret" not in answer.data
