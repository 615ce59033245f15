"""The simulator's behaviour over several requests, and its flavours; single answers are compared in test_recordings.py."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import requests
from PIL import Image

from app.simulator import FLAVOURS, SimulatorServer, SimulatorSettings, create_simulator

SMALL = {"prompt": "a cat", "seed": 42, "steps": 4, "width": 64, "height": 64}
BUSY = 30.0


def client(flavour: str = "a1111-1.10", **settings: Any) -> Any:
    return create_simulator(SimulatorSettings(flavour=flavour, **{"seconds_per_image": 0, **settings})).test_client()


def draw(webui: Any, kind: str = "txt2img", **fields: Any) -> Any:
    return webui.post(f"/sdapi/v1/{kind}", json=SMALL | fields)


def info(answer: Any) -> dict[str, Any]:
    body = answer.json() if callable(answer.json) else answer.json
    return json.loads(body["info"])


def opened(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def png(size: tuple[int, int] = (64, 48), colour: Any = "red", mode: str = "RGB", **save: Any) -> str:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG", **save)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def slow() -> Iterator[SimulatorServer]:
    """A server whose pictures take longer than any test, so that only an interrupt ends them."""
    with SimulatorServer(SimulatorSettings(seconds_per_image=BUSY)) as server:
        yield server


@pytest.fixture
def fast() -> Iterator[SimulatorServer]:
    with SimulatorServer(SimulatorSettings(seconds_per_image=0)) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        yield executor


def post(server: SimulatorServer, path: str, **body: Any) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=20, headers={"Accept-Encoding": "identity"})


def arm(server: SimulatorServer, kind: str, **more: Any) -> None:
    assert post(server, "/simulator/faults", kind=kind, **more).status_code == 200


def stats(server: SimulatorServer) -> dict[str, Any]:
    return requests.get(server.url + "/simulator/stats", timeout=20).json()


# Pictures


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_same_request_same_bytes(flavour: str) -> None:
    one, again = draw(client(flavour)).json["images"], draw(client(flavour)).json["images"]
    assert one == again


def test_everything_that_matters_changes_the_picture() -> None:
    webui = client()
    changes: list[dict[str, Any]] = [
        {"prompt": "a dog"},
        {"negative_prompt": "ugly"},
        {"seed": 43},
        {"steps": 5},
        {"cfg_scale": 3},
        {"width": 72},
        {"sampler_name": "Heun"},
        {"scheduler": "Karras"},
        {"styles": ["anime"]},
        {"override_settings": {"sd_model_checkpoint": "simulated-two"}},
        {"enable_hr": True, "denoising_strength": 0.5},
        {"enable_hr": True, "denoising_strength": 0.6},
        {"enable_hr": True, "denoising_strength": 0.6, "hr_upscaler": "Lanczos"},
    ]
    made = [draw(webui, **change).json["images"][0] for change in [{}, *changes]]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("shape", [{"batch_size": 3}, {"n_iter": 3}])
def test_picture_k_is_the_single_picture_of_its_seed(shape: dict[str, int]) -> None:
    webui = client()
    many = draw(webui, **shape)
    assert many.json["images"] == [draw(webui, seed=seed).json["images"][0] for seed in (42, 43, 44)]
    assert info(many)["all_seeds"] == [42, 43, 44]


@pytest.mark.parametrize("prompt", ["a cat", "café", "一只戴帽子的猫 🐱", "line\nbreak, with: marks"])
def test_text_chunk(prompt: str) -> None:
    answer = draw(client(), prompt=prompt)
    image = opened(answer.json["images"][0])
    assert image.info["parameters"] == info(answer)["infotexts"][0]
    data = base64.b64decode(answer.json["images"][0])
    assert (b"iTXt" in data) == (not prompt.isascii() and "é" not in prompt)


def test_size_is_rounded_down_to_eight() -> None:
    answer = draw(client(), width=71, height=127)
    assert opened(answer.json["images"][0]).size == (64, 120)
    assert (info(answer)["width"], info(answer)["height"]) == (71, 127)


def test_precomputed_pictures_differ_only_in_their_text() -> None:
    webui = client(precomputed=True)
    one, other = (opened(draw(webui, seed=seed).json["images"][0]) for seed in (1, 2))
    assert one.tobytes() == other.tobytes()
    assert "Seed: 1," in one.info["parameters"]
    assert "Seed: 2," in other.info["parameters"]


def test_a_picture_beyond_all_memory_is_out_of_memory() -> None:
    answer = draw(client(), width=65536, height=65536)
    assert (answer.status_code, answer.json["error"]) == (500, "OutOfMemoryError")


def test_reference_images_shape_the_picture() -> None:
    webui = client()
    made = {
        draw(webui, "img2img", init_images=[png(colour=colour)], resize_mode=mode).json["images"][0]
        for colour in ("red", "blue")
        for mode in (0, 1, 2)
    }
    assert len(made) == 6


def test_broken_off_reference_image() -> None:
    noise = base64.b64encode(base64.b64decode(png(size=(512, 512)))[:-60]).decode()
    assert draw(client(), "img2img", init_images=[noise]).json["error"] == "OSError"


def test_transparent_reference_image_is_laid_on_white() -> None:
    webui = client()
    clear = draw(webui, "img2img", init_images=[png(colour=(0, 0, 0, 0), mode="RGBA")]).json["images"]
    assert clear == draw(webui, "img2img", init_images=[png(colour="white")]).json["images"]


def test_more_reference_images_than_the_batch() -> None:
    answer = draw(client(), "img2img", init_images=[png()] * 3, batch_size=2)
    assert answer.json["errors"] == "bad number of images passed: 3; expecting 2 or less"


@pytest.mark.parametrize("data", ["data:image/png,abc", "data:image/png;base64"])
def test_data_uri_without_its_marks(data: str) -> None:
    assert draw(client(), "img2img", init_images=[data]).json["error"] == "IndexError"


@pytest.mark.parametrize("image_format", ["jpg", "webp", "png"])
def test_samples_format(image_format: str) -> None:
    webui = client()
    webui.post("/sdapi/v1/options", json={"samples_format": image_format})
    image = opened(draw(webui).json["images"][0])
    assert image.format == {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[image_format]
    if image_format != "png":
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be").startswith("a cat\nSteps: 4")


def test_unknown_samples_format_fails_after_the_work() -> None:
    webui = client()
    webui.post("/sdapi/v1/options", json={"samples_format": "avif"})
    answer = draw(webui)
    assert (answer.status_code, answer.json["detail"]) == (500, "Invalid image format")
    assert webui.get("/simulator/stats").json["generations"] == 1


def test_grid_comes_only_with_save_images_and_two_pictures() -> None:
    webui = client()
    assert info(draw(webui, save_images=True))["index_of_first_image"] == 0
    answer = draw(webui, save_images=True, batch_size=2)
    assert info(answer)["index_of_first_image"] == 1
    assert [opened(image).size for image in answer.json["images"]] == [(128, 64), (64, 64), (64, 64)]


# Flavours


@pytest.mark.parametrize(
    ("flavour", "found"),
    [
        ("a1111-1.7", {"schedulers": 404, "sd-vae": 200, "sd-modules": 404, "internal": 200}),
        ("a1111-1.10", {"schedulers": 200, "sd-vae": 200, "sd-modules": 404, "internal": 200}),
        ("forge", {"schedulers": 200, "sd-vae": 404, "sd-modules": 200, "internal": 200}),
        ("nowebui", {"schedulers": 200, "sd-vae": 200, "sd-modules": 404, "internal": 404}),
    ],
)
def test_routes(flavour: str, found: dict[str, int]) -> None:
    webui = client(flavour)
    codes = {name: webui.get(f"/sdapi/v1/{name}").status_code for name in ("schedulers", "sd-vae", "sd-modules")}
    assert codes | {"internal": webui.get("/internal/ping").status_code} == found


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_says_that_it_is_simulated(flavour: str) -> None:
    webui = client(flavour)
    assert info(draw(webui))["version"].startswith("simulator")
    names = [entry["name"] for entry in webui.get("/sdapi/v1/upscalers").json]
    assert names[:3] == ["None", "Lanczos", "Nearest"]
    assert len(webui.get("/sdapi/v1/latent-upscale-modes").json) == 6
    assert any(style["prompt"] is None for style in webui.get("/sdapi/v1/prompt-styles").json)


@pytest.mark.parametrize(
    ("asked", "scheduler", "used"),
    [
        ("Euler", None, ("Euler", "Automatic")),
        ("Heun", "karras", ("Heun", "Karras")),
        ("DPM++ 2M Karras", None, ("DPM++ 2M", "Karras")),
        ("Euler Karras", None, ("Euler", "Karras")),
        ("Nope", "Nope", ("DPM++ 2M", "Karras")),
        ("k_euler", None, ("DPM++ 2M", "Karras")),
        ("DPM++ 2M", "Uniform", ("DPM++ 2M", "Uniform")),
        ("DPM++ 3M SDE", None, ("DPM++ 3M SDE", "Exponential")),
    ],
)
def test_samplers_of_110_are_replaced_silently(asked: str, scheduler: str | None, used: tuple[str, str]) -> None:
    answer = draw(client(), sampler_name=asked, scheduler=scheduler)
    assert info(answer)["sampler_name"] == used[0]
    assert f"Sampler: {used[0]}, Schedule type: {used[1]}," in info(answer)["infotexts"][0]


def test_forge_error_bodies() -> None:
    webui = client("forge")
    assert draw(webui, "img2img").json == {"detail": "Init image not found"}
    crash = draw(webui, steps=0).json
    assert crash == {
        "error": "ZeroDivisionError",
        "detail": "",
        "body": "",
        "message": "integer division or modulo by zero",
    }


def test_forge_hires_needs_its_modules_and_says_so_after_the_first_pass() -> None:
    webui = client("forge")
    hires = {"enable_hr": True, "denoising_strength": 0.5, "hr_upscaler": "Latent"}
    assert draw(webui, **hires).json["error"] == "TypeError"
    assert webui.get("/sdapi/v1/progress").json["state"]["job_no"] == 1
    good = draw(webui, **hires, hr_additional_modules=["Use same choices"])
    assert good.json["parameters"]["hr_cfg"] == 1.0
    assert opened(good.json["images"][0]).size == (128, 128)


@pytest.mark.parametrize(
    ("field", "value", "slug"),
    [
        ("steps", 2.7, "int_from_float"),
        ("steps", "x", "int_parsing"),
        ("steps", [1], "int_type"),
        ("prompt", 5, "string_type"),
        ("cfg_scale", "high", "float_parsing"),
        ("cfg_scale", {}, "float_type"),
        ("tiling", "maybe", "bool_parsing"),
        ("tiling", [], "bool_type"),
        ("styles", "anime", "list_type"),
        ("override_settings", 1, "dict_type"),
        ("save_images", None, "bool_type"),
        ("alwayson_scripts", None, "dict_type"),
    ],
)
def test_pydantic_2(field: str, value: Any, slug: str) -> None:
    answer = draw(client("forge"), **{field: value})
    assert answer.status_code == 422
    (item,) = answer.json["detail"]
    assert (item["type"], item["loc"], item["input"]) == (slug, ["body", field], value)
    assert item["url"].endswith(slug)


def test_pydantic_2_bodies() -> None:
    webui = client("forge")
    broken = webui.post("/sdapi/v1/txt2img", data="{", content_type="application/json").json["detail"][0]
    assert (broken["type"], broken["loc"]) == ("json_invalid", ["body", 1])
    assert webui.post("/sdapi/v1/txt2img", json=[]).json["detail"][0]["type"] == "model_attributes_type"
    assert webui.post("/sdapi/v1/png-info", json={}).json["detail"][0]["type"] == "missing"
    assert draw(webui, steps="4").status_code == 200


@pytest.mark.parametrize(("flavour", "status"), [("a1111-1.7", 422), ("a1111-1.10", 200), ("forge", 200)])
def test_extras_above_eight(flavour: str, status: int) -> None:
    body = {"image": png((8, 8)), "upscaler_1": "Nearest", "upscaling_resize": 9}
    assert client(flavour).post("/sdapi/v1/extra-single-image", json=body).status_code == status


@pytest.mark.parametrize("flavour", ["a1111-1.10", "forge"])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("upscaling_resize", 0, "greater than 0"),
        ("gfpgan_visibility", 2, "less than or equal to 1"),
        ("upscaling_resize_w", 0, "greater than or equal to 1"),
        ("resize_mode", 2, "0"),
    ],
)
def test_extras_bounds(flavour: str, field: str, value: int, words: str) -> None:
    answer = client(flavour).post("/sdapi/v1/extra-single-image", json={"image": png(), field: value})
    assert answer.status_code == 422
    assert words in answer.json["detail"][0]["msg"]


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"[" * 100_000])
def test_unreadable_body(data: bytes) -> None:
    answer = client().post("/sdapi/v1/txt2img", data=data, content_type="application/json")
    assert (answer.status_code, answer.json["detail"]) == (400, "There was an error parsing the body")


def test_prompt_comments_are_an_option() -> None:
    webui = client()
    assert info(draw(webui, prompt="a cat # secret"))["prompt"] == "a cat \n"
    assert info(draw(webui, prompt="a cat # kept", override_settings={"enable_prompt_comments": False}))[
        "prompt"
    ].endswith("kept")


def test_divider_style_fails() -> None:
    assert draw(client(), styles=["------- more.csv -------"]).json["error"] == "TypeError"


def test_api_auth() -> None:
    webui = client(auth=("user", "secret"))
    assert draw(webui).status_code == 401
    assert webui.get("/internal/ping").status_code == 200
    assert webui.get("/sdapi/v1/loras").status_code == 200
    assert webui.get("/sdapi/v1/samplers", auth=("user", "secret")).status_code == 200
    assert "WWW-Authenticate" not in webui.get("/sdapi/v1/samplers").headers


def test_an_error_of_its_own_looks_like_one_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_simulator(SimulatorSettings(seconds_per_image=0))
    simulator = app.extensions["simulator"]
    monkeypatch.setattr(simulator.studio, "run", lambda *_: {}["nothing"])
    answer = draw(app.test_client())
    assert (answer.status_code, answer.json["error"]) == (500, "KeyError")


# Models and options


@pytest.mark.parametrize("alias", ["b", "b.safetensors"])
def test_override_of_the_model(alias: str) -> None:
    webui = client(models=("a", "b"))
    answer = draw(webui, override_settings={"sd_model_checkpoint": alias})
    assert info(answer)["sd_model_name"] == "b"
    assert webui.get("/sdapi/v1/options").json["sd_model_checkpoint"].startswith("a.safetensors [")
    assert info(draw(webui))["sd_model_name"] == "a"
    assert webui.get("/simulator/stats").json["model_loads"] == 2


def test_override_that_is_not_restored_stays() -> None:
    webui = client(models=("a", "b"))
    override = {"sd_model_checkpoint": "b"}
    draw(webui, override_settings=override, override_settings_restore_afterwards=False)
    assert info(draw(webui))["sd_model_name"] == "b"
    draw(webui, override_settings=override)
    assert webui.get("/simulator/stats").json["model_loads"] == 1


def test_titles_and_hashes_work_once_a_model_was_loaded() -> None:
    webui = client(models=("a", "folder/b"))
    entry = webui.get("/sdapi/v1/sd-models").json[1]
    assert (entry["title"], entry["model_name"], entry["hash"]) == ("folder/b.safetensors", "folder_b", None)
    answer = draw(webui, override_settings={"sd_model_checkpoint": "folder_b"})
    assert info(answer)["sd_model_name"] == "b"
    entry = webui.get("/sdapi/v1/sd-models").json[1]
    for alias in (entry["title"], entry["hash"], entry["sha256"]):
        answer = draw(webui, override_settings={"sd_model_checkpoint": alias})
        assert info(answer)["sd_model_hash"] == entry["hash"]


def test_unknown_model_is_ignored() -> None:
    webui = client(models=("a", "b"))
    assert info(draw(webui, override_settings={"sd_model_checkpoint": "nope"}))["sd_model_name"] == "a"


def test_a_key_that_was_never_set_is_never_restored() -> None:
    webui = client()
    draw(webui, override_settings={"CLIP_stop_at_last_layers": 2})
    assert info(draw(webui))["clip_skip"] == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"flavour": "nope"},
        {"seconds_per_image": -1},
        {"models": ()},
        {"models": ("a", "a")},
        {"faults": (("nope", 1),)},
        {"faults": (("oom", 0),)},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"simulator|unknown"):
        SimulatorSettings(**settings)


# Extras


def upscale(webui: Any, **fields: Any) -> Any:
    return webui.post("/sdapi/v1/extra-single-image", json={"image": png(), "upscaler_1": "Lanczos", **fields})


@pytest.mark.parametrize("upscaler", ["Lanczos", "Nearest", "ESRGAN_4x"])
def test_upscalers_upscale(upscaler: str) -> None:
    assert opened(upscale(client(), upscaler_1=upscaler, upscaling_resize=2.3).json["image"]).size == (144, 104)


def test_upscaler_none_changes_nothing() -> None:
    assert opened(upscale(client(), upscaler_1="None").json["image"]).size == (64, 48)


def test_extras_to_a_size() -> None:
    webui = client()
    size = {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100}
    assert opened(upscale(webui, **size).json["image"]).size == (100, 100)
    assert opened(upscale(webui, **size, upscaling_crop=False).json["image"]).size == (128, 96)


def test_extras_keep_the_infotext() -> None:
    webui = client()
    source = draw(webui).json["images"][0]
    body = {"imageList": [{"data": source, "name": "a"}] * 2, "upscaler_1": "Nearest"}
    images = webui.post("/sdapi/v1/extra-batch-images", json=body).json["images"]
    assert len(images) == 2
    assert opened(images[0]).info["parameters"] == opened(source).info["parameters"]
    assert opened(images[0]).info["postprocessing"].endswith("Postprocess upscaler: Nearest")


def test_failed_extras_leave_a_phantom_job() -> None:
    webui = client()
    assert upscale(webui, upscaler_1="Latent").json["errors"] == "could not find upscaler named Latent"
    progress = webui.get("/sdapi/v1/progress").json
    assert (progress["state"]["job"], progress["state"]["job_count"], progress["progress"]) == ("Upscale", 1, 1.0)
    draw(webui)
    assert webui.get("/sdapi/v1/progress").json["state"]["job_count"] == 0


def test_interrogate() -> None:
    assert client().post("/sdapi/v1/interrogate", json={"image": png()}).json["caption"]


# Time: progress, interrupt, queue


def test_progress_moves_and_an_interrupt_ends_it(slow: SimulatorServer, pool: Any) -> None:
    running = pool.submit(post, slow, "/sdapi/v1/txt2img", **SMALL, force_task_id="t1")
    assert slow.simulator.engine.wait_busy(10)
    task = post(slow, "/internal/progress", id_task="t1").json()
    assert (task["active"], task["queued"], task["completed"]) == (True, False, False)
    state = requests.get(slow.url + "/sdapi/v1/progress", timeout=20).json()
    assert state["state"]["job_count"] == 1
    assert state["state"]["sampling_steps"] == 4
    assert 0.01 <= state["progress"] < 0.5
    assert post(slow, "/sdapi/v1/interrupt").json() == {}
    told = time.perf_counter()
    answer = running.result(20)
    assert time.perf_counter() - told < BUSY / 2
    assert answer.status_code == 200
    with SimulatorServer(SimulatorSettings(seconds_per_image=0)) as whole:
        finished = post(whole, "/sdapi/v1/txt2img", **SMALL).json()
    assert info(answer)["infotexts"] == json.loads(finished["info"])["infotexts"]
    assert answer.json()["images"] != finished["images"]
    assert post(slow, "/internal/progress", id_task="t1").json()["completed"] is True


def test_sampling_step_follows_the_clock() -> None:
    """Half way through a run of 40 steps, whatever the speed of this machine, the step is half way too."""
    with SimulatorServer(SimulatorSettings(seconds_per_image=2)) as server:
        engine = server.simulator.engine
        with concurrent.futures.ThreadPoolExecutor() as pool:
            running = pool.submit(post, server, "/sdapi/v1/txt2img", **SMALL | {"steps": 400})
            assert engine.wait_busy(10)
            first = engine.progress()
            later = first
            while later["state"]["sampling_step"] <= first["state"]["sampling_step"]:
                later = engine.progress()
            assert later["progress"] > first["progress"]
            assert later["eta_relative"] > 0
            engine.interrupt()
            assert running.result(20).status_code == 200


def test_interrupt_while_idle_is_lost(fast: SimulatorServer) -> None:
    whole = post(fast, "/sdapi/v1/txt2img", **SMALL).json()["images"]
    post(fast, "/sdapi/v1/interrupt")
    assert requests.get(fast.url + "/sdapi/v1/progress", timeout=20).json()["state"]["interrupted"] is True
    assert post(fast, "/sdapi/v1/txt2img", **SMALL).json()["images"] == whole
    assert stats(fast)["interrupts"] == 1


def test_interrupt_of_the_first_pass_gives_the_small_picture(slow: SimulatorServer, pool: Any) -> None:
    hires = {"enable_hr": True, "denoising_strength": 0.5}
    running = pool.submit(post, slow, "/sdapi/v1/txt2img", **SMALL, **hires)
    assert slow.simulator.engine.wait_busy(10)
    assert requests.get(slow.url + "/sdapi/v1/progress", timeout=20).json()["state"]["job_count"] == 2
    post(slow, "/sdapi/v1/interrupt")
    assert opened(running.result(20).json()["images"][0]).size == (64, 64)


def test_skip_ends_one_iteration_only(slow: SimulatorServer, pool: Any) -> None:
    running = pool.submit(post, slow, "/sdapi/v1/txt2img", **SMALL, n_iter=2)
    engine = slow.simulator.engine
    assert engine.wait_busy(10)
    assert engine.progress()["state"]["job"] == "Batch 1 out of 2"
    post(slow, "/sdapi/v1/skip")
    while engine.progress()["state"]["job_no"] == 0:
        assert not running.done()
    assert engine.wait_busy(10)
    post(slow, "/sdapi/v1/interrupt")
    assert len(running.result(20).json()["images"]) == 2


def test_one_at_a_time_in_order(slow: SimulatorServer, pool: Any) -> None:
    engine = slow.simulator.engine
    running = []
    for place in range(4):
        running.append(pool.submit(post, slow, "/sdapi/v1/txt2img", **SMALL, force_task_id=f"t{place}"))
        assert engine.wait_busy(10)
        while f"t{place}" not in engine.pending()["tasks"] and place:
            assert not running[-1].done()
    assert engine.pending() == {"size": 3, "tasks": ["t1", "t2", "t3"]}
    assert post(slow, "/internal/progress", id_task="t2").json()["textinfo"] == "In queue: 2/3"
    for place in range(4):
        while not engine.task_progress(f"t{place}", -1)["active"]:
            assert not running[place].done()
        assert engine.wait_busy(10)
        engine.interrupt()
        assert running[place].result(20).status_code == 200
    assert stats(slow) | {"idle_gaps_ms": []} == {
        "generations": 4,
        "max_in_flight": 4,
        "model_loads": 0,
        "interrupts": 0,
        "interrupted": [],
        "refreshes": 0,
        "idle_gaps_ms": [],
    }


def test_a_client_that_leaves_stops_nothing(slow: SimulatorServer) -> None:
    body = json.dumps(SMALL | {"force_task_id": "left"}).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", slow.port)) as line:
        line.sendall(head.encode() + body)
        assert slow.simulator.engine.wait_busy(10)
    assert slow.simulator.engine.progress()["state"]["job_count"] == 1
    assert post(slow, "/internal/progress", id_task="left").json()["active"] is True


def test_stop_lets_go_of_everybody(pool: Any) -> None:
    server = SimulatorServer(SimulatorSettings(seconds_per_image=BUSY))
    server.start()
    running = pool.submit(post, server, "/sdapi/v1/txt2img", **SMALL)
    assert server.simulator.engine.wait_busy(10)
    began = time.perf_counter()
    server.stop()
    server.stop()
    with pytest.raises(requests.ConnectionError):
        running.result(20)
    assert time.perf_counter() - began < BUSY / 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_one_that_was_never_started_closes_too() -> None:
    server = SimulatorServer(SimulatorSettings())
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


# Numbers


def test_idle_gaps(fast: SimulatorServer) -> None:
    began = time.perf_counter()
    for _ in range(3):
        assert post(fast, "/sdapi/v1/txt2img", **SMALL).status_code == 200
    took = (time.perf_counter() - began) * 1000
    gaps = stats(fast)["idle_gaps_ms"]
    assert len(gaps) == 2
    assert all(0 < gap < took for gap in gaps)
    assert sum(gaps) < took
    assert stats(fast)["max_in_flight"] == 1


def test_extras_are_in_flight_but_no_generation(fast: SimulatorServer) -> None:
    post(fast, "/sdapi/v1/extra-single-image", image=png(), upscaler_1="Lanczos")
    counted = stats(fast)
    assert (counted["generations"], counted["max_in_flight"], counted["idle_gaps_ms"]) == (0, 1, [])


def test_what_validation_refuses_is_no_generation(fast: SimulatorServer) -> None:
    assert post(fast, "/sdapi/v1/txt2img", steps="x").status_code == 422
    assert stats(fast)["generations"] == 0


def test_requests_are_remembered_without_their_pictures(fast: SimulatorServer) -> None:
    image = png()
    post(fast, "/sdapi/v1/img2img", **SMALL, init_images=[f"data:image/png;base64,{image}"], mask="no base64")
    post(fast, "/sdapi/v1/extra-batch-images", imageList=[{"data": image, "name": "a"}])
    one, two = requests.get(fast.url + "/simulator/requests", timeout=20).json()
    assert (one["path"], two["path"]) == ("/sdapi/v1/img2img", "/sdapi/v1/extra-batch-images")
    assert one["payload"]["prompt"] == "a cat"
    assert one["payload"]["init_images"] == [two["payload"]["imageList"][0]["data"]]
    assert one["payload"]["init_images"][0]["bytes"] == len(base64.b64decode(image))
    assert one["payload"]["mask"]["bytes"] == len("no base64")
    post(fast, "/simulator/reset")
    assert requests.get(fast.url + "/simulator/requests", timeout=20).json() == []


def test_connections_are_kept(fast: SimulatorServer) -> None:
    with socket.create_connection(("127.0.0.1", fast.port)) as line, line.makefile("rb") as answers:
        for path, body in (("/sdapi/v1/nope", b"x" * 100), ("/sdapi/v1/samplers", b""), ("/sdapi/v1/progress", b"")):
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            status = answers.readline()
            assert status.startswith(b"HTTP/1.1 404" if path.endswith("nope") else b"HTTP/1.1 200")
            headers = dict(header.decode().strip().split(": ", 1) for header in iter(answers.readline, b"\r\n"))
            json.loads(answers.read(int(headers["Content-Length"])))


def test_expect_continue(fast: SimulatorServer) -> None:
    body = json.dumps(SMALL).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", fast.port)) as line, line.makefile("rb") as answers:
        line.sendall(head.encode())
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        line.sendall(body)
        answers.readline()
        assert answers.readline().startswith(b"HTTP/1.1 200")


class TestProcess:
    """What the server tells of itself as a program."""

    @pytest.mark.parametrize("task_ids", [True, False])
    def test_its_document_names_the_fields_that_it_takes(self, task_ids: bool) -> None:
        webui = client(task_ids=task_ids)
        document = webui.get("/openapi.json").json
        assert {"/sdapi/v1/txt2img", "/internal/progress"} <= set(document["paths"])
        for schema in document["components"]["schemas"].values():
            assert ("force_task_id" in schema["properties"], "prompt" in schema["properties"]) == (task_ids, True)
        draw(webui, force_task_id="mine")
        done = webui.post("/internal/progress", json={"id_task": "mine", "live_preview": False}).json
        assert done["completed"] == task_ids

    def test_no_two_starts_took_the_same_times(self) -> None:
        one, other = client(), client()
        first, again, second = (webui.get("/internal/profile-startup").json for webui in (one, one, other))
        assert first == again != second
        assert client("nowebui").get("/internal/profile-startup").status_code == 404

    def test_its_flags_hold_the_password(self) -> None:
        webui = client(auth=("ada", "hunter2"), flags={"share": True})
        basic = "Basic " + base64.b64encode(b"ada:hunter2").decode()
        flags = webui.get("/sdapi/v1/cmd-flags", headers={"Authorization": basic}).json
        assert (flags["api_auth"], flags["share"], flags["listen"]) == ("ada:hunter2", True, False)
        assert client("forge").get("/sdapi/v1/cmd-flags").status_code == 500

    def test_its_clock_may_be_wrong(self) -> None:
        with SimulatorServer(SimulatorSettings(clock_ahead=3600.0)) as server:
            date = requests.get(server.url + "/sdapi/v1/options", timeout=5).headers["Date"]
        assert parsedate_to_datetime(date).timestamp() - time.time() == pytest.approx(3600, abs=60)
