"""Alembic's entry: runs the migrations on the connection that the database room hands over."""

from alembic import context

from app.jobs.sql.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite can't alter most columns in place; Alembic then copies the table.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
