"""Plans in their three forms are as they were (G3), and files of format 1.0 written earlier stay readable (G5, G7).

`plan-1.0.json` and `state-1.0.json` are never made anew: they stand for the files users have.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from runner.plan import FORMAT_VERSION, loads
from runner.state import StateDirectory
from tests.golden.cases import CASES, HERE, forms


@pytest.mark.parametrize("name", CASES)
def test_plans_are_shown_as_before(name: str) -> None:
    for file, content in forms(name).items():
        assert content == (HERE / file).read_text(), f"{file} differs; if it should: python -m tests.golden --write"


def test_an_old_plan_is_still_read() -> None:
    plan = loads((HERE / "plan-1.0.json").read_text(), "plan-1.0.json")
    assert plan.format_version == "1.0"
    assert [step.type for step in plan.steps] == [
        "create_collection", "copy_points", "finish_collection", "verify_points", "switch_alias", "set_serving",
    ]  # fmt: skip


def test_an_old_state_is_still_read(tmp_path: Path) -> None:
    shutil.copy(HERE / "state-1.0.json", tmp_path / "move.json")
    shutil.copy(HERE / "serving-1.0.json", tmp_path / "serving.json")
    states = StateDirectory(tmp_path)
    state = states.load("move")
    assert (state.status, state.serial, len(state.applied)) == ("applied", 1, 1)
    assert str(states.serving().pointers["kb-live"]) == "b/kb2"
    # and written back without a loss
    saved = states.save(state.model_copy(update={"pinned": "x"}), nullcontext())
    before = json.loads((HERE / "state-1.0.json").read_text())
    after = json.loads((tmp_path / "move.json").read_text())
    assert {key: value for key, value in after.items() if key in before} == before | {"serial": 2, "pinned": "x"}
    assert saved.serial == 2


def test_the_format_is_the_one_the_files_stand_for() -> None:
    assert FORMAT_VERSION.split(".")[0] == "1", "a new major needs files of its own, and a refusal of the old ones"
