"""Rows, verdicts and the numbers behind them; and the only two ways in which anything is printed.

A row of the table ends with ``held``, ``missed`` or ``skipped``; no other line ends so, which makes the table readable for
programs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

HELD, MISSED, SKIPPED = "held", "missed", "skipped"
VERDICTS = (HELD, MISSED, SKIPPED)
_BETWEEN = " | "


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of the gateway beside its baseline, the goal, and whether it was reached."""

    what: str
    measured: str
    baseline: str
    goal: str
    verdict: str

    def cells(self) -> tuple[str, ...]:
        """The texts in the order of the columns."""
        return (self.what, self.measured, self.baseline, self.goal, self.verdict)


#: Names the columns; printed before the table and no row of it.
COLUMNS = "The table, column by column: figure, measured, baseline, goal, verdict."


def judged(*conditions: bool) -> str:
    """``held`` when every part of the goal was reached."""
    return HELD if all(conditions) else MISSED


def say(text: str) -> None:
    """Print a line of progress, never one that could be taken for a row."""
    text = text.rstrip()
    print(f"{text}." if text.endswith(VERDICTS) else text, flush=True)


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows, columns aligned."""
    widths = [max(len(row.cells()[column]) for row in rows) for column in range(4)] if rows else []
    say("")
    say(COLUMNS)
    for row in rows:
        *texts, verdict = row.cells()
        cells = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
        print(_BETWEEN.join([*cells, verdict]), flush=True)


@dataclass(frozen=True)
class Sample:
    """Measurements of one thing, in milliseconds."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """Half of them are below."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """The smallest one that 95 % do not exceed (nearest rank)."""
        return sorted(self.values)[math.ceil(len(self.values) * 0.95) - 1]

    def __str__(self) -> str:
        return f"median {self.median:.2f} ms, p95 {self.p95:.2f} ms"


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds."""
    return seconds * 1000
