"""Images: each format and mode, and every way in which a client's bytes can be bad."""

from __future__ import annotations

import base64
import io
import random
import struct
import threading
import zlib
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from app.records import images
from app.records.errors import BadImage
from app.records.images import ReferenceReader, Sniffed, decode_base64_image, sniff

READER = ReferenceReader(max_pixels=1_000_000, max_side=70_000)
NOISE = Image.frombytes("RGB", (48, 32), random.Random(1).randbytes(48 * 32 * 3))
RED, GREEN = (255, 0, 0), (0, 255, 0)


def encode(image: Image.Image, form: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(size, bits, colour, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", header, *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")],
    )


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def pixels(image: Image.Image) -> list:
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


WHOLE = {
    "png": encode(NOISE, "PNG"),
    "apng": encode(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(180)]),
    "jpeg": encode(NOISE, "JPEG"),
    "progressive": encode(NOISE, "JPEG", progressive=True),
    "cmyk": encode(NOISE.convert("CMYK"), "JPEG"),
    "lossy": encode(NOISE, "WEBP"),
    "lossless": encode(NOISE, "WEBP", lossless=True),
    "alpha": encode(NOISE.convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "animated": encode(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(180)]),
}
EXTENSIONS = {"png": "png", "apng": "png", "jpeg": "jpg", "progressive": "jpg", "cmyk": "jpg"}
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


@pytest.mark.parametrize("kind", WHOLE)
def test_sniff_tells_format_and_size(kind):
    extension = EXTENSIONS.get(kind, "webp")
    assert sniff(WHOLE[kind]) == Sniffed(extension, MEDIA_TYPES[extension], 48, 32)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_reference_becomes_a_png_of_the_same_size(kind):
    reference = READER.read(WHOLE[kind])
    assert (reference.width, reference.height) == (48, 32)
    assert sniff(reference.png) == Sniffed("png", "image/png", 48, 32)
    assert opened(reference.png).mode in ("RGB", "RGBA")
    assert READER.read(WHOLE[kind]) == reference


def pixels_end(png: bytes) -> int:
    """The offset behind the last IDAT chunk of a PNG."""
    place, end = 8, 0
    while place < len(png):
        place, kind = place + 12 + int.from_bytes(png[place : place + 4], "big"), png[place + 4 : place + 8]
        end = place if kind == b"IDAT" else end
    return end


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("judge", [sniff, READER.read], ids=["sniff", "reference"])
def test_every_truncation_is_noticed(kind, judge):
    data = WHOLE[kind]
    # Of a reference image the end may be missing: the marker of a JPEG, all that stands behind the pixels of a PNG.
    least = 1
    if judge != sniff and EXTENSIONS.get(kind) == "jpg":
        least = 3
    elif judge != sniff and b"IEND" in data:
        least = len(data) - pixels_end(data) + 1
    cuts = {*range(least, least + 40), *(len(data) * part // 64 for part in range(1, 64))}
    for cut in (cut for cut in cuts if cut >= least):
        with pytest.raises(BadImage):
            judge(data[: len(data) - cut])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_mangled_bytes_are_a_bad_image_or_a_good_one_never_a_crash(kind, changes):
    data = bytearray(WHOLE[kind])
    for position, value in changes:
        data[position % len(data)] = value
    for judge in (sniff, READER.read):
        with suppress(BadImage):
            assert judge(bytes(data)).width > 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG",
        b"not an image",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"RIFF\x24\0\0\0WAVEfmt ",
        encode(NOISE, "GIF"),
        encode(NOISE, "BMP"),
        encode(NOISE, "TIFF"),
        encode(NOISE, "PPM"),
    ],
)
@pytest.mark.parametrize("judge", [sniff, READER.read], ids=["sniff", "reference"])
def test_other_formats_are_refused(judge, data):
    with pytest.raises(BadImage, match="neither PNG, JPEG nor WebP"):
        judge(data)


@pytest.mark.parametrize(
    "signature", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8L"]
)
def test_a_signature_alone_is_broken(signature):
    with pytest.raises(BadImage, match="broken or truncated"):
        sniff(signature)


def test_a_flipped_bit_in_a_png_is_noticed_without_decoding():
    data = bytearray(WHOLE["png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImage, match="broken"):
        sniff(bytes(data))


# The header alone decides about the size: these files hold no pixels worth the name.

WIDE = 40_000
BOMBS = {
    "png": raw_png((WIDE, WIDE), 8, 2, b""),
    "jpeg": WHOLE["jpeg"].replace(struct.pack(">HH", 32, 48), struct.pack(">HH", WIDE, WIDE), 1),
    "lossy": WHOLE["lossy"][:26] + struct.pack("<HH", 16383, 16383) + WHOLE["lossy"][30:],
    "lossless": WHOLE["lossless"][:21] + struct.pack("<I", 16383 | 16383 << 14) + WHOLE["lossless"][25:],
    "animated": WHOLE["animated"][:24] + b"\xfe\xff\x00" * 2 + WHOLE["animated"][30:],
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("judge", [sniff, READER.read], ids=["sniff", "reference"])
def test_a_bomb_is_refused_by_its_header(kind, judge, monkeypatch):
    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(images.ImageFile, "load", never)
    with pytest.raises(BadImage, match=r"has \d{5} × \d{5} pixels, which are more than the \d+ allowed"):
        judge(BOMBS[kind])


@pytest.mark.parametrize("kind", WHOLE)
def test_the_bound_is_inclusive(kind):
    assert ReferenceReader(48 * 32, 48).read(WHOLE[kind]).width == 48
    with pytest.raises(BadImage, match="48 × 32 pixels, which are more than the 1535 allowed"):
        ReferenceReader(48 * 32 - 1, 48).read(WHOLE[kind])


def test_a_jpeg_of_endless_passes_is_refused():
    data = WHOLE["progressive"]
    last = data.rindex(b"\xff\xda")
    assert sniff(data[:-2] + data[last:-2] * 100 + data[-2:]).width == 48
    with pytest.raises(BadImage):
        sniff(data[:-2] + data[last:-2] * 400 + data[-2:])


# Colours.


@pytest.mark.parametrize(
    ("data", "mode", "expected"),
    [
        pytest.param(encode(Image.new("1", (1, 1), 1), "PNG"), "RGB", [(255, 255, 255)], id="1"),
        pytest.param(encode(Image.new("L", (1, 1), 7), "PNG"), "RGB", [(7, 7, 7)], id="L"),
        pytest.param(encode(Image.new("LA", (1, 1), (7, 9)), "PNG"), "RGBA", [(7, 7, 7, 9)], id="LA"),
        pytest.param(encode(Image.new("RGBA", (1, 1), (1, 2, 3, 4)), "PNG"), "RGBA", [(1, 2, 3, 4)], id="RGBA"),
        pytest.param(encode(Image.new("RGB", (1, 1), RED).convert("P"), "PNG"), "RGB", [RED], id="P"),
        pytest.param(
            raw_png((2, 1), 8, 3, b"\0\0\1", chunk(b"PLTE", bytes([9, 8, 7, 1, 2, 3])), chunk(b"tRNS", b"\x80")),
            "RGBA",
            [(9, 8, 7, 128), (1, 2, 3, 255)],
            id="P with transparency",
        ),
        pytest.param(
            raw_png((2, 1), 8, 2, b"\0\xff\0\0\0\xff\0", chunk(b"tRNS", b"\0\xff\0\0\0\0")),
            "RGBA",
            [(255, 0, 0, 0), (0, 255, 0, 255)],
            id="RGB with a transparent colour",
        ),
        pytest.param(
            raw_png((2, 1), 8, 0, b"\0\xff\x05", chunk(b"tRNS", b"\0\xff")),
            "RGBA",
            [(255, 255, 255, 0), (5, 5, 5, 255)],
            id="L with a transparent grey",
        ),
        pytest.param(
            raw_png((3, 1), 16, 0, b"\0" + struct.pack(">3H", 0, 0x8080, 0xFFFF)),
            "RGB",
            [(0, 0, 0), (128, 128, 128), (255, 255, 255)],
            id="16-bit grey",
        ),
        pytest.param(
            raw_png((2, 1), 16, 2, b"\0" + struct.pack(">6H", 0xFFFF, 0, 0, 0, 0xFFFF, 0)),
            "RGB",
            [RED, GREEN],
            id="16-bit RGB",
        ),
        pytest.param(
            raw_png((1, 1), 16, 4, b"\0" + struct.pack(">2H", 0xFFFF, 0x8080)),
            "RGBA",
            [(255, 255, 255, 128)],
            id="16-bit grey with alpha",
        ),
    ],
)
def test_modes_become_rgb_or_rgba(data, mode, expected):
    image = opened(READER.read(data).png)
    assert (image.mode, pixels(image)) == (mode, expected)


def test_a_cmyk_jpeg_keeps_its_colour():
    data = encode(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95)
    red, green, blue = opened(READER.read(data).png).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 16


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(form):
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), GREEN)
    data = encode(first, form, save_all=True, append_images=[second], lossless=True)
    image = opened(READER.read(data).png)
    assert image.convert("RGB").getpixel((8, 8)) == RED
    assert getattr(image, "n_frames", 1) == 1


# Orientation and metadata.

CORNERS = Image.new("RGB", (32, 16))
CORNERS.paste(RED, (0, 0, 16, 8))
CORNERS.paste(GREEN, (16, 0, 32, 8))
# Where EXIF says that the stored top left and top right corner belong (EXIF 2.32, tag 0x0112).
SEEN = {
    1: ("left", "top", "right", "top"),
    2: ("right", "top", "left", "top"),
    3: ("right", "bottom", "left", "bottom"),
    4: ("left", "bottom", "right", "bottom"),
    5: ("left", "top", "left", "bottom"),
    6: ("right", "top", "right", "bottom"),
    7: ("right", "bottom", "right", "top"),
    8: ("left", "bottom", "left", "top"),
}


def corner(image: Image.Image, across: str, down: str):
    x = 2 if across == "left" else image.width - 3
    y = 2 if down == "top" else image.height - 3
    red, green, _ = image.getpixel((x, y))
    return red > 128, green > 128


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_turns_the_picture_upright(form, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    reference = READER.read(encode(CORNERS, form, exif=exif, quality=95))
    image = opened(reference.png)
    red_x, red_y, green_x, green_y = SEEN[orientation]
    assert image.size == (reference.width, reference.height) == ((16, 32) if orientation > 4 else (32, 16))
    assert corner(image, red_x, red_y) == (True, False)
    assert corner(image, green_x, green_y) == (False, True)
    assert not image.getexif()


# Pillow tells of broken EXIF by a warning, which a server does no more than log.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\xff" * 20])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_is_no_reason_to_refuse_a_picture(form, exif):
    image = opened(READER.read(encode(CORNERS, form, exif=exif)).png)
    assert image.size == (32, 16)
    assert corner(image, "left", "top") == (True, False)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_metadata_is_stripped(form):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "secret-artist"
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "secret-prompt")
    text.add_text("XML:com.adobe.xmp", "secret-xmp")
    options = {"PNG": {"pnginfo": text}, "JPEG": {"comment": "secret-comment"}, "WEBP": {"xmp": b"secret-xmp"}}
    data = encode(NOISE, form, exif=exif, icc_profile=b"secret-icc", dpi=(300, 300), **options[form])
    assert b"secret" in data
    png = READER.read(data).png
    assert b"secret" not in png
    assert opened(png).info == {}


def test_only_so_many_are_decoded_at_once(monkeypatch):
    reader = ReferenceReader(10**6, 10**4, at_once=2)
    both_in, go = threading.Barrier(3), threading.Event()
    inside, most, lock = [0], [0], threading.Lock()
    original = images.encode_png

    def encode_and_count(image):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        if not go.is_set():
            both_in.wait(10)
            go.wait(10)
        with lock:
            inside[0] -= 1
        return original(image)

    monkeypatch.setattr(images, "encode_png", encode_and_count)
    threads = [threading.Thread(target=reader.read, args=(WHOLE["png"],)) for _ in range(6)]
    for thread in threads:
        thread.start()
    both_in.wait(10)
    assert not reader._turns.acquire(blocking=False)
    go.set()
    for thread in threads:
        thread.join(10)
    assert most == [2]
    assert inside == [0]


def test_a_bad_image_gives_its_turn_back():
    reader = ReferenceReader(10**6, 10**4, at_once=1)
    for _ in range(3):
        with pytest.raises(BadImage):
            reader.read(WHOLE["png"][:-20])
    assert reader.read(WHOLE["png"]).width == 48


def test_no_memory_is_not_the_clients_fault(monkeypatch):
    def starve(*_):
        raise MemoryError

    monkeypatch.setattr(images, "_visible", starve)
    with pytest.raises(MemoryError):
        READER.read(WHOLE["png"])


# Base64.

PLAIN = base64.b64encode(WHOLE["png"]).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"  {PLAIN}\n",
        base64.encodebytes(WHOLE["png"]).decode(),
        base64.encodebytes(WHOLE["png"]).decode().replace("\n", "\r\n\t "),
        f"data:image/png;base64,{PLAIN}",
        f"DATA:image/png;charset=utf-8;BASE64,{PLAIN}",
        f"data:;base64, {PLAIN}",
    ],
    ids=["plain", "spaces", "lines", "crlf", "data", "upper", "untyped"],
)
def test_base64_is_read(text):
    assert decode_base64_image(text) == WHOLE["png"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("data:image/png;base64,", "empty"),
        ("http://example.org/x.png", "URL is not accepted"),
        ("  HTTPS://example.org/x.png", "URL is not accepted"),
        ("file:///etc/passwd", "URL is not accepted"),
        ("//example.org/x.png", "valid base64"),
        ("data:image/png,abcd", "data URI"),
        ("data:image/png;base64", "data URI"),
        ("data:", "data URI"),
        (PLAIN[:-1], "valid base64"),
        (PLAIN + "=", "valid base64"),
        (PLAIN + PLAIN[:4] + "====", "valid base64"),
        ("abc=abcd", "valid base64"),
        ("=abc", "valid base64"),
        ("ab-_", "valid base64"),
        ("abcd!", "valid base64"),
        ("ab%2Bd", "valid base64"),
        ("图片", "valid base64"),
        ("abcd\ud800", "valid base64"),
        ("abcd\0abc", "valid base64"),
        ("a", "valid base64"),
    ],
)
def test_what_is_no_base64_is_refused(text, reason):
    with pytest.raises(BadImage, match=reason) as caught:
        decode_base64_image(text)
    assert "example" not in str(caught.value)


@given(st.binary(min_size=1))
def test_any_bytes_survive_base64(data):
    assert decode_base64_image(base64.b64encode(data).decode()) == data
