"""The tables, as SQLAlchemy Core sees them; app/migrations makes them.

``jobs`` is the truth about every accepted request: its row is the commit and the index. The other tables exist so that one
transaction can take a job and a WebUI's slot, keep the queue fair, and remember what the WebUIs offer.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    and_,
    literal_column,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

METADATA: Final = MetaData()
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

# Statuses as SQL literals: a partial index serves a query only when the query names the literal, not a bound parameter.
QUEUED: Final = literal_column("'queued'", Text)
RUNNING: Final = literal_column("'running'", Text)
SUCCEEDED: Final = literal_column("'succeeded'", Text)
FAILED: Final = literal_column("'failed'", Text)
CANCELLED: Final = literal_column("'cancelled'", Text)
DELETED: Final = literal_column("'deleted'", Text)
# For the same reason a bare column: as a Boolean it would become "pending_unlink = 1" on SQLite, which its index does not say.
PENDING_UNLINK: Final[ColumnElement[Any]] = literal_column("pending_unlink")

JOBS: Final = Table(
    "jobs",
    METADATA,
    # The acceptance sequence: the order of history and, among equal start tags, of the queue. Within one transaction it names the
    # row; across transactions only (user_id, type, name) does, see app.jobs.model.Identity.
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("user_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("name", Text, nullable=False),
    # queued, running, succeeded, failed, cancelled; or deleted: the mark that keeps reindex from bringing it back.
    Column("status", Text, nullable=False),
    # Milliseconds since 1970, UTC, by the gateway's clock.
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    # Of a deleted job the time of its deletion.
    Column("finished_at", BigInteger),
    Column("args", Text, nullable=False),
    Column("init_image", Text),
    Column("images", Text),
    Column("webui", Text),
    Column("simulated", Boolean, nullable=False),
    Column("error_slug", Text),
    Column("error_detail", Text),
    # Fair queueing: the service units that the job needs and its start tag.
    Column("cost", Float, nullable=False),
    Column("start_tag", Float, nullable=False),
    Column("requirements_id", Integer, nullable=False),
    # Every claim raises `claims`; `attempts` counts those that ended at the WebUI, `losses` those that our process ended.
    Column("claims", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("one_by_one", Boolean, nullable=False),
    # The lease: who works at it, until when (seconds since 1970 by the database's clock), on which slot, in which phase.
    Column("owner", Text),
    Column("lease_expires", Float),
    Column("slot", Text),
    # The force_task_id of the last claim; it stays when that has ended.
    Column("task_id", Text),
    Column("phase", Text),
    Column("claimed_at", Float),
    Column("progress", Float),
    Column("eta", Float),
    Column("progress_at", Float),
    Column("watched_at", Float),
    # Files that no row names may be on disk: of a deleted record, or of the claims of a job that was cancelled or failed.
    Column("pending_unlink", Boolean, nullable=False),
    # What earlier attempts found out, as a JSON list of objects; NULL before the first of them.
    Column("tried", Text),
    # The last change that a client can see, in the order of all changes (app/jobs/revisions.py); 0 from before there was one.
    Column("rev", BigInteger, nullable=False, server_default=text("0")),
    # When a client asked for its end, and until when it must have ended: seconds since 1970 by the database's clock.
    Column("cancel_at", Float),
    Column("deadline", Float),
    # The X-Request-ID of the request that was accepted; NULL from before there was one.
    Column("request", Text),
    sqlite_autoincrement=True,
)
Index("jobs_by_name", JOBS.c.name, JOBS.c.type, JOBS.c.user_id, unique=True)
Index("jobs_history", JOBS.c.user_id, JOBS.c.type, JOBS.c.status, JOBS.c.seq)
Index("jobs_of_user", JOBS.c.user_id, JOBS.c.status, JOBS.c.seq)
Index("jobs_of_user_any", JOBS.c.user_id, JOBS.c.seq)
Index("jobs_rev", JOBS.c.rev, JOBS.c.seq)
Index("jobs_of_user_rev", JOBS.c.user_id, JOBS.c.rev, JOBS.c.seq)


def _partial(name: str, where: Any, *columns: Any) -> None:
    Index(name, *columns, sqlite_where=where, postgresql_where=where)


# Cost, requirements and status stand in it so that places are reckoned from the index alone (SQLite looks at the status of each row
# even where the index holds no other).
_partial(
    "jobs_queue",
    JOBS.c.status == QUEUED,
    *(JOBS.c[name] for name in ("start_tag", "seq", "cost", "status", "requirements_id")),
)
_partial("jobs_running", JOBS.c.status == RUNNING, JOBS.c.owner)
_partial("jobs_pending_unlink", JOBS.c.pending_unlink, JOBS.c.seq)
_partial("jobs_deleted", JOBS.c.status == DELETED, JOBS.c.seq)
_partial("jobs_deadline", and_(JOBS.c.deadline.is_not(None), JOBS.c.finished_at.is_(None)), JOBS.c.deadline)

# One row: the virtual time of fair queueing, the number of unfinished jobs, and the last rev; the highest rev of a row that is gone
# for good. Writers on PostgreSQL lock it first.
CLOCK: Final = Table(
    "clock",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("virtual", Float, nullable=False),
    Column("unfinished", Integer, nullable=False),
    Column("rev", BigInteger, nullable=False, server_default=text("0")),
    Column("purged_rev", BigInteger, nullable=False, server_default=text("0")),
)

# The epochs of the revs, each with the first rev of it; see app/jobs/revisions.py.
EPOCHS: Final = Table(
    "epochs",
    METADATA,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("first_rev", BigInteger, nullable=False),
)

USERS: Final = Table(
    "users",
    METADATA,
    Column("user_id", Text, primary_key=True),
    Column("finish", Float, nullable=False),
    Column("unfinished", Integer, nullable=False),
)

# What jobs need of a WebUI, each distinct need once (names as canonical JSON).
REQUIREMENTS: Final = Table(
    "requirements",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("body", Text, nullable=False, unique=True),
    sqlite_autoincrement=True,
)

SLOTS: Final = Table(
    "slots",
    METADATA,
    Column("key", Text, primary_key=True),
    # clean, held, unclean (its last holder vanished), quiescing (somebody is waiting until it is idle), suspect.
    Column("state", Text, nullable=False),
    Column("owner", Text),
    Column("lease_expires", Float),
    Column("task_id", Text),
    # up, down or unknown, as its worker saw it last.
    Column("health", Text, nullable=False),
    # Since when, seconds since 1970 by the database's clock; NULL when that is not known.
    Column("health_since", Float),
    Column("probed_at", Float, nullable=False),
    # The model that a failed switch may have left broken in the WebUI's memory, as JSON; NULL when there is no such doubt.
    Column("doubt", Text),
    # Options of the WebUI that an attempt has overridden and the next one puts back, as a JSON object of their old values.
    Column("overridden", Text),
)

# How long a WebUI took for a unit of cost lately, by model; see app.jobs.speeds. The model '' holds what was measured before schema
# 0008, over all models.
SPEEDS: Final = Table(
    "speeds",
    METADATA,
    Column("slot", Text, nullable=False),
    Column("model", Text, nullable=False),
    # Seconds for a unit of cost of the last jobs, newest first.
    Column("recent", Text, nullable=False),
    PrimaryKeyConstraint("slot", "model"),
)

# WebUIs that a queued job is not sent to again, because they answered with an error that would come again.
REFUSALS: Final = Table(
    "refusals",
    METADATA,
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("slot", Text, nullable=False),
    PrimaryKeyConstraint("name", "type", "user_id", "slot"),
)

CATALOGUES: Final = Table(
    "catalogues",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("body", Text, nullable=False),
    Column("version", Integer, nullable=False),
    # When the WebUI was asked last, seconds since 1970 by the database's clock.
    Column("seen_at", Float),
)

WORKERS: Final = Table(
    "workers",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("webuis", Text, nullable=False),
    Column("heartbeat_at", Float, nullable=False),
)

NOTES: Final = Table(
    "notes",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# Who may ask, and for which users; see app/jobs/tokens.py. A token is never removed: once there is one, no request goes
# without.
TOKENS: Final = Table(
    "tokens",
    METADATA,
    # The public part of the token.
    Column("id", Text, primary_key=True),
    # SHA-256 of the whole token, in hexadecimal digits.
    Column("digest", Text, nullable=False),
    Column("name", Text, nullable=False),
    # JSON lists: of scopes, and of user ids or their beginnings with * behind.
    Column("scopes", Text, nullable=False),
    Column("users", Text, nullable=False),
    # JSON object of the limits of this token alone; empty for none.
    Column("limits", Text, nullable=False),
    # Seconds since 1970 by the database's clock; used_at to the hour.
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("used_at", Float),
    # The seconds for which it was made; NULL for ever. Rotation shortens expires_at, and makes another one of this lifetime.
    Column("lifetime", Float),
)

IDEMPOTENCY: Final = Table(
    "idempotency",
    METADATA,
    Column("user_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("digest", Text, nullable=False),
    # The job, with the user_id; both are empty when it was gone before schema 0004.
    Column("type", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
    PrimaryKeyConstraint("user_id", "key"),
)
Index("idempotency_expiry", IDEMPOTENCY.c.expires_at)
Index("idempotency_job", IDEMPOTENCY.c.name, IDEMPOTENCY.c.type, IDEMPOTENCY.c.user_id)


class db_now(FunctionElement[float]):  # noqa: N801 - reads as a SQL function where it is used
    """Seconds since 1970 by the database's clock, the only clock that leases are compared with."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(_element: Any, _compiler: Any, **_kw: Any) -> str:
    # unixepoch('now','subsec') needs SQLite 3.42; the Julian day of 1970-01-01T00:00Z is 2440587.5.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(_element: Any, _compiler: Any, **_kw: Any) -> str:
    return "CAST(extract(epoch from clock_timestamp()) AS double precision)"
