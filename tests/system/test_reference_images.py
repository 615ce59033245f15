"""Reference images: the WebUI gets what a viewer shows; metadata decides about orientation and colour alone; costs are bounded."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.records import profiles
from tests.system.harness import Gateway, Simulator, Stage, picture, until

USER = "viewer"
COLOUR = (200, 120, 90)
#: What a viewer shows of that colour where it is one of Display P3.
SHOWN = (213, 115, 83)
BLUE = (10, 20, 240)
#: Largest difference of a level that counts as the same colour.
SAME = 2


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("references"))
    try:
        yield stage
    finally:
        stage.clear()


@pytest.fixture(scope="module")
def gateway(theatre: Stage) -> Gateway:
    """A gateway whose WebUI hangs at the first job, so that all others cost no more than being accepted."""
    webui = theatre.simulator()
    gateway = theatre.gateway([webui], processes=1, SDG_MAX_SIDE=512, SDG_MAX_QUEUE_PER_USER=1000)
    webui.fault("hang")
    first = gateway.post("txt2img", prefer="respond-async").json()
    until(lambda: gateway.status(first["url"]) == "running", "the WebUI hangs")
    return gateway


def body(data: bytes) -> dict[str, Any]:
    return picture(id=USER, width=64, height=64, steps=1) | {"init_images": base64.b64encode(data).decode("ascii")}


def accepted(gateway: Gateway, data: bytes) -> Image.Image:
    """The reference image as it is kept and sent, after it was posted."""
    answer = gateway.send("img2img", body(data), prefer="respond-async")
    assert answer.status_code == 202, answer.text
    kept = gateway.http.get(answer.json()["init_image"]["url"])
    image = Image.open(io.BytesIO(kept.content))
    image.load()
    assert (image.format, image.info) == ("PNG", {})
    return image


def refused(gateway: Gateway, data: bytes) -> str:
    """The reason why the reference image was refused."""
    answer = gateway.send("img2img", body(data), prefer="respond-async")
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["type"] == "bad-image"
    [reason] = problem["errors"]["init_images"]
    return str(reason)


# -- making images ---------------------------------------------------------------------------------------------------------


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def damaged(whole: bytes) -> bytes:
    """A chunk whose checksum is wrong."""
    return whole[:-1] + bytes([whole[-1] ^ 1])


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *before: bytes, after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    parts = (b"\x89PNG\r\n\x1a\n", header, *before, chunk(b"IDAT", zlib.compress(rows)), after, chunk(b"IEND", b""))
    return b"".join(parts)


def plain(*before: bytes, after: bytes = b"") -> bytes:
    """A PNG of one pixel of COLOUR."""
    return png((1, 1), 8, 2, b"\0" + bytes(COLOUR), *before, after=after)


def icc(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"its name\0\0" + zlib.compress(profile))


def turned(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """EXIF with this orientation."""
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0] if kind == 3 else [orientation]))
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, count)
        + value
        + bytes(4)
    )


FLAT = Image.new("RGB", (16, 16), COLOUR)
#: The top is red, the bottom blue; after a quarter turn the left or the right is.
TALL = Image.new("RGB", (16, 32), BLUE)
TALL.paste((240, 10, 20), (0, 0, 16, 16))
PHOTO = Image.merge(
    "RGB",
    [Image.frombytes("L", (160, 96), random.Random(seed).randbytes(160 * 96)).resize((320, 192)) for seed in (1, 2, 3)],
)
SMALL = encode(FLAT, "PNG")
JPEG = encode(PHOTO, "JPEG")
PROGRESSIVE = encode(PHOTO, "JPEG", progressive=True)
RESTARTS = encode(PHOTO, "JPEG", restart_marker_blocks=4, subsampling=0)
VIDEO = b"\0\0\0\x18ftypmp42" + random.Random(4).randbytes(14 * 2**20)
TWO_MEGABYTES = zlib.compress(bytes(2 * 2**20))

# -- colours ---------------------------------------------------------------------------------------------------------------

P3 = profiles.rgb()
WITH_PROFILE = {
    "PNG": encode(FLAT, "PNG", icc_profile=P3),
    "PNG with alpha": encode(Image.new("RGBA", (16, 16), (*COLOUR, 128)), "PNG", icc_profile=P3),
    "PNG with a palette": encode(FLAT.quantize(4), "PNG", icc_profile=P3),
    "PNG of 16 bits": png((1, 1), 16, 2, b"\0" + struct.pack(">3H", *(v * 257 for v in COLOUR)), icc(P3)),
    "JPEG": encode(FLAT, "JPEG", quality=100, subsampling=0, icc_profile=P3),
    "JPEG with the profile in pieces": encode(
        FLAT, "JPEG", quality=100, subsampling=0, icc_profile=P3 + bytes(100_000)
    ),
    "WebP": encode(FLAT, "WEBP", lossless=True, icc_profile=P3),
    "WebP with loss": encode(FLAT, "WEBP", quality=100, icc_profile=P3),
    "D2B0 of ten thousand steps": encode(FLAT, "PNG", icc_profile=profiles.endless(10_000)),
}


@pytest.mark.parametrize("case", WITH_PROFILE)
def test_a_display_p3_picture_becomes_srgb(gateway: Gateway, case: str) -> None:
    image = accepted(gateway, WITH_PROFILE[case])
    assert image.getpixel((0, 0))[:3] == pytest.approx(SHOWN, abs=SAME)
    assert image.mode == ("RGBA" if case == "PNG with alpha" else "RGB")
    if image.mode == "RGBA":
        assert image.getpixel((0, 0))[3] == 128


LINEAR = profiles.grey(profiles.gamma(1))
OTHER_PROFILES = {
    # Half the light is 188 of 255 in sRGB.
    "grey": (encode(Image.new("L", (1, 1), 128), "PNG", icc_profile=LINEAR), (188, 188, 188)),
    "grey with alpha": (encode(Image.new("LA", (1, 1), (128, 7)), "PNG", icc_profile=LINEAR), (188, 188, 188, 7)),
    "grey of 16 bits": (png((1, 1), 16, 0, b"\0" + struct.pack(">H", 400), icc(LINEAR)), (18, 18, 18)),
    "grey of 16 bits with alpha": (
        png((1, 1), 16, 4, b"\0" + struct.pack(">HH", 0x8080, 0x0707), icc(LINEAR)),
        (188, 188, 188, 7),
    ),
    "dark grey": (encode(Image.new("L", (1, 1), 5), "PNG", icc_profile=LINEAR), (38, 38, 38)),
    "grey of 1 bit": (png((1, 1), 1, 0, b"\0\x80", icc(LINEAR)), (255, 255, 255)),
    "grey JPEG": (encode(Image.new("L", (8, 8), 128), "JPEG", icc_profile=LINEAR), (188, 188, 188)),
    "linear light": (encode(FLAT, "PNG", icc_profile=profiles.rgb(profiles.SRGB, profiles.gamma(1))), (229, 182, 160)),
    "CMYK, no ink": (encode(Image.new("CMYK", (8, 8)), "JPEG", icc_profile=profiles.cmyk()), (255, 255, 255)),
    "CMYK, black ink": (
        encode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", icc_profile=profiles.cmyk()),
        (0, 0, 0),
    ),
    "CMYK, magenta ink": (
        encode(Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "JPEG", quality=100, icc_profile=profiles.cmyk()),
        (255, 182, 255),
    ),
    "sRGB": (encode(FLAT, "PNG", icc_profile=profiles.rgb(profiles.SRGB)), COLOUR),
}


@pytest.mark.parametrize("case", OTHER_PROFILES)
def test_other_profiles(gateway: Gateway, case: str) -> None:
    data, expected = OTHER_PROFILES[case]
    assert accepted(gateway, data).getpixel((0, 0)) == pytest.approx(expected, abs=SAME)


def test_an_srgb_profile_changes_no_pixel(gateway: Gateway) -> None:
    image = accepted(gateway, encode(PHOTO, "PNG", icc_profile=profiles.rgb(profiles.SRGB)))
    assert image.tobytes() == PHOTO.tobytes()


UNUSABLE = {
    "not a profile": b"secret" * 100,
    "empty": b"",
    "cut off": P3[:200],
    "its tags lie outside": P3[: 132 + 8 * 12],
    "for CMYK": profiles.cmyk(),
    "for grey": LINEAR,
    "of a device link": P3[:12] + b"link" + P3[16:],
    "without curves": profiles.profile(b"RGB ", {}),
    "a million tags": P3[:128] + struct.pack(">I", 1_000_000) + P3[132:],
    "larger than any": P3 + bytes(5 * 2**20),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_unusable_profile_is_ignored(gateway: Gateway, case: str, form: str) -> None:
    profile = UNUSABLE[case]
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[form]
    # A marker of JPEG counts at most 255 pieces of 64 kB.
    data = encode(FLAT, form, icc_profile=profile, **options) if profile else plain(icc(profile))
    assert accepted(gateway, data).getpixel((0, 0)) == pytest.approx(COLOUR, abs=SAME)


ICCP = {
    "not compressed": plain(chunk(b"iCCP", b"name\0\0" + P3)),
    "an unknown compression": plain(chunk(b"iCCP", b"name\0\1" + zlib.compress(P3))),
    "no name": plain(chunk(b"iCCP", b"x" * 200)),
    "no body": plain(chunk(b"iCCP", b"")),
    "unpacks to a gigabyte": plain(chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2**24)) * 64)),
    "cut off": plain(chunk(b"iCCP", b"name\0\0" + zlib.compress(P3)[:-20])),
    "behind the pixels": plain(after=icc(P3)),
}


@pytest.mark.parametrize("case", ICCP)
def test_an_unusable_iccp_chunk_is_ignored(gateway: Gateway, case: str) -> None:
    assert accepted(gateway, ICCP[case]).getpixel((0, 0)) == COLOUR


# -- transparency ----------------------------------------------------------------------------------------------------------

TRANSPARENT = {
    "grey of 1 bit": (png((2, 1), 1, 0, b"\0\x40", chunk(b"tRNS", b"\0\1")), [(0, 0, 0, 255), (255, 255, 255, 0)]),
    "grey of 2 bits": (png((2, 1), 2, 0, b"\0\x60", chunk(b"tRNS", b"\0\2")), [(85, 85, 85, 255), (170, 170, 170, 0)]),
    "grey of 4 bits": (
        png((2, 1), 4, 0, b"\0\x3c", chunk(b"tRNS", b"\0\x0c")),
        [(51, 51, 51, 255), (204, 204, 204, 0)],
    ),
    "grey of 8 bits": (png((2, 1), 8, 0, b"\0\x3c\x05", chunk(b"tRNS", b"\0\x3c")), [(60, 60, 60, 0), (5, 5, 5, 255)]),
    "grey of 16 bits, all of which count": (
        png((2, 1), 16, 0, b"\0\x80\x80\x80\x81", chunk(b"tRNS", b"\x80\x80")),
        [(128, 128, 128, 0), (128, 128, 128, 255)],
    ),
    "RGB of 8 bits": (
        png((2, 1), 8, 2, b"\0\1\2\3\1\2\4", chunk(b"tRNS", b"\0\1\0\2\0\3")),
        [(1, 2, 3, 0), (1, 2, 4, 255)],
    ),
    "RGB of 16 bits, of which the high bytes count": (
        png((2, 1), 16, 2, b"\0\1\xaa\2\xaa\3\xaa\1\xaa\2\xaa\4\xaa", chunk(b"tRNS", b"\1\xaa\2\xaa\3\xbb")),
        [(1, 2, 3, 0), (1, 2, 4, 255)],
    ),
    "a palette": (
        png((2, 1), 1, 3, b"\0\x40", chunk(b"PLTE", b"\1\2\3\4\5\6"), chunk(b"tRNS", b"\x80\0")),
        [(1, 2, 3, 128), (4, 5, 6, 0)],
    ),
    "a palette of which one colour is transparent": (
        png((2, 1), 1, 3, b"\0\x40", chunk(b"PLTE", b"\1\2\3\4\5\6"), chunk(b"tRNS", b"\xff\0")),
        [(1, 2, 3, 255), (4, 5, 6, 0)],
    ),
    "bits of the key above the depth": (
        png((2, 1), 2, 0, b"\0\x60", chunk(b"tRNS", b"\xff\xfe")),
        [(85, 85, 85, 255), (170, 170, 170, 0)],
    ),
}
NOT_TRANSPARENT = {
    "tRNS of the wrong length": png((1, 1), 8, 2, b"\0\1\2\3", chunk(b"tRNS", b"\0\1")),
    "tRNS behind the pixels": png((1, 1), 8, 2, b"\0\1\2\3", after=chunk(b"tRNS", b"\0\1\0\2\0\3")),
    "a second tRNS": png((1, 1), 8, 2, b"\0\1\2\3", chunk(b"tRNS", b"\0\0\0\0\0\0"), chunk(b"tRNS", b"\0\1\0\2\0\3")),
    "a longer tRNS than the palette": png((1, 1), 1, 3, b"\0\0", chunk(b"PLTE", b"\1\2\3"), chunk(b"tRNS", b"\0\0")),
    "tRNS before the palette": png((1, 1), 1, 3, b"\0\0", chunk(b"tRNS", b"\0"), chunk(b"PLTE", b"\1\2\3")),
}
EXAMPLE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQBAAAAAD/aE28AAAAAnRSTlMAD+Ys0KkAAAAZSURBVHicY/gPBQzEMBiVXdM7V599TzsGAKeeURkpTrgdAAAAAElFTkSuQmCC"
)


@pytest.mark.parametrize("case", TRANSPARENT)
def test_a_transparent_colour_is_transparent(gateway: Gateway, case: str) -> None:
    data, expected = TRANSPARENT[case]
    image = accepted(gateway, data)
    assert image.mode == "RGBA"
    assert [image.getpixel((x, 0)) for x in range(2)] == expected


@pytest.mark.parametrize("case", NOT_TRANSPARENT)
def test_what_libpng_ignores_makes_nothing_transparent(gateway: Gateway, case: str) -> None:
    image = accepted(gateway, NOT_TRANSPARENT[case]).convert("RGBA")
    assert image.getpixel((0, 0)) == (1, 2, 3, 255)


def test_grey_of_4_bits_with_a_transparent_row(gateway: Gateway) -> None:
    alpha = accepted(gateway, EXAMPLE).getchannel("A")
    assert {alpha.getpixel((x, 0)) for x in range(16)} == {0}
    assert alpha.getextrema() == (0, 255)


# -- what stands behind, and beside --------------------------------------------------------------------------------------

ACCEPTED = {
    "JPEG with a video behind it": JPEG + VIDEO,
    "JPEG with zeros behind it": JPEG + bytes(10_000),
    "JPEG with other images behind it": JPEG + PROGRESSIVE + SMALL,
    "MPO": encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)]),
    "JPEG without its end": JPEG[:-2],
    "JPEG with half an end": JPEG[:-1],
    "JPEG with zeros in place of its end": JPEG[:-2] + bytes(10_000),
    "progressive JPEG without its end": PROGRESSIVE[:-2],
    "progressive JPEG with zeros in place of its end": PROGRESSIVE[:-2] + bytes(10_000),
    "JPEG with restart markers without its end": RESTARTS[:-2],
    "JPEG with FF before its end": JPEG[:-2] + b"\xff" * 50 + JPEG[-2:],
    "JPEG with a broken Photoshop block": JPEG[:2] + b"\xff\xed\0\x20Photoshop 3.0\x008BIM" + bytes(12) + JPEG[2:],
    "JPEG with an MPF of nonsense": JPEG[:2] + b"\xff\xe2\0\x10MPF\0" + bytes(10) + JPEG[2:],
    "JPEG with junk between its segments": JPEG[:20] + b"junk\0\xff\0" + JPEG[20:],
    "WebP with bytes behind it": encode(PHOTO, "WEBP", lossless=True) + VIDEO[:100_000],
    "PNG with a video behind it": encode(PHOTO, "PNG") + VIDEO,
    "PNG without its end": encode(PHOTO, "PNG")[:-12],
    "PNG with half an end": encode(PHOTO, "PNG")[:-5],
    "PNG with a damaged end": encode(PHOTO, "PNG")[:-1] + b"\0",
    "PNG with zeros in place of its end": encode(PHOTO, "PNG")[:-12] + bytes(1000),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_does_not_belong_to_the_picture_does_not_count(gateway: Gateway, case: str) -> None:
    data = ACCEPTED[case]
    original = Image.open(io.BytesIO(RESTARTS if "restart" in case else JPEG)).convert("RGB")
    begun = time.monotonic()
    image = accepted(gateway, data)
    assert time.monotonic() - begun < 5
    lossless = "PNG" in case or "WebP" in case
    difference = ImageChops.difference(image, PHOTO if lossless else original)
    if "MPO" in case or "progressive" in case or lossless or "JPEG" in case:
        assert max(high for _, high in difference.getextrema()) <= SAME


EXIF_TURN = turned(6)
CHUNKS = {
    "zTXt of 2 MB unpacked": chunk(b"zTXt", b"parameters\0\0" + TWO_MEGABYTES),
    "iTXt of 2 MB unpacked": chunk(b"iTXt", b"parameters\0\1\0\0\0" + TWO_MEGABYTES),
    "many zTXt": b"".join(chunk(b"zTXt", b"x%d\0\0" % number + TWO_MEGABYTES) for number in range(70)),
    "tEXt of 2 MB": chunk(b"tEXt", b"parameters\0" + bytes(2**21)),
    "zTXt of nonsense": chunk(b"zTXt", b"\xff" * 50),
    "eXIf of nonsense": chunk(b"eXIf", b"\xff" * 50),
    "damaged tEXt": damaged(chunk(b"tEXt", b"a\0b")),
    "damaged eXIf": damaged(chunk(b"eXIf", EXIF_TURN)),
    "damaged pHYs": damaged(chunk(b"pHYs", bytes(9))),
    "pHYs without content": chunk(b"pHYs", b""),
    "gAMA without content": chunk(b"gAMA", b""),
    "gAMA of zero": chunk(b"gAMA", bytes(4)),
    "cHRM too short": chunk(b"cHRM", b"123"),
    "sBIT of 200 bits": chunk(b"sBIT", b"\xc8\xc8\xc8"),
    "bKGD too long": chunk(b"bKGD", bytes(100)),
    "sRGB without content": chunk(b"sRGB", b""),
    "tIME of nonsense": chunk(b"tIME", b"\xff" * 7),
    "acTL too short": chunk(b"acTL", b"\0"),
    "acTL without frames": chunk(b"acTL", bytes(8)),
    "two acTL": chunk(b"acTL", struct.pack(">II", 2, 0)) * 2,
    "fcTL too short": chunk(b"fcTL", b"\0"),
    "fcTL out of order": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 9, 1, 1, 0, 0, 0, 0, 0, 0)),
    "fcTL outside": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 99, 99, 7, 7, 0, 0, 0, 0)),
    "fdAT too short": chunk(b"fdAT", b"\0"),
    "an unknown chunk": chunk(b"prVt", b"anything"),
    "an unknown chunk like a method": chunk(b"call", b"anything"),
    "a palette for screens of 256 colours": chunk(b"PLTE", bytes(30)),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_a_png_with_odd_chunks(gateway: Gateway, case: str) -> None:
    assert accepted(gateway, plain(CHUNKS[case])).getpixel((0, 0)) == COLOUR
    if case != "a palette for screens of 256 colours":
        assert accepted(gateway, plain(after=CHUNKS[case])).getpixel((0, 0)) == COLOUR


# -- orientation -----------------------------------------------------------------------------------------------------------


def with_exif(form: str, exif: bytes) -> bytes:
    if form == "PNG":
        whole = encode(TALL, "PNG")
        return whole[:33] + chunk(b"eXIf", exif) + whole[33:]
    if form == "PNG, behind the pixels":
        whole = encode(TALL, "PNG")
        return whole[:-12] + chunk(b"eXIf", exif) + whole[-12:]
    return encode(TALL, form, exif=b"Exif\0\0" + exif, quality=95)


@pytest.mark.parametrize("form", ["PNG", "PNG, behind the pixels", "JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_each_format_turns_the_picture(gateway: Gateway, form: str, order: str) -> None:
    image = accepted(gateway, with_exif(form, turned(6, order)))
    assert image.size == (32, 16)
    assert image.getpixel((2, 8))[2] > 200
    assert image.getpixel((29, 8))[0] > 200


NO_TURN = {
    "0": turned(0),
    "9": turned(9),
    "a LONG": turned(6, kind=4),
    "two values": turned(6, count=2),
    "an unknown byte order": b"XX" + turned(6)[2:],
    "a directory outside": turned(6)[:4] + b"\xff\xff\xff\xff" + turned(6)[8:],
    "cut off": turned(6)[:15],
    "empty": b"",
}


@pytest.mark.parametrize("case", NO_TURN)
def test_broken_exif_turns_nothing(gateway: Gateway, case: str) -> None:
    for form in ("PNG", "JPEG", "WEBP"):
        assert accepted(gateway, with_exif(form, NO_TURN[case])).size == (16, 32)


def test_xmp_and_raw_profiles_turn_nothing(gateway: Gateway) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    raw = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(EXIF_TURN) + 6, (b"Exif\0\0" + EXIF_TURN).hex().encode())
    whole = encode(TALL, "PNG")
    for data in (
        encode(TALL, "JPEG", xmp=xmp),
        encode(TALL, "WEBP", xmp=xmp),
        whole[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + whole[33:],
        whole[:33] + chunk(b"tEXt", raw) + whole[33:],
    ):
        assert accepted(gateway, data).size == (16, 32)


# -- what is refused -------------------------------------------------------------------------------------------------------

CUT = {
    "baseline": JPEG,
    "progressive": PROGRESSIVE,
    "restart markers": RESTARTS,
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
}
ENDINGS = {
    "": b"",
    " with an end": b"\xff\xd9",
    " with zeros": bytes(50_000),
    " with zeros and an end": bytes(50_000) + b"\xff\xd9",
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_jpeg_that_is_cut_within_its_data(gateway: Gateway, kind: str, ending: str) -> None:
    for part in (0.5, 0.99):
        data = CUT[kind]
        assert "broken or truncated" in refused(gateway, data[: int(len(data) * part)] + ENDINGS[ending])


def restart_intervals_are_missing() -> bytes:
    """A JPEG that breaks off exactly where a restart marker follows."""
    place = RESTARTS.rindex(b"\xff\xd3")
    return RESTARTS[:place] + b"\xff\xd9"


def scans_are_missing() -> bytes:
    """A progressive JPEG that breaks off exactly where a scan follows."""
    place = PROGRESSIVE.rindex(b"\xff\xc4")
    return PROGRESSIVE[:place] + b"\xff\xd9"


WHOLE = encode(PHOTO, "PNG")
MIDDLE = WHOLE.index(b"IDAT") + 2000
BROKEN = {
    "JPEG without its last restart intervals": restart_intervals_are_missing(),
    "progressive JPEG without its last scan": scans_are_missing(),
    "JPEG of a header": JPEG[:200],
    "PNG with a damaged pixel": WHOLE[:MIDDLE] + bytes([WHOLE[MIDDLE] ^ 1]) + WHOLE[MIDDLE + 1 :],
    "PNG with a damaged header": WHOLE[:16] + b"\1" + WHOLE[17:],
    "PNG with a damaged palette": png((1, 1), 1, 3, b"\0\0", damaged(chunk(b"PLTE", b"\1\2\3"))),
    "PNG with a damaged tRNS": plain(damaged(chunk(b"tRNS", bytes(6)))),
    "PNG with a damaged iCCP": plain(damaged(icc(P3))),
    "PNG with an unknown critical chunk": plain(chunk(b"ABCD", b"")),
    "PNG without its palette": png((1, 1), 1, 3, b"\0\0"),
    "PNG with too few rows": png((4, 4), 8, 2, (b"\0" + b"x" * 12) * 3),
    "PNG with too few black rows": png((4, 4), 8, 2, b"\0" + bytes(12)),
    "PNG that is cut": WHOLE[:-100],
    "PNG without its end and its last pixels": WHOLE[:-17],
    "WebP that is cut": encode(PHOTO, "WEBP")[:-100],
    "WebP without pixels": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(10),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_picture_is_refused(gateway: Gateway, case: str) -> None:
    assert "broken or truncated" in refused(gateway, BROKEN[case])


def test_a_large_jpeg_of_many_scans_is_refused_at_once(gateway: Gateway) -> None:
    large = encode(Image.new("L", (4096, 4096), 90), "JPEG", progressive=True)
    last = large.rindex(b"\xff\xda")
    begun = time.monotonic()
    assert "broken or truncated" in refused(gateway, large[:-2] + large[last:-2] * 100 + large[-2:])
    assert time.monotonic() - begun < 3
    small = encode(FLAT, "JPEG", progressive=True)
    last = small.rindex(b"\xff\xda")
    assert accepted(gateway, small[:-2] + small[last:-2] * 100 + large[-2:]).size == (16, 16)
    assert "broken or truncated" in refused(gateway, small[:-2] + small[last:-2] * 300 + large[-2:])


@pytest.mark.parametrize("size", [(1, 16_777_216), (16_777_216, 1), (4097, 8)])
def test_a_side_that_is_too_long_is_refused_at_once(gateway: Gateway, size: tuple[int, int]) -> None:
    width, height = size
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(2**20)) for _ in range(32)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    begun = time.monotonic()
    assert refused(gateway, data) == f"The image has {width} × {height} pixels; each side may have at most 4096."
    assert time.monotonic() - begun < 3


def test_the_longest_side_is_accepted(gateway: Gateway) -> None:
    assert accepted(gateway, encode(Image.new("L", (4096, 1)), "PNG")).size == (4096, 1)


def test_the_webui_gets_what_is_kept(house: Gateway, its_simulator: Simulator) -> None:
    job = house.succeeded(house.send("img2img", body(WITH_PROFILE["PNG with alpha"])))
    kept = house.http.get(job["init_image"]["url"]).content
    args = house.http.get(f"/get_args/{USER}/img2img/{job['name']}").json()
    assert args["init_images"] == "data:image/png;base64," + base64.b64encode(kept).decode("ascii")
    [request] = its_simulator.requests()
    assert hashlib.sha256(kept).hexdigest() in json.dumps(request)
