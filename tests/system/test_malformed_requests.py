"""Malformed requests, byte for byte over plain sockets: each is answered by a problem with a 4xx, or as it deserves.

Behind every one on the same connection stands a well-formed request, whose answer names a word that only it has sent: it is
answered rightly, or the connection is closed, and nothing else comes.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.system.harness import PROBLEM_HEADERS, Gateway, picture

RECORD = "20260101T000000000-00000000"
#: Methods and paths: those that read a body, those that take none, and those that there are not.
PLACES = (
    ("GET", "/livez"),
    ("HEAD", "/readyz"),
    ("OPTIONS", "/txt2img"),
    ("GET", "/t2ihistory/malformed"),
    ("GET", f"/get_images/malformed/txt2img/{RECORD}-1-0.png"),
    ("DELETE", f"/delete/malformed/txt2img/{RECORD}"),
    ("GET", "/docs/swagger-ui.css"),
    ("POST", "/txt2img"),
    ("POST", "/img2img"),
    ("PUT", "/txt2img"),
    ("GET", "/nowhere"),
    ("POST", "/nowhere"),
)
GOOD = json.dumps(picture(id="malformed", width=63)).encode()
_NUMBERS = itertools.count()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_problem(self) -> bool:
        return self.headers.get("content-type") == "application/problem+json"


def exchange(house: Gateway, request: bytes, *, half_close: bool = True) -> bytes:
    """Everything that comes back on one connection until its end."""
    with socket.create_connection(("127.0.0.1", house.port), timeout=20) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            # Bytes that the server had not read; what it had sent before has arrived.
            assert received
        return received


def answers(received: bytes, methods: Iterator[str]) -> list[Answer]:
    """The answers in what came back, to requests with these methods."""
    found = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        assert end, received
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1."), received[:200]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        bodiless = next(methods, "GET") == "HEAD" or first.split()[1] == "304"
        size = 0 if bodiless else int(headers["content-length"])
        assert len(rest) >= size
        found.append(Answer(int(first.split()[1]), headers, rest[:size]))
        received = rest[size:]
    return found


def following() -> tuple[str, bytes]:
    """A word, and a well-formed request whose answer holds it."""
    word = f"behind{next(_NUMBERS)}"
    return word, f"GET /get_args/malformed/{word}/{RECORD} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()


def ask(house: Gateway, method: str, request: bytes, *, pipelined: bool = True) -> Answer:
    """The answer to a malformed request; a well-formed one behind it is answered rightly or not at all."""
    word, next_request = following()
    received = exchange(house, request + next_request if pipelined else request)
    first, *others = answers(received, iter([method]))
    assert len(others) <= pipelined, others
    for other in others:
        assert (other.status, json.loads(other.body)["type"]) == (404, "unknown-type")
        assert word in json.loads(other.body)["detail"]
    return first


def check_refused(answer: Answer, method: str, statuses: range | tuple[int, ...] = range(400, 500)) -> None:
    """The answer is a problem, whole and true to itself."""
    assert answer.status in statuses, answer
    assert answer.is_problem, answer
    assert {name.lower(): value for name, value in PROBLEM_HEADERS.items()}.items() <= answer.headers.items()
    assert answer.headers["server"] == "gunicorn"
    if method != "HEAD":
        problem = json.loads(answer.body)
        assert problem["status"] == answer.status
        assert problem["detail"]


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: gateway", *lines, "", "")).encode("latin-1")


@pytest.fixture(scope="module", autouse=True)
def _log(house: Gateway) -> Iterator[None]:
    """Check after the tests of this file that the gateway logged no traceback and no error, is ready, and accepted no job."""
    before = len(house.text())
    yield
    log = house.text()[before:]
    assert "Traceback" not in log, log
    assert "[ERROR]" not in log, log
    assert house.readiness() == "ok"
    assert house.jobs("malformed") == []


# -- bodies in chunks ------------------------------------------------------------------------------------------------

#: Chunked bodies (RFC 9112, section 7.1) that are none; the connection is half-closed behind them, or another request follows.
BROKEN_CHUNKS = {
    "data that breaks off": b"5\r\nabc",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "letters for a size": b"zz\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-3\r\nabc\r\n0\r\n\r\n",
    "a size with a plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "a size in C": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a size with an underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "a size with a space in front": b" 3\r\nabc\r\n0\r\n\r\n",
    "a size with a point": b"3.0\r\nabc\r\n0\r\n\r\n",
    "a size that no client has": b"f" * 64 + b"\r\nabc\r\n0\r\n\r\n",
    "a size without an end": b"1" * 9000,
    "a size in another script": "٣\r\nabc\r\n0\r\n\r\n".encode(),
    "no line end behind the data": b"3\r\nabcdef\r\n0\r\n\r\n",
    "bare line feeds": b"3\nabc\n0\n\n",
    "a NUL": b"\0\r\n\r\n",
    "an extension without a name": b"3;=x\r\nabc\r\n0\r\n\r\n",
    "an extension with an open quote": b'3;a="x\r\nabc\r\n0\r\n\r\n',
    "a trailer without a colon": b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n",
    "a trailer that changes the length": b"3\r\nabc\r\n0\r\nContent-Length: 7\r\n\r\n",
    "a trailer with a bare line feed": b"3\r\nabc\r\n0\r\na: b\n\n",
    "a trailer with a space in its name": b"3\r\nabc\r\n0\r\na b: c\r\n\r\n",
}


@pytest.mark.parametrize("kind", BROKEN_CHUNKS)
def test_a_malformed_chunked_body_is_400_on_every_path_and_method(house: Gateway, kind: str) -> None:
    for method, path in PLACES:
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        answer = ask(house, method, head(method, path, *lines) + BROKEN_CHUNKS[kind])
        check_refused(answer, method, (400,))


#: Beginnings of a chunked body, behind which the client half-closes the connection.
CUT_CHUNKS = {
    "nothing": b"",
    "half a size": b"5",
    "a size alone": b"5\r\n",
    "no line end": b"3\r\nabc",
    "no last chunk": b"3\r\nabc\r\n",
    "a JSON text without a last chunk": b"%x\r\n%s\r\n" % (len(GOOD), GOOD),
    "no end behind the last chunk": b"3\r\nabc\r\n0\r\n",
    "half a trailer": b"3\r\nabc\r\n0\r\na: b\r\n",
}


@pytest.mark.parametrize("kind", CUT_CHUNKS)
def test_a_truncated_chunked_body_is_400_on_every_path_and_method(house: Gateway, kind: str) -> None:
    for method, path in PLACES:
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        answer = ask(house, method, head(method, path, *lines) + CUT_CHUNKS[kind], pipelined=False)
        check_refused(answer, method, (400,))


@pytest.mark.parametrize("body", [GOOD, GOOD[:-1], b"", b"[]"])
def test_a_body_that_is_shorter_than_declared_is_400(house: Gateway, body: bytes) -> None:
    for method, path in PLACES:
        for more in (1, 100_000):
            lines = ("Content-Type: application/json", f"Content-Length: {len(body) + more}")
            answer = ask(house, method, head(method, path, *lines) + body, pipelined=False)
            check_refused(answer, method, (400,))


WHOLE_BODIES = {
    "chunks": ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)),
    "chunks with an extension and a trailer": (
        "Transfer-Encoding: chunked",
        b'%x;a="b;c"\r\n%s\r\n0\r\nChecksum: 1\r\n\r\n' % (len(GOOD), GOOD),
    ),
    "a length": (f"Content-Length: {len(GOOD)}", GOOD),
    "no body": ("Content-Length: 0", b""),
}


@pytest.mark.parametrize("kind", WHOLE_BODIES)
def test_behind_a_whole_body_the_next_request_is_answered(house: Gateway, kind: str) -> None:
    line, body = WHOLE_BODIES[kind]
    for method, path in PLACES:
        word, next_request = following()
        sent = head(method, path, "Content-Type: application/json", line) + body + next_request
        first, second = answers(exchange(house, sent), iter([method]))
        assert first.status < 500
        assert first.status != 400 or (method == "POST" and kind == "no body")
        assert word in json.loads(second.body)["detail"]


@pytest.mark.parametrize("line", ["Transfer-Encoding: chunked", "Content-Length: 10"])
@pytest.mark.parametrize("start", [b"", b"5\r\nab"])
def test_a_body_that_nobody_needs_is_not_waited_for(house: Gateway, line: str, start: bytes) -> None:
    for path in ("/livez", "/t2ihistory/malformed"):
        began = time.monotonic()
        [answer] = answers(exchange(house, head("GET", path, line) + start, half_close=False), iter(["GET"]))
        assert answer.status == 200
        assert time.monotonic() - began < 2


# -- JSON ------------------------------------------------------------------------------------------------------------

BAD_JSON = [
    *(GOOD[:cut] for cut in range(0, len(GOOD), 37)),
    *(
        GOOD.replace(b"63", value)
        for value in (b"", b"6 3", b"+63", b"063", b"0x3f", b"63.", b".63", b"6e", b"--6", b"NaN")
    ),
    *(
        GOOD.replace(b"lighthouse", value)
        for value in (b'"', b"\\", b"\\x41", b"\\u12", b"\n", b"\0", b"\xff", b"\xed\xa0\x80")
    ),
    *(GOOD + value for value in (b"}", b"]", b",", b"x", b"{}", b"\0")),
    b"{}" * 1000,
    b"[" * 100_000,
    b'{"a":' * 100_000 + b"1",
    b"]" * 100_000,
    b'"' * 100_001,
    b"\\" * 100_000,
    b"{" + b'"a":1,' * 20_000 + b'"b":1}',
    b"[" + b"[]," * 20_000 + b"[]]",
    b'{"a":' + b"1" * 100_000 + b"}",
    b'{"a":0.' + b"1" * 100_000 + b"}",
    b'{"a":1,"a":2}',
]


def test_json_that_can_not_be_read_is_400(house: Gateway) -> None:
    for body in BAD_JSON:
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        answer = ask(house, "POST", head("POST", "/txt2img", *lines) + body)
        check_refused(answer, "POST", (400,))
        assert json.loads(answer.body)["type"] == "invalid-json"
        assert len(answer.body) < 1000


BOUNDLESS = {
    "a name of a field": b'"%s": 1',
    "a list": b'"width": [%s]',
    "a text for a number": b'"width": "%s"',
    "a user id": b'"id": "%s"',
    "a prompt": b'"prompt": "%s"',
    "a seed": b'"seed": "%s"',
    "a style": b'"style": "%s"',
    "a model": b'"model": "%s"',
    "an upscaler": b'"hr_upscaler": "%s"',
}


@pytest.mark.parametrize("kind", BOUNDLESS)
def test_an_answer_does_not_repeat_what_is_boundless(house: Gateway, kind: str) -> None:
    filling = b"1" + b",1" * 4000 if kind == "a list" else b"y" * 200_000
    fields = json.dumps(
        {name: value for name, value in picture().items() if f'"{name}"' not in BOUNDLESS[kind].decode()}
    )
    body = fields.encode()[:-1] + b", " + BOUNDLESS[kind] % filling + b"}"
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    answer = ask(house, "POST", head("POST", "/txt2img", *lines) + body)
    check_refused(answer, "POST", (422,))
    assert len(answer.body) < 2000


# -- conditions and ranges -------------------------------------------------------------------------------------------

UNREADABLE_DATES = (
    "Tue, 01 Jan 99999999 00:00:00 GMT",
    "Tue, 01 Jan 9999999999999999999999 00:00:00 GMT",
    "Tue, 01 Jan -1 00:00:00 GMT",
    "Tue, 99 Jan 2020 00:00:00 GMT",
    "Tue, 01 Jan 2020 99:99:99 GMT",
    "Tue, 01 Jan 2020 00:0666666666666666666660:00 GMT",
    "Tue, 01 Jan 2020 00:00:00 +9999999999999999999",
    "Tue, 01 Jan 0000 00:00:00 -2400",
    "Tue, 01 Jan 0001 00:00:00 +2359",
    "Fri, 31 Dec 9999 23:59:60 -2359",
    "Tue Jan  1 00:00:99999999999999999999 2020",
    "1577836800",
    "2020-01-01T00:00:00Z",
    "Tue, 01 Jan",
    "Tue,",
    ",,,",
    "GMT",
    "\xff\xfe",
    '"unquoted',
    "Jan " * 1500,
    "1 " * 4000,
    "0" * 8000,
)


@pytest.fixture(scope="module")
def image(house: Gateway) -> tuple[str, bytes]:
    """The URL and the bytes of a picture; its user is not the one who must have nothing in the end."""
    job = house.succeeded(house.post(id="conditions"))
    return job["images"][0]["url"], house.images(job)[0]


@pytest.mark.parametrize("path", ["image", "/docs/swagger-ui.css"])
def test_a_date_that_can_not_be_read_is_ignored(house: Gateway, image: tuple[str, bytes], path: str) -> None:
    target = image[0] if path == "image" else path
    whole = ask(house, "GET", head("GET", target)).body
    for date in UNREADABLE_DATES:
        for name in ("If-Modified-Since", "If-Unmodified-Since"):
            answer = ask(house, "GET", head("GET", target, f"{name}: {date}"))
            assert (answer.status, answer.body) == (200, whole), (name, date)
        # Without a date that could be met, the range must not be used (RFC 9110, section 13.1.5).
        answer = ask(house, "GET", head("GET", target, "Range: bytes=0-1", f"If-Range: {date}"))
        assert (answer.status, answer.body) == (200, whole), date


SEVERAL_RANGES = (
    "bytes=0-1,4-5",
    "bytes=0-1, 4-5",
    "bytes=0-1 ,\t4-5",
    "bytes=0-9,5-14",
    "bytes=0-0,0-0,0-0",
    "bytes=5-2,0-1",
    "bytes=0-1,",
    "bytes=,0-1",
    "bytes=,",
    "bytes=,,,,",
    "bytes=-1,-2",
    "bytes=0-,0-",
    "bytes=99999999-,0-1",
    "bytes=0-99999999999999999999999999,5-",
    "bytes=99999999999999999999999999-,1-",
    "bytes=a-b,c-d",
    "bytes=--1,0-1",
    "Bytes=0-1,2-3",
    "bytes=" + ",".join(f"{2 * place}-{2 * place}" for place in range(1000))[:8000],
    "bytes=" + "0-," * 1000,
    "bytes=" + "," * 8000,
)
#: Ranges that end behind the file, and what is sent of a file of so many bytes (RFC 9110, section 14.1.2).
LONG_RANGES = {
    "bytes=-99999999": 0,
    "bytes=-" + "9" * 5000: 0,
    "bytes=0-" + "9" * 5000: 0,
    "bytes=7-99999999999999999999999": 7,
    "bytes=7-99999999": 7,
}
#: Of one range that is none, the refusal is right too (RFC 9110, section 14.2).
ODD_RANGES = (
    "bytes",
    "bytes=",
    "bytes=-",
    "bytes=a-b",
    "bytes=0",
    "bytes=1-0",
    "bytes=0-1-2",
    "bytes=" + "9" * 8000 + "-",
    "bytes=-" + "9" * 8000,
    "bytes=0-" + "9" * 8000,
    "bytes=\xb2-\xb3",
    "=0-1",
    "lines=0-1",
    "lines=" + "0-," * 1000,
    "0-1",
    '"',
)


def test_several_ranges_are_answered_with_the_whole_file_or_the_first(house: Gateway, image: tuple[str, bytes]) -> None:
    for ranges in SEVERAL_RANGES:
        answer = ask(house, "GET", head("GET", image[0], f"Range: {ranges}"))
        assert (answer.status, answer.body) == (200, image[1]), ranges
        answer = ask(
            house, "GET", head("GET", image[0], f"Range: {ranges}", f'If-Range: "{image[0].rpartition("/")[2]}"')
        )
        assert (answer.status, answer.body) == (200, image[1]), ranges
    answer = ask(house, "GET", head("GET", image[0], "Range: bytes=0-1", "Range: 4-5"))
    assert (answer.status, answer.body) == (200, image[1])
    answer = ask(house, "GET", head("GET", "/docs/swagger-ui.css", "Range: bytes=0-1,4-5"))
    assert answer.status == 200


def test_a_range_that_ends_behind_the_file_ends_with_it(house: Gateway, image: tuple[str, bytes]) -> None:
    target, whole = image
    for value, begin in LONG_RANGES.items():
        answer = ask(house, "GET", head("GET", target, f"Range: {value}"))
        assert (answer.status, answer.body) == (206, whole[begin:]), value[:40]
        assert answer.headers["content-range"] == f"bytes {begin}-{len(whole) - 1}/{len(whole)}", value[:40]


def test_conditions_are_judged_in_their_order(house: Gateway, image: tuple[str, bytes]) -> None:
    target, whole = image
    etag = ask(house, "GET", head("GET", target)).headers["etag"]
    old = "Mon, 01 Jan 2001 00:00:00 GMT"
    for status, *lines in (
        (200, "If-Match: *"),
        (200, f"If-Match: {etag}", f"If-Unmodified-Since: {old}"),
        (412, 'If-Match: "another"', "Range: bytes=99999999-"),
        (412, f"If-Unmodified-Since: {old}"),
        (412, f"If-Unmodified-Since: {old}", f"If-None-Match: {etag}"),
        (304, f"If-None-Match: {etag}", "Range: bytes=0-9"),
        (304, f"If-None-Match: W/{etag}", "Range: bytes=99999999-"),
        (304, "If-None-Match: *"),
        (206, 'If-None-Match: "another"', "Range: bytes=0-9"),
        (416, 'If-None-Match: "another"', "Range: bytes=99999999-"),
        (200, f"If-Modified-Since: {old}", 'If-None-Match: "another"'),
    ):
        answer = ask(house, "GET", head("GET", target, *lines))
        assert answer.status == status, lines
        if status in (200, 206):
            assert answer.body == (whole if status == 200 else whole[:10]), lines
        elif status >= 400:
            check_refused(answer, "GET", (status,))


def test_a_condition_on_the_documentation_is_a_problem(house: Gateway) -> None:
    check_refused(ask(house, "GET", head("GET", "/docs/swagger-ui.css", 'If-Match: "another"')), "GET", (412,))


def test_a_cursor_of_no_row_is_422(house: Gateway) -> None:
    payload = b"\x01" + (2**63).to_bytes(8, "big")
    cursor = base64.urlsafe_b64encode(payload + hashlib.sha256(b"sd-gateway cursor" + payload).digest()[:3]).decode()
    for path in ("/t2ihistory/u1", "/i2ihistory/u1", "/jobs/u1"):
        check_refused(ask(house, "GET", head("GET", f"{path}?before={cursor}")), "GET", (422,))


def test_a_connection_that_the_client_wants_closed_is_closed(house: Gateway) -> None:
    for value in ("close", "Close, TE", "TE , close", "keep-alive, close"):
        received = exchange(house, head("GET", "/livez", f"Connection: {value}") + following()[1])
        [answer] = answers(received, iter(["GET"]))
        assert (answer.status, answer.headers["connection"]) == (200, "close"), value


def test_the_status_line_names_the_version_of_the_gateway(house: Gateway) -> None:
    received = exchange(house, b"GET /livez HTTP/1.2\r\nHost: g\r\nConnection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")


def test_fields_that_only_a_proxy_may_set_say_nothing(house: Gateway) -> None:
    answer = ask(house, "GET", head("GET", "/livez", "SCRIPT_NAME: /livez", "PATH_INFO: /readyz"))
    assert answer.status in (200, 400)
    assert b"location" not in answer.body


def test_one_range_that_is_none_is_ignored_or_refused(house: Gateway, image: tuple[str, bytes]) -> None:
    for range_ in ODD_RANGES:
        answer = ask(house, "GET", head("GET", image[0], f"Range: {range_}"))
        if answer.status == 416:
            check_refused(answer, "GET")
        else:
            assert answer.body in (image[1], image[1][: len(answer.body)]), range_
            assert answer.status in (200, 206), range_


# -- what gunicorn itself refuses ------------------------------------------------------------------------------------

#: Heads that never reach the application: gunicorn answers them with a page of its own, and the worker class with a problem.
#: %M and %P stand for method and path.
BROKEN_HEADS: dict[str, bytes] = {
    "a request line that is too long": b"%M %P?" + b"x" * 9000 + b" HTTP/1.1\r\nHost: g\r\n\r\n",
    "a request line that never ends": b"%M %P?" + b"x" * 20_000,
    "a header that is too long": b"%M %P HTTP/1.1\r\nHost: g\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
    "too many headers": b"%M %P HTTP/1.1\r\nHost: g\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "an unknown Transfer-Encoding": b"%M %P HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: x-other\r\n\r\n",
    "a Transfer-Encoding without chunked": b"%M %P HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: gzip\r\n\r\n",
    "chunked twice": b"%M %P HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked and a length": b"%M %P HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"%M %P HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length in letters": b"%M %P HTTP/1.1\r\nHost: g\r\nContent-Length: five\r\n\r\n",
    "a negative length": b"%M %P HTTP/1.1\r\nHost: g\r\nContent-Length: -5\r\n\r\n",
    "a length with a plus": b"%M %P HTTP/1.1\r\nHost: g\r\nContent-Length: +5\r\n\r\nabcde",
    "a length of 5,000 digits": b"%M %P HTTP/1.1\r\nHost: g\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": b"%M %P HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "two hosts": b"%M %P HTTP/1.1\r\nHost: g\r\nHost: h\r\n\r\n",
    "two content types": b"%M %P HTTP/1.1\r\nHost: g\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
    "no Host": b"%M %P HTTP/1.1\r\n\r\n",
    "two Hosts": b"%M %P HTTP/1.1\r\nHost: g\r\nHost: g\r\n\r\n",
    "a Host that is none": b"%M %P HTTP/1.1\r\nHost: a b/c\r\n\r\n",
    "a Host with an open bracket": b"%M %P HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a Host with a user": b"%M %P HTTP/1.1\r\nHost: u@x\r\n\r\n",
    "a coding besides chunked": b"%M %P HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a header without a colon": b"%M %P HTTP/1.1\r\nHost: g\r\nnonsense\r\n\r\n",
    "a header without a name": b"%M %P HTTP/1.1\r\nHost: g\r\n: x\r\n\r\n",
    "a space before the colon": b"%M %P HTTP/1.1\r\nHost : g\r\n\r\n",
    "a folded header": b"%M %P HTTP/1.1\r\nHost: g\r\nX: a\r\n b\r\n\r\n",
    "a NUL in a header": b"%M %P HTTP/1.1\r\nHost: g\r\nX: a\0b\r\n\r\n",
    "a bare line feed": b"%M %P HTTP/1.1\r\nHost: g\nX: a\r\n\r\n",
    "an unknown expectation": b"%M %P HTTP/1.1\r\nHost: g\r\nExpect: more\r\n\r\n",
    "HTTP/3.0": b"%M %P HTTP/3.0\r\nHost: g\r\n\r\n",
    "no version": b"%M %P\r\nHost: g\r\n\r\n",
    "no path": b"%M HTTP/1.1\r\nHost: g\r\n\r\n",
    "a path without a slash": b"%M livez HTTP/1.1\r\nHost: g\r\n\r\n",
    "a blank in the path": b"%M %P x HTTP/1.1\r\nHost: g\r\n\r\n",
    "raw bytes in the path": b"%M %P\xff HTTP/1.1\r\nHost: g\r\n\r\n",
    "a method in small letters": b"get %P HTTP/1.1\r\nHost: g\r\n\r\n",
    "a method that is none": b"%M(x) %P HTTP/1.1\r\nHost: g\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "the hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 300 + b"\r\n\r\n",
    "nonsense": b"nonsense\r\n\r\n",
}


@pytest.mark.parametrize("kind", BROKEN_HEADS)
def test_what_is_no_http_is_refused_with_a_problem(house: Gateway, kind: str) -> None:
    for method, path in ((method, path) for method, path in PLACES if method != "HEAD"):
        request = BROKEN_HEADS[kind].replace(b"%M", method.encode()).replace(b"%P", path.encode())
        # An unknown transfer coding is the one refusal that is not a 4xx by its RFC (9112, section 6.1).
        statuses = (400, 501) if kind == "an unknown Transfer-Encoding" else range(400, 500)
        check_refused(ask(house, "GET", request), "GET", statuses)


@pytest.mark.parametrize("kind", BROKEN_HEADS)
def test_what_is_no_http_is_refused_and_closes_the_connection(house: Gateway, kind: str) -> None:
    method, path = "GET", "/livez"
    request = BROKEN_HEADS[kind].replace(b"%M", method.encode()).replace(b"%P", path.encode())
    [answer] = answers(exchange(house, request + following()[1]), iter([method]))
    assert 400 <= answer.status < 502
    assert not re.search(rb"Traceback|/site-packages/", answer.body)
