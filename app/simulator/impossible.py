"""The requests that pass validation and fail in the work, each with the exception that the server names."""

from __future__ import annotations

import math

from app.simulator import lists
from app.simulator.errors import CrashError
from app.simulator.job import Job
from app.simulator.settings import Flavour

_OOM = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.12 GiB is free. "
    "This message is simulated."
)
#: The option ``uni_pc_order``: fewer steps than this fail.
_UNIPC_ORDER = 3
_SMALL = (
    "Calculated padded input size per channel: (10 x 2). Kernel size: (3 x 3). "
    "Kernel size can't be greater than actual input size"
)
#: The nulls that pass validation and fail in the work, with Python's own words for it.
_NULLS = (
    (("prompt", "negative_prompt"), "AssertionError", ""),
    (("width", "height"), "TypeError", "unsupported operand type(s) for //: 'NoneType' and 'int'"),
    (("batch_size", "n_iter"), "TypeError", "unsupported operand type(s) for *: 'NoneType' and 'int'"),
    (("steps",), "TypeError", "unsupported operand type(s) for //: 'NoneType' and 'NoneType'"),
    (("cfg_scale",), "TypeError", "unsupported operand type(s) for *: 'float' and 'NoneType'"),
)


def nans(flavour: Flavour) -> CrashError:
    """The error of A1111's check for NaNs; its words changed with 1.10."""
    words = "NaNs" if flavour.schedulers else "all NaNs"
    flag = "Use --disable-nan-check commandline argument to disable this check."
    return CrashError("NansException", f"A tensor with {words} was produced in Unet. {flag}")


def out_of_memory() -> CrashError:
    """The error of torch when the GPU's memory is full."""
    return CrashError("OutOfMemoryError", _OOM)


def refuse_impossible(job: Job, flavour: Flavour) -> None:
    """Check everything that makes the server fail before or in the first pass.

    :raises CrashError: with the exception and the words of the server.
    """
    for names, exception, message in _NULLS:
        if any(job[name] is None for name in names):
            raise CrashError(exception, message)
    if job["batch_size"] < 1 or job["n_iter"] < 1:
        raise CrashError("IndexError", "list index out of range")
    upscaler = job.fields.get("hr_upscaler")
    if job.hires and upscaler is not None and upscaler not in (*lists.LATENT_MODES, *lists.UPSCALERS):
        raise CrashError("Exception", f"could not find upscaler named {upscaler}")
    _refuse_numbers(job, flavour)


def _refuse_numbers(job: Job, flavour: Flavour) -> None:
    if job["steps"] == 0:
        raise CrashError("ZeroDivisionError", "integer division or modulo by zero")
    if job["steps"] < 0:
        raise CrashError("RuntimeError", "number of steps must be non-negative")
    if not -(2**63) <= (job["seed"] or 0) < 2**64:
        raise CrashError("ValueError", "Overflow when unpacking long long")
    if math.isnan(job["cfg_scale"]):
        raise nans(flavour)
    if job.sampler == "UniPC" and job["steps"] < _UNIPC_ORDER:
        raise CrashError("AssertionError", "UniPC order must be < sampling steps")
    _refuse_size(job["width"] // 8, job["height"] // 8)


def _refuse_size(width: int, height: int) -> None:
    """Latent sizes, an eighth of the picture's."""
    if min(width, height) < 0:
        text = f"Trying to create tensor with negative dimension {min(width, height)}: [4, {height}, {width}]"
        raise CrashError("RuntimeError", text)
    if min(width, height) == 0:
        raise CrashError("RuntimeError", _SMALL)


def refuse_impossible_hires(job: Job, flavour: Flavour) -> None:
    """Check what the server notices only after the first pass.

    :raises CrashError: with the exception and the words of the server.
    """
    if flavour.forge and job["hr_additional_modules"] is None:
        raise CrashError("TypeError", "argument of type 'NoneType' is not iterable")
    if job["denoising_strength"] is None:
        raise CrashError("TypeError", "'>' not supported between instances of 'NoneType' and 'int'")
    name = job["hr_sampler_name"]
    if name and not lists.has_sampler(flavour, name):
        raise CrashError("AssertionError", f"bad sampler name: {name}")
    width, height = job.target or job.size
    if min(width, height) < 8:
        small = f"(H: {job.size[1] // 8}, W: {job.size[0] // 8})"
        text = f"Input and output sizes should be greater than 0, but got input {small} output (H: {height // 8}, W: {width // 8})"
        raise CrashError("RuntimeError", text)
