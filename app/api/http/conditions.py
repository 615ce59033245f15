"""The conditions and ranges of a request (RFC 9110, sections 13 and 14), made fit for werkzeug.

werkzeug raises for some dates, refuses several ranges and unknown units with 416, and reads lists of any length.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

from werkzeug.http import parse_date

from app.api.http.refusals import InvalidRequest

#: The beginnings of what makes a request conditional or partial, as WSGI names them.
_NAMES: Final = ("HTTP_IF_", "HTTP_RANGE")
#: Characters of a header's value. gunicorn takes as many in one line; more come from several lines of one header.
_LONGEST: Final = 8190
_LONGEST_DATE: Final = 64
_DATES: Final = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE")
_LISTS: Final = {"HTTP_IF_MATCH": "If-Match", "HTTP_IF_NONE_MATCH": "If-None-Match"}


def present(environ: MutableMapping[str, Any]) -> bool:
    """Whether the request has a condition or a range."""
    return any(name.startswith(_NAMES) for name in environ)


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


def _is_date(text: str) -> bool:
    try:
        return len(text) <= _LONGEST_DATE and parse_date(text) is not None
    except OverflowError:
        return False


def _is_one_range(text: str) -> bool:
    unit, _, ranges = text.partition("=")
    return len(text) <= _LONGEST and unit.strip(" \t").lower() == "bytes" and "," not in ranges


def _is_validator(text: str) -> bool:
    """Whether an If-Range is absent, or a strong entity tag or a date, which alone can be compared with."""
    return not text or (text.startswith('"') and len(text) <= _LONGEST) or _is_date(text)
