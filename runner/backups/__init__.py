"""Backups in object storage: their manifests, their files, and a store that reads the collections in them.

Only the settings of a connection of type backup stand here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runner.store import ConnectionConfig


class BackupConfig(ConnectionConfig):
    """Backups of collections, as a store that can be read: each collection is called ID/name."""

    type: Literal["backup"] = Field("backup", description="Backups of collections, to read from.")
    connection: str = Field(description="A connection of type folder or s3.", examples=["backups"])
    folder: str = Field(description="Folder of the backups in it.", examples=["nightly/vector_bak"])
