"""The reference images of an img2img job: decoding and checks."""

from __future__ import annotations

import hashlib

from app.simulator import pictures
from app.simulator.errors import CrashError
from app.simulator.job import Job
from app.simulator.settings import Flavour


def read_inputs(job: Job, flavour: Flavour, background: str) -> None:
    """Decode the reference images of an img2img job, in the lock, as the server does (``api.img2imgapi``).

    :raises SimulatedError: an image cannot be decoded.
    """
    for item in job["init_images"]:
        if not isinstance(item, str):
            raise CrashError("AttributeError", f"'{type(item).__name__}' object has no attribute 'startswith'")
        image = pictures.flatten(pictures.decode(item, upright=flavour.exif), background)
        job.inits.append((image, hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()))


def check_inputs(job: Job) -> None:
    """Check the number and the shapes of the reference images; the batch size becomes their number where there are several.

    The server does this only in the work, after the decoding of all of them.

    :raises CrashError: there are none, more than the batch takes, or one is too thin.
    """
    count = len(job.inits)
    if not count:
        text = "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [0]"
        raise CrashError("RuntimeError", text)
    if count > 1:
        if count > job["batch_size"]:
            text = f"bad number of images passed: {count}; expecting {job['batch_size']} or less"
            raise CrashError("RuntimeError", text)
        job.fields["batch_size"] = count
    if job["resize_mode"] not in (0, 1, 3) and job["width"] and job["height"]:
        for image, _ in job.inits:
            _refuse_thin(image.size, (job["width"], job["height"]))


def _refuse_thin(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Filling scales a very thin reference to a side of 0 pixels (``images.resize_image``)."""
    width, height = target
    if width * size[1] < height * size[0]:
        height = size[1] * width // size[0]
    else:
        width = size[0] * height // size[1]
    if min(width, height) <= 0:
        raise CrashError("ValueError", "height and width must be > 0")
