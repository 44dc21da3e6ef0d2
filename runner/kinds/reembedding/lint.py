"""What can be said of a Reembedding without its stores, and which findings it can accept."""

from __future__ import annotations

from runner.clauses import lint as clauses
from runner.kinds.reembedding.findings import MIXED, OVERWRITES
from runner.kinds.reembedding.spec import ReembeddingSpec
from runner.plan import Notice

#: Findings of its plan that it may accept.
ACCEPTABLE = frozenset(
    {"VC101", "VC102", "VC103", "VL101", "VL102", "VL103", "VL201", "VL202", "VL203"}
)  # fmt: skip


def lint(spec: ReembeddingSpec) -> list[Notice]:
    """Findings; `where` is a field of the spec."""
    found = list[Notice]()
    if spec.strategy == "replace":
        message = "until the run is through, points of two models stand side by side and search results are mixed"
        found.append(Notice(code=MIXED, message=message, where="strategy"))
    if spec.in_place and spec.live is not None:
        message = "what an application does to a point in the moment in which its vector is replaced is lost"
        found.append(Notice(code=OVERWRITES, message=message, where="live"))
    switches = spec.cutover is not None and not spec.in_place
    found += clauses.live(spec.live, switches=switches)
    return [*found, *clauses.verification(spec.verify, switches=spec.cutover is not None or spec.in_place)]
