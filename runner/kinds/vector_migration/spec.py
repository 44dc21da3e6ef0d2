"""What a user writes in a VectorMigration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from runner.clauses.moving import CollectionRule
from runner.clauses.spec import Acceptance, Cutover, LiveSource, Verify
from runner.settings import Duration
from runner.spec import SpecModel

Connection = Annotated[
    str | dict[str, Any], Field(description="Name of a connection of vecrun.yaml, or one written here.")
]


class Documents(SpecModel):
    """The relational table whose rows name points."""

    connection: str = Field(description="A connection of type sql.")
    table: str
    id_column: str = "id"
    vector_id_column: str = "vector_id"
    collection_column: str | None = Field(None, description="Needed when ids of several collections are mapped.")


class VectorMigrationSpec(SpecModel):
    """Spec of a VectorMigration."""

    source: Connection
    target: Connection
    collections: tuple[CollectionRule, ...] | Literal["all"]
    batch_size: int = Field(1000, ge=1, le=16_384, description="Points read and written at once.")
    verify: Verify = Verify()
    live: LiveSource | None = Field(None, description="When the source is written to meanwhile.")
    cutover: Cutover | None = None
    documents: Documents | None = None
    accept: tuple[Acceptance, ...] = Field(
        (), description="Findings of the plan that are accepted, each with a reason."
    )
    retention: Duration | None = Field(None, description="How long it can be rolled back; default: the workspace's.")
    source_after: Literal["keep", "delete"] = Field(
        "keep", description="delete drops the source collections at the end."
    )

    @field_validator("collections")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("name at least one collection, or write all")
        return value

    @model_validator(mode="after")
    def _different(self) -> VectorMigrationSpec:
        for place, value in (("source", self.source), ("target", self.target)):
            if isinstance(value, dict) and "type" not in value:
                raise ValueError(f"{place}: an inline connection needs a type")
        return self

    @model_validator(mode="after")
    def _live(self) -> VectorMigrationSpec:
        if self.live is None:
            return self
        if not self.live.hold:
            if self.source_after == "delete":
                raise ValueError("source_after: delete needs live.hold: true, else late writes would be deleted unseen")
            if self.verify.mode != "full":
                raise ValueError("verify.mode must be full, or live.hold true: the verification is the last pass")
        if field := self.live.field:
            for rule in self.rules:
                changed = {*rule.payload.drop, *rule.payload.cast, *rule.payload.set}
                if {field, field.split(".")[0]} & changed:
                    raise ValueError(f"live.field {field} must reach the target; payload drops, casts or sets it")
        return self

    @property
    def rules(self) -> tuple[CollectionRule, ...]:
        if self.collections == "all":
            return (CollectionRule.model_validate({"from": "*"}),)
        return self.collections


def connections(spec: VectorMigrationSpec) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Named and inline connections of the spec."""
    named, inline = [], {}
    for role, value in (("source", spec.source), ("target", spec.target)):
        if isinstance(value, str):
            named.append(value)
        else:
            inline[f"({role})"] = value
    if spec.documents:
        named.append(spec.documents.connection)
    return named, inline
