"""The order of changes (rev, epochs), and jobs that are cancelled or have a deadline.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NOW = {
    "sqlite": "CAST(strftime('%s', 'now') AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)",
}


def upgrade() -> None:
    """Add columns with constant defaults, which neither engine writes into old rows, the first epoch, and the indexes."""
    _add_number("jobs", "rev")
    _add_number("clock", "rev")
    _add_number("clock", "purged_rev")
    op.add_column("jobs", sa.Column("cancel_at", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("deadline", sa.Float(), nullable=True))
    op.create_table(
        "epochs",
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_rev", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("epoch"),
    )
    now = _NOW[op.get_bind().dialect.name]
    op.execute(f"INSERT INTO epochs (epoch, first_rev) VALUES ({now}, 0)")  # noqa: S608 - a constant
    op.create_index("jobs_rev", "jobs", ["rev", "seq"], unique=False)
    op.create_index("jobs_of_user_rev", "jobs", ["user_id", "rev", "seq"], unique=False)
    unfinished = sa.text("deadline IS NOT NULL AND finished_at IS NULL")
    op.create_index(
        "jobs_deadline", "jobs", ["deadline"], unique=False, sqlite_where=unfinished, postgresql_where=unfinished
    )


def _add_number(table: str, column: str) -> None:
    op.add_column(table, sa.Column(column, sa.BigInteger(), nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    """Refuse: an earlier version would change rows without a new rev, and take up cancelled jobs.

    :raises NotImplementedError: always.
    """
    raise NotImplementedError("sd-gateway's migrations only go forwards; restore a backup instead")
