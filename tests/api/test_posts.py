from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest

from app.problems import PROBLEMS
from tests.api.conftest import make_app
from tests.api.fakes import IMAGE, IMG2IMG, NAME, TXT2IMG, domain_error, failed_view, job_view, queued_view

JOB_URL = f"/jobs/u1/txt2img/{NAME}"


def test_a_finished_job_is_answered_with_its_urls(client, services):
    services.answers["post"] = job_view()
    response = client.post("/txt2img", json=TXT2IMG)
    assert response.status_code == 200
    assert response.json["url"] == JOB_URL
    assert response.json["images"][0]["url"] == f"/get_images/u1/txt2img/{IMAGE}"
    assert response.json["images"][0]["bytes"] == 401233
    assert response.headers["Vary"] == "Prefer"
    assert "Preference-Applied" not in response.headers
    assert "灯塔".encode() in response.data
    [(_, kind, fields, kwargs)] = services.calls
    assert (kind, fields) == ("txt2img", TXT2IMG)
    kwargs.pop("client").release_body()
    assert kwargs == {
        "fingerprint": "",
        "idempotency_key": None,
        "wait": 600,
    }


def test_urls_are_percent_encoded_and_absolute_with_a_public_url():
    app, services = make_app(SDG_AUTH="none", SDG_PUBLIC_URL="https://pictures.example/sd")
    services.answers["post"] = queued_view(id="用户 1?#%", type="img2img")
    response = app.test_client().post("/img2img", json={**IMG2IMG, "id": "用户 1?#%"})
    url = f"https://pictures.example/sd/jobs/%E7%94%A8%E6%88%B7%201%3F%23%25/img2img/{NAME}"
    assert response.status_code == 202
    assert response.json["url"] == response.headers["Location"] == url


def test_urls_carry_the_path_that_a_proxy_mounted_the_gateway_under(client, services):
    services.answers["post"] = job_view()
    response = client.post("/txt2img", json=TXT2IMG, environ_overrides={"SCRIPT_NAME": "/sd"})
    assert response.json["url"] == "/sd" + JOB_URL


def test_the_reference_image_has_a_url(client, services):
    filename = f"{NAME}-init.png"
    init = {"filename": filename, "width": 64, "height": 64, "bytes": 128, "media_type": "image/png"}
    services.answers["post"] = job_view(type="img2img", init_image=init)
    response = client.post("/img2img", json=IMG2IMG)
    assert response.json["init_image"] == {
        **init,
        "url": f"/get_images/u1/img2img/{filename}",
        "thumbnail_url": f"/get_images/u1/img2img/{filename}?size=160&format=webp",
    }


@pytest.mark.parametrize("posted", [IMG2IMG["init_images"], [IMG2IMG["init_images"]]])
def test_the_one_image_arrives_as_text(client, services, posted):
    services.answers["post"] = job_view()
    client.post("/img2img", json={**IMG2IMG, "init_images": posted})
    assert services.calls[0][2]["init_images"] == IMG2IMG["init_images"]


@pytest.mark.parametrize("status", ["queued", "running"])
def test_an_unfinished_job_is_202_with_its_location(client, services, status):
    services.answers["post"] = queued_view(status=status)
    response = client.post("/txt2img", json=TXT2IMG)
    assert response.status_code == 202
    assert response.headers["Location"] == response.json["url"] == JOB_URL
    assert response.json["eta"] == 12.5


STORED = [
    "webui-refused",
    "webui-out-of-memory",
    "webui-error",
    "webui-bad-answer",
    "webui-wrong-model",
    "webui-unreachable",
    "webui-disconnected",
    "webui-timeout",
    "no-longer-available",
    "worker-lost",
    "storage-failed",
]


@pytest.mark.parametrize("slug", STORED)
def test_a_failed_job_is_its_problem_with_the_url_of_the_job(client, services, slug):
    services.answers["post"] = failed_view(slug, "Said the WebUI.")
    response = client.post("/txt2img", json=TXT2IMG)
    assert response.status_code == PROBLEMS[slug].status
    assert response.mimetype == "application/problem+json"
    told = response.headers.get("Retry-After")
    assert response.json == {
        "type": slug,
        "title": PROBLEMS[slug].title,
        "status": response.status_code,
        "detail": "Said the WebUI.",
        "url": JOB_URL,
        "request": response.headers["X-Request-ID"],
        **({} if told is None else {"retry_after": int(told)}),
    }


def test_a_stored_slug_of_another_version_is_an_internal_error(client, services):
    services.answers["post"] = failed_view("of-the-future")
    assert client.post("/txt2img", json=TXT2IMG).json["type"] == "internal-error"


def test_a_cancelled_job_is_409(client, services):
    services.answers["post"] = job_view(status="cancelled", images=[])
    response = client.post("/txt2img", json=TXT2IMG)
    assert (response.status_code, response.json["type"]) == (409, "job-cancelled")
    assert response.json["url"] == JOB_URL


PREFER = [
    (["respond-async"], 0, 202, "respond-async"),
    (["Respond-Async"], 0, 202, "respond-async"),
    (["wait=5"], 5, 202, "wait=5"),
    (['wait = "5"'], 5, 200, "wait=5"),
    (["wait=0"], 0, 202, "wait=0"),
    (["wait=9999"], 600, 202, None),
    (["wait=9999"], 600, 200, "wait=9999"),
    (["wait=" + "9" * 5000], 600, 202, None),
    (["respond-async, wait=7"], 7, 202, "respond-async, wait=7"),
    (["respond-async", "wait=7"], 7, 200, "wait=7"),
    (["wait=7; foo=bar, handling=lenient"], 7, 202, "wait=7"),
    (["wait=3, wait=9"], 3, 202, "wait=3"),
    (['other="a, wait=1", wait=4'], 4, 202, "wait=4"),
    (["wait=-1"], 600, 202, None),
    (["wait=soon"], 600, 202, None),
    (["wait"], 600, 202, None),
    (["respond-async=yes"], 600, 202, None),
    (['"', ",,,", "wait=6"], 6, 202, "wait=6"),
    ([", ;, wait=6"], 6, 202, "wait=6"),
    ([""], 600, 202, None),
    (['wait="1\\0"'], 10, 202, "wait=10"),
    (['wait=5; reason="a, b\\" c" ;; x, foo'], 5, 202, "wait=5"),
    (["respond-async=", 'respond-async=""'], 0, 202, "respond-async"),
    (["wait=", "wait=;", "wait = 8"], 8, 202, "wait=8"),
    (["wait=1; reason=" + "x" * 300, "wait=2"], 2, 202, "wait=2"),
    (["respond-async", "x" * 5000 + ", wait=5"], 0, 202, "respond-async"),
]


@pytest.mark.parametrize(("fields", "wait", "status", "applied"), PREFER)
def test_prefer(client, services, fields, wait, status, applied):
    services.answers["post"] = job_view() if status == 200 else queued_view()
    response = client.post("/txt2img", json=TXT2IMG, headers=[("Prefer", field) for field in fields])
    assert services.calls[0][3]["wait"] == wait
    assert response.status_code == status
    assert response.headers.get("Preference-Applied") == applied


@pytest.mark.parametrize("key", ["a", "!~", "x" * 255, '"550e8400-e29b-41d4-a716-446655440000"'])
def test_the_idempotency_key_goes_through(client, services, key):
    services.answers["post"] = job_view()
    client.post("/txt2img", json=TXT2IMG, headers={"Idempotency-Key": key})
    assert services.calls[0][3]["idempotency_key"] == key


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é", "a\tb"])
def test_a_malformed_idempotency_key_is_400(client, services, key):
    response = client.post("/txt2img", json=TXT2IMG, headers={"Idempotency-Key": key})
    assert (response.status_code, response.json["type"]) == (400, "invalid-request")
    assert "Idempotency-Key" in response.json["detail"]
    assert services.calls == []


def test_equal_documents_have_one_fingerprint(client, services):
    services.answers["post"] = job_view()
    key = {"Idempotency-Key": "k1"}
    client.post("/txt2img", json=TXT2IMG, headers=key)
    reordered = json.dumps(dict(reversed(TXT2IMG.items())), indent=2, ensure_ascii=True)
    client.post("/txt2img", data=reordered, content_type="application/json; charset=UTF-8", headers=key)
    client.post("/txt2img", json={**TXT2IMG, "seed": "7"}, headers=key)
    first, second, other = (call[3]["fingerprint"] for call in services.calls)
    canonical = json.dumps(TXT2IMG, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert first == second == hashlib.sha256(canonical.encode()).hexdigest() != other


#: Where the exception names no seconds of its own.
RETRY_AFTER = {"no-catalogue": 10, "no-default-model": 2, "database-unavailable": 5, "storage-unavailable": 10}
REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("unknown-name", {"errors": {"style": ["Unknown."]}, "accepted": {"style": ["photo"]}}),
    ("bad-image", {"errors": {"init_images": ["Truncated."]}}),
    ("idempotency-key-reused", {}),
    ("key-of-deleted-job", {}),
    ("user-queue-full", {"retry_after": 0.2}),
    ("queue-full", {"retry_after": 12.1}),
    ("no-free-waiter", {"retry_after": 3}),
    ("no-catalogue", {}),
    ("no-default-model", {}),
    ("database-unavailable", {}),
    ("storage-unavailable", {}),
]


@pytest.mark.parametrize(("slug", "members"), REFUSALS)
def test_a_refusal_of_the_services_is_its_problem(client, services, slug, members):
    services.answers["post"] = domain_error(slug, **members)
    response = client.post("/txt2img", json=TXT2IMG)
    assert response.status_code == PROBLEMS[slug].status
    assert response.mimetype == "application/problem+json"
    assert response.json["detail"] == "A safe sentence."
    assert response.json.get("errors") == members.get("errors")
    assert response.json.get("accepted") == members.get("accepted")
    seconds = members.get("retry_after", RETRY_AFTER.get(slug))
    if seconds is None:
        assert "Retry-After" not in response.headers
        assert "retry_after" not in response.json
    else:
        # At least a second, and at most a fifth more than was asked for.
        told = response.json["retry_after"]
        assert max(seconds, 1) <= told <= max(1, math.ceil(seconds), seconds * 1.2)
        assert response.headers["Retry-After"] == str(told)


def test_the_documented_examples_pass_their_own_schema(client, services):
    services.answers["post"] = job_view()
    document = client.get("/openapi.json").json
    for path in ("/txt2img", "/img2img"):
        example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert client.post(path, json=example).status_code == 200
