"""Properties of all that is read of a client's text: ids, names, cursors and header fields. Nothing is raised but refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from hypothesis import assume, example, given
from hypothesis import strategies as st

from app.api.http import cancel_after, cursor, eventstream, prefer
from app.api.http.refusals import InvalidRequest
from app.gateway.archive import File
from app.jobs.queue import Cursor
from app.jobs.revisions import Version
from app.parameters import LONGEST_USER_ID, USER_ID_PATTERN, user_id_fault
from app.records import layout
from tests.api import fakes
from tests.api.conftest import make_app

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
#: Texts that come near a name: of its own characters, and one of another kind.
NAMES = st.from_regex(layout.FILENAME_PATTERN, fullmatch=True)
#: Field values as gunicorn gives them: bytes as Latin-1.
FIELDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60)
CONTENT = bytes(range(256)) * 4


def changed_once(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts with one character taken out, put in or replaced."""
    letter = st.characters(exclude_categories=["Cs"])
    return st.builds(
        lambda whole, place, put, taken: (
            whole[: place % (len(whole) + 1)] + put + whole[place % (len(whole) + 1) + taken :]
        ),
        *(text, st.integers(0, 200), st.one_of(st.just(""), letter), st.integers(0, 1)),
    )


# -- ids and names ---------------------------------------------------------------------------------------------------------


@given(TEXT)
@example("a\n")
@example("..")
@example("...")
@example("\xad")
def test_every_user_id_fits_the_documented_pattern(text: str) -> None:
    documented = bool(re.search(USER_ID_PATTERN, text)) and 1 <= len(text) <= LONGEST_USER_ID
    assert documented or user_id_fault(text) is not None
    # What the pattern can't say is which characters Unicode calls printable.
    assert user_id_fault(text) is None or not documented or not text.isprintable()


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[FlaskClient, fakes.FakeServices]]:
    """An application over services that remember what they are asked."""
    app, services = make_app()
    services.answers["history"] = ([], None)
    services.answers["delete"] = []
    with app.test_client() as client:
        yield client, services


@given(TEXT.filter(lambda text: "/" not in text))
@example(".")
@example("%2e%2e")
def test_a_user_of_a_path_is_taken_as_it_is_or_refused(asked, text: str) -> None:
    client, services = asked
    services.calls.clear()
    answer = client.get(f"/t2ihistory/{quote(text, safe='')}")
    if text and user_id_fault(text) is None:
        assert (answer.status_code, services.calls[0][1]) == (200, text)
    else:
        assert (answer.status_code, services.calls) == (422 if text else 404, [])


@given(st.one_of(NAMES, changed_once(NAMES), TEXT).filter(lambda text: "/" not in text))
def test_only_names_that_the_gateway_gives_reach_the_files(asked, text: str) -> None:
    client, services = asked
    services.calls.clear()
    answer = client.delete(f"/delete/u1/txt2img/{quote(text, safe='')}")
    given_by_us = re.fullmatch(layout.FILENAME_PATTERN, text) is not None
    assert (layout.parse_filename(text) is not None) == given_by_us
    assert (answer.status_code, len(services.calls)) == ((200, 1) if given_by_us else (404, 0))


@given(st.one_of(NAMES, changed_once(NAMES), TEXT))
def test_a_name_is_read_as_it_was_written(text: str) -> None:
    parsed = layout.parse_filename(text)
    if parsed is None:
        return
    assert set(text) <= set("0123456789abcdefghijklmnopqrstuvwxyzT.-")
    written = {
        "record": lambda: parsed.name,
        "image": lambda: layout.image_filename(parsed.name, parsed.attempt, parsed.index, parsed.extension),
        "document": lambda: layout.document_filename(parsed.name, parsed.attempt),
        "init": lambda: layout.init_filename(parsed.name),
    }
    assert written[parsed.kind]() == text


@given(st.lists(TEXT.filter(lambda text: user_id_fault(text) is None), min_size=2, max_size=6, unique=True))
@example(["Ab", "ab"])
@example(["é", "e\u0301"])
def test_no_two_users_share_a_folder(users: list[str]) -> None:
    folders = {layout.user_folder(user) for user in users}
    assert len(folders) == len(users)
    assert all(re.fullmatch(r"[a-z0-9_]{0,24}-[0-9a-f]{16}", folder) for folder in folders)


# -- cursors and versions --------------------------------------------------------------------------------------------------

SEQUENCES = st.integers(0, 2**63 - 1)
PLACES = st.builds(Cursor, st.floats(allow_nan=False, allow_infinity=False), SEQUENCES)


@given(SEQUENCES)
def test_a_cursor_is_read_as_it_was_written(sequence: int) -> None:
    text = cursor.encode(sequence)
    assert re.fullmatch(cursor.PATTERN, text)
    assert cursor.decode(text) == sequence


@given(PLACES)
def test_a_cursor_of_the_queue_is_read_as_it_was_written(place: Cursor) -> None:
    text = cursor.encode_place(place)
    assert re.fullmatch(cursor.PLACE_PATTERN, text)
    assert cursor.decode_place(text) == place


@given(st.one_of(TEXT, changed_once(SEQUENCES.map(cursor.encode)), changed_once(PLACES.map(cursor.encode_place))))
def test_no_other_text_is_a_cursor(text: str) -> None:
    for decode, encode in ((cursor.decode, cursor.encode), (cursor.decode_place, cursor.encode_place)):
        try:
            found = decode(text)
        except ValueError:
            continue
        assert encode(found) == text


@given(st.one_of(FIELDS, st.builds("{}-{}".format, SEQUENCES, SEQUENCES)))
def test_an_event_id_is_one_of_ours_or_begins_anew(text: str) -> None:
    version = eventstream.last_event(text)
    assert (version is None) == (not text)
    assert version is None or str(version) == text or version == Version(0, 0)


# -- header fields ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.one_of(FIELDS, st.sampled_from(["wait=5", "respond-async", 'wait="7"', ',"', "wait=9" * 99])), max_size=5
    )
)
def test_any_prefer_is_read(fields: list[str]) -> None:
    found = prefer.parse(fields)
    assert found.wait is None or 0 <= found.wait <= 10**9
    assert 0 <= found.seconds(600) <= 600
    # What comes behind changes nothing that was said before.
    assume(len(",".join(fields)) < 500 and '"' not in "".join(fields))
    again = prefer.parse([*fields, "wait=77, respond-async"])
    assert again.wait == (77 if found.wait is None and "wait" not in _preferences(fields) else found.wait)


def _preferences(fields: list[str]) -> set[str]:
    return {re.split(r"[\s=;]", item.strip(" \t"))[0].lower() for item in ",".join(fields).split(",")}


DURATIONS = st.builds(
    lambda h, m, s: "".join(f"{number}{unit}" for number, unit in ((h, "h"), (m, "m"), (s, "s")) if number is not None),
    *[st.one_of(st.none(), st.integers(0, 9999))] * 3,
)


@given(st.one_of(FIELDS, DURATIONS, changed_once(DURATIONS), st.integers(0, 10**7).map(str)))
@example("")
@example("5\n")
def test_a_duration_is_within_its_bounds_or_refused(text: str) -> None:
    try:
        seconds = cancel_after.parse([text])
    except InvalidRequest:
        return
    assert seconds is not None
    assert cancel_after.SHORTEST <= seconds <= cancel_after.LONGEST
    assert re.search(cancel_after.PATTERN, text)
    units = {"h": 3600, "m": 60, "s": 1, "": 1}
    assert seconds == sum(int(number) * units[unit] for number, unit in re.findall(r"([0-9]+)([hms]?)", text))


NUMBERS = st.one_of(st.just(""), st.integers(0, 3000).map(str), st.just("9" * 30))
RANGES = st.builds("bytes={}-{}".format, NUMBERS, NUMBERS)
DATES = st.sampled_from(["Thu, 26 Nov 2026 17:00:00 GMT", "Thu Jan  1 00:00:00 1970", "Fri, 31 Dec 9999 23:59:59 GMT"])
TAGS = st.sampled_from(['"abc"', 'W/"abc"', "*", '"x", "abc"', '"abc', ""])
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "Range": st.one_of(RANGES, changed_once(RANGES), FIELDS),
        "If-Range": st.one_of(TAGS, DATES, FIELDS),
        "If-Match": st.one_of(TAGS, FIELDS),
        "If-None-Match": st.one_of(TAGS, FIELDS),
        "If-Modified-Since": st.one_of(DATES, FIELDS),
        "If-Unmodified-Since": st.one_of(DATES, FIELDS),
    },
)


@pytest.fixture(scope="module")
def picture(asked, tmp_path_factory: pytest.TempPathFactory) -> tuple[FlaskClient, Path]:
    client, services = asked
    place = tmp_path_factory.mktemp("picture") / fakes.IMAGE
    place.write_bytes(CONTENT)
    services.answers["file"] = File(str(place), "image/png", "abc", fakes.IMAGE)
    return client, place


@given(CONDITIONS)
def test_conditions_and_ranges_give_the_file_a_part_of_it_or_a_refusal(picture, conditions: dict[str, str]) -> None:
    fields = {name: re.sub(r"[^\x20-\x7e\xa0-\xff]", "?", value) for name, value in conditions.items()}
    with picture[0].get(f"/get_images/u1/txt2img/{fakes.IMAGE}", headers=fields) as answer:
        assert answer.status_code in (200, 206, 304, 412, 416), fields
        if answer.status_code == 206:
            first, last, size = map(int, re.findall(r"[0-9]+", answer.headers["Content-Range"]))
            assert (size, answer.data) == (len(CONTENT), CONTENT[first : last + 1])
        elif answer.status_code == 200:
            assert answer.data == CONTENT
        assert answer.status_code != 206 or "Range" in fields
