"""The checkpoint files of a simulator: their names, which one is loaded, and what a failed switch leaves behind.

Follows ``modules/sd_models.py`` of the WebUI in what a client can see. The files count as registered in the order of the
settings, as after a restart with a filled hash cache.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import Any

from app.simulator.engine import Engine
from app.simulator.errors import CrashError
from app.simulator.faults import MODEL_KINDS, Faults
from app.simulator.settings import Flavour, SimulatorSettings, checkpoint_file
from app.simulator.stats import Stats

_FOLDER = "/simulated/models/Stable-diffusion"


class Checkpoint:
    """One model file, under all the names that a server knows it by (``sd_models.CheckpointInfo``)."""

    def __init__(self, name: str, *, hashing: bool = True) -> None:
        self.file = checkpoint_file(name)
        base = self.file.rpartition(".")[0]
        self.model_name = base.replace("/", "_")
        #: What ``info`` calls it: the stem of the file's own name, without the folder.
        self.shown = base.rpartition("/")[2]
        self._hashing = hashing
        content = base if self.file.endswith(".safetensors") else self.file
        self._sha256 = hashlib.sha256(f"simulated checkpoint {content}".encode()).hexdigest()
        #: A server hashes a file when it first loads it; until then the title has no hash.
        self.hashed = False

    @property
    def sha256(self) -> str | None:
        """The whole hash; None under ``--no-hashing``."""
        return self._sha256 if self._hashing else None

    @property
    def hash(self) -> str | None:
        """The short hash, as in ``info``; None under ``--no-hashing``."""
        return self._sha256[:10] if self._hashing else None

    @property
    def title(self) -> str:
        """The name that the UI shows and that the option holds."""
        return f"{self.file} [{self.hash}]" if self.hashed and self._hashing else self.file

    @property
    def path(self) -> str:
        """The file on the disk of that server."""
        return f"{_FOLDER}/{self.file}"

    def answers_to(self, alias: Any) -> bool:
        """Whether an option or an override of this text may mean this checkpoint."""
        names = {self.file, self.model_name, self.shown}
        if self._hashing:
            names.add(f"{self.file} [{self.hash}]")
        if self._hashing and self.hashed:
            names |= {f"{self.shown} [{self.hash}]", self._sha256[:10], self._sha256}
        return alias in names

    def as_dict(self, *, forge: bool) -> dict[str, Any]:
        """One entry of /sd-models."""
        return {
            "title": self.title,
            "model_name": self.model_name,
            "hash": self.hash if self.hashed else None,
            "sha256": self.sha256 if self.hashed else None,
            "filename": self.path,
            "config": None if forge else "/simulated/configs/v1-inference.yaml",
        }


class Models:
    """The list of checkpoints, which one is loaded, and whether it is poisoned. May be used from any thread.

    Only :meth:`load` and :meth:`load_first` need the engine's queue lock.
    """

    def __init__(
        self, settings: SimulatorSettings, flavour: Flavour, engine: Engine, stats: Stats, faults: Faults
    ) -> None:
        self._lock = threading.Lock()
        self._hashing = settings.hashing
        self._files = [Checkpoint(name, hashing=settings.hashing) for name in settings.models]
        self._vanished: list[Checkpoint] = []
        self._load_seconds = settings.seconds_per_model_load
        self._forge = flavour.forge
        self._engine = engine
        self._stats = stats
        self._faults = faults
        self.loaded = self._files[0]
        #: A switch failed: until another model is loaded, the loaded one makes other pixels (A1111) or none (Forge).
        self.poisoned = False
        self._first_seconds = settings.seconds_per_first_load
        #: When the load that began at the start is over; None where the first generation begins it.
        self._first_at = time.perf_counter() + self._first_seconds if settings.fresh and not flavour.forge else None
        self._first_pending = self._first_at is not None or self._first_seconds > 0
        self.loaded.hashed = self._first_at is None

    def listed(self, lost: str | None = None) -> list[Checkpoint]:
        """The checkpoints that the server knows, in the order of registration; ``lost`` has gone."""
        gone = None if lost is None else self.named(lost)
        with self._lock:
            return [item for item in self._files if item not in self._vanished and item is not gone]

    def lost(self, alias: Any = None) -> str | None:
        """The model that the fault "lost-model" hides from this request, or None.

        A request whose ``alias`` means this model uses up one count of the fault.
        """
        fault = self._faults.find("lost-model")
        if fault is None:
            return None
        lost = fault.model or self.last()
        named = self.named(lost)
        if named is not None and named.answers_to(alias):
            self._faults.take(("lost-model",))
        return lost

    def last(self) -> str:
        """The path, below the models folder, of the file registered last."""
        with self._lock:
            return self._files[-1].file

    def named(self, name: str) -> Checkpoint | None:
        """The file that a fault or a test means: first its path, with or without extension, then its other names."""
        with self._lock:
            files = list(self._files)
        exact = (item for item in files if item.file == checkpoint_file(name))
        return next(exact, None) or next((item for item in reversed(files) if item.answers_to(name)), None)

    def find(self, alias: Any, lost: str | None = None) -> Checkpoint | None:
        """The checkpoint that an alias means, or None; of several with one alias it is the one registered last."""
        return next((item for item in reversed(self.listed(lost)) if item.answers_to(alias)), None)

    def refresh(self) -> None:
        """Read the models folder again: what has vanished leaves the list, what is back returns to it."""
        broken = [self.named(fault.model or self.last()) for fault in self._faults.find_all(("load-fails",))]
        with self._lock:
            self._vanished = [item for item in self._files if item in broken]
        self._stats.count("refreshes")

    def change(self, add: list[str], remove: list[str]) -> None:
        """Let files appear behind the others and vanish, on the list at once; an unknown name to remove is ignored.

        :raises ValueError: no file would be left.
        """
        gone = [self.named(name) for name in remove]
        with self._lock:
            files = [item for item in self._files if item not in gone]
            new = dict.fromkeys(map(checkpoint_file, add))
            files += [
                Checkpoint(name, hashing=self._hashing) for name in new if name not in {item.file for item in files}
            ]
            if not files:
                raise ValueError("a simulator needs at least one model")
            self._files = files

    def load(self, checkpoint: Checkpoint) -> bool:
        """Make it the loaded one, and say whether another was; that takes its time, and nothing can interrupt it.

        :raises CrashError: its file is gone or corrupt; the loaded model is poisoned from then on.
        """
        if checkpoint.file == self.loaded.file:
            # It may be another entry of the list: removed and added again.
            checkpoint.hashed = True
            self.loaded = checkpoint
            return False
        self._engine.wait_for_stop(self._load_seconds)
        self._refuse_broken(checkpoint)
        checkpoint.hashed = True
        self.loaded = checkpoint
        self.poisoned = False
        self._stats.count("model_loads")
        return True

    def _refuse_broken(self, checkpoint: Checkpoint) -> None:
        faults = self._faults.find_all(MODEL_KINDS)
        fault = next((item for item in faults if self.named(item.model or self.last()) is checkpoint), None)
        if fault is None:
            return
        self.poisoned = True
        if self._forge:
            raise CrashError("ValueError", "Failed to recognize model type!")
        if fault.kind == "load-fails":
            raise CrashError("FileNotFoundError", f'No such file or directory: "{checkpoint.path}"')
        raise CrashError("SafetensorError", "Error while deserializing header: HeaderTooLarge")

    def refuse_poisoned(self) -> None:
        """Forge has no model left after a failed switch, though it takes the old one for loaded.

        :raises CrashError: the loaded model is poisoned, on Forge.
        """
        if self._forge and self.poisoned:
            raise CrashError("AttributeError", "'NoneType' object has no attribute 'sd_checkpoint_info'")

    def settled(self) -> bool:
        """Whether the load that began at the start is over, and its model hashed; True where none began."""
        if self._first_at is not None and time.perf_counter() < self._first_at:
            return False
        self.loaded.hashed = True
        return True

    def load_first(self) -> bool:
        """Wait for the first model where it is not there yet, and say whether that had to be waited for."""
        if not self._first_pending:
            return False
        until = self._first_at or time.perf_counter() + self._first_seconds
        self._engine.wait_for_stop(max(0.0, until - time.perf_counter()))
        self._first_pending = False
        return True
