"""Counts that a test reads from a simulator afterwards: requests, the most at once, the gaps between them, and their payloads."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from collections import deque
from typing import Any

#: How many payloads are remembered.
REMEMBERED = 1000


class Visit:
    """One POST under way, from its headers read to the last byte of its answer; ending it twice is ending it once."""

    def __init__(self, stats: Stats, *, generation: bool) -> None:
        self._stats = stats
        self._generation = generation
        self._over = False

    def end(self, now: float, *, answered: bool = True) -> None:
        """Count it out; ``answered`` says that its last bytes are about to leave (``now``: seconds, monotonic)."""
        with self._stats.lock:
            if self._over:
                return
            self._over = True
            self._stats.left(now if answered and self._generation else None, generation=self._generation)


class Stats:
    """Counters under one lock; times are seconds of one monotonic clock, gaps are shown in milliseconds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._in_flight = 0
        self._generating = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was counted; what is under way stays under way."""
        with self.lock:
            self._counts = {"generations": 0, "model_loads": 0, "interrupts": 0, "refreshes": 0}
            self._max_in_flight = self._in_flight
            self._gaps: list[float] = []
            self._last_answer: float | None = None
            self._payloads: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
            self._interrupted: list[str | None] = []

    def count(self, what: str) -> None:
        """Add one to ``generations``, ``model_loads``, ``interrupts`` or ``refreshes``."""
        with self.lock:
            self._counts[what] += 1

    def note_interrupted(self, task: str | None) -> None:
        """What an interrupt has stopped: a task id, the name of a job without one, or None where nothing ran."""
        with self.lock:
            self._interrupted.append(task)

    def arrive(self, received: float, *, generation: bool) -> Visit:
        """A POST whose headers were read at ``received``; one that comes before the last one's answer left no gap."""
        with self.lock:
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            if generation:
                if self._generating:
                    self._gaps.append(0.0)
                elif self._last_answer is not None:
                    self._gaps.append(max(0.0, received - self._last_answer))
                self._generating += 1
        return Visit(self, generation=generation)

    def left(self, answered: float | None, *, generation: bool) -> None:
        """The other end of :meth:`arrive`, called under the lock."""
        self._in_flight -= 1
        self._generating -= generation
        if answered is not None:
            self._last_answer = answered

    def remember(self, path: str, payload: Any, received: float) -> None:
        """Keep a payload, pictures replaced by their hash, and when its headers were read (seconds, monotonic)."""
        with self.lock:
            self._payloads.append({"path": path, "received_at": received, "payload": _without_pictures(payload)})

    def payloads(self) -> list[dict[str, Any]]:
        """The last payloads, oldest first."""
        with self.lock:
            return list(self._payloads)

    def as_dict(self) -> dict[str, Any]:
        """The body of ``GET /simulator/stats``."""
        with self.lock:
            return {
                "generations": self._counts["generations"],
                "max_in_flight": self._max_in_flight,
                "model_loads": self._counts["model_loads"],
                "interrupts": self._counts["interrupts"],
                "interrupted": list(self._interrupted),
                "refreshes": self._counts["refreshes"],
                "idle_gaps_ms": [round(gap * 1000, 3) for gap in self._gaps],
            }


_PICTURES = ("init_images", "mask", "image", "data")


def _without_pictures(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_pictures(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item, key) for item in value]
    return _digest(value) if isinstance(value, str) and key in _PICTURES else value


def _digest(text: str) -> dict[str, Any]:
    """The hash and size in bytes of a base64 picture, or of the text itself where it is none."""
    try:
        data = base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        data = text.encode("utf-8", "surrogatepass")
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
