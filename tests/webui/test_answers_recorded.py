"""The readers against answers of a real WebUI, where its recordings lie beside the checkout."""

import json
from pathlib import Path

import pytest

from app.webui import errors
from app.webui.answers import read_generation, read_upscaled
from app.webui.catalogue import read_names, read_schedulers, read_styles
from app.webui.exchange import Reply
from app.webui.models import read_models
from tests.webui.samples import ROOMY

RECORDINGS = Path(__file__).parents[3] / "shared" / "webui-recordings"
pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings in ../shared/webui-recordings")


def recorded(name):
    return json.loads((RECORDINGS / f"{name}.json").read_text("utf-8"))


def reply(name):
    record = recorded(name)
    body = record["body"] if record.get("body_kind") == "text" else json.dumps(record["body"])
    return Reply(record["status"], body.encode())


def models():
    return {model.model_name: model for model in read_models(recorded("get_sd-models_after_both_loaded")["body"])}


@pytest.mark.parametrize(
    ("name", "model", "seeds"),
    [
        ("txt2img_basic_fixed_seed", "random-tiny-a", [42]),
        ("txt2img_batch2_fixed", "random-tiny-a", [42, 43]),
        ("txt2img_n_iter2", "random-tiny-a", [42, 43]),
        ("txt2img_batch2_save_images", "random-tiny-a", [42, 43]),
        ("txt2img_hr_latent", "random-tiny-a", [42]),
        ("txt2img_styles_anime", "random-tiny-a", [42]),
        ("txt2img_override_model_b", "random-tiny-b", [42]),
        ("img2img_raw_base64", "random-tiny-a", [42]),
        ("img2img_batch2", "random-tiny-a", [42, 43]),
    ],
)
def test_pictures(name, model, seeds):
    found = read_generation(reply(name), ROOMY, expected=len(seeds), model=models()[model], first_seed=seeds[0])
    assert [picture.seed for picture in found.pictures] == seeds
    for picture, seed in zip(found.pictures, seeds, strict=True):
        # The infotext stands in the file too: each picture got its own, and the grid in front was left out.
        assert f"Seed: {seed}," in picture.infotext
        assert picture.infotext.encode() in picture.data
    assert (found.model, found.simulated) == (model, False)


def test_an_override_that_the_server_ignored_is_noticed():
    ran = json.loads(recorded("txt2img_override_model_unknown")["body"]["info"])["sd_model_name"]
    (asked,) = (model for name, model in models().items() if name != ran)
    with pytest.raises(errors.WrongModel):
        read_generation(reply("txt2img_override_model_unknown"), ROOMY, expected=1, model=asked, first_seed=None)


@pytest.mark.parametrize(
    ("name", "expected", "kind"),
    [
        ("txt2img_sampler_unknown", 1, errors.Refused),
        ("txt2img_steps_string_bad", 1, errors.Refused),
        ("txt2img_steps_0", 1, errors.Cannot),
        ("txt2img_nan_error", 1, errors.Cannot),
        ("txt2img_seed_2p64", 1, errors.WebuiFailed),
        ("img2img_broken_base64", 1, errors.WebuiFailed),
        ("img2img_missing_init", 1, errors.Refused),
        ("txt2img_get_wrong_method", 1, errors.Refused),
        ("txt2img_send_images_false", 1, errors.BadAnswer),
        ("nowebui_txt2img_auth_missing", 1, errors.Refused),
        ("unknown_path", 1, errors.Refused),
    ],
)
def test_failures(name, expected, kind):
    with pytest.raises(errors.WebuiError) as caught:
        read_generation(reply(name), ROOMY, expected=expected, model=models()["random-tiny-a"], first_seed=None)
    assert type(caught.value) is kind


def test_upscaled_pictures():
    made = read_generation(
        reply("txt2img_batch2_fixed"), ROOMY, expected=2, model=models()["random-tiny-a"], first_seed=42
    )
    upscaled = read_upscaled(reply("extras_batch_lanczos"), ROOMY, made.pictures)
    assert [picture.seed for picture in upscaled] == [42, 43]
    assert all(picture.data.startswith(b"\x89PNG") for picture in upscaled)
    with pytest.raises(errors.BadAnswer):
        read_upscaled(reply("extras_batch_empty"), ROOMY, made.pictures)


def test_lists():
    assert "Euler" in read_names(recorded("get_samplers")["body"])
    assert read_names(recorded("get_upscalers")["body"])[:3] == ("None", "Lanczos", "Nearest")
    assert len(read_names(recorded("get_latent-upscale-modes")["body"])) == 6
    assert read_styles(recorded("get_prompt-styles")["body"])[:3] == ("anime", "photo", "suffix")
    assert set(models()) == {"random-tiny-a", "random-tiny-b"}
    assert read_schedulers([]) == ()
