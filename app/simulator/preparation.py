"""The work before the first pass: styles, comments, seeds, sizes, and the notes that ``info`` and infotexts repeat."""

from __future__ import annotations

import random
import re
from typing import Any

from app.simulator import lists
from app.simulator.errors import CrashError
from app.simulator.impossible import refuse_impossible
from app.simulator.inputs import check_inputs
from app.simulator.job import Job
from app.simulator.lists import Options
from app.simulator.settings import Flavour

#: Random seeds are drawn below this (``processing.get_fixed_seed``).
_SEEDS = 4294967294


def prepare(job: Job, flavour: Flavour, options: Options) -> None:
    """Work out prompts, seeds, sizes and the notes for ``info``, in the server's order.

    :raises CrashError: for what the server fails at before the first pass.
    """
    if job.kind == "img2img":
        check_inputs(job)
    refuse_impossible(job, flavour)
    _write_prompts(job, flavour, options)
    job.clip_skip = options["CLIP_stop_at_last_layers"]
    if not isinstance(job.clip_skip, int):
        raise CrashError("TypeError", "'<=' not supported between instances of 'str' and 'int'")
    job.seeds = _numbers(job["seed"], job.planned, fixed=bool(job["subseed_strength"]))
    job.subseeds = _numbers(job["subseed"], job.planned, fixed=False)
    job.size = (job["width"] // 8 * 8, job["height"] // 8 * 8)
    if job.hires:
        job.target = _hires_target(job)
    if job.target is not None or job.kind == "img2img":
        job.extra["Denoising strength"] = job["denoising_strength"]
    if job.masked:
        job.extra |= _mask_texts(job)
    if job.hires:
        _note_hires(job, flavour)
    _note_schedule(job, flavour)


def _write_prompts(job: Job, flavour: Flavour, options: Options) -> None:
    prompt, negative = job["prompt"], job["negative_prompt"]
    for name in job["styles"] or []:
        style_prompt, style_negative = lists.style(flavour, name)
        if style_prompt is None or style_negative is None:
            raise CrashError("TypeError", "argument of type 'NoneType' is not iterable")
        prompt = _merge(style_prompt, prompt)
        negative = _merge(style_negative, negative)
    if options.switched_on("enable_prompt_comments"):
        prompt, negative = _without_comments(prompt), _without_comments(negative)
    job.prompt, job.negative = prompt, negative


def _merge(style: str, prompt: str) -> str:
    """A style with ``{prompt}`` goes round the prompt, another one behind it (``styles.merge_prompts``)."""
    if "{prompt}" in style:
        return style.replace("{prompt}", prompt)
    return ", ".join(filter(None, (prompt.strip(), style.strip())))


def _without_comments(text: str) -> str:
    """Drop everything from a ``#`` to the end of its line (``processing_scripts/comments.py``)."""
    text = re.sub(r"(^|\n)#[^\n]*(\n|$)", "\n", text)
    return re.sub(r"#[^\n]*(\n|$)", "\n", text)


def _numbers(first: int | None, count: int, *, fixed: bool) -> list[int]:
    """Seeds count upwards from the first; -1 and null draw it."""
    start = random.randrange(_SEEDS) if first in (None, -1) else int(first or 0)  # noqa: S311 -- a picture's seed
    return [start if fixed else start + index for index in range(count)]


def _hires_target(job: Job) -> tuple[int, int]:
    """Size after the hires fix, pixels (``calculate_target_resolution``)."""
    wide, high = job["hr_resize_x"] or 0, job["hr_resize_y"] or 0
    if not wide and not high:
        wide, high = int(job["width"] * job["hr_scale"]), int(job["height"] * job["hr_scale"])
    elif not high:
        high = wide * job["height"] // job["width"]
    elif not wide:
        wide = high * job["width"] // job["height"]
    return wide // 8 * 8, high // 8 * 8


def _mask_texts(job: Job) -> dict[str, Any]:
    fills = ("fill", "original", "latent noise", "latent nothing")
    blur = job["mask_blur_x"] if job["mask_blur"] is None else job["mask_blur"]
    texts: dict[str, Any] = {"Mask blur": blur}
    if job["inpaint_full_res"]:
        texts |= {"Inpaint area": "Only masked", "Masked area padding": job["inpaint_full_res_padding"]}
    return texts | {"Masked content": fills[(job["inpainting_fill"] or 0) % len(fills)]}


def _other(text: str | None, main: str) -> str | None:
    """A prompt of the second pass, None where it is that of the first."""
    return text if text and text != main else None


def _note_hires(job: Job, flavour: Flavour) -> None:
    """Note the parameters of the hires fix; from 1.10 on prompts and schedule are worked out per picture: null in ``info``."""
    sized = bool(job["hr_resize_x"] or job["hr_resize_y"])
    modules = job.fields.get("hr_additional_modules")
    prompts = {
        "Hires prompt": _other(job["hr_prompt"], job["prompt"]),
        "Hires negative prompt": _other(job["hr_negative_prompt"], job["negative_prompt"]),
    }
    late: dict[str, Any] = dict.fromkeys(prompts)
    if flavour.forge:
        late |= {"Hires CFG Scale": job["hr_cfg"], "Hires Distilled CFG Scale": None}
    late["Hires schedule type"] = None
    texts = {
        "Hires Module 1": ", ".join(map(str, modules)) if modules else None,
        "Hires sampler": job["hr_sampler_name"],
        **(late if flavour.schedulers else prompts),
        "Hires upscale": None if sized else job["hr_scale"],
        "Hires resize": f"{job['hr_resize_x']}x{job['hr_resize_y']}" if sized else None,
        "Hires steps": job["hr_second_pass_steps"] or None,
        "Hires upscaler": job["hr_upscaler"],
    }
    nulls = late if flavour.schedulers else {}
    job.extra |= {name: text for name, text in texts.items() if text is not None or name in nulls}
    job.shown |= {name: text for name, text in prompts.items() if text is not None}


def _note_schedule(job: Job, flavour: Flavour) -> None:
    """Note the schedule that the sampler really uses, where ``Automatic`` was asked for too."""
    used = lists.schedule_used(flavour, job.sampler, job.scheduler)
    if used is not None:
        job.extra["Schedule type"] = used
    if not job.hires or not flavour.schedulers:
        return
    sampler = job["hr_sampler_name"] or job.sampler
    if not lists.has_sampler(flavour, sampler):
        return
    label = job["hr_scheduler"] and lists.find_sampler(flavour, sampler, job["hr_scheduler"])
    second = lists.schedule_used(flavour, sampler, label[1] if label else job.scheduler)
    if second not in (None, used):
        job.extra["Hires schedule type"] = second
