"""Watching jobs: what the clients of event streams are told, of one job or of all jobs of a user.

One object of the process, :class:`Watching`, follows the changes of all jobs (:mod:`app.jobs.changes`) and tells each
:class:`Feed` what concerns it. A feed is opened in three steps, so that nothing is missed and nothing told twice: it is registered,
then the present state is read, and from then on it is told what changed later than that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from app.gateway.feeds import Feed, JobChange, StreamEvent
from app.gateway.progress import ProgressTelling
from app.jobs.changes import Changes
from app.jobs.errors import JobNotFound
from app.jobs.model import NOWHERE, Identity, Job
from app.jobs.revisions import Change, Version
from app.jobs.table import JobTable
from app.jobs.view import describe

#: Unfinished jobs that a snapshot lists.
SNAPSHOT_JOBS: Final = 200
#: Changes that a client may have missed; with more its stream begins anew.
MOST_MISSED: Final = 500
#: Streams of one user in one process.
PER_USER: Final = 20


class NoFreeStream(Exception):
    """As many clients watch jobs as may, or as may for one user."""

    slug = "no-free-stream"

    def __init__(self, retry_after: float) -> None:
        super().__init__("Too many clients are watching jobs. Try again later.")
        self.retry_after = retry_after


class Watching:
    """The event streams of this process: at most ``limit``, and :data:`PER_USER` of a user."""

    def __init__(self, table: JobTable, changes: Changes, limit: int) -> None:
        self._table = table
        self._changes = changes
        self._limit = limit
        self._lock = threading.Lock()
        self._feeds: set[Feed] = set()
        self._of_user: dict[str, set[Feed]] = {}
        self._draining = False
        self._progress = ProgressTelling(table)

    # -- opening -----------------------------------------------------------------------------------------------------

    def job(self, job: Identity, last: Version | None, tell: Callable[[StreamEvent], object]) -> Feed | None:
        """Watch one job: ``tell`` is told its present state and then each change, until it has ended.

        :param last: the version of the last event that the client has seen.
        :returns: None if the client has seen the end.
        :raises JobNotFound: there is no such job, or it was deleted and the client has not begun to watch it before.
        :raises NoFreeStream: nothing was begun.
        """
        feed = self._register(Feed(job.user_id, job, tell))
        try:
            opened = self._begin_job(feed, job, last)
        except BaseException:
            self.close(feed)
            raise
        if opened is not None and not opened.is_over:
            self._changes.follow(opened.begun_at)
        return opened

    def _begin_job(self, feed: Feed, identity: Identity, last: Version | None) -> Feed | None:
        known = last is not None and self._is_resumable(last)
        # Read before the job: whatever changes later has a later rev.
        present = self._table.revisions.current().rev
        reset = [StreamEvent("reset", {})] if last is not None and not known else []
        try:
            job = self._table.queries.get(*identity)
        except JobNotFound:
            if not last:
                raise
            rev = self._table.revisions.rev_of_deleted(identity)
            if known and rev <= last.rev:
                self.close(feed)
                return None
            feed.begin([*reset, *_gone(identity, self._version_of(rev))], [], rev)
            return feed
        if known and last and job.finished and job.rev <= last.rev:
            self.close(feed)
            return None
        feed.begin([*reset, *self._state(job)], _unfinished(job), job.rev if job.finished else max(job.rev, present))
        return feed

    def _state(self, job: Job) -> list[StreamEvent]:
        """The events that tell how a job is."""
        state = StreamEvent("job", describe(job, self._table.queries.place(job)), self._version_of(job.rev))
        return [state, StreamEvent("end", {})] if job.finished else [state]

    def user(self, user: str, last: Version | None, tell: Callable[[StreamEvent], object]) -> Feed:
        """Watch all jobs of a user: ``tell`` is told a snapshot, or what has changed since ``last``, and then each change.

        :raises NoFreeStream: nothing was begun.
        """
        feed = self._register(Feed(user, None, tell))
        try:
            missed = self._since(user, last) if last is not None and self._is_resumable(last) else None
            feed.begin(*(missed or self._snapshot(user, [StreamEvent("reset", {})] if last is not None else [])))
        except BaseException:
            self.close(feed)
            raise
        self._changes.follow(feed.begun_at)
        return feed

    def _snapshot(self, user: str, before: Iterable[StreamEvent]) -> tuple[list[StreamEvent], list[Job], int]:
        """The unfinished jobs of a user; those that changed after the version was read come as changes."""
        version = self._table.revisions.current()
        jobs = [job for job in self._table.queries.unfinished(user, SNAPSHOT_JOBS + 1) if job.rev <= version.rev]
        shown, more = jobs[:SNAPSHOT_JOBS], len(jobs) > SNAPSHOT_JOBS
        places = self._table.queries.places(shown)
        views = [describe(job, places[job.identity]) for job in shown]
        return [*before, StreamEvent("snapshot", {"jobs": views, "more": more}, version)], jobs, version.rev

    def _since(self, user: str, last: Version) -> tuple[list[StreamEvent], list[Job], int] | None:
        """The changes of a user's jobs since a version, and the unfinished jobs; None when there are too many to be told."""
        version = self._table.revisions.current()
        changes = self._table.revisions.of_user(user, last.rev, MOST_MISSED + 1)
        if len(changes) > MOST_MISSED:
            return None
        told = self._told([change for change in changes if change.rev <= version.rev], version)
        events: list[StreamEvent] = []
        replay = Feed(user, None, events.append)
        replay.begin([], [], last.rev)
        replay.changed(told)
        return events, self._table.queries.unfinished(user, SNAPSHOT_JOBS), version.rev

    def _is_resumable(self, last: Version) -> bool:
        return self._table.revisions.is_resumable(last.epoch, last.rev)

    def _version_of(self, rev: int) -> Version:
        return self._table.revisions.version_of(rev)

    def _register(self, feed: Feed) -> Feed:
        with self._lock:
            of_user = self._of_user.setdefault(feed.user, set())
            if len(self._feeds) >= self._limit or len(of_user) >= PER_USER or self._draining:
                if not of_user:
                    del self._of_user[feed.user]
                raise NoFreeStream(5.0)
            self._feeds.add(feed)
            of_user.add(feed)
        return feed

    def close(self, feed: Feed) -> None:
        """Tell a feed no more; its place is free. Later calls do nothing."""
        with self._lock:
            if feed in self._feeds:
                self._feeds.remove(feed)
                self._of_user[feed.user].remove(feed)
                if not self._of_user[feed.user]:
                    del self._of_user[feed.user]

    def drain(self) -> None:
        """End every stream, so that its client comes back and reaches the next process; later ones don't begin."""
        with self._lock:
            self._draining = True
        for feed in self._all():
            feed.finish("restart")

    def _all(self) -> list[Feed]:
        with self._lock:
            return list(self._feeds)

    # -- following changes -------------------------------------------------------------------------------------------

    def follows(self) -> bool:
        """Whether anybody watches."""
        return bool(self._feeds)

    def wants_immediate_reads(self) -> bool:
        """Whether changes are to be read as soon as they happen."""
        return bool(self._feeds)

    def changed(self, changes: Sequence[Change], version: Version) -> None:
        """Tell each feed what concerns it; see :class:`app.jobs.changes.Follower`."""
        with self._lock:
            watched = {user: list(feeds) for user, feeds in self._of_user.items()} if changes else {}
        wanted = [change for change in changes if _concerns(change, watched)]
        if wanted:
            told = self._told(wanted, version)
            for user in {change.identity.user_id for change in told}:
                of_user = [change for change in told if change.identity.user_id == user]
                for feed in watched[user]:
                    feed.changed([change for change in of_user if feed.job in (None, change.identity)])
        if self._progress.is_due():
            feeds = self._all()
            now = time.monotonic()
            for feed in feeds:
                if feed.expires_at <= now:
                    feed.finish("restart")
            self._progress.tell(feeds, version)

    def _told(self, changes: Sequence[Change], version: Version) -> list[JobChange]:
        """The changes with their jobs. What has changed again since then is left to the next time."""
        jobs = self._table.queries.named([change.identity for change in changes if change.status != "deleted"])
        # As it was deleted or changed meanwhile, there is another change to come.
        jobs = {identity: job for identity, job in jobs.items() if job.rev <= version.rev}
        places = self._table.queries.places([job for job in jobs.values() if not job.finished])
        versions = self._versions(changes, version)
        return [
            JobChange(
                versions[change.rev], change.identity, jobs.get(change.identity), places.get(change.identity, NOWHERE)
            )
            for change in changes
            if change.status == "deleted" or change.identity in jobs
        ]

    def _versions(self, changes: Sequence[Change], version: Version) -> dict[int, Version]:
        """The revs of changes with their epochs, which mostly is the present one for all."""
        revs = {change.rev for change in changes}
        if not revs or self._version_of(min(revs)).epoch == version.epoch:
            return {rev: Version(version.epoch, rev) for rev in revs}
        return {rev: self._version_of(rev) for rev in revs}

    def lost_track(self, version: Version) -> None:
        """Begin every stream anew; see :class:`app.jobs.changes.Follower`."""
        for feed in self._all():
            if feed.job is None:
                feed.start_anew(*self._snapshot(feed.user, [StreamEvent("reset", {})]))
            else:
                self._begin_job_anew(feed, feed.job, version)

    def _begin_job_anew(self, feed: Feed, identity: Identity, version: Version) -> None:
        reset = StreamEvent("reset", {})
        try:
            job = self._table.queries.get(*identity)
        except JobNotFound:
            feed.start_anew([reset, *_gone(identity, version)], [], version.rev)
            return
        feed.start_anew([reset, *self._state(job)], _unfinished(job), job.rev)


def _gone(identity: Identity, version: Version) -> list[StreamEvent]:
    """The events that tell that a job was deleted."""
    gone = StreamEvent("gone", {"name": identity.name, "type": identity.type}, version)
    return [gone, StreamEvent("end", {})]


def _unfinished(job: Job) -> list[Job]:
    return [] if job.finished else [job]


def _concerns(change: Change, watched: Mapping[str, Sequence[Feed]]) -> bool:
    """Whether any stream is about the job that changed."""
    feeds = watched.get(change.identity.user_id, ())
    return any(feed.job in (None, change.identity) for feed in feeds)
