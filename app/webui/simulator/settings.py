"""What a simulator is told at its start: its flavour, its speed, its models and the faults it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from app.webui.simulator.faults import FAULT_KINDS


@dataclass(frozen=True)
class Flavour:
    """How one family of servers differs from the next; each field is one difference that a client can see."""

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


_ALL = (
    Flavour("a1111-1.7", "simulator 1.7.0", schedulers=False, extras_limit=True, exif=False),
    Flavour("a1111-1.10", "simulator 1.10.1"),
    Flavour("forge", "simulator f2.0.1v1.10.1", pydantic=2, forge=True),
    Flavour("nowebui", "simulator 1.10.1", internal=False),
)
FLAVOUR_TABLE = MappingProxyType({flavour.name: flavour for flavour in _ALL})
FLAVOURS: tuple[str, ...] = tuple(FLAVOUR_TABLE)


@dataclass(frozen=True)
class SimulatorSettings:
    """Settings of one simulator; ``ValueError`` for what it cannot be.

    ``models`` are checkpoint names without their extension, ``folder/name`` for one in a sub folder. ``faults`` are armed
    at the start, as (kind, how often). ``precomputed`` draws one picture per size, serves it for every seed and encodes it
    while the seconds run, so that a benchmark measures the caller and not the drawing. ``auth`` is the user and password of
    ``--api-auth``.
    """

    seconds_per_image: float = 0.2
    flavour: str = "a1111-1.10"
    models: tuple[str, ...] = ("simulated-one", "simulated-two")
    faults: tuple[tuple[str, int], ...] = ()
    precomputed: bool = False
    auth: tuple[str, str] | None = None
    seconds_per_model_load: float = 0.0
    seconds_per_upscale: float = 0.0

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOUR_TABLE:
            raise ValueError(f"unknown flavour {self.flavour!r}; known: {', '.join(FLAVOURS)}")
        if min(self.seconds_per_image, self.seconds_per_model_load, self.seconds_per_upscale) < 0:
            raise ValueError("a simulator cannot take less than 0 seconds")
        if not self.models or len(set(self.models)) != len(self.models) or not all(self.models):
            raise ValueError("a simulator needs at least one model, each named once")
        for kind, count in self.faults:
            if kind not in FAULT_KINDS or count < 1:
                raise ValueError(f"unknown fault {kind}:{count}")
