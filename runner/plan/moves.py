"""Steps that make, fill, compare, switch and remove collections. Each is a frozen value that knows its reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from runner.plan.step import Action, ChunkTable, Live, Place, StepBase
from runner.points import CollectionSchema, Model
from runner.transform import Transform

if TYPE_CHECKING:
    from runner.plan.document import Step


class CreateCollection(StepBase):
    """Make an empty collection."""

    type: Literal["create_collection"] = "create_collection"
    target: Place
    schema_: CollectionSchema = Field(alias="schema")

    model_config = Model.model_config | {"populate_by_name": True}

    action: ClassVar[Action] = Action.CREATE

    def reverse(self) -> tuple[Step, ...] | None:
        return (DropCollection(target=self.target, why="made by the run that is rolled back", copy_of_source=True),)


class CopyPoints(StepBase):
    """Read every point of the source, transform it, write it to the target. The target starts empty."""

    type: Literal["copy_points"] = "copy_points"
    source: Place
    target: Place
    target_schema: CollectionSchema
    transform: Transform = Transform()
    points: int
    batch_size: int = 1000
    accept: tuple[str, ...] = ()
    creates_target: bool = True
    merges: bool = False  # the target holds points, and those with the same id are overwritten

    action: ClassVar[Action] = Action.CREATE

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if not self.merges:  # plans from before it was there stay as they are
            del data["merges"]
        return data

    @property
    def destroys(self) -> str:
        return f"points of {self.target} with the same id" if self.merges else ""

    @property
    def read_places(self) -> tuple[Place, ...]:
        return (self.source,)

    def reverse(self) -> tuple[Step, ...] | None:
        if self.merges:
            return None
        if self.creates_target:
            return ()  # dropping the collection undoes both
        return (ClearCollection(target=self.target),)


class FinishCollection(StepBase):
    """Build the indexes and make the collection searchable."""

    type: Literal["finish_collection"] = "finish_collection"
    target: Place
    schema_: CollectionSchema = Field(alias="schema")

    model_config = Model.model_config | {"populate_by_name": True}

    action: ClassVar[Action] = Action.CREATE


class VerifyPoints(StepBase):
    """Compare source and target; a difference stops the run before anything is switched.

    With `live` a point that differs is copied again and compared again, and only what differs then stops the run.
    """

    type: Literal["verify_points"] = "verify_points"
    source: Place
    target: Place
    target_schema: CollectionSchema
    transform: Transform = Transform()
    mode: Literal["count", "sample", "full"] = "full"
    sample: int = 100
    points: int = 0
    live: Live | None = None
    saved: Place | None = None  # source and target are one collection, whose vectors were replaced
    others: bool = False  # the target holds points besides those of the source

    action: ClassVar[Action] = Action.CHECK

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.saved is None:  # plans from before they were there stay as they are
            del data["saved"]
        if not self.others:
            del data["others"]
        return data


class RewriteIds(StepBase):
    """Replace old point ids by new ones in a relational table, from the mapping the copy recorded.

    Old values go into `undo_table` of the same database in the same transaction.
    """

    type: Literal["rewrite_ids"] = "rewrite_ids"
    chunks: ChunkTable
    undo_table: str
    collections: tuple[tuple[str, str], ...]  # (source collection, target collection), those whose ids are mapped
    rows: int

    action: ClassVar[Action] = Action.CHANGE

    def reverse(self) -> tuple[Step, ...] | None:
        return (RestoreIds(chunks=self.chunks, undo_table=self.undo_table, rows=self.rows),)


class CatchUp(StepBase):
    """Bring over what was written to the source since, in passes over all of it.

    Before the cutover the target is made equal. After it the target is written to as well: there a pass only adds what
    was never there, and with a field replaces what is older and deletes what the source deleted.
    """

    type: Literal["catch_up"] = "catch_up"
    phase: Literal["before", "after"]
    source: Place
    target: Place
    target_schema: CollectionSchema
    transform: Transform = Transform()
    points: int = 0
    live: Live
    chunks: ChunkTable | None = None  # after the cutover: rows that came late follow their points, too
    undo_table: str = ""

    action: ClassVar[Action] = Action.CHANGE


class Hold(StepBase):
    """Stop as `paused` until an operator resumes: the writers of these sources are stopped first."""

    type: Literal["hold"] = "hold"
    collections: tuple[tuple[Place, Place], ...]  # (source, target)

    action: ClassVar[Action] = Action.CHECK


class RestoreIds(StepBase):
    """Put the old point ids back from the undo table, and remove that table."""

    type: Literal["restore_ids"] = "restore_ids"
    chunks: ChunkTable
    undo_table: str
    rows: int

    action: ClassVar[Action] = Action.CHANGE

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class SwitchAlias(StepBase):
    """Point an alias of a store at another collection (None: no alias)."""

    type: Literal["switch_alias"] = "switch_alias"
    connection: str
    alias: str
    before: str | None
    after: str | None

    action: ClassVar[Action] = Action.SWITCH

    def reverse(self) -> tuple[Step, ...] | None:
        return (SwitchAlias(connection=self.connection, alias=self.alias, before=self.after, after=self.before),)


class SetServing(StepBase):
    """Set the workspace's own pointer: which store and collection serve under a name, and which model of `vecrun.yaml`
    embeds the queries for it ("": none is known; None: that stays as it is)."""

    type: Literal["set_serving"] = "set_serving"
    name: str
    before: Place | None
    after: Place | None
    model_before: str | None = None
    model_after: str | None = None

    action: ClassVar[Action] = Action.SWITCH

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.model_before is None and self.model_after is None:  # plans from before they were there stay as they are
            del data["model_before"], data["model_after"]
        return data

    def reverse(self) -> tuple[Step, ...] | None:
        return (
            SetServing(
                name=self.name, before=self.after, after=self.before,
                model_before=self.model_after, model_after=self.model_before,
            ),
        )  # fmt: skip


class ClearCollection(StepBase):
    """Delete every point of a collection and keep the collection."""

    type: Literal["clear_collection"] = "clear_collection"
    target: Place
    points: int | None = None

    action: ClassVar[Action] = Action.DELETE

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class DropCollection(StepBase):
    """Delete a collection with everything in it. `copy_of_source`: its points still stand in the source."""

    type: Literal["drop_collection"] = "drop_collection"
    target: Place
    why: str
    points: int | None = None
    copy_of_source: bool = False

    action: ClassVar[Action] = Action.DELETE

    @property
    def destroys(self) -> str:
        if self.copy_of_source:
            return ""
        return f"{self.target}" + (f" with {self.points:,} points" if self.points is not None else "")

    def reverse(self) -> tuple[Step, ...] | None:
        return None
