"""Pictures as they are served: bytes, headers, conditions, ranges and refusals, and what is deleted is gone at once."""

from __future__ import annotations

import base64
import fcntl
import http.client
import io
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from tests.system.harness import Gateway, Line, Simulator, Stage, ask, at_once, children, picture, until

USER = "看图 a@b"


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
def test_a_picture_is_its_file(house: Gateway, jobs: dict[str, dict[str, Any]], method: str) -> None:
    for url in urls(jobs):
        status, fields, body = ask(house.url, method, url)
        stored = house.find(url.rpartition("/")[2]).read_bytes()
        assert (status, body) == (200, stored if method == "GET" else b"")
        headers = dict(fields)
        assert headers["Content-Type"] == "image/png"
        assert headers["Content-Length"] == str(len(stored))
        assert headers["ETag"].startswith('"')
        assert headers["Content-Disposition"] == f"inline; filename={url.rpartition('/')[2]}"
        assert sorted(headers["Cache-Control"].split(", ")) == ["immutable", "max-age=31536000", "private"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"


REQUESTS: dict[str, tuple[str, dict[str, str], int]] = {
    "a range": ("GET", {"Range": "bytes=1-4"}, 206),
    "a range to the end": ("GET", {"Range": "bytes=5-"}, 206),
    "a suffix": ("GET", {"Range": "bytes=-5"}, 206),
    "a range that ends behind the file": ("GET", {"Range": "bytes=5-99999999"}, 206),
    "a range of a HEAD": ("HEAD", {"Range": "bytes=1-4"}, 206),
    "a range that is not there": ("GET", {"Range": "bytes=99999999-"}, 416),
    "a range of nothing": ("GET", {"Range": "bytes=-0"}, 416),
    "a range that ends before it begins": ("GET", {"Range": "bytes=5-2"}, 416),
    "two ranges": ("GET", {"Range": "bytes=0-1,4-5"}, 200),
    "a range with spaces": ("GET", {"Range": "bytes = 1 - 4"}, 206),
    "a range in other units": ("GET", {"Range": "lines=1-2"}, 200),
    "a range if unchanged": ("GET", {"Range": "bytes=0-1", "If-Range": "{etag}"}, 206),
    "a range if not modified": ("GET", {"Range": "bytes=0-1", "If-Range": "{modified}"}, 206),
    "a range if not modified since a later time": (
        "GET",
        {"Range": "bytes=0-1", "If-Range": "Sun, 06 Nov 2095 08:49:37 GMT"},
        206,
    ),
    "a range if another": ("GET", {"Range": "bytes=0-1", "If-Range": '"other"'}, 200),
    "a tag that is known": ("GET", {"If-None-Match": "{etag}"}, 304),
    "a tag among others": ("GET", {"If-None-Match": '"x", {etag}'}, 304),
    "a weak tag": ("GET", {"If-None-Match": "W/{etag}"}, 304),
    "any tag": ("GET", {"If-None-Match": "*"}, 304),
    "another tag": ("GET", {"If-None-Match": '"other"'}, 200),
    "another tag, not since": (
        "GET",
        {"If-None-Match": '"other"', "If-Modified-Since": "Sun, 06 Nov 2095 08:49:37 GMT"},
        200,
    ),
    "a tag of a HEAD": ("HEAD", {"If-None-Match": "{etag}"}, 304),
    "not since": ("GET", {"If-Modified-Since": "Sun, 06 Nov 2095 08:49:37 GMT"}, 304),
    "not since that very second": ("GET", {"If-Modified-Since": "{modified}"}, 304),
    "since": ("GET", {"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}, 200),
    "the tag that must match": ("GET", {"If-Match": "{etag}"}, 200),
    "another tag that must match": ("GET", {"If-Match": '"other"'}, 412),
    "another tag that must match, of a HEAD": ("HEAD", {"If-Match": '"other"'}, 412),
    "a later time": ("GET", {"If-Unmodified-Since": "Sun, 06 Nov 2095 08:49:37 GMT"}, 200),
    "a query": ("GET", {}, 200),
    "a method that is not taken": ("POST", {"Content-Length": "0"}, 405),
    "OPTIONS": ("OPTIONS", {}, 200),
}


#: The query of a variant, and what the name of its file ends with.
VARIANT, ITS_FILE = "?size=320&format=jpeg", ".jpg"


def request_of(case: str, url: str, headers: dict[str, str]) -> tuple[str, str, dict[str, str]]:
    """Method, path and header of a case, about a picture that answers with these headers."""
    method, fields, _ = REQUESTS[case]
    given = {
        name: value.format(etag=headers["ETag"], modified=headers["Last-Modified"]) for name, value in fields.items()
    }
    return method, url + (("&any" if "?" in url else "?any") if case == "a query" else ""), given


@pytest.mark.parametrize(("query", "its_file"), [("", ""), (VARIANT, ITS_FILE)], ids=["picture", "variant"])
@pytest.mark.parametrize("case", REQUESTS)
def test_conditions_ranges_and_methods(
    house: Gateway, jobs: dict[str, dict[str, Any]], case: str, query: str, its_file: str
) -> None:
    url = jobs["large"]["images"][0]["url"] + query
    plain = dict(ask(house.url, "HEAD", url).headers)
    stored = house.find(jobs["large"]["images"][0]["filename"] + its_file).read_bytes()
    method, path, given = request_of(case, url, plain)
    answer = ask(house.url, method, path, given)
    assert answer.status == REQUESTS[case][-1]
    if answer.status == 200 and method == "GET":
        assert answer.body == stored
    if answer.status == 206:
        begin, _, end = dict(answer.headers)["Content-Range"].removeprefix("bytes ").partition("/")[0].partition("-")
        assert answer.body == (b"" if method == "HEAD" else stored[int(begin) : int(end) + 1])
    if answer.status in (304, 412, 416):
        assert stored not in answer.body
    if answer.status == 412 and method == "GET":
        assert answer.problem == "precondition-failed"


def test_a_variant_is_made_once_by_all_processes(house: Gateway) -> None:
    """Many kept connections, which the kernel has spread over both processes, ask for it at the same moment."""
    lines = [Line(house.url) for _ in range(16)]
    room = house.data / ".variants" / ".room"
    for format_ in ("webp", "png"):
        image = house.succeeded(house.post(id=USER, width=1024, height=512))["images"][0]
        url = f"{image['url']}?size=768&format={format_}"
        assert ask(house.url, "GET", f"{image['url']}?format=jpeg").status == 200
        before = int(room.read_text("ascii"))
        answers = at_once([partial(line.ask, "GET", url) for line in lines])
        assert {answer.status for answer in answers} == {200}
        # Each making gives another tag, and is counted.
        assert len({dict(answer.headers)["ETag"] for answer in answers}) == 1
        kept = house.find(f"{image['filename']}.{format_}")
        assert {answer.body for answer in answers} == {kept.read_bytes()}
        assert int(room.read_text("ascii")) - before == -(-kept.stat().st_size // 4096) * 4096
    for line in lines:
        line.close()


def test_a_variant_of_a_picture_that_is_deleted_meanwhile_is_not_kept(stage: Stage, simulator: Simulator) -> None:
    """One process is suspended while it makes the variant; the other one deletes the record."""
    failpoints = stage.folder / "failpoints"
    gateway = stage.gateway([simulator], SDG_TEST_CRASH_AT=failpoints)
    stop = failpoints.with_name("failpoints.stop")
    for point in ("before fsync file", "before rename .webp", "after rename .webp"):
        job = gateway.succeeded(gateway.post())
        stop.write_text(point)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, gateway.url, "GET", job["images"][0]["thumbnail_url"])
            until(lambda: not stop.exists(), "the process is suspended")
            [pid] = until(lambda: [pid for pid in children(gateway.running.pid) if is_stopped(pid)], "it is stopped")
            deleted = gateway.http.delete(job["url"].replace("/jobs/", "/delete/"))
            os.kill(pid, signal.SIGCONT)
            assert deleted.status_code == 200
            assert answer.result().problem == "file-missing", point
        assert gateway.files() <= {".room", ".making-room"}, point
        assert not list((gateway.data / ".variants").glob("*/*")), point


def test_a_variant_that_a_killed_process_has_left_goes_when_the_worker_starts(
    stage: Stage, simulator: Simulator
) -> None:
    """It made the variant of a record that was deleted meanwhile, and died before it could look for the picture."""
    failpoints = stage.folder / "failpoints"
    gateway = stage.gateway([simulator], SDG_TEST_CRASH_AT=failpoints)
    stop = failpoints.with_name("failpoints.stop")
    job = gateway.succeeded(gateway.post())
    kept = gateway.succeeded(gateway.post())["images"][0]
    assert ask(gateway.url, "GET", kept["thumbnail_url"]).status == 200

    def suspended() -> int:
        until(lambda: not stop.exists(), "the process is suspended")
        return until(lambda: [pid for pid in children(gateway.running.pid) if is_stopped(pid)], "it is stopped")[0]

    def left() -> set[str]:
        return {name.removesuffix(".webp") for name in gateway.files() if name.endswith(".png.webp")}

    with ThreadPoolExecutor(1) as pool:
        stop.write_text("before rename .webp")
        answer = pool.submit(ask, gateway.url, "GET", job["images"][0]["thumbnail_url"])
        pid = suspended()
        assert gateway.http.delete(job["url"].replace("/jobs/", "/delete/")).status_code == 200
        # The deletion took the unfinished file, so it writes another one.
        stop.write_text("after rename .webp")
        os.kill(pid, signal.SIGCONT)
        assert suspended() == pid
        assert left() == {job["images"][0]["filename"], kept["filename"]}
        gateway.kill()
        assert isinstance(answer.exception(), http.client.HTTPException | OSError)
    gateway.restart()
    until(lambda: left() == {kept["filename"]}, "the worker has looked")
    assert ask(gateway.url, "GET", kept["thumbnail_url"]).status == 200


def test_variants_that_take_long_hold_nobody_else_up(stage: Stage, simulator: Simulator) -> None:
    """As while another process is suspended that makes them: it holds the lock on the picture."""
    gateway = stage.gateway([simulator], SDG_THREADS=4, SDG_MAX_WAITERS=2, processes=1)
    slow, other = gateway.succeeded(gateway.post(batch_size=2))["images"]
    made = f"{slow['url']}?size=160&format=jpeg"
    assert ask(gateway.url, "GET", made).status == 200
    with gateway.find(slow["filename"]).open("rb") as picture_, ThreadPoolExecutor(12) as pool:
        fcntl.flock(picture_, fcntl.LOCK_EX)
        asked = [pool.submit(ask, gateway.url, "GET", slow["thumbnail_url"]) for _ in range(12)]
        try:
            until(lambda: sum(answer.done() for answer in asked) == 10, "all are refused but for the two that wait")
            for path in ("/livez", "/readyz", slow["url"], made):
                assert gateway.http.get(path, timeout=5).status_code == 200, path
            refused_ = gateway.http.get(other["thumbnail_url"], timeout=5)
            assert (refused_.status_code, refused_.json()["type"]) == (503, "variants-busy")
            assert int(refused_.headers["Retry-After"]) == refused_.json()["retry_after"] == 1
        finally:
            fcntl.flock(picture_, fcntl.LOCK_UN)
        statuses = sorted(answer.result().status for answer in asked)
    assert statuses == [200] * 2 + [503] * 10
    assert {answer.result().problem for answer in asked} == {None, "variants-busy"}
    for image in (slow, other):
        assert ask(gateway.url, "GET", image["thumbnail_url"]).status == 200


def is_stopped(pid: int) -> bool:
    """Whether a process is suspended by a signal (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "T"


def refused(jobs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Paths that name no picture, and the problem of each."""
    user, filename = quote(USER, safe=""), jobs["small"]["images"][0]["filename"]
    return {
        f"/get_images/nobody/txt2img/{filename}": "job-not-found",
        f"/get_images/{user}/img2img/{filename}": "job-not-found",
        f"/get_images/{user}/extras/{filename}": "unknown-type",
        f"/get_images/{user}/txt2img/{jobs['small']['name']}": "job-not-found",
        f"/get_images/{user}/txt2img/{jobs['small']['name']}-9-0.png": "job-not-found",
        f"/get_images/{user}/txt2img/x.png": "not-found",
        f"/get_images/{user}/txt2img/..": "not-found",
        f"/get_images/{user}/txt2img/%2e%2e%2f{filename}": "not-found",
        f"/get_images/{user}%2Ftxt2img/{filename}": "not-found",
        f"/get_images/{user}/txt2img/{filename}/": "not-found",
        f"/get_images//txt2img/{filename}": "not-found",
        f"/get_images/%ff/txt2img/{filename}": "invalid-request",
        f"/get_images/{user}/txt2img/{filename}?%ff": "invalid-request",
        f"/get_images/%2e/txt2img/{filename}": "validation-failed",
        f"/get_images/%5c/txt2img/{filename}": "validation-failed",
        f"/get_images/{'x' * 65}/txt2img/{filename}": "validation-failed",
        f"/get_images/{user}/txt2img/{filename}?size=1": "validation-failed",
        f"/get_images/{user}/txt2img/{filename}?size=99999": "validation-failed",
        f"/get_images/{user}/txt2img/{filename}?size=160&size=160": "validation-failed",
        f"/get_images/{user}/txt2img/{filename}?format=svg": "validation-failed",
        f"/get_images/{user}/txt2img/{filename}?download=": "validation-failed",
        f"/get_images/{user}/txt2img/{jobs['small']['name']}-9-0.png?size=160": "job-not-found",
    }


def test_what_is_no_picture_is_a_problem(house: Gateway, jobs: dict[str, dict[str, Any]]) -> None:
    for path, slug in refused(jobs).items():
        assert ask(house.url, "GET", path).problem == slug, path


def test_a_deleted_picture_is_gone_at_once_in_every_process(house: Gateway) -> None:
    """Many kept connections, which the kernel has spread over both processes; one of them deletes."""
    lines = [Line(house.url) for _ in range(16)]
    for _ in range(5):
        url = house.succeeded(house.post(id=USER, width=64, height=64))["images"][0]["url"]
        assert {line.ask("GET", url).status for line in lines} == {200}
        assert lines[0].ask("DELETE", url.replace("/get_images/", "/delete/")).status == 200
        assert {line.ask("GET", url).problem for line in lines} == {"job-not-found"}
    for line in lines:
        line.close()


def test_a_picture_whose_file_is_gone_is_missing(house: Gateway) -> None:
    image = house.succeeded(house.post(id=USER, width=64, height=64))["images"][0]
    assert ask(house.url, "GET", image["url"]).status == 200
    house.find(image["filename"]).unlink()
    gone = ask(house.url, "GET", image["url"])
    assert (gone.status, gone.problem) == (404, "file-missing")


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
    resting = [Line(gateway.url) for _ in range(12)]
    times = []
    for _ in range(10):
        assert {line.ask("GET", url).status for line in resting} == {200}
        begun = time.monotonic()
        assert ask(gateway.url, "GET", url).status == 200
        times.append(time.monotonic() - begun)
    assert sorted(times)[len(times) // 2] < 1.0
    begun = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - begun < 20
    until(lambda: not gateway.alive, "the end")
    for line in resting:
        line.close()
