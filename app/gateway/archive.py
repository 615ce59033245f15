"""What users have made: history, images, parameters, deletion; and the upkeep that holds table and folder together.

The row is the truth: a file is shown when its row names it, and goes when no row does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import pybase64

from app.jobs import events
from app.jobs.errors import DatabaseUnavailable, JobNotFound
from app.jobs.model import Job, NewJob, Success
from app.jobs.table import JobTable
from app.jobs.view import describe, milliseconds
from app.records.errors import MissingFile, RecordsError
from app.records.files import StoredFile
from app.records.layout import (
    DOCUMENT_FORMAT,
    FileName,
    document_filename,
    image_filenames,
    parse_filename,
    user_folder,
)
from app.records.store import RecordStore
from app.runtime.jsontext import dumps

_LOG = logging.getLogger(__name__)

#: A file without any row may belong to a request that is being accepted; after so long it does not.
_ORPHAN_SECONDS: Final = 3600.0
_BATCH: Final = 500
#: What a document that is no readable record raises.
_UNREADABLE: Final = (RecordsError, ValueError, KeyError, TypeError)

#: The largest answer that a page of jobs makes, as long as it has more than one of them.
PAGE_BYTES: Final = 8_000_000
#: What the answer may add to a job and to each of its files besides what :func:`describe` says: members, URLs.
_ADDED_TO_JOB: Final = 300
_ADDED_TO_FILE: Final = 200

Page = tuple[list[dict[str, Any]], int | None]


class _Room:
    """What a page has room for: so many jobs, and :data:`PAGE_BYTES` of JSON.

    ``exceeded`` tells whether a job was refused, so that another page follows.
    """

    def __init__(self, limit: int) -> None:
        self._jobs = limit
        self._bytes = PAGE_BYTES
        self._empty = True
        self.exceeded = False

    def takes(self, job: Job) -> bool:
        """Whether the next job has its place on the page."""
        self._jobs -= 1
        self._bytes -= _size(job)
        self.exceeded = self._jobs < 0 or (self._bytes < 0 and not self._empty)
        self._empty = False
        return not self.exceeded


def _size(job: Job) -> int:
    """At least as many bytes as a job takes in an answer. Each URL holds the user's id, percent-encoded."""
    address = 3 * len(job.user_id.encode()) + _ADDED_TO_FILE
    return len(dumps(describe(job))) + (len(job.images) + 2) * address + _ADDED_TO_JOB


@dataclass(frozen=True, slots=True)
class File:
    """An image to be sent: where it lies, its media type, and an entity tag (files never change, so the name is one)."""

    place: str
    media_type: str
    etag: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.place)


@dataclass(slots=True)
class Report:
    """What a run over the whole data folder found. ``unindexed`` counts the readable records that have no row."""

    count: int = 0
    unindexed: int = 0
    problems: list[str] = field(default_factory=list)


class Archive:
    """The records of all users."""

    def __init__(self, table: JobTable, records: RecordStore) -> None:
        self._table = table
        self._records = records

    # -- looking -----------------------------------------------------------------------------------------------------

    def history(self, user_id: str, type_: str, limit: int, before: int | None) -> Page:
        """Succeeded jobs of one type, newest first; and the cursor of the next page, None on the last.

        A page has at most ``limit`` jobs and :data:`PAGE_BYTES`, but always one job, if there is any.
        """
        room = _Room(limit)
        return self._page(self._table.history(user_id, type_, limit + 1, before, room.takes), room)

    def jobs(self, user_id: str, status: str | None, limit: int, before: int | None) -> Page:
        """The user's jobs in any state, or in one, newest first; pages as :meth:`history` has them."""
        room = _Room(limit)
        return self._page(self._table.of_user(user_id, status, limit + 1, before, room.takes), room)

    def _page(self, shown: list[Job], room: _Room) -> Page:
        return [self._describe(job) for job in shown], shown[-1].seq if room.exceeded else None

    def _describe(self, job: Job) -> dict[str, Any]:
        return describe(job) if job.finished else describe(job, self._table.place(job))

    def job(self, user_id: str, type_: str, name: str) -> dict[str, Any]:
        """One job; while it runs, its WebUI is asked how far it is.

        :raises JobNotFound: there is none.
        """
        job = self._table.get(user_id, type_, name)
        if job.status == "running":
            # Only a hint to its worker: where the disk is full, a job can still be looked at.
            with suppress(DatabaseUnavailable):
                self._table.looked_at(job)
        return self._describe(job)

    def file(self, user_id: str, type_: str, filename: str) -> File:
        """One image of a record, or the reference image of a job.

        :raises JobNotFound: no row names it.
        :raises MissingFile: its row does, but it is gone from the disk.
        """
        media_type = self._media_type(user_id, type_, filename)
        return File(self._records.place(user_id, type_, filename), media_type, filename)

    def _media_type(self, user_id: str, type_: str, filename: str) -> str:
        """The media type of an image that a row names."""
        for image in self._table.images(user_id, type_, _parse(filename).name):
            if image["filename"] == filename:
                return str(image["media_type"])
        raise JobNotFound

    def args(self, user_id: str, type_: str, filename: str) -> dict[str, Any]:
        """The complete parameters of a record, or of one of its images, ready to be posted again.

        :raises JobNotFound: no succeeded job has this name or image.
        """
        parsed = _parse(filename)
        job = self._table.get(user_id, type_, parsed.name)
        if job.status != "succeeded":
            raise JobNotFound
        args = dict(job.args)
        if parsed.kind != "record":
            image = next((image for image in job.images if image["filename"] == filename), None)
            if image is None:
                raise JobNotFound
            args |= {"seed": image["seed"], "batch_size": 1}
        if job.init_image is not None:
            png = self._records.read_init(user_id, type_, job.name)
            args["init_images"] = "data:image/png;base64," + pybase64.b64encode_as_string(png)
        return args

    # -- deleting ----------------------------------------------------------------------------------------------------

    def delete(self, user_id: str, type_: str, filename: str) -> list[str]:
        """Delete a record by its name, or one image by its file name; the names of the deleted files.

        :raises JobNotFound: there is no such record or image.
        :raises JobUnfinished: the job is queued or running.
        """
        parsed = _parse(filename)
        if parsed.kind == "record":
            job, whole = self._table.delete(user_id, type_, filename), True
        elif parsed.kind == "image":
            job, whole = self._table.delete_image(user_id, type_, parsed.name, filename)
        else:
            raise JobNotFound
        events.transition("deleted", job, file=None if whole else filename)
        deleted = _files(job) if whole else [filename]
        try:
            self._unlink(job, None if whole else [filename])
        except RecordsError:
            # The row is committed: the record is gone for its user, and the worker unlinks what is left at its next start.
            _LOG.exception("the files of a deleted record could not be removed yet")
        return deleted

    def _unlink(self, job: Job, filenames: Iterable[str] | None) -> None:
        """Remove these files of a job, or all of them."""
        if filenames is not None:
            self._records.remove_files(job.user_id, job.type, job.name, filenames)
        elif _has_only_named_files(job):
            # The document first, so that a half-deleted record can't be indexed again from its folder.
            named = [document_filename(job.name, job.claims), *_files(job)]
            self._records.remove_files(job.user_id, job.type, job.name, dict.fromkeys(named))
        else:
            self._records.remove(job.user_id, job.type, job.name, claims=job.claims, images=_batch_size(job))
        self._table.debris_removed(job)

    def tidy(self) -> int:
        """Unlink what a crash left of deletions whose rows were committed; how many rows that concerned."""
        done = after = 0
        while page := self._table.debris(after, _BATCH):
            for job, whole in page:
                try:
                    self._unlink(job, None if whole else _unnamed_images(job))
                    done += 1
                except RecordsError:
                    _LOG.exception("the files of a deleted record could not be removed")
            after = page[-1][0].seq
        return done

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def sweep(self, *, dry_run: bool = False) -> Report:
        """Remove the files that don't belong to a record; ``count`` is how many went, or with ``dry_run`` how many would.

        Where a row has a file's name, the row decides at once. Of files without a row only temporaries and orphan reference images
        older than an hour go: a document, and images that may be a record's, are never removed because a row is missing.
        """
        report = Report()
        for files in self._files_by_name():
            for file in self._strays(files, report):
                try:
                    report.count += dry_run or self._records.remove_stored(file)
                except RecordsError as error:
                    report.problems.append(f"{file.path}: {error}")
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
        """Which files of one name should go; what else is wrong with them goes into the report."""
        rows = self._table.rows_named(_name(files[0]), files[0].type)
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
            for filename in _files(job):
                try:
                    self._records.verify_file(self._records.path(job.user_id, job.type, filename))
                except RecordsError as error:
                    report.problems.append(f"{job.user_id} {job.type} {filename}: {error}")
        return report

    def _succeeded(self) -> Iterator[Job]:
        after = 0
        while page := self._table.succeeded(after, _BATCH):
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
        return not any(job.user_id == new.user_id for job, _ in self._table.rows_named(new.name, new.type))

    def _highest_documents(self) -> list[StoredFile]:
        """Of every record the document of the highest claim, the oldest record first."""
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
            demand="",
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


def _parse(filename: str) -> FileName:
    parsed = parse_filename(filename)
    if parsed is None:
        raise JobNotFound
    return parsed


def _attempt(file: StoredFile) -> int:
    return (file.parsed.attempt or 0) if file.parsed is not None else 0


def _name(file: StoredFile) -> str:
    return file.parsed.name if file.parsed is not None else ""


def _kind(file: StoredFile) -> str | None:
    return file.parsed.kind if file.parsed is not None else None


def _is_document(file: StoredFile) -> bool:
    return _kind(file) == "document" and not file.temporary


def _has_only_named_files(job: Job) -> bool:
    """Whether the row names every file that there can be: its only attempt succeeded, and no image of it was deleted alone."""
    return job.status == "succeeded" and job.claims == 1 and len(job.images) == _batch_size(job)


def _unnamed_images(job: Job) -> list[str]:
    """The images that the attempt which succeeded can have made and that were deleted since."""
    named = {image["filename"] for image in job.images}
    return [name for name in image_filenames(job.name, job.claims, _batch_size(job) or 0) if name not in named]


def _batch_size(job: Job) -> int | None:
    """How many pictures each attempt was to make; None for a row that an earlier version emptied when it was deleted."""
    return job.args.get("batch_size")


def _files(job: Job) -> list[str]:
    """The files that a job's row owns: images, document, reference image (a failed job keeps that until it is deleted)."""
    names = [str(image["filename"]) for image in job.images]
    if job.status == "succeeded":
        names.append(document_filename(job.name, job.claims))
    if job.init_image is not None:
        names.append(job.init_image["filename"])
    return names


def _belongs(file: StoredFile, job: Job, *, live: bool, whole: set[int]) -> bool:
    """Whether a file belongs to the job that has its name.

    :param live: the job runs under a lease, and its worker may still be writing the files of this claim.
    :param whole: attempts of an unfinished job that left a readable record. It stays until the job has ended: the row may be from a
        backup that is older than the record.
    """
    if file.filename in _files(job):
        return True
    attempt = _attempt(file)
    return (live and attempt == job.claims) or (attempt in whole and not file.temporary)
