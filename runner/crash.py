"""A switch for tests: `VECRUN_CRASH_AT=step:phase[:n]` kills the process with SIGKILL the n-th time it gets there."""

from __future__ import annotations

import os
import signal

_seen: dict[str, int] = {}


def point(step: str, phase: str) -> None:
    """Die here if the environment says so. `step` is a step type, or * for any."""
    wanted = os.environ.get("VECRUN_CRASH_AT")
    if not wanted:
        return
    at, when, *rest = wanted.split(":")
    if at not in (step, "*") or when != phase:
        return
    _seen[wanted] = _seen.get(wanted, 0) + 1
    if _seen[wanted] >= int(rest[0] if rest else 1):
        os.kill(os.getpid(), signal.SIGKILL)
