"""Ends waiting requests and event streams when their token is revoked, or their session or signed URL expires.

Streams that were begun without a token end when the first one is made.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Final

from app.jobs.errors import DatabaseUnavailable
from app.jobs.tokens import Tokens

_LOG = logging.getLogger(__name__)

#: How often the tokens of those who wait or watch are looked up. A request may have begun with a look-up that was
#: :data:`app.gateway.access.KEPT_SECONDS` old; together that is less than the 10 s that a revocation may take.
CHECK_SECONDS: Final = 4.0


class Hold:
    """One request that lasts.

    :param token: the id of its token; None without one. Without ``until`` too, it lasts until the first token is made.
    :param until: the :func:`time.time` at which its permission ends; None if that is not known beforehand.
    :param end: ends it; may be called from any thread, once, and must return at once.
    """

    __slots__ = ("end", "token", "until")

    def __init__(self, token: str | None, until: float | None, end: Callable[[], object]) -> None:
        self.token = token
        self.until = until
        self.end = end

    @property
    def is_looked_up(self) -> bool:
        """Whether the table of tokens decides about its end."""
        return self.token is not None or self.until is None


class Revocation:
    """Ends the requests of this process whose permission is over, and notes which tokens are used.

    Its thread starts with the first of them, so that a process without tokens has none.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._changed = threading.Condition()
        # Guarded by the condition.
        self._holds: set[Hold] = set()
        self._used: set[str] = set()
        self._check_at = 0.0
        #: When the thread looks by itself, :func:`time.monotonic`; 0 while it does.
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None
        self._stopped = False

    def hold(self, hold: Hold) -> None:
        """Watch over a request until it is released."""
        with self._changed:
            self._holds.add(hold)
            self._run(self._seconds_left_of(hold))

    def release(self, hold: Hold) -> None:
        """Watch over a request no more; later calls do nothing."""
        with self._changed:
            self._holds.discard(hold)

    def note_use(self, token_id: str) -> None:
        """Note soon that a token is used."""
        with self._changed:
            self._used.add(token_id)
            self._run(0.0)

    def tokens_changed(self) -> None:
        """Look the tokens up now."""
        with self._changed:
            self._check_at = 0.0
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; nothing is ended or noted any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, seconds: float) -> None:
        """Have the thread look in so many seconds at the latest; the caller holds the condition."""
        if self._thread is None and not self._stopped:
            self._check_at = time.monotonic() + CHECK_SECONDS
            self._thread = threading.Thread(target=self._loop, name="revocation", daemon=True)
            self._thread.start()
        elif time.monotonic() + seconds < self._wakes_at:
            # Not for each of thousands of streams: the thread looks through all of them.
            self._changed.notify()

    def _loop(self) -> None:
        while self._await_work():
            try:
                # First, for a note may wait for another writer.
                self._end_overdue()
                self._note_uses()
            except DatabaseUnavailable:
                # Leave them open: without the database nothing says that they are invalid. New requests are refused meanwhile.
                _LOG.warning("the tokens of those who wait or watch could not be looked up")
            except Exception:  # noqa: BLE001 -- a bug ends one look, and not the thread
                _LOG.exception("the tokens of those who wait or watch could not be looked up")

    def _await_work(self) -> bool:
        """Wait until something is to be looked at; False when the thread is to end."""
        with self._changed:
            while not self._stopped and (left := self._seconds_left()) > 0:
                self._wakes_at = time.monotonic() + left
                self._changed.wait(None if left == inf else left)
            self._wakes_at = 0.0
            return not self._stopped

    def _seconds_left(self) -> float:
        """Seconds until something is to be looked at; infinite when there is nothing."""
        if self._used:
            return 0.0
        return min(map(self._seconds_left_of, self._holds), default=inf)

    def _seconds_left_of(self, hold: Hold) -> float:
        """Seconds until this request is to be looked at."""
        until_look = self._check_at - time.monotonic() if hold.is_looked_up else inf
        until_end = inf if hold.until is None else hold.until - time.time()
        return min(until_look, until_end)

    def _note_uses(self) -> None:
        with self._changed:
            used, self._used = self._used, set()
        if used:
            self._tokens.note_use(used)

    def _end_overdue(self) -> None:
        now = time.time()
        with self._changed:
            overdue = {hold for hold in self._holds if hold.until is not None and hold.until <= now}
            due = self._check_at <= time.monotonic()
            looked_up = {hold for hold in self._holds if hold.is_looked_up} if due else set()
            if due:
                self._check_at = time.monotonic() + CHECK_SECONDS
        self._end(overdue)
        self._end(self._not_permitted(looked_up))

    def _not_permitted(self, holds: set[Hold]) -> set[Hold]:
        """Those whose token is not valid any more, or which were begun without one before the first was made."""
        tokens = {hold.token for hold in holds if hold.token is not None}
        invalid = self._tokens.invalid(tokens) if tokens else set()
        exist = any(hold.token is None for hold in holds) and self._tokens.exist()
        return {hold for hold in holds if (exist if hold.token is None else hold.token in invalid)}

    def _end(self, holds: set[Hold]) -> None:
        with self._changed:
            # Those that were released meanwhile have ended by themselves.
            holds = holds & self._holds
            self._holds -= holds
        for hold in holds:
            try:
                hold.end()
            except Exception:  # noqa: BLE001 -- the others are ended all the same
                _LOG.exception("a request could not be ended whose permission is over")
