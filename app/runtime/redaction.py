"""Secrets are taken out of every line of the log: the last line of defence, for what should never have been logged.

What is replaced by ``…``: the secret part of tokens, signatures, the values of ``Authorization`` and cookies, user and password of
URLs, passwords in ``name=value`` form, and the ``DETAIL`` of PostgreSQL's errors, which shows values of rows. Too much may go, such
as a part of a path that looks like a password; too little should not.
"""

from __future__ import annotations

import re
from typing import Final

_AUTHORIZATION: Final = r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic|digest)\s+)?[^\s\"',…]+"
#: Each pattern with what it needs to match at all, which is looked for first: hardly any line has one of them.
_SECRETS: Final = tuple(
    (word, re.compile(pattern), replacement)
    for word, pattern, replacement in (
        ("sdg_", r"sdg_([0-9A-Za-z]{8})_[0-9A-Za-z]+", r"sdg_\1_…"),
        ("sig=", r"\bsig=[^&\s\"'…]+", "sig=…"),
        # Up to the last @: a password may hold one, and a slash.
        ("@", r"://[^\s\"'<>…]{0,512}@", "://…@"),
        ("assw", r"(?i)(passw(?:or)?d=)[^&\s\"'…]+", r"\1…"),
        ("uthorization", _AUTHORIZATION, r"\1…"),
        ("UTHORIZATION", _AUTHORIZATION, r"\1…"),
        ("ookie", r"(?i)(cookie[\"']?\s*[:=]\s*[\"']?)[^\s\"'…][^\"'\n…]*", r"\1…"),
        ("session=", r"\b(sdg_session=)[^;\s\"'…]+", r"\1…"),
        ("DETAIL:", r"(DETAIL:)[^\n]*", r"\1 …"),
    )
)


def redacted(text: str) -> str:
    """A text without secrets."""
    for word, pattern, replacement in _SECRETS:
        if word in text:
            text = pattern.sub(replacement, text)
    return text
