"""What our gunicorn worker does in gunicorn's place, on a real connection."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.wsgi import FileWrapper

from app.api.serving import Response

SIZE = 3_000_000


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the server's end, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield server, client


def answer(server: socket.socket, length: int | None = SIZE, *, method: str = "GET", **settings: Any) -> Response:
    config = Config()
    for name, value in settings.items():
        config.set(name, value)
    request = SimpleNamespace(method=method, version=(1, 1), should_close=lambda: False)
    response = Response(request, server, config)
    headers = [("Content-Type", "image/png")] + ([("Content-Length", str(length))] if length is not None else [])
    response.start_response("200 OK", headers)
    return response


def received(client: socket.socket, send: threading.Thread, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    """The answer as a client reads it, and its body."""
    send.start()
    answer = HTTPResponse(client, method=method)
    answer.begin()
    try:
        return answer, answer.read()
    except IncompleteRead as error:
        return answer, error.partial
    finally:
        assert client.recv(1) == b""
        send.join()


def sender(response: Response, path: Path, server: socket.socket, offset: int = 0) -> threading.Thread:
    def send() -> None:
        with FileIO(path) as file:
            file.seek(offset)
            response.write_file(FileWrapper(file))
            response.close()
        server.shutdown(socket.SHUT_WR)

    return threading.Thread(target=send)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "picture"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.mark.parametrize("settings", [{}, {"sendfile": False}], ids=str)
@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (0, 1000), (1_000_000, 2_000_000), (0, 0), (0, None)])
def test_a_file_arrives_whole_behind_its_head(
    line: tuple[socket.socket, socket.socket], path: Path, offset: int, length: int | None, settings: dict[str, Any]
) -> None:
    server, client = line
    response = answer(server, length, **settings)
    got, body = received(client, sender(response, path, server, offset))
    assert (got.status, got.getheader("Content-Type")) == (200, "image/png")
    assert got.getheader("Content-Length") == (None if length is None else str(length))
    assert body == path.read_bytes()[offset:][:length]
    assert not response.should_close()


def test_a_head_alone_goes_without_the_file(line: tuple[socket.socket, socket.socket], path: Path) -> None:
    server, client = line
    got, body = received(client, sender(answer(server, method="HEAD"), path, server), "HEAD")
    assert (got.getheader("Content-Length"), body) == (str(SIZE), b"")


def test_the_head_goes_out_with_the_first_bytes(
    line: tuple[socket.socket, socket.socket], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = line
    sendfile, seen = os.sendfile, []

    def look_and_send(*args: Any) -> int:
        seen.append(bool(select.select([client], [], [], 0)[0]))
        return sendfile(*args)

    monkeypatch.setattr(os, "sendfile", look_and_send)
    received(client, sender(answer(server), path, server))
    assert seen[0] is False


def test_a_file_that_was_cut_short_ends_the_connection(line: tuple[socket.socket, socket.socket], path: Path) -> None:
    server, client = line
    response = answer(server, SIZE + 1)
    _, body = received(client, sender(response, path, server))
    assert body == path.read_bytes()
    assert response.should_close()
