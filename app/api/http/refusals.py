"""The requests that the API refuses by itself, before any service hears of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from app.problems import shown

_MOST_NAMED = 10


class RefusalError(Exception):
    """Base of this package's exceptions; ``str(exc)`` is shown to the client."""

    slug: ClassVar[str]


class InvalidJson(RefusalError):
    """The body is not JSON, or not in UTF-8."""

    slug = "invalid-json"


class InvalidRequest(RefusalError):
    """The path, the query or a header is malformed."""

    slug = "invalid-request"


class BodyTooSlow(RefusalError):
    """The body arrives too slowly."""

    slug = "request-timeout"


class UnsupportedMediaType(RefusalError):
    """The body is declared as something else than JSON."""

    slug = "unsupported-media-type"


class BodyTooLarge(RefusalError):
    """The body is over the limit."""

    slug = "body-too-large"


class NoRoomForBody(RefusalError):
    """A large body could not be kept until its turn; the operating system's error stands in ``__cause__``."""

    slug = "no-room-for-body"

    def __init__(self) -> None:
        super().__init__("The gateway has no room for a large body now; a small one may pass.")


class TokenMissing(RefusalError):
    """The request has no token, and needs one."""

    slug = "token-missing"

    def __init__(self) -> None:
        super().__init__("Send the token as 'Authorization: Bearer sdg_…'.")


class ScopeMissing(RefusalError):
    """The token does not allow what the request asks for."""

    slug = "scope-missing"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This needs the scope {scope}, which the token does not have.")


class CrossSite(RefusalError):
    """The request has a cookie for a token, and may come from a page of another site."""

    slug = "cross-site-request"

    def __init__(self) -> None:
        super().__init__("With a cookie in place of a token, a request must come from this gateway's own page.")


class NotFound(RefusalError):
    """A path names what cannot exist."""

    slug = "not-found"


class UnknownType(RefusalError):
    """A path names a type of job that does not exist."""

    slug = "unknown-type"


class FileGone(RefusalError):
    """A file was deleted between being found and being opened."""

    slug = "file-missing"


class NotAcceptable(RefusalError):
    """The Accept field of the request excludes the only media type of the path."""

    slug = "not-acceptable"


class PreconditionFailed(RefusalError):
    """A condition of the request's header does not hold."""

    slug = "precondition-failed"


class ValidationFailed(RefusalError):
    """Fields of the body, the path or the query break the contract; ``errors`` holds the messages of each."""

    slug = "validation-failed"

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        self.errors = {shown(field): list(messages) for field, messages in errors.items()}
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        if list(self.errors) == ["_schema"]:
            return " ".join(self.errors["_schema"])
        names = [name for name in self.errors if name != "_schema"]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        besides = "".join(f" {message}" for message in self.errors.get("_schema", ()))
        return f"Refused: {', '.join(names[:_MOST_NAMED])}{more}.{besides} The messages are in errors."
