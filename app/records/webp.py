"""The parts of a WebP that are needed to show it: its container, read without decoding it (RFC 9649, section 2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from app.records.essence import Broken, Essence

_CHUNK: Final = struct.Struct("<4sI")
_CONTAINER: Final = 12
#: Flags of a VP8X chunk: what the file has besides one opaque picture. What is not announced is not looked at, as in libwebp.
_PROFILE: Final = 0x20
_ALPHA: Final = 0x10
_EXIF: Final = 0x08
_ANIMATION: Final = 0x02
#: Animations of minutes have some thousand frames.
_MOST_CHUNKS: Final = 100_000


def read(data: bytes) -> Essence:
    """The first frame of a WebP, its profile and its EXIF; what stands behind the container does not count.

    :raises Broken: a chunk is truncated, or there is nothing to show.
    """
    found: dict[bytes, bytes] = {}
    for kind, chunk in _chunks(data):
        # Each kind counts once: of an animation's frames, the first.
        found.setdefault(kind, chunk)
    width, height = size_of(data)
    canvas = found.get(b"VP8X")
    flags = canvas[_CHUNK.size] if canvas is not None else 0
    if canvas is None:
        picture = [found[kind] for kind in (b"VP8 ", b"VP8L") if kind in found][:1]
    elif flags & _ANIMATION:
        picture = [
            _flagged(canvas, _ANIMATION | _ALPHA),
            *(found[kind] for kind in (b"ANIM", b"ANMF") if kind in found),
        ]
    else:
        picture = [_flagged(canvas, _ALPHA), *(found[kind] for kind in (b"ALPH", b"VP8 ", b"VP8L") if kind in found)]
    if not picture:
        raise Broken("no pixels")
    body = b"".join(picture)
    bare = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    profile = _body(found[b"ICCP"]) if flags & _PROFILE and b"ICCP" in found else None
    exif = _body(found[b"EXIF"]) if flags & _EXIF and b"EXIF" in found else None
    return Essence(width, height, bare, profile, exif)


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height in pixels by the first chunk (RFC 9649 for VP8X and VP8L, RFC 6386 section 9.1 for VP8).

    Bytes that are cut off count as zeros here; the decoder refuses such a file later.

    :raises Broken: the first chunk is of another kind.
    """
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise Broken("no pixels")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and bytes (head and padding included) of each chunk of the container."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Broken("truncated")
    place = _CONTAINER
    for _ in range(_MOST_CHUNKS):
        if place + _CHUNK.size > end:
            return
        kind, length = _CHUNK.unpack_from(data, place)
        following = place + _CHUNK.size + length + length % 2
        # Some writers leave the last padding byte out.
        if place + _CHUNK.size + length > end:
            raise Broken("a truncated chunk")
        yield kind, data[place:following].ljust(following - place, b"\0")
        place = following
    raise Broken("too many chunks")


def _flagged(canvas: bytes, kept: int) -> bytes:
    """The VP8X chunk with only these of its flags, so that it announces no metadata."""
    place = _CHUNK.size
    return canvas[:place] + bytes([canvas[place] & kept]) + canvas[place + 1 :]


def _body(chunk: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", chunk, 4)
    return chunk[_CHUNK.size : _CHUNK.size + length]
