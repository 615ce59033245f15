"""How long the WebUIs take for a unit of cost, by model: measured with every answer, kept over restarts.

Of each WebUI and model the last :data:`KEPT` jobs count, and of those neither the slowest nor the fastest: one job that had to wait
for its model to be loaded, or that somebody interrupted, changes nothing, and a new speed is known after a few jobs.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Any, Final

from sqlalchemy import Connection, select

from app.jobs.model import Claim
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import SPEEDS
from app.runtime.jsontext import loads

#: Jobs that count for one WebUI and model.
KEPT: Final = 5
#: Characters of one measurement as it is stored; of one width, so that a statement can cut the list without reading it.
_WIDTH: Final = 16
#: Below this nothing was measured, and it must be something to divide by.
_LEAST: Final = 1e-12
_ALL: Final = Prepared(select(SPEEDS.c.slot, SPEEDS.c.model, SPEEDS.c.recent))


def model_of(requirements: str) -> str:
    """The model that a job needs, from its requirements (canonical JSON); empty where they name none."""
    model = loads(requirements).get("model")
    return model if isinstance(model, str) else ""


def read_speeds(database: Database) -> Speeds:
    """The speeds of all WebUIs as they are now.

    :raises DatabaseUnavailable: they can't be read.
    """
    with database.read() as connection:
        return Speeds.read(connection)


def measure(connection: Connection, claim: Claim, seconds: float | None) -> None:
    """Note what the job of a claim took (None: nothing). One statement, for the next job waits meanwhile; the first time two."""
    if seconds is None:
        return
    entry = f"{max(seconds / max(claim.job.cost, 1.0), _LEAST):<{_WIDTH}.9e}"
    model = model_of(claim.requirements)
    values = {"c_slot": claim.slot, "c_model": model, "p_measured": entry, "p_length": KEPT * _WIDTH}
    if sql.MEASURE.change(connection, values) == 0:
        sql.ADD_SPEED.change(connection, {"slot": claim.slot, "model": model, "recent": entry})


class Speeds:
    """The speeds of all WebUIs as they are now, in seconds for a unit of cost."""

    def __init__(self, rows: list[Any]) -> None:
        self._measured: dict[str, dict[str, float]] = defaultdict(dict)
        for row in rows:
            self._measured[row.slot][row.model] = _typical(row.recent)

    @classmethod
    def read(cls, connection: Connection) -> Speeds:
        """The stored ones."""
        return cls(_ALL.all(connection))

    def of(self, slot: str, model: str | None) -> float | None:
        """The speed of a WebUI with a model, or with None over its models; None when nothing was measured anywhere.

        With a model that was not measured there it is the mean over those that were, and for a WebUI without any measurement the
        mean over the other WebUIs.
        """
        known = self.measured(slot, model)
        if known is None:
            others = [speed for other in self._measured if (speed := self.measured(other, model)) is not None]
            known = fmean(others) if others else None
        return known

    def measured(self, slot: str, model: str | None) -> float | None:
        """The same from measurements of this WebUI alone; None when there are none."""
        measured = self._measured.get(slot)
        if not measured:
            return None
        if model in measured:
            return measured[model]
        return fmean([speed for name, speed in measured.items() if name] or measured.values())


def _typical(recent: str) -> float:
    """The mean without the slowest and the fastest; of two the faster one, for the first may have loaded its model."""
    ordered = sorted(map(float, recent.split()))
    return fmean(ordered[1:-1] or ordered[:1])
