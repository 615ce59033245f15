"""The opaque cursor of the paged lists: the sequence number of the last job shown, with a checksum against guesses.

It survives deletions because it names a place in the order and not a job.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

_VERSION = b"\x01"
_BYTES = 8
_CHECKSUM = 3
#: The highest number that a row can have.
_HIGHEST = 2**63 - 1


def encode(sequence: int) -> str:
    """The cursor that stands for everything before ``sequence``, 16 URL-safe characters."""
    payload = _VERSION + sequence.to_bytes(_BYTES, "big")
    return base64.urlsafe_b64encode(payload + _checksum(payload)).decode("ascii")


def decode(cursor: str) -> int:
    """The sequence of a cursor.

    :raises ValueError: :func:`encode` never gave it.
    """
    try:
        raw = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError("not a cursor") from error
    sequence = int.from_bytes(raw[1 : 1 + _BYTES], "big")
    # Comparing with the one true spelling judges version, length, checksum and unused bits together.
    if sequence > _HIGHEST or encode(sequence) != cursor:
        raise ValueError("not a cursor")
    return sequence


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(b"sd-gateway cursor" + payload).digest()[:_CHECKSUM]
