"""Ways to serve one picture, asked in turns: what each costs, and how many requests it answers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks import load, machine
from benchmarks.harness import Bench, Process
from benchmarks.report import Row, judged, milliseconds

CONNECTIONS = 16
_ROUNDS, _FEW_ROUNDS = 10, 4
#: Of each round; the shortest that wrk takes.
_SECONDS = 1.0


@dataclass(frozen=True)
class Way:
    """A server of a picture: where and with which header fields it is asked, and the processes that answer."""

    port: int
    path: str
    processes: Sequence[Process]
    headers: Mapping[str, str] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """CPU time that its processes have used."""
        return sum(machine.cpu_seconds(process.pid) for process in self.processes)

    def fetch(self, seconds: float) -> load.Load:
        """Fetch the picture again and again."""
        return load.fetch(self.port, self.path, CONNECTIONS, seconds, self.headers)


@dataclass(frozen=True)
class Figures:
    """The results of the rounds of one way: requests a second, and milliseconds of CPU a request."""

    rates: Sequence[float]
    cpu_ms: Sequence[float]

    @property
    def cost(self) -> float:
        """CPU time of a request, milliseconds."""
        return statistics.median(self.cpu_ms)

    def speed(self, other: Figures) -> float:
        """How many times as many requests it answers as another way that was asked in turns with it: the median of the rounds, for
        the machine itself may be faster in one round than in another.
        """
        return statistics.median(mine / its for mine, its in zip(self.rates, other.rates, strict=True))

    def __str__(self) -> str:
        return f"{self.cost:.3f} ms of CPU, {statistics.median(self.rates):.0f}/s"


def measure(bench: Bench, ways: Mapping[str, Way]) -> dict[str, Figures]:
    """All ways in turns, round after round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way.fetch(_SECONDS)
    for _ in range(_FEW_ROUNDS if bench.quick else _ROUNDS):
        for name, way in ways.items():
            before = way.cpu_seconds()
            done = way.fetch(_SECONDS)
            costs[name].append(milliseconds(way.cpu_seconds() - before) / done.requests)
            rates[name].append(done.rate)
    return {name: Figures(rates[name], costs[name]) for name in ways}


def by_cost(what: str, found: Figures, baseline: str, other: Figures, goal: float) -> Row:
    """The row of a way whose requests may cost so many times the CPU time of another one's."""
    ratio = found.cost / other.cost
    return Row(
        what,
        str(found),
        f"{baseline} {other}; {ratio:.2f}× its CPU",
        f"CPU ≤ {goal:g}× {baseline}",
        judged(ratio <= goal),
    )


def by_rate(what: str, found: Figures, baseline: str, other: Figures, goal: float) -> Row:
    """The row of a way that must answer so many times the requests of another one."""
    ratio = found.speed(other)
    return Row(
        what,
        str(found),
        f"{baseline} {other}; {ratio:.2f}× its requests, {found.cost / other.cost:.2f}× its CPU",
        f"≥ {goal:g}× the requests of the baseline",
        judged(ratio >= goal),
    )
