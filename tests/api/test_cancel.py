"""The endpoints that cancel, and the Cancel-After header."""

from __future__ import annotations

import io

import pytest

from app.api.http.cancel_after import parse
from app.api.http.refusals import InvalidRequest
from app.gateway.waiting import Reading
from app.jobs.revisions import Version
from tests.api.fakes import NAME, TXT2IMG, domain_error, failed_view, job_view, queued_view

CANCEL = f"/jobs/u1/txt2img/{NAME}/cancel"


def test_a_job_is_cancelled_and_shown(client, services):
    services.answers["cancel"] = Reading(queued_view(status="running", cancel_requested=True), Version(17, 5))
    response = client.post(CANCEL)
    assert (response.status_code, response.json["cancel_requested"]) == (200, True)
    assert response.headers["ETag"] == 'W/"17-5"'
    assert services.calls == [("cancel", "u1", "txt2img", NAME)]


def test_a_cancelled_job_shows_why(client, services):
    view = {**failed_view("deadline-passed", "It took too long."), "status": "cancelled"}
    services.answers["cancel"] = Reading(view, Version(1, 1))
    error = client.post(CANCEL).json["error"]
    assert (error["type"], error["status"]) == ("deadline-passed", 409)


def test_what_is_not_there_is_404(client, services):
    services.answers["cancel"] = domain_error("job-not-found")
    assert client.post(CANCEL).status_code == 404


@pytest.mark.parametrize("path", ["/jobs/u1/txt2img/x/cancel", "/jobs/u1/video/x/cancel", "/jobs/u1/cancel/x"])
def test_paths_are_checked(client, services, path):
    assert client.post(path).status_code in (404, 405)
    assert services.calls == []


def test_all_that_wait_are_counted(client, services):
    services.answers["cancel_queued"] = 3
    response = client.post("/jobs/u1/cancel?status=queued")
    assert (response.status_code, response.json) == (200, {"cancelled": 3})
    assert services.calls == [("cancel_queued", "u1")]


@pytest.mark.parametrize("query", ["", "?status=running", "?status=", "?status=QUEUED", "?status=queued&status=queued"])
def test_no_other_status_can_be_cancelled(client, services, query):
    response = client.post(f"/jobs/u1/cancel{query}")
    assert (response.status_code, response.json["type"]) == (422, "validation-failed")
    assert "status" in response.json["errors"]
    assert services.calls == []


@pytest.mark.parametrize("path", [CANCEL, "/jobs/u1/cancel?status=queued"])
def test_a_malformed_body_is_refused_though_none_is_read(client, services, path):
    short = {"CONTENT_LENGTH": "9", "wsgi.input": io.BytesIO(b"abc")}
    response = client.post(path, environ_overrides=short)
    assert (response.status_code, response.json["type"]) == (400, "invalid-request")
    assert services.calls == []


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5), ("90", 90), ("90s", 90), ("5m", 300), ("1m30s", 90), ("2h", 7200), ("1h30m", 5400), ("1h0m5s", 3605),
        ("1h5s", 3605), ("24h", 86400), ("86400", 86400), ("005", 5), ("1440m", 86400),
    ],
)  # fmt: skip
def test_a_time_to_cancel_after(client, services, header, seconds):
    services.answers["post"] = job_view()
    assert client.post("/txt2img", json=TXT2IMG, headers={"Cancel-After": header}).status_code == 200
    assert services.calls[0][3]["client"].cancel_after == seconds


@pytest.mark.parametrize(
    "header",
    [
        "", "1", "4", "0s", "4s", "1y", "-5", "+5", "5.5", "5 s", "5m 1s", "1s1m", "5m5", "m", "h5", "24h1s", "86401", "1e3",
        "5M", "٥", "1d", "9" * 400, "5,5", "inf",
    ],
)  # fmt: skip
def test_no_other_time_is_taken(header):
    with pytest.raises(InvalidRequest, match="Cancel-After"):
        parse([header])


@pytest.mark.parametrize("given", [["60", "60"], ["60,60"]])
def test_it_is_given_once(given):
    """A server may join repeated fields by a comma."""
    with pytest.raises(InvalidRequest, match="once"):
        parse(given)
