"""State documents: one JSON a job (what is live, how to roll back) and one for the workspace's serving pointers.

In a folder: written to a temporary file, synced, renamed, and the folder synced. In PostgreSQL: a row for each serial,
in the transaction that checks the fencing token. Either way the serial moves only when the content does, it is
compared before it is set, and the documents before stay as history.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError

from runner.errors import NotFound, PlanRefused, VecrunError
from runner.plan import Observed, Place
from runner.points import Model

FORMAT_VERSION = "1.3"  # a new minor only adds keys: forgotten in 1.1, models in 1.2, shape of world in 1.3


class Applied(Model):
    """A run that was applied and can be rolled back until `expires` (ISO 8601, UTC)."""

    run: str
    plan_digest: str
    spec_digest: str
    finished: str
    expires: str


class Document(Model):
    """What every state document has."""

    format_version: str = FORMAT_VERSION
    lineage: str
    serial: int


class State(Document):
    """What vecrun knows of a job. `world` is how the collections looked right after the last run."""

    job: str
    kind: str = ""
    spec_digest: str | None = None
    status: Literal["new", "applied", "rolled_back"] = "new"
    live: dict[str, Place] = {}
    world: tuple[Observed, ...] = ()
    applied: tuple[Applied, ...] = ()  # oldest first; the last one can be rolled back
    pinned: str | None = None  # digest of the spec that was rolled back: it is not applied again by itself
    forgotten: dict[str, str] = {}  # run of `applied` -> when gc removed what its rollback would need


class Serving(Document):
    """Which store and collection serve under a name, and which model of vecrun.yaml embeds queries for it: one document,
    so that a reader never gets the one without the other."""

    pointers: dict[str, Place] = {}
    models: dict[str, str] = {}


#: Held while a document is written: the transaction that proves that the lease is ours.
Fence = AbstractContextManager[object]


DocumentT = TypeVar("DocumentT", bound=Document)


SERVING = "serving"


#: So many serials of a document stay in its history, whatever their age.
KEEP_VERSIONS = 10


class Version(Model):
    """One serial of a document."""

    serial: int
    written: str
    owner: str = ""


class States(ABC):
    """The documents of a workspace in one environment, wherever they are kept."""

    def load(self, job: str) -> State:
        """The state of a job; a fresh one if there is none. A damaged one is an error, never 'none'."""
        return self._load(job, State, lambda: self._new(job, None), None)

    def save(self, state: State, fence: Fence) -> State:
        """Write it if the content changed, with the next serial. `fence` is held meanwhile; entering it raises when the
        lease was lost. PlanRefused when the document moved since it was loaded."""
        current = self.load(state.job)
        if state.model_copy(update={"serial": current.serial}) == current:
            return current
        with fence as held, self._writing(state.job, held) as connection:
            # again: first comes the fence, so that whoever lost the lease is told that, not that the state moved
            current = self._load(state.job, State, lambda: self._new(state.job, connection), connection)
            if state.serial != current.serial or state.lineage != current.lineage:
                raise PlanRefused(
                    "The state moved meanwhile",
                    f"{self.where(state.job)}: serial {current.serial}, expected {state.serial}",
                    "Plan again: vecrun plan",
                )
            new = state.model_copy(update={"serial": current.serial + 1})
            self._put(state.job, new, connection)
        return new

    def serving(self) -> Serving:
        """The workspace's serving pointers."""
        return self._load(SERVING, Serving, self._nothing_serves, None)

    def change_serving(self, change: Callable[[Serving], Serving], fence: Fence) -> None:
        """Replace the serving pointers by what `change` makes of them. Runs of other jobs change the same document."""
        with fence as held, self._writing(SERVING, held) as connection:
            current = self._load(SERVING, Serving, self._nothing_serves, connection)
            new = change(current)
            if new != current:
                self._put(SERVING, new.model_copy(update={"serial": current.serial + 1}), connection)

    def push(self, state: DocumentT, fence: Fence, *, force: bool = False) -> DocumentT:
        """Write a document that was pulled and edited: of a job, or the serving pointers. PlanRefused unless its lineage and serial are the present ones;
        `force` overwrites whatever is there, a damaged one included. Nothing is written when nothing changes.

        Where there is none yet it is taken as it is: so documents move from one place to another.
        """
        name = name_of(state)
        with fence as held, self._writing(name, held) as connection:
            text = self._text(name, None, connection)
            new = state.model_copy(update={"serial": max(state.serial, self._last(name, connection) + 1)})
            if text is not None:
                current = self._present(name, text, type(state), force=force)
                if current is not None:
                    if not force and (state.serial != current.serial or state.lineage != current.lineage):
                        raise PlanRefused(
                            "The state moved since it was pulled",
                            f"{self.where(name)}: lineage {current.lineage}, serial {current.serial}; "
                            f"pushed: lineage {state.lineage}, serial {state.serial}",
                            "Pull it again and repeat the change, or overwrite it: --force",
                        )
                    new = state.model_copy(update={"serial": current.serial + 1, "lineage": current.lineage})
                    if new.model_copy(update={"serial": current.serial}) == current:
                        return current
            self._put(name, new, connection)
        return new

    def _present(self, name: str, text: str, model: type[DocumentT], *, force: bool) -> DocumentT | None:
        try:
            return self._parsed(name, text, model)
        except VecrunError:
            if not force:
                raise
            return None

    def parse(self, text: str, file: str) -> State | Serving:
        """A document from a file of the user's, which may have been edited. VecrunError says what is wrong with it."""
        model: type[State] | type[Serving] = Serving if _is_serving(text) else State
        state = self._parsed(file, text, model, where=file, remedy="Pull it again: vecrun state pull JOB -o FILE")
        if unknown := sorted(set(json.loads(text)) - set(model.model_fields)):
            raise VecrunError(
                "The document has keys that this vecrun does not know",
                f"{file}: {', '.join(unknown)}",
                "They would be lost. Correct them, or use the vecrun that wrote them",
            )
        return state

    def text(self, name: str, serial: int | None = None) -> str:
        """The JSON of a document exactly as it is kept; `name` is a job, or serving. NotFound."""
        text = self._text(name, serial, None)
        if text is None:
            which = f"job {name}" + (f", serial {serial}" if serial is not None else "")
            raise NotFound("No state", which, "vecrun state list" if serial is None else f"vecrun state history {name}")
        return text

    def expired(self, name: str, before: datetime, keep: int = KEEP_VERSIONS) -> list[int]:
        """Serials of the history that were written before a time. The newest `keep` stay whatever their age."""
        return [item.serial for item in self.history(name)[keep:] if datetime.fromisoformat(item.written) < before]

    def version(self, job: str, serial: int | None = None) -> State:
        """The document as it was at a serial. NotFound."""
        return self._parsed(job, self.text(job, serial), State)

    def _new(self, job: str, connection: sa.Connection | None) -> State:
        # after `remove` the serials go on, so that no plan from before fits
        return State(lineage=self._lineage(f"job:{{}}:{job}"), serial=self._last(job, connection), job=job)

    def _nothing_serves(self) -> Serving:
        return Serving(lineage=self._lineage("serving:{}"), serial=0)

    def _load(
        self, name: str, model: type[DocumentT], new: Callable[[], DocumentT], connection: sa.Connection | None
    ) -> DocumentT:
        text = self._text(name, None, connection)
        return new() if text is None else self._parsed(name, text, model)

    def _parsed(self, name: str, text: str, model: type[DocumentT], *, where: str = "", remedy: str = "") -> DocumentT:
        where, hint = where or self.where(name), remedy or self._remedy(name)
        try:
            data: dict[str, Any] = json.loads(text)
            version = str(data["format_version"])
        except (ValueError, KeyError, TypeError) as exc:
            raise VecrunError("A state file is damaged", f"{where} is not whole JSON: {exc}", hint) from exc
        if version.split(".", maxsplit=1)[0] != FORMAT_VERSION.split(".", maxsplit=1)[0]:
            raise VecrunError(
                "A state file has a newer format",
                f"{where}: format_version {version}, this vecrun reads {FORMAT_VERSION}",
                "Use the vecrun version that wrote it",
            )
        try:
            return model.model_validate({key: value for key, value in data.items() if key in model.model_fields})
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise VecrunError("A state file is damaged", f"{where}: {place}: {first['msg']}", hint) from exc

    @abstractmethod
    def jobs(self) -> list[str]:
        """Names of the jobs that have a document, sorted."""

    @abstractmethod
    def names(self) -> list[str]:
        """Everything that has a history, sorted: jobs, those whose document was removed too, and serving."""

    @abstractmethod
    def history(self, name: str) -> list[Version]:
        """The serials of a document, newest first."""

    @abstractmethod
    def forget(self, name: str, serials: Iterable[int], fence: Fence) -> None:
        """Remove serials from the history. The present document stays."""

    @abstractmethod
    def remove(self, job: str, fence: Fence) -> None:
        """Forget a job's document. Its history stays."""

    @abstractmethod
    def where(self, name: str) -> str:
        """Where a document is kept, for messages."""

    @abstractmethod
    def _remedy(self, name: str) -> str: ...

    @abstractmethod
    def _lineage(self, pattern: str) -> str: ...

    @abstractmethod
    def _last(self, name: str, connection: sa.Connection | None) -> int:
        """The highest serial that a document may have had; 0 when there never was one."""

    @abstractmethod
    def _text(self, name: str, serial: int | None, connection: sa.Connection | None) -> str | None: ...

    @abstractmethod
    def _writing(self, name: str, held: object) -> AbstractContextManager[sa.Connection | None]: ...

    @abstractmethod
    def _put(self, name: str, document: Document, connection: sa.Connection | None) -> None: ...


def name_of(document: Document) -> str:
    """What a document is kept under: its job, or `serving`."""
    return document.job if isinstance(document, State) else SERVING


def dumps(document: Document) -> str:
    return json.dumps(document.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_serving(text: str) -> bool:
    try:
        data = json.loads(text)
    except ValueError:
        return False
    return isinstance(data, dict) and "pointers" in data and "job" not in data
