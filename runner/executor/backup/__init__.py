"""Backups: tables and collections into object storage, checked, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.executor.backup import check, loads, seal, tables
from runner.plan import BackUpTables, CheckBackup, LoadTables, SealBackup, TruncateTables, UnloadTables

if TYPE_CHECKING:
    from runner.executor import Run

#: Steps that are not partitioned.
AtOnce = BackUpTables | TruncateTables | LoadTables | UnloadTables | SealBackup | CheckBackup


def do(run: Run, step: AtOnce) -> dict[str, Any]:
    """Carry out one of them."""
    match step:
        case BackUpTables():
            return tables.back_up(run, step)
        case TruncateTables():
            return tables.truncate(run, step)
        case LoadTables():
            return loads.load(run, step)
        case UnloadTables():
            return loads.unload(run, step)
        case SealBackup():
            return seal.seal(run, step)
        case CheckBackup():
            return check.check(run, step)
