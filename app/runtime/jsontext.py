"""JSON that the gateway writes for rows and answers, and reads back: the one place that knows which library does it.

orjson does a page of history in a fraction of the standard library's time, but refuses what that one takes: integers beyond 64
bits, members whose names are no strings, and unpaired surrogates, which a WebUI's text may hold. Those go through the
standard library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import orjson

#: Dates are left to ``default``, or the two libraries would write them differently.
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATETIME
#: Of an integer that is read as one.
_MOST_DIGITS: Final = 400


def dumps(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """Compact JSON in UTF-8, members in the order they have; an unpaired surrogate, which UTF-8 can't hold, as its escape.

    :param default: what JSON does not know, as something that it does.
    """
    try:
        return orjson.dumps(value, default, _OPTIONS)
    except TypeError:
        text = json.dumps(value, default=default, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


def loads(text: str | bytes) -> Any:
    """Read JSON that :func:`dumps` wrote, or any other.

    An integer of hundreds of digits, which no number that was checked is, comes back as an infinite float.

    :raises ValueError: it is no JSON.
    """
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int | float:
    # Python itself refuses more than 4,300 digits, and the whole text with them.
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)
