"""The header fields that every answer has, whatever the path, the method and the kind of the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers

from app.api import init_app
from app.api.application import Application
from app.gateway.archive import File
from tests.api import fakes

#: What must be in every answer; a value may be followed by more where it is a policy.
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src '",
}
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
#: Answers that a cache may keep, or has to ask about.
KEPT = re.compile(r"/docs/[^/]+|/get_images/.*")
PROBLEM = fakes.domain_error("database-unavailable")


def make_client() -> tuple[FlaskClient, fakes.FakeServices]:
    """A client that compares nothing with the document: many of these requests fit none."""
    services = fakes.FakeServices(fakes.settings())
    app = Application("app", static_folder=None)
    init_app(app, services)
    return app.test_client(), services


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    """Over services that all fail."""
    client, services = make_client()
    names = ("post", "history", "jobs", "cancel", "cancel_queued", "file", "args", "delete", "job", "watch_job")
    services.answers |= dict.fromkeys((*names, "watch_user", "queue", "webuis", "options", "readiness"), PROBLEM)
    return client


def check(headers: Headers, where: object) -> None:
    """Whether an answer has each field once, and with the right value."""
    names = [name.lower() for name, _ in headers]
    assert len(names) == len(set(names)), (where, names)
    for name, value in EVERYWHERE.items():
        assert headers.get(name, "").startswith(value), (where, name, headers)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") or "frame-ancestors 'none'" in policy, where
    assert "Cross-Origin-Resource-Policy" not in headers, where
    assert not re.search(r"\d", headers.get("Server", "")), where


def paths(app: Flask) -> Iterator[str]:
    """A path of each rule, with good members and with bad ones."""
    values = {"id": "u1", "type": "txt2img", "name": fakes.NAME, "filename": fakes.IMAGE, "asset": "swagger-ui.css"}
    for rule in app.url_map.iter_rules():
        for member in (None, "x%00", "a%2Fb", ".."):
            yield re.sub(r"<(?:\w+:)?(\w+)>", lambda match, bad=member: bad or values[match[1]], rule.rule)


def test_every_path_and_method_answers_with_them(client: FlaskClient) -> None:
    seen = set()
    for path in {*paths(client.application), "/nothing", "//", "/docs/../x", "/t2ihistory/u1?limit=x", "/queue?x=1"}:
        for method in METHODS:
            with client.open(path, method=method) as answer:
                check(answer.headers, (method, path))
                if not KEPT.fullmatch(path):
                    assert answer.headers["Cache-Control"] == "no-store", (method, path)
                seen.add(answer.status_code)
    # Successes, the way to /docs, and problems.
    assert {200, 302, 404, 405, 415, 422, 503} <= seen


@pytest.mark.parametrize("view", [fakes.job_view(), fakes.queued_view(), fakes.failed_view("webui-error")])
def test_a_job_is_kept_by_no_cache(view: dict[str, object]) -> None:
    client, services = make_client()
    services.answers |= {"post": view, "history": ([view], None), "jobs": ([view], None), "args": view["args"]}
    asked = [("GET", f"/{path}/u1") for path in ("t2ihistory", "i2ihistory", "jobs")]
    for method, path in [*asked, ("GET", f"/get_args/u1/txt2img/{fakes.NAME}"), ("POST", "/txt2img")]:
        answer = client.open(path, method=method, json=fakes.TXT2IMG if method == "POST" else None)
        check(answer.headers, path)
        assert answer.headers["Cache-Control"] == "no-store", path


@pytest.mark.parametrize("accel", ["", "nginx"])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"If-None-Match": '"abc"'},
        {"Range": "bytes=10-19"},
        {"Range": "bytes=999-"},
        {"If-Match": '"other"'},
        {"If-Match": "x" * 9000},
    ],
    ids=lambda asked: next(iter(asked), "plain"),
)
def test_a_picture_has_its_own_policy_in_every_form(tmp_path, accel: str, asked: dict[str, str]) -> None:
    services = fakes.FakeServices(fakes.settings(SDG_ACCEL=accel))
    app = Application("app", static_folder=None)
    init_app(app, services)
    place = tmp_path / fakes.IMAGE
    place.write_bytes(bytes(range(256)))
    services.answers["file"] = File(str(place), "image/png", "abc", fakes.IMAGE)
    for method in ("GET", "HEAD"):
        url = f"/get_images/u1/txt2img/{fakes.IMAGE}"
        with app.test_client().open(url, method=method, headers=asked) as answer:
            check(answer.headers, (method, asked))
            assert answer.status_code in (200, 206, 304, 400, 412, 416)
            if answer.status_code < 400:
                assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
                assert answer.headers["Cache-Control"].startswith("private, max-age=")


def test_the_page_of_the_documentation_shows_itself_in_no_frame_and_leads_nowhere(client: FlaskClient) -> None:
    answer = client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    forbidden = {name for name, value in policy.items() if value == "'none'"}
    assert forbidden == {"base-uri", "form-action", "frame-ancestors", "object-src"}
    assert policy["default-src"] == "'self'"
    assert "script-src" not in policy
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
