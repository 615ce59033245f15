"""What the API needs from the rest of the gateway, as protocols: the services that the views call.

A *view* (``dict``) is the job object of the HTTP contract without its ``url`` members, and with ``error`` as ``None`` or
``{"slug": …, "detail": …}``; times are RFC 3339 strings. Every method may raise an exception that carries a ``slug`` of
:data:`app.problems.PROBLEMS` and whose text may be shown to the client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from app.config import Config
from app.gateway.accept import Client
from app.parameters import Parameters
from app.parameters import Type as JobType

JobView = Mapping[str, Any]


class File(Protocol):
    """A stored file."""

    @property
    def place(self) -> str:
        """Where it is, as an absolute path."""
        ...

    @property
    def media_type(self) -> str:
        """What it is."""
        ...

    @property
    def etag(self) -> str:
        """An entity tag that changes with its bytes, without quotes."""
        ...


class Submissions(Protocol):
    """The way into the queue."""

    def post(
        self,
        kind: JobType,
        fields: dict[str, Any],
        /,
        *,
        fingerprint: str,
        idempotency_key: str | None,
        wait: float,
        client: Client,
    ) -> JobView:
        """Accept a request and wait up to ``wait`` seconds for its end; 0 does not wait and needs no free waiter.

        :param fields: the request as the schema loaded it; ``init_images`` is the posted text of the one image.
        :param fingerprint: a digest of the posted body, by which a repeated Idempotency-Key is judged.
        :param client: told when nothing of the request is needed any more but its job, and asked whether it has hung up.
        """
        ...


class Archive(Protocol):
    """The jobs of a user and what they left on disk."""

    def history(
        self, user: str, kind: JobType, limit: int, before: int | None, /
    ) -> tuple[Sequence[JobView], int | None]:
        """The succeeded jobs before that sequence, newest first, and the sequence the next page starts before."""
        ...

    def jobs(
        self, user: str, status: str | None, limit: int, before: int | None, /
    ) -> tuple[Sequence[JobView], int | None]:
        """The same for jobs of both types in any one state, or in all of them."""
        ...

    def job(self, user: str, kind: JobType, name: str, /) -> JobView:
        """One job."""
        ...

    def file(self, user: str, kind: JobType, filename: str, /) -> File:
        """An image of a record, or its reference image."""
        ...

    def args(self, user: str, kind: JobType, filename: str, /) -> dict[str, Any]:
        """The complete parameters of a record or of one of its images, ready to be posted again."""
        ...

    def delete(self, user: str, kind: JobType, filename: str, /) -> list[str]:
        """Delete a record or one of its images; the names of the deleted files."""
        ...


class Services(Protocol):
    """Everything that the views call."""

    @property
    def config(self) -> Config:
        """The settings."""
        ...

    @property
    def parameters(self) -> Parameters:
        """The table of request fields."""
        ...

    @property
    def submissions(self) -> Submissions:
        """The way into the queue."""
        ...

    @property
    def archive(self) -> Archive:
        """The jobs and their files."""
        ...

    def options(self) -> dict[str, Any]:
        """The names that a request may use, as ``GET /options`` lists them."""
        ...

    def readiness(self) -> list[str]:
        """Why the gateway is degraded, one sentence each; empty when it is not."""
        ...
