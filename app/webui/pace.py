"""The time that a WebUI lately took for generations of one kind: one that was clearly faster can't have been finished."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final

#: Generations of one kind that are remembered, and how many of them make a measure.
_SAMPLES: Final = 20
_ENOUGH_SAMPLES: Final = 5
_KINDS: Final = 256
#: Under this part of the fastest time a generation was not finished.
_TOO_FAST: Final = 0.8
#: Shorter differences than this, seconds, are the noise of any machine.
_NOISE_SECONDS: Final = 0.05


class Pace:
    """The speed of one WebUI's last generations, by kind. Safe under threads; kept in memory only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def add(self, kind: Hashable, seconds: float) -> None:
        """Remember how long a whole generation took."""
        with self._lock:
            self._samples.setdefault(kind, deque(maxlen=_SAMPLES)).append(seconds)
            self._samples.move_to_end(kind)
            if len(self._samples) > _KINDS:
                self._samples.popitem(last=False)

    def fastest(self, kind: Hashable) -> float | None:
        """The least seconds of the last generations of this kind; None before there are five.

        The least, and no average: a time that holds waiting behind others is too long, never too short.
        """
        with self._lock:
            samples = self._samples.get(kind, ())
            return min(samples) if len(samples) >= _ENOUGH_SAMPLES else None

    def is_too_fast(self, kind: Hashable, seconds: float) -> bool:
        """Whether a generation that took so long can't have been finished."""
        fastest = self.fastest(kind)
        return fastest is not None and seconds < min(_TOO_FAST * fastest, fastest - _NOISE_SECONDS)
