"""The thread that keeps what is known about one WebUI true: whether it answers, what it offers, how far its job is.

It also interrupts the attempt that runs, once a second, as long as nobody wants its answer.
"""

from __future__ import annotations

import logging
import threading
import time

from app.jobs.errors import JobsError
from app.jobs.worker import timing
from app.jobs.worker.attempt import Attempt
from app.jobs.worker.backend import BackendDown, Poll
from app.jobs.worker.context import WorkerContext
from app.jobs.worker.runner import Runner

_LOG = logging.getLogger(__name__)


class Monitor:
    """Watches over the WebUI of one runner."""

    def __init__(self, runner: Runner, context: WorkerContext) -> None:
        self.thread = threading.Thread(target=self._run, name=f"monitor {runner.backend.key}", daemon=True)
        self._health = runner.health
        self._wake_runner = runner.wake
        self._interrupt_abandoned = runner.interrupt_abandoned
        self._backend = runner.backend
        self._attempts = runner.attempts
        self._context = context
        self._was_up: bool | None = None
        self._why = ""
        self._refresh_at = 0.0
        #: When it was asked last for its catalogue.
        self._refreshed_at = -timing.REFRESH_AGAIN_SECONDS
        self._woken = threading.Event()
        self._polled_at = 0.0
        self._silence = _Silence(None)

    def _run(self) -> None:
        while not self._context.stopped.is_set():
            try:
                self._interrupt_abandoned()
                self._watch_health()
                self._follow()
            except JobsError:
                _LOG.warning("the database is unavailable")
            except Exception:
                _LOG.exception("the monitor of WebUI %s failed", self._backend.name)
            self._woken.wait(timing.POLL_SECONDS)
            self._woken.clear()

    def wake(self) -> None:
        """Check now instead of at the next second."""
        self._woken.set()

    # -- health and catalogue ----------------------------------------------------------------------------------------

    def _watch_health(self) -> None:
        up = self._health.up
        if up and time.monotonic() < self._refresh_at and not self._refresh_wanted():
            return
        if not up and self._was_up is not None and not self._may_ask():
            return
        self._refreshed_at = time.monotonic()
        try:
            complete = self._backend.refresh()
        except BackendDown as down:
            self._set_up(False, str(down))
        except JobsError:
            raise
        except Exception:
            # An answer that can't even be misunderstood: treated like none, or it would be asked for every second.
            _LOG.exception("what WebUI %s offers can't be read", self._backend.name)
            self._set_up(False, "what it offers can't be read")
        else:
            self._refresh_at = time.monotonic() + (timing.REFRESH_SECONDS if complete else timing.FRESH_SECONDS)
            self._set_up(True)

    def _refresh_wanted(self) -> bool:
        if time.monotonic() < self._refreshed_at + timing.REFRESH_AGAIN_SECONDS:
            return False
        return self._backend.outdated() or self._context.catalogues.refresh_wanted(self._backend.key)

    def _may_ask(self) -> bool:
        if self._was_up:
            # The runner found nobody listening just now; the pause counts from here.
            self._set_up(False, self._health.why_down)
        return self._context.slots.may_probe(self._backend.key)

    def _set_up(self, up: bool, why: str = "") -> None:
        slots, key = self._context.slots, self._backend.key
        if up != self._was_up:
            slots.set_health(key, "up" if up else "down")
            if not up:
                slots.may_probe(key)
        if (up, why) != (self._was_up, self._why):
            # Also when it is down for another reason than before: it is starting, or its operator is setting it up.
            if up:
                _LOG.info("WebUI %s is up", self._backend.name)
            else:
                _LOG.warning("WebUI %s is down: %s", self._backend.name, why)
        self._was_up, self._why = up, why
        if up:
            self._health.found_up()
            self._wake_runner.set()
        else:
            self._health.found_down(why)

    # -- the running job ---------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Poll the running job: often while a client watches it, else only to notice that the WebUI is stuck."""
        attempt = self._attempts.running
        if attempt is not self._silence.attempt:
            # Another job: that the WebUI was idle at the end of the last one says nothing about this one.
            self._silence = _Silence(attempt)
        if attempt is None:
            self._polled_at = time.monotonic()
            return
        table = self._context.table
        since_watched = table.queries.seconds_since_watched(attempt.claim)
        watched = since_watched is not None and since_watched < timing.WATCHED_FOR_SECONDS
        pause = timing.POLL_SECONDS if watched else timing.UNWATCHED_POLL_SECONDS
        if time.monotonic() < self._polled_at + pause * 0.95:
            return
        self._polled_at = time.monotonic()
        poll = self._backend.poll(attempt.claim)
        if poll is None or self._attempts.running is not attempt:
            return
        if watched:
            table.report(attempt.claim, poll.progress, poll.eta)
        if self._silence.is_stuck(poll) and self._attempts.running is attempt:
            _LOG.warning("WebUI %s is idle but owes an answer; giving up on it", self._backend.name)
            self._backend.abort()


class _Silence:
    """For how long a WebUI has been idle although it owes the answer of one attempt."""

    def __init__(self, attempt: Attempt | None) -> None:
        self.attempt = attempt
        self._idle_since: float | None = None
        self._seen_busy = False

    def is_stuck(self, poll: Poll) -> bool:
        """Whether it has been idle for too long, as of this poll."""
        now = time.monotonic()
        if not poll.idle:
            self._idle_since, self._seen_busy = None, True
        elif not poll.by_task and not self._seen_busy:
            # It may still load its model: without task ids that looks like being idle (app/webui/client.py: server_state).
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= timing.STUCK_SECONDS:
            self._idle_since = None
            return True
        return False
