"""A client of event streams that shows every byte: what a browser's EventSource does, with nothing hidden."""

from __future__ import annotations

import io
import json
import socket
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

SECONDS = 30.0


@dataclass(frozen=True)
class Told:
    """One event."""

    name: str
    data: Any
    id: str | None = None


class _Chunks(io.RawIOBase):
    """The bytes of a chunked body, as they come; they end where the connection does, too."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._left = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = int(self._file.readline() or b"0", 16)
        data = self._file.read1(min(len(buffer), self._left)) if self._left else b""
        self._left -= len(data)
        if data and not self._left:
            self._file.readline()
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class EventClient:
    """One connection, opened by the constructor; ``status`` and ``headers`` are those of the answer."""

    def __init__(
        self, url: str, path: str, *, last: str | None = None, receive_buffer: int | None = None, **headers: str
    ) -> None:
        address = urlsplit(url)
        self.retry: int | None = None
        self.comments = 0
        self.socket = socket.socket()
        if receive_buffer is not None:
            # Before the connection, as the window is agreed on then.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(SECONDS)
        self._file = self.socket.makefile("rb")
        fields = {"Host": address.netloc, "Accept": "text/event-stream", **headers}
        if last is not None:
            fields["Last-Event-ID"] = last
        try:
            self.socket.connect((address.hostname, address.port))
            self._open(path, fields)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, fields: dict[str, str]) -> None:
        """Send the request, and read the head of the answer."""
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.status = int(self._line_of_head().split()[1])
        self.headers: dict[str, str] = {}
        while (line := self._line_of_head()) != "\r\n":
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        if self.headers.get("transfer-encoding") == "chunked":
            # As nginx passes streams on.
            self._file = io.BufferedReader(_Chunks(self._file))

    def _line_of_head(self) -> str:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("closed within the head of the answer")
        return line.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def body(self) -> bytes:
        """Everything until the end, or as much as the answer declares."""
        return self._file.read(int(self.headers.get("content-length", -1)))

    def next(self) -> Told | None:
        """The next event; None when the server has closed, within one or after one."""
        fields: dict[str, str] = {}
        while (line := self._file.readline()).endswith(b"\n"):
            if line == b"\n":
                if "data" in fields:
                    return Told(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
                continue
            name, _, value = line.decode().rstrip("\n").partition(":")
            self._count(name, value)
            fields[name] = value.removeprefix(" ")
        return None

    def _count(self, field: str, value: str) -> None:
        if field == "retry":
            self.retry = int(value)
        elif not field:
            self.comments += 1

    def upto(self, name: str) -> list[Told]:
        """The next events up to one with this name."""
        told: list[Told] = []
        while (event := self.next()) is not None:
            told.append(event)
            if event.name == name:
                return told
        raise AssertionError(f"the stream ended without {name}: {told}")

    def rest(self) -> list[Told]:
        """All events until the server closes."""
        told: list[Told] = []
        while (event := self.next()) is not None:
            told.append(event)
        return told
