"""nginx's own part under the configuration of ``deploy/nginx/``: refusals, limits, buffers, connections to the gateway.

The gateway's place is taken by a server that notes what arrives on each connection and does what the path of a request says.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.system.harness import (
    NGINX,
    PROBLEM_HEADERS,
    Answer,
    Line,
    Nginx,
    Stage,
    allow_descriptors,
    ask,
    at_once,
    until,
)
from tests.system.sse import EventClient, Told

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

_MEDIA_TYPE = "application/problem+json"
_LARGE = 8_000_000
#: What one address may send at once and have in progress, as the configuration says.
_BURST, _IN_PROGRESS = 2000, 5000
_STREAMS = ("/jobs/u/events", "/jobs/u%20v/events?x=1", "/jobs/u/txt2img/20261122T061530123-9f2c4e7a/events")
_POST_HEAD = b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


class Upstream(ThreadingHTTPServer):
    """A server in the gateway's place.

    ``/answer`` says yes, ``/large`` answers with many bytes, ``/problem/<status>`` is a problem of its own, ``/break`` closes the
    connection unanswered, ``/break/kept`` only where it is not the connection's first request, ``/nonsense`` is no HTTP,
    ``/wait`` waits for the other side to hang up, and ``/jobs/<user>/events`` is a stream of what the test puts into ``events``
    until that is None; after ``b""`` it waits for the other side to hang up too.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bind = f"127.0.0.1:{self.server_address[1]}"
        #: Method, path and headers of every request that came whole, in order.
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        #: Seconds from the last answer on a connection until the other side closed it.
        self.kept: list[float] = []
        #: How many have hung up on ``/wait``, or on a stream that went on.
        self.gone = 0
        #: What the next stream sends; one at a time.
        self.events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        #: Seconds that it took to be rid of each large answer.
        self.sent: list[float] = []

    def count(self, method: str, path: str) -> int:
        """The number of such requests that arrived."""
        return sum((seen[0], seen[1]) == (method, path) for seen in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def setup(self) -> None:
        super().setup()
        self.requests = 0
        self.answered: float | None = None

    def finish(self) -> None:
        if self.answered is not None:
            self.server.kept.append(time.monotonic() - self.answered)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_any(self) -> None:
        self.requests += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers.items())))
        _, kind, *more = self.path.split("/")
        if kind == "nonsense":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nnon\0sense: 1\r\n\r\n")
        if kind == "nonsense" or (kind == "break" and (more != ["kept"] or self.requests > 1)):
            self.close_connection, self.answered = True, None
        elif kind == "wait":
            self._await_hang_up()
            self.close_connection = True
        elif kind == "jobs":
            self._stream()
        elif kind == "problem":
            self._answer(int(more[0]), b'{"type":"its-own"}', {"Content-Type": _MEDIA_TYPE, "Retry-After": "77"})
        else:
            self._answer(200, bytes(_LARGE) if kind == "large" else b"yes", {})

    do_GET = do_POST = do_DELETE = do_any  # noqa: N815  # the names that http.server calls

    def _stream(self) -> None:
        """What the test puts into ``events``, as the gateway sends it."""
        self.close_connection = True
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream; charset=utf-8", "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        while event := self.server.events.get():
            self.wfile.write(event)
        if event is not None:
            self._await_hang_up()

    def _await_hang_up(self) -> None:
        assert self.connection.recv(1) == b""
        self.server.gone += 1

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        begun = time.monotonic()
        self.wfile.write(body)
        self.answered = time.monotonic()
        if len(body) == _LARGE:
            self.server.sent.append(self.answered - begun)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The server in the gateway's place."""
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Nginx]:
    """The shipped nginx in front of it."""
    stage = Stage(tmp_path_factory.mktemp("edge"))
    try:
        yield stage.nginx(upstream.bind, Path("/nonexistent"))
    finally:
        stage.clear()


@pytest.fixture
def abandoned(stage: Stage) -> Nginx:
    """The shipped nginx in front of nobody."""
    return stage.nginx(f"unix:{stage.folder}/nobody.sock", Path("/nonexistent"))


def said(nginx: Nginx, request: bytes) -> Answer:
    """The answer to these very bytes."""
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        answer = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode("latin-1"))
        answer.begin()
        return Answer(answer.status, answer.getheaders(), answer.read())


def is_problem(answer: Answer, status: int, slug: str) -> None:
    """Whether it is a whole problem document in the shape of the gateway's own."""
    headers = dict(answer.headers)
    assert (answer.status, headers["Content-Type"]) == (status, _MEDIA_TYPE), answer
    assert PROBLEM_HEADERS.items() <= headers.items()
    assert headers["Server"] == "nginx"
    problem = json.loads(answer.body)
    assert (problem.pop("type"), problem.pop("status")) == (slug, status)
    told = problem.pop("retry_after", None)
    assert headers.get("Retry-After") == (None if told is None else str(told))
    assert (told is not None) == (status in (429, 503))
    assert problem.pop("request") == headers["X-Request-ID"]
    assert sorted(problem) == ["detail", "title"]


def is_busy(answer: Answer, status: int, slug: str) -> None:
    """Whether it is a whole stream that tells of this problem and when to come back, as the gateway's own do."""
    headers = dict(answer.headers)
    assert (answer.status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8"), answer
    assert PROBLEM_HEADERS.items() <= headers.items()
    *head, data, blank, rest = answer.body.decode().split("\n")
    assert (head, blank, rest) == (["retry: 5000", "", "event: busy"], "", ""), answer.body
    problem = json.loads(data.removeprefix("data: "))
    assert (problem["type"], problem["status"], "retry_after" in problem) == (slug, status, status in (429, 503))


def _post(*fields: str, path: str = "/answer") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


#: What nginx refuses without asking the gateway.
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid-request"),
    "no version that there is": (b"GET / HTTP/x\r\n\r\n", 400, "invalid-request"),
    "no host": (b"GET /answer HTTP/1.1\r\n\r\n", 400, "invalid-request"),
    "two hosts": (b"GET /answer HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "invalid-request"),
    "a host that is none": (b"GET /answer HTTP/1.1\r\nHost: x/y\r\n\r\n", 400, "invalid-request"),
    "a NUL in the path": (b"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid-request"),
    "a length that is no number": (_post("Content-Length: ten"), 400, "invalid-request"),
    "two lengths": (_post("Content-Length: 1", "Content-Length: 2"), 400, "invalid-request"),
    "a length beside chunks": (_post("Content-Length: 1", "Transfer-Encoding: chunked"), 400, "invalid-request"),
    "chunks that are none": (_post("Transfer-Encoding: chunked") + b"zz\r\n", 400, "invalid-request"),
    "the place of the pictures": (b"GET /sd-gateway-files/x HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not-found"),
    "the place of the problems": (b"GET /sd-gateway-problem HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not-found"),
    "the place of the streams": (b"GET /sd-gateway-events HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not-found"),
    "the place of the refused streams": (
        b"GET /sd-gateway-busy/502 HTTP/1.1\r\nHost: x\r\n\r\n",
        404,
        "not-found",
    ),
    "TRACE": (b"TRACE /answer HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method-not-allowed"),
    "a body that is declared too large": (_post("Content-Length: 34603009"), 413, "body-too-large"),
    "a chunk that is too large": (
        _post("Transfer-Encoding: chunked") + b"2100001\r\n" + bytes(1000),
        413,
        "body-too-large",
    ),
    "a stream with a body that is declared too large": (
        b"GET /jobs/u/events HTTP/1.1\r\nHost: x\r\nContent-Length: 34603009\r\n\r\n",
        413,
        "body-too-large",
    ),
    "a stream with chunks that are none": (
        b"GET /jobs/u/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
        "invalid-request",
    ),
    "a long URL": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri-too-long"),
    "a long header field": (_post(f"X-Long: {'a' * 9000}"), 431, "headers-too-large"),
    "many header fields": (_post(*[f"X-{n}: {'a' * 1000}" for n in range(40)]), 431, "headers-too-large"),
    "an unknown coding": (_post("Transfer-Encoding: gzip"), 400, "invalid-request"),
    "HTTP/3 in text": (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 400, "invalid-request"),
}


def test_what_nginx_refuses_is_a_problem_and_never_reaches_the_gateway(nginx: Nginx, upstream: Upstream) -> None:
    before = len(upstream.seen)
    for case, (request, status, slug) in REFUSED.items():
        try:
            is_problem(said(nginx, request), status, slug)
        except (AssertionError, OSError, http.client.HTTPException) as error:
            raise AssertionError(case) from error
    assert len(upstream.seen) == before


def test_a_refused_head_request_has_the_headers_of_the_problem_alone(nginx: Nginx) -> None:
    answer = said(nginx, b"HEAD /sd-gateway-files/x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, dict(answer.headers)["Content-Type"], answer.body) == (404, _MEDIA_TYPE, b"")


def test_a_method_that_nginx_refuses_is_told_how_to_ask_for_others(nginx: Nginx) -> None:
    assert dict(said(nginx, REFUSED["TRACE"][0]).headers)["Allow"] == "OPTIONS"
    assert "Allow" not in dict(said(nginx, REFUSED["no host"][0]).headers)


@pytest.mark.parametrize("path", ["/break", "/nonsense"])
def test_a_gateway_that_ends_or_answers_no_http_is_a_problem(nginx: Nginx, path: str) -> None:
    is_problem(ask(nginx.url, "GET", path), 502, "gateway-unavailable")


def test_the_gateways_own_problems_pass_through_untouched(nginx: Nginx) -> None:
    for status in (400, 404, 405, 408, 409, 413, 414, 422, 429, 431, 500, 501, 502, 503, 504, 505):
        answer = ask(nginx.url, "GET", f"/problem/{status}")
        headers = dict(answer.headers)
        assert (answer.status, answer.body) == (status, b'{"type":"its-own"}')
        assert (headers["Content-Type"], headers["Retry-After"]) == (_MEDIA_TYPE, "77")


def test_what_a_client_says_of_its_address_and_scheme_is_replaced(nginx: Nginx, upstream: Upstream) -> None:
    names = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Protocol", "X-Forwarded-Ssl", "X-Forwarded-Host")
    ask(nginx.url, "GET", "/answer", dict.fromkeys((*names, "Forwarded", "X-Real-IP", "X-Other"), "on"))
    headers = upstream.seen[-1][-1]
    known = {name: text for name, text in headers.items() if name.startswith(("X-", "Forwarded"))}
    assert len(known.pop("X-Request-ID")) == 32
    assert known == {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Other": "on"}
    assert "Connection" not in headers


def test_a_body_reaches_the_gateway_when_it_is_whole(nginx: Nginx, upstream: Upstream) -> None:
    before = upstream.count("POST", "/answer")
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
        connection.sendall(_POST_HEAD + b"half ")
        for _ in range(20):
            assert ask(nginx.url, "GET", "/answer").status == 200
        assert upstream.count("POST", "/answer") == before
        connection.sendall(b"whole")
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert upstream.count("POST", "/answer") == before + 1


def test_the_gateway_is_rid_of_an_answer_that_its_client_does_not_read(nginx: Nginx, upstream: Upstream) -> None:
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        reader.connect(("127.0.0.1", nginx.port))
        reader.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: upstream.sent, "the answer is sent", 5)
        assert upstream.sent[0] < 2


def test_the_gateway_learns_at_once_that_a_waiting_client_has_gone(nginx: Nginx, upstream: Upstream) -> None:
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as client:
        client.sendall(b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(lambda: upstream.count("POST", "/wait"), "it waits")
        assert upstream.gone == 0
    until(lambda: upstream.gone, "the gateway has heard of it", 2)


@pytest.mark.parametrize("kept", [True, False])
def test_a_post_is_never_sent_twice(nginx: Nginx, upstream: Upstream, kept: bool) -> None:
    path = "/break/kept" if kept else "/break"
    before = upstream.count("POST", path)
    line = Line(nginx.url)
    try:
        # One connection to nginx is served by one of its processes, which keeps the gateway's connection of the first request.
        assert line.ask("GET", "/answer").status == 200
        is_problem(line.ask("POST", path, {"Content-Length": "0"}), 502, "gateway-unavailable")
    finally:
        line.close()
    assert upstream.count("POST", path) == before + 1


def test_a_get_whose_kept_connection_was_closed_is_sent_again(nginx: Nginx, upstream: Upstream) -> None:
    before = upstream.count("GET", "/break/kept")
    line = Line(nginx.url)
    try:
        assert line.ask("GET", "/answer").status == 200
        assert line.ask("GET", "/break/kept").status == 200
    finally:
        line.close()
    assert upstream.count("GET", "/break/kept") == before + 2


def test_nginx_closes_a_kept_connection_before_gunicorn_does(nginx: Nginx, upstream: Upstream) -> None:
    upstream.kept.clear()
    assert ask(nginx.url, "GET", "/answer").status == 200
    until(lambda: upstream.kept, "the connection is closed", 10)
    assert 2 < upstream.kept[-1] < 5


def test_without_a_gateway_every_request_is_a_problem(abandoned: Nginx) -> None:
    is_problem(ask(abandoned.url, "GET", "/livez"), 502, "gateway-unavailable")


@pytest.mark.parametrize("path", _STREAMS)
def test_without_a_gateway_an_event_stream_says_when_to_come_back(abandoned: Nginx, path: str) -> None:
    is_busy(ask(abandoned.url, "GET", path), 502, "gateway-unavailable")
    answer = ask(abandoned.url, "HEAD", path)
    assert (answer.status, dict(answer.headers)["Content-Type"]) == (200, "text/event-stream; charset=utf-8")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/jobs/u/events"),
        ("DELETE", "/jobs/u/events"),
        ("GET", "/jobs/u"),
        ("GET", "/jobs/events"),
        ("GET", "/jobs/u/txt2img/events"),
        ("GET", "/x/jobs/u/events"),
        ("GET", "/jobs/u/events/"),
    ],
)
def test_without_a_gateway_what_is_no_event_stream_is_a_problem(abandoned: Nginx, method: str, path: str) -> None:
    is_problem(ask(abandoned.url, method, path, {"Content-Length": "0"}), 502, "gateway-unavailable")


@pytest.mark.parametrize("path", _STREAMS)
def test_each_event_arrives_before_the_next_one_is_sent(nginx: Nginx, upstream: Upstream, path: str) -> None:
    upstream.events.put(b"retry: 2731\n\n")
    with EventClient(nginx.url, path, last="3-48211") as client:
        for number, size in enumerate((1, 100, 5_000, 60_000, 1)):
            upstream.events.put(b'id: 3-%d\nevent: job\ndata: "%s"\n\n' % (number, b"x" * size))
            assert client.next() == Told("job", "x" * size, f"3-{number}")
        upstream.events.put(None)
        assert client.next() is None
    assert (client.status, client.retry) == (200, 2731)
    method, asked, headers = upstream.seen[-1]
    assert (method, asked, headers["Last-Event-ID"]) == ("GET", path, "3-48211")
    assert (headers["Host"], headers["X-Forwarded-For"]) == (nginx.url.removeprefix("http://"), "127.0.0.1")


def test_the_gateway_learns_at_once_that_a_watcher_has_gone(nginx: Nginx, upstream: Upstream) -> None:
    before = upstream.gone
    with EventClient(nginx.url, _STREAMS[0]) as client:
        upstream.events.put(b"event: snapshot\ndata: {}\n\n")
        upstream.events.put(b"")
        client.upto("snapshot")
        assert upstream.gone == before
    until(lambda: upstream.gone > before, "the gateway has heard of it", 2)


@pytest.mark.soak
def test_a_gateway_that_takes_no_connection_is_a_problem_after_five_seconds(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        # The kernel accepts one more than it is told, and ignores who comes then.
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        nginx = stage.nginx(f"127.0.0.1:{full.getsockname()[1]}", Path("/nonexistent"))
        is_problem(ask(nginx.url, "GET", "/livez"), 504, "gateway-timeout")
        is_busy(ask(nginx.url, "GET", _STREAMS[0]), 504, "gateway-timeout")


def test_a_client_that_asks_faster_than_is_allowed_is_told_when_to_come_back(abandoned: Nginx) -> None:
    def flood(path: str = "/livez") -> list[Answer]:
        pipeline = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 500
        with socket.create_connection(("127.0.0.1", abandoned.port), timeout=10) as connection:
            connection.sendall(pipeline)
            return list(answers(connection, 500))

    found = [answer for flooded in at_once([flood] * 8) for answer in flooded]
    refused = [answer for answer in found if answer.status == 429]
    assert len(found) - len(refused) >= _BURST
    assert len(refused) > 100
    is_problem(refused[0], 429, "too-many-requests")
    # The rate lets some in until now, but fewer than these.
    *_, watcher = flood(_STREAMS[0])
    is_busy(watcher, 429, "too-many-requests")
    # Where they come from counts, so that others are not refused with them.
    other = said_from("127.0.0.2", abandoned, b"GET /livez HTTP/1.0\r\n\r\n")
    assert other.status == 502
    time.sleep(int(dict(refused[0].headers)["Retry-After"]))
    assert ask(abandoned.url, "GET", "/livez").status == 502


def answers(connection: socket.socket, count: int) -> Iterator[Answer]:
    """The next ``count`` pipelined answers on a connection."""
    with connection.makefile("rb") as stream:
        for _ in range(count):
            status = int(stream.readline().split()[1])
            headers = http.client.parse_headers(stream)
            yield Answer(status, headers.items(), stream.read(int(headers["Content-Length"])))


def said_from(address: str, nginx: Nginx, request: bytes) -> Answer:
    """The answer to a client at another loopback address."""
    with socket.create_connection(("127.0.0.1", nginx.port), 10, (address, 0)) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return Answer(answer.status, answer.getheaders(), answer.read())


@pytest.mark.parametrize(
    ("most", "changes"),
    [
        pytest.param(_IN_PROGRESS, {}, marks=pytest.mark.soak),
        (200, {f"limit_conn sd_gateway_address {_IN_PROGRESS};": "limit_conn sd_gateway_address 200;"}),
    ],
)
def test_one_address_may_have_so_many_requests_in_progress(stage: Stage, most: int, changes: dict[str, str]) -> None:
    allow_descriptors(2 * most + 1000)
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1000))
        busy.settimeout(10)
        nginx = stage.nginx(f"127.0.0.1:{busy.getsockname()[1]}", Path("/nonexistent"), changes=changes)

        def asks(path: str, address: str = "127.0.0.1") -> socket.socket:
            made = socket.create_connection(("127.0.0.1", nginx.port), 10, (address, 0))
            made.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return stack.enter_context(made)

        def passed() -> bytes:
            return stack.enter_context(busy.accept()[0]).recv(1000).split()[1]

        for number in range(most):
            asks("/livez")
            assert passed() == b"/livez"
            if number > _BURST // 2:
                # Within the rate.
                time.sleep(0.0035)
        is_problem(next(answers(asks("/livez"), 1)), 503, "too-many-connections")
        for path in _STREAMS:
            is_busy(next(answers(asks(path), 1)), 503, "too-many-connections")
        asks("/other", "127.0.0.2")
        assert passed() == b"/other"
