"""How fast a WebUI is, by model; since when it is up or down; places of waiting jobs from one index.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of speeds and carry the old ones over; add the column; make the index of the queue anew."""
    speeds = op.create_table(
        "speeds",
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("recent", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("slot", "model"),
    )
    known = op.get_bind().execute(sa.text("SELECT key, seconds_per_cost FROM slots WHERE seconds_per_cost IS NOT NULL"))
    # As app/jobs/speeds.py writes them; a migration does not change with that.
    carried = [{"slot": row.key, "model": "", "recent": f"{row.seconds_per_cost:<16.9e}"} for row in known]
    if carried:
        op.bulk_insert(speeds, carried)
    # Not Alembic's own, which copies a table of SQLite.
    op.execute("ALTER TABLE slots DROP COLUMN seconds_per_cost")
    op.add_column("slots", sa.Column("health_since", sa.Float(), nullable=True))
    queued = sa.text("status = 'queued'")
    op.drop_index("jobs_queue", "jobs")
    op.create_index(
        "jobs_queue",
        "jobs",
        ["start_tag", "seq", "cost", "status", "requirements_id"],
        unique=False,
        sqlite_where=queued,
        postgresql_where=queued,
    )


def downgrade() -> None:
    """Refuse: an earlier version would not find its column.

    :raises NotImplementedError: always.
    """
    raise NotImplementedError("sd-gateway's migrations only go forwards; restore a backup instead")
