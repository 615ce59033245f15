"""What the worker and one WebUI have to say to each other: the wall between the queue and the generation.

The worker drives a :class:`Station`; the use case implements it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.jobs.model import Claim, Failure, Success
from app.jobs.table import Serving


class NotSent(Exception):
    """The attempt never began: no connection to the WebUI was made, or it answered as it does while it starts.

    ``str()`` says why, for the log.
    """


class AttemptLost(Exception):
    """The POST went out and no answer came; what the WebUI does now is unknown."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class ClaimLost(Exception):
    """The job's row does not show this claim any more, so nothing of its answer is to be written."""


class LeaseLost(Exception):
    """The lease had run out before the request was complete, so the WebUI never began with it."""


class StationDown(Exception):
    """The WebUI does not answer. ``str()`` says why, for the log."""


def _at_once(_seconds: float | None) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a WebUI. ``ok`` says whether it is a result, whose time tells something about its speed."""

    ok: bool
    content: Any
    #: Waits, so many seconds or for ever, until the WebUI has told all that it must be asked before anybody sends it another
    #: job; whether it has.
    settled: Callable[[float | None], bool] = _at_once


@dataclass(frozen=True, slots=True)
class Look:
    """How far a WebUI is with our task: ``progress`` 0…1, ``eta`` seconds or None; ``idle`` when it works at nothing of ours.

    ``by_task`` is False where the WebUI can't be asked for a task: it then also looks idle while it still loads its model.
    """

    progress: float
    eta: float | None
    idle: bool
    by_task: bool = True


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed in a way that another one may mend.

    ``counted`` is False for an attempt that does not count towards their limit. ``note`` is kept in the job for the attempts to
    come. ``elsewhere`` keeps the job away from this WebUI.
    """

    failure: Failure
    one_by_one: bool = False
    counted: bool = True
    note: Mapping[str, Any] | None = None
    elsewhere: bool = False


class Station(Protocol):
    """One WebUI, as the worker drives it."""

    key: str
    #: The WebUI as the operator named it in the settings, for the log.
    name: str

    def refresh(self) -> bool:
        """Ask what the WebUI offers and keep it; False when that should soon be asked again, because no default model is known.

        :raises StationDown: it does not answer.
        """

    def outdated(self) -> bool:
        """Whether an answer has shown since the last refresh began that what the WebUI offers has changed."""

    def serving(self, *, fresh: bool = True) -> Serving:
        """The demands that this WebUI can be asked for, as of the last refresh; ``fresh`` judges new ones first."""

    def knows(self, claim: Claim) -> bool:
        """Whether :meth:`serving` judged the very demand that the claimed job has.

        If not, demands have got other numbers, as after a restore of an older dump: the next fresh look judges all of them anew.
        """

    def settle(self, task_id: str | None, *, patience: float, stopping: threading.Event) -> bool:
        """Wait up to ``patience`` seconds until the WebUI is idle, interrupting the lost task; whether it is.

        :raises StationDown: nothing listens there.
        """

    def hold(self, claim: Claim) -> None:
        """Get everything ready to send this job but its first byte, while its claim is being committed.

        :meth:`generate` lets it go; another one to hold or to generate, or :meth:`call_off`, drops it. Returns at once.
        """

    def call_off(self) -> None:
        """Drop what is held; nothing of it was sent."""

    def generate(self, claim: Claim, on_sending: Callable[[], None]) -> Answer:
        """Send the job and wait for the answer; ``on_sending`` is called when it is on its way.

        :raises NotSent, AttemptLost, LeaseLost: there is no answer.
        """

    def needs_repair(self) -> bool:
        """Whether some jobs can't be sent there before :meth:`repair` has worked."""

    def repair(self, task_id: str, leased_at: float) -> None:
        """Have the WebUI load another model; blocks while it does. The slot is held meanwhile, with this task id.

        :param leased_at: when that lease began, by the clock of :mod:`app.jobs.leases`.
        :raises StationDown: it does not answer.
        :raises AttemptLost: the request went out and no answer came.
        :raises LeaseLost: nothing was sent.
        """

    def look(self, claim: Claim) -> Look | None:
        """Ask how far the WebUI is; None when it doesn't say."""

    def interrupt(self, claim: Claim) -> None:
        """Stop the generation of this job if it is the one that runs."""

    def abort(self) -> None:
        """Break the connection on which :meth:`generate` waits."""

    def store(self, claim: Claim, answer: Answer, before_writing: Callable[[], object]) -> Success | Failure | Retry:
        """Decode an answer and write its files; ``before_writing`` is called in between.

        :raises ClaimLost: from ``before_writing``; then no file was written.
        """

    def discard(self, claim: Claim) -> None:
        """Remove the files of an attempt whose job went to somebody else."""
