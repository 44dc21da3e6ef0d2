"""What a step keeps of a partition besides its counts, and the call that took it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("partitions", sa.Column("notes", sa.Text))
    op.add_column("partitions", sa.Column("taking", sa.String(32)))
