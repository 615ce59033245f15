"""The WebUIs as the database knows them: slots, health, and the workers that are configured for them.

A slot is held by at most one job at a time. One that was not released cleanly is quiesced first: its worker sends nothing
until the WebUI is idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from app.jobs import leases
from app.jobs.leases import Leases
from app.jobs.model import Slot, to_json
from app.jobs.revisions import begin_epoch
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.schema import JOBS, REQUIREMENTS, RUNNING, SLOTS, WORKERS, db_now
from app.jobs.sql.statements import LEASE_SECONDS
from app.runtime.jsontext import loads

#: A WebUI that refused is asked once in so many seconds, by one process (a starting one can be killed by requests).
PROBE_SECONDS: Final = 10.0
#: A worker whose last heartbeat is at most so many seconds old is alive.
ALIVE_SECONDS: Final = 10.0
#: An external worker that has been gone for so long no longer counts as configured.
FORGOTTEN_SECONDS: Final = 3600.0
Quiesced = Literal["clean", "suspect", "unclean"]


@dataclass(frozen=True, slots=True)
class Traits:
    """The state that a WebUI was left in, as its slot's row keeps it: JSON of the use case, None where there is nothing."""

    doubt: str | None
    overridden: str | None


@dataclass(frozen=True, slots=True)
class WebuiState:
    """One configured WebUI: state and health of its slot (see :class:`app.jobs.model.Slot`), since when it has that health (seconds
    since 1970 by the database's clock, None when unknown), and the requirements of the job that runs there (None: no job runs).
    """

    key: str
    state: str
    health: str
    since: float | None
    running: str | None


class Heartbeat(NamedTuple):
    """What a worker learns when it renews its leases.

    :param known: whether the database knows the worker (still).
    :param unwanted: the task ids of its attempts at jobs that are to end, or were deleted while they ran.
    """

    known: bool
    unwanted: frozenset[str]


class Slots:
    """The rows about WebUIs. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database
        #: How old the leases are that this process holds.
        self.leases = Leases(database.failpoints)

    # -- workers -----------------------------------------------------------------------------------------------------

    def register(self, owner: str, host: str, keys: Sequence[str], *, only: bool) -> None:
        """A worker starts: store its list of WebUIs, make their slots, and begin a new epoch of changes.

        A new slot is unclean: its WebUI may still work for a gateway that knew it by another name (a recreated container has a new
        host name), so it must be seen idle first.

        :param only: whether it is the host's only worker, so that rows of earlier ones go.
        """
        with self.database.write("register") as connection:
            gone = WORKERS.c.heartbeat_at < db_now() - FORGOTTEN_SECONDS
            if only:
                gone = or_(gone, WORKERS.c.host == host)
            connection.execute(delete(WORKERS).where(or_(gone, WORKERS.c.owner == owner)))
            connection.execute(
                insert(WORKERS).values(owner=owner, host=host, webuis=to_json(list(keys)), heartbeat_at=db_now())
            )
            there = set(connection.execute(select(SLOTS.c.key)).scalars())
            for key in [key for key in keys if key not in there]:
                connection.execute(insert(SLOTS).values(key=key, state="unclean", health="unknown", probed_at=0.0))
            # Claims that were not flushed may have been lost with the last worker, or the database may be a restored one.
            begin_epoch(connection)

    def heartbeat(self, owner: str) -> Heartbeat:
        """Prolong every lease of this worker, and learn whose end was asked for."""
        mine = {"p_owner": owner}
        # Unflushed: a worker that survives a power cut renews its leases before they end.
        with self.database.write(flushed=False) as connection:
            sent_at = leases.now()
            unwanted = {row.task_id for row in sql.RENEW_JOBS.all(connection, mine) if row.cancel_at is not None}
            unwanted |= {row.task_id for row in sql.RENEW_DELETED.all(connection, mine)}
            renewed = [row.task_id for row in sql.RENEW_SLOTS.all(connection, mine)]
            known = sql.RENEW_WORKER.change(connection, mine) == 1
        self.leases.renewed(sent_at, renewed)
        return Heartbeat(known, frozenset(unwanted))

    def forget_workers(self, owner: str, host: str) -> None:
        """Drop the rows of earlier workers of this host that have stopped, and with them the WebUIs that only they named."""
        gone = and_(WORKERS.c.host == host, WORKERS.c.owner != owner, WORKERS.c.heartbeat_at < db_now() - ALIVE_SECONDS)
        with self.database.read() as connection:
            if connection.execute(select(WORKERS.c.owner).where(gone).limit(1)).first() is None:
                return
        with self.database.write() as connection:
            connection.execute(delete(WORKERS).where(gone))

    def worker_alive(self) -> bool:
        """Whether any worker sent a heartbeat lately."""
        with self.database.read() as connection:
            # A heartbeat from the future is one from before the clock was set back.
            alive = select(WORKERS.c.owner).where(
                WORKERS.c.heartbeat_at.between(db_now() - ALIVE_SECONDS, db_now() + 1.0)
            )
            return connection.execute(alive.limit(1)).first() is not None

    def configured(self) -> list[str]:
        """The keys of the WebUIs that stand on some worker's list, in the order of the lists."""
        with self.database.read() as connection:
            return configured_keys(connection)

    # -- slots -------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Slot | None:
        """One slot; None when it was dropped."""
        with self.database.read() as connection:
            row = connection.execute(select(SLOTS).where(SLOTS.c.key == key)).first()
            return Slot(row.key, row.state, row.owner, row.task_id, row.health) if row is not None else None

    def begin_quiescing(self, key: str, owner: str) -> Slot | None:
        """Take an unclean or suspect slot to wait until its WebUI is idle; None when another worker has it."""
        with self.database.write("begin quiescing") as connection:
            taken = connection.execute(
                update(SLOTS)
                .where(SLOTS.c.key == key, SLOTS.c.owner.is_(None), SLOTS.c.state.in_(("unclean", "suspect")))
                .values(state="quiescing", owner=owner, lease_expires=db_now() + LEASE_SECONDS)
            )
            if taken.rowcount != 1:
                return None
            row = connection.execute(select(SLOTS).where(SLOTS.c.key == key)).one()
            return Slot(row.key, row.state, row.owner, row.task_id, row.health)

    def begin_repair(self, key: str, owner: str, task_id: str) -> float | None:
        """Take a clean slot to have its WebUI load another model under this task id; None when it is not clean any more, else when
        the lease began (:mod:`app.jobs.leases`).

        :meth:`end_quiescing` ends it; where that never comes, the slot becomes unclean, and is quiesced with this task id.
        """
        with self.database.write("begin repair") as connection:
            leased_at = leases.now()
            taken = connection.execute(
                update(SLOTS)
                .where(SLOTS.c.key == key, SLOTS.c.state == "clean")
                .values(state="quiescing", owner=owner, task_id=task_id, lease_expires=db_now() + LEASE_SECONDS)
            )
            return leased_at if taken.rowcount == 1 else None

    def end_quiescing(self, key: str, owner: str, state: Quiesced) -> None:
        """Release a slot that was being quiesced: clean when its WebUI is idle, suspect when it went on working, unclean when
        nothing could be asked.
        """
        left: dict[str, Any] = {"owner": None, "lease_expires": None, "state": state}
        left |= {"task_id": None} if state == "clean" else {}
        with self.database.write("end quiescing") as connection:
            connection.execute(
                update(SLOTS)
                .where(SLOTS.c.key == key, SLOTS.c.owner == owner, SLOTS.c.state == "quiescing")
                .values(left)
            )

    def may_probe(self, key: str) -> bool:
        """Whether this process is the one that may ask a silent WebUI now; the next one may after PROBE_SECONDS."""
        # A clock set back must not silence the probes, so a time in the future counts as long ago.
        due = and_(SLOTS.c.key == key, or_(SLOTS.c.probed_at <= db_now() - PROBE_SECONDS, SLOTS.c.probed_at > db_now()))
        with self.database.read() as connection:
            if connection.execute(select(SLOTS.c.key).where(due)).first() is None:
                return False
        with self.database.write() as connection:
            taken = connection.execute(update(SLOTS).where(due).values(probed_at=db_now()))
            return taken.rowcount == 1

    def set_health(self, key: str, health: str) -> None:
        """Note whether the WebUI answers: ``up`` or ``down``, and since when."""
        changed = and_(SLOTS.c.key == key, SLOTS.c.health != health)
        with self.database.write() as connection:
            connection.execute(update(SLOTS).where(changed).values(health=health, health_since=db_now()))

    def states(self) -> list[WebuiState]:
        """The configured WebUIs, in the order of the workers' lists."""
        with self.database.read() as connection:
            rows = {row.key: row for row in connection.execute(select(SLOTS))}
            runs = connection.execute(
                select(JOBS.c.slot, REQUIREMENTS.c.body)
                .join(REQUIREMENTS, REQUIREMENTS.c.id == JOBS.c.requirements_id)
                .where(JOBS.c.status == RUNNING, JOBS.c.phase == "generating")
            )
            running = {row.slot: row.body for row in runs}
            keys = configured_keys(connection)
        return [
            WebuiState(key, rows[key].state, rows[key].health, rows[key].health_since, running.get(key))
            for key in keys
            if key in rows
        ]

    def any_up(self) -> bool:
        """Whether a configured WebUI answered when it was asked last."""
        return bool(self.up())

    # -- what WebUIs were left with ----------------------------------------------------------------------------------

    def traits(self, key: str) -> Traits:
        """The kept facts about the state of one WebUI; none for an unknown slot."""
        with self.database.read() as connection:
            row = connection.execute(select(SLOTS.c.doubt, SLOTS.c.overridden).where(SLOTS.c.key == key)).first()
            return Traits(row.doubt, row.overridden) if row is not None else Traits(None, None)

    def keep_doubt(self, key: str, doubt: str | None) -> None:
        """Keep, or with None forget, that the WebUI's loaded model may be broken."""
        with self.database.write("doubt") as connection:
            connection.execute(update(SLOTS).where(SLOTS.c.key == key).values(doubt=doubt))

    def keep_overridden(self, key: str, overridden: str | None) -> None:
        """Keep, or with None forget, the options that are to be put back."""
        with self.database.write("overridden") as connection:
            connection.execute(update(SLOTS).where(SLOTS.c.key == key).values(overridden=overridden))

    def doubts(self) -> dict[str, str]:
        """The kept doubts of the configured WebUIs, by slot."""
        with self.database.read() as connection:
            rows = connection.execute(select(SLOTS.c.key, SLOTS.c.doubt).where(SLOTS.c.doubt.is_not(None)))
            configured = configured_keys(connection)
            return {row.key: row.doubt for row in rows if row.key in configured}

    def up(self) -> set[str]:
        """The configured WebUIs that answered when they were asked last."""
        with self.database.read() as connection:
            up = set(connection.execute(select(SLOTS.c.key).where(SLOTS.c.health == "up")).scalars())
            return up & set(configured_keys(connection))


def configured_keys(connection: Connection) -> list[str]:
    """The keys of the WebUIs that stand on some worker's list, in the order of the lists."""
    return keys_of(row.webuis for row in sql.CONFIGURED.all(connection))


def keys_of(lists: Iterable[str]) -> list[str]:
    """The WebUIs of all workers' lists, each once, in their order."""
    return list(dict.fromkeys(key for webuis in lists for key in loads(webuis)))
