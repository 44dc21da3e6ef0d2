"""BatchOperation: delete, make anew, tag or change the metadata of many documents, in the store, their rows and files."""

from __future__ import annotations

from runner.kinds.batch_operation.lint import ACCEPTABLE, lint
from runner.kinds.batch_operation.spec import BatchOperationSpec, connections
from runner.kinds.batch_operation.steps import plan_steps, recurring

__all__ = ["ACCEPTABLE", "BatchOperationSpec", "connections", "lint", "plan_steps", "recurring"]
