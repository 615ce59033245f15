"""The simulator's flavours of A1111 1.10 and Forge answer as the recorded servers of those versions did.

The recordings are not part of the repository; where their folder is missing these tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.simulator import SimulatorSettings, create_simulator
from tests.webui.test_recordings import compare_extras, compare_generation, put, shape

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "webui-recordings-real2"
FLAVOURS = {"a1111_110_": "a1111-1.10", "forge_": "forge"}

#: Recordings that are not put to the simulator again, with the reason.
LEFT_OUT = {
    "a1111_110_openapi": "a document, no exchange",
    "forge_openapi": "a document, no exchange",
    "a1111_110_get_memory": "numbers of that machine",
    "forge_get_memory": "numbers of that machine",
    "a1111_110_get_scripts": "the scripts of that installation",
    "a1111_110_get_options": "the simulator offers a subset (test_options)",
    "a1111_110_get_options_after_format_override": "the simulator offers a subset (test_options)",
    "forge_get_options_after_format_override": "the simulator offers a subset (test_options)",
    "forge_get_options_after_override": "the simulator offers a subset (test_options)",
    "a1111_110_get_sd-models": "hashes of that machine (test_models)",
    "forge_get_sd-models": "hashes of that machine (test_models)",
    "a1111_110_get_prompt-styles": "the styles of that installation",
    "forge_get_prompt-styles": "the styles of that installation (test_styles_of_forge)",
    "forge_txt2img_styles": "the styles of that installation (test_styles_of_forge)",
    "forge_get_upscalers": "the simulator leaves the addresses of the weights out (test_upscalers)",
    "a1111_110_get_samplers": "recorded compressed (test_samplers)",
    "a1111_110_get_progress": "state of jobs before (test_progress)",
    "forge_get_progress": "state of jobs before (test_progress)",
    "a1111_110_get_progress_after_failed_extras": "state of jobs before (test_progress_after_failed_extras)",
    "forge_get_progress_after_failed_extras": "state of jobs before (test_progress_after_failed_extras)",
    "a1111_110_internal_pending_tasks_idle": "counts that server's history",
    "forge_txt2img_batch2_save_images": "Forge hides the infotext in an alpha channel of pictures that it saves",
    "forge_txt2img_override_model_vanished": "test_a_vanished_model_on_forge",
    "forge_txt2img_after_model_vanished": "test_a_vanished_model_on_forge",
    "forge_txt2img_after_refresh": "test_a_vanished_model_on_forge",
    "forge_txt2img_other_model_repairs_1": "test_a_vanished_model_on_forge",
    "forge_txt2img_other_model_repairs_2": "test_a_vanished_model_on_forge",
}
#: Faults that stand for what made that server fail; their texts hold numbers of the machine.
FAULTS = {
    "a1111_110_txt2img_nan_error": "nan",
    "a1111_110_txt2img_out_of_memory": "oom",
    "forge_txt2img_out_of_memory": "oom",
}

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the recordings (../shared/webui-recordings-real2) are not here"
)


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def exchanges() -> list[str]:
    """The recordings that hold one request and one answer."""
    names = sorted(path.stem for path in FOLDER.glob("*.json"))
    return [name for name in names if name not in LEFT_OUT and not isinstance(load(name), list)]


def client(name: str, **settings: Any) -> Any:
    flavour = next(flavour for prefix, flavour in FLAVOURS.items() if name.startswith(prefix))
    values = {"seconds_per_image": 0, "flavour": flavour, "models": ("a", "b")} | settings
    return create_simulator(SimulatorSettings(**values)).test_client()


def prepared(name: str, recording: dict[str, Any]) -> Any:
    """A simulator in the state that the recorded server was in: its model, and whether it kept comments."""
    webui = client(name, faults=((FAULTS[name], 1),) if name in FAULTS else ())
    options: dict[str, Any] = {"enable_prompt_comments": False}
    body = recording["body"]
    if isinstance(body, dict) and "info" in body:
        options["sd_model_checkpoint"] = json.loads(body["info"])["sd_model_name"]
    assert webui.post("/sdapi/v1/options", json=options).status_code == 200
    return webui


@pytest.mark.parametrize("name", exchanges())
def test_recording(name: str) -> None:
    recording = load(name)
    answer = put(prepared(name, recording), recording["request"])
    assert answer.status_code == recording["status"]
    body = recording["body"]
    if isinstance(body, dict) and "images" in body and "info" in body:
        compare_generation(body, answer.json, recording["request"]["body"])
    elif isinstance(body, dict) and "html_info" in body:
        compare_extras(body, answer.json)
    elif name in FAULTS and FAULTS[name] == "oom":
        words = "message" if name.startswith("forge") else "errors"
        assert {**answer.json, words: ""} == {**body, words: ""}
        assert "out of memory" in answer.json[words]
    else:
        assert answer.json == body
    assert answer.headers.get("Allow") == dict(recording["headers"]).get("allow")


def test_enough_is_compared() -> None:
    assert len(exchanges()) >= 70
    assert not [name for name in LEFT_OUT if not (FOLDER / f"{name}.json").exists()]


def get(name: str, path: str) -> Any:
    return client(name).get(f"/sdapi/v1/{path}").json


@pytest.mark.parametrize("name", ["a1111_110_get_options", "forge_get_options_after_override"])
def test_options(name: str) -> None:
    recorded, simulated = load(name)["body"], get(name, "options")
    assert {key: type(value) for key, value in simulated.items()} == {key: type(recorded[key]) for key in simulated}


@pytest.mark.parametrize(
    "name", ["a1111_110_get_options_after_format_override", "forge_get_options_after_format_override"]
)
def test_options_after_an_override_that_was_not_restored(name: str) -> None:
    webui = client(name)
    request = load(name.replace("get_options_after_format_override", "txt2img_override_samples_format_jpg_no_restore"))
    assert put(webui, request["request"]).status_code == 200
    assert webui.get("/sdapi/v1/options").json["samples_format"] == load(name)["body"]["samples_format"] == "jpg"


def test_a_forge_server_keeps_the_model_option_as_it_was_given() -> None:
    webui = client("forge_")
    put(webui, load("forge_txt2img_override_model_b")["request"])
    recorded = load("forge_get_options_after_override")["body"]["sd_model_checkpoint"]
    assert webui.get("/sdapi/v1/options").json["sd_model_checkpoint"] == recorded == "b"


@pytest.mark.parametrize("name", ["a1111_110_get_sd-models", "forge_get_sd-models"])
def test_models(name: str) -> None:
    recorded = load(name)["body"]
    webui = client(name)
    webui.post("/sdapi/v1/options", json={"sd_model_checkpoint": "b"})
    simulated = webui.get("/sdapi/v1/sd-models").json
    assert [shape(entry) for entry in simulated] == [shape(entry) for entry in recorded]
    for ours, theirs in zip(simulated, recorded, strict=True):
        assert ours["title"] == theirs["title"].replace(theirs["hash"], ours["hash"])
        assert ours["model_name"] == theirs["model_name"]


def test_samplers() -> None:
    recorded = load("a1111_110_get_samplers")["body"]
    assert get("a1111_110_", "samplers") == recorded
    assert len(recorded) == 20
    forge = get("forge_", "samplers")
    assert len(forge) == 25
    assert {entry["name"] for entry in recorded} < {entry["name"] for entry in forge}


def test_upscalers() -> None:
    recorded = load("forge_get_upscalers")["body"]
    simulated = get("forge_", "upscalers")
    assert [(entry["name"], entry["scale"]) for entry in simulated] == [
        (entry["name"], entry["scale"]) for entry in recorded
    ]
    assert {frozenset(entry) for entry in simulated} == {frozenset(entry) for entry in recorded}


def test_styles_of_forge() -> None:
    recorded, simulated = load("forge_get_prompt-styles")["body"], get("forge_", "prompt-styles")
    dividers = [[style for style in styles if style["prompt"] is None] for styles in (recorded, simulated)]
    assert dividers[0] == dividers[1]
    assert simulated[0] == recorded[0]
    exchange = load("forge_txt2img_styles")
    answer = put(client("forge_"), exchange["request"])
    for body, styles in ((exchange["body"], recorded), (answer.json, simulated)):
        style = next(style for style in styles if style["name"] == "suffix")
        info = json.loads(body["info"])
        assert info["prompt"] == f"a cat, {style['prompt']}"
        assert info["negative_prompt"] == f"blurry, {style['negative_prompt']}"


@pytest.mark.parametrize("prefix", FLAVOURS)
def test_progress(prefix: str) -> None:
    recorded, simulated = load(f"{prefix}get_progress")["body"], get(prefix, "progress")
    assert shape(simulated) == shape(recorded)
    assert simulated["state"]["job_count"] == recorded["state"]["job_count"] == 0


@pytest.mark.parametrize("prefix", FLAVOURS)
def test_progress_after_failed_extras(prefix: str) -> None:
    webui = client(prefix)
    put(webui, load(f"{prefix}extras_single_unknown_upscaler")["request"])
    recorded, simulated = (
        load(f"{prefix}get_progress_after_failed_extras")["body"],
        webui.get("/sdapi/v1/progress").json,
    )
    for key in ("job", "job_count", "job_no"):
        assert simulated["state"][key] == recorded["state"][key]
    assert simulated["progress"] == recorded["progress"] == 1.0


def test_a_vanished_model_on_forge() -> None:
    webui = client("forge_")
    webui.post("/simulator/faults", json={"kind": "load-fails", "model": "b"})
    for name in ("override_model_vanished", "after_model_vanished", "after_refresh"):
        if name == "after_refresh":
            webui.post("/sdapi/v1/refresh-checkpoints")
        recording = load(f"forge_txt2img_{name}")
        answer = put(webui, recording["request"])
        assert (answer.status_code, answer.json) == (recording["status"], recording["body"])
    webui.delete("/simulator/faults")
    webui.post("/sdapi/v1/refresh-checkpoints")
    for name in ("other_model_repairs_1", "other_model_repairs_2"):
        recording = load(f"forge_txt2img_{name}")
        compare_generation(recording["body"], put(webui, recording["request"]).json, recording["request"]["body"])


@pytest.mark.parametrize("prefix", FLAVOURS)
def test_an_interrupted_job_keeps_its_flag_and_its_timestamp(prefix: str) -> None:
    """Without a job that waits, progress goes on to say interrupted, with the timestamp of the job's info."""
    exchanges = load(f"{prefix}interrupt_single")
    recorded = exchanges[-1]["exchange"]["body"]["state"]
    assert recorded["job_timestamp"] == json.loads(exchanges[0]["exchange"]["body"]["info"])["job_timestamp"]
    webui = client(prefix, faults=(("interrupted", 1),))
    answer = put(webui, exchanges[0]["exchange"]["request"])
    state = webui.get("/sdapi/v1/progress").json["state"]
    assert state["job_timestamp"] == json.loads(answer.json["info"])["job_timestamp"]
    volatile = ("job_timestamp",)
    assert {**state, **dict.fromkeys(volatile)} == {**recorded, **dict.fromkeys(volatile)}
