"""Reembedding: change the model that makes the vectors of a collection, without a moment in which search fails."""

from __future__ import annotations

from runner.kinds.reembedding.lint import ACCEPTABLE, lint
from runner.kinds.reembedding.spec import ReembeddingSpec, connections
from runner.kinds.reembedding.steps import plan_steps, recurring

__all__ = ["ACCEPTABLE", "ReembeddingSpec", "connections", "lint", "plan_steps", "recurring"]
