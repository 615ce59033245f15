"""Variants of pictures for Figure 5: one that was made before, and the time until a first one is there."""

from __future__ import annotations

import io
import os
import time
from http import HTTPStatus
from pathlib import Path

from PIL import Image

from benchmarks.harness import Bench, BenchmarkError, Gateway
from benchmarks.report import Row, Sample, judged, milliseconds, say

_PICTURES = 40
_SIDE = 512
_LONGEST = 160


def made_before(gateway: Gateway, size: int) -> str:
    """The URL of a variant whose file has so many bytes."""
    image = gateway.make(width=64, height=64)["images"][0]
    url: str = image["thumbnail_url"]
    _get(gateway, url)
    [kept] = (gateway.data / ".variants").rglob(f"{image['filename']}.*")
    kept.write_bytes(os.urandom(size))
    return url


def first(bench: Bench, gateway: Gateway) -> Row:
    """Time the first request for each of some thumbnails, and in turns the same work by Pillow alone."""
    say(f"thumbnails of {_SIDE}×{_SIDE} made, {bench.count(_PICTURES)} of them")
    asked, alone = [], []
    for seed in range(bench.count(_PICTURES)):
        job = gateway.make(width=_SIDE, height=_SIDE, seed=str(seed))
        stored = gateway.file(job)
        # The first of the two would read it from the disk.
        stored.read_bytes()
        begun = time.perf_counter()
        _get(gateway, job["images"][0]["thumbnail_url"])
        asked.append(milliseconds(time.perf_counter() - begun))
        begun = time.perf_counter()
        _by_hand(stored)
        alone.append(milliseconds(time.perf_counter() - begun))
    through, straight = Sample(asked), Sample(alone)
    added = through.median - straight.median
    return Row(
        f"first thumbnail of a picture of {_SIDE}×{_SIDE}",
        f"{through}: {added:.2f} ms added",
        f"Pillow alone {straight}",
        "added ≤ 10 ms at the median",
        judged(added <= 10),
    )


def _get(gateway: Gateway, url: str) -> bytes:
    with gateway.line() as line:
        answer = line.send("GET", url)
    if answer.status != HTTPStatus.OK:
        raise BenchmarkError(f"a thumbnail: status {answer.status}")
    return answer.body


def _by_hand(stored: Path) -> bytes:
    """A thumbnail of a file as an application without a gateway would make it."""
    with Image.open(io.BytesIO(stored.read_bytes())) as image:
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        encoded = io.BytesIO()
        image.save(encoded, "WEBP", quality=85)
    return encoded.getvalue()
