"""SqlMigration: steps inside of a relational database, each done once and recorded there: tables, rows, columns, SQL."""

from __future__ import annotations

from runner.kinds.sql_migration.lint import ACCEPTABLE, lint
from runner.kinds.sql_migration.spec import SqlMigrationSpec, connections
from runner.kinds.sql_migration.steps import plan_steps, recurring

__all__ = ["ACCEPTABLE", "SqlMigrationSpec", "connections", "lint", "plan_steps", "recurring"]
