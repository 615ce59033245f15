"""Pictures as they are served: the short way and the long one give the same bytes, and what is deleted is gone at once."""

from __future__ import annotations

import base64
import http.client
import io
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from tests.system.harness import Gateway, Simulator, Stage, picture, until

USER = "看图 a@b"
#: Any query takes a request off the short way, and none changes the answer.
LONG_WAY = "?long"

Answer = tuple[int, list[tuple[str, str]], bytes]


class Line:
    """One kept connection, which sends what it is told and nothing more."""

    def __init__(self, gateway: Gateway) -> None:
        self._connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)
        self._connection.connect()

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
        self._connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        answer = self._connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def close(self) -> None:
        self._connection.close()


def ask(gateway: Gateway, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
    line = Line(gateway)
    try:
        return line.ask(method, path, headers)
    finally:
        line.close()


def same(one: Answer, other: Answer) -> None:
    """Equal but for Date, and Expires may be a second later."""
    first, second = [{**dict(answer[1]), "Date": ""} for answer in (one, other)]
    assert [name for name, _ in one[1]] == [name for name, _ in other[1]]
    if "Expires" in first:
        apart = parsedate_to_datetime(second.pop("Expires")) - parsedate_to_datetime(first.pop("Expires"))
        assert 0 <= apart.total_seconds() <= 10
    assert (one[0], first, one[2]) == (other[0], second, other[2])


@pytest.fixture(scope="module")
def jobs(house: Gateway) -> dict[str, dict[str, Any]]:
    """A small picture, a large one, and one made from a reference image."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "PNG")
    reference = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {
        "small": house.succeeded(house.send("txt2img", picture(id=USER, width=64, height=64))),
        "large": house.succeeded(house.send("txt2img", picture(id=USER, width=1024, height=1024))),
        "from": house.succeeded(house.send("img2img", picture(id=USER, init_images=reference))),
    }


def urls(jobs: dict[str, dict[str, Any]]) -> list[str]:
    images = [image for job in jobs.values() for image in job["images"]]
    return [image["url"] for image in [*images, jobs["from"]["init_image"]]]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_both_ways_answer_alike(house: Gateway, jobs: dict[str, dict[str, Any]], method: str) -> None:
    for url in urls(jobs):
        short, long = ask(house, method, url), ask(house, method, url + LONG_WAY)
        assert short[0] == 200
        stored = house.find(url.rpartition("/")[2]).read_bytes()
        assert short[2] == (stored if method == "GET" else b"")
        assert dict(short[1])["Content-Length"] == str(len(stored))
        same(short, long)


REQUESTS: dict[str, tuple[str, dict[str, str], int]] = {
    "a range": ("GET", {"Range": "bytes=1-4"}, 206),
    "a suffix": ("GET", {"Range": "bytes=-5"}, 206),
    "a range of a HEAD": ("HEAD", {"Range": "bytes=1-4"}, 206),
    "a range that is not there": ("GET", {"Range": "bytes=99999999-"}, 416),
    "a range in other units": ("GET", {"Range": "lines=1-2"}, 200),
    "a range if unchanged": ("GET", {"Range": "bytes=0-1", "If-Range": "{etag}"}, 206),
    "a range if another": ("GET", {"Range": "bytes=0-1", "If-Range": '"other"'}, 200),
    "a tag that is known": ("GET", {"If-None-Match": "{etag}"}, 304),
    "a tag among others": ("GET", {"If-None-Match": '"x", {etag}'}, 304),
    "any tag": ("GET", {"If-None-Match": "*"}, 304),
    "another tag": ("GET", {"If-None-Match": '"other"'}, 200),
    "not since": ("GET", {"If-Modified-Since": "Sun, 06 Nov 2095 08:49:37 GMT"}, 304),
    "since": ("GET", {"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}, 200),
    "a method that is not taken": ("POST", {"Content-Length": "0"}, 405),
    "OPTIONS": ("OPTIONS", {}, 200),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_conditions_and_ranges_are_read_as_before(house: Gateway, jobs: dict[str, dict[str, Any]], case: str) -> None:
    method, headers, status = REQUESTS[case]
    url = jobs["small"]["images"][0]["url"]
    etag = dict(ask(house, "HEAD", url)[1])["ETag"]
    given = {name: value.format(etag=etag) for name, value in headers.items()}
    short = ask(house, method, url, given)
    assert short[0] == status
    same(short, ask(house, method, url + LONG_WAY, given))


def test_what_is_refused_is_refused_alike(house: Gateway, jobs: dict[str, dict[str, Any]]) -> None:
    user, filename = quote(USER, safe=""), jobs["small"]["images"][0]["filename"]
    paths = {
        f"/get_images/nobody/txt2img/{filename}": "job-not-found",
        f"/get_images/{user}/img2img/{filename}": "job-not-found",
        f"/get_images/{user}/extras/{filename}": "unknown-type",
        f"/get_images/{user}/txt2img/{jobs['small']['name']}": "job-not-found",
        f"/get_images/{user}/txt2img/{jobs['small']['name']}-9-0.png": "job-not-found",
        f"/get_images/{user}/txt2img/..": "not-found",
        f"/get_images/{user}/txt2img/%2e%2e%2f{filename}": "not-found",
        f"/get_images/{user}%2Ftxt2img/{filename}": "not-found",
        f"/get_images/{user}/txt2img/{filename}/": "not-found",
        f"/get_images//txt2img/{filename}": "not-found",
        f"/get_images/%ff/txt2img/{filename}": "invalid-request",
        f"/get_images/%2e/txt2img/{filename}": "validation-failed",
        f"/get_images/{'x' * 65}/txt2img/{filename}": "validation-failed",
    }
    for path, slug in paths.items():
        short = ask(house, "GET", path)
        assert f'"{slug}"'.encode() in short[2], path
        same(short, ask(house, "GET", path + LONG_WAY))


def test_a_deleted_picture_is_gone_at_once_in_every_process(house: Gateway) -> None:
    """Many kept connections, which the kernel has spread over both processes; one of them deletes."""
    lines = [Line(house) for _ in range(16)]
    for _ in range(5):
        url = house.succeeded(house.post(id=USER, width=64, height=64))["images"][0]["url"]
        assert {line.ask("GET", url)[0] for line in lines} == {200}
        assert lines[0].ask("DELETE", url.replace("/get_images/", "/delete/"))[0] == 200
        answers = [line.ask("GET", url) for line in lines]
        assert {answer[0] for answer in answers} == {404}
        assert all(b'"job-not-found"' in answer[2] for answer in answers)
    for line in lines:
        line.close()


def test_a_picture_whose_file_is_gone_is_missing(house: Gateway) -> None:
    image = house.succeeded(house.post(id=USER, width=64, height=64))["images"][0]
    assert ask(house, "GET", image["url"])[0] == 200
    house.find(image["filename"]).unlink()
    short = ask(house, "GET", image["url"])
    assert short[0] == 404
    assert b'"file-missing"' in short[2]
    same(short, ask(house, "GET", image["url"] + LONG_WAY))


def test_requests_sent_in_one_piece_are_answered_in_order(house: Gateway, jobs: dict[str, dict[str, Any]]) -> None:
    asked = [*urls(jobs), "/livez"] * 3
    lines = [f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() for path in asked]
    sent = b"\r\n".join([*lines, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"])
    received = bytearray()
    host, _, port = house.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(sent)
        while chunk := line.recv(1 << 20):
            received += chunk
    for path in asked:
        if path != "/livez":
            stored = house.find(path.rpartition("/")[2]).read_bytes()
            head, _, rest = bytes(received).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert rest.startswith(stored)
            received = bytearray(rest[len(stored) :])
        else:
            _, _, rest = bytes(received).partition(b"\r\n\r\n")
            received = bytearray(rest[rest.index(b"HTTP/1.1") :])
    assert received.startswith(b"HTTP/1.1 200")


def test_connections_that_rest_hold_nobody_up(stage: Stage, simulator: Simulator) -> None:
    """More of them than threads: a thread that waits for a next request must not be the one that somebody needs."""
    gateway = stage.gateway([simulator], SDG_THREADS=4, SDG_MAX_WAITERS=2, WEB_CONCURRENCY=1)
    url = gateway.succeeded(gateway.post(width=64, height=64))["images"][0]["url"]
    resting = [Line(gateway) for _ in range(12)]
    times = []
    for _ in range(10):
        assert {line.ask("GET", url)[0] for line in resting} == {200}
        begun = time.monotonic()
        assert ask(gateway, "GET", url)[0] == 200
        times.append(time.monotonic() - begun)
    assert sorted(times)[len(times) // 2] < 1.0
    begun = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - begun < 20
    until(lambda: not gateway.alive, "the end")
    for line in resting:
        line.close()
