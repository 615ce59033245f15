"""Answers on their way out: counted to the last byte, and spoilt where a fault says so."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, request

from app.runtime import jsontext
from app.simulator import streams
from app.simulator.engine import Engine
from app.simulator.faults import Fault
from app.simulator.stats import Visit

#: The last bytes of an answer go out by themselves, so that "over" can be noted right before them and never after.
_TAIL = 1024
#: Seconds between two bytes of a trickle.
_DRIP = 0.05
#: Digits of the Content-Length of "long-content-length", bytes that "declares-huge" declares.
_DIGITS = 5000
_HUGE = 10_000_000_000


def as_json(value: Any, status: int = 200) -> Response:
    """Compact JSON in UTF-8, as the server writes it."""
    return Response(jsontext.dumps(value), status, content_type="application/json")


def method_not_allowed(*allowed: str) -> Response:
    """The 405 of the server's router; ``Allow`` names the methods that it knows."""
    response = as_json({"detail": "Method Not Allowed"}, 405)
    response.headers["Allow"] = ", ".join(sorted(set(allowed) - {"HEAD", "OPTIONS"}))
    return response


class Delivery:
    """Turns the body of one POST into the response that is really sent."""

    def __init__(self, engine: Engine, visit: Visit, fault: Fault | None) -> None:
        self._engine = engine
        self._visit = visit
        self._fault = fault

    def send(self, response: Response) -> Response:
        """The response as it goes out; the visit ends just before its last bytes do, or when the client has left."""
        effect = None if self._fault is None else self._fault.effect
        spoil: Callable[[bytes, Response], Response] | None = {
            "close": self._close,
            "hang-idle": self._hang,
            "torn": self._tear,
            "trickle": self._trickle,
            "bad-json": self._break_json,
            "long-content-length": self._overstate,
            "endless": self._endless_chunks,
            "endless-close": self._endless,
            "declares-huge": self._huge,
            "huge-json": self._pad,
            "many-lists": self._list_lists,
        }.get(effect or "")
        data = response.get_data()
        if spoil is not None:
            return spoil(data, response)
        return self._counted(self._in_two(data), response, len(data))

    def _counted(self, chunks: Iterator[bytes], response: Response, length: int) -> Response:
        answer = Response(chunks, response.status_code, response.headers)
        answer.headers["Content-Length"] = str(length)
        answer.call_on_close(lambda: self._visit.end(time.perf_counter(), answered=False))
        return answer

    def _in_two(self, data: bytes) -> Iterator[bytes]:
        head, tail = data[:-_TAIL], data[-_TAIL:]
        if head:
            yield head
        self._visit.end(time.perf_counter())
        yield tail

    def _close(self, _data: bytes, response: Response) -> Response:
        """Hang up instead of answering; outside a server there is no line to hang up on."""
        self._visit.end(time.perf_counter(), answered=False)
        connection = request.environ.get("werkzeug.socket")
        if isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return Response(b"", response.status_code, {"Connection": "close"})

    def _hang(self, data: bytes, response: Response) -> Response:
        """The work is over and the server idle, but the answer stays away; in the end the line is cut."""
        self._visit.end(time.perf_counter(), answered=False)
        self._engine.wait_for_stop(self._lasts(3600))
        return self._close(data, response)

    def _tear(self, data: bytes, response: Response) -> Response:
        answer = self._counted(iter((data[: len(data) // 2],)), response, len(data))
        answer.headers["Connection"] = "close"
        return answer

    def _trickle(self, data: bytes, response: Response) -> Response:
        return self._counted(self._drops(data), response, len(data))

    def _drops(self, data: bytes) -> Iterator[bytes]:
        until = time.perf_counter() + self._lasts(10)
        sent = 0
        while sent < len(data) - 1 and time.perf_counter() < until and not self._engine.wait_for_stop(_DRIP):
            yield data[sent : sent + 1]
            sent += 1
        yield from self._in_two(data[sent:])

    def _break_json(self, data: bytes, response: Response) -> Response:
        half = data[: len(data) // 2]
        return self._counted(self._in_two(half), response, len(half))

    def _overstate(self, data: bytes, response: Response) -> Response:
        self._visit.end(time.perf_counter(), answered=False)
        answer = self._counted(iter((data,)), response, len(data))
        answer.headers["Content-Length"] = "9" * _DIGITS
        answer.headers["Connection"] = "close"
        return answer

    def _endless_chunks(self, _data: bytes, response: Response) -> Response:
        answer = self._stream(streams.chunked(streams.endless()), response)
        answer.headers["Transfer-Encoding"] = "chunked"
        return answer

    def _endless(self, _data: bytes, response: Response) -> Response:
        answer = self._stream(streams.endless(), response)
        answer.headers["Connection"] = "close"
        return answer

    def _huge(self, _data: bytes, response: Response) -> Response:
        return self._stream(streams.limited(streams.endless(), _HUGE), response, _HUGE)

    def _pad(self, data: bytes, response: Response) -> Response:
        size = max(self._sized(900_000_000), sum(map(len, streams.padded(data, 0))))
        return self._stream(streams.padded(data, size), response, size)

    def _list_lists(self, _data: bytes, response: Response) -> Response:
        size = max(self._sized(300_000_000), sum(map(len, streams.many_lists(0))))
        return self._stream(streams.many_lists(size), response, size)

    def _stream(self, pieces: Iterator[bytes], response: Response, length: int | None = None) -> Response:
        """A 200 in pieces; the visit ends before the first, as the work is over and nobody may take the rest."""
        self._visit.end(time.perf_counter(), answered=False)
        answer = self._counted(self._while_running(pieces), response, length or 0)
        answer.status_code = 200
        if length is None:
            del answer.headers["Content-Length"]
        return answer

    def _while_running(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._engine.wait_for_stop(0):
                return
            yield piece

    def _sized(self, otherwise: int) -> int:
        return otherwise if self._fault is None else self._fault.sized(otherwise)

    def _lasts(self, otherwise: float) -> float:
        return otherwise if self._fault is None else self._fault.lasts(otherwise)
