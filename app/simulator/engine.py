"""The one GPU of a simulator: a first-come lock, the task table, and the process-wide state that progress shows.

The state is one object for the whole server, as in ``modules/shared_state.py``; task ids are remembered, and leak, as in
``modules/progress.py``. Times are seconds of one monotonic clock. A sampling run is one wait: its step is worked out from
the time when somebody asks, and an interrupt ends the wait at once.
"""

from __future__ import annotations

import random
import string
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

#: Finished ids that are remembered.
REMEMBERED_TASKS = 16


def _stamp() -> str:
    return datetime.now().astimezone().strftime("%Y%m%d%H%M%S")


class FifoLock:
    """A lock that is handed over in the order of asking (``modules/fifo_lock.py``)."""

    def __init__(self) -> None:
        #: When it was let go the last time.
        self.free_since = time.perf_counter()
        self._turn = threading.Condition()
        self._next_ticket = 0
        self._serving = 0

    def __enter__(self) -> None:
        with self._turn:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._turn.wait_for(lambda: self._serving == ticket)

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._serving += 1
            self.free_since = time.perf_counter()
            self._turn.notify_all()


@dataclass
class _State:
    """The public part is the ``state`` of /sdapi/v1/progress, under the same names."""

    skipped: bool = False
    interrupted: bool = False
    job: str = ""
    job_count: int = 0
    job_no: int = 0
    job_timestamp: str = field(default_factory=_stamp)
    sampling_steps: int = 0
    time_start: float = 0.0
    #: Start and length of the sampling run that goes on now.
    run: tuple[float, float] | None = None

    def step(self, now: float) -> int:
        """The step that is being sampled."""
        if self.run is None:
            return 0
        start, seconds = self.run
        return self.sampling_steps if now - start >= seconds else int((now - start) / seconds * self.sampling_steps)

    def share(self, now: float) -> float:
        """The part of the whole job that is done, 0 or more."""
        share = 0.0
        if self.job_count > 0:
            share += self.job_no / self.job_count
        if self.sampling_steps > 0 and self.job_count > 0:
            share += self.step(now) / self.sampling_steps / self.job_count
        return share


class Engine:
    """State and lock of one server. Everything public may be called from any thread."""

    def __init__(self) -> None:
        self.queue_lock = FifoLock()
        self._changed = threading.Condition()
        #: As in ``modules/shared_state.py``, no job has begun yet.
        self._state = _State(job_timestamp="0")
        self._stopping = False
        self._current: str | None = None
        self._pending: dict[str, None] = {}
        self._finished: deque[str] = deque(maxlen=REMEMBERED_TASKS)

    # What a job does, in this order.

    def enqueue(self, task_id: str) -> None:
        """The id waits; it stays so for ever when the job fails before :meth:`begin`."""
        with self._changed:
            self._pending[task_id] = None

    def begin(self, job: str, task_id: str | None = None) -> str:
        """A job takes the server: flags that were raised before are forgotten. Returns its timestamp."""
        with self._changed:
            steps = self._state.sampling_steps
            self._state = _State(job=job, job_count=-1, sampling_steps=steps, time_start=time.perf_counter())
            if task_id is not None:
                self._current = task_id
                self._pending.pop(task_id, None)
            return self._state.job_timestamp

    def plan(self, job_count: int) -> None:
        """The number of sampling runs is known."""
        with self._changed:
            self._state.job_count = job_count

    def name(self, job: str) -> None:
        """Show another name for what is going on, such as "Batch 1 out of 3"."""
        with self._changed:
            self._state.job = job

    def sample(self, steps: int, seconds: float, started: float) -> float:
        """Wait until a run that began at ``started`` is over or stopped; returns the part that was done, 0…1."""
        with self._changed:
            state = self._state
            state.sampling_steps = steps
            state.run = (started, seconds)
            self._changed.notify_all()
            self._changed.wait_for(self._halted, timeout=max(0.0, started + seconds - time.perf_counter()))
            if not self._halted():
                return 1.0
            # Even one that was stopped in its last step is not the finished picture.
            return min(state.step(time.perf_counter()) / steps, 1.0 - 0.5 / steps)

    def next_job(self) -> None:
        """A sampling run and its decoding are over."""
        with self._changed:
            self._state.job_no += 1
            self._state.run = None

    def hang(self, seconds: float) -> bool:
        """Stay busy, unless somebody interrupts; whether somebody did."""
        with self._changed:
            return self._changed.wait_for(self._halted, timeout=seconds)

    def finish(self, task_id: str) -> None:
        """End a task that went well; one that failed stays the current one, as in a real WebUI."""
        with self._changed:
            if self._current == task_id:
                self._current = None
            self._finished.append(task_id)

    def end(self) -> None:
        """The server is idle again; flags and steps stay to be seen."""
        with self._changed:
            self._state.job = ""
            self._state.job_count = 0
            self._state.run = None

    @contextmanager
    def generation(self, task_id: str, job: str) -> Iterator[str]:
        """Begin … end round one generation, and finish when it went well; yields the timestamp."""
        stamp = self.begin(job, task_id)
        try:
            yield stamp
            self.finish(task_id)
        finally:
            self.end()

    # What others do meanwhile.

    def interrupt(self) -> str | None:
        """Stop what runs now, whoever asked for it; lost when nothing runs.

        Returns what runs: its task id, or the name of a job that has none.
        """
        with self._changed:
            self._raise_flag("interrupted")
            if self._state.job_count == 0:
                return None
            return self._state.job if self._state.job in ("Upscale", "extras") else self._current

    def skip(self) -> None:
        """Stop the current iteration only."""
        self._raise_flag("skipped")

    def stop(self) -> None:
        """Let go of every waiting thread, for good: the server is closing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def wait_for_stop(self, seconds: float) -> bool:
        """Wait, but not longer than the server lives; whether it is closing."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopping, timeout=seconds)

    def wait_busy(self, seconds: float) -> bool:
        """Wait until a sampling run goes on, at most so long; for tests that must come in the middle of one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state.run is not None, timeout=seconds)

    @property
    def interrupted(self) -> bool:
        """Whether the running job was told to stop."""
        with self._changed:
            return self._state.interrupted or self._stopping

    def forget_skip(self) -> None:
        """The next iteration begins afresh."""
        with self._changed:
            self._state.skipped = False

    def _halted(self) -> bool:
        return self._state.interrupted or self._state.skipped or self._stopping

    def _raise_flag(self, flag: str) -> None:
        with self._changed:
            setattr(self._state, flag, True)
            self._changed.notify_all()

    # What is shown.

    def progress(self) -> dict[str, Any]:
        """The body of /sdapi/v1/progress (``api.progressapi``); there are no previews."""
        now = time.perf_counter()
        with self._changed:
            state = self._state
            progress, eta = 0.0, 0.0
            if state.job_count != 0:
                progress = min(1.0, 0.01 + state.share(now))
                elapsed = now - state.time_start
                eta = elapsed / progress - elapsed
            names = ("skipped", "interrupted", "job", "job_count", "job_timestamp", "job_no", "sampling_steps")
            shown = {name: getattr(state, name) for name in names}
            shown |= {"stopping_generation": False, "sampling_step": state.step(now)}
        return {"progress": progress, "eta_relative": eta, "state": shown, "current_image": None, "textinfo": None}

    def task_progress(self, task_id: str | None, preview_id: int | None) -> dict[str, Any]:
        """The body of /internal/progress (``progress.progressapi``); no id means the current one, and None equals None."""
        now = time.perf_counter()
        with self._changed:
            answer: dict[str, Any] = {
                "active": task_id == self._current,
                "queued": task_id in self._pending,
                "completed": task_id in self._finished,
                "progress": None,
                "eta": None,
                "live_preview": None,
                "id_live_preview": -1,
                "textinfo": "Waiting...",
            }
            if answer["active"]:
                share = min(1.0, self._state.share(now))
                elapsed = now - self._state.time_start
                eta = elapsed / share - elapsed if share > 0 else None
                answer |= {"progress": share, "eta": eta, "id_live_preview": preview_id, "textinfo": None}
            elif answer["queued"]:
                place = list(self._pending).index(str(task_id)) + 1
                answer["textinfo"] = f"In queue: {place}/{len(self._pending)}"
            return answer

    def pending(self) -> dict[str, Any]:
        """The body of /internal/pending-tasks."""
        with self._changed:
            return {"size": len(self._pending), "tasks": list(self._pending)}


def task_id(kind: str) -> str:
    """The id of a request that brought none; it is never told to the client."""
    letters = random.choices(string.ascii_uppercase + string.digits, k=7)  # noqa: S311 -- a label, not a secret
    return f"task({kind}-{''.join(letters)})"
