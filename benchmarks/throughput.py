"""Figure 7: how many jobs a second reach 1, 2, 4 and 8 WebUIs, and what CPU time each of them costs.

The ideal is every WebUI at work all the time. A figure that the machine's cores bound says nothing about the gateway, so
above 80 % of busy cores the ratio is not judged; the simulators' own share of the cores is printed apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.harness import Bench, BenchmarkError, Gateway, Simulator, paused, until
from benchmarks.report import SKIPPED, Row, judged, milliseconds, say

_SECONDS = 0.2
_NUMBERS = (1, 2, 4, 8)
#: How long the WebUIs are watched.
_WINDOW = 8.0
#: Jobs that each of them has had before.
_UNDER_WAY = 5
_MOST_BUSY = 0.80
_GOAL = 0.97


@dataclass(frozen=True)
class _Measured:
    jobs_per_second: float
    ratio: float
    busy: float
    gateway_ms: float
    simulators_share: float


def run(bench: Bench) -> None:
    """Add a row for each number of WebUIs, and one for the cost of a job."""
    costs = {}
    for number in _NUMBERS:
        say(f"throughput of {number} WebUIs")
        found = _measure(bench, number)
        costs[number] = found.gateway_ms
        bench.add(_row(number, found))
    bench.add(
        Row(
            "CPU time of the gateway for a job",
            ", ".join(f"{cost:.1f} ms" for cost in costs.values()),
            f"with {', '.join(map(str, costs))} WebUIs",
            "none: printed for comparison",
            SKIPPED,
        )
    )


def _row(number: int, found: _Measured) -> Row:
    ideal = number / _SECONDS
    bound = found.busy >= _MOST_BUSY and found.ratio < _GOAL
    if bound:
        say(f"  not judged: {found.busy:.0%} of the cores were busy, so the machine is the limit")
    return Row(
        f"throughput of {number} WebUIs at {_SECONDS:g} s a picture",
        f"{found.jobs_per_second:.2f} jobs/s, {found.ratio:.1%} of the ideal; cores {found.busy:.0%} busy",
        f"ideal {ideal:.0f} jobs/s; simulators take {found.simulators_share:.0%} of the cores",
        f"≥ {_GOAL:.0%} while the cores are under {_MOST_BUSY:.0%} busy",
        SKIPPED if bound else judged(found.ratio >= _GOAL),
    )


def _measure(bench: Bench, number: int) -> _Measured:
    window = _WINDOW / (4 if bench.quick else 1)
    with bench.stage() as stage:
        simulators = [stage.simulator(_SECONDS, listening=False) for _ in range(number)]
        for simulator in simulators:
            simulator.await_listening()
        gateway = stage.gateway(simulators).start()
        gateway.make()
        with paused(simulators):
            gateway.queue(int(number * (window + 3) / _SECONDS))
        # What a WebUI costs that comes back is no cost of its jobs.
        until(
            lambda: all(len(simulator.arrivals()) >= _UNDER_WAY for simulator in simulators), "the jobs are under way"
        )
        return _watch(gateway, simulators, window)


def _watch(gateway: Gateway, simulators: Sequence[Simulator], window: float) -> _Measured:
    pids = [simulator.pid for simulator in simulators]
    begun = machine.CpuClock.now()
    gateway_cpu, simulator_cpu = machine.cpu_seconds(gateway.pid), sum(map(machine.cpu_seconds, pids))
    time.sleep(window)
    gateway_cpu = machine.cpu_seconds(gateway.pid) - gateway_cpu
    simulator_cpu = sum(map(machine.cpu_seconds, pids)) - simulator_cpu
    ended = machine.CpuClock.now()
    jobs, rate = 0, 0.0
    for simulator in simulators:
        times = [at for at in simulator.arrivals() if begun.at <= at <= ended.at]
        if len(times) < 2:
            raise BenchmarkError("a simulator had nothing to do")
        jobs += len(times)
        rate += (len(times) - 1) / (times[-1] - times[0])
    elapsed = ended.at - begun.at
    return _Measured(
        jobs_per_second=rate,
        ratio=rate * _SECONDS / len(simulators),
        busy=begun.share_until(ended),
        gateway_ms=milliseconds(gateway_cpu) / jobs,
        simulators_share=simulator_cpu / elapsed / machine.cores(),
    )
