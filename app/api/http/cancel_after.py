"""The Cancel-After header: how long after its acceptance a job is cancelled, unless it has ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from app.api.http.refusals import InvalidRequest

#: Seconds that may be asked for.
SHORTEST: Final = 5
LONGEST: Final = 24 * 3600
#: Seconds alone, or hours, minutes and seconds with their units in this order, each at most once.
_DURATION: Final = re.compile(
    r"(?P<plain>[0-9]{1,6})|(?=.)(?:(?P<h>[0-9]{1,6})h)?(?:(?P<m>[0-9]{1,6})m)?(?:(?P<s>[0-9]{1,6})s)?"
)
#: The same as JSON Schema and JavaScript read it.
PATTERN: Final = "^(?:" + re.sub(r"\(\?P<\w+>", "(?:", _DURATION.pattern) + ")$"
_SECONDS: Final = {"plain": 1, "h": 3600, "m": 60, "s": 1}


def parse(fields: Sequence[str]) -> float | None:
    """Read the values of all Cancel-After fields: seconds, None without one.

    :raises InvalidRequest: there are two, or one is no duration from :data:`SHORTEST` to :data:`LONGEST`.
    """
    if not fields:
        return None
    match = _DURATION.fullmatch(fields[0]) if len(fields) == 1 else None
    seconds = 0 if match is None else sum(int(match[unit] or 0) * size for unit, size in _SECONDS.items())
    if not SHORTEST <= seconds <= LONGEST:
        raise InvalidRequest(
            "Cancel-After must be given once: seconds, or hours, minutes and seconds such as 1h30m or 90s; 5 s to 24 h."
        )
    return float(seconds)
