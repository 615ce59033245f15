"""Old keys of slots, as an earlier version computed them, give way to those of this version wherever they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, delete, insert, select, tuple_, update

from app.jobs.model import to_json
from app.jobs.slots import configured_keys
from app.jobs.sql.database import Database
from app.jobs.sql.schema import CATALOGUES, JOBS, REFUSALS, RUNNING, SLOTS, SPEEDS, WORKERS
from app.runtime.jsontext import loads

#: The states of a slot, from the one that promises least about its WebUI.
_MOST_CAUTIOUS_FIRST: Final = ("held", "quiescing", "unclean", "suspect", "clean")


def rename_slots(database: Database, current_key: Callable[[str], str]) -> dict[str, str]:
    """Give every slot the key that this version computes for it, wherever the old key stands; old keys to new ones.

    Where both have a row, the one that promises less about its WebUI stays: several old slots may be one WebUI.

    :param current_key: the new key for a stored one, often the same.
    """
    with database.read() as connection:
        if not _renames(connection, current_key):
            return {}
    with database.write("rename slots") as connection:
        renames = _renames(connection, current_key)
        for old, new in renames.items():
            _merge_slots(connection, old, new)
            _rename_catalogue(connection, old, new)
            _rename_refusals(connection, old, new)
            _rename_speeds(connection, old, new)
            connection.execute(update(JOBS).where(JOBS.c.status == RUNNING, JOBS.c.slot == old).values(slot=new))
        for worker in connection.execute(select(WORKERS.c.owner, WORKERS.c.webuis)).all():
            listed = list(dict.fromkeys(renames.get(key, key) for key in loads(worker.webuis)))
            connection.execute(update(WORKERS).where(WORKERS.c.owner == worker.owner).values(webuis=to_json(listed)))
        return renames


def _renames(connection: Connection, current_key: Callable[[str], str]) -> dict[str, str]:
    """The stored keys that are to be replaced, and by which."""
    stored = [
        *connection.execute(select(SLOTS.c.key)).scalars(),
        *connection.execute(select(CATALOGUES.c.key)).scalars(),
    ]
    keys = dict.fromkeys(
        [*stored, *connection.execute(select(REFUSALS.c.slot)).scalars(), *configured_keys(connection)]
    )
    return {key: new for key in keys if (new := current_key(key)) != key}


def _merge_slots(connection: Connection, old: str, new: str) -> None:
    rows = connection.execute(select(SLOTS).where(SLOTS.c.key.in_((old, new)))).mappings().all()
    if not any(row["key"] == old for row in rows):
        return
    kept = min(rows, key=lambda row: _MOST_CAUTIOUS_FIRST.index(row["state"]))
    merged = {**kept, "key": new}
    for column in ("doubt", "overridden"):
        merged[column] = next((row[column] for row in (kept, *rows) if row[column] is not None), None)
    connection.execute(delete(SLOTS).where(SLOTS.c.key.in_((old, new))))
    connection.execute(insert(SLOTS).values(merged))


def _rename_catalogue(connection: Connection, old: str, new: str) -> None:
    if connection.execute(select(CATALOGUES.c.key).where(CATALOGUES.c.key == new)).first() is None:
        connection.execute(update(CATALOGUES).where(CATALOGUES.c.key == old).values(key=new))
    connection.execute(delete(CATALOGUES).where(CATALOGUES.c.key == old))


def _rename_speeds(connection: Connection, old: str, new: str) -> None:
    known = select(SPEEDS.c.model).where(SPEEDS.c.slot == new)
    connection.execute(delete(SPEEDS).where(SPEEDS.c.slot == old, SPEEDS.c.model.in_(known)))
    connection.execute(update(SPEEDS).where(SPEEDS.c.slot == old).values(slot=new))


def _rename_refusals(connection: Connection, old: str, new: str) -> None:
    job = (REFUSALS.c.name, REFUSALS.c.type, REFUSALS.c.user_id)
    known = select(*job).where(REFUSALS.c.slot == new)
    connection.execute(delete(REFUSALS).where(REFUSALS.c.slot == old, tuple_(*job).in_(known)))
    connection.execute(update(REFUSALS).where(REFUSALS.c.slot == old).values(slot=new))
