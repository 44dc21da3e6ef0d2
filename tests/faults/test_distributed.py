"""A short run of `python -m tests.faults.distributed`. `make faults-distributed` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import FULL


def test_nothing_is_lost_when_workers_and_servers_die(tmp_path: Path) -> None:
    faults, points = ("3", "8000") if FULL else ("2", "5000")
    arguments = ("--faults", faults, "--points", points, "--pairs", "files → pgvector", "--seed", "7")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.distributed", *arguments], cwd=Path(__file__).parents[2], check=False,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"faults: \d+ runs, {faults} kills, 0 lost, 0 doubled, 0 changed", last), last
