"""What a user writes in a VectorBackup."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import Field, field_validator, model_validator

from runner.clauses.spec import Acceptance
from runner.errors import Permanent
from runner.objects.storage import checked_key
from runner.plan import BackupFolder, Compression, Keep
from runner.settings import Duration
from runner.spec import SpecModel

#: LangChain's tables of collections and of points, and which of them is emptied before each load.
LANGCHAIN = ("langchain_pg_collection", "langchain_pg_embedding")
EMPTIED = "langchain_pg_embedding"

Word = Annotated[str, Field(min_length=1)]


class Tables(SpecModel):
    """Tables of a PostgreSQL database, as CSV."""

    connection: str = Field(description="A connection of type sql or pgvector to a PostgreSQL database.")
    names: tuple[Word, ...] = Field(
        LANGCHAIN, min_length=1, description="Tables, with or without their schema; default: LangChain's two."
    )
    truncate: bool | tuple[Word, ...] = Field(
        False,
        description=f"Tables that are emptied once their backup is whole; true: {EMPTIED}. They are backed up, named or not.",
    )

    @model_validator(mode="after")
    def _known(self) -> Tables:
        if self.truncate is True and EMPTIED not in self.names:
            raise ValueError(f"truncate: true means {EMPTIED}, and names has no such table; name those to be emptied")
        return self

    @property
    def emptied(self) -> tuple[str, ...]:
        """Tables that are emptied."""
        if isinstance(self.truncate, tuple):
            return tuple(dict.fromkeys(self.truncate))
        return (EMPTIED,) if self.truncate else ()

    @property
    def all(self) -> tuple[str, ...]:
        """Tables that are backed up: to empty one turns its backup on."""
        return tuple(dict.fromkeys([*self.names, *self.emptied]))


class Collections(SpecModel):
    """Collections of a store, as Parquet."""

    connection: str = Field(description="A store: a connection of vecrun.yaml.")
    names: tuple[Word, ...] | Literal["all"] = Field("all", description="Names, or patterns with * and ?.")
    batch_size: int = Field(1000, ge=1, le=16_384, description="Points read at once.")
    file_size_mb: int = Field(64, ge=1, le=1024, description="A file has about so many points: MB of memory they take.")
    compression: Compression = "zstd"
    incremental: bool = Field(
        True, description="Share the files of the newest earlier backup whose points have not changed."
    )

    @field_validator("names")
    @classmethod
    def _some(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if value == ():
            raise ValueError("name at least one collection, or write all")
        return value


class Into(SpecModel):
    """Where backups go."""

    connection: str = Field(description="A connection of type folder or s3.", examples=["backups"])
    folder: str | None = Field(
        None, min_length=1, description="Folder in it, for this job alone; default: JOB/vector_bak, or ENVIRONMENT/JOB/vector_bak "
        "where an environment was chosen.", examples=["nightly/vector_bak"],
    )  # fmt: skip

    @field_validator("folder")
    @classmethod
    def _is_folder(cls, folder: str | None) -> str | None:
        if folder is None:
            return None
        try:
            return checked_key(folder.removesuffix("/"))
        except Permanent as exc:
            raise ValueError(f"this is no folder: {exc.detail}") from exc

    def place(self, job: str, environment: str = "") -> BackupFolder:
        """The same in the words of a plan."""
        below = f"{quote(environment, safe='')}/" if environment else ""
        return BackupFolder(connection=self.connection, folder=self.folder or f"{below}{job}/vector_bak")


class KeepRules(SpecModel):
    """Which backups `vecrun gc` keeps: what any of these rules keeps. Never removed: the newest whole one, and for each
    table and collection the newest whole one that holds anything of it."""

    last: int | None = Field(None, ge=1, description="The newest so many.")
    daily: int | None = Field(
        None, ge=1, description="The newest of each of the last so many days that have one (UTC)."
    )
    weekly: int | None = Field(None, ge=1, description="The newest of each week.")
    monthly: int | None = Field(None, ge=1, description="The newest of each month.")
    yearly: int | None = Field(None, ge=1, description="The newest of each year.")
    within: Duration | None = Field(None, description="All that are younger.", examples=["30d"])

    @model_validator(mode="after")
    def _some(self) -> KeepRules:
        if not self.model_fields_set:
            raise ValueError("give at least one rule, or leave keep out: then nothing is ever removed")
        return self


class VectorBackupSpec(SpecModel):
    """Spec of a VectorBackup."""

    tables: Tables | None = None
    collections: Collections | None = None
    to: Into
    keep: KeepRules | None = Field(None, description="What vecrun gc keeps; default: everything.")
    accept: tuple[Acceptance, ...] = Field(
        (), description="Findings of the plan that are accepted, each with a reason."
    )
    retention: Duration | None = Field(
        None, description="How long emptied tables can be filled again by a rollback; default: the workspace's."
    )

    @model_validator(mode="after")
    def _one(self) -> VectorBackupSpec:
        if (self.tables is None) == (self.collections is None):
            raise ValueError("give one of tables and collections; the other is a job of its own")
        return self

    @property
    def rules(self) -> Keep | None:
        """What is kept, in the words of a plan."""
        return Keep(**self.keep.model_dump()) if self.keep is not None else None


def connections(spec: VectorBackupSpec) -> tuple[list[str], dict[str, dict[str, object]]]:
    """(names of the workspace's connections, none inline)."""
    source = spec.tables or spec.collections
    assert source is not None
    return list(dict.fromkeys([source.connection, spec.to.connection])), {}
