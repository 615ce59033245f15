"""Pages of other origins: what a browser is told in every kind of answer."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers

from app.api import init_app
from app.api.application import Application
from app.gateway.archive import File
from tests.api import fakes

ORIGIN = "https://app.example.com"
OTHERS = ("https://evil.example.com", "https://app.example.com.evil.com", "https://APP.example.com", "null", "")
JOB = f"/jobs/u1/txt2img/{fakes.NAME}"
PICTURE = f"/get_images/u1/txt2img/{fakes.IMAGE}"
ASKS = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def make_client(**environ: str) -> FlaskClient:
    services = fakes.FakeServices(fakes.settings(**environ))
    app = Application("app", static_folder=None)
    init_app(app, services)
    services.answers |= {"post": fakes.queued_view(), "options": fakes.domain_error("no-catalogue"), "readiness": []}
    client = app.test_client()
    client.answers = services.answers
    return client


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    return make_client(SDG_CORS_ORIGINS=f"{ORIGIN},http://localhost:3000")


def listed(headers: Headers, name: str) -> set[str]:
    """The words of a list in a header field, which must be one field."""
    [text] = headers.getlist(name)
    return {word.strip() for word in text.split(",")}


def asked_with(client: FlaskClient, method: str, path: str, origin: str | None, **options: object) -> Headers:
    given = {} if origin is None else {"Origin": origin}
    with client.open(path, method=method, headers=given, **options) as answer:
        return answer.headers


#: Method and path of each kind of answer: a job, a redirect, no path, no method, a refusal, a file, a page.
ASKED = (
    ("GET", "/livez"),
    ("HEAD", "/livez"),
    ("OPTIONS", "/livez"),
    ("GET", "/"),
    ("GET", "/nothing"),
    ("PUT", "/txt2img"),
    ("POST", "/txt2img"),
    ("GET", "/jobs/u1?limit=x"),
    ("GET", "/options"),
    ("GET", "/docs/swagger-ui.css"),
    ("GET", "/openapi.json"),
)


def test_every_kind_of_answer_lets_the_origin_read_it(client: FlaskClient) -> None:
    for method, path in ASKED:
        headers = asked_with(client, method, path, ORIGIN)
        assert headers.getlist("Access-Control-Allow-Origin") == [ORIGIN], path
        assert {"Location", "Retry-After", "ETag", "Preference-Applied", "X-Request-ID", "Content-Range"} <= listed(
            headers, "Access-Control-Expose-Headers"
        )
        assert "Origin" in listed(headers, "Vary")
        assert "Access-Control-Allow-Credentials" not in headers
        assert "Cross-Origin-Resource-Policy" not in headers


@pytest.mark.parametrize("origin", [None, *OTHERS])
def test_nobody_else_may_read_and_caches_are_told_so(client: FlaskClient, origin: str | None) -> None:
    for method, path in ASKED:
        headers = asked_with(client, method, path, origin)
        assert "Access-Control-Allow-Origin" not in headers, path
        assert "Origin" in listed(headers, "Vary"), path


def test_what_the_answer_depends_on_besides_stays_named(client: FlaskClient) -> None:
    headers = asked_with(client, "POST", "/txt2img", ORIGIN, json=fakes.TXT2IMG)
    assert headers["Location"] == JOB
    assert listed(headers, "Vary") == {"Prefer", "Origin"}


@pytest.mark.parametrize("accel", ["", "nginx"])
def test_a_picture_in_every_form_may_be_read(tmp_path, accel: str) -> None:
    client = make_client(SDG_CORS_ORIGINS=ORIGIN, SDG_ACCEL=accel)
    place = tmp_path / fakes.IMAGE
    place.write_bytes(bytes(range(256)))
    client.answers["file"] = File(str(place), "image/png", "abc", fakes.IMAGE)
    for fields, status in (
        ({}, 200),
        ({"If-None-Match": '"abc"'}, 304),
        ({"Range": "bytes=1-2"}, 200 if accel else 206),
        ({"Range": "bytes=999-"}, 416),
        ({"If-Match": '"x"'}, 412),
    ):
        with client.get(PICTURE, headers={"Origin": ORIGIN, **fields}) as answer:
            assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, ORIGIN)
            assert "Origin" in listed(answer.headers, "Vary")


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/txt2img", {"POST", "OPTIONS"}),
        (JOB, {"GET", "HEAD", "OPTIONS"}),
        (f"/delete/u1/txt2img/{fakes.NAME}", {"DELETE", "OPTIONS"}),
        # The request itself is refused, with a problem that the page can read.
        ("/jobs/u1/bogus/x", {"GET", "HEAD", "OPTIONS"}),
        ("/t2ihistory/%00", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_browser_learns_what_a_page_may_send(client: FlaskClient, path: str, methods: set[str]) -> None:
    answer = client.options(path, headers=ASKS)
    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers.getlist("Access-Control-Allow-Origin") == [ORIGIN]
    assert listed(answer.headers, "Access-Control-Allow-Methods") == methods
    assert {"Authorization", "Content-Type", "Prefer", "Idempotency-Key", "Cancel-After", "X-Request-ID"} <= listed(
        answer.headers, "Access-Control-Allow-Headers"
    )
    assert {"If-None-Match", "Last-Event-ID", "Range"} <= listed(answer.headers, "Access-Control-Allow-Headers")
    assert "Origin" in listed(answer.headers, "Vary")
    assert int(answer.headers["Access-Control-Max-Age"]) > 0


def test_a_page_of_another_origin_is_told_nothing_of_what_it_may_send(client: FlaskClient) -> None:
    for origin in OTHERS:
        answer = client.options("/txt2img", headers={**ASKS, "Origin": origin})
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")], origin
    answer = client.options("/nothing", headers=ASKS)
    assert (answer.status_code, answer.json["type"]) == (404, "not-found")


def test_without_the_setting_no_answer_says_anything_of_origins() -> None:
    client = make_client()
    for method, path in (*ASKED, ("OPTIONS", "/txt2img")):
        with client.open(path, method=method, headers=ASKS) as answer:
            names = {name for name, _ in answer.headers if name.startswith("Access-Control") or name == "Vary"}
            assert not names, (method, path)
