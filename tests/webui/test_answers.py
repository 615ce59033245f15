import base64
import json
import logging

import pytest

from app.webui import errors
from app.webui.answers import (
    Generation,
    Picture,
    error_body,
    generation_images_base64,
    is_restarted,
    is_start_window,
    made_with,
    read_generation,
    read_upscaled,
)
from app.webui.bounds import AnswerBounds
from app.webui.exchange import Reply
from tests.webui.samples import ROOMY, model

ALPHA = model("alpha")
INFO = {
    "all_seeds": [42, 43],
    "infotexts": ["one", "two"],
    "index_of_first_image": 0,
    "sd_model_name": "alpha",
    "sd_model_hash": "0123456789",
    "sampler_name": "Euler",
    "version": "v1.10.1",
    "job_timestamp": "20261126081500",
    "all_prompts": ["a cat # 1", "a cat # 2"],
}
ONE, TWO, GRID = (base64.b64encode(data).decode() for data in (b"picture one", b"picture two", b"grid"))


def reply(images=(ONE, TWO), status=200, **info):
    return Reply(
        status, json.dumps({"images": list(images), "parameters": {}, "info": json.dumps(INFO | info)}).encode()
    )


def read(answer, expected=2, limits=ROOMY, first_seed=42):
    return read_generation(answer, limits, expected=expected, model=ALPHA, first_seed=first_seed)


def test_pictures_come_with_their_seeds_and_infotexts():
    assert read(reply()) == Generation(
        pictures=(Picture(b"picture one", 42, "one"), Picture(b"picture two", 43, "two")),
        model="alpha",
        sampler="Euler",
        version="v1.10.1",
        simulated=False,
        job_timestamp="20261126081500",
        prompt="a cat # 1",
    )


@pytest.mark.parametrize(
    "answer",
    [
        reply([GRID, ONE, TWO], index_of_first_image=1, infotexts=["grid", "one", "two"]),
        reply([ONE, TWO, GRID, "", None]),
        reply(["data:image/png;base64," + ONE, TWO]),
    ],
)
def test_a_grid_extra_pictures_and_data_uris_change_nothing(answer):
    assert read(answer).pictures == read(reply()).pictures


@pytest.mark.parametrize(
    ("infotexts", "expected"), [(["one"], ["one", ""]), (None, ["", ""]), ("text", ["", ""]), ([None, 5], ["", ""])]
)
def test_missing_infotexts_lose_no_picture(infotexts, expected):
    assert [picture.infotext for picture in read(reply(infotexts=infotexts)).pictures] == expected


@pytest.mark.parametrize(
    ("version", "simulated"),
    [("simulator 1.7.0", True), ("simulator", True), ("v1.7.0-simulator", False), (None, False)],
)
def test_only_the_version_tells_a_simulator(version, simulated):
    assert read(reply(version=version)).simulated is simulated


def test_what_the_info_lacks_is_none():
    found = read(reply(version=5, sampler_name=None, index_of_first_image=0))
    assert (found.version, found.sampler, found.simulated) == (None, None, False)


@pytest.mark.parametrize(
    "answer",
    [
        Reply(200, b""),
        Reply(200, b"{"),
        Reply(200, b"\xff\xfe{}"),
        Reply(200, b"[" * 100_000),
        Reply(200, b"[]"),
        Reply(200, b"null"),
        Reply(200, b"{}"),
        Reply(200, b'{"images": [], "info": "{"}'),
        Reply(200, b'{"images": [], "info": "[]"}'),
        Reply(200, b'{"images": [], "info": {"sd_model_name": "alpha"}}'),
        reply([]),
        reply([ONE]),
        reply([GRID, ONE], index_of_first_image=1),
        reply([ONE, TWO], index_of_first_image=-1),
        reply([ONE, TWO], index_of_first_image="0"),
        reply([ONE, TWO], index_of_first_image=True),
        reply([ONE, None]),
        reply([ONE, ""]),
        reply([ONE, "***"]),
        reply([ONE, TWO[:-3]]),
        reply([ONE, "é" + TWO]),
        reply([ONE, "data:image/png;base64," + TWO[:-1]]),
        reply(all_seeds=[42]),
        reply(all_seeds=[42, "43"]),
        reply(all_seeds=[42, True]),
        reply(all_seeds=None),
        Reply(200, json.dumps({"images": {}, "info": json.dumps(INFO)}).encode()),
    ],
)
def test_a_bad_answer(answer):
    with pytest.raises(errors.BadAnswer) as caught:
        read(answer)
    assert caught.value.retryable


def test_fewer_pictures_are_said():
    with pytest.raises(errors.BadAnswer, match="fewer pictures"):
        read(reply([ONE]))


@pytest.mark.parametrize("name", ["beta", "", None, 5, ["alpha"]])
def test_another_model_is_never_taken(name):
    with pytest.raises(errors.WrongModel) as caught:
        read(reply(sd_model_name=name))
    assert not caught.value.retryable


def test_a_model_of_the_same_name_and_another_hash_is_never_taken():
    twin = model("alpha", digest="ffffffffff", by_digest=True)
    with pytest.raises(errors.WrongModel):
        read_generation(reply(), ROOMY, expected=2, model=twin, first_seed=42)


@pytest.mark.parametrize("seeds", [[42, 42], [43, 42], [42, 44], [7, 8], [-1, 0]])
def test_other_seeds_than_those_asked_for_are_never_taken(seeds):
    with pytest.raises(errors.WrongValues, match="seed") as caught:
        read(reply(all_seeds=seeds))
    assert (caught.value.slug, caught.value.retryable) == ("webui-bad-answer", True)
    assert [picture.seed for picture in read(reply(all_seeds=seeds), first_seed=None).pictures] == seeds


def test_an_enormous_seed_is_none():
    with pytest.raises(errors.BadAnswer):
        read(reply(all_seeds=[42, 2**64]), first_seed=None)


def test_the_first_prompt_and_the_begin_are_none_where_the_info_lacks_them():
    found = read(reply(all_prompts=None, prompt="the prompt", job_timestamp=None))
    assert (found.prompt, found.job_timestamp) == ("the prompt", None)
    assert read(reply(all_prompts=[], prompt=None)).prompt is None


def test_a_long_infotext_is_cut_and_loses_no_picture():
    tight = AnswerBounds(size=1 << 20, values=1000, infotext=10)
    pictures = read(reply(infotexts=["x" * 11, "猫" * 4]), limits=tight).pictures
    assert [picture.infotext for picture in pictures] == ["x" * 10, "猫" * 3]
    assert pictures[0].data == b"picture one"


def test_long_names_of_the_info_are_cut():
    found = read(reply(version="v" * 1000, sampler_name="s" * 1000))
    assert (found.version, found.sampler) == ("v" * 255, "s" * 255)


@pytest.mark.parametrize("answer", [Reply(200, b"[" + b"[]," * 1000 + b"[]]"), reply(extra=[[]] * 1000)])
def test_json_of_more_values_than_asked_for_is_never_unpacked(answer):
    with pytest.raises(errors.BadAnswer):
        read(answer, limits=AnswerBounds(size=1 << 20, values=1000, infotext=1000))


OOM_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; /home/someone/models)"
FAILURES = [
    # A1111: an unhandled exception, an HTTPException, a refused body.
    (500, {"error": "RuntimeError", "detail": "", "body": "", "errors": "secret /path"}, errors.WebuiFailed),
    (404, {"error": "HTTPException", "detail": "Sampler not found", "body": "", "errors": ""}, errors.Refused),
    (422, {"detail": [{"loc": ["body", "steps"], "msg": "secret", "type": "type_error"}]}, errors.Refused),
    (500, {"error": "HTTPException", "detail": "Invalid encoded image", "body": "", "errors": ""}, errors.WebuiFailed),
    # Forge.
    (500, {"error": "TypeError", "detail": "", "body": "", "message": "secret"}, errors.WebuiFailed),
    (404, {"detail": "Init image not found"}, errors.Refused),
    # Deterministic: A1111 and Forge.
    (500, {"error": "NansException", "errors": "A tensor with NaNs was produced. secret /home"}, errors.Cannot),
    (500, {"error": "AssertionError", "message": "UniPC order must be < sampling steps, secret"}, errors.Cannot),
    # Bare bodies.
    (500, "secret text", errors.WebuiFailed),
    (500, b"Internal Server Error", errors.WebuiFailed),
    (500, b"", errors.WebuiFailed),
    (500, b"\xff\xff", errors.WebuiFailed),
    (500, b"[" * 100_000, errors.WebuiFailed),
    (502, b"<html>bad gateway</html>", errors.WebuiFailed),
    # About the moment, or about the gateway.
    (429, b"", errors.WebuiFailed),
    (408, b"", errors.WebuiFailed),
    (401, {"detail": "Not authenticated"}, errors.Refused),
    (403, b"", errors.Refused),
    (307, b"", errors.Refused),
    (204, b"", errors.Refused),
    # Out of memory, in every shape.
    (500, {"error": "OutOfMemoryError", "detail": "", "body": "", "errors": OOM_TEXT}, errors.OutOfMemory),
    (500, {"error": "OutOfMemoryError"}, errors.OutOfMemory),
    (500, {"error": "torch.cuda.OutOfMemoryError", "errors": 5}, errors.OutOfMemory),
    (500, {"error": "RuntimeError", "detail": "", "body": "", "errors": OOM_TEXT}, errors.OutOfMemory),
    (500, {"error": "RuntimeError", "detail": "", "body": "", "message": OOM_TEXT}, errors.OutOfMemory),
    (500, {"error": "HTTPException", "detail": OOM_TEXT, "body": "", "errors": ""}, errors.OutOfMemory),
    (500, OOM_TEXT, errors.OutOfMemory),
    (500, OOM_TEXT.encode(), errors.OutOfMemory),
    # A refused request may echo a prompt that speaks of memory.
    (422, {"detail": "out of memory"}, errors.Refused),
]


@pytest.mark.parametrize(("status", "body", "kind"), FAILURES)
def test_a_failure_is_told_by_its_shape(status, body, kind, caplog):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with caplog.at_level(logging.DEBUG), pytest.raises(errors.WebuiError) as caught:
        read(Reply(status, raw))
    assert type(caught.value) is kind
    for text in (str(caught.value), caplog.text):
        assert "secret" not in text
        assert "/home" not in text
    with pytest.raises(kind):
        generation_images_base64(Reply(status, raw), ROOMY, 2)
    with pytest.raises(kind):
        read_upscaled(Reply(status, raw), ROOMY, [])


def test_the_routers_own_404_comes_from_a_webui_that_starts_or_has_no_api():
    missing = Reply(404, b'{"detail": "Not Found"}')
    with pytest.raises(errors.Refused):
        read(missing)
    # The first half of the job was made there, so the WebUI was restarted since.
    with pytest.raises(errors.WebuiFailed):
        read_upscaled(missing, ROOMY, [])


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b'{"detail": "Not Found"}', True),
        (404, b'{"detail":"Not Found"}', True),
        (404, b"<html>a proxy's page</html>", True),
        (404, b"", True),
        (404, b'{"error": "HTTPException", "detail": "Not Found"}', False),
        (404, b'{"detail": "Init image not found"}', False),
        (404, b"null", False),
        (200, b'{"detail": "Not Found"}', False),
        (500, b"", False),
    ],
)
def test_the_start_window_is_told_by_the_routers_own_404(status, body, expected):
    assert is_start_window(Reply(status, body)) is expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b'{"detail":"Not Found"}', True),
        # The page of a proxy in front of it.
        (404, b"<html>no backend</html>", False),
        (404, b'{"detail":"Sampler not found"}', False),
        (500, b'{"detail":"Not Found"}', False),
    ],
)
def test_only_the_routers_own_404_shows_that_the_webui_was_restarted(status, body, expected):
    assert is_restarted(Reply(status, body)) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "x"}', {"error": "x"}),
        (b'"text"', {"message": "text"}),
        (b"Internal Server Error", {"message": "Internal Server Error"}),
        (b"\xff", {"message": "\N{REPLACEMENT CHARACTER}"}),
        (b"", {"message": ""}),
        (b"[1]", {"message": [1]}),
    ],
)
def test_the_body_of_an_error_is_always_an_object(body, expected):
    assert error_body(Reply(500, body)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(), True),
        (reply([]), True),
        (reply(sd_model_name="beta"), False),
        (reply(status=500), False),
        (Reply(200, b"{"), False),
    ],
)
def test_what_made_a_picture_that_nobody_keeps(answer, expected):
    assert made_with(answer, ROOMY, ALPHA) is expected


def test_the_class_of_the_error_is_logged(caplog):
    with caplog.at_level(logging.WARNING, "app.webui"), pytest.raises(errors.WebuiFailed):
        read(Reply(500, b'{"error": "IndexError", "errors": "list index out of range"}'))
    assert caplog.messages == ["the WebUI answered a generation with status 500, error IndexError"]


@pytest.mark.parametrize("name", ["no class at all: secret", "x" * 81, 5, None, ""])
def test_what_is_no_class_name_is_not_logged(name, caplog):
    with caplog.at_level(logging.WARNING, "app.webui"), pytest.raises(errors.WebuiFailed):
        read(Reply(500, json.dumps({"error": name}).encode()))
    assert caplog.messages == ["the WebUI answered a generation with status 500, error unknown"]


def test_the_pictures_are_handed_on_as_they_came():
    answer = reply([GRID, ONE, TWO, "extra"], index_of_first_image=1)
    assert generation_images_base64(answer, ROOMY, 2) == [ONE, TWO]
    with pytest.raises(errors.BadAnswer):
        generation_images_base64(answer, ROOMY, 4)


def test_upscaled_pictures_keep_seed_and_infotext():
    pictures = read(reply()).pictures
    big = [base64.b64encode(data).decode() for data in (b"BIG ONE", b"BIG TWO")]
    answer = Reply(200, json.dumps({"html_info": "<p></p>", "images": big}).encode())
    assert read_upscaled(answer, ROOMY, pictures) == (Picture(b"BIG ONE", 42, "one"), Picture(b"BIG TWO", 43, "two"))


@pytest.mark.parametrize("images", [[ONE], [], None, [ONE, "***"], [ONE, 5]])
def test_a_bad_answer_of_the_extras(images):
    answer = Reply(200, json.dumps({"html_info": "", "images": images}).encode())
    with pytest.raises(errors.BadAnswer):
        read_upscaled(answer, ROOMY, read(reply()).pictures)


KINDS = {
    errors.Unreachable: ("webui-unreachable", True),
    errors.NotAnswering: ("webui-unreachable", True),
    errors.ConnectionBroken: ("webui-disconnected", True),
    errors.Withheld: ("webui-disconnected", True),
    errors.JobTimeout: ("webui-timeout", True),
    errors.BadAnswer: ("webui-bad-answer", True),
    errors.WebuiFailed: ("webui-error", True),
    errors.Interrupted: ("webui-interrupted", True),
    errors.WrongModel: ("webui-wrong-model", False),
    errors.NotUp: ("webui-unreachable", True),
    errors.OptionIgnored: ("webui-bad-answer", True),
    errors.Cannot: ("webui-cannot", False),
    errors.Refused: ("webui-refused", False),
    errors.OutOfMemory: ("webui-out-of-memory", False),
    errors.NoLongerAvailable: ("no-longer-available", False),
    errors.NoDefaultModel: ("no-default-model", False),
}


def test_every_error_says_what_it_is():
    assert {kind: (kind.slug, kind.retryable) for kind in KINDS} == KINDS
    assert set(errors.WebuiError.__subclasses__()) == {*KINDS, errors.UnknownNames}
    assert len({str(kind()) for kind in KINDS}) == len(KINDS)
