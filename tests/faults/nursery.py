"""A process that has imported everything once and forks a child for each command: a run of vecrun costs no start-up.

It speaks one line of JSON each way. Children are real processes with their own clients, and may kill themselves.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from threading import Lock
from typing import Any

#: Longest a child may take, in seconds.
PATIENCE = 150


class Nursery:
    """The caller's end. `vecrun` and `call` may be used from several threads; each waits for its child."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._lock = Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def vecrun(self, workspace: Path, *arguments: str, crash_at: str = "") -> int:
        """Exit status of `vecrun ARGUMENTS`; -9 when it killed itself at a crash point. Its output goes to the log."""
        order = {"vecrun": list(arguments), "cwd": str(workspace), "crash_at": crash_at}
        return int(self._ask(order)["status"])

    def call(self, function: str, **arguments: Any) -> Any:
        """The result of a function of `scene`, or of MODULE.FUNCTION of this package, run in a child."""
        answer = self._ask({"call": function, "arguments": arguments, "cwd": "/", "crash_at": ""})
        if answer["status"] != 0:
            raise RuntimeError(f"{function} failed with {answer['status']}: see the end of {self.log}")
        return answer["result"]

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(order | {"log": str(self.log)}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the nursery ended: see {self.log}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _serve() -> None:
    # what children need, so that they start with it
    import pyarrow.parquet  # noqa: F401
    from dramatiq.brokers import stub  # noqa: F401

    from runner import cli, commands, planner  # noqa: F401
    from runner.stores import files, milvus, pgvector, qdrant, weaviate  # noqa: F401
    from tests.faults import agreement, scene  # noqa: F401

    for name in (
        "milvus_lite.server_manager",
        "psycopg",
        "pymilvus",
        "qdrant_client",
        "runner.embedders.hash",
        "sqlalchemy.dialects.sqlite",
    ):
        with contextlib.suppress(ImportError):
            __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _live(order, writing)
        os.close(writing)
        deadline = time.monotonic() + PATIENCE
        with os.fdopen(reading) as pipe:
            while True:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline:
                    os.kill(child, 9)
                    deadline += PATIENCE
                time.sleep(0.002)
            result = pipe.read()
        answer = {"status": os.waitstatus_to_exitcode(status), "result": json.loads(result) if result else None}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _live(order: dict[str, Any], writing: int) -> None:
    """The child. Never returns."""
    from runner import cli
    from runner.executor import slices

    status = 70
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(PATIENCE - 10)
        os.chdir(order["cwd"])
        os.environ["VECRUN_CRASH_AT"] = order["crash_at"]
        slices.CHECKPOINT_SECONDS = 0  # so that there are many, even in a short run
        if "call" in order:
            module, _, name = order["call"].rpartition(".")
            function = getattr(importlib.import_module(f"tests.faults.{module or 'scene'}"), name)
            result = json.dumps(function(**order["arguments"]))
            os.write(writing, result.encode())
            status = 0
        else:
            shown = f"\n$ vecrun {' '.join(order['vecrun'])}   [{order['cwd']} {order['crash_at']}]\n"
            os.write(2, shown.encode())
            sys.argv = ["vecrun", *order["vecrun"]]
            cli.main()
            status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
