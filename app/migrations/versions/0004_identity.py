"""Rows that outlive a transaction name their job by (user, type, name), not by the sequence number of its row.

Revision ID: 0004
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None

_OF_JOB = "(SELECT {column} FROM jobs WHERE jobs.seq = idempotency.job)"


def upgrade() -> None:
    """Idempotency keys and refusals name their jobs; jobs keep the task id of their last claim, and slots no job beside it."""
    op.add_column("jobs", sa.Column("task_id", sa.Text(), nullable=True))
    op.drop_column("slots", "job")
    _name_jobs_of_keys()
    _name_jobs_of_refusals()


def _name_jobs_of_keys() -> None:
    """A key whose job has no row any more gets empty names, which no job has: it goes on answering that its job was deleted."""
    for column in ("type", "name"):
        op.add_column("idempotency", sa.Column(column, sa.Text(), nullable=False, server_default=""))
        found = _OF_JOB.format(column=column)
        op.execute(f"UPDATE idempotency SET {column} = coalesce({found}, '')")  # noqa: S608 - both are constants
    op.drop_column("idempotency", "job")


def _name_jobs_of_refusals() -> None:
    """The key of the table changes, so it is made anew; a refusal of a job without a row is of no use."""
    kept = op.get_bind().execute(
        sa.text(
            "SELECT jobs.name, jobs.type, jobs.user_id, refusals.slot FROM refusals JOIN jobs ON jobs.seq = refusals.job"
        )
    )
    rows = [dict(row) for row in kept.mappings()]
    op.drop_table("refusals")
    refusals = op.create_table(
        "refusals",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "type", "user_id", "slot"),
    )
    op.bulk_insert(refusals, rows)


def downgrade() -> None:
    """Refuse: an earlier version would take the new names for damage.

    :raises NotImplementedError: always.
    """
    raise NotImplementedError("sd-gateway's migrations only go forwards; restore a backup instead")
