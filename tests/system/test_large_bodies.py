"""Many large bodies at once, slow ones and broken ones, over a real gunicorn."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.system.harness import Gateway, Simulator, Stage, at_once, picture

MEGABYTE = 10**6
#: Far fewer than the bodies of all clients together take, and more than a few of them at work do.
ROOM = 160 * MEGABYTE
CLIENTS = 32


def reference(size: int) -> str:
    """A small picture in a PNG of so many bytes: a private chunk that nobody reads fills it."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(buffer, "PNG")
    png = buffer.getvalue()
    data = os.urandom(size)
    chunk = struct.pack(">I", size) + b"baLt" + data + struct.pack(">I", zlib.crc32(b"baLt" + data))
    head = 8 + 25  # signature and IHDR
    return base64.b64encode(png[:head] + chunk + png[head:]).decode("ascii")


@pytest.fixture(scope="module")
def body() -> bytes:
    """An img2img request of 8 MB."""
    return json.dumps(picture(init_images=reference(6 * MEGABYTE))).encode()


def memory(pid: int | None, what: str) -> int:
    """VmHWM (the most that was ever resident) or VmRSS (what is now) of a process, bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) * 1024


def post(gateway: Gateway, body: bytes, **headers: str) -> int:
    given = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = gateway.http.request("POST", "/img2img", data=body, headers=given)
    assert answer.json()["status"] in ("queued", "running", "succeeded"), answer.text
    return answer.status_code


def test_many_large_bodies_at_once_take_little_memory(stage: Stage, simulator: Simulator, body: bytes) -> None:
    gateway = stage.gateway([simulator], processes=1)
    pid = gateway.worker_pid()
    before = memory(pid, "VmRSS")

    def call(number: int) -> int:
        # A repeated key is compared by the whole body.
        return post(gateway, body, Idempotency_Key=f"key-{number // 2}")

    codes = at_once([lambda number=number: call(number) for number in range(CLIENTS)])

    assert codes == [200] * CLIENTS
    assert len(gateway.history(kind="img2img")) == CLIENTS / 2
    assert CLIENTS * len(body) > 1.5 * ROOM
    assert memory(pid, "VmHWM") - before < ROOM


def test_clients_that_never_finish_a_large_body_are_in_nobodys_way(
    stage: Stage, simulator: Simulator, body: bytes
) -> None:
    gateway = stage.gateway([simulator], processes=1)
    address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    head = b"POST /img2img HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    slow = [socket.create_connection(address, timeout=30) for _ in range(8)]
    try:
        for connection in slow:
            connection.sendall(head % len(body) + body[: len(body) // 2])
        assert post(gateway, body) == 200
        slow[0].sendall(body[len(body) // 2 :])
        assert slow[0].recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for connection in slow:
            connection.close()
    assert len(gateway.jobs()) == 2


BROKEN = {
    "bad UTF-8": lambda body: body.replace(b"lighthouse", b"\xff\xfe"),
    "half": lambda body: body[:-1],
    "NaN": lambda body: body.replace(b"7.0", b"NaN"),
    "a member twice": lambda body: body[:-1] + b', "id": "other"}',
    "an unknown field": lambda body: body[:-1] + b', "promt": 1}',
    "an unpaired surrogate": lambda body: body.replace(b"lighthouse", rb"\ud800"),
    "no base64": lambda body: body.replace(b'"init_images": "', b'"init_images": "!'),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_large_body_is_refused_as_a_small_one_is(house: Gateway, body: bytes, fault: str) -> None:
    small = json.dumps(picture(init_images=reference(6))).encode()
    headers = {"Content-Type": "application/json", "X-Request-ID": "the-same"}
    # The image stands last, so that both have their fault at one place, but for those behind it.
    answers = [
        house.http.request("POST", "/img2img", data=BROKEN[fault](sent), headers=headers) for sent in (small, body)
    ]
    first, second = (answer.json() for answer in answers)
    if fault == "half":
        assert first.pop("detail").startswith("Expecting ',' delimiter: line 1 column ")
        assert second.pop("detail").startswith("Expecting ',' delimiter: line 1 column ")
    assert first == second
    assert 400 <= first["status"] < 500
