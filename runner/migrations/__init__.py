"""Revisions of the schema of `runner.tables`, for Alembic."""
