"""Telling watchers the progress of their jobs: how far running ones are, and the places of waiting ones.

Each is looked up once for all streams of a process, at most once a second, and told only where a client could not know it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from app.gateway.feeds import DRIFT_SECONDS, Feed
from app.jobs.errors import DatabaseUnavailable
from app.jobs.model import Identity, Job
from app.jobs.places import Outlook
from app.jobs.revisions import Version
from app.jobs.table import JobTable
from app.jobs.view import progress_of

_LOG = logging.getLogger(__name__)

#: How often running jobs are looked up; seconds.
_PROGRESS_SECONDS: Final = 1.0
#: How often it is checked whether waiting jobs may have other places although no job has changed, and after how long the places are
#: looked up in any case; seconds.
_OUTLOOK_SECONDS: Final = 5.0
_PLACES_SECONDS: Final = 60.0
#: How often it is noted that running jobs are watched, which has their WebUIs asked for progress; seconds.
_WATCHED_SECONDS: Final = 2.0


class ProgressTelling:
    """Tells feeds how far their unfinished jobs are. Used by the thread that reads changes alone."""

    def __init__(self, table: JobTable) -> None:
        self._table = table
        #: The times at which this was done last, by the monotonic clock.
        self._told_at = self._places_at = self._outlook_at = self._watched_at = 0.0
        self._places_of: Version | None = None
        self._outlook: Outlook | None = None

    def is_due(self) -> bool:
        """Whether a second has passed since the last time."""
        return time.monotonic() >= self._told_at + _PROGRESS_SECONDS

    def tell(self, feeds: Sequence[Feed], version: Version) -> None:
        """Tell what is news to them.

        :param version: the moment up to which changes were told.
        """
        now = self._told_at = time.monotonic()
        self._tell_running(_jobs_of((feed for feed in feeds if feed.runs), "running"), now)
        if version != self._places_of or self._outlook_has_changed(now):
            if version != self._places_of:
                # What is told now does not follow from it.
                self._outlook = None
            self._tell_waiting(_jobs_of(feeds, "queued"))
            self._places_of, self._places_at = version, now

    def _tell_running(self, watched: Sequence[tuple[Feed, Job]], now: float) -> None:
        if not watched:
            return
        if now >= self._watched_at + _WATCHED_SECONDS:
            self._watched_at = now
            try:
                self._table.watched(*{job.identity: job for _, job in watched}.values())
            except DatabaseUnavailable:
                # It only makes workers poll more often.
                _LOG.info("that jobs are watched could not be noted")
        jobs = self._table.queries.running()
        places = self._table.queries.places(list(jobs.values()))
        _tell(watched, {identity: progress_of(job, places[identity]) for identity, job in jobs.items()})

    def _tell_waiting(self, watched: Sequence[tuple[Feed, Job]]) -> None:
        """Tell positions and estimates."""
        jobs = {job.identity: job for _, job in watched}
        places = self._table.queries.places(list(jobs.values()))
        _tell(watched, {identity: progress_of(job, places[identity]) for identity, job in jobs.items()})

    def _outlook_has_changed(self, now: float) -> bool:
        """Whether waiting jobs may have other places than they were told, although no job has changed since."""
        if now < self._outlook_at + _OUTLOOK_SECONDS:
            return False
        self._outlook_at = now
        outlook, before = self._table.queries.outlook(), self._outlook
        if before is not None and before.resembles(outlook, DRIFT_SECONDS) and now < self._places_at + _PLACES_SECONDS:
            return False
        self._outlook = outlook
        return True


def _jobs_of(feeds: Iterable[Feed], status: str) -> list[tuple[Feed, Job]]:
    """The unfinished jobs with a status that these streams are about."""
    return [(feed, job) for feed in feeds for job in feed.unfinished() if job.status == status]


def _tell(watched: Iterable[tuple[Feed, Job]], views: Mapping[Identity, Mapping[str, Any]]) -> None:
    for feed, job in watched:
        view = views.get(job.identity)
        if view is not None:
            feed.progressed(job.identity, view)
