"""A backup that LangChain's own search confirms: its tables are emptied, a load fails, and everything comes back (D1 to D4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.demo import backup, stage
from tests import warm


@pytest.mark.long
def test_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, of fewer tables. `make demo-backup` starts its commands cold."""
    monkeypatch.setattr(stage, "subprocess", warm)
    backup.run(tmp_path / "demo", tables=5)
    printed = capfd.readouterr().out
    assert printed.count("LangChain's search finds the same: 10 searches, 50 hits") == 2
    assert printed.splitlines()[-1] == "demo: ok"
