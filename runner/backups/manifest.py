"""The manifest of a backup: what is in it, and what every file must be. It is written last, so with it a backup is whole.

`FOLDER/backup_ID.json`; all files of the backup have keys relative to FOLDER.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import ValidationError

from runner.documents.shape import Shape
from runner.errors import NotFound, Permanent, VecrunError
from runner.objects.storage import Objects
from runner.points import CollectionSchema, KeyRange, Model, PointId
from runner.spec import digest

FORMAT_VERSION = "1.0"
#: What an id looks like: the time of the backup in UTC.
ID = re.compile(r"\d{8}_\d{6}")
_NAME = re.compile(r"backup_(\d{8}_\d{6})\.json")
_CLAIM = re.compile(r"claim_\d{8}_\d{6}")
#: How far in the future a backup's time may be. One beyond was made by a clock that was wrong.
AHEAD = timedelta(hours=1)
#: Bytes of a manifest that are read at most.
_MOST = 512 * 2**20


class DamagedBackup(Permanent):
    """A backup is not what its manifest says, or its manifest cannot be read."""

    exit_code = 13


class TableFile(Model):
    """A table as CSV with header, UTF-8. `rows_digest`: of the set of its rows, whatever their order. `snapshot`: the
    versions of the rows that were read (documents/copying.py). With `error` there is no file."""

    table: str  # as it was asked for
    shape: Shape | None = None
    file: str = ""
    rows: int = 0
    bytes: int = 0
    sha256: str = ""
    rows_digest: str = ""
    snapshot: str = ""
    seconds: float = 0.0
    error: str = ""


class PointFile(Model):
    """Points of a collection as Parquet, sorted by id. `content`: digest of the points, whatever wrote the file."""

    file: str
    rows: int
    bytes: int
    sha256: str
    content: str
    first: PointId
    last: PointId
    keys: KeyRange = KeyRange()  # the range of the source that it was read from


class CollectionFiles(Model):
    """A collection: what it looked like, and its points."""

    connection: str
    store: str  # type of the store
    collection: CollectionSchema
    aliases: tuple[str, ...] = ()
    rows: int
    files: tuple[PointFile, ...]

    @property
    def name(self) -> str:
        """Its name at the time."""
        return self.collection.name


class Backup(Model):
    """One backup. `digest` covers all the rest. `previous`: the backup whose unchanged files it shares."""

    format_version: str = FORMAT_VERSION
    tool_version: str
    id: str
    job: str
    run: str
    environment: str = ""
    lineage: str = ""  # of the job's state: tells workspaces and environments apart. Empty: of an early version
    form: Literal["tables", "collections"]
    began: str
    finished: str
    source: str = ""  # the server and its version, for the reader; no secrets
    previous: str = ""
    tables: tuple[TableFile, ...] = ()
    collections: tuple[CollectionFiles, ...] = ()
    digest: str = ""

    @property
    def whole(self) -> bool:
        """Whether nothing of what was asked for is missing."""
        return not any(item.error for item in self.tables)

    @property
    def origin(self) -> str:
        """Whose it is, for people."""
        return f"job {self.job}" + (f", environment {self.environment}" if self.environment else "")

    @property
    def holding(self) -> tuple[str, ...]:
        """Tables and collections that hold anything."""
        points = (f"{item.connection}/{item.name}" for item in self.collections if item.rows)
        return (*(item.table for item in self.tables if item.rows), *points)

    @property
    def rows(self) -> int:
        """Rows or points in all."""
        return sum(item.rows for item in self.tables) + sum(item.rows for item in self.collections)

    @property
    def files(self) -> dict[str, int]:
        """file -> bytes, each once."""
        found = {item.file: item.bytes for item in self.tables if item.file}
        return found | {item.file: item.bytes for one in self.collections for item in one.files}

    def sealed(self) -> Backup:
        """The same with its digest."""
        return self.model_copy(update={"digest": self._digest()})

    def _digest(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"digest"}))


def new_id(at: datetime | None = None) -> str:
    """The id of a backup that is made at this time: YYYYMMDD_HHMMSS, UTC."""
    return f"{(at or datetime.now(UTC)).astimezone(UTC):%Y%m%d_%H%M%S}"


def moment(backup: str) -> datetime:
    """When a backup was made, by its id. ValueError when no calendar has that time."""
    return datetime.strptime(backup, "%Y%m%d_%H%M%S").replace(tzinfo=UTC)


def ahead(backup: str, now: datetime | None = None) -> bool:
    """Whether an id is so far in the future that it counts for nothing."""
    return moment(backup) > (now or datetime.now(UTC)) + AHEAD


def manifest_key(folder: str, backup: str) -> str:
    """Key of the manifest of a backup."""
    return f"{folder}/backup_{backup}.json"


def write(objects: Objects, folder: str, backup: Backup) -> Backup:
    """Write the manifest, sealed; with it the backup is there. Never over another one: Permanent."""
    sealed, key = backup.sealed(), manifest_key(folder, backup.id)
    text = json.dumps(sealed.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    if not objects.create(key, text.encode()):
        raise Permanent(
            "Another backup has this id", f"{key} was written meanwhile, and stays as it is", "Run the job again"
        )
    release(objects, folder, sealed.id)
    return sealed


def parse(text: bytes, where: str) -> Backup:
    """The backup that a manifest describes. DamagedBackup when it was cut or altered, or is of a newer format."""
    try:
        data: dict[str, Any] = json.loads(text)
        major = int(str(data["format_version"]).split(".", maxsplit=1)[0])
        found_digest = digest({key: value for key, value in data.items() if key != "digest"})
    except Exception as exc:  # whatever lies there: lone surrogates, lists in lists without end, no JSON at all
        raise _damaged(where, "it is no whole JSON document of a backup") from exc
    if major > int(FORMAT_VERSION.split(".", maxsplit=1)[0]):
        raise DamagedBackup(
            "The backup was made by a newer vecrun",
            f"{where}: format {data['format_version']}; this one reads up to {FORMAT_VERSION.split('.', maxsplit=1)[0]}.x",
            "Upgrade: pip install -U vecrun",
        )
    # over the file as it is: a key of a newer minor version is no damage
    if found_digest != data.get("digest"):
        raise _damaged(where, "its content does not match its digest")
    try:
        found = Backup.model_validate(data, extra="ignore")  # a newer minor version adds keys
    except ValidationError as exc:
        raise _damaged(where, str(exc.errors(include_url=False)[0]["msg"])) from exc
    except Exception as exc:
        raise _damaged(where, "it does not say what a backup says") from exc
    if not (found.tables or found.collections):
        raise _damaged(where, "it names no table and no collection")
    return found


def _damaged(where: str, what: str) -> DamagedBackup:
    return DamagedBackup(
        "The manifest of a backup is damaged", f"{where}: {what}", "Take another backup, or a copy of the file"
    )


def read(objects: Objects, folder: str, backup: str) -> Backup:
    """One backup by its id. NotFound; DamagedBackup."""
    key = manifest_key(folder, backup)
    try:
        text = objects.read(key, _MOST)
    except NotFound as exc:
        there = ", ".join(ids(objects, folder)[-5:]) or "none"
        raise NotFound(
            "No such backup", f"{key}; the newest there are: {there}", f"vecrun backup list CONNECTION:{folder}"
        ) from exc
    found = parse(text, key)
    if found.id != backup:
        raise _damaged(key, f"it is the manifest of backup {found.id}")
    return found


def ids(objects: Objects, folder: str) -> list[str]:
    """Ids of all backups in the folder, whole or not, oldest first. A time that no calendar has is no id."""
    found = (_NAME.fullmatch(item.key.removeprefix(f"{folder}/")) for item in objects.list(folder))
    return sorted(match[1] for match in found if match and is_id(match[1]))


def is_id(text: str) -> bool:
    """Whether this is the id of a backup."""
    try:
        return bool(ID.fullmatch(text) and text.isascii() and moment(text))
    except ValueError:
        return False


def newest_first(objects: Objects, folder: str, *, present: bool = False) -> Iterator[Backup | VecrunError]:
    """Every backup, or what is wrong with its manifest, from the newest to the oldest. `present`: none of the future."""
    for backup in reversed(ids(objects, folder)):
        if present and ahead(backup):
            continue
        try:
            yield read(objects, folder, backup)
        except (Permanent, NotFound) as exc:
            yield exc


def latest(objects: Objects, folder: str) -> Backup | None:
    """The newest whole backup; one of the future is passed over. DamagedBackup when a newer one cannot be read: that is no
    moment to guess."""
    for item in newest_first(objects, folder, present=True):
        if isinstance(item, VecrunError):
            raise item
        if item.whole:
            return item
    return None


def of_run(objects: Objects, folder: str, run: str) -> Backup | None:
    """The whole backup that a run made; None when there is none."""
    for item in newest_first(objects, folder):
        if isinstance(item, Backup) and item.run == run and item.whole:
            return item
    return None


def reserve(objects: Objects, folder: str, run: str, at: datetime | None = None) -> str:
    """An id that no other run takes, after those of all others: of this second, or of the first free one after it.

    The claim of it is the first thing that is written there, so a login without the right to write is told here.
    """
    when = at or datetime.now(UTC)
    for item in objects.list(folder):
        if _CLAIM.fullmatch(item.key.removeprefix(f"{folder}/")):
            with suppress(VecrunError):
                if objects.read(item.key) == f"{run}\n".encode():  # of an attempt that was killed
                    objects.delete(item.key)
    before = [name for name in ids(objects, folder) if not ahead(name, when)]
    if before:  # of two in one second the later one is the newest, also when the first was removed meanwhile
        when = max(when, moment(before[-1]) + timedelta(seconds=1))
    while True:
        backup = new_id(when)
        if objects.create(_claim(folder, backup), f"{run}\n".encode()):
            if objects.head(manifest_key(folder, backup)) is None:
                return backup
            release(objects, folder, backup)  # whoever had it before has just finished
        when += timedelta(seconds=1)


def release(objects: Objects, folder: str, backup: str) -> None:
    """Remove the claim of an id: its manifest is there, or never will be."""
    with suppress(VecrunError):  # gc finds it, too
        objects.delete(_claim(folder, backup))


def may_write(objects: Objects, folder: str, run: str) -> None:
    """Write something small and remove it: what the storage has against it is told before anything is read."""
    key = f"{folder}/probe_{run}"
    objects.write(key, b"")
    with suppress(VecrunError):  # gc finds it, too
        objects.delete(key)


def _claim(folder: str, backup: str) -> str:
    return f"{folder}/claim_{backup}"
