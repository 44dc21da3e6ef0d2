"""What can be said of a spec without any store: findings of `vecrun lint` that several kinds share.

Where a plan would have the same finding, it has the same code. `where` of such a notice is the field of the spec.
"""

from __future__ import annotations

from runner.clauses.live import LATE_CHANGES
from runner.clauses.spec import LiveSource, Verify
from runner.plan import Notice

#: Codes that only lint has.
NO_LIMIT = "VC104"
PARTLY_VERIFIED = "VB111"


def live(spec: LiveSource | None, *, switches: bool) -> list[Notice]:
    """A source that is written to, and readers that are switched to another one."""
    if spec is None or spec.hold or spec.field is not None or not switches:
        return []
    message = (
        "without live.field or live.hold, what is changed or deleted in the last moments before the switch is lost"
    )
    return [Notice(code=LATE_CHANGES, message=message, where="live")]


def verification(spec: Verify, *, switches: bool) -> list[Notice]:
    """Readers that are switched to what was not compared as a whole."""
    if spec.mode == "full" or not switches:
        return []
    looked = "only counts are compared" if spec.mode == "count" else f"only {spec.sample:,} points are compared"
    return [Notice(code=PARTLY_VERIFIED, message=f"{looked} before readers are switched", where="verify.mode")]
