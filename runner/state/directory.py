"""State documents as files in a folder."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from runner.errors import NotFound, VecrunError
from runner.state.documents import SERVING, Document, Fence, States, Version, dumps, sync_folder, write_atomically


class StateDirectory(States):
    """State files in a folder; what was before in its `history/`, as NAME.SERIAL.json."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def jobs(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("*.json") if path.stem != SERVING)

    def names(self) -> list[str]:
        kept = {path.name.rpartition(".json")[0] for path in (self.directory / "history").glob("*.json")}
        found = {name.rpartition(".")[0] for name in kept if name.rpartition(".")[2].isdigit()}
        return sorted(found | {path.stem for path in self.directory.glob("*.json")})

    def history(self, name: str) -> list[Version]:
        files = {int(path.suffixes[-2][1:]): path for path in self._kept(name)}
        if self._path(name).exists():
            files[self._serial(name)] = self._path(name)
        return [Version(serial=serial, written=_time(files[serial].stat().st_mtime)) for serial in sorted(files)[::-1]]

    def forget(self, name: str, serials: Iterable[int], fence: Fence) -> None:
        with fence:
            for serial in serials:
                (self.directory / "history" / f"{name}.{serial}.json").unlink(missing_ok=True)

    def remove(self, job: str, fence: Fence) -> None:
        path = self._path(job)
        with fence as held, self._writing(job, held):
            if not path.exists():
                raise NotFound("No state", f"job {job}", "vecrun state list")
            self._keep(job)
            path.unlink()
            sync_folder(self.directory)

    def where(self, name: str) -> str:
        return str(self._path(name))

    def _remedy(self, name: str) -> str:
        kept = self._kept(name)
        return (
            f"The version before is in {kept[-1]}: compare, then copy it over" if kept else "Restore it from a backup"
        )

    def _lineage(self, pattern: str) -> str:
        # deterministic until the first write, so that planning twice before it gives the same plan
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "vecrun:" + pattern.format(self.directory)))

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def _kept(self, name: str) -> list[Path]:
        found = (self.directory / "history").glob(f"{name}.*.json")
        numbers = {path: path.name.removeprefix(f"{name}.").removesuffix(".json") for path in found}
        return sorted(
            (path for path, number in numbers.items() if number.isdigit()), key=lambda path: int(numbers[path])
        )

    def _last(self, name: str, _connection: sa.Connection | None) -> int:
        # one more than in the history: that one was the document that is not there, or is damaged
        return max((int(path.suffixes[-2][1:]) + 1 for path in self._kept(name)), default=0)

    def _serial(self, name: str) -> int:
        """Of the present document; of a damaged one, what it must have been."""
        try:
            return int(json.loads(self._path(name).read_text(encoding="utf-8"))["serial"])
        except (ValueError, KeyError, TypeError):
            return self._last(name, None)

    def _text(self, name: str, serial: int | None, _connection: sa.Connection | None) -> str | None:
        path = self._path(name)
        if serial is not None and (not path.exists() or self._serial(name) != serial):
            path = self.directory / "history" / f"{name}.{serial}.json"
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise VecrunError("A state file cannot be read", f"{path}: {exc}") from exc

    def _writing(self, name: str, held: object) -> AbstractContextManager[None]:
        # the fence is a transaction of SQLite, which lets one writer in at a time
        del name, held
        self.directory.mkdir(parents=True, exist_ok=True)
        return nullcontext()

    def _keep(self, name: str) -> None:
        """Copy the present document into the history, with the time at which it was written."""
        folder, path = self.directory / "history", self._path(name)
        folder.mkdir(exist_ok=True)
        kept = folder / f"{name}.{self._serial(name)}.json"
        write_atomically(kept, path.read_text(encoding="utf-8", errors="replace"))
        os.utime(kept, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))

    def _put(self, name: str, document: Document, _connection: sa.Connection | None) -> None:
        if self._path(name).exists():
            self._keep(name)
        write_atomically(self._path(name), dumps(document))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
