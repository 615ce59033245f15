"""Clients that are slow, silent, gone or wrong, over the real server: others are served, and they are told what was wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system import hostile
from tests.system.harness import PROBLEM_HEADERS, Gateway, Simulator, Stage, children, picture, until

THREADS = 12
WAITERS = 4
#: Far less than a client that is waited for would cost, and enough for a busy machine.
AT_ONCE = 0.5


@pytest.fixture(scope="module")
def booth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The processes of this module."""
    stage = Stage(tmp_path_factory.mktemp("booth"))
    try:
        yield stage
    finally:
        stage.clear()


@pytest.fixture(scope="module")
def webui(booth: Stage) -> Simulator:
    return booth.simulator()


@pytest.fixture(scope="module")
def gateway(booth: Stage, webui: Simulator) -> Gateway:
    """One process of few threads, so that few clients would be enough to stop it."""
    return booth.gateway([webui], processes=1, SDG_THREADS=THREADS, SDG_MAX_WAITERS=WAITERS)


def connect(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=30)


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def one_answer(connection: socket.socket) -> bytes:
    """The body of the next answer, and no byte behind it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, head
        head += byte
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return body


def problem(answer: bytes, status: int) -> str:
    """The type of the problem that a whole raw answer must be."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status), answer
    fields = [f"{name}: {value}".lower().encode() for name, value in PROBLEM_HEADERS.items()]
    assert {b"content-type: application/problem+json", b"connection: close", *fields} <= {*lines}
    members = json.loads(body)
    assert members["status"] == status
    assert members["title"]
    assert members["detail"]
    kind: str = members["type"]
    return kind


def seconds_of_livez(gateway: Gateway) -> float:
    began = time.monotonic()
    assert gateway.http.get("/livez").status_code == 200
    return time.monotonic() - began


def descriptors(gateway: Gateway) -> int:
    [pid] = children(gateway.running.pid)
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def test_connections_without_a_whole_head_take_no_thread(gateway: Gateway) -> None:
    with (
        hostile.Hostile(gateway.url, hostile.SILENT, 300) as silent,
        hostile.Hostile(gateway.url, hostile.HALF_HEAD, 100) as half,
    ):
        until(lambda: silent.connected + half.connected == 400, "all are connected")
        assert seconds_of_livez(gateway) < AT_ONCE
        assert gateway.post(prefer="respond-async").status_code == 202


UNSENT = {
    404: b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
    405: b"PUT /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    413: b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n{",
    415: b"POST /img2img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n{",
}


def test_a_refused_request_is_answered_before_its_body_comes_and_closed_soon(gateway: Gateway) -> None:
    with contextlib.ExitStack() as open_:
        lines = {status: open_.enter_context(connect(gateway)) for status in UNSENT}
        began = time.monotonic()
        for status, line in lines.items():
            line.sendall(UNSENT[status])
        for status, line in lines.items():
            problem(rest(line), status)
        # Their FIN came with the answers.
        assert time.monotonic() - began < 2 * AT_ONCE
        before = descriptors(gateway)
        until(lambda: descriptors(gateway) <= before - len(UNSENT), "all are closed", 5)
        assert time.monotonic() - began < 5


def test_a_refused_client_that_goes_on_sending_can_read_the_answer(gateway: Gateway) -> None:
    body = b" " * 30_000_000
    with connect(gateway) as line:
        line.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        line.sendall(body)
        assert problem(rest(line), 404) == "not-found"


def test_a_small_body_that_nobody_reads_keeps_the_connection(gateway: Gateway) -> None:
    with connect(gateway) as line:
        line.sendall(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert b"ok" in one_answer(line)
        assert b"not-found" in one_answer(line)


def test_what_is_refused_by_its_head_gets_no_100_continue(gateway: Gateway) -> None:
    body = json.dumps(picture(id="expects")).encode()
    head = (
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n"
        b"Prefer: respond-async\r\nExpect: 100-continue\r\n\r\n"
    )
    for path, type_, status in ((b"/nowhere", b"application/json", 404), (b"/txt2img", b"text/plain", 415)):
        with connect(gateway) as line:
            line.sendall(head % (path, type_, len(body)))
            problem(rest(line), status)
    with connect(gateway) as line:
        line.sendall(head % (b"/txt2img", b"application/json", len(body)))
        assert line.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        assert json.loads(one_answer(line))["id"] == "expects"
        # The connection goes on.
        line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"ok" in one_answer(line)


def test_a_reader_with_small_buffers_gets_every_byte(gateway: Gateway) -> None:
    job = gateway.succeeded(gateway.post(width=1024, height=1024))
    [whole] = gateway.images(job)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.settimeout(30)
        line.connect(("127.0.0.1", gateway.port))
        line.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % job["images"][0]["url"].encode() * 3)
        assert [one_answer(line) == whole for _ in range(3)] == [True] * 3


def test_the_second_of_two_pipelined_requests_is_answered_at_once(gateway: Gateway) -> None:
    seconds = []
    for _ in range(5):
        with connect(gateway) as line:
            line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            one_answer(line)
            began = time.monotonic()
            one_answer(line)
            seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.05


def test_a_head_in_pieces_is_one_head(gateway: Gateway) -> None:
    with connect(gateway) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere":
            line.send(bytes([byte]))
        assert b"ok" in one_answer(line)
        line.sendall(b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"not-found" in one_answer(line)


WRONG = [
    (b"\x01\x02\x03\r\n\r\n", 400, "invalid-request"),
    (b"GET / HTTP/1.1\nHost: x\n\n", 400, "invalid-request"),
    (b"GET / HTTP/7.0\r\nHost: x\r\n\r\n", 400, "invalid-request"),
    (b"GET / HTTP/1.1\r\nHost x\r\n\r\n", 400, "invalid-request"),
    (b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", 400, "invalid-request"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "invalid-request"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400, "invalid-request"),
    (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid-request"),
    (b"POST /txt2img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: rot13\r\n\r\n", 400, "invalid-request"),
    (b"POST /txt2img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "invalid-request"),
    (b"POST /txt2img HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "invalid-request"),
    (b"POST /txt2img HTTP/1.1\r\nContent-Length: two\r\n\r\n", 400, "invalid-request"),
    (b"GET / HTTP/1.1\r\nSCRIPT_NAME: /elsewhere\r\n\r\n", 400, "invalid-request"),
    (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", 414, "uri-too-long"),
    (b"GET /" + b"x" * 5000, 414, "uri-too-long"),
    (b"GET / HTTP/1.1\r\nExpect: a miracle\r\n\r\n", 417, "expectation-failed"),
    (b"GET / HTTP/1.1\r\nLong: " + b"x" * 9000 + b"\r\n\r\n", 431, "headers-too-large"),
    (b"GET / HTTP/1.1\r\n" + b"Many: x\r\n" * 200 + b"\r\n", 431, "headers-too-large"),
    (b"GET / HTTP/1.1\r\n" + b"Endless: %s\r\n" % (b"x" * 8000) * 50, 431, "headers-too-large"),
]


def test_what_is_no_http_is_refused_with_a_problem_and_one_quiet_line(gateway: Gateway) -> None:
    before = len(gateway.text())
    for request, status, slug in WRONG:
        with connect(gateway) as line:
            line.sendall(request)
            assert problem(rest(line), status) == slug
    lines = gateway.text()[before:].splitlines()
    assert len(lines) == len(WRONG)
    assert all("[INFO]" in line for line in lines)


def test_a_malformed_body_that_nobody_reads_gets_one_answer(gateway: Gateway) -> None:
    before = len(gateway.text())
    for path in (b"/livez", b"/nowhere", b"/t2ihistory/user"):
        with connect(gateway) as line:
            line.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" % path)
            answer = rest(line)
            assert answer.count(b"HTTP/1.1") == 1
            assert b"connection: close" in answer.lower()
    assert "Traceback" not in gateway.text()[before:]


def post_and(gateway: Gateway, user: str, *, behind: bytes = b"") -> socket.socket:
    """A client that posts, and has not read an answer."""
    body = json.dumps(picture(id=user)).encode()
    head = b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    line = connect(gateway)
    line.sendall(head % len(body) + body + behind)
    return line


def hang_up(line: socket.socket, how: int) -> None:
    """Close it, close only the client's half, or reset it."""
    if how == 1:
        line.shutdown(socket.SHUT_WR)
        return
    if how == 2:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


def test_clients_that_hang_up_give_their_places_back_and_their_jobs_go_on(gateway: Gateway, webui: Simulator) -> None:
    webui.reset()
    webui.fault("hang")
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as open_:
        open_.callback(webui.interrupt)
        # A next request behind the first, a line end or a part of one, is no hanging up.
        patient = [
            open_.enter_context(post_and(gateway, "patient", behind=behind))
            for behind in (b"GET /livez HTTP/1.1\r\n", b"\r\n")
        ]
        until(lambda: len(gateway.jobs("patient")) == len(patient), "two clients wait")
        accepted = 0
        halves = []
        for _ in range(2):
            lines = [open_.enter_context(post_and(gateway, "gone")) for _ in range(WAITERS - len(patient))]
            accepted += len(lines)
            until(lambda accepted=accepted: len(gateway.jobs("gone")) == accepted, "all places are taken")
            assert gateway.post(id="late").json()["type"] == "no-free-waiter"
            for line in lines:
                how = len(halves) % 3
                hang_up(line, how)
                halves.append(line if how == 1 else None)
            gone = time.monotonic()
            until(lambda: gateway.post(id="late", prefer="wait=1").status_code == 202, "a place is free", 3)
            # One second of it is the wait that was asked for.
            assert time.monotonic() - gone < 2.5
        for half in filter(None, halves):
            half.settimeout(5)
            assert json.loads(one_answer(half))["status"] in ("queued", "running")
        for line in patient:
            line.setblocking(False)
            with pytest.raises(BlockingIOError):
                line.recv(1)
            line.settimeout(30)
        webui.interrupt()
        answers = pool.map(one_answer, patient)
        assert [json.loads(answer)["status"] for answer in answers] == ["succeeded"] * len(patient)
    done = [gateway.finished(job["url"]) for job in gateway.jobs("gone")]
    assert [job["status"] for job in done] == ["succeeded"] * accepted


def processor_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_system_without_descriptors_is_waited_for(gateway: Gateway) -> None:
    [pid] = children(gateway.running.pid)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    before = processor_seconds(pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        line = connect(gateway)
        line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: "no new connections for now: Too many open files" in gateway.text(), "it says so", 3)
        line.settimeout(1)
        with pytest.raises(TimeoutError):
            line.recv(1)
        assert processor_seconds(pid) - before < 0.7, "it spins"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    line.settimeout(5)
    assert b"ok" in one_answer(line)
    line.close()
    assert children(gateway.running.pid) == [pid]


def test_clients_that_do_not_close_do_not_delay_others(gateway: Gateway) -> None:
    before = descriptors(gateway)
    with contextlib.ExitStack() as open_:
        lines = [open_.enter_context(connect(gateway)) for _ in range(50)]
        for line in lines:
            line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for line in lines:
            assert b"200 OK" in rest(line)
        assert min(seconds_of_livez(gateway) for _ in range(3)) < 0.05
        until(lambda: descriptors(gateway) < before + len(lines) / 2, "all were closed by the gateway", 3)


@pytest.fixture(scope="module")
def limited(booth: Stage, webui: Simulator) -> Gateway:
    """A gateway that may open few files, and can't raise that limit."""
    gateway = Gateway(
        "limited", booth.folder, [webui], processes=1, SDG_THREADS=4, SDG_MAX_WAITERS=2, SDG_MAX_STREAMS=2
    )
    gateway.command = ["/bin/sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *gateway.command]
    booth.add(gateway)
    gateway.await_ready()
    return gateway


def test_more_connections_than_open_files_end_nothing(limited: Gateway) -> None:
    processes = children(limited.running.pid)
    with contextlib.ExitStack() as open_:
        for _ in range(100):
            line = open_.enter_context(connect(limited))
            line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        # Some of those that were kept are closed for this one; databases and files can be opened all the while.
        assert limited.post(prefer="respond-async").status_code == 202
        [job] = limited.jobs()
        assert limited.finished(job["url"])["status"] == "succeeded"
    assert children(limited.running.pid) == processes
    assert "Traceback" not in limited.text()


def test_slow_clients_do_not_delay_the_end(limited: Gateway) -> None:
    if not limited.alive:
        limited.restart()
    with contextlib.ExitStack() as open_:
        for kind in (hostile.SILENT, hostile.HALF_HEAD, hostile.HALF_BODY, hostile.not_reading()):
            crowd = open_.enter_context(hostile.Hostile(limited.url, kind, 2))
            until(lambda crowd=crowd: crowd.connected == 2, "they are connected")
        began = time.monotonic()
        assert limited.stop() == 0
        # Slow clients have ten seconds otherwise, and gunicorn waits for 35.
        assert time.monotonic() - began < 9


@pytest.mark.soak
class TestPace:
    """The bounds themselves, which take as long as they are."""

    @staticmethod
    def closed_after(line: socket.socket) -> tuple[float, bytes]:
        began = time.monotonic()
        answer = rest(line)
        return time.monotonic() - began, answer

    def test_what_stops_is_ended_after_ten_seconds(self, gateway: Gateway) -> None:
        starts = {
            "silent": b"",
            "half a head": hostile.HALF_HEAD.sends,
            "half of the second head": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + hostile.HALF_HEAD.sends,
            "half a body": hostile.HALF_BODY.sends,
            "no body": hostile.HALF_BODY.sends.partition(b"{")[0],
            "half a chunk": b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1000\r\n{",
        }
        with contextlib.ExitStack() as open_, ThreadPoolExecutor(len(starts)) as pool:
            lines = [open_.enter_context(connect(gateway)) for _ in starts]
            for line, start in zip(lines, starts.values(), strict=True):
                line.sendall(start)
            for what, (seconds, answer) in zip(starts, pool.map(self.closed_after, lines), strict=True):
                assert 9.5 < seconds < 12.5, (what, answer)
                if what == "silent":
                    assert answer == b""
                else:
                    assert problem(answer[answer.rindex(b"HTTP/1.1") :], 408) == "request-timeout"

    def test_idle_connections_are_kept_for_five_seconds(self, gateway: Gateway) -> None:
        with connect(gateway) as line:
            line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            one_answer(line)
            seconds, answer = self.closed_after(line)
            assert 4.5 < seconds < 6.5
            assert answer == b""

    @pytest.mark.parametrize(("rate", "status"), [(900, 408), (1500, 202)])
    def test_a_body_must_bring_a_kibibyte_a_second(self, gateway: Gateway, rate: int, status: int) -> None:
        body = json.dumps(picture(id="slow", prompt="a" * 19_000)).encode()
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        connection.putrequest("POST", "/txt2img")
        for name, value in (
            ("Content-Type", "application/json"),
            ("Prefer", "respond-async"),
            ("Content-Length", str(len(body))),
        ):
            connection.putheader(name, value)
        connection.endheaders()
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(body), rate // 4):
                connection.send(body[start : start + rate // 4])
                time.sleep(0.25)
                if status == 408 and time.monotonic() - began > 13:
                    break
        assert connection.getresponse().status == status
        connection.close()

    def test_a_reader_may_be_slow_but_not_stop(self, gateway: Gateway) -> None:
        kind = hostile.not_reading()
        with contextlib.ExitStack() as open_:
            lines = [open_.enter_context(socket.socket()) for _ in range(2)]
            for line in lines:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                line.connect(("127.0.0.1", gateway.port))
                line.sendall(kind.sends)
            stopped, slow = lines
            began = time.monotonic()
            while time.monotonic() - began < 25:
                assert slow.recv(1024)
                time.sleep(0.1)
            # The one that read nothing has been reset meanwhile.
            stopped.settimeout(5)
            with pytest.raises(ConnectionResetError):
                rest(stopped)

    def test_eight_megabytes_at_a_megabit_are_taken(self, gateway: Gateway) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        body = json.dumps({"id": "mobile"}).encode() + b" " * 8_000_000
        connection.putrequest("POST", "/txt2img")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        for start in range(0, len(body), 12_500):
            connection.send(body[start : start + 12_500])
            time.sleep(0.1)
        assert connection.getresponse().status == 422
        connection.close()


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("kind", "count"),
    [(hostile.SILENT, 1000), (hostile.HALF_HEAD, 128), (hostile.HALF_BODY, 128), (hostile.not_reading(), 128)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_flood_of_one_kind_stops_nobody_for_long(
    stage: Stage, simulator: Simulator, kind: hostile.Kind, count: int
) -> None:
    gateway = stage.gateway([simulator])
    processes = children(gateway.running.pid)
    with hostile.Hostile(gateway.url, kind, count) as crowd:
        began = time.monotonic()
        until(lambda: crowd.connected > 0.9 * count, "the flood is there")
        worst = 0.0
        while time.monotonic() - began < 40:
            asked = time.monotonic()
            assert gateway.http.get("/livez", timeout=15).status_code == 200
            done = gateway.post(prefer="wait=10")
            assert done.status_code in (200, 202), done.text
            worst = max(worst, time.monotonic() - asked)
            time.sleep(0.5)
    print(f"{kind.name}: {crowd.closed} closed, worst {worst:.2f} s")
    assert worst < 15
    assert children(gateway.running.pid) == processes
