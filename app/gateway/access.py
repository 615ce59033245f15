"""Who may: what a request's token allows, kept for a moment so that most requests cost no query.

A valid token is looked up again after :data:`KEPT_SECONDS`, so a revocation takes effect within that time in every process; on the
host where it was made, a notification makes it take effect at once (:meth:`Access.tokens_changed`).
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from typing import Final, get_args

from app.gateway.tokens import allows, digest_of, id_of
from app.jobs.tokens import Scope, Token, Tokens
from app.runtime.addresses import without_mapping

#: How long a valid token is not looked up again. Half of the 10 s that a revocation may take: a stream that begins with a look-up
#: of this age is looked at again within the other half (:mod:`app.gateway.revocation`).
KEPT_SECONDS: Final = 5.0
#: Failures of one address within :data:`_WINDOW_SECONDS` after which it is told to come back later.
MOST_FAILURES: Final = 20
_WINDOW_SECONDS: Final = 60.0
#: Addresses whose failures are counted; with more, all counts are reset.
_MOST_ADDRESSES: Final = 10_000
#: The addresses of one IPv6 subscriber, which count as one (RFC 6177).
_SUBSCRIBER_BITS: Final = 64
_SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request and its permissions.

    :ivar token: the id of its token; None where no token is asked for, or a signature stands in for one.
    :ivar users: the user ids that it may act for, or beginnings of them with ``*`` behind.
    :ivar until: :func:`time.time` at which the permission ends; None if that is not known beforehand.
    """

    token: str | None
    users: tuple[str, ...]
    scopes: frozenset[Scope]
    until: float | None = None

    @property
    def signed_until(self) -> float | None:
        """The end of the URL whose signature stands in for a token; None with a token, or where none is asked for."""
        return self.until if self.token is None else None

    def acts_for(self, user: str) -> bool:
        """Whether it may see and do what concerns this user."""
        return allows(self.users, user)

    @property
    def is_admin(self) -> bool:
        """Whether it has an operator's token."""
        return self.token is not None and "admin" in self.scopes

    def names(self, user: str | None) -> Callable[[str], bool]:
        """A predicate: whose jobs ``GET /queue`` shows by name. Those of the user asked for; to an operator, of all its users."""
        if self.is_admin:
            return self.acts_for
        return lambda other: other == user


#: The sender of a request where no token is asked for.
ANYBODY: Final = Caller(None, ("*",), _SCOPES)


class TokenInvalid(Exception):
    """The token can't be used; the answer does not tell why."""

    slug = "token-invalid"

    def __init__(self) -> None:
        super().__init__("The token is malformed, unknown, expired or revoked.")


class TooManyFailures(Exception):
    """Too many bad tokens came from one address lately."""

    slug = "too-many-failures"

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            "Too many requests with bad tokens came from this address. Correct the token, and try again later."
        )
        self.retry_after = retry_after


class Failures:
    """Counts the bad tokens of each address, in windows of a minute that begin with its first one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: By address, when its window ends and how many there were in it.
        self._counts: dict[str, tuple[float, int]] = {}

    def add(self, address: str) -> None:
        """Count one."""
        now, key = self._clock(), _subscriber(address)
        with self._lock:
            if len(self._counts) >= _MOST_ADDRESSES:
                self._counts.clear()
            end, count = self._counts.get(key, (0.0, 0))
            self._counts[key] = (end, count + 1) if end > now else (now + _WINDOW_SECONDS, 1)

    def seconds_left(self, address: str) -> float | None:
        """The rest of the window of an address that has used up its failures; None for any other."""
        end, count = self._counts.get(_subscriber(address), (0.0, 0))
        left = end - self._clock()
        return left if count >= MOST_FAILURES and left > 0 else None


def _subscriber(address: str) -> str:
    parsed = without_mapping(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, _SUBSCRIBER_BITS), strict=False))
    return address


@dataclass(frozen=True, slots=True)
class _Known:
    """A valid token as it was looked up, and the :func:`time.monotonic` until which that counts."""

    caller: Caller
    digest: str
    until: float
    use_to_be_noted: bool


class Access:
    """What tokens allow, in one process.

    :param tell_failure: is told the address of each bad token, to tell the other processes of this host.
    :param note_use: is told the id of a token that is used for the first time within an hour; must return at once.
    """

    def __init__(
        self, tokens: Tokens, tell_failure: Callable[[str], object], note_use: Callable[[str], object]
    ) -> None:
        self._tokens = tokens
        self._tell_failure = tell_failure
        self._note_use = note_use
        #: Those of all processes of this host.
        self.failures: Final = Failures()
        self._known: dict[str, _Known] = {}
        self._exist = False
        self._ask_again = 0.0

    def needs_tokens(self) -> bool:
        """Whether a token was ever made, so that no request goes without one.

        :raises DatabaseUnavailable: that is not known.
        """
        if not self._exist and (now := time.monotonic()) >= self._ask_again:
            self._exist = self._tokens.exist()
            self._ask_again = now + KEPT_SECONDS
        return self._exist

    def tokens_changed(self) -> None:
        """Look every token up again: some were made, revoked or rotated."""
        self._known = {}
        self._ask_again = 0.0

    def by_text(self, text: str, address: str) -> Caller:
        """The caller with this token.

        :param address: of the client, whose failures are counted.
        :raises TokenInvalid: there is none.
        :raises TooManyFailures: the same, after too many of them. A valid token is taken even then: one program with a bad token
            must not shut out all others behind the same address.
        :raises DatabaseUnavailable: it can't be looked up.
        """
        token_id = id_of(text)
        known = None if token_id is None else self._look_up(token_id)
        # The checksum was right, so the text is ASCII.
        if known is None or not hmac.compare_digest(digest_of(text), known.digest):
            raise self.failure(address)
        return self._used(known)

    def by_id(self, token_id: str, address: str) -> Caller:
        """The caller with the token of this id, as a session names it; raises as :meth:`by_text` does."""
        known = self._look_up(token_id)
        if known is None:
            raise self.failure(address)
        return self._used(known)

    def _used(self, known: _Known) -> Caller:
        """The caller with a token that has proved good; its use is noted where that is due."""
        token = known.caller.token
        if known.use_to_be_noted and token is not None:
            self._known[token] = replace(known, use_to_be_noted=False)
            self._note_use(token)
        return known.caller

    def still(self, caller: Caller) -> Caller:
        """A caller whose request has waited, as it is now.

        :raises TokenInvalid: its token was revoked or has expired. That counts as no failure: it was valid.
        :raises DatabaseUnavailable: it can't be looked up.
        """
        if caller.token is None:
            return caller
        known = self._look_up(caller.token)
        if known is None:
            raise TokenInvalid
        return replace(known.caller, until=caller.until)

    def failure(self, address: str) -> Exception:
        """The exception for a bad token, which is counted.

        Once the address has used up its failures they are not counted any more: the end of its window is fixed, and each one is
        told to all processes.
        """
        left = self.failures.seconds_left(address)
        if left is not None:
            return TooManyFailures(left)
        self._tell_failure(address)
        return TokenInvalid()

    def _look_up(self, token_id: str) -> _Known | None:
        now = time.monotonic()
        known = self._known.get(token_id)
        if known is not None and known.until > now:
            return known
        token = self._tokens.find(token_id)
        if token is None or not token.valid:
            self._known.pop(token_id, None)
            return None
        kept = KEPT_SECONDS if token.seconds_left is None else min(KEPT_SECONDS, token.seconds_left)
        known = _Known(_caller(token), token.digest, now + kept, token.unused_for_an_hour)
        self._known[token_id] = known
        return known


def _caller(token: Token) -> Caller:
    return Caller(token.id, token.users, token.scopes)
