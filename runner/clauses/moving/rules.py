"""What a user writes about collections that move: which, under what names, and what changes on their way."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from runner.clauses.spec import Cutover
from runner.conditions import Condition
from runner.points import IdKind, VectorIndex
from runner.spec import SpecModel
from runner.transform import Cast

#: Payload field that keeps the source id of mapped points, unless the spec names another.
ORIGINAL_ID_FIELD = "_vecrun_id"


def _each_its_own(names: dict[str, str], what: str) -> dict[str, str]:
    """A mapping of old to new names in which no two become one."""
    doubled = sorted({new for new in names.values() if list(names.values()).count(new) > 1})
    if doubled:
        raise ValueError(f"two {what} would become one: {', '.join(map(repr, doubled))}")
    return names


class IdRule(SpecModel):
    """Where target ids come from."""

    mode: Literal["auto", "keep", "string", "uuid5"] = Field(
        "auto", description="auto keeps ids the target can hold and maps the others; uuid5 makes a UUID of each."
    )
    keep_original_as: str | None = Field(
        ORIGINAL_ID_FIELD,
        description="Payload field for the source id of mapped points; null: the ledger alone has it.",
    )
    from_field: str | None = Field(None, description="Take the id from this payload field (undoes an earlier mapping).")
    from_kind: IdKind = Field(IdKind.STRING, description="What the ids in from_field are.")


class PayloadRule(SpecModel):
    """Changes to payload fields on the way; applied in the order drop, rename, cast, set."""

    drop: tuple[str, ...] = ()
    rename: dict[str, str] = Field({}, description="old name -> new name")
    cast: dict[str, Cast] = Field({}, description="field -> string, integer, float or boolean")
    set: dict[str, Any] = Field({}, description="field -> constant value")

    @field_validator("rename")
    @classmethod
    def _apart(cls, value: dict[str, str]) -> dict[str, str]:
        return _each_its_own(value, "fields")


class CollectionRule(SpecModel):
    """Which collections, and what changes on their way."""

    from_: str = Field(alias="from", min_length=1, description="A name, or a pattern with * and ?.")
    to: str = Field("{name}", description="Name in the target; {name} is the source's.")
    vectors: dict[str, str] = Field({}, description="source vector -> target vector; others are left behind if given.")
    index: dict[str, VectorIndex] = Field({}, description="target vector -> index settings, instead of the source's.")
    payload: PayloadRule = PayloadRule()
    where: tuple[Condition, ...] = Field((), description="Copy only points for which all conditions hold.")
    ids: IdRule = IdRule()
    cutover: Cutover | None = Field(None, description="For this collection, instead of the job's.")

    @field_validator("vectors")
    @classmethod
    def _apart(cls, value: dict[str, str]) -> dict[str, str]:
        return _each_its_own(value, "vectors")
