"""A ``before_request`` hook of the application sees every request that gunicorn hands on, however odd it is."""

from __future__ import annotations

import pytest

from tests.system.harness import START_SECONDS, Gateway, Simulator, Stage, listens, picture, until

#: The application as any operator could extend it: everybody but a request with this header field is refused.
_MODULE = """
from flask import Response, request

from app import create_app

app = create_app()


@app.before_request
def refuse():
    return None if "X-Let-In" in request.headers else Response("refused by the hook", 401)
"""
_LET_IN = {"X-Let-In": "yes"}
_RECORD = "20260101T000000000-00000000"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
PATHS = (
    "/",
    "//",
    "/docs",
    "/docs/",
    "/docs/swagger-ui.css",
    "/docs/swagger-ui-bundle.js",
    "/docs/start.js",
    "/docs/nothing",
    "/openapi.json",
    "/livez",
    "/readyz",
    "/options",
    "/txt2img",
    "/img2img",
    "/t2ihistory/user",
    "/t2ihistory/user?limit=no",
    "/i2ihistory/",
    "/jobs/user?status=running&before=x",
    f"/jobs/user/txt2img/{_RECORD}",
    f"/get_args/user/txt2img/{_RECORD}",
    f"/delete/user/txt2img/{_RECORD}",
    "/nothing",
    "/nothing/at/all/" + "x" * 4000,
    "/%ff",
    "/jobs/%ff",
    "/jobs/%c3%28",
    "/jobs/user?status=%ff",
    "/nothing?%ff",
    "/jobs/a%2Fb",
    "/%2f",
    "/jobs/%2e%2e",
    "/jobs/..",
    "/jobs/a%5Cb",
    "/jobs/%00",
    "/jobs//txt2img",
    "/jobs/" + "x" * 65,
    f"/jobs/user/extras/{_RECORD}",
    "/jobs/user/txt2img/nothing",
    f"/get_images/user/extras/{_RECORD}-1-0.png",
    "/get_images/user/txt2img/..",
    "http://elsewhere/livez",
    "http://elsewhere",
)
#: Of a picture that is really there.
PICTURE_SUFFIXES = ("", "?download=true", "?%ff", "/", "%2f", "%00")
FIELDS = (
    "",
    "Range: bytes=0-1\r\n",
    "Range: bytes=99999999-\r\n",
    "Range: lines=1-2\r\n",
    "If-None-Match: *\r\n",
    "If-Modified-Since: Sun, 06 Nov 2095 08:49:37 GMT\r\n",
    'If-Match: "other"\r\n',
    'Range: bytes=0-1\r\nIf-Range: "other"\r\n',
    "Connection: upgrade\r\nUpgrade: websocket\r\n",
    "Expect: 100-continue\r\n",
    "Content-Type: text/plain\r\n",
    "Host: \r\n",
    "Host: a-b.example:8443\r\n",
    "Host: " + "x" * 300 + "\r\n",
    "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: evil/\r\n",
    "X-HTTP-Method-Override: GET\r\n",
)


@pytest.fixture(scope="module")
def guarded(hall: Stage, houses_simulator: Simulator) -> Gateway:
    """A gateway whose application has the hook."""
    houses_simulator.await_ready()
    folder = hall.folder / "hooked"
    folder.mkdir()
    (folder / "hooked.py").write_text(_MODULE)
    options = ("--pythonpath", str(folder))
    gateway = hall.gateway([houses_simulator], ready=False, options=options, application="hooked:app")
    until(lambda: listens(gateway.port), "the gateway listens", START_SECONDS)
    until(lambda: gateway.http.get("/readyz", headers=_LET_IN).json()["status"] == "ok", "the gateway is ready")
    return gateway


@pytest.fixture(scope="module")
def url(guarded: Gateway) -> str:
    """The path of a picture that is really there."""
    made = guarded.http.request("POST", "/txt2img", json=picture(), headers=_LET_IN)
    path: str = made.json()["images"][0]["url"]
    assert guarded.http.get(path, headers=_LET_IN).status_code == 200
    return path


def send(gateway: Gateway, method: str, target: str, fields: str = "", version: str = "1.1") -> tuple[int, str, bytes]:
    """Ask for exactly this target, with exactly these further header fields."""
    host = "" if fields.startswith("Host:") else "Host: x\r\n"
    head = f"{method} {target} HTTP/{version}\r\n{host}{fields}Connection: close\r\n\r\n"
    if "Connection:" in fields:
        head = head.replace("Connection: close\r\n", "")
    return gateway.http.raw(head.encode("latin-1"))


def check_refused(gateway: Gateway, method: str, target: str, fields: str = "") -> None:
    status, _, body = send(gateway, method, target, fields)
    assert (status, body) == (401, b"" if method == "HEAD" else b"refused by the hook"), (method, target, fields)


@pytest.mark.parametrize("method", METHODS)
def test_the_hook_answers_for_every_path_and_method(guarded: Gateway, method: str) -> None:
    for path in PATHS:
        check_refused(guarded, method, path)


@pytest.mark.parametrize("method", METHODS)
def test_the_hook_answers_for_a_picture_in_every_form(guarded: Gateway, url: str, method: str) -> None:
    for suffix in PICTURE_SUFFIXES:
        check_refused(guarded, method, url + suffix)
    for fields in FIELDS:
        check_refused(guarded, method, url, fields)
    assert guarded.http.get(url, headers=_LET_IN).status_code == 200


def test_the_hook_answers_for_the_server_as_a_whole(guarded: Gateway) -> None:
    check_refused(guarded, "OPTIONS", "*")


@pytest.mark.parametrize("body", [b"{}", b"no JSON", b"x" * 2_000_000, b""], ids=["{}", "no JSON", "2 MB", "nothing"])
def test_the_hook_answers_before_a_body_is_judged(guarded: Gateway, body: bytes) -> None:
    for headers in ({"Content-Type": "application/json"}, {"Content-Encoding": "gzip"}, {}):
        for path in ("/txt2img", "/img2img", "/nothing"):
            answer = guarded.http.request("POST", path, data=body, headers=headers)
            assert (answer.status_code, answer.text) == (401, "refused by the hook")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"get /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /jobs/\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nno field\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"POST /txt2img HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    ],
    ids=[
        "no path",
        "a small method",
        "another version",
        "an odd host",
        "no host",
        "a raw byte",
        "no field",
        "too long",
        "a length below 0",
    ],
)
def test_what_gunicorn_refuses_reaches_no_hook(guarded: Gateway, request_: bytes, status: int) -> None:
    """Malformed HTTP is no request that an application could judge, and the answer tells nothing of the gateway."""
    answered, _, body = guarded.http.raw(request_)
    assert answered == status
    assert b"refused by the hook" not in body
