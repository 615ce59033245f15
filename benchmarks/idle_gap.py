"""Figure 1: how long a WebUI stands idle between two queued jobs, and before a job that arrives on an idle gateway."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Gateway, Line, Simulator, paused, picture, post_by_hand, webui_payload
from benchmarks.report import Row, Sample, judged, milliseconds, say

#: Seconds that a picture takes, by the size of the batch.
_SECONDS = {1: 0.1, 4: 0.05}
_GAPS = 50
#: More jobs than gaps: the first ones begin while the others are being queued.
_SPARE = 5
_ARRIVALS = 25


def run(bench: Bench) -> None:
    """Add a row for each size and batch, and one for the arrival."""
    for side in (512, 1024):
        for batch in _SECONDS:
            _queued(bench, side, batch)
    _arrival(bench)


def _queued(bench: Bench, side: int, batch: int) -> None:
    say(f"idle gap, {side} × {side}, batch {batch}")
    count = bench.count(_GAPS)
    with bench.stage() as stage:
        simulator = stage.simulator(_SECONDS[batch])
        gateway = stage.gateway([simulator]).start()
        gaps = _through_the_queue(simulator, gateway, count, {"width": side, "height": side, "batch_size": batch})
        payload = webui_payload(simulator)
        gateway.kill()
        by_hand = _by_hand(simulator, count, payload, stage.folder)
    bench.add(
        Row(
            f"idle gap, {side}×{side}, batch {batch}, {len(gaps.values)} gaps",
            str(gaps),
            f"by hand {by_hand}, ratio {gaps.median / by_hand.median:.2f}",
            "median ≤ 5 ms, p95 ≤ 20 ms",
            judged(gaps.median <= 5, gaps.p95 <= 20),
        )
    )


def _through_the_queue(simulator: Simulator, gateway: Gateway, count: int, changes: dict[str, Any]) -> Sample:
    """The gaps after all jobs were queued."""
    gateway.make(**changes)
    simulator.reset()
    jobs = count + _SPARE
    with paused([simulator]):
        gateway.queue(jobs, **changes)
    simulator.await_generations(jobs, seconds=jobs * 2.0)
    return Sample(simulator.stats()["idle_gaps_ms"][-count:])


def _by_hand(simulator: Simulator, count: int, payload: dict[str, Any], folder: Path) -> Sample:
    """The gaps under a simple script without the gateway: post, write the pictures, post the next."""
    simulator.reset()
    body = json.dumps(payload).encode()
    with simulator.line() as line:
        for number in range(count + 1):
            for index, data in enumerate(post_by_hand(line, body)):
                (folder / f"{number}-{index}.png").write_bytes(data)
    return Sample(simulator.stats()["idle_gaps_ms"])


def _arrival(bench: Bench) -> None:
    say("a job that arrives on an idle gateway")
    count = bench.count(_ARRIVALS)
    with bench.stage() as stage:
        simulator = stage.simulator(0.02)
        gateway = stage.gateway([simulator]).start()
        gateway.make()
        body = json.dumps(picture()).encode()
        through = _arrivals(simulator, gateway.port, "/txt2img", body, count)
        payload = json.dumps(webui_payload(simulator)).encode()
        straight = _arrivals(simulator, simulator.port, "/sdapi/v1/txt2img", payload, count)
    bench.add(
        Row(
            "start of a job on an idle gateway, from the POST sent",
            str(through),
            f"straight {straight}",
            "median ≤ 10 ms",
            judged(through.median <= 10),
        )
    )


def _arrivals(simulator: Simulator, port: int, path: str, body: bytes, count: int) -> Sample:
    """From the POST being sent to its generation's headers read at the WebUI, on new connections and at odd moments."""
    simulator.reset()
    pauses = random.Random(4)
    sent = []
    for _ in range(count):
        time.sleep(pauses.uniform(0.1, 0.4))
        with Line(port) as line:
            sent.append(time.perf_counter())
            line.send("POST", path, body).json()
    return Sample(
        [milliseconds(at - since) for at, since in zip(simulator.arrivals(), sent, strict=True)],
    )
