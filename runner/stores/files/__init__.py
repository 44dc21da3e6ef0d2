"""Parquet files in a folder as a store: backups, exchange between machines, and a target like any other.

A collection is a folder of immutable part files, each sorted by id, and `manifest.json`, which alone says what
belongs to it. A write adds a small part (newest wins, deletes are rows too), parts are merged as they pile up, and
`finish` leaves sorted parts that do not overlap. Several processes may read and write one folder (POSIX only).
"""

from __future__ import annotations

from runner.stores.files.manifest import FilesConfig
from runner.stores.files.store import FilesStore

__all__ = ["FilesConfig", "FilesStore"]
