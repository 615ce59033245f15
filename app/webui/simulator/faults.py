"""The ways in which a simulator can be told to misbehave.

A fault is armed for a number of requests. Kinds without a prefix answer generation POSTs, ``extras-…`` the two extras
POSTs, and the kinds of :data:`LIST_KINDS` the list routes that a catalogue is read from.
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
)
GENERATION_KINDS: tuple[str, ...] = (
    *_ANSWERS,
    "oom",  # out of GPU memory
    "oom-batch",  # the same, only for batch_size above 1
    "grid",  # a grid in front, index_of_first_image 1
    "wrong-model",  # `info` names another model than the one asked for
    "lost-model",  # the last model (or `model`) has left the server
    "interrupted",  # as if a person pressed Interrupt half way
)
EXTRAS_KINDS: tuple[str, ...] = tuple(f"extras-{kind}" for kind in ("500", *_ANSWERS[1:]))
LIST_KINDS: tuple[str, ...] = (
    "slow-start",  # 404, as while a server registers its routes; for `seconds` if given
    "catalogue-500",
)
PROGRESS_KINDS: tuple[str, ...] = ("slow-progress",)  # /sdapi/v1/progress answers after `seconds` (1)
#: The listening socket is closed for `seconds` (as many as the count), and idle connections with it.
REFUSE = "refuse"
FAULT_KINDS: tuple[str, ...] = (*GENERATION_KINDS, *EXTRAS_KINDS, *LIST_KINDS, *PROGRESS_KINDS, REFUSE)


@dataclass
class Fault:
    """One armed fault; ``count`` is how many requests it has yet to strike."""

    kind: str
    count: int = 1
    seconds: float | None = None
    model: str | None = None
    armed_at: float = field(default_factory=time.monotonic)

    @property
    def effect(self) -> str:
        """The kind without the prefix of the route, so that one implementation serves generation and extras."""
        effect = self.kind.removeprefix("extras-")
        return "error-500" if effect == "500" else effect

    @property
    def standing(self) -> bool:
        """Whether it strikes everything until its time is over, instead of a number of requests."""
        return self.kind == "slow-start" and self.seconds is not None

    @property
    def over(self) -> bool:
        """Whether the time of a standing fault has run out."""
        return self.standing and time.monotonic() >= self.armed_at + self.lasts(0)

    def lasts(self, otherwise: float) -> float:
        """Seconds that the fault lasts."""
        return otherwise if self.seconds is None else self.seconds


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

    def clear(self) -> None:
        """Disarm everything; a request that a fault already struck stays struck."""
        with self._lock:
            self._armed.clear()

    def find(self, kind: str) -> Fault | None:
        """The oldest armed fault of a kind, without using it up."""
        with self._lock:
            return next((fault for fault in self._armed if fault.kind == kind), None)

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
        """What is armed, for a person to see."""
        with self._lock:
            return [{"kind": fault.kind, "count": fault.count} for fault in self._armed if not fault.over]
