"""The Prefer header, RFC 7240: how long a POST may wait for its picture."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_WORD = rf'(?:{_NAME}|"(?:[^"\\]|\\.)*")'
#: RFC 7240, section 2: a preference, with parameters that none of ours has.
_PREFERENCE = re.compile(
    rf"(?P<name>{_NAME})(?:[ \t]*=[ \t]*(?P<value>{_WORD}))?"
    rf"(?:[ \t]*;(?:[ \t]*{_NAME}(?:[ \t]*=[ \t]*{_WORD})?)?)*"
)
#: The commas outside quoted strings end a preference.
_ITEM = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"|")+')
#: More seconds than this are no different from it, and an integer of a million digits is not read.
_LONGEST_WAIT = 10**9


@dataclass(frozen=True)
class Preference:
    """What the client prefers: ``respond_async``, and ``wait`` in seconds; ``None`` where it said nothing."""

    respond_async: bool = False
    wait: int | None = None

    def seconds(self, limit: float) -> float:
        """How long to wait for the end of the job; ``limit`` is the gateway's own bound, seconds."""
        if self.wait is not None:
            return min(self.wait, limit)
        return 0 if self.respond_async else limit

    def applied(self, limit: float, *, accepted_only: bool) -> str | None:
        """The value of Preference-Applied: the preferences that the answer honours.

        :param accepted_only: the answer is a 202.
        """
        honoured = ["respond-async"] if self.respond_async and accepted_only else []
        if self.wait is not None and (self.wait <= limit or not accepted_only):
            honoured.append(f"wait={self.wait}")
        return ", ".join(honoured) or None


def parse(fields: Iterable[str]) -> Preference:
    """Read the values of every Prefer field; what is malformed or unknown is ignored, and of a repeat the first counts."""
    found: dict[str, str] = {}
    for item in _ITEM.findall(",".join(fields)):
        match = _PREFERENCE.fullmatch(item.strip(" \t"))
        if match:
            found.setdefault(match["name"].lower(), (match["value"] or "").strip('"'))
    return Preference(found.get("respond-async") == "", _seconds(found.get("wait", "")))


def _seconds(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]+", text):
        return None
    return min(int(text[:10]), _LONGEST_WAIT) if len(text) <= len(str(_LONGEST_WAIT)) else _LONGEST_WAIT
