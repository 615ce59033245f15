import pytest

from app.webui.catalogue import Requirements
from app.webui.errors import NoDefaultModel, UnknownNames
from app.webui.models import read_models
from app.webui.presets import Preset, Presets
from app.webui.resolve import choose_default_model, guesses, merge_options, resolve
from tests.webui.samples import catalogue, fields, model

PRESETS = Presets(
    {
        "oil": Preset(prompt="oil of {prompt}"),
        "full": Preset(prompt="{prompt}", model="beta.safetensors [0123456789]", sampler="DPM++ 2M"),
        "old": Preset(prompt="old {prompt}", sampler="DPM++ 2M Karras"),
        "lost": Preset(model="gone", sampler="Gone"),
        "photo": Preset(prompt="the gateway's own photo of {prompt}"),
    }
)
TITLE = "beta.safetensors [0123456789]"


def resolved(type_="txt2img", catalogues=None, default_model="alpha", **changes):
    return resolve(type_, fields(**changes), catalogues or [catalogue()], PRESETS, default_model)


def refused(*args, **changes):
    with pytest.raises(UnknownNames) as caught:
        resolved(*args, **changes)
    return caught.value


@pytest.mark.parametrize(
    ("type_", "posted", "optionals"),
    [
        ("txt2img", {}, {}),
        ("txt2img", {"denoising_strength": 0.3, "hr_scale": 3, "resize_mode": "crop"}, {}),
        ("txt2img", {"hr_upscaler": "None", "hr_scale": 3}, {}),
        ("txt2img", {"hr_upscaler": "Latent"}, {"denoising_strength": 0.7, "hr_scale": 2}),
        ("txt2img", {"hr_upscaler": "Lanczos"}, {"denoising_strength": 0.7, "hr_scale": 2}),
        (
            "txt2img",
            {"hr_upscaler": "Latent", "denoising_strength": 0, "hr_scale": 1.5},
            {"denoising_strength": 0, "hr_scale": 1.5},
        ),
        ("txt2img", {"sampler_name": "DPM++ 2M"}, {"sampler_name": "DPM++ 2M"}),
        ("txt2img", {"scheduler": "karras"}, {"scheduler": "karras"}),
        ("txt2img", {"scheduler": "Karras"}, {"scheduler": "Karras"}),
        ("txt2img", {"sampler_name": "DPM++ 2M Karras"}, {"sampler_name": "DPM++ 2M Karras", "scheduler": "Karras"}),
        (
            "txt2img",
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "karras"},
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "karras"},
        ),
        ("txt2img", {"style": "old"}, {"sampler_name": "DPM++ 2M Karras", "scheduler": "Karras"}),
        ("txt2img", {"model": "beta"}, {"model": "beta"}),
        ("txt2img", {"model": TITLE}, {"model": "beta"}),
        ("txt2img", {"style": "anime"}, {}),
        ("txt2img", {"style": "oil"}, {}),
        ("txt2img", {"style": "full"}, {"sampler_name": "DPM++ 2M", "model": "beta"}),
        ("txt2img", {"style": "full", "sampler_name": "Euler"}, {"sampler_name": "Euler", "model": "beta"}),
        ("txt2img", {"style": "full", "model": "alpha"}, {"sampler_name": "DPM++ 2M", "model": "alpha"}),
        ("txt2img", {"style": "lost", "sampler_name": "Euler", "model": "beta"}, {"model": "beta"}),
        ("img2img", {}, {"denoising_strength": 0.75, "resize_mode": "stretch"}),
        ("img2img", {"hr_scale": 3}, {"denoising_strength": 0.75, "resize_mode": "stretch"}),
        (
            "img2img",
            {"hr_upscaler": "Lanczos", "resize_mode": "fill", "denoising_strength": 0.2},
            {"denoising_strength": 0.2, "hr_scale": 2, "resize_mode": "fill"},
        ),
    ],
)
def test_args_carry_what_makes_a_difference(type_, posted, optionals):
    found = resolved(type_, init_images="aGVsbG8=", **posted)
    documented = {name: value for name, value in fields(**posted).items() if name in fields()}
    assert found.args == documented | {"sampler_name": "Euler", "model": "alpha"} | optionals


def test_the_args_posted_back_resolve_to_themselves():
    args = resolved("img2img", style="full", hr_upscaler="Lanczos", scheduler="karras").args
    again = resolve("img2img", args, [catalogue()], PRESETS, "alpha")
    assert again.args == args


@pytest.mark.parametrize(
    ("type_", "posted", "required"),
    [
        ("txt2img", {}, {}),
        ("txt2img", {"style": "anime"}, {"style": "anime"}),
        ("txt2img", {"style": "oil"}, {}),
        ("txt2img", {"style": "photo"}, {}),
        ("txt2img", {"style": "full"}, {"sampler_name": "DPM++ 2M", "model": "beta", "digest": "0123456789"}),
        ("txt2img", {"model": "beta [0123]"}, {"model": "beta", "digest": "0123"}),
        ("txt2img", {"sampler_name": "DPM++ 2M karras"}, {"sampler_name": "DPM++ 2M karras", "scheduler": "Karras"}),
        ("txt2img", {"scheduler": "karras"}, {"scheduler": "karras"}),
        ("txt2img", {"hr_upscaler": "None"}, {}),
        ("txt2img", {"hr_upscaler": "Latent"}, {"hr_upscaler": "Latent"}),
        ("img2img", {"hr_upscaler": "Nearest"}, {"hr_upscaler": "Nearest"}),
    ],
)
def test_the_demand_names_what_a_webui_must_have(type_, posted, required):
    expected = {"type": type_, "sampler_name": "Euler", "model": "alpha"} | required
    assert resolved(type_, **posted).requirements == Requirements(**expected)


@pytest.mark.parametrize(
    ("type_", "posted", "accepted"),
    [
        ("txt2img", {"style": "nope"}, {"style": ["oil", "full", "old", "photo", "anime"]}),
        ("txt2img", {"style": "Anime"}, {"style": ["oil", "full", "old", "photo", "anime"]}),
        ("txt2img", {"style": "lost"}, {"style": ["oil", "full", "old", "photo", "anime"]}),
        ("txt2img", {"sampler_name": "euler"}, {"sampler_name": ["DPM++ 2M", "Euler"]}),
        ("txt2img", {"sampler_name": ""}, {"sampler_name": ["DPM++ 2M", "Euler"]}),
        ("txt2img", {"scheduler": "nope"}, {"scheduler": ["Automatic", "Karras"]}),
        ("txt2img", {"model": "nope"}, {"model": ["alpha", "beta"]}),
        ("txt2img", {"model": ""}, {"model": ["alpha", "beta"]}),
        (
            "txt2img",
            {"hr_upscaler": "nope"},
            {"hr_upscaler": ["Latent", "Latent (nearest)", "None", "Lanczos", "Nearest"]},
        ),
        ("img2img", {"hr_upscaler": "Latent"}, {"hr_upscaler": ["None", "Lanczos", "Nearest"]}),
    ],
)
def test_an_unknown_name_is_refused_with_what_would_do(type_, posted, accepted):
    error = refused(type_, **posted)
    assert error.accepted == accepted
    assert set(error.errors) == set(accepted)
    assert error.slug == "unknown-name"


def test_all_unknown_names_come_at_once():
    error = refused(style="s", sampler_name="a", scheduler="b", model="m", hr_upscaler="u")
    assert error.errors == {
        "style": ["No WebUI has the style 's'."],
        "sampler_name": ["No WebUI has the sampler 'a'."],
        "scheduler": ["No WebUI has the scheduler 'b'."],
        "model": ["No WebUI has the model 'm'."],
        "hr_upscaler": ["No WebUI has the upscaler or latent mode 'u'."],
    }
    assert set(error.accepted) == set(error.errors)


def test_a_preset_that_no_webui_can_serve_is_blamed_itself():
    error = refused(style="lost")
    assert error.errors == {
        "style": [
            "No WebUI has the sampler 'Gone', which this style uses.",
            "No WebUI has the model 'gone', which this style uses.",
        ]
    }


def test_a_missing_default_sampler_is_said():
    error = refused(catalogues=[catalogue(samplers=("DPM++ 2M",))])
    assert error.errors == {"sampler_name": ["No WebUI has the sampler 'Euler', which is used where none is named."]}
    assert error.accepted == {"sampler_name": ["DPM++ 2M"]}


def test_a_very_long_name_is_not_echoed_whole():
    (message,) = refused(style="x" * 20000).errors["style"]
    assert len(message) < 200


@pytest.mark.parametrize("default", [None, "gone"])
def test_no_default_model_is_said_only_where_one_is_needed(default):
    with pytest.raises(NoDefaultModel):
        resolved(default_model=default)
    assert resolved(default_model=default, model="beta").args["model"] == "beta"
    assert resolved(default_model=default, style="full").args["model"] == "beta"


def test_unknown_names_go_before_a_missing_default_model():
    assert set(refused(default_model=None, style="nope").errors) == {"style"}


def test_names_of_different_webuis_do_not_go_together():
    one = catalogue(samplers=("Euler", "Only one"), models=(model("alpha"),))
    two = catalogue(samplers=("Euler", "Only two"), models=(model("beta"),))
    error = refused(catalogues=[one, two], sampler_name="Only one", model="beta", hr_upscaler="Lanczos")
    message = "No single WebUI has this together with the other names of the request."
    assert error.errors == {"sampler_name": [message], "model": [message]}
    assert error.accepted == {"sampler_name": ["Euler", "Only two"], "model": ["alpha"]}
    assert resolved(catalogues=[one, two], sampler_name="Only two", model="beta").requirements.model == "beta"


def test_a_preset_that_does_not_go_with_the_rest_is_blamed_without_wrong_offers():
    one = catalogue(models=(model("alpha"),))
    two = catalogue(models=(model("beta"),), upscalers=("None",))
    error = refused(catalogues=[one, two], style="full", hr_upscaler="Lanczos")
    assert set(error.errors) == {"style", "hr_upscaler"}
    assert error.accepted == {"hr_upscaler": ["Latent", "Latent (nearest)", "None"]}


def test_options_are_the_union_in_a_stable_order():
    two = catalogue(samplers=("Heun", "Euler"), schedulers=(), styles=("comic", "anime"), models=(model("gamma"),))
    assert merge_options([catalogue(), two], PRESETS, "alpha") == {
        "samplers": ["DPM++ 2M", "Euler", "Heun"],
        "schedulers": ["Automatic", "Karras"],
        "upscalers": ["None", "Lanczos", "Nearest"],
        "latent_modes": ["Latent", "Latent (nearest)"],
        "styles": ["oil", "full", "old", "photo", "anime", "comic"],
        "models": ["alpha", "beta", "gamma"],
        "default_model": "alpha",
    }


@pytest.mark.parametrize(
    ("configured", "stored", "chosen"),
    [
        ("beta", "alpha", "beta"),
        (TITLE, None, "beta"),
        ("beta.safetensors", None, "beta"),
        ("gone", "beta", None),
        ("", "beta", "beta"),
        ("", "gone", "alpha"),
        ("", None, "alpha"),
    ],
)
def test_the_default_model_is_chosen(configured, stored, chosen):
    assert choose_default_model(configured, stored, [catalogue(loaded_model=None), catalogue()]) == chosen


def test_there_is_no_default_model_without_a_webui_that_shows_one():
    assert choose_default_model("", None, [catalogue(loaded_model=None)]) is None
    assert choose_default_model("", "alpha", []) is None


A, B = "a1" * 32, "b2" * 32


def listing(*files, **changes):
    """A WebUI with these files: (path, SHA-256 or None)."""
    entries = [
        {
            "title": path if digest is None else f"{path} [{digest[:10]}]",
            "model_name": path.rpartition(".")[0].replace("/", "_"),
            "hash": digest and digest[:10],
            "sha256": digest,
            "filename": f"/m/{path}",
        }
        for path, digest in files
    ]
    return catalogue(models=read_models(entries), loaded_model=None, **changes)


TOP, SUB = ("a.safetensors", None), ("sub/a.safetensors", None)


@pytest.mark.parametrize(
    ("webuis", "posted", "named", "checkpoints"),
    [
        ([[TOP, SUB]], "sub_a", "sub_a", ["sub/a.safetensors"]),
        ([[TOP, SUB]], "a.safetensors", "a.safetensors", ["a.safetensors"]),
        ([[TOP]], "a.safetensors", "a", ["a.safetensors"]),
        ([[SUB]], "sub_a", "a", ["sub/a.safetensors"]),
        # The short name means the file in one of two WebUIs only.
        ([[TOP, SUB], [TOP]], "a", "a", [None, "a.safetensors"]),
        ([[TOP, SUB], [TOP]], "a.safetensors", "a.safetensors", ["a.safetensors", "a.safetensors"]),
        ([[TOP, SUB], [SUB]], "sub_a", "sub_a", ["sub/a.safetensors", "sub/a.safetensors"]),
        # The short name means another file in the other WebUI.
        ([[TOP], [SUB]], "a.safetensors", "a.safetensors", ["a.safetensors", None]),
        ([[TOP], [SUB]], "sub_a", "sub_a", [None, "sub/a.safetensors"]),
        # A hash that one WebUI contradicts, and one that another can't tell.
        (
            [[("a.safetensors", A)], [("a.safetensors", B)]],
            f"a [{B}]",
            "a.safetensors [b2b2b2b2b2]",
            [None, "a.safetensors"],
        ),
        ([[("a.safetensors", A)], [TOP]], "a [b2b2b2b2b2]", "a [b2b2b2b2b2]", [None, "a.safetensors"]),
        ([[("a.safetensors", A)], [TOP]], "a [a1a1a1a1a1]", "a", ["a.safetensors", "a.safetensors"]),
    ],
)
def test_the_shortest_name_that_means_the_file_in_every_webui(webuis, posted, named, checkpoints):
    catalogues = [listing(*files) for files in webuis]
    found = resolved(catalogues=catalogues, default_model=None, model=posted)
    assert found.args["model"] == found.requirements.model == named
    taken = [one.model_of(found.requirements) for one in catalogues]
    assert [model and model.checkpoint for model in taken] == checkpoints
    again = resolved(catalogues=catalogues, default_model=None, model=named)
    assert again.args == found.args
    assert [
        model and model.checkpoint for model in (one.model_of(again.requirements) for one in catalogues)
    ] == checkpoints


def test_a_name_of_several_files_is_refused_with_their_names_first():
    error = refused(catalogues=[listing(("b.ckpt", None), TOP, SUB)], model="a")
    assert error.errors == {
        "model": ["The model 'a' is the name of several files; write which one, as listed in accepted."]
    }
    assert error.accepted == {"model": ["a.safetensors", "sub_a", "b"]}


@pytest.mark.parametrize("posted", ["a [ffff]", "a.safetensors [ffffffffff]"])
def test_a_known_hash_that_disagrees_is_refused(posted):
    error = refused(catalogues=[listing(("a.safetensors", A))], model=posted)
    assert error.errors == {"model": [f"No WebUI has the model {posted!r}."]}
    assert error.accepted == {"model": ["a"]}


def test_options_list_the_names_that_args_would_carry():
    catalogues = [listing(TOP, SUB), listing(TOP, ("b.ckpt", None))]
    assert merge_options(catalogues, PRESETS, None)["models"] == ["a.safetensors", "sub_a", "b"]
    for name in ("a.safetensors", "sub_a", "b"):
        assert resolved(catalogues=catalogues, model=name).args["model"] == name


@pytest.mark.parametrize(
    ("configured", "stored", "chosen"),
    [("a", None, "a.safetensors"), ("", "a", "a.safetensors"), ("sub_a", None, "sub_a"), ("x", None, None)],
)
def test_a_default_of_version_0_1_0_is_the_exact_model_name(configured, stored, chosen):
    webui = listing(TOP, SUB, ("x.ckpt", None), ("x.safetensors", None))
    assert choose_default_model(configured, stored, [webui]) == chosen


def test_a_preset_that_names_several_files_takes_the_exact_model_name():
    presets = Presets({"both": Preset(model="a")})
    webui = listing(TOP, SUB)
    found = resolve("txt2img", fields(style="both"), [webui], presets, None)
    assert (found.args["model"], webui.model_of(found.requirements).checkpoint) == ("a.safetensors", "a.safetensors")
    assert merge_options([webui], presets, None)["styles"] == ["both", "anime", "photo"]
    assert guesses(["a", "sub_a", "gone"], {"gpu0": webui}) == [("a", "gpu0", "a.safetensors")]


@pytest.mark.parametrize("scheduler", ["Automatic", "automatic"])
def test_a_sampler_that_names_one_scheduler_goes_with_no_other(scheduler):
    error = refused(sampler_name="DPM++ 2M Karras", scheduler=scheduler)
    assert error.errors == {
        "scheduler": ["The name of the sampler 'DPM++ 2M Karras' already names a scheduler, 'Karras'."]
    }
    assert error.accepted == {"scheduler": ["Karras"]}


def test_a_scheduler_that_nobody_has_is_unknown_beside_any_sampler():
    error = refused(sampler_name="DPM++ 2M Karras", scheduler="nope")
    assert error.errors == {"scheduler": ["No WebUI has the scheduler 'nope'."]}


OLDER = catalogue(samplers=("DPM++ 2M Karras",), schedulers=())


@pytest.mark.parametrize(
    ("catalogues", "posted", "scheduler"),
    [
        ([OLDER], {}, None),
        ([OLDER], {"scheduler": "Karras"}, "Karras"),
        ([OLDER], {"scheduler": "karras"}, "karras"),
        ([catalogue()], {"scheduler": "Karras"}, "Karras"),
        ([catalogue(), OLDER], {}, "Karras"),
        ([OLDER, catalogue()], {"scheduler": "Karras"}, "Karras"),
    ],
)
def test_a_sampler_of_an_older_webui_is_served_by_old_and_new_ones(catalogues, posted, scheduler):
    found = resolved(catalogues=catalogues, sampler_name="DPM++ 2M Karras", **posted)
    assert (found.args["sampler_name"], found.args.get("scheduler")) == ("DPM++ 2M Karras", scheduler)
    assert all(one.serves(found.requirements) for one in catalogues)
    assert resolve("txt2img", found.args, catalogues, PRESETS, None).args == found.args
