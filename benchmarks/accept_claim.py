"""Figure 4: accepting and claiming a job with 10 and with 10,000 jobs waiting."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from app.jobs.model import Failure, Job, NewJob
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import Bounds, JobTable, Serving
from benchmarks import tables
from benchmarks.harness import ASYNC, NO_BOUND, Bench, BenchmarkError, Gateway, Line, Stage, picture
from benchmarks.report import Row, Sample, judged, milliseconds, say

_WAITING = (10, 10_000)
_USERS = 1000
_REPEATS = 200
_GOAL = 1.5
_SLOT, _OWNER = "bench", "bench/0"
_EVERYTHING: Final = Serving(NO_BOUND, frozenset())

_T = TypeVar("_T")


def run(bench: Bench) -> None:
    """Add a row for accepting, one for claiming, and one for the whole POST."""
    with bench.stage() as stage:
        gateways = [_filled(stage, waiting) for waiting in _WAITING]
        accepted, claimed = _in_process(bench, stage, gateways)
        _add(bench, "accept, in process", accepted)
        _add(bench, "claim, in process", claimed)
        _add(bench, "POST with respond-async", _at_the_front_door(bench, gateways))


def _filled(stage: Stage, waiting: int) -> Gateway:
    """A gateway, not running, whose table holds so many waiting jobs; its WebUI is gone, so that they stay there."""
    quick = stage.simulator(0.0)
    gateway = stage.gateway([quick]).start()
    gateway.make(id="waiting")
    gateway.kill()
    quick.kill()
    tables.fill_queue(gateway.database, waiting, min(waiting, _USERS))
    return gateway


def _add(bench: Bench, what: str, samples: Mapping[int, Sample]) -> None:
    few, many = (samples[waiting] for waiting in _WAITING)
    ratio = many.median / few.median
    bench.add(
        Row(
            f"{what}, {_WAITING[1]:,} waiting",
            str(many),
            f"{_WAITING[0]} waiting {few}, ratio {ratio:.2f}",
            f"ratio ≤ {_GOAL:g}",
            judged(ratio <= _GOAL),
        )
    )


@dataclass(frozen=True)
class _Table:
    """A job table with a slot to claim for, and a request to accept again and again."""

    table: JobTable
    model: Job
    requirements: str

    def new(self, number: int) -> NewJob:
        """A request of one of the waiting users."""
        job = self.model
        name = f"{job.name[:19]}{0xF0000000 + number:08x}"
        return NewJob(
            f"waiting{number % 10}",
            job.type,
            name,
            job.created_at,
            job.args,
            None,
            requirements=self.requirements,
            cost=job.cost,
        )


def _opened(database: Path) -> _Table:
    opened = Database(f"sqlite:///{database}")
    slots = Slots(opened)
    slots.register(_OWNER, "bench", [_SLOT], only=True)
    # There is no WebUI that could be seen idle.
    if slots.begin_quiescing(_SLOT, _OWNER) is not None:
        slots.end_quiescing(_SLOT, _OWNER, "clean")
    table = JobTable(opened)
    [(_, requirements), *_] = table.queries.requirements_after(0)
    [model, *_] = table.queries.of_user("waiting", "succeeded", 1, None)
    return _Table(table, model, requirements)


def _in_process(bench: Bench, stage: Stage, gateways: list[Gateway]) -> tuple[dict[int, Sample], dict[int, Sample]]:
    """Accept and claim in turns in copies of both tables; each claimed job ends, so that the number of the waiting stays."""
    say("accept and claim in process")
    opened: dict[int, _Table] = {}
    for waiting, gateway in zip(_WAITING, gateways, strict=True):
        copy = stage.folder / f"{waiting}.db"
        shutil.copyfile(gateway.database, copy)
        opened[waiting] = _opened(copy)
    accepted: dict[int, list[float]] = {waiting: [] for waiting in _WAITING}
    claimed: dict[int, list[float]] = {waiting: [] for waiting in _WAITING}
    for number in range(bench.count(_REPEATS)):
        for waiting, each in opened.items():
            accepted[waiting].append(_accept(each, number))
            claimed[waiting].append(_claim(each, number))
    for each in opened.values():
        each.table.database.close()
    return _samples(accepted), _samples(claimed)


def _samples(times: Mapping[int, list[float]]) -> dict[int, Sample]:
    return {waiting: Sample(values) for waiting, values in times.items()}


def _timed(call: Callable[[], _T]) -> tuple[_T, float]:
    begun = time.perf_counter()
    result = call()
    return result, milliseconds(time.perf_counter() - begun)


def _accept(each: _Table, number: int) -> float:
    new = each.new(number)
    _, taken = _timed(lambda: each.table.accept(new, Bounds(NO_BOUND, NO_BOUND)))
    return taken


def _claim(each: _Table, number: int) -> float:
    table = each.table
    claim, taken = _timed(lambda: table.claim(_SLOT, _OWNER, f"task {number}", _EVERYTHING))
    if claim is None:
        raise BenchmarkError("there was nothing to claim")
    table.answered(claim, None, None, _EVERYTHING)
    table.fail(claim, Failure("webui-error", "The job was only to be claimed."))
    return taken


def _at_the_front_door(bench: Bench, gateways: list[Gateway]) -> dict[int, Sample]:
    """Post in turns to a gateway with few and to one with many waiting jobs."""
    say("accept at the front door")
    body = json.dumps(picture(id="newcomer")).encode()
    times: dict[int, list[float]] = {waiting: [] for waiting in _WAITING}
    for gateway in gateways:
        gateway.launch()
        gateway.await_listening()
    lines = [gateway.line() for gateway in gateways]
    for number in range(bench.count(_REPEATS) + 5):
        for waiting, line in zip(_WAITING, lines, strict=True):
            answer, taken = _timed(functools.partial(_post, line, body))
            if answer["status"] != "queued":
                raise BenchmarkError(f"the job is {answer['status']}")
            if number >= 5:
                times[waiting].append(taken)
    for line in lines:
        line.close()
    return _samples(times)


def _post(line: Line, body: bytes) -> dict[str, Any]:
    job: dict[str, Any] = line.send("POST", "/txt2img", body, ASYNC).json()
    return job
