"""The use case: a job goes to a WebUI, and its answer comes back.

:class:`WebuiStation` is one WebUI as the worker drives it. Read :meth:`WebuiStation.generate` for the story; what becomes of the
answer is told in :mod:`app.gateway.results`. The rest is how the WebUI is asked, stopped, repaired and left clean.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from app.config import Config
from app.gateway.offering import Offers
from app.gateway.results import Outcome, Replies, Results, kind_of
from app.jobs.errors import DatabaseUnavailable
from app.jobs.model import Claim, Failure, Success
from app.jobs.slots import Slots
from app.jobs.table import JobTable, Serving
from app.jobs.worker.backend import Answer, AttemptLost, LeaseLost, Look, NotSent, Retry, StationDown
from app.records.errors import RecordsError
from app.records.store import RecordStore
from app.webui import bounds, payloads
from app.webui.answers import error_body, generation_images_base64, is_restarted, is_start_window, made_with
from app.webui.catalogue import Catalogue, Demand
from app.webui.client import NO_JOB_YET, Webui
from app.webui.doubts import ModelDoubt, is_hopeless
from app.webui.errors import (
    AnswerTooLarge,
    ConnectionBroken,
    JobTimeout,
    ModelVanished,
    NoLongerAvailable,
    NotUp,
    Unreachable,
    WebuiError,
    Withheld,
    nobody_listens,
    reason,
)
from app.webui.failures import says_model_broken, says_nothing
from app.webui.interruption import Inquiry, Pace, Prepared
from app.webui.models import Model
from app.webui.overrides import OptionOverrides

_LOG = logging.getLogger(__name__)

#: Looked at twice, at least so far apart, a WebUI is idle (seconds).
_IDLE_TWICE_SECONDS: Final = 0.3
#: After a gap of so many seconds somebody may have loaded another model by hand.
_KNOWN_SECONDS: Final = 2.0
#: A WebUI with a broken model and no other one that can be loaded is tried again so often: a file may have been repaired.
_TRY_AGAIN_SECONDS: Final = 60.0
#: A WebUI at which others were seen to work counts as shared for so long.
_SHARED_SECONDS: Final = 600.0
_OK: Final = 200
_BAD_REQUEST: Final = 400
_SERVER_FAILED: Final = 500


class WebuiStation:
    """One WebUI with its catalogue, as the worker drives it (see :class:`app.jobs.worker.backend.Station`)."""

    def __init__(
        self, webui: Webui, table: JobTable, slots: Slots, records: RecordStore, offers: Offers, config: Config
    ) -> None:
        self.key = webui.key
        self.name = webui.name
        self._webui = webui
        self._table = table
        self._slots = slots
        self._records = records
        self._offers = offers
        self._job_timeout = config.job_timeout
        self._lock = threading.Lock()
        self._catalogue = Catalogue()
        self._demands: dict[int, Demand] = {}
        self._unservable: frozenset[int] = frozenset()
        #: Set when an answer shows that the catalogue is not right any more.
        self._outdated = threading.Event()
        #: Names of models that stand for several files, of which one was taken for a job of version 0.1.0.
        self._guessed: set[str] = set()
        self._queued_since: tuple[str, float] | None = None
        traits = slots.traits(self.key)
        self._doubt = ModelDoubt(traits.doubt, lambda text: slots.keep_doubt(self.key, text))
        self._overrides = OptionOverrides(traits.overridden, self._keep_overridden)
        self._pace = Pace()
        self._shared_until = 0.0
        #: The checkpoint that the WebUI has loaded, as far as is known.
        self._loaded: str | None = None
        self._answered_at = 0.0
        self._gave_up_at = 0.0
        self._generating = False
        #: Counts the answers that showed what the WebUI has loaded.
        self._answered = 0
        self._results = Results(self.key, records, slots, offers, config, self._pace, self._overrides)
        #: The claim whose request is prepared, and that request.
        self._prepared: tuple[Claim, Prepared[Answer]] | None = None
        # A generation, the question about it and the look for its start, the next one, and one that was cancelled and still waits
        # for its connection.
        self._helpers = ThreadPoolExecutor(5, thread_name_prefix=f"helper {self.key}")

    # -- what the WebUI offers ---------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Ask the WebUI what it offers and keep that; False where it is to be asked again soon: while no default model is known, or
        only a restart can make the WebUI whole again.

        :raises StationDown: it does not answer.
        """
        self._outdated.clear()
        asked_at, answered = self._slots.now(), self._answered
        try:
            catalogue = self._webui.catalogue()
        except WebuiError as error:
            self._note_absence(error)
            raise StationDown(reason(error)) from error
        self._look_for_restart()
        self._overrides.learn(self._slots.traits(self.key).overridden)
        own = self._overrides.own_value(catalogue.prompt_comments)
        self._keep_catalogue(replace(catalogue, prompt_comments=own), asked_at)
        if not self._generating and answered == self._answered:
            self._learn_loaded(catalogue)
        return self._offers.has_default_model() and not self._doubt.hopeless

    def _look_for_restart(self) -> None:
        """End a doubt whose WebUI was restarted unseen, as behind a proxy; let a hopeless one be tried again now and then."""
        if self._doubt.model is None:
            return
        with suppress(WebuiError):
            if self._webui.server_state().job_timestamp == NO_JOB_YET:
                self._forget_memory()
        if self._doubt.hopeless and time.monotonic() >= self._gave_up_at + _TRY_AGAIN_SECONDS:
            self._doubt.try_again()

    def _keep_catalogue(self, catalogue: Catalogue, asked_at: float) -> None:
        self._slots.put_catalogue(self.key, catalogue.to_json(), asked_at)
        self._offers.keep_default_model()
        with self._lock:
            self._catalogue = catalogue
            self._unservable = self._judge(self._demands)

    def outdated(self) -> bool:
        """Whether an answer has shown since the last refresh began that what the WebUI offers has changed."""
        return self._outdated.is_set()

    def look_again(self) -> None:
        """Have the WebUI asked soon what it offers: an answer shows that it has changed."""
        self._outdated.set()

    def _learn_loaded(self, catalogue: Catalogue) -> None:
        """A person may have loaded another model by hand."""
        loaded = catalogue.model(catalogue.loaded_model) if catalogue.loaded_model else None
        self._loaded = loaded.checkpoint if loaded is not None else self._loaded

    def serving(self, *, fresh: bool = True) -> Serving:
        """The demands that this WebUI can be asked for; ``fresh`` reads what is new in the database first."""
        with self._lock:
            if fresh:
                traits = self._slots.traits(self.key)
                self._doubt.learn(traits.doubt)
                self._overrides.learn(traits.overridden)
                self._learn_demands()
            return Serving(max(self._demands, default=0), self._unservable | self._doubted(), self._doubt.stored)

    def _learn_demands(self) -> None:
        """Read the demands that are new; all of them when the newest known one has another number or is gone."""
        newest = max(self._demands, default=0)
        found = self._read_demands(newest - 1)
        if found.get(newest) != self._demands.get(newest):
            self._forget_demands()
            found = self._read_demands(0)
        new = {number: demand for number, demand in found.items() if number not in self._demands}
        self._demands |= new
        self._unservable |= self._judge(new)

    def _read_demands(self, after: int) -> dict[int, Demand]:
        return {number: Demand.from_json(body) for number, body in self._table.demands_after(after)}

    def _forget_demands(self) -> None:
        self._demands, self._unservable = {}, frozenset()

    def knows(self, claim: Claim) -> bool:
        """Whether the claimed job's demand is the one that is known by its number; if not, all are read anew."""
        with self._lock:
            known = self._demands.get(claim.job.demand) == Demand.from_json(claim.demand)
            if not known:
                self._forget_demands()
            return known

    def _judge(self, demands: Mapping[int, Demand]) -> frozenset[int]:
        return frozenset(number for number, demand in demands.items() if not self._catalogue.serves(demand))

    def _doubted(self) -> frozenset[int]:
        """The demands for a model that may be broken in the WebUI's memory."""
        doubted = self._doubt.model
        if doubted is None:
            return frozenset()
        return frozenset(
            number
            for number, demand in self._demands.items()
            if (model := self._catalogue.model_of(demand)) is not None and model.checkpoint == doubted
        )

    # -- the generation ----------------------------------------------------------------------------------------------

    def hold(self, claim: Claim) -> None:
        """Get everything ready to send this job but its first byte; :meth:`generate` lets it go."""
        self.call_off()
        self._prepared = claim, Prepared(self._helpers, partial(self._send, claim))

    def call_off(self) -> None:
        """Drop what is held; nothing of it was sent."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared[1].cancel()

    def generate(self, claim: Claim, on_sending: Callable[[], None]) -> Answer:
        """Send the job and wait for the WebUI's answer; ``on_sending`` is called when it is on its way.

        :raises NotSent: no connection came about, or the WebUI is still starting.
        :raises DatabaseUnavailable: what must be kept before the POST goes out could not be kept.
        :raises LeaseLost: the lease had run out before the request was complete.
        :raises AttemptLost: the POST went out, and there is no answer.
        """
        self._generating = True
        try:
            if self._prepared is not None and self._prepared[0] is claim:
                (_, prepared), self._prepared = self._prepared, None
                prepared.release(on_sending)
                return prepared.sent.result()
            self.call_off()
            return self._send(claim, on_sending)
        finally:
            self._generating = False

    def _send(self, claim: Claim, on_sending: Callable[[], None]) -> Answer:
        try:
            replies = self._post(claim, on_sending)
        except (RecordsError, NoLongerAvailable, AnswerTooLarge) as error:
            return Answer(ok=False, content=error)
        except (Unreachable, NotUp) as error:
            self._note_absence(error)
            raise NotSent(reason(error)) from error
        except Withheld as error:
            raise LeaseLost from error
        except (ConnectionBroken, JobTimeout) as error:
            raise AttemptLost(Failure(error.slug, str(error))) from error
        return Answer(ok=replies.last.status == _OK, content=replies, settled=replies.inquiry.settled)

    def _post(self, claim: Claim, on_sending: Callable[[], None]) -> Replies:
        job = claim.job
        model = self._model_of(claim)
        payload = self._payload(claim, model)
        limits = bounds.of_generation(job.args)
        self._ask_what_is_loaded()
        if self._loaded in (None, model.checkpoint):
            replies = self._generate(claim, payload, model, limits, on_sending)
        else:
            # Not before the claim is committed; that the job is on its way is told here, and once.
            on_sending()
            replies = self._switch(claim, payload, model, limits)
        return self._upscaled(claim, replies)

    def _ask_what_is_loaded(self) -> None:
        """Somebody else may have loaded another model since our last picture; where that can't be told, none has."""
        alone = time.monotonic() < self._answered_at + _KNOWN_SECONDS and not self._is_shared()
        if alone or len(self._catalogue.models) == 1:
            return
        with suppress(WebuiError):
            loaded = self._catalogue.model(self._webui.loaded_checkpoint())
            self._loaded = self._loaded if loaded is None else loaded.checkpoint

    def _is_shared(self) -> bool:
        return time.monotonic() < self._shared_until

    def _model_of(self, claim: Claim) -> Model:
        """The model of a job here. One that version 0.1.0 accepted for a name of several files has the exact model_name.

        :raises NoLongerAvailable: the WebUI has it no more.
        """
        demand, catalogue = Demand.from_json(claim.demand), self._catalogue
        model = payloads.model_of(demand, catalogue)
        if catalogue.model(demand.model) is None and demand.model not in self._guessed:
            self._guessed.add(demand.model)
            _LOG.warning(
                "WebUI %s has several models called %r; jobs that version 0.1.0 accepted use %r",
                self.name,
                demand.model,
                model.title,
            )
        return model

    def _payload(self, claim: Claim, model: Model) -> dict[str, Any]:
        job, catalogue, presets, overrides = claim.job, self._catalogue, self._offers.presets, self._overrides
        one_by_one = job.one_by_one
        if job.type == "txt2img":
            return payloads.txt2img(
                job.args, catalogue, model, presets, overrides, claim.task_id, one_by_one=one_by_one
            )
        init = self._records.read_init(job.user_id, job.type, job.name)
        return payloads.img2img(
            job.args, init, catalogue, model, presets, overrides, claim.task_id, one_by_one=one_by_one
        )

    def _generate(
        self,
        claim: Claim,
        payload: dict[str, Any],
        model: Model,
        limits: bounds.AnswerBounds,
        on_sending: Callable[[], None],
    ) -> Replies:
        """Post the generation; once more without an option that the WebUI turns out not to know, before it did any work."""
        replies = self._generate_once(claim, payload, model, limits, on_sending)
        if replies.generation.status != _SERVER_FAILED:
            return replies
        error = error_body(replies.generation)
        options = self._overrides.refused(payloads.options_of(payload), error)
        if options is None:
            if says_model_broken(error):
                with suppress(DatabaseUnavailable):
                    self._doubt.begin_switch(model.checkpoint)
            return replies
        try:
            again = self._generate_once(claim, payloads.with_options(payload, options), model, limits, _nothing)
        except (Unreachable, NotUp) as broken:
            # The attempt did begin.
            raise ConnectionBroken from broken
        return replace(again, unexplained=says_nothing(error))

    def _generate_once(
        self,
        claim: Claim,
        payload: dict[str, Any],
        model: Model,
        limits: bounds.AnswerBounds,
        on_sending: Callable[[], None],
    ) -> Replies:
        inquiry = Inquiry(self._webui, self._helpers)
        shared = self._is_shared() and self._catalogue.task_ids
        doubt = self._doubt.number

        def send() -> None:
            nonlocal doubt
            on_sending()
            doubt = self._doubt.number
            inquiry.prepare(claim.task_id if shared else None, self._pace.fastest(kind_of(claim.job)))

        def answered(status: int) -> None:
            inquiry.ask(status)
            self._answered_at = time.monotonic()
            if status == _OK:
                self._loaded = model.checkpoint
                self._answered += 1

        try:
            reply = self._webui.generate(
                claim.job.type, payload, limits.size, send, answered, may_complete=self._holds(claim)
            )
        finally:
            inquiry.end()
        if is_start_window(reply):
            raise NotUp(restarted=is_restarted(reply))
        inquiry.let_go_ahead()
        options = payloads.options_of(payload)
        self._overrides.answered(options, ok=reply.status == _OK)
        return Replies(inquiry, limits, model, options, payload["prompt"], reply, doubt=doubt)

    def _holds(self, claim: Claim) -> Callable[[], bool]:
        """What tells whether the lease of this claim is still held."""
        return partial(self._slots.leases.held, claim.task_id, claim.leased_at)

    def _upscaled(self, claim: Claim, replies: Replies) -> Replies:
        job = claim.job
        done = job.type == "txt2img" or not payloads.upscales(job.args) or replies.generation.status != _OK
        if done or replies.inquiry.result().flagged:
            return replies
        try:
            pictures = generation_images_base64(replies.generation, replies.limits, expected=job.args["batch_size"])
        except WebuiError:
            # Unreadable, as the results will find too and say properly.
            return replies
        limits = bounds.of_generation(job.args, scale=job.args["hr_scale"])
        try:
            payload = payloads.upscale(pictures, job.args)
            upscaled = self._webui.upscale(payload, limits.size, may_complete=self._holds(claim))
        except Unreachable as error:
            # The attempt did begin: its first half was answered.
            raise ConnectionBroken from error
        return replace(replies, upscaled=(upscaled, limits), stopped=upscaled.status == _OK and self._was_stopped())

    def _was_stopped(self) -> bool:
        """Whether somebody interrupted the extras, which answer 200 all the same: the flag stays until another task begins."""
        try:
            return self._webui.server_state().stopped
        except WebuiError:
            return False

    def abort(self) -> None:
        """Break the connection of the generation in flight."""
        self._webui.abort()

    # -- another model -----------------------------------------------------------------------------------------------

    def _switch(self, claim: Claim, payload: dict[str, Any], model: Model, limits: bounds.AnswerBounds) -> Replies:
        """Post a generation with another model than the loaded one: should loading it fail, the loaded one is broken."""
        loaded = self._prepare_switch(model)
        noted = loaded not in (None, model.checkpoint) and self._doubt.begin_switch(loaded)
        number = self._doubt.number
        try:
            replies = self._generate(claim, payload, model, limits, _nothing)
        except (Unreachable, NotUp, Withheld):
            if noted:
                self._doubt.withdraw(number)
            raise
        status = replies.generation.status
        if noted and _BAD_REQUEST <= status < _SERVER_FAILED:
            # It was refused before any work.
            self._doubt.withdraw(number)
        elif status >= _SERVER_FAILED:
            self._doubt.suspect(model.checkpoint)
            _LOG.warning("WebUI %s failed to make a picture with another model than it had loaded", self.name)
        return replace(replies, switch_noted=noted)

    def _prepare_switch(self, model: Model) -> str | None:
        """Have the WebUI take vanished files off its list; the checkpoint that is loaded now. What fails of this costs nothing.

        :raises ModelVanished: the model is not listed any more, and asking for it would make pictures with another.
        """
        with suppress(WebuiError):
            self._webui.refresh_checkpoints()
        asked_at = self._slots.now()
        try:
            seen = self._webui.checkpoints()
        except WebuiError:
            return self._loaded
        if all(model.bare_title != other.bare_title for other in seen.models):
            found = replace(self._catalogue, models=seen.models, loaded_model=seen.loaded_model)
            self._keep_catalogue(found, asked_at)
            raise ModelVanished
        self._learn_loaded(seen)
        return self._loaded

    def needs_repair(self) -> bool:
        """Whether jobs for the model that may be broken must wait until another one was loaded."""
        return self._doubt.model is not None and not self._doubt.hopeless

    def repair(self, task_id: str, leased_at: float) -> None:
        """Have the WebUI load another model, by the smallest picture there is, which nobody keeps.

        :param leased_at: when the lease of the slot began, by the clock of :mod:`app.jobs.leases`.
        :raises StationDown: it does not answer.
        :raises AttemptLost: the request went out and no answer came.
        :raises LeaseLost: the lease had run out before the request was complete.
        """
        candidates = self._doubt.candidates(self._catalogue.models)
        if not candidates:
            self._give_up()
            return
        model, number = candidates[0], self._doubt.number
        limits, holds = bounds.OF_PROBE, partial(self._slots.leases.held, task_id, leased_at)
        try:
            reply = self._webui.generate("txt2img", payloads.probe(model, task_id), limits.size, may_complete=holds)
        except AnswerTooLarge:
            self._doubt.fails(model.checkpoint)
            return
        except Unreachable as error:
            self._note_absence(error)
            raise StationDown(reason(error)) from error
        except Withheld as error:
            raise LeaseLost from error
        except WebuiError as error:
            raise AttemptLost(Failure(error.slug, str(error))) from error
        if made_with(reply, limits, model):
            self._loaded = model.checkpoint
            self._answered += 1
            self._doubt.loads(model.checkpoint, number)
            _LOG.info("WebUI %s has loaded another model and is whole again", self.name)
        else:
            self._doubt.fails(model.checkpoint)

    def _give_up(self) -> None:
        self._doubt.give_up()
        self._gave_up_at = time.monotonic()
        _LOG.warning(
            "WebUI %s must be restarted, or a model file repaired: its loaded model is broken, and no other one can be loaded",
            self.name,
        )
        # From now on it is asked often, so that the restart is seen.
        self.look_again()

    def _note_absence(self, error: WebuiError) -> None:
        """Where nobody listens, or the API is not there yet, the WebUI was restarted: what was known of its memory is void."""
        if nobody_listens(error) or (isinstance(error, NotUp) and error.restarted):
            self._forget_memory()

    def _forget_memory(self) -> None:
        """The WebUI's process is another one now."""
        self._loaded = None
        self._overrides.forget()
        # A doubt that can't be taken back now is only too careful, and goes with the next absence or picture.
        with suppress(DatabaseUnavailable):
            self._doubt.forget()

    def _keep_overridden(self, text: str | None) -> None:
        try:
            self._slots.keep_overridden(self.key, text)
        except DatabaseUnavailable:
            _LOG.warning("what options of WebUI %s are to be put back could not be stored", self.name)

    # -- the result --------------------------------------------------------------------------------------------------

    def store(self, claim: Claim, answer: Answer, before_writing: Callable[[], object]) -> Success | Failure | Retry:
        """Decode the answer, write the images and the parameter JSON, and tell what the row shall say."""
        outcome = self._results.store(claim, answer, Demand.from_json(claim.demand), before_writing)
        if outcome.shared:
            self._shared_until = time.monotonic() + _SHARED_SECONDS
        if outcome.wrong_model:
            self.look_again()
        try:
            self._learn_from(outcome, answer.content)
        except DatabaseUnavailable:
            # No reason to lose the picture: the doubt stands until the next one lifts it, or a repair.
            _LOG.warning("that the model of WebUI %s is whole could not be stored", self.name)
        return outcome.verdict

    def _learn_from(self, outcome: Outcome, replies: Any) -> None:
        """What an answer shows of the model that the WebUI has loaded."""
        if outcome.made_with is not None:
            self._doubt.loads(outcome.made_with, replies.doubt)
        if outcome.wrong_model and replies.switch_noted:
            # The WebUI ignored what it was asked for, so it loaded nothing, and nothing failed.
            self._doubt.withdraw(replies.doubt)

    def discard(self, claim: Claim) -> None:
        """Remove the files of an attempt whose job went to somebody else."""
        self._results.discard(claim)

    # -- asking and stopping -----------------------------------------------------------------------------------------

    def look(self, claim: Claim) -> Look | None:
        """Ask how far the WebUI is with this job; None when it doesn't say."""
        try:
            task = self._webui.task(claim.task_id) if self._catalogue.task_ids else None
            if task is not None and (task.active or task.queued):
                return Look(task.progress or 0.0, task.eta, idle=False)
            state = self._webui.server_state()
        except WebuiError:
            return None
        if task is not None:
            # Not ours any more: the extras of the same job, the encoding of its pictures, or nothing at all.
            return Look(1.0 if task.completed else 0.0, None, idle=state.job_count == 0)
        return Look(state.progress, state.eta or None, idle=state.job_count == 0, by_task=False)

    def interrupt(self, claim: Claim) -> None:
        """Stop the generation of this job if it is the one that runs: an interrupt names no task, it hits whatever runs."""
        try:
            if self._ours_is_active(claim.task_id):
                self._webui.interrupt()
        except WebuiError:
            _LOG.warning("WebUI %s could not be interrupted", self.name)

    def _ours_is_active(self, task_id: str | None) -> bool:
        # On a new slot no task is known: what runs there is not ours to stop.
        if task_id is None or self._webui.server_state().job_count == 0:
            return False
        task = self._webui.task(task_id)
        # Where tasks can't be asked for, what runs on a slot that we hold is ours.
        return task.active if task is not None else True

    def settle(self, task_id: str | None, *, patience: float, stopping: threading.Event) -> bool:
        """The orphan rule: send nothing until the WebUI is idle, after one interrupt if our lost task is the one that runs.

        :param patience: seconds to wait; with 0 it is only looked at.
        :returns: whether it is idle: seen so twice, some time apart.
        :raises StationDown: nobody listens there. It is not asked again here: a starting WebUI can be killed by requests.
        """
        deadline = time.monotonic() + patience
        seen_idle, interrupted = False, patience == 0
        while not stopping.is_set():
            try:
                idle = self._is_idle(task_id)
                if idle and seen_idle:
                    return True
                if not idle and not interrupted and self._ours_is_active(task_id):
                    self._webui.interrupt()
                    interrupted = True
            except Unreachable as error:
                raise StationDown(reason(error)) from error
            except WebuiError:
                idle = False
            if not idle and time.monotonic() >= deadline:
                return False
            seen_idle = idle
            stopping.wait(_IDLE_TWICE_SECONDS)
        return False

    def _is_idle(self, task_id: str | None) -> bool:
        state = self._webui.server_state()
        task = self._webui.task(task_id) if task_id is not None else None
        active = task is not None and task.active
        if state.busy or (active and state.job_count != 0):
            return False
        if task is None or task_id is None or not task.queued:
            self._queued_since = None
            return True
        return self._queued_for_too_long(task_id)

    def _queued_for_too_long(self, task_id: str) -> bool:
        """A request that failed before its turn stays queued for ever; after as long as a job may take it is such a one."""
        now = time.monotonic()
        if self._queued_since is None or self._queued_since[0] != task_id:
            self._queued_since = (task_id, now)
        return now - self._queued_since[1] >= self._job_timeout


def _nothing() -> None:
    """What is called in place of what was called already."""


def hopeless_demands(demands: dict[int, str], catalogues: dict[str, Catalogue], configured: Sequence[str]) -> list[int]:
    """The demands that no configured WebUI can serve; none while the catalogue of one of them was never seen."""
    if not configured or any(key not in catalogues for key in configured):
        return []
    parsed = {number: Demand.from_json(body) for number, body in demands.items()}
    return [
        number for number, demand in parsed.items() if not any(catalogues[key].serves(demand) for key in configured)
    ]


def serving_webuis(demand: str, catalogues: Mapping[str, Catalogue], configured: Iterable[str]) -> list[str]:
    """The configured WebUIs that offer everything that a job with this demand (canonical JSON) needs."""
    parsed = Demand.from_json(demand)
    return [key for key in configured if key in catalogues and catalogues[key].serves(parsed)]


def restarts_needed(doubts: Mapping[str, str]) -> list[str]:
    """Sentences that name the WebUIs whose loaded model stays broken until they are restarted."""
    return [
        f"WebUI {key} must be restarted: its loaded model is broken, and no other one can be loaded."
        for key, doubt in doubts.items()
        if is_hopeless(doubt)
    ]
