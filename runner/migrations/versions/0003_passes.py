"""Steps in passes over a live source: what they keep of each partition besides its counts."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("partitions", sa.Column("notes", sa.Text))
