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
_SAMPLES: Final = {
    "L": Image.frombytes("L", (256, 1), bytes(range(256))),
    "RGB": Image.frombytes(
        "RGB",
        (len(_STEPS), len(_STEPS) ** 2),
        bytes(v for r in _STEPS for g in _STEPS for b in _STEPS for v in (r, g, b)),
    ),
}
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
    converted = None
    with suppress(ImageCms.PyCMSError, ValueError, OSError, TypeError):
        converted = _convert(image, profile) if profile is not None else None
    if converted is not None:
        return converted
    if image.mode == "I;16":
        # A plain conversion would clip at 255.
        image = image.convert("I").point(_TO_8_BITS, "L")
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _convert(image: Image.Image, profile: bytes) -> Image.Image | None:
    """None where the profile can't be used or changes nothing."""
    usable = _usable(profile, image.mode)
    if usable is None:
        return None
    source = ImageCms.ImageCmsProfile(io.BytesIO(usable))
    if image.mode != "CMYK" and _changes_nothing(source, "RGB" if image.mode.startswith("RGB") else "L"):
        return None
    alpha = image.mode == "RGBA"
    transform = _transform(source, image.mode, "RGBA" if alpha else "RGB")
    # RGB and RGBA are converted where they lie; a second picture of 16 million pixels would take 64 MB.
    result = image if image.mode in ("RGB", "RGBA") else Image.new("RGB", image.size)
    transform.transform.apply(image.getim(), result.getim())
    return result


def _transform(source: ImageCms.ImageCmsProfile, mode: str, result: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.ImageCmsTransform(source, _SRGB, mode, result, ImageCms.Intent.PERCEPTUAL)


def _changes_nothing(source: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Whether the profile is one of the many that stand for sRGB itself, or for grey with its curve."""
    sample = _SAMPLES[mode]
    seen = Image.new("RGB", sample.size)
    _transform(source, mode, "RGB").transform.apply(sample.getim(), seen.getim())
    return all(
        abs(before - after) <= _SAME
        for before, after in zip(sample.convert("RGB").tobytes(), seen.tobytes(), strict=True)
    )


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
