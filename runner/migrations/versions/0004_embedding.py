"""Changing the embedding model: vectors by text, what points were made from, failed items, usage, pace."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "vectors",
        sa.Column("model", sa.String(32), primary_key=True),
        sa.Column("text", sa.String(32), primary_key=True),
        sa.Column("vector", sa.LargeBinary),
        sa.Column("error", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("run", sa.String(32)),
        sa.Column("written", sa.String(32), nullable=False),
    )
    op.create_table(
        "marks",
        sa.Column("place", sa.String(255), primary_key=True),
        sa.Column("vector", sa.String(255), primary_key=True),
        sa.Column("item", sa.Text, primary_key=True),
        sa.Column("model", sa.String(32), nullable=False),
        sa.Column("text", sa.String(32), nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
    )
    op.create_table(
        "failures",
        sa.Column("run", sa.String(32), primary_key=True),
        sa.Column("item", sa.Text, primary_key=True),
        sa.Column("text", sa.String(32)),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("run", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(32), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("texts", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("known", sa.BigInteger, nullable=False),
        sa.Column("usd", sa.Float(53)),
    )
    op.create_table(
        "pace",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("next", sa.Float(53), nullable=False),
        sa.Column("held", sa.Float(53), nullable=False),
    )
