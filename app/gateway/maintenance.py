"""Consistency of job table and data folder: sweep, verify, reindex; and the upkeep, which removes what nobody needs.

The worker does the upkeep in small steps beside everything else; ``sd-gateway records upkeep`` does it once, to its end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple

from app.gateway.archive import Archive
from app.gateway.ownership import files_of
from app.jobs.deletion import MARK_SECONDS, MOST_FORGOTTEN, SEEN_SECONDS
from app.jobs.model import Job, NewJob, Success
from app.jobs.sql.space import Space
from app.jobs.table import JobTable
from app.jobs.view import milliseconds
from app.records.errors import MissingFile, RecordsError
from app.records.files import StoredFile
from app.records.layout import DOCUMENT_FORMAT, user_folder
from app.records.store import RecordStore

_LOG = logging.getLogger(__name__)

#: The worker looks so often whether there is something to do.
STEP_SECONDS: Final = 60.0
#: The worker looks at all variants of images at its start, and after each such time.
_SWEEP_SECONDS: Final = 86_400.0
#: A file without any row may belong to a request that is being accepted; after so long it does not.
_ORPHAN_SECONDS: Final = 3600.0
_BATCH: Final = 500
#: What a document that is no readable record raises.
_UNREADABLE: Final = (RecordsError, ValueError, KeyError, TypeError)


@dataclass(slots=True)
class Report:
    """The result of a run over the whole data folder. ``unindexed`` counts the readable records that have no row."""

    count: int = 0
    unindexed: int = 0
    problems: list[str] = field(default_factory=list)


class Maintenance:
    """Compares the whole data folder with the job table."""

    def __init__(self, table: JobTable, records: RecordStore) -> None:
        self._table = table
        self._records = records

    def sweep(self, *, dry_run: bool = False) -> Report:
        """Remove the files that don't belong to a record; ``count`` is how many went, or with ``dry_run`` how many would.

        Where a row has a file's name, the row decides at once. Of files without a row only temporaries and orphan reference images
        older than an hour go: a document, and images that may be a record's, are never removed because a row is missing.
        Variants go whose image is not there.
        """
        report = Report()
        for files in self._files_by_name():
            for file in self._strays(files, report):
                try:
                    report.count += dry_run or self._records.remove_stored(file)
                except RecordsError as error:
                    report.problems.append(f"{file.path}: {error}")
        try:
            report.count += self._records.variants.sweep(dry_run=dry_run)
        except RecordsError as error:
            report.problems.append(f"variants of pictures: {error}")
        return report

    def _files_by_name(self) -> Iterator[list[StoredFile]]:
        """The files of the data folder that may be a job's, those of one job together."""
        for _, in_folder in groupby(self._records.scan(), key=lambda file: file.path.parent):
            by_name: dict[str, list[StoredFile]] = {}
            for file in in_folder:
                if file.parsed is not None:
                    by_name.setdefault(file.parsed.name, []).append(file)
            yield from by_name.values()

    def _strays(self, files: list[StoredFile], report: Report) -> list[StoredFile]:
        """The files of one name that should go; other faults of them go into the report."""
        rows = self._table.queries.rows_named(_name(files[0]), files[0].type)
        mine = next((row for row in rows if user_folder(row[0].user_id) == files[0].user_folder), None)
        if mine is None:
            return self._strays_without_row(files, report)
        job, live = mine
        whole = set() if job.finished else self._whole_attempts(files)
        return [file for file in files if not _belongs(file, job, live=live, whole=whole)]

    def _whole_attempts(self, files: list[StoredFile]) -> set[int]:
        """The attempts whose documents can be read."""
        return {_attempt(file) for file in files if _is_document(file) and self._readable(file)}

    def _readable(self, document: StoredFile) -> bool:
        try:
            self._read(document)
        except _UNREADABLE:
            return False
        return True

    def _strays_without_row(self, files: list[StoredFile], report: Report) -> list[StoredFile]:
        # A job may have been deleted since its folder was read.
        files = [file for file in files if self._records.has(file)]
        documents = sorted(filter(_is_document, files), key=_attempt)
        images = [file for file in files if _kind(file) == "image" and not file.temporary]
        if documents and self._readable(documents[-1]):
            report.unindexed += 1
        elif documents:
            report.problems.append(
                f"{documents[-1].path}: no row in the database, and not a readable record; its files stay"
            )
        elif images:
            report.problems.append(f"{images[0].path}: no row in the database, and no document beside it; it stays")
        wanted = bool(documents or images)
        old = [file for file in files if file.age_seconds >= _ORPHAN_SECONDS]
        return [file for file in old if file.temporary or (_kind(file) == "init" and not wanted)]

    def verify(self) -> Report:
        """Open every file of every succeeded job; ``count`` is the number of jobs looked at."""
        report = Report()
        for job in self._succeeded():
            report.count += 1
            for filename in files_of(job):
                try:
                    self._records.verify_file(self._records.path(job.user_id, job.type, filename))
                except RecordsError as error:
                    report.problems.append(f"{job.user_id} {job.type} {filename}: {error}")
        return report

    def _succeeded(self) -> Iterator[Job]:
        after = 0
        while page := self._table.queries.succeeded(after, _BATCH):
            yield from page
            after = page[-1].seq

    def reindex(self, *, dry_run: bool = False) -> Report:
        """Add a row for every record that only the folder knows; ``count`` is how many were added, or with ``dry_run`` would be."""
        report = Report()
        for file in self._highest_documents():
            try:
                record = self._read(file)
            except _UNREADABLE as error:
                report.problems.append(f"{file.path}: not a readable record ({type(error).__name__})")
            else:
                report.count += self._is_missing(record.new) if dry_run else self._table.restore(*record)
        return report

    def _is_missing(self, new: NewJob) -> bool:
        return not any(job.user_id == new.user_id for job, _ in self._table.queries.rows_named(new.name, new.type))

    def _highest_documents(self) -> list[StoredFile]:
        """The document of each record's highest claim, the oldest record first."""
        highest: dict[tuple[str, str, str], StoredFile] = {}
        for file in self._records.scan():
            if file.parsed is None or file.parsed.kind != "document" or file.temporary:
                continue
            key = (file.parsed.name, file.type, file.user_folder)
            known = highest.get(key)
            if known is None or _attempt(file) > _attempt(known):
                highest[key] = file
        return [highest[key] for key in sorted(highest)]

    def _read(self, file: StoredFile) -> _Record:
        """The record that a document describes, with the images that exist; raises one of :data:`_UNREADABLE`."""
        document = self._records.read_stored(file)
        if document["format"] != DOCUMENT_FORMAT or document["type"] != file.type or document["name"] != _name(file):
            raise ValueError("not a document of this version")
        if user_folder(document["id"]) != file.user_folder:
            raise ValueError("not a document of this folder")
        images = [image for image in document["images"] if self._exists(document, image["filename"])]
        if not images:
            raise MissingFile
        new = NewJob(
            user_id=document["id"],
            type=document["type"],
            name=document["name"],
            created_at=milliseconds(document["created_at"]),
            args=document["args"],
            init_image=document["init_image"],
            requirements="",
            cost=0.0,
        )
        success = Success(
            milliseconds(document["finished_at"]), new.args, images, document["webui"], document["simulated"]
        )
        started = document["started_at"]
        return _Record(new, success, milliseconds(started) if started else None, _attempt(file))

    def _exists(self, document: dict[str, Any], filename: str) -> bool:
        try:
            self._records.path(document["id"], document["type"], filename)
        except MissingFile:
            return False
        return True


class _Record(NamedTuple):
    """A record as its document describes it, in the order in which :meth:`app.jobs.table.JobTable.restore` takes it."""

    new: NewJob
    success: Success
    started_at: int | None
    attempt: int


def _attempt(file: StoredFile) -> int:
    return (file.parsed.attempt or 0) if file.parsed is not None else 0


def _name(file: StoredFile) -> str:
    return file.parsed.name if file.parsed is not None else ""


def _kind(file: StoredFile) -> str | None:
    return file.parsed.kind if file.parsed is not None else None


def _is_document(file: StoredFile) -> bool:
    return _kind(file) == "document" and not file.temporary


def _belongs(file: StoredFile, job: Job, *, live: bool, whole: set[int]) -> bool:
    """Whether a file belongs to the job that has its name.

    :param live: the job runs under a lease, and its worker may still be writing the files of this claim.
    :param whole: attempts of an unfinished job that left a readable record. It stays until the job has ended: the row may be from a
        backup that is older than the record.
    """
    if file.filename in files_of(job):
        return True
    attempt = _attempt(file)
    return (live and attempt == job.claims) or (attempt in whole and not file.temporary)


class Upkeep:
    """Removes what is left over."""

    def __init__(self, table: JobTable, space: Space, records: RecordStore, archive: Archive) -> None:
        self._table = table
        self._space = space
        self._records = records
        self._archive = archive
        self._next_at = 0.0
        self._sweep: Iterator[int] | None = None
        self._sweep_at = 0.0

    def step(self) -> None:
        """Do a part of it if its time has come; again at the next call if there is more.

        :raises DatabaseUnavailable: nothing can be done now.
        """
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + STEP_SECONDS
        self._archive.tidy()
        more = [forget() >= MOST_FORGOTTEN for forget in self._batches(MARK_SECONDS).values()]
        more += [self._sweep_variants(), self._space.step()]
        if any(more):
            self._next_at = 0.0

    def _sweep_variants(self) -> bool:
        """Look at some more variants, if it is time, and remove those whose image is gone; whether there may be more."""
        if self._sweep is None:
            if time.monotonic() < self._sweep_at:
                return False
            self._sweep = self._records.variants.sweep_in_steps()
        try:
            if next(self._sweep, None) is not None:
                return True
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
        except RecordsError:
            _LOG.exception("variants of deleted pictures could not be removed")
        self._sweep = None
        return False

    def run(self) -> Mapping[str, int]:
        """Do all of it; what was removed, and how much of it. Rows of deleted jobs are not kept for those who watch.

        :raises DatabaseUnavailable, StorageFailed: it stopped half way; a repetition goes on from there.
        """
        done = {"deletions finished": self._archive.tidy(), "refusals": self._table.deletion.forget_refusals()}
        done |= {what: _until_nothing(forget) for what, forget in self._batches(SEEN_SECONDS).items()}
        done["variants of deleted pictures"] = self._records.variants.sweep()
        done["users' folders"] = self._records.folder.remove_empty_folders()
        return done | {"bytes of the database": self._space.make_small()}

    def _batches(self, marks_seconds: float) -> Mapping[str, Callable[[], int]]:
        # Keys first: the row of a deleted job stays while one names it.
        return {
            "keys": self._table.deletion.forget_keys,
            "rows of deleted jobs": partial(self._table.deletion.forget_deleted, marks_seconds),
            "rows of users": self._table.deletion.forget_users,
        }


def _until_nothing(forget: Callable[[], int]) -> int:
    total = 0
    while count := forget():
        total += count
    return total
