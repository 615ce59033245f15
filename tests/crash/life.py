"""One life of a gateway in the crash run: it starts on what the one before left, and either dies at its failpoint or is judged."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import text

from app import startup
from app.config import load
from app.records.layout import document_filename
from app.services import Services, build
from tests.crash import script
from tests.inprocess import USER, until

#: Older than any file that a request under way may have left.
_TWO_HOURS = 7200.0


@dataclass
class Verdict:
    """The result of one life: ``found`` at its start, the ``outcome`` that the client saw, and the ``problems`` with it."""

    found: str = ""
    problems: list[str] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)


def live(folder: Path, url: str, chapters: int, crash_at: str) -> Verdict:
    """Start, let the client play its script up to a chapter, stop and judge; a failpoint may end the process anywhere in it."""
    verdict = Verdict()
    # Each lane has a simulator at a port of its own: by its name the slot is the same in all of them.
    named = f"gpu={url}"
    services = _build(folder, named, crash_at)
    journal = script.Journal.read(folder / "journal")
    verdict.found = _found(services, journal)
    claims_before = _claims_before(services, folder)
    services.start(worker=True)
    # The row of the dead worker is still fresh, so that readiness alone would not wait for the living one.
    until(lambda: services.worker._begun and not services.readiness(), "readiness")
    # Before the script begins, so that its failpoints always have the same order.
    not_usable = "SELECT count(*) FROM slots WHERE state NOT IN ('clean', 'held')"
    until(lambda: _one(services, not_usable) == 0, "a slot that can be used")
    until(lambda: _one(services, "SELECT unfinished FROM clock") == 0, "the end of every accepted job")
    until(lambda: services.upkeep._next_at > 0.0, "the first upkeep, which comes again after a minute")
    verdict.problems += script.play(services, journal, chapters)
    services.drain()
    # Judging is no part of the round: its failpoints don't count.
    services = _build(folder, named)
    # What the upkeep does now and then.
    services.archive.tidy()
    verdict.outcome = script.outcome(services, chapters)
    verdict.problems += _judge_rows(services, chapters)
    verdict.problems += _judge_files(services)
    verdict.problems += _judge_copy(services, folder)
    verdict.problems += _judge_webui(services, url, claims_before)
    services.database.close()
    return verdict


def _build(folder: Path, url: str, crash_at: str = "") -> Services:
    return build(load(_environ(folder, url) | {"SDG_TEST_CRASH_AT": crash_at}, folder))


def _environ(folder: Path, url: str) -> dict[str, str]:
    return {
        "SDG_DATA_DIR": str(folder / "data"),
        "SDG_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
        "SDG_HOST_ID": "testhost",
        "SDG_WEBUI_URLS": url,
    }


def _one(services: Services, statement: str) -> Any:
    with services.database.read() as connection:
        return connection.execute(text(statement)).scalar()


def _counted(services: Services, statement: str) -> Counter[str]:
    with services.database.read() as connection:
        return Counter(connection.execute(text(statement)).scalars())


def _claims(services: Services) -> int:
    return _one(services, "SELECT sum(claims) FROM jobs") or 0


def _claims_before(services: Services, folder: Path) -> int:
    """The claims of the chapters before: the first life of a round writes them down for the later ones."""
    note = folder / "claims"
    if not note.exists():
        note.write_text(str(_claims(services)))
    return int(note.read_text())


def _found(services: Services, journal: script.Journal) -> str:
    """The state that the crash left, in a few words."""
    jobs = _counted(services, "SELECT status FROM jobs")
    slots = set(_counted(services, "SELECT state FROM slots")) - {"clean"}
    named = _named_files(services)
    stray = sum(path.name not in named for path in _files(services.config.data_dir))
    parts = [
        f"no answer to '{journal.in_doubt}'" if journal.in_doubt else "",
        ", ".join(f"{count} {status}" for status, count in sorted(jobs.items())),
        "slot " + "/".join(sorted(slots)) if slots else "",
        f"{stray} files of no record" if stray else "",
    ]
    return "; ".join(filter(None, parts))


def _files(data: Path) -> list[Path]:
    """Those of records; hidden ones of the data folder itself are the gateway's own."""
    return [path for path in data.rglob("*") if path.is_file() and path.parent != data]


def _named_files(services: Services) -> set[str]:
    """The files that should exist: those of records, and the reference images of cancelled jobs."""
    named = set()
    for job in services.table.queries.succeeded(0, 1000):
        named |= {image["filename"] for image in job.images} | {document_filename(job.name, job.claims)}
        named |= {job.init_image["filename"]} if job.init_image else set()
    for job in services.table.queries.of_user(USER, "cancelled", 1000, None):
        named |= {job.init_image["filename"]} if job.init_image else set()
    return named


def _judge_rows(services: Services, chapters: int) -> Iterator[str]:
    """Each broken promise about the rows, as a sentence."""
    rows, keys = _one(services, "SELECT count(*) FROM jobs"), script.keys(chapters)
    if rows != keys:
        yield f"{rows} jobs were made of {keys} keys"
    for table, what in {
        "slots WHERE state != 'clean' OR owner IS NOT NULL": "slots are held",
        "jobs WHERE status IN ('queued', 'running')": "jobs are unfinished",
        "jobs WHERE owner IS NOT NULL OR lease_expires IS NOT NULL": "finished jobs have an owner",
        "jobs WHERE pending_unlink": "deletions are unfinished",
        "jobs WHERE attempts > 0 AND status != 'failed'": "losses of our own were counted as attempts",
        "clock WHERE unfinished != 0": "clocks count unfinished jobs",
        "users WHERE unfinished != 0": "users have unfinished jobs",
    }.items():
        count = _one(services, f"SELECT count(*) FROM {table}")
        if count:
            yield f"{count} {what}"


def _judge_files(services: Services) -> Iterator[str]:
    """Files and rows agree once the sweep has been there."""
    then = time.time() - _TWO_HOURS
    for path in _files(services.config.data_dir):
        os.utime(path, (then, then))
    swept = services.maintenance.sweep()
    yield from swept.problems
    if swept.unindexed:
        yield f"{swept.unindexed} records have no row"
    found, named = sorted(path.name for path in _files(services.config.data_dir)), sorted(_named_files(services))
    if found != named:
        yield f"files {found} instead of {named}"
    empty = [path.name for path in services.config.data_dir.rglob("*") if path.is_dir() and not any(path.iterdir())]
    if empty:
        yield f"empty folders {empty} are left"
    yield from services.maintenance.verify().problems
    if services.maintenance.reindex().count:
        yield "reindex brought something back"


def _judge_copy(services: Services, folder: Path) -> Iterator[str]:
    """The folder alone is a full backup: a database made from it shows the same records and nothing that was deleted."""
    copy = folder / "copy"
    shutil.copytree(services.config.data_dir, copy / "data")
    environ = _environ(copy, services.config.webui_urls)
    startup.adopt(load(environ, folder), dry_run=False)
    restored = build(load(environ, folder))
    try:
        yield from restored.maintenance.reindex().problems
        for kind in ("txt2img", "img2img"):
            was, now = (each.archive.history(USER, kind, 100, None)[0] for each in (services, restored))
            if was != now:
                yield f"reindexed {kind} history {now} instead of {was}"
    finally:
        restored.database.close()
        shutil.rmtree(copy)


def _judge_webui(services: Services, url: str, claims_before: int) -> Iterator[str]:
    stats = requests.get(f"{url}/simulator/stats", timeout=10).json()
    if stats["max_in_flight"] > 1:
        yield f"{stats['max_in_flight']} generations in flight"
    claims = _claims(services) - claims_before
    if stats["generations"] > claims:
        yield f"{stats['generations']} generations for {claims} claims"
