"""A supervisor with its worker processes in one workspace, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = (sys.executable, "-m", "runner")
REPOSITORY = Path(__file__).parents[2]
#: Longest that workers may take to end, asked for it or after their supervisor was killed.
GRACE = 45.0


def environment() -> dict[str, str]:
    """Of every vecrun process: the package from this checkout."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


class Team:
    """`vecrun worker -p PROCESSES` in a workspace."""

    def __init__(self, directory: Path, log: Path, processes: int = 3, threads: int = 1) -> None:
        self.directory, self.log, self.processes, self.threads = directory, log, processes, threads
        self.left: dict[int, float] = {}  # children whose supervisor was killed: pid -> when
        self.start()

    def start(self) -> None:
        arguments = ("worker", "-p", str(self.processes), "-t", str(self.threads), "--json")
        with self.log.open("ab") as log:
            self.supervisor = subprocess.Popen(
                [*COMMAND, *arguments], cwd=self.directory, stdout=log, stderr=log, env=environment(),
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def children(self) -> list[int]:
        """The worker processes that live, by their supervisor's book in /proc."""
        text = ""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self.supervisor.pid}/task/{self.supervisor.pid}/children").read_text()
        return [pid for pid in map(int, text.split()) if lives(pid)]

    def kill_supervisor(self) -> None:
        """kill -9: nobody tells its children."""
        children = self.children()
        self.supervisor.kill()
        self.supervisor.wait()
        self.left |= dict.fromkeys(children, time.monotonic())

    def stragglers(self) -> list[int]:
        """Children of a killed supervisor that have not ended within GRACE."""
        self.left = {pid: since for pid, since in self.left.items() if lives(pid)}
        return [pid for pid, since in self.left.items() if time.monotonic() - since > GRACE]

    def stop(self) -> list[str]:
        """Ask them to end (SIGTERM); what was wrong with it."""
        deadline = time.monotonic() + 15
        while not (children := self.children()) and time.monotonic() < deadline:  # it has only just been started
            time.sleep(0.1)
        self.supervisor.terminate()
        try:
            status = self.supervisor.wait(GRACE + 5)
            found = [] if status == 0 else [f"the supervisor ended with {status} after SIGTERM"]
        except subprocess.TimeoutExpired:
            self.supervisor.kill()
            self.supervisor.wait()
            found = [f"the supervisor did not end within {GRACE + 5:.0f} s after SIGTERM"]
        deadline = time.monotonic() + GRACE
        while (alive := [pid for pid in [*self.left, *children] if lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in alive:
            found.append(f"worker process {pid} outlived its supervisor")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found


def lives(pid: int) -> bool:
    """Whether it is a process of vecrun's that has not ended. A zombie has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"runner" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
