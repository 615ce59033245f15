"""Answers that are too large to be built: sent piece by piece, for as long as somebody reads them."""

from __future__ import annotations

from collections.abc import Iterator

_PIECE = 2**16
#: How a generation's answer begins.
_BEGINNING = b'{"images":["iVBORw0KGgoAAAANSUhEUgAA'


def endless() -> Iterator[bytes]:
    """The beginning of a picture, and base64 without an end."""
    yield _BEGINNING
    while True:
        yield b"A" * _PIECE


def limited(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of a stream."""
    for piece in pieces:
        yield piece[:size]
        size -= len(piece)
        if size <= 0:
            return


def chunked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Each piece as a chunk of its own (RFC 9112, section 7.1), for streams that do not end."""
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


def padded(answer: bytes, size: int) -> Iterator[bytes]:
    """A JSON object of so many bytes: the answer, itself one, with a long member in front; never less than both of them."""
    head, tail = b'{"padding":"', b'",' + answer[1:]
    yield head
    yield from _repeated(b"A", size - len(head) - len(tail))
    yield tail


def many_lists(size: int) -> Iterator[bytes]:
    """A generation's answer of so many bytes whose ``images`` are empty lists."""
    head, tail = b'{"images":[[]', b'],"parameters":{},"info":"{}"}'
    space = max(0, size - len(head) - len(tail))
    yield head
    yield from _repeated(b",[]", space - space % 3)
    yield b" " * (space % 3) + tail


def _repeated(pattern: bytes, size: int) -> Iterator[bytes]:
    """A pattern again and again; ``size`` is a multiple of its length."""
    step = _PIECE - _PIECE % len(pattern)
    piece = pattern * (step // len(pattern))
    for sent in range(0, size, step):
        yield piece[: min(step, size - sent)]
