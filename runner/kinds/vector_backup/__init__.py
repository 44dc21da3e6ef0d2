"""VectorBackup: relational tables as CSV, emptied afterwards if that is wanted, or collections of a store as Parquet."""

from __future__ import annotations

from runner.kinds.vector_backup.lint import ACCEPTABLE, lint
from runner.kinds.vector_backup.spec import VectorBackupSpec, connections
from runner.kinds.vector_backup.steps import plan_steps, recurring

__all__ = ["ACCEPTABLE", "VectorBackupSpec", "connections", "lint", "plan_steps", "recurring"]
