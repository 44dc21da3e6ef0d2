"""VectorRestore: tables or collections out of a backup, into the place they came from or another."""

from __future__ import annotations

from runner.kinds.vector_restore.lint import ACCEPTABLE, lint
from runner.kinds.vector_restore.spec import VectorRestoreSpec, connections
from runner.kinds.vector_restore.steps import plan_steps, recurring

__all__ = ["ACCEPTABLE", "VectorRestoreSpec", "connections", "lint", "plan_steps", "recurring"]
