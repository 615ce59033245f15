"""Reference images that mean no good, over the real server: each ends in one clear 422 or a right picture, and costs little memory.

What is merely damaged or unusual stands in test_reference_images.py.
"""

from __future__ import annotations

import base64
import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.system.harness import Gateway, children, picture
from tests.system.test_reference_images import JPEG, PHOTO, chunk, encode, png

USER = "hostile images"
#: Bytes that a process may take more than before while it judges any of these; a decoded image of the bound takes 64 MB (RGBA).
MOST_MEMORY = 200 * 2**20
SIGNATURE = b"\x89PNG\r\n\x1a\n"
WEBP, LOSSLESS = encode(PHOTO, "WEBP"), encode(PHOTO, "WEBP", lossless=True)
ANIMATED = encode(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(90)] * 20)
SCRIPT = b"<script>alert(1)</script>"


def of_size(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG that says that it has this size."""
    return png((width, height), 8, 0, rows)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header says that it has this size."""
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", height, width) + JPEG[place + 4 :]


def zeros(megabytes: int) -> bytes:
    """A zlib stream that unpacks to so many megabytes."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def packed(*idat: bytes, size: tuple[int, int] = (64, 64)) -> bytes:
    """A grey PNG with these chunks of pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    return b"".join([SIGNATURE, header, *(chunk(b"IDAT", part) for part in idat), chunk(b"IEND", b"")])


def archive() -> bytes:
    """A ZIP archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as zipped:
        zipped.writestr("page.html", SCRIPT)
    return data.getvalue()


def box(kind: bytes, brand: bytes) -> bytes:
    """The beginning of a file of the HEIF family."""
    return struct.pack(">I", 20) + kind + brand + bytes(4) + brand + bytes(200)


#: What is refused, by a word of the reason.
REFUSED: dict[str, tuple[bytes, str]] = {
    "PNG of a gigapixel": (of_size(32_000, 32_000), "pixels"),
    "PNG of the largest size there is": (of_size(2**31 - 1, 2**31 - 1), "pixels"),
    "PNG of a negative size": (of_size(2**32 - 1, 1), "pixels|broken"),
    "JPEG of four gigapixels": (jpeg_of_size(65_535, 65_535), "pixels"),
    "WebP of the largest size": (WEBP[:26] + struct.pack("<HH", 16383, 16383) + WEBP[30:], "pixels"),
    "lossless WebP of the largest size": (
        LOSSLESS[:21] + struct.pack("<I", 16383 | 16383 << 14) + LOSSLESS[25:],
        "pixels",
    ),
    "animated WebP of the largest canvas": (ANIMATED[:24] + b"\xff" * 6 + ANIMATED[30:], "pixels|broken"),
    "PNG without width": (of_size(0, 8), "broken"),
    "PNG without height": (of_size(8, 0), "broken"),
    "JPEG without width": (jpeg_of_size(0, 192), "broken"),
    "JPEG without height": (jpeg_of_size(320, 0), "broken"),
    "WebP without width": (WEBP[:26] + struct.pack("<HH", 0, 192) + WEBP[30:], "broken"),
    "PNG of a signature": (SIGNATURE, "broken"),
    "JPEG of a signature": (b"\xff\xd8\xff", "broken"),
    "WebP of a signature": (b"RIFF\xff\xff\xff\xffWEBP", "broken"),
    "PNG of a chunk of four gigabytes": (SIGNATURE + b"\xff\xff\xff\xffIHDR", "broken"),
    "PNG of a row that never comes": (packed(zeros(1)[:9]), "broken"),
    "PNG of nothing but IDAT": (SIGNATURE + chunk(b"IDAT", zeros(1)), "broken"),
    "PNG of a hundred thousand headers": (SIGNATURE + chunk(b"IHDR", bytes(13)) * 100_000, "broken"),
    "JPEG of a million restart markers": (JPEG[: len(JPEG) // 2] + b"\xff\xd0" * 1_000_000, "broken"),
    "JPEG with a restart marker that nothing announces": (
        JPEG[: len(JPEG) // 2] + b"\xff\xd0" + JPEG[len(JPEG) // 2 :],
        "broken",
    ),
    "TIFF": (encode(PHOTO, "TIFF"), "neither PNG"),
    "GIF with an animation": (encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]), "neither PNG"),
    "ICO": (encode(PHOTO, "ICO"), "neither PNG"),
    "PDF": (encode(PHOTO, "PDF"), "neither PNG"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "neither PNG"),
    "AVIF": (box(b"ftyp", b"avif"), "neither PNG"),
    "HEIC": (box(b"ftyp", b"heic"), "neither PNG"),
    "SVG with a script": (
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg">' + SCRIPT + b"</svg>",
        "neither PNG",
    ),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (r) file", "neither PNG"),
    "ZIP": (archive(), "neither PNG"),
    "HTML": (b"<!doctype html>" + SCRIPT, "neither PNG"),
    "a picture behind something else": (b"GIF89a" + encode(PHOTO, "PNG"), "neither PNG"),
    "zeros": (bytes(1000), "neither PNG"),
}
#: What is a picture, whatever else it is; it has PHOTO's size unless it is named here.
TAKEN: dict[str, bytes] = {
    "PNG and ZIP": encode(PHOTO, "PNG") + archive(),
    "PNG and a page": encode(PHOTO, "PNG") + SCRIPT,
    "PNG with a script in its text": encode(PHOTO, "PNG")[:33]
    + chunk(b"tEXt", b"Comment\0" + SCRIPT)
    + encode(PHOTO, "PNG")[33:],
    "JPEG with a script as its comment": JPEG[:2]
    + b"\xff\xfe"
    + struct.pack(">H", len(SCRIPT) + 2)
    + SCRIPT
    + JPEG[2:],
    "JPEG with ten megabytes of comments": JPEG[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 160 + JPEG[2:],
    "JPEG with a loop in its EXIF": encode(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "JPEG with entities in its XMP": encode(
        PHOTO,
        "JPEG",
        xmp=b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><x:xmpmeta>&b;&b;</x:xmpmeta>',
    ),
    "animated PNG of a hundred frames": encode(
        PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(n) for n in range(100)]
    ),
    "animated WebP": ANIMATED,
    "CMYK JPEG": encode(PHOTO.convert("CMYK"), "JPEG"),
    "PNG that unpacks to far more than its pixels": packed(zeros(400), size=PHOTO.size),
    "PNG of bytes in a chunk each": packed(
        *(bytes([byte]) for byte in zlib.compress(bytes(321 * 192), 0)), size=PHOTO.size
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _memory(house: Gateway) -> Any:
    """None of the images of this module makes a process take much memory, or end."""
    processes = children(house.running.pid)
    for process in processes:
        # Begin to count the most that is resident anew (proc(5), clear_refs).
        Path(f"/proc/{process}/clear_refs").write_text("5")
    before = {process: _kilobytes(process, "VmRSS") for process in processes}
    yield
    assert children(house.running.pid) == processes
    taken = {process: (_kilobytes(process, "VmHWM") - before[process]) * 1024 for process in processes}
    assert max(taken.values()) < MOST_MEMORY, taken


def _kilobytes(process: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+([0-9]+) kB", Path(f"/proc/{process}/status").read_text("ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def post(house: Gateway, data: bytes, declared: str = "image/png") -> Any:
    uri = f"data:{declared};base64,{base64.b64encode(data).decode('ascii')}"
    body = picture(id=USER, width=64, height=64, steps=1) | {"init_images": uri}
    return house.send("img2img", body, prefer="respond-async")


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_sentence(house: Gateway, case: str) -> None:
    data, reason = REFUSED[case]
    answer = post(house, data)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert (problem["type"], list(problem["errors"])) == ("bad-image", ["init_images"])
    [sentence] = problem["errors"]["init_images"]
    assert re.search(reason, sentence), sentence
    assert not re.search(r"Traceback|/tmp|PIL|line \d", answer.text)


@pytest.mark.parametrize("case", TAKEN)
def test_only_its_pixels_are_kept(house: Gateway, case: str) -> None:
    answer = post(house, TAKEN[case])
    assert answer.status_code == 202, answer.text
    kept = house.http.get(answer.json()["init_image"]["url"])
    image = Image.open(io.BytesIO(kept.content))
    image.load()
    assert (kept.headers["Content-Type"], image.format, image.size, image.info) == ("image/png", "PNG", PHOTO.size, {})
    assert SCRIPT not in kept.content
    assert kept.content.endswith(b"IEND\xaeB`\x82")
    assert b"PK\x05\x06" not in kept.content
    house.http.request("POST", f"{answer.json()['url']}/cancel")
