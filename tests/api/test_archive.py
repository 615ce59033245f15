from __future__ import annotations

import json
from unittest.mock import ANY
from urllib.parse import quote

import pytest

from app.api.http import cursor
from app.gateway.archive import File
from app.gateway.waiting import Reading
from app.jobs.revisions import Version
from tests.api.conftest import make_app
from tests.api.fakes import IMAGE, NAME, TXT2IMG, domain_error, failed_view, job_view, queued_view

USER = "用户 甲"


@pytest.mark.parametrize(("path", "kind"), [("t2ihistory", "txt2img"), ("i2ihistory", "img2img")])
def test_history_is_a_page_of_jobs(client, services, path, kind):
    services.answers["history"] = ([job_view()], 17)
    response = client.get(f"/{path}/{quote(USER)}")
    assert response.status_code == 200
    assert services.calls == [("history", USER, kind, 50, None)]
    assert [record["name"] for record in response.json["records"]] == [NAME]
    assert response.json["records"][0]["url"] == f"/jobs/u1/txt2img/{NAME}"
    assert response.json["next"] == f"/{path}/{quote(USER)}?before={cursor.encode(17)}"


def test_next_can_be_followed_and_keeps_the_query(client, services):
    services.answers["jobs"] = ([queued_view(), failed_view("webui-error")], 5)
    first = client.get(f"/jobs/{quote(USER)}?status=queued&limit=2&other=1").json
    assert first["next"] == f"/jobs/{quote(USER)}?limit=2&status=queued&before={cursor.encode(5)}"
    services.answers["jobs"] = ([], None)
    last = client.get(first["next"]).json
    assert services.calls == [("jobs", USER, "queued", 2, None), ("jobs", USER, "queued", 2, 5)]
    assert last == {"jobs": [], "next": None}
    assert first["jobs"][1]["error"]["type"] == "webui-error"
    assert first["jobs"][1]["error"]["status"] == 502


def test_next_is_absolute_with_a_public_url():
    app, services = make_app(SDG_AUTH="none", SDG_PUBLIC_URL="https://x.example")
    services.answers["history"] = ([], 1)
    assert app.test_client().get("/t2ihistory/u").json["next"].startswith("https://x.example/t2ihistory/u?before=")


BAD_QUERIES = [
    *[("limit", value) for value in ("0", "501", "-1", "+5", "1.0", "", "x", "٥", "9" * 5000, " 5", "5%00")],
    *[("before", value) for value in ("", "0", "x", "AQAAAAAAAAAFAAAA", "%00", "é", "A" * 10_000)],
    ("before", cursor.encode(5) + "="),
    ("before", cursor.encode(5)[:-1]),
    ("before", "B" + cursor.encode(5)[1:]),
    *[("status", value) for value in ("", "done", "QUEUED", "%00")],
]


@pytest.mark.parametrize(("name", "value"), BAD_QUERIES)
def test_a_bad_query_is_422_naming_the_parameter(client, services, name, value):
    response = client.get(f"/jobs/u1?{name}={value}")
    assert response.status_code == 422
    assert list(response.json["errors"]) == [name]
    assert services.calls == []


def test_a_parameter_given_twice_is_422(client):
    assert list(client.get("/jobs/u1?limit=1&limit=2").json["errors"]) == ["limit"]


@pytest.mark.parametrize("sequence", [0, 1, 2**40, 2**63 - 1])
def test_a_cursor_comes_back(sequence):
    text = cursor.encode(sequence)
    assert cursor.decode(text) == sequence
    assert quote(text, safe="") == text


def test_every_changed_cursor_is_refused():
    text = cursor.encode(123456)
    for place in range(len(text)):
        changed = text[:place] + ("B" if text[place] != "B" else "C") + text[place + 1 :]
        with pytest.raises(ValueError, match="not a cursor"):
            cursor.decode(changed)


BAD_IDS = [".", "..", "x" * 65, "a\\b", "a\nb", "\0", "a\u200bb", "\x7f", "\ue000"]
ROUTES = [
    ("get", "/t2ihistory/{id}"),
    ("get", "/i2ihistory/{id}"),
    ("get", "/jobs/{id}"),
    ("get", f"/jobs/{{id}}/txt2img/{NAME}"),
    ("get", f"/get_images/{{id}}/txt2img/{IMAGE}"),
    ("get", f"/get_args/{{id}}/txt2img/{NAME}"),
    ("delete", f"/delete/{{id}}/txt2img/{NAME}"),
]


@pytest.mark.parametrize("user", BAD_IDS)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_odd_user_id_in_a_path_is_422(client, services, method, path, user):
    response = getattr(client, method)(path.format(id=quote(user, safe="")).replace("/../", "/%2e%2e/"))
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["id"]
    assert services.calls == []


@pytest.mark.parametrize("user", ["用" * 64, "é", "e\u0301", "a%b", "a?b#c", " ", "...", "+", "😀"])
def test_a_user_id_arrives_by_code_point(client, services, user):
    services.answers["history"] = ([], None)
    client.get(f"/t2ihistory/{quote(user, safe='')}")
    assert services.calls[0][1] == user


@pytest.mark.parametrize("kind", ["TXT2IMG", "extras", "txt2img%00", "..", "%2e%2e", "\\", "%5c"])
def test_an_unknown_type_is_404_naming_it(client, services, kind):
    for path in ("jobs", "get_images", "get_args"):
        response = client.get(f"/{path}/u1/{kind}/{NAME}")
        assert (response.status_code, response.json["type"]) == (404, "unknown-type")
        assert "type" in response.json["detail"]
    assert services.calls == []


BAD_FILENAMES = [
    "..",
    "%2e%2e",
    "%2e%2e%2fsecret",
    "..%2F..%2Fetc%2Fpasswd",
    "..%5c..%5cx",
    "a%00b",
    f"{NAME}%00.png",
    f"{NAME}-1-0.PNG",
    f"{NAME}-1-0.png%0a",
    f"{NAME}-1-0.gif",
    f"{NAME}-0-0.png",
    f"{NAME}-1.json.tmp",
    f".{NAME}",
    f"{NAME}-",
    NAME.upper(),
    NAME.replace("0", "０"),
]


@pytest.mark.parametrize("filename", BAD_FILENAMES)
def test_a_file_name_that_the_gateway_never_gave_is_404(client, services, filename):
    for method, path in (("get", "get_images"), ("get", "get_args"), ("delete", "delete")):
        response = getattr(client, method)(f"/{path}/u1/txt2img/{filename}")
        assert (response.status_code, response.json["type"]) == (404, "not-found")
        assert "filename" in response.json["detail"]
    response = client.get(f"/jobs/u1/txt2img/{filename}")
    assert response.status_code == 404
    assert "name" in response.json["detail"]
    assert services.calls == []


@pytest.mark.parametrize(
    "path", ["/t2ihistory/a%2Fb", "/t2ihistory/a/b", "/jobs/u1%2ftxt2img/x", "/get_images/u1/txt2img/"]
)
def test_members_of_a_path_are_single_segments(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert "single path segments" in response.json["detail"]


@pytest.mark.parametrize("path", ["/t2ihistory/\xff", "/nowhere/\xc3(", "/jobs/\xed\xa0\x80"])
def test_an_ill_formed_path_is_400(client, services, path):
    """The bytes of the path, one character each, as WSGI has them: the client itself would mend them."""
    response = client.get("/", environ_overrides={"PATH_INFO": path})
    assert (response.status_code, response.json["type"]) == (400, "invalid-request")
    assert services.calls == []


@pytest.mark.parametrize("path", ["/jobs/u1?status=%ff", "/livez?%ed%a0%80"])
def test_an_ill_formed_query_is_400(client, services, path):
    response = client.get(path)
    assert (response.status_code, response.json["type"]) == (400, "invalid-request")
    assert services.calls == []


@pytest.mark.parametrize("filename", [NAME, IMAGE, f"{NAME}-12-3.webp", f"{NAME}-2.json", f"{NAME}-init.png"])
def test_args_and_delete_take_every_name_the_gateway_gives(client, services, filename):
    services.answers |= {"args": {**TXT2IMG, "seed": "42"}, "delete": [filename]}
    assert client.get(f"/get_args/u1/txt2img/{filename}").json["seed"] == "42"
    assert client.delete(f"/delete/u1/txt2img/{filename}").json == {"deleted": [filename]}
    assert services.calls == [("args", "u1", "txt2img", filename), ("delete", "u1", "txt2img", filename)]


def test_one_job(client, services):
    services.answers["job"] = Reading(queued_view(), Version(17, 4))
    response = client.get(f"/jobs/u1/txt2img/{NAME}", headers={"If-None-Match": 'W/"17-4"'})
    assert (response.json["status"], response.json["position"]) == ("queued", 3)
    assert (response.headers["ETag"], response.headers["Cache-Control"]) == ('W/"17-4"', "no-store")
    assert services.calls == [("job", "u1", "txt2img", NAME, {"wait": 0, "knows": ANY})]


@pytest.mark.parametrize(("slug", "status"), [("job-not-found", 404), ("file-missing", 404)])
def test_refusals_of_the_archive(client, services, slug, status):
    services.answers["delete"] = domain_error(slug)
    response = client.delete(f"/delete/u1/txt2img/{NAME}")
    assert (response.status_code, response.json["type"]) == (status, slug)


@pytest.fixture
def image(services, tmp_path):
    path = tmp_path / IMAGE
    path.write_bytes(bytes(range(256)))
    services.answers["file"] = File(str(path), "image/png", "abc", IMAGE)
    return path


def test_an_image_is_its_bytes_and_may_be_kept_by_its_owner(client, image):
    with client.get(f"/get_images/u1/txt2img/{IMAGE}") as response:
        assert response.data == image.read_bytes()
        assert response.mimetype == "image/png"
        assert response.headers["ETag"] == '"abc"'
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        cache = response.cache_control
        assert (cache.private, bool(cache.public), cache.immutable, cache.max_age) == (True, False, True, 31536000)


def test_an_image_knows_conditions_ranges_and_head(client, image):
    url = f"/get_images/u1/txt2img/{IMAGE}"
    with client.get(url, headers={"If-None-Match": '"abc"'}) as response:
        assert (response.status_code, response.data) == (304, b"")
    with client.get(url, headers={"Range": "bytes=10-19"}) as response:
        assert (response.status_code, response.data) == (206, bytes(range(10, 20)))
        assert response.headers["Content-Range"] == "bytes 10-19/256"
    with client.head(url) as response:
        assert (response.status_code, response.data) == (200, b"")
        assert response.headers["Content-Length"] == "256"
    with client.get(url, headers={"Range": "bytes=999-"}) as response:
        assert (response.status_code, response.json["type"]) == (416, "range-not-satisfiable")
        assert response.headers["Content-Range"] == "bytes */256"


def test_an_image_deleted_a_moment_ago_is_404(client, image):
    image.unlink()
    response = client.get(f"/get_images/u1/txt2img/{IMAGE}")
    assert (response.status_code, response.json["type"]) == (404, "file-missing")
    assert "/" not in response.json["detail"]


BAD_VARIANTS = [
    *[
        ("size", value)
        for value in ("1", "99999", "0160", "160.0", "+160", " 160", "", "160,320", "-160", "١٦٠", "%00")
    ],
    *[("format", value) for value in ("svg", "jpg", "WEBP", "webp ", "", "image/webp", "%00")],
    *[("download", value) for value in ("1", "yes", "True", "")],
]
ACCEPTED = {"size": "160, 320, 768", "format": "webp, jpeg, png", "download": "true, false"}


@pytest.mark.parametrize(("name", "value"), BAD_VARIANTS, ids=lambda text: text[:20])
def test_a_picture_is_never_asked_for_otherwise_than_listed(client, services, name, value):
    response = client.get(f"/get_images/u1/txt2img/{IMAGE}?{name}={quote(value, safe='%,')}")
    assert (response.status_code, response.json["type"]) == (422, "validation-failed")
    assert response.json["errors"] == {name: [f"Must be one of {ACCEPTED[name]}."]}
    assert services.calls == []


def test_each_fault_of_a_pictures_query_is_named(client, services):
    query = "size=160&size=160&format=svg&download=maybe"
    errors = client.get(f"/get_images/u1/txt2img/{IMAGE}?{query}").json["errors"]
    assert list(errors) == ["size", "format", "download"]
    assert errors["size"] == ["Must be given only once."]
    assert services.calls == []


def test_a_picture_is_asked_for_as_a_variant(client, services, image):
    services.answers["variant"] = services.answers["file"]
    for query, asked in {
        "size=320": (320, None),
        "format=jpeg": (None, "jpg"),
        "format=webp&size=768&download=true&other=1": (768, "webp"),
    }.items():
        services.calls.clear()
        client.get(f"/get_images/u1/txt2img/{IMAGE}?{query}").close()
        assert services.calls == [("variant", "u1", "txt2img", IMAGE, *asked)]


def test_a_picture_is_downloaded_under_its_name(client, services, image):
    for query, kind in {
        "?download=true": "attachment",
        "?download=false": "inline",
        "?other": "inline",
        "": "inline",
    }.items():
        with client.get(f"/get_images/u1/txt2img/{IMAGE}{query}") as response:
            assert response.headers["Content-Disposition"] == f"{kind}; filename={IMAGE}"
            assert response.data == image.read_bytes()


class Text(str):
    """Text of a library's own kind."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("灯塔 😀 é", '"灯塔 😀 é"'),
        ("half \ud83d of a pair", '"half \\ud83d of a pair"'),
        ('\0\x1f\x7f\u2028</"\\', '"\\u0000\\u001f\x7f\u2028</\\"\\\\"'),
        (Text("灯塔"), '"灯塔"'),
        (2**63 - 1, "9223372036854775807"),
        (2**64, "18446744073709551616"),
        (-(2**70), "-1180591620717411303424"),
        (0.1, "0.1"),
        (7.0, "7.0"),
        (float("nan"), "null"),
        (float("-inf"), "null"),
        ({"z": 1, "a": {"b": [], "A": None}}, '{"z":1,"a":{"b":[],"A":null}}'),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_an_answer_is_json_in_utf8_whatever_a_webui_wrote(client, services, value, written):
    services.answers["history"] = ([job_view(webui={"model": "m", "sampler": "s", "version": "v", "new": value})], None)
    body = client.get("/t2ihistory/u1").data
    assert f'"new":{written}}}'.encode() in body
    assert body.endswith(b"}\n")


def test_an_answer_holds_a_very_large_number_however_it_is_spelt(client, services):
    services.answers["history"] = ([job_view(webui={"model": "m", "sampler": "s", "version": "v", "new": 1e300})], None)
    assert client.get("/t2ihistory/u1").json["records"][0]["webui"]["new"] == 1e300


def test_an_answer_keeps_the_order_of_its_members(client, services):
    view = job_view()
    services.answers["job"] = Reading(view, Version(1, 1))
    pairs = json.loads(client.get(f"/jobs/u1/txt2img/{NAME}").data, object_pairs_hook=list)
    assert [name for name, _ in pairs] == [*view, "url"]
    assert [name for name, _ in dict(pairs)["args"]] == list(view["args"])
