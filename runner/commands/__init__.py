"""One function a verb: the Python API. The command line, and later the HTTP API, call these and nothing else.

Functions return report models; `runner.report` turns them into text, Markdown or JSON. Modules are imported when one
of their verbs is used, so that `validate` does not pay for what only `apply` needs.
"""

from __future__ import annotations

import importlib
from typing import Any

_VERBS = {
    "context": ("Context", "load", "open_context"),
    "validation": ("Validation", "validate"),
    "linting": ("Finding", "Linted", "lint"),
    "planning": ("plan", "plan_rollback"),
    "stamping": ("plan_stamp",),
    "backups": ("BackupsChecked", "Listed", "check_backups", "list_backups"),
    "application": ("apply", "resume", "unfinished_of"),
    "execution": ("Outcome",),
    "failed": ("Documents", "Failures", "documents", "failures", "plan_retry"),
    "models": ("Found", "ModelCheck", "model_check", "search"),
    "refusals": ("refuse_blocked", "refuse_policies"),
    "comparison": ("Movements", "Verified", "drift", "foreign", "movements", "verify"),
    "history": ("RunStatus", "control", "left_behind", "logs", "runs", "status", "stopped"),
    "working": ("crew", "patient_ledger", "queued", "require_broker", "work"),
    "operation": ("ConnectionTest", "check_connections", "check_notifications"),
    "moving": ("Moved", "move_state"),
    "keeping": (
        "Pushed",
        "garbage",
        "gc",
        "holders",
        "lock",
        "locks",
        "pull",
        "push",
        "release_lock",
        "remove_state",
        "serving",
        "state",
        "state_history",
        "states",
    ),
}
_MODULE_OF = {name: module for module, names in _VERBS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"runner.commands.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULE_OF)
