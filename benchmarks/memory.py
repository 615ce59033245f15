"""Figure 6: the most memory that web processes and the worker ever held (VmHWM; megabytes of 10^6 bytes).

One web process serves, with the worker embedded in it as in a default installation, so that nothing hides in a neighbour.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from PIL import Image

from benchmarks import load, machine
from benchmarks.harness import Bench, BenchmarkError, Gateway, Line, Simulator, picture, until
from benchmarks.report import SKIPPED, Row, judged, say

_POSTING, _FETCHING = 32, 64
_FILE_BYTES = 8_000_000
#: Noise of so many pixels a side is a PNG of 6 MB, and 8 MB in base64.
_REFERENCE_SIDE = 1414
_EARLY, _LATE = 500, 5_000
#: The late mark is given up after so many seconds, and what was reached is printed.
_PATIENCE = 110.0
_WORKER_GOAL = 600


def run(bench: Bench) -> None:
    """Add a row for each way of filling the memory."""
    _posting(bench)
    _fetching(bench)
    _many_jobs(bench)
    _worker(bench)


def _web_process(gateway: Gateway) -> int:
    """The one child of gunicorn's master."""
    _, child = machine.family(gateway.pid)
    return child


def _at_once(count: int, call: Callable[[int], None]) -> None:
    """Run the calls in one thread each, and let them go together."""
    barrier = Barrier(count)

    def run_one(number: int) -> None:
        barrier.wait()
        call(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run_one, range(count)))


def _posting(bench: Bench) -> None:
    say(f"memory: {_POSTING} clients post 8 MB at once")
    with bench.stage() as stage:
        gateway = stage.gateway([stage.simulator(0.05)], WEB_CONCURRENCY=1).start()
        gateway.make(width=64, height=64)
        before = machine.resident_mb(_web_process(gateway))
        buffer = io.BytesIO()
        noise = os.urandom(_REFERENCE_SIDE**2 * 3)
        Image.frombytes("RGB", (_REFERENCE_SIDE, _REFERENCE_SIDE), noise).save(buffer, "PNG", compress_level=1)
        reference = base64.b64encode(buffer.getvalue()).decode("ascii")
        body = json.dumps(picture(width=64, height=64, init_images=reference)).encode()

        def post(_number: int) -> None:
            with gateway.line() as line:
                if line.send("POST", "/img2img", body).json()["status"] != "succeeded":
                    raise BenchmarkError("an img2img job did not succeed")

        _at_once(_POSTING, post)
        peak = machine.peak_mb(_web_process(gateway))
    bench.add(
        Row(
            f"web process, {_POSTING} clients post {len(body) / 1e6:.1f} MB of img2img at once",
            f"peak {peak:.0f} MB",
            f"before {before:.0f} MB",
            "≤ 500 MB",
            judged(peak <= 500),
        )
    )


def _fetching(bench: Bench) -> None:
    say(f"memory: {_FETCHING} clients fetch 8 MB images, client: {load.client()}")
    with bench.stage() as stage:
        gateway = stage.gateway([stage.simulator(0.0)], WEB_CONCURRENCY=1).start()
        job = gateway.make(width=64, height=64)
        gateway.file(job).write_bytes(os.urandom(_FILE_BYTES))
        before = machine.resident_mb(_web_process(gateway))
        got = load.fetch(gateway.port, job["images"][0]["url"], _FETCHING, 4.0)
        peak = machine.peak_mb(_web_process(gateway))
    bench.add(
        Row(
            f"web process, {_FETCHING} clients fetch 8 MB images",
            f"peak {peak:.0f} MB ({got})",
            f"before {before:.0f} MB",
            "≤ 200 MB",
            judged(peak <= 200),
        )
    )


def _many_jobs(bench: Bench) -> None:
    late = _EARLY * 2 if bench.quick else _LATE
    say(f"memory after {_EARLY} and after {late} jobs")
    with bench.stage() as stage:
        simulators = [stage.simulator(0.0) for _ in range(2)]
        gateway = stage.gateway(simulators, WEB_CONCURRENCY=1).start()
        deadline = time.monotonic() + _PATIENCE
        done = _post_until(gateway, simulators, 0, _EARLY, deadline)
        early = machine.peak_mb(_web_process(gateway))
        early_now = machine.resident_mb(_web_process(gateway))
        done = _post_until(gateway, simulators, done, late, deadline)
        peak = machine.peak_mb(_web_process(gateway))
        now = machine.resident_mb(_web_process(gateway))
    if done < _LATE:
        say(f"  not judged: {done} jobs were made, not {_LATE} (a quick run, or {_PATIENCE:.0f} s did not suffice)")
    ratio = peak / early
    verdict = judged(ratio <= 1.05) if done >= _LATE else SKIPPED
    bench.add(
        Row(
            f"web process and worker in one, after {done} jobs",
            f"peak {peak:.1f} MB, now {now:.1f} MB",
            f"after {_EARLY}: peak {early:.1f} MB, now {early_now:.1f} MB; ratio {ratio:.3f}",
            "peaks within 5 %",
            verdict,
        )
    )


def _post_until(gateway: Gateway, simulators: list[Simulator], done: int, count: int, deadline: float) -> int:
    """Post jobs from as many clients as there are WebUIs until so many were made; how many were."""
    body = json.dumps(picture(width=64, height=64)).encode()
    left = iter(range(count - done))

    def post(_number: int) -> int:
        made = 0
        with gateway.line() as line:
            while time.monotonic() < deadline and next(left, None) is not None:
                line.send("POST", "/txt2img", body).json()
                made += 1
        return made

    with ThreadPoolExecutor(len(simulators) * 2) as pool:
        return done + sum(pool.map(post, range(len(simulators) * 2)))


def _worker(bench: Bench) -> None:
    say("memory: the worker with batches of 4 at 2048 × 2048")
    with bench.stage() as stage:
        simulator = stage.simulator(0.2)
        gateway = stage.gateway([simulator], SDG_WORKER="external")
        gateway.launch()
        worker = stage.worker(gateway)
        gateway.await_ready()
        before = machine.resident_mb(worker.pid)
        size, megabytes = _batches(gateway, bench.count(8))
        peak = machine.peak_mb(worker.pid)
    bench.add(
        Row(
            f"worker, {size} batches of 4 at 2048×2048 ({megabytes:.1f} MB a picture)",
            f"peak {peak:.0f} MB",
            f"before {before:.0f} MB",
            f"≤ {_WORKER_GOAL} MB (chosen here)",
            judged(peak <= _WORKER_GOAL),
        )
    )


def _batches(gateway: Gateway, count: int) -> tuple[int, float]:
    """Queue large jobs and wait for the last; how many, and the size of a picture in megabytes."""
    changes: dict[str, Any] = {"width": 2048, "height": 2048, "batch_size": 4}
    gateway.queue(count - 1, **changes)
    with gateway.line() as line:
        job = line.post("/txt2img", picture(**changes))
        until(lambda: _all_done(line), "the large jobs are done", seconds=120, pause=0.2)
    return count, job["images"][0]["bytes"] / 1e6


def _all_done(line: Line) -> bool:
    return not any(line.get(f"/jobs/bench?status={status}")["jobs"] for status in ("queued", "running"))
