"""Damaged reference images of every kind: a bad image or a good one comes out, in bounded time, and never another error."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from app.records.errors import BadImage
from app.records.images import ReferenceReader
from tests.records import profiles

READER = ReferenceReader(max_pixels=100_000, max_side=2000)
#: Seconds that one image may take, on a busy machine too.
LONGEST = 2
PHOTO = Image.merge(
    "RGB", [Image.frombytes("L", (48, 32), random.Random(seed).randbytes(48 * 32)) for seed in (1, 2, 3)]
)
EXIF = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


P3, GREY, CMYK = profiles.rgb(), profiles.grey(profiles.gamma(1.8)), profiles.cmyk()
SEEDS = {
    "PNG": encode(PHOTO, "PNG", icc_profile=P3, exif=EXIF),
    "PNG with a palette": encode(PHOTO.quantize(16), "PNG", icc_profile=P3, transparency=bytes(range(16))),
    "grey PNG": encode(PHOTO.convert("L"), "PNG", icc_profile=GREY, transparency=7),
    "PNG of 16 bits": encode(PHOTO.convert("L").convert("I;16"), "PNG", icc_profile=GREY),
    "animated PNG": encode(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)]),
    "JPEG": encode(PHOTO, "JPEG", icc_profile=P3, exif=EXIF),
    "progressive JPEG": encode(PHOTO, "JPEG", progressive=True, restart_marker_rows=1),
    "grey JPEG": encode(PHOTO.convert("L"), "JPEG", icc_profile=GREY, optimize=True),
    "CMYK JPEG": encode(PHOTO.convert("CMYK"), "JPEG", icc_profile=CMYK),
    "WebP": encode(PHOTO, "WEBP", icc_profile=P3, exif=EXIF),
    "lossless WebP": encode(PHOTO.convert("RGBA"), "WEBP", lossless=True, icc_profile=P3),
    "animated WebP": encode(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(180)]),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Some bytes overwritten, repeated, taken out or cut off."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place, length = chance.randrange(len(changed) or 1), chance.randint(1, 30)
        match chance.randrange(6):
            case 0 | 1:
                changed[place : place + 1] = chance.randbytes(1)
            case 2:
                changed[place : place + 4] = chance.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0")
                )
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                del changed[place : place + length]
            case 5:
                changed[place:] = changed[place:] if chance.random() < 0.8 else b""
    return bytes(changed)


def mutated_chunks(data: bytes, chance: random.Random) -> bytes:
    """A PNG with mutated chunks whose checksums are right; the compressed ones are unpacked before."""
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        if chance.random() < 0.3 and body:
            head = body.index(b"\0") + 2 if kind == b"iCCP" else 0
            packed = kind in (b"IDAT", b"iCCP")
            inner = mutated(zlib.decompress(body[head:]) if packed else body, chance)
            body = body[:head] + (zlib.compress(inner) if packed else inner)
        parts.append(struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body)))
        place += 12 + length
    return b"".join(parts)


def with_mutated_profile(name: str, chance: random.Random) -> bytes:
    """A picture whose profile is mutated."""
    mode, profile = {"RGB": ("RGB", P3), "L": ("L", GREY), "CMYK": ("CMYK", CMYK)}[name]
    return encode(
        Image.new(mode, (4, 4), 77 if mode == "L" else None), "JPEG", icc_profile=mutated(profile, chance) or b"x"
    )


def judge(data: bytes) -> bool:
    """Read it; whether it was accepted."""
    begun = time.monotonic()
    try:
        reference = READER.read(data)
    except BadImage:
        return False
    finally:
        assert time.monotonic() - begun < LONGEST
    image = Image.open(io.BytesIO(reference.png))
    image.load()
    assert image.mode in ("RGB", "RGBA")
    assert image.size == (reference.width, reference.height)
    return True


KINDS: dict[str, Callable[[random.Random], bytes]] = (
    {f"bytes of {name}": lambda chance, data=data: mutated(data, chance) for name, data in SEEDS.items()}
    | {
        f"chunks of {name}": lambda c, data=data: mutated_chunks(data, c)
        for name, data in SEEDS.items()
        if "PNG" in name
    }
    | {f"profile for {name}": lambda c, name=name: with_mutated_profile(name, c) for name in ("RGB", "L", "CMYK")}
)


def rounds(seed: str, count: int) -> None:
    accepted = dict.fromkeys(KINDS, 0)
    for kind, make in KINDS.items():
        chance = random.Random(f"{seed} {kind}")
        for _ in range(count):
            accepted[kind] += judge(make(chance))
    # The mutations are not so wild that nothing behind the first check is reached.
    assert accepted["profile for RGB"] == count
    assert accepted["chunks of PNG"] > count / 20


def test_damaged_images_are_bad_or_good_but_never_another_error() -> None:
    rounds("short", 8)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_many_damaged_images() -> None:
    rounds(str(time.time_ns()), 800)


@pytest.mark.parametrize("place", ["alone", "behind the picture", "within the pixels"])
def test_a_long_run_of_ff_costs_no_time(place: str) -> None:
    run, photo = b"\xff" * 2_000_000, SEEDS["JPEG"]
    data = {
        "alone": b"\xff\xd8" + run,
        "behind the picture": photo[:-2] + run,
        "within the pixels": photo[:-200] + run + b"\0" + photo[-200:],
    }[place]
    begun = time.process_time()
    with contextlib.suppress(BadImage):
        READER.read(data)
    assert time.process_time() - begun < LONGEST
