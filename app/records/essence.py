"""The parts of a client's image that decide what it shows, as the readers of the three formats find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Bytes of an ICC profile. Those of printers with the finest tables have some 3 MB, those of cameras and screens a few kB.
LARGEST_PROFILE: Final = 4 * 2**20


class Broken(ValueError):
    """The image lacks something that a decoder needs, or it is damaged there."""


@dataclass(frozen=True, slots=True)
class Essence:
    """An image without its metadata, and the two pieces of metadata that count: colours and orientation."""

    #: Pixels, as the header gives them.
    width: int
    height: int
    #: A file of the same format that holds only what the pixels need.
    bare: bytes
    #: The ICC profile, not yet judged.
    profile: bytes | None = None
    #: EXIF: a TIFF structure, not yet judged.
    exif: bytes | None = None
    #: The one colour that is transparent, in the samples that the decoder gives; one for grey, three for RGB.
    transparent: tuple[int, ...] | None = None
    #: Whether the pixels are grey, whatever mode the decoder makes of them; only PNG says so.
    grey: bool = False
    #: Whether the decoder would not notice that pixels are missing (:func:`app.records.jpeg.decode_whole` does).
    unproven: bool = False
