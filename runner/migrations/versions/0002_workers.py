"""Many workers: claims on partitions, workers, state documents; leases say on which machine their process is."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("leases", sa.Column("machine", sa.String(64)))
    op.add_column("leases", sa.Column("renewed", sa.Float(53)))
    op.add_column("runs", sa.Column("executor", sa.String(16), nullable=False, server_default="embedded"))
    op.add_column("runs", sa.Column("lease", sa.Text))
    op.add_column("runs", sa.Column("takeovers", sa.Integer, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("problem", sa.Text))
    op.create_index("ix_runs_status", "runs", ["status"])
    op.add_column("partitions", sa.Column("batches", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("partitions", sa.Column("retries", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("partitions", sa.Column("worker", sa.String(255)))
    op.add_column("partitions", sa.Column("claim", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("partitions", sa.Column("queued", sa.Float(53)))
    op.create_table(
        "workers",
        sa.Column("worker", sa.String(255), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("running", sa.Integer, nullable=False),
        sa.Column("since", sa.String(32), nullable=False),
        sa.Column("seen", sa.Float(53), nullable=False),
    )
    op.create_table(
        "state_documents",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("serial", sa.BigInteger, primary_key=True),
        sa.Column("lineage", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("written", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(255)),
    )
    # names this database: plans for another one do not fit
    named = sa.text(
        "INSERT INTO state_documents (name, serial, lineage, body, written) VALUES ('lineage', 0, :id, '', '')"
    )
    op.execute(named.bindparams(id=str(uuid.uuid4())))
    if op.get_bind().dialect.name == "sqlite":  # an older vecrun looks at this number, and stays away
        op.execute("PRAGMA user_version = 2")
