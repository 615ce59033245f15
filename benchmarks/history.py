"""Figure 3: a page of history for users with very few and very many jobs in one table."""

from __future__ import annotations

import os
import shutil
import time

from app.api.http import cursor
from benchmarks import tables
from benchmarks.harness import Bench, BenchmarkError, Gateway, Line, Stage
from benchmarks.report import SKIPPED, Row, Sample, judged, milliseconds, say

_SIZES = (100, 10_000, 1_000_000)
_DAYS = {"all in one day": 1, "over 1,000 days": 1000}
_PAGES = ("first page", "middle page")
_RECORDS = 50
_REQUESTS = 100
#: Two million rows with their indexes, and room for them to be made.
_DISK_BYTES = 8 * 10**9


def run(bench: Bench) -> None:
    """Add a row for each spread of the jobs and each page."""
    free = shutil.disk_usage(bench.folder).free
    if free < _DISK_BYTES:
        say(f"history needs {_DISK_BYTES / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free in {bench.folder}")
        for days in _DAYS:
            bench.rows += [Row(f"history, {days}, {page}", "", "", _goal(), SKIPPED) for page in _PAGES]
        return
    with bench.stage() as stage:
        _measure(bench, stage)


def _goal() -> str:
    return "≤ 10 ms, largest/smallest ≤ 1.3"


def _user(days: str, size: int) -> str:
    return f"user-{size}-{_DAYS[days]}"


def _measure(bench: Bench, stage: Stage) -> None:
    gateway = stage.gateway([stage.simulator(0.0)]).start()
    gateway.make()
    gateway.kill()
    sizes = [size // 100 for size in _SIZES] if bench.quick else list(_SIZES)
    sizes[0] = _SIZES[0]
    if bench.quick:
        say(f"not judged: a quick run has users of up to {max(sizes):,} jobs only")
    _fill(gateway, sizes)
    gateway.start()
    for days in _DAYS:
        paths = {(size, page): _path(gateway, _user(days, size), page) for size in sizes for page in _PAGES}
        with gateway.line() as line:
            times = _times(bench, line, paths)
        for page in _PAGES:
            _add(bench, days, page, {size: Sample(times[size, page]) for size in sizes})


def _fill(gateway: Gateway, sizes: list[int]) -> None:
    begun = time.perf_counter()
    pasts = [tables.Past(_user(days, size), size, count) for days, count in _DAYS.items() for size in sizes]
    tables.fill_history(gateway.database, pasts)
    # Or the disk would still be writing them while pages are read.
    os.sync()
    rows = sum(past.jobs for past in pasts)
    size = gateway.database.stat().st_size / 1e9
    say(f"{rows:,} rows made directly in {time.perf_counter() - begun:.0f} s, {size:.2f} GB with their indexes")


def _path(gateway: Gateway, user: str, page: str) -> str:
    path = f"/t2ihistory/{user}?limit={_RECORDS}"
    if page == "first page":
        return path
    return f"{path}&before={cursor.encode(tables.sequence_before_middle(gateway.database, user, _RECORDS))}"


def _times(bench: Bench, line: Line, paths: dict[tuple[int, str], str]) -> dict[tuple[int, str], list[float]]:
    """All pages in turns, so that whatever else the machine does hits each of them."""
    times: dict[tuple[int, str], list[float]] = {key: [] for key in paths}
    for number in range(bench.count(_REQUESTS) + 2):
        for key, path in paths.items():
            begun = time.perf_counter()
            reply = line.send("GET", path)
            taken = milliseconds(time.perf_counter() - begun)
            if number < 2:
                # The first ones fill the caches, and are looked at.
                if len(reply.json()["records"]) != _RECORDS:
                    raise BenchmarkError(f"{path} is no page of {_RECORDS} records")
            else:
                times[key].append(taken)
    return times


def _add(bench: Bench, days: str, page: str, samples: dict[int, Sample]) -> None:
    *_, largest = samples.values()
    medians = [sample.median for sample in samples.values()]
    ratio = max(medians) / min(medians)
    smaller = ", ".join(f"{size:,} jobs {sample.median:.2f} ms" for size, sample in list(samples.items())[:-1])
    bench.add(
        Row(
            f"history, {days}, {page}",
            f"{max(samples):,} jobs: {largest}",
            f"{smaller}; ratio {ratio:.2f}",
            _goal(),
            SKIPPED if bench.quick else judged(max(medians) <= 10, ratio <= 1.3),
        )
    )
