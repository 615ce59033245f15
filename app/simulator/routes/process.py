"""The routes about the server's process: its flags, its start, and what it takes.

``api.py`` and ``ui.py`` of the WebUI; ``/openapi.json`` is FastAPI's own, of which only the names of paths and fields are here.
"""

from __future__ import annotations

import random
import re
from typing import Any

from flask import Response, current_app

from app.simulator import validation
from app.simulator.errors import CrashError
from app.simulator.responses import as_json
from app.simulator.routes.requests import Route
from app.simulator.simulator import Simulator

_NAMES = {"txt2img": "StableDiffusionProcessingTxt2Img", "img2img": "StableDiffusionProcessingImg2Img"}


class ProcessRoutes:
    """Tells of one simulator as of a program."""

    def __init__(self, simulator: Simulator) -> None:
        self._flavour = simulator.flavour
        self._settings = simulator.settings
        # Seconds of each step of the start, which no two starts have in common.
        steps = {name: random.uniform(0.1, 9.0) for name in ("import torch", "setup paths", "load scripts")}  # noqa: S311
        self._start = {"total": sum(steps.values()), "records": steps}

    def routes(self) -> list[Route]:
        """Those under /internal only where the flavour has them."""
        internal: list[Route] = [("GET", "/internal/profile-startup", lambda: as_json(self._start))]
        return [
            ("GET", "/sdapi/v1/cmd-flags", self._flags),
            ("GET", "/openapi.json", self._openapi),
            *(internal if self._flavour.internal else []),
        ]

    def _flags(self) -> Response:
        """Every flag, passwords included. Forge fails, and puts them all into the error."""
        auth = self._settings.auth
        flags: dict[str, Any] = {"api": True, "nowebui": not self._flavour.internal, "share": False, "listen": False}
        flags |= {"api_auth": ":".join(auth) if auth else None, "port": None, **self._settings.flags}
        if self._flavour.forge:
            raise CrashError("ResponseValidationError", repr(flags))
        return as_json(flags)

    def _openapi(self) -> Response:
        schemas = {
            name: {"type": "object", "properties": {field.name: {} for field in fields}}
            for kind, name in _NAMES.items()
            for fields in [validation.generation_fields(self._flavour, kind, task_ids=self._settings.task_ids)]
        }
        paths: dict[str, Any] = {}
        for rule in current_app.url_map.iter_rules():
            if not rule.rule.startswith(("/simulator", "/openapi")):
                methods: dict[str, Any] = {
                    method.lower(): {} for method in (rule.methods or ()) if method not in ("HEAD", "OPTIONS")
                }
                paths.setdefault(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), {}).update(methods)
        info = {"title": "FastAPI", "version": "0.1.0"}
        return as_json({"openapi": "3.0.2", "info": info, "paths": paths, "components": {"schemas": schemas}})
