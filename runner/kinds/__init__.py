"""The job kinds: one file each with its spec model and `plan_steps`. A new kind is one file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

from runner.plan import Notice, Observed, Overview, Step
from runner.spec import SpecModel
from runner.state import State
from runner.world import World

#: kind -> "module:SpecModel"; the module also has `plan_steps`.
KINDS: dict[str, str] = {
    "BatchOperation": "runner.kinds.batch_operation:BatchOperationSpec",
    "Reembedding": "runner.kinds.reembedding:ReembeddingSpec",
    "SqlMigration": "runner.kinds.sql_migration:SqlMigrationSpec",
    "VectorBackup": "runner.kinds.vector_backup:VectorBackupSpec",
    "VectorMigration": "runner.kinds.vector_migration:VectorMigrationSpec",
    "VectorRestore": "runner.kinds.vector_restore:VectorRestoreSpec",
}


@dataclass
class Draft:
    """What a kind wants done: the planner makes a plan of it."""

    steps: list[Step] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    overview: list[Overview] = field(default_factory=list)
    world: list[Observed] = field(default_factory=list)
    retention: str = ""


class Kind(Protocol):
    """What a kind's module offers. `ACCEPTABLE`: codes of findings of its plan that a spec of it may accept."""

    ACCEPTABLE: frozenset[str]

    def connections(self, spec: SpecModel) -> tuple[list[str], dict[str, dict[str, object]]]:
        """(names of the workspace's connections, inline connections under the names steps use)."""

    def plan_steps(self, job: str, spec: SpecModel, world: World, state: State, *, applied: bool) -> Draft:
        """Look at the live stores through `world` (read-only) and say what has to be done from nothing; `applied`: exactly
        this spec was applied before (asked only of recurring jobs)."""

    def lint(self, spec: SpecModel) -> list[Notice]:
        """What can be said of a spec without any store; `where` is a field of the spec."""

    def recurring(self, spec: SpecModel) -> bool:
        """Whether an applied job whose spec is unchanged may have something to do again."""


def spec_models() -> dict[str, Callable[[], type[SpecModel]]]:
    """kind -> a function that gives its spec model, imported on use."""

    def loader(entry: str) -> Callable[[], type[SpecModel]]:
        module, name = entry.split(":")
        return lambda: cast("type[SpecModel]", getattr(importlib.import_module(module), name))

    return {kind: loader(entry) for kind, entry in KINDS.items()}


def kind_module(kind: str) -> Kind:
    """The module of a kind that is in KINDS."""
    return cast("Kind", importlib.import_module(KINDS[kind].split(":")[0]))
