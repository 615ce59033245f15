"""The request as this API reads it: a JSON body judged by our own rules, and header fields that a POST may carry.

Flask's and webargs' readers are not used: they take a wrong content type for a missing body, accept NaN and let a
RecursionError through.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import flask
from flask.globals import request_ctx
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]  # the package ships no types
from werkzeug.utils import cached_property

from app.api.http import cancel_after
from app.api.http.bodies import KIBIBYTE, MEBIBYTE, Body
from app.api.http.refusals import BodyTooLarge, BodyTooSlow, InvalidRequest, UnsupportedMediaType
from app.api.http.strictjson import parse
from app.serving.client_socket import ClientSocket

_LOG = logging.getLogger(__name__)

#: The key of ``app.config`` that holds the largest body, bytes.
MAX_BODY = "SDG_MAX_BODY"
#: The key of ``app.config`` that holds the semaphore of those who have a large body in memory.
BODY_TURNS = "SDG_BODY_TURNS"

#: The endpoints that take less than that, since nobody needs a token for them: bytes.
_SMALL_BODIES: Mapping[str, int] = MappingProxyType({"session.create_session": 4 * KIBIBYTE})

#: What gunicorn raises while it reads a body: the client reset the connection, or its chunks are malformed.
_BROKEN = (OSError, ParseException)
_CHUNK = 256 * 1024
#: The body of a request that takes none is read before the answer so far: bytes, and seconds in all.
_UNREAD_BYTES = 64 * 1024
_UNREAD_SECONDS = 0.1

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))

_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,255}")


def present_request() -> GatewayRequest:
    """The present request itself, for code that looks at it several times: each look through ``flask.request`` takes as long as a
    call or two.
    """
    return cast("GatewayRequest", request_ctx.request)


class GatewayRequest(flask.Request):
    """A request whose body is JSON or nothing."""

    @cached_property
    def document(self) -> Any:
        """The parsed body.

        Of a large one this waits until it has arrived whole, and then for a turn, which lasts until :meth:`release_body`: as text,
        as values, as an image and as pixels it takes several times its length, and only a few may do so at once. A client
        that is slow holds no turn.

        :raises UnsupportedMediaType: it is not declared as JSON in UTF-8.
        :raises InvalidRequest: it broke off.
        :raises BodyTooSlow: it did not keep the pace that our worker asks of a body.
        :raises BodyTooLarge: it is longer than the setting allows, whether declared or chunked.
        :raises NoRoomForBody: it is large, and can't be kept until its turn.
        :raises InvalidJson: it is not JSON as RFC 8259 has it, or a member occurs twice in one object.
        """
        self._check_content_type()
        with Body() as body:
            self._receive(body)
            if body.large:
                turns: threading.BoundedSemaphore = flask.current_app.config[BODY_TURNS]
                self._turn.enter_context(turns)
            return parse(body.read())

    @cached_property
    def _turn(self) -> contextlib.ExitStack:
        """The context that ends the turn of a large body."""
        return contextlib.ExitStack()

    def forget_document(self) -> None:
        """Forget the parsed body; whoever works on it may let go of its parts one after the other."""
        self.__dict__.pop("document", None)

    def release_body(self) -> None:
        """Forget the parsed body and end its turn: a client may wait for minutes, and the next large body for this one."""
        self.forget_document()
        # Most requests have had none.
        if "_turn" in self.__dict__:
            self._turn.close()

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the parsed body as canonical JSON, the same for equal documents: keys sorted, no spaces, not escaped."""
        digest = hashlib.sha256()
        for piece in _CANONICAL.iterencode(self.document):
            digest.update(piece.encode())
        return digest.hexdigest()

    @property
    def idempotency_key(self) -> str | None:
        """The Idempotency-Key header, 1 to 255 visible ASCII characters, or ``None``.

        :raises InvalidRequest: it is anything else.
        """
        key = self.headers.get("Idempotency-Key")
        if key is not None and not _VISIBLE_ASCII.fullmatch(key):
            raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters without spaces.")
        return key

    @property
    def cancel_after(self) -> float | None:
        """The seconds of the Cancel-After header, or ``None``.

        :raises InvalidRequest: there are two, or it is anything else than a time that may be asked for.
        """
        return cancel_after.parse(self.headers.getlist("Cancel-After"))

    def check_unread_body(self) -> None:
        """Read the body of a request that takes none, as far as it is small and has arrived.

        Otherwise a malformed one would be found only behind the answer. The rest is left to the server, which closes the
        connection where it can't tell where the body ends.

        :raises InvalidRequest: its chunks are malformed, or it is shorter than declared.
        """
        declared = self.content_length or 0
        if not declared and "HTTP_TRANSFER_ENCODING" not in self.environ:
            return
        size = 0
        with contextlib.suppress(TimeoutError), self._little_patience():
            for chunk in self._chunks(_UNREAD_BYTES):
                size += len(chunk)
                if size >= _UNREAD_BYTES:
                    return
            self._check_length(size)

    def _little_patience(self) -> contextlib.AbstractContextManager[None]:
        """Have our server raise TimeoutError when the time for a body that nobody reads is up."""
        connection: ClientSocket | None = self.environ.get("gunicorn.socket")
        return contextlib.nullcontext() if connection is None else connection.within(_UNREAD_SECONDS)

    def _check_content_type(self) -> None:
        charset = self.mimetype_params.get("charset", "utf-8").lower()
        if self.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("The Content-Type must be application/json, in UTF-8.")
        if self.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("The body must come without a Content-Encoding.")

    def _receive(self, body: Body) -> None:
        limit: int = _SMALL_BODIES.get(self.endpoint or "", flask.current_app.config[MAX_BODY])
        shown = f"{limit // MEBIBYTE} MiB" if limit >= MEBIBYTE else f"{limit // KIBIBYTE} KiB"
        too_large = BodyTooLarge(f"The body is larger than {shown}.")
        if (self.content_length or 0) > limit:
            raise too_large
        try:
            for chunk in self._chunks():
                if body.size + len(chunk) > limit:
                    raise too_large
                body.add(chunk)
        except TimeoutError as error:
            _LOG.info("the body of a request came too slowly: %s", error)
            raise BodyTooSlow(f"The body came too slowly: {error}.") from error
        self._check_length(body.size)

    def _check_length(self, size: int) -> None:
        if size < (self.content_length or 0):
            raise InvalidRequest("The body is shorter than its Content-Length.")

    def _chunks(self, most: int = _CHUNK) -> Iterator[bytes]:
        """The body as it arrives, in pieces of at most so many bytes.

        :raises InvalidRequest: the client reset the connection, or its chunks are malformed.
        :raises TimeoutError: nothing came for longer than the connection's patience.
        """
        try:
            # Not read(limit + 1): a stream may answer short before its end.
            while chunk := self.stream.read(most):
                yield chunk
        except TimeoutError:
            raise
        except _BROKEN as error:
            # The client's doing, and mostly nobody is there any more to be told.
            # Not the whole error: that of a malformed chunk shows what was sent.
            why = (error.strerror or "") if isinstance(error, OSError) else ""
            _LOG.info("the body of a request broke off: %s", why or type(error).__name__)
            raise InvalidRequest("The body broke off.") from error
