"""Steps of a backup and of its way back: tables as CSV, collections as Parquet, both under a manifest in object storage.

A backup is whole when its manifest is there, which is written last. A table is emptied only behind a whole backup that was
read back, and only when it still holds exactly the rows that are in it (docs/safety.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from runner.plan.step import Action, Place, StepBase
from runner.points import Model

if TYPE_CHECKING:
    from runner.plan.document import Step

Existing = Literal["refuse", "merge", "replace"]
Compression = Literal["none", "zstd", "lz4", "snappy", "gzip"]


class BackupFolder(Model):
    """Where backups are: a connection of type folder or s3, and a folder in it. Keys of a manifest are relative to it."""

    connection: str
    folder: str

    @property
    def place(self) -> Place:
        """The same as a place that a run can hold a lease of."""
        return Place(connection=self.connection, collection=self.folder)

    def key(self, name: str) -> str:
        """Key of a file in it."""
        return f"{self.folder}/{name}"

    def __str__(self) -> str:
        return f"{self.connection}/{self.folder}"


class Keep(Model):
    """Which backups stay when `vecrun gc` runs: the newest `last`, and the newest of each of so many days, weeks, months
    and years; `within`: all that are younger. What no rule keeps can go, but never the newest one that holds anything."""

    last: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    within: str | None = None


class BackUpTables(StepBase):
    """Write tables of a PostgreSQL database as CSV, all of one snapshot, each on its own: one that fails stops no other. All
    are read back, the manifest is written, and then the step fails if any table did."""

    type: Literal["back_up_tables"] = "back_up_tables"
    connection: str
    tables: tuple[str, ...]
    into: BackupFolder
    rows: int = 0
    keep: Keep | None = None

    action: ClassVar[Action] = Action.CREATE

    @property
    def read_places(self) -> tuple[Place, ...]:
        return tuple(Place(connection=self.connection, collection=table) for table in self.tables)

    @property
    def written_places(self) -> tuple[Place, ...]:
        return (self.into.place,)

    @property
    def extent(self) -> tuple[int, str]:
        return self.rows, "rows"


class TruncateTables(StepBase):
    """Empty tables whose backup by this run is whole: it is read once more, then the tables are locked, their rows are compared
    with those that the backup saw, and nothing is emptied when one came, went or changed."""

    type: Literal["truncate_tables"] = "truncate_tables"
    connection: str
    tables: tuple[str, ...]
    source: BackupFolder
    rows: int = 0

    action: ClassVar[Action] = Action.DELETE

    @property
    def written_places(self) -> tuple[Place, ...]:
        return tuple(Place(connection=self.connection, collection=table) for table in self.tables)

    @property
    def extent(self) -> tuple[int, str]:
        return self.rows, "rows"

    def reverse(self) -> tuple[Step, ...] | None:
        tables = tuple((table, table) for table in self.tables)
        return (LoadTables(connection=self.connection, tables=tables, source=self.source, rows=self.rows),)


class LoadTables(StepBase):
    """Fill tables from a backup, in one transaction: checked before against the manifest, compared with it before it is
    committed. `existing`: what happens to rows that are there. What is replaced stands in undo tables before.

    The backup is named by `backup` and the digest of its manifest, or by the run that made it (`of_run`, in a rollback).
    """

    type: Literal["load_tables"] = "load_tables"
    connection: str
    tables: tuple[tuple[str, str], ...]  # (table of the backup, table here)
    source: BackupFolder
    backup: str = ""
    manifest: str = ""
    of_run: str = ""
    existing: Existing = "refuse"
    create: bool = False  # a table that is not there is made
    undo: tuple[tuple[str, str], ...] = ()  # (table here, its undo table)
    rows: int = 0

    action: ClassVar[Action] = Action.CHANGE
    whole: ClassVar[bool] = True

    @property
    def written_places(self) -> tuple[Place, ...]:
        return tuple(Place(connection=self.connection, collection=here) for _table, here in self.tables)

    @property
    def read_places(self) -> tuple[Place, ...]:
        return (self.source.place,)

    @property
    def extent(self) -> tuple[int, str]:
        return self.rows, "rows"

    def reverse(self) -> tuple[Step, ...] | None:
        return None if self.of_run else (UnloadTables(of=self.model_copy()),)


class UnloadTables(StepBase):
    """Bring tables back to what they were before they were filled. Refused when somebody has written to them since."""

    type: Literal["unload_tables"] = "unload_tables"
    of: LoadTables

    action: ClassVar[Action] = Action.DELETE
    whole: ClassVar[bool] = True

    @property
    def written_places(self) -> tuple[Place, ...]:
        return self.of.written_places

    @property
    def extent(self) -> tuple[int, str]:
        return self.of.extent

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class BackUpPoints(StepBase):
    """Write the points of a collection as Parquet files, named by their content: what an earlier backup has is not written
    again. The boundaries of the files are those of the backup `previous`, so that only what changed makes new ones."""

    type: Literal["back_up_points"] = "back_up_points"
    source: Place
    into: BackupFolder
    points: int
    batch_size: int = 1000
    file_bytes: int = 64 * 2**20  # a file of about so much memory
    compression: Compression = "zstd"
    previous: str = ""

    action: ClassVar[Action] = Action.CREATE

    @property
    def read_places(self) -> tuple[Place, ...]:
        return (self.source,)

    @property
    def written_places(self) -> tuple[Place, ...]:
        return (self.into.place,)


class SealBackup(StepBase):
    """Read back every file that this run wrote, compare it with what was read from the store, and write the manifest."""

    type: Literal["seal_backup"] = "seal_backup"
    into: BackupFolder
    sources: tuple[Place, ...]
    previous: str = ""
    keep: Keep | None = None

    action: ClassVar[Action] = Action.CHECK

    @property
    def written_places(self) -> tuple[Place, ...]:
        return (self.into.place,)


class CheckBackup(StepBase):
    """Read a backup, or the named parts of it, and compare all of it with its manifest; stop here if anything is amiss."""

    type: Literal["check_backup"] = "check_backup"
    source: BackupFolder
    backup: str
    manifest: str
    names: tuple[str, ...] = ()  # tables or collections; empty: all
    bytes: int = 0

    action: ClassVar[Action] = Action.CHECK

    @property
    def read_places(self) -> tuple[Place, ...]:
        return (self.source.place,)
