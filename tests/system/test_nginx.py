"""Behind nginx, with the configuration of ``deploy/nginx/``: every answer is what the gateway alone would have given.

Two gateways share one database and one data folder: one is asked directly, the other one, with ``SDG_ACCEL=nginx``, through nginx.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import pytest

from tests.system import harness
from tests.system.harness import NGINX, Answer, Gateway, Nginx, Simulator, Stage, picture, until
from tests.system.sse import EventClient
from tests.system.test_pictures import ITS_FILE, REQUESTS, USER, VARIANT, refused, request_of

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

#: Of the connection or of the server that wrote the answer.
_NOT_COMPARED = {"Connection", "Keep-Alive", "Transfer-Encoding", "Server", "Date"}
_READERS = 128
#: Bytes a second, and of the file.
_SLOWLY, _SLOWLY_READ = 100_000, 1_500_000


#: An application that answers with what it knows of its client.
_ECHO = """
from flask import request

from app import create_app

app = create_app()


@app.before_request
def echo():
    return f"{request.host} {request.headers['X-Forwarded-For']} {request.headers['X-Forwarded-Proto']}"
"""


class Ways(NamedTuple):
    """The gateway that sends files itself, the one that has nginx send them, and nginx."""

    plain: Gateway
    accelerated: Gateway
    nginx: Nginx


@pytest.fixture(scope="module")
def ways(hall: Stage, house: Gateway) -> Ways:
    """The shared gateway, and beside it one behind nginx."""
    shared = {name: house.environ[name] for name in ("SDG_DATA_DIR", "SDG_DATABASE_URL")}
    accelerated = hall.gateway(
        house.environ["SDG_WEBUI_URLS"],
        **shared,
        SDG_WORKER="external",
        SDG_ACCEL="nginx",
        SDG_THREADS=8,
        SDG_MAX_WAITERS=4,
    )
    return Ways(house, accelerated, hall.nginx(accelerated, house.data))


@pytest.fixture(scope="module")
def jobs(house: Gateway) -> dict[str, dict[str, Any]]:
    """A small picture and a large one."""
    return {
        "small": house.succeeded(house.send("txt2img", picture(id=USER, width=64, height=64))),
        "large": house.succeeded(house.send("txt2img", picture(id=USER, width=1024, height=1024))),
    }


def ask(url: str, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
    """One request on a connection of its own, with an id of its own, so that two answers can be the same."""
    return harness.ask(url, method, path, {"X-Request-ID": "the-same", **(headers or {})})


def same(one: Answer, other: Answer) -> None:
    """Equal, but that Expires may be some seconds later."""
    first, second = (
        {name: text for name, text in answer.headers if name not in _NOT_COMPARED} for answer in (one, other)
    )
    assert all(len(fields) == len({name for name, _ in fields}) for fields in (one.headers, other.headers))
    if "Allow" in first:
        assert set(first.pop("Allow").split(", ")) == set(second.pop("Allow").split(", "))
    if "Expires" in first:
        apart = parsedate_to_datetime(second.pop("Expires")) - parsedate_to_datetime(first.pop("Expires"))
        assert 0 <= apart.total_seconds() <= 10
    assert (one.status, first, one.body) == (other.status, second, other.body)


@pytest.mark.parametrize(
    ("size", "query"),
    [
        ("small", ""),
        ("large", ""),
        ("large", VARIANT),
        ("large", "?download=true"),
        ("small", "?format=png&download=true"),
    ],
    ids=["small", "large", "variant", "download", "whole variant"],
)
@pytest.mark.parametrize("case", REQUESTS)
def test_both_ways_answer_alike(ways: Ways, jobs: dict[str, dict[str, Any]], case: str, size: str, query: str) -> None:
    url = jobs[size]["images"][0]["url"] + query
    plain = dict(ask(ways.plain.url, "HEAD", url).headers)
    method, path, given = request_of(case, url, plain)
    direct = ask(ways.plain.url, method, path, given)
    assert direct.status == REQUESTS[case][-1]
    same(direct, ask(ways.nginx.url, method, path, given))


def signed(ways: Ways, url: str) -> str:
    """The URL with a signature of the gateway behind nginx."""
    answer = ways.accelerated.http.request("POST", "/sign", json={"paths": [url], "seconds": 600})
    made: str = answer.json()["urls"][0]
    return made


def settled(answer: Answer) -> Answer:
    """An answer without what says how long it may be kept, which gets less with each second."""
    fields = [(name, text) for name, text in answer.headers if name not in ("Cache-Control", "X-Accel-Expires")]
    kept = dict(answer.headers).get("Cache-Control", "")
    if answer.status in (200, 206, 304):
        assert kept.startswith("private, max-age=")
        assert 0 < int(kept.rpartition("=")[2]) <= 750
    return answer._replace(headers=fields)


@pytest.mark.parametrize("again", [False, True], ids=["first", "repeat"])
@pytest.mark.parametrize("query", ["", VARIANT], ids=["picture", "variant"])
# Another query than the signed one is refused, and OPTIONS is asked of no picture.
@pytest.mark.parametrize("case", [case for case in REQUESTS if case not in ("a query", "OPTIONS")])
def test_signed_pictures_are_answered_alike_too(
    ways: Ways, jobs: dict[str, dict[str, Any]], case: str, query: str, again: bool
) -> None:
    """Also by nginx itself, where it has kept one."""
    url = signed(ways, jobs["small"]["images"][0]["url"] + query)
    plain = dict(ask(ways.accelerated.url, "HEAD", url).headers)
    method, path, given = request_of(case, url, plain)
    if again:
        assert ask(ways.nginx.url, "GET", url).status == 200
    direct, passed_on = ask(ways.accelerated.url, method, path, given), ask(ways.nginx.url, method, path, given)
    assert direct.status == REQUESTS[case][-1]
    same(settled(direct), settled(passed_on))


def test_nginx_keeps_a_signed_picture_for_a_moment(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], SDG_ACCEL="nginx", SDG_ACCESS_LOG=1)
    nginx = stage.nginx(gateway, gateway.data)
    job = gateway.succeeded(gateway.post(id=USER))
    [url] = gateway.http.request("POST", "/sign", json={"paths": [job["images"][0]["url"]], "seconds": 3600}).json()[
        "urls"
    ]
    answers = [nginx.http.get(url, headers={"X-Request-ID": f"r{number}"}) for number in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.headers["X-Request-ID"] for answer in answers] == [f"r{number}" for number in range(20)]
    asked = [line for line in gateway.text().splitlines() if "event=request" in line and "/get_images/" in line]
    assert len(asked) == 1
    # Deleted it may be seen for a moment more, with this URL alone.
    assert gateway.http.delete(job["url"].replace("/jobs/", "/delete/")).status_code == 200
    assert nginx.http.get(url).content == answers[0].content
    assert nginx.http.get(url.partition("?")[0]).status_code == 404
    # What the gateway refuses is never kept.
    for wrong in (url + "x", url.replace("exp=", "exp=1")):
        for _ in range(2):
            assert nginx.http.get(wrong).json()["type"] == "bad-signature"


#: Some of the printable characters, which a proxy may write in another way.
_ODD_USERS = (
    "~",
    "a+b",
    "a%2520b",
    "a?b#c",
    "a;b=c&d",
    "'\"<>",
    "[a]{b}|^`",
    "é",
    "e\u0301",
    "...",
    " ",
    "%",
    "用户:甲@x,y!$*()",
)


def test_variants_of_odd_users_are_the_same_both_ways(ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    """Also when nginx is the first to ask, so that the variant is made for it."""
    for user in _ODD_USERS:
        [image] = ways.plain.succeeded(ways.plain.post(id=user, width=64, height=64))["images"]
        for url in (image["url"], image["thumbnail_url"], f"{image['url']}?format=jpeg&download=true"):
            through = ask(ways.nginx.url, "GET", url)
            assert through.status == 200, user
            same(ask(ways.plain.url, "GET", url), through)
            # A signature is of the characters, however a proxy or a client writes them.
            picture_of = signed(ways, url)
            for written in (picture_of, as_others_write(picture_of)):
                assert ask(ways.nginx.url, "GET", written).body == through.body, (user, written)
        events = signed(ways, f"/jobs/{quote(user, safe='')}/events")
        for written in (events, as_others_write(events)):
            with EventClient(ways.nginx.url, written) as stream:
                assert stream.status == 200, (user, written)
                assert stream.next() is not None


def as_others_write(url: str) -> str:
    """The same URL with every byte of its path encoded that need not be, but for slashes."""
    path, _, query = url.partition("?")
    return (
        "/".join("".join(f"%{byte:02x}" for byte in unquote_to_bytes(part)) for part in path.split("/")) + f"?{query}"
    )


def test_a_variant_is_sent_by_nginx(ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    image = jobs["large"]["images"][0]
    url = image["url"] + VARIANT
    # What was made just now, too.
    for _ in range(2):
        status, fields, body = ask(ways.accelerated.url, "GET", url)
        place = ways.plain.find(image["filename"] + ITS_FILE).relative_to(ways.plain.data)
        assert (status, body, dict(fields)["X-Accel-Redirect"]) == (200, b"", f"/sd-gateway-files/{place}")
        assert place.is_relative_to(".variants")
        assert ask(ways.nginx.url, "GET", f"/sd-gateway-files/{place}").status == 404
        ways.plain.find(image["filename"] + ITS_FILE).unlink()


def test_both_ways_refuse_alike(ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    for path, slug in refused(jobs).items():
        direct = ask(ways.plain.url, "GET", path)
        assert direct.problem == slug, path
        same(direct, ask(ways.nginx.url, "GET", path))


def test_both_ways_refuse_event_streams_alike(ways: Ways) -> None:
    for path, accept, status in (
        ("/jobs/user/txt2img/20261122T061530123-9f2c4e7a/events", "*/*", 404),
        ("/jobs/user/events", "application/json", 406),
        ("/jobs/a%2Fb/events", "*/*", 404),
    ):
        direct = ask(ways.plain.url, "GET", path, {"Accept": accept})
        assert direct.status == status, path
        same(direct, ask(ways.nginx.url, "GET", path, {"Accept": accept}))


def test_an_event_stream_tells_the_same_through_nginx(ways: Ways) -> None:
    job = ways.plain.succeeded(ways.plain.post(id="watched"))
    told = []
    for url in (ways.plain.url, ways.nginx.url):
        with EventClient(url, f"{job['url']}/events") as client:
            told.append(client.rest())
            assert client.headers["cache-control"] == "no-store"
    assert [event.name for event in told[0]] == ["job", "end"]
    assert told[0] == told[1]
    with EventClient(ways.nginx.url, f"{job['url']}/events", last=told[0][0].id) as client:
        assert client.status == 204


def test_the_gateway_names_the_file_and_sends_no_byte_of_it(ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    image = jobs["large"]["images"][0]
    status, fields, body = ask(ways.accelerated.url, "GET", image["url"])
    place = ways.plain.find(image["filename"]).relative_to(ways.plain.data)
    assert (status, body, dict(fields)["X-Accel-Redirect"]) == (200, b"", f"/sd-gateway-files/{place}")
    assert "X-Accel-Redirect" not in dict(ask(ways.nginx.url, "GET", image["url"]).headers)


def test_a_file_is_reached_by_its_url_alone(ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    place = ways.plain.find(jobs["small"]["images"][0]["filename"]).relative_to(ways.plain.data)
    for path in (f"/sd-gateway-files/{place}", f"/x/../sd-gateway-files/{place}", f"/sd-gateway-files/../data/{place}"):
        assert ask(ways.nginx.url, "GET", path).status == 404


def test_a_deleted_picture_is_gone_at_once(ways: Ways) -> None:
    url = ways.plain.succeeded(ways.plain.post(id=USER))["images"][0]["url"]
    assert ask(ways.nginx.url, "GET", url).status == 200
    assert ask(ways.nginx.url, "DELETE", url.replace("/get_images/", "/delete/")).status == 200
    gone = ask(ways.nginx.url, "GET", url)
    assert (gone.status, gone.problem) == (404, "job-not-found")
    same(ask(ways.plain.url, "GET", url), gone)


def test_a_picture_whose_file_is_gone_is_missing(ways: Ways) -> None:
    image = ways.plain.succeeded(ways.plain.post(id=USER))["images"][0]
    ways.plain.find(image["filename"]).unlink()
    gone = ask(ways.nginx.url, "GET", image["url"])
    assert (gone.status, gone.problem) == (404, "file-missing")
    same(ask(ways.plain.url, "GET", image["url"]), gone)


@pytest.mark.parametrize("level", range(4), ids=["the file", "the day", "the type", "the user"])
def test_no_link_in_the_data_folder_is_followed(ways: Ways, level: int) -> None:
    image = ways.plain.succeeded(ways.plain.post(id=f"linked{level}"))["images"][0]
    file = ways.plain.find(image["filename"])
    moved = [file, *file.parents][level]
    elsewhere = ways.plain.data.parent / f"elsewhere{level}"
    moved.rename(elsewhere)
    moved.symlink_to(elsewhere)
    followed = ask(ways.nginx.url, "GET", image["url"])
    assert (followed.status, followed.problem) == (404, "file-missing")
    same(ask(ways.plain.url, "GET", image["url"]), followed)
    moved.unlink()
    elsewhere.rename(moved)


def test_nginx_itself_follows_no_link(stage: Stage, ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    """Its folder is a copy in which the file is a link, and the gateway knows nothing of it."""
    image = jobs["small"]["images"][0]
    file = ways.plain.find(image["filename"])
    link = stage.folder / "copy" / file.relative_to(ways.plain.data)
    link.parent.mkdir(parents=True)
    link.symlink_to(file)
    nginx = stage.nginx(ways.accelerated, stage.folder / "copy")
    gone = ask(nginx.url, "GET", image["url"])
    assert (gone.status, gone.problem) == (404, "file-missing")
    link.unlink()
    same(gone, ask(nginx.url, "GET", image["url"]))
    link.write_bytes(b"another")
    assert ask(nginx.url, "GET", image["url"]).body == b"another"


def test_the_data_folder_may_be_a_link(stage: Stage, ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    link = stage.folder / "link"
    link.symlink_to(ways.plain.data)
    url = jobs["small"]["images"][0]["url"]
    same(ask(ways.plain.url, "GET", url), ask(stage.nginx(ways.accelerated, link).url, "GET", url))


def test_a_picture_is_made_and_posts_wait_through_nginx(ways: Ways) -> None:
    answer = ways.nginx.http.request("POST", "/txt2img", json=picture(id="through"))
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert ways.nginx.http.get("/t2ihistory/through").json()["records"] == [answer.json()]


def test_a_client_that_names_no_host_is_answered(ways: Ways) -> None:
    assert ways.nginx.http.raw(b"GET /livez HTTP/1.0\r\n\r\n")[0] == 200


def test_the_gateway_learns_the_host_and_the_address_of_the_client(stage: Stage) -> None:
    (stage.folder / "echo.py").write_text(_ECHO)
    options = ("--pythonpath", str(stage.folder))
    gateway = stage.gateway("simulator", ready=False, processes=1, options=options, application="echo:app")
    nginx = stage.nginx(gateway, gateway.data)
    ready(nginx)
    said = {"Host": "pictures.example:8443", "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "gopher"}
    assert nginx.http.get("/", headers=said).text == "pictures.example:8443 127.0.0.1 http"


def test_a_body_that_is_a_little_too_large_has_the_gateways_problem(ways: Ways) -> None:
    answer = ways.nginx.http.request(
        "POST", "/txt2img", data=b" " * (32 * 2**20 + 1), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["type"]) == (413, "body-too-large")


def test_it_works_over_a_unix_socket(stage: Stage, ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    shared = {name: ways.plain.environ[name] for name in ("SDG_DATA_DIR", "SDG_DATABASE_URL", "SDG_WEBUI_URLS")}
    bind = f"unix:{stage.folder}/gateway.sock"
    gateway = stage.gateway(None, ready=False, **shared, SDG_WORKER="external", SDG_ACCEL="nginx", SDG_BIND=bind)
    nginx = stage.nginx(gateway, ways.plain.data)
    url = jobs["small"]["images"][0]["url"]
    ready(nginx)
    same(ask(ways.plain.url, "GET", url), ask(nginx.url, "GET", url))


def ready(nginx: Nginx) -> None:
    """Wait until the gateway behind it answers."""
    deadline = time.monotonic() + 30
    while ask(nginx.url, "GET", "/livez").status != 200:
        assert time.monotonic() < deadline, "the gateway behind nginx never answered"
        time.sleep(0.05)


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "[::]:8000"])
def test_where_others_than_nginx_could_reach_it_the_gateway_does_not_start(stage: Stage, bind: str) -> None:
    gateway = stage.gateway("simulator", ready=False, SDG_ACCEL="nginx", SDG_BIND=bind)
    assert gateway.wait() != 0
    assert "SDG_ACCEL: needs SDG_BIND to be a loopback address or a Unix socket" in gateway.text()


@contextlib.contextmanager
def slow_readers(nginx: Nginx, path: str) -> Iterator[list[socket.socket]]:
    """Clients that have asked for a file and take so little at a time that the kernel holds only a part of it for them."""
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        readers = []
        for _ in range(_READERS):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            reader.settimeout(30)
            reader.connect(("127.0.0.1", nginx.port))
            reader.sendall(request)
            readers.append(reader)
        yield readers


def read_slowly(readers: list[socket.socket], over: threading.Event) -> None:
    """Every reader takes its bytes of each tenth of a second, but never the last ones of the file."""
    left = _SLOWLY_READ - 200_000
    while not over.wait(0.1) and left > 0:
        for reader in readers:
            assert reader.recv(_SLOWLY // 10, socket.MSG_WAITALL)
        left -= _SLOWLY // 10


def test_slow_readers_hold_no_thread_of_the_gateway(ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    """More of them than it has threads, each at 100 kB/s of a picture of 1.5 MB; none is done before the others are answered."""
    image = ways.plain.succeeded(ways.plain.post(id="slow"))["images"][0]
    ways.plain.find(image["filename"]).write_bytes(bytes(_SLOWLY_READ))
    over = threading.Event()
    with slow_readers(ways.nginx, image["url"]) as readers, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_slowly, readers, over)
        try:
            for _ in range(3):
                assert ask(ways.nginx.url, "GET", "/livez").status == 200
                assert ways.nginx.http.request("POST", "/txt2img", json=picture(id="slow")).status_code == 200
        finally:
            over.set()
        reading.result()


@pytest.mark.soak
@pytest.mark.alone
def test_slow_readers_keep_nobody_waiting(ways: Ways, jobs: dict[str, dict[str, Any]]) -> None:
    image = ways.plain.succeeded(ways.plain.post(id="slow"))["images"][0]
    ways.plain.find(image["filename"]).write_bytes(bytes(_SLOWLY_READ))
    over = threading.Event()
    with slow_readers(ways.nginx, image["url"]) as readers, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_slowly, readers, over)
        times = []
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            begun = time.monotonic()
            assert ask(ways.nginx.url, "GET", "/livez").status == 200
            assert ways.nginx.http.request("POST", "/txt2img", json=picture(id="slow")).status_code == 200
            times.append(time.monotonic() - begun)
        over.set()
        reading.result()
    assert len(times) >= 3
    assert sorted(times)[len(times) // 2] < 1.0


def test_a_request_has_one_id_in_nginx_and_the_gateway(ways: Ways) -> None:
    for given, is_taken in (
        ({"X-Request-ID": "order-4711"}, True),
        ({"X-Request-ID": "two words"}, False),
        ({}, False),
    ):
        answer = harness.ask(ways.nginx.url, "GET", "/jobs/a%2Fb?sig=0123456789", given)
        request = dict(answer.headers)["X-Request-ID"]
        assert json.loads(answer.body)["request"] == request
        assert (request == given.get("X-Request-ID")) is is_taken
        logged = until(
            lambda request=request: [
                line
                for line in (ways.nginx.log.with_suffix("") / "access.log").read_text("utf-8").splitlines()
                if line.endswith(f" {request}")
            ],
            "the line of the request in nginx's log",
        )
        assert '"GET /jobs/a%2Fb" 404' in logged[-1]
