"""What a user writes in a VectorRestore."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from runner.clauses.moving import CollectionRule
from runner.clauses.spec import Acceptance, Verify
from runner.errors import Permanent
from runner.objects.storage import checked_key
from runner.settings import Duration
from runner.spec import SpecModel

#: The connection that stands for the backup in the plan.
BACKUP = "(backup)"
Word = Annotated[str, Field(min_length=1)]


class From(SpecModel):
    """Which backup."""

    connection: str = Field(description="A connection of type folder or s3.", examples=["backups"])
    folder: str = Field(
        min_length=1, description="The folder that the backups are in.", examples=["nightly/vector_bak"]
    )
    backup: str = Field(
        "latest", pattern=r"^(latest|\d{8}_\d{6})$", description="Its id, or latest: the newest that is whole.",
        examples=["20261120_031500"],
    )  # fmt: skip

    @field_validator("folder")
    @classmethod
    def _is_folder(cls, folder: str) -> str:
        try:
            return checked_key(folder.removesuffix("/"))
        except Permanent as exc:
            raise ValueError(f"this is no folder: {exc.detail}") from exc


class TableRule(SpecModel):
    """A table of the backup, and where it goes."""

    from_: Word = Field(alias="from", description="As it was named in the backup.")
    to: Word | None = Field(None, description="Another name; default: the same.")


class Tables(SpecModel):
    """Tables out of a backup of tables."""

    connection: str = Field(description="A connection of type sql or pgvector to a PostgreSQL database.")
    names: tuple[Word | TableRule, ...] | Literal["all"] = Field("all", description="Which tables of the backup.")
    if_not_empty: Literal["refuse", "merge", "replace"] = Field(
        "refuse",
        description="What happens to rows that are there. merge: the backup's rows win, by primary key, and others stay; "
        "replace: only the backup's rows are there afterwards. A rollback brings the old ones back.",
    )
    create: bool = Field(False, description="Make tables that are not there, as they were.")

    @field_validator("names")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("name at least one table, or write all")
        return value


class Collections(SpecModel):
    """Collections out of a backup of collections."""

    connection: str = Field(description="The store that they go to: a connection of vecrun.yaml.")
    names: tuple[CollectionRule, ...] | Literal["all"] = Field("all", description="Which collections of the backup.")
    if_not_empty: Literal["refuse", "merge"] = Field(
        "refuse",
        description="What happens when a collection holds points. merge: points with the same id are overwritten, others "
        "stay; there is no rollback then.",
    )
    aliases: bool = Field(False, description="Point the aliases of that time at the restored collections.")
    batch_size: int = Field(1000, ge=1, le=16_384, description="Points read and written at once.")
    verify: Verify = Verify()

    @field_validator("names")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("name at least one collection, or write all")
        return value

    @property
    def rules(self) -> tuple[CollectionRule, ...]:
        """One for each pattern of names."""
        return (CollectionRule.model_validate({"from": "*"}),) if self.names == "all" else self.names


class VectorRestoreSpec(SpecModel):
    """Spec of a VectorRestore."""

    from_: From = Field(alias="from")
    tables: Tables | None = None
    collections: Collections | None = None
    accept: tuple[Acceptance, ...] = Field(
        (), description="Findings of the plan that are accepted, each with a reason."
    )
    retention: Duration | None = Field(None, description="How long it can be rolled back; default: the workspace's.")

    @model_validator(mode="after")
    def _one(self) -> VectorRestoreSpec:
        if (self.tables is None) == (self.collections is None):
            raise ValueError("give one of tables and collections, as the backup is")
        return self


def connections(spec: VectorRestoreSpec) -> tuple[list[str], dict[str, dict[str, object]]]:
    """(names of the workspace's connections, the backup as a store)."""
    target = spec.tables or spec.collections
    assert target is not None
    named = list(dict.fromkeys([spec.from_.connection, target.connection]))
    if spec.collections is None:
        return named, {}
    return named, {BACKUP: {"type": "backup", "connection": spec.from_.connection, "folder": spec.from_.folder}}
