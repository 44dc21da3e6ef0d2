"""The ledger of a test, on SQLite and on PostgreSQL, and a run in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.lock import Lease
from runner.sweeper import Sweeper
from tests.unit.sample import plan


@pytest.fixture(params=["sqlite", "postgresql"])
def records_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a fresh ledger can be made."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("pg_database"))


@pytest.fixture
def ledger(records_url: str) -> Iterator[Sweeper]:
    made = Sweeper(records_url)
    yield made
    made.close()


@pytest.fixture
def lease(ledger: Sweeper) -> Lease:
    """A run with its plan, under a lease."""
    held = ledger.acquire(["job:move", "collection:b/kb2"], "r-1", 60)
    ledger.start_run(held, plan(), plan().dumps())
    return held
