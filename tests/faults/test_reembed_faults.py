"""A short run of the changes of `python -m tests.faults`. `make faults` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import FULL


def test_versions_and_vectors_agree_when_processes_die(pg_url: str, tmp_path: Path) -> None:
    arguments = ("--pairs", "--tasks", "--chores", "--changes", "create: pgvector", "replace: files", "edited: files")
    sizes = ("--change-kills", "2", "--every", "47" if FULL else "71", "--points", "150", "--seed", "7")
    environment = os.environ | {"VECRUN_FAULTS_POSTGRES": pg_url, "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments, *sizes], cwd=Path(__file__).parents[2], env=environment,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"faults: \d+ runs, 2 kills, 0 lost, 0 doubled, 0 changed", last), last
