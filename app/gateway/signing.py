"""Signed URLs and session cookies, for browsers, which can't send a token with an ``<img>`` or an EventSource.

A signed URL names its end (``exp``), the key (``kid``) and the signature (``sig``) of all that it stands for. It is valid until its
end, whatever becomes of the token that it was made with. A session is the signed id of a token, which is looked up each time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from itsdangerous import BadData, Signer, URLSafeTimedSerializer

from app.config import secret_keys
from app.records.atomic import create_file
from app.runtime import modes
from app.runtime.jsontext import dumps

_LOG = logging.getLogger(__name__)

#: The file of the instance folder with the keys, in the form of ``SDG_SECRET_KEYS``.
KEY_FILE: Final = "secret-keys"
_KEY_BYTES: Final = 32
#: How long a session lasts, seconds.
SESSION_SECONDS: Final = 12 * 3600
#: The bounds of the lifetime of a signed URL, seconds.
SHORTEST: Final = 60
LONGEST: Final = 7 * 86_400
#: The same for event streams, which a page opens when it needs them.
LONGEST_STREAM: Final = 3600
_DIGITS: Final = 11


class UrlExpired(Exception):
    """The time of a signed URL is up."""

    slug = "url-expired"

    def __init__(self) -> None:
        super().__init__("The time of this URL is up. Ask for a new one.")


class BadSignature(Exception):
    """A URL was changed after it was signed, or was signed with a key that is not known."""

    slug = "bad-signature"

    def __init__(self) -> None:
        super().__init__("The URL was changed after it was signed, or its key is not known any more.")


class NoSigningKey(Exception):
    """There is no key to sign with."""

    slug = "no-signing-key"

    def __init__(self) -> None:
        super().__init__("This gateway has no key to sign with; its log says why.")


class Signature(NamedTuple):
    """What a signed URL ends with: its end in seconds since 1970, the name of the key, the signature."""

    exp: int
    kid: str
    sig: str

    @property
    def query(self) -> str:
        """The parameters as they stand in the URL: all of characters that need no encoding."""
        return f"exp={self.exp}&kid={self.kid}&sig={self.sig}"


class SignedPicture(NamedTuple):
    """What the URL of a picture stands for; the last three as they stand in its query, None where they don't."""

    user: str
    type: str
    filename: str
    size: str | None = None
    format: str | None = None
    download: str | None = None


class SignedStream(NamedTuple):
    """What the URL of an event stream stands for; without type and name all jobs of the user.

    ``sign`` stands in its query: for how long the URLs in the events are signed.
    """

    user: str
    type: str | None = None
    name: str | None = None
    sign: str | None = None


def load_keys(configured: Mapping[str, bytes], instance: Path, *, make: bool) -> Mapping[str, bytes]:
    """The keys of the settings, else those of the instance folder.

    :param make: whether a key is made there if there is none.
    :returns: empty when there are none; the log tells why none could be read or made.
    """
    if configured:
        return configured
    path = instance / KEY_FILE
    try:
        if make and not path.exists():
            key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
            # Of several processes that begin at once all take the key of the first.
            create_file(path, f"1:{key}\n".encode("ascii"), mode=modes.PRIVATE_FILE)
        return read_keys(path)
    except (OSError, ValueError) as error:
        if make or not isinstance(error, FileNotFoundError):
            reason = getattr(error, "strerror", None) or error
            _LOG.warning(
                "no URL can be signed and no session begun: %s: %s. Set SDG_SECRET_KEYS, or fix that file.",
                path,
                reason,
            )
        return MappingProxyType({})


def read_keys(path: Path) -> Mapping[str, bytes]:
    """The keys in a file, at least one.

    :raises OSError: it can't be read.
    :raises ValueError: it holds something else; the text does not show it.
    """
    keys = secret_keys(path.read_text("ascii").strip())
    if not keys:
        raise ValueError("it is empty")
    return keys


class Signing:
    """Signs and judges with these keys, by their names: the last one signs, all are known."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._kid = next(reversed(list(keys)), "")
        self._signers = {
            (kind, kid): _signer(key, salt)
            for kind, salt in ((SignedPicture, "picture"), (SignedStream, "events"))
            for kid, key in keys.items()
        }
        self._sessions = URLSafeTimedSerializer(
            list(keys.values()) or [secrets.token_bytes(_KEY_BYTES)],
            salt="session",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def sign(self, signed: SignedPicture | SignedStream, seconds: int) -> Signature:
        """Sign a URL that is valid for so many seconds, that of a picture for up to a quarter more.

        The end of a picture's URL is rounded up to a quarter of its lifetime, so that pages that are written one after the other
        hold the same URL, and caches find it.

        :raises NoSigningKey: there is no key.
        """
        self.check_key()
        end = int(time.time()) + seconds
        if isinstance(signed, SignedPicture):
            quarter = seconds // 4
            end = -(-end // quarter) * quarter
        return Signature(end, self._kid, self._signature(signed, end, self._kid))

    def check_key(self) -> None:
        """Look whether there is a key to sign with.

        :raises NoSigningKey: there is none.
        """
        if not self._kid:
            raise NoSigningKey

    def check(self, signed: SignedPicture | SignedStream, exp: str, kid: str, sig: str) -> int:
        """The end of a signed URL, seconds since 1970.

        :param exp, kid, sig: as they stand in the query.
        :raises BadSignature: it is not what was signed.
        :raises UrlExpired: it was, and its time is up.
        """
        signer = self._signers.get((type(signed), kid))
        if signer is None or not (exp.isascii() and exp.isdecimal()) or len(exp) > _DIGITS or not sig.isascii():
            raise BadSignature
        # As text, and not as the bytes that it stands for: a signature has one spelling, so that a URL has one.
        if not hmac.compare_digest(signer.get_signature(_value(signed, exp, kid)).decode(), sig):
            raise BadSignature
        if int(exp) <= time.time():
            raise UrlExpired
        return int(exp)

    def _signature(self, signed: SignedPicture | SignedStream, exp: int, kid: str) -> str:
        return self._signers[type(signed), kid].get_signature(_value(signed, str(exp), kid)).decode()

    def session(self, token_id: str) -> str:
        """The cookie of a session with the token of this id.

        :raises NoSigningKey: there is no key.
        """
        self.check_key()
        return str(self._sessions.dumps(token_id))

    def token_of(self, cookie: str) -> tuple[str, float] | None:
        """The id of a session's token, and the :func:`time.time` at which the session ends.

        :returns: None if the cookie is none of ours, or older than :data:`SESSION_SECONDS`.
        """
        try:
            token_id, signed_at = self._sessions.loads(cookie, max_age=SESSION_SECONDS, return_timestamp=True)
        except BadData:
            return None
        return (token_id, signed_at.timestamp() + SESSION_SECONDS) if isinstance(token_id, str) else None


def _signer(key: bytes, salt: str) -> Signer:
    """A signer whose key is derived from this one and the salt: here and once, not at each signature."""
    derived = Signer(key, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256).derive_key()
    return Signer(derived, key_derivation="none", digest_method=hashlib.sha256)


def _value(signed: Sequence[str | None], exp: str, kid: str) -> bytes:
    """What is signed: as JSON, in which no part can be taken for the end of another."""
    return dumps([*signed, exp, kid])
