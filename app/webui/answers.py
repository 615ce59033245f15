"""What a WebUI's answer to a generation means: pictures with their seeds, or one of the room's errors.

The shape of good answers: ``modules/api/api.py`` and ``Processed.js`` in ``modules/processing.py`` of the WebUI; the error
bodies of the different WebUIs are told apart by their keys.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pybase64

from app import jsontext
from app.webui.errors import BadAnswer, OutOfMemory, Refused, WebuiError, WebuiFailed, WrongModel
from app.webui.exchange import Reply
from app.webui.models import Model

__all__ = ["Generation", "Picture", "Reply", "generation_images_base64", "read_generation", "read_upscaled"]

_log = logging.getLogger("app.webui")

#: ``info.version`` of a simulated WebUI begins so; that alone makes a job simulated.
SIMULATED = "simulator"

_OK = 200
_CREDENTIALS = (401, 403)
_MISSING = 404
_SERVER_FAILED = 500
#: 4xx that are about the moment, not about the request: timeout, too early, too many (a proxy in between sends them).
_COME_AGAIN = (408, 425, 429)
_OUT_OF_MEMORY = ("outofmemoryerror", "out of memory")
_LONGEST_CLASS_NAME = 80


@dataclass(frozen=True)
class Picture:
    """One picture: the image file's bytes in whatever format the WebUI sent, the seed it was made with, its infotext."""

    data: bytes
    seed: int
    infotext: str


@dataclass(frozen=True)
class Generation:
    """A good answer: the pictures in the order of their seeds, and what made them."""

    pictures: tuple[Picture, ...]
    #: As the WebUI shows it, ``info.sd_model_name``.
    model: str
    sampler: str | None
    version: str | None
    simulated: bool


def read_generation(reply: Reply, *, expected: int, model: Model) -> Generation:
    """Read the answer to txt2img or img2img.

    :param expected: number of pictures asked for; what extensions put behind them is left out, as is a grid before them.
    :param model: the one that the job names.
    :raises Refused, OutOfMemory, WebuiFailed: for an answer other than 200.
    :raises WrongModel: when another model made the pictures.
    :raises BadAnswer: for fewer pictures than expected (a person may have interrupted them), and for what cannot be read.
    """
    body = _success(reply)
    info = _info(body)
    if not model.fits(info.get("sd_model_name"), info.get("sd_model_hash")):
        raise WrongModel
    first = _first(info)
    images = _images(body, first, expected)
    seeds = _seeds(info, expected)
    infotexts = _infotexts(info, first, expected)
    version = _text(info.get("version"))
    return Generation(
        pictures=tuple(
            Picture(_decoded(image), seed, infotext)
            for image, seed, infotext in zip(images, seeds, infotexts, strict=True)
        ),
        model=info["sd_model_name"],
        sampler=_text(info.get("sampler_name")),
        version=version,
        simulated=version is not None and version.startswith(SIMULATED),
    )


def generation_images_base64(reply: Reply, expected: int) -> list[str]:
    """Return the pictures of an answer as they came, to be posted again for upscaling; raises as read_generation does."""
    body = _success(reply)
    return _images(body, _first(_info(body)), expected)


def read_upscaled(reply: Reply, pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    """Return the pictures with their data replaced by the answer of the extras, which knows neither seeds nor infotexts.

    :raises Refused, OutOfMemory, WebuiFailed, BadAnswer: as read_generation does.
    """
    images = _images(_success(reply), 0, len(pictures))
    return tuple(replace(picture, data=_decoded(image)) for picture, image in zip(pictures, images, strict=True))


def _success(reply: Reply) -> dict[str, Any]:
    if reply.status != _OK:
        raise _failure(reply)
    return _object(reply.body)


def _failure(reply: Reply) -> WebuiError:
    """Tell a refusal, a lack of memory and any other failure apart; only the class name of the WebUI's error is logged."""
    body = _error_body(reply.body)
    shown = _class_name(body.get("error"))
    _log.warning("the WebUI answered a generation with status %d, error %s", reply.status, shown)
    if reply.status >= _SERVER_FAILED and _no_memory(body):
        return OutOfMemory()
    if reply.status >= _SERVER_FAILED or reply.status in _COME_AGAIN:
        return WebuiFailed()
    if reply.status in _CREDENTIALS:
        return Refused("The WebUI refuses the gateway's credentials.")
    if reply.status == _MISSING:
        return Refused("The WebUI lacks something that the job needs, or its API is switched off.")
    return Refused(f"The WebUI refused the request (status {reply.status}).")


def _class_name(name: object) -> str:
    """Return what is safe to log of the error's name: a (dotted) class name, never a sentence."""
    if isinstance(name, str) and len(name) <= _LONGEST_CLASS_NAME and name.replace(".", "_").isidentifier():
        return name
    return "unknown"


def _error_body(body: bytes) -> dict[str, Any]:
    """Return the error's JSON object; a bare text counts as its message."""
    try:
        read = jsontext.loads(body)
    except (ValueError, RecursionError):
        read = body.decode("utf-8", "replace")
    return read if isinstance(read, dict) else {"message": read}


def _no_memory(body: dict[str, Any]) -> bool:
    # A1111 puts the text of an exception under "errors", Forge under "message", an HTTPException under "detail".
    texts = (body.get(key) for key in ("error", "errors", "message", "detail"))
    said = " ".join(text.lower() for text in texts if isinstance(text, str))
    return any(mark in said for mark in _OUT_OF_MEMORY)


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        read = jsontext.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswer from error
    if not isinstance(read, dict):
        raise BadAnswer
    return read


def _info(body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer's ``info``, which is JSON inside a string."""
    info = body.get("info")
    if not isinstance(info, str):
        raise BadAnswer
    return _object(info)


def _first(info: dict[str, Any]) -> int:
    """Return the place of the first picture; a grid may stand before it."""
    first = info.get("index_of_first_image", 0)
    if not _is_integer(first) or first < 0:
        raise BadAnswer
    return int(first)


def _images(body: dict[str, Any], first: int, expected: int) -> list[str]:
    images = body.get("images")
    if not isinstance(images, list):
        raise BadAnswer
    wanted = images[first : first + expected]
    if len(wanted) < expected:
        raise BadAnswer("The WebUI sent fewer pictures than it was asked for; it may have been interrupted.")
    if not all(isinstance(image, str) for image in wanted):
        raise BadAnswer
    return wanted


def _seeds(info: dict[str, Any], expected: int) -> list[int]:
    seeds = info.get("all_seeds")
    if not isinstance(seeds, list) or len(seeds) < expected or not all(map(_is_integer, seeds)):
        raise BadAnswer
    return seeds[:expected]


def _infotexts(info: dict[str, Any], first: int, expected: int) -> list[str]:
    """Return one infotext per picture; they are for people, so a missing one is no reason to lose the picture."""
    listed = info.get("infotexts")
    texts = listed[first : first + expected] if isinstance(listed, list) else []
    return [_text(text) or "" for text in texts] + [""] * (expected - len(texts))


def _decoded(image: str) -> bytes:
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        data = pybase64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadAnswer from error
    if not data:
        raise BadAnswer
    return data


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
