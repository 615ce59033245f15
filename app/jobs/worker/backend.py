"""The protocol between the worker and one WebUI: the boundary between the queue and the generation.

The worker drives a :class:`Backend`; :class:`app.gateway.generate.WebuiBackend` implements it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.jobs.leases import Lease
from app.jobs.model import Claim, Failure, Success
from app.jobs.table import Serving
from app.jobs.worker.attempt import Attempt


class NotSent(Exception):
    """The attempt never began: no connection to the WebUI was made, or it answered as it does while it starts.

    ``str()`` says why, for the log.
    """


class AttemptLost(Exception):
    """The POST went out and no answer came; what the WebUI does now is unknown."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class LeaseLost(Exception):
    """The lease had run out before the request was complete, or nobody wanted it any more, so the WebUI never began with it."""


class BackendDown(Exception):
    """The WebUI does not answer. ``str()`` says why, for the log."""


def _done(_seconds: float | None) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a WebUI. ``ok`` says whether it is a result, so that its time tells something about the WebUI's speed.

    ``await_checks`` blocks, at most so many seconds (None: without limit), until the WebUI was asked all that it must be asked
    before it gets another job; it returns whether that is done.
    """

    ok: bool
    content: Any
    await_checks: Callable[[float | None], bool] = _done


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer that is what was asked for, ready to be stored; ``content`` belongs to the backend."""

    content: Any


@dataclass(frozen=True, slots=True)
class Poll:
    """The progress of a WebUI with our task: ``progress`` 0…1, ``eta`` seconds or None; ``idle`` when it works at nothing of ours.

    ``by_task`` is False where the WebUI can't be asked for a task: it then also looks idle while it still loads its model.
    """

    progress: float
    eta: float | None
    idle: bool
    by_task: bool = True


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed in a way that another attempt may not.

    ``counted`` is False for an attempt that does not count towards their limit. ``note`` is kept in the job for later attempts.
    ``elsewhere`` keeps the job away from this WebUI.
    """

    failure: Failure
    one_by_one: bool = False
    counted: bool = True
    note: Mapping[str, Any] | None = None
    elsewhere: bool = False


class Backend(Protocol):
    """One WebUI, as the worker drives it."""

    key: str
    #: The WebUI as the operator named it in the settings, for the log.
    name: str

    # -- what it offers

    def refresh(self) -> bool:
        """Ask the WebUI for its catalogue and keep it; False if that should be repeated soon, because no default model is known.

        :raises BackendDown: it does not answer.
        """

    def outdated(self) -> bool:
        """Whether an answer has shown since the last refresh began that the catalogue has changed."""

    def serving(self, *, fresh: bool = True) -> Serving:
        """The requirements that this WebUI can serve, as of the last refresh; ``fresh`` judges new ones first."""

    def knows(self, claim: Claim) -> bool:
        """Whether :meth:`serving` judged the requirements that the claimed job has.

        If not, requirements have got other numbers, as after a restore of an older dump; the next ``serving(fresh=True)`` reads
        all of them again.
        """

    # -- one attempt

    def prepare(self, attempt: Attempt) -> None:
        """Get everything ready to send this job but its first byte, while its claim is being committed. Returns at once.

        :meth:`generate` releases it; another ``prepare`` or ``generate``, or :meth:`cancel`, drops it.
        """

    def cancel(self) -> None:
        """Drop the prepared request; nothing of it was sent."""

    def generate(self, attempt: Attempt, on_sent: Callable[[], None]) -> Answer:
        """Send the job and wait for the answer; ``on_sent`` is called once, right before the request goes out.

        :raises NotSent, AttemptLost, LeaseLost: there is no answer.
        """

    def check(self, claim: Claim, answer: Answer) -> Checked | Failure | Retry:
        """Decode an answer and prove that it is what was asked for. Writes no file."""

    def store(self, claim: Claim, checked: Checked) -> Success | Failure | Retry:
        """Write the files of a checked answer."""

    def discard(self, claim: Claim) -> None:
        """Remove the files of an attempt whose job went to another worker."""

    # -- asking, stopping, making usable again

    def poll(self, claim: Claim) -> Poll | None:
        """Ask how far the WebUI is with this job; None if it doesn't say."""

    def interrupt(self, claim: Claim) -> bool:
        """Stop the generation of this job if it is the one that runs.

        :returns: False if the interrupt got no answer, and may still arrive.
        """

    def abort(self) -> None:
        """Break the connection on which :meth:`generate` waits."""

    def quiesce(self, task_id: str | None, *, patience: float, stopping: threading.Event) -> bool:
        """Wait up to ``patience`` seconds until the WebUI is idle, interrupting the lost task; whether it is.

        :raises BackendDown: nothing listens there.
        """

    def needs_repair(self) -> bool:
        """Whether some jobs can't be sent there before :meth:`repair` has worked."""

    def repair(self, lease: Lease) -> None:
        """Have the WebUI load another model; blocks while it does.

        :param lease: of the slot, which is held meanwhile with the lease's task id.
        :raises BackendDown: it does not answer.
        :raises AttemptLost: the request went out and no answer came.
        :raises LeaseLost: nothing was sent.
        """
