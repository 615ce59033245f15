"""The use case: a job goes to a WebUI, its pictures to disk, and its row is committed.

:class:`WebuiStation` is one WebUI as the worker drives it. Read :meth:`WebuiStation.generate` and :meth:`WebuiStation.store` for
the story; the rest is how the WebUI is asked, stopped and left clean.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

from app.jobs.model import Claim, Failure, Job, Success
from app.jobs.slots import Slots
from app.jobs.station import Answer, AttemptLost, Look, NotSent, Retry, StationDown
from app.jobs.table import JobTable, Serving
from app.jobs.view import describe
from app.offers import Offers
from app.records.errors import BadImage, RecordsError
from app.records.images import Sniffed, sniff
from app.records.names import image_filename
from app.records.store import RecordStore
from app.webui import payloads
from app.webui.answers import (
    Generation,
    Picture,
    generation_images_base64,
    read_generation,
    read_upscaled,
)
from app.webui.catalogue import Catalogue, Demand
from app.webui.client import ServerState, Webui
from app.webui.errors import (
    ConnectionBroken,
    Interrupted,
    JobTimeout,
    NoLongerAvailable,
    OutOfMemory,
    Unreachable,
    WebuiError,
    WrongModel,
)
from app.webui.exchange import Reply
from app.webui.models import Model

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Looked at twice, at least so far apart, a WebUI is idle (seconds).
_IDLE_TWICE_SECONDS: Final = 0.3
#: What connecting to a WebUI that has just answered takes at most, in earnest.
_GO_AHEAD_SECONDS: Final = 0.02
_DOCUMENT_FORMAT: Final = 1
_OK: Final = 200


class _CalledOff(Exception):
    """What was held back is not to be sent after all."""


class _Held(Generic[_T]):
    """A request that is ready, with its connection made, and is held back before its first byte.

    :param send: sends it; what it is given to call when the connection is made waits here.
    """

    def __init__(self, pool: ThreadPoolExecutor, send: Callable[[Callable[[], None]], _T]) -> None:
        self._cleared = threading.Event()
        self._on_sending: Callable[[], None] | None = None
        #: What ``send`` returns or raises, once it was let go.
        self.sent: Future[_T] = pool.submit(send, self._await_clearance)

    def _await_clearance(self) -> None:
        self._cleared.wait()
        if self._on_sending is None:
            raise _CalledOff
        self._on_sending()

    def go(self, on_sending: Callable[[], None]) -> None:
        """Let it go."""
        self._on_sending = on_sending
        self._cleared.set()

    def call_off(self) -> None:
        """Let nothing of it be sent; too late for what was let go."""
        self._cleared.set()


class _Inquiry:
    """Whether somebody stopped a generation on its way: a 200 does not tell that its pictures are half done.

    The flag stays until the next generation begins (``modules/shared_state.py``: ``begin`` clears it, ``end`` does not), and is
    there when the answer begins to arrive: so it is asked for then, while the answer is read, on a connection that was made before.
    """

    def __init__(self, webui: Webui, pool: ThreadPoolExecutor) -> None:
        self._webui = webui
        self._pool = pool
        self._held: _Held[bool] | None = None
        self._asked: Future[bool] | None = None
        self._on_its_way = threading.Event()

    def hold(self) -> None:
        """Get the question ready, but for its first byte."""
        self._held = _Held(self._pool, self._ask)

    def begin(self, status: int) -> None:
        """The WebUI is done with the generation, and answers with this status."""
        if status == _OK and self._held is not None:
            self._asked = self._held.sent
            self._held.go(self._on_its_way.set)

    def _ask(self, await_clearance: Callable[[], None]) -> bool:
        try:
            state = self._ask_twice(await_clearance)
        except WebuiError:
            return False
        finally:
            self._on_its_way.set()
        return state.interrupted or state.skipped

    def _ask_twice(self, await_clearance: Callable[[], None]) -> ServerState:
        try:
            return self._webui.server_state(await_clearance)
        except WebuiError as error:
            if isinstance(error.__cause__, JobTimeout):
                raise
        # Who stands before a WebUI keeps no silent connection for ever: it is closed, or told 408 (RFC 9110, section 15.5.9).
        await_clearance()
        return self._webui.server_state()

    def end(self) -> None:
        """What was not asked by now is not asked."""
        if self._held is not None:
            self._held.call_off()

    def let_go_ahead(self) -> None:
        """Wait a moment until the question goes out: what this thread would do now can as well be done while the WebUI answers,
        and would only keep the interpreter from asking.
        """
        if self._asked is not None:
            self._on_its_way.wait(_GO_AHEAD_SECONDS)

    def settled(self, seconds: float | None) -> bool:
        """Wait for the answer, so long or for ever; whether it is there."""
        return self._asked is None or bool(wait([self._asked], seconds).done)

    def stopped(self) -> bool:
        """Whether the pictures are half done; waits for the answer."""
        return self._asked is not None and self._asked.result()


@dataclass(frozen=True, slots=True)
class _Replies:
    """What a WebUI answered to one job: the generation, and for upscaled img2img the extras."""

    inquiry: _Inquiry
    generation: Reply
    upscaled: Reply | None = None


class WebuiStation:
    """One WebUI with its catalogue, as the worker drives it (see :class:`app.jobs.station.Station`)."""

    def __init__(
        self, webui: Webui, table: JobTable, slots: Slots, records: RecordStore, offers: Offers, job_timeout: float
    ) -> None:
        self.key = webui.key
        self._webui = webui
        self._table = table
        self._slots = slots
        self._records = records
        self._offers = offers
        self._job_timeout = job_timeout
        self._lock = threading.Lock()
        self._catalogue = Catalogue()
        self._demands: dict[int, Demand] = {}
        self._unservable: frozenset[int] = frozenset()
        #: Set when an answer shows that the catalogue is not right any more.
        self._outdated = threading.Event()
        #: Names of models that stand for several files, of which one was taken for a job of version 0.1.0.
        self._guessed: set[str] = set()
        self._queued_since: tuple[str, float] | None = None
        #: The claim that is held, and its request.
        self._flight: tuple[Claim, _Held[Answer]] | None = None
        # A generation and the question about it, the next one, and one that was called off and still waits for its connection.
        self._helpers = ThreadPoolExecutor(4, thread_name_prefix=f"helper {self.key}")

    # -- what the WebUI offers ---------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Ask the WebUI what it offers and keep that; False while no default model is known.

        :raises StationDown: it does not answer.
        """
        self._outdated.clear()
        asked_at = self._slots.now()
        try:
            catalogue = self._webui.catalogue()
        except WebuiError as error:
            raise StationDown from error
        self._slots.put_catalogue(self.key, catalogue.to_json(), asked_at)
        self._offers.keep_default_model()
        with self._lock:
            self._catalogue = catalogue
            self._unservable = self._judge(self._demands)
        return self._offers.has_default_model()

    def outdated(self) -> bool:
        """Whether an answer has shown since the last refresh began that what the WebUI offers has changed."""
        return self._outdated.is_set()

    def look_again(self) -> None:
        """Have the WebUI asked soon what it offers: an answer shows that it has changed."""
        self._outdated.set()

    def serving(self, *, fresh: bool = True) -> Serving:
        """The demands that this WebUI can be asked for; ``fresh`` judges new ones first."""
        with self._lock:
            if fresh:
                new = {
                    number: Demand.from_json(body)
                    for number, body in self._table.demands_after(max(self._demands, default=0))
                }
                self._demands |= new
                self._unservable |= self._judge(new)
            return Serving(max(self._demands, default=0), self._unservable)

    def _judge(self, demands: dict[int, Demand]) -> frozenset[int]:
        return frozenset(number for number, demand in demands.items() if not self._catalogue.serves(demand))

    # -- the generation ----------------------------------------------------------------------------------------------

    def hold(self, claim: Claim) -> None:
        """Get everything ready to send this job but its first byte; :meth:`generate` lets it go."""
        self.call_off()
        self._flight = claim, _Held(self._helpers, partial(self._send, claim))

    def call_off(self) -> None:
        """Drop what is held; nothing of it was sent."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight[1].call_off()

    def generate(self, claim: Claim, on_sending: Callable[[], None]) -> Answer:
        """Send the job and wait for the WebUI's answer; ``on_sending`` is called when it is on its way.

        :raises NotSent: no connection came about.
        :raises AttemptLost: the POST went out, and there is no answer.
        """
        if self._flight is not None and self._flight[0] is claim:
            (_, held), self._flight = self._flight, None
            held.go(on_sending)
            return held.sent.result()
        self.call_off()
        return self._send(claim, on_sending)

    def _send(self, claim: Claim, on_sending: Callable[[], None]) -> Answer:
        try:
            payload = self._payload(claim)
        except (RecordsError, WebuiError) as error:
            return Answer(ok=False, content=error)
        try:
            replies = self._post(claim, payload, on_sending)
        except Unreachable as error:
            raise NotSent from error
        except (ConnectionBroken, JobTimeout) as error:
            raise AttemptLost(Failure(error.slug, str(error))) from error
        last = replies.upscaled or replies.generation
        return Answer(ok=last.status == _OK, content=replies, settled=replies.inquiry.settled)

    def _payload(self, claim: Claim) -> dict[str, Any]:
        job, catalogue, presets = claim.job, self._catalogue, self._offers.presets
        model = self._model_of(job)
        if job.type == "txt2img":
            return payloads.txt2img(job.args, catalogue, model, presets, claim.task_id, one_by_one=job.one_by_one)
        init = self._records.read_init(job.user_id, job.type, job.name)
        return payloads.img2img(job.args, init, catalogue, model, presets, claim.task_id, one_by_one=job.one_by_one)

    def _model_of(self, job: Job) -> Model:
        """The model of a job here. One that version 0.1.0 accepted for a name of several files has the exact model_name.

        :raises NoLongerAvailable: the WebUI has it no more.
        """
        demand, catalogue = self._demands[job.demand], self._catalogue
        model = payloads.model_of(demand, catalogue)
        if catalogue.model(demand.model) is None and demand.model not in self._guessed:
            self._guessed.add(demand.model)
            _LOG.warning(
                "%s has several models called %s; jobs that version 0.1.0 accepted use %s",
                self.key,
                demand.model,
                model.title,
            )
        return model

    def _post(self, claim: Claim, payload: dict[str, Any], on_sending: Callable[[], None]) -> _Replies:
        job, inquiry = claim.job, _Inquiry(self._webui, self._helpers)

        def send() -> None:
            on_sending()
            inquiry.hold()

        try:
            reply = self._webui.generate(job.type, payload, send, inquiry.begin)
        finally:
            inquiry.end()
        inquiry.let_go_ahead()
        if job.type == "txt2img" or not payloads.upscales(job.args) or reply.status != _OK or inquiry.stopped():
            return _Replies(inquiry, reply)
        try:
            pictures = generation_images_base64(reply, expected=job.args["batch_size"])
            return _Replies(inquiry, reply, self._webui.upscale(payloads.upscale(pictures, job.args)))
        except Unreachable as error:
            # The attempt did begin: its first half was answered.
            raise ConnectionBroken from error
        except (ConnectionBroken, JobTimeout):
            raise
        except WebuiError:
            # Unreadable, as storing will find too and say properly.
            return _Replies(inquiry, reply)

    def abort(self) -> None:
        """Break the connection of the generation in flight."""
        self._webui.abort()

    # -- the result --------------------------------------------------------------------------------------------------

    def store(self, claim: Claim, answer: Answer, before_writing: Callable[[], object]) -> Success | Failure | Retry:
        """Decode the answer, write the images and the parameter JSON, and tell what the row shall say."""
        try:
            if isinstance(answer.content, Exception):
                raise answer.content
            generation = self._read(claim, answer.content)
            before_writing()
            return self._write(claim, generation)
        except OutOfMemory as error:
            return Retry(Failure(error.slug, str(error)), one_by_one=True)
        except NoLongerAvailable as error:
            # Another WebUI may still have it; when none has, the upkeep fails the job.
            return Retry(Failure(error.slug, str(error)))
        except BadImage:
            return Retry(Failure("webui-bad-answer", "The WebUI answered with a broken picture."))
        except WebuiError as error:
            if isinstance(error, WrongModel):
                self.look_again()
            failure = Failure(error.slug, str(error))
            return Retry(failure) if error.retryable else failure
        except RecordsError as error:
            self._discard_quietly(claim)
            return Failure(error.slug, str(error))

    def _discard_quietly(self, claim: Claim) -> None:
        """Make room again: of a record that could not be stored whole, nothing is kept."""
        try:
            self.discard(claim)
        except RecordsError:
            _LOG.warning("files of job %s were left for the sweep", claim.job.name)

    def _read(self, claim: Claim, replies: _Replies) -> Generation:
        job = claim.job
        model = self._model_of(job)
        generation = read_generation(replies.generation, expected=job.args["batch_size"], model=model)
        if replies.inquiry.stopped():
            raise Interrupted
        if replies.upscaled is None:
            return generation
        return replace(generation, pictures=read_upscaled(replies.upscaled, generation.pictures))

    def _write(self, claim: Claim, generation: Generation) -> Success:
        job, attempt = claim.job, claim.attempt
        sniffed = [sniff(picture.data) for picture in generation.pictures]
        images = [
            _image(image_filename(job.name, attempt, index, kind.extension), picture, kind)
            for index, (picture, kind) in enumerate(zip(generation.pictures, sniffed, strict=True))
        ]
        files = [(picture.data, kind.extension) for picture, kind in zip(generation.pictures, sniffed, strict=True)]
        success = Success(
            finished_at=time.time_ns() // 1_000_000,
            args=job.args,
            images=images,
            webui={"model": generation.model, "sampler": generation.sampler, "version": generation.version},
            simulated=generation.simulated,
        )
        self._records.save(job.user_id, job.type, job.name, attempt, files, _document(claim, success))
        return success

    def discard(self, claim: Claim) -> None:
        """Remove the files of an attempt whose job went to somebody else."""
        self._records.discard(claim.job.user_id, claim.job.type, claim.job.name, claim.attempt)

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
        return Look(state.progress, state.eta or None, idle=state.job_count == 0)

    def interrupt(self, claim: Claim) -> None:
        """Stop the generation of this job if it is the one that runs: an interrupt names no task, it hits whatever runs."""
        try:
            if self._ours_is_active(claim.task_id):
                self._webui.interrupt()
        except WebuiError:
            _LOG.warning("%s could not be interrupted", self.key)

    def _ours_is_active(self, task_id: str | None) -> bool:
        if self._webui.server_state().job_count == 0:
            return False
        task = self._webui.task(task_id) if task_id is not None else None
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
                raise StationDown from error
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
        # A failed extras call leaves this behind until the next job begins (modules/postprocessing.py).
        leftover = not active and state.job == "Upscale" and state.progress >= 1.0
        if state.job_count != 0 and not leftover:
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


def _image(filename: str, picture: Picture, kind: Sniffed) -> dict[str, Any]:
    return {
        "filename": filename,
        "seed": str(picture.seed),
        "width": kind.width,
        "height": kind.height,
        "bytes": len(picture.data),
        "media_type": kind.media_type,
        "infotext": picture.infotext,
    }


def _document(claim: Claim, success: Success) -> dict[str, Any]:
    """The parameter JSON: the job as it will stand in its row, so that the folder alone is a full backup."""
    finished = claim.job._replace(
        status="succeeded",
        finished_at=success.finished_at,
        args=success.args,
        images=tuple(success.images),
        webui=success.webui,
        simulated=success.simulated,
    )
    return {"format": _DOCUMENT_FORMAT} | describe(finished)


def hopeless_demands(demands: dict[int, str], catalogues: dict[str, Catalogue], configured: Sequence[str]) -> list[int]:
    """The demands that no configured WebUI can serve; none while the catalogue of one of them was never seen."""
    if not configured or any(key not in catalogues for key in configured):
        return []
    parsed = {number: Demand.from_json(body) for number, body in demands.items()}
    return [
        number for number, demand in parsed.items() if not any(catalogues[key].serves(demand) for key in configured)
    ]
