"""One WebUI as the worker drives it: what it offers, its generations, and what is needed to keep it usable.

:class:`WebuiBackend` puts together the parts: :mod:`app.gateway.served` (what it offers), :mod:`app.gateway.sending` (the
generation), :mod:`app.gateway.results` (what becomes of an answer), :mod:`app.gateway.memory` (what it has loaded) and
:mod:`app.webui.driver` (asking, stopping, waiting until it is idle).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from app.config import Config
from app.gateway.memory import WebuiMemory
from app.gateway.offering import Offering
from app.gateway.results import CheckedReplies, Replies, Results, Tolerance
from app.gateway.sending import Sending
from app.gateway.served import Served
from app.jobs.errors import DatabaseUnavailable
from app.jobs.leases import Lease
from app.jobs.model import Claim, Failure, Success
from app.jobs.table import Serving
from app.jobs.tables import Tables
from app.jobs.worker.attempt import Attempt
from app.jobs.worker.backend import Answer, AttemptLost, BackendDown, Checked, LeaseLost, Poll, Retry
from app.records.store import RecordStore
from app.webui import bounds, payloads
from app.webui.answers import made_with
from app.webui.catalogue import Catalogue, Requirements
from app.webui.client import Webui
from app.webui.doubts import is_hopeless
from app.webui.driver import Driver
from app.webui.errors import AnswerTooLarge, Unreachable, WebuiError, Withheld, reason
from app.webui.pace import Pace

_LOG = logging.getLogger(__name__)


class WebuiBackend:
    """One WebUI, as the worker drives it (see :class:`app.jobs.worker.backend.Backend`)."""

    def __init__(self, webui: Webui, tables: Tables, records: RecordStore, offering: Offering, config: Config) -> None:
        self.key = webui.key
        self.name = webui.name
        self._webui = webui
        self._offering = offering
        self._memory = WebuiMemory(webui, tables.slots)
        self._served = Served(webui, tables.jobs, tables.catalogues, offering, self._memory)
        pace = Pace()
        self._sending = Sending(webui, records, offering, self._served, self._memory, pace)
        self._results = Results(self.key, records, offering, Tolerance.of(config), pace, self._memory.overrides)
        self._driver = Driver(webui, config.job_timeout)

    # -- what it offers ----------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Ask the WebUI what it offers and keep that; False if it is to be asked again soon: while no default model is known, or
        only a restart can make the WebUI whole again.

        :raises BackendDown: it does not answer.
        """
        shown = self._memory.shown
        try:
            catalogue = self._served.refresh()
        except WebuiError as error:
            self._memory.note_absence(error)
            raise BackendDown(reason(error)) from error
        if not self._sending.busy and shown == self._memory.shown:
            self._memory.learn_loaded(catalogue)
        return self._offering.has_default_model() and not self._memory.doubt.hopeless

    def outdated(self) -> bool:
        """Whether an answer has shown since the last refresh began that the catalogue has changed."""
        return self._served.outdated.is_set()

    def serving(self, *, fresh: bool = True) -> Serving:
        """The requirements that this WebUI can serve; ``fresh`` reads what is new in the database first."""
        return self._served.serving(fresh=fresh)

    def knows(self, claim: Claim) -> bool:
        """Whether the claimed job's requirements are those known by their number; if not, all are read again."""
        return self._served.knows(claim)

    # -- one attempt -------------------------------------------------------------------------------------------------

    def prepare(self, attempt: Attempt) -> None:
        """Get everything ready to send this job but its first byte; :meth:`generate` releases it."""
        self._sending.prepare(attempt)

    def cancel(self) -> None:
        """Drop the prepared request; nothing of it was sent."""
        self._sending.cancel()

    def generate(self, attempt: Attempt, on_sent: Callable[[], None]) -> Answer:
        """Send the job and wait for the answer; for what is raised see :meth:`Sending.generate`."""
        return self._sending.generate(attempt, on_sent)

    def check(self, claim: Claim, answer: Answer) -> Checked | Failure | Retry:
        """Decode an answer, prove that it is what was asked for, and learn from it what the WebUI has loaded."""
        outcome = self._results.check(claim, answer.content)
        if outcome.shared:
            self._memory.seen_shared()
        if outcome.wrong_model:
            self._served.outdated.set()
        try:
            self._learn_loaded(outcome.made_with, answer.content, wrong_model=outcome.wrong_model)
        except DatabaseUnavailable:
            # No reason to lose the picture: the doubt stands until the next one lifts it, or a repair.
            _LOG.warning("that the model of WebUI %s is whole could not be stored", self.name)
        return outcome.verdict

    def _learn_loaded(self, checkpoint: str | None, replies: Replies, *, wrong_model: bool) -> None:
        doubt = self._memory.doubt
        if checkpoint is not None:
            doubt.loads(checkpoint, replies.doubt)
        if wrong_model and replies.switch_noted:
            # The WebUI ignored what it was asked for, so it loaded nothing, and nothing failed.
            doubt.withdraw(replies.doubt)

    def store(self, claim: Claim, checked: Checked) -> Success | Failure | Retry:
        """Write the images and the parameter JSON."""
        content: CheckedReplies = checked.content
        return self._results.store(claim, content)

    def discard(self, claim: Claim) -> None:
        """Remove the files of an attempt whose job went to another worker."""
        self._results.discard(claim)

    # -- asking, stopping, making usable again -----------------------------------------------------------------------

    def poll(self, claim: Claim) -> Poll | None:
        """Ask how far the WebUI is with this job; None if it doesn't say."""
        progress = self._driver.poll(claim.task_id, by_task=self._served.catalogue.task_ids)
        return None if progress is None else Poll(progress.progress, progress.eta, progress.idle, progress.by_task)

    def interrupt(self, claim: Claim) -> bool:
        """Stop the generation of this job if it is the one that runs; see :meth:`Driver.interrupt`."""
        if self._memory.is_shared and not self._served.catalogue.task_ids:
            # What runs there may be somebody else's, and nothing tells.
            return True
        return self._driver.interrupt(claim.task_id)

    def abort(self) -> None:
        """Break the connection of the generation in flight."""
        self._webui.abort()

    def quiesce(self, task_id: str | None, *, patience: float, stopping: threading.Event) -> bool:
        """Wait until the WebUI is idle; see :meth:`Driver.quiesce`.

        :raises BackendDown: nobody listens there.
        """
        try:
            return self._driver.quiesce(task_id, patience=patience, stopping=stopping)
        except Unreachable as error:
            raise BackendDown(reason(error)) from error

    def needs_repair(self) -> bool:
        """Whether jobs for the model that may be broken must wait until another one was loaded."""
        return self._memory.needs_repair()

    def repair(self, lease: Lease) -> None:
        """Have the WebUI load another model, by the smallest picture there is, which is thrown away.

        :raises BackendDown: it does not answer.
        :raises AttemptLost: the request went out and no answer came.
        :raises LeaseLost: the lease had run out before the request was complete.
        """
        memory = self._memory
        model = memory.model_to_load(self._served.catalogue.models)
        if model is None:
            # From now on it is asked often, so that the restart is seen.
            self._served.outdated.set()
            return
        number, limits = memory.doubt.number, bounds.OF_PROBE
        probe = payloads.probe(model, lease.task_id)
        try:
            reply = self._webui.generate("txt2img", probe, limits.size, may_complete=lease.held)
        except AnswerTooLarge:
            memory.doubt.fails(model.checkpoint)
            return
        except Unreachable as error:
            memory.note_absence(error)
            raise BackendDown(reason(error)) from error
        except Withheld as error:
            raise LeaseLost from error
        except WebuiError as error:
            raise AttemptLost(Failure(error.slug, str(error))) from error
        if made_with(reply, limits, model):
            memory.made_with(model)
            memory.doubt.loads(model.checkpoint, number)
            _LOG.info("WebUI %s has loaded another model and is whole again", self.name)
        else:
            memory.doubt.fails(model.checkpoint)


def hopeless_requirements(
    requirement_sets: dict[int, str], catalogues: dict[str, Catalogue], configured: Sequence[str]
) -> list[int]:
    """The requirements that no configured WebUI can serve; none while the catalogue of one of them was never seen."""
    if not configured or any(key not in catalogues for key in configured):
        return []
    parsed = {number: Requirements.from_json(body) for number, body in requirement_sets.items()}
    return [
        number
        for number, requirements in parsed.items()
        if not any(catalogues[key].serves(requirements) for key in configured)
    ]


def serving_webuis(requirements: str, catalogues: Mapping[str, Catalogue], configured: Iterable[str]) -> list[str]:
    """The configured WebUIs that offer everything that a job with these requirements (canonical JSON) needs."""
    parsed = Requirements.from_json(requirements)
    return [key for key in configured if key in catalogues and catalogues[key].serves(parsed)]


def restarts_needed(doubts: Mapping[str, str]) -> list[str]:
    """Sentences that name the WebUIs whose loaded model stays broken until they are restarted."""
    return [
        f"WebUI {key} must be restarted: its loaded model is broken, and no other one can be loaded."
        for key, doubt in doubts.items()
        if is_hopeless(doubt)
    ]
