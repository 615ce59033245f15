"""The parts of a JPEG that are needed to show it, read without decoding it (ITU-T T.81, annex B).

:func:`decode_whole` relies on libjpeg besides.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import Final, TypeVar

from app.records.essence import Broken, Essence
from app.records.exif import PREFIX as EXIF

#: Each scan of a progressive JPEG is one pass over all its pixels, so that a small file can keep a decoder busy for hours. Real
#: ones have about ten; with 200 the worst takes as long as the costliest honest image.
MOST_SCANS: Final = 200
#: Pixels of all scans together, of which a decoder does a thousand million in a second and a half. So an image of up to 5 million
#: pixels may have :data:`MOST_SCANS`, and one of 16 million or more 64.
_MOST_WORK: Final = 2**30
_LARGE: Final = 2**24
#: A large profile or depth map takes some hundred segments; a million of empty ones would only keep the interpreter busy.
_MOST_SEGMENTS: Final = 5_000

_SOI, _EOI, _SOS, _DRI, _APP0, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE
#: Bytes of a segment's length.
_LENGTH: Final = 2
_RESTARTS: Final = range(0xD0, 0xD8)
_ALONE: Final = (0x01, *_RESTARTS)
#: Start of frame (table B.1): Huffman or arithmetic coding, sequential, progressive or lossless.
_FRAMES: Final = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB)
_PROGRESSIVE: Final = (0xC2, 0xCA)
_LOSSLESS: Final = (0xC3, 0xCB)
_ARITHMETIC: Final = (0xC9, 0xCA, 0xCB)
#: Tables: DHT, DAC, DQT, DRI.
_TABLES: Final = (0xC4, 0xCC, 0xDB, _DRI)
#: These say how the samples become colours.
_COLOURS: Final = {_APP0: b"JFIF\0", _APP14: b"Adobe"}
_PROFILE: Final = b"ICC_PROFILE\0"

# Any number of FF may stand before a marker. They are not part of the patterns: with "+" a search through a long run of them would
# begin anew at each one.
_MARKER: Final = re.compile(rb"\xff([^\0\xff])", re.DOTALL)
_RESTART: Final = re.compile(rb"\xff[\xd0-\xd7]")
_END_OF_SCAN: Final = re.compile(rb"\xff[^\0\xff\xd0-\xd7]", re.DOTALL)
#: Coefficients of a block of 8×8 samples.
_BLOCK: Final = 64
#: Noise without a marker. Behind the data of a whole scan libjpeg skips it; where data is missing it takes it for pixels, whereas
#: it fills up with grey when the end follows at once. So a picture is whole exactly when both files decode to the same pixels.
#: Where data ends libjpeg goes on with zero bits, so the noise begins with ones.
_NOISE: Final = b"\xc8" + hashlib.sha512(b"noise").digest().replace(b"\xff", b"\x5a")
_END: Final = b"\xff\xd9"
#: More zeros than this at the end of a scan may be the filling of a download that broke off.
_FEW_ZEROS: Final = 16
_Picture = TypeVar("_Picture")


@dataclass(slots=True)
class _Frame:
    """A start of frame, and what the scans have delivered of it."""

    kind: int
    width: int
    height: int
    #: Horizontal and vertical sampling factors by component.
    sampling: dict[int, tuple[int, int]]
    #: By component, how many low bits of each coefficient are still missing; None: all.
    missing: dict[int, list[int | None]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether all scans that the picture needs have come."""
        return all(self.missing.get(name, [None]) == [0] * _BLOCK for name in self.sampling)

    def deliver(self, names: list[int], first: int, last: int, missing: int) -> None:
        if self.kind not in _PROGRESSIVE:
            first, last, missing = 0, _BLOCK - 1, 0
        for name in names:
            known = self.missing.setdefault(name, [None] * _BLOCK)
            known[first : last + 1] = [missing] * (last + 1 - first)

    def units(self, names: list[int]) -> int:
        """The number of minimum coded units in a scan (sections A.2.2 to A.2.4)."""
        across = max(factors[0] for factors in self.sampling.values())
        down = max(factors[1] for factors in self.sampling.values())
        if len(names) > 1:
            return ceil(self.width / (8 * across)) * ceil(self.height / (8 * down))
        own_across, own_down = self.sampling[names[0]]
        return ceil(ceil(self.width * own_across / across) / 8) * ceil(ceil(self.height * own_down / down) / 8)


@dataclass(slots=True)
class _Scan:
    """A scan's component names and its data."""

    names: list[int]
    data: bytes
    #: Units between two restart markers; 0: there are none.
    interval: int


def read(data: bytes) -> Essence:
    """The essence of the first picture in a file; what stands behind its end marker, or behind its pixels, does not count.

    :raises Broken: a segment or a scan is missing or truncated, or there are too many of them. Pixels that are missing within the
        last scan are left to :func:`decode_whole`.
    """
    return _Reader(data).read()


def decode_whole(bare: bytes, decode: Callable[[bytes], _Picture], digest: Callable[[_Picture], bytes]) -> _Picture:
    """Decode what :func:`read` found, and prove that no pixel of its last scan is missing.

    Only one decoded picture is held at a time.

    :param digest: tells pictures with different pixels apart.
    :raises Broken: if any is missing, whatever was put in its place.
    """

    def with_noise(end: int) -> bytes:
        return digest(decode(bare[:end] + _NOISE + _END))

    def whole(end: int) -> bool:
        return with_noise(end) == digest(decode(bare[:end] + _END))

    end = len(bare) - len(_END)
    expected = with_noise(end)
    filled_from = len(bare[:end].rstrip(b"\0")) + 2
    # A one-coloured bottom can be coded in nothing but zeros; but then all of them are needed.
    if end - filled_from > _FEW_ZEROS and not whole(filled_from) and whole(end - _FEW_ZEROS // 2):
        raise Broken("pixels are missing, and zeros stand in their place")
    picture = decode(bare)
    if digest(picture) != expected:
        raise Broken("pixels are missing")
    return picture


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 2
        self._kept = [data[:2]]
        self._frame: _Frame | None = None
        self._scan: _Scan | None = None
        self._scans = 0
        self._interval = 0
        self._exif: bytes | None = None
        self._profile: list[bytes] = []

    def read(self) -> Essence:
        ended = self._read_segments()
        frame, scan = self._frame, self._scan
        if frame is None or scan is None or not frame.whole:
            raise Broken("scans are missing")
        arithmetic = frame.kind in _ARITHMETIC
        # An arithmetic coder leaves zeros out at the end of a scan (section D.1.8), so nothing tells whether that one is whole.
        if arithmetic and not ended:
            raise Broken("no end")
        if not arithmetic:
            _check_restarts(frame, scan)
        return Essence(
            frame.width,
            frame.height,
            b"".join((*self._kept, _END)),
            profile=_joined(self._profile),
            exif=self._exif,
            unproven=not arithmetic,
        )

    def _read_segments(self) -> bool:
        """Read up to the picture's end; whether there is an end marker."""
        for _ in range(_MOST_SEGMENTS):
            found = _MARKER.search(self._data, self._place)
            if found is None:
                return False
            marker, self._place = found[1][0], found.end()
            if marker in (_SOI, _EOI):
                return marker == _EOI
            if marker in _ALONE:
                continue
            body = self._body()
            if body is None:
                return False
            self._read_segment(marker, body)
        raise Broken("too many segments")

    def _body(self) -> bytes | None:
        """The segment's bytes behind its length, or None if it is cut off: then the picture ends here."""
        length = int.from_bytes(self._data[self._place : self._place + _LENGTH])
        end = self._place + length
        if length < _LENGTH or end > len(self._data):
            return None
        body = self._data[self._place + _LENGTH : end]
        self._place = end
        return body

    def _read_segment(self, marker: int, body: bytes) -> None:
        if marker in _FRAMES:
            self._frame = _read_frame(marker, body)
        if marker in _FRAMES or marker in _TABLES or (marker in _COLOURS and body.startswith(_COLOURS[marker])):
            self._keep(marker, body)
        if marker == _DRI:
            self._interval = int.from_bytes(body)
        elif marker == _APP1 and body.startswith(EXIF) and self._exif is None:
            self._exif = body
        elif marker == _APP2 and body.startswith(_PROFILE):
            self._profile.append(body[len(_PROFILE) :])
        elif marker == _SOS:
            self._read_scan(body)

    def _keep(self, marker: int, body: bytes) -> None:
        self._kept.append(struct.pack(">BBH", 0xFF, marker, len(body) + _LENGTH) + body)

    def _read_scan(self, body: bytes) -> None:
        self._scans += 1
        if self._frame is None or len(body) < 2 * body[0] + 4:
            raise Broken("a scan out of place")
        pixels = min(self._frame.width * self._frame.height, _LARGE)
        if self._scans > MOST_SCANS or self._scans * pixels > _MOST_WORK:
            raise Broken("too many scans")
        names = list(body[1 : 1 + 2 * body[0] : 2])
        first, last, bits = body[1 + 2 * body[0] :][:3]
        self._frame.deliver(names, first, min(last, _BLOCK - 1), bits & 0x0F)
        end = _END_OF_SCAN.search(self._data, self._place)
        stop = end.start() if end is not None else len(self._data)
        data = self._data[self._place : stop]
        if not self._interval:
            # libjpeg reads no further than to a restart marker that none was announced for, and fills up the rest with grey.
            data = _RESTART.split(data, maxsplit=1)[0]
        # A marker may be preceded by any number of FF; data can't end in one.
        self._scan = _Scan(names, data.rstrip(b"\xff"), self._interval)
        self._place = stop
        self._keep(_SOS, body)
        self._kept.append(self._scan.data)


def _read_frame(kind: int, body: bytes) -> _Frame:
    _, height, width, count = struct.unpack_from(">BHHB", body)
    sampling = {body[place]: (body[place + 1] >> 4, body[place + 1] & 0x0F) for place in range(6, 6 + 3 * count, 3)}
    if not (height and width and sampling) or not all(across and down for across, down in sampling.values()):
        raise Broken("an impossible frame")
    return _Frame(kind, width, height, sampling)


def _check_restarts(frame: _Frame, scan: _Scan) -> None:
    """A scan with restart intervals must have all of them; noise would not show that whole ones are missing."""
    if not scan.interval or frame.kind in _LOSSLESS:
        return
    found = sum(scan.data.count(bytes((0xFF, marker))) for marker in _RESTARTS)
    if found < ceil(frame.units(scan.names) / scan.interval) - 1:
        raise Broken("restart intervals are missing")


def _joined(pieces: Iterable[bytes]) -> bytes | None:
    """The profile from its numbered pieces (ICC.1, annex B.4), or None unless each is there exactly once."""
    ordered = sorted(piece for piece in pieces if piece[2:])
    numbers = [(piece[0], piece[1]) for piece in ordered]
    if not ordered or numbers != [(number, len(ordered)) for number in range(1, len(ordered) + 1)]:
        return None
    return b"".join(piece[2:] for piece in ordered)
