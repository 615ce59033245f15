"""What a PNG must have to be shown, read without decoding it (PNG specification, third edition, sections 5 and 11).

Only critical chunks count, and tRNS, which holds the transparency: text, profiles and times are no reason to throw a picture away,
however broken or large they are.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER: Final = struct.Struct(">IIBBBBB")
_LENGTH_AND_TYPE: Final = struct.Struct(">I4s")
_CRC: Final = struct.Struct(">I")
#: Bits per sample that each colour type allows (section 11.2.1).
_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: The bit of a chunk's first letter that says whether it may be left out (section 5.4).
_ANCILLARY: Final = 0x20


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG whose critical chunks are whole; what stands behind its end does not count.

    :raises ValueError: a chunk is missing, truncated or damaged.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("no PNG")
    place, size, seen = len(SIGNATURE), (0, 0), set[bytes]()
    while b"IEND" not in seen:
        kind, body, place = _chunk(data, place)
        if not seen:
            size = _read_header(kind, body)
        seen.add(kind)
    if b"IDAT" not in seen:
        raise ValueError("no pixels")
    return size


def _chunk(data: bytes, place: int) -> tuple[bytes, memoryview, int]:
    """The type and body of the chunk at a place, and where the next one begins."""
    try:
        length, kind = _LENGTH_AND_TYPE.unpack_from(data, place)
        start = place + _LENGTH_AND_TYPE.size
        (crc,) = _CRC.unpack_from(data, start + length)
    except struct.error as error:
        raise ValueError("a truncated chunk") from error
    body = memoryview(data)[start : start + length]
    if (not kind[0] & _ANCILLARY or kind == b"tRNS") and zlib.crc32(body, zlib.crc32(kind)) != crc:
        raise ValueError("a damaged chunk")
    return kind, body, start + length + _CRC.size


def _read_header(kind: bytes, body: memoryview) -> tuple[int, int]:
    if kind != b"IHDR" or len(body) != _HEADER.size:
        raise ValueError("no header")
    width, height, depth, colour, compression, filtering, interlacing = _HEADER.unpack(body)
    if not (width and height) or depth not in _DEPTHS.get(colour, ()):
        raise ValueError("an impossible header")
    if compression or filtering or interlacing > 1:
        raise ValueError("an unknown method")
    return width, height
