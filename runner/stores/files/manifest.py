"""The JSON files that say what exists (one manifest a collection, one list of aliases), and the connection's model.

Both carry the version of the format and are checked when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from runner.errors import Permanent
from runner.points import CollectionSchema
from runner.store import ConnectionConfig
from runner.stores.files.disk import replace
from runner.stores.files.parts import Part

#: Of the manifest and the parts. A reader refuses a newer major; a newer minor only adds keys.
FORMAT_VERSION = "1.0"


class FilesConfig(ConnectionConfig):
    """A folder of Parquet files."""

    type: Literal["files"] = "files"
    path: str = Field(description="Folder of the collections; made at the first write.", examples=["backups/kb"])
    shared: bool = Field(
        False,
        description="With workers on several hosts: all of them see this folder, and file locks hold across them.",
    )

    @property
    def local(self) -> bool:
        return not self.shared


class Manifest(BaseModel):
    """The truth about one collection: `parts` from oldest to newest; a file that is not named here does not exist."""

    model_config = ConfigDict(frozen=True)
    format_version: str
    collection: CollectionSchema
    parts: tuple[Part, ...] = ()


def parse_manifest(text: bytes, path: Path) -> Manifest:
    """The manifest whose file at `path` reads `text`. Permanent if it is damaged or of a newer major."""
    with _whole(path):
        _document(text, path)
        return Manifest.model_validate_json(text)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put it in the place of the one there is."""
    replace(folder / "manifest.json", manifest.model_dump_json(indent=1).encode())


def parse_aliases(text: bytes, path: Path) -> dict[str, str]:
    """alias -> collection. Permanent if the file is damaged or of a newer major."""
    with _whole(path):
        return dict(_document(text, path)["aliases"])


def write_aliases(path: Path, aliases: dict[str, str]) -> None:
    """Put them in the place of those there are."""
    replace(path, json.dumps({"format_version": FORMAT_VERSION, "aliases": aliases}, indent=1).encode())


def _document(text: bytes, path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    version, known = str(document["format_version"]), FORMAT_VERSION.partition(".")[0]
    if int(version.partition(".")[0]) > int(known):
        detail = f"{path}: format {version}; this one reads up to {known}.x"
        raise Permanent("The files were written by a newer vecrun", detail, "Upgrade: pip install -U vecrun.")
    return document


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """A JSON file that cannot be understood was damaged."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as exc:
        raise Permanent("A manifest is damaged", str(path), "Restore the file from a copy.") from exc
