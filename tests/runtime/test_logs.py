"""Lines of the log in both formats: their fields, that none can be forged, and that none holds a secret."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.runtime import logs, request_ids
from app.runtime.redaction import redacted

TOKEN = "sdg_AbCd1234_" + "x7" * 19
HEAD = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] \[[A-Z]+\] ")


@pytest.fixture
def lines() -> Iterator[Callable[[str], tuple[logging.Logger, Callable[[], str]]]]:
    """Makes a logger of its own that writes in a format, and a function that gives what it has written."""
    logger = logging.getLogger("tests.lines")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)

    def make(log_format: str) -> tuple[logging.Logger, Callable[[], str]]:
        written = io.StringIO()
        handler = logging.StreamHandler(written)
        handler.setFormatter(logs.formatter(log_format))
        logger.handlers[:] = [handler]
        return logger, written.getvalue

    yield make
    logger.handlers.clear()


def test_an_event_is_pairs_as_text_and_fields_as_json(lines: Any) -> None:
    fields = {"user": "two words", "attempt": 1, "seconds": 4.21, "slug": None, "request": "r-1"}
    logger, written = lines("text")
    logs.write(logger, logging.INFO, "given back", fields)
    said = 'event="given back" user="two words" attempt=1 seconds=4.210 request=r-1\n'
    assert HEAD.sub("", written()) == f"tests.lines: {said}"

    logger, written = lines("json")
    with request_ids.serving("another"):
        logs.write(logger, logging.WARNING, "given back", fields)
    line = json.loads(written())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("process") > 0
    assert line == {
        "level": "WARNING",
        "logger": "tests.lines",
        "message": "given back",
        "event": "given back",
        "user": "two words",
        "attempt": 1,
        "seconds": 4.21,
        "request": "r-1",
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_names_the_request_that_its_thread_serves(lines: Any, log_format: str) -> None:
    logger, written = lines(log_format)
    with request_ids.serving("r-2"):
        logger.info("%d words", 2)
    logger.info("no request")
    first, second = written().splitlines()
    if log_format == "json":
        assert [json.loads(line).get("request") for line in (first, second)] == ["r-2", None]
        assert json.loads(first)["message"] == "2 words"
    else:
        assert first.endswith("tests.lines: 2 words request=r-2")
        assert second.endswith("tests.lines: no request")


def log_error(logger: logging.Logger, said: str) -> None:
    try:
        raise ValueError(said)  # noqa: TRY301 -- it is to be caught here
    except ValueError:
        logger.exception("it failed")


FORGED = "x\n[2026-11-22 06:15:30 +0000] [1] [INFO] app.audit: event=token-created\r\x1b[2K\u2028y\udc80\x00"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_message_and_no_exception_can_pass_for_another_line(lines: Any, log_format: str) -> None:
    logger, written = lines(log_format)
    logger.info("hello %s", FORGED)
    logs.write(logger, logging.INFO, "deleted", {"user": FORGED})
    log_error(logger, FORGED)
    logger.info("where", stack_info=True)
    found = written().split("\n")[:-1]
    if log_format == "json":
        told = [json.loads(line) for line in found]
        assert [line["message"] for line in told[1:]] == ["deleted", "it failed", "where"]
        assert "Traceback" in told[2]["exception"]
        assert "test_logs.py" in told[3]["stack"]
        assert all(line.isascii() for line in found)
    else:
        begin = [line for line in found if HEAD.match(line)]
        assert len(begin) == 4
        assert all(line.startswith("  ") for line in found if line not in begin)
        assert "  Traceback (most recent call last):" in found
        assert all(line.isprintable() for line in found)


LEAKS = {
    f"got {TOKEN} here": "got sdg_AbCd1234_… here",
    f"Bearer {TOKEN[:30]}": "Bearer sdg_AbCd1234_…",
    "GET /get_images/u/txt2img/a.png?exp=1&kid=1&sig=AbC-_9&size=160": "GET /get_images/u/txt2img/a.png?exp=1&kid=1&sig=…&size=160",
    "can't reach http://me:p%40ss@host:7860/x": "can't reach http://…@host:7860/x",
    "postgresql+psycopg://me:p@ss/word@db/gateway is away": "postgresql+psycopg://…@db/gateway is away",
    "host=db password=hunter2 user=me": "host=db password=… user=me",
    "Authorization: Basic bWU6cGFzcw==": "Authorization: …",
    "{'authorization': 'Bearer abc'}": "{'authorization': '…'}",
    "HTTP_AUTHORIZATION=Digest abc": "HTTP_AUTHORIZATION=…",
    "Cookie: sdg_session=abc.def; theme=dark": "Cookie: …",
    "sdg_session=abc.def": "sdg_session=…",
    'x\n  DETAIL:  Failing row contains (a, "a lighthouse").\nCONTEXT: y': "x\n  DETAIL: …\nCONTEXT: y",
}


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("leak", LEAKS)
def test_secrets_are_taken_out_of_messages_fields_and_exceptions(lines: Any, log_format: str, leak: str) -> None:
    assert redacted(leak) == LEAKS[leak]
    assert redacted(LEAKS[leak]) == LEAKS[leak]
    logger, written = lines(log_format)
    logger.info("%s", leak)
    logs.write(logger, logging.INFO, "request", {"path": leak})
    log_error(logger, leak)
    for secret in (TOKEN[13:30], "AbC-_9", "p%40ss", "p@ss", "hunter2", "bWU6", "abc", "lighthouse"):
        assert secret not in written()


@pytest.mark.parametrize(
    "harmless",
    [
        "user=me@example.com",
        "WebUI http://127.0.0.1:7860/sub is up",
        "/jobs/a@b?limit=5",
        "authorization is off",
        "signature=x",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(harmless: str) -> None:
    assert redacted(harmless) == harmless


def test_the_last_words_are_a_line_of_the_log_or_a_sentence() -> None:
    said = "sd-gateway: SDG_THREADS: 100% wrong at http://me:secret@x"
    assert logs.last_words("text", said) == "sd-gateway: SDG_THREADS: 100% wrong at http://…@x"
    assert json.loads(logs.last_words("json", said))["message"] == "sd-gateway: SDG_THREADS: 100% wrong at http://…@x"


@pytest.mark.parametrize("given", ["r-1", "A" * 64, "._-"])
def test_the_id_that_a_client_gives_is_taken(given: str) -> None:
    assert request_ids.accepted_or_new(given) == given


@pytest.mark.parametrize("given", ["A" * 65, "", None, "a b", "a\n", "ä", "a/b", "a,b"])
def test_another_id_is_made_where_the_clients_can_not_be_taken(given: str | None) -> None:
    made = [request_ids.accepted_or_new(given) for _ in range(2)]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", one) for one in made)
    assert made[0] != made[1]


class Unraisable:
    """An object whose end raises what nobody can catch."""

    def __del__(self) -> None:
        raise OSError("at the end of an object")


def fail_in(where: str) -> None:
    """Have Python itself report an exception, or a warning."""
    if where == "thread":
        thread = threading.Thread(target=lambda: {}["nothing"], name="runner big")
        thread.start()
        thread.join()
    elif where == "main thread":
        try:
            raise ValueError("nobody catches this")  # noqa: TRY301 -- given to the hook as the interpreter does at its end
        except ValueError as error:
            sys.excepthook(type(error), error, error.__traceback__)
    elif where == "end of an object":
        Unraisable()
    else:
        warnings.warn("this goes away", UserWarning, stacklevel=1)


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's own reports go to the log, as in every process of ours, and not to pytest."""
    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.catch_everything()
        yield
        logging.captureWarnings(capture=False)


@pytest.mark.usefixtures("caught")
@pytest.mark.parametrize(
    ("where", "level", "said", "kind"),
    [
        ("thread", "CRITICAL", "the thread runner big ended by an exception", KeyError),
        ("main thread", "CRITICAL", "an exception was not caught", ValueError),
        ("end of an object", "ERROR", "an exception was ignored", OSError),
        ("warning", "WARNING", "UserWarning: this goes away", None),
    ],
)
def test_what_python_itself_would_print_is_logged(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    where: str,
    level: str,
    said: str,
    kind: type[BaseException] | None,
) -> None:
    fail_in(where)
    [record] = caplog.records
    assert record.levelname == level
    assert said in record.getMessage()
    assert (record.exc_info or (None,))[0] is kind
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("caught")
def test_a_thread_that_ends_itself_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    assert caplog.records == []
