"""An application that searches all the time, in a process of its own: each search is a line of a file.

It follows the serving pointer as `vecrun search` does. It ends when its standard input does, so it never outlives who
started it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from runner import commands
from runner.errors import VecrunError
from runner.points import PointId

RESULTS = 3
#: Seconds between two searches: the machine has other work to do.
PAUSE = 0.1


@dataclass(frozen=True)
class Search:
    """One search of a reader: which of its questions, when (seconds since the epoch), and what came of it."""

    at: float
    question: int
    model: str = ""
    collection: str = ""
    ids: tuple[PointId, ...] = ()
    error: str = ""


class Reader:
    """The process; `searches` are those it has made so far."""

    def __init__(self, workspace: Path, pointer: str, questions: tuple[str, ...], log: Path) -> None:
        self.log = log
        log.write_text("")
        command = [sys.executable, "-m", "runner.demo.reader", str(workspace), pointer, str(log), *questions]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # the other cores embed
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)  # noqa: S603

    def searches(self) -> list[Search]:
        lines = self.log.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [Search(**item | {"ids": tuple(item["ids"])}) for item in found]

    def wait_for(self, count: int, seconds: float = 60) -> bool:
        """Whether it has made so many searches more, within some seconds."""
        until, wanted = time.monotonic() + seconds, len(self.searches()) + count
        while len(self.searches()) < wanted:
            if time.monotonic() > until or self._process.poll() is not None:
                return False
            time.sleep(0.1)
        return True

    def stop(self) -> int:
        """End it; its exit code, which is 0 unless it broke."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(60)


def main(workspace: str, pointer: str, log: str, *questions: str) -> None:
    """Search until standard input ends."""
    context, number = commands.open_context(Path(workspace)), 0
    with Path(log).open("a", buffering=1) as lines:
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            question = number % len(questions)
            line: dict[str, object] = {"at": time.time(), "question": question, "ids": []}
            try:
                found = commands.search(context, pointer, questions[question], k=RESULTS)
            except VecrunError as exc:
                line["error"] = str(exc)
            else:
                ids = [hit["id"] for hit in found.hits]
                line |= {"model": found.model, "collection": found.place.collection, "ids": ids}
            lines.write(json.dumps(line) + "\n")
            number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
