"""Runs vecrun, and functions of this package, in processes of their own: real ones, with their own clients, which may
kill themselves, and which cost no start-up (`tests.warm`).
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

from tests import warm

#: Longest a child may take, in seconds.
PATIENCE = 150
COMMAND = (sys.executable, "-m", "tests.faults.nursery")
RECORD = "VECRUN_TEST_RECORD"
REPOSITORY = str(Path(__file__).parents[2])


class Nursery:
    """`vecrun` and `call` may be used from several threads; each waits for its child."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def vecrun(self, workspace: Path, *arguments: str, crash_at: str = "", record: Path | None = None) -> int:
        """Exit status of `vecrun ARGUMENTS`; -9 when it killed itself at a crash point. Its output goes to the log, the
        crash points it comes to go to the file `record`."""
        environment = os.environ | {"PYTHONPATH": REPOSITORY, "VECRUN_CRASH_AT": crash_at}
        environment |= {RECORD: str(record)} if record is not None else {}
        with self.log.open("ab") as log:
            log.write(f"\n$ vecrun {' '.join(arguments)}   [{workspace} {crash_at}]\n".encode())
            log.flush()
            done = warm.run(
                [*COMMAND, "vecrun", *arguments], cwd=workspace, env=environment, stdout=log, stderr=log, timeout=PATIENCE
            )  # fmt: skip
        return done.returncode

    def call(self, function: str, **arguments: Any) -> Any:
        """The result of a function of `scene`, or of MODULE.FUNCTION of this package, run in a child."""
        environment = os.environ | {"PYTHONPATH": REPOSITORY}
        with self.log.open("ab") as log:
            done = warm.run(
                [*COMMAND, function, json.dumps(arguments)], cwd="/", env=environment, stdout=PIPE, stderr=log,
                timeout=PATIENCE,
            )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{function} failed with {done.returncode}: see the end of {self.log}")
        return json.loads(done.stdout)


def _live(order: str, *arguments: str) -> None:
    """The child."""
    from runner import cli
    from runner.executor import slices

    faulthandler.dump_traceback_later(PATIENCE - 10)
    slices.CHECKPOINT_SECONDS = 0  # so that there are many, even in a short run
    if order == "vecrun":
        if RECORD in os.environ:
            _record(os.environ[RECORD])
        sys.argv = ["vecrun", *arguments]
        cli.main()
        return
    module, _, name = order.rpartition(".")
    function = getattr(importlib.import_module(f"tests.faults.{module or 'scene'}"), name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is said goes to the log
    with answers:
        json.dump(function(**json.loads(arguments[0])), answers)


def _record(path: str) -> None:
    """From here on, each crash point is a line of a file."""
    from runner import crash

    def point(step: str, phase: str) -> None:
        with Path(path).open("a") as file:
            file.write(f"{step}:{phase}\n")

    crash.point = point


if __name__ == "__main__":
    _live(*sys.argv[1:])
