"""The request as this API reads it: a JSON body judged by our own rules, and the two header fields that a POST may carry.

Flask's and webargs' readers are not used: they take a wrong content type for a missing body, accept NaN and let a
RecursionError through.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from collections import Counter
from typing import Any, NoReturn

import flask
from werkzeug.exceptions import ClientDisconnected
from werkzeug.utils import cached_property

from app.api.refusals import (
    BodyTooLarge,
    InvalidJson,
    InvalidRequest,
    UnsupportedMediaType,
    shown,
)

MEBIBYTE = 1024 * 1024
#: The key of ``app.config`` that holds the largest body, bytes.
MAX_BODY = "SDG_MAX_BODY"
#: The key of ``app.config`` that holds the semaphore of those who parse a large body.
PARSE_TURNS = "SDG_PARSE_TURNS"

_CHUNK = 256 * 1024
#: A refused request is read on so far, bytes and seconds, so that its client gets to read the answer: closing a connection
#: with unread bytes resets it, and the answer is lost.
_DRAIN_BYTES = 64 * MEBIBYTE
_DRAIN_SECONDS = 5.0

_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,255}")


class GatewayRequest(flask.Request):
    """A request whose body is JSON or nothing."""

    @cached_property
    def document(self) -> Any:
        """The parsed body.

        :raises UnsupportedMediaType: it is not declared as JSON in UTF-8.
        :raises BodyTooLarge: it is longer than the setting allows, whether declared or chunked.
        :raises InvalidJson: it is not JSON as RFC 8259 has it, or a member occurs twice in one object.
        """
        self._check_content_type()
        body = self._read()
        if len(body) < MEBIBYTE:
            return parse(body)
        # While it is parsed a body stands in memory three times: as bytes, as text and as values.
        turns: threading.BoundedSemaphore = flask.current_app.config[PARSE_TURNS]
        with turns:
            return parse(body)

    def forget_document(self) -> None:
        """Let go of the parsed body: a client may wait for minutes, and a reference image is megabytes."""
        self.__dict__.pop("document", None)

    @property
    def canonical(self) -> str:
        """The parsed body as JSON text that is the same for equal documents: keys sorted, no spaces, not escaped."""
        return json.dumps(self.document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @property
    def idempotency_key(self) -> str | None:
        """The Idempotency-Key header, 1 to 255 visible ASCII characters, or ``None``.

        :raises InvalidRequest: it is anything else.
        """
        key = self.headers.get("Idempotency-Key")
        if key is not None and not _VISIBLE_ASCII.fullmatch(key):
            raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters without spaces.")
        return key

    def drain(self) -> None:
        """Read what the client still sends, within bounds, and throw it away."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        left = _DRAIN_BYTES
        with contextlib.suppress(ClientDisconnected, OSError):
            while left > 0 and time.monotonic() < deadline:
                chunk = self.stream.read(min(_CHUNK, left))
                if not chunk:
                    break
                left -= len(chunk)

    def _check_content_type(self) -> None:
        charset = self.mimetype_params.get("charset", "utf-8").lower()
        if self.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("The Content-Type must be application/json, in UTF-8.")
        if self.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("The body must come without a Content-Encoding.")

    def _read(self) -> bytearray:
        limit: int = flask.current_app.config[MAX_BODY]
        too_large = BodyTooLarge(f"The body is larger than {limit // MEBIBYTE} MiB.")
        if (self.content_length or 0) > limit:
            raise too_large
        # Not read(limit + 1): a stream may answer short before its end.
        body = bytearray()
        while chunk := self.stream.read(_CHUNK):
            body += chunk
            if len(body) > limit:
                raise too_large
        return body


def parse(body: bytes | bytearray) -> Any:
    """Read JSON strictly.

    :raises InvalidJson: saying what is wrong and where.
    """
    if not body.strip(b" \t\r\n"):
        raise InvalidJson("The body is empty.")
    try:
        text = body.decode("utf-8")
        if isinstance(body, bytearray):
            body.clear()
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: see byte {error.start}.") from error
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg}: line {error.lineno} column {error.colno}.") from error
    except RecursionError as error:
        raise InvalidJson("The body is nested too deeply.") from error
    except ValueError as error:
        # Python's own bound on the digits of an integer.
        raise InvalidJson("The body holds a number of too many digits.") from error


def is_finite(number: float) -> bool:
    """Whether a parsed JSON number is one: ``1e999`` is valid JSON that Python reads as infinity."""
    return isinstance(number, int) or math.isfinite(number)


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is no JSON value.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose members are all different; of two with one name nobody knows which was meant."""
    members = dict(pairs)
    if len(members) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidJson(f"The member {shown(twice)} occurs twice in one object.")
    return members
