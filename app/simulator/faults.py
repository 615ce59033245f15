"""The ways in which a simulator can be told to misbehave.

A fault is armed for a number of requests, or stands until it is removed. Kinds without a prefix answer generation POSTs,
``extras-…`` the two extras POSTs, and the kinds of :data:`LIST_KINDS` the list routes that a catalogue is read from.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: Faults of one answer, by what they do; all of them can strike a generation, most of them extras too.
_ANSWERS = (
    "error-500",  # the unhandled-exception shape of the flavour
    "error-http",  # the HTTPException shape of the flavour, 404
    "error-422",  # a validation answer
    "error-plain",  # 500 in plain text
    "error-forge",  # Forge's unhandled-exception shape, whatever the flavour
    "bad-json",  # 200 and half a JSON document
    "bad-base64",  # 200 and pictures that no one can decode
    "torn",  # half the bytes that Content-Length promised
    "close",  # the connection is closed without an answer, the work done
    "no-images",  # 200 and an empty list
    "fewer-images",  # 200 and one picture too few
    "hang",  # busy for `seconds` (3600); interrupt ends it
    "hang-idle",  # the work ends, the answer does not come for `seconds` (3600)
    "trickle",  # byte after byte for `seconds` (10), then the rest
    "jpeg",
    "webp",
    "wrong-size",  # pictures of 8×2000 pixels
)
GENERATION_KINDS: tuple[str, ...] = (
    *_ANSWERS,
    "oom",  # out of GPU memory
    "oom-batch",  # the same, only for batch_size above 1
    "grid",  # a grid in front, index_of_first_image 1
    "wrong-model",  # `info` names another model than the one asked for
    "lost-model",  # the last model (or `model`) has left the server
    "interrupted",  # as if a person pressed Interrupt half way
    "nan",  # NansException
    "wrong-seeds",  # `info` says seed 777777 and all_seeds 777777, 777778 …
    "text-chunk",  # PNGs with a compressed text chunk that unpacks to 2 MiB
    "long-infotext",  # infotexts of `size` characters (1 MiB), in `info` and in the PNGs
    "early-hints",  # `size` (2) answers with status 103 before the work, then the real one
    "long-content-length",  # a Content-Length of 5,000 digits, the whole body, then the end of the connection
    "endless",  # 200, chunked: half a JSON document that goes on for ever
    "endless-close",  # the same without any declared length
    "declares-huge",  # 200, a Content-Length of 10 GB and as many bytes
    "huge-json",  # 200, the real answer with a member "padding" in front, `size` bytes (900 MB) in all
    "many-lists",  # 200, `images` is a list of empty lists, `size` bytes (300 MB) in all
)
#: An answer is sent piece by piece instead of the real one.
STREAMS: tuple[str, ...] = ("endless", "endless-close", "declares-huge", "huge-json", "many-lists")
#: The body of a failing generation names ExceptionGroup instead of the error's class, as with anyio 4. It strikes generations
#: that fail anyway, for example by another fault.
EXCEPTION_GROUP = "exception-group"
#: Standing, until removed: the file of `model` (the last one) cannot be loaded, and trying poisons the model that is loaded.
MODEL_KINDS: tuple[str, ...] = (
    "load-fails",  # the file is gone; refresh-checkpoints takes it off the list
    "load-corrupt",  # the file is unreadable; it stays on the list
)
#: Every path below /sdapi and /internal is 404, as before the API's routes are added; for `seconds` if given.
START_KINDS: tuple[str, ...] = (
    "start-window",  # {"detail":"Not Found"}
    "start-window-html",  # a page
)
EXTRAS_KINDS: tuple[str, ...] = tuple(f"extras-{kind}" for kind in ("500", *_ANSWERS[1:]))
LIST_KINDS: tuple[str, ...] = (
    "slow-start",  # 404, as while a server registers its routes; for `seconds` if given
    "catalogue-500",
)
PROGRESS_KINDS: tuple[str, ...] = ("slow-progress",)  # /sdapi/v1/progress answers after `seconds` (1)
#: Both progress routes answer with unusable numbers: in turn integers of 400 digits, NaN, Infinity, -Infinity, strings.
NONSENSE_PROGRESS = "nonsense-progress"
LOST_INTERRUPT = "lost-interrupt"  # an interrupt is answered, and without effect
#: The listening socket is closed for `seconds` (as many as the count), and idle connections with it.
REFUSE = "refuse"
FAULT_KINDS: tuple[str, ...] = (
    *GENERATION_KINDS,
    EXCEPTION_GROUP,
    *EXTRAS_KINDS,
    *MODEL_KINDS,
    *START_KINDS,
    *LIST_KINDS,
    *PROGRESS_KINDS,
    NONSENSE_PROGRESS,
    LOST_INTERRUPT,
    REFUSE,
)


@dataclass
class Fault:
    """One armed fault; ``count`` is how many requests it has yet to strike, ``size`` counts bytes, characters or answers."""

    kind: str
    count: int = 1
    seconds: float | None = None
    model: str | None = None
    size: int | None = None
    armed_at: float = field(default_factory=time.monotonic)

    @property
    def effect(self) -> str:
        """The kind without the prefix of the route, so that one implementation serves generation and extras."""
        effect = self.kind.removeprefix("extras-")
        return "error-500" if effect == "500" else effect

    @property
    def standing(self) -> bool:
        """Whether it strikes everything until its time is over or it is removed, instead of a number of requests."""
        timed = self.kind in ("slow-start", *START_KINDS) and self.seconds is not None
        return timed or self.kind in MODEL_KINDS

    @property
    def over(self) -> bool:
        """Whether the time of a standing fault has run out."""
        return self.standing and self.seconds is not None and time.monotonic() >= self.armed_at + self.lasts(0)

    def lasts(self, otherwise: float) -> float:
        """Seconds that the fault lasts."""
        return otherwise if self.seconds is None else self.seconds

    def sized(self, otherwise: int) -> int:
        """Its size, or the default of its kind."""
        return otherwise if self.size is None else self.size


def parse_fault(text: str) -> tuple[str, int]:
    """Read ``KIND`` or ``KIND:N``; ``ValueError`` names what is wrong."""
    kind, _, count = text.partition(":")
    if kind not in FAULT_KINDS:
        raise ValueError(f"unknown fault {kind!r}; known: {', '.join(FAULT_KINDS)}")
    if count and not (count.isascii() and count.isdigit() and int(count) > 0):
        raise ValueError(f"{text!r}: the count must be a whole number above 0")
    return kind, int(count or 1)


class Faults:
    """The armed faults, oldest first; safe under threads."""

    def __init__(self, armed: tuple[tuple[str, int], ...]) -> None:
        self._lock = threading.Lock()
        self._armed = [Fault(kind, count) for kind, count in armed]

    def arm(self, fault: Fault) -> None:
        """Add a fault behind those that are armed."""
        with self._lock:
            self._armed.append(fault)

    def clear(self, kind: str | None = None) -> None:
        """Disarm everything, or one kind; a request that a fault already struck stays struck."""
        with self._lock:
            self._armed = [fault for fault in self._armed if kind is not None and fault.kind != kind]

    def find(self, kind: str) -> Fault | None:
        """The oldest armed fault of a kind, without using it up."""
        return next(iter(self.find_all((kind,))), None)

    def find_all(self, kinds: tuple[str, ...]) -> list[Fault]:
        """All armed faults of these kinds, oldest first, without using them up."""
        with self._lock:
            return [fault for fault in self._armed if fault.kind in kinds and not fault.over]

    def take(self, kinds: tuple[str, ...], strikes: Callable[[Fault], bool] = lambda _: True) -> Fault | None:
        """The oldest armed fault of these kinds that strikes this request, used up by one."""
        with self._lock:
            self._armed = [fault for fault in self._armed if not fault.over]
            fault = next((fault for fault in self._armed if fault.kind in kinds and strikes(fault)), None)
            if fault is not None and not fault.standing:
                fault.count -= 1
                if fault.count <= 0:
                    self._armed.remove(fault)
            return fault

    def remove(self, kind: str) -> Fault | None:
        """Disarm the oldest fault of a kind, however often it could still strike."""
        with self._lock:
            fault = next((fault for fault in self._armed if fault.kind == kind), None)
            if fault is not None:
                self._armed.remove(fault)
            return fault

    def armed(self) -> list[dict[str, Any]]:
        """The armed faults, for a person to see."""
        with self._lock:
            return [{"kind": fault.kind, "count": fault.count} for fault in self._armed if not fault.over]
