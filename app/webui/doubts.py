"""Whether the model that a WebUI has loaded is still whole.

A switch to a checkpoint whose file is missing or corrupt fails, and leaves the model that *is* loaded broken in memory: A1111 goes
on to make other pixels with it and calls them good (``reload_model_weights`` in ``modules/sd_models.py`` takes the model apart
before it reads the new file), Forge fails every generation with it. Nothing but loading another model, or a restart, repairs
that. So the doubt is noted before each switch and kept until a picture of another model has come back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from app.webui.models import Model

_MODEL: Final = "model"
_HOPELESS: Final = "hopeless"


class ModelDoubt:
    """The doubt about one WebUI's loaded model, which is named by its ``checkpoint``. Safe under threads.

    :param stored: what was kept before this process began.
    :param keep: called with the text to keep, or None when there is no doubt any more.
    """

    def __init__(self, stored: str | None, keep: Callable[[str | None], None]) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        self._stored = stored
        #: Counts the doubts; a picture that was asked for before the newest one says nothing about it.
        self._number = 0
        #: Checkpoints with which a job failed, which has many reasons, and those that could not be loaded even for a probe.
        self._suspected: set[str] = set()
        self._failed: set[str] = set()

    @property
    def number(self) -> int:
        """The number of the newest doubt, to be read when a generation is sent and passed on with its answer."""
        return self._number

    @property
    def stored(self) -> str | None:
        """The text that is kept."""
        return self._stored

    @property
    def model(self) -> str | None:
        """The checkpoint that must not be used; None when there is no doubt."""
        return None if self._stored is None else _read(self._stored).get(_MODEL)

    @property
    def hopeless(self) -> bool:
        """Whether every other model was tried in vain, so that only a restart of the WebUI helps."""
        return self._stored is not None and _read(self._stored).get(_HOPELESS) is True

    def learn(self, stored: str | None) -> None:
        """Take over what another process kept."""
        with self._lock:
            if stored is not None and (self._stored is None or _read(stored)[_MODEL] != _read(self._stored)[_MODEL]):
                self._number += 1
            self._stored = stored

    def begin_switch(self, loaded: str) -> bool:
        """Another model than the loaded one is about to be asked for; True if there was no doubt before.

        An older doubt stays: a broken model is not repaired by a switch that fails.
        """
        with self._lock:
            if self._stored is not None:
                return False
            self._change({_MODEL: loaded})
            self._number += 1
            return True

    def loads(self, checkpoint: str, number: int) -> None:
        """A picture of this model has come back.

        :param number: the :attr:`number` when it was asked for: answers are judged late, and a later doubt outlives them.
        """
        with self._lock:
            if number == self._number and self._stored is not None and _read(self._stored).get(_MODEL) != checkpoint:
                self._change(None)
                # What failed may have failed for reasons of its moment; the next doubt tries it again.
                self._failed.clear()
                self._suspected.clear()

    def suspect(self, checkpoint: str) -> None:
        """A job with this model failed while there was a doubt: its file may be broken, or only the job can't be made."""
        with self._lock:
            self._suspected.add(checkpoint)

    def fails(self, checkpoint: str) -> None:
        """The smallest picture there is could not be made with this model: it can't be loaded."""
        with self._lock:
            self._failed.add(checkpoint)

    def withdraw(self, number: int) -> None:
        """The switch for which the doubt with this number was noted was not tried after all."""
        with self._lock:
            if number == self._number and self._stored is not None:
                self._change(None)

    def forget(self) -> None:
        """The WebUI was restarted."""
        with self._lock:
            self._failed.clear()
            self._suspected.clear()
            if self._stored is not None:
                self._change(None)

    def candidates(self, models: Sequence[Model]) -> list[Model]:
        """The models that a repair can load: not the doubted one, nor those that can't be loaded; those with which a job failed
        come last.
        """
        with self._lock:
            doubted = None if self._stored is None else _read(self._stored).get(_MODEL)
            left = [model for model in models if model.checkpoint != doubted and model.checkpoint not in self._failed]
            return sorted(left, key=lambda model: model.checkpoint in self._suspected)

    def give_up(self) -> None:
        """Note that no other model is left to try: only a restart helps, or a file that was repaired."""
        with self._lock:
            if self._stored is not None:
                self._change({**_read(self._stored), _HOPELESS: True})

    def try_again(self) -> None:
        """Let every model be a candidate again: a file may have been repaired."""
        with self._lock:
            self._failed.clear()
            if self._stored is not None:
                self._change({_MODEL: _read(self._stored)[_MODEL]})

    def _change(self, doubt: dict[str, Any] | None) -> None:
        text = None if doubt is None else json.dumps(doubt, sort_keys=True)
        # First: a doubt that could not be kept is noted anew by the next switch.
        self._keep(text)
        self._stored = text


def is_hopeless(stored: str) -> bool:
    """Whether a kept doubt says that only a restart of the WebUI helps."""
    return _read(stored).get(_HOPELESS) is True


def _read(stored: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(stored)
    return read
