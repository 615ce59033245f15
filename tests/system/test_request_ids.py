"""X-Request-ID: taken or made, and on every answer; in problems; and with the job through the log of all processes."""

from __future__ import annotations

import json
import re
import shlex
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.system.harness import Gateway, Process, Simulator, Stage, Worker, picture, until
from tests.system.sse import EventClient

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MINE = "order-4711_a.b"
NAME = "20261122T061530123-9f2c4e7a"
#: Method, path and further header fields, by the status of the answer.
ASKED: Mapping[str, tuple[int, str, str, Mapping[str, str]]] = {
    "liveness": (200, "GET", "/livez", {}),
    "readiness": (200, "GET", "/readyz", {}),
    "page": (200, "GET", "/docs", {}),
    "document": (200, "GET", "/openapi.json", {}),
    "head": (200, "HEAD", "/livez", {}),
    "options": (200, "OPTIONS", "/txt2img", {}),
    "no path": (404, "GET", "/nowhere", {}),
    "bad path": (404, "GET", "/jobs/a%2Fb", {}),
    "no method": (405, "PUT", "/livez", {}),
    "no job": (404, "GET", f"/jobs/user/txt2img/{NAME}", {}),
    "bad query": (422, "GET", "/jobs/user?limit=0", {}),
    "bad type": (415, "POST", "/txt2img", {"Content-Type": "text/plain"}),
    "stream of no job": (404, "GET", f"/jobs/user/txt2img/{NAME}/events", {}),
    "no stream": (406, "GET", "/jobs/user/events", {"Accept": "text/html"}),
}


@pytest.mark.parametrize("asked", ASKED)
def test_every_answer_has_the_id_of_its_request(house: Gateway, asked: str) -> None:
    status, method, path, headers = ASKED[asked]
    made = house.http.request(method, path, headers=dict(headers))
    given = house.http.request(method, path, headers={**headers, "X-Request-ID": MINE})
    bad = house.http.request(method, path, headers={**headers, "X-Request-ID": "two words"})
    assert [answer.status_code for answer in (made, given, bad)] == [status] * 3
    ids = [answer.headers["X-Request-ID"] for answer in (made, given, bad)]
    assert ids[1] == MINE
    assert len(set(ids)) == 3
    assert all(ID.fullmatch(one) for one in ids)
    if status >= 400 and method != "HEAD":
        assert [answer.json()["request"] for answer in (made, given, bad)] == ids


def test_pictures_conditions_and_redirects_to_nothing_have_it_too(house: Gateway) -> None:
    job = house.succeeded(house.post())
    url = job["images"][0]["url"]
    etag = house.http.get(url).headers["ETag"]
    for status, headers in (
        (200, {}),
        (304, {"If-None-Match": etag}),
        (206, {"Range": "bytes=0-9"}),
        (412, {"If-Match": '"x"'}),
    ):
        answer = house.http.get(url, headers={**headers, "X-Request-ID": MINE})
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, MINE)


REFUSED = {
    "no HTTP": (400, b"nonsense\r\n\r\n"),
    "two ids": (
        200,
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\r\nX-Request-ID: b\r\nConnection: close\r\n\r\n",
    ),
    "no host": (400, b"GET /livez HTTP/1.1\r\nX-Request-ID: " + MINE.encode() + b"\r\n\r\n"),
    "long line": (414, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "large head": (431, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9000 + b"\r\n\r\n"),
    "expectation": (417, b"GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_the_server_itself_refuses_has_an_id(house: Gateway, refused: str) -> None:
    status, sent = REFUSED[refused]
    head, body = raw(house, sent)
    assert int(head[0].split()[1]) == status
    [found] = [line.partition(": ")[2] for line in head if line.startswith("X-Request-ID")]
    assert ID.fullmatch(found)
    assert (found == MINE) is (refused == "no host")
    if status >= 400:
        assert json.loads(body)["request"] == found
        assert f"request={found}" in house.text()


def raw(gateway: Gateway, sent: bytes) -> tuple[list[str], bytes]:
    """The lines of the head, and the body, of the answer to these bytes, whose connection ends with it."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while data := connection.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), body


def test_a_wait_keeps_the_id_and_a_failed_job_answers_with_that_of_its_own_request(
    house: Gateway, its_simulator: Simulator
) -> None:
    its_simulator.fault("error-422")
    headers = {"Idempotency-Key": "k", "X-Request-ID": "first"}
    body = picture(id="waits", seed="7")
    first = house.http.request("POST", "/txt2img", json=body, headers=headers)
    again = house.http.request("POST", "/txt2img", json=body, headers=headers | {"X-Request-ID": "second"})
    for answer, request in ((first, "first"), (again, "second")):
        assert (answer.json()["type"], answer.json()["request"]) == ("webui-refused", request)
        assert answer.headers["X-Request-ID"] == request
    [job] = house.jobs("waits")
    assert house.row(job["name"])["request"] == "first"
    assert "request" not in job["error"]
    # One that the gateway makes is the same after the wait as before.
    made = house.post(id="waits", seed="8")
    job = house.succeeded(made)
    assert house.row(job["name"])["request"] == made.headers["X-Request-ID"]


def test_a_stream_has_the_id(house: Gateway) -> None:
    with EventClient(house.url, "/jobs/streams/events", **{"X-Request-ID": MINE}) as stream:
        assert stream.headers["x-request-id"] == MINE


# -- the log ------------------------------------------------------------------------------------------------------------

STORED = ["accepted", "claimed", "sent", "answered", "stored"]
TEXT = re.compile(r"^\[[^]]+\] \[\d+\] \[(?P<level>[A-Z]+)\] (?:(?P<logger>[a-z.]+): )?(?P<message>.*)$")


def lines(process: Process) -> list[dict[str, Any]]:
    """The lines of a process in either format; of text, its pairs."""
    if process.environ.get("SDG_LOG_FORMAT") == "json":
        return [json.loads(line) for line in process.text().splitlines()]
    found = [match for line in process.text().splitlines() if (match := TEXT.match(line))]
    return [
        {**match.groupdict(), **dict(pair.split("=", 1) for pair in shlex.split(match["message"]) if "=" in pair)}
        for match in found
        if match["message"].startswith("event=")
    ]


def named(processes: Sequence[Process], **wanted: Any) -> list[dict[str, Any]]:
    """Their lines with these fields."""
    return [line for process in processes for line in lines(process) if line.items() >= wanted.items()]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_one_job_is_followed_by_its_request_through_web_process_and_worker(
    stage: Stage, simulator: Simulator, log_format: str
) -> None:
    simulator.fault("error-500")
    gateway = stage.gateway(
        f"big={simulator.url}",
        processes=1,
        ready=False,
        SDG_WORKER="external",
        SDG_LOG_FORMAT=log_format,
        SDG_ACCESS_LOG=1,
    )
    worker = Worker("worker", gateway, stage.folder)
    stage.add(worker)
    gateway.await_ready()
    job = gateway.succeeded(
        gateway.http.request("POST", "/txt2img", json=picture(id="two words"), headers={"X-Request-ID": MINE})
    )
    other = gateway.post(prefer="respond-async", id="somebody").json()
    gateway.finished(other["url"])

    until(lambda: len(named([gateway, worker], request=MINE, logger="app.jobs.events")) == 9, "all its lines")
    for process, told in (
        (gateway, ["accepted"]),
        (worker, ["claimed", "sent", "answered", "given back", *STORED[1:]]),
    ):
        found = named([process], request=MINE, logger="app.jobs.events")
        assert [line["event"] for line in found] == told
        assert all(line["job"] == job["name"] and line["user"] == "two words" for line in found)
    # What is said about its attempt beside the transitions names it, too.
    [warning] = [line for line in worker.text().splitlines() if "answered a generation with status 500" in line]
    assert MINE in warning
    [access] = named([gateway], request=MINE, logger="app.access")
    assert (access["method"], access["path"], str(access["status"])) == ("POST", "/txt2img", "200")
    assert float(access["seconds"]) >= 0.1

    assert (gateway.stop(), worker.stop()) == (0, 0)
    if log_format == "json":
        for line in (*lines(gateway), *lines(worker)):
            assert list(line)[:5] == ["time", "process", "level", "logger", "message"]


def test_the_access_log_tells_of_each_request_and_of_no_secret(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1, SDG_LOG_FORMAT="json", SDG_ACCESS_LOG=1)
    job = gateway.succeeded(gateway.post(id="用户 1"))
    image = job["images"][0]
    size = len(gateway.http.get(image["url"]).content)
    gateway.http.get(image["url"] + "?sig=0123456789&exp=17&q=a+lighthouse&x", headers={"X-Request-ID": "signed"})
    gateway.http.request("HEAD", image["url"], headers={"X-Request-ID": "head"})
    gateway.http.get("/jobs/%1B%0A%ff?limit=0", headers={"X-Request-ID": "odd"})
    raw(gateway, b"nonsense\r\n\r\n")
    EventClient(gateway.url, "/jobs/u/events", **{"X-Request-ID": "stream"}).close()
    simulator.fault("hang")
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        body = json.dumps(picture(id="gone")).encode()
        fields = f"Host: x\r\nX-Request-ID: gone\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        client.sendall(f"POST /txt2img HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        until(lambda: [job["status"] for job in gateway.jobs("gone")] == ["running"], "the job runs")
        # Closed so, it sends a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def access(**wanted: Any) -> dict[str, Any]:
        [line] = until(lambda: named([gateway], logger="app.access", **wanted), f"the line with {wanted}")
        assert (line["event"], line["client"], line["level"]) == ("request", "127.0.0.1", "INFO")
        return line

    path = f"/get_images/用户 1/txt2img/{image['filename']}"
    line = access(path=path, method="GET", status=200)
    assert (line["bytes"], "query" in line) == (size, False)
    assert 0 <= line["seconds"] < 60
    line = access(request="signed")
    assert (line["path"], line["query"]) == (path, "sig=…&exp=17&q=…&…")
    line = access(request="head")
    assert (line["status"], line["bytes"]) == (200, 0)
    assert access(request="odd")["path"] == "/jobs/\x1b\n\ufffd"
    [malformed] = [line for line in named([gateway], logger="app.access", status=400) if "path" not in line]
    assert ID.fullmatch(malformed["request"])
    assert access(request="stream")["status"] == 200
    # It hung up while it waited.
    line = access(request="gone")
    assert (line["status"], line["method"], line["bytes"]) == (499, "POST", 0)
    assert "token" not in line


def test_the_access_log_names_the_token_of_a_request_also_after_a_wait(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1, SDG_LOG_FORMAT="json", SDG_ACCESS_LOG=1, SDG_AUTH="tokens")
    made = gateway.cli("tokens", "create", "--name", "app")
    bearer = {"Authorization": f"Bearer {made.stdout.strip()}"}
    for request, headers in (("bad", {"Authorization": "Bearer sdg_x"}), ("waited", bearer)):
        gateway.http.request("POST", "/txt2img", json=picture(), headers={**headers, "X-Request-ID": request})
    until(lambda: named([gateway], logger="app.access", request="waited"), "the line of the POST")
    [bad, waited] = [named([gateway], logger="app.access", request=request)[0] for request in ("bad", "waited")]
    assert (bad["status"], "token" in bad) == (401, False)
    assert (waited["status"], waited["token"]) == (200, made.stdout.split("_")[1])
    assert made.stdout.strip() not in gateway.text()


def test_without_the_setting_there_is_no_access_log(house: Gateway) -> None:
    house.http.get("/livez", headers={"X-Request-ID": "quiet"})
    assert "request=quiet" not in house.text()
    assert "app.access" not in house.text()


SECRET = "the lighthouse of 7731 secrets"
#: Malformed requests with a secret in every place that an error could quote.
TELLTALES = (
    f'{{"prompt": "{SECRET}"}}\r\n\r\n',
    f"GET /{SECRET} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {SECRET}\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: {SECRET}\r\n\r\n",
    f"GET /?sig={SECRET.replace(' ', '')} HTTP/{SECRET}\r\nHost: x\r\n\r\n",
    f"POST /txt2img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {SECRET}\r\n\r\n",
    (
        "POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        f'{{"prompt": "{SECRET}"}}\r\n'
    ),
    f"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;{SECRET}\r\n{SECRET}\r\n",
)


@pytest.mark.parametrize("telltale", range(len(TELLTALES)))
def test_what_is_malformed_is_told_without_quoting_it(house: Gateway, telltale: int) -> None:
    before = len(house.text())
    head, _ = raw(house, TELLTALES[telltale].encode())
    assert head[0].startswith("HTTP/1.1 4")
    [request] = [line.partition(": ")[2] for line in head if line.startswith("X-Request-ID")]
    until(lambda: f"request={request}" in house.text()[before:], "a line about it")
    written = house.text()[before:]
    assert not re.search(r"lighthouse|7731", written), written
