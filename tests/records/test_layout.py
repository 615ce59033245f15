"""Names: what we write we can read, and nothing else passes for ours."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.records import layout as names
from app.records.layout import FileName

NAME = "20261122T061530123-9f2c4e7a"


def test_a_name_says_its_time_and_its_day():
    name = names.new_name(1_795_328_130_123, random.Random(7))
    assert name.startswith("20261122T061530123-")
    assert names.parse_filename(name) == FileName(name, "record")
    assert names.day_of(name) == "2026-11-22"


def test_names_differ_within_a_millisecond_and_repeat_with_the_seed():
    dice = random.Random(7)
    drawn = [names.new_name(0, dice) for _ in range(1000)]
    assert len(set(drawn)) == 1000
    assert drawn[0] == names.new_name(0, random.Random(7))


@given(st.lists(st.integers(0, 4_102_444_800_000), min_size=2, unique=True), st.randoms(use_true_random=False))
def test_names_sort_by_time(moments, dice):
    assert sorted(moments) == [m for _, m in sorted((names.new_name(m, dice), m) for m in moments)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NAME, FileName(NAME, "record")),
        (f"{NAME}-1-0.png", FileName(NAME, "image", 1, 0, "png")),
        (f"{NAME}-12-7.jpg", FileName(NAME, "image", 12, 7, "jpg")),
        (f"{NAME}-2-10.webp", FileName(NAME, "image", 2, 10, "webp")),
        (f"{NAME}-3.json", FileName(NAME, "document", 3, None, "json")),
        (f"{NAME}-init.png", FileName(NAME, "init", None, None, "png")),
    ],
)
def test_our_file_names_are_taken_apart(text, expected):
    assert names.parse_filename(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../" + NAME,
        f"{NAME}/",
        f"{NAME}\n",
        f"{NAME}-1-0.png\n",
        f"{NAME}-1-0.png\0",
        f"{NAME}\\..\\x",
        f"{NAME}-1-0.gif",
        f"{NAME}-1-0.PNG",
        f"{NAME}-1-0.jpeg",
        f"{NAME}-0-0.png",
        f"{NAME}-01-0.png",
        f"{NAME}-1-00.png",
        f"{NAME}-1-0",
        f"{NAME}-1",
        f"{NAME}-1.png",
        f"{NAME}-1-0.json",
        f"{NAME}-init.jpg",
        f"{NAME}-init",
        f" {NAME}",
        f"{NAME}%2e%2e",
        f".{NAME}-1-0.png",
        f".{NAME}-1-0.png.0123abcd.tmp",
        NAME.upper(),
        NAME.replace("1", "\u0661"),
        NAME[:-1],
        NAME + "0",
        "20261322T061530123-9f2c4e7a",
        "20261100T061530123-9f2c4e7a",
        "20261122T241530123-9f2c4e7a",
        "20261122T066030123-9f2c4e7a",
        "20261122T061560123-9f2c4e7a",
    ],
)
def test_anything_else_is_not_ours(text):
    assert names.parse_filename(text) is None


@given(st.integers(1, 999_999_999), st.integers(0, 99_999), st.sampled_from(["png", "jpg", "webp"]))
def test_what_is_built_is_read_back(attempt, index, extension):
    image = names.image_filename(NAME, attempt, index, extension)
    assert names.parse_filename(image) == FileName(NAME, "image", attempt, index, extension)
    document = names.document_filename(NAME, attempt)
    assert names.parse_filename(document) == FileName(NAME, "document", attempt, None, "json")


@pytest.mark.parametrize(
    "build",
    [
        lambda: names.image_filename(NAME, 0, 0, "png"),
        lambda: names.image_filename(NAME, 1, -1, "png"),
        lambda: names.image_filename(NAME, 1, 0, "gif"),
        lambda: names.image_filename("../x", 1, 0, "png"),
        lambda: names.document_filename(NAME, 0),
        lambda: names.document_filename(f"{NAME}-1", 1),
        lambda: names.init_filename("x"),
        lambda: names.init_filename(""),
    ],
)
def test_a_name_that_could_not_be_read_back_is_never_built(build):
    with pytest.raises(ValueError, match="no file name"):
        build()


def test_temporary_names_are_hidden_and_say_what_they_become():
    temporary = names.temporary_filename(f"{NAME}-1-0.png")
    assert temporary.startswith(".")
    assert names.parse_filename(temporary) is None
    assert names.parse_temporary(temporary) == FileName(NAME, "image", 1, 0, "png")


def test_temporary_names_that_nobody_else_uses_are_read_too():
    first, second = (names.fresh_temporary_filename(f"{NAME}-1.json") for _ in range(2))
    assert first != second
    assert names.parse_temporary(first) == FileName(NAME, "document", 1, None, "json")


def test_the_possible_names_of_a_record_are_names_of_its_files():
    found = names.filenames_of(NAME, (1, 12), 2)
    assert len(found) == len(set(found)) == 2 + 2 * 2 * 3
    parsed = [names.parse_filename(filename) for filename in found]
    assert [file.kind for file in parsed] == ["document"] * 2 + ["image"] * 12
    assert {(file.name, file.attempt) for file in parsed} == {(NAME, 1), (NAME, 12)}
    assert {(file.index, file.extension) for file in parsed[2:]} == {(i, e) for i in (0, 1) for e in names.EXTENSIONS}


@pytest.mark.parametrize(
    "text",
    [
        f"{NAME}-1-0.png",
        ".worker-host.lock",
        ".notes.0123abcd.tmp",
        f".{NAME}.0123abcd.tmp",
        f".{NAME}.tmp",
        f".{NAME}-1-0.png.0123ABCD.tmp",
        f".{NAME}-1-0.png.tmp.tmp",
        f".{NAME}-1-0.png.0123abcd.tmp\n",
    ],
)
def test_other_hidden_files_are_not_temporary_files_of_ours(text):
    assert names.parse_temporary(text) is None


@pytest.mark.parametrize(
    ("user_id", "readable"),
    [
        ("u1", "u1"),
        ("Alice.Smith@example.org", "alicesmithexampleorg"),
        ("a_" * 32, "a_" * 12),
        ("用户" * 32, ""),
        ("ÄÖ\u212a1", "1"),
    ],
)
def test_a_user_folder_is_readable_and_hashed(user_id, readable):
    digest = hashlib.sha256(user_id.encode()).hexdigest()[:16]
    assert names.user_folder(user_id) == f"{readable}-{digest}"
    assert names.is_user_folder(names.user_folder(user_id))


def test_users_that_read_alike_have_folders_of_their_own():
    ids = ["alice", "Alice", "ALICE", "al-ice", "alice ", "ali\u0441e", "e\u0301", "\u00e9"]
    assert len({names.user_folder(user_id) for user_id in ids}) == len(ids)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_user_folder_is_one_harmless_path_segment(user_id):
    assert names.is_user_folder(names.user_folder(user_id))


@pytest.mark.parametrize(
    "text", ["lost+found", "u1", "..", "u1-0123456789abcdef\n", "U1-0123456789abcdef", "2026-11-22"]
)
def test_other_folders_are_not_a_users(text):
    assert not names.is_user_folder(text)


def test_days():
    assert names.is_day("2026-11-22")
    assert not names.is_day("2026-11-22\n")
    assert not names.is_day("20261122")
