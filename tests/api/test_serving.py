"""gunicorn's internals that our worker class uses: an upgrade that changes them must fail here, and not in service."""

from __future__ import annotations

import inspect

import gunicorn
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.message import HeaderPolicy, Message
from gunicorn.http.unreader import Unreader
from gunicorn.workers import gthread
from gunicorn.workers.gthread import PollableMethodQueue, ThreadWorker

from app.serving import gunicorn_worker as serving


def test_gunicorn_is_the_version_that_the_worker_was_written_for() -> None:
    assert gunicorn.version_info[0] == 27


def test_every_method_that_the_worker_replaces_exists_and_takes_the_same() -> None:
    ours = {
        name: method
        for part in serving.Worker.__mro__[: serving.Worker.__mro__.index(ThreadWorker)]
        for name, method in vars(part).items()
        if inspect.isfunction(method)
    }
    replaced = {name for name in ours if hasattr(ThreadWorker, name)}
    assert replaced == {
        "__init__",
        "_cap_keepalive",
        "accept",
        "finish_request",
        "handle",
        "handle_quit",
        "handle_request",
        "init_process",
        "init_signals",
        "load_wsgi",
        "murder_keepalived",
        "run",
        "set_accept_enabled",
        "wait_for_and_dispatch_events",
    }
    for name in replaced - {"__init__", "handle_quit"}:
        assert list(inspect.signature(ours[name]).parameters) == list(
            inspect.signature(getattr(ThreadWorker, name)).parameters
        ), name


def test_what_the_worker_calls_and_reads_of_gunicorn_is_there() -> None:
    assert callable(ThreadWorker.enqueue_req)
    # The main loop gives up waiting connections after its events, and at its end with force.
    loop = inspect.getsource(ThreadWorker.run)
    for call in (
        "self.murder_keepalived()",
        "self._cap_keepalive(",
        "self.murder_keepalived(force=True)",
        "self.nr_conns",
        "self.wait_for_and_dispatch_events(",
        "self.method_queue.run_callbacks",
    ):
        assert call in loop
    assert "self.finish_request" in inspect.getsource(ThreadWorker.enqueue_req)
    assert "_expected_100_continue" in vars(HeaderPolicy)
    assert "should_close" in vars(Message)
    assert {"take_buffered", "unread"} <= {*vars(Unreader)}
    assert LengthReader(None, 7).length == 7
    assert gthread.STOP_KEEPALIVE_LINGER <= 2
    assert callable(PollableMethodQueue.defer)
    # Of the answer to a request that waited, and of a stream.
    assert [*inspect.signature(wsgi.create).parameters][:5] == ["req", "sock", "client", "server", "cfg"]
    for name in ("start_response", "write", "write_file", "close", "should_close", "force_close", "send_headers"):
        assert callable(getattr(wsgi.Response, name))
    assert {"headers_sent", "chunked"} <= vars(wsgi.Response(None, None, None)).keys()
