from __future__ import annotations

import base64

import pytest

from app.api.http import cursor
from app.jobs.queue import Cursor
from tests.api.fakes import NAME

SHOWN = {
    "running": [{"redacted": True, "position": None, "progress": 0.5, "eta": 1.5, "waits_for": None}],
    "waiting": [
        {
            "redacted": False,
            "id": "u 1",
            "type": "txt2img",
            "name": NAME,
            "created_at": "2026-11-22T06:15:30.123Z",
            "position": 1,
            "progress": 0.0,
            "eta": None,
            "waits_for": "paused",
        }
    ],
    "counts": {"running": 1, "waiting": 7},
    "oldest_wait": 3.5,
    "seconds_to_empty": None,
    "paused": True,
}
PLACE = Cursor(12345.5, 678)


def asked(services, users):
    """Which of these users were to be named, and the rest of the last question."""
    _, is_named, *rest = services.calls[-1]
    return {user for user in users if is_named(user)}, *rest


def test_a_page_of_the_queue_has_urls_for_what_it_names(client, services):
    services.answers["queue"] = SHOWN, PLACE
    answer = client.get("/queue?id=u%201&limit=1")
    assert answer.status_code == 200
    assert answer.json["waiting"][0]["url"] == f"/jobs/u%201/txt2img/{NAME}"
    assert "url" not in answer.json["running"][0]
    assert asked(services, ["u 1", "u 2"]) == ({"u 1"}, 1, None)
    following = answer.json["next"]
    assert following.startswith("/queue?id=u+1&limit=1&before=")
    services.answers["queue"] = {**SHOWN, "waiting": []}, None
    assert client.get(following).json["next"] is None
    assert asked(services, ["u 1", "u 2"]) == ({"u 1"}, 1, PLACE)


def test_without_a_user_nobody_is_named(client, services):
    services.answers["queue"] = {**SHOWN, "waiting": []}, None
    assert client.get("/queue").status_code == 200
    assert asked(services, ["u 1", "u 2"]) == (set(), 50, None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("id=", "id"),
        ("id=a/b", "id"),
        ("id=..", "id"),
        ("id=a%00", "id"),
        ("id=" + "x" * 65, "id"),
        ("id=a&id=b", "id"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("before=x", "before"),
        ("before=" + cursor.encode(7), "before"),
        ("before=" + base64.urlsafe_b64encode(b"\x02" + b"\xff" * 20).decode(), "before"),
        ("before=" + cursor.encode_place(Cursor(float("nan"), 1)), "before"),
        ("before=" + cursor.encode_place(Cursor(1.0, 2**64 - 1)), "before"),
    ],
)
def test_a_bad_query_is_refused_by_name(client, query, field):
    answer = client.get(f"/queue?{query}")
    assert (answer.status_code, answer.json["type"]) == (422, "validation-failed")
    assert list(answer.json["errors"]) == [field]


def test_a_cursor_of_the_queue_is_none_of_a_history(client):
    assert client.get("/jobs/u1?before=" + cursor.encode_place(PLACE)).status_code == 422


def test_the_webuis_are_listed(client, services):
    webui = {
        "name": "big",
        "state": "clean",
        "health": "down",
        "model": None,
        "since": None,
        "seconds_per_cost": None,
    }
    services.answers["webuis"] = [webui]
    assert client.get("/webuis").json == {"webuis": [webui]}


def test_a_paused_queue_is_told_and_no_fault(client, services):
    services.answers |= {"readiness": [], "notices": ["The queue is paused."]}
    assert client.get("/readyz").json == {"status": "ok", "reasons": ["The queue is paused."]}
    services.answers["readiness"] = ["No WebUI answers."]
    assert client.get("/readyz").json == {
        "status": "degraded",
        "reasons": ["No WebUI answers.", "The queue is paused."],
    }
