"""The simulator's models: their names and hashes, failed switches between them, their options, and the first load."""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any

import pytest
import requests

from app.simulator import SimulatorServer, SimulatorSettings
from tests.simulator.test_simulator import BUSY, SMALL, client, draw, fast, info, opened, png, pool, post, slow

__all__ = ["fast", "pool", "slow"]

TWINS = ("a", "sub/a")
A1111 = ("a1111-1.7", "a1111-1.10", "nowebui")


def with_model(webui: Any, alias: str | None, **fields: Any) -> Any:
    """A generation with a model named by this alias."""
    return draw(webui, override_settings={"sd_model_checkpoint": alias}, **fields)


def image(answer: Any) -> str:
    assert answer.status_code == 200, answer.json
    return answer.json["images"][0]


def arm(webui: Any, kind: str, **more: Any) -> None:
    assert webui.post("/simulator/faults", json={"kind": kind, **more}).status_code == 200


def titles(webui: Any) -> list[str]:
    return [entry["title"] for entry in webui.get("/sdapi/v1/sd-models").json]


# Aliases


@pytest.mark.parametrize("hashing", [True, False])
def test_a_stem_belongs_to_the_file_that_was_registered_last(hashing: bool) -> None:
    webui = client(models=TWINS, hashing=hashing)
    by_stem, by_name = image(with_model(webui, "a")), image(with_model(webui, "sub_a"))
    assert by_stem == by_name == image(with_model(webui, "sub/a.safetensors"))
    assert by_stem != image(with_model(webui, "a.safetensors"))


def test_files_of_one_stem_make_different_pictures_under_one_name_in_info() -> None:
    webui = client(models=TWINS, hashing=False)
    first, second = (with_model(webui, alias) for alias in ("a.safetensors", "sub/a.safetensors"))
    assert info(first)["infotexts"] == info(second)["infotexts"]
    assert info(first)["sd_model_name"] == info(second)["sd_model_name"] == "a"
    assert opened(image(first)).tobytes() != opened(image(second)).tobytes()


def test_ckpt_beside_safetensors() -> None:
    webui = client(models=("x.ckpt", "x.safetensors"))
    entries = webui.get("/sdapi/v1/sd-models").json
    assert [entry["model_name"] for entry in entries] == ["x", "x"]
    assert [entry["filename"].rpartition("/")[2] for entry in entries] == ["x.ckpt", "x.safetensors"]
    hashes = {info(with_model(webui, name))["sd_model_hash"] for name in ("x.ckpt", "x.safetensors")}
    assert len(hashes) == 2


def test_hashes_are_aliases_once_the_model_was_loaded() -> None:
    webui = client(models=("a", "b"))
    found = info(with_model(webui, "b.safetensors"))["sd_model_hash"]
    sha256 = webui.get("/sdapi/v1/sd-models").json[1]["sha256"]
    for alias in (found, sha256, f"b.safetensors [{found}]", f"b [{found}]"):
        image(draw(webui))
        assert info(with_model(webui, alias))["sd_model_name"] == "b"
    other = client(models=("a", "b"))
    assert info(with_model(other, found))["sd_model_name"] == "a"


def test_without_hashing_nothing_has_a_hash() -> None:
    webui = client(models=("a", "b"), hashing=False)
    answer = with_model(webui, "b")
    assert info(answer)["sd_model_hash"] is None
    assert "Model: b" in info(answer)["infotexts"][0]
    assert "hash" not in info(answer)["infotexts"][0]
    assert titles(webui) == ["a.safetensors", "b.safetensors"]
    assert {(entry["hash"], entry["sha256"]) for entry in webui.get("/sdapi/v1/sd-models").json} == {(None, None)}
    assert webui.get("/sdapi/v1/options").json["sd_model_checkpoint"] == "a.safetensors"


@pytest.mark.parametrize(("flavour", "kept"), [("a1111-1.10", "b.safetensors ["), ("forge", "b")])
def test_what_the_option_says_after_an_override_that_stays(flavour: str, kept: str) -> None:
    webui = client(flavour, models=("a", "b"))
    with_model(webui, "b", override_settings_restore_afterwards=False)
    assert webui.get("/sdapi/v1/options").json["sd_model_checkpoint"].startswith(kept)


# A file that cannot be loaded


@pytest.mark.parametrize("flavour", A1111)
@pytest.mark.parametrize(("kind", "error"), [("load-fails", "FileNotFoundError"), ("load-corrupt", "SafetensorError")])
def test_a_failed_switch_poisons_the_loaded_model_of_a1111(flavour: str, kind: str, error: str) -> None:
    webui = client(flavour, models=("a", "b", "c"), faults=((kind, 1),))
    whole = draw(webui)
    for _ in range(2):
        failed = with_model(webui, "c")
        assert (failed.status_code, failed.json["error"]) == (500, error)
    webui.post("/sdapi/v1/refresh-checkpoints")
    webui.post("/sdapi/v1/options", json={"sd_model_checkpoint": "a"})
    webui.post("/sdapi/v1/interrupt")
    poisoned = draw(webui)
    assert image(poisoned) != image(whole)
    assert image(poisoned) == image(with_model(webui, "a"))
    assert info(poisoned) | {"job_timestamp": "", "subseed": 0, "all_subseeds": []} == info(whole) | {
        "job_timestamp": "",
        "subseed": 0,
        "all_subseeds": [],
    }
    assert info(with_model(webui, "b"))["sd_model_name"] == "b"
    assert image(draw(webui)) == image(whole)


@pytest.mark.parametrize("kind", ["load-fails", "load-corrupt"])
def test_a_failed_switch_leaves_forge_without_a_model(kind: str) -> None:
    webui = client("forge", models=("a", "b", "c"))
    whole = image(draw(webui))
    arm(webui, kind, model="b")
    failed = with_model(webui, "b")
    assert (failed.json["error"], failed.json["message"]) == ("ValueError", "Failed to recognize model type!")
    webui.delete("/simulator/faults")
    webui.post("/sdapi/v1/refresh-checkpoints")
    webui.post("/sdapi/v1/options", json={"sd_model_checkpoint": "a"})
    for answer in (draw(webui), with_model(webui, "a")):
        assert (answer.status_code, answer.json["error"]) == (500, "AttributeError")
    assert with_model(webui, "c").status_code == 200
    assert image(draw(webui)) == whole


def test_a_vanished_file_leaves_the_list_when_it_is_refreshed() -> None:
    webui = client(models=("a", "b"), faults=(("load-fails", 1),))
    whole = image(draw(webui))
    assert titles(webui)[1] == "b.safetensors"
    webui.post("/sdapi/v1/refresh-checkpoints")
    assert len(titles(webui)) == 1
    assert image(with_model(webui, "b")) == whole
    webui.delete("/simulator/faults")
    assert len(titles(webui)) == 1
    webui.post("/sdapi/v1/refresh-checkpoints")
    assert info(with_model(webui, "b"))["sd_model_name"] == "b"
    assert webui.get("/simulator/stats").json["refreshes"] == 2


def test_a_corrupt_file_stays_on_the_list() -> None:
    webui = client(models=("a", "b"), faults=(("load-corrupt", 1),))
    webui.post("/sdapi/v1/refresh-checkpoints")
    assert len(titles(webui)) == 2


def test_one_fault_of_several_is_removed_by_its_kind() -> None:
    webui = client(models=("a", "b"), faults=(("load-corrupt", 1), ("oom", 1)))
    webui.delete("/simulator/faults?kind=load-corrupt")
    assert webui.get("/simulator/faults").json == {"armed": [{"kind": "oom", "count": 1}]}


def test_a_model_that_cannot_be_chosen_in_the_options_is_ignored() -> None:
    webui = client(models=("a", "b"), faults=(("load-fails", 1),))
    assert webui.post("/sdapi/v1/options", json={"sd_model_checkpoint": "b"}).status_code == 200
    assert webui.get("/sdapi/v1/options").json["sd_model_checkpoint"].startswith("a.safetensors")


# The list at run time


def test_models_come_and_go() -> None:
    webui = client(models=("a", "b"))
    changed = webui.post("/simulator/models", json={"add": ["sub/c", "a"], "remove": ["b"]})
    assert changed.json == {"models": ["a.safetensors", "sub/c.safetensors"]}
    assert [entry["model_name"] for entry in webui.get("/sdapi/v1/sd-models").json] == ["a", "sub_c"]
    assert info(with_model(webui, "c"))["sd_model_name"] == "c"
    assert info(with_model(webui, "b"))["sd_model_name"] == "a"


def test_the_loaded_model_may_go_and_come_back() -> None:
    webui = client(models=("a", "b"))
    whole = image(draw(webui))
    webui.post("/simulator/models", json={"remove": ["a"]})
    webui.post("/simulator/models", json={"add": ["a"]})
    assert image(draw(webui)) == whole
    assert titles(webui)[1].startswith("a.safetensors [")
    webui.post("/simulator/models", json={"remove": ["a"]})
    assert info(draw(webui))["sd_model_name"] == "b"


@pytest.mark.parametrize(
    "body", [None, [], {"add": "c"}, {"add": [1]}, {"add": [""]}, {"drop": []}, {"remove": ["a", "b"]}]
)
def test_a_change_of_models_that_cannot_be(body: Any) -> None:
    webui = client(models=("a", "b"))
    answer = webui.post("/simulator/models", json=body)
    assert (answer.status_code, set(answer.json)) == (422, {"error"})
    assert len(titles(webui)) == 2


# Options


def test_an_option_that_the_server_lacks() -> None:
    webui = client(lacks_options=("enable_prompt_comments",))
    assert "enable_prompt_comments" not in webui.get("/sdapi/v1/options").json
    answer = draw(webui, override_settings={"enable_prompt_comments": False}, force_task_id="t")
    assert (answer.status_code, answer.json["error"]) == (500, "KeyError")
    assert webui.get("/sdapi/v1/progress").json["state"]["job_no"] == 0
    assert info(draw(webui, prompt="a cat # kept"))["prompt"] == "a cat # kept"


def test_a_frozen_list_of_options_hides_some_that_work() -> None:
    webui = client(frozen_options=True)
    shown, all_of_them = webui.get("/sdapi/v1/options").json, client().get("/sdapi/v1/options").json
    assert "enable_prompt_comments" in set(all_of_them) - set(shown)
    kept = draw(webui, prompt="a cat # kept", override_settings={"enable_prompt_comments": False})
    assert info(kept)["prompt"] == "a cat # kept"
    assert "enable_prompt_comments" not in webui.get("/sdapi/v1/options").json


@pytest.mark.parametrize("flavour", ["a1111-1.10", "forge", "nowebui"])
def test_an_override_that_is_not_restored_is_permanent(flavour: str) -> None:
    webui = client(flavour)
    restored = draw(webui, override_settings={"samples_format": "jpg"})
    assert opened(image(restored)).format == "PNG"
    draw(webui, override_settings={"samples_format": "jpg"}, override_settings_restore_afterwards=False)
    assert opened(image(draw(webui))).format == "JPEG"
    assert webui.get("/sdapi/v1/options").json["samples_format"] == "jpg"


# The first load


@pytest.mark.parametrize("flavour", ["a1111-1.10", "nowebui"])
def test_a1111_loads_its_first_model_before_the_task_begins(flavour: str, pool: concurrent.futures.Executor) -> None:
    with SimulatorServer(SimulatorSettings(flavour=flavour, seconds_per_first_load=BUSY)) as server:
        running = pool.submit(post, server, "/sdapi/v1/txt2img", **SMALL, force_task_id="first")
        engine = server.simulator.engine
        while not engine.task_progress("first", -1)["queued"]:
            assert not running.done()
        progress = requests.get(server.url + "/sdapi/v1/progress", timeout=20).json()
        assert (progress["state"]["job_count"], progress["progress"]) == (0, 0.0)
        assert engine.task_progress("first", -1)["queued"]


def test_forge_loads_its_first_model_in_the_task(pool: concurrent.futures.Executor) -> None:
    with SimulatorServer(SimulatorSettings(flavour="forge", seconds_per_first_load=BUSY)) as server:
        running = pool.submit(post, server, "/sdapi/v1/txt2img", **SMALL, force_task_id="first")
        engine = server.simulator.engine
        while not engine.task_progress("first", -1)["active"]:
            assert not running.done()
        assert engine.progress()["state"]["job_count"] == -1


@pytest.mark.parametrize("flavour", ["a1111-1.10", "forge", "nowebui"])
def test_only_the_first_generation_waits_for_the_model(flavour: str) -> None:
    webui = client(flavour, seconds_per_first_load=0.3)
    began = time.perf_counter()
    first = draw(webui)
    middle = time.perf_counter()
    assert image(first) == image(draw(webui))
    assert middle - began >= 0.3
    assert image(first) == image(draw(client(flavour)))


def test_a_fresh_server_has_chosen_no_model_until_one_is_loaded() -> None:
    loading = client(fresh=True, seconds_per_first_load=BUSY)
    assert loading.get("/sdapi/v1/options").json["sd_model_checkpoint"] is None
    assert titles(loading)[0] == "simulated-one.safetensors"
    loaded = client(fresh=True)
    title = loaded.get("/sdapi/v1/options").json["sd_model_checkpoint"]
    assert title == titles(loaded)[0] == client().get("/sdapi/v1/options").json["sd_model_checkpoint"]


def test_a_fresh_server_loads_in_the_background_and_its_first_generation_waits_for_that() -> None:
    began = time.perf_counter()
    webui = client(fresh=True, seconds_per_first_load=0.3)
    first = draw(webui)
    assert time.perf_counter() - began >= 0.3
    assert image(first) == image(draw(client()))
    assert webui.get("/sdapi/v1/options").json["sd_model_checkpoint"].startswith("simulated-one.safetensors [")


def test_a_fresh_forge_has_chosen_its_model_at_once() -> None:
    webui = client("forge", fresh=True, seconds_per_first_load=BUSY)
    assert webui.get("/sdapi/v1/options").json["sd_model_checkpoint"].startswith("simulated-one.safetensors")


# What a server refuses or makes by itself


@pytest.mark.parametrize("flavour", ["a1111-1.10", "forge"])
def test_unipc_needs_as_many_steps_as_its_order(flavour: str) -> None:
    webui = client(flavour)
    for steps in (1, 2):
        answer = draw(webui, sampler_name="UniPC", steps=steps)
        assert (answer.status_code, answer.json["error"]) == (500, "AssertionError")
    assert draw(webui, sampler_name="UniPC", steps=3).status_code == 200


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_a_very_thin_reference_cannot_be_filled(size: tuple[int, int]) -> None:
    webui = client()
    answer = draw(webui, "img2img", init_images=[png(size)], resize_mode=2)
    assert (answer.status_code, answer.json["error"]) == (500, "ValueError")
    for mode in (0, 1):
        assert draw(webui, "img2img", init_images=[png(size)], resize_mode=mode).status_code == 200


@pytest.mark.parametrize("image_format", ["gif", "avif"])
def test_a_picture_format_that_cannot_be_sent_fails_after_the_work(image_format: str) -> None:
    webui = client()
    override = {"override_settings": {"samples_format": image_format}, "override_settings_restore_afterwards": False}
    answer = draw(webui, **override)
    assert (answer.status_code, answer.json["detail"]) == (500, "Invalid image format")
    assert webui.get("/simulator/stats").json["generations"] == 1


@pytest.mark.parametrize("flavour", ["a1111-1.10", "forge"])
def test_the_prompt_of_a_second_pass_stands_in_the_infotext_only(flavour: str) -> None:
    webui = client(flavour)
    hires = {"enable_hr": True, "denoising_strength": 0.5, "hr_additional_modules": ["Use same choices"]}
    other = info(draw(webui, **hires, hr_prompt="a dog", hr_scheduler="Karras"))
    assert other["extra_generation_params"]["Hires prompt"] is None
    assert other["extra_generation_params"]["Hires schedule type"] == "Karras"
    assert "Hires prompt: a dog" in other["infotexts"][0]
    assert "Hires prompt" not in info(draw(webui, **hires, hr_prompt=SMALL["prompt"]))["infotexts"][0]


def test_the_second_pass_needs_the_exact_name_of_a_sampler() -> None:
    answer = draw(client(), enable_hr=True, denoising_strength=0.5, hr_sampler_name="k_euler")
    assert (answer.status_code, answer.json["errors"]) == (500, "bad sampler name: k_euler")


def test_forge_names_its_scheme_on_401_and_compresses_nothing() -> None:
    webui = client("forge", auth=("user", "secret"))
    assert webui.get("/sdapi/v1/samplers").headers["WWW-Authenticate"] == "Basic"
    answer = webui.get("/sdapi/v1/samplers", auth=("user", "secret"), headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in answer.headers


def test_img2img_depends_on_the_job_before_it() -> None:
    webui = client("a1111-1.10-torch")
    texts = (
        draw(webui, seed=1).json["images"],
        draw(webui, seed=1, enable_hr=True, denoising_strength=0.5).json["images"],
    )
    made: dict[int, set[str]] = {1: set(), 5: set(), 7: set()}
    for seed in (1, 5, 7, 7, 5, 1):
        draw(webui, seed=seed)
        made[seed].add(image(draw(webui, "img2img", init_images=[png()])))
    assert all(len(results) == 1 for results in made.values())
    assert len(set.union(*made.values())) == 3
    again = (
        draw(webui, seed=1).json["images"],
        draw(webui, seed=1, enable_hr=True, denoising_strength=0.5).json["images"],
    )
    assert again == texts


def test_an_interrupt_is_forgotten_when_a_waiting_job_begins(slow: SimulatorServer, pool: Any) -> None:
    engine = slow.simulator.engine
    first = pool.submit(post, slow, "/sdapi/v1/txt2img", **SMALL, force_task_id="first")
    assert engine.wait_busy(10)
    waiting = pool.submit(post, slow, "/sdapi/v1/txt2img", **SMALL, force_task_id="waiting")
    while not engine.task_progress("waiting", -1)["queued"]:
        assert not waiting.done()
    post(slow, "/sdapi/v1/interrupt")
    answer = first.result(20)
    while not engine.task_progress("waiting", -1)["active"]:
        assert not waiting.done()
    state = requests.get(slow.url + "/sdapi/v1/progress", timeout=20).json()["state"]
    assert (state["interrupted"], state["job"]) == (False, "scripts_txt2img")
    assert post(slow, "/internal/progress", id_task="first").json()["completed"] is True
    engine.interrupt()
    stamps = [info(answer)["job_timestamp"], info(waiting.result(20))["job_timestamp"]]
    assert stamps == sorted(stamps)
    assert state["job_timestamp"] == stamps[1]
    assert engine.progress()["state"]["job_timestamp"] == stamps[1]
