"""Everything that looks inside an image: what the WebUI sent, and the reference images that clients send.

Clients' bytes are hostile until proven otherwise: the format is told by its first bytes, the size is read from the header before
anything is decoded, and only the three decoders that are needed can ever run.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import pybase64
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.records import jpeg, png, webp
from app.records.colour import to_srgb
from app.records.errors import BadImage
from app.records.essence import Essence
from app.records.exif import orientation
from app.records.layout import MEDIA_TYPES

#: No picture of a WebUI is larger; a header that says so is broken, and decoding it would only eat memory.
RESULT_PIXELS = 2**27
#: zlib's level for reference images and variants: above it pictures shrink by a few percent, and time doubles.
_COMPRESS_LEVEL = 2
#: Pixels that are digested at a time.
_STRIP: Final = 2**18
_WHITESPACE = b" \t\n\r\f\v"

_BROKEN = "The image is broken or truncated."
_FOREIGN = "The image is neither PNG, JPEG nor WebP."

# Orientation values of EXIF 2.32 (tag 0x0112): what to do with the stored pixels to see them upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Sniffed:
    """The format of an image: its extension (``png``, ``jpg`` or ``webp``), media type and size in pixels."""

    extension: str
    media_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference image ready to be kept and sent: an upright PNG, RGB or RGBA, without metadata; size in pixels."""

    png: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Format:
    extension: str
    media_type: str
    # The decoder's own class rather than Image.open: that one would hand a JPEG on to other plugins (MPO), and its warning
    # about large images cannot be silenced for one thread alone. Our own bound stands in for it.
    reader: Callable[[io.BytesIO], ImageFile]
    # Finds in a client's file what decides about the picture.
    read: Callable[[bytes], Essence]


_PNG = _Format("png", MEDIA_TYPES["png"], PngImageFile, png.read)
_JPEG = _Format("jpg", MEDIA_TYPES["jpg"], JpegImageFile, jpeg.read)
_WEBP = _Format("webp", MEDIA_TYPES["webp"], WebPImageFile, webp.read)


def sniff(data: bytes, max_pixels: int = RESULT_PIXELS) -> Sniffed:
    """Tell what an image is, and prove that it is whole.

    A PNG is proven by its checksums, which costs no decoding; JPEG and WebP have none and are decoded.

    :raises BadImage: when it is none of the three formats, broken, truncated, or of more than ``max_pixels``.
    """
    form = _format(data)
    with _one_verdict():
        size = _png_size(data, max_pixels) if form is _PNG else _decoded_size(form, data, max_pixels)
    return Sniffed(form.extension, form.media_type, *size)


def _png_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    size = png.size_of(data)
    _bound(size, max_pixels)
    return size


def _decoded_size(form: _Format, data: bytes, max_pixels: int) -> tuple[int, int]:
    image = _open(form, data, max_pixels)
    image.load()
    return image.size


def decode_stored(data: bytes) -> Image.Image:
    """An image of the data folder as a viewer shows it: upright, in sRGB, 8-bit RGB or RGBA, without metadata.

    That it is whole was proven before it was stored. A PNG is proven by its checksums once more; of a JPEG pixels may be missing.

    :raises BadImage: it is none of the three formats, or broken, or its header says more than :data:`RESULT_PIXELS`.
    """
    form = _format(data)
    with _one_verdict():
        essence = form.read(data)
        _bound((essence.width, essence.height), RESULT_PIXELS)
        return _visible(form, replace(essence, unproven=False))


class ReferenceReader:
    """Turns clients' bytes into reference images.

    ``max_pixels`` bounds width × height, and ``max_side`` each of the two: a picture of one row is decoded and filtered far slower
    than a square of as many pixels. At most ``at_once`` are decoded at the same time, whatever the number of requests: a
    decoded image takes up to a hundred times the memory of its file.
    """

    def __init__(self, max_pixels: int, max_side: int, at_once: int = 2) -> None:
        self._max_pixels = max_pixels
        self._max_side = max_side
        self._turns = threading.BoundedSemaphore(at_once)

    def read_base64(self, text: str) -> Reference:
        """The same for base64 or a data URI, see :func:`decode_base64_image`.

        :raises BadImage: as :meth:`read` does.
        """
        with self._turns:
            data = decode_base64_image(text)
            # A caller that keeps no reference either has it freed before the pixels take its room.
            del text
            return self._read(data)

    def read(self, data: bytes) -> Reference:
        """Judge, decode, convert to sRGB, turn upright, strip and encode one image; the first frame of an animated one.

        The same bytes always give the same bytes.

        :raises BadImage: when it is not PNG, JPEG or WebP, is broken or truncated, or is too large.
        """
        with self._turns:
            return self._read(data)

    def _read(self, data: bytes) -> Reference:
        form = _format(data)
        with _one_verdict():
            essence = form.read(data)
            self._check_sides(essence)
            image = _visible(form, essence)
        return Reference(encode_png(image), image.width, image.height)

    def _check_sides(self, essence: Essence) -> None:
        """Refuse what is too large before anything is decoded."""
        if max(essence.width, essence.height) > self._max_side:
            raise BadImage(
                f"The image has {essence.width} × {essence.height} pixels; each side may have at most {self._max_side}."
            )
        _bound((essence.width, essence.height), self._max_pixels)


def decode_base64_image(text: str) -> bytes:
    """The bytes of one image given as base64 (RFC 4648 §4, padded; white space is skipped) or as a base64 data URI (RFC 2397).

    :raises BadImage: for a URL, broken base64 or nothing at all. What the bytes hold is not looked at.
    """
    text = text.strip()
    head = text[:64].lower()
    if head.startswith("data:"):
        description, comma, text = text.partition(",")
        if not comma or not description.lower().endswith(";base64"):
            raise BadImage("The data URI of the image is not base64.")
    elif "://" in head:
        raise BadImage("A URL is not accepted; send the image itself as base64.")
    data = _decode_base64(text)
    if not data:
        raise BadImage("The image is empty.")
    return data


def _decode_base64(text: str) -> bytes:
    # Most texts hold no white space, and taking it out copies a large one twice.
    with suppress(ValueError):
        return pybase64.b64decode(text, validate=True)
    try:
        return pybase64.b64decode(text.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are both
        raise BadImage("The image is not valid base64.") from error


@contextmanager
def _one_verdict() -> Iterator[None]:
    """Decoders complain about broken bytes in a dozen exception types: all of them mean a bad image."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage(_BROKEN) from error


def _format(data: bytes) -> _Format:
    """Tell the format by its signature (PNG §5.2, JPEG SOI, RIFF/WEBP container)."""
    if data.startswith(png.SIGNATURE):
        return _PNG
    if data.startswith(b"\xff\xd8\xff"):
        return _JPEG
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _WEBP
    raise BadImage(_FOREIGN)


def _open(form: _Format, data: bytes, max_pixels: int) -> ImageFile:
    """Read the header, refuse what is too large; nothing is decoded yet."""
    if form is _WEBP:
        # Its decoder takes memory for the whole canvas as soon as it is made.
        _bound(webp.size_of(data), max_pixels)
    if form is _JPEG and data.count(b"\xff\xda") > jpeg.MOST_SCANS:
        raise BadImage(_BROKEN)
    image = form.reader(io.BytesIO(data))
    _bound(image.size, max_pixels)
    return image


def _bound(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadImage(f"The image has {width} × {height} pixels, which are more than the {max_pixels} allowed.")


def _visible(form: _Format, essence: Essence) -> Image.Image:
    """The picture as a viewer shows it: upright, in sRGB, 8-bit RGB or RGBA, with no metadata at all."""

    def decode(data: bytes) -> Image.Image:
        image = form.reader(io.BytesIO(data))
        if image.size != (essence.width, essence.height):
            raise BadImage(_BROKEN)
        image.load()
        return image

    image = jpeg.decode_whole(essence.bare, decode, _digest) if essence.unproven else decode(essence.bare)
    if form is _PNG and _ends_empty(image):
        png.prove_rows(essence.bare)
    image = _in_srgb(image, essence)
    method = _UPRIGHT.get(orientation(essence.exif))
    upright = image if method is None else image.transpose(method)
    upright.info = {}
    return upright


def _digest(image: Image.Image) -> bytes:
    """A digest of the pixels, taken strip by strip to need little memory."""
    width, height = image.size
    rows = max(1, _STRIP // width)
    digest = hashlib.sha256()
    for top in range(0, height, rows):
        digest.update(image.crop((0, top, width, min(top + rows, height))).tobytes())
    return digest.digest()


def _ends_empty(image: Image.Image) -> bool:
    """Whether the last rows hold nothing, as the decoder leaves rows that it got no data for."""
    width, height = image.size
    return any(image.crop((0, top, width, top + 1)).getbbox() is None for top in range(max(0, height - 2), height))


def _in_srgb(image: Image.Image, essence: Essence) -> Image.Image:
    """The decoder's samples as 8-bit RGB, or RGBA where anything can be transparent."""
    key = essence.transparent
    if image.mode == "I;16":
        opaque = _opaque(image, *key) if key is not None else None
        grey = to_srgb(image, essence.profile)
        if opaque is not None:
            grey.putalpha(opaque)
        return grey
    if image.mode == "1":
        image = image.convert("L")
    if essence.grey and image.mode == "RGBA":
        # So grey of 16 bits with alpha is decoded; its profile is one for grey.
        image = image.convert("LA")
    if key is not None:
        image.info["transparency"] = key if len(key) > 1 else key[0]
    if image.mode == "P" or image.has_transparency_data:
        alpha = "LA" if image.mode in ("L", "LA") else "RGBA"
        image = image.convert(alpha if image.has_transparency_data else "RGB")
    return to_srgb(image, essence.profile)


def _opaque(image: Image.Image, transparent: int) -> Image.Image:
    """The alpha channel of 16-bit grey: one value is transparent."""
    table = [255] * 2**16
    table[transparent] = 0
    return image.convert("I").point(table, "L")


def encode_png(image: Image.Image) -> bytes:
    """An image as a PNG without metadata."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=_COMPRESS_LEVEL)
    return encoded.getvalue()
