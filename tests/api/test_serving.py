"""gunicorn's internals that our worker class uses: an upgrade that changes them must fail here, and not in service."""

from __future__ import annotations

import inspect

import gunicorn
from gunicorn.http.body import LengthReader
from gunicorn.http.message import HeaderPolicy, Message
from gunicorn.http.unreader import Unreader
from gunicorn.workers import gthread
from gunicorn.workers.gthread import PollableMethodQueue, ThreadWorker

from app.serving import gunicorn_worker as serving


def test_gunicorn_is_the_version_that_the_worker_was_written_for() -> None:
    assert gunicorn.version_info[0] == 27


def test_every_method_that_the_worker_replaces_exists_and_takes_the_same() -> None:
    ours = {name: method for name, method in vars(serving.Worker).items() if inspect.isfunction(method)}
    replaced = {name for name in ours if hasattr(ThreadWorker, name)}
    assert replaced == {
        "__init__",
        "_cap_keepalive",
        "accept",
        "finish_request",
        "handle",
        "handle_error",
        "handle_quit",
        "init_signals",
        "load_wsgi",
        "murder_keepalived",
        "set_accept_enabled",
        "wait_for_and_dispatch_events",
    }
    for name in replaced - {"__init__", "handle_quit"}:
        assert list(inspect.signature(ours[name]).parameters) == list(
            inspect.signature(getattr(ThreadWorker, name)).parameters
        ), name


def test_what_the_worker_calls_and_reads_of_gunicorn_is_there() -> None:
    for name in ("enqueue_req", "handle_request", "run"):
        assert callable(getattr(ThreadWorker, name))
    # The main loop gives up waiting connections after its events, and at its end with force.
    loop = inspect.getsource(ThreadWorker.run)
    for call in (
        "self.murder_keepalived()",
        "self._cap_keepalive(",
        "self.murder_keepalived(force=True)",
        "self.nr_conns",
    ):
        assert call in loop
    assert "self.finish_request" in inspect.getsource(ThreadWorker.enqueue_req)
    assert "_expected_100_continue" in vars(HeaderPolicy)
    assert "should_close" in vars(Message)
    assert {"take_buffered", "unread"} <= {*vars(Unreader)}
    assert LengthReader(None, 7).length == 7
    assert gthread.STOP_KEEPALIVE_LINGER <= 2
    assert callable(PollableMethodQueue.defer)
