"""One connection of a client, and its requests as gunicorn's parser makes them, checked as far as gunicorn leaves that to us."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from enum import Enum
from math import inf
from types import MappingProxyType
from typing import Any, Final

from gunicorn.http.errors import (  # type: ignore[import-untyped]  # the package ships no types
    InvalidHeader,
    LimitRequestHeaders,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request  # type: ignore[import-untyped]
from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]

from app.runtime import request_ids
from app.runtime.parking import Parked, Streamed
from app.serving.client_socket import ClientSocket

#: Seconds for a whole head, from its first byte; the first head of a connection, from the accept().
HEAD_SECONDS: Final = 10.0
#: Bytes of a head; gunicorn's own bounds of its parts (``limit_request_*``) would add up to 800 kB.
_HEAD_BYTES: Final = 64 * 1024
#: The most bytes that are read and thrown away of a request that was not read to its end.
UNREAD_BYTES: Final = 64 * 1024 * 1024
#: The most bytes of an unread body that are read before the answer, so that the connection can be kept.
_READY_BYTES: Final = 256 * 1024
BUFFER_BYTES: Final = 64 * 1024
_HTTP_1_1: Final = (1, 1)
#: RFC 3986, section 3.2.2, with an optional port.
_HOST: Final = re.compile(r"(\[[0-9A-Za-z:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")

#: The field in a head that could not be parsed.
_ORIGIN: Final = re.compile(rb"\norigin:[ \t]*([^\r\n]*?)[ \t]*\r?\n", re.IGNORECASE)


class ClientRequest(Request):  # type: ignore[misc]  # gunicorn ships no types
    """A request whose connection is closed after the answer if its body has not arrived by then."""

    version: tuple[int, int]
    _over: bool | None = None
    _id: str | None = None
    #: Members of the environ that the application has set, for the rest of a request that has waited.
    known: Mapping[str, Any] = MappingProxyType({})

    @property
    def id(self) -> str:
        """The id of the request: the client's, if it gave one, else one of our own."""
        if self._id is None:
            given = self._fields("X-REQUEST-ID")
            self._id = request_ids.accepted_or_new(given[0] if len(given) == 1 else None)
        return self._id

    def keep(self, environ: Mapping[str, Any]) -> None:
        """Keep what the application has set in the environ: its own members, by their prefix, and the client's address."""
        self.known = {name: value for name, value in environ.items() if name.startswith(("sd_gateway.", "REMOTE_ADDR"))}

    def body_is_over(self) -> bool:
        """Whether the next byte begins the next request. Decided once, when the answer's ``Connection`` field is written."""
        if self._over is None:
            self._over = not self.body.failed and self._skip_body()
        return self._over

    def _skip_body(self) -> bool:
        if getattr(self.body.reader, "length", None) == 0:
            # There is no body, or the application has read it.
            return True
        # Neither malformed chunks nor a broken connection end a body.
        with self.unreader.sock.without_waiting(), contextlib.suppress(OSError, ParseException):
            for _ in range(_READY_BYTES // BUFFER_BYTES):
                if not self.body.read(BUFFER_BYTES):
                    return True
        return False

    def should_close(self) -> bool:
        """Whether the connection ends with this request. gunicorn reads only a ``Connection`` field of one word."""
        wants_close = "close" in (
            word.strip(" \t").lower() for value in self._fields("CONNECTION") for word in value.split(",")
        )
        return wants_close or not self.body_is_over() or super().should_close()

    def check_head(self) -> None:
        """Check what gunicorn leaves to the application (RFC 9112, sections 3.2 and 6.1; RFC 9110, section 2.5).

        :raises InvalidHeader: HTTP/1.1 without one Host, or a Host that is none.
        :raises UnsupportedTransferCoding: a coding besides chunked, which nobody would undo.
        """
        hosts = self._fields("HOST")
        if (self.version >= _HTTP_1_1 and len(hosts) != 1) or not all(map(_HOST.fullmatch, hosts)):
            raise InvalidHeader("HOST")
        for coding in self._fields("TRANSFER-ENCODING"):
            if coding.strip(" \t").lower() != "chunked":
                raise UnsupportedTransferCoding(coding)
        # The status line names the version that we conform to.
        self.version = min(self.version, _HTTP_1_1)

    def _fields(self, name: str) -> list[str]:
        return [value for field, value in self.headers if field == name]


class _Parser(RequestParser):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's parser of one connection, which makes requests of our class."""

    mesg_class = ClientRequest


class Ending(Enum):
    """The fate of a connection after a request, or when its request waits."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"
    PARK = "park"


class Connection:
    """A connection: in a request thread, or in the main thread, waiting for a head, in the lobby or for the client's FIN."""

    __slots__ = (
        "began",
        "client",
        "closing",
        "end",
        "head",
        "idle",
        "parser",
        "request",
        "sends_on",
        "server",
        "since",
        "sock",
        "timeout",
        "too_long",
        "unread",
        "waits",
    )

    def __init__(self, sock: ClientSocket, client: Any, server: Any, cfg: Any) -> None:
        self.sock, self.client, self.server = sock, client, server
        self.parser: Any = _Parser(cfg, sock, client)
        #: The request that is being served, since when (monotonic), and what it waits for, or streams.
        self.began = 0.0
        self.request: ClientRequest | None = None
        self.waits: Parked | Streamed | None = None
        #: What has arrived of the next head, and perhaps of what follows it; empty once it is parsed.
        self.head = bytearray()
        self.too_long = False
        #: Whether a request was served and no byte of the next one has arrived.
        self.idle = False
        self.closing = False
        #: Bytes that may still be read and thrown away.
        self.unread = UNREAD_BYTES
        #: Whether the client may still be sending a body; None: its request tells.
        self.sends_on: bool | None = None
        self.wait(HEAD_SECONDS)

    def fileno(self) -> int:
        """The number of its file."""
        return self.sock.fileno()

    def wait(self, timeout: float, end: float = inf) -> None:
        """Begin a wait of so many seconds, which ends at ``end`` at the latest."""
        self.since, self.timeout, self.end = time.monotonic(), timeout, end

    def add(self, data: bytes | memoryview, longest_line: int) -> bool:
        """Add bytes to the head; True if it is complete, or malformed (RFC 9112, section 2.2) so that the parser will refuse it."""
        head, old = self.head, len(self.head)
        head += data
        end = head.find(b"\r\n\r\n", max(old - 3, 0))
        self.too_long = max(end, 0 if end >= 0 else len(head)) > _HEAD_BYTES
        if end >= 0 or self.too_long:
            return True
        last = max(old - 1, 0)
        bare = head.count(b"\n", old) != head.count(b"\r\n", last)
        return bare or (len(head) > longest_line + 2 and head.find(b"\n") < 0)

    def next_request(self) -> ClientRequest:
        """Parse the head."""
        # gunicorn would look for the rest of the last request's body.
        self.parser.mesg = None
        if self.too_long:
            raise LimitRequestHeaders(f"the head has more than {_HEAD_BYTES} bytes")
        self.parser.unreader.unread(bytes(self.head))
        request: ClientRequest = next(self.parser)
        self.head.clear()
        self.request = request
        request.check_head()
        return request

    def origin(self) -> str | None:
        """The ``Origin`` of the request that is refused, whether its head could be parsed or not."""
        if not self.head and self.request is not None:
            return next((value for name, value in self.request.headers if name == "ORIGIN"), None)
        found = _ORIGIN.search(self.head)
        return None if found is None else found[1].decode("latin-1")

    def may_send_on(self) -> bool:
        """Whether the client may still be sending a body that nobody reads."""
        if self.sends_on is not None:
            return self.sends_on
        request = self.parser.mesg
        return request is None or not request.body_is_over()

    def forget_request(self) -> None:
        """Free what was parsed: the answer has begun, and it is the last one of the connection."""
        self.sends_on = self.may_send_on()
        self.parser = self.request = self.waits = self.client = self.server = None
