"""The worker: the threads that take jobs to a WebUI and results to disk.

What a WebUI is, and what a result is, the worker does not know: it drives a :class:`~app.jobs.worker.backend.Station` for each.
Per station there are two threads: a *runner* that claims and generates, one job at a time, and a *keeper* that finds out
whether the WebUI answers, what it offers and how far it is. Results are decoded and stored by a small pool, so that the next
generation starts in the meantime. One more thread beats all leases, and the supervisor does what has to be done now and then.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from app.jobs import events
from app.jobs.errors import DatabaseUnavailable, JobsError
from app.jobs.model import Claim, Failure, Identity, Job, Success
from app.jobs.slots import Settled, Slots
from app.jobs.table import JobTable, NotReady, Serving
from app.jobs.worker.backend import (
    Answer,
    AttemptLost,
    ClaimLost,
    LeaseLost,
    Look,
    NotSent,
    Retry,
    Station,
    StationDown,
)
from app.jobs.worker.election import HostLock

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

BEAT_SECONDS: Final = 2.0
#: How often an idle runner looks into the table although nobody woke it.
_POLL_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5
#: What a WebUI offers is asked again so often.
REFRESH_SECONDS: Final = 60.0
#: The same while no default model is known, as with a WebUI whose first model is still loading.
FRESH_SECONDS: Final = 2.0
#: What a WebUI offers is asked at once, but no more often than this, when somebody wants to know it anew.
LOOK_AGAIN_SECONDS: Final = 5.0
#: Asking costs generation time, so a WebUI is asked often only while somebody looks at the job.
LOOK_SECONDS: Final = 1.0
UNWATCHED_LOOK_SECONDS: Final = 10.0
WATCHED_FOR_SECONDS: Final = 5.0
#: A WebUI that says it is idle for so long while it owes us an answer will never send it.
STUCK_SECONDS: Final = 60.0
SUSPECT_SECONDS: Final = 10.0
_UPKEEP_SECONDS: Final = 2.0
#: Results of one WebUI that may wait to be decoded before its runner waits too.
_MOST_UNDECODED: Final = 2
#: How long an interrupted generation gets to answer when we stop.
_INTERRUPT_SECONDS: Final = 3.0
#: How long a thread that is told to end may take for what it is at: a query, or a question to a WebUI that hangs.
_END_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Desk:
    """What all threads of one worker share."""

    table: JobTable
    slots: Slots
    owner: str
    #: Called with a job that is finished.
    on_finished: Callable[[Identity], None]
    #: No more claims.
    stopping: threading.Event
    #: Nothing more at all.
    stopped: threading.Event

    def insist(self, action: Callable[[], _T]) -> _T | None:
        """Do a write that must not be given up only because the database is busy or its disk full for a while.

        None when the worker is told to stop before it worked; then the lease runs out and the job starts again elsewhere.
        """
        while True:
            try:
                return action()
            except DatabaseUnavailable:
                _LOG.exception("the database can't be written; trying again")
                if self.stopped.wait(_RETRY_SECONDS):
                    return None


def new_task_id() -> str:
    """A ``force_task_id`` that no WebUI has seen."""
    return f"task(sdg-{secrets.token_hex(8)})"


def new_owner(host: str) -> str:
    """The name of this process as a holder of leases."""
    return f"{host}/{os.getpid()}-{secrets.token_hex(6)}"


class Runner:
    """Takes jobs to one WebUI, one at a time."""

    def __init__(self, station: Station, desk: Desk, pool: ThreadPoolExecutor) -> None:
        self.station = station
        #: Whether the WebUI answers; its keeper sets and clears this.
        self.up = threading.Event()
        #: Why this thread cleared that.
        self.why_down = ""
        self.wake = threading.Event()
        #: The claim whose answer is awaited.
        self.current: Claim | None = None
        self.thread = threading.Thread(target=self._run, name=f"runner {station.key}", daemon=True)
        self._desk = desk
        self._pool = pool
        #: The task ids of the claims whose results wait to be decoded, or are being decoded or stored.
        self._undecoded: set[str] = set()
        self._decoded = threading.Condition()
        self._unwanted: Claim | None = None
        #: The result that waits for the next job to be sent.
        self._waiting: tuple[Claim, Answer, threading.Event] | None = None
        self._look_again_at = 0.0
        #: Transitions that are logged once the next request is on its way.
        self._events = events.Backlog()
        #: The claim that was sent last, and when.
        self._sent: tuple[Claim, float] | None = None
        #: Whether the last answer's transaction found no job that could follow: whoever is accepted later says so.
        self._nothing_waits = False
        #: The same, until an answer's transaction finds one again.
        self._queue_was_empty = False

    def _run(self) -> None:
        while not self._desk.stopping.is_set():
            woken = self.wake.is_set()
            self.wake.clear()
            try:
                worked = self._work(woken)
            except DatabaseUnavailable:
                _LOG.warning("the database is unavailable")
                self._desk.stopping.wait(_RETRY_SECONDS)
            except Exception:
                _LOG.exception("the runner of WebUI %s failed", self.station.name)
                self._desk.stopping.wait(_RETRY_SECONDS)
            else:
                if not worked and not self._desk.stopping.is_set():
                    self.wake.wait(_POLL_SECONDS)
            finally:
                # A claim that could not be committed, also when this thread is about to end.
                self.station.call_off()

    def _work(self, woken: bool) -> bool:
        """Do jobs as long as one follows the other; whether to look again at once."""
        if not self.up.is_set():
            return False
        # The claim itself takes only a clean slot, so the slot is looked at only when there was nothing to claim.
        claim = self._claim(woken) or (self._claim(woken) if self._settled() else None)
        worked = claim is not None
        while claim is not None:
            following: Claim | None = None
            try:
                following = self._attempt(claim)
            finally:
                if following is None:
                    self._store_waiting()
            self._await_room()
            claim = following
        if not worked and self._repaired():
            return True
        return worked and not self._nothing_waits

    def _claim(self, woken: bool) -> Claim | None:
        """Claim with what is known of the demands; when that finds nothing, and there are new ones, once more."""
        serving = self.station.serving(fresh=False)
        claim = self._claim_with(serving, expected=woken)
        if claim is not None:
            return claim
        fresh = self.station.serving()
        return None if fresh == serving else self._claim_with(fresh, expected=False)

    def _claim_with(self, serving: Serving, *, expected: bool) -> Claim | None:
        table, key, owner = self._desk.table, self.station.key, self._desk.owner

        def ready(claim: Claim | None) -> bool:
            # Asked within the transaction, so that nothing is taken that was accepted after the worker had been told to stop.
            if claim is None or self._desk.stopping.is_set() or not self.station.knows(claim):
                return False
            self.station.hold(claim)
            return True

        try:
            claim = table.claim(key, owner, new_task_id(), serving, expected=expected, ready=ready)
        except NotReady:
            return None
        if claim is not None:
            self._note("claimed", claim)
        return claim

    # -- the slot ----------------------------------------------------------------------------------------------------

    def _settled(self) -> bool:
        """Settle the slot if it was not released cleanly; whether that was done."""
        slot = self._desk.slots.get(self.station.key)
        if slot is None or slot.state == "clean":
            return False
        if slot.owner == self._desk.owner:
            # Only this thread claims and settles here, and it does neither.
            for job in self._desk.table.let_go(slot.key, slot.owner):
                events.transition("given back", job, webui=slot.key, attempt=job.claims)
        if slot.state == "suspect" and time.monotonic() < self._look_again_at:
            return False
        return self._settle(slot.state)

    def _settle(self, state: str) -> bool:
        slot = self._desk.slots.begin_settling(self.station.key, self._desk.owner)
        if slot is None:
            return False
        left: Settled = "suspect"
        try:
            patience = 0.0 if state == "suspect" else STUCK_SECONDS
            idle = self.station.settle(slot.task_id, patience=patience, stopping=self._desk.stopping)
            if idle or self._desk.stopping.is_set():
                left = "clean" if idle else "unclean"
        except StationDown as down:
            # It may be starting: the keeper asks it gently, and only then it is settled.
            self.why_down = str(down)
            self.up.clear()
            left = "unclean"
        finally:
            self._look_again_at = time.monotonic() + SUSPECT_SECONDS
            self._desk.insist(lambda: self._desk.slots.end_settling(slot.key, self._desk.owner, left))
        return left == "clean"

    def _repaired(self) -> bool:
        """Have the WebUI load another model where jobs have to wait for that and none does it; whether to look again at once."""
        with self._decoded:
            undecoded = bool(self._undecoded)
        # What is being decoded may be the picture of another model, or a job that goes back to be tried with one.
        if undecoded or self._desk.stopping.is_set() or not self.station.needs_repair():
            return False
        task_id, slots, owner = new_task_id(), self._desk.slots, self._desk.owner
        leased_at = slots.begin_repair(self.station.key, owner, task_id)
        if leased_at is None:
            return False
        left: Settled = "unclean"
        try:
            self.station.repair(task_id, leased_at)
            left = "clean"
        except StationDown:
            self.up.clear()
        except AttemptLost:
            _LOG.warning("WebUI %s did not answer while it was to load another model", self.station.name)
        except LeaseLost:
            # Nothing was sent, so nothing of this runs there.
            left = "clean"
        finally:
            self._desk.insist(lambda: slots.end_settling(self.station.key, owner, left))
        return left == "clean"

    # -- one attempt -------------------------------------------------------------------------------------------------

    def _attempt(self, claim: Claim) -> Claim | None:
        """Send one job; the next one, claimed in the transaction that frees the slot, or None."""
        self.current = claim
        self._nothing_waits = False
        started = time.monotonic()
        try:
            answer = self.station.generate(claim, self._on_sending)
        except NotSent as error:
            self.why_down = str(error)
            # In this order, so that a WebUI that is seen down holds no job.
            self._give_back(claim, "clean", None)
            self.up.clear()
            return None
        except AttemptLost as lost:
            self._give_back(claim, "unclean", lost.failure)
            return None
        except (LeaseLost, DatabaseUnavailable) as error:
            # The WebUI has begun nothing: the request was not complete, or what must be kept before it could not be kept.
            why = "its lease ran out before its request was complete"
            why = why if isinstance(error, LeaseLost) else "the database is unavailable"
            _LOG.warning("job %s was not sent: %s", claim.job.name, why)
            self._give_back(claim, "clean", None)
            return None
        except Exception:
            # Nobody else would ever end this attempt: its lease is beaten as long as this process lives.
            _LOG.exception("sending job %s failed", claim.job.name)
            self._give_back(
                claim, "unclean", Failure("internal-error", "The gateway failed while it worked at the job.")
            )
            return None
        finally:
            self.current = None
        if self._unwanted is claim:
            self._give_back(claim, "clean", None)
            return None
        return self._pass_on(claim, answer, time.monotonic() - started)

    def _pass_on(self, claim: Claim, answer: Answer, seconds: float) -> Claim | None:
        """Free the slot, and let the pool decode the answer while the next job runs."""
        with self._decoded:
            self._undecoded.add(claim.task_id)
            room = len(self._undecoded) < _MOST_UNDECODED
        next_task = new_task_id() if room and not self._desk.stopping.is_set() else None
        # Whatever becomes of the slot, this result is stored; and the one before, if this job was never sent.
        self._store_waiting()
        passed_on = threading.Event()
        self._waiting = (claim, answer, passed_on)
        try:
            if self._queue_was_empty and not self.wake.is_set():
                # Probably none follows again: then nobody is held up by the decoding, nor by waiting for the checks.
                self._store_waiting()
                answer.settled(None)
            following = self._answered(claim, answer, seconds if answer.ok else None, next_task)
            self._nothing_waits = self._queue_was_empty = following is None and next_task is not None
            return following
        finally:
            passed_on.set()
            answer.settled(None)

    def _answered(self, claim: Claim, answer: Answer, seconds: float | None, next_task: str | None) -> Claim | None:
        """Free the slot once the last question is answered, or keep it for the next job, which need not wait for that."""

        def commit() -> Claim | None:
            serving = self.station.serving(fresh=False)

            def ready(following: Claim | None) -> bool:
                if following is not None:
                    if not self.station.knows(following):
                        return False
                    self.station.hold(following)
                    return True
                # Nothing is held up by the decoding.
                self._store_waiting()
                # No waiting here: this is asked within the transaction, and every writer would wait with it.
                return answer.settled(0)

            return self._desk.insist(lambda: self._free_slot(claim, seconds, next_task, serving, ready))

        try:
            return commit()
        except NotReady:
            answer.settled(None)
            return commit()

    def _free_slot(
        self,
        claim: Claim,
        seconds: float | None,
        next_task: str | None,
        serving: Serving,
        ready: Callable[[Claim | None], bool],
    ) -> Claim | None:
        following = self._desk.table.answered(claim, seconds, next_task, serving, ready=ready)
        if self._sent is not None and self._sent[0] is claim:
            self._note("answered", claim, seconds=time.monotonic() - self._sent[1])
        if following is not None:
            self._note("claimed", following)
        return following

    def _on_sending(self) -> None:
        """The job is on its way: what need not come before that comes now."""
        if self.current is not None:
            self._sent = self.current, time.monotonic()
            self._note("sent", self.current)
        self._pool.submit(self._flush)
        self._store_waiting()

    def _flush(self) -> None:
        """Runs in the pool."""
        try:
            self._desk.table.flush()
        except DatabaseUnavailable:
            # Whatever is committed next is flushed with it, or fails and is told.
            _LOG.warning("the claim was not flushed")
        self._events.write()

    def _note(
        self, event: events.Event, claim: Claim, *, seconds: float | None = None, slug: str | None = None
    ) -> None:
        """Keep a transition until :attr:`_events` is written."""
        self._events.add(event, claim.job, webui=claim.slot, attempt=claim.attempt, seconds=seconds, slug=slug)

    def _store_waiting(self) -> None:
        """Hand the last result to the pool: when the next job is on its way, so that decoding does not hold that up, or when
        none follows.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._pool.submit(self._store, *waiting)

    def _give_back(self, claim: Claim, slot: Any, failure: Failure | None) -> None:
        counted = None if self._unwanted is claim else failure
        status = self._desk.insist(lambda: self._desk.table.give_back(claim, slot=slot, failure=counted))
        self._report_end(claim, status, counted)
        if status == "failed":
            self._desk.on_finished(claim.job.identity)

    def _report_end(self, claim: Claim, status: str | None, failure: Failure | None) -> None:
        """Log that an attempt ended without a result, unless the claim was lost: then whoever took it has logged that."""
        if status in ("queued", "failed"):
            event: events.Event = "failed" if status == "failed" else "given back"
            self._note(event, claim, slug=failure.slug if failure is not None else None)
        self._events.write()

    def _await_room(self) -> None:
        with self._decoded:
            self._decoded.wait_for(lambda: len(self._undecoded) < _MOST_UNDECODED)

    # -- the result --------------------------------------------------------------------------------------------------

    def _store(self, claim: Claim, answer: Answer, passed_on: threading.Event) -> None:
        """Runs in the pool; it may decode while the slot is being freed, and writes afterwards."""
        finished = False
        blocked = self.station.needs_repair()
        try:
            verdict = self._judge(claim, answer, passed_on)
            # A failure was judged without waiting for it, and ends the job after its answer all the same.
            passed_on.wait()
            finished = verdict is not None and self._conclude(claim, verdict)
        except ClaimLost:
            _LOG.warning("the claim of job %s was lost; its answer is not stored", claim.job.name)
        except Exception:
            _LOG.exception("job %s could not be concluded", claim.job.name)
        finally:
            with self._decoded:
                self._undecoded.discard(claim.task_id)
                self._decoded.notify_all()
        if blocked:
            # The picture may have shown that the WebUI is whole again, or the runner waited for it before a repair.
            self.wake.set()
        if finished:
            self._desk.on_finished(claim.job.identity)

    def _judge(self, claim: Claim, answer: Answer, passed_on: threading.Event) -> Success | Failure | Retry | None:
        """The verdict on an answer; None when the worker is told to stop while the database can't be read."""

        def before_writing() -> None:
            passed_on.wait()
            # The files of a claim that another one follows must not replace those of that one; see JobTable.shares_number.
            if not self._owns(claim):
                raise ClaimLost

        try:
            return self._desk.insist(lambda: self.station.store(claim, answer, before_writing))
        except ClaimLost:
            raise
        except Exception:
            _LOG.exception("storing job %s failed", claim.job.name)
            return Failure("internal-error", "The gateway failed to store the result.")

    def _owns(self, claim: Claim) -> bool:
        """Whether the claim holds; taken for granted while the database can't be asked, for the commit compares it anyhow."""
        try:
            return self._desk.table.owns(claim)
        except DatabaseUnavailable:
            return True

    def _discard(self, claim: Claim) -> None:
        """Remove the files of a claim that was lost, unless they may be those of another one with its number: the sweep judges."""
        if self._desk.insist(lambda: self._desk.table.shares_number(claim)) is False:
            self.station.discard(claim)

    def _conclude(self, claim: Claim, verdict: Success | Failure | Retry) -> bool:
        """Commit what became of the attempt; whether that ended the job."""
        table = self._desk.table
        if isinstance(verdict, Success):
            done = self._desk.insist(lambda: table.succeed(claim, verdict))
            if done is False:
                self._discard(claim)
            elif done:
                self._note("stored", claim)
            self._events.write()
            return done is True
        if isinstance(verdict, Failure):
            done = self._desk.insist(lambda: table.fail(claim, verdict))
            self._report_end(claim, "failed" if done else None, verdict)
            return done is True
        status = self._desk.insist(
            lambda: table.give_back(
                claim,
                slot="clean",
                failure=verdict.failure if verdict.counted else None,
                one_by_one=verdict.one_by_one,
                note=verdict.note,
                elsewhere=verdict.elsewhere,
            )
        )
        self._report_end(claim, status, verdict.failure)
        self.wake.set()
        return status == "failed"

    # -- stopping ----------------------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether nothing is generated, decoded or stored."""
        with self._decoded:
            return not self._undecoded and not self.thread.is_alive()

    def in_hand(self) -> set[str]:
        """The task ids of the claims whose results are not stored yet."""
        with self._decoded:
            return set(self._undecoded)

    def interrupt(self) -> None:
        """Stop what runs; its half picture is not wanted, and the job goes back without counting an attempt."""
        claim = self.current
        if claim is not None:
            self._unwanted = claim
            self.station.interrupt(claim)

    def abandon(self) -> None:
        """Give back what still runs and leave the WebUI for the next worker to settle."""
        claim = self.current
        if claim is not None:
            self._unwanted = claim
            self._give_back(claim, "unclean", None)
            self.station.abort()


def _report_lost(jobs: Sequence[Job]) -> None:
    """Log what became of jobs whose worker died or lost its lease."""
    for job in jobs:
        event: events.Event = "failed" if job.status == "failed" else "given back"
        events.transition(event, job, webui=job.slot, attempt=job.claims, slug=job.error_slug)


class Keeper:
    """Keeps what is known about one WebUI true: whether it answers, what it offers, how far it is."""

    def __init__(self, runner: Runner, desk: Desk) -> None:
        self.thread = threading.Thread(target=self._run, name=f"keeper {runner.station.key}", daemon=True)
        self._runner = runner
        self._station = runner.station
        self._desk = desk
        self._was_up: bool | None = None
        self._why = ""
        self._refresh_at = 0.0
        #: When it was asked last what it offers.
        self._refreshed_at = -LOOK_AGAIN_SECONDS
        self._woken = threading.Event()
        self._looked_at = 0.0
        #: The claim whose answer the WebUI owes us; since when the WebUI was seen idle meanwhile; whether it was seen busy before.
        self._owed: Claim | None = None
        self._idle_since: float | None = None
        self._seen_busy = False

    def _run(self) -> None:
        while not self._desk.stopped.is_set():
            try:
                self._keep()
                self._follow()
            except JobsError:
                _LOG.warning("the database is unavailable")
            except Exception:
                _LOG.exception("the keeper of WebUI %s failed", self._station.name)
            self._woken.wait(LOOK_SECONDS)
            self._woken.clear()

    def wake(self) -> None:
        """A hint that there is a reason to look before the next second."""
        self._woken.set()

    def _keep(self) -> None:
        up = self._runner.up.is_set()
        if up and time.monotonic() < self._refresh_at and not self._look_wanted():
            return
        if not up and self._was_up is not None and not self._may_ask():
            return
        self._refreshed_at = time.monotonic()
        try:
            complete = self._station.refresh()
        except StationDown as down:
            self._set_up(False, str(down))
        except JobsError:
            raise
        except Exception:
            # An answer that we can't even misunderstand: treat it like none, or it would be asked for every second.
            _LOG.exception("what WebUI %s offers can't be read", self._station.name)
            self._set_up(False, "what it offers can't be read")
        else:
            self._refresh_at = time.monotonic() + (REFRESH_SECONDS if complete else FRESH_SECONDS)
            self._set_up(True)

    def _look_wanted(self) -> bool:
        if time.monotonic() < self._refreshed_at + LOOK_AGAIN_SECONDS:
            return False
        return self._station.outdated() or self._desk.slots.look_wanted(self._station.key)

    def _may_ask(self) -> bool:
        if self._was_up:
            # The runner met a closed door just now; the pause counts from here.
            self._set_up(False, self._runner.why_down)
        return self._desk.slots.may_probe(self._station.key)

    def _set_up(self, up: bool, why: str = "") -> None:
        if up != self._was_up:
            self._desk.slots.set_health(self._station.key, "up" if up else "down")
            if not up:
                self._desk.slots.may_probe(self._station.key)
        if (up, why) != (self._was_up, self._why):
            # Also when it is down for another reason than before: it is starting, or its operator is setting it up.
            if up:
                _LOG.info("WebUI %s is up", self._station.name)
            else:
                _LOG.warning("WebUI %s is down: %s", self._station.name, why)
        self._was_up, self._why = up, why
        if up:
            self._runner.up.set()
            self._runner.wake.set()
        else:
            self._runner.up.clear()

    def _follow(self) -> None:
        """Ask how far the running job is: often while somebody looks at it, else only to notice that it is stuck."""
        claim = self._runner.current
        if claim is not self._owed:
            # Another job: that the WebUI was idle at the end of the last one says nothing about this one.
            self._owed, self._idle_since, self._seen_busy = claim, None, False
        if claim is None:
            self._looked_at = time.monotonic()
            return
        watched = self._desk.table.seconds_since_look(claim)
        often = watched is not None and watched < WATCHED_FOR_SECONDS
        if time.monotonic() < self._looked_at + (LOOK_SECONDS if often else UNWATCHED_LOOK_SECONDS) * 0.95:
            return
        self._looked_at = time.monotonic()
        look = self._station.look(claim)
        if look is None or self._runner.current is not claim:
            return
        if often:
            self._desk.table.report(claim, look.progress, look.eta)
        self._notice_stuck(claim, look)

    def _notice_stuck(self, claim: Claim, look: Look) -> None:
        now = time.monotonic()
        if not look.idle:
            self._idle_since, self._seen_busy = None, True
        elif not look.by_task and not self._seen_busy:
            # It may still load its model: without task ids that looks like being idle (app/webui/client.py: server_state).
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= STUCK_SECONDS and self._runner.current is claim:
            _LOG.warning("WebUI %s is idle but owes an answer; giving up on it", self._station.name)
            self._idle_since = None
            self._station.abort()


class Worker:
    """The worker of this process.

    :param stations: makes a station for each WebUI; called once, when this process is the one that works.
    :param tidy: called once before the first claim, to finish what a crash left of deletions.
    :param upkeep: called every few seconds for what only the use case can judge.
    :param lock: elects one process of the host; None for an external worker, which takes over only by leases.
    """

    def __init__(
        self,
        table: JobTable,
        slots: Slots,
        host: str,
        *,
        stations: Callable[[], Sequence[Station]],
        tidy: Callable[[], object],
        upkeep: Callable[[Sequence[Station]], list[Identity]],
        on_finished: Callable[[Identity], None],
        lock: HostLock | None,
    ) -> None:
        self._desk = Desk(table, slots, new_owner(host), on_finished, threading.Event(), threading.Event())
        self._host = host
        self._make_stations = stations
        self._tidy = tidy
        self._upkeep = upkeep
        self._lock = lock
        self._runners: list[Runner] = []
        self._keepers: list[Keeper] = []
        #: Held while this process begins to work, so that a drain never meets half a worker.
        self._beginning = threading.Lock()
        self._begun = False
        self._pool: ThreadPoolExecutor | None = None
        #: What works beside the supervisor.
        self._threads: list[threading.Thread] = []
        self._supervisor = threading.Thread(target=self._supervise, name="worker", daemon=True)

    def start(self) -> None:
        """Begin: wait to be elected, take over, work. Returns at once."""
        self._supervisor.start()

    @property
    def works(self) -> bool:
        """Whether this process was elected and takes jobs."""
        return self._begun and not self._desk.stopping.is_set()

    def wake(self) -> None:
        """A hint that there may be something to do."""
        for runner in self._runners:
            runner.wake.set()

    def look_again(self) -> None:
        """A hint that somebody wants to know anew what the WebUIs offer."""
        for keeper in self._keepers:
            keeper.wake()

    def stop_claiming(self) -> None:
        """Take no more jobs; what runs goes on."""
        self._desk.stopping.set()
        self.wake()

    def drain(self, timeout: float) -> None:
        """Stop: let what runs finish within ``timeout`` seconds, then interrupt it and give it back uncounted.

        Nothing of this worker runs any more when the next one of this host may begin, but for what hangs.
        """
        self.stop_claiming()
        with self._beginning:
            # From here on nothing begins; what began is whole, and has taken over before the lock is let go.
            begun = self._begun
        if begun:
            deadline = time.monotonic() + timeout
            if not self._await_idle(deadline):
                for runner in self._runners:
                    runner.interrupt()
                self._await_idle(time.monotonic() + _INTERRUPT_SECONDS)
                for runner in self._runners:
                    runner.abandon()
        self._desk.stopped.set()
        self.look_again()
        if begun:
            self._await_end(time.monotonic() + _END_SECONDS)
        if self._lock is not None:
            self._lock.release()

    def _await_end(self, deadline: float) -> None:
        for thread in (self._supervisor, *self._threads):
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _await_idle(self, deadline: float) -> bool:
        for runner in self._runners:
            runner.thread.join(max(deadline - time.monotonic(), 0.0))
        while not all(runner.idle() for runner in self._runners) and time.monotonic() < deadline:
            self._desk.stopped.wait(0.01)
        return all(runner.idle() for runner in self._runners)

    # -- the supervisor ----------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        if self._lock is not None:
            self._be_elected()
        if not self._get_ready():
            return
        while not self._desk.stopping.wait(_UPKEEP_SECONDS):
            self._look_after()

    def _be_elected(self) -> None:
        """Wait for the lock of this host; a folder that can't be written is no reason to give up for good."""
        while self._lock is not None and not self._desk.stopping.is_set():
            try:
                self._lock.acquire()
            except OSError:
                _LOG.exception("the worker's lock file can't be used; trying again")
                self._desk.stopping.wait(_RETRY_SECONDS)
            else:
                break
        if self._desk.stopping.is_set() and self._lock is not None:
            # Too late to work; whoever waits behind us must not wait until this process has ended.
            self._lock.release()

    def _get_ready(self) -> bool:
        """Begin, however often it takes: this process holds the lock, so no other one would. False when told to stop."""
        while not self._desk.stopping.is_set():
            try:
                with self._beginning:
                    if not self._desk.stopping.is_set():
                        self._begin()
                    return self._begun
            except Exception:
                _LOG.exception("the worker can't begin; trying again")
                self._desk.stopping.wait(_RETRY_SECONDS)
        return False

    def _begin(self) -> None:
        if self._lock is not None:
            # The lock says that the earlier worker of this host is dead; its leases need not run out first.
            _report_lost(self._desk.table.take_over(self._host, self._desk.owner))
        if not self._runners:
            stations = self._make_stations()
            self._pool = ThreadPoolExecutor(max_workers=min(len(stations) + 1, 4), thread_name_prefix="store")
            self._runners = [Runner(station, self._desk, self._pool) for station in stations]
        self._register()
        self._tidy()
        self._threads = [threading.Thread(target=self._beat, name="beat", daemon=True)]
        self._keepers = [Keeper(runner, self._desk) for runner in self._runners]
        for keeper, runner in zip(self._keepers, self._runners, strict=True):
            self._threads += [keeper.thread, runner.thread]
        for thread in self._threads:
            thread.start()
        self._begun = True

    def _register(self) -> None:
        keys = [runner.station.key for runner in self._runners]
        self._desk.slots.register(self._desk.owner, self._host, keys, only=self._lock is not None)

    def _beat(self) -> None:
        while not self._desk.stopped.wait(BEAT_SECONDS):
            try:
                if not self._desk.slots.beat(self._desk.owner):
                    self._register()
            except DatabaseUnavailable:
                _LOG.warning("the database is unavailable; leases were not beaten")
            except Exception:
                _LOG.exception("the leases were not beaten")

    def _in_hand(self) -> set[str]:
        return {task_id for runner in self._runners for task_id in runner.in_hand()}

    def _look_after(self) -> None:
        desk = self._desk
        try:
            back = desk.table.reclaim(desk.owner) + desk.table.lose_unknown(desk.owner, self._in_hand)
            _report_lost(back)
            desk.slots.forget_workers(desk.owner, self._host)
            desk.slots.drop_unconfigured()
            desk.table.forget_keys()
            failed = self._upkeep([runner.station for runner in self._runners])
        except DatabaseUnavailable:
            _LOG.warning("the database is unavailable")
            return
        except Exception:
            _LOG.exception("the worker's upkeep failed")
            return
        for job in failed:
            desk.on_finished(job)
        if back:
            self.wake()
