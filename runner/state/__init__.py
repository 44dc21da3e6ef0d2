"""State documents: what they are (`documents`), and where they are kept (`directory`, `table`)."""

from __future__ import annotations

from runner.settings import Settings
from runner.state.directory import StateDirectory
from runner.state.documents import (
    FORMAT_VERSION,
    KEEP_VERSIONS,
    SERVING,
    Applied,
    Fence,
    Serving,
    State,
    States,
    Version,
    name_of,
    write_atomically,
)
from runner.state.table import StateTable, shared, shortly

__all__ = [
    "FORMAT_VERSION",
    "KEEP_VERSIONS",
    "SERVING",
    "Applied",
    "Fence",
    "Serving",
    "State",
    "StateDirectory",
    "StateTable",
    "States",
    "Version",
    "name_of",
    "open_states",
    "write_atomically",
]


def open_states(settings: Settings) -> States:
    """The documents of a workspace: in its ledger's database where that is PostgreSQL, else in its folder."""
    url = settings.records_url
    if url.startswith("sqlite"):
        return StateDirectory(settings.state_directory)
    records = shared(url, settings.records_schema)
    return StateTable(records, f"{settings.records_schema} of {shortly(records.engine.url)}")
