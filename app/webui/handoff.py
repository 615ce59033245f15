"""The hand-off of one job to a WebUI and back, with as little pause between two jobs as can be.

Time line of one job (C: the claim is committed, R: the request's first byte may go out)::

    runner      claim ──── C ── R ▶ waits for the reply ───────────────────── reply read ▶ frees the slot, claims the next
    helper 1      └ connect, build the request ─┘ POST ▶ ...the WebUI works... head ▶ body ▶
    helper 2                       └ connect for the interrupt query, send nothing ┘└ query ▶ answer
    store pool                     └ decodes and stores the answer before this one

The request of a job is *prepared* while its claim is being committed: connected, and built to its last byte but one
(:class:`Prepared`). It is released when the claim is committed, or cancelled.

Whether somebody interrupted a generation is not told by its 200. ``/sdapi/v1/progress`` shows a flag that the interrupt raised. It
stays until the next task begins (``modules/shared_state.py``: ``begin`` clears it, ``end`` does not), so it is asked for as soon as
the head of the answer arrives, on a connection that was made before (:class:`InterruptQuery`). Where another task has begun by then
the flag says nothing; what is left is the time: see :mod:`app.webui.pace`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from app.webui.client import ServerState, Webui
from app.webui.errors import JobTimeout, WebuiError

_T = TypeVar("_T")

#: Seconds that sending the question on its open connection may take.
_SENDING_SECONDS: Final = 0.02
_OK: Final = 200
#: How often the start of a generation is looked for while it is queued behind others, seconds.
_SHORTEST_POLL: Final = 0.1
_LONGEST_POLL: Final = 1.0
_POLLS_PER_GENERATION: Final = 20


class Cancelled(Exception):
    """The prepared request is not to be sent after all."""


class Prepared(Generic[_T]):
    """A request that is ready, with its connection made, and waits before its first byte.

    :param send: sends it; what it is given to call when the connection is made blocks there until :meth:`release`.
    """

    def __init__(self, pool: ThreadPoolExecutor, send: Callable[[Callable[[], None]], _T]) -> None:
        self._decided = threading.Event()
        self._on_sending: Callable[[], None] | None = None
        #: What ``send`` returns or raises, once it was released.
        self.sent: Future[_T] = pool.submit(send, self._await_decision)

    def _await_decision(self) -> None:
        self._decided.wait()
        if self._on_sending is None:
            raise Cancelled
        self._on_sending()

    def release(self, on_sending: Callable[[], None]) -> None:
        """Send it; ``on_sending`` is called right before."""
        self._on_sending = on_sending
        self._decided.set()

    def cancel(self) -> None:
        """Send nothing of it; without effect after :meth:`release`."""
        self._decided.set()


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The end of a generation. ``seconds`` is the time from its begin to its answer, as near as it is known, never less."""

    flagged: bool
    #: The state that was seen; None where the WebUI did not answer the question.
    state: ServerState | None
    seconds: float

    def another_began(self, timestamp: str | None) -> bool:
        """Whether another task has begun since, so that the flag says nothing; also where nothing could be asked.

        :param timestamp: ``job_timestamp`` of the generation's own info.
        """
        if self.state is None or self.state.busy:
            return True
        return bool(timestamp and self.state.job_timestamp) and self.state.job_timestamp != timestamp


class InterruptQuery:
    """Asks how one generation ended; threads of the pool do it."""

    def __init__(self, webui: Webui, pool: ThreadPoolExecutor) -> None:
        self._webui = webui
        self._pool = pool
        self._question: Prepared[ServerState | None] | None = None
        self._asked: Future[ServerState | None] | None = None
        self._sent = threading.Event()
        self._answered = threading.Event()
        self._not_begun_at = time.monotonic()
        self._answered_at = self._not_begun_at

    def prepare(self, watch_start_of: str | None, fastest: float | None) -> None:
        """The generation is about to be sent: make the question ready but for its first byte.

        :param watch_start_of: the task id, where the generation may have to wait behind others.
        :param fastest: seconds that such a generation takes at least, where that is known.
        """
        self._not_begun_at = time.monotonic()
        self._question = Prepared(self._pool, self._ask)
        if watch_start_of is not None:
            pause = min(max((fastest or 0.0) / _POLLS_PER_GENERATION, _SHORTEST_POLL), _LONGEST_POLL)
            self._pool.submit(self._watch_start, watch_start_of, pause)

    def _watch_start(self, task_id: str, pause: float) -> None:
        """Note until when the generation was queued behind others; each poll costs the one that runs a little."""
        while not self._answered.wait(pause):
            asked_at = time.monotonic()
            try:
                task = self._webui.task(task_id)
            except WebuiError:
                return
            if task is None or not task.queued:
                return
            self._not_begun_at = asked_at

    def ask(self, status: int) -> None:
        """The WebUI is done with the generation and answers with this status: ask now."""
        self._answered_at = time.monotonic()
        self._answered.set()
        if status == _OK and self._question is not None:
            self._asked = self._question.sent
            self._question.release(self._sent.set)

    def _ask(self, await_release: Callable[[], None]) -> ServerState | None:
        try:
            return self._ask_twice(await_release)
        except WebuiError:
            return None
        finally:
            self._sent.set()

    def _ask_twice(self, await_release: Callable[[], None]) -> ServerState:
        try:
            return self._webui.server_state(await_release)
        except WebuiError as error:
            if isinstance(error.__cause__, JobTimeout):
                raise
        # A proxy keeps no silent connection for ever: it closes it, or answers 408 (RFC 9110, section 15.5.9).
        await_release()
        return self._webui.server_state()

    def end(self) -> None:
        """The generation has ended, with or without an answer: a question that was not asked by now is not asked."""
        self._answered.set()
        if self._question is not None:
            self._question.cancel()

    def yield_until_sent(self) -> None:
        """Yield the interpreter (≤ 20 ms) until the question is sent: its answer then comes while this thread works on."""
        if self._asked is not None:
            self._sent.wait(_SENDING_SECONDS)

    def wait(self, seconds: float | None) -> bool:
        """Wait until the question is answered, at most ``seconds`` (None: for ever); True if it is."""
        return self._asked is None or bool(wait([self._asked], seconds).done)

    def result(self) -> Circumstances:
        """The circumstances of the end; blocks until the question is answered."""
        state = None if self._asked is None else self._asked.result()
        flagged = state is not None and state.stopped
        return Circumstances(flagged, state, self._answered_at - self._not_begun_at)
