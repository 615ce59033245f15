import base64
from dataclasses import replace

import pytest

from app.parameters import PARAMETERS, Parameter, upscales
from app.webui import payloads
from app.webui.catalogue import Requirements
from app.webui.errors import NoLongerAvailable
from app.webui.models import read_models
from app.webui.payloads import Target
from app.webui.presets import Preset, Presets
from tests.webui.samples import args, catalogue, model, overrides

PRESETS = Presets({"oil": Preset(prompt="oil of {prompt}", negative_prompt="photo")})
PLAIN = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "seed": 42,
    "steps": 20,
    "cfg_scale": 7.5,
    "width": 512,
    "height": 768,
    "sampler_name": "Euler",
    "batch_size": 2,
    "n_iter": 1,
    "send_images": True,
    "save_images": False,
    "override_settings": {"sd_model_checkpoint": "alpha.safetensors", "samples_format": "png"},
    "override_settings_restore_afterwards": False,
}
ALPHA = model("alpha")
#: Two folders of models with a file of the same name each.
SAME_TITLE = [
    {"title": f"x.ckpt [{digest}]", "model_name": "x", "hash": digest, "filename": f"/{digest}/x.ckpt"}
    for digest in ("1111111111", "2222222222")
]
HIRES = {"hr_upscaler": "Latent", "hr_scale": 2, "denoising_strength": 0.7}
IMG2IMG = {"denoising_strength": 0.75, "resize_mode": "stretch"}


def txt2img(*, one_by_one=False, webui=None, kept=None, **changes):
    return payloads.txt2img(
        args(**changes),
        Target(webui or catalogue(), ALPHA, PRESETS, kept or overrides()),
        "task-1",
        one_by_one=one_by_one,
    )


@pytest.mark.parametrize(
    ("changes", "traits", "difference"),
    [
        ({}, {}, {}),
        ({"seed": "4294967295"}, {}, {"seed": 4294967295}),
        ({"scheduler": "karras"}, {}, {"scheduler": "karras"}),
        ({"style": "anime"}, {}, {"styles": ["anime"]}),
        ({"style": "oil"}, {}, {"prompt": "oil of a cat", "negative_prompt": "blurry, photo"}),
        ({}, {"task_ids": True}, {"force_task_id": "task-1"}),
        ({}, {"prompt_comments": True}, {}),
        ({"sampler_name": "DPM++ 2M Karras"}, {}, {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}),
        (
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "karras"},
            {},
            {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
        ),
        (
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "Karras"},
            {"samplers": ("DPM++ 2M Karras",), "schedulers": ()},
            {"sampler_name": "DPM++ 2M Karras"},
        ),
        ({"hr_upscaler": "None"}, {"forge": True}, {}),
        (HIRES, {}, HIRES | {"enable_hr": True}),
        (HIRES | {"hr_upscaler": "Lanczos"}, {}, HIRES | {"hr_upscaler": "Lanczos", "enable_hr": True}),
        (
            HIRES,
            {"forge": True},
            HIRES | {"enable_hr": True, "hr_cfg": 7.5, "hr_additional_modules": ["Use same choices"]},
        ),
    ],
)
def test_txt2img(changes, traits, difference):
    assert txt2img(webui=catalogue(**traits), **changes) == PLAIN | difference


@pytest.mark.parametrize("shown", [True, False, None])
@pytest.mark.parametrize(
    ("changes", "overridden"),
    [
        ({"prompt": "a cat # no comment"}, True),
        ({"negative_prompt": "#blurry"}, True),
        ({"style": "tagged"}, True),
        ({"prompt": "a cat"}, False),
        ({"prompt": "a cat", "style": "anime"}, False),
    ],
)
def test_prompt_comments_are_switched_off_for_prompts_with_a_hash_alone(shown, changes, overridden):
    presets = Presets({"tagged": Preset(prompt="{prompt} #1")})
    webui = catalogue(prompt_comments=shown)
    payload = payloads.txt2img(args(**changes), Target(webui, ALPHA, presets, overrides()), "t", one_by_one=False)
    expected = {"samples_format": "png"} | ({"enable_prompt_comments": False} if overridden else {})
    assert payloads.options_of(payload) == expected


def test_prompt_comments_are_put_back_with_the_next_prompt_without_a_hash():
    kept = overrides()
    assert payloads.options_of(txt2img(kept=kept, prompt="#"))["enable_prompt_comments"] is False
    assert payloads.options_of(txt2img(kept=kept))["enable_prompt_comments"] is True


def test_other_options_leave_the_model_as_it_was():
    payload = txt2img(prompt="#")
    changed = payloads.with_options(payload, {"samples_format": "png"})
    assert changed["override_settings"] == {"sd_model_checkpoint": "alpha.safetensors", "samples_format": "png"}
    assert payloads.options_of(payload)["enable_prompt_comments"] is False


def test_a_probe_loads_the_model_and_sends_no_picture():
    payload = payloads.probe(ALPHA, "task-1")
    assert payload["override_settings"] == {"sd_model_checkpoint": "alpha.safetensors"}
    assert (payload["width"], payload["height"], payload["steps"]) == (64, 64, 1)
    assert (payload["send_images"], payload["save_images"], payload["force_task_id"]) == (False, False, "task-1")


def test_one_by_one_asks_for_as_many_pictures():
    assert txt2img(one_by_one=True) == PLAIN | {"batch_size": 1, "n_iter": 2}


@pytest.mark.parametrize(("mode", "number"), [("stretch", 0), ("crop", 1), ("fill", 2)])
def test_img2img(mode, number):
    job = args(**IMG2IMG | {"resize_mode": mode})
    payload = payloads.img2img(
        job, b"\x89PNG", Target(catalogue(task_ids=True), ALPHA, PRESETS, overrides()), "task-1", one_by_one=False
    )
    assert payload == PLAIN | {
        "init_images": [base64.b64encode(b"\x89PNG").decode()],
        "denoising_strength": 0.75,
        "resize_mode": number,
        "force_task_id": "task-1",
    }


def test_img2img_is_upscaled_afterwards_and_not_by_the_hires_fix():
    job = args(**IMG2IMG, hr_upscaler="Lanczos", hr_scale=2)
    payload = payloads.img2img(
        job, b"png", Target(catalogue(forge=True), ALPHA, PRESETS, overrides()), "t", one_by_one=True
    )
    assert not [key for key in payload if key.startswith(("hr_", "enable_hr"))]
    assert (payload["batch_size"], payload["n_iter"]) == (1, 2)


def test_upscale():
    assert payloads.upscale(["aa", "bb"], args(hr_upscaler="Lanczos", hr_scale=1.5)) == {
        "imageList": [{"data": "aa", "name": "0.png"}, {"data": "bb", "name": "1.png"}],
        "resize_mode": 0,
        "upscaling_resize": 1.5,
        "upscaler_1": "Lanczos",
    }


@pytest.mark.parametrize(("upscaler", "expected"), [("", False), ("None", False), ("Latent", True), ("Lanczos", True)])
def test_what_counts_as_upscaling(upscaler, expected):
    assert upscales(args(hr_upscaler=upscaler)) is expected


def test_nothing_else_of_the_args_goes_through():
    smuggled = {"alwayson_scripts": {}, "script_name": "x", "override_settings": {"samples_format": "gif"}, "id": "u2"}
    assert txt2img(**smuggled) == PLAIN


def test_the_model_of_a_job_is_looked_up_by_its_demand():
    webui = catalogue(models=read_models(SAME_TITLE))
    requirements = Requirements(type="txt2img", sampler_name="Euler", model="x [11]")
    payload = payloads.txt2img(
        args(), Target(webui, payloads.model_of(requirements, webui), PRESETS, overrides()), "t", one_by_one=False
    )
    assert payload["override_settings"] == {"sd_model_checkpoint": "x.ckpt [1111111111]", "samples_format": "png"}
    with pytest.raises(NoLongerAvailable):
        payloads.model_of(replace(requirements, model="x.ckpt"), webui)


@pytest.mark.parametrize(
    "changes", [{"style": "gone"}, {"sampler_name": "gone"}, {"scheduler": "gone"}, {"sampler_name": "gone Karras"}]
)
def test_what_the_webui_would_silently_ignore_is_checked_once_more(changes):
    with pytest.raises(NoLongerAvailable) as caught:
        txt2img(**changes)
    assert caught.value.slug == "no-longer-available"


def test_the_args_are_left_as_they_were():
    job = args(**HIRES, style="oil")
    before = dict(job)
    payloads.txt2img(job, Target(catalogue(), ALPHA, PRESETS, overrides()), "t", one_by_one=True)
    assert job == before


@pytest.mark.parametrize(("style", "sent"), [("anime", False), ("marked", True)])
def test_a_style_of_the_webui_that_holds_a_number_sign_cuts_no_prompt(style, sent):
    webui = catalogue(styles=("anime", "marked"), commented_styles=("marked",))
    assert ("enable_prompt_comments" in txt2img(webui=webui, style=style)["override_settings"]) is sent


def test_no_row_of_the_table_replaces_what_the_gateway_sets():
    places = ("save_images", "override_settings", "override_settings_restore_afterwards", "n_iter", "prompt")
    rows = [Parameter(f"own_{name}", "text", "", "", "", payload=name, passed_on=True) for name in places]
    target = Target(catalogue(), ALPHA, PRESETS, overrides(), (*PARAMETERS, *rows))
    job = args(**{row.name: "theirs" for row in rows})
    assert payloads.txt2img(job, target, "t", one_by_one=False) == PLAIN
