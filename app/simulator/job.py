"""One generation, from the fields of its request to its pictures and ``info``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from app.simulator.pictures import Picture


@dataclass
class Job:
    """Grows as the work goes on: inputs, then prompts, seeds and sizes, then pictures, infotexts and ``info``."""

    kind: str
    fields: dict[str, Any]
    sampler: str
    scheduler: str | None
    #: Reference images, RGB, each with the hash of its pixels; picture k is painted over number k.
    inits: list[tuple[Image.Image, str]] = field(default_factory=list)
    masked: bool = False
    prompt: str = ""
    negative: str = ""
    seeds: list[int] = field(default_factory=list)
    subseeds: list[int] = field(default_factory=list)
    #: ``extra_generation_params`` of ``info``; what the server works out per picture is null there and in ``shown``.
    extra: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    #: Size of what comes out, pixels; ``info`` keeps the numbers that were asked for.
    size: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None
    clip_skip: int = 1
    pictures: list[Picture] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    first: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    #: When its next sampling run began: the first one when the request was there and the GPU free, so that a picture takes the
    #: seconds that it was set to, and not what the simulator needs to read the request on top.
    began: float = 0.0

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    @property
    def hires(self) -> bool:
        """Whether there is a second pass."""
        return bool(self.fields.get("enable_hr"))

    @property
    def planned(self) -> int:
        """The number of pictures that were asked for."""
        return int(self["batch_size"] * self["n_iter"])
