"""The queue and the WebUIs as people see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.gateway.offering import Offering
from app.jobs.queue import BEGINNING, Cursor, Entry
from app.jobs.slots import WebuiState
from app.jobs.speeds import Speeds, model_of, read_speeds
from app.jobs.tables import Tables
from app.jobs.view import timestamp
from app.webui.catalogue import Catalogue


class Overview:
    """Shows the queue and the WebUIs. Raises DatabaseUnavailable from every method."""

    def __init__(self, tables: Tables, offering: Offering) -> None:
        self._tables = tables
        self._offering = offering

    def queue(
        self, is_named: Callable[[str], bool], limit: int, after: Cursor | None = None
    ) -> tuple[dict[str, Any], Cursor | None]:
        """The running jobs and a page of the waiting ones in the order in which they will start; and the place of the next page.

        :param is_named: which users' jobs are told by name; of all others nothing that names them.
        """
        page = self._tables.queue.page(limit, after or BEGINNING, self._offering.judge())
        shown = {
            "running": [_entry(entry, is_named) for entry in page.running],
            "waiting": [_entry(entry, is_named) for entry in page.waiting],
            "counts": {"running": len(page.running), "waiting": page.count},
            "oldest_wait": _rounded(page.oldest_wait),
            "seconds_to_empty": _rounded(page.seconds_to_empty),
            "paused": page.paused,
        }
        return shown, page.next

    def lines(self, limit: int) -> list[str]:
        """The same for the operator, who may see all names: one line for each job, and one about all."""
        page = self._tables.queue.page(limit, BEGINNING, self._offering.judge())
        counts = f"{len(page.running)} running, {page.count} waiting"
        total = f"{'paused' if page.paused else 'not paused'}, {counts}, empty in {_seconds(page.seconds_to_empty)}"
        running = [f"running {_named(entry)} on {entry.slot}" for entry in page.running]
        waiting = [f"{entry.place.position} {_named(entry)}{_reason(entry)}" for entry in page.waiting]
        left = page.count - len(page.waiting)
        return [*running, *waiting, *([f"… {left} more"] if left else []), total]

    def webuis(self) -> list[dict[str, Any]]:
        """The configured WebUIs: what state they are in, which model they use and how fast they are with it."""
        catalogues = self._offering.catalogues()
        speeds = read_speeds(self._tables.queue.database)
        return [_webui(state, catalogues, speeds) for state in self._tables.slots.states()]


def _entry(entry: Entry, is_named: Callable[[str], bool]) -> dict[str, Any]:
    place = entry.place
    shown = {
        "position": place.position,
        "progress": round(entry.progress, 4),
        "eta": _rounded(place.eta),
        "waits_for": place.waits_for,
    }
    if not is_named(entry.job.user_id):
        return {"redacted": True, **shown}
    job = entry.job
    named = {"id": job.user_id, "type": job.type, "name": job.name, "created_at": timestamp(entry.created_at)}
    return {"redacted": False, **named, **shown}


def _webui(state: WebuiState, catalogues: Mapping[str, Catalogue], speeds: Speeds) -> dict[str, Any]:
    model = _loaded(catalogues.get(state.key)) if state.running is None else model_of(state.running)
    return {
        "name": state.key,
        "state": state.state,
        "health": state.health,
        "model": model,
        "since": timestamp(None if state.since is None else round(state.since * 1000)),
        "seconds_per_cost": speeds.measured(state.key, model),
    }


def _loaded(catalogue: Catalogue | None) -> str | None:
    """The shortest name of the model that a WebUI said to have loaded when it was asked last."""
    if catalogue is None or catalogue.loaded_model is None:
        return None
    found = (model for model in catalogue.models if model.checkpoint == catalogue.loaded_model)
    model = next(found, None)
    return None if model is None else catalogue.name_of(model)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _named(entry: Entry) -> str:
    job = entry.job
    return f"{job.user_id} {job.type} {job.name}, ends in {_seconds(entry.place.eta)}"


def _reason(entry: Entry) -> str:
    return "" if entry.place.waits_for is None else f", waits for: {entry.place.waits_for}"


def _seconds(seconds: float | None) -> str:
    return "unknown time" if seconds is None else f"{seconds:.0f} s"
