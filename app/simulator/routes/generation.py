"""The routes txt2img and img2img."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, g

from app.simulator import lists, pictures, validation
from app.simulator.engine import task_id
from app.simulator.errors import HttpError
from app.simulator.faults import GENERATION_KINDS, Fault
from app.simulator.inputs import read_inputs
from app.simulator.job import Job
from app.simulator.responses import as_json
from app.simulator.routes.requests import Route, accept
from app.simulator.simulator import Simulator
from app.simulator.spoil import spoil_images, spoil_job


class GenerationRoutes:
    """Checks a request, lets the studio run it, and builds the answer."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._flavour = simulator.flavour
        self._studio = simulator.studio
        kinds = ("txt2img", "img2img")
        task_ids = simulator.settings.task_ids
        self._fields = {kind: validation.generation_fields(self._flavour, kind, task_ids=task_ids) for kind in kinds}

    def routes(self) -> list[Route]:
        """Both routes."""
        return [
            ("POST", "/sdapi/v1/txt2img", lambda: self._generate("txt2img")),
            ("POST", "/sdapi/v1/img2img", lambda: self._generate("img2img")),
        ]

    def _generate(self, kind: str) -> Response:
        payload, fault = accept(self._simulator, GENERATION_KINDS)
        fields = validation.read_fields(self._fields[kind], payload, self._flavour.pydantic)
        job = self._job(kind, fields)
        background = str(self._studio.options["img2img_background_color"])
        self._studio.run(
            job,
            fields.get("force_task_id") or task_id(kind),
            lambda: None if kind == "txt2img" else read_inputs(job, self._flavour, background),
            fault,
            self._studio.models.lost((fields.get("override_settings") or {}).get("sd_model_checkpoint")),
        )
        return as_json(self._result(job, fields, fault))

    def _job(self, kind: str, fields: dict[str, Any]) -> Job:
        """Make the checks that come before queueing, in the server's order.

        :raises HttpError: a picture is missing or unreadable, or a script or sampler is unknown.
        """
        if kind == "img2img":
            if fields["init_images"] is None:
                raise HttpError(404, "Init image not found")
            if fields["mask"]:
                pictures.decode(fields["mask"])
        _check_scripts(fields)
        sampler = fields["sampler_name"] or fields["sampler_index"]
        found = lists.find_sampler(self._flavour, sampler, fields.get("scheduler"))
        if found is None:
            raise HttpError(404, "Sampler not found")
        return Job(kind, dict(fields), *found, masked=bool(fields.get("mask")), began=g.received)

    def _result(self, job: Job, fields: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
        """The body of a 200; pictures are encoded by the options as they are now, the lock long released."""
        effect = None if fault is None else fault.effect
        spoil_job(job, fault)
        echo = {**fields, "override_settings": job["override_settings"]}
        if not fields.get("include_init_images", True):
            echo |= {"init_images": None, "mask": None}
        other = effect if effect in ("jpeg", "webp") else None
        images = [self._studio.encode(picture, other) for picture in job.pictures] if fields["send_images"] else []
        return {
            "images": spoil_images(images, fault),
            "parameters": echo,
            "info": json.dumps(job.info),
        }


def _check_scripts(fields: dict[str, Any]) -> None:
    always_on = dict.fromkeys(fields["alwayson_scripts"], lists.ALWAYS_ON)
    known = {fields["script_name"] or "": (*lists.SCRIPTS, "")} | always_on
    for name, names in known.items():
        if name.lower() not in names:
            raise HttpError(422, f"Script '{name}' not found")
