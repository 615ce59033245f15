"""The queue position and eta of unfinished jobs, and the seconds of Retry-After.

The eta of a waiting job is found by playing the queue: the waiting jobs, in their real order, go to the WebUI that is free first
among those that are up and offer what the job needs, each at that WebUI's own speed with the job's model
(:mod:`app.jobs.speeds`). It begins with what runs now: the WebUI's own estimate, else the measured speed less the time that has
passed. Nothing is known of jobs that are not accepted yet: one of a user who has few may come first.

Playing costs a microsecond or two for each job. In a queue of more than :data:`PLAYED` jobs the place of a single job is reckoned
from sums, which are ranges of one index; the places of many jobs are always played, in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, bindparam, func, or_, select, union_all

from app.jobs.model import NOWHERE, Identity, Job, Place, WaitsFor
from app.jobs.slots import ALIVE_SECONDS
from app.jobs.speeds import Speeds, model_of
from app.jobs.sql import statements as sql
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import CLOCK, JOBS, QUEUED, REQUIREMENTS, RUNNING, SLOTS, WORKERS, db_now

#: Unfinished jobs up to which the queue is played for the place of one of them.
PLAYED: Final = 200

#: The WebUIs (slot keys) that offer what requirements (canonical JSON) need; None where that is not known, and any of them may.
Offers = Callable[[str], Collection[str] | None]

#: Retry-After when nothing was measured yet, and its bounds otherwise, seconds.
_UNKNOWN_WAIT: Final = 5.0
_SHORTEST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 3600.0

# Built once; see app/jobs/sql/statements.py.
#: The state of the queue, in one row for each WebUI that is up, or in one without a WebUI.
_STATE: Final = Prepared(
    select(
        db_now().label("now"),
        CLOCK.c.unfinished,
        sql.IS_PAUSED.label("paused"),
        # A heartbeat from the future is one from before the clock was set back.
        select(WORKERS.c.owner)
        .where(WORKERS.c.heartbeat_at.between(db_now() - ALIVE_SECONDS, db_now() + 1.0))
        .exists()
        .label("worker_alive"),
        SLOTS.c.key,
    )
    .select_from(CLOCK.outerjoin(SLOTS, SLOTS.c.health == "up"))
    .order_by(SLOTS.c.key)
)
_SHOWN: Final = (
    *("seq", "user_id", "type", "name", "created_at"),
    *("slot", "phase", "cost", "claimed_at", "progress", "eta", "progress_at"),
)
_RUNNING: Final = Prepared(
    select(*(JOBS.c[name] for name in _SHOWN), REQUIREMENTS.c.body)
    .select_from(JOBS.outerjoin(REQUIREMENTS, REQUIREMENTS.c.id == JOBS.c.requirements_id))
    .where(JOBS.c.status == RUNNING)
)
_WAITING: Final = (JOBS.c.seq, JOBS.c.start_tag, JOBS.c.cost, JOBS.c.requirements_id)
_SUMS: Final[Select[Any]] = select(func.count(), func.coalesce(func.sum(JOBS.c.cost), 0.0)).where(
    JOBS.c.status == QUEUED
)
#: What waits before a job, in two rows. Each is a range of the index and nothing else: comparing (start_tag, seq) as a pair, SQLite
#: looks at the pair of every entry once more (1.2 ms for 10,000 entries instead of 0.8; PostgreSQL takes the same for both).
_AHEAD: Final = Prepared(
    union_all(
        _SUMS.where(JOBS.c.start_tag < bindparam("p_tag")),
        _SUMS.where(JOBS.c.start_tag == bindparam("p_tag"), JOBS.c.seq < bindparam("p_seq")),
    )
)
#: The queue in its order, up to one of its jobs.
_QUEUE: Final = Prepared(
    select(*_WAITING)
    .where(
        JOBS.c.status == QUEUED,
        JOBS.c.start_tag <= bindparam("p_tag"),
        or_(JOBS.c.start_tag < bindparam("p_tag"), JOBS.c.seq <= bindparam("p_seq")),
    )
    .order_by(JOBS.c.start_tag, JOBS.c.seq)
)
#: What the jobs of the queue need, each distinct need once.
_NEEDS: Final = Prepared(
    select(REQUIREMENTS.c.id, REQUIREMENTS.c.body).where(
        REQUIREMENTS.c.id.in_(select(JOBS.c.requirements_id).where(JOBS.c.status == QUEUED))
    )
)
_NEED: Final = Prepared(select(REQUIREMENTS.c.body).where(REQUIREMENTS.c.id == bindparam("p_id")))
_FIRST_ONES: Final[Select[Any]] = select(*_WAITING).where(JOBS.c.status == QUEUED).limit(1)
_FIRST: Final = Prepared(_FIRST_ONES.order_by(JOBS.c.start_tag, JOBS.c.seq))
#: Within a user first in is first out.
_FIRST_OF_USER: Final = Prepared(_FIRST_ONES.where(JOBS.c.user_id == bindparam("p_user")).order_by(JOBS.c.seq))


class Waiting(NamedTuple):
    """A waiting job as the queue orders it."""

    seq: int
    start_tag: float
    cost: float
    requirements_id: int

    @classmethod
    def of(cls, job: Job | Any) -> Waiting:
        """That of a job, or of a row with these columns."""
        return cls(job.seq, job.start_tag, job.cost, job.requirements_id)


class Outlook(NamedTuple):
    """All that the places of the same waiting jobs depend on as long as no job changes.

    ``free_at`` is when each WebUI that is up and busy will be free, by the database's clock; None for an idle one.
    """

    paused: bool
    worker_alive: bool
    free_at: dict[str, float | None]

    def resembles(self, other: Outlook, seconds: float) -> bool:
        """Whether it is the same, give or take so many seconds."""
        mine, others = self.free_at, other.free_at
        return (
            self[:2] == other[:2]
            and mine.keys() == others.keys()
            and all(_is_near(at, others[key], seconds) for key, at in mine.items())
        )


def _is_near(one: float | None, other: float | None, seconds: float) -> bool:
    return one == other if one is None or other is None else abs(one - other) <= seconds


class Snapshot:
    """The queue and the WebUIs at one moment: how long what runs will take, and which WebUI makes what how fast.

    :param offers: which WebUIs offer what a job needs; None: all of them.
    """

    def __init__(self, connection: Connection, offers: Offers | None = None) -> None:
        states = _STATE.all(connection)
        self.now = float(states[0].now)
        self.unfinished = int(states[0].unfinished)
        self.paused = bool(states[0].paused)
        #: The rows of the jobs that run.
        self.running = _RUNNING.all(connection)
        self._worker_alive = bool(states[0].worker_alive)
        self._webuis = [row.key for row in states if row.key is not None]
        self._offers = offers
        self._speeds = Speeds.read(connection)
        self._speeds_for: dict[str | None, list[tuple[str, float]] | None] = {}

    def seconds_left(self, row: Any) -> float | None:
        """Seconds until a running job ends, by the WebUI's own estimate, else by the measured speed; None when unknown."""
        if row.phase == "storing":
            return 0.0
        if row.eta is not None and row.progress_at is not None:
            return self._less(row.eta, row.progress_at)
        speed = self._speeds.of(row.slot, model_of(row.body or "{}"))
        if speed is None or row.claimed_at is None:
            return None
        return self._less(row.cost * speed, row.claimed_at)

    def _less(self, seconds: float, since: float) -> float:
        """These seconds less the time that has passed since then, which is none where the clock was set back meanwhile."""
        return max(seconds - max(self.now - since, 0.0), 0.0)

    def ends(self) -> dict[Identity, float | None]:
        """Seconds until each running job ends."""
        return {Identity(row.user_id, row.type, row.name): self.seconds_left(row) for row in self.running}

    def free(self) -> dict[str, float]:
        """Seconds until each WebUI that is up has answered what runs there."""
        busy = {row.slot: self.seconds_left(row) or 0.0 for row in self.running if row.phase == "generating"}
        return {key: busy.get(key, 0.0) for key in self._webuis}

    def outlook(self) -> Outlook:
        """What the places depend on besides the waiting jobs."""
        busy = {row.slot for row in self.running if row.phase == "generating"}
        free_at = {key: self.now + seconds if key in busy else None for key, seconds in self.free().items()}
        return Outlook(self.paused, self._worker_alive, free_at)

    def speeds_for(self, need: str | None) -> list[tuple[str, float]] | None:
        """The WebUIs that may make a job with these requirements (None: any job), with their seconds for a unit of cost.

        Empty where the job waits for something (:meth:`waits_for`); None when nothing was measured yet.
        """
        if need not in self._speeds_for:
            self._speeds_for[need] = self._find_speeds(need)
        return self._speeds_for[need]

    def _find_speeds(self, need: str | None) -> list[tuple[str, float]] | None:
        model = None if need is None else model_of(need)
        found: list[tuple[str, float]] = []
        for key in self._serving(need) if self.waits_for(need) is None else ():
            speed = self._speeds.of(key, model)
            if speed is None:
                return None
            found.append((key, speed))
        return found

    def _serving(self, need: str | None) -> list[str]:
        offering = None if need is None or self._offers is None else self._offers(need)
        return [key for key in self._webuis if offering is None or key in offering]

    def waits_for(self, need: str | None) -> WaitsFor | None:
        """The reason why a job with these requirements (None: any job) would not be started by a free WebUI."""
        if self.paused:
            return "paused"
        if not self._worker_alive:
            return "no-worker"
        if not self._webuis:
            return "webui-down"
        return None if self._serving(need) else "model"


class Played(NamedTuple):
    """The places of the wanted jobs by their numbers, and the seconds until the last played job ends, None when unknown."""

    places: dict[int, Place]
    seconds: float | None


def play(connection: Connection, snapshot: Snapshot, wanted: Iterable[Waiting], *, whole: bool = False) -> Played:
    """Play the queue up to the last wanted job, or the whole of it."""
    jobs = {job.seq: job for job in wanted}
    if not jobs and not whole:
        return Played({}, None)
    tag, last = (math.inf, 0) if whole else max((job.start_tag, job.seq) for job in jobs.values())
    needs = {row.id: row.body for row in _NEEDS.all(connection)}
    webuis = {number: snapshot.speeds_for(need) for number, need in needs.items()}
    free = snapshot.free()
    places: dict[int, Place] = {}
    ends = [snapshot.seconds_left(row) for row in snapshot.running]
    # The order of the columns, since this is done for each of thousands.
    for position, (seq, _, cost, number) in enumerate(_QUEUE.all(connection, {"p_tag": tag, "p_seq": last}), 1):
        # On PostgreSQL, whose statements each see their own moment, it may have been claimed between the two.
        end = _give(cost, webuis.get(number), free)
        ends.append(end)
        if seq in jobs:
            places[seq] = Place(position, end, snapshot.waits_for(needs.get(number)))
    known = [end for end in ends if end is not None]
    return Played(places, max(known, default=0.0) if len(known) == len(ends) else None)


def _give(cost: float, webuis: list[tuple[str, float]] | None, free: dict[str, float]) -> float | None:
    """Give a job to the WebUI that is free first; when it ends, which is when that WebUI is free again."""
    if not webuis:
        return None
    begin = math.inf
    for key, speed in webuis:
        if free[key] < begin:
            first, begin, pace = key, free[key], speed
    free[first] = end = begin + cost * pace
    return end


def _by_sums(connection: Connection, snapshot: Snapshot, job: Waiting) -> Place:
    """The place of a job in a long queue, as if all jobs before it were shared evenly and needed what it needs."""
    ranges = _AHEAD.all(connection, {"p_tag": job.start_tag, "p_seq": job.seq})
    jobs, cost = (sum(column) for column in zip(*ranges, strict=True))
    row = _NEED.first(connection, {"p_id": job.requirements_id})
    need = None if row is None else row.body
    webuis = snapshot.speeds_for(need)
    begun = shared_seconds(snapshot, cost, webuis)
    if begun is None or not webuis:
        return Place(jobs + 1, None, snapshot.waits_for(need))
    # Of its own time the mean: a WebUI that is twice as fast gets twice as many jobs.
    own = job.cost * len(webuis) / sum(1 / speed for _, speed in webuis)
    return Place(jobs + 1, begun + own)


def shared_seconds(snapshot: Snapshot, cost: float, webuis: list[tuple[str, float]] | None) -> float | None:
    """Seconds until these WebUIs together have done so much besides what runs; None when unknown."""
    if not webuis:
        return None
    free = snapshot.free()
    return (cost + sum(free[key] / speed for key, speed in webuis)) / sum(1 / speed for _, speed in webuis)


def _place_of(connection: Connection, snapshot: Snapshot, job: Waiting) -> Place | None:
    """The place of one waiting job; None when it does not wait any more."""
    if snapshot.unfinished > PLAYED:
        return _by_sums(connection, snapshot, job)
    return play(connection, snapshot, [job]).places.get(job.seq)


def places(connection: Connection, jobs: Collection[Job], offers: Offers | None = None) -> dict[Identity, Place]:
    """The places of jobs that were read just now, in one pass over the queue; finished ones have neither position nor eta."""
    waiting = [Waiting.of(job) for job in jobs if job.status == "queued"]
    snapshot = Snapshot(connection, offers)
    if len(waiting) == 1:
        one = _place_of(connection, snapshot, waiting[0])
        found = {} if one is None else {waiting[0].seq: one}
    else:
        found = play(connection, snapshot, waiting).places
    ends = snapshot.ends()

    def place(job: Job) -> Place:
        if job.finished:
            return NOWHERE
        if job.status == "queued":
            # One that was claimed since it was read was the first.
            return found.get(job.seq) or Place(1, ends.get(job.identity))
        return Place(None, ends.get(job.identity, 0.0))

    return {job.identity: place(job) for job in jobs}


def seconds_until_room(connection: Connection, user_id: str | None = None) -> float:
    """Seconds until the next unfinished job (of this user) is likely to end."""
    snapshot = Snapshot(connection)
    waits = [snapshot.seconds_left(row) for row in snapshot.running if user_id in (None, row.user_id)]
    if not waits:
        mine = {} if user_id is None else {"p_user": user_id}
        row = (_FIRST_OF_USER if mine else _FIRST).first(connection, mine)
        place = None if row is None else _place_of(connection, snapshot, Waiting.of(row))
        waits = [] if place is None else [place.eta]
    known = [wait for wait in waits if wait is not None]
    return min(max(min(known, default=_UNKNOWN_WAIT), _SHORTEST_WAIT), _LONGEST_WAIT)
