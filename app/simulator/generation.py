"""Running a generation: its turn, its model, its batches, its pictures.

Follows ``modules/processing.py`` of the WebUI in what a client can see: the order of the checks, which mistakes end in
which exception, what ``info`` says, what an interrupt leaves. So do :mod:`preparation`, :mod:`impossible`, :mod:`inputs` and
:mod:`infotext`, which this module calls.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.simulator import lists, pictures
from app.simulator.engine import Engine
from app.simulator.errors import CrashError
from app.simulator.faults import Fault, Faults
from app.simulator.impossible import nans, out_of_memory, refuse_impossible_hires
from app.simulator.infotext import Infotexts
from app.simulator.job import Job
from app.simulator.models import Models
from app.simulator.pictures import Painter, Picture, Scene
from app.simulator.preparation import prepare
from app.simulator.settings import Flavour, SimulatorSettings
from app.simulator.stats import Stats


class Studio:
    """Runs jobs on the engine, one at a time."""

    def __init__(
        self, settings: SimulatorSettings, flavour: Flavour, engine: Engine, stats: Stats, faults: Faults
    ) -> None:
        self._settings = settings
        self._flavour = flavour
        self._engine = engine
        self._stats = stats
        self._painter = Painter(precomputed=settings.precomputed)
        self.models = Models(settings, flavour, engine, stats, faults)
        self.options = lists.Options(settings, flavour, self.models.loaded if self.models.settled() else None)
        self._texts = Infotexts(flavour, self.options, self.models)
        #: State of torch's global generator: what the last job left there.
        self._torch = ""

    def run(
        self, job: Job, task_id: str, decode_inputs: Callable[[], None], fault: Fault | None, lost: str | None
    ) -> None:
        """Wait for the turn, then make the pictures and ``info`` of a job.

        ``decode_inputs`` runs in the lock but before the task begins, so that a broken image leaves its id queued.

        :raises SimulatedError: for whatever a real server fails at, the task then staying the current one.
        """
        self._engine.enqueue(task_id)
        with self._engine.queue_lock:
            job.began = max(job.began, self._engine.queue_lock.free_since)
            if not self._flavour.forge:
                self._load_first(job)
            decode_inputs()
            with self._engine.generation(task_id, f"scripts_{job.kind}") as stamp:
                self._stats.count("generations")
                # Forge loads its first model when the task has begun, A1111 before.
                self._load_first(job)
                with self._overridden(job, lost):
                    prepare(job, self._flavour, self.options)
                    self._iterate(job, fault)
                    self._finish(job, stamp)

    def settle(self) -> None:
        """Note the model of a fresh server in its options, once it is loaded."""
        if self.models.settled() and self.options["sd_model_checkpoint"] is None:
            self.options.note_model(self.models.loaded)

    def _load_first(self, job: Job) -> None:
        if self.models.load_first():
            job.began = time.perf_counter()
        self.settle()

    def encode(self, picture: Picture, image_format: str | None = None) -> str:
        """A picture as it travels, by the options as they are now, or in another format."""
        options = self.options
        image_format = image_format or str(options["samples_format"]).lower()
        return picture.base64(image_format, quality=int(options["jpeg_quality"]), text=bool(options["enable_pnginfo"]))

    @contextmanager
    def _overridden(self, job: Job, lost: str | None) -> Iterator[None]:
        """Apply ``override_settings`` and take back what can be taken back (``processing.process_images``)."""
        overrides = dict(job["override_settings"] or {})
        if self._flavour.forge and job["override_settings"] is not None:
            # It drops an unknown model from the object that the answer repeats.
            job.fields["override_settings"] = overrides
        if "sd_model_checkpoint" in overrides and self.models.find(overrides["sd_model_checkpoint"], lost) is None:
            del overrides["sd_model_checkpoint"]
        stored = self.options.stored(overrides)
        try:
            for key, value in overrides.items():
                if key not in self.options:
                    raise CrashError("KeyError", repr(key))
                self.options[key] = value
            if self._load_model(lost):
                job.began = time.perf_counter()
            yield
        finally:
            if job["override_settings_restore_afterwards"]:
                for key, value in stored.items():
                    self.options[key] = value

    def _load_model(self, lost: str | None) -> bool:
        """Load what the options name; whether another model was loaded before.

        Forge leaves the option as it was given; A1111 writes the title of a model that it really loads.
        """
        named = self.models.find(self.options["sd_model_checkpoint"], lost)
        listed = self.models.listed(lost)
        wanted = named or self.models.loaded
        if wanted not in listed:
            wanted = (listed or [wanted])[0]
        switched = self.models.load(wanted)
        if wanted is not named or (switched and not self._flavour.forge):
            self.options["sd_model_checkpoint"] = wanted.title
        self.options["sd_checkpoint_hash"] = wanted.sha256
        self.models.refuse_poisoned()
        return switched

    def _iterate(self, job: Job, fault: Fault | None) -> None:
        passes = 2 if job.hires else 1
        self._engine.plan(job["n_iter"] * passes)
        for iteration in range(job["n_iter"]):
            self._engine.forget_skip()
            if self._engine.interrupted:
                break
            if job["n_iter"] > 1:
                self._engine.name(f"Batch {iteration + 1} out of {job['n_iter']}")
            self._one_batch(job, iteration, fault if iteration == 0 else None)
        self._torch = json.dumps([job.seeds[-1], job.size, job["steps"], job.sampler])

    def _one_batch(self, job: Job, iteration: int, fault: Fault | None) -> None:
        seconds = self._settings.seconds_per_image * job["batch_size"]
        indices = range(iteration * job["batch_size"], (iteration + 1) * job["batch_size"])
        self._strike(job, fault, seconds)
        # Drawn while the time runs, so that a picture takes the seconds it was set to and not its drawing on top.
        drawn = [] if job.hires else self._draw(job, indices, job.size)
        if self._settings.precomputed and job["send_images"]:
            for picture in drawn:
                self.encode(picture)
        done = self._sample(job, job["steps"], seconds)
        if done < 1:
            # Stopped in the first pass, the second never comes and the small picture is the answer.
            drawn = self._draw(job, indices, job.size, done)
        elif job.hires:
            drawn = self._second_pass(job, indices, seconds)
        job.pictures += drawn
        job.infotexts += [picture.text for picture in drawn]

    def _second_pass(self, job: Job, indices: range, seconds: float) -> list[Picture]:
        refuse_impossible_hires(job, self._flavour)
        target = job.target or job.size
        drawn = self._draw(job, indices, target)
        done = self._sample(job, job["hr_second_pass_steps"] or job["steps"], seconds)
        return drawn if done >= 1 else self._draw(job, indices, target, (1 + done) / 2)

    def _sample(self, job: Job, steps: int, seconds: float) -> float:
        """One sampling run; the part of it that was done, 0…1."""
        done = self._engine.sample(steps, seconds, job.began)
        job.began = time.perf_counter()
        self._engine.next_job()
        return done

    def _strike(self, job: Job, fault: Fault | None, seconds: float) -> None:
        """The faults that hit in the middle of the work."""
        effect = None if fault is None else fault.effect
        if effect == "hang" and fault is not None:
            self._engine.hang(fault.lasts(3600))
        if effect == "interrupted":
            self._engine.hang(seconds / 2)
            self._engine.interrupt()
        if effect == "error-500":
            raise CrashError("RuntimeError", "simulated failure")
        if effect == "nan":
            raise nans(self._flavour)
        pixels = math.prod(job.target or job.size) * job["batch_size"]
        if effect in ("oom", "oom-batch") or pixels > pictures.MAX_PIXELS:
            raise out_of_memory()

    def _draw(self, job: Job, indices: range, size: tuple[int, int], done: float = 1.0) -> list[Picture]:
        """A picture depends on its infotext (prompt, seed, size …), on the model's file and on what the infotext leaves out."""
        drawn = []
        hidden = [self.models.loaded.file, self.models.poisoned]
        if self._flavour.torch and job.kind == "img2img":
            hidden.append(self._torch)
        for index in indices:
            text = self._texts.text(job, index)
            init, init_hash = job.inits[index % len(job.inits)] if job.inits else (None, "")
            base = None if init is None else pictures.fit(init, job["resize_mode"], size)
            key = json.dumps([job.kind, text, size, init_hash, job.fields.get("resize_mode"), hidden])
            strength = 1.0 if init is None else job["denoising_strength"]
            scene = Scene(key, *size, f"seed {job.seeds[index]}", base, strength, done)
            drawn.append(Picture(self._painter.draw(scene), text))
        return drawn

    def _finish(self, job: Job, stamp: str) -> None:
        many = len(job.pictures) > 1 or not self.options["grid_only_if_multiple"]
        if job["save_images"] and many and job.pictures and self.options["return_grid"]:
            text = self._texts.text(job, 0)
            job.pictures.insert(0, pictures.grid(job.pictures, text))
            job.infotexts.insert(0, text)
            job.first = 1
        job.info = self._texts.info(job, stamp)
