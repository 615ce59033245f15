"""Reading a request: its path, its body, and the fault that strikes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from flask import Response, g, request

from app.simulator import validation
from app.simulator.errors import CrashError, HttpError, InvalidError, PlainError
from app.simulator.faults import Fault, Faults
from app.simulator.settings import Flavour
from app.simulator.simulator import Simulator

GENERATION_PATHS = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")
EXTRAS_PATHS = ("/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images")

#: Method, path and view.
Route = tuple[str, str, Callable[[], Response]]


def read_body(flavour: Flavour) -> Any:
    """The JSON body of this request.

    :raises InvalidError: it is not JSON.
    """
    return validation.read_body(request.get_data(), request.headers.get("Content-Type"), flavour.pydantic)


def current_fault() -> Fault | None:
    """The fault that strikes this request, or None."""
    fault: Fault | None = g.get("fault")
    return fault


def accept(simulator: Simulator, kinds: tuple[str, ...]) -> tuple[Any, Fault | None]:
    """Read the body of a generation or extras request, record it, and take the fault of these kinds that strikes it.

    :raises SimulatedError: the body is not JSON, or the fault needs no work done first.
    """
    payload = read_body(simulator.flavour)
    simulator.stats.remember(request.path, payload, g.received)
    fault = _take_fault(simulator.faults, kinds, payload)
    g.fault = fault
    _fail_early(fault)
    if fault is not None and fault.effect == "early-hints":
        _send_hints(fault.sized(2))
    return payload, fault


def _take_fault(faults: Faults, kinds: tuple[str, ...], payload: Any) -> Fault | None:
    """All but "lost-model", which :meth:`Models.lost` takes; "oom-batch" strikes only more than one picture."""
    batch_size = payload.get("batch_size") if isinstance(payload, dict) else None
    many = isinstance(batch_size, int) and batch_size > 1
    return faults.take(kinds, lambda fault: fault.kind != "lost-model" and (many or fault.kind != "oom-batch"))


def _fail_early(fault: Fault | None) -> None:
    effect = None if fault is None else fault.effect
    if effect == "error-http":
        raise HttpError(404, "simulated refusal")
    if effect == "error-422":
        item = {"loc": ["body", "steps"], "msg": "value is not a valid integer", "type": "type_error.integer"}
        raise InvalidError([item])
    if effect == "error-plain":
        raise PlainError("Internal Server Error")
    if effect == "error-forge":
        raise CrashError("RuntimeError", "simulated failure")


def _send_hints(count: int) -> None:
    """Informational answers ahead of the real one; only a server that listens can send them."""
    send = request.environ.get("simulator.send")
    if send is not None:
        with contextlib.suppress(OSError):
            send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" * count)
