"""Columns for the findings of a job's earlier attempts and for the state that a WebUI was left in; refusals of jobs by WebUIs.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table of refusals; old rows keep NULL, which means "nothing is known"."""
    op.add_column("jobs", sa.Column("tried", sa.Text(), nullable=True))
    op.add_column("slots", sa.Column("doubt", sa.Text(), nullable=True))
    op.add_column("slots", sa.Column("overridden", sa.Text(), nullable=True))
    op.add_column("catalogues", sa.Column("seen_at", sa.Float(), nullable=True))
    op.create_table(
        "refusals",
        sa.Column("job", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job", "slot"),
    )


def downgrade() -> None:
    """Refuse: an earlier version would forget what these columns hold.

    :raises NotImplementedError: always.
    """
    raise NotImplementedError("sd-gateway's migrations only go forwards; restore a backup instead")
