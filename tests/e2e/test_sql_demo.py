"""API keys in clear become encrypted credentials and go back, on PostgreSQL and SQLite, byte for byte (E1 to E3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.demo import credentials, stage
from tests import warm


@pytest.mark.long
def test_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, of fewer knowledge bases. `make demo-sql` starts its commands cold."""
    for name in ("CREDENTIALS_KEY", "VECRUN_DEMO_SQL_URL"):
        monkeypatch.setenv(name, "")  # set back afterwards
    monkeypatch.setattr(stage, "subprocess", warm)
    credentials.run(tmp_path / "demo", bases=60)
    printed = capfd.readouterr().out
    assert printed.count("is byte for byte what it was") >= 6
    assert printed.splitlines()[-1] == "demo: ok"
