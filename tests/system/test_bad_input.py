"""Bad input of every kind: one clear problem that names the field, nothing stored, the WebUI not asked, never a 5xx."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from PIL import Image

from tests.system.harness import PICTURE, Gateway, Simulator, picture

#: The user of every request here, who must have nothing in the end.
USER = "bad"
MEBIBYTE = 1024 * 1024
RECORD = "20260101T000000000-00000000"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def image_of(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A PNG of a few bytes whose header promises ten thousand million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PNG = image_of("PNG")
JPEG = image_of("JPEG")


@pytest.fixture
def untouched(house: Gateway, its_simulator: Simulator) -> Iterator[Gateway]:
    """The gateway, which must be found afterwards as it was."""
    before = house.files()
    yield house
    assert house.files() == before
    assert its_simulator.requests() == []
    assert its_simulator.stats()["generations"] == 0
    assert house.jobs(USER) == []
    assert house.readiness() == "ok"


def refused(answer: requests.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem that an answer must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["type"], problem["status"]) == (slug, status)
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in answer.text
    return problem


def send(house: Gateway, body: Any, content_type: str | None = "application/json", **headers: str) -> requests.Response:
    """POST these bytes to /txt2img."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        given["Content-Type"] = content_type
    return house.http.request("POST", "/txt2img", data=body, headers=given)


GOOD = json.dumps(picture(id=USER)).encode()

UNREADABLE = {
    "nothing": b"",
    "half": GOOD[:-1],
    "no JSON": b"id=bad&prompt=x",
    "bad UTF-8": GOOD.replace(b"lighthouse", b"\xff\xfe"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "100,000 brackets": b"[" * 100_000,
    "100,000 brackets closed": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "100,000 brackets in a field": GOOD.replace(b'"42"', b"[" * 100_000 + b"]" * 100_000),
    "NaN": GOOD.replace(b"7.0", b"NaN"),
    "Infinity": GOOD.replace(b"7.0", b"-Infinity"),
    "a number of 10,000 digits": GOOD.replace(b"7.0", b"7" * 10_000),
    "a member twice": GOOD[:-1] + b', "id": "other"}',
    "a raw NUL": GOOD.replace(b"lighthouse", b"light\0house"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_json(untouched: Gateway, case: str) -> None:
    refused(send(untouched, UNREADABLE[case]), 400, "invalid-json")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"5", b"[" + GOOD + b"]"])
def test_json_that_is_no_object(untouched: Gateway, body: bytes) -> None:
    assert refused(send(untouched, body), 422, "validation-failed")["errors"].keys() == {"_schema"}


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        (None, {}),
        ("text/plain", {}),
        ("application/x-www-form-urlencoded", {}),
        ("multipart/form-data; boundary=x", {}),
        ("application/xml", {}),
        ("application/json; charset=latin-1", {}),
        ("nonsense", {}),
        ("application/json", {"Content_Encoding": "gzip"}),
    ],
)
def test_wrong_content_type(untouched: Gateway, content_type: str | None, headers: dict[str, str]) -> None:
    refused(send(untouched, GOOD, content_type, **headers), 415, "unsupported-media-type")


def test_body_over_the_limit(untouched: Gateway) -> None:
    # White space around it is no excuse.
    declared = send(untouched, GOOD + b" " * (33 * MEBIBYTE))
    chunked = send(untouched, iter([GOOD] + [b" " * MEBIBYTE] * 33))

    for answer in (declared, chunked):
        assert "32 MiB" in refused(answer, 413, "body-too-large")["detail"]


def test_everything_wrong_is_said_at_once(untouched: Gateway) -> None:
    nothing = refused(untouched.send("txt2img", {}), 422, "validation-failed")
    assert nothing["errors"].keys() == PICTURE.keys()
    wrong = refused(untouched.send("txt2img", dict.fromkeys(PICTURE, None) | {"promt": 1}), 422, "validation-failed")
    assert wrong["errors"].keys() == PICTURE.keys() | {"promt"}
    names = {"style": "no", "sampler_name": "euler", "model": "no", "hr_upscaler": "no", "scheduler": "no"}
    unknown = refused(untouched.post(id=USER, **names), 422, "unknown-name")
    assert unknown["errors"].keys() == unknown["accepted"].keys() == names.keys()


@pytest.mark.parametrize("field", PICTURE)
def test_missing_and_null(untouched: Gateway, field: str) -> None:
    missing = {name: value for name, value in picture(id=USER).items() if name != field}
    for body in (missing, picture(id=USER) | {field: None}):
        problem = refused(untouched.send("txt2img", body), 422, "validation-failed")
        assert problem["errors"].keys() == {field}
        assert field in problem["detail"]


BIG = 10**30
SURROGATE = "\ud800"
OUT_OF_RANGE: dict[str, list[Any]] = {
    "id": ["", "x" * 65, "a/b", "a\\b", ".", "..", "a\nb", "\u202e", "\u200b", "a\0", SURROGATE, 5, ["a"], True],
    "prompt": ["x" * 20_001, "\0", SURROGATE, 5, ["a"], {}],
    "negative_prompt": ["x" * 20_001, "\0", SURROGATE, 5, False],
    "width": [0, 56, 70, -64, 2056, 64.5, "64", True, [64], BIG],
    "height": [0, 56, 70, -64, 2056, 64.5, "64", True, {}, BIG],
    "seed": ["abc", "-2", "01", " 1", "1.0", "１", "4294967296", 4294967296, -2, 1.5, True, [1], "\0", BIG],
    "steps": [0, -1, 151, 1.5, "4", True, BIG],
    "hr_upscaler": [5, "\0", SURROGATE, "x" * 256, []],
    "cfg_scale": [-0.1, 100.1, "7", True, [], BIG],
    "style": [5, "\0", SURROGATE, "x" * 256, {}],
    "batch_size": [0, -1, 9, 1.5, "1", True, BIG],
    "sampler_name": [None, "", 5, "\0", SURROGATE],
    "scheduler": [None, "", 5, "\0", SURROGATE],
    "model": [None, "", 5, "\0", SURROGATE],
    "denoising_strength": [None, -0.1, 1.1, "0.5", True],
    "hr_scale": [None, 0.5, 4.5, "2", True],
}


@pytest.mark.parametrize("field", OUT_OF_RANGE)
def test_wrong_type_and_out_of_range(untouched: Gateway, field: str) -> None:
    for value in OUT_OF_RANGE[field]:
        answer = untouched.send("txt2img", picture(id=USER) | {field: value})
        assert refused(answer, 422, "validation-failed")["errors"].keys() == {field}, value


@pytest.mark.parametrize("field", ["width", "steps", "cfg_scale", "seed"])
def test_a_number_beyond_all_floats(untouched: Gateway, field: str) -> None:
    text = json.dumps(picture(id=USER) | {field: 12321}).replace("12321", "1e999")
    assert refused(send(untouched, text), 422, "validation-failed")["errors"].keys() == {field}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": "4294967295", "batch_size": 2}, "seed"),
        ({"width": 2048, "height": 2048, "batch_size": 5}, "batch_size"),
        ({"width": 2048, "height": 2048, "hr_upscaler": "Latent", "hr_scale": 4}, "hr_scale"),
    ],
)
def test_fields_that_do_not_go_together(untouched: Gateway, changes: dict[str, Any], field: str) -> None:
    problem = refused(untouched.post(**{"id": USER, **changes}), 422, "validation-failed")
    assert problem["errors"].keys() == {field}


@pytest.mark.parametrize(
    ("field", "suggested"),
    [
        ("promt", "prompt"),
        ("cfgscale", "cfg_scale"),
        ("Width", "width"),
        ("override_settings", None),
        ("alwayson_scripts", None),
        ("script_name", None),
        ("resize_mode", None),
        ("init_images", None),
        ("force_task_id", None),
    ],
)
def test_unknown_fields(untouched: Gateway, field: str, suggested: str | None) -> None:
    problem = refused(untouched.send("txt2img", picture(id=USER) | {field: "x"}), 422, "validation-failed")
    [message] = problem["errors"][field]
    if suggested is not None:
        assert f"did you mean {suggested}?" in message


def test_an_unknown_field_with_half_a_character(untouched: Gateway) -> None:
    refused(untouched.send("txt2img", picture(id=USER) | {SURROGATE: 1}), 422, "validation-failed")


@pytest.mark.parametrize(
    ("kind", "field", "name"),
    [
        ("txt2img", "style", "no such style"),
        ("txt2img", "sampler_name", "euler"),
        ("txt2img", "scheduler", "no such scheduler"),
        ("txt2img", "hr_upscaler", "no such upscaler"),
        ("txt2img", "model", "no such model"),
        ("img2img", "hr_upscaler", "Latent"),
    ],
)
def test_unknown_names(untouched: Gateway, kind: str, field: str, name: str) -> None:
    own = {"init_images": encoded(PNG)} if kind == "img2img" else {}
    problem = refused(untouched.send(kind, picture(id=USER, **own) | {field: name}), 422, "unknown-name")
    assert problem["errors"].keys() == {field}
    assert isinstance(problem["accepted"][field], list)
    assert name not in problem["accepted"][field]


SHAPES: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "empty": "",
    "no image": [],
    "two images": [encoded(PNG), encoded(PNG)],
    "a list in a list": [[encoded(PNG)]],
    "null in a list": [None],
    "NUL": "\0",
    "surrogate": SURROGATE,
}
CONTENTS = {
    "broken base64": encoded(PNG)[:-3] + "!",
    "base64 of half a group": encoded(PNG)[:-1],
    "URL-safe base64": encoded(b"\xff\xef\xbe" * 8).replace("/", "_"),
    "a URL": "http://127.0.0.1:1/image.png",
    "a URL in a list": ["https://example.invalid/image.png"],
    "a file URL": "file:///etc/passwd",
    "a data URI without base64": "data:image/png," + encoded(PNG),
    "an empty data URI": "data:image/png;base64,",
    "text": encoded(b"this is no image at all"),
    "SVG": encoded(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "GIF": encoded(image_of("GIF")),
    "BMP": encoded(image_of("BMP")),
    "truncated PNG": encoded(PNG[: len(PNG) // 2]),
    "PNG without its last pixels": encoded(PNG[:-20]),
    "truncated JPEG": encoded(JPEG[: len(JPEG) // 2]),
    "truncated WebP": encoded(image_of("WEBP")[:-20]),
    "too many pixels": encoded(huge_png()),
}


@pytest.mark.parametrize("case", [*SHAPES, *CONTENTS])
def test_bad_reference_images(untouched: Gateway, case: str) -> None:
    slug, value = ("validation-failed", SHAPES[case]) if case in SHAPES else ("bad-image", CONTENTS[case])
    answer = untouched.send("img2img", picture(id=USER) | {"init_images": value})
    assert refused(answer, 422, slug)["errors"].keys() == {"init_images"}


def test_a_missing_reference_image(untouched: Gateway) -> None:
    problem = refused(untouched.send("img2img", picture(id=USER)), 422, "validation-failed")
    assert problem["errors"].keys() == {"init_images"}


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "é"])
def test_bad_idempotency_keys(untouched: Gateway, key: str) -> None:
    answer = send(untouched, GOOD, Idempotency_Key=key.encode("latin-1"))
    assert "Idempotency-Key" in refused(answer, 400, "invalid-request")["detail"]


BAD_IDS = {
    "%00": 422,
    "a%00b": 422,
    "%0A": 422,
    "a%5Cb": 422,
    "a\\b": 422,
    ".": 422,
    "..": 422,
    "%2e": 422,
    "%2e%2e": 422,
    "%E2%80%8B": 422,
    "x" * 65: 422,
    "%E7%94%A8" * 65: 422,
    "a%2Fb": 404,
    "a%2fb": 404,
    "": 404,
    "a/b/c/d/e": 404,
    "%ff": 400,
    "%C3": 400,
    "%ED%A0%80": 400,
}
ID_PATHS = {
    "GET": ("/t2ihistory/{}", "/i2ihistory/{}", "/jobs/{}", "/get_images/{}/txt2img/" + RECORD),
    "DELETE": ("/delete/{}/txt2img/" + RECORD,),
}


def ask(house: Gateway, method: str, target: str) -> dict[str, Any]:
    """One request whose target goes out byte for byte; its problem. Client libraries would tidy it up."""
    request = f"{method} {target} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n".encode("latin-1")
    status, media_type, body = house.http.raw(request)
    assert 400 <= status < 500, (target, status)
    assert media_type == "application/problem+json", (target, body)
    problem: dict[str, Any] = json.loads(body)
    assert problem["status"] == status
    return problem


@pytest.mark.parametrize("user", BAD_IDS, ids=ascii)
def test_odd_user_ids_in_paths(untouched: Gateway, user: str) -> None:
    for method, paths in ID_PATHS.items():
        for path in paths:
            problem = ask(untouched, method, path.format(user))
            assert problem["status"] == BAD_IDS[user], (method, path)
            if problem["status"] == 422:
                assert problem["errors"].keys() == {"id"}


BAD_FILENAMES = [
    "..",
    "%2e%2e",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..\\..\\etc\\passwd",
    "..%5c..%5cetc%5cpasswd",
    "%00",
    f"{RECORD}-1-0.png%00",
    f"{RECORD}-1-0.png%0a",
    f"{RECORD}%2f",
    f"{RECORD}/",
    f"/{RECORD}",
    f"./{RECORD}",
    "",
    ".worker-testhost.lock",
    ".sd-gateway-id",
    "gateway.db",
    f"{RECORD}-1-0.gif",
    "%ff",
    "x" * 3000,
]


@pytest.mark.parametrize("filename", BAD_FILENAMES, ids=lambda name: ascii(name)[:40])
def test_odd_file_names(untouched: Gateway, filename: str) -> None:
    for method, endpoint in (("GET", "get_images"), ("GET", "get_args"), ("DELETE", "delete"), ("GET", "jobs")):
        problem = ask(untouched, method, f"/{endpoint}/{USER}/txt2img/{filename}")
        assert problem["status"] == (400 if filename == "%ff" else 404)


@pytest.mark.parametrize("kind", ["video", "TXT2IMG", "txt2img%20", "..", "%2e%2e", "%00", "txt2img%00", "a\\b"])
def test_unknown_types(untouched: Gateway, kind: str) -> None:
    for method, endpoint in (("GET", "get_images"), ("GET", "get_args"), ("DELETE", "delete"), ("GET", "jobs")):
        problem = ask(untouched, method, f"/{endpoint}/{USER}/{kind}/{RECORD}")
        assert (problem["status"], problem["type"]) == (404, "unknown-type")
        assert "txt2img and img2img" in problem["detail"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=abc", "limit"),
        ("limit=1.5", "limit"),
        ("limit=", "limit"),
        ("limit=%EF%BC%91", "limit"),
        ("limit=" + "9" * 3000, "limit"),
        ("limit=1&limit=2", "limit"),
        ("before=x", "before"),
        ("before=", "before"),
        ("before=1", "before"),
        ("before=%00", "before"),
        ("before=..%2f", "before"),
        ("before=" + "A" * 3000, "before"),
        ("limit=%ff", None),
        ("before=%ED%A0%80", None),
    ],
)
def test_bad_pages(untouched: Gateway, query: str, field: str | None) -> None:
    for path in ("t2ihistory", "i2ihistory", "jobs"):
        problem = ask(untouched, "GET", f"/{path}/{USER}?{query}")
        if field is None:
            assert (problem["status"], problem["type"]) == (400, "invalid-request")
        else:
            assert (problem["status"], list(problem["errors"])) == (422, [field])


@pytest.mark.parametrize("status", ["bogus", "", "deleted", "%00", "queued,running"])
def test_a_bad_status(untouched: Gateway, status: str) -> None:
    problem = ask(untouched, "GET", f"/jobs/{USER}?status={status}")
    assert (problem["status"], list(problem["errors"])) == (422, ["status"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 302),
        ("GET", "/nothing", 404),
        ("GET", "/txt2img/", 404),
        ("GET", "/txt2img", 405),
        ("PUT", "/img2img", 405),
        ("POST", f"/t2ihistory/{USER}", 405),
        ("GET", f"/delete/{USER}/txt2img/{RECORD}", 405),
        ("BREW", "/txt2img", 405),
    ],
)
def test_wrong_paths_and_methods(untouched: Gateway, method: str, path: str, status: int) -> None:
    if status < 400:
        assert untouched.http.request(method, path).status_code == status
    else:
        assert ask(untouched, method, path)["status"] == status


@pytest.mark.parametrize(
    "target",
    ["/t2ihistory/\xff", "/t2ihistory/" + "x" * 9000, "/t2ihistory/a b", "t2ihistory"],
    ids=lambda text: ascii(text)[:30],
)
def test_what_is_no_http_does_not_get_past_the_server(untouched: Gateway, target: str) -> None:
    """Raw bytes, blanks and endless lines are no request line (RFC 9112, section 3); the worker class itself says so."""
    status, kind, body = untouched.http.raw(f"GET {target} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode("latin-1"))
    assert 400 <= status < 500
    assert kind == "application/problem+json"
    assert b"Traceback" not in body


def test_another_users_files(house: Gateway, its_simulator: Simulator) -> None:
    job = house.succeeded(house.post(id="owner"))
    image = job["images"][0]["filename"]

    for user, kind in (("thief", "txt2img"), ("owner", "img2img"), ("Owner", "txt2img"), ("owner ", "txt2img")):
        path = f"{user.replace(' ', '%20')}/{kind}"
        answers = [
            house.http.get(f"/get_images/{path}/{image}"),
            house.http.get(f"/get_args/{path}/{image}"),
            house.http.get(f"/get_args/{path}/{job['name']}"),
            house.http.get(f"/jobs/{path}/{job['name']}"),
            house.http.delete(f"/delete/{path}/{image}"),
            house.http.delete(f"/delete/{path}/{job['name']}"),
        ]
        for answer in answers:
            refused(answer, 404, "job-not-found")
    assert house.history("thief") == []
    assert house.history("owner") == [job]
    assert len(house.images(job)) == 1
