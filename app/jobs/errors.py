"""The errors of jobs; each exception carries the slug under which a client is told."""

from __future__ import annotations

from typing import ClassVar


class JobsError(Exception):
    """Base of this room's exceptions; ``str()`` is a sentence that may be shown to a client."""

    slug: ClassVar[str]
    #: Seconds after which another try makes sense, where the queue tells.
    retry_after: float | None = None


class DatabaseUnavailable(JobsError):
    """The database could not be read or written."""

    slug = "database-unavailable"

    def __init__(self) -> None:
        super().__init__("The job database can't be used at the moment.")


class DriverMissing(JobsError):
    """The driver of PostgreSQL is not installed."""

    slug = "database-unavailable"

    def __init__(self) -> None:
        super().__init__(
            "SDG_DATABASE_URL names PostgreSQL, whose driver is missing: pip install 'sd-gateway[postgres]'."
        )


class ReadOnlyDatabase(JobsError):
    """Nothing can be written to the database."""

    slug = "database-unavailable"

    def __init__(self) -> None:
        super().__init__("Name the primary server, not a read replica.")


class SchemaTooNew(JobsError):
    """The database was written by a newer version of the gateway, which this one must not touch."""

    slug = "database-unavailable"


class SchemaTooOld(JobsError):
    """The database was written by an earlier version and not migrated yet, which only a start of the gateway does."""

    slug = "database-unavailable"

    def __init__(self) -> None:
        super().__init__("The database has the schema of an earlier version of sd-gateway.")


class JobNotFound(JobsError):
    """No such job, or it was deleted."""

    slug = "job-not-found"

    def __init__(self) -> None:
        super().__init__("This user has no such job.")


class JobLost(JobsError):
    """The job was accepted, but its row has vanished: the database was restored from an older dump, or a replica has lost it."""

    slug = "job-lost"

    def __init__(self) -> None:
        super().__init__(
            "The job was accepted, but the database has lost it. Look at the history, or post the request again with the same "
            "Idempotency-Key."
        )


class KeyReused(JobsError):
    """An Idempotency-Key came back with another body."""

    slug = "idempotency-key-reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with another request body.")


class KeyOfDeletedJob(JobsError):
    """An Idempotency-Key came back after its job was deleted."""

    slug = "key-of-deleted-job"

    def __init__(self) -> None:
        super().__init__("The job that this Idempotency-Key made was deleted.")


class QueueFull(JobsError):
    """The bound of unfinished jobs of all users is reached."""

    slug = "queue-full"

    def __init__(self, retry_after: float) -> None:
        super().__init__("Too many jobs are waiting.")
        self.retry_after = retry_after


class UserQueueFull(JobsError):
    """The bound of unfinished jobs of one user is reached."""

    slug = "user-queue-full"

    def __init__(self, retry_after: float) -> None:
        super().__init__("Too many jobs of this user are waiting.")
        self.retry_after = retry_after


class NoFreeWaiter(JobsError):
    """As many clients as may wait for a picture are waiting."""

    slug = "no-free-waiter"

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            "Too many clients are waiting for a picture. Try again later, or send 'Prefer: respond-async' to be answered at once."
        )
        self.retry_after = retry_after
