"""ICC profiles for tests, built from their parts (ICC.1:2022, sections 7 to 10)."""

from __future__ import annotations

import struct

#: Red, green and blue of Display P3 (SMPTE EG 432-1, adapted to D50), as in profiles of phones.
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
#: The same of sRGB (IEC 61966-2-1).
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
_D50 = (0.9642, 1.0, 0.8249)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def srgb_curve() -> bytes:
    """The transfer function of sRGB and Display P3."""
    return b"para\0\0\0\0\0\x03\0\0" + b"".join(map(_fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))


def gamma(value: float) -> bytes:
    """A pure power; 1 is linear light."""
    return b"para\0\0\0\0\0\0\0\0" + _fixed(value)


def profile(space: bytes, tags: dict[bytes, bytes], *, pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A profile of these tags."""
    tags = {b"wtpt": _xyz(_D50)} | tags
    place = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, place + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    whole = place + len(bodies)
    head = struct.pack(">I4sI4s4s4s", whole, b"test", 0x04300000, kind, space, pcs)
    head += struct.pack(">6H4s4sI", 2026, 1, 1, 0, 0, 0, b"acsp", b"APPL", 0) + bytes(20) + b"".join(map(_fixed, _D50))
    return head.ljust(128, b"\0") + table + bodies


def rgb(primaries: tuple[tuple[float, float, float], ...] = P3, curve: bytes | None = None) -> bytes:
    """A profile of a matrix and one curve."""
    curve = curve or srgb_curve()
    columns = {name: _xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return profile(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey(curve: bytes) -> bytes:
    """A profile for grey."""
    return profile(b"GRAY", {b"kTRC": curve})


def cmyk() -> bytes:
    """A printer's profile whose perceptual table makes lightness of black ink alone, and red of magenta alone."""
    head = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + b"".join(_fixed(v) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    straight = bytes(range(256))
    # Each combination of no and full ink, black fastest: L*a*b* with a* = b* = 0 at 128.
    nodes = b"".join(
        bytes((255 if not black else 0, 208 if magenta and not black else 128, 128))
        for cyan in (0, 1)
        for magenta in (0, 1)
        for yellow in (0, 1)
        for black in (0, 1)
    )
    return profile(b"CMYK", {b"A2B0": head + straight * 4 + nodes + straight * 3}, pcs=b"Lab ", kind=b"prtr")


def endless(steps: int) -> bytes:
    """A Display P3 whose D2B0 tag takes so many steps for each colour."""
    matrix = b"matf\0\0\0\0\0\x03\0\x03" + struct.pack(">12f", 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    start = 16 + 8 * steps
    table = b"".join(struct.pack(">II", start, len(matrix)) for _ in range(steps))
    tag = b"mpet\0\0\0\0" + struct.pack(">HHI", 3, 3, steps) + table + matrix
    columns = {name: _xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3, strict=True)}
    curves = {name: srgb_curve() for name in (b"rTRC", b"gTRC", b"bTRC")}
    return profile(b"RGB ", columns | curves | {b"D2B0": tag})
