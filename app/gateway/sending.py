"""Sending a job to a WebUI: the generation, another one where an option was unknown, a switch of models, the upscaling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from app.gateway.memory import WebuiMemory
from app.gateway.offering import Offering
from app.gateway.results import Replies, kind_of
from app.gateway.served import Served
from app.jobs.errors import DatabaseUnavailable
from app.jobs.model import Failure
from app.jobs.worker.attempt import Attempt
from app.jobs.worker.backend import Answer, AttemptLost, LeaseLost, NotSent
from app.parameters import upscales
from app.records.errors import RecordsError
from app.records.store import RecordStore
from app.webui import bounds, payloads
from app.webui.answers import error_body, generation_images_base64, is_restarted, is_start_window
from app.webui.client import Webui
from app.webui.errors import (
    AnswerTooLarge,
    ConnectionBroken,
    JobTimeout,
    NoLongerAvailable,
    NotUp,
    Unreachable,
    WebuiError,
    Withheld,
    reason,
)
from app.webui.failures import says_model_broken, says_nothing
from app.webui.handoff import InterruptQuery, Prepared
from app.webui.models import Model
from app.webui.pace import Pace

_LOG = logging.getLogger(__name__)

_OK: Final = 200
_BAD_REQUEST: Final = 400
_SERVER_FAILED: Final = 500
#: A generation and its interrupt query and the watch for its start, the next request, and one that was cancelled and still waits
#: for its connection.
_HELPERS: Final = 5


@dataclass(frozen=True, slots=True)
class _Request:
    """One generation as it is posted, and the bounds of its answer."""

    attempt: Attempt
    payload: Mapping[str, Any]
    model: Model
    limits: bounds.AnswerBounds


class Sending:
    """Sends jobs to one WebUI, one at a time."""

    def __init__(
        self, webui: Webui, records: RecordStore, offering: Offering, served: Served, memory: WebuiMemory, pace: Pace
    ) -> None:
        self._webui = webui
        self._records = records
        self._offering = offering
        self._served = served
        self._memory = memory
        self._pace = pace
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix=f"helper {webui.key}")
        #: The attempt whose request is prepared, and that request. Used by the runner's thread alone.
        self._prepared: tuple[Attempt, Prepared[Answer]] | None = None
        #: Whether a generation is under way.
        self.busy = False

    def prepare(self, attempt: Attempt) -> None:
        """Get everything ready to send this job but its first byte; :meth:`generate` releases it."""
        self.cancel()
        self._prepared = attempt, Prepared(self._helpers, partial(self._send, attempt))

    def cancel(self) -> None:
        """Drop the prepared request; nothing of it was sent."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared[1].cancel()

    def generate(self, attempt: Attempt, on_sent: Callable[[], None]) -> Answer:
        """Send the job and wait for the WebUI's answer; ``on_sent`` is called once, right before the request goes out.

        :raises NotSent: no connection came about, or the WebUI is still starting.
        :raises DatabaseUnavailable: what must be kept before the POST goes out could not be kept.
        :raises LeaseLost: the lease had run out before the request was complete.
        :raises AttemptLost: the POST went out, and there is no answer.
        """
        self.busy = True
        try:
            if self._prepared is not None and self._prepared[0] is attempt:
                (_, prepared), self._prepared = self._prepared, None
                prepared.release(on_sent)
                return prepared.sent.result()
            self.cancel()
            return self._send(attempt, on_sent)
        finally:
            self.busy = False

    def _send(self, attempt: Attempt, on_sent: Callable[[], None]) -> Answer:
        try:
            replies = self._post(attempt, on_sent)
        except (RecordsError, NoLongerAvailable, AnswerTooLarge) as error:
            return Answer(ok=False, content=error)
        except (Unreachable, NotUp) as error:
            self._memory.note_absence(error)
            raise NotSent(reason(error)) from error
        except Withheld as error:
            raise LeaseLost from error
        except (ConnectionBroken, JobTimeout) as error:
            raise AttemptLost(Failure(error.slug, str(error))) from error
        return Answer(ok=replies.last.status == _OK, content=replies, await_checks=replies.interrupt_query.wait)

    def _post(self, attempt: Attempt, on_sent: Callable[[], None]) -> Replies:
        job = attempt.claim.job
        model = self._served.model_of(attempt.claim)
        request = _Request(attempt, self._payload(attempt, model), model, bounds.of_generation(job.args))
        self._memory.ask_loaded(self._served.catalogue)
        if self._memory.loaded in (None, model.checkpoint):
            replies = self._generate(request, on_sent)
        else:
            # Not before the claim is committed; that the job is on its way is told here, and once.
            on_sent()
            replies = self._switch(request)
        return self._upscaled(attempt, replies)

    def _payload(self, attempt: Attempt, model: Model) -> dict[str, Any]:
        job, task_id = attempt.claim.job, attempt.claim.task_id
        offering = self._offering
        target = payloads.Target(
            self._served.catalogue, model, offering.presets, self._memory.overrides, offering.parameters
        )
        if job.type == "txt2img":
            return payloads.txt2img(job.args, target, task_id, one_by_one=job.one_by_one)
        init = self._records.read_init(job.user_id, job.type, job.name)
        return payloads.img2img(job.args, init, target, task_id, one_by_one=job.one_by_one)

    # -- the generation ----------------------------------------------------------------------------------------------

    def _generate(self, request: _Request, on_sent: Callable[[], None]) -> Replies:
        """Post the generation; once more without an option that the WebUI turns out not to know, before it did any work."""
        replies = self._generate_once(request, on_sent)
        if replies.generation.status != _SERVER_FAILED:
            return replies
        error = error_body(replies.generation)
        options = self._memory.overrides.refused(payloads.options_of(request.payload), error)
        if options is None:
            if says_model_broken(error):
                with suppress(DatabaseUnavailable):
                    self._memory.doubt.begin_switch(request.model.checkpoint)
            return replies
        without = replace(request, payload=payloads.with_options(request.payload, options))
        try:
            again = self._generate_once(without, _nothing)
        except (Unreachable, NotUp) as broken:
            # The attempt did begin.
            raise ConnectionBroken from broken
        return replace(again, unexplained=says_nothing(error))

    def _generate_once(self, request: _Request, on_sent: Callable[[], None]) -> Replies:
        memory, claim = self._memory, request.attempt.claim
        query = InterruptQuery(self._webui, self._helpers)
        watch_start_of = claim.task_id if memory.is_shared and self._served.catalogue.task_ids else None
        doubt = memory.doubt.number

        def send() -> None:
            nonlocal doubt
            on_sent()
            doubt = memory.doubt.number
            query.prepare(watch_start_of, self._pace.fastest(kind_of(claim.job)))

        def answered(status: int) -> None:
            query.ask(status)
            memory.answered()
            if status == _OK:
                memory.made_with(request.model)

        try:
            reply = self._webui.generate(
                claim.job.type,
                request.payload,
                request.limits.size,
                send,
                answered,
                may_complete=request.attempt.may_complete,
            )
        finally:
            query.end()
        if is_start_window(reply):
            raise NotUp(restarted=is_restarted(reply))
        query.yield_until_sent()
        options = payloads.options_of(request.payload)
        memory.overrides.answered(options, ok=reply.status == _OK)
        return Replies(query, request.limits, request.model, options, request.payload["prompt"], reply, doubt=doubt)

    def _switch(self, request: _Request) -> Replies:
        """Post a generation with another model than the loaded one: should loading it fail, the loaded one is broken."""
        self._served.check_listed(request.model)
        doubt, loaded = self._memory.doubt, self._memory.loaded
        noted = loaded not in (None, request.model.checkpoint) and doubt.begin_switch(loaded)
        number = doubt.number
        try:
            replies = self._generate(request, _nothing)
        except (Unreachable, NotUp, Withheld):
            if noted:
                doubt.withdraw(number)
            raise
        status = replies.generation.status
        if noted and _BAD_REQUEST <= status < _SERVER_FAILED:
            # It was refused before any work.
            doubt.withdraw(number)
        elif status >= _SERVER_FAILED:
            doubt.suspect(request.model.checkpoint)
            _LOG.warning("WebUI %s failed to make a picture with another model than it had loaded", self._webui.name)
        return replace(replies, switch_noted=noted)

    # -- the upscaling of img2img ------------------------------------------------------------------------------------

    def _upscaled(self, attempt: Attempt, replies: Replies) -> Replies:
        job = attempt.claim.job
        done = job.type == "txt2img" or not upscales(job.args) or replies.generation.status != _OK
        # The extras have no task id, so that nobody could tell them from another's: they are never interrupted.
        if done or not attempt.end_generation() or replies.interrupt_query.result().flagged:
            return replies
        try:
            pictures = generation_images_base64(replies.generation, replies.limits, expected=job.args["batch_size"])
        except WebuiError:
            # Unreadable, as the results will find too and say properly.
            return replies
        limits = bounds.of_generation(job.args, scale=job.args["hr_scale"])
        try:
            payload = payloads.upscale(pictures, job.args)
            upscaled = self._webui.upscale(payload, limits.size, may_complete=attempt.may_complete)
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


def _nothing() -> None:
    """Stands in for a callback that was called already."""
