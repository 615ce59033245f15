"""The routes by which a test controls the simulator; a real WebUI has none of them.

====== ======================= ================================================================
GET    /simulator/stats        the counters
GET    /simulator/requests     the payloads of the generation and extras requests so far
POST   /simulator/reset        set the counters to zero and forget the payloads
GET    /simulator/faults       the armed faults
POST   /simulator/faults       arm one: ``{"kind": …, "count": 1, "seconds": …, "model": …, "size": …}``
DELETE /simulator/faults       disarm all, or with ``?kind=…`` those of one kind
POST   /simulator/models       change the checkpoint files: ``{"add": […], "remove": […]}``
====== ======================= ================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flask import Response, request

from app.simulator.faults import FAULT_KINDS, REFUSE, Fault
from app.simulator.responses import as_json
from app.simulator.routes.requests import Route
from app.simulator.simulator import Simulator


class ControlRoutes:
    """Faults, models and statistics of one simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def routes(self) -> list[Route]:
        """All of them, in every flavour."""
        stats = self._simulator.stats
        return [
            ("GET", "/simulator/stats", lambda: as_json(stats.as_dict())),
            ("GET", "/simulator/requests", lambda: as_json(stats.payloads())),
            ("POST", "/simulator/reset", self._reset),
            ("GET", "/simulator/faults", self._armed),
            ("POST", "/simulator/faults", self._arm),
            ("DELETE", "/simulator/faults", self._disarm),
            ("POST", "/simulator/models", self._change_models),
        ]

    def _arm(self) -> Response:
        """422 for anything but a fault; 409 for "refuse" where nothing listens."""
        fault = _read_fault(request.get_json(force=True, silent=True))
        if isinstance(fault, str):
            return as_json({"error": fault}, 422)
        if fault.kind != REFUSE:
            self._simulator.faults.arm(fault)
        elif self._simulator.refuse is None:
            return as_json({"error": "only a listening simulator can refuse"}, 409)
        else:
            self._simulator.refuse(fault.lasts(fault.count))
        return self._armed()

    def _armed(self) -> Response:
        return as_json({"armed": self._simulator.faults.armed()})

    def _disarm(self) -> Response:
        self._simulator.faults.clear(request.args.get("kind"))
        return self._armed()

    def _change_models(self) -> Response:
        """422 for a body of another form, or where no model would be left."""
        models = self._simulator.studio.models
        body = request.get_json(force=True, silent=True)
        if not isinstance(body, dict) or not set(body) <= {"add", "remove"} or not all(map(_are_names, body.values())):
            return as_json({"error": "a JSON object with the lists of names add and remove is expected"}, 422)
        try:
            models.change(body.get("add", []), body.get("remove", []))
        except ValueError as error:
            return as_json({"error": str(error)}, 422)
        return as_json({"models": [checkpoint.file for checkpoint in models.listed()]})

    def _reset(self) -> Response:
        self._simulator.stats.reset()
        return as_json(self._simulator.stats.as_dict())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


#: Members of a fault beside its kind: a check of the value, and the words for what it accepts.
_FAULT_MEMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "count": (_is_count, "a whole number above 0"),
    "seconds": (lambda value: value is None or _is_duration(value), "a number from 0"),
    "model": (lambda value: value is None or isinstance(value, str), "a name"),
    "size": (lambda value: value is None or _is_count(value), "a whole number above 0"),
}


def _read_fault(value: Any) -> Fault | str:
    """The fault that a body asks for, or the error in it."""
    if not isinstance(value, dict) or not set(value) <= {"kind", *_FAULT_MEMBERS}:
        return "a JSON object with kind, count, seconds, model and size is expected"
    if value.get("kind") not in FAULT_KINDS:
        return "unknown kind; known: " + ", ".join(FAULT_KINDS)
    for name, (accepts, words) in _FAULT_MEMBERS.items():
        if name in value and not accepts(value[name]):
            return f"{name} must be {words}"
    return Fault(**value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)
