"""The simulator answers what a real WebUI answered: every request of the recordings is put to it again.

The recordings are not part of the repository; where their folder is missing these tests are skipped.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.simulator import SimulatorSettings, create_simulator

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "webui-recordings"

#: Recordings that are not put to the simulator again, with the reason.
LEFT_OUT = {
    "openapi": "a document, no exchange",
    "get_options": "the simulator offers a subset (test_options)",
    "get_memory": "numbers of that machine",
    "get_scripts": "the scripts of that installation",
    "get_realesrgan-models": "the simulator lists none",
    "get_sd-models_after_both_loaded": "hashes of that machine (test_models)",
    "get_sd-models": "hashes of that machine (test_models)",
    "get_upscalers": "the simulator offers a subset (test_upscalers)",
    "get_samplers": "aliases and options are shortened (test_samplers)",
    "get_prompt-styles": "the simulator has a divider more (test_styles)",
    "prompt_styles_after_csv_edit": "the same list again",
    "nowebui_auth_ok": "the sampler list again",
    "samplers_cors_origin": "the sampler list again",
    "samplers_gzip": "recorded compressed (test_compression)",
    "txt2img_gzip_headers": "holds headers only (test_compression)",
    "override_leak_1_options_before": "the option list again",
    "override_leak_4_options_after": "the option list again",
    "queue_status": "a route of gradio",
    "auth_queue_status_no_credentials": "a route of gradio",
    "nowebui_queue_status": "a route of gradio",
    "txt2img_nan_error": "broken weights of that machine",
    "error_img2img_broken_task_internal_progress": "counts that server's history (test_leaks)",
    "error_residual_2_internal_progress_after": "needs the run before (test_leaks)",
    "pending_after_errors": "counts that server's history (test_leaks)",
    "png_info_generated": "the simulator parses less (test_png_info)",
    "png_info_data_uri": "the simulator parses less (test_png_info)",
    "png_info_plain_png": "the simulator parses less (test_png_info)",
    "png_info_of_extras": "the simulator parses less (test_png_info)",
    "txt2img_hr_esrgan_needs_download": "compared without its missing weights by txt2img_hr_lanczos",
}
#: What was done to that server before, without which the recording cannot be understood.
BEFORE = {
    "txt2img_after_set_model_b": ("/sdapi/v1/options", {"sd_model_checkpoint": "random-tiny-b"}),
    "txt2img_after_poisoned_option": ("/sdapi/v1/options", {"CLIP_stop_at_last_layers": "abc"}),
    "progress_after_idle_interrupt": ("/sdapi/v1/interrupt", None),
    "txt2img_after_idle_interrupt": ("/sdapi/v1/interrupt", None),
}
#: Recorded while an earlier override of this option still leaked.
for leaked in ("leak_3_plain_after", "model_after", "model_b", "model_unknown", "samples_format_jpg"):
    BEFORE["txt2img_override_" + leaked] = ("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2})

#: Differ from run to run.
VOLATILE = ("subseed", "all_subseeds", "job_timestamp", "version")


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def exchanges() -> list[str]:
    """The recordings that hold one request and one answer."""
    names = []
    for path in sorted(FOLDER.glob("*.json")):
        recording = json.loads(path.read_text(encoding="utf-8"))
        request = recording.get("request")
        if path.stem not in LEFT_OUT and isinstance(request, dict) and "path" in request and "status" in recording:
            names.append(path.stem)
    return names


pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the recordings (../shared/webui-recordings) are not here")


def settings(name: str) -> SimulatorSettings:
    auth = ("user", "secret") if name.startswith(("auth_", "nowebui_", "startup_")) else None
    flavour = "nowebui" if name.startswith("nowebui_internal") else "a1111-1.7"
    models = ("random-tiny-a", "random-tiny-b")
    return SimulatorSettings(seconds_per_image=0, flavour=flavour, models=models, auth=auth)


def put(client: Any, request: dict[str, Any]) -> Any:
    """The recorded request; a body that was not sent as JSON was recorded as the text it was sent as."""
    body, headers = request["body"], dict(request.get("headers") or {})
    if isinstance(body, str):
        data = body.encode("latin-1")
    else:
        data = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
    return client.open(request["path"], method=request["method"], headers=headers, data=data)


def replay(name: str) -> tuple[dict[str, Any], Any]:
    recording = load(name)
    client = create_simulator(settings(name)).test_client()
    if name in BEFORE:
        path, body = BEFORE[name]
        assert client.post(path, json=body).status_code == 200
    return recording, put(client, recording["request"])


@pytest.mark.parametrize("name", exchanges())
def test_recording(name: str) -> None:
    recording, answer = replay(name)
    assert answer.status_code == recording["status"]
    body = recording["body"]
    if recording["body_kind"] == "text":
        assert answer.get_data(as_text=True) == body
    elif isinstance(body, dict) and "info" in body and "images" in body:
        compare_generation(body, answer.json, recording["request"]["body"])
    elif isinstance(body, dict) and "html_info" in body:
        compare_extras(body, answer.json)
    elif isinstance(body, dict) and "eta_relative" in body:
        compare_progress(body, answer.json)
    else:
        assert answer.json == body
    allow = dict(recording["headers"]).get("allow")
    assert answer.headers.get("Allow") == allow


def opened(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def plain(infotext: str, info: dict[str, Any]) -> str:
    """An infotext without what depends on the machine."""
    text = infotext.replace(info["version"], "VERSION").replace(str(info["sd_model_hash"]), "HASH")
    for place, seed in enumerate(info["all_seeds"]):
        text = text.replace(f"Seed: {seed}", f"Seed: number {place}")
    return text


def is_random(request: Any) -> bool:
    return not isinstance(request, dict) or request.get("seed", -1) in (-1, None)


def compare_generation(recorded: dict[str, Any], simulated: dict[str, Any], request: Any) -> None:
    assert list(simulated) == list(recorded)
    assert comparable(simulated["parameters"]) == comparable(recorded["parameters"])
    assert list(simulated["parameters"]) == list(recorded["parameters"])
    assert len(simulated["images"]) == len(recorded["images"])
    ours, theirs = json.loads(simulated["info"]), json.loads(recorded["info"])
    assert list(ours) == list(theirs)
    assert [plain(text, ours) for text in ours["infotexts"]] == [plain(text, theirs) for text in theirs["infotexts"]]
    ignored = {*VOLATILE, "infotexts", "sd_model_hash", *(("seed", "all_seeds") if is_random(request) else ())}
    for key in set(theirs) - ignored:
        assert ours[key] == theirs[key], key
    for key in ignored:
        assert type(ours[key]) is type(theirs[key]), key
    for text, image, theirs_image in zip(ours["infotexts"], simulated["images"], recorded["images"], strict=False):
        compare_image(text, opened(image), theirs_image)


def compare_image(infotext: str, image: Image.Image, recorded: str) -> None:
    if image.format == "PNG":
        assert image.info["parameters"] == infotext
    if len(recorded) % 4 == 0 and "…" not in recorded:
        other = opened(recorded)
        assert (image.format, image.mode, image.size) == (other.format, other.mode, other.size)


def comparable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Pictures in an echo were cut when they were recorded."""
    return {name: value for name, value in parameters.items() if name not in ("init_images", "mask") or value is None}


def compare_extras(recorded: dict[str, Any], simulated: dict[str, Any]) -> None:
    assert list(simulated) == list(recorded)
    assert simulated["html_info"] == recorded["html_info"]
    ours = simulated.get("images", [simulated.get("image")])
    theirs = recorded.get("images", [recorded.get("image")])
    assert len(ours) == len(theirs)
    for one, other in zip(map(opened, ours), map(opened, theirs), strict=True):
        assert (one.format, one.mode, one.size, one.info) == (other.format, other.mode, other.size, other.info)


def compare_progress(recorded: dict[str, Any], simulated: dict[str, Any]) -> None:
    assert set(simulated["state"]) == set(recorded["state"])
    idle = ("progress", "eta_relative", "current_image", "textinfo")
    assert {key: simulated[key] for key in idle} == {key: recorded[key] for key in idle}
    flags = ("interrupted", "job", "job_count")
    assert {key: simulated["state"][key] for key in flags} == {key: recorded["state"][key] for key in flags}


def test_enough_is_compared() -> None:
    assert len(exchanges()) >= 120
    assert not [name for name in LEFT_OUT if not (FOLDER / f"{name}.json").exists()]


def get(path: str) -> Any:
    return create_simulator(settings("")).test_client().get(f"/sdapi/v1/{path}").json


def shape(value: Any) -> Any:
    """Keys and types, numbers being numbers."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return float if type(value) in (int, float) else type(value)


def test_options() -> None:
    recorded = load("get_options")["body"]
    simulated = get("options")
    assert {key: type(value) for key, value in simulated.items()} == {key: type(recorded[key]) for key in simulated}


def test_models() -> None:
    first, second = load("get_sd-models")["body"]
    simulated = get("sd-models")
    assert [shape(entry) for entry in simulated] == [shape(first), shape(second)]
    assert [entry["model_name"] for entry in simulated] == [first["model_name"], second["model_name"]]
    assert simulated[0]["title"] == f"{first['model_name']}.safetensors [{simulated[0]['hash']}]"
    assert simulated[1]["title"] == second["title"]


def test_upscalers() -> None:
    recorded = {entry["name"]: entry for entry in load("get_upscalers")["body"]}
    simulated = get("upscalers")
    assert [entry["name"] for entry in simulated][:3] == list(recorded)[:3]
    for entry in simulated:
        assert set(entry) == set(recorded[entry["name"]])
    assert simulated[0] == recorded["None"]


def test_samplers() -> None:
    recorded = load("get_samplers")["body"]
    simulated = get("samplers")
    assert [entry["name"] for entry in simulated] == [entry["name"] for entry in recorded]
    assert {frozenset(entry) for entry in simulated} == {frozenset(entry) for entry in recorded}


def test_styles() -> None:
    recorded = load("get_prompt-styles")["body"]
    assert get("prompt-styles")[: len(recorded)] == recorded


def test_compression() -> None:
    headers = dict(load("samplers_gzip")["headers"])
    answer = create_simulator(settings("")).test_client().get("/sdapi/v1/samplers", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == headers["content-encoding"] == "gzip"
    assert answer.headers["Vary"] == headers["vary"]


def test_leaks() -> None:
    """A task that fails before it begins stays queued; one that fails later stays active until the next begins."""
    client = create_simulator(settings("")).test_client()
    put(client, load("error_img2img_broken_task")["request"])
    answer = put(client, load("error_img2img_broken_task_internal_progress")["request"]).json
    recorded = load("error_img2img_broken_task_internal_progress")["body"]
    assert answer == recorded | {"textinfo": "In queue: 1/1"}
    put(client, load("error_residual_1_failing")["request"])
    residual = load("error_residual_2_internal_progress_after")
    assert put(client, residual["request"]).json == residual["body"]
    put(client, load("error_residual_3_next_ok")["request"])
    assert put(client, residual["request"]).json["active"] is False
    assert client.get("/internal/pending-tasks").json == {"size": 1, "tasks": ["err-4"]}


@pytest.mark.parametrize(
    "name", ["png_info_generated", "png_info_data_uri", "png_info_plain_png", "png_info_of_extras"]
)
def test_png_info(name: str) -> None:
    recording, answer = replay(name)
    assert answer.json["info"] == recording["body"]["info"]
    assert answer.json["items"] == recording["body"]["items"]
    assert set(answer.json["parameters"]) <= set(recording["body"]["parameters"])


def test_only_sixteen_are_remembered() -> None:
    recorded = load("completed_only_last_16")
    client = create_simulator(settings("")).test_client()
    for name in recorded:
        client.post("/sdapi/v1/txt2img", json={"width": 64, "height": 64, "steps": 1, "force_task_id": name})
    assert {name: client.post("/internal/progress", json={"id_task": name}).json for name in recorded} == recorded


def test_an_interrupted_run() -> None:
    """With n_iter 3, stopped in the first: one picture and one text, but three seeds (interrupt_n_iter3_first)."""
    recorded = load("interrupt_n_iter3_first")
    client = create_simulator(settings("")).test_client()
    client.post("/simulator/faults", json={"kind": "interrupted"})
    answer = put(client, recorded["request"]).json
    compare_generation(recorded["response"]["body"], answer, recorded["request"]["body"])
    after = client.get("/sdapi/v1/progress").json
    compare_progress(recorded["progress_after"], after)
    assert after["state"]["job_no"] == recorded["progress_after"]["state"]["job_no"]
