"""Parameters posted back make the same pictures, byte for byte; and Chinese works everywhere."""

from __future__ import annotations

import base64
import io
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from tests.system.harness import Gateway, Simulator, picture

#: 64 characters, one of them outside the Basic Multilingual Plane.
USER = "用户" * 31 + "画𠮷"
PROMPT = "一座灯塔，黄昏的海边，水彩画, (best quality:1.2)"


def reference() -> str:
    """A gradient of 96 × 64 pixels as a data URI."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


CASES = {
    "batch": ("txt2img", {"batch_size": 2}),
    "hires": ("txt2img", {"batch_size": 2, "hr_upscaler": "Latent", "hr_scale": 1.5, "denoising_strength": 0.6}),
    "img2img": ("img2img", {"batch_size": 2, "init_images": reference(), "resize_mode": "crop"}),
    "img2img upscaled": ("img2img", {"batch_size": 2, "init_images": [reference()], "hr_upscaler": "Lanczos"}),
}


def parameters_chunk(png: bytes) -> str:
    """The ``parameters`` text that the WebUI wrote into the picture."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return str(image.text["parameters"])


@pytest.mark.parametrize("case", CASES)
def test_parameters_posted_back_make_the_same_pictures(house: Gateway, its_simulator: Simulator, case: str) -> None:
    kind, changes = CASES[case]
    body = picture(id=USER, prompt=PROMPT, negative_prompt="模糊", seed="-1", **changes)
    job = house.succeeded(house.send(kind, body))
    images = house.images(job)

    assert len(set(images)) == 2
    assert job["id"] == USER
    assert job["args"]["prompt"] == PROMPT
    assert house.history(USER, kind)[0] == job
    for image, content in zip(job["images"], images, strict=True):
        assert image["bytes"] == len(content)
        assert image["infotext"] == parameters_chunk(content)
        assert parameters_chunk(content).startswith(PROMPT)
        with Image.open(io.BytesIO(content)) as opened:
            assert (opened.format, opened.size) == ("PNG", (image["width"], image["height"]))
    assert images[0] != images[1]

    args = posted_back(house, job, job["name"])
    again = house.succeeded(house.send(kind, args))
    assert again["name"] != job["name"]
    assert again["args"] == job["args"]
    assert house.images(again) == images

    for image, content in zip(job["images"], images, strict=True):
        single = posted_back(house, job, image["filename"])
        assert (single["seed"], single["batch_size"]) == (image["seed"], 1)
        assert house.images(house.succeeded(house.send(kind, single))) == [content]


def posted_back(house: Gateway, job: dict[str, Any], filename: str) -> dict[str, Any]:
    answer = house.http.get(f"/get_args/{quote(USER)}/{job['type']}/{filename}")
    assert answer.status_code == 200, answer.text
    args: dict[str, Any] = answer.json()
    return args


def test_the_reference_image_is_kept(house: Gateway, its_simulator: Simulator) -> None:
    job = house.succeeded(house.send("img2img", picture(id=USER, init_images=reference())))
    kept = house.http.get(job["init_image"]["url"])

    assert kept.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(kept.content)) as image:
        assert image.size == (job["init_image"]["width"], job["init_image"]["height"]) == (96, 64)
    assert "init_images" not in job["args"]
    args = house.http.get(f"/get_args/{quote(USER)}/img2img/{job['name']}").json()
    assert base64.b64decode(args["init_images"].partition(",")[2]) == kept.content


def test_deleting_leaves_nothing(house: Gateway, its_simulator: Simulator) -> None:
    before = house.files()
    job = house.succeeded(house.send("img2img", picture(id=USER, batch_size=2, init_images=reference())))
    first, second = (image["filename"] for image in job["images"])
    folder = f"/delete/{quote(USER)}/img2img"

    assert house.http.delete(f"{folder}/{first}").json() == {"deleted": [first]}
    [left] = [record for record in house.history(USER, "img2img") if record["name"] == job["name"]]
    assert [image["filename"] for image in left["images"]] == [second]
    assert house.http.get(job["images"][0]["url"]).status_code == 404
    assert house.http.get(job["images"][1]["url"]).status_code == 200

    deleted = house.http.delete(f"{folder}/{second}").json()["deleted"]
    assert second in deleted
    assert house.files() == before
    assert house.http.get(job["url"]).status_code == 404
    assert house.http.delete(f"{folder}/{job['name']}").status_code == 404
