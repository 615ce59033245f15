"""The meaning of a WebUI's answer to a generation: pictures with their seeds, or one of the package's errors.

The shape of good answers: ``modules/api/api.py`` and ``Processed.js`` in ``modules/processing.py`` of the WebUI; the error
bodies of the different WebUIs are told apart by their keys.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pybase64

from app.webui import bounds
from app.webui.bounds import AnswerBounds
from app.webui.errors import (
    BadAnswer,
    Cannot,
    OutOfMemory,
    Refused,
    WebuiError,
    WebuiFailed,
    WrongModel,
    WrongValues,
)
from app.webui.exchange import Reply
from app.webui.failures import advice, says_out_of_memory
from app.webui.models import Model

__all__ = [
    "Generation",
    "Picture",
    "Reply",
    "error_body",
    "generation_images_base64",
    "is_restarted",
    "is_start_window",
    "made_with",
    "read_generation",
    "read_upscaled",
]

_log = logging.getLogger("app.webui")

#: ``info.version`` of a simulated WebUI begins so; that alone makes a job simulated.
SIMULATED = "simulator"

_OK = 200
_CREDENTIALS = (401, 403)
_MISSING = 404
_SERVER_FAILED = 500
#: 4xx that are about the moment, not about the request: timeout, too early, too many (a proxy in between sends them).
_COME_AGAIN = (408, 425, 429)
_LONGEST_CLASS_NAME = 80
#: Beyond what torch takes as a seed, so none of a picture.
_SEEDS = 2**64
#: The router's own 404, which has no ``error`` key where the API's own errors have one (contract of A1111; Forge's lack it too, but
#: say something else).
_NO_ROUTE = {"detail": "Not Found"}


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
    #: When the generation began, by the WebUI's clock, as ``state.job_timestamp`` shows it; None where the WebUI does not say it.
    job_timestamp: str | None
    #: The prompt as the WebUI used it for the first picture, styles and all; None where it does not say it.
    prompt: str | None


def read_generation(
    reply: Reply, limits: AnswerBounds, *, expected: int, model: Model, first_seed: int | None
) -> Generation:
    """Read the answer to txt2img or img2img.

    :param limits: what the answer may hold; a longer infotext is cut.
    :param expected: number of pictures asked for; what extensions put behind them is left out, as is a grid before them.
    :param model: the one that the job names.
    :param first_seed: the seed that was sent, picture k having the seed above it by k; None takes any.
    :raises Refused, Cannot, OutOfMemory, WebuiFailed: for an answer other than 200.
    :raises WrongModel: when another model made the pictures.
    :raises WrongValues: when they were made with other seeds.
    :raises BadAnswer: for fewer pictures than expected (a person may have interrupted them), and for what cannot be read.
    """
    body = _success(reply, limits)
    info = _info(body, limits)
    if not model.fits(info.get("sd_model_name"), info.get("sd_model_hash")):
        raise WrongModel
    first = _first(info)
    images = _images(body, first, expected)
    seeds = _seeds(info, expected, first_seed)
    infotexts = _infotexts(info, first, expected)
    version = bounds.name(info.get("version"))
    return Generation(
        pictures=tuple(
            Picture(_decoded(image), seed, limits.cut(infotext))
            for image, seed, infotext in zip(images, seeds, infotexts, strict=True)
        ),
        model=info["sd_model_name"],
        sampler=bounds.name(info.get("sampler_name")),
        version=version,
        simulated=version is not None and version.startswith(SIMULATED),
        job_timestamp=bounds.name(info.get("job_timestamp")),
        prompt=_first_prompt(info),
    )


def generation_images_base64(reply: Reply, limits: AnswerBounds, expected: int) -> list[str]:
    """Return the pictures of an answer as they came, to be posted again for upscaling; raises as read_generation does."""
    body = _success(reply, limits)
    return _images(body, _first(_info(body, limits)), expected)


def read_upscaled(reply: Reply, limits: AnswerBounds, pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    """Return the pictures with their data replaced by the answer of the extras, which knows neither seeds nor infotexts.

    :raises Refused, Cannot, OutOfMemory, WebuiFailed, BadAnswer: as read_generation does.
    """
    if is_start_window(reply):
        # Its first half was made, so the WebUI was up, and has been restarted since.
        raise WebuiFailed
    images = _images(_success(reply, limits), 0, len(pictures))
    return tuple(replace(picture, data=_decoded(image)) for picture, image in zip(pictures, images, strict=True))


def made_with(reply: Reply, limits: AnswerBounds, model: Model) -> bool:
    """Whether a generation succeeded, and with this model; its pictures are not looked at."""
    try:
        info = _info(_success(reply, limits), limits)
    except WebuiError:
        return False
    return model.fits(info.get("sd_model_name"), info.get("sd_model_hash"))


def is_start_window(reply: Reply) -> bool:
    """Whether the WebUI answered as it does between opening its port and adding its API's routes, or without ``--api``."""
    return _says_no_route(reply) is not False


def is_restarted(reply: Reply) -> bool:
    """Whether it is the WebUI's own router that answered so, and no proxy in front of it."""
    return _says_no_route(reply) is True


def _says_no_route(reply: Reply) -> bool | None:
    """Whether the answer is the router's own 404; None for a 404 that is no JSON."""
    if reply.status != _MISSING:
        return False
    try:
        return bool(bounds.parse(reply.body) == _NO_ROUTE)
    except BadAnswer:
        return None


def _success(reply: Reply, limits: AnswerBounds) -> dict[str, Any]:
    if reply.status != _OK:
        raise _failure(reply)
    return _object(reply.body, limits)


def _failure(reply: Reply) -> WebuiError:
    """Tell a refusal, a lack of memory and any other failure apart; only the class name of the WebUI's error is logged."""
    body = error_body(reply)
    shown = _class_name(body.get("error"))
    _log.warning("the WebUI answered a generation with status %d, error %s", reply.status, shown)
    if reply.status >= _SERVER_FAILED and says_out_of_memory(body):
        return OutOfMemory()
    changed = advice(body) if reply.status >= _SERVER_FAILED else None
    if changed is not None:
        return Cannot(changed)
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


def error_body(reply: Reply) -> dict[str, Any]:
    """Return the JSON object of an error; a bare text counts as its message."""
    try:
        read = bounds.parse(reply.body)
    except BadAnswer:
        read = reply.body.decode("utf-8", "replace")
    return read if isinstance(read, dict) else {"message": read}


def _object(text: str | bytes, limits: AnswerBounds) -> dict[str, Any]:
    read = limits.parse(text)
    if not isinstance(read, dict):
        raise BadAnswer
    return read


def _info(body: dict[str, Any], limits: AnswerBounds) -> dict[str, Any]:
    """Return the answer's ``info``, which is JSON inside a string."""
    info = body.get("info")
    if not isinstance(info, str):
        raise BadAnswer
    return _object(info, limits)


def _first(info: dict[str, Any]) -> int:
    """Return the place of the first picture; a grid may stand before it."""
    first = info.get("index_of_first_image")
    if first is None:
        return 0
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


def _first_prompt(info: dict[str, Any]) -> str | None:
    prompts = info.get("all_prompts")
    return _text(prompts[0]) if isinstance(prompts, list) and prompts else _text(info.get("prompt"))


def _seeds(info: dict[str, Any], expected: int, first_seed: int | None) -> list[int]:
    seeds = info.get("all_seeds")
    if not isinstance(seeds, list) or len(seeds) < expected or not all(map(_is_seed, seeds[:expected])):
        raise BadAnswer
    if first_seed is not None:
        for asked, received in enumerate(seeds[:expected], first_seed):
            if received != asked:
                raise WrongValues("seed", asked, received)
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


def _is_seed(value: object) -> bool:
    return _is_integer(value) and isinstance(value, int) and abs(value) < _SEEDS


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
