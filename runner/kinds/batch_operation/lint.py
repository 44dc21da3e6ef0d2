"""What can be said of a BatchOperation without its stores, and which findings it can accept."""

from __future__ import annotations

from runner.kinds.batch_operation.findings import ROWS_STAY
from runner.kinds.batch_operation.spec import BatchOperationSpec
from runner.plan import Notice

#: Findings of its plan that it may accept.
ACCEPTABLE = frozenset({"VC101", "VC102", "VC103", "VD105", "VL101", "VL102", "VL103", "VL204"})
#: Its changes are not compared with what was asked for.
UNCHECKED = "VB112"


def lint(spec: BatchOperationSpec) -> list[Notice]:
    """Findings; `where` is a field of the spec."""
    found = list[Notice]()
    if spec.delete.rows is False and spec.documents is not None:
        message = "rows stay, and speak of points that are gone"
        found.append(Notice(code=ROWS_STAY, message=message, where="delete.rows"))
    if not spec.verify:
        message = "what became of the documents is not compared with what was asked for"
        found.append(Notice(code=UNCHECKED, message=message, where="verify"))
    return found
