"""The records of users: history, images, parameters, deletion.

The row is the truth: a file is shown when its row names it, and goes when no row does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pybase64

from app.gateway.ownership import batch_size, files_of, has_only_named_files, unnamed_images
from app.gateway.waiting import Reading
from app.jobs.errors import JobNotFound
from app.jobs.events import Announcer, Event, Transition
from app.jobs.model import Identity, Job
from app.jobs.table import JobTable
from app.jobs.view import describe
from app.records.errors import RecordsError
from app.records.layout import MEDIA_TYPES, FileName, Variant, document_filename, parse_filename
from app.records.store import RecordStore
from app.runtime.jsontext import dumps

_LOG = logging.getLogger(__name__)

_BATCH: Final = 500

#: The largest answer that a page of jobs makes, as long as it has more than one of them.
PAGE_BYTES: Final = 8_000_000
#: Upper bounds of the bytes that an answer adds to what :func:`describe` says: members of a job, and URLs. A URL with its member,
#: size, format and signature has 200 bytes, besides the user's id and what stands before its path (SDG_PUBLIC_URL, or where a proxy
#: has mounted the gateway).
_ADDED_TO_JOB: Final = 300
_ADDED_FOR_URL: Final = 200
_BEFORE_PATH: Final = 300
_URLS_OF_FILE: Final = 2

Page = tuple[list[dict[str, Any]], int | None]


class PageBudget:
    """What fits on a page: a number of jobs, and :data:`PAGE_BYTES` of JSON.

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
    """An upper bound of the bytes of a job in an answer, its URLs signed or not, for an SDG_PUBLIC_URL of at most 300 bytes."""
    # Each URL holds the user's id, percent-encoded.
    address = 3 * len(job.user_id.encode()) + _ADDED_FOR_URL + _BEFORE_PATH
    files = len(job.images) + 1
    return len(dumps(describe(job))) + (_URLS_OF_FILE * files + 1) * address + _ADDED_TO_JOB


@dataclass(frozen=True, slots=True)
class File:
    """An image to be sent, or a variant of one.

    ``etag`` is strong. An image never changes under its name, so the name is one; for a variant the time of its making is added.
    """

    #: The path of the file; empty where there is none.
    place: str
    media_type: str
    etag: str
    #: The file name under which a client saves it.
    name: str
    #: The bytes, where they need not be read.
    data: bytes | None = None
    #: With ``data``: nanoseconds since the epoch.
    modified_ns: int = 0

    @property
    def path(self) -> Path:
        """The path of the file."""
        return Path(self.place)

    def measure(self) -> tuple[int, int]:
        """The size in bytes, and the time of the last change in whole seconds since the epoch.

        :raises FileNotFoundError: it was deleted a moment ago.
        """
        if self.data is not None:
            return len(self.data), self.modified_ns // 10**9
        status = self.path.stat()
        return status.st_size, int(status.st_mtime)


class Archive:
    """The records of all users."""

    def __init__(self, table: JobTable, records: RecordStore, announcer: Announcer) -> None:
        self._table = table
        self._records = records
        self._announcer = announcer

    # -- reading -----------------------------------------------------------------------------------------------------

    def history(self, user_id: str, type_: str, limit: int, before: int | None) -> Page:
        """Succeeded jobs of one type, newest first; and the cursor of the next page, None on the last.

        A page has at most ``limit`` jobs and :data:`PAGE_BYTES`, but always one job, if there is any.
        """
        budget = PageBudget(limit)
        return self._page(self._table.queries.history(user_id, type_, limit + 1, before, budget.takes), budget)

    def jobs(self, user_id: str, status: str | None, limit: int, before: int | None) -> Page:
        """The user's jobs in any state, or in one, newest first; pages as :meth:`history` has them."""
        budget = PageBudget(limit)
        return self._page(self._table.queries.of_user(user_id, status, limit + 1, before, budget.takes), budget)

    def _page(self, shown: list[Job], budget: PageBudget) -> Page:
        places = self._table.queries.places(shown)
        return [describe(job, places[job.identity]) for job in shown], shown[-1].seq if budget.exceeded else None

    def file(self, user_id: str, type_: str, filename: str) -> File:
        """One image of a record, or the reference image of a job.

        :raises JobNotFound: no row names it.
        :raises MissingFile: its row does, but it is gone from the disk.
        """
        media_type = self._media_type(user_id, type_, filename)
        return File(self._records.place(user_id, type_, filename), media_type, filename, filename)

    def variant(self, user_id: str, type_: str, filename: str, size: int | None, extension: str | None) -> File:
        """The same in another size or format, without metadata.

        :param size: pixels of the longest side, as far as the image has so many; None keeps them all.
        :param extension: the format, by the extension of its files; None keeps that of the image.
        :raises JobNotFound, MissingFile: see :meth:`file`.
        :raises DamagedImage, TooLargeForFormat, VariantsBusy, StorageFailed: see :meth:`app.records.store.RecordStore.variant`.
        """
        self._media_type(user_id, type_, filename)
        variant = Variant(size, extension or filename.rpartition(".")[2])
        stored = self._records.variant(user_id, type_, filename, variant)
        name = variant.shown_filename(filename)
        etag = f"{name}-{stored.modified_ns:x}"
        return File(stored.place, MEDIA_TYPES[variant.extension], etag, name, stored.data, stored.modified_ns)

    def _media_type(self, user_id: str, type_: str, filename: str) -> str:
        """The media type of an image that a row names."""
        for image in self._table.queries.images(user_id, type_, _parse(filename).name):
            if image["filename"] == filename:
                return str(image["media_type"])
        raise JobNotFound

    def args(self, user_id: str, type_: str, filename: str) -> dict[str, Any]:
        """The complete parameters of a record, or of one of its images, ready to be posted again.

        :raises JobNotFound: no succeeded job has this name or image.
        """
        parsed = _parse(filename)
        job = self._table.queries.get(user_id, type_, parsed.name)
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

    # -- cancelling --------------------------------------------------------------------------------------------------

    def cancel(self, user_id: str, type_: str, name: str) -> Reading:
        """End a job that waits, or ask for the end of one that runs; the job as it is now, a finished one as it ended.

        :raises JobNotFound: there is none.
        """
        job, changed = self._table.cancellation.cancel(Identity(user_id, type_, name))
        if changed:
            event: Event = "cancelled" if job.finished else "cancel requested"
            self._announcer.announce(Transition(event, job, slug=job.error_slug))
        view = describe(job, self._table.queries.place(job))
        return Reading(view, self._table.revisions.version_of(job.rev))

    def cancel_queued(self, user_id: str) -> int:
        """End all jobs of a user that wait; how many."""
        ended = self._table.cancellation.cancel_queued(user_id)
        for job in ended:
            self._announcer.announce(Transition("cancelled", job, slug=job.error_slug))
        return len(ended)

    # -- deleting ----------------------------------------------------------------------------------------------------

    def delete(self, user_id: str, type_: str, filename: str) -> list[str]:
        """Delete a record by its name, or one image by its file name; the names of the deleted files.

        An unfinished job is cancelled and leaves nothing: what its claim still writes is removed by the upkeep.

        :raises JobNotFound: there is no such record or image.
        """
        parsed = _parse(filename)
        if parsed.kind == "record":
            job, whole = self._table.deletion.delete(user_id, type_, filename), True
        elif parsed.kind == "image":
            job, whole = self._table.deletion.delete_image(user_id, type_, parsed.name, filename)
        else:
            raise JobNotFound
        self._announcer.announce(Transition("deleted", job, file=None if whole else filename))
        deleted = [] if not job.finished else files_of(job) if whole else [filename]
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
        elif has_only_named_files(job):
            # The document first, so that a half-deleted record can't be indexed again from its folder.
            named = [document_filename(job.name, job.claims), *files_of(job)]
            self._records.remove_files(job.user_id, job.type, job.name, dict.fromkeys(named))
        else:
            self._records.remove(job.user_id, job.type, job.name, claims=job.claims, images=batch_size(job))
        self._table.deletion.unlinked(job)

    def tidy(self) -> int:
        """Unlink what deletions, cancelled and failed jobs have left; how many rows that concerned."""
        done = after = 0
        while page := self._table.deletion.pending_unlink(after, _BATCH):
            for job, whole in page:
                try:
                    self._unlink_left(job, whole=whole)
                    done += 1
                except RecordsError:
                    _LOG.exception("the files of a deleted record could not be removed")
            after = page[-1][0].seq
        return done

    def _unlink_left(self, job: Job, *, whole: bool) -> None:
        if not whole and job.status != "succeeded":
            # Cancelled or failed: its claims may have left pictures. The reference image stays until it is deleted.
            self._records.remove(
                job.user_id, job.type, job.name, claims=job.claims, images=batch_size(job), reference=False
            )
            self._table.deletion.unlinked(job)
        else:
            self._unlink(job, None if whole else unnamed_images(job))


def _parse(filename: str) -> FileName:
    parsed = parse_filename(filename)
    if parsed is None:
        raise JobNotFound
    return parsed
