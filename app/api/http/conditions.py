"""The conditions and ranges of a request (RFC 9110, sections 13 and 14), made fit for werkzeug.

werkzeug raises for some dates, refuses several ranges and unknown units with 416, reads lists of any length, and judges a range
before the other conditions.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any, Final

from werkzeug.http import parse_date, parse_etags

from app.api.http.refusals import InvalidRequest, PreconditionFailed

#: What makes a request conditional or partial, as WSGI names it.
_NAMES: Final = frozenset(
    (
        "HTTP_IF_MATCH",
        "HTTP_IF_NONE_MATCH",
        "HTTP_IF_MODIFIED_SINCE",
        "HTTP_IF_UNMODIFIED_SINCE",
        "HTTP_IF_RANGE",
        "HTTP_RANGE",
    )
)
#: Characters of a header's value. gunicorn takes as many in one line; more come from several lines of one header.
_LONGEST: Final = 8190
#: The three forms of a date: two end with GMT, asctime names no zone.
_DATE: Final = re.compile(
    r"[A-Za-z]{3,9}, [A-Za-z0-9: -]{15,30} GMT|[A-Za-z]{3} [A-Za-z]{3} [ 0-9]?[0-9] [0-9:]{8} [0-9]{4}"
)
_DATES: Final = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE")
#: Digits of a position that any file can have.
_DIGITS: Final = 18
_FROM: Final = re.compile(r"[0-9]{1,18}(?=-[0-9])")
_LISTS: Final = {"HTTP_IF_MATCH": "If-Match", "HTTP_IF_NONE_MATCH": "If-None-Match"}


def present(environ: MutableMapping[str, Any]) -> bool:
    """Whether the request has a condition or a range."""
    return not _NAMES.isdisjoint(environ)


def tidy(environ: MutableMapping[str, Any]) -> None:
    """Take out of a WSGI environment what must be ignored.

    Ignored are dates that can't be read (section 13.1.3), a range whose If-Range can't be met (13.1.5), a range in another unit
    than bytes, and several ranges in one header, for which the whole file is a right answer (14.2).

    :raises InvalidRequest: a list of entity tags is too long to be compared.
    """
    for name, header in _LISTS.items():
        if len(environ.get(name, "")) > _LONGEST:
            raise InvalidRequest(f"{header} must not be longer than {_LONGEST} characters.")
    for name in _DATES:
        if not _is_date(environ.get(name, "")):
            environ.pop(name, None)
    if not (_is_one_range(environ.get("HTTP_RANGE", "")) and _is_validator(environ.get("HTTP_IF_RANGE", ""))):
        environ.pop("HTTP_RANGE", None)
        environ.pop("HTTP_IF_RANGE", None)


def judge(environ: MutableMapping[str, Any], etag: str, size: int, modified: int) -> None:
    """Judge the preconditions of a request for a file in the order of section 13.2.2, so that werkzeug finds only what follows.

    :param etag: the entity tag of the file, without quotes.
    :param size: its bytes.
    :param modified: the time of its last change, seconds since the epoch.
    :raises PreconditionFailed: If-Match or If-Unmodified-Since does not hold.
    """
    match, unmodified_since = environ.pop("HTTP_IF_MATCH", None), environ.pop("HTTP_IF_UNMODIFIED_SINCE", None)
    if match is not None:
        if not parse_etags(match).contains(etag):
            raise PreconditionFailed("The file has another ETag than If-Match names.")
    elif unmodified_since is not None and modified > _seconds(unmodified_since):
        raise PreconditionFailed("The file was changed after If-Unmodified-Since.")
    if _is_current(environ, etag, modified):
        environ.pop("HTTP_RANGE", None)
    elif "HTTP_RANGE" in environ:
        environ["HTTP_RANGE"] = _within(environ["HTTP_RANGE"], size)


def _seconds(date: str) -> float:
    parsed = parse_date(date)
    return 0.0 if parsed is None else parsed.timestamp()


def _is_current(environ: MutableMapping[str, Any], etag: str, modified: int) -> bool:
    """Whether the copy that the client has is current, so that the answer is a 304."""
    none_match = environ.get("HTTP_IF_NONE_MATCH")
    if none_match is not None:
        return parse_etags(none_match).contains_weak(etag)
    since = environ.get("HTTP_IF_MODIFIED_SINCE")
    return since is not None and modified <= _seconds(since)


def _within(header: str, size: int) -> str:
    """A range of bytes with positions that werkzeug reads; one that ends behind the file ends with it (section 14.1.2)."""
    spec = header.partition("=")[2].strip(" \t")
    if spec.startswith("-") and spec[1:].isdigit() and (len(spec) > _DIGITS or int(spec[1:]) >= size):
        return "bytes=0-"
    begin = _FROM.match(spec)
    return f"bytes={begin[0]}-" if begin is not None and spec[begin.end() + 1 + _DIGITS :].isdigit() else header


def _is_date(text: str) -> bool:
    """Whether it is a date of section 5.6.7, which has no other time zone than GMT."""
    try:
        return bool(_DATE.fullmatch(text)) and parse_date(text) is not None
    except OverflowError:
        return False


def _is_one_range(text: str) -> bool:
    unit, _, ranges = text.partition("=")
    return len(text) <= _LONGEST and unit.strip(" \t").lower() == "bytes" and "," not in ranges


def _is_validator(text: str) -> bool:
    """Whether an If-Range is absent, or a strong entity tag or a date, which alone can be compared with."""
    return not text or (text.startswith('"') and len(text) <= _LONGEST) or _is_date(text)
