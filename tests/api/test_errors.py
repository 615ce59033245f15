from __future__ import annotations

import json
import logging

import pytest

from app import problems
from app.api.http.problems import respond
from tests.api.fakes import TXT2IMG, domain_error


@pytest.mark.parametrize("slug", problems.PROBLEMS)
def test_every_slug_is_answered_by_the_table(gateway, slug):
    app = gateway[0]
    with app.test_request_context():
        made = app.handle_user_exception(domain_error(slug, "Safe."))
    entry = problems.PROBLEMS[slug]
    assert made.status_code == entry.status
    assert made.mimetype == "application/problem+json"
    assert {"type": slug, "title": entry.title, "status": entry.status}.items() <= made.json.items()


@pytest.mark.parametrize("slug", problems.PROBLEMS)
def test_exactly_429_and_503_say_when_to_try_again(gateway, slug):
    app = gateway[0]
    with app.test_request_context():
        plain = app.handle_user_exception(domain_error(slug, "Safe."))
        answered = respond(slug, "A job that failed so.")
        computed = app.handle_user_exception(domain_error(slug, "Safe.", retry_after=41.2))
    for made in (plain, answered):
        seconds = made.headers.get("Retry-After")
        assert (seconds is not None and int(seconds) >= 1) if made.status_code in (429, 503) else seconds is None
    told = [int(seconds) for seconds in computed.headers.getlist("Retry-After")]
    assert len(told) == (slug != problems.INTERNAL_ERROR)
    assert all(42 <= seconds <= 41.2 * 1.2 for seconds in told)


def test_clients_that_are_refused_together_do_not_come_back_together():
    told = {json.loads(problems.encoded("queue-full", "Full.", retry_after=100)[2])["retry_after"] for _ in range(200)}
    assert min(told) >= 100
    assert max(told) <= 120
    assert len(told) > 10


def test_titles_and_slugs_are_unique():
    titles = [entry.title for entry in problems.PROBLEMS.values()]
    assert len(set(titles)) == len(titles)


class SecretError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [SecretError("/secret/path"), domain_error("no-such-slug", "/secret/path"), domain_error(7)]
)
def test_an_unexpected_exception_is_500_and_only_the_log_says_why(client, services, caplog, error):
    services.answers["options"] = error
    with caplog.at_level(logging.ERROR):
        response = client.get("/options")
    assert (response.status_code, response.json["type"]) == (500, "internal-error")
    assert "secret" not in response.text
    assert caplog.records[0].exc_info[1] is error


def test_a_failure_with_a_cause_is_logged_with_it_and_answered_without(client, services, caplog):
    error = domain_error("database-unavailable", "The database does not answer.")
    error.__cause__ = OSError("/secret/gateway.db")
    services.answers["readiness"] = error
    with caplog.at_level(logging.WARNING):
        response = client.get("/readyz")
    assert (response.status_code, response.json["detail"]) == (503, "The database does not answer.")
    assert "secret" in caplog.text
    assert "secret" not in response.text


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/txt2img/", "/jobs//u1", "/docs/swagger-initializer.js", "/docs/..%5cx"]
)
def test_only_the_index_leads_elsewhere(client, path):
    response = client.get(path)
    if path == "/":
        assert (response.status_code, response.headers["Location"]) == (302, "docs")
    else:
        assert (response.status_code, response.mimetype) == (404, "application/problem+json")


def test_a_wrong_method_is_405_with_the_right_ones(client):
    response = client.put("/txt2img", json=TXT2IMG)
    assert (response.status_code, response.json["type"]) == (405, "method-not-allowed")
    assert set(response.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}
    assert client.get("/txt2img").status_code == 405


def test_head_and_options_answer_without_services(client, services):
    assert client.head("/livez").data == b""
    assert client.options("/txt2img").status_code == 200
    assert services.calls == []


def test_health(client, services):
    assert client.get("/livez").json == {"status": "ok"}
    services.answers["readiness"] = []
    assert client.get("/readyz").json == {"status": "ok", "reasons": []}
    services.answers["readiness"] = ["No worker is running."]
    response = client.get("/readyz")
    assert (response.status_code, response.json) == (200, {"status": "degraded", "reasons": ["No worker is running."]})
    assert services.calls == [("readiness",), ("readiness",)]


def test_options_go_through(client, services):
    names = ("samplers", "schedulers", "upscalers", "latent_modes", "styles", "models")
    services.answers["options"] = {**{name: ["电影"] for name in names}, "default_model": None}
    response = client.get("/options")
    assert response.json == services.answers["options"]
    assert list(json.loads(response.text)) == [*names, "default_model"]
    assert "电影" in response.text
