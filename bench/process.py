"""A real `vecrun apply` process, timed by its own ledger, with its peak memory from the operating system."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import yaml


@dataclass
class Ground:
    """Where a pair is measured: a fresh folder, a PostgreSQL, and servers of others when there are some."""

    folder: Path
    pg_url: str
    points: int
    connections: dict[str, dict[str, object]] = field(default_factory=dict)


def workspace(folder: Path, source: dict[str, object], target: dict[str, object], name: str, verify: str) -> Path:
    """A workspace with one job that copies `bench_source` to `bench_target`."""
    root = folder / f"workspace-{name}"
    shutil.rmtree(root, ignore_errors=True)
    (root / "jobs").mkdir(parents=True)
    settings = {"apiVersion": "vecrun/v1", "kind": "Workspace", "connections": {"source": source, "target": target}}
    (root / "vecrun.yaml").write_text(yaml.safe_dump(settings))
    collections = [{"from": "bench_source", "to": "Bench_target"}]
    accept = [{"code": "VL101", "reason": "a benchmark"}]
    spec = {
        "source": "source",
        "target": "target",
        "collections": collections,
        "verify": {"mode": verify},
        "accept": accept,
    }
    job = {"apiVersion": "vecrun/v1", "kind": "VectorMigration", "metadata": {"name": "bench"}, "spec": spec}
    (root / "jobs" / "bench.yaml").write_text(yaml.safe_dump(job))
    return root


def apply(root: Path) -> tuple[dict[str, float], int]:
    """(seconds per step type, peak resident bytes) of one apply."""
    command = [sys.executable, "-m", "runner", "apply", "jobs/bench.yaml", "--auto-approve", "--json"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"vecrun apply failed:\n{out.decode()}{err.decode()}")
    assert json.loads(out)["status"] == "completed"
    seconds: dict[str, float] = {}
    with sqlite3.connect(root / "state" / "ledger.db") as ledger:
        (plan,) = ledger.execute("select plan from runs").fetchone()
        types = [step["type"] for step in json.loads(plan)["steps"]]
        for number, started, finished in ledger.execute("select step, started, finished from steps"):
            passed = datetime.fromisoformat(finished) - datetime.fromisoformat(started)
            seconds[types[number]] = seconds.get(types[number], 0.0) + passed.total_seconds()
    return seconds, usage.ru_maxrss * 1024


def rollback(root: Path) -> None:
    """Remove what the apply made, so that the next round starts alike."""
    command = [sys.executable, "-m", "runner", "rollback", "bench", "--auto-approve"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)


def copy(ground: Ground, source: dict[str, object], target: dict[str, object], name: str) -> float:
    """Seconds of the copy step."""
    root = workspace(ground.folder, source, target, name, "count")
    seconds, _peak = apply(root)
    rollback(root)
    return seconds["copy_points"]
