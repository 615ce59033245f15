"""Watching jobs: what the clients of event streams are told, of one job or of all jobs of a user.

One object of the process, :class:`Watching`, follows the changes of all jobs (:mod:`app.jobs.changes`) and tells each
:class:`Feed` what concerns it. A feed is opened in three steps, so that nothing is missed and nothing told twice: it is registered,
then the present state is read, and from then on it is told what changed later than that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, NamedTuple

from app.jobs.changes import Changes
from app.jobs.errors import DatabaseUnavailable, JobNotFound
from app.jobs.model import Identity, Job, Place
from app.jobs.places import Outlook
from app.jobs.revisions import Change, Version
from app.jobs.table import JobTable
from app.jobs.view import describe, progress_of

_LOG = logging.getLogger(__name__)

#: Unfinished jobs that a snapshot lists.
SNAPSHOT_JOBS: Final = 200
#: Changes that a client may have missed; with more its stream begins anew.
MOST_MISSED: Final = 200
#: Streams of one user in one process.
PER_USER: Final = 20
#: Seconds after which the stream of a user begins anew, so that it is checked again whether the client may have it.
LONGEST_SECONDS: Final = 3600.0
#: How often running jobs are looked up; seconds.
_PROGRESS_SECONDS: Final = 1.0
#: How often it is looked whether waiting jobs may have other places although no job has changed; and after how long they are looked
#: up in any case.
_OUTLOOK_SECONDS: Final = 5.0
_PLACES_SECONDS: Final = 60.0
#: How often it is noted that running jobs are watched, which has their WebUIs asked for progress; seconds.
_WATCHED_SECONDS: Final = 2.0
#: A new eta is told only if it differs from the one that a client counts down by more than so many seconds, and by more than this
#: share of it.
_DRIFT_SECONDS: Final = 1.0
_DRIFT: Final = 0.1


class NoFreeStream(Exception):
    """As many clients watch jobs as may, or as may for one user."""

    slug = "no-free-stream"

    def __init__(self, retry_after: float) -> None:
        super().__init__("Too many clients are watching jobs. Try again later.")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """Something that a watcher is told.

    ``name`` as in the stream: job, progress, gone, snapshot, reset, restart or end. ``view`` describes jobs without URLs, as
    :func:`app.jobs.view.describe` does; ``version`` is the moment to resume after, if the event has one.
    """

    name: str
    view: Mapping[str, Any]
    version: Version | None = None

    @property
    def is_last(self) -> bool:
        """Whether the stream ends with it."""
        return self.name in ("end", "restart")


class JobChange(NamedTuple):
    """A change as feeds are told of it: the job as it is since, None for a deleted one."""

    version: Version
    identity: Identity
    job: Job | None
    place: Place


class _Progress(NamedTuple):
    """What was told last of the progress of a job, and when."""

    progress: float
    position: int | None
    eta: float | None
    at: float


class Feed:
    """What one stream is told.

    :param job: the job, if it is the stream of one.
    :param tell: is told of each event, in the order of the changes, by one thread at a time; it must return at once.
    """

    __slots__ = (
        "_after",
        "_early",
        "_lock",
        "_over",
        "_progress",
        "_tell",
        "_unfinished",
        "begun_at",
        "expires_at",
        "job",
        "runs",
        "user",
    )

    def __init__(self, user: str, job: Identity | None, tell: Callable[[StreamEvent], object]) -> None:
        self.user: Final = user
        self.job: Final = job
        self.expires_at = inf if job is not None else time.monotonic() + LONGEST_SECONDS
        self._tell = tell
        self._lock = threading.Lock()
        #: The unfinished jobs, without what is large, and what was told of their progress.
        self._unfinished: dict[Identity, Job] = {}
        self._progress: dict[Identity, _Progress] = {}
        #: Whether any of them runs.
        self.runs = False
        #: The rev up to which its beginning told all changes.
        self.begun_at = 0
        self._after: int | None = None
        self._early: Sequence[JobChange] = ()
        self._over = False

    def begin(self, events: Iterable[StreamEvent], unfinished: Iterable[Job], after: int) -> None:
        """Tell the beginning, which holds all changes up to a rev, and then what has changed since."""
        with self._lock:
            for job in unfinished:
                self._unfinished[job.identity] = _without_what_is_large(job)
            self._note_whether_any_runs()
            for event in events:
                self._say(event)
                for view in _jobs_in(event):
                    self._told_progress(Identity(view["id"], view["type"], view["name"]), view)
            self._after = self.begun_at = after
            early, self._early = self._early, ()
            self._tell_changes(early)

    def changed(self, changes: Sequence[JobChange]) -> None:
        """Tell what has changed; all jobs of a rev come together."""
        with self._lock:
            if self._after is None:
                self._early = (*self._early, *changes)
            else:
                self._tell_changes(changes)

    def _tell_changes(self, changes: Sequence[JobChange]) -> None:
        # Before the beginning, the same may have been read more than once.
        once = {(change.version.rev, change.identity): change for change in changes}
        new = [change for (rev, _), change in once.items() if self._after is not None and rev > self._after]
        new.sort(key=lambda change: change.version.rev)
        # Of jobs that share a rev the last one carries it: whoever resumes there has seen all of them.
        last = {change.version.rev: change for change in new}
        for change in new:
            self._tell_change(change, change.version if last[change.version.rev] is change else None)
        if new:
            self._after = new[-1].version.rev

    def _tell_change(self, change: JobChange, version: Version | None) -> None:
        identity, job = change.identity, change.job
        if job is None:
            self._say(StreamEvent("gone", {"name": identity.name, "type": identity.type}, version))
        else:
            self._say(StreamEvent("job", describe(job, change.place), version))
        if job is None or job.finished:
            self._unfinished.pop(identity, None)
            self._progress.pop(identity, None)
            if self.job is not None:
                self._say(StreamEvent("end", {}))
        else:
            self._unfinished[identity] = _without_what_is_large(job)
            self._told_progress(identity, progress_of(job, change.place))
        self._note_whether_any_runs()

    def _note_whether_any_runs(self) -> None:
        self.runs = any(job.status == "running" for job in self._unfinished.values())

    def _told_progress(self, job: Identity, view: Mapping[str, Any]) -> None:
        if job in self._unfinished:
            self._progress[job] = _Progress(view["progress"], view["position"], view["eta"], time.monotonic())

    def unfinished(self) -> list[Job]:
        """The unfinished jobs that it is about."""
        with self._lock:
            return list(self._unfinished.values())

    def progressed(self, job: Job, place: Place) -> None:
        """Tell how far an unfinished job is, if that is news."""
        with self._lock:
            identity = job.identity
            if identity not in self._unfinished:
                return
            view = progress_of(job, place)
            if not _knows(self._progress.get(identity), view):
                self._told_progress(identity, view)
                self._say(StreamEvent("progress", view))

    def finish(self, name: str) -> None:
        """Tell the last event."""
        with self._lock:
            self._say(StreamEvent(name, {}))

    def start_anew(self, events: Iterable[StreamEvent], unfinished: Iterable[Job], after: int) -> None:
        """Tell another beginning, because the database is not the one that the stream began with."""
        with self._lock:
            self._unfinished.clear()
            self._progress.clear()
        self.begin(events, unfinished, after)

    @property
    def is_over(self) -> bool:
        """Whether the last event was told."""
        return self._over

    def _say(self, event: StreamEvent) -> None:
        if not self._over:
            self._over = event.is_last
            self._tell(event)


def _jobs_in(event: StreamEvent) -> Sequence[Mapping[str, Any]]:
    """The jobs that an event describes."""
    if event.name == "job":
        return [event.view]
    jobs: Sequence[Mapping[str, Any]] = event.view["jobs"] if event.name == "snapshot" else ()
    return jobs


def _knows(told: _Progress | None, view: Mapping[str, Any]) -> bool:
    """Whether a client that counts down from what it was told knows as much already."""
    if told is None or (view["progress"], view["position"]) != told[:2]:
        return False
    eta = view["eta"]
    if eta is None or told.eta is None:
        return bool(eta == told.eta)
    expected = max(told.eta - (time.monotonic() - told.at), 0.0)
    return bool(abs(expected - eta) <= max(_DRIFT_SECONDS, _DRIFT * eta))


def _without_what_is_large(job: Job) -> Job:
    """The job as a queue knows it: thousands of streams keep theirs."""
    return job._replace(args={}, init_image=None, images=(), webui=None, tried=())


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
        #: When progress, places and watched jobs were looked after last; of the thread that reads changes.
        self._progress_at = self._places_at = self._outlook_at = self._watched_at = 0.0
        self._places_of: Version | None = None
        self._outlook: Outlook | None = None

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
            gone = StreamEvent("gone", {"name": identity.name, "type": identity.type}, self._version_of(rev))
            feed.begin([*reset, gone, StreamEvent("end", {})], [], rev)
            return feed
        if known and last and job.finished and job.rev <= last.rev:
            self.close(feed)
            return None
        state = StreamEvent("job", describe(job, self._table.queries.place(job)), self._version_of(job.rev))
        if job.finished:
            feed.begin([*reset, state, StreamEvent("end", {})], [], job.rev)
        else:
            feed.begin([*reset, state], [job], max(job.rev, present))
        return feed

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
        self._tell_progress(version)

    def _told(self, changes: Sequence[Change], version: Version) -> list[JobChange]:
        """The changes with their jobs. What has changed again since then is left to the next time."""
        jobs = self._table.queries.named([change.identity for change in changes if change.status != "deleted"])
        # As it was deleted or changed meanwhile, there is another change to come.
        jobs = {identity: job for identity, job in jobs.items() if job.rev <= version.rev}
        places = self._table.queries.places([job for job in jobs.values() if not job.finished])
        versions = self._versions(changes, version)
        return [
            JobChange(
                versions[change.rev], change.identity, jobs.get(change.identity), places.get(change.identity, _NOWHERE)
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
            gone = StreamEvent("gone", {"name": identity.name, "type": identity.type}, version)
            feed.start_anew([reset, gone, StreamEvent("end", {})], [], version.rev)
            return
        state = StreamEvent("job", describe(job, self._table.queries.place(job)), self._version_of(job.rev))
        events = [reset, state, StreamEvent("end", {})] if job.finished else [reset, state]
        feed.start_anew(events, [] if job.finished else [job], job.rev)

    # -- progress ----------------------------------------------------------------------------------------------------

    def _tell_progress(self, version: Version) -> None:
        now = time.monotonic()
        if now < self._progress_at + _PROGRESS_SECONDS:
            return
        self._progress_at = now
        feeds = self._all()
        for feed in feeds:
            if feed.expires_at <= now:
                feed.finish("restart")
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
        for feed, job in watched:
            if job.identity in jobs:
                feed.progressed(jobs[job.identity], places[job.identity])

    def _tell_waiting(self, watched: Sequence[tuple[Feed, Job]]) -> None:
        """Tell positions and estimates."""
        places = self._table.queries.places(list({job.identity: job for _, job in watched}.values()))
        for feed, job in watched:
            feed.progressed(job, places[job.identity])

    def _outlook_has_changed(self, now: float) -> bool:
        """Whether waiting jobs may have other places than they were told, although no job has changed since."""
        if now < self._outlook_at + _OUTLOOK_SECONDS:
            return False
        self._outlook_at = now
        outlook, before = self._table.queries.outlook(), self._outlook
        if before is not None and before.resembles(outlook, _DRIFT_SECONDS) and now < self._places_at + _PLACES_SECONDS:
            return False
        self._outlook = outlook
        return True


_NOWHERE: Final = Place(None, None)


def _jobs_of(feeds: Iterable[Feed], status: str) -> list[tuple[Feed, Job]]:
    """The unfinished jobs with a status that these streams are about."""
    return [(feed, job) for feed in feeds for job in feed.unfinished() if job.status == status]


def _concerns(change: Change, watched: Mapping[str, Sequence[Feed]]) -> bool:
    """Whether any stream is about the job that changed."""
    feeds = watched.get(change.identity.user_id, ())
    return any(feed.job in (None, change.identity) for feed in feeds)
