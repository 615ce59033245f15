"""Figure 9: deleting a record of a user who has few and one who has very many records of one day."""

from __future__ import annotations

import os
import time
from pathlib import Path

from app.records.layout import day_of, user_folder
from benchmarks import tables
from benchmarks.harness import Bench, BenchmarkError, Gateway, Line, Stage
from benchmarks.report import Row, Sample, judged, milliseconds, say

_RECORDS = (100, 5_000)
_REPEATS = 60
_GOAL = 1.5


def run(bench: Bench) -> None:
    """Add one row."""
    with bench.stage() as stage:
        gateway = _filled(stage)
        gateway.start()
        with gateway.line() as line:
            times = _times(bench, gateway, line)
    few, many = (Sample(times[records]) for records in _RECORDS)
    ratio = many.median / few.median
    bench.add(
        Row(
            f"DELETE of one record of {_RECORDS[1]:,} of a day",
            str(many),
            f"of {_RECORDS[0]} {few}, ratio {ratio:.2f}",
            f"ratio ≤ {_GOAL:g}",
            judged(ratio <= _GOAL),
        )
    )


def _user(records: int) -> str:
    return f"user-{records}"


def _filled(stage: Stage) -> Gateway:
    """A gateway, not running, with records of small pictures."""
    gateway = stage.gateway([stage.simulator(0.0)]).start()
    job = gateway.make(width=64, height=64)
    image = gateway.file(job)
    document = next(gateway.data.rglob(f"{job['name']}-*.json"))
    gateway.kill()
    for records in _RECORDS:
        tables.fill_day(gateway.database, _user(records), records)
        folder = gateway.data / user_folder(_user(records)) / "txt2img" / day_of(job["name"])
        folder.mkdir(parents=True)
        for name in tables.names_of(gateway.database, _user(records)):
            for file in (image, document):
                _copy(file, folder / file.name.replace(job["name"], name))
    # Or the disk would still be writing them while they are deleted.
    os.sync()
    return gateway


def _copy(file: Path, to: Path) -> None:
    to.write_bytes(file.read_bytes())


def _times(bench: Bench, gateway: Gateway, line: Line) -> dict[int, list[float]]:
    """Delete in turns of both users, always the oldest record that is left."""
    say("DELETE at the front door")
    named = {records: tables.names_of(gateway.database, _user(records)) for records in _RECORDS}
    times: dict[int, list[float]] = {records: [] for records in _RECORDS}
    for number in range(bench.count(_REPEATS) + 2):
        for records in _RECORDS:
            path = f"/delete/{_user(records)}/txt2img/{named[records][number]}"
            begun = time.perf_counter()
            reply = line.send("DELETE", path)
            taken = milliseconds(time.perf_counter() - begun)
            if len(reply.json()["deleted"]) != 2:
                raise BenchmarkError(f"{path} did not delete a picture and its document")
            # The first ones fill the caches.
            if number >= 2:
                times[records].append(taken)
    return times
