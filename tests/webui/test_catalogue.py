import pytest

from app.webui.catalogue import (
    Catalogue,
    Demand,
    Scheduler,
    read_models,
    read_names,
    read_schedulers,
    read_styles,
    union,
)
from tests.webui.samples import catalogue, model

DEMAND = Demand(type="txt2img", sampler_name="Euler", model="alpha")


def entry(title: str, model_name: str, filename: str | None, digest: str | None = None) -> dict[str, object]:
    return {
        "title": title,
        "model_name": model_name,
        "hash": digest,
        "sha256": None,
        "filename": filename,
        "config": None,
    }


@pytest.mark.parametrize(
    ("demand", "served"),
    [
        ({}, True),
        ({"sampler_name": "euler"}, False),
        ({"sampler_name": "k_euler"}, False),
        ({"model": "gamma"}, False),
        ({"model": "alpha.safetensors [0123456789]"}, False),
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
def test_a_webui_serves_what_it_has(demand, served):
    values = {"type": "txt2img", "sampler_name": "Euler", "model": "alpha"} | demand
    assert catalogue().serves(Demand(**values)) is served


def test_an_empty_catalogue_serves_nothing():
    assert Catalogue().serves(DEMAND) is False


@pytest.mark.parametrize(
    "value",
    [
        Catalogue(),
        catalogue(),
        catalogue(prompt_comments=True, task_ids=True, forge=True, loaded_model=None, styles=("水墨",)),
        catalogue(models=(model("a", names=("a", "b"), digest="63e692ea9c"),)),
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
    one = Demand(type="img2img", sampler_name="Euler", model="水", style="s", scheduler="Karras", hr_upscaler="Lanczos")
    two = Demand(hr_upscaler="Lanczos", scheduler="Karras", style="s", model="水", sampler_name="Euler", type="img2img")
    assert one.to_json() == two.to_json()
    assert Demand.from_json(one.to_json()) == one
    assert Demand.from_json(DEMAND.to_json()) == DEMAND


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "txt2img"}', '{"type": 1, "other": 2}'])
def test_another_text_is_no_demand(text):
    with pytest.raises(ValueError):
        Demand.from_json(text)


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


def test_a_model_may_show_its_joined_name_or_the_stem_of_its_file():
    (one,) = read_models(
        [entry("sub/Dream v1.5.safetensors [aa]", "sub_Dream v1.5", "/m/sub/Dream v1.5.safetensors", "aa")]
    )
    assert (one.model_name, one.checkpoint, one.names) == (
        "sub_Dream v1.5",
        "sub_Dream v1.5",
        ("sub_Dream v1.5", "Dream v1.5"),
    )
    assert one.digest is None


@pytest.mark.parametrize(
    ("title", "filename", "stem"),
    [
        ("x\\y.ckpt", "C:\\models\\x\\y.ckpt", "y"),
        ("y.ckpt [abc123]", None, "y"),
        ("sub/y.ckpt", "", "y"),
        ("bare", "/models/bare", "bare"),
    ],
)
def test_the_stem_is_found_on_any_system(title, filename, stem):
    (one,) = read_models([entry(title, "joined", filename)])
    assert one.names == ("joined", stem)


def test_files_that_share_a_model_name_are_told_apart_by_their_titles():
    ckpt, safe, other = read_models(
        [
            entry("x.ckpt [1111111111]", "x", "/m/x.ckpt", "1111111111"),
            entry("x.safetensors", "x", "/m/x.safetensors"),
            entry("y.ckpt", "y", "/m/y.ckpt"),
        ]
    )
    assert (ckpt.model_name, ckpt.checkpoint, ckpt.digest) == ("x.ckpt", "x.ckpt [1111111111]", "1111111111")
    assert (safe.model_name, safe.checkpoint, safe.digest) == ("x.safetensors", "x.safetensors", None)
    assert (other.model_name, other.checkpoint) == ("y", "y")


def test_models_that_show_one_name_are_told_apart_by_their_hashes():
    one, two = read_models(
        [
            entry("a/x.ckpt [1111111111]", "a_x", "/m/a/x.ckpt", "1111111111"),
            entry("b/x.ckpt [2222222222]", "b_x", "/m/b/x.ckpt", "2222222222"),
        ]
    )
    assert one.fits("x", "1111111111")
    assert not one.fits("x", "2222222222")
    assert one.fits("x", None)
    assert two.fits("x", "2222222222")


@pytest.mark.parametrize(
    "entries", [[{}], [{"title": "x"}], [{"title": None, "model_name": "x"}], [{"model_name": "x"}]]
)
def test_a_model_without_its_names_is_left_out(entries):
    assert read_models(entries) == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("alpha", "alpha"),
        ("alpha.safetensors [0123456789]", "alpha"),
        ("alpha.safetensors", "alpha"),
        ("Alpha", None),
        ("0123456789", None),
        ("", None),
    ],
)
def test_a_model_is_found_by_title_or_name(text, found):
    one = catalogue().model(text)
    assert (one and one.model_name) == found


def test_an_exact_name_beats_a_title():
    titled = model("one", title="two")
    assert catalogue(models=(titled, model("two"))).model("two").model_name == "two"


@pytest.mark.parametrize(
    ("name", "digest", "fits"),
    [
        ("alpha", "0123456789", True),
        ("alpha", "ffff", True),
        ("alpha", None, True),
        ("beta", None, False),
        (None, None, False),
    ],
)
def test_an_unmistakable_name_is_enough(name, digest, fits):
    assert model("alpha").fits(name, digest) is fits


def test_union_keeps_the_order_of_first_sight():
    assert union([("b", "a"), (), ("c", "a")]) == ["b", "a", "c"]
