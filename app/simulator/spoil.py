"""Faults of the result: pictures, ``info`` and progress answers that are wrong."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from PIL import Image

from app.simulator import pictures
from app.simulator.faults import Fault
from app.simulator.job import Job
from app.simulator.pictures import Picture

_WRONG_SEED = 777777
_WRONG_SIZE = (8, 2000)
#: What the compressed text chunk of "text-chunk" unpacks to, bytes.
_UNPACKED = 2**21


def wrong_size() -> bytes:
    """A PNG of a size that nobody asks for."""
    return pictures.to_png(Image.new("RGB", _WRONG_SIZE, "grey"))


def spoil_job(job: Job, fault: Fault | None) -> None:
    """Change the pictures or the ``info`` of a finished job as its fault says."""
    effect = None if fault is None else fault.effect
    if effect == "grid" and job.pictures and not job.first:
        job.pictures.insert(0, pictures.grid(job.pictures, job.infotexts[0]))
        job.infotexts.insert(0, job.infotexts[0])
        job.info["index_of_first_image"] = 1
    elif effect == "wrong-model":
        job.info |= {"sd_model_name": "another-model", "sd_model_hash": "0123456789"}
    elif effect == "wrong-seeds":
        seeds = [_WRONG_SEED + index for index in range(len(job.seeds))]
        job.info |= {"seed": _WRONG_SEED, "all_seeds": seeds}
    elif effect == "wrong-size":
        job.pictures = [Picture(wrong_size(), picture.text) for picture in job.pictures]
    elif effect == "text-chunk":
        chunk = b"workflow\0\0" + zlib.compress(b"x" * _UNPACKED)
        job.pictures = [Picture(pictures.with_chunk(item.png, b"zTXt", chunk), item.text) for item in job.pictures]
    elif effect == "long-infotext" and fault is not None:
        _lengthen(job, fault.sized(2**20))


def _lengthen(job: Job, characters: int) -> None:
    texts = [f"{text}, Padding: ".ljust(characters, "x") for text in job.infotexts]
    job.info["infotexts"] = texts
    job.pictures = [Picture(picture.png, text) for picture, text in zip(job.pictures, texts, strict=True)]


def spoil_images(images: list[str], fault: Fault | None) -> list[str]:
    """The list of base64 pictures that a faulty server would send."""
    effect = None if fault is None else fault.effect
    if effect == "no-images":
        return []
    if effect == "fewer-images":
        return images[:-1]
    if effect == "bad-base64":
        return ["*" + base64.b64encode(b"no picture").decode()[1:-1] for _ in images]
    return images


_NONSENSE: tuple[Any, ...] = (10**399 * 7, float("nan"), float("inf"), float("-inf"), "0.5")


def nonsense_progress(body: dict[str, Any], turn: int) -> bytes:
    """A progress answer, as JSON, with unusable numbers; ``turn`` chooses which kind."""
    value = _NONSENSE[turn % len(_NONSENSE)]
    numbers = ("progress", "eta", "eta_relative")

    def spoilt(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: value if key in numbers else spoilt(item) for key, item in found.items()}
        return value if isinstance(found, int | float) and not isinstance(found, bool) else found

    return json.dumps(spoilt(body)).encode()
