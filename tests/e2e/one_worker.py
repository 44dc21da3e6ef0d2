"""A worker process for tests: as the supervisor starts it, except that what takes seconds in real life takes fewer.

VECRUN_TEST_SILENT: after how many seconds a worker counts as dead; it says five times as often that it lives. VECRUN_TEST_POISON: a number of a partition of a copy
that kills whoever begins to read it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from runner import actors, sweeper
from runner.cli import main
from runner.executor import copy

if silent := os.environ.get("VECRUN_TEST_SILENT"):
    sweeper.SILENT_SECONDS = float(silent)
    actors.BEAT_SECONDS = float(silent) / 5
if poison := os.environ.get("VECRUN_TEST_POISON"):
    real = copy.Reader

    def reader(source: Any, place: Any, partition: Any, *rest: Any) -> Any:
        if partition.part == int(poison):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, place, partition, *rest)

    copy.Reader = reader  # type: ignore[assignment, misc]

if __name__ == "__main__":
    main()
