"""Accepting a request: its names are checked, its seed fixed, its reference image stored, and its row committed."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, Protocol

from app.config import Config
from app.gateway.offering import Offering
from app.gateway.waiting import PendingJob
from app.jobs.errors import DatabaseUnavailable
from app.jobs.events import Announcer, Transition
from app.jobs.model import IdempotencyKey, Job, NewJob
from app.jobs.table import Bounds, JobTable
from app.jobs.view import describe
from app.jobs.waiters import Waiters
from app.parameters import LARGEST_SEED, RANDOM_SEEDS, Type, upscales
from app.records.errors import BadImage, RecordsError
from app.records.images import Reference, ReferenceReader
from app.records.layout import init_filename, new_name
from app.records.store import RecordStore
from app.runtime import request_ids
from app.webui.errors import NoDefaultModel, UnknownNames
from app.webui.resolve import Resolved, resolve

_LOG = logging.getLogger(__name__)

#: How many times `SDG_MAX_SIDE` a side of a reference image may have, which the WebUI makes smaller.
_SIDES: Final = 8


class BadReferenceImage(Exception):
    """The reference image can't be used; names the field."""

    slug = BadImage.slug

    def __init__(self, cause: BadImage) -> None:
        super().__init__(str(cause))
        self.errors = {"init_images": [str(cause)]}


class Client(Protocol):
    """The sender of a request, who waits for the answer."""

    @property
    def cancel_after(self) -> float | None:
        """Seconds from acceptance after which his job is cancelled unless it has ended; None for never. Of a repeated request the
        first one's count.
        """
        ...

    def release_body(self) -> None:
        """Free what was posted: it is in its row, and its reference image on disk."""
        ...


class _Local:
    """A client of this process, which keeps what it posted."""

    cancel_after: float | None = None

    def release_body(self) -> None:
        """Free nothing."""


_LOCAL: Final = _Local()


@dataclass(frozen=True, slots=True)
class _Draft:
    """A request on its way to be accepted."""

    new: NewJob
    reference: Reference | None


class Acceptance:
    """The front door of the queue."""

    def __init__(
        self,
        config: Config,
        table: JobTable,
        waiters: Waiters,
        offering: Offering,
        records: RecordStore,
        announcer: Announcer,
    ) -> None:
        self._table = table
        self._waiters = waiters
        self._offering = offering
        self._records = records
        self._announcer = announcer
        self._bounds = Bounds(config.max_queue, config.max_queue_per_user)
        self._references = ReferenceReader(config.max_output_pixels, _SIDES * config.max_side)
        self._random: Random = secrets.SystemRandom()

    def post(
        self,
        type_: Type,
        fields: dict[str, Any],
        *,
        fingerprint: str,
        idempotency_key: str | None,
        wait: float,
        client: Client = _LOCAL,
    ) -> dict[str, Any] | PendingJob[dict[str, Any]]:
        """Accept a request: the job as it is now, or with ``wait`` seconds one whose end is waited for.

        :param fields: the request after schema validation; for img2img ``init_images`` is the posted text, which is taken out.
        :param fingerprint: a digest of the posted body, which a repeated key is compared by.
        :param client: who waits for the answer.
        :raises Exception: with a slug; then nothing was accepted.
        """
        key, cancel_after = _key(type_, fingerprint, idempotency_key), client.cancel_after
        known = self._table.find_key(fields["id"], key) if key is not None else None
        if known is not None and known.finished:
            return describe(known)
        if wait <= 0:
            return self._describe(known or self._accept(type_, fields, key, cancel_after))
        waiter = self._waiters.reserve()
        try:
            job = known or self._accept(type_, fields, key, cancel_after)
        except BaseException:
            waiter.leave()
            raise
        # That of a repeated request was not looked at.
        fields.pop("init_images", None)
        client.release_body()
        waiter.await_end(job.identity, wait)
        return PendingJob(waiter, self._describe)

    def _describe(self, job: Job) -> dict[str, Any]:
        return describe(job, self._table.queries.place(job))

    def _accept(
        self, type_: Type, fields: dict[str, Any], key: IdempotencyKey | None, cancel_after: float | None
    ) -> Job:
        draft = self._draft(type_, fields)
        new = replace(draft.new, cancel_after=cancel_after)
        if draft.reference is not None:
            self._records.save_init(new.user_id, new.type, new.name, draft.reference.png)
        unneeded = True
        try:
            job, accepted = self._table.accept(new, self._bounds, key)
            unneeded = not accepted
        except DatabaseUnavailable:
            # It may be committed all the same, and then the job needs its reference image; else the sweep takes that.
            unneeded = False
            raise
        finally:
            if unneeded and draft.reference is not None:
                self._remove_files(new)
        if accepted:
            self._announcer.announce(Transition("accepted", job))
        return job

    def _draft(self, type_: Type, fields: dict[str, Any]) -> _Draft:
        resolved = self._resolve(type_, fields | {"seed": self._seed(fields)})
        reference = self._reference(fields) if type_ == "img2img" else None
        now = time.time_ns() // 1_000_000
        name = new_name(now, self._random)
        new = NewJob(
            user_id=fields["id"],
            type=type_,
            name=name,
            created_at=now,
            args=resolved.args,
            init_image=_init_image(name, reference) if reference is not None else None,
            requirements=resolved.requirements.to_json(),
            cost=_cost(type_, resolved),
            request=request_ids.current(),
        )
        return _Draft(new, reference)

    def _resolve(self, type_: Type, fields: dict[str, Any]) -> Resolved:
        """Check the names; what is unknown may have been added to a WebUI since it was asked, so they are asked again."""

        def try_once() -> Resolved:
            catalogues, default_model = self._offering.require_catalogues()
            return resolve(type_, fields, catalogues, self._offering.presets, default_model, self._offering.parameters)

        try:
            return try_once()
        except (UnknownNames, NoDefaultModel):
            if not self._offering.await_refresh():
                raise
        return try_once()

    def _seed(self, fields: dict[str, Any]) -> str:
        """The seed that the job will use; a random one leaves room for the rest of the batch."""
        seed = str(fields["seed"])
        if seed in RANDOM_SEEDS:
            highest = LARGEST_SEED - (fields["batch_size"] - 1)
            return str(self._random.randrange(highest + 1))
        return seed

    def _reference(self, fields: dict[str, Any]) -> Reference:
        try:
            # Taken out, and kept by nobody here: it is megabytes, and goes as soon as it is decoded.
            return self._references.read_base64(fields.pop("init_images"))
        except BadImage as error:
            raise BadReferenceImage(error) from error

    def _remove_files(self, new: NewJob) -> None:
        try:
            self._records.remove_files(new.user_id, new.type, new.name, [init_filename(new.name)])
        except RecordsError:
            # The sweep takes it: a file without any row goes after an hour.
            _LOG.exception("the reference image of a refused request could not be removed")


def _key(type_: str, fingerprint: str, key: str | None) -> IdempotencyKey | None:
    if key is None:
        return None
    return IdempotencyKey(key, hashlib.sha256(f"{type_}\n{fingerprint}".encode()).hexdigest())


def _init_image(name: str, reference: Reference) -> dict[str, Any]:
    return {
        "filename": init_filename(name),
        "width": reference.width,
        "height": reference.height,
        "bytes": len(reference.png),
        "media_type": "image/png",
    }


def _cost(type_: str, resolved: Resolved) -> float:
    """The service units that fair queueing charges: pixel steps, the second pass of the hires fix included."""
    args = resolved.args
    cost = args["steps"] * args["width"] * args["height"] * args["batch_size"]
    hires = type_ == "txt2img" and upscales(args)
    return float(cost * (1 + args["hr_scale"] ** 2)) if hires else float(cost)
