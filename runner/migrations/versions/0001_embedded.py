"""The ledger of one process: runs, steps, partitions, leases, id mapping, findings, log."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("run", sa.String(32)),
        sa.Column("owner", sa.String(255)),
        sa.Column("host", sa.String(255)),
        sa.Column("pid", sa.Integer),
        sa.Column("since", sa.String(32)),
        sa.Column("expires", sa.Float(53)),
    )
    op.create_table(
        "runs",
        sa.Column("run", sa.String(32), primary_key=True),
        sa.Column("job", sa.String(64), nullable=False, index=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("of_run", sa.String(32)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("plan_digest", sa.String(80), nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("started", sa.String(32)),
        sa.Column("finished", sa.String(32)),
        sa.Column("owner", sa.String(255)),
        sa.Column("control", sa.String(16)),
        sa.Column("error", sa.Text),
    )
    op.create_table(
        "steps",
        sa.Column("run", sa.String(32), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("fingerprint", sa.String(80)),
        sa.Column("result", sa.Text),
        sa.Column("started", sa.String(32)),
        sa.Column("finished", sa.String(32)),
    )
    op.create_table(
        "partitions",
        sa.Column("run", sa.String(32), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True),
        sa.Column("keys", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("cursor", sa.Text),
        sa.Column("read", sa.BigInteger, nullable=False),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("deliveries", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_table(
        "id_map",
        sa.Column("run", sa.String(32), primary_key=True),
        sa.Column("collection", sa.String(255), primary_key=True),
        sa.Column("old", sa.Text, primary_key=True),
        sa.Column("new", sa.Text, nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("run", sa.String(32), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("item", sa.String(1024), primary_key=True),
        sa.Column("part", sa.Integer, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "log",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run", sa.String(32), nullable=False, index=True),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("details", sa.Text),
    )
