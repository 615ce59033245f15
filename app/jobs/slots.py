"""The WebUIs as the database knows them: slots, health, catalogues, and the workers that are configured for them.

A slot is held by at most one job at a time. One that was not released cleanly is settled first: its worker sends nothing
until the WebUI is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, tuple_, update

from app.jobs import leases
from app.jobs.leases import Leases
from app.jobs.model import Slot, to_json
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.schema import CATALOGUES, JOBS, NOTES, REFUSALS, RUNNING, SLOTS, WORKERS, db_now
from app.jobs.sql.statements import LEASE_SECONDS
from app.runtime.jsontext import loads

#: A WebUI that refused is asked once in so many seconds, by one process (a starting one can be killed by requests).
PROBE_SECONDS: Final = 10.0
#: A worker that beat within so many seconds is alive.
ALIVE_SECONDS: Final = 10.0
#: An external worker that has been gone for so long no longer counts as configured.
FORGOTTEN_SECONDS: Final = 3600.0
_DEFAULT_MODEL: Final = "default_model"
#: When somebody last wanted the WebUIs to be asked what they offer, by the database's clock; written once a second at most.
_LOOK_WANTED: Final = "look_wanted_at"
_WANTED_AGAIN_SECONDS: Final = 1.0
Settled = Literal["clean", "suspect", "unclean"]
#: The states of a slot, from the one that promises least about its WebUI.
_MOST_CAUTIOUS_FIRST: Final = ("held", "settling", "unclean", "suspect", "clean")
#: Nothing of ours can run on the WebUI: the slot is clean, or was never used.
_FREE: Final[ColumnElement[bool]] = or_(
    SLOTS.c.state == "clean", and_(SLOTS.c.state.in_(("unclean", "suspect")), SLOTS.c.task_id.is_(None))
)


@dataclass(frozen=True, slots=True)
class Offer:
    """(key, version) of the catalogue of each configured WebUI that was ever seen, and the model of requests that name none."""

    versions: tuple[tuple[str, int], ...]
    default_model: str | None


@dataclass(frozen=True, slots=True)
class Traits:
    """What a slot's row keeps about the state that its WebUI was left in: JSON of the use case, None where there is nothing."""

    doubt: str | None
    overridden: str | None


@dataclass(frozen=True, slots=True)
class Sightings:
    """When the configured WebUIs that are up were asked last what they offer, by slot key; 0.0 where that is not known.

    All times are seconds since 1970 by the database's clock.
    """

    now: float
    seen_at: dict[str, float]

    def all_since(self, moment: float) -> bool:
        """Whether each of them was asked at that time or later."""
        return all(seen_at >= moment for seen_at in self.seen_at.values())


class Slots:
    """The rows about WebUIs. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database
        #: How old the leases are that this process holds.
        self.leases = Leases(database.steps)

    # -- workers -----------------------------------------------------------------------------------------------------

    def register(self, owner: str, host: str, keys: Sequence[str], *, only: bool) -> None:
        """A worker starts: store its list of WebUIs and make their slots.

        A new slot is unclean: its WebUI may still work for a gateway that knew it by another name (a recreated container has a new
        host name), so it must be seen idle first.

        :param only: whether it is the host's only worker, so that rows of earlier ones go.
        """
        with self.database.write("register") as connection:
            gone = WORKERS.c.beat_at < db_now() - FORGOTTEN_SECONDS
            if only:
                gone = or_(gone, WORKERS.c.host == host)
            connection.execute(delete(WORKERS).where(or_(gone, WORKERS.c.owner == owner)))
            connection.execute(
                insert(WORKERS).values(owner=owner, host=host, webuis=to_json(list(keys)), beat_at=db_now())
            )
            there = set(connection.execute(select(SLOTS.c.key)).scalars())
            for key in [key for key in keys if key not in there]:
                connection.execute(insert(SLOTS).values(key=key, state="unclean", health="unknown", probed_at=0.0))

    def rename(self, current_key: Callable[[str], str]) -> dict[str, str]:
        """Give every slot the key that this version computes for it, wherever the old key stands; old keys to new ones.

        Where both have a row, the one that promises less about its WebUI stays: several old slots may be one WebUI.

        :param current_key: the new key for a stored one, often the same.
        """
        with self.database.read() as connection:
            if not _renames(connection, current_key):
                return {}
        with self.database.write("rename slots") as connection:
            renames = _renames(connection, current_key)
            for old, new in renames.items():
                _merge_slots(connection, old, new)
                _rename_catalogue(connection, old, new)
                _rename_refusals(connection, old, new)
                connection.execute(update(JOBS).where(JOBS.c.status == RUNNING, JOBS.c.slot == old).values(slot=new))
            for worker in connection.execute(select(WORKERS.c.owner, WORKERS.c.webuis)).all():
                listed = list(dict.fromkeys(renames.get(key, key) for key in loads(worker.webuis)))
                connection.execute(
                    update(WORKERS).where(WORKERS.c.owner == worker.owner).values(webuis=to_json(listed))
                )
            return renames

    def beat(self, owner: str) -> bool:
        """Prolong every lease of this worker; False when the database doesn't know the worker (any more)."""
        mine = {"p_owner": owner}
        # Unflushed: whoever lives on after a power cut beats again before its lease ends.
        with self.database.write(flushed=False) as connection:
            sent_at = leases.now()
            sql.BEAT_JOBS.change(connection, mine)
            renewed = [row.task_id for row in sql.BEAT_SLOTS.all(connection, mine)]
            known = sql.BEAT_WORKER.change(connection, mine) == 1
        self.leases.renewed(sent_at, renewed)
        return known

    def forget_workers(self, owner: str, host: str) -> None:
        """Drop the rows of earlier workers of this host that have stopped, and with them the WebUIs that only they named."""
        gone = and_(WORKERS.c.host == host, WORKERS.c.owner != owner, WORKERS.c.beat_at < db_now() - ALIVE_SECONDS)
        with self.database.read() as connection:
            if connection.execute(select(WORKERS.c.owner).where(gone).limit(1)).first() is None:
                return
        with self.database.write() as connection:
            connection.execute(delete(WORKERS).where(gone))

    def worker_alive(self) -> bool:
        """Whether any worker beat lately."""
        with self.database.read() as connection:
            # A beat from the future is one from before the clock was set back.
            alive = select(WORKERS.c.owner).where(WORKERS.c.beat_at.between(db_now() - ALIVE_SECONDS, db_now() + 1.0))
            return connection.execute(alive.limit(1)).first() is not None

    def configured(self) -> list[str]:
        """The keys of the WebUIs that stand on some worker's list, in the order of the lists."""
        with self.database.read() as connection:
            return _configured(connection)

    # -- slots -------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Slot | None:
        """One slot; None when it was dropped."""
        with self.database.read() as connection:
            row = connection.execute(select(SLOTS).where(SLOTS.c.key == key)).first()
            return Slot(row.key, row.state, row.owner, row.task_id, row.health) if row is not None else None

    def begin_settling(self, key: str, owner: str) -> Slot | None:
        """Take an unclean or suspect slot to wait until its WebUI is idle; None when another worker has it."""
        with self.database.write("begin settling") as connection:
            taken = connection.execute(
                update(SLOTS)
                .where(SLOTS.c.key == key, SLOTS.c.owner.is_(None), SLOTS.c.state.in_(("unclean", "suspect")))
                .values(state="settling", owner=owner, lease_expires=db_now() + LEASE_SECONDS)
            )
            if taken.rowcount != 1:
                return None
            row = connection.execute(select(SLOTS).where(SLOTS.c.key == key)).one()
            return Slot(row.key, row.state, row.owner, row.task_id, row.health)

    def begin_repair(self, key: str, owner: str, task_id: str) -> float | None:
        """Take a clean slot to have its WebUI load another model under this task id; None when it is not clean any more, else when
        the lease began (:mod:`app.jobs.leases`).

        :meth:`end_settling` ends it; where that never comes, the slot is unclean and the task is looked for.
        """
        with self.database.write("begin repair") as connection:
            leased_at = leases.now()
            taken = connection.execute(
                update(SLOTS)
                .where(SLOTS.c.key == key, SLOTS.c.state == "clean")
                .values(state="settling", owner=owner, task_id=task_id, lease_expires=db_now() + LEASE_SECONDS)
            )
            return leased_at if taken.rowcount == 1 else None

    def end_settling(self, key: str, owner: str, state: Settled) -> None:
        """Let go of a slot that was being settled: clean when its WebUI is idle, suspect when it went on working, unclean when
        nothing could be asked.
        """
        left: dict[str, Any] = {"owner": None, "lease_expires": None, "state": state}
        left |= {"task_id": None} if state == "clean" else {}
        with self.database.write("end settling") as connection:
            connection.execute(
                update(SLOTS)
                .where(SLOTS.c.key == key, SLOTS.c.owner == owner, SLOTS.c.state == "settling")
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
        """Note whether the WebUI answers: ``up`` or ``down``."""
        with self.database.write() as connection:
            connection.execute(update(SLOTS).where(SLOTS.c.key == key).values(health=health))

    def any_up(self) -> bool:
        """Whether a configured WebUI answered when it was asked last."""
        return bool(self.up())

    # -- what WebUIs were left with ----------------------------------------------------------------------------------

    def traits(self, key: str) -> Traits:
        """What is kept about the state of one WebUI; nothing for an unknown slot."""
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
            configured = _configured(connection)
            return {row.key: row.doubt for row in rows if row.key in configured}

    def up(self) -> set[str]:
        """The configured WebUIs that answered when they were asked last."""
        with self.database.read() as connection:
            up = set(connection.execute(select(SLOTS.c.key).where(SLOTS.c.health == "up")).scalars())
            return up & set(_configured(connection))

    # -- catalogues --------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since 1970 by the database's clock."""
        with self.database.read() as connection:
            return float(connection.execute(select(db_now())).scalar_one())

    def put_catalogue(self, key: str, body: str, asked_at: float | None = None) -> bool:
        """Keep what a WebUI offers; whether that changed anything.

        :param asked_at: when asking it began, by the database's clock; None for now.
        """
        mine = CATALOGUES.c.key == key
        seen_at = db_now() if asked_at is None else asked_at
        with self.database.read() as connection:
            known = connection.execute(select(CATALOGUES.c.body).where(mine)).scalar()
        if known == body:
            with self.database.write(flushed=False) as connection:
                connection.execute(update(CATALOGUES).where(mine).values(seen_at=seen_at))
            return False
        with self.database.write() as connection:
            highest = connection.execute(select(func.coalesce(func.max(CATALOGUES.c.version), 0))).scalar_one()
            connection.execute(delete(CATALOGUES).where(mine))
            connection.execute(insert(CATALOGUES).values(key=key, body=body, version=highest + 1, seen_at=seen_at))
            return True

    def sightings(self) -> Sightings:
        """When the configured WebUIs that are up were asked last what they offer."""
        asked = select(SLOTS.c.key, CATALOGUES.c.seen_at).where(SLOTS.c.health == "up")
        with self.database.read() as connection:
            rows = connection.execute(asked.outerjoin_from(SLOTS, CATALOGUES, CATALOGUES.c.key == SLOTS.c.key)).all()
            configured = _configured(connection)
            now = connection.execute(select(db_now())).scalar_one()
        seen_at = {row.key: _past(row.seen_at, now) for row in rows}
        return Sightings(now, {key: seen_at[key] for key in configured if key in seen_at})

    def want_look(self) -> float:
        """Ask the workers of all hosts to ask their WebUIs what they offer; the time of the request that holds.

        A WebUI that was asked at that time or later was asked because of it. A request of the last second stands for this one.
        """
        now = self.now()
        with self.database.read() as connection:
            wanted = connection.execute(select(NOTES.c.value).where(NOTES.c.key == _LOOK_WANTED)).scalar()
        # One from the future is from before the clock was set back.
        if wanted is not None and now - _WANTED_AGAIN_SECONDS <= float(wanted) <= now:
            return float(wanted)
        with self.database.write(flushed=False) as connection:
            connection.execute(delete(NOTES).where(NOTES.c.key == _LOOK_WANTED))
            connection.execute(insert(NOTES).values(key=_LOOK_WANTED, value=repr(now)))
        return now

    def look_wanted(self, key: str) -> bool:
        """Whether somebody has wanted a look at what the WebUIs offer since this one was asked last."""
        with self.database.read() as connection:
            row = sql.LOOK_WANTED.first(connection, {"p_key": _LOOK_WANTED, "p_slot": key})
        return row is not None and _past(row.seen_at, row.now) < float(row.value) <= row.now

    def offer(self) -> Offer:
        """Which catalogues count now, and the default model; one cheap look for every request."""
        with self.database.read() as connection:
            rows = sql.OFFER.all(connection, {"p_key": _DEFAULT_MODEL})
        versions = {row.key: row.version for row in rows if row.kind == "catalogue"}
        configured = _keys(row.text for row in rows if row.kind == "webuis")
        default_model = next((row.text for row in rows if row.kind == "note"), None)
        return Offer(tuple((key, versions[key]) for key in configured if key in versions), default_model)

    def catalogues(self, keys: Collection[str]) -> dict[str, str]:
        """The kept catalogues of these WebUIs."""
        with self.database.read() as connection:
            rows = connection.execute(select(CATALOGUES).where(CATALOGUES.c.key.in_(keys)))
            return {row.key: row.body for row in rows}

    def drop_unconfigured(self) -> list[str]:
        """Forget free slots, and the catalogues of WebUIs, that stand on no worker's list."""
        with self.database.read() as connection:
            gone = _unconfigured(connection)
            kept = set(connection.execute(select(CATALOGUES.c.key)).scalars()) - set(_configured(connection))
        if not gone and not kept:
            return []
        with self.database.write() as connection:
            gone = _unconfigured(connection)
            connection.execute(delete(SLOTS).where(SLOTS.c.key.in_(gone), _FREE))
            slots = set(connection.execute(select(SLOTS.c.key)).scalars())
            left = set(_configured(connection)) | slots
            connection.execute(delete(CATALOGUES).where(CATALOGUES.c.key.not_in(left)))
            return gone

    # -- the default model -------------------------------------------------------------------------------------------

    def default_model(self) -> str | None:
        """The model chosen for requests that name none."""
        return self.offer().default_model

    def set_default_model(self, model: str | None) -> None:
        """Keep the choice; None forgets it."""
        with self.database.write() as connection:
            connection.execute(delete(NOTES).where(NOTES.c.key == _DEFAULT_MODEL))
            if model is not None:
                connection.execute(insert(NOTES).values(key=_DEFAULT_MODEL, value=model))


def _renames(connection: Connection, current_key: Callable[[str], str]) -> dict[str, str]:
    """The stored keys that are to be replaced, and by which."""
    stored = [
        *connection.execute(select(SLOTS.c.key)).scalars(),
        *connection.execute(select(CATALOGUES.c.key)).scalars(),
    ]
    keys = dict.fromkeys([*stored, *connection.execute(select(REFUSALS.c.slot)).scalars(), *_configured(connection)])
    return {key: new for key in keys if (new := current_key(key)) != key}


def _merge_slots(connection: Connection, old: str, new: str) -> None:
    rows = connection.execute(select(SLOTS).where(SLOTS.c.key.in_((old, new)))).mappings().all()
    if not any(row["key"] == old for row in rows):
        return
    kept = min(rows, key=lambda row: _MOST_CAUTIOUS_FIRST.index(row["state"]))
    merged = {**kept, "key": new}
    for column in ("seconds_per_cost", "doubt", "overridden"):
        merged[column] = next((row[column] for row in (kept, *rows) if row[column] is not None), None)
    connection.execute(delete(SLOTS).where(SLOTS.c.key.in_((old, new))))
    connection.execute(insert(SLOTS).values(merged))


def _rename_catalogue(connection: Connection, old: str, new: str) -> None:
    if connection.execute(select(CATALOGUES.c.key).where(CATALOGUES.c.key == new)).first() is None:
        connection.execute(update(CATALOGUES).where(CATALOGUES.c.key == old).values(key=new))
    connection.execute(delete(CATALOGUES).where(CATALOGUES.c.key == old))


def _rename_refusals(connection: Connection, old: str, new: str) -> None:
    job = (REFUSALS.c.name, REFUSALS.c.type, REFUSALS.c.user_id)
    known = select(*job).where(REFUSALS.c.slot == new)
    connection.execute(delete(REFUSALS).where(REFUSALS.c.slot == old, tuple_(*job).in_(known)))
    connection.execute(update(REFUSALS).where(REFUSALS.c.slot == old).values(slot=new))


def _past(moment: float | None, now: float) -> float:
    """A stored time; 0.0 for none, and for one in the future, which is from before the clock was set back."""
    return moment if moment is not None and moment <= now else 0.0


def _configured(connection: Connection) -> list[str]:
    return _keys(row.webuis for row in sql.CONFIGURED.all(connection))


def _keys(lists: Iterable[str]) -> list[str]:
    """The WebUIs of all workers' lists, each once, in their order."""
    return list(dict.fromkeys(key for webuis in lists for key in loads(webuis)))


def _unconfigured(connection: Connection) -> list[str]:
    known = set(_configured(connection))
    return [key for key in connection.execute(select(SLOTS.c.key).where(_FREE)).scalars() if key not in known]
