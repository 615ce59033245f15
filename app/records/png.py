"""The parts of a PNG that are needed to show it, read without decoding it (PNG specification, third edition, sections 5 and 11).

Only critical chunks count, and tRNS, which holds the transparency; for a client's image also iCCP (colours) and eXIf (orientation).
Text, times and animation are no reason to throw a picture away, however broken or large they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Final

from app.records.essence import LARGEST_PROFILE, Broken, Essence

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER: Final = struct.Struct(">IIBBBBB")
_LENGTH_AND_TYPE: Final = struct.Struct(">I4s")
_CRC: Final = struct.Struct(">I")
#: Bits per sample that each colour type allows (section 11.2.1).
_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_GREY: Final = 0
_RGB: Final = 2
_PALETTE: Final = 3
_GREY_ALPHA: Final = 4
_DEEP: Final = 16
#: Samples of a pixel by colour type.
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: The passes of an interlaced picture (section 8.1): first column and row, and the steps to the next.
_ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
#: Bytes that are unpacked at a time.
_AT_ONCE: Final = 2**20
#: The bit of a chunk's first letter that says whether it may be left out (section 5.4).
_ANCILLARY: Final = 0x20
#: The critical chunks that there are (section 11.2); a decoder must not show a picture with others.
_CRITICAL: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_END: Final = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
#: Encoders write 8 kB or more into a chunk; a million of empty ones would only keep the interpreter busy.
_MOST_CHUNKS: Final = 100_000
#: Bytes of a profile's name, of the zero behind it and of the method.
_LONGEST_NAME: Final = 79 + 2


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    #: The chunk's place in the file, its length and checksum included.
    place: slice
    body: memoryview
    crc: int

    @property
    def critical(self) -> bool:
        return not self.kind[0] & _ANCILLARY

    def intact(self) -> bool:
        return zlib.crc32(self.body, zlib.crc32(self.kind)) == self.crc


@dataclass(frozen=True, slots=True)
class _Header:
    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG whose critical chunks are whole; what stands behind its end does not count.

    :raises Broken: a chunk is missing, truncated or damaged.
    """
    header, pixels = None, False
    for chunk in _chunks(data):
        if (chunk.critical or chunk.kind == b"tRNS") and not chunk.intact():
            raise Broken("a damaged chunk")
        if header is None:
            header = _read_header(chunk)
        pixels = pixels or chunk.kind == b"IDAT"
    if header is None or not pixels:
        raise Broken("no pixels")
    return header.width, header.height


def read(data: bytes) -> Essence:
    """The essence of a PNG, or of the default image of an animated one; what stands behind its end does not count.

    Chunks that are repeated or stand where they may not are ignored, as libpng does, which browsers decode with. A file may end
    behind its pixels: IEND, and what stands before it, holds nothing of the picture.

    :raises Broken: a chunk is missing, or pixels are; or a critical chunk, tRNS or iCCP is damaged.
    """
    chunks = _checked(data)
    header = _read_header(chunks[0])
    first = next((place for place, chunk in enumerate(chunks) if chunk.kind == b"IDAT"), None)
    if first is None:
        raise Broken("no pixels")
    # The first of each kind counts, so it is put in last.
    before = {chunk.kind: chunk for chunk in reversed(chunks[:first])}
    colours = _palette(chunks[:first]) if header.colour == _PALETTE else []
    kept = [chunks[0].place, *(chunk.place for chunk in colours), _run(chunks, first)]
    exif = next((bytes(chunk.body) for chunk in chunks if chunk.kind == b"eXIf" and chunk.intact()), None)
    bare = b"".join((SIGNATURE, *(data[place] for place in kept), _END))
    if chunks[-1].kind != b"IEND":
        prove_rows(bare)
    return Essence(
        header.width,
        header.height,
        bare,
        profile=_unpacked(before[b"iCCP"].body) if b"iCCP" in before else None,
        exif=exif,
        transparent=_transparent(header, before[b"tRNS"].body) if b"tRNS" in before else None,
        grey=header.colour in (_GREY, _GREY_ALPHA),
    )


def prove_rows(bare: bytes) -> None:
    """Prove that the pixels of what :func:`read` found are all there; a decoder that gets too few rows leaves the others empty.

    :raises Broken: if any is missing.
    """
    chunks = list(_chunks(bare))
    missing = _bytes_of_rows(_read_header(chunks[0]))
    unpacker = zlib.decompressobj()
    for chunk in chunks:
        packed: bytes | memoryview = chunk.body if chunk.kind == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(unpacker.decompress(packed, _AT_ONCE))
            packed = unpacker.unconsumed_tail
    if missing > 0:
        raise Broken("rows are missing")


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """All chunks up to IEND, which is always the last."""
    if not data.startswith(SIGNATURE):
        raise Broken("no PNG")
    whole, place, kind = memoryview(data), len(SIGNATURE), b""
    while kind != b"IEND":
        try:
            length, kind = _LENGTH_AND_TYPE.unpack_from(data, place)
            start = place + _LENGTH_AND_TYPE.size
            (crc,) = _CRC.unpack_from(data, start + length)
        except struct.error as error:
            raise Broken("a truncated chunk") from error
        end = start + length + _CRC.size
        yield _Chunk(kind, slice(place, end), whole[start : start + length], crc)
        place = end


def _checked(data: bytes) -> list[_Chunk]:
    """All chunks of a client's image, those proven that must be whole."""
    chunks = _found(data)
    if len(chunks) > _MOST_CHUNKS:
        raise Broken("too many chunks")
    # The checksum of IEND is of nothing.
    for chunk in (chunk for chunk in chunks if chunk.kind != b"IEND"):
        if not chunk.kind.isalpha() or (chunk.critical and chunk.kind not in _CRITICAL):
            raise Broken("a chunk of an unknown kind that may not be left out")
        if (chunk.critical or chunk.kind in (b"tRNS", b"iCCP")) and not chunk.intact():
            raise Broken("a damaged chunk")
    return chunks


def _found(data: bytes) -> list[_Chunk]:
    """The chunks of a client's image, at most one more than may be; behind pixels they may be cut off."""
    chunks: list[_Chunk] = []
    pixels = False
    try:
        for chunk in islice(_chunks(data), _MOST_CHUNKS + 1):
            if pixels and not chunk.kind.isalpha():
                break
            chunks.append(chunk)
            pixels = pixels or chunk.kind == b"IDAT"
    except Broken:
        if not pixels:
            raise
    return chunks


def _read_header(chunk: _Chunk) -> _Header:
    if chunk.kind != b"IHDR" or len(chunk.body) != _HEADER.size:
        raise Broken("no header")
    width, height, depth, colour, compression, filtering, interlacing = _HEADER.unpack(chunk.body)
    if not (width and height) or depth not in _DEPTHS.get(colour, ()):
        raise Broken("an impossible header")
    if compression or filtering or interlacing > 1:
        raise Broken("an unknown method")
    return _Header(width, height, depth, colour, bool(interlacing))


def _bytes_of_rows(header: _Header) -> int:
    """The bytes of all rows, each with its filter's byte (sections 7 and 8)."""
    bits = header.depth * _CHANNELS[header.colour]
    passes = _ADAM7 if header.interlaced else ((0, 0, 1, 1),)
    sizes = (
        (ceil((header.width - left) / across), ceil((header.height - top) / down)) for left, top, across, down in passes
    )
    return sum(height * (1 + ceil(width * bits / 8)) for width, height in sizes if width > 0 and height > 0)


def _run(chunks: list[_Chunk], first: int) -> slice:
    """The place of the IDAT chunks that follow each other without another between them, as all must (section 5.6)."""
    last = first
    while last + 1 < len(chunks) and chunks[last + 1].kind == b"IDAT":
        last += 1
    return slice(chunks[first].place.start, chunks[last].place.stop)


def _palette(chunks: list[_Chunk]) -> list[_Chunk]:
    """The palette, and the first tRNS behind it unless that has more values than there are colours."""
    place = next((place for place, chunk in enumerate(chunks) if chunk.kind == b"PLTE"), None)
    size = len(chunks[place].body) if place is not None else 0
    if place is None or not size or size % 3 or size > 3 * 256:
        raise Broken("no palette")
    alpha = [chunk for chunk in chunks[place:] if chunk.kind == b"tRNS"][:1]
    return [chunks[place], *(chunk for chunk in alpha if 0 < len(chunk.body) <= size // 3)]


def _transparent(header: _Header, body: memoryview) -> tuple[int, ...] | None:
    """The transparent colour (section 11.3.1.1) in the decoder's samples: 8 bits, but 16 for grey of 16 bits.

    The decoder drops the low bytes of 16-bit RGB, so that only the high bytes can be compared.
    """
    samples = {_GREY: 1, _RGB: 3}.get(header.colour)
    if samples is None or len(body) != 2 * samples:
        return None
    values = struct.unpack(f">{samples}H", body)
    if header.depth == _DEEP:
        return values if header.colour == _GREY else tuple(value >> 8 for value in values)
    largest = 2**header.depth - 1
    return tuple((value & largest) * 255 // largest for value in values)


def _unpacked(body: memoryview) -> bytes | None:
    """The profile of an iCCP chunk (section 11.3.2.3); None when it is broken or too large to count."""
    name, _, rest = bytes(body[:_LONGEST_NAME]).partition(b"\0")
    # The byte behind the name is the method of compression, of which there is one.
    if not rest.startswith(b"\0"):
        return None
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(body[len(name) + 2 :], LARGEST_PROFILE)
    except zlib.error:
        return None
    return profile if unpacker.eof else None
