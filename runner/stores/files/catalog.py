"""The collections and aliases under one path: which folder is whose, what its manifest says now, and how it changes."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from runner.errors import Permanent
from runner.points import CollectionSchema
from runner.stores.files.disk import locked, sync_folder, translated
from runner.stores.files.manifest import (
    FORMAT_VERSION,
    Manifest,
    parse_aliases,
    parse_manifest,
    write_aliases,
    write_manifest,
)
from runner.stores.files.parts import Part

T = TypeVar("T")

#: A part file that no manifest names is the leftover of a crash once it is this old, in seconds.
LEFTOVER_AGE = 3600


class Catalog:
    """Manifests by the name of their collection. The same object is returned as long as the file is the same."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, tuple[tuple[int, ...], Manifest]] = {}

    # Collections

    def names(self) -> list[str]:
        """Sorted."""
        with translated(str(self.root)):
            found = [path.parent.name for path in self.root.glob("*/manifest.json") if path.parent.name[0] != "."]
        return sorted(map(unquote, found))

    def folder(self, name: str) -> Path:
        """Where the collection lies, or would."""
        if not name:
            raise Permanent("A collection needs a name")
        encoded = quote(name, safe=" ")
        return self.root / (f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded)

    def find(self, name: str) -> Manifest | None:
        """The manifest as it is now; parsed again only when the file was replaced."""
        path = self.folder(name) / "manifest.json"
        with translated(name):
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    mark = status.st_ino, status.st_mtime_ns, status.st_size
                    known = self._seen.get(name)
                    if known is not None and known[0] == mark:
                        return known[1]
                    text = file.read()
            except (FileNotFoundError, NotADirectoryError):
                return None
            manifest = parse_manifest(text, path)
        self._seen[name] = mark, manifest
        return manifest

    def get(self, name: str) -> Manifest:
        """As `find`, but Permanent if there is none."""
        manifest = self.find(name)
        if manifest is None:
            raise _absent(name)
        return manifest

    def forget(self) -> None:
        """Parse every manifest anew."""
        self._seen.clear()

    def create(self, schema: CollectionSchema) -> None:
        """Permanent if there is one of this name."""
        folder = self.folder(schema.name)
        fresh = self.root / f".new-{uuid.uuid4().hex}"
        with translated(schema.name):
            fresh.mkdir(parents=True)
            write_manifest(fresh, Manifest(format_version=FORMAT_VERSION, collection=schema))
            try:
                fresh.rename(folder)  # fails if there is one, so two of the same name cannot be made at once
            except OSError as exc:
                shutil.rmtree(fresh, ignore_errors=True)
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise Permanent("The collection exists already", schema.name, "Choose another name.") from exc
            sync_folder(self.root)

    def drop(self, name: str) -> None:
        """With its aliases; nothing happens if there is none."""
        folder, away = self.folder(name), self.root / f".dropped-{uuid.uuid4().hex}"
        with translated(name):
            if not folder.exists():
                return
            self.change_aliases(lambda known: {alias: to for alias, to in known.items() if to != name})
            with suppress(FileNotFoundError):
                folder.rename(away)  # at once for every reader; what follows may be interrupted
                sync_folder(self.root)
            for leftover in self.root.glob(".dropped-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    # Parts

    def reading(self, name: str, read: Callable[[Manifest], T], absent: T) -> T:
        """`read` on the newest manifest, again when a part was merged away meanwhile."""
        while (manifest := self.find(name)) is not None:
            try:
                with translated(name, passing=FileNotFoundError):
                    return read(manifest)
            except FileNotFoundError as exc:
                self.refuse_if_lost(name, manifest, exc)
        return absent

    def refuse_if_lost(self, name: str, manifest: Manifest, exc: FileNotFoundError) -> None:
        """Permanent if the file that was not found is still named: then no merge has removed it."""
        if self.find(name) is manifest:
            raise Permanent("A part file is missing", str(exc.filename), "Restore the file from a copy.") from exc

    def commit(self, name: str, change: Callable[[tuple[Part, ...]], tuple[Part, ...] | None]) -> bool:
        """Replace the parts under the collection's lock; False if `change` declines."""
        folder = self.folder(name)
        try:
            with locked(folder / ".lock"):
                manifest = self.get(name)
                parts = change(manifest.parts)
                if parts is not None:
                    write_manifest(folder, manifest.model_copy(update={"parts": parts}))
                return parts is not None
        except FileNotFoundError as exc:  # dropped meanwhile
            raise _absent(name) from exc

    def remove_leftovers(self, name: str, manifest: Manifest) -> None:
        """Remove what a crash has left in the collection's folder. Young files may belong to a writer at work."""
        named = {part.file for part in manifest.parts}
        with translated(name):
            for path in self.folder(name).iterdir():
                written = path.name.startswith(("part-", ".temp-")) and path.name not in named
                if written and path.stat().st_mtime < time.time() - LEFTOVER_AGE:
                    path.unlink(missing_ok=True)

    # Aliases

    def aliases(self) -> dict[str, str]:
        """alias -> collection."""
        path = self.root / "aliases.json"
        with translated(path.name):
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                return {}
            return parse_aliases(text, path)

    def change_aliases(self, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        """Replace them under a lock. Errors of the file system are left to the caller."""
        if not self.root.exists():
            return
        with locked(self.root / ".lock"):
            known = self.aliases()
            if (wanted := change(known)) != known:
                write_aliases(self.root / "aliases.json", wanted)


def _absent(name: str) -> Permanent:
    return Permanent("The collection does not exist", name, "Create it first.")
