"""`python -m tests.faults.sleeper PLACES ARGUMENTS`: a vecrun that falls asleep (SIGSTOP) at a crash point.

PLACES: step:phase[:n] > step:phase[:n] …, one after the other: the second begins to count once the first was passed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

from tests import warm
from tests.faults.nursery import REPOSITORY


@contextmanager
def asleep(directory: Path, places: str, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Any]:
    """A vecrun that sleeps there; killed at the end of the block if it still lives."""
    command = [sys.executable, "-m", "tests.faults.sleeper", places, *arguments]
    environment = os.environ | {"PYTHONPATH": REPOSITORY} | (env or {})
    with warm.Popen(command, cwd=directory, env=environment, text=True, stdout=PIPE, stderr=PIPE) as process:
        try:
            deadline = time.monotonic() + 60
            while not sleeps(process.pid):
                assert process.poll() is None, f"it did not come to {places}: {process.communicate()}"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def wake(process: Any) -> tuple[int, str]:
    """(exit status, what it said)"""
    os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=90)
    return process.returncode, out + err


def sleeps(pid: int) -> bool:
    """Whether a process is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def _main(places: str, *arguments: str) -> None:
    from runner import cli, crash
    from runner.executor import slices

    waiting = [place.strip().split(":") for place in places.split(">")]
    left = [int(place[2]) if len(place) > 2 else 1 for place in waiting]

    def point(step: str, phase: str) -> None:
        if not waiting or waiting[0][:2] != [step, phase]:
            return
        left[0] -= 1
        if left[0] == 0:
            del waiting[0], left[0]
            if not waiting:
                # to this thread: else it could go on for a moment, until another has taken the signal
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    crash.point = point
    slices.CHECKPOINT_SECONDS = 0
    sys.argv = ["vecrun", *arguments]
    cli.main()


if __name__ == "__main__":
    _main(*sys.argv[1:])
