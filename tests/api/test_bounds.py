"""Hostile requests cost little until they are refused: CPU time of the thread, with wide bounds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app.api.http import prefer, strictjson
from app.api.http.refusals import InvalidJson
from app.gateway.archive import File
from tests.api.fakes import IMAGE, TXT2IMG, FakeServices, job_view

MEGABYTE = 10**6
#: What a hundred header lines hold, which is what gunicorn takes.
MOST = 800_000
#: Of what grew with the square of its length, 40 kB took 4 s.
FEW_SECONDS = 0.5


@contextmanager
def quick(what: object, seconds: float = FEW_SECONDS) -> Iterator[None]:
    before = time.thread_time()
    yield
    assert time.thread_time() - before < seconds, what


UNITS = (
    '"', '""', '","', '"\\', '\\"', '"\\",', "\\", ",", ", ", ";", "; ", "=", "=,", 'a="', 'a="\\', "a;", "a; ", "a;b=c", "a=",
    "a,", " ", "\t ", "x", "-", "0-,", "9", "W/", 'W/"', 'W/"a",', "'", "*", "%", "\xe9", "(", "Jan ", "GMT",
)  # fmt: skip
STARTS = ("", "wait=", 'a="', "bytes=", 'W/"', "Tue, 01 Jan ", "application/json; charset=")


def hostile(length: int = MOST) -> Iterator[str]:
    for start in STARTS:
        for unit in UNITS:
            yield start + unit * (length // len(unit))


def test_prefer_is_read_in_one_pass():
    for header in hostile():
        with quick(header[:30]):
            prefer.parse([header])
        with quick(header[:30]):
            prefer.parse([header[:8000]] * 100)


def test_what_stands_in_front_of_a_flood_of_preferences_still_counts():
    for header in hostile():
        assert prefer.parse(["wait=7, respond-async", header]) == prefer.Preference(respond_async=True, wait=7), header[
            :30
        ]


@pytest.fixture
def picture(services: FakeServices, tmp_path: Path) -> str:
    path = tmp_path / IMAGE
    path.write_bytes(b"\x89PNG")
    services.answers["file"] = File(str(path), "image/png", IMAGE, IMAGE)
    return f"/get_images/u1/txt2img/{IMAGE}"


CONDITIONS = ("Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")


def test_conditions_and_ranges_of_one_line(client: FlaskClient, picture: str) -> None:
    for value in hostile(8000):
        with quick(value[:30]):
            response = client.get(picture, headers=dict.fromkeys(CONDITIONS, value))
        assert response.status_code in (200, 206, 304, 412, 416)
        response.close()


@pytest.mark.parametrize("header", CONDITIONS)
def test_conditions_and_ranges_of_a_hundred_lines(client: FlaskClient, picture: str, header: str) -> None:
    for unit in ('"', '"a",', "W/", ",", "0-1,", "1 ", "Jan "):
        with quick((header, unit)):
            response = client.get(picture, headers={header: unit * (MOST // len(unit))})
        refused = header in ("If-Match", "If-None-Match")
        assert response.status_code == (400 if refused else 200)
        response.close()


def test_a_content_type_of_any_shape(client: FlaskClient, services: FakeServices) -> None:
    services.answers["post"] = job_view()
    for value in hostile(8000):
        with quick(value[:30]):
            response = client.post("/txt2img", data=json.dumps(TXT2IMG), headers={"Content-Type": value})
        assert response.status_code in (200, 415)


def repeated(unit: bytes, length: int = 16 * MEGABYTE) -> bytes:
    return unit * (length // len(unit))


#: Each makes its body when it is needed: together they are hundreds of megabytes.
BOUNDLESS: dict[str, tuple[Callable[[], bytes], str]] = {
    "members": (
        lambda: b"{" + b",".join(b'"%d":1' % number for number in range(10**6)) + b"}",
        "more than 10000 values",
    ),
    "the same member": (lambda: b"{" + repeated(b'"a":1,') + b'"a":1}', "more than 10000 values"),
    "lists in a list": (lambda: b'{"a":[' + repeated(b"[],") + b"[]]}", "more than 10000 values"),
    "objects in a list": (lambda: b'{"a":[' + repeated(b"{},") + b"{}]}", "more than 10000 values"),
    "numbers": (lambda: b'{"a":[' + repeated(b"1,") + b"1]}", "more than 10000 values"),
    "texts": (lambda: b'{"a":[' + repeated(b'"",') + b'""]}', "more than 10000 values"),
    "texts full of marks": (lambda: b'{"a":[' + repeated(b'"[\\",{",') + b'""]}', "more than 10000 values"),
    "quotation marks": (lambda: repeated(b'"'), ""),
    "brackets": (lambda: repeated(b"["), ""),
    "brackets that close": (lambda: repeated(b"]"), ""),
    "depth": (lambda: b"[" * 5000 + b"]" * 5000, "more than 500 levels"),
    "depth in a field": (lambda: b'{"a":1,"b":' + b'{"a":[' * 300 + b"]}" * 300 + b"}", "more than 500 levels"),
    "depth behind a text full of marks": (lambda: b'["' + b"]" * 9000 + b'",' + b"[" * 600, "more than 500 levels"),
    "digits": (lambda: b'{"a":' + repeated(b"1") + b"}", "too many digits"),
    "digits behind the point": (lambda: b'{"a":0.' + repeated(b"1") + b"}", "too many digits"),
    "an exponent": (lambda: b'{"a":1e' + repeated(b"1") + b"}", "too many digits"),
    "many long numbers": (lambda: b'{"a":[' + b",".join([b"9" * 4000] * 4000) + b"]}", "too many digits"),
    "an open text": (lambda: b'{"a":"' + repeated(b"\\\\"), "Unterminated string"),
    "blanks": (lambda: repeated(b" "), "empty"),
    "one name twice": (lambda: b'{"' + repeated(b"a") + b'":1,"' + repeated(b"a") + b'":1}', "twice"),
}


@pytest.mark.parametrize("kind", BOUNDLESS)
def test_json_without_bounds_is_refused_at_once(kind):
    make, said = BOUNDLESS[kind]
    body = make()
    with quick(kind, 2.0), pytest.raises(InvalidJson) as refused:
        strictjson.parse(body)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 200


HONEST = [
    ",",
    "[{",
    "}]" * 10,
    '"',
    "\\",
    '\\"',
    '",[',
    "😀,",
    "\n\t[",
]


@pytest.mark.parametrize("unit", HONEST)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_marks_within_texts_do_not_count(unit, ascii_only):
    posted = {**TXT2IMG, "prompt": unit * 20_000, "negative_prompt": unit * 20_000}
    assert strictjson.parse(json.dumps(posted, ensure_ascii=ascii_only).encode()) == posted


def test_the_bounds_are_exact():
    most = strictjson.MOST_VALUES
    assert len(strictjson.parse(b"[" + b"1," * (most - 2) + b"1]")) == most - 1
    with pytest.raises(InvalidJson):
        strictjson.parse(b"[" + b"1," * most + b"1]")
    depth = strictjson.MOST_DEPTH
    strictjson.parse(b"[" * depth + b"]" * depth)
    with pytest.raises(InvalidJson):
        strictjson.parse(b"[" * (depth + 1) + b"]" * (depth + 1))
    digits = strictjson.LONGEST_NUMBER
    assert strictjson.parse(b"9" * digits) == 10**digits - 1
    with pytest.raises(InvalidJson):
        strictjson.parse(b"9" * (digits + 1))
