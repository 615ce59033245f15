"""Variants of stored images as bytes: scaled down, in another format, without metadata. Nothing here touches a disk."""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from PIL import Image

from app.records.errors import BadImage, DamagedImage, TooLargeForFormat
from app.records.images import decode_stored, encode_png
from app.records.layout import MEDIA_TYPES, Variant

#: Pixels of the longest side that a format can have (RFC 9649, section 2.5; Pillow's JPEG_MAX_DIMENSION).
_LONGEST: Final[Mapping[str, int]] = MappingProxyType({"webp": 16383, "jpg": 65500})
#: Of the encoders that lose something: hardly seen beside the original, at about a tenth of a PNG's bytes.
_QUALITY: Final = 85
#: The picture is first reduced to so many times the size that is wanted, by whole steps, which is much quicker and hardly differs.
_REDUCING_GAP: Final = 2.0


def render(data: bytes, variant: Variant) -> bytes:
    """The bytes of a variant of an image, which is never enlarged. Transparent parts become white where the format has none.

    :param data: the file of the image.
    :raises DamagedImage: the image can't be shown.
    :raises TooLargeForFormat: a side of it is.
    """
    try:
        image = decode_stored(data)
    except BadImage as error:
        raise DamagedImage from error
    if variant.size is not None:
        image = _scaled(image, variant.size)
    return _encoded(image, variant.extension)


def _scaled(image: Image.Image, longest: int) -> Image.Image:
    """The image with a longest side of so many pixels, or as it is if that is shorter."""
    factor = longest / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)


def _encoded(image: Image.Image, extension: str) -> bytes:
    longest = _LONGEST.get(extension)
    if longest is not None and max(image.size) > longest:
        raise TooLargeForFormat(MEDIA_TYPES[extension], longest)
    if extension == "png":
        return encode_png(image)
    if extension == "webp":
        return _saved(image, format="WEBP", quality=_QUALITY)
    return _saved(_on_white(image), format="JPEG", quality=_QUALITY)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    opaque = Image.new("RGB", image.size, "white")
    opaque.paste(image, mask=image.getchannel("A"))
    return opaque


def _saved(image: Image.Image, **how: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, **how)
    return encoded.getvalue()
