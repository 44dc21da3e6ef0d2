"""Steps of a change of the embedding model: vectors replaced in place and put back, failed texts, quality, who is told.

Vectors and the marks that say which model made them are in two systems. So marks are taken away before the vectors
change and set after: a chunk carries the new model's mark only when its vector is the new one, and the old mark only
when it is the old one, at every moment (`SetModel`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from runner.plan.step import Action, Live, Place, StepBase
from runner.points import CollectionSchema, Model, PointId
from runner.transform import Embedding, Transform

if TYPE_CHECKING:
    from runner.plan.document import Step


class VersionRows(Model):
    """The user's relational table whose rows say with which model their point was embedded."""

    connection: str
    table: str
    id_column: str
    vector_id_column: str
    version_column: str
    collection_column: str | None = None
    collection: str = ""


class InfoRow(Model):
    """The row of a knowledge base that says which model embeds its queries; a JSON column."""

    connection: str
    table: str
    id_column: str
    id: int | str
    info_column: str


class ReplaceVectors(StepBase):
    """Embed texts again and replace the vectors in the same collection; each point is first copied to `saved`.

    `choose`: all points, or those whose text or model is not what this model's vector was made from. A point whose
    vector is right already is not written. After the switch (`phase`) it looks for what was written in between.
    """

    type: Literal["replace_vectors"] = "replace_vectors"
    phase: Literal["before", "after"] = "before"
    target: Place
    saved: Place
    target_schema: CollectionSchema
    transform: Transform
    choose: Literal["all", "stale"] = "all"
    rows: VersionRows | None = None  # where versions are trusted for points whose text nobody recorded
    points: int
    batch_size: int = 256
    accept: tuple[str, ...] = ()
    live: Live | None = None

    action: ClassVar[Action] = Action.CHANGE

    @property
    def source(self) -> Place:
        """The points are read where they are written."""
        return self.target

    def reverse(self) -> tuple[Step, ...] | None:
        if self.phase == "after":
            return ()  # what it saved is put back with the rest
        return (
            RestoreVectors(
                target=self.target, saved=self.saved, target_schema=self.target_schema, transform=self.transform
            ),
        )


class RestoreVectors(StepBase):
    """Put the saved vectors back into the points that still exist. What was written to their payload since stays."""

    type: Literal["restore_vectors"] = "restore_vectors"
    target: Place
    saved: Place
    target_schema: CollectionSchema
    transform: Transform
    points: int = 0

    action: ClassVar[Action] = Action.CHANGE

    @property
    def source(self) -> Place:
        """The saved points are read."""
        return self.saved

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class SettleFailures(StepBase):
    """Give texts that could not be embedded another try when an operator asks; stop when more than `allow` are left.

    `of_run`: the finished run whose failures these are; None: those of the run itself.
    """

    type: Literal["settle_failures"] = "settle_failures"
    source: Place
    target: Place
    saved: Place | None = None
    target_schema: CollectionSchema
    transform: Transform
    allow: int = 0
    accept: tuple[str, ...] = ()
    of_run: str | None = None

    action: ClassVar[Action] = Action.CHECK


class Query(Model):
    """A search text, with the ids of points that should be found, where somebody knows them."""

    text: str
    expect: tuple[PointId, ...] = ()


class CheckQuality(StepBase):
    """Search with the user's queries and compare. `min_overlap`: the least mean share of the old results among the new;
    `min_recall`: of the expected ids among the new results. Below either the run stops.

    `phase`: record the old results before vectors are replaced; compare after; or both at once, of two collections.
    """

    type: Literal["check_quality"] = "check_quality"
    phase: Literal["before", "after", "both"]
    source: Place
    target: Place
    old: Embedding | None
    new: Embedding
    queries: tuple[Query, ...]
    k: int = 10
    min_overlap: float | None = None
    min_recall: float | None = None

    action: ClassVar[Action] = Action.CHECK


class SetModel(StepBase):
    """Say in the user's relational tables which model the vectors are of; all of it in one transaction.

    begin: rows of another version carry no version from now on; old ones go into `undo_table`. end: rows whose point
    was embedded get `version`, the others their old one; the knowledge base's info becomes `after`. again: the rows of
    points that this run embedded later. open: from here on rows of single points carry no version while these are
    written. reopen and restore undo end and begin. `before_text`: the info as it stood, letter for letter; None for NULL.
    """

    type: Literal["set_model"] = "set_model"
    phase: Literal["begin", "end", "open", "again", "reopen", "restore"]
    target: Place
    embed: Embedding
    rows: VersionRows | None
    undo_table: str
    info: InfoRow | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    before_text: str | None = None

    action: ClassVar[Action] = Action.CHANGE

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if data.get("before_text") is None:  # plans from before there was such a text stay as they are
            data.pop("before_text", None)
        return data

    def reverse(self) -> tuple[Step, ...] | None:
        back: dict[str, Literal["reopen", "restore"]] = {"end": "reopen", "begin": "restore"}
        if self.phase == "again":
            return ()  # what undoes `end` undoes it
        if self.phase == "open":
            return (self.model_copy(update={"phase": "again"}),)
        if self.phase not in back:
            return None
        update = {"phase": back[self.phase], "before": self.after, "after": self.before}
        return (self.model_copy(update=update),)
