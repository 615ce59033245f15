"""Find the rows of deleted jobs, and the idempotency keys that name a job.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the two indexes."""
    deleted = sa.text("status = 'deleted'")
    op.create_index("jobs_deleted", "jobs", ["seq"], unique=False, sqlite_where=deleted, postgresql_where=deleted)
    op.create_index("idempotency_job", "idempotency", ["name", "type", "user_id"], unique=False)


def downgrade() -> None:
    """Refuse: the migrations only go forwards.

    :raises NotImplementedError: always.
    """
    raise NotImplementedError("sd-gateway's migrations only go forwards; restore a backup instead")
