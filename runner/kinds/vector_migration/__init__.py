"""VectorMigration: move collections from one store to another, verify, switch readers over, keep the way back."""

from __future__ import annotations

from runner.kinds.vector_migration.lint import ACCEPTABLE, lint
from runner.kinds.vector_migration.spec import VectorMigrationSpec, connections
from runner.kinds.vector_migration.steps import plan_steps, recurring

__all__ = ["ACCEPTABLE", "VectorMigrationSpec", "connections", "lint", "plan_steps", "recurring"]
