"""The bodies that are posted to a WebUI, built from a job's ``args``.

Nothing of a client's goes through but the fields set here and those that :mod:`app.parameters` passes on.

Field names and their traps: ``modules/api/models.py`` and ``modules/processing.py`` of the WebUI (and of Forge, where named).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pybase64

from app.parameters import DEFAULT_SAMPLER, PARAMETERS, Parameters, Type, passed_on, upscales
from app.webui.catalogue import Catalogue, Requirements, Sampling
from app.webui.errors import NoLongerAvailable
from app.webui.models import Model
from app.webui.overrides import COMMENT, OptionOverrides
from app.webui.presets import Presets

#: The option that names the checkpoint.
MODEL = "sd_model_checkpoint"


@dataclass(frozen=True, slots=True)
class Target:
    """The WebUI that a generation is for, as far as its payload depends on it; ``model`` is what :func:`model_of` found there."""

    catalogue: Catalogue
    model: Model
    presets: Presets
    overrides: OptionOverrides
    parameters: Parameters = PARAMETERS


def txt2img(args: Mapping[str, Any], target: Target, task_id: str, *, one_by_one: bool) -> dict[str, Any]:
    """Build the body of ``POST /sdapi/v1/txt2img``.

    :param args: the job's args, names resolved, ``seed`` a string of digits.
    :param task_id: the attempt's id, sent where the WebUI can be asked about it.
    :param one_by_one: make the pictures one after another instead of as one batch; takes less GPU memory.
    :raises NoLongerAvailable: when the WebUI lacks the job's sampler, scheduler or style.
    """
    payload = _common("txt2img", args, target, task_id, one_by_one=one_by_one)
    return payload | _hires(args, target.catalogue) if upscales(args) else payload


def img2img(
    args: Mapping[str, Any], init_png: bytes, target: Target, task_id: str, *, one_by_one: bool
) -> dict[str, Any]:
    """Build the body of ``POST /sdapi/v1/img2img``; ``init_png`` is the reference image's file, the rest as for txt2img."""
    payload = _common("img2img", args, target, task_id, one_by_one=one_by_one)
    return payload | {"init_images": [pybase64.b64encode_as_string(init_png)]}


def upscale(images: Sequence[str], args: Mapping[str, Any]) -> dict[str, Any]:
    """Build the body of ``POST /sdapi/v1/extra-batch-images`` that upscales pictures, given as base64, by ``hr_scale``."""
    return {
        "imageList": [{"data": image, "name": f"{index}.png"} for index, image in enumerate(images)],
        "resize_mode": 0,
        "upscaling_resize": args["hr_scale"],
        "upscaler_1": args["hr_upscaler"],
    }


def model_of(requirements: Requirements, catalogue: Catalogue) -> Model:
    """Return the WebUI's entry for the job's model.

    :raises NoLongerAvailable: when the WebUI has it no more.
    """
    model = catalogue.model_of(requirements)
    if model is None:
        raise NoLongerAvailable("The WebUI no longer has the job's model.")
    return model


def _common(type_: Type, args: Mapping[str, Any], target: Target, task_id: str, *, one_by_one: bool) -> dict[str, Any]:
    catalogue, presets = target.catalogue, target.presets
    sampling = _sampling(args, catalogue)
    prompt, negative_prompt = presets.apply(args["style"], args["prompt"], args["negative_prompt"])
    styled = args["style"] in catalogue.commented_styles and presets.get(args["style"]) is None
    options = target.overrides.of((prompt, negative_prompt, COMMENT * styled), catalogue.prompt_comments)
    # On top of what is passed on: no row of the table replaces what is set here.
    payload = passed_on(target.parameters, type_, args) | {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": int(args["seed"]),
        "sampler_name": sampling.sampler,
        "batch_size": 1 if one_by_one else args["batch_size"],
        "n_iter": args["batch_size"] if one_by_one else 1,
        "send_images": True,
        # Saving would leave copies in the WebUI's own folders and put a grid in front of the pictures.
        "save_images": False,
        "override_settings": {MODEL: target.model.checkpoint, **options},
        # Restoring would only reload the model that the last job left; every job names its own.
        "override_settings_restore_afterwards": False,
    }
    if sampling.scheduler is not None:
        payload["scheduler"] = sampling.scheduler
    if args["style"] and presets.get(args["style"]) is None:
        payload["styles"] = _webui_styles(args["style"], catalogue)
    if catalogue.task_ids:
        payload["force_task_id"] = task_id
    return payload


def options_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a payload overrides, but for the model."""
    return {option: value for option, value in payload["override_settings"].items() if option != MODEL}


def with_options(payload: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload with other options overridden, and the same model."""
    return {**payload, "override_settings": {MODEL: payload["override_settings"][MODEL], **options}}


def probe(model: Model, task_id: str) -> dict[str, Any]:
    """Build the body of the smallest generation with a model, whose picture nobody keeps."""
    return {
        "prompt": "",
        "seed": 1,
        "steps": 1,
        "width": 64,
        "height": 64,
        "sampler_name": DEFAULT_SAMPLER,
        "send_images": False,
        "save_images": False,
        "override_settings": {MODEL: model.checkpoint},
        "override_settings_restore_afterwards": False,
        "force_task_id": task_id,
    }


def _sampling(args: Mapping[str, Any], catalogue: Catalogue) -> Sampling:
    # The WebUI takes another sampler or scheduler in place of an unknown one without a word.
    sampling = catalogue.sampling(args["sampler_name"], args.get("scheduler"))
    if sampling is None:
        raise NoLongerAvailable("The job's sampler or scheduler is no longer available.")
    return sampling


def _webui_styles(style: str, catalogue: Catalogue) -> list[str]:
    # The WebUI ignores an unknown style without a word.
    if not catalogue.has("style", style):
        raise NoLongerAvailable("The job's style is no longer available.")
    return [style]


def _hires(args: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    hires: dict[str, Any] = {
        "enable_hr": True,
        "hr_upscaler": args["hr_upscaler"],
        "hr_scale": args["hr_scale"],
    }
    if catalogue.forge:
        # Forge's own defaults fail the second pass, and would let it ignore the negative prompt (modules/processing.py).
        hires |= {"hr_additional_modules": ["Use same choices"], "hr_cfg": args["cfg_scale"]}
    return hires
