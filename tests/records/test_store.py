"""The store: what is written is there whole or not at all, and nothing outside its own names is ever touched."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.records import atomic, files, folder
from app.records import layout as names
from app.records.errors import (
    BadDocument,
    BadImage,
    MissingFile,
    RecordsError,
    StorageFailed,
    StoreUnavailable,
)
from app.records.layout import Variant
from app.records.store import RecordStore
from tests.inprocess import until

NAME = "20261122T061530123-9f2c4e7a"
OTHER = "20261122T061530123-00000000"
USER = "用户-Alice"
PLACE = (USER, "img2img", NAME)
#: Of what :func:`fill` saves: the number of the last attempt, and the pictures of each.
WHOLE = {"claims": 2, "images": 2}


def encode(form: str) -> bytes:
    data = io.BytesIO()
    Image.frombytes("RGB", (16, 8), random.Random(3).randbytes(16 * 8 * 3)).save(data, form)
    return data.getvalue()


PNG, JPG, WEBP = encode("PNG"), encode("JPEG"), encode("WEBP")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def records(root) -> RecordStore:
    made = RecordStore(root)
    made.folder.prepare()
    return made


def day_folder(root: Path) -> Path:
    return root / names.user_folder(USER) / "img2img" / "2026-11-22"


def everything(root: Path) -> set[str]:
    """The names of all files but the gateway's own, which are hidden in the data folder itself."""
    return {
        path.name for path in root.rglob("*") if path.is_file() and not (path.parent == root and path.name[0] == ".")
    }


def save(
    records: RecordStore,
    user: str,
    type_: str,
    name: str,
    attempt: int,
    pictures: list[tuple[bytes, str]],
    *document: Any,
) -> list[str]:
    """Store pictures, given as (bytes, extension), under the names that the gateway gives them."""
    images = [(f"{name}-{attempt}-{index}.{extension}", data) for index, (data, extension) in enumerate(pictures)]
    return records.save(user, type_, name, attempt, images, *document)


def fill(records: RecordStore) -> None:
    records.save_init(*PLACE, PNG)
    for attempt in (1, 2):
        save(records, *PLACE, attempt, [(PNG, "png"), (JPG, "jpg")])
        save(records, *PLACE, attempt, [], {"attempt": attempt})
    save(records, USER, "img2img", OTHER, 1, [(WEBP, "webp")])


# Saving and reading.


def test_files_lie_where_the_design_says(records, root):
    assert records.save_init(*PLACE, PNG) == f"{NAME}-init.png"
    pictures = [(PNG, "png"), (JPG, "jpg"), (WEBP, "webp")]
    assert save(records, *PLACE, 3, pictures, {"prompt": "猫"}) == [
        f"{NAME}-3-0.png",
        f"{NAME}-3-1.jpg",
        f"{NAME}-3-2.webp",
        f"{NAME}-3.json",
    ]
    folder = day_folder(root)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        f"{NAME}-init.png": PNG,
        f"{NAME}-3-0.png": PNG,
        f"{NAME}-3-1.jpg": JPG,
        f"{NAME}-3-2.webp": WEBP,
        f"{NAME}-3.json": '{"prompt": "猫"}'.encode(),
    }


def stored_document(records):
    [document] = [file for file in records.scan() if file.parsed.kind == "document"]
    return document


def test_what_was_saved_is_read(records):
    document = {"z": 1, "a": [None, True, 0.1, "猫\n"], "id": USER}
    records.save_init(*PLACE, PNG)
    save(records, *PLACE, 1, [], document)
    assert records.read_init(*PLACE) == PNG
    read = records.read_stored(stored_document(records))
    assert read == document
    assert list(read) == ["z", "a", "id"]
    assert records.path(USER, "img2img", f"{NAME}-init.png").read_bytes() == PNG


def test_an_unpaired_surrogate_in_a_webuis_text_survives(records):
    document = {"infotext": "\ud800 猫"}
    save(records, *PLACE, 1, [], document)
    assert records.read_stored(stored_document(records)) == document


def test_nan_is_no_json(records, root):
    with pytest.raises(ValueError, match="JSON"):
        save(records, *PLACE, 1, [], {"eta": float("nan")})
    assert everything(root) == set()


@pytest.mark.parametrize(
    ("user_id", "type_", "filename"),
    [
        (USER, "img2img", f"{NAME}-2-0.png"),
        (USER, "img2img", f"{NAME}-1-1.png"),
        (USER, "img2img", NAME),
        (USER, "txt2img", f"{NAME}-1-0.png"),
        (USER, "..", f"{NAME}-1-0.png"),
        (USER, "", f"{NAME}-1-0.png"),
        ("somebody else", "img2img", f"{NAME}-1-0.png"),
        ("\ud800", "img2img", f"{NAME}-1-0.png"),
        (USER, "img2img", "../../secret.png"),
        (USER, "img2img", "/etc/passwd"),
        (USER, "img2img", f"{NAME}-1-0.png\0"),
        (USER, "img2img", ".."),
        (USER, "img2img", ""),
        (USER, "img2img", "x" * 10_000),
    ],
)
def test_what_is_not_there_is_missing(records, root, user_id, type_, filename):
    save(records, *PLACE, 1, [(PNG, "png")])
    (root / "secret.png").write_bytes(PNG)
    with pytest.raises(MissingFile, match=r"\AThere is no such file\.\Z"):
        records.path(user_id, type_, filename)
    assert records.remove_files(user_id, type_, NAME, [filename]) == []
    assert everything(root) == {f"{NAME}-1-0.png", "secret.png"}


def test_reading_what_is_missing(records):
    with pytest.raises(MissingFile):
        records.read_init(*PLACE)
    with pytest.raises(MissingFile):
        records.read_init(USER, "img2img", "../x")


def test_links_and_folders_are_no_files(records, root):
    save(records, *PLACE, 1, [(PNG, "png")])
    (root.parent / "secret.png").write_bytes(PNG)
    (day_folder(root) / f"{NAME}-1-1.png").symlink_to(root.parent / "secret.png")
    (day_folder(root) / f"{NAME}-1-2.png").mkdir()
    # Opened in the usual way, it would wait for somebody to write.
    os.mkfifo(day_folder(root) / f"{NAME}-1-3.png")
    for index in (1, 2, 3):
        with pytest.raises(MissingFile):
            records.path(USER, "img2img", f"{NAME}-1-{index}.png")
    assert records.path(USER, "img2img", f"{NAME}-1-0.png").read_bytes() == PNG
    assert [file.filename for file in records.scan()] == [f"{NAME}-1-0.png"]


@pytest.mark.parametrize("level", [0, 1, 2], ids=["the day", "the type", "the user"])
def test_no_link_is_followed_on_the_way_to_a_file(records, root, level):
    save(records, *PLACE, 1, [(PNG, "png")])
    folder = [day_folder(root), *day_folder(root).parents][level]
    folder.rename(root.parent / "elsewhere")
    folder.symlink_to(root.parent / "elsewhere")
    with pytest.raises(MissingFile):
        records.path(USER, "img2img", f"{NAME}-1-0.png")


def test_the_data_folder_itself_may_be_a_link(records, root):
    save(records, *PLACE, 1, [(PNG, "png")])
    root.rename(root.parent / "elsewhere")
    root.symlink_to(root.parent / "elsewhere")
    assert records.path(USER, "img2img", f"{NAME}-1-0.png").read_bytes() == PNG


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 200_000], ids=range(6))
def test_a_damaged_document_is_told_apart(records, root, data):
    save(records, *PLACE, 1, [], {})
    (day_folder(root) / f"{NAME}-1.json").write_bytes(data)
    with pytest.raises(BadDocument, match="damaged"):
        records.read_stored(stored_document(records))


@pytest.mark.parametrize(
    "call",
    [
        lambda records: save(records, USER, "..", NAME, 1, [(PNG, "png")]),
        lambda records: save(records, USER, "img2img", "../x", 1, [(PNG, "png")]),
        lambda records: save(records, *PLACE, 0, [(PNG, "png")]),
        lambda records: save(records, *PLACE, 1, [(PNG, "exe")]),
        lambda records: records.save(*PLACE, 1, [(f"{NAME}-2-0.png", PNG)]),
        lambda records: records.save(*PLACE, 1, [(f"{OTHER}-1-0.png", PNG)]),
        lambda records: records.save(*PLACE, 1, [(f"{NAME}-init.png", PNG)]),
        lambda records: records.save(*PLACE, 1, [("../x.png", PNG)]),
        lambda records: records.save_init(USER, "img2img", f"{NAME}-1", PNG),
        lambda records: save(records, USER, "", NAME, 1, [], {}),
    ],
)
def test_what_could_not_be_found_again_is_never_written(records, root, call):
    with pytest.raises(ValueError, match=r"no (file name|record)"):
        call(records)
    assert everything(root) == set()


# Durability.


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, str]]:
    """Flushes and renames in the order in which they happen, by the name of the file or folder."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        seen.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def note_replace(path, target, **folders):
        seen.append(("rename", Path(target).name))
        replace(path, target, **folders)

    monkeypatch.setattr(atomic.os, "fsync", note_fsync)
    monkeypatch.setattr(atomic.os, "replace", note_replace)
    return seen


def test_files_are_flushed_then_renamed_then_their_folder_is_flushed(records, events):
    save(records, *PLACE, 1, [(PNG, "png"), (JPG, "jpg")])
    folders, files, renames, last = events[:3], events[3:5], events[5:7], events[7:]
    assert folders == [("fsync", "data"), ("fsync", names.user_folder(USER)), ("fsync", "img2img")]
    assert [names.parse_temporary(name).index for what, name in files if what == "fsync"] == [0, 1]
    assert renames == [("rename", f"{NAME}-1-0.png"), ("rename", f"{NAME}-1-1.jpg")]
    assert last == [("fsync", "2026-11-22")]


def test_no_name_of_a_record_is_interned(records, monkeypatch):
    """Python's table of interned strings takes a new place for each new one, and grows by megabytes when they are used up."""
    fill(records)
    interned, intern = [], sys.intern
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or intern(text))
    Path(f"{OTHER}.png")
    save(records, *PLACE, 3, [(PNG, "png")], {"attempt": 3})
    records.remove(*PLACE, claims=3, images=2)
    assert f"{OTHER}.png" in interned
    assert [text for text in interned if NAME in text] == []


def test_a_usual_save_costs_few_flushes(records, events):
    save(records, *PLACE, 1, [(PNG, "png")])
    events.clear()
    save(records, USER, "img2img", OTHER, 1, [(PNG, "png")])
    save(records, USER, "img2img", OTHER, 1, [], {})
    assert [what for what, _ in events].count("fsync") == 4


def test_folders_made_by_another_process_are_flushed_once_too(records, root, events):
    save(RecordStore(root), *PLACE, 1, [(PNG, "png")])
    events.clear()
    save(records, *PLACE, 2, [(PNG, "png")])
    assert events[:3] == [("fsync", "data"), ("fsync", names.user_folder(USER)), ("fsync", "img2img")]


def test_what_is_remembered_of_folders_is_bounded(records, monkeypatch):
    monkeypatch.setattr(folder, "_REMEMBERED", 3)
    for number in range(10):
        save(records, f"user{number}", "txt2img", NAME, 1, [(PNG, "png")])
        assert len(records.folder._durable) <= 3


def test_removals_are_flushed(records, events):
    fill(records)
    events.clear()
    records.remove_files(*PLACE, [f"{NAME}-1-0.png"])
    assert events == [("fsync", "2026-11-22")]
    records.remove(*PLACE, **WHOLE)
    assert events == [("fsync", "2026-11-22")] * 2


def test_the_removal_of_empty_folders_is_flushed(records, root, events):
    save(records, *PLACE, 1, [(PNG, "png")])
    events.clear()
    records.remove(*PLACE, **WHOLE)
    assert events == [("fsync", "2026-11-22"), ("fsync", "data")]


def test_a_folder_that_another_process_made_again_is_flushed_again(records, root, events):
    """The store remembers which folders were flushed; one that was removed and made again is another one."""
    save(records, *PLACE, 1, [(PNG, "png")])
    other = RecordStore(root)
    other.remove(*PLACE, **WHOLE)
    day_folder(root).mkdir(parents=True)
    events.clear()
    save(records, *PLACE, 1, [(PNG, "png")])
    assert events[:3] == [("fsync", "data"), ("fsync", names.user_folder(USER)), ("fsync", "img2img")]
    events.clear()
    save(records, *PLACE, 2, [(PNG, "png")])
    assert [what for what, _ in events].count("fsync") == 2


def failing(number: int, times_before: int, call):
    """``call`` that works ``times_before`` times and then fails with the system error ``number``."""
    left = [times_before]

    def wrapped(*arguments, **more):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number), "/a/secret/path")
        return call(*arguments, **more)

    return wrapped


# Flushes of the second save are: file, file, folder; its renames: file, file.
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize(("step", "before"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("rename", 0), ("rename", 1)])
def test_after_any_failure_nothing_of_that_save_is_left(records, root, monkeypatch, number, step, before):
    save(records, *PLACE, 1, [(PNG, "png")])
    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(atomic.os, "fsync", failing(number, before, os.fsync))
        else:
            patch.setattr(atomic.os, "replace", failing(number, before, os.replace))
        with pytest.raises(StorageFailed) as caught:
            save(records, *PLACE, 2, [(PNG, "png"), (JPG, "jpg")])
    full = number != errno.EIO
    assert caught.value.full is full
    assert ("full" in str(caught.value)) is full
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__.errno == number
    assert everything(root) == {f"{NAME}-1-0.png"}
    assert save(records, *PLACE, 2, [(PNG, "png")]) == [f"{NAME}-2-0.png"]


class At:
    """Steps that call a function right after one of them."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    @contextlib.contextmanager
    def around(self, name):
        yield
        if name == self.name:
            self.function()


def test_an_interruption_leaves_nothing_either(root):
    def interrupt():
        raise KeyboardInterrupt

    records = RecordStore(root, At("rename .png", interrupt))
    records.folder.prepare()
    with pytest.raises(KeyboardInterrupt):
        save(records, *PLACE, 1, [(PNG, "png")])
    assert everything(root) == set()


def test_readers_see_a_file_whole_or_not_at_all(root):
    seen = []

    def read():
        seen.extend(records.files_of(*PLACE))
        with pytest.raises(MissingFile):
            records.path(USER, "img2img", f"{NAME}-1-0.png")

    records = RecordStore(root, At("fsync file", read))
    records.folder.prepare()
    save(records, *PLACE, 1, [(PNG, "png")])
    assert [(file.temporary, file.parsed.attempt, file.size) for file in seen] == [(True, 1, len(PNG))]
    assert everything(root) == {f"{NAME}-1-0.png"}


def test_a_name_occupied_by_a_file_is_an_error_not_a_crash(records, root):
    (root / names.user_folder(USER)).write_text("in the way")
    with pytest.raises(StorageFailed):
        save(records, *PLACE, 1, [(PNG, "png")])


def test_many_writers_share_a_new_folder(root):
    RecordStore(root).folder.prepare()
    stores = [RecordStore(root) for _ in range(2)]
    start, failures = threading.Barrier(16), []

    def work(number):
        start.wait(10)
        try:
            save(stores[number % 2], *PLACE, number + 1, [(PNG, "png")] * 2)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(everything(root)) == 32


# Removing.


def test_files_of_a_record_in_the_order_of_removal(records, root):
    fill(records)
    stray = names.temporary_filename(f"{NAME}-3-0.png")
    (day_folder(root) / stray).write_bytes(b"half")
    assert [file.filename for file in records.files_of(*PLACE)] == [
        f"{NAME}-1.json",
        f"{NAME}-2.json",
        f"{NAME}-1-0.png",
        f"{NAME}-1-1.jpg",
        f"{NAME}-2-0.png",
        f"{NAME}-2-1.jpg",
        f"{NAME}-init.png",
        stray,
    ]


#: Everything of the record in the order of its removal.
FILES = [
    f"{NAME}-1.json",
    f"{NAME}-2.json",
    f"{NAME}-1-0.png",
    f"{NAME}-1-1.jpg",
    f"{NAME}-2-0.png",
    f"{NAME}-2-1.jpg",
    f"{NAME}-init.png",
]


# Without the number of pictures the folder is listed.
@pytest.mark.parametrize("whole", [WHOLE, {"claims": 2, "images": 8}, {"claims": 9, "images": None}])
def test_remove_takes_every_file_of_the_name_and_no_other(records, root, whole):
    fill(records)
    for filename in (f"{NAME}-1-0.png", f"{NAME}-2.json", f"{NAME}-init.png"):
        (day_folder(root) / names.temporary_filename(filename)).write_bytes(b"half")
    (day_folder(root) / f"{NAME}-notes.txt").write_text("a person's")
    assert records.remove(*PLACE, **whole) == FILES
    assert everything(root) == {f"{OTHER}-1-0.webp", f"{NAME}-notes.txt"}
    assert records.remove(*PLACE, **whole) == []


def test_a_record_of_very_many_attempts_is_removed_whole(records, root):
    fill(records)
    save(records, *PLACE, 9_999, [(PNG, "png")])
    assert records.remove(*PLACE, claims=10_000, images=2) == [*FILES[:-1], f"{NAME}-9999-0.png", FILES[-1]]


@pytest.mark.parametrize("place", [("nobody", "img2img", NAME), (USER, "..", NAME), (USER, "img2img", "..")])
def test_removing_what_never_was_is_nothing(records, place):
    fill(records)
    assert records.remove(*place, **WHOLE) == []
    assert records.remove_files(*place, FILES[:1]) == []
    records.discard(*place, 1, images=2)
    assert len(records.files_of(*PLACE)) == 7


def test_removal_lists_no_folder(records, monkeypatch):
    """Its cost does not depend on the number of files in the folder."""
    fill(records)
    save(records, USER, "img2img", OTHER, 2, [(PNG, "png")])
    reads = []
    scandir = os.scandir

    def counted(folder):
        entries = scandir(folder)
        reads.append(folder)
        return Entries(entries)

    class Entries:
        def __init__(self, entries):
            self.entries, self.left = entries, 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            return self

        def __next__(self):
            assert self.left, "the folder is listed"
            self.left -= 1
            return next(self.entries)

    monkeypatch.setattr(os, "scandir", counted)
    records.discard(*PLACE, 2, images=2)
    assert records.remove(*PLACE, **WHOLE)
    assert records.remove_files(USER, "img2img", OTHER, [f"{OTHER}-2-0.png"])
    assert len(reads) == 3


def test_the_document_goes_first(records, root, monkeypatch):
    fill(records)
    monkeypatch.setattr(atomic.os, "unlink", failing(errno.EIO, 2, os.unlink))
    with pytest.raises(StorageFailed, match="could not be removed"):
        records.remove(*PLACE, **WHOLE)
    assert not [name for name in everything(root) if name.endswith(".json")]
    monkeypatch.undo()
    assert len(records.remove(*PLACE, **WHOLE)) == 5


def test_discard_takes_one_attempt_and_never_the_reference_image(records, root):
    fill(records)
    half = names.temporary_filename(f"{NAME}-1-2.png")
    other = names.temporary_filename(f"{NAME}-2-2.png")
    for stray in (half, other):
        (day_folder(root) / stray).write_bytes(b"half")
    records.discard(*PLACE, 1, images=3)
    assert everything(root) == {
        f"{NAME}-2.json",
        f"{NAME}-2-0.png",
        f"{NAME}-2-1.jpg",
        f"{NAME}-init.png",
        f"{OTHER}-1-0.webp",
        other,
    }


def test_remove_files_takes_what_it_is_told(records, root):
    fill(records)
    wanted = [f"{NAME}-1-0.png", f"{NAME}-9-0.png", f"{OTHER}-1-0.webp", "..", NAME]
    assert records.remove_files(*PLACE, wanted) == [f"{NAME}-1-0.png"]
    assert records.remove_files(*PLACE, wanted) == []
    assert len(everything(root)) == 7


def test_nothing_is_removed_behind_a_link(records, root, tmp_path):
    fill(records)
    elsewhere = tmp_path / "elsewhere"
    (root / names.user_folder(USER)).rename(elsewhere)
    (root / names.user_folder(USER)).symlink_to(elsewhere)
    assert records.remove(*PLACE, **WHOLE) == []
    assert len(everything(elsewhere)) == 8


def test_what_another_process_has_begun_is_neither_in_the_way_nor_touched_until_the_record_goes(records, root):
    begun = day_folder(root) / names.temporary_filename(f"{NAME}-1-0.png")
    records.save_init(*PLACE, PNG)
    begun.write_bytes(b"half of another picture" * 99)
    save(records, *PLACE, 1, [(PNG, "png")])
    assert (day_folder(root) / f"{NAME}-1-0.png").read_bytes() == PNG
    assert everything(root) == {f"{NAME}-1-0.png", f"{NAME}-init.png", begun.name}
    assert begun.read_bytes() == b"half of another picture" * 99
    records.remove(*PLACE, **WHOLE)
    assert folders(root) == []


# Empty folders.


def folders(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())


def test_the_last_file_takes_its_folders_along(records, root):
    user = names.user_folder(USER)
    later = NAME.replace("20261122", "20261123")
    fill(records)
    save(records, USER, "txt2img", NAME, 1, [(PNG, "png")])
    save(records, USER, "txt2img", later, 1, [(PNG, "png")])
    records.remove(USER, "txt2img", NAME, **WHOLE)
    assert folders(root) == [user] + [
        f"{user}/{below}" for below in ("img2img", "img2img/2026-11-22", "txt2img", "txt2img/2026-11-23")
    ]
    records.remove_files(USER, "txt2img", later, [f"{later}-1-0.png"])
    assert folders(root) == [user, f"{user}/img2img", f"{user}/img2img/2026-11-22"]
    records.remove(*PLACE, **WHOLE)
    for stored in list(records.scan()):
        records.remove_stored(stored)
    assert folders(root) == []


def test_a_folder_with_anything_in_it_stays(records, root):
    save(records, *PLACE, 1, [(PNG, "png")])
    (day_folder(root).parent / "notes.txt").write_text("a person's")
    records.remove(*PLACE, **WHOLE)
    assert folders(root) == [names.user_folder(USER), f"{names.user_folder(USER)}/img2img"]


def test_a_removal_that_was_cut_short_is_ended_by_the_next(records, root):
    save(records, *PLACE, 1, [(PNG, "png")])
    (day_folder(root) / f"{NAME}-1-0.png").unlink()
    day_folder(root).rmdir()
    assert records.remove(*PLACE, **WHOLE) == []
    assert folders(root) == []


def test_empty_folders_of_earlier_versions_can_be_removed(records, root):
    fill(records)
    for empty in ("bob-0123456789abcdef/txt2img/2026-11-22", "eve-0123456789abcdef/img2img", "joe-0123456789abcdef"):
        (root / empty).mkdir(parents=True)
    (root / "not ours").mkdir()
    assert records.folder.remove_empty_folders() == 3
    assert {Path(folder).parts[0] for folder in folders(root)} == {names.user_folder(USER), "not ours"}
    assert len(everything(root)) == 8


def test_no_picture_is_lost_where_saves_meet_the_removal_of_their_folder(root):
    """Each thread saves and removes records of one user and day, so that the folder comes and goes all the time."""
    RecordStore(root).folder.prepare()
    stores = [RecordStore(root) for _ in range(3)]
    start, failures = threading.Barrier(12), []

    def work(number):
        own, name = stores[number % 3], f"{NAME[:-8]}{number:08x}"
        start.wait(10)
        try:
            for _ in range(150):
                save(own, USER, "img2img", name, 1, [(PNG, "png")], {"of": number})
                assert own.path(USER, "img2img", f"{name}-1-0.png").read_bytes() == PNG
                assert len(own.remove(USER, "img2img", name, claims=1, images=1)) == 2
            save(own, USER, "img2img", name, 1, [(PNG, "png")])
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(list(day_folder(root).iterdir())) == 12


# The whole tree.


def test_the_folder_keeps_the_first_id_that_it_is_given(records, root):
    assert records.folder.read_id() is None
    records.folder.give_id("one")
    records.folder.give_id("two")
    assert records.folder.read_id() == "one"
    # The id is no file of a record, and nothing else is left.
    assert list(records.scan()) == []
    assert [path.name for path in root.iterdir()] == [names.ID_FILE]
    assert not records.folder.has_users


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_without_hard_links_gets_an_id_too(records, root, monkeypatch, code):
    def no_links(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    records.folder.give_id("one")
    records.folder.give_id("two")
    assert records.folder.read_id() == "one"
    assert [path.name for path in root.iterdir()] == [names.ID_FILE]


def test_an_id_that_can_not_be_written_leaves_nothing(records, root, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed) as caught:
        records.folder.give_id("one")
    assert caught.value.full
    assert everything(root) == set()


def test_what_a_killed_process_left_of_an_id_goes(records, root):
    (root / f"{names.ID_FILE}.0123abcd.tmp").write_text("on")
    assert records.folder.read_id() is None
    records.folder.give_id("one")
    assert {path.name for path in root.iterdir()} == {names.ID_FILE}


def test_no_user_gets_a_folder_where_the_expected_id_is_missing(records, root):
    records.folder.give_id("one")
    records.folder.expect("one")
    records.save_init(*PLACE, PNG)
    (root / names.ID_FILE).unlink()
    # Folders of users show that the disk is mounted.
    save(records, *PLACE, 1, [(PNG, "png")])
    for there in ("", "another"):
        if there:
            (root / names.ID_FILE).write_text(there)
        with pytest.raises(StoreUnavailable):
            records.save_init("somebody new", "img2img", NAME, PNG)
    assert [path.name for path in root.iterdir() if path.is_dir()] == [names.user_folder(USER)]


def test_scan_tells_what_each_file_is(records, root):
    save(records, *PLACE, 1, [(PNG, "png")])
    folder = day_folder(root)
    half = names.temporary_filename(f"{NAME}-1.json")
    (folder / half).write_bytes(b"{")
    (folder / "notes.txt").write_text("foreign")
    (folder / NAME).write_text("a bare name is no file")
    (folder / "20261123T061530123-9f2c4e7a-1-0.png").write_bytes(PNG)
    (folder.parent / f"{NAME}-1-0.png").write_bytes(PNG)
    (root / "README").write_text("foreign")
    (root / ".worker-host.lock").touch()
    (root / "lost+found").mkdir()
    (root / "lost+found" / f"{NAME}-1-0.png").write_bytes(PNG)
    (folder / "deeper").mkdir()
    (folder / "deeper" / f"{NAME}-1-0.png").write_bytes(PNG)
    os.utime(folder / f"{NAME}-1-0.png", (0, 0))

    found = {(file.day, file.filename): file for file in records.scan()}
    ours = found["2026-11-22", f"{NAME}-1-0.png"]
    assert (ours.user_folder, ours.type, ours.size) == (names.user_folder(USER), "img2img", len(PNG))
    assert ours.parsed == names.parse_filename(f"{NAME}-1-0.png")
    assert ours.path.read_bytes() == PNG
    assert ours.age_seconds > 1e9
    assert not ours.temporary
    unfinished = found["2026-11-22", half]
    assert unfinished.temporary
    assert unfinished.parsed == names.parse_filename(f"{NAME}-1.json")
    assert 0 <= unfinished.age_seconds < 3600
    foreign = {key for key, file in found.items() if file.parsed is None}
    assert foreign == {
        ("", "README"),
        ("", f"{NAME}-1-0.png"),
        ("2026-11-22", "notes.txt"),
        ("2026-11-22", NAME),
        ("2026-11-22", "20261123T061530123-9f2c4e7a-1-0.png"),
    }
    assert len(found) == 7


def test_a_file_of_the_future_is_new(records, root):
    save(records, *PLACE, 1, [(PNG, "png")])
    os.utime(day_folder(root) / f"{NAME}-1-0.png", (2**32, 2**32))
    assert [file.age_seconds for file in records.scan()] == [0.0]


def test_scan_of_a_missing_folder_is_empty(root):
    assert list(RecordStore(root).scan()) == []


def test_files_that_vanish_during_a_scan_do_no_harm(records, monkeypatch):
    fill(records)
    entries = files.entries_of

    def list_then_delete(folder):
        listed = entries(folder)
        for entry in listed:
            if entry.name == f"{NAME}-1-0.png":
                Path(entry.path).unlink()
        return listed

    monkeypatch.setattr(files, "entries_of", list_then_delete)
    found = [file.filename for file in records.scan()]
    assert f"{NAME}-1-0.png" not in found
    assert len(found) == 7


def test_remove_stored(records, root):
    save(records, *PLACE, 1, [(PNG, "png")])
    (day_folder(root) / "notes.txt").write_text("foreign")
    ours, foreign = records.scan()
    assert records.remove_stored(ours) is True
    assert records.remove_stored(ours) is False
    with pytest.raises(ValueError, match="foreign"):
        records.remove_stored(foreign)
    assert everything(root) == {"notes.txt"}


def test_a_document_is_read_without_knowing_its_user(records):
    save(records, *PLACE, 1, [], {"id": USER})
    [stored] = records.scan()
    assert records.read_stored(stored) == {"id": USER}
    records.remove_stored(stored)
    with pytest.raises(MissingFile):
        records.read_stored(stored)


def test_verify_proves_that_files_open(records):
    fill(records)
    for file in records.scan():
        records.verify_file(file.path)


@pytest.mark.parametrize(
    ("filename", "data", "error"),
    [
        (f"{NAME}-1-0.png", PNG[:-20], BadImage),
        (f"{NAME}-1-0.png", JPG, BadImage),
        (f"{NAME}-1-0.png", b"", BadImage),
        (f"{NAME}-1-1.jpg", JPG[:-20], BadImage),
        (f"{NAME}-init.png", WEBP, BadImage),
        (f"{NAME}-1.json", b"{", BadDocument),
        (f"{NAME}-1.json", b"[]", BadDocument),
        (f"{NAME}-1.json", None, MissingFile),
        ("notes.txt", b"", MissingFile),
    ],
)
def test_verify_notices_damage(records, root, filename, data, error):
    fill(records)
    path = day_folder(root) / filename
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(error):
        records.verify_file(path)


# The folder as a whole, on real small disks where the machine allows it.


def test_a_healthy_folder_passes(records):
    records.folder.check()


def test_prepare_makes_the_folder_and_may_be_repeated(tmp_path):
    records = RecordStore(tmp_path / "a" / "b")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        records.folder.check()
    records.folder.prepare()
    records.folder.prepare()
    records.folder.check()


def test_a_vanished_folder_is_not_made_anew_by_saving(records, root):
    root.rmdir()
    with pytest.raises(StoreUnavailable):
        records.folder.check()
    with pytest.raises(StorageFailed):
        save(records, *PLACE, 1, [(PNG, "png")])
    assert not root.exists()


def test_a_file_in_the_place_of_the_folder(root):
    root.write_text("in the way")
    records = RecordStore(root)
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        records.folder.check()
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        records.folder.prepare()


@pytest.mark.parametrize(("free", "inodes", "left"), [(2**20 - 1, 100, 50), (2**30, 100, 0)])
def test_no_room_or_no_inodes_is_full(records, monkeypatch, free, inodes, left):
    real = os.statvfs(records.folder.root)

    class Room:
        f_bavail, f_frsize, f_files, f_favail, f_flag = free, 1, inodes, left, real.f_flag

    monkeypatch.setattr(os, "statvfs", lambda _: Room)
    with pytest.raises(StoreUnavailable, match="full"):
        records.folder.check()


def test_a_file_system_without_a_count_of_inodes_is_not_full(records, monkeypatch):
    class Room:
        f_bavail, f_frsize, f_files, f_favail = 2**30, 1, 0, 0

    monkeypatch.setattr(os, "statvfs", lambda _: Room)
    records.folder.check()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True).returncode

    if mount("-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        pytest.skip("only root of a real machine may mount a small disk")
    yield folder, mount
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    folder, _ = small_disk
    records = RecordStore(folder)
    save(records, *PLACE, 1, [(PNG, "png")])
    with pytest.raises(StorageFailed, match="disk is full") as caught:
        save(records, *PLACE, 2, [(PNG, "png"), (bytes(100_000), "png")])
    assert caught.value.full
    assert everything(folder) == {f"{NAME}-1-0.png"}
    with pytest.raises(StoreUnavailable, match="full"):
        records.folder.check()
    save(records, *PLACE, 2, [(PNG, "png")])
    assert len(records.remove(*PLACE, **WHOLE)) == 2


def test_a_read_only_disk(small_disk):
    folder, mount = small_disk
    records = RecordStore(folder)
    save(records, *PLACE, 1, [(PNG, "png")])
    assert mount("-o", "remount,ro") == 0
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        records.folder.check()
    with pytest.raises(StorageFailed, match="could not be written") as caught:
        save(records, *PLACE, 2, [(PNG, "png")])
    assert not caught.value.full
    with pytest.raises(StorageFailed, match="could not be removed"):
        records.remove(*PLACE, **WHOLE)
    assert records.path(USER, "img2img", f"{NAME}-1-0.png").read_bytes() == PNG


def test_a_disk_that_cannot_be_read(records, monkeypatch):
    fill(records)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing(errno.EIO, 0, Path.read_bytes))
        with pytest.raises(StorageFailed, match="could not be read"):
            records.read_init(*PLACE)
    monkeypatch.setattr(os, "scandir", failing(errno.EACCES, 0, os.scandir))
    with pytest.raises(StorageFailed, match="could not be read"):
        list(records.scan())


def test_nobody_waits_while_old_variants_are_removed(root):
    """The removal is held up right after the first of them."""
    begun, held = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert held.wait(30)

    def stored() -> list[Path]:
        return [path for path in (root / names.VARIANTS / "whole").rglob("*") if path.is_file()]

    def make(index: int, extension: str) -> None:
        records.variant(USER, "img2img", f"{NAME}-1-{index}.png", Variant(None, extension))

    records = RecordStore(root, At("unlink variant", hold), variant_bytes=4 * 4096)
    records.folder.prepare()
    save(records, *PLACE, 1, [(PNG, "png")] * 5)
    for index in range(5):
        make(index, "webp")
    assert begun.wait(30)
    # Of the same picture, and beyond the bound.
    make(4, "jpg")
    assert len(stored()) == 5
    held.set()
    until(lambda: len(stored()) == 4, "room is made")
    until(lambda: int((root / names.VARIANTS / ".room").read_text("ascii")) == 4 * 4096, "the count is right")


def test_every_error_has_a_slug_of_its_own():
    def below(cls):
        return {cls, *(inner for child in cls.__subclasses__() for inner in below(child))}

    found = below(RecordsError) - {RecordsError}
    assert {error.slug for error in found} == {
        "bad-image",
        "bad-document",
        "file-damaged",
        "file-missing",
        "validation-failed",
        "storage-failed",
        "storage-unavailable",
        "variants-busy",
    }
    assert len(found) == 8


def test_documents_are_plain_json_for_other_tools(records, root):
    save(records, *PLACE, 1, [], {"prompt": "猫"})
    text = (day_folder(root) / f"{NAME}-1.json").read_text(encoding="utf-8")
    assert "猫" in text
    assert json.loads(text) == {"prompt": "猫"}
