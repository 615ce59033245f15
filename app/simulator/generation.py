"""What happens between a valid request and its pictures: styles, sizes, seeds, sampling, infotexts.

Follows ``modules/processing.py`` of the WebUI in what a client can see: the order of the checks, which mistakes end in
which exception, what ``info`` says, what an interrupt leaves.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from app.simulator import lists, pictures
from app.simulator.engine import Engine
from app.simulator.errors import CrashError
from app.simulator.faults import Fault, Faults
from app.simulator.models import Models
from app.simulator.pictures import Painter, Picture, Scene
from app.simulator.settings import Flavour, SimulatorSettings
from app.simulator.stats import Stats

#: Random seeds are drawn below this (``processing.get_fixed_seed``).
_SEEDS = 4294967294
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


@dataclass
class Job:
    """One generation on its way from request fields to ``info``."""

    kind: str
    fields: dict[str, Any]
    sampler: str
    scheduler: str | None
    #: Reference images, RGB, each with the hash of its pixels; picture k is painted over number k.
    inits: list[tuple[Image.Image, str]] = field(default_factory=list)
    masked: bool = False
    prompt: str = ""
    negative: str = ""
    seeds: list[int] = field(default_factory=list)
    subseeds: list[int] = field(default_factory=list)
    #: ``extra_generation_params`` of ``info``; what the server works out per picture is null there and in ``shown``.
    extra: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    #: Size of what comes out, pixels; ``info`` keeps the numbers that were asked for.
    size: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None
    clip_skip: int = 1
    pictures: list[Picture] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    first: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    #: When its next sampling run began: the first one when the request was there and the GPU free, so that a picture takes the
    #: seconds that it was set to, and not what the simulator needs to read the request on top.
    began: float = 0.0

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    @property
    def hires(self) -> bool:
        """Whether there is a second pass."""
        return bool(self.fields.get("enable_hr"))

    @property
    def planned(self) -> int:
        """How many pictures were asked for."""
        return int(self["batch_size"] * self["n_iter"])


class Studio:
    """Runs jobs on the engine, one at a time."""

    def __init__(
        self, settings: SimulatorSettings, flavour: Flavour, engine: Engine, stats: Stats, faults: Faults
    ) -> None:
        self._settings = settings
        self._flavour = flavour
        self._engine = engine
        self._stats = stats
        self._painter = Painter(precomputed=settings.precomputed)
        self.models = Models(settings, flavour, engine, stats, faults)
        self.options = lists.Options(settings, flavour, self.models.loaded if self.models.settled() else None)
        #: State of torch's global generator: what the last job left there.
        self._torch = ""

    def run(
        self, job: Job, task_id: str, decode_inputs: Callable[[], None], fault: Fault | None, lost: str | None
    ) -> None:
        """Wait for the turn, then make the pictures and ``info`` of a job.

        ``decode_inputs`` runs in the lock but before the task begins, so that a broken image leaves its id queued.

        :raises SimulatedError: for whatever a real server fails at, the task then staying the current one.
        """
        self._engine.enqueue(task_id)
        with self._engine.queue_lock:
            job.began = max(job.began, self._engine.queue_lock.free_since)
            if not self._flavour.forge:
                self._load_first(job)
            decode_inputs()
            with self._engine.generation(task_id, f"scripts_{job.kind}") as stamp:
                self._stats.count("generations")
                # Forge loads its first model when the task has begun, A1111 before.
                self._load_first(job)
                with self._overridden(job, lost):
                    self._prepare(job)
                    self._iterate(job, fault)
                    self._finish(job, stamp)

    def settle(self) -> None:
        """Note the model of a fresh server in its options, once it is loaded."""
        if self.models.settled() and self.options["sd_model_checkpoint"] is None:
            self.options.note_model(self.models.loaded)

    def _load_first(self, job: Job) -> None:
        if self.models.load_first():
            job.began = time.perf_counter()
        self.settle()

    def encode(self, picture: Picture, image_format: str | None = None) -> str:
        """A picture as it travels, by the options as they are now, or in another format."""
        options = self.options
        image_format = image_format or str(options["samples_format"]).lower()
        return picture.base64(image_format, quality=int(options["jpeg_quality"]), text=bool(options["enable_pnginfo"]))

    @contextmanager
    def _overridden(self, job: Job, lost: str | None) -> Iterator[None]:
        """Apply ``override_settings`` and take back what can be taken back (``processing.process_images``)."""
        overrides = dict(job["override_settings"] or {})
        if self._flavour.forge and job["override_settings"] is not None:
            # It drops an unknown model from the object that the answer repeats.
            job.fields["override_settings"] = overrides
        if "sd_model_checkpoint" in overrides and self.models.find(overrides["sd_model_checkpoint"], lost) is None:
            del overrides["sd_model_checkpoint"]
        stored = self.options.stored(overrides)
        try:
            for key, value in overrides.items():
                if key not in self.options:
                    raise CrashError("KeyError", repr(key))
                self.options[key] = value
            if self._load_model(lost):
                job.began = time.perf_counter()
            yield
        finally:
            if job["override_settings_restore_afterwards"]:
                for key, value in stored.items():
                    self.options[key] = value

    def _load_model(self, lost: str | None) -> bool:
        """Load what the options name; whether another model was loaded before.

        Forge leaves the option as it was given; A1111 writes the title of a model that it really loads.
        """
        named = self.models.find(self.options["sd_model_checkpoint"], lost)
        listed = self.models.listed(lost)
        wanted = named or self.models.loaded
        if wanted not in listed:
            wanted = (listed or [wanted])[0]
        switched = self.models.load(wanted)
        if wanted is not named or (switched and not self._flavour.forge):
            self.options["sd_model_checkpoint"] = wanted.title
        self.options["sd_checkpoint_hash"] = wanted.sha256
        self.models.refuse_poisoned()
        return switched

    def _prepare(self, job: Job) -> None:
        if job.kind == "img2img":
            _check_inputs(job)
        _refuse_impossible(job, self._flavour)
        self._write_prompts(job)
        job.clip_skip = self.options["CLIP_stop_at_last_layers"]
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
            _note_hires(job, self._flavour)
        _note_schedule(job, self._flavour)

    def _write_prompts(self, job: Job) -> None:
        prompt, negative = job["prompt"], job["negative_prompt"]
        for name in job["styles"] or []:
            style_prompt, style_negative = lists.style(self._flavour, name)
            if style_prompt is None or style_negative is None:
                raise CrashError("TypeError", "argument of type 'NoneType' is not iterable")
            prompt = _merge(style_prompt, prompt)
            negative = _merge(style_negative, negative)
        if self.options.switched_on("enable_prompt_comments"):
            prompt, negative = _without_comments(prompt), _without_comments(negative)
        job.prompt, job.negative = prompt, negative

    def _iterate(self, job: Job, fault: Fault | None) -> None:
        passes = 2 if job.hires else 1
        self._engine.plan(job["n_iter"] * passes)
        for iteration in range(job["n_iter"]):
            self._engine.forget_skip()
            if self._engine.interrupted:
                break
            if job["n_iter"] > 1:
                self._engine.name(f"Batch {iteration + 1} out of {job['n_iter']}")
            self._one_batch(job, iteration, fault if iteration == 0 else None)
        self._torch = json.dumps([job.seeds[-1], job.size, job["steps"], job.sampler])

    def _one_batch(self, job: Job, iteration: int, fault: Fault | None) -> None:
        seconds = self._settings.seconds_per_image * job["batch_size"]
        indices = range(iteration * job["batch_size"], (iteration + 1) * job["batch_size"])
        self._strike(job, fault, seconds)
        # Drawn while the time runs, so that a picture takes the seconds it was set to and not its drawing on top.
        drawn = [] if job.hires else self._draw(job, indices, job.size)
        if self._settings.precomputed and job["send_images"]:
            for picture in drawn:
                self.encode(picture)
        done = self._sample(job, job["steps"], seconds)
        if done < 1:
            # Stopped in the first pass, the second never comes and the small picture is the answer.
            drawn = self._draw(job, indices, job.size, done)
        elif job.hires:
            drawn = self._second_pass(job, indices, seconds)
        job.pictures += drawn
        job.infotexts += [picture.text for picture in drawn]

    def _second_pass(self, job: Job, indices: range, seconds: float) -> list[Picture]:
        _refuse_impossible_hires(job, self._flavour)
        target = job.target or job.size
        drawn = self._draw(job, indices, target)
        done = self._sample(job, job["hr_second_pass_steps"] or job["steps"], seconds)
        return drawn if done >= 1 else self._draw(job, indices, target, (1 + done) / 2)

    def _sample(self, job: Job, steps: int, seconds: float) -> float:
        """One sampling run; the part of it that was done, 0…1."""
        done = self._engine.sample(steps, seconds, job.began)
        job.began = time.perf_counter()
        self._engine.next_job()
        return done

    def _strike(self, job: Job, fault: Fault | None, seconds: float) -> None:
        """The faults that hit in the middle of the work."""
        effect = None if fault is None else fault.effect
        if effect == "hang" and fault is not None:
            self._engine.hang(fault.lasts(3600))
        if effect == "interrupted":
            self._engine.hang(seconds / 2)
            self._engine.interrupt()
        if effect == "error-500":
            raise CrashError("RuntimeError", "simulated failure")
        if effect == "nan":
            raise _nans(self._flavour)
        pixels = math.prod(job.target or job.size) * job["batch_size"]
        if effect in ("oom", "oom-batch") or pixels > pictures.MAX_PIXELS:
            raise CrashError("OutOfMemoryError", _OOM)

    def _draw(self, job: Job, indices: range, size: tuple[int, int], done: float = 1.0) -> list[Picture]:
        """A picture depends on its infotext (prompt, seed, size …), on the model's file and on what the infotext leaves out."""
        drawn = []
        hidden = [self.models.loaded.file, self.models.poisoned]
        if self._flavour.torch and job.kind == "img2img":
            hidden.append(self._torch)
        for index in indices:
            text = self._infotext(job, index)
            init, init_hash = job.inits[index % len(job.inits)] if job.inits else (None, "")
            base = None if init is None else pictures.fit(init, job["resize_mode"], size)
            key = json.dumps([job.kind, text, size, init_hash, job.fields.get("resize_mode"), hidden])
            strength = 1.0 if init is None else job["denoising_strength"]
            scene = Scene(key, *size, f"seed {job.seeds[index]}", base, strength, done)
            drawn.append(Picture(self._painter.draw(scene), text))
        return drawn

    def _finish(self, job: Job, stamp: str) -> None:
        many = len(job.pictures) > 1 or not self.options["grid_only_if_multiple"]
        if job["save_images"] and many and job.pictures and self.options["return_grid"]:
            text = self._infotext(job, 0)
            job.pictures.insert(0, pictures.grid(job.pictures, text))
            job.infotexts.insert(0, text)
            job.first = 1
        job.info = self._info(job, stamp)

    def _restores_faces(self, job: Job) -> bool:
        return bool(self.options["face_restoration"] if job["restore_faces"] is None else job["restore_faces"])

    def _infotext(self, job: Job, index: int) -> str:
        """The text of ``processing.create_infotext``; a value with a comma, a colon or a newline is quoted as JSON."""
        model = self.models.loaded
        tiling = self.options["tiling"] if job["tiling"] is None else job["tiling"]
        facts = {
            "Steps": job["steps"],
            "Sampler": job.sampler,
            "Schedule type": job.scheduler,
            "CFG scale": job["cfg_scale"],
            "Seed": job.seeds[index],
            "Face restoration": self.options["face_restoration_model"] if self._restores_faces(job) else None,
            "Size": f"{job['width']}x{job['height']}",
            "Model hash": model.hash,
            "Model": model.shown,
            "Variation seed": job.subseeds[index] if job["subseed_strength"] else None,
            "Variation seed strength": job["subseed_strength"] or None,
            "Clip skip": job.clip_skip if job.clip_skip > 1 else None,
            "Tiling": tiling or None,
            **job.extra,
            **job.shown,
            "Version": self._flavour.version if self.options["add_version_to_infotext"] else None,
        }
        text = ", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items() if value is not None)
        negative = f"\nNegative prompt: {job.negative}" if job.negative else ""
        return f"{job.prompt}{negative}\n{text}".strip()

    def _info(self, job: Job, stamp: str) -> dict[str, Any]:
        """The object of ``Processed.js``, key after key."""
        faces = self._restores_faces(job)
        model = self.models.loaded
        return {
            "prompt": job.prompt,
            "all_prompts": [job.prompt] * job.planned,
            "negative_prompt": job.negative,
            "all_negative_prompts": [job.negative] * job.planned,
            "seed": job.seeds[0],
            "all_seeds": job.seeds,
            "subseed": job.subseeds[0],
            "all_subseeds": job.subseeds,
            "subseed_strength": job["subseed_strength"],
            "width": job["width"],
            "height": job["height"],
            "sampler_name": job.sampler,
            "cfg_scale": job["cfg_scale"],
            "steps": job["steps"],
            "batch_size": job["batch_size"],
            "restore_faces": faces,
            "face_restoration_model": self.options["face_restoration_model"] if faces else None,
            "sd_model_name": model.shown,
            "sd_model_hash": model.hash,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": job["seed_resize_from_w"],
            "seed_resize_from_h": job["seed_resize_from_h"],
            "denoising_strength": job["denoising_strength"],
            "extra_generation_params": job.extra,
            "index_of_first_image": job.first,
            "infotexts": job.infotexts,
            "styles": job["styles"] or [],
            "job_timestamp": stamp,
            "clip_skip": job.clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": self._flavour.version,
        }


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text


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


#: The nulls that pass validation and fail in the work, with Python's own words for it.
_NULLS = (
    (("prompt", "negative_prompt"), "AssertionError", ""),
    (("width", "height"), "TypeError", "unsupported operand type(s) for //: 'NoneType' and 'int'"),
    (("batch_size", "n_iter"), "TypeError", "unsupported operand type(s) for *: 'NoneType' and 'int'"),
    (("steps",), "TypeError", "unsupported operand type(s) for //: 'NoneType' and 'NoneType'"),
    (("cfg_scale",), "TypeError", "unsupported operand type(s) for *: 'float' and 'NoneType'"),
)


def _nans(flavour: Flavour) -> CrashError:
    """The check of A1111; its words changed with 1.10."""
    words = "NaNs" if flavour.schedulers else "all NaNs"
    flag = "Use --disable-nan-check commandline argument to disable this check."
    return CrashError("NansException", f"A tensor with {words} was produced in Unet. {flag}")


def _refuse_impossible(job: Job, flavour: Flavour) -> None:
    for names, exception, message in _NULLS:
        if any(job[name] is None for name in names):
            raise CrashError(exception, message)
    if job["batch_size"] < 1 or job["n_iter"] < 1:
        raise CrashError("IndexError", "list index out of range")
    upscaler = job.fields.get("hr_upscaler")
    if job.hires and upscaler is not None and upscaler not in (*lists.LATENT_MODES, *lists.UPSCALERS):
        raise CrashError("Exception", f"could not find upscaler named {upscaler}")
    _refuse_impossible_numbers(job, flavour)


def _refuse_impossible_numbers(job: Job, flavour: Flavour) -> None:
    if job["steps"] == 0:
        raise CrashError("ZeroDivisionError", "integer division or modulo by zero")
    if job["steps"] < 0:
        raise CrashError("RuntimeError", "number of steps must be non-negative")
    if not -(2**63) <= (job["seed"] or 0) < 2**64:
        raise CrashError("ValueError", "Overflow when unpacking long long")
    if math.isnan(job["cfg_scale"]):
        raise _nans(flavour)
    if job.sampler == "UniPC" and job["steps"] < _UNIPC_ORDER:
        raise CrashError("AssertionError", "UniPC order must be < sampling steps")
    _refuse_impossible_size(job["width"] // 8, job["height"] // 8)


def _refuse_impossible_size(width: int, height: int) -> None:
    """Latent sizes, an eighth of the picture's."""
    if min(width, height) < 0:
        text = f"Trying to create tensor with negative dimension {min(width, height)}: [4, {height}, {width}]"
        raise CrashError("RuntimeError", text)
    if min(width, height) == 0:
        raise CrashError("RuntimeError", _SMALL)


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


def _note_schedule(job: Job, flavour: Flavour) -> None:
    """What the sampler notes of its schedule: also the one that stands behind Automatic."""
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


def _other(text: str | None, main: str) -> str | None:
    """A prompt of the second pass, None where it is that of the first."""
    return text if text and text != main else None


def _note_hires(job: Job, flavour: Flavour) -> None:
    """What the hires fix notes; from 1.10 on prompts and schedule are worked out per picture, and null in ``info``."""
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


def _refuse_impossible_hires(job: Job, flavour: Flavour) -> None:
    """What a server notices only after the first pass."""
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


def _mask_texts(job: Job) -> dict[str, Any]:
    fills = ("fill", "original", "latent noise", "latent nothing")
    blur = job["mask_blur_x"] if job["mask_blur"] is None else job["mask_blur"]
    texts: dict[str, Any] = {"Mask blur": blur}
    if job["inpaint_full_res"]:
        texts |= {"Inpaint area": "Only masked", "Masked area padding": job["inpaint_full_res_padding"]}
    return texts | {"Masked content": fills[(job["inpainting_fill"] or 0) % len(fills)]}


def read_inputs(job: Job, flavour: Flavour, background: str) -> None:
    """Decode the reference images of an img2img job, in the lock, as the server does (``api.img2imgapi``).

    :raises SimulatedError: for what cannot be decoded or does not fit the batch.
    """
    for item in job["init_images"]:
        if not isinstance(item, str):
            raise CrashError("AttributeError", f"'{type(item).__name__}' object has no attribute 'startswith'")
        image = pictures.flatten(pictures.decode(item, upright=flavour.exif), background)
        job.inits.append((image, hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()))


def _check_inputs(job: Job) -> None:
    """How many reference images a batch takes, and of which shapes; fails as late as the server does."""
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
