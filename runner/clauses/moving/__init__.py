"""Collections that move from one store to another: the words for it, and its plan."""

from __future__ import annotations

from runner.clauses.moving.rules import CollectionRule

__all__ = ["CollectionRule"]
