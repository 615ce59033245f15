"""Errors of a WebUI that say what is wrong with the request: it would fail there again in the same way.

The texts are those of the WebUI's own code and of the libraries under it, as recorded from A1111 1.8, 1.10.1 and Forge. What is
not in the table may be chance, and is tried again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: A1111 puts the text of an exception under "errors", Forge under "message", an HTTPException under "detail".
_TEXTS: Final = ("error", "errors", "message", "detail")
#: Marks of a lack of memory, of a GPU or of the machine (torch's allocators, CUDA and its libraries, ROCm, MPS, NumPy, Python).
_OUT_OF_MEMORY: Final = re.compile(
    r"memoryerror|out of memory|not enough memory|can(?:'|no)t allocate memory|unable to allocate|status_alloc_failed"
    r"|invalid buffer size"
)
#: The class of every error under anyio 4, and a text that only counts: neither says what went wrong.
_SILENT_CLASSES: Final = ("ExceptionGroup", "BaseExceptionGroup", "")
_SILENT_TEXT: Final = re.compile(r"unhandled errors in a TaskGroup|\A\s*(?:Internal Server Error)?\s*\Z")
_KEY_ERROR: Final = "KeyError"
#: Characters of an error's text that are looked at.
_LONGEST_TEXT: Final = 8192


@dataclass(frozen=True, slots=True)
class _Deterministic:
    """One such error: what its class or text shows, and what a client should change."""

    mark: re.Pattern[str]
    advice: str


_TABLE: Final = (
    _Deterministic(
        re.compile(r"NansException|tensor with (?:all )?NaNs was produced"),
        "The model made invalid numbers (NaN) instead of a picture. Change the prompt, the size or the sampler, or ask for another "
        "model.",
    ),
    _Deterministic(
        re.compile(r"UniPC order must be < sampling steps"),
        "The sampler UniPC needs more steps. Ask for more steps, or for another sampler.",
    ),
    _Deterministic(
        re.compile(r"height and width must be > 0|tile cannot extend outside image"),
        "The WebUI can't bring the reference image or the picture to the size that was asked for. Use a reference image with a "
        "less extreme shape, another resize_mode, or another size.",
    ),
    _Deterministic(
        re.compile(
            r"Kernel size can't be greater than actual input size|shapes cannot be multiplied|must match the size of tensor"
            r"|Sizes of tensors must match|Given groups=\d+, weight of size"
        ),
        "The size, the prompt's extra networks or the sampler don't fit the model. Change the size, leave extra networks (such as "
        "LoRA) that were made for another kind of model out of the prompt, or ask for another model.",
    ),
    _Deterministic(
        re.compile(r"ZeroDivisionError|(?:division|modulo) by zero|division by zero"),
        "The WebUI can't work with so few steps or so small a denoising_strength. Ask for more.",
    ),
    _Deterministic(
        re.compile(r"could not find upscaler named"),
        "The WebUI does not know this upscaler. Ask for another hr_upscaler.",
    ),
    _Deterministic(
        re.compile(r"Invalid image format"),
        "The WebUI is set to a picture format that it can't send (samples_format). Its operator must set it to png, jpg or webp.",
    ),
)  # fmt: skip


def says_out_of_memory(body: Mapping[str, Any]) -> bool:
    """Whether an error's JSON object tells of a lack of memory."""
    return _OUT_OF_MEMORY.search(_said(body).lower()) is not None


def advice(body: Mapping[str, Any]) -> str | None:
    """Advice to the client where the error is a deterministic one; None for any other error.

    The sentence is ours and holds nothing of the WebUI's text.
    """
    said = _said(body)
    return next((entry.advice for entry in _TABLE if entry.mark.search(said)), None)


def unknown_option(body: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """The overridden option that the WebUI does not know: an override of an unknown one is a KeyError before any work."""
    if body.get("error") != _KEY_ERROR:
        return None
    said = {str(body.get(key)).strip("'\" ") for key in ("errors", "message")}
    return next((option for option in options if option in said), None)


def says_nothing(body: Mapping[str, Any]) -> bool:
    """Whether neither class nor text of the error tells what went wrong."""
    texts = _joined(body, _TEXTS[1:])
    return body.get("error", "") in _SILENT_CLASSES and _SILENT_TEXT.search(texts) is not None


def says_model_broken(body: Mapping[str, Any]) -> bool:
    """Whether a Forge says that the model it has loaded is gone from its memory, as after a failed switch."""
    return "has no attribute 'sd_checkpoint_info'" in _said(body)


def _said(body: Mapping[str, Any]) -> str:
    return _joined(body, _TEXTS)


def _joined(body: Mapping[str, Any], keys: Sequence[str]) -> str:
    return " ".join(text[:_LONGEST_TEXT] for key in keys if isinstance(text := body.get(key), str))
