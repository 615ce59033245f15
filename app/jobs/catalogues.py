"""The stored catalogues of the configured WebUIs, requests for their refresh, and the default model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from app.jobs.slots import configured_keys, keys_of
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.schema import CATALOGUES, NOTES, SLOTS, SPEEDS, db_now

_DEFAULT_MODEL: Final = "default_model"
#: The note with the time at which a refresh was wanted last, by the database's clock; written once a second at most.
_REFRESH_WANTED: Final = "refresh_wanted_at"
_WANTED_AGAIN_SECONDS: Final = 1.0
#: Nothing of ours can run on the WebUI: the slot is clean, or was never used.
_FREE: Final[ColumnElement[bool]] = or_(
    SLOTS.c.state == "clean", and_(SLOTS.c.state.in_(("unclean", "suspect")), SLOTS.c.task_id.is_(None))
)


@dataclass(frozen=True, slots=True)
class CurrentCatalogues:
    """The (key, version) of each catalogue of a configured WebUI that was ever seen; the model of requests that name none."""

    versions: tuple[tuple[str, int], ...]
    default_model: str | None


@dataclass(frozen=True, slots=True)
class Sightings:
    """The times at which the configured WebUIs that are up were last asked for their catalogues, by slot key; 0.0 for unknown.

    All times are seconds since 1970 by the database's clock.
    """

    now: float
    seen_at: dict[str, float]

    def all_since(self, moment: float) -> bool:
        """Whether each of them was asked at that time or later."""
        return all(seen_at >= moment for seen_at in self.seen_at.values())


class Catalogues:
    """The kept catalogues. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def now(self) -> float:
        """Seconds since 1970 by the database's clock."""
        with self.database.read() as connection:
            return float(connection.execute(select(db_now())).scalar_one())

    def put(self, key: str, body: str, asked_at: float | None = None) -> bool:
        """Keep the catalogue of a WebUI; whether that changed anything.

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
        """The times at which the configured WebUIs that are up were last asked for their catalogues."""
        asked = select(SLOTS.c.key, CATALOGUES.c.seen_at).where(SLOTS.c.health == "up")
        with self.database.read() as connection:
            rows = connection.execute(asked.outerjoin_from(SLOTS, CATALOGUES, CATALOGUES.c.key == SLOTS.c.key)).all()
            configured = configured_keys(connection)
            now = connection.execute(select(db_now())).scalar_one()
        seen_at = {row.key: _past(row.seen_at, now) for row in rows}
        return Sightings(now, {key: seen_at[key] for key in configured if key in seen_at})

    def want_refresh(self) -> float:
        """Ask the workers of all hosts to refresh the catalogues of their WebUIs; the time of the request that holds.

        A WebUI that was asked at that time or later was asked because of it. A request of the last second stands for this one.
        """
        now = self.now()
        with self.database.read() as connection:
            wanted = connection.execute(select(NOTES.c.value).where(NOTES.c.key == _REFRESH_WANTED)).scalar()
        # One from the future is from before the clock was set back.
        if wanted is not None and now - _WANTED_AGAIN_SECONDS <= float(wanted) <= now:
            return float(wanted)
        with self.database.write(flushed=False) as connection:
            connection.execute(delete(NOTES).where(NOTES.c.key == _REFRESH_WANTED))
            connection.execute(insert(NOTES).values(key=_REFRESH_WANTED, value=repr(now)))
        return now

    def refresh_wanted(self, key: str) -> bool:
        """Whether a refresh of the catalogues was wanted after this WebUI was asked last."""
        with self.database.read() as connection:
            row = sql.REFRESH_WANTED.first(connection, {"p_key": _REFRESH_WANTED, "p_slot": key})
        return row is not None and _past(row.seen_at, row.now) < float(row.value) <= row.now

    def current(self) -> CurrentCatalogues:
        """The versions of the configured WebUIs' catalogues, and the default model; one cheap query for every request."""
        with self.database.read() as connection:
            rows = sql.CURRENT_CATALOGUES.all(connection, {"p_key": _DEFAULT_MODEL})
        versions = {row.key: row.version for row in rows if row.kind == "catalogue"}
        configured = keys_of(row.text for row in rows if row.kind == "webuis")
        default_model = next((row.text for row in rows if row.kind == "note"), None)
        return CurrentCatalogues(tuple((key, versions[key]) for key in configured if key in versions), default_model)

    def bodies(self, keys: Collection[str]) -> dict[str, str]:
        """The kept catalogues of these WebUIs."""
        with self.database.read() as connection:
            rows = connection.execute(select(CATALOGUES).where(CATALOGUES.c.key.in_(keys)))
            return {row.key: row.body for row in rows}

    def drop_unconfigured(self) -> list[str]:
        """Forget free slots, and the catalogues and speeds of WebUIs, that stand on no worker's list."""
        with self.database.read() as connection:
            gone = _unconfigured(connection)
            kept = set(connection.execute(select(CATALOGUES.c.key)).scalars()) - set(configured_keys(connection))
        if not gone and not kept:
            return []
        with self.database.write() as connection:
            gone = _unconfigured(connection)
            connection.execute(delete(SLOTS).where(SLOTS.c.key.in_(gone), _FREE))
            slots = set(connection.execute(select(SLOTS.c.key)).scalars())
            left = set(configured_keys(connection)) | slots
            connection.execute(delete(CATALOGUES).where(CATALOGUES.c.key.not_in(left)))
            connection.execute(delete(SPEEDS).where(SPEEDS.c.slot.not_in(left)))
            return gone

    # -- the default model -------------------------------------------------------------------------------------------

    def default_model(self) -> str | None:
        """The model chosen for requests that name none."""
        return self.current().default_model

    def set_default_model(self, model: str | None) -> None:
        """Keep the choice; None forgets it."""
        with self.database.write() as connection:
            connection.execute(delete(NOTES).where(NOTES.c.key == _DEFAULT_MODEL))
            if model is not None:
                connection.execute(insert(NOTES).values(key=_DEFAULT_MODEL, value=model))


def _past(moment: float | None, now: float) -> float:
    """A stored time; 0.0 for none, and for one in the future, which is from before the clock was set back."""
    return moment if moment is not None and moment <= now else 0.0


def _unconfigured(connection: Connection) -> list[str]:
    known = set(configured_keys(connection))
    return [key for key in connection.execute(select(SLOTS.c.key).where(_FREE)).scalars() if key not in known]
