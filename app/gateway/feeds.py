"""What one event stream is told: the events of a feed, in the order of the changes, each once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, NamedTuple

from app.jobs.model import Identity, Job, Place
from app.jobs.revisions import Version
from app.jobs.view import describe, progress_of

#: Seconds after which the stream of a user begins anew, so that it is checked again whether the client may have it.
LONGEST_SECONDS: Final = 3600.0
#: A new eta is told only if it differs from the one that a client counts down by more than so many seconds, and by more than this
#: share of it.
DRIFT_SECONDS: Final = 1.0
_DRIFT: Final = 0.1


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

    def progressed(self, identity: Identity, view: Mapping[str, Any]) -> None:
        """Tell how far an unfinished job is (:func:`app.jobs.view.progress_of`), if that is news."""
        with self._lock:
            if identity not in self._unfinished:
                return
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
    return bool(abs(expected - eta) <= max(DRIFT_SECONDS, _DRIFT * eta))


def _without_what_is_large(job: Job) -> Job:
    """The job as a queue knows it: thousands of streams keep theirs."""
    return job._replace(args={}, init_image=None, images=(), webui=None, tried=())
