"""Pages of other origins: the header fields by which a browser lets them call the gateway and read its answers.

Cross-origin resource sharing, as https://fetch.spec.whatwg.org/#http-cors-protocol has it. Credentials are never allowed: a page
sends a token by ``Authorization``, and no cookie. Flask-CORS was looked at: it leaves ``Vary`` out where the origin is not allowed
or missing, names the same methods for every path, and knows nothing of what gunicorn refuses before Flask has seen it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: The fields of a request that a page may send, besides those that any page may.
_REQUEST_FIELDS: Final = (
    "Authorization",
    "Cancel-After",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "X-Request-ID",
)
#: The fields of an answer that a page may read, besides those that any page may. A range tells in Content-Range which one it is.
_ANSWER_FIELDS: Final = (
    "Content-Range",
    "ETag",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
)
#: Seconds for which a browser may keep what it was told of a path; Chromium keeps nothing for longer.
_MAX_AGE: Final = 7200


class CrossOrigin:
    """The pages that may call the gateway.

    :param origins: theirs, such as ``https://app.example.com``; empty: none, and no answer has a field of this kind.
    """

    def __init__(self, origins: frozenset[str]) -> None:
        self.origins: Final = origins

    def fields(self, origin: str | None) -> dict[str, str]:
        """The fields of any answer to a request with this ``Origin``, besides ``Vary: Origin``."""
        if origin is None or origin not in self.origins:
            return {}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": ", ".join(_ANSWER_FIELDS)}


def preflight(methods: Iterable[str]) -> dict[str, str]:
    """The further fields of the answer to a browser that asks what a page may send to a path, which takes these methods."""
    return {
        "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
        "Access-Control-Allow-Headers": ", ".join(_REQUEST_FIELDS),
        "Access-Control-Max-Age": str(_MAX_AGE),
    }
