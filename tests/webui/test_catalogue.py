from dataclasses import replace

import pytest

from app.webui.catalogue import (
    Catalogue,
    Requirements,
    Sampling,
    Scheduler,
    read_commented_styles,
    read_names,
    read_schedulers,
    read_styles,
    union,
)
from app.webui.models import read_models, told_apart
from tests.webui.samples import catalogue, model

REQUIRED = Requirements(type="txt2img", sampler_name="Euler", model="alpha")
SCHEDULERS = tuple(
    Scheduler(name, label)
    for name, label in [
        ("automatic", "Automatic"), ("uniform", "Uniform"), ("karras", "Karras"), ("sgm_uniform", "SGM Uniform"),
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("requirements", "served"),
    [
        ({}, True),
        ({"sampler_name": "euler"}, False),
        ({"sampler_name": "k_euler"}, False),
        ({"model": "gamma"}, False),
        ({"model": "alpha.safetensors [0123456789]"}, True),
        ({"model": "alpha", "digest": "0123"}, True),
        ({"model": "alpha", "digest": "ffff"}, False),
        ({"scheduler": "Karras"}, True),
        ({"scheduler": "karras"}, True),
        ({"scheduler": "KARRAS"}, False),
        ({"style": "anime"}, True),
        ({"style": "none of them"}, False),
        ({"hr_upscaler": "Latent"}, True),
        ({"hr_upscaler": "Lanczos"}, True),
        ({"type": "img2img", "hr_upscaler": "Lanczos"}, True),
        ({"type": "img2img", "hr_upscaler": "Latent"}, False),
        ({"hr_upscaler": "ESRGAN"}, False),
    ],
)
def test_a_webui_serves_what_it_has(requirements, served):
    values = {"type": "txt2img", "sampler_name": "Euler", "model": "alpha"} | requirements
    assert catalogue().serves(Requirements(**values)) is served


def test_an_empty_catalogue_serves_nothing():
    assert Catalogue().serves(REQUIRED) is False


@pytest.mark.parametrize(
    "value",
    [
        Catalogue(),
        catalogue(),
        catalogue(prompt_comments=True, task_ids=True, forge=True, loaded_model=None, styles=("水墨",)),
        catalogue(models=told_apart([model("a", digest="63e692ea9c"), model("b", stem="a", digest=None)])),
    ],
)
def test_a_catalogue_survives_the_database(value):
    assert Catalogue.from_json(value.to_json()) == value


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '"x"', '{"samplers": 1}', Catalogue().to_json()[:-1] + ',"x":1}']
)
def test_another_text_is_no_catalogue(text):
    with pytest.raises(ValueError):
        Catalogue.from_json(text)


def test_equal_demands_have_one_text():
    one = Requirements(
        type="img2img", sampler_name="Euler", model="水", style="s", scheduler="Karras", hr_upscaler="Lanczos"
    )
    two = Requirements(
        hr_upscaler="Lanczos", scheduler="Karras", style="s", model="水", sampler_name="Euler", type="img2img"
    )
    assert one.to_json() == two.to_json()
    assert Requirements.from_json(one.to_json()) == one
    assert Requirements.from_json(REQUIRED.to_json()) == REQUIRED


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "txt2img"}', '{"type": 1, "other": 2}'])
def test_another_text_is_no_demand(text):
    with pytest.raises(ValueError):
        Requirements.from_json(text)


def test_names_are_read_once_and_nonsense_is_left_out():
    entries = [{"name": "b"}, {"name": "a", "aliases": ["x"]}, {"name": "b"}, {"name": None}, {}, {"name": 5}]
    assert read_names(entries) == ("b", "a")


def test_dividers_are_no_styles():
    entries = [
        {"name": "anime", "prompt": "{prompt}, anime", "negative_prompt": ""},
        {"name": "----- styles2.csv -----", "prompt": None, "negative_prompt": None},
        {"name": "empty", "prompt": "", "negative_prompt": ""},
    ]
    assert read_styles(entries) == ("anime", "empty")


def test_schedulers_keep_name_and_label():
    entries = [{"name": "karras", "label": "Karras"}, {"name": "beta", "label": None}, {"label": "lost"}]
    assert read_schedulers(entries) == (Scheduler("karras", "Karras"), Scheduler("beta", "beta"))


def test_union_keeps_the_order_of_first_sight():
    assert union([("b", "a"), (), ("c", "a")]) == ["b", "a", "c"]


NEW, OLD = (
    catalogue(samplers=("DPM++ 2M", "Euler", "DPM fast"), schedulers=SCHEDULERS),
    catalogue(samplers=("DPM++ 2M Karras", "Euler", "Euler a"), schedulers=()),
)


@pytest.mark.parametrize(
    ("webui", "sampler", "scheduler", "sent"),
    [
        (NEW, "Euler", None, ("Euler", None)),
        (NEW, "Euler", "Karras", ("Euler", "Karras")),
        (NEW, "Euler", "karras", ("Euler", "karras")),
        (NEW, "Euler", "KARRAS", None),
        (NEW, "DPM++ 2M Karras", None, ("DPM++ 2M", "Karras")),
        (NEW, "DPM++ 2M karras", None, ("DPM++ 2M", "Karras")),
        (NEW, "DPM++ 2M KARRAS", None, None),
        (NEW, "dpm++ 2m Karras", None, None),
        (NEW, "DPM++ 2M Karras", "Karras", ("DPM++ 2M", "Karras")),
        (NEW, "DPM++ 2M Karras", "karras", ("DPM++ 2M", "Karras")),
        (NEW, "DPM++ 2M Karras", "Uniform", None),
        (NEW, "Euler SGM Uniform", None, ("Euler", "SGM Uniform")),
        (NEW, "Euler sgm_uniform", None, ("Euler", "SGM Uniform")),
        (NEW, "Euler Uniform", None, ("Euler", "Uniform")),
        (NEW, "EulerKarras", None, None),
        (NEW, "Karras", None, None),
        (NEW, "Gone Karras", None, None),
        (OLD, "DPM++ 2M Karras", None, ("DPM++ 2M Karras", None)),
        (OLD, "DPM++ 2M Karras", "Karras", ("DPM++ 2M Karras", None)),
        (OLD, "DPM++ 2M Karras", "karras", ("DPM++ 2M Karras", None)),
        (OLD, "DPM++ 2M Karras", "Exponential", None),
        (OLD, "DPM++ 2M", "Karras", None),
        (OLD, "Euler a", "a", ("Euler a", None)),
        (OLD, "Euler", "Karras", None),
        (catalogue(samplers=("Odd Karras", "Odd")), "Odd Karras", None, ("Odd Karras", None)),
        (catalogue(samplers=("Odd Karras", "Odd")), "Odd Karras", "Automatic", ("Odd Karras", "Automatic")),
    ],
)
def test_what_is_sent_for_a_sampler_and_a_scheduler(webui, sampler, scheduler, sent):
    assert webui.sampling(sampler, scheduler) == (sent and Sampling(*sent))
    assert webui.serves(replace(REQUIRED, sampler_name=sampler, scheduler=scheduler)) is (sent is not None)


STORED_BY_0_1_0 = (
    '{"samplers":["Euler"],"schedulers":[{"name":"karras","label":"Karras"}],"upscalers":["None"],"latent_modes":[],'
    '"styles":[],"models":['
    '{"title":"a.safetensors [63e692ea9c]","model_name":"a","checkpoint":"a","names":["a"],"digest":"63e692ea9c"},'
    '{"title":"sub/a.safetensors","model_name":"sub_a","checkpoint":"sub_a","names":["sub_a","a"],"digest":null},'
    '{"title":"x.ckpt [1111111111]","model_name":"x.ckpt","checkpoint":"x.ckpt [1111111111]","names":["x"],"digest":"1111111111"},'
    '{"title":"x.safetensors","model_name":"x.safetensors","checkpoint":"x.safetensors","names":["x"],"digest":null}'
    '],"loaded_model":"sub_a","prompt_comments":true,"task_ids":true,"forge":false}'
)


def test_a_catalogue_that_version_0_1_0_stored_is_read_as_if_it_was_asked_for_now():
    listed = [
        {
            "title": "a.safetensors [63e692ea9c]",
            "model_name": "a",
            "hash": "63e692ea9c",
            "filename": "/m/a.safetensors",
        },
        {"title": "sub/a.safetensors", "model_name": "sub_a", "hash": None, "filename": "/m/sub/a.safetensors"},
        {"title": "x.ckpt [1111111111]", "model_name": "x", "hash": "1111111111", "filename": "/m/x.ckpt"},
        {"title": "x.safetensors", "model_name": "x", "hash": None, "filename": "/m/x.safetensors"},
    ]
    stored = Catalogue.from_json(STORED_BY_0_1_0)
    assert stored.models == read_models(listed)
    assert stored.loaded_model == "sub/a.safetensors"
    assert stored.model_names == ("a.safetensors", "sub_a", "x.ckpt", "x.safetensors")
    assert Catalogue.from_json(stored.to_json()) == stored


OLD_REQUIRED = '{"hr_upscaler":null,"model":"%s","sampler_name":"Euler","scheduler":null,"style":null,"type":"txt2img"}'


@pytest.mark.parametrize(
    ("model_name", "checkpoint"),
    [("a", "a.safetensors"), ("sub_a", "sub/a.safetensors"), ("x.ckpt", "x.ckpt"), ("x", None), ("gone", None)],
)
def test_a_job_of_version_0_1_0_takes_the_exact_model_name(model_name, checkpoint):
    webui = Catalogue.from_json(STORED_BY_0_1_0)
    requirements = Requirements.from_json(OLD_REQUIRED % model_name)
    found = webui.model_of(requirements)
    assert (found and found.checkpoint) == checkpoint
    assert webui.serves(requirements) is (checkpoint is not None)


def test_a_job_of_this_version_never_takes_one_of_two_files():
    webui = Catalogue.from_json(STORED_BY_0_1_0)
    assert webui.model_of(replace(REQUIRED, model="a")) is None
    assert not webui.serves(replace(REQUIRED, model="a"))
    assert webui.model_of(Requirements.from_json(replace(REQUIRED, model="a").to_json())) is None


def test_a_hash_that_the_request_named_must_be_shown_by_the_result():
    webui = catalogue(models=told_apart([model("b", title="b.safetensors", digest=None)]))
    found = webui.model_of(replace(REQUIRED, model="b", digest="2a85d39d02"))
    assert found.checkpoint == "b.safetensors"
    assert found.fits("b", "2a85d39d02")
    assert not found.fits("b", "ffffffffff")
    assert webui.model_of(replace(REQUIRED, model="b")).fits("b", "ffffffffff")


def test_the_styles_that_hold_a_number_sign_are_told_apart():
    entries = [
        {"name": "plain", "prompt": "{prompt}", "negative_prompt": "blurry"},
        {"name": "marked", "prompt": "red #1, {prompt}", "negative_prompt": ""},
        {"name": "marked below", "prompt": "{prompt}", "negative_prompt": "blurry # not sharp"},
        {"name": "odd", "prompt": "{prompt}", "negative_prompt": None},
    ]
    assert read_commented_styles(entries) == ("marked", "marked below")
