"""The two extras routes, which upscale pictures."""

from __future__ import annotations

from typing import Any

from flask import Response

from app.simulator import extras, pictures, validation
from app.simulator.errors import CrashError
from app.simulator.faults import EXTRAS_KINDS
from app.simulator.responses import as_json
from app.simulator.routes.requests import Route, accept, current_fault
from app.simulator.simulator import Simulator
from app.simulator.spoil import spoil_images, wrong_size


class ExtrasRoutes:
    """Reads the fields, upscales, and encodes what comes out."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._flavour = simulator.flavour

    def routes(self) -> list[Route]:
        """Both routes."""
        return [
            ("POST", "/sdapi/v1/extra-single-image", self._single_image),
            ("POST", "/sdapi/v1/extra-batch-images", self._batch_images),
        ]

    def _single_image(self) -> Response:
        fields = self._read_fields(batch=False)
        images, html_info = self._upscale(fields, [fields["image"] or ""])
        if not images:
            raise CrashError("IndexError", "list index out of range")
        return as_json({"html_info": html_info, "image": images[0]})

    def _batch_images(self) -> Response:
        fields = self._read_fields(batch=True)
        images, html_info = self._upscale(fields, [item["data"] for item in fields["imageList"]])
        return as_json({"html_info": html_info, "images": images})

    def _read_fields(self, *, batch: bool) -> dict[str, Any]:
        payload, _ = accept(self._simulator, EXTRAS_KINDS)
        fields = validation.extras_fields(self._flavour, batch=batch)
        return validation.read_fields(fields, payload, self._flavour.pydantic)

    def _upscale(self, fields: dict[str, Any], sources: list[str]) -> tuple[list[str], str]:
        fault = current_fault()
        effect = None if fault is None else fault.effect
        if effect == "error-500":
            raise CrashError("RuntimeError", "simulated failure")
        images = [pictures.decode(source, upright=self._flavour.exif) for source in sources]
        hang = fault.lasts(3600) if fault is not None and effect == "hang" else 0.0
        seconds, notes = self._simulator.settings.seconds_per_upscale, not self._flavour.forge
        done, html_info = extras.run(self._simulator.engine, fields, images, seconds, hang=hang, notes=notes)
        if effect == "wrong-size":
            done = [wrong_size() for _ in done]
        if effect in ("jpeg", "webp"):
            done = [pictures.Picture(png, "").encode(effect, text=False) for png in done]
        return spoil_images([pictures.base64_text(data) for data in done], fault), html_info
