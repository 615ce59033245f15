"""Figure 2: what the gateway adds to a picture that a client waits for.

The baseline posts the same payload straight to the same simulator and writes one image and one JSON as durably as the gateway
does (temporary file, fsync, rename, fsync of the folder), without a database.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Bench, Line, picture, post_by_hand, webui_payload
from benchmarks.report import Row, Sample, judged, milliseconds, say

_PAIRS = 20
_PAIRS_AT_ZERO = 60


def run(bench: Bench) -> None:
    """Add a row for 0.2 s a picture and one for none."""
    through, straight = _measure(bench, 0.2, bench.count(_PAIRS))
    ratio = through.median / straight.median
    bench.add(
        Row(
            "sync POST at 0.2 s a picture",
            str(through),
            f"straight {straight}, ratio {ratio:.3f}",
            "ratio ≤ 1.05",
            judged(ratio <= 1.05),
        )
    )
    through, straight = _measure(bench, 0.0, bench.count(_PAIRS_AT_ZERO))
    added = through.median - straight.median
    bench.add(
        Row(
            "sync POST at 0 s a picture",
            f"{through}: {added:.2f} ms added",
            f"straight {straight}",
            "added ≤ 10 ms at the median",
            judged(added <= 10),
        )
    )


def _measure(bench: Bench, seconds: float, pairs: int) -> tuple[Sample, Sample]:
    """Time the two ways in turns."""
    say(f"added time at {seconds:g} s a picture, {pairs} times each way")
    with bench.stage() as stage:
        simulator = stage.simulator(seconds)
        gateway = stage.gateway([simulator]).start()
        gateway.make()
        posted = json.dumps(picture()).encode()
        payload = json.dumps(webui_payload(simulator)).encode()
        with gateway.line() as front, simulator.line() as back:

            def straight() -> None:
                _straight(back, payload, stage.folder)

            def through() -> None:
                front.send("POST", "/txt2img", posted).json()

            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(pairs):
                for way, call in enumerate((through, straight)):
                    times[way].append(_timed(call))
    return Sample(times[0]), Sample(times[1])


def _timed(call: Callable[[], None]) -> float:
    begun = time.perf_counter()
    call()
    return milliseconds(time.perf_counter() - begun)


def _straight(line: Line, payload: bytes, folder: Path) -> None:
    for data in post_by_hand(line, payload):
        _write_durably(folder, f"{time.time_ns()}.png", data)
    _write_durably(folder, f"{time.time_ns()}.json", payload)


def _write_durably(folder: Path, filename: str, data: bytes) -> None:
    temporary = folder / f".{filename}"
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / filename)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
