"""Tables and columns are called as the code calls what they hold.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("jobs", "demand", "requirements_id"),
    ("jobs", "debris", "pending_unlink"),
    ("jobs", "looked_at", "watched_at"),
    ("workers", "beat_at", "heartbeat_at"),
)


def upgrade() -> None:
    """Rename; indexes follow their columns, but for the name of one."""
    op.rename_table("demands", "requirements")
    for table, old, new in _COLUMNS:
        # Not Alembic's alter_column, which copies a table of SQLite.
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    pending = sa.text("pending_unlink")
    op.drop_index("jobs_debris", "jobs")
    op.create_index(
        "jobs_pending_unlink", "jobs", ["seq"], unique=False, sqlite_where=pending, postgresql_where=pending
    )
    op.execute("UPDATE slots SET state = 'quiescing' WHERE state = 'settling'")
    op.execute("UPDATE notes SET key = 'refresh_wanted_at' WHERE key = 'look_wanted_at'")


def downgrade() -> None:
    """Refuse: an earlier version would not find its tables.

    :raises NotImplementedError: always.
    """
    raise NotImplementedError("sd-gateway's migrations only go forwards; restore a backup instead")
