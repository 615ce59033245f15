"""Names of models: the model of a WebUI that a text means, and the result that fits it."""

import pytest

from app.webui.models import Models, read_models


def entry(title, model_name, filename=None, digest=None, sha256=None):
    return {
        "title": title,
        "model_name": model_name,
        "hash": digest,
        "sha256": sha256,
        "filename": filename,
        "config": None,
    }


def file(path, digest=None, *, root="/m/"):
    """An entry of /sd-models as the WebUI makes it for a file below its models folder."""
    model_name = path.removesuffix(".ckpt").removesuffix(".safetensors").replace("/", "_").replace("\\", "_")
    return entry(
        path if digest is None else f"{path} [{digest[:10]}]", model_name, root + path, digest and digest[:10], digest
    )


A, B, C = "a1" * 32, "b2" * 32, "c3" * 32
LISTS = {
    "two of one stem": [file("a.safetensors"), file("sub/a.safetensors")],
    "the same with hashes": [file("a.safetensors", A), file("sub/a.safetensors", B)],
    "one hash known": [file("a.safetensors", A), file("sub/a.safetensors")],
    "the other way round": [file("sub/a.safetensors", B), file("a.safetensors")],
    "two of one model_name": [file("x.ckpt", A), file("x.safetensors")],
    "a folder in a name": [file("sub_a.safetensors"), file("sub/a.safetensors")],
    "one in a folder": [file("sub/a.safetensors", A), file("b.safetensors")],
    "a title like another's stem": [file("x.ckpt", A), file("x.ckpt.safetensors", B)],
    "Windows": [file("a.safetensors"), file("sub\\a.safetensors", root="C:\\models\\")],
    "a title like a stem": [file("a"), file("sub/a.safetensors")],
    "brackets": [file("dream [1].safetensors", A), file("dream [2].safetensors"), file("dream.safetensors", B)],
    "one title, two hashes": [file("a.safetensors", A), file("a.safetensors", B, root="/other/")],
    "one title, one hash": [file("a.safetensors", A), file("a.safetensors", root="/other/")],
    "one title, no hash": [file("a.safetensors"), file("a.safetensors", root="/other/")],
}


def models(name):
    return Models(read_models(LISTS[name]))


@pytest.mark.parametrize(
    ("listed", "text", "checkpoint"),
    [
        ("two of one stem", "a", None),
        ("two of one stem", "sub_a", "sub/a.safetensors"),
        ("two of one stem", "a.safetensors", "a.safetensors"),
        ("two of one stem", "sub/a.safetensors", "sub/a.safetensors"),
        ("two of one stem", "sub/a", None),
        ("two of one stem", "a.safetensors [a1a1a1a1a1]", "a.safetensors"),
        ("two of one stem", "A", None),
        ("two of one stem", "", None),
        ("the same with hashes", "a", None),
        ("the same with hashes", "a [a1a1a1a1a1]", "a.safetensors"),
        ("the same with hashes", "a [B2B2B2B2B2]", "sub/a.safetensors"),
        ("the same with hashes", f"a [{B}]", "sub/a.safetensors"),
        ("the same with hashes", f"a [{B[:10]}{'0' * 54}]", None),
        ("the same with hashes", "a [ffffffffff]", None),
        ("the same with hashes", "a.safetensors [b2b2b2b2b2]", None),
        ("the same with hashes", "sub_a [b2b2b2]", "sub/a.safetensors"),
        ("the same with hashes", "a1a1a1a1a1", None),
        ("one hash known", "a", None),
        ("one hash known", "a [a1a1a1a1a1]", "a.safetensors"),
        ("one hash known", "a [b2b2b2b2b2]", "sub/a.safetensors"),
        ("the other way round", "a [b2b2b2b2b2]", "sub/a.safetensors"),
        ("the other way round", "a.safetensors [a1a1a1a1a1]", "a.safetensors"),
        ("two of one model_name", "x", None),
        ("two of one model_name", "x.ckpt", "x.ckpt"),
        ("two of one model_name", "x.safetensors", "x.safetensors"),
        ("two of one model_name", "x [a1a1a1a1a1]", "x.ckpt"),
        ("a folder in a name", "sub_a", None),
        ("a folder in a name", "a", "sub/a.safetensors"),
        ("a folder in a name", "sub_a.safetensors", "sub_a.safetensors"),
        ("one in a folder", "a", "sub/a.safetensors"),
        ("one in a folder", "sub_a", "sub/a.safetensors"),
        ("one in a folder", "a.safetensors", None),
        ("one in a folder", "b.safetensors [2a85d39d02]", "b.safetensors"),
        ("one in a folder", "b [2A85D39D02]", "b.safetensors"),
        ("one in a folder", "b[2a85d39d02]", "b.safetensors"),
        ("one in a folder", "sub/a.safetensors [2a85d39d02]", None),
        ("a title like another's stem", "x.ckpt", "x.ckpt [a1a1a1a1a1]"),
        ("a title like another's stem", "x.ckpt.safetensors", "x.ckpt.safetensors"),
        ("Windows", "a", None),
        ("Windows", "sub_a", "sub\\a.safetensors"),
        ("Windows", "sub\\a.safetensors", "sub\\a.safetensors"),
        ("a title like a stem", "a", "a"),
        ("brackets", "dream [1]", "dream [1].safetensors"),
        ("brackets", "dream [2].safetensors", "dream [2].safetensors"),
        ("brackets", "dream [2] [12345678]", "dream [2].safetensors"),
        ("brackets", "dream [b2b2b2b2b2]", "dream.safetensors"),
        ("brackets", "dream", "dream.safetensors"),
        ("one title, two hashes", "a.safetensors", None),
        ("one title, two hashes", "a", None),
        ("one title, two hashes", "a [a1a1a1a1a1]", "a.safetensors [a1a1a1a1a1]"),
        ("one title, two hashes", "a.safetensors [b2b2b2b2b2]", "a.safetensors [b2b2b2b2b2]"),
        ("one title, one hash", "a.safetensors", None),
        ("one title, one hash", "a [a1a1a1a1a1]", "a.safetensors [a1a1a1a1a1]"),
        ("one title, one hash", "a [b2b2b2b2b2]", None),
        ("one title, no hash", "a", "a.safetensors"),
    ],
)
def test_the_file_that_a_text_means(listed, text, checkpoint):
    found = models(listed).one(text)
    assert (found and found.checkpoint) == checkpoint


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("two of one stem", ["a.safetensors", "sub_a"]),
        ("two of one model_name", ["x.ckpt", "x.safetensors"]),
        ("a folder in a name", ["sub_a.safetensors", "a"]),
        ("one in a folder", ["a", "b"]),
        ("Windows", ["a.safetensors", "sub_a"]),
        ("a title like a stem", ["a", "sub_a"]),
        ("brackets", ["dream [1]", "dream [2]", "dream"]),
        ("one title, two hashes", ["a.safetensors [a1a1a1a1a1]", "a.safetensors [b2b2b2b2b2]"]),
        ("one title, one hash", ["a.safetensors [a1a1a1a1a1]", None]),
    ],
)
def test_the_shortest_name_that_means_one_file(listed, names):
    known = read_models(LISTS[listed])
    assert [Models(known).name_of(model) for model in known] == names


@pytest.mark.parametrize(
    ("listed", "taken"),
    [
        ("two of one stem", {"a": "a.safetensors", "sub_a": "sub/a.safetensors", "a.safetensors": "a.safetensors"}),
        ("two of one model_name", {"x": None, "x.ckpt": "x.ckpt"}),
        (
            "one in a folder",
            {"a": None, "sub_a": "sub/a.safetensors", "sub/a.safetensors [a1a1a1a1a1]": "sub/a.safetensors"},
        ),
    ],
)
def test_version_0_1_0_knew_no_stems(listed, taken):
    assert {text: (m := models(listed).named_exactly(text)) and m.checkpoint for text in taken} == taken


@pytest.mark.parametrize(
    ("title", "filename", "stem"),
    [
        ("x\\y.ckpt", "C:\\models\\x\\y.ckpt", "y"),
        ("y.ckpt [abc123]", None, "y"),
        ("sub/y.ckpt", "", "y"),
        ("bare", "/models/bare", "bare"),
        ("v1.5.ckpt", "/models/v1.5.ckpt", "v1.5"),
    ],
)
def test_the_stem_is_found_on_any_system(title, filename, stem):
    (one,) = read_models([entry(title, "joined", filename)])
    assert (one.model_name, one.stem) == ("joined", stem)


@pytest.mark.parametrize(
    "entries",
    [
        [{}],
        [{"title": "x"}],
        [{"title": None, "model_name": "x"}],
        [{"model_name": "x"}],
        [{"title": "x", "model_name": 5}],
        [{"title": "x\udce9", "model_name": "x"}],
        [{"title": "x", "model_name": "x\ud800"}],
        [{"title": "x" * 5000, "model_name": "x"}],
    ],
)
def test_a_model_without_its_names_is_left_out(entries):
    assert read_models(entries) == ()


@pytest.mark.parametrize(
    ("listed", "shown", "digest", "fitting"),
    [
        ("one in a folder", "a", "a1a1a1a1a1", ["sub/a.safetensors"]),
        # Nobody else shows that name: the file may have been replaced since the list was read.
        ("one in a folder", "a", "ffffffffff", ["sub/a.safetensors"]),
        ("one in a folder", "sub_a", None, ["sub/a.safetensors"]),
        ("one in a folder", "gone", None, []),
        ("one in a folder", None, None, []),
        ("the same with hashes", "a", "a1a1a1a1a1", ["a.safetensors"]),
        ("the same with hashes", "a", "b2b2b2b2b2", ["sub/a.safetensors"]),
        ("the same with hashes", "a", "ffffffffff", []),
        ("the same with hashes", "a", None, ["a.safetensors", "sub/a.safetensors"]),
        ("one hash known", "a", "a1a1a1a1a1", ["a.safetensors"]),
        ("one hash known", "a", "b2b2b2b2b2", ["sub/a.safetensors"]),
        ("two of one stem", "a", "b2b2b2b2b2", ["a.safetensors", "sub/a.safetensors"]),
        ("two of one model_name", "x", "a1a1a1a1a1", ["x.ckpt"]),
    ],
)
def test_the_files_that_a_result_fits(listed, shown, digest, fitting):
    assert [one.bare_title for one in read_models(LISTS[listed]) if one.fits(shown, digest)] == fitting
