"""The pictures of a simulator: seeded colour clouds that say that they are simulated, and their text chunks.

A picture is a pure function of a key, a string that holds everything it depends on. Sizes are pixels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import struct
import threading
import zlib
from dataclasses import dataclass, field

import pybase64
from PIL import (
    ExifTags,
    Image,
    ImageChops,
    ImageColor,
    ImageDraw,
    ImageFont,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
)

from app.simulator.errors import CrashError, HttpError

#: zlib's fastest level: the pictures exist to be moved about, not to be small.
_LEVEL = 1
#: Signature and IHDR; text chunks go right behind them.
_PNG_HEAD = 33
#: Above this many pixels a batch "does not fit into the GPU".
MAX_PIXELS = 2**26
_JPEG_FORMATS = ("jpg", "jpeg")


@dataclass(frozen=True)
class Picture:
    """A finished picture: PNG bytes without text, and the infotext that belongs to it."""

    png: bytes
    text: str
    #: As it travels, by the options that it was encoded with.
    _encoded: dict[tuple[str, int, bool], str] = field(default_factory=dict, repr=False, compare=False)

    def base64(self, image_format: str, *, quality: int, text: bool) -> str:
        """The bytes of :meth:`encode` in base64, as an answer carries them; kept for the next call with the same options."""
        options = (image_format, quality, text)
        if options not in self._encoded:
            self._encoded[options] = base64_text(self.encode(image_format, quality=quality, text=text))
        return self._encoded[options]

    def encode(self, image_format: str, *, quality: int = 80, text: bool = True) -> bytes:
        """The bytes that a server would send under the option ``samples_format``.

        :raises HttpError: 500 for a format that the WebUI cannot encode (``api.encode_pil_to_base64``).
        """
        if image_format == "png":
            return with_text(self.png, "parameters", self.text) if text else self.png
        if image_format not in (*_JPEG_FORMATS, "webp"):
            raise HttpError(500, "Invalid image format")
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(self.png)) as image:
            kind = "JPEG" if image_format in _JPEG_FORMATS else "WEBP"
            image.save(buffer, kind, quality=quality, exif=_comment(self.text) if text else b"")
        return buffer.getvalue()


@dataclass(frozen=True)
class Scene:
    """The inputs that decide how a picture looks. ``done`` below 1 is a picture that was stopped on the way."""

    key: str
    width: int
    height: int
    label: str
    base: Image.Image | None = None
    #: How much of the base is painted over, 0…1.
    strength: float = 1.0
    done: float = 1.0


class Painter:
    """Draws scenes; with ``precomputed`` only one of each size, whatever the key, and as large in bytes as a real one."""

    def __init__(self, *, precomputed: bool) -> None:
        self._precomputed = precomputed
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int, bool], bytes] = {}
        self._fonts: dict[int, ImageFont.ImageFont | ImageFont.FreeTypeFont] = {}

    def draw(self, scene: Scene) -> bytes:
        """The PNG of a scene, without text chunks."""
        with self._lock:
            if not self._precomputed:
                return self._paint(scene)
            size = (scene.width, scene.height, scene.done < 1)
            if size not in self._kept:
                self._kept[size] = self._paint(scene)
            return self._kept[size]

    def _paint(self, scene: Scene) -> bytes:
        size = (scene.width, scene.height)
        digest = hashlib.shake_128(scene.key.encode("utf-8", "surrogatepass"))
        clouds = Image.frombytes("RGB", (16, 16), digest.digest(16 * 16 * 3))
        # Drawn in cells of 8 pixels: six times faster to compress than a smooth gradient.
        cells = clouds.resize((max(1, size[0] // 8), max(1, size[1] // 8)), Image.Resampling.BILINEAR)
        image = cells.resize(size, Image.Resampling.NEAREST)
        if scene.base is not None:
            image = Image.blend(scene.base, image, min(1.0, max(0.1, scene.strength)) * 0.7)
        if scene.done < 1:
            image = ImageOps.posterize(image, 1 + int(scene.done * 4))
        if self._precomputed:
            image = _grained(image)
        self._caption(image, scene, digest.hexdigest(5))
        return to_png(image)

    def _caption(self, image: Image.Image, scene: Scene, short_hash: str) -> None:
        font_size = max(8, min(scene.width, scene.height) // 10)
        if font_size not in self._fonts:
            self._fonts[font_size] = ImageFont.load_default(font_size)
        state = "" if scene.done >= 1 else f"\nSTOPPED AT {scene.done:.0%}"
        text = f"SIMULATED{state}\n{scene.label}\n{short_hash}"
        middle = (scene.width / 2, scene.height / 2)
        font = self._fonts[font_size]
        ImageDraw.Draw(image).multiline_text(
            middle, text, "white", font, "mm", align="center", stroke_width=max(1, font_size // 12), stroke_fill="black"
        )


def _grained(image: Image.Image) -> Image.Image:
    """Add four bits of noise to each byte, which makes a PNG as large as a diffused one: 0.5 MB for 512 × 512 pixels."""
    noise = Image.frombytes("RGB", image.size, hashlib.shake_128(b"grain").digest(image.width * image.height * 3))
    return ImageChops.add(image, noise.point([value // 16 for value in range(256)] * 3))


def to_png(image: Image.Image, text: PngImagePlugin.PngInfo | None = None) -> bytes:
    """Encode fast rather than small."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_LEVEL, pnginfo=text)
    return buffer.getvalue()


def with_text(png: bytes, key: str, text: str) -> bytes:
    """Put a text chunk behind the header: tEXt for Latin-1, iTXt as soon as a character is outside it (PNG 3rd ed., 11.3.3)."""
    try:
        kind, body = b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        kind, body = b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8", "replace")
    return with_chunk(png, kind, body)


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """Put a chunk behind the header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:_PNG_HEAD] + chunk + png[_PNG_HEAD:]


def _comment(text: str) -> Image.Exif:
    """JPEG and WebP carry the infotext as EXIF UserComment in UTF-16 (``images.save_image_with_geninfo``)."""
    exif = Image.Exif()
    comment = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif


def grid(pictures: list[Picture], text: str) -> Picture:
    """All pictures side by side, in rows as near to a square as the WebUI makes them (``images.image_grid``)."""
    opened = [Image.open(io.BytesIO(picture.png)) for picture in pictures]
    rows = max(1, int(len(opened) ** 0.5))
    columns = -(-len(opened) // rows)
    width, height = opened[0].size
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, image in enumerate(opened):
        sheet.paste(image, (index % columns * width, index // columns * height))
        image.close()
    return Picture(to_png(sheet), text)


def decode(text: str, *, upright: bool = False) -> Image.Image:
    """The image of a base64 string or data URI, as ``api.decode_base64_to_image`` reads it; nothing is ever fetched.

    :raises HttpError: 500 for what is no image, and for any URL.
    :raises CrashError: for a data URI without its separators, and for pixels that break off.
    """
    if text.startswith(("http://", "https://")):
        raise HttpError(500, "Request to local resource not allowed")
    if text.startswith("data:image/"):
        parts = text.split(";", 1)[-1].split(",", 1)
        if ";" not in text or len(parts) < 2:
            raise CrashError("IndexError", "list index out of range")
        text = parts[1]
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
    except (binascii.Error, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        raise HttpError(500, "Invalid encoded image") from None
    try:
        image.load()
    except OSError as error:
        raise CrashError("OSError", str(error)) from error
    return ImageOps.exif_transpose(image) if upright else image


def flatten(image: Image.Image, background: str) -> Image.Image:
    """RGB, an alpha channel laid over a colour such as ``#ffffff``."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    sheet = Image.new("RGBA", image.size, ImageColor.getrgb(background))
    return Image.alpha_composite(sheet, image.convert("RGBA")).convert("RGB")


def fit(image: Image.Image, resize_mode: int, size: tuple[int, int]) -> Image.Image:
    """Bring a reference image to the size asked for: 0 and 3 stretch, 1 crop, anything else fills the border."""
    if resize_mode in (0, 3):
        return image.resize(size)
    if resize_mode == 1:
        return ImageOps.fit(image, size)
    return ImageOps.pad(image, size)


def upscale(image: Image.Image, upscaler: str, size: tuple[int, int]) -> Image.Image:
    """Interpolate; what stands for a neural network is plain Lanczos here."""
    method = Image.Resampling.NEAREST if upscaler == "Nearest" else Image.Resampling.LANCZOS
    return image.resize(size, method)


def base64_text(data: bytes) -> str:
    """Base64 as pictures are sent: standard alphabet, no prefix."""
    return pybase64.b64encode_as_string(data)
