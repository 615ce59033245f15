"""Tokens as text, and their making, listing and revoking.

A token is ``sdg_`` + 8 characters (its public id) + ``_`` + 32 characters (the secret, 190 bits) + 6 characters (the CRC-32 of
all before it). All are of base62 in the order ``0-9A-Za-z``, and the checksum is padded with ``0`` on its left. So a typing error
costs no query, and scanners for secrets in source code recognise a token. One example, with a secret of zeros::

    sdg_00000001_000000000000000000000000000000000K3US3
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from app.jobs.tokens import NewToken, Scope, Token, Tokens
from app.parameters import user_id_fault

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH: Final = 8
_SECRET_LENGTH: Final = 32
_CHECKSUM_LENGTH: Final = 6
_TOKEN: Final = re.compile(
    rf"sdg_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}", re.ASCII
)
#: Each scope with those that it includes.
INCLUDED: Final[dict[Scope, frozenset[Scope]]] = {
    "read": frozenset(("read",)),
    "generate": frozenset(("read", "generate")),
    "delete": frozenset(("read", "generate", "delete")),
    "admin": frozenset(("admin",)),
}
_LONGEST_NAME: Final = 64
#: Draws of an id that is not taken yet; a second one is needed once in 10^14 tokens.
_MOST_DRAWS: Final = 5


class TokenError(Exception):
    """A token can't be made or changed as was asked; the text says why."""


class MadeToken(NamedTuple):
    """A token that was just made, and its text, which is shown once and never again."""

    token: Token
    text: str


def checksum(text: str) -> str:
    """The six characters behind a token's secret: the CRC-32 of all before them (ISO 3309, as in zlib) in base62."""
    number = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def id_of(text: str) -> str | None:
    """The id of a token; None for a text that is none, which the checksum tells."""
    match = _TOKEN.fullmatch(text)
    if match is None or checksum(text[:-_CHECKSUM_LENGTH]) != text[-_CHECKSUM_LENGTH:]:
        return None
    return match[1]


def digest_of(text: str) -> str:
    """The SHA-256 of a token, as it is stored."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def allows(patterns: Sequence[str], user: str) -> bool:
    """Whether a user id is one of a token's: equal to a pattern, or beginning with what stands before its ``*``."""
    return any(user.startswith(pattern[:-1]) if pattern.endswith("*") else user == pattern for pattern in patterns)


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


class TokenBook:
    """The tokens of a gateway, for those who make them."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def create(self, *, name: str, users: Sequence[str], scopes: Collection[Scope], seconds: float | None) -> MadeToken:
        """Make a token.

        :param name: for people, who tell tokens apart by it.
        :param users: the ids of its users; one with ``*`` at its end stands for all that begin so.
        :param seconds: until it expires; None for never.
        :raises TokenError: name or users can't be taken.
        :raises DatabaseUnavailable: nothing was made.
        """
        _check(name, users)
        granted = frozenset[Scope]().union(*(INCLUDED[scope] for scope in scopes))
        new, text = self._draw(name, granted, users, seconds)
        self._tokens.add(new)
        return MadeToken(self.get(new.id), text)

    def _draw(
        self, name: str, scopes: frozenset[Scope], users: Sequence[str], lifetime: float | None
    ) -> tuple[NewToken, str]:
        """A token that is not stored yet, and its text."""
        token_id = self._free_id()
        beginning = f"sdg_{token_id}_{_random_text(_SECRET_LENGTH)}"
        text = beginning + checksum(beginning)
        return NewToken(token_id, digest_of(text), name, scopes, tuple(users), lifetime), text

    def _free_id(self) -> str:
        for _ in range(_MOST_DRAWS):
            token_id = _random_text(_ID_LENGTH)
            if self._tokens.find(token_id) is None:
                return token_id
        raise TokenError("no free id was found")

    def get(self, token_id: str) -> Token:
        """A token by its id.

        :raises TokenError: there is none.
        """
        token = self._tokens.find(token_id)
        if token is None:
            raise TokenError(f"there is no token with the id {token_id!r}; 'sd-gateway tokens list' shows all")
        return token

    def all(self) -> list[Token]:
        """Every token, the oldest first."""
        return self._tokens.all()

    def revoke(self, token_id: str) -> bool:
        """Make a token invalid for good; False if it is revoked already.

        :raises TokenError: there is none.
        """
        return self._tokens.revoke(self.get(token_id).id)

    def rotate(self, token_id: str, overlap: float) -> MadeToken:
        """Make a token that allows the same, and let the old one expire.

        :param overlap: seconds for which both are valid.
        :raises TokenError: there is no such token, or it is not valid any more.
        """
        old = self.get(token_id)
        if not old.valid:
            raise TokenError(
                f"the token {token_id} is not valid any more; make a new one with 'sd-gateway tokens create'"
            )
        new, text = self._draw(old.name, old.scopes, old.users, old.lifetime)
        self._tokens.replace(token_id, overlap, new)
        return MadeToken(self.get(new.id), text)


def _check(name: str, users: Sequence[str]) -> None:
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise TokenError(f"a name has 1 to {_LONGEST_NAME} printable characters")
    if not users:
        raise TokenError("a token is for at least one user; '*' stands for all")
    for pattern in users:
        beginning = pattern.removesuffix("*")
        # A beginning may be as short as nothing, and need be no user id itself.
        fault = user_id_fault(beginning) if beginning and beginning not in (".", "..") else None
        if not pattern or fault:
            raise TokenError(f"{pattern!r} is no user id and no beginning of one: {fault or 'it is empty'}")
