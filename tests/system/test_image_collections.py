"""Every image of two public collections as a reference image, compared with what libvips shows of it.

Nothing of them is committed: Pillow's test images come with its source package, a part of PngSuite with Debian's package of Go's
sources; pyvips is installed into an environment of its own. Where one can't be had the tests are skipped.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL
import pytest
from PIL import Image, ImageChops

from tests.system.harness import Gateway, Stage, picture, until

pytestmark = pytest.mark.soak

#: Largest difference of a level that counts as the same colour.
SAME = 2
#: Bytes that the gateway may take above what it takes at the start.
ROOM = 200 * 10**6
#: The longest answer, seconds.
SLOWEST = 5
DEBIAN_PACKAGE = "golang-1.19-src"
LIBVIPS_SCRIPT = Path(__file__).with_name("libvips_decode.py")
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")

_CMYK = "CMYK without a profile: browsers and the gateway multiply the inks, libvips takes a profile of its own"
#: Images that libvips shows otherwise, and why that is no fault.
OTHERWISE = {"pil_sample_cmyk.jpg": _CMYK, "video-001.cmyk.jpeg": _CMYK}
#: Images in PNG, JPEG or WebP that are refused, and why that is right.
REFUSED = {
    "broken.png": "a chunk's length points behind the end",
    "broken_data_stream.png": "the checksum of the pixels is wrong, and the end is missing",
    "invalid-crc32.png": "the checksums of header and pixels are wrong",
    "invalid-zlib.png": "the checksum within the compressed pixels is wrong",
    "syntax_num_frames_zero.png": "there are no pixels: no IDAT chunk",
    "truncated_image.png": "cut off within its pixels",
    "ultrahdr.jpg": "cut off within its pixels: the file has 48 kB of 1512 × 2688 pixels",
    "unknown_compression_method.png": "the checksum of the iCCP chunk is wrong",
    "video-001.progressive.truncated.jpeg": "cut off within its scans",
}


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command, or skip the test where it fails: it needs the network."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} {command[1]} failed: {done.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("collections")


@pytest.fixture(scope="module")
def libvips(folder: Path) -> Path:
    """The Python of an environment that has pyvips."""
    environment = folder / "libvips"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "pyvips[binary]>=3", cwd=folder)
    return python


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose WebUI hangs at the first job, so that all others cost no more than being accepted."""
    stage = Stage(tmp_path_factory.mktemp("gateway"))
    try:
        webui = stage.simulator()
        gateway = stage.gateway([webui], processes=1, SDG_MAX_QUEUE_PER_USER=10_000, SDG_MAX_QUEUE=10_000)
        webui.fault("hang")
        first = gateway.post("txt2img", prefer="respond-async").json()
        until(lambda: gateway.status(first["url"]) == "running", "the WebUI hangs")
        yield gateway
    finally:
        stage.clear()


def pillows_images(folder: Path) -> list[Path]:
    run(
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "pillow",
        f"pillow=={PIL.__version__}",
        cwd=folder,
    )
    [archive] = folder.glob("pillow-*.tar.gz")
    run("tar", "xzf", archive, cwd=folder)
    return images(folder / archive.name.removesuffix(".tar.gz") / "Tests")


def gos_images(folder: Path) -> list[Path]:
    run("apt-get", "download", DEBIAN_PACKAGE, cwd=folder)
    [archive] = folder.glob(f"{DEBIAN_PACKAGE}_*.deb")
    run("dpkg", "-x", archive, folder / "go", cwd=folder)
    return [path for place in (folder / "go").rglob("image") if place.is_dir() for path in images(place)]


def images(folder: Path) -> list[Path]:
    """The files that begin as PNG, JPEG or WebP do, whatever their names; and those of other formats, to be refused."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".go", ".md", ".txt")
    )


def known_format(data: bytes) -> bool:
    return data.startswith(SIGNATURES) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")


def memory(gateway: Gateway, what: str) -> int:
    """VmHWM (the most that was ever resident) or VmRSS (what is now) of the gateway, bytes."""
    lines = Path(f"/proc/{gateway.worker_pid()}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) * 1024


def decoded(libvips: Path, folder: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """The pixels of each image as libvips decodes it, by path."""
    folder.mkdir(exist_ok=True)
    lines = "".join(f"{path}\n" for path in paths)
    done = subprocess.run(
        [libvips, LIBVIPS_SCRIPT, folder], input=lines, capture_output=True, text=True, timeout=600, check=True
    )
    return {answer["path"]: answer for answer in map(json.loads, done.stdout.splitlines())}


def difference(kept: Image.Image, shown: dict[str, Any]) -> str | None:
    """The difference between the image that the gateway kept and the pixels that libvips decoded; None if there is none."""
    if "error" in shown:
        return f"libvips: {shown['error']}"
    if kept.size != (shown["width"], shown["height"]):
        return f"{kept.size} instead of {shown['width']} × {shown['height']}"
    theirs = Image.frombytes("RGBA", kept.size, Path(shown["pixels"]).read_bytes())
    levels = [highest for _, highest in ImageChops.difference(kept.convert("RGBA"), theirs).getextrema()]
    return f"red, green, blue and alpha differ by up to {levels}" if max(levels) > SAME else None


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("collect", [pillows_images, gos_images], ids=["Pillow", "Go with PngSuite"])
def test_every_image_of_a_collection(folder: Path, libvips: Path, gateway: Gateway, collect: Any) -> None:
    paths = collect(folder)
    known = [path for path in paths if known_format(path.read_bytes())]
    assert len(known) > 50
    shown = decoded(libvips, folder / "pixels", known)
    at_start = memory(gateway, "VmRSS")
    wrong = []
    for path in paths:
        data = path.read_bytes()
        body = picture(id="collector") | {"init_images": base64.b64encode(data).decode("ascii")}
        begun = time.monotonic()
        answer = gateway.send("img2img", body, prefer="respond-async")
        seconds = time.monotonic() - begun
        if seconds > SLOWEST:
            wrong.append(f"{path.name}: {seconds:.1f} s")
        if answer.status_code == 202:
            kept = Image.open(io.BytesIO(gateway.http.get(answer.json()["init_image"]["url"]).content))
            found = difference(kept, shown[str(path)])
            if (found is None) == (path.name in OTHERWISE):
                wrong.append(f"{path.name}: {found}")
        elif answer.status_code != 422 or answer.json()["type"] != "bad-image":
            wrong.append(f"{path.name}: {answer.text}")
        elif path not in known and "neither" not in answer.json()["detail"]:
            wrong.append(f"{path.name}: {answer.json()['detail']}")
        if path in known and (answer.status_code == 202) == (path.name in REFUSED):
            wrong.append(f"{path.name}: {answer.status_code}")
    assert wrong == []
    assert memory(gateway, "VmHWM") - at_start < ROOM
