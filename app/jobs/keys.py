"""Idempotency keys: which job a key made, within the transaction that accepts the next one."""

from __future__ import annotations

from sqlalchemy import Connection

from app.jobs.errors import KeyOfDeletedJob, KeyReused
from app.jobs.model import IdempotencyKey, Identity, Job
from app.jobs.sql import statements as sql


def find_key(connection: Connection, user_id: str, key: IdempotencyKey | None) -> Job | None:
    """The job that this key made within the last 24 hours; None for a new key, and without one.

    :raises KeyReused: it was another request.
    :raises KeyOfDeletedJob: the job was deleted.
    """
    if key is None:
        return None
    row = sql.FIND_KEY.first(connection, {"p_user": user_id, "p_key": key.key})
    if row is None:
        return None
    if row.digest != key.digest:
        raise KeyReused
    found = sql.BY_NAME.first(connection, sql.named(Identity(user_id, row.type, row.name)))
    if found is None:
        raise KeyOfDeletedJob
    return Job.of(found)


def remember_key(connection: Connection, key: IdempotencyKey, job: Identity) -> None:
    """Note that this key made this job; an expired key of the same name gives way."""
    sql.FORGET_KEY.change(connection, {"p_user": job.user_id, "p_key": key.key})
    sql.REMEMBER_KEY.change(connection, {"key": key.key, "digest": key.digest, **job._asdict()})
