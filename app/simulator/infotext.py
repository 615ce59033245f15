"""The infotext that every picture carries, and the ``info`` of an answer."""

from __future__ import annotations

import json
from typing import Any

from app.simulator.job import Job
from app.simulator.lists import Options
from app.simulator.models import Models
from app.simulator.settings import Flavour


class Infotexts:
    """Describes the pictures of a job by the options and the model as they are now."""

    def __init__(self, flavour: Flavour, options: Options, models: Models) -> None:
        self._flavour = flavour
        self._options = options
        self._models = models

    def text(self, job: Job, index: int) -> str:
        """The text of ``processing.create_infotext``; a value with a comma, a colon or a newline is quoted as JSON."""
        model = self._models.loaded
        tiling = self._options["tiling"] if job["tiling"] is None else job["tiling"]
        facts = {
            "Steps": job["steps"],
            "Sampler": job.sampler,
            "Schedule type": job.scheduler,
            "CFG scale": job["cfg_scale"],
            "Seed": job.seeds[index],
            "Face restoration": self._options["face_restoration_model"] if self._restores_faces(job) else None,
            "Size": f"{job['width']}x{job['height']}",
            "Model hash": model.hash,
            "Model": model.shown,
            "Variation seed": job.subseeds[index] if job["subseed_strength"] else None,
            "Variation seed strength": job["subseed_strength"] or None,
            "Clip skip": job.clip_skip if job.clip_skip > 1 else None,
            "Tiling": tiling or None,
            **job.extra,
            **job.shown,
            "Version": self._flavour.version if self._options["add_version_to_infotext"] else None,
        }
        text = ", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items() if value is not None)
        negative = f"\nNegative prompt: {job.negative}" if job.negative else ""
        return f"{job.prompt}{negative}\n{text}".strip()

    def info(self, job: Job, stamp: str) -> dict[str, Any]:
        """The object of ``Processed.js``, key after key."""
        faces = self._restores_faces(job)
        model = self._models.loaded
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
            "face_restoration_model": self._options["face_restoration_model"] if faces else None,
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

    def _restores_faces(self, job: Job) -> bool:
        return bool(self._options["face_restoration"] if job["restore_faces"] is None else job["restore_faces"])


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text


def parse_infotext(text: str) -> dict[str, str]:
    """Prompt, negative prompt and the facts of the last line."""
    prompt, _, facts = text.rpartition("\n")
    prompt, _, negative = prompt.partition("\nNegative prompt: ")
    found = {"Prompt": prompt, "Negative prompt": negative}
    for fact in facts.split(", "):
        name, _, value = fact.partition(": ")
        if name == "Size":
            found["Size-1"], _, found["Size-2"] = value.partition("x")
        elif value:
            found[name] = value
    return found
