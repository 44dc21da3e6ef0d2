"""Alembic's entry: the connection, with its transaction and lock, is given by `runner.records`."""

from alembic import context

from runner.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
