"""Honest answers fit into their bounds, others cost nothing."""

import io
import json
import random
import sys
import tracemalloc

import pybase64
import pytest
from PIL import Image, PngImagePlugin

from app.webui import bounds
from app.webui.answers import read_generation
from app.webui.bounds import AnswerBounds, of_generation
from app.webui.errors import BadAnswer
from app.webui.exchange import Reply
from tests.webui.samples import args, model

ALPHA = model("alpha")
#: As the WebUI writes it behind the prompts.
PARAMETERS = "\nSteps: 20, Sampler: Euler, CFG scale: 7.5, Seed: 42, Size: 64x64, Model: alpha, Version: v1.10.1"


def noise_png(side, infotext):
    """A PNG with transparency that does not compress, its infotext uncompressed as UTF-8."""
    pixels = random.Random(1).randbytes(side * side * 4)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("parameters", infotext)
    file = io.BytesIO()
    Image.frombytes("RGBA", (side, side), pixels).save(file, "PNG", pnginfo=text)
    return pybase64.b64encode_as_string(file.getvalue())


def answer(job, side):
    """An answer as a WebUI writes it, which escapes what is not ASCII: in ``info`` twice."""
    pictures = job["batch_size"]
    prompt, negative = job["prompt"], job["negative_prompt"]
    infotext = f"{prompt}\nNegative prompt: {negative}{PARAMETERS}"
    info = {
        "prompt": prompt,
        "all_prompts": [prompt] * pictures,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * pictures,
        "seed": 42,
        "all_seeds": list(range(42, 42 + pictures)),
        "all_subseeds": list(range(pictures)),
        "index_of_first_image": 0,
        "infotexts": [infotext] * pictures,
        "sd_model_name": "alpha",
        "sd_model_hash": "0123456789",
        "styles": [],
    }
    body = {
        "images": [noise_png(side, infotext)] * pictures,
        "parameters": {"prompt": prompt, "negative_prompt": negative},
        "info": json.dumps(info),
    }
    return Reply(200, json.dumps(body).encode())


@pytest.mark.parametrize(
    "text", ["", "a cat " * 20_000, "一只猫，水墨" * 20_000, "🐈" * 80_000, '[{,"\\\n' * 10_000, "\x01" * 10_000]
)
@pytest.mark.parametrize(("side", "pictures"), [(64, 8), (512, 1)])
def test_an_answer_with_incompressible_pictures_and_long_prompts_fits(text, side, pictures):
    job = args(prompt=text, negative_prompt=text, width=side, height=side, batch_size=pictures)
    reply = answer(job, side)
    limits = of_generation(job)
    assert len(reply.body) <= limits.size
    made = read_generation(reply, limits, expected=pictures, model=ALPHA, first_seed=42)
    # Nothing of the infotext is cut off.
    assert made.pictures[-1].infotext == f"{text}\nNegative prompt: {text}{PARAMETERS}"


@pytest.mark.parametrize("scale", [1.5, 4])
def test_enlarged_pictures_fit_by_their_scale(scale):
    small = args(prompt="", negative_prompt="", width=512, height=512, batch_size=1)
    enlarged = json.dumps({"html_info": "", "images": [noise_png(int(512 * scale), "")]})
    limits = of_generation(small, scale=scale)
    assert len(enlarged) <= limits.size
    assert limits.size > of_generation(small).size
    assert limits.infotext == of_generation(small).infotext


def test_the_size_is_bounded_by_what_was_asked_for():
    job = args(prompt="", negative_prompt="", width=64, height=64, batch_size=1)
    assert of_generation(job).size < 16 << 20
    larger = of_generation(args(width=1024, height=1024, batch_size=8)).size
    assert larger < 8 * 1024 * 1024 * 16 + (64 << 20)


def test_a_surrogate_in_a_prompt_is_counted():
    # Such a prompt is refused before it gets here; it must not raise all the same.
    assert of_generation(args(prompt="\ud800")).infotext > 0


@pytest.mark.parametrize(
    "text", ["[" + "[]," * 200_000 + "[]]", "{" + '"a":{},' * 200_000 + '"b":{}}', "[" + "0," * 200_000 + "0]"]
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_json_that_unpacks_into_many_values_is_refused_unread(text, as_bytes):
    body = text.encode() if as_bytes else text
    tracemalloc.start()
    try:
        with pytest.raises(BadAnswer):
            bounds.parse(body)
        assert tracemalloc.get_traced_memory()[1] < sys.getsizeof(body)
    finally:
        tracemalloc.stop()
    assert bounds.parse(body, 1_000_000) == json.loads(text)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"NaN nonsense", b"[" * 50_000, "", "\ud800"])
def test_what_is_no_json_is_a_bad_answer(body):
    with pytest.raises(BadAnswer):
        bounds.parse(body)


def test_an_answer_is_parsed_by_its_own_bound():
    tight = AnswerBounds(size=100, values=3, infotext=100)
    assert tight.parse(b"[1,2,3]") == [1, 2, 3]
    with pytest.raises(BadAnswer):
        tight.parse(b"[1,2,3,4]")


@pytest.mark.parametrize(
    ("infotext", "kept"),
    [
        ("x" * 10, "x" * 10),
        ("x" * 11, "x" * 10),
        ("猫猫猫", "猫猫猫"),
        ("猫猫猫x", "猫猫猫x"),
        # No half of a character is left.
        ("猫猫猫猫", "猫猫猫"),
        ("🐈🐈🐈", "🐈🐈"),
        ("é" * 6, "é" * 5),
        ("", ""),
        # Surrogates without a partner take three bytes each; where the text is cut they go too.
        ("\ud800" * 3, "\ud800" * 3),
        ("ab\ud800" + "x" * 10, "ab" + "x" * 5),
    ],
)
def test_an_infotext_is_cut_by_its_bytes(infotext, kept):
    cut = AnswerBounds(size=100, values=100, infotext=10).cut(infotext)
    assert cut == kept
    assert len(cut.encode("utf-8", "surrogatepass")) <= 10


@pytest.mark.parametrize(
    ("value", "kept"), [("Euler", "Euler"), ("", ""), ("x" * 256, "x" * 255), (None, None), (5, None), (["a"], None)]
)
def test_a_name_is_a_short_text(value, kept):
    assert bounds.name(value) == kept
