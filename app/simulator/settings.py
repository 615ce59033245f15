"""Settings of a simulator: its flavour, its speed, its models and the faults that are armed at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from app.simulator.faults import FAULT_KINDS


@dataclass(frozen=True)
class Flavour:
    """The behaviour of one family of WebUIs; each field is one difference from the others that a client can see."""

    name: str
    version: str
    #: Major version of pydantic: it decides what is coerced and how a 422 looks.
    pydantic: int = 1
    #: Samplers and schedulers are two names (1.9 and later) instead of one such as "DPM++ 2M Karras".
    schedulers: bool = True
    #: The routes of the UI process: /internal/progress, /internal/pending-tasks, /internal/ping.
    internal: bool = True
    #: Forge: ``{"detail"}`` and ``message`` error bodies, /sd-modules, hires fix that needs two more fields.
    forge: bool = False
    #: Extras refuse a factor above 8 (before 1.9.1).
    extras_limit: bool = False
    #: A reference image is turned upright by its EXIF (1.9 and later).
    exif: bool = True
    #: img2img depends on the job before it: encoding the reference samples from torch's global generator, whose state that job
    #: left. All real servers do this; only one flavour does, so that the others give the same bytes for the same request.
    torch: bool = False


_ALL = (
    Flavour("a1111-1.7", "simulator 1.7.0", schedulers=False, extras_limit=True, exif=False),
    Flavour("a1111-1.10", "simulator 1.10.1"),
    Flavour("a1111-1.10-torch", "simulator 1.10.1", torch=True),
    Flavour("forge", "simulator f2.0.1v1.10.1", pydantic=2, forge=True),
    Flavour("nowebui", "simulator 1.10.1", internal=False),
)
FLAVOUR_TABLE = MappingProxyType({flavour.name: flavour for flavour in _ALL})
FLAVOURS: tuple[str, ...] = tuple(FLAVOUR_TABLE)
_EXTENSIONS = (".safetensors", ".ckpt")


def checkpoint_file(name: str) -> str:
    """Path of a model below the models folder; a name without an extension is a ``.safetensors`` file."""
    return name if name.endswith(_EXTENSIONS) else f"{name}.safetensors"


@dataclass(frozen=True)
class SimulatorSettings:
    """Settings of one simulator; ``ValueError`` for a value out of range.

    :ivar models: checkpoint names, ``folder/name`` in a sub folder, with or without ``.safetensors`` or ``.ckpt``. The first
        one is loaded at the start. Files are registered in this order.
    :ivar faults: armed at the start, as (kind, how often).
    :ivar precomputed: draw one picture per size, serve it for every seed and encode it while the seconds run, so that a
        benchmark measures the caller and not the drawing.
    :ivar auth: user and password of ``--api-auth``.
    :ivar seconds_per_first_load: what the first generation waits for the model (see ``fresh``).
    :ivar fresh: no config.json yet: on A1111 the option ``sd_model_checkpoint`` is null until the first model is loaded. It is
        loaded in the background from the start on; otherwise the first generation starts the load.
    :ivar hashing: False is ``--no-hashing``: no model ever has a hash.
    :ivar lacks_options: options that the server does not have.
    :ivar frozen_options: ``GET /options`` omits the options that are registered late, although overrides of them work.
    :ivar flags: command-line flags as ``GET /cmd-flags`` shows them, by their names with underscores.
    :ivar task_ids: False: it ignores ``force_task_id``, as versions before 1.8 do.
    :ivar clock_ahead: seconds by which its clock is ahead of this machine's, as the header ``Date`` shows it.
    """

    seconds_per_image: float = 0.2
    flavour: str = "a1111-1.10"
    models: tuple[str, ...] = ("simulated-one", "simulated-two")
    faults: tuple[tuple[str, int], ...] = ()
    precomputed: bool = False
    auth: tuple[str, str] | None = None
    seconds_per_model_load: float = 0.0
    seconds_per_upscale: float = 0.0
    seconds_per_first_load: float = 0.0
    fresh: bool = False
    hashing: bool = True
    lacks_options: tuple[str, ...] = ()
    frozen_options: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)
    task_ids: bool = True
    clock_ahead: float = 0.0

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOUR_TABLE:
            raise ValueError(f"unknown flavour {self.flavour!r}; known: {', '.join(FLAVOURS)}")
        loads = (self.seconds_per_model_load, self.seconds_per_first_load)
        if min(self.seconds_per_image, self.seconds_per_upscale, *loads) < 0:
            raise ValueError("a simulator cannot take less than 0 seconds")
        files = {checkpoint_file(name) for name in self.models}
        if not self.models or len(files) != len(self.models) or not all(self.models):
            raise ValueError("a simulator needs at least one model, each named once")
        for kind, count in self.faults:
            if kind not in FAULT_KINDS or count < 1:
                raise ValueError(f"unknown fault {kind}:{count}")
