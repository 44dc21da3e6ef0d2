"""The demo of a pull request, with fewer texts (issue 7)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.demo import pull_request, stage
from tests import warm


@pytest.mark.long
def test_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it. `make demo-pr` starts its commands cold."""
    monkeypatch.setattr(stage, "subprocess", warm)
    pull_request.run(tmp_path / "demo", longest=800)
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "demo: ok"
    for words in ("two-pairs-of-eyes", "The plan is stale", "nothing left to apply"):
        assert words in said.err
    folder = tmp_path / "demo" / "pr"
    assert "Applying it is done" in (folder / "comment.md").read_text()
    page = (folder / "handbook.html").read_text()
    assert page.startswith(("<!DOCTYPE html>", "<!doctype html>"))
    assert json.loads((folder / "ci.json").read_text())["jobs"][0]["destroys"]
    files = [path for path in (tmp_path / "demo").rglob("*") if path.is_file()]
    assert not [path for path in files if b"demo-token" in path.read_bytes()]
