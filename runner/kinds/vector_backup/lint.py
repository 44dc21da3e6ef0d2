"""What can be said of a VectorBackup without its stores, and which findings it can accept."""

from __future__ import annotations

from runner.kinds.vector_backup.spec import VectorBackupSpec
from runner.kinds.vector_backup.tables import EMPTIES
from runner.plan import Notice

#: Findings of its plan that it may accept.
ACCEPTABLE = frozenset[str]()


def lint(spec: VectorBackupSpec) -> list[Notice]:
    """Findings; `where` is a field of the spec."""
    if spec.tables is None or not spec.tables.emptied:
        return []
    names = ", ".join(spec.tables.emptied)
    return [Notice(code=EMPTIES, message=f"emptied once its backup is whole: {names}", where="tables.truncate")]
