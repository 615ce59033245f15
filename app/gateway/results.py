"""The fate of a WebUI's answer: pictures and parameter JSON on disk, or the reason why the attempt failed.

:meth:`Results.check` reads the answer and proves that it is what was asked for, :meth:`Results.store` writes the files. The worker
commits the verdict.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from app.config import Config
from app.gateway.offering import Offering
from app.jobs.model import Claim, Failure, Job, Success
from app.jobs.view import describe
from app.jobs.worker.backend import Checked, Retry
from app.parameters import upscales
from app.records.errors import BadImage, RecordsError
from app.records.images import Sniffed, sniff
from app.records.layout import DOCUMENT_FORMAT, image_filename
from app.records.store import RecordStore
from app.webui.answers import Generation, Picture, read_generation, read_upscaled
from app.webui.bounds import AnswerBounds
from app.webui.catalogue import Requirements
from app.webui.errors import (
    Ambiguous,
    BadAnswer,
    Cannot,
    Interrupted,
    ModelVanished,
    NoLongerAvailable,
    OptionIgnored,
    OutOfMemory,
    WebuiError,
    WebuiFailed,
    WrongModel,
    WrongValues,
)
from app.webui.exchange import Reply
from app.webui.handoff import Circumstances, InterruptQuery
from app.webui.models import Model
from app.webui.overrides import COMMENT, PROMPT_COMMENTS, OptionOverrides
from app.webui.pace import Pace

_LOG = logging.getLogger(__name__)

#: WebUIs that are asked for a job that each of them says it can't make.
_MOST_REFUSALS: Final = 3
#: What the notes in ``Job.tried`` are about.
_AMBIGUOUS, _WRONG_VALUES, _CANNOT = "ambiguous", "wrong values", "cannot"
_ANY: Final = "any"
#: The args that change nothing about how long a generation takes.
_TIMELESS: Final = frozenset({"id", "prompt", "negative_prompt", "seed", "style", "cfg_scale", "resize_mode"})


@dataclass(frozen=True, slots=True)
class Replies:
    """The answers of a WebUI to one job: the generation, and for upscaled img2img the extras.

    ``options`` are the overridden options as they were sent, ``prompt`` the prompt; ``unexplained`` says that
    ``enable_prompt_comments`` was left out because the error before told nothing. ``switch_noted`` says that a doubt about the
    model that was loaded before was noted for this generation, ``doubt`` is :attr:`ModelDoubt.number` as of its sending.
    ``stopped`` says that somebody interrupted the upscaling.
    """

    interrupt_query: InterruptQuery
    limits: AnswerBounds
    model: Model
    options: Mapping[str, Any]
    prompt: str
    generation: Reply
    upscaled: tuple[Reply, AnswerBounds] | None = None
    unexplained: bool = False
    switch_noted: bool = False
    doubt: int = 0
    stopped: bool = False

    @property
    def last(self) -> Reply:
        """The answer that came last."""
        return self.generation if self.upscaled is None else self.upscaled[0]


@dataclass(frozen=True, slots=True)
class CheckedReplies:
    """A generation that is what was asked for, with what each of its pictures is."""

    generation: Generation
    sniffed: tuple[Sniffed, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on an answer, and what it showed of the WebUI.

    ``made_with`` is the checkpoint that made the pictures; ``shared`` says that somebody else's task was seen at work.
    """

    verdict: Checked | Failure | Retry
    made_with: str | None = None
    wrong_model: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The values of an answer that may differ from those that were asked for, because extensions of the WebUI change them."""

    any_size: bool
    any_seed: bool

    @classmethod
    def of(cls, config: Config) -> Tolerance:
        """As ``SDG_ACCEPT_SIZES`` and ``SDG_ACCEPT_SEEDS`` say."""
        return cls(config.accept_sizes == _ANY, config.accept_seeds == _ANY)


def kind_of(job: Job) -> Hashable:
    """The kind of a generation: those of one kind should take the same time on one WebUI."""
    fields = frozenset((name, value) for name, value in job.args.items() if name not in _TIMELESS)
    # A cfg_scale of 1 halves the work.
    return job.type, job.one_by_one, job.args["cfg_scale"] == 1, fields


class Results:
    """Judges and stores the answers of one WebUI, whose slot has the key ``slot``."""

    def __init__(
        self,
        slot: str,
        records: RecordStore,
        offering: Offering,
        tolerance: Tolerance,
        pace: Pace,
        overrides: OptionOverrides,
    ) -> None:
        self._slot = slot
        self._records = records
        self._offering = offering
        self._tolerance = tolerance
        self._pace = pace
        self._overrides = overrides

    def check(self, claim: Claim, replies: Replies | WebuiError | RecordsError) -> Outcome:
        """Read an answer and prove that it is what was asked for; the verdict's content is a :class:`CheckedReplies`."""
        if isinstance(replies, WebuiError | RecordsError):
            return Outcome(self._verdict_on(replies, claim))
        made_with: str | None = None
        try:
            generation = self._read(claim.job, replies)
            made_with = replies.model.checkpoint
            self._check_prompt(replies, generation)
            self._check_interruption(claim.job, replies.interrupt_query.result(), generation, stopped=replies.stopped)
            checked = Checked(
                self._sniffed(claim.job, replace(generation, pictures=self._pictures(replies, generation)))
            )
        except (WebuiError, RecordsError) as error:
            return Outcome(
                self._verdict_on(error, claim), made_with, isinstance(error, WrongModel), _is_shared(replies)
            )
        return Outcome(checked, made_with, shared=_is_shared(replies))

    # -- proving -----------------------------------------------------------------------------------------------------

    def _read(self, job: Job, replies: Replies) -> Generation:
        first_seed = None if self._tolerance.any_seed else int(job.args["seed"])
        return read_generation(
            replies.generation,
            replies.limits,
            expected=job.args["batch_size"],
            model=replies.model,
            first_seed=first_seed,
        )

    def _check_prompt(self, replies: Replies, generation: Generation) -> None:
        """Check that the prompt was kept whole, for a generation that did not override ``enable_prompt_comments``.

        :raises OptionIgnored: it was not, since the WebUI has got to know the option by now.
        :raises WebuiFailed: it was not, so the error that said nothing was not about the option.
        """
        if PROMPT_COMMENTS in replies.options:
            return
        if generation.prompt is not None and generation.prompt.count(COMMENT) < replies.prompt.count(COMMENT):
            self._overrides.is_known(PROMPT_COMMENTS)
            raise WebuiFailed if replies.unexplained else OptionIgnored
        if replies.unexplained:
            self._overrides.seems_unknown(PROMPT_COMMENTS)

    def _check_interruption(self, job: Job, ended: Circumstances, generation: Generation, *, stopped: bool) -> None:
        """See whether somebody stopped the generation, which answers 200 all the same; remember how long a whole one took.

        :raises Interrupted: it was stopped.
        :raises Ambiguous: it may have been, and nobody can tell; only the time can, at the next try.
        """
        if ended.flagged or stopped:
            raise Interrupted
        kind = kind_of(job)
        if self._pace.is_too_fast(kind, ended.seconds):
            if any(note["why"] == _AMBIGUOUS for note in job.tried):
                raise Interrupted
            if ended.another_began(generation.job_timestamp):
                raise Ambiguous
        self._pace.add(kind, ended.seconds)

    def _pictures(self, replies: Replies, generation: Generation) -> tuple[Picture, ...]:
        if replies.upscaled is None:
            return generation.pictures
        return read_upscaled(*replies.upscaled, generation.pictures)

    def _sniffed(self, job: Job, generation: Generation) -> CheckedReplies:
        sniffed = tuple(sniff(picture.data) for picture in generation.pictures)
        for kind in sniffed:
            self._check_size(job, kind)
        return CheckedReplies(generation, sniffed)

    def _check_size(self, job: Job, kind: Sniffed) -> None:
        if not self._tolerance.any_size and not _fits(job.args, kind.width, kind.height):
            asked = _size_asked_for(job.args)
            raise WrongValues("size", f"{asked[0]}×{asked[1]}", f"{kind.width}×{kind.height}")

    # -- the verdict -------------------------------------------------------------------------------------------------

    def _verdict_on(self, error: WebuiError | RecordsError, claim: Claim) -> Failure | Retry:
        """The verdict on a failed attempt."""
        if isinstance(error, BadImage):
            error = BadAnswer("The WebUI answered with a broken picture.")
        if isinstance(error, RecordsError):
            return Failure(error.slug, str(error))
        if isinstance(error, Cannot):
            return self._cannot(error, claim)
        if isinstance(error, WrongValues):
            return _wrong_values(error, claim.job)
        if isinstance(error, ModelVanished):
            # Nothing was sent, and this WebUI does not get the job again: its catalogue has been corrected.
            return Retry(_failure(error), counted=False)
        if isinstance(error, Ambiguous):
            return Retry(_failure(error), counted=False, note={"why": _AMBIGUOUS})
        # Another WebUI may still have a name that this one has lost; when none has, the upkeep fails the job.
        again = error.retryable or isinstance(error, OutOfMemory | NoLongerAvailable)
        return Retry(_failure(error), one_by_one=isinstance(error, OutOfMemory)) if again else _failure(error)

    def _cannot(self, error: Cannot, claim: Claim) -> Failure | Retry:
        """Once on each other WebUI that is up and serves it: one broken GPU must not fail a job that another can make."""
        refusing = {note["slot"] for note in claim.job.tried if note["why"] == _CANNOT} | {self._slot}
        catalogues, requirements = self._offering.catalogues(), Requirements.from_json(claim.requirements)
        others = [
            key
            for key in self._offering.webuis_up() - refusing
            if key in catalogues and catalogues[key].serves(requirements)
        ]
        if not others or len(refusing) >= _MOST_REFUSALS:
            return _failure(error)
        note = {"why": _CANNOT, "slot": self._slot, "detail": str(error)}
        return Retry(_failure(error), note=note, elsewhere=True)

    def _discard_quietly(self, claim: Claim) -> None:
        """Make room again: of a record that could not be stored whole, nothing is kept."""
        try:
            self.discard(claim)
        except RecordsError:
            _LOG.warning("files of job %s were left for the sweep", claim.job.name)

    def discard(self, claim: Claim) -> None:
        """Remove the files of an attempt whose job went to somebody else."""
        job = claim.job
        self._records.discard(job.user_id, job.type, job.name, claim.attempt, images=job.args["batch_size"])

    # -- writing -----------------------------------------------------------------------------------------------------

    def store(self, claim: Claim, checked: CheckedReplies) -> Success | Failure | Retry:
        """Write the images and the parameter JSON of a checked answer."""
        try:
            return self._write(claim, checked)
        except RecordsError as error:
            self._discard_quietly(claim)
            return self._verdict_on(error, claim)

    def _write(self, claim: Claim, checked: CheckedReplies) -> Success:
        job, attempt, generation = claim.job, claim.attempt, checked.generation
        pictures = list(zip(generation.pictures, checked.sniffed, strict=True))
        images = [
            _image(image_filename(job.name, attempt, index, kind.extension), picture, kind)
            for index, (picture, kind) in enumerate(pictures)
        ]
        files = [(image["filename"], picture.data) for image, picture in zip(images, generation.pictures, strict=True)]
        success = Success(
            finished_at=time.time_ns() // 1_000_000,
            args=job.args,
            images=images,
            webui={"model": generation.model, "sampler": generation.sampler, "version": generation.version},
            simulated=generation.simulated,
        )
        self._records.save(job.user_id, job.type, job.name, attempt, files, _document(claim, success))
        return success


def refused_everywhere(job: Job, refusing: Iterable[str], serving: Iterable[str]) -> Failure | None:
    """The failure of a queued job that no WebUI is left for: every one that serves it said that it can't make it."""
    left = set(serving) - set(refusing)
    last = next((note for note in reversed(job.tried) if note["why"] == _CANNOT), None)
    return None if left or last is None else Failure(Cannot.slug, last["detail"])


def _is_shared(replies: Replies) -> bool:
    state = replies.interrupt_query.result().state
    return state is not None and state.busy


def _failure(error: WebuiError) -> Failure:
    return Failure(error.slug, str(error))


def _wrong_values(error: WrongValues, job: Job) -> Failure | Retry:
    """The same wrong values once more are no accident."""
    note = {"why": _WRONG_VALUES, "received": error.received}
    return _failure(error) if note in job.tried else Retry(_failure(error), note=note)


def _scale(args: Mapping[str, Any]) -> float:
    return float(args["hr_scale"]) if upscales(args) else 1.0


def _size_asked_for(args: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height in pixels with the upscaling."""
    scale = _scale(args)
    return int(args["width"] * scale), int(args["height"] * scale)


def _fits(args: Mapping[str, Any], width: int, height: int) -> bool:
    """Whether a picture has the size that was asked for, as WebUIs round it: down to 8, for some models to 16, at each step."""
    scale = _scale(args)
    return any(
        (width, height)
        == tuple(_rounded(int(_rounded(args[side], step) * scale), last) for side in ("width", "height"))
        for step in (1, 8, 16)
        for last in ((step,) if scale == 1.0 else (1, 8, 16))
    )


def _rounded(pixels: int, step: int) -> int:
    return pixels // step * step


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
    return {"format": DOCUMENT_FORMAT} | describe(finished)
