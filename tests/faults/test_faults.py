"""A short run of `python -m tests.faults`, so that every test run has crashes and kills. `make faults` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_nothing_is_lost_when_processes_die(pg_url: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.faults",
        "--kills",
        "6",
        "--every",
        "3",
        "--pairs",
        "files → pgvector",
        "--changes",
    ]
    environment = os.environ | {"VECRUN_FAULTS_POSTGRES": pg_url, "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"faults: \d+ runs, 6 kills, 0 lost, 0 doubled, 0 changed", last), last
