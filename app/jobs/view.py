"""The one object that describes a job everywhere: in answers, in history, and (at its finish) in the parameter JSON on disk.

URLs are not part of it; they belong to HTTP and are added there.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from app.jobs.model import NOWHERE, Job, Place

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - an offset would only be written and cut off again


def timestamp(milliseconds: int | None) -> str | None:
    """RFC 3339 in UTC, to the millisecond."""
    if milliseconds is None:
        return None
    minute, rest = divmod(milliseconds, 60_000)
    return f"{_minute(minute)}{rest / 1000:06.3f}Z"


@lru_cache(maxsize=1024)
def _minute(minute: int) -> str:
    """The time so many minutes after 1970 began, up to its seconds.

    Kept, for a page of history holds 150 times, mostly a few seconds from each other.
    """
    return (_EPOCH + timedelta(minutes=minute)).isoformat().removesuffix("00")


def milliseconds(text: str) -> int:
    """The opposite of :func:`timestamp`.

    :raises ValueError: for anything but an RFC 3339 time with an offset.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without an offset")
    return round(moment.timestamp() * 1000)


def describe(job: Job, place: Place = NOWHERE) -> dict[str, Any]:
    """The job as a dictionary; ``place`` tells where an unfinished one stands."""
    return {
        "id": job.user_id,
        "type": job.type,
        "name": job.name,
        "status": job.status,
        "cancel_requested": job.cancel_at is not None,
        "simulated": job.simulated,
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "finished_at": timestamp(job.finished_at),
        "position": place.position,
        "progress": _progress(job),
        "eta": _eta(place),
        "args": job.args,
        "images": list(job.images),
        "init_image": job.init_image,
        "webui": job.webui,
        "error": {"slug": job.error_slug, "detail": job.error_detail} if job.error_slug is not None else None,
    }


def progress_of(job: Job, place: Place) -> dict[str, Any]:
    """How far an unfinished job is, and how long it will take."""
    return {
        "name": job.name,
        "type": job.type,
        "progress": _progress(job),
        "eta": _eta(place),
        "position": place.position,
    }


def _eta(place: Place) -> float | None:
    return None if place.eta is None else round(place.eta, 3)


def _progress(job: Job) -> float:
    if job.status == "succeeded":
        return 1.0
    return round(job.progress or 0.0, 4) if job.status == "running" else 0.0
