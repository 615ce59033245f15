"""Jobs in memory: the row as an immutable value, and the small values that the worker passes round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from app.parameters import Type
from app.runtime.jsontext import dumps, loads

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]

#: The reason why a waiting job is not started although a WebUI may be free.
WaitsFor = Literal["paused", "no-worker", "webui-down", "model"]

#: The states of a slot and the healths of its WebUI, as :class:`Slot` has them.
SLOT_STATES: Final = ("clean", "held", "unclean", "quiescing", "suspect")
HEALTHS: Final = ("up", "down", "unknown")
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
UNFINISHED: Final[tuple[Status, ...]] = ("queued", "running")
WAITS_FOR: Final[tuple[WaitsFor, ...]] = get_args(WaitsFor)

#: What has become of a claim's job by a finish: ``deleted`` when a client deleted it while it ran, ``lost`` when the claim did not
#: hold any more.
End = Literal["succeeded", "failed", "cancelled", "deleted", "lost"]


class Identity(NamedTuple):
    """The identity of a job for good, across transactions and processes.

    The sequence number of its row does not: after the database was restored from an older dump, or a replica that lagged behind has
    taken over, the number may belong to another job.
    """

    user_id: str
    type: str
    name: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """A request that passed every check and asks to be accepted.

    ``cost`` is the work that fair queueing charges for it; ``requirements`` the canonical JSON of the names that a WebUI must
    offer; ``created_at`` milliseconds since 1970, UTC.
    """

    user_id: str
    type: Type
    name: str
    created_at: int
    args: dict[str, Any]
    init_image: dict[str, Any] | None
    requirements: str
    cost: float
    #: Seconds from acceptance after which it is cancelled, unless it has ended; None for never.
    cancel_after: float | None = None
    #: The id of the request that it came with; None for a record that is read from the folder.
    request: str | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's Idempotency-Key and the digest of the request that came with it."""

    key: str
    digest: str


class Job(NamedTuple):
    """One row of the job table. Times are milliseconds since 1970, UTC; ``progress`` is 0…1.

    A tuple, and no frozen dataclass, because a page of history makes hundreds: it is built several times faster.
    """

    seq: int
    user_id: str
    type: Type
    name: str
    status: Status
    created_at: int
    started_at: int | None
    finished_at: int | None
    args: dict[str, Any]
    init_image: dict[str, Any] | None
    images: tuple[dict[str, Any], ...]
    webui: dict[str, Any] | None
    simulated: bool
    error_slug: str | None
    error_detail: str | None
    cost: float
    start_tag: float
    #: The number of what a WebUI must offer for it; 0 for a record that was read from the folder, which is never claimed.
    requirements_id: int
    claims: int
    attempts: int
    losses: int
    one_by_one: bool
    owner: str | None
    slot: str | None
    phase: str | None
    claimed_at: float | None
    progress: float | None
    eta: float | None
    progress_at: float | None
    #: What earlier attempts found out, oldest first.
    tried: tuple[dict[str, Any], ...] = ()
    #: The last change that a client can see; see :mod:`app.jobs.revisions`.
    rev: int = 0
    #: When a client, or the deadline, asked for its end; it is never queued or claimed again then. Seconds by the database's clock.
    cancel_at: float | None = None
    deadline: float | None = None
    #: The id of the request that it came with; None from before there was one.
    request: str | None = None

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """The job that a row holds, which begins with the columns named like the fields, in their order."""
        values = list(row[: len(cls._fields)])
        values[_ARGS] = loads(values[_ARGS])
        values[_INIT_IMAGE] = loads(values[_INIT_IMAGE]) if values[_INIT_IMAGE] else None
        values[_IMAGES] = tuple(loads(values[_IMAGES])) if values[_IMAGES] else ()
        values[_WEBUI] = loads(values[_WEBUI]) if values[_WEBUI] else None
        values[_TRIED] = tuple(loads(values[_TRIED])) if values[_TRIED] else ()
        return cls._make(values)

    @property
    def identity(self) -> Identity:
        """The identity of the job."""
        return Identity(self.user_id, self.type, self.name)

    @property
    def finished(self) -> bool:
        """Whether the job will never change any more, but for its deletion."""
        return self.status not in UNFINISHED


# Where the columns stand that hold JSON.
_ARGS, _INIT_IMAGE, _IMAGES, _WEBUI, _TRIED = (
    Job._fields.index(name) for name in ("args", "init_image", "images", "webui", "tried")
)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an unfinished job: ``position`` 1 starts next (None when not queued); ``eta`` seconds until it ends.

    ``waits_for`` is the reason why a waiting job is not started by a free WebUI; its eta is unknown then.
    """

    position: int | None
    eta: float | None
    waits_for: WaitsFor | None = None


#: The place of a job that does not wait, or of which nothing is known.
NOWHERE: Final = Place(None, None)


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's hold on a job: valid while the job's row still shows this owner, this number of the claim and this task.

    ``job`` is the row as of the claim; ``task_id`` the ``force_task_id`` that job and slot have committed. It is random, so it
    tells two claims with the same number apart: a replica that lagged behind may know the job but not its last claim.
    ``leased_at`` is when the lease began, at the latest, by the clock of :mod:`app.jobs.leases`.
    """

    job: Job
    owner: str
    slot: str
    task_id: str
    #: What a WebUI must offer for the job, as canonical JSON. Like a job's, their number holds within one transaction only.
    requirements: str
    leased_at: float

    @property
    def attempt(self) -> int:
        """The number of the claim, which file names carry."""
        return self.job.claims


@dataclass(frozen=True, slots=True)
class Slot:
    """One WebUI's row. ``state``: clean, held, unclean, quiescing or suspect; ``health``: up, down or unknown."""

    key: str
    state: str
    owner: str | None
    task_id: str | None
    health: str


@dataclass(frozen=True, slots=True)
class Success:
    """The values that a finished attempt leaves in the row."""

    finished_at: int
    args: dict[str, Any]
    images: list[dict[str, Any]]
    webui: dict[str, Any]
    simulated: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why an attempt, or at last the job, failed: a slug of the error table and a sentence that may be shown."""

    slug: str
    detail: str


def to_json(value: Any) -> str:
    """JSON as the rows hold it: compact, readable Unicode."""
    return dumps(value).decode()
