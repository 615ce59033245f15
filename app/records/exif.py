"""The orientation that EXIF gives to a picture (EXIF 2.32; its structure is that of TIFF 6.0, section 2)."""

from __future__ import annotations

import struct
from typing import Final

#: JPEG puts this before EXIF; some writers of PNG and WebP do so too.
PREFIX: Final = b"Exif\0\0"
_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION: Final = 0x0112
_SHORT: Final = 3
_VALUES: Final = range(1, 9)


def orientation(exif: bytes | None) -> int:
    """A value from 1 (upright) to 8; 1 too when EXIF is missing, broken or says anything else.

    Like browsers, this takes the first directory's tag only, and only as one SHORT.
    """
    if exif is None:
        return 1
    try:
        return _first_directory(exif.removeprefix(PREFIX))
    except struct.error:
        return 1


def _first_directory(tiff: bytes) -> int:
    order = _ORDERS.get(tiff[:4])
    if order is None:
        return 1
    (place,) = struct.unpack_from(order + "I", tiff, 4)
    (entries,) = struct.unpack_from(order + "H", tiff, place)
    for number in range(entries):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, place + 2 + 12 * number)
        if tag == _ORIENTATION:
            return value if (kind, count) == (_SHORT, 1) and value in _VALUES else 1
    return 1
