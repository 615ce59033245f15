"""Conversion of pixels to sRGB by the ICC profile of their image (ICC.1:2022; PNG section 11.3.2.3; JPEG: annex B.4 of ICC.1).

The rendering intent is perceptual without black point compensation: Chrome takes a profile's A2B0 table first (Skia,
``skcms_ParseWithA2BPriority``), and Firefox does the same by default (``gfx.color_management.rendering_intent`` 0). Profiles of a
matrix and curves, which nearly all photographs have, give the same colours under each intent.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from typing import Final

from PIL import Image, ImageCms

from app.records.essence import LARGEST_PROFILE

_HEADER: Final = 128
#: The colour space that a profile must have for pixels of each mode of Pillow.
_SPACES: Final = {"L": b"GRAY", "I;16": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}
#: Profiles of devices and colour spaces; the other classes (links, abstract, named colours) don't describe pixels.
_CLASSES: Final = (b"scnr", b"mntr", b"prtr", b"spac")
_TAG: Final = struct.Struct(">4sII")
_MOST_TAGS: Final = 100
#: Levels by which a profile may move a colour and still count as sRGB; makers of sRGB profiles round differently.
_SAME: Final = 1
#: Samples of 16 bits, rounded to 8 (PNG specification, section 13.12).
_TO_8_BITS: Final = [(value * 255 + 32767) // 65535 for value in range(2**16)]
_STEPS: Final = range(0, 256, 15)
#: Colours that show whether a profile changes any.
_SAMPLE: Final = Image.frombytes(
    "RGB", (len(_STEPS), len(_STEPS) ** 2), bytes(v for r in _STEPS for g in _STEPS for b in _STEPS for v in (r, g, b))
)
#: All samples of each mode of grey.
_GREYS: Final = {
    "L": Image.frombytes("L", (2**8, 1), bytes(range(2**8))),
    "I;16": Image.frombytes("I;16", (2**8, 2**8), struct.pack(f"<{2**16}H", *range(2**16))),
}
#: What the library raises for a profile that it can't read, or not for these pixels.
_UNUSABLE: Final = (ImageCms.PyCMSError, ValueError, OSError)
_SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The pixels as 8-bit sRGB, RGB or RGBA; the image itself may be changed.

    :param image: of mode L, I;16 (grey of 16 bits), LA, RGB, RGBA or CMYK.
    :param profile: what the pixels mean. Without one, or when it can't be used for these pixels, they count as sRGB.
    """
    if image.mode == "LA":
        grey, alpha = image.split()
        result = to_srgb(grey, profile)
        result.putalpha(alpha)
        return result
    source = _opened(profile, image.mode) if profile is not None else None
    if image.mode in _GREYS:
        return _from_grey(image, source)
    with suppress(*_UNUSABLE):
        if source is not None and (image.mode == "CMYK" or not _changes_nothing(source)):
            return _from_colour(image, source)
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _from_grey(image: Image.Image, source: ImageCms.ImageCmsProfile | None) -> Image.Image:
    """Convert by a table of all greys; the library's own conversion takes straight lines between 33 of them."""
    table = list(range(2**8)) if image.mode == "L" else _TO_8_BITS
    with suppress(*_UNUSABLE):
        if source is not None:
            every = _GREYS[image.mode]
            exact = _transform(source, image.mode, "RGB", ImageCms.Flags.NOOPTIMIZE)
            table = list(exact.apply(every).getchannel("G").tobytes())
    wide = image if image.mode == "L" else image.convert("I")
    return wide.point(table, "L").convert("RGB")


def _from_colour(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    # RGB and RGBA are converted where they lie; a second picture of 16 million pixels would take 64 MB.
    result = Image.new("RGB", image.size) if image.mode == "CMYK" else image
    return _transform(source, image.mode, result.mode).apply(image, result)


def _changes_nothing(source: ImageCms.ImageCmsProfile) -> bool:
    """Whether the profile is one of the many that stand for sRGB itself."""
    seen = _transform(source, "RGB", "RGB").apply(_SAMPLE)
    return all(abs(before - after) <= _SAME for before, after in zip(_SAMPLE.tobytes(), seen.tobytes(), strict=True))


def _transform(
    source: ImageCms.ImageCmsProfile, mode: str, result: str, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> ImageCms.ImageCmsTransform:
    return ImageCms.ImageCmsTransform(source, _SRGB, mode, result, ImageCms.Intent.PERCEPTUAL, flags=flags)


def _opened(profile: bytes, mode: str) -> ImageCms.ImageCmsProfile | None:
    usable = _usable(profile, mode)
    with suppress(*_UNUSABLE):
        return ImageCms.ImageCmsProfile(io.BytesIO(usable)) if usable is not None else None
    return None


def _usable(profile: bytes, mode: str) -> bytes | None:
    """The profile as the library is to see it, or None if it doesn't describe pixels of this mode."""
    if not _HEADER + 4 <= len(profile) <= LARGEST_PROFILE or profile[36:40] != b"acsp":
        return None
    if profile[12:16] not in _CLASSES or profile[16:20] != _SPACES[mode]:
        return None
    return _without_float_tables(profile)


def _without_float_tables(profile: bytes) -> bytes | None:
    """Hide the D2Bx tags, which browsers ignore too: a small one can hold so many steps that a transform takes minutes."""
    (count,) = struct.unpack_from(">I", profile, _HEADER)
    if count > _MOST_TAGS or _HEADER + 4 + count * _TAG.size > len(profile):
        return None
    places = [_HEADER + 4 + number * _TAG.size for number in range(count)]
    hidden = [place for place in places if profile[place : place + 3] == b"D2B"]
    if not hidden:
        return profile
    changed = bytearray(profile)
    for place in hidden:
        changed[place : place + 4] = b"\0\0\0\0"
    return bytes(changed)
