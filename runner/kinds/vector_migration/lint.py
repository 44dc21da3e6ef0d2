"""What can be said of a VectorMigration without its stores, and which findings it can accept."""

from __future__ import annotations

from runner.clauses import lint as clauses
from runner.kinds.vector_migration.spec import VectorMigrationSpec
from runner.kinds.vector_migration.steps import DELETES_SOURCE
from runner.plan import Notice

#: Findings of its plan that it may accept.
ACCEPTABLE = frozenset({"VD101", "VL101", "VL102", "VL103", "VL104", "VL201"})


def lint(spec: VectorMigrationSpec) -> list[Notice]:
    """Findings; `where` is a field of the spec."""
    found = list[Notice]()
    if spec.source_after == "delete":
        message = "the source is deleted at the end: there is no way back then"
        found.append(Notice(code=DELETES_SOURCE, message=message, where="source_after"))
    switches = spec.cutover is not None or any(rule.cutover is not None for rule in spec.rules)
    found += clauses.live(spec.live, switches=switches)
    return [*found, *clauses.verification(spec.verify, switches=switches)]
