"""The routes about what the server has: the lists, the options and the checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from flask import Response
from werkzeug.exceptions import NotFound

from app.simulator import lists, validation
from app.simulator.errors import CrashError
from app.simulator.faults import LIST_KINDS
from app.simulator.responses import as_json
from app.simulator.routes.requests import Route, read_body
from app.simulator.simulator import Simulator


class CatalogueRoutes:
    """Lists, options and checkpoints of one simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._flavour = simulator.flavour
        self._engine = simulator.engine
        self._faults = simulator.faults
        self._studio = simulator.studio

    def routes(self) -> list[Route]:
        """The lists of this flavour, and the routes that change something."""
        null, empty = (lambda: as_json(None)), (lambda: as_json({}))
        refreshes = ("vae", "embeddings", "loras")
        return [
            *(("GET", f"/sdapi/v1/{path}", self._listing(body)) for path, body in self._lists().items()),
            ("GET", "/sdapi/v1/options", self._options),
            ("POST", "/sdapi/v1/options", self._set_options),
            ("POST", "/sdapi/v1/refresh-checkpoints", self._refresh_checkpoints),
            *(("POST", f"/sdapi/v1/refresh-{name}", null) for name in refreshes),
            *(("POST", f"/sdapi/v1/{name}-checkpoint", empty) for name in ("unload", "reload")),
        ]

    def _lists(self) -> dict[str, Callable[[], Any]]:
        """Path under /sdapi/v1 -> body, for the routes of this flavour that do nothing but list."""
        flavour = self._flavour
        scripts = [*lists.SCRIPTS, *lists.ALWAYS_ON]
        bodies: dict[str, Callable[[], Any]] = {
            "samplers": lambda: lists.samplers(flavour),
            "upscalers": lists.upscalers,
            "latent-upscale-modes": lambda: [{"name": name} for name in lists.LATENT_MODES],
            "sd-models": self._models,
            "prompt-styles": lambda: lists.prompt_styles(flavour),
            "face-restorers": lambda: [{"name": name, "cmd_dir": None} for name in ("CodeFormer", "GFPGAN")],
            "embeddings": lambda: {"loaded": {}, "skipped": {}},
            "scripts": lambda: {"txt2img": scripts, "img2img": scripts},
            "memory": lambda: {"ram": {"free": 1, "used": 1, "total": 2}, "cuda": {"error": "unavailable"}},
        }
        bodies |= dict.fromkeys(("hypernetworks", "realesrgan-models", "extensions", "loras", "script-info"), list)
        bodies["sd-modules" if flavour.forge else "sd-vae"] = list
        if flavour.schedulers:
            bodies["schedulers"] = lambda: lists.schedulers(flavour)
        return bodies

    def _listing(self, body: Callable[[], Any]) -> Callable[[], Response]:
        """A view that answers with a list, unless a fault prevents it."""

        def view() -> Response:
            self._check_faults()
            return as_json(body())

        return view

    def _check_faults(self) -> None:
        fault = self._faults.take(LIST_KINDS)
        if fault is not None and fault.kind == "catalogue-500":
            raise CrashError("RuntimeError", "simulated failure")
        if fault is not None:
            raise NotFound

    def _models(self) -> list[dict[str, Any]]:
        self._studio.settle()
        models = self._studio.models
        return [checkpoint.as_dict(forge=self._flavour.forge) for checkpoint in models.listed(models.lost())]

    def _options(self) -> Response:
        self._check_faults()
        self._studio.settle()
        return as_json(self._studio.options.as_dict())

    def _set_options(self) -> Response:
        """An unknown key fails, those before it stay set; a model that cannot be loaded is ignored."""
        values = validation.read_object(read_body(self._flavour), self._flavour.pydantic)
        model = values.get("sd_model_checkpoint")
        checkpoint = self._studio.models.find(model)
        if model is not None and checkpoint is None:
            raise CrashError("RuntimeError", f"model {model!r} not found")
        for key, value in values.items():
            if key not in self._studio.options:
                raise CrashError("KeyError", repr(key))
            self._studio.options[key] = value
        if checkpoint is not None:
            with self._engine.queue_lock:
                with contextlib.suppress(CrashError):
                    self._studio.models.load(checkpoint)
                self._studio.options["sd_model_checkpoint"] = self._studio.models.loaded.title
        return as_json(None)

    def _refresh_checkpoints(self) -> Response:
        """Read the models folder again, once the running job is over."""
        with self._engine.queue_lock:
            self._studio.models.refresh()
        return as_json(None)
