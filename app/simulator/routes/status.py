"""The routes about the job that runs: its progress, the queue, interrupt and skip."""

from __future__ import annotations

import itertools
from typing import Any

from flask import Response, request

from app.simulator import validation
from app.simulator.faults import LOST_INTERRUPT, NONSENSE_PROGRESS, PROGRESS_KINDS
from app.simulator.responses import as_json
from app.simulator.routes.requests import Route, read_body
from app.simulator.simulator import Simulator
from app.simulator.spoil import nonsense_progress


class StatusRoutes:
    """Asks the engine, or tells it to stop; none of these routes waits for the running job."""

    def __init__(self, simulator: Simulator) -> None:
        self._flavour = simulator.flavour
        self._engine = simulator.engine
        self._stats = simulator.stats
        self._faults = simulator.faults
        self._nonsense = itertools.count()

    def routes(self) -> list[Route]:
        """Those under /internal only where the flavour has them."""
        internal: list[Route] = [
            ("POST", "/internal/progress", self._internal_progress),
            ("GET", "/internal/pending-tasks", lambda: as_json(self._engine.pending())),
            ("GET", "/internal/ping", lambda: as_json({})),
        ]
        return [
            ("GET", "/sdapi/v1/progress", self._progress),
            ("POST", "/sdapi/v1/interrupt", self._interrupt),
            ("POST", "/sdapi/v1/skip", self._skip),
            *(internal if self._flavour.internal else []),
        ]

    def _progress(self) -> Response:
        validation.read_flag("skip_current_image", request.args.get("skip_current_image"), self._flavour.pydantic)
        fault = self._faults.take(PROGRESS_KINDS)
        if fault is not None:
            self._engine.wait_for_stop(fault.lasts(1))
        return self._answer(self._engine.progress())

    def _internal_progress(self) -> Response:
        body = read_body(self._flavour)
        fields = validation.read_fields(validation.PROGRESS_FIELDS, body, self._flavour.pydantic)
        return self._answer(self._engine.task_progress(fields["id_task"], fields["id_live_preview"]))

    def _answer(self, body: dict[str, Any]) -> Response:
        if self._faults.take((NONSENSE_PROGRESS,)) is None:
            return as_json(body)
        return Response(nonsense_progress(body, next(self._nonsense)), content_type="application/json")

    def _interrupt(self) -> Response:
        """Interrupt whatever runs; without effect when nothing does."""
        self._stats.count("interrupts")
        if self._faults.take((LOST_INTERRUPT,)) is None:
            self._stats.note_interrupted(self._engine.interrupt())
        return as_json({})

    def _skip(self) -> Response:
        self._engine.skip()
        return as_json(None)
