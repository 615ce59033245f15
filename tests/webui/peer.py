"""A peer on loopback that answers as a test wants it to, for sockets that misbehave."""

import contextlib
import socket
import threading
from collections.abc import Callable


class Peer:
    """Listens on loopback and plays ``part`` with each connection, once its request was read whole."""

    def __init__(self, part: Callable[[socket.socket], None]) -> None:
        self.part = part
        self.requests: list[bytes] = []
        self.arrived = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self):
        # Shutting the listener down ends accept().
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self.requests.append(read_request(connection))
                    self.arrived.set()
                    self.part(connection)


def read_request(connection):
    data = bytearray()
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    # A byte array grows in place: the largest body here has 32 MiB.
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line.split(b":")[1]):
                body += connection.recv(65536)
    return bytes(head + b"\r\n\r\n" + body)


def answer(body=b"{}", *, length=None, status=b"200 OK"):
    size = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, size, body)


def says(data):
    return lambda connection: connection.sendall(data)


def resets(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def trickles(data=b" "):
    """Begin a valid answer and then send it a byte at a time, for ever."""

    def part(connection):
        peer_gone = threading.Event()
        while not peer_gone.wait(0.01):
            connection.sendall(data)

    return part


def then(*parts):
    def part(connection):
        for one in parts:
            one(connection)

    return part
