"""What can be said of a VectorRestore without its stores, and which findings it can accept."""

from __future__ import annotations

from runner.clauses import lint as clauses
from runner.clauses.moving.plan import OVERWRITES
from runner.kinds.vector_restore.spec import VectorRestoreSpec
from runner.kinds.vector_restore.tables import REPLACES
from runner.plan import Notice

#: Findings of its plan that it may accept.
ACCEPTABLE = frozenset({"VD106", "VL101", "VL102", "VL103", "VL104"})


def lint(spec: VectorRestoreSpec) -> list[Notice]:
    """Findings; `where` is a field of the spec."""
    found = list[Notice]()
    if spec.tables is not None and spec.tables.if_not_empty != "refuse":
        what = (
            "give way to those of the backup"
            if spec.tables.if_not_empty == "replace"
            else "with the same key are changed"
        )
        found.append(Notice(code=REPLACES, message=f"rows that are there {what}", where="tables.if_not_empty"))
    if spec.collections is not None:
        if spec.collections.if_not_empty == "merge":
            message = "points with the same id are overwritten, and no rollback brings them back"
            found.append(Notice(code=OVERWRITES, message=message, where="collections.if_not_empty"))
        for item in clauses.verification(spec.collections.verify, switches=spec.collections.aliases):
            found.append(item.model_copy(update={"where": f"collections.{item.where}"}))
    return found
