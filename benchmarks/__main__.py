"""``python -m benchmarks``: measure every figure beside its baseline, and print one table at the end."""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType

from benchmarks import (
    accept_claim,
    added_time,
    authorised,
    deletion,
    history,
    idle_gap,
    live,
    machine,
    memory,
    served,
    start,
    throughput,
)
from benchmarks.harness import Bench, BenchmarkError
from benchmarks.report import SKIPPED, Row, print_table, say

FIGURES: Mapping[str, Callable[[Bench], None]] = MappingProxyType(
    {
        "idle-gap": idle_gap.run,
        "added-time": added_time.run,
        "history": history.run,
        "accept-claim": accept_claim.run,
        "deletion": deletion.run,
        "served": served.run,
        "authorised": authorised.run,
        "memory": memory.run,
        "live": live.run,
        "throughput": throughput.run,
        "start": start.run,
    }
)


#: What a figure may fail with without the others being lost.
_FAILURES = (BenchmarkError, OSError, HTTPException, sqlite3.Error, subprocess.SubprocessError)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=FIGURES, metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: to see that it runs, not to quote")
    parser.add_argument(
        "--folder", type=Path, help="where the data is put while it runs (default: the temporary folder)"
    )
    return parser.parse_args()


def main() -> int:
    """Run the chosen figures; exits 1 when one of them could not be measured at all."""
    arguments = _arguments()
    begun = time.monotonic()
    for line in machine.describe():
        say(line)
    broken = False
    with tempfile.TemporaryDirectory(prefix="sdg-bench-", dir=arguments.folder) as folder:
        bench = Bench(Path(folder), quick=arguments.quick)
        for name in arguments.only or FIGURES:
            say(f"\n{name} (after {time.monotonic() - begun:.0f} s)")
            try:
                FIGURES[name](bench)
            except _FAILURES as error:
                say(f"{name} could not be measured: {error}")
                bench.rows.append(Row(name, "could not be measured", "", "", SKIPPED))
                broken = True
    say(f"\n{time.monotonic() - begun:.0f} s in all" + (", a quick run: not to be quoted" if bench.quick else ""))
    print_table(bench.rows)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
