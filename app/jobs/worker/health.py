"""Whether a WebUI answers, as its runner and its monitor tell each other."""

from __future__ import annotations

import threading


class Health:
    """Up or down, with the reason. Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._up = False
        self._why_down = ""

    @property
    def up(self) -> bool:
        """Whether the WebUI answered the last time."""
        with self._lock:
            return self._up

    @property
    def why_down(self) -> str:
        """The reason why it was last found down, for the log."""
        with self._lock:
            return self._why_down

    def found_up(self) -> None:
        """Note that the WebUI answered."""
        with self._lock:
            self._up = True

    def found_down(self, why: str) -> None:
        """Note that the WebUI did not answer, and why."""
        with self._lock:
            self._up, self._why_down = False, why
