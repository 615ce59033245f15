"""The Prefer header, RFC 7240: how long a POST may wait for its picture.

The header is read in one pass, by expressions that never go back (possessive quantifiers), and only as far as a client with
preferences needs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

#: Characters that are read of all Prefer fields together, and of one preference with its parameters.
_LONGEST_HEADER: Final = 1024
_LONGEST_PREFERENCE: Final = 256

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_WORD = rf"(?:{_NAME}|{_QUOTED})"
#: RFC 7240, section 2: a preference, with parameters that none of ours has.
_PREFERENCE: Final = re.compile(
    rf"(?P<name>{_NAME})(?:[ \t]*+=[ \t]*+(?P<value>{_WORD}))?"
    rf"(?:[ \t]*+;(?:[ \t]*+{_NAME}(?:[ \t]*+=[ \t]*+{_WORD})?)?)*+"
)
#: An item, up to a comma outside of quoted strings or to the end; no match where a quoted string is not closed.
_ITEM: Final = re.compile(rf'((?:[^",]|{_QUOTED})*+)(?:,|\Z)')
_ESCAPED: Final = re.compile(r"\\(.)")
#: More seconds than this are no different from it, and an integer of a million digits is not read.
_LONGEST_WAIT: Final = 10**9


@dataclass(frozen=True)
class Preference:
    """The preferences of a client: ``respond_async``, and ``wait`` in seconds; ``None`` where it said nothing."""

    respond_async: bool = False
    wait: int | None = None

    def seconds(self, limit: float) -> float:
        """Seconds to wait for the end of the job; ``limit`` is the gateway's own bound, seconds."""
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
    """Read the values of all Prefer fields. Malformed, overlong and unknown preferences are ignored, and repeats of one."""
    found: dict[str, str] = {}
    for item in _items(",".join(fields)):
        match = _PREFERENCE.fullmatch(item) if len(item) <= _LONGEST_PREFERENCE else None
        if match:
            found.setdefault(match["name"].lower(), _unquoted(match["value"] or ""))
    return Preference(found.get("respond-async") == "", _seconds(found.get("wait", "")))


def _items(header: str) -> Iterator[str]:
    """Split a header at its commas. Of one that is too long, only the preferences that end within the limit are read.

    A quotation mark that nothing closes quotes nothing, so that from there on every comma counts.
    """
    if len(header) > _LONGEST_HEADER:
        header = header[:_LONGEST_HEADER].rpartition(",")[0]
    place = 0
    while place < len(header) and (match := _ITEM.match(header, place)):
        yield match[1].strip(" \t")
        place = match.end()
    yield from (item.strip(" \t") for item in header[place:].split(","))


def _unquoted(word: str) -> str:
    return _ESCAPED.sub(r"\1", word[1:-1]) if word.startswith('"') else word


def _seconds(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]+", text):
        return None
    return min(int(text[:10]), _LONGEST_WAIT) if len(text) <= len(str(_LONGEST_WAIT)) else _LONGEST_WAIT
