from pathlib import Path

import pytest

from app.webui.presets import Preset, PresetError, Presets, load_presets

EXAMPLE = Path(__file__).parents[2] / "instance" / "styles.example.toml"


@pytest.mark.parametrize(
    ("preset", "prompts", "styled"),
    [
        (Preset(prompt="oil of {prompt}, canvas"), ("a cat", ""), ("oil of a cat, canvas", "")),
        (Preset(prompt="{prompt} and {prompt}"), ("a cat", "bad"), ("a cat and a cat", "bad")),
        (Preset(prompt="masterpiece"), ("a cat", ""), ("a cat, masterpiece", "")),
        (Preset(prompt="masterpiece"), ("", ""), ("masterpiece", "")),
        (Preset(prompt="oil of {prompt}"), ("{prompt}", ""), ("oil of {prompt}", "")),
        (Preset(), ("a cat", "bad"), ("a cat", "bad")),
        (Preset(negative_prompt="lowres"), ("a cat", "bad"), ("a cat", "bad, lowres")),
        (Preset(negative_prompt="lowres"), ("a cat", ""), ("a cat", "lowres")),
        (Preset(prompt="水墨 {prompt} {other}"), (" 一只猫 # x", ""), ("水墨  一只猫 # x {other}", "")),
    ],
)
def test_a_preset_is_put_into_the_prompts(preset, prompts, styled):
    assert Presets({"s": preset}).apply("s", *prompts) == styled


def test_another_style_leaves_the_prompts_alone():
    presets = Presets({"s": Preset(prompt="x {prompt}")})
    assert presets.apply("", "a", "b") == ("a", "b")
    assert presets.apply("S", "a", "b") == ("a", "b")


def test_a_missing_file_holds_no_presets(tmp_path):
    assert load_presets(tmp_path / "styles.toml").names == ()


def test_every_key_is_read_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "styles.toml"
    path.write_text(
        '["b style"]\nprompt = "x {prompt}"\nnegative_prompt = "y"\nmodel = "m"\nsampler = "DPM++ 2M"\n["水墨"]\n',
        "utf-8",
    )
    presets = load_presets(path)
    assert presets.names == ("b style", "水墨")
    assert presets.get("b style") == Preset("x {prompt}", "y", "m", "DPM++ 2M")
    assert presets.get("水墨") == Preset()
    assert presets.get("none") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[a", "styles.toml"),
        (b"\xff", "styles.toml"),
        (b"[a]\nprompt = 5", "[a] prompt must be a string"),
        (b"[a]\npromt = 'x'", "[a] has an unknown key promt"),
        (b"[a.b]\nprompt = 'x'", "[a] has an unknown key b"),
        (b"a = 'x'", "a must be a table"),
        (b"[[a]]\nprompt = 'x'", "a must be a table"),
        (b"[a]\nmodel = ''", "[a] model must not be empty"),
        (b"[a]\nsampler = ''", "[a] sampler must not be empty"),
        (b"['']\nprompt = 'x'", "a style needs a name"),
    ],
)
def test_a_malformed_file_is_named_with_its_fault(tmp_path, text, said):
    path = tmp_path / "styles.toml"
    path.write_bytes(text)
    with pytest.raises(PresetError) as caught:
        load_presets(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "styles.toml"
    path.mkdir()
    with pytest.raises(PresetError, match=r"styles\.toml"):
        load_presets(path)


def test_the_example_is_usable_as_it_stands():
    presets = load_presets(EXAMPLE)
    assert presets.apply("oil painting", "a cat", "")[0].startswith("an oil painting of a cat,")
    assert len(presets.names) >= 3
