"""Answers that are not ready yet: without a thread under our own server, in the thread of the request under any other."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from flask import Flask, Response, current_app, request

from app.api.http.guard import Guard, caller, present_guard
from app.gateway.access import Caller
from app.gateway.revocation import Hold
from app.runtime import request_ids
from app.runtime.parking import PARKS, Awaited, Parked

_Answer_co = TypeVar("_Answer_co", covariant=True)
_Now = TypeVar("_Now")
#: Members of an environ that describe the client.
_OF_THE_CLIENT: Final = ("REMOTE_ADDR", "wsgi.url_scheme")
#: Members that describe the request's body, which was read before the wait.
_OF_THE_BODY: Final = ("werkzeug.request", "HTTP_TRANSFER_ENCODING", "wsgi.input_terminated")


@runtime_checkable
class Pending(Awaited, Protocol[_Answer_co]):
    """Something awaited that a use case knows the answer to."""

    def answer(self) -> _Answer_co | None:
        """The answer; None if the wait goes on, for a wake-up is no proof."""
        ...


def answered(answer: _Now | Pending[_Now], respond: Callable[[_Now], Response]) -> Response:
    """The response for an answer that is there, or for one that is pending."""
    return WaitingResponse(answer, respond) if isinstance(answer, Pending) else respond(answer)


class _Guarded:
    """A wait that is also over when the client may not wait any more: its token was revoked."""

    def __init__(self, pending: Awaited, guard: Guard, caller: Caller) -> None:
        self._pending = pending
        self._guard = guard
        self._caller = caller
        self._hold: Hold | None = None
        #: See :class:`app.runtime.parking.Awaited`.
        self.give_up: Final = pending.give_up

    @property
    def deadline(self) -> float:
        """The :func:`time.monotonic` at which the wait is over in any case."""
        return self._pending.deadline

    def begin(self, wake: Callable[[], object]) -> None:
        """Begin to wait, or go on."""
        self.release()
        if self._caller.token is not None:
            self._hold = self._guard.hold(self._caller, wake)
        self._pending.begin(wake)

    def leave(self) -> None:
        """End the wait: the client is gone, or refused."""
        self.release()
        self._pending.leave()

    def release(self) -> None:
        """Forget the permission: the wait is over, or begins anew."""
        if self._hold is not None:
            self._guard.release(self._hold)
            self._hold = None


class WaitingResponse(Response):
    """A response that is made when its wait is over.

    What a view did before it returned this runs once; ``respond`` makes the real response, in a request context of its own, for
    the same request but without its body. The ``after_request`` functions see both: the real one counts.
    """

    def __init__(self, pending: Pending[_Now], respond: Callable[[_Now], Response]) -> None:
        super().__init__()
        self._pending = pending
        self._respond = respond
        self._caller = caller()
        self._guarded = _Guarded(pending, present_guard(), self._caller)
        # As it was believed from a proxy.
        self._client = {name: request.environ.get(name, "") for name in _OF_THE_CLIENT}
        # The proxy is bound to the context, which is gone when the wait is over.
        self._app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """The Parked of this wait, or, under a server that can't park, the bytes of the real response."""
        answer: Iterable[bytes] | Parked = Parked(self._guarded, self._resume)
        while isinstance(answer, Parked) and not environ.get(PARKS):
            woken = threading.Event()
            self._guarded.begin(woken.set)
            woken.wait(max(self._guarded.deadline - time.monotonic(), 0.0))
            answer = self._resume(environ, start_response)
        return answer

    def _resume(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | Parked:
        kept = {key: value for key, value in environ.items() if key not in _OF_THE_BODY}
        kept |= {"wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0", **self._client}
        with request_ids.serving(kept[request_ids.ENVIRON]), self._app.request_context(kept):
            response = self._made()
            return Parked(self._guarded, self._resume) if response is None else response(kept, start_response)

    def _made(self) -> Response | None:
        """The real response, None while the wait goes on; what goes wrong is answered as it is anywhere else."""
        try:
            self._check_caller()
            answer = self._pending.answer()
            if answer is None:
                return None
            self._guarded.release()
            response = self._respond(answer)
        except Exception as error:  # noqa: BLE001 -- Flask's own handler takes what none of ours does
            self._guarded.release()
            response = self._app.make_response(self._app.handle_user_exception(error))
        return self._app.process_response(response)

    def _check_caller(self) -> None:
        """Refuse a client whose token was revoked while it waited."""
        try:
            present_guard().confirm(self._caller)
        except Exception:
            self._guarded.leave()
            raise
