"""The short way to a picture: who answers which request, and that nobody can tell who did."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app

from app.api.pictures import Pictures
from tests.api.conftest import make_app
from tests.api.fakes import IMAGE, NAME, domain_error

#: Werkzeug leaves the file of a HEAD to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PLAIN = f"/get_images/u1/txt2img/{IMAGE}"
#: Above this the file is sent by sendfile, up to it as bytes.
SIZES = [0, 1, 64 * 1024, 64 * 1024 + 1, 300_000]

Answer = tuple[str, list[tuple[str, str]], bytes]


def environ_of(method: str = "GET", path: str = PLAIN, **changes: Any) -> dict[str, Any]:
    environ = EnvironBuilder(method=method, path=path).get_environ()
    return environ | {"RAW_URI": path} | changes


def answer_of(app: Any, environ: dict[str, Any]) -> Answer:
    chunks, status, headers = run_wsgi_app(app, dict(environ), buffered=True)
    # gunicorn writes its own Date over any.
    return status, [pair for pair in headers.to_wsgi_list() if pair[0] != "Date"], b"".join(chunks)


@pytest.fixture
def short(tmp_path: Path) -> Any:
    """An application whose only picture is a real file, and the two ways to it."""
    app, services = make_app()
    path = tmp_path / IMAGE
    path.write_bytes(b"picture")
    services.answers["file"] = SimpleNamespace(path=path, media_type="image/png", etag=IMAGE)
    assert isinstance(app.wsgi_app, Pictures)
    return SimpleNamespace(way=app.wsgi_app, flask=app.wsgi_app._flask, services=services, path=path)


def same(one: Answer, other: Answer) -> None:
    """Equal, but that Expires may be a second later."""
    assert (one[0], one[2]) == (other[0], other[2])
    first, second = dict(one[1]), dict(other[1])
    assert [name for name, _ in one[1]] == [name for name, _ in other[1]]
    if "Expires" in first:
        apart = parsedate_to_datetime(second.pop("Expires")) - parsedate_to_datetime(first.pop("Expires"))
        assert 0 <= apart.total_seconds() <= 5
    assert first == second


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
def test_both_ways_answer_alike(short: Any, method: str, size: int, media_type: str) -> None:
    short.path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    short.services.answers["file"].media_type = media_type
    answer = answer_of(short.way, environ_of(method))
    assert answer[0] == "200 OK"
    assert len(answer[2]) == (size if method == "GET" else 0)
    same(answer, answer_of(short.flask, environ_of(method)))


USERS = ["u1", "用户 甲", "é", "e\u0301", "a%b", "a@b.c", "+", " ", "...", "😀", "x" * 64]


@pytest.mark.parametrize("user", USERS)
def test_a_plain_request_never_reaches_flask(short: Any, user: str) -> None:
    way = Pictures(lambda *_: pytest.fail("Flask was asked"), short.services.archive)
    for kind in ("txt2img", "img2img"):
        path = f"/get_images/{quote(user, safe='')}/{kind}/{IMAGE}"
        assert answer_of(way, environ_of(path=path))[0] == "200 OK"
        assert short.services.calls.pop() == ("file", user, kind, IMAGE)


OTHERS = {
    "another method": {"method": "POST"},
    "another path": {"path": f"/get_args/u1/txt2img/{NAME}"},
    "a query": {"QUERY_STRING": "x=1"},
    "an ill query": {"QUERY_STRING": "%ff"},
    "a mount": {"SCRIPT_NAME": "/sd"},
    "a range": {"HTTP_RANGE": "bytes=0-1"},
    "an empty range": {"HTTP_RANGE": ""},
    "an If-Range": {"HTTP_IF_RANGE": f'"{IMAGE}"'},
    "an If-Match": {"HTTP_IF_MATCH": '"x"'},
    "an If-None-Match": {"HTTP_IF_NONE_MATCH": f'"{IMAGE}"'},
    "an If-Modified-Since": {"HTTP_IF_MODIFIED_SINCE": "Sun, 06 Nov 2050 08:49:37 GMT"},
    "an If-Unmodified-Since": {"HTTP_IF_UNMODIFIED_SINCE": "Sun, 06 Nov 1994 08:49:37 GMT"},
    "another protocol": {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "upgrade"},
    "an encoded slash": {"path": f"/get_images/u%2F1/txt2img/{IMAGE}"},
    "an encoded slash that was decoded": {"RAW_URI": f"/get_images/u1%2ftxt2img/{IMAGE}"},
    "too few members": {"path": f"/get_images/u1/{IMAGE}"},
    "too many members": {"path": f"{PLAIN}/"},
    "an empty user": {"path": f"/get_images//txt2img/{IMAGE}"},
    "an odd user": {"path": f"/get_images/%2e%2e/txt2img/{IMAGE}"},
    "a long user": {"path": f"/get_images/{'x' * 65}/txt2img/{IMAGE}"},
    "a path that is not UTF-8": {"PATH_INFO": f"/get_images/\xff/txt2img/{IMAGE}"},
    "an unknown type": {"path": f"/get_images/u1/extras/{IMAGE}"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_not_plain_is_flasks(short: Any, case: str) -> None:
    environ = environ_of(**OTHERS[case])
    asked = []
    way = Pictures(lambda given, start: asked.append(given) or short.flask(given, start), short.services.archive)
    answer = answer_of(way, environ)
    assert len(asked) == 1
    same(answer, answer_of(short.flask, environ))


@pytest.mark.parametrize("filename", ["..", "x.png", f"{IMAGE}\n", f"{NAME}-1-0.PNG", f"{NAME}-0-0.png"])
def test_a_name_that_was_never_given_has_flasks_problem(short: Any, filename: str) -> None:
    short.services.answers["file"] = domain_error("job-not-found")
    environ = environ_of(path=f"/get_images/u1/txt2img/{quote(filename)}")
    answer = answer_of(short.way, environ)
    assert answer[0] == "404 NOT FOUND"
    same(answer, answer_of(short.flask, environ))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (domain_error("job-not-found"), "404 NOT FOUND"),
        (domain_error("file-missing"), "404 NOT FOUND"),
        (domain_error("database-unavailable"), "503 SERVICE UNAVAILABLE"),
        (domain_error("storage-unavailable"), "503 SERVICE UNAVAILABLE"),
        (RuntimeError("a bug"), "500 INTERNAL SERVER ERROR"),
    ],
)
def test_every_problem_is_told_by_flask(short: Any, error: Exception, status: str) -> None:
    short.services.answers["file"] = error
    answer = answer_of(short.way, environ_of())
    assert answer[0] == status
    assert dict(answer[1])["Content-Type"] == "application/problem+json"
    same(answer, answer_of(short.flask, environ_of()))


def test_a_file_that_goes_between_the_look_and_the_reading_is_missing(short: Any) -> None:
    short.path.unlink()
    answer = answer_of(short.way, environ_of())
    assert answer[0] == "404 NOT FOUND"
    assert b"file-missing" in answer[2]


@pytest.mark.parametrize(("method", "size"), [("GET", 10), ("HEAD", 10), ("HEAD", 100_000), ("GET", 100_000)])
def test_the_file_is_closed(short: Any, method: str, size: int) -> None:
    short.path.write_bytes(b"x" * size)
    answer_of(short.way, environ_of(method))
    assert [stream.closed for stream in short.services.streams] == [True]
