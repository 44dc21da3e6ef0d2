"""A short run of `python -m tests.faults`, so that every test run has crashes and kills. `make faults` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import FULL


def test_nothing_is_lost_when_processes_die(pg_url: str, tmp_path: Path) -> None:
    kills, every = ("6", "3") if FULL else ("4", "5")  # an odd number: both kinds of cases
    sizes = ("--kills", kills, "--every", every, "--pairs", "files → pgvector", "--changes", "--tasks", "--chores")
    environment = os.environ | {"VECRUN_FAULTS_POSTGRES": pg_url, "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *sizes], cwd=Path(__file__).parents[2], env=environment,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"faults: \d+ runs, {kills} kills, 0 lost, 0 doubled, 0 changed", last), last
