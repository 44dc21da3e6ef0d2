"""State documents: one JSON a job (what is live, how to roll back) and one for the workspace's serving pointers.

Written to a temporary file, synced, renamed, and the folder synced; the one before stays as `.backup`. The serial
moves only when the content does.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from runner.errors import PlanRefused, VecrunError
from runner.plan import Observed, Place
from runner.points import Model

FORMAT_VERSION = "1.0"


class Applied(Model):
    """A run that was applied and can be rolled back until `expires` (ISO 8601, UTC)."""

    run: str
    plan_digest: str
    spec_digest: str
    finished: str
    expires: str


class State(Model):
    """What vecrun knows of a job. `world` is how the collections looked right after the last run."""

    format_version: str = FORMAT_VERSION
    lineage: str
    serial: int
    job: str
    kind: str = ""
    spec_digest: str | None = None
    status: Literal["new", "applied", "rolled_back"] = "new"
    live: dict[str, Place] = {}
    world: tuple[Observed, ...] = ()
    applied: tuple[Applied, ...] = ()  # oldest first; the last one can be rolled back
    pinned: str | None = None  # digest of the spec that was rolled back: it is not applied again by itself


class Serving(Model):
    """Which store and collection serve under a name."""

    format_version: str = FORMAT_VERSION
    lineage: str
    serial: int
    pointers: dict[str, Place] = {}


#: Held while a state file is written: the transaction that proves that the lease is ours.
Fence = AbstractContextManager[object]
DocumentT = TypeVar("DocumentT", State, Serving)


class StateDirectory:
    """State files in a folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, job: str) -> State:
        """The state of a job; a fresh one with serial 0 if there is none. A damaged file is an error, never 'none'."""
        fresh = State(lineage=_lineage(f"job:{self.directory}:{job}"), serial=0, job=job)
        return self._read(self.directory / f"{job}.json", State, fresh)

    def save(self, state: State, fence: Fence) -> State:
        """Write it if the content changed, with the next serial. `fence` is held meanwhile; entering it raises when the lease was lost."""
        return self._write(self.directory / f"{state.job}.json", state, lambda: self.load(state.job), fence)

    def serving(self) -> Serving:
        """The workspace's serving pointers."""
        fresh = Serving(lineage=_lineage(f"serving:{self.directory}"), serial=0)
        return self._read(self.directory / "serving.json", Serving, fresh)

    def save_serving(self, serving: Serving, fence: Fence) -> Serving:
        return self._write(self.directory / "serving.json", serving, self.serving, fence)

    def jobs(self) -> list[str]:
        """Names of the jobs that have a state file, sorted."""
        return sorted(path.stem for path in self.directory.glob("*.json") if path.name != "serving.json")

    def _read(self, path: Path, model: type[DocumentT], fresh: DocumentT) -> DocumentT:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return fresh
        except (OSError, UnicodeDecodeError) as exc:
            raise VecrunError("A state file cannot be read", f"{path}: {exc}") from exc
        backup = path.with_suffix(".json.backup")
        hint = (
            f"The version before is in {backup}: compare, then copy it over"
            if backup.exists()
            else "Restore it from a backup"
        )
        try:
            data: dict[str, Any] = json.loads(text)
            version = str(data["format_version"])
        except (ValueError, KeyError, TypeError) as exc:
            raise VecrunError("A state file is damaged", f"{path} is not whole JSON: {exc}", hint) from exc
        if version.split(".", maxsplit=1)[0] != FORMAT_VERSION.split(".", maxsplit=1)[0]:
            raise VecrunError(
                "A state file has a newer format",
                f"{path}: format_version {version}, this vecrun reads {FORMAT_VERSION}",
                "Use the vecrun version that wrote it",
            )
        try:
            known = {key: value for key, value in data.items() if key in model.model_fields}
            return model.model_validate(known)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise VecrunError("A state file is damaged", f"{path}: {place}: {first['msg']}", hint) from exc

    def _write(self, path: Path, new: DocumentT, load: Callable[[], DocumentT], fence: Fence) -> DocumentT:
        current = load()
        if new.model_copy(update={"serial": current.serial}) == current:
            return current
        with fence:  # first: whoever lost the lease is told that, not that the state moved
            current = load()  # again: another run may have written while we waited
            if new.serial != current.serial or new.lineage != current.lineage:
                raise PlanRefused(
                    "The state moved meanwhile",
                    f"{path}: serial {current.serial}, expected {new.serial}",
                    "Plan again: vecrun plan",
                )
            new = new.model_copy(update={"serial": current.serial + 1})
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                write_atomically(path.with_suffix(".json.backup"), path.read_text(encoding="utf-8"))
            write_atomically(path, json.dumps(new.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        return new


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a crash leaves the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise VecrunError("A file cannot be written", f"{path}: {exc.strerror}", "Check disk space and rights") from exc
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lineage(name: str) -> str:
    # Deterministic until the first write, so that planning twice before it gives the same plan
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"vecrun:{name}"))
