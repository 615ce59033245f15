"""Everything that can go wrong between the gateway and a WebUI, one class per ending.

The text of each exception is meant for clients: it says what happened and what to do, and never holds anything that the WebUI
sent, a host name or a credential.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

_LONGEST_VALUE = 40


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


class WebuiError(Exception):
    """Base of this package's exceptions.

    ``slug`` names the problem for clients; ``retryable`` says whether another attempt at the same job may end better;
    ``detail`` is the text used when none is given.
    """

    slug: ClassVar[str] = "webui-error"
    retryable: ClassVar[bool] = False
    detail: ClassVar[str] = "The WebUI failed."

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or self.detail)


class Unreachable(WebuiError):
    """No connection was made (refused, unknown host, connect timeout, failed TLS handshake), so nothing was sent."""

    slug = "webui-unreachable"
    retryable = True
    detail = "The WebUI cannot be reached."


class NotAnswering(WebuiError):
    """A light question (never a generation) got no usable answer, though a connection was made.

    :param status: of the answer, where that is why it is of no use.
    """

    slug = "webui-unreachable"
    retryable = True
    detail = "The WebUI does not answer properly."

    def __init__(self, detail: str | None = None, status: int | None = None) -> None:
        self.status = status
        super().__init__(detail)


class ConnectionBroken(WebuiError):
    """A generation was sent, and the connection ended before its answer was complete."""

    slug = "webui-disconnected"
    retryable = True
    detail = "The connection to the WebUI broke before its answer was complete."


class Withheld(WebuiError):
    """The last bytes of the request were not sent, because its sender was not allowed to send it any more.

    The WebUI runs a request only when it is complete, so it never began with this one.
    """

    slug = "webui-disconnected"
    retryable = True
    detail = "The request was not completed."


class JobTimeout(WebuiError):
    """A generation was sent, and its answer was not complete within the time that one attempt may take."""

    slug = "webui-timeout"
    retryable = True
    detail = "The WebUI did not finish in time. Ask for fewer or smaller pictures, or for fewer steps."


class BadAnswer(WebuiError):
    """The WebUI answered 200, but not with what was asked for."""

    slug = "webui-bad-answer"
    retryable = True
    detail = "The WebUI's answer could not be read."


class WrongValues(BadAnswer):
    """The pictures have another seed or size than was asked for.

    :param received: what came in its place; the same once more shows that it is no accident.
    """

    def __init__(self, what: str, asked: object, received: object) -> None:
        self.received = f"{what} {_short(received)}"
        super().__init__(f"The WebUI answered with {self.received} where {_short(asked)} was asked for.")


class AnswerTooLarge(BadAnswer):
    """The answer was larger than anything that was asked for could be; it was not read to its end."""

    detail = "The WebUI's answer was larger than the pictures that were asked for can be."


class NotUp(WebuiError):
    """The WebUI answered the first request of an attempt as it does while it starts: its API is not there yet.

    Nothing was done, as if no connection had been made (``webui.py`` adds the API's routes after the port is open).

    :param restarted: the WebUI itself said so; a page may be that of a proxy in front of it, which shows no restart.
    """

    slug = "webui-unreachable"
    retryable = True
    detail = "The WebUI is starting, or runs without its API."

    def __init__(self, *, restarted: bool = False) -> None:
        super().__init__()
        self.restarted = restarted


class Interrupted(WebuiError):
    """The generation was stopped by somebody else: its pictures are half done, though the WebUI answered 200."""

    slug = "webui-interrupted"
    retryable = True
    detail = "Somebody interrupted the WebUI while it made the pictures. Don't use that WebUI by hand."


class Ambiguous(Interrupted):
    """The generation may have been stopped: it was too fast, and another task has begun since, which hides the interrupt."""


class WrongModel(WebuiError):
    """The pictures were made with another model than the job names."""

    slug = "webui-wrong-model"
    detail = "The WebUI used another model than the one asked for; it may no longer have that model."


class Refused(WebuiError):
    """The WebUI answered 4xx: the same request would be refused again."""

    slug = "webui-refused"
    detail = "The WebUI refused the request."


class WebuiFailed(WebuiError):
    """The WebUI answered 5xx, or asked to come again later."""

    slug = "webui-error"
    retryable = True
    detail = "The WebUI failed while it made the pictures. Its own log says why."


class OutOfMemory(WebuiError):
    """The GPU's memory was not enough.

    Not retryable as it stands; a job with several pictures has one more way, making them one after another.
    """

    slug = "webui-out-of-memory"
    detail = "The WebUI ran out of GPU memory, also one picture at a time. Ask for smaller pictures or less upscaling."


class Cannot(WebuiError):
    """The WebUI can't make these pictures: the same request would fail there in the same way again.

    Another WebUI may be able to. ``detail`` says what to change in the request.
    """

    slug = "webui-cannot"
    detail = "The WebUI can't make these pictures."


class NoLongerAvailable(WebuiError):
    """A name that was valid when the job was accepted is gone by the time it is sent."""

    slug = "no-longer-available"
    detail = "A name that the job uses is no longer available."


class ModelVanished(NoLongerAvailable):
    """The WebUI does not list the job's model any more; nothing was sent."""

    detail = "The WebUI no longer has the job's model."


class NoDefaultModel(WebuiError):
    """The request names no model, and the gateway has none to put in its place."""

    slug = "no-default-model"
    detail = "The request names no model, and no default model is known. Name one in `model`."


class OptionIgnored(WebuiError):
    """The WebUI cut the prompt at its ``#`` though it should not."""

    slug = "webui-bad-answer"
    retryable = True
    detail = "The WebUI left a part of the prompt out: what follows a # on its line."


class UnknownNames(WebuiError):
    """Names in a request that no WebUI has, or that no single WebUI has together.

    ``errors`` maps each field to its messages, ``accepted`` a field to the names it would take.
    """

    slug = "unknown-name"
    detail = "The request uses names that no WebUI offers."

    def __init__(
        self,
        errors: Mapping[str, Sequence[str]],
        accepted: Mapping[str, Sequence[str]],
        detail: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.errors: dict[str, list[str]] = {field: list(messages) for field, messages in errors.items()}
        self.accepted: dict[str, list[str]] = {field: list(names) for field, names in accepted.items()}


def nobody_listens(error: WebuiError) -> bool:
    """Whether the connection was refused: the WebUI's process has ended, or has not yet begun to listen."""
    return any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))


#: What the log says of the cause of a light question that failed.
_REASONS: Final[Mapping[type[BaseException], str]] = {
    JobTimeout: "no answer in time",
    ConnectionBroken: "the connection broke before the answer was complete",
    ConnectionRefusedError: "connection refused",
    socket.gaierror: "its host name can't be resolved",
    TimeoutError: "no connection in time",
    ValueError: "its answer is not JSON",
    RecursionError: "its answer is not JSON",
}


def reason(error: WebuiError) -> str:
    """The reason why a query got no usable answer, in a few words for the operator's log; credentials are not among them."""
    for cause in _causes(error):
        for kind, text in _REASONS.items():
            if isinstance(cause, kind):
                return text
        if isinstance(cause, OSError) and cause.strerror:
            return str(cause.strerror)
    return "its answer is not a WebUI's" if str(error) == NotAnswering.detail else str(error).rstrip(".")


#: What to do about the causes of failed questions, where there is more to say than about any other.
_REMEDIES: Final[Mapping[type[BaseException], str]] = {
    ssl.SSLCertVerificationError: "Give it a certificate that this machine trusts for that host name, or let a proxy on its own "
    "machine do TLS.",
    ssl.SSLError: "If it speaks plain HTTP, write http:// in SDG_WEBUI_URLS.",
    ConnectionRefusedError: "Start the WebUI, or correct its address in SDG_WEBUI_URLS.",
    socket.gaierror: "Correct the host name in SDG_WEBUI_URLS, or add it to the name server.",
    TimeoutError: "Correct its address in SDG_WEBUI_URLS, or open the firewall between here and there.",
    JobTimeout: "If it does not answer its own page either, restart it.",
    ConnectionBroken: "If its address begins with http:// and it has a certificate, write https://. Look at its log.",
}
_REMEDIES_OF_STATUSES: Final[Mapping[int, str]] = {
    401: "Write the user and password of its --api-auth into its address: http://user:password@host:port.",
    403: "Write the user and password of its --api-auth, or of the proxy in front, into its address: http://user:password@host:port.",
    404: "Start it with --api. If it is just starting, ask again in a minute.",
}


def remedy(error: WebuiError) -> str:
    """What the operator can do about the cause of a light question that failed."""
    if isinstance(error, NotAnswering) and error.status is not None and error.status in _REMEDIES_OF_STATUSES:
        return _REMEDIES_OF_STATUSES[error.status]
    for cause in _causes(error):
        for kind, text in _REMEDIES.items():
            if isinstance(cause, kind):
                return text
    return "Look at what answers at that address, and at its log."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that led to this one, the nearest first."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
