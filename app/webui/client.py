"""The client of one WebUI: generations, which are long and sent exactly once, and light questions beside them.

Route names and answers: ``modules/api/api.py`` and ``modules/progress.py`` of the WebUI.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from app.config import WebuiAddress
from app.runtime import jsontext
from app.webui import bounds
from app.webui.catalogue import Catalogue, read_commented_styles, read_names, read_schedulers, read_styles
from app.webui.errors import BadAnswer, ConnectionBroken, JobTimeout, NotAnswering
from app.webui.exchange import Clock, Exchange, Limits, Reply, adapter, prepare, send
from app.webui.models import read_models
from app.webui.overrides import PROMPT_COMMENTS

#: Largest answer to a light question that is read, bytes, and the values that its JSON may hold.
_QUESTION_LIMIT = 16 << 20
_QUESTION_VALUES = 500_000
#: Entries of a list route that are read; a WebUI with thousands of models lists fewer.
_LONGEST_LIST = 10_000
#: Seconds that a generation may be said to take still; the guess before the first step is often absurd.
_LONGEST_ETA = 1e9
#: Seconds that the WebUI may take to read its models folder again.
_REFRESH_SECONDS = 10.0

_API = "/sdapi/v1"
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "sd-gateway",
}
_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 401, 403, 404
#: ``state.job_timestamp`` of a process that has not begun a job (``modules/shared_state.py``).
NO_JOB_YET = "0"
#: An id that no attempt bears: asking for it tells whether the route is there.
_NO_TASK = "sd-gateway-probe"


@dataclass(frozen=True)
class TaskState:
    """The state of one task id; all false for an id that it does not know."""

    active: bool
    queued: bool
    completed: bool
    #: 0…1, None when the task is not active.
    progress: float | None
    #: Seconds until it ends, as the WebUI guesses; None when it does not.
    eta: float | None


@dataclass(frozen=True)
class ServerState:
    """The state of the WebUI as a whole."""

    #: 0…1; 0.01 before the first step.
    progress: float
    #: Seconds, linearly guessed; meaningless before the first step.
    eta: float
    #: Such as ``scripts_txt2img`` or, for extras, ``Upscale``; "" when idle.
    job: str
    #: 0 when idle, -1 while a job prepares itself, else its parts (doubled by the hires fix).
    job_count: int
    #: The part that runs, from 0.
    job_no: int
    #: Of that part; may still be those of the job before.
    sampling_step: int
    sampling_steps: int
    interrupted: bool
    skipped: bool
    #: When the job that runs, or ran last, began: by the WebUI's clock, to the second, as ``info.job_timestamp``.
    job_timestamp: str = ""

    @property
    def stopped(self) -> bool:
        """Whether somebody interrupted or skipped the job that runs, or ran last; the next one lowers both flags."""
        return self.interrupted or self.skipped

    @property
    def busy(self) -> bool:
        """Whether a job runs. What a failed extras call leaves behind until the next job begins is none
        (``modules/postprocessing.py``).
        """
        leftover = self.job == "Upscale" and self.progress >= 1.0
        return self.job_count != 0 and not leftover


class Webui:
    """One WebUI by its address.

    Every method uses a connection of its own and may be called from any thread; at most one generation (or upscaling) at a
    time. Credentials in the address go into HTTP Basic authentication and nowhere else.
    """

    def __init__(
        self, address: WebuiAddress, *, job_timeout: float, connect_timeout: float = 5.0, query_timeout: float = 5.0
    ) -> None:
        """Make a client; nothing is sent.

        :param job_timeout: seconds that one generation may take, from its first byte sent to the last one read.
        :param connect_timeout: seconds to connect.
        :param query_timeout: seconds that any other call may take as a whole.
        """
        self.key = address.key
        self.name = address.name
        self._base, self._credentials = _split_credentials(address.url)
        self._job_timeout = job_timeout
        self._connect_timeout = connect_timeout
        self._query_timeout = query_timeout
        self._lock = threading.Lock()
        self._running: Exchange | None = None
        self._adapter = adapter()
        self._clock = Clock()

    def __repr__(self) -> str:
        return f"Webui({self.key!r})"

    # -- generations ------------------------------------------------------------------------------------------------------

    def generate(
        self,
        path: str,
        payload: Mapping[str, Any],
        limit: int,
        on_open: Callable[[], None] | None = None,
        on_status: Callable[[int], None] | None = None,
        *,
        may_complete: Callable[[], bool] | None = None,
    ) -> Reply:
        """Post a generation once and wait for its whole answer, whatever its status; ``path`` is txt2img or img2img.

        :param limit: most bytes that the body of a 200 may have; of any other answer the rest is left out.
        :param on_open: called when the connection is made and the request is about to go out.
        :param on_status: called with the status when the answer begins to arrive: by then the WebUI is done with the job.
        :param may_complete: asked right before the last byte of the request is sent, whether it may be.
        :raises Unreachable: no connection was made, so the WebUI knows nothing of it.
        :raises Withheld: ``may_complete`` said no, so the WebUI never began with it.
        :raises AnswerTooLarge: the WebUI is done with it, but its answer was not read to the end.
        :raises ConnectionBroken: it was sent, and the answer broke off or :meth:`abort` was called; the WebUI may still work
            on it.
        :raises JobTimeout: it was sent and took too long; the WebUI may still work on it.
        """
        return self._post_once(f"{_API}/{path}", payload, limit, Exchange(on_open, on_status, may_complete))

    def upscale(
        self, payload: Mapping[str, Any], limit: int, *, may_complete: Callable[[], bool] | None = None
    ) -> Reply:
        """Post pictures to be upscaled; parameters and errors as :meth:`generate` has them."""
        return self._post_once(f"{_API}/extra-batch-images", payload, limit, Exchange(may_complete=may_complete))

    def abort(self) -> None:
        """Break the connection of the generation in flight, if there is one; the WebUI itself is not stopped by that."""
        with self._lock:
            if self._running is not None:
                self._running.cut()

    def _post_once(self, route: str, payload: Mapping[str, Any], limit: int, exchange: Exchange) -> Reply:
        with self._lock:
            self._running = exchange
        try:
            return self._send("POST", route, payload, exchange, self._job_timeout, limit)
        finally:
            with self._lock:
                # One that was aborted may end after the next has begun.
                if self._running is exchange:
                    self._running = None

    # -- light questions --------------------------------------------------------------------------------------------------

    def task(self, task_id: str) -> TaskState | None:
        """Return what the WebUI knows of an attempt's task, or None where it cannot be asked.

        No preview is asked for: making one would cost the generation its time on the GPU.

        :raises Unreachable: no connection was made.
        :raises NotAnswering: the answer is of no use.
        """
        body = self._ask("POST", "/internal/progress", _task_question(task_id), may_lack=True)
        if body is None:
            return None
        state = _object(body)
        return TaskState(
            active=state.get("active") is True,
            queued=state.get("queued") is True,
            completed=state.get("completed") is True,
            progress=_fraction(state.get("progress")),
            eta=_seconds(state.get("eta")),
        )

    def waiting_tasks(self) -> list[str] | None:
        """Return the ids of all tasks that wait for their turn, or None where it can't be asked; raises as :meth:`task` does.

        Calls of the extras have no task, and are not among them.
        """
        body = self._ask("GET", "/internal/pending-tasks", may_lack=True)
        if body is None:
            return None
        tasks = _object(body).get("tasks")
        if not isinstance(tasks, list):
            raise NotAnswering
        return [str(task) for task in tasks]

    def server_state(self, on_open: Callable[[], None] | None = None) -> ServerState:
        """Return what the WebUI is doing; raises as :meth:`task` does.

        :param on_open: called when the connection is made and the question is about to go out.
        """
        body = _object(self._ask("GET", f"{_API}/progress?skip_current_image=true", on_open=on_open))
        state = _object(body.get("state"))
        return ServerState(
            progress=_fraction(body.get("progress")) or 0.0,
            eta=_seconds(body.get("eta_relative")) or 0.0,
            job=str(state.get("job") or ""),
            job_count=_count(state, "job_count"),
            job_no=_count(state, "job_no"),
            sampling_step=_count(state, "sampling_step"),
            sampling_steps=_count(state, "sampling_steps"),
            interrupted=state.get("interrupted") is True,
            skipped=state.get("skipped") is True,
            job_timestamp=str(state.get("job_timestamp") or ""),
        )

    def interrupt(self, on_open: Callable[[], None] | None = None) -> None:
        """Stop whatever the WebUI is making now, whoever asked for it; raises as :meth:`task` does.

        Its generation then answers 200 with what is done so far. Sent while nothing runs, it has no effect.

        :param on_open: called when the connection is made and the interrupt is about to go out; what it raises holds that back.
        """
        self._ask("POST", f"{_API}/interrupt", on_open=on_open)

    def refresh_checkpoints(self) -> None:
        """Have the WebUI read its models folder again, which takes vanished files off its list; raises as :meth:`task` does.

        It waits for its turn behind a generation that runs.
        """
        self._ask("POST", f"{_API}/refresh-checkpoints", seconds=_REFRESH_SECONDS)

    def loaded_checkpoint(self) -> str:
        """Return what the WebUI calls the checkpoint that it has loaded, "" for none; raises as :meth:`task` does."""
        options = _object(self._ask("GET", f"{_API}/options"))
        return str(options.get("sd_model_checkpoint") or "")

    def checkpoints(self) -> Catalogue:
        """Return a catalogue of the models alone, with the one that is loaded now; raises as :meth:`task` does."""
        options = _object(self._ask("GET", f"{_API}/options"))
        found = Catalogue(models=read_models(self._list("sd-models")))
        loaded = found.model(str(options.get("sd_model_checkpoint") or ""))
        return found if loaded is None else found.with_loaded(loaded)

    def catalogue(self) -> Catalogue:
        """Return the names that the WebUI offers now; raises as :meth:`task` does.

        A WebUI that is starting can be killed by requests, so the rest is only asked after one good answer. A list whose
        route is missing is empty.
        """
        options = _object(self._ask("GET", f"{_API}/options"))
        styles = self._list("prompt-styles")
        found = Catalogue(
            samplers=read_names(self._list("samplers")),
            schedulers=read_schedulers(self._list("schedulers")),
            upscalers=read_names(self._list("upscalers")),
            latent_modes=read_names(self._list("latent-upscale-modes")),
            styles=read_styles(styles),
            commented_styles=read_commented_styles(styles),
            models=read_models(self._list("sd-models")),
            prompt_comments=_flag(options.get(PROMPT_COMMENTS)),
            task_ids=self.task(_NO_TASK) is not None,
            forge=self._ask("GET", f"{_API}/sd-modules", may_lack=True) is not None,
        )
        loaded = found.model(str(options.get("sd_model_checkpoint") or ""))
        return found if loaded is None else found.with_loaded(loaded)

    def _list(self, name: str) -> list[dict[str, Any]]:
        body = self._ask("GET", f"{_API}/{name}", may_lack=True)
        if body is None:
            return []
        if not isinstance(body, list):
            raise NotAnswering
        return [entry for entry in body[:_LONGEST_LIST] if isinstance(entry, dict)]

    def _ask(
        self,
        method: str,
        route: str,
        payload: Mapping[str, Any] | None = None,
        *,
        may_lack: bool = False,
        on_open: Callable[[], None] | None = None,
        seconds: float | None = None,
    ) -> object | None:
        """Return the JSON that a light question is answered with, or None where the route may be missing and is."""
        seconds = self._query_timeout if seconds is None else seconds
        try:
            reply = self._send(method, route, payload, Exchange(on_open), seconds, _QUESTION_LIMIT)
        except (BadAnswer, ConnectionBroken, JobTimeout) as error:
            raise NotAnswering from error
        if reply.status == _NOT_FOUND and may_lack:
            return None
        if reply.status != _OK:
            raise NotAnswering(_why(reply.status), reply.status)
        try:
            # A route that answers null is there all the same.
            answer: object = bounds.parse(reply.body, _QUESTION_VALUES)
        except BadAnswer as error:
            raise NotAnswering from error
        return {} if answer is None else answer

    def _send(
        self,
        method: str,
        route: str,
        payload: Mapping[str, Any] | None,
        exchange: Exchange,
        seconds: float,
        limit: int,
    ) -> Reply:
        body = None if payload is None else jsontext.dumps(payload)
        headers = _HEADERS if body is None else _HEADERS | {"Content-Type": "application/json"}
        request = prepare(method, self._base + route, body, self._credentials, headers)
        return send(
            self._adapter,
            self._clock,
            request,
            exchange,
            Limits(self._connect_timeout, seconds, limit),
        )


def _split_credentials(url: str) -> tuple[str, tuple[bytes, bytes] | None]:
    """Return the URL without user and password, and those, percent-decoded."""
    parts = urlsplit(url.rstrip("/"))
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return parts.geturl(), None
    user, _, password = userinfo.partition(":")
    return parts._replace(netloc=host).geturl(), (unquote(user).encode(), unquote(password).encode())


def _task_question(task_id: str) -> dict[str, Any]:
    return {"id_task": task_id, "live_preview": False, "id_live_preview": -1}


def _why(status: int) -> str:
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return f"The WebUI refuses the gateway's credentials (status {status})."
    if status == _NOT_FOUND:
        return "The WebUI has no API (status 404): it must be started with --api."
    return f"The WebUI answers with status {status}."


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise NotAnswering
    return body


def _number(value: object) -> float | None:
    """A number as Python's float; None for anything else, numbers too large for one and NaN included."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _fraction(value: object) -> float | None:
    number = _number(value)
    return None if number is None else min(max(number, 0.0), 1.0)


def _seconds(value: object) -> float | None:
    number = _number(value)
    return None if number is None else min(max(number, 0.0), _LONGEST_ETA)


def _count(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
