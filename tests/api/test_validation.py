from __future__ import annotations

import io
import json

import pytest

from tests.api.conftest import make_app
from tests.api.fakes import IMG2IMG, TXT2IMG, job_view

PNG = "iVBORw0KGgo="
BAD_FIELDS = [
    *[
        (name, value)
        for name in ("width", "height")
        for value in (63, 65, 2056, 0, -64, "512", True, 512.5, 1e300, None, [])
    ],
    *[("width", 10**400), ("width", {"a": 1})],
    *[("steps", value) for value in (0, 151, "20", 2.5, False, None)],
    *[("batch_size", value) for value in (0, 9, "1", True, None)],
    *[("cfg_scale", value) for value in (-0.1, 100.5, "7", True, None, 10**400)],
    *[
        ("seed", value)
        for value in ("01", "+5", " 5", "5 ", "4294967296", -2, 4294967296, 1.5, True, None, "٥", "-0", "x", [])
    ],
    *[("prompt", value) for value in (None, 1, [], "a\0b", "\ud800", "x\udfffy", "x" * 20001)],
    *[("negative_prompt", value) for value in (None, "\0", "x" * 20001)],
    *[("style", value) for value in (None, 3, "\0", "x" * 256)],
    *[("hr_upscaler", value) for value in (None, 0, "\ud800")],
    *[("sampler_name", value) for value in (None, "", 1, "a\0")],
    *[("scheduler", value) for value in (None, "", 1)],
    *[("model", value) for value in (None, "", 1)],
    *[("denoising_strength", value) for value in (None, -0.1, 1.1, "0.5", True)],
    *[("hr_scale", value) for value in (None, 0.9, 4.1, "2")],
    *[("resize_mode", value) for value in (None, "", "Stretch", 0)],
    *[("id", value) for value in (None, "", 7, ".", "..", "a/b", "a\\b", "x" * 65, "a\nb", "a\u200bb", "\0", "\ud800")],
    *[("init_images", value) for value in (None, "", [], [PNG, PNG], [None], [""], 5, {}, "a\0", [["a"]])],
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda value: repr(value)[:24])
def test_a_bad_field_is_422_naming_it_alone(client, services, field, value):
    # Not json=…: an unpaired surrogate travels as an escape only.
    body = json.dumps({**IMG2IMG, field: value})
    response = client.post("/img2img", data=body, content_type="application/json")
    assert (response.status_code, response.json["type"]) == (422, "validation-failed")
    assert list(response.json["errors"]) == [field]
    assert field in response.json["detail"]
    assert services.calls == []


GOOD_FIELDS = [
    *[("seed", value, value) for value in ("", "-1", "0", "4294967295", "42")],
    *[("seed", value, str(int(value))) for value in (-1, 0, 42, 42.0, 4294967295)],
    ("width", 512.0, 512),
    ("width", 64, 64),
    ("width", 2048, 2048),
    ("cfg_scale", 0, 0),
    ("cfg_scale", 100, 100),
    ("id", "用" * 64, "用" * 64),
    ("id", "é", "é"),
    ("id", "e\u0301", "e\u0301"),
    ("id", "...", "..."),
    ("id", "a b?#%+", "a b?#%+"),
    ("prompt", "", ""),
    ("prompt", "😀" * 20000, "😀" * 20000),
    ("hr_scale", 1, 1),
    ("denoising_strength", 0, 0),
    ("resize_mode", "fill", "fill"),
]


@pytest.mark.parametrize(("field", "value", "loaded"), GOOD_FIELDS, ids=lambda value: repr(value)[:24])
def test_a_good_field_arrives_as_posted(client, services, field, value, loaded):
    services.answers["post"] = job_view()
    assert client.post("/img2img", json={**IMG2IMG, field: value}).status_code == 200
    arrived = services.calls[0][2][field]
    assert arrived == loaded
    assert type(arrived) is type(loaded)


@pytest.mark.parametrize(("path", "body"), [("/txt2img", TXT2IMG), ("/img2img", IMG2IMG)])
def test_every_documented_field_is_required_and_all_are_named_at_once(client, path, body):
    response = client.post(path, json={})
    assert response.json["errors"] == {name: ["This field is required."] for name in body}


def test_all_faults_come_at_once_with_the_nearest_known_name(client):
    body = {**TXT2IMG, "widht": 512, "Prompt": "x", "zzz": 1, "width": 7, "seed": None}
    response = client.post("/txt2img", json=body)
    errors = response.json["errors"]
    assert set(errors) == {"widht", "Prompt", "zzz", "width", "seed"}
    assert errors["widht"] == ["Unknown field; did you mean width?"]
    assert errors["Prompt"] == ["Unknown field; did you mean prompt?"]
    assert errors["zzz"] == ["Unknown field."]
    assert errors["seed"] == ["null is not accepted."]


@pytest.mark.parametrize("field", ["init_images", "resize_mode", "enable_hr", "override_settings", "alwayson_scripts"])
def test_fields_of_others_are_unknown_to_txt2img(client, field):
    response = client.post("/txt2img", json={**TXT2IMG, field: "crop"})
    assert list(response.json["errors"]) == [field]


def test_a_flood_of_unknown_fields_is_answered_briefly(client):
    body = {**TXT2IMG, **{f"unknown{number}": 1 for number in range(5000)}, "x" * 100_000: 1}
    response = client.post("/txt2img", json=body)
    assert response.status_code == 422
    assert len(response.data) < 5000
    assert len(response.json["errors"]) == 20
    assert response.json["errors"]["_schema"] == ["4982 more unknown fields."]
    assert "4982 more unknown fields." in response.json["detail"]


def test_known_and_unknown_faults_together_are_at_most_twenty(client):
    response = client.post(
        "/img2img", json={**dict.fromkeys(IMG2IMG), **{f"unknown{number}": 1 for number in range(30)}}
    )
    errors = response.json["errors"]
    assert len(errors) == 20
    assert errors.keys() > IMG2IMG.keys()
    assert errors["_schema"] == ["23 more unknown fields."]


def test_an_unknown_field_that_no_utf8_text_can_hold_is_named_escaped(client):
    response = client.post("/txt2img", data=json.dumps({**TXT2IMG, "\ud800\0": 1}), content_type="application/json")
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["\\ud800\0"]


BOUND = {"SDG_MAX_OUTPUT_PIXELS": str(512 * 512 * 4)}
PIXELS = [
    ({"batch_size": 4}, None),
    ({"batch_size": 5}, "batch_size"),
    ({"hr_upscaler": "None", "batch_size": 4}, None),
    ({"hr_upscaler": "Latent"}, None),
    ({"hr_upscaler": "Latent", "batch_size": 2}, "batch_size"),
    ({"hr_upscaler": "Latent", "hr_scale": 2.1}, "hr_scale"),
    ({"hr_upscaler": "Latent", "width": 520}, "hr_upscaler"),
    ({"hr_upscaler": "", "hr_scale": 4, "batch_size": 4}, None),
    ({"width": 2048, "height": 1024}, "width"),
]


@pytest.mark.parametrize(("changes", "field"), PIXELS)
def test_the_bound_of_pixels_counts_upscaling_and_names_what_broke_it(changes, field):
    app, services = make_app(**BOUND)
    services.answers["post"] = job_view()
    response = app.test_client().post("/txt2img", json={**TXT2IMG, "height": 512, **changes})
    assert list(response.json.get("errors") or {}) == ([field] if field else [])
    assert response.status_code == (422 if field else 200)


def test_the_last_seed_of_a_batch_is_a_seed_too(client, services):
    services.answers["post"] = job_view()
    assert client.post("/txt2img", json={**TXT2IMG, "seed": "4294967292", "batch_size": 4}).status_code == 200
    response = client.post("/txt2img", json={**TXT2IMG, "seed": "4294967293", "batch_size": 4})
    assert list(response.json["errors"]) == ["seed"]


def test_the_limits_are_those_of_the_settings_and_documented():
    app, _ = make_app(SDG_MAX_SIDE="1001", SDG_MAX_STEPS="30", SDG_MAX_BATCH_SIZE="2", SDG_MAX_PROMPT_CHARS="5")
    client = app.test_client()
    body = {**TXT2IMG, "width": 1008, "height": 1000, "steps": 31, "batch_size": 3, "prompt": "123456"}
    assert set(client.post("/txt2img", json=body).json["errors"]) == {"width", "steps", "batch_size", "prompt"}
    known = client.get("/openapi.json").json["components"]["schemas"]["Txt2imgRequest"]["properties"]
    assert known["width"]["maximum"] == 1000
    assert (known["steps"]["maximum"], known["batch_size"]["maximum"], known["prompt"]["maxLength"]) == (30, 2, 5)


MIB = 1024 * 1024

UNREADABLE = [
    b"",
    b"  \n",
    b"{",
    b"{'id': 1}",
    b'{"id": NaN}',
    b'{"id": Infinity}',
    b'{"id": -Infinity}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"id": "\xff"}',
    '{"id": "é"}'.encode("latin-1"),
    '{"id": "x"}'.encode("utf-16"),
    b'{"id": ' + b"1" * 5000 + b"}",
    b'{"id": "a", "id": "b"}',
    b'{"id": "a\x00"}',
    b"\xef\xbb\xbf{}",
]


@pytest.mark.parametrize("body", UNREADABLE, ids=lambda value: repr(value[:24]))
def test_an_unreadable_body_is_400(client, services, body):
    response = client.post("/txt2img", data=body, content_type="application/json")
    assert (response.status_code, response.json["type"]) == (400, "invalid-json")
    assert services.calls == []


@pytest.mark.parametrize("body", UNREADABLE[3:], ids=lambda value: repr(value[:24]))
def test_a_large_body_is_refused_as_a_small_one_is(client, services, body):
    """White space behind a fault changes nothing, and takes the body to the disk and through its turn."""
    small = client.post("/txt2img", data=body, content_type="application/json")
    for _ in range(5):  # more than there are turns
        large = client.post("/txt2img", data=body + b" " * 2 * MIB, content_type="application/json")
        assert large.status_code == 400
        of_one = {"detail": "", "request": ""}
        assert large.json | of_one == small.json | of_one
        assert large.json["detail"].split(":")[0] == small.json["detail"].split(":")[0]
    assert services.calls == []


def test_a_fault_in_a_large_body_is_found_where_it_is(client):
    start = '{"id": "' + "x" * 3 * MIB
    wrong = {"\xff": f"The body is not UTF-8: see byte {len(start)}.", '" 1': f"column {len(start) + 3}."}
    for fault, detail in wrong.items():
        body = (start + fault + '"}').encode("latin-1")
        response = client.post("/txt2img", data=body, content_type="application/json")
        assert response.json["detail"].endswith(detail)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_the_constants_that_are_no_json_are_named(client, constant):
    response = client.post("/txt2img", data=f'{{"cfg_scale": {constant}}}', content_type="application/json")
    assert constant in response.json["detail"]


@pytest.mark.parametrize("body", ["[]", '"text"', "1", "null", "true", "[" * 500 + "]" * 500])
def test_json_that_is_no_object_is_422(client, body):
    response = client.post("/txt2img", data=body, content_type="application/json")
    assert (response.status_code, response.json["detail"]) == (422, "The body must be a JSON object.")


def test_a_number_too_large_for_a_float_is_out_of_range(client):
    body = json.dumps({**TXT2IMG, "cfg_scale": 7}).replace('"cfg_scale": 7', '"cfg_scale": 1e999, "hr_scale": 1e999')
    response = client.post(
        "/txt2img", data=body.replace('"width": 512', '"width": 1e999'), content_type="application/json"
    )
    assert set(response.json["errors"]) == {"cfg_scale", "hr_scale", "width"}


WRONG_TYPES = [
    {"content_type": None},
    {"content_type": "text/plain"},
    {"content_type": "application/x-www-form-urlencoded"},
    {"content_type": "application/problem+json"},
    {"content_type": "application/json; charset=latin-1"},
    {"content_type": "application/json", "headers": {"Content-Encoding": "gzip"}},
]


@pytest.mark.parametrize("how", WRONG_TYPES)
def test_a_body_that_is_not_declared_as_json_is_415(client, how):
    response = client.post("/txt2img", data=json.dumps(TXT2IMG), **how)
    assert (response.status_code, response.json["type"]) == (415, "unsupported-media-type")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
def test_the_limit_of_the_body_is_exact(chunked, extra, status):
    app, services = make_app(SDG_MAX_BODY_MB="1", SDG_MAX_PROMPT_CHARS=str(2 * MIB))
    services.answers["post"] = job_view()
    start = json.dumps(TXT2IMG).encode()
    body = start + b" " * (MIB - len(start) + extra * MIB)
    stream = io.BytesIO(body)
    how = {"environ_overrides": {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}} if chunked else {}
    response = app.test_client().post(
        "/txt2img", input_stream=stream, content_length=len(body), content_type="application/json", **how
    )
    assert response.status_code == status
    if status == 413:
        assert response.json["detail"] == "The body is larger than 1 MiB."


def test_a_request_that_is_refused_by_its_head_is_answered_before_its_body(client):
    class Endless(io.RawIOBase):
        given = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.given += len(buffer)
            return len(buffer)

    stream = Endless()
    response = client.post(
        "/txt2img",
        content_type="text/plain",
        environ_overrides={"wsgi.input": stream, "wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    )
    assert response.status_code == 415
    assert stream.given == 0
