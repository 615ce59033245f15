"""What changed, told within this process to those who wait for it: one thread reads the order of changes for all of them.

It reads only while somebody waits, every half second, and at once when it is told that there is something new.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from app.jobs.errors import DatabaseUnavailable
from app.jobs.revisions import Change, Revisions, Version

_LOG = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5
#: After a read that was told of, the next one waits so long, however much is told meanwhile: the changes of a busy moment are read
#: together.
_PAUSE_SECONDS: Final = 0.02
_END_SECONDS: Final = 3.0


class Follower(Protocol):
    """Somebody in this process for whom changes are read. Its methods are called by the thread that reads."""

    def follows(self) -> bool:
        """Whether it waits for changes now."""
        ...

    def wants_immediate_reads(self) -> bool:
        """Whether it wants to be told as soon as something happens, and not at the next poll."""
        ...

    def changed(self, changes: Sequence[Change], version: Version) -> None:
        """Told after each read, also after one that found nothing. When it raises DatabaseUnavailable, it is told the same again.

        :param changes: the jobs that changed since the last call, in their order.
        :param version: the moment up to which changes were read.
        """
        ...

    def lost_track(self, version: Version) -> None:
        """Told instead where changes can't be told from this database any more, such as after it was restored."""
        ...


class Changes:
    """Reads what changed, for the followers of this process."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions
        self._followers: list[Follower] = []
        self._read_now = threading.Event()
        self._awaited = threading.Event()
        self._ending = threading.Event()
        #: Guards the start of the thread, and what follows.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: The followers have been told of all changes after the rev ``_since`` and up to ``_up_to``; None while nobody follows.
        self._since: int | None = None
        self._up_to: int | None = None
        #: The highest rev that this process has read, here or by a follower.
        self._highest = 0

    def add(self, follower: Follower) -> None:
        """Tell a follower of changes, from now until the end of the process. Called before anybody follows."""
        self._followers.append(follower)

    def follow(self, since: int | None = None) -> None:
        """Read on, for a follower has begun to wait.

        :param since: the rev up to which the follower knows the jobs that it waits for; None if it looks at them itself when it
            is told of the next read.
        """
        with self._lock:
            if self._thread is None and not self._ending.is_set():
                self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
                self._thread.start()
            self._highest = max(self._highest, since or 0)
            if since is not None and (self._since is None or since < self._since):
                # Some changes may be told again.
                self._since = self._up_to = since
        self._awaited.set()

    def read_soon(self) -> None:
        """A notification that something has changed: read at once if anybody wants that."""
        if any(follower.wants_immediate_reads() for follower in self._followers):
            self._read_now.set()

    def end(self) -> None:
        """Read no more, and wait for the last read if that does not hang."""
        self._ending.set()
        self._read_now.set()
        self._awaited.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_END_SECONDS)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._await_followers()
            # Nobody who has just begun to wait needs a read at once, and the thread that claims a job needs the interpreter.
            soon = self._read_now.wait(_POLL_SECONDS)
            self._read_now.clear()
            try:
                self._read()
            except DatabaseUnavailable:
                _LOG.info("the database is unavailable; changes are read later")
            except Exception:  # noqa: BLE001 -- whatever it is
                # Without this thread nobody who waits would hear of anything any more.
                _LOG.exception("changes could not be read")
            if soon:
                self._ending.wait(_PAUSE_SECONDS)

    def _await_followers(self) -> None:
        self._awaited.clear()
        with self._lock:
            nobody = not any(follower.follows() for follower in self._followers)
            if nobody:
                self._since = self._up_to = None
        if nobody:
            self._awaited.wait()

    def _read(self) -> None:
        """Tell what changed since the last read."""
        # Taken before the present rev is read: a follower that comes in between may have read a higher one.
        with self._lock:
            after, highest = self._up_to, self._highest
        now = self._revisions.current()
        if after is None:
            after = self._begin_at(now.rev)
        if now.rev < highest:
            _LOG.warning("the database is older than it was: changes are counted anew")
            self._revisions.begin_epoch()
            now = self._revisions.current()
            self._tell(lambda follower: follower.lost_track(now))
        elif now.rev > after and after < self._revisions.purged_rev():
            # Something that happened since then is gone for good, such as the mark of a deleted job.
            self._tell(lambda follower: follower.lost_track(now))
        else:
            changes = self._revisions.between(after, now.rev) if now.rev > after else []
            self._tell(lambda follower: follower.changed(changes, now))
        with self._lock:
            # Unless a follower has come meanwhile who has read a higher one.
            if self._highest == highest:
                self._highest = now.rev
            # Unless a follower has come meanwhile who knows less.
            if self._up_to == after:
                self._up_to = now.rev
                self._since = min(self._since or 0, now.rev)

    def _begin_at(self, rev: int) -> int:
        """The rev after which changes are told; this one, unless a follower has come who knows less."""
        with self._lock:
            if self._up_to is None:
                self._since = self._up_to = rev
            return self._up_to

    def _tell(self, tell: Callable[[Follower], object]) -> None:
        for follower in self._followers:
            try:
                tell(follower)
            except DatabaseUnavailable:
                raise
            except Exception:  # noqa: BLE001 -- a bug of one of them is none of the others
                _LOG.exception("changes could not be told")
