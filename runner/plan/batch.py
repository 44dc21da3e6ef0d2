"""Steps of a batch operation on documents: selected, deleted, edited or made anew, compared, and brought back.

A document is a row of the user's table, the rows of its chunks, the points of these, and a file. They are in three
systems, so there is an order: what explains a point comes before it and goes after it (docs/safety.md). Rows that go
stand in undo tables of the same database from the same transaction on; points that change or go are saved first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from runner.conditions import MISSING, Condition, look_up
from runner.edit import Edit
from runner.plan.step import Action, Place, StepBase
from runner.points import CollectionSchema, Model, Payload, PointId
from runner.transform import Embedding

if TYPE_CHECKING:
    from runner.plan.document import Step


class ChunkRows(Model):
    """The user's table of chunks: a row is of a document and names a point."""

    table: str
    id_column: str
    document_id_column: str
    vector_id_column: str
    text_column: str | None = None
    position_column: str | None = None  # 0, 1, … within the document
    metadata_column: str | None = None
    tags_column: str | None = None
    collection_column: str | None = None
    collection: str = ""


class DocumentRows(Model):
    """The user's table of documents, and that of their chunks if there is one. JSON columns for metadata and tags; tags
    may be an array, too."""

    connection: str
    table: str
    id_column: str
    name_column: str | None = None
    file_column: str | None = None  # key of the file in object storage
    text_column: str | None = None  # the whole text
    metadata_column: str | None = None
    tags_column: str | None = None
    chunks: ChunkRows | None = None


class UndoTables(Model):
    """Names of tables beside the user's: whole rows as they were, of both tables; chunk rows that are coming or came."""

    documents: str
    chunks: str
    made: str


class Files(Model):
    """Where the files of documents are: a connection of type folder or s3, and where what is deleted waits."""

    connection: str
    trash: str = ""  # prefix; a deleted file is kept under it until the run expires

    def prefix(self, run: str) -> str:
        """What the keys of all files that a run deletes begin with in the trash."""
        return f"{self.trash.strip('/')}/{run}/"

    def key(self, run: str, key: str) -> str:
        """Where a file that a run deletes is kept."""
        return f"{self.prefix(run)}{key}"


class PointFields(Model):
    """What the payload of a point says about its document, by keys or dotted paths. `document`: None where each point is
    a document."""

    document: str | None
    tags: str = "tags"
    metadata: str | None = None  # None: metadata are the payload's own keys
    text: str | None = None
    position: str | None = None

    def edited(self, payload: Payload, edit: Edit) -> Payload:
        """A payload as the edit leaves it. ValueError where the edit does not fit what is there."""
        after = dict(payload)
        if edit.on_metadata:
            after = self._with_metadata(after, edit.metadata(self._metadata(payload)))
        if edit.on_tags:
            before = self._tags(payload)
            if (tags := edit.tags(before)) != before:
                after = _put(after, self.tags, tags)
        return after

    def edited_back(self, before: Payload, present: Payload, edit: Edit) -> tuple[Payload, bool]:
        """(a payload with what the edit did undone, whether somebody changed one of these places since)."""
        after, moved = dict(present), False
        if edit.on_metadata:
            back, moved = edit.metadata_back(self._metadata(before), self._metadata(present))
            if self.metadata is not None and not back and look_up(before, self.metadata) in (MISSING, None):
                after = _as_in(before, after, self.metadata)
            else:
                after = self._with_metadata(after, back)
        if edit.on_tags:
            old, now = self._tags(before), self._tags(present)
            tags = edit.tags_back(old, now)
            if tags == old and look_up(before, self.tags) in (MISSING, None):
                after = _as_in(before, after, self.tags)
            elif tags != now:
                after = _put(after, self.tags, tags)
        return after, moved

    def _metadata(self, payload: Payload) -> Payload:
        if self.metadata is None:
            return payload
        found = look_up(payload, self.metadata)
        if found is MISSING or found is None:
            return {}
        if not isinstance(found, dict):
            raise ValueError(f"payload field {self.metadata} is {type(found).__name__}, and holds no keys")
        return found

    def _with_metadata(self, payload: Payload, metadata: Payload) -> Payload:
        if self.metadata is None:
            return metadata
        if metadata or look_up(payload, self.metadata) is not MISSING:
            return _put(payload, self.metadata, metadata)
        return payload

    def _tags(self, payload: Payload) -> list[Any]:
        found = look_up(payload, self.tags)
        if found is MISSING or found is None:
            return []
        if not isinstance(found, list):
            raise ValueError(f"payload field {self.tags} is {type(found).__name__}, and no list of tags")
        return found


def _put(payload: Payload, path: str, value: Any) -> Payload:
    """The payload with a value under a key or a dotted path. ValueError where the path leads through something else."""
    if path in payload or "." not in path:
        return payload | {path: value}
    return Edit(set={path: value}).metadata(payload)


def _as_in(before: Payload, present: Payload, path: str) -> Payload:
    """`present`, with what stands under the path as it is in `before`: the value, or nothing."""
    found = look_up(present, path)
    return present if found is MISSING else Edit(set={path: found}).metadata_back(before, present)[0]


class Selection(Model):
    """Which documents: exactly one of these. `file_digest`: sha256 of the file of ids. Ids are compared as text."""

    ids: tuple[PointId, ...] | None = None
    file: str | None = None
    file_digest: str = ""
    where: tuple[Condition, ...] | None = None
    query: str | None = None  # SQL on the database of the rows; the first column is the id
    missing: Literal["fail", "skip"] = "fail"


class _OverDocuments(StepBase):
    """What all these steps have. `documents` and `points` as they were selected for the plan."""

    target: Place
    fields: PointFields
    rows: DocumentRows | None = None
    files: Files | None = None
    documents: int = 0
    points: int = 0

    @property
    def source(self) -> Place:
        """Points are read where they are written."""
        return self.target


class SelectDocuments(_OverDocuments):
    """Find the documents and their points, and record them as the items of the run; PlanStale when they are others than
    those of the plan. `selected`: digest over documents and points. `of_run`: the failed items of that run instead."""

    type: Literal["select_documents"] = "select_documents"
    selection: Selection
    selected: str = ""
    of_run: str | None = None

    action: ClassVar[Action] = Action.CHECK


class _Changing(_OverDocuments):
    """What the steps that write have: `saved` keeps points, `undo` rows. A rollback puts both back."""

    saved: Place
    target_schema: CollectionSchema
    undo: UndoTables | None = None
    batch_size: int = 100  # documents at once
    accept: tuple[str, ...] = ()

    def reverse(self) -> tuple[Step, ...] | None:
        return (RestoreDocuments(of=self.model_copy()),)


class DeleteDocuments(_Changing):
    """Remove points, and with `delete_rows` rows, and with `delete_files` files."""

    type: Literal["delete_documents"] = "delete_documents"
    operation: ClassVar[str] = "delete"
    delete_rows: bool = True
    delete_files: bool = False

    action: ClassVar[Action] = Action.DELETE


class EditDocuments(_Changing):
    """Change metadata or tags, in payloads and in rows."""

    type: Literal["edit_documents"] = "edit_documents"
    edit: Edit

    action: ClassVar[Action] = Action.CHANGE

    @property
    def operation(self) -> str:
        """What the job calls it."""
        if self.edit.on_metadata:
            return "update_metadata"
        return "add_tags" if self.edit.add_tags else "remove_tags"


class Splitter(Model):
    """How a text becomes chunks: at most `size` characters, or tokens of `tokenizer`; neighbours share `overlap`."""

    size: int
    overlap: int = 0
    unit: Literal["characters", "tokens"] = "characters"
    tokenizer: str = ""  # of tiktoken, such as cl100k_base; empty: the tokenizer of the model
    markdown: bool = False  # cut at headings first
    trim: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise ValueError("size is 1 or more, and overlap less than size")
        return self


class ReprocessDocuments(_Changing):
    """Make the chunks of documents anew: from the file (`parse`), from the text (`split`), or only their vectors. A chunk
    whose text is there already keeps its point; with `embed_all` it gets a new vector."""

    type: Literal["reprocess_documents"] = "reprocess_documents"
    operation: ClassVar[str] = "reprocess"
    parse: bool = False
    split: Splitter | None = None
    embed: Embedding
    embed_all: bool = False

    action: ClassVar[Action] = Action.CHANGE


Change = DeleteDocuments | EditDocuments | ReprocessDocuments


class _AfterChange(StepBase):
    """What the steps have that are about a change of documents."""

    of: DeleteDocuments | EditDocuments | ReprocessDocuments

    @property
    def documents(self) -> int:
        """As many as were changed, at most."""
        return self.of.documents

    @property
    def target(self) -> Place:
        """The collection that is looked at, or written."""
        return self.of.target


class CheckDocuments(_AfterChange):
    """Compare what each document has become, in the store, the rows and the files, with what was asked for."""

    type: Literal["check_documents"] = "check_documents"

    action: ClassVar[Action] = Action.CHECK

    @property
    def source(self) -> Place:
        """The same."""
        return self.of.target


class RestoreDocuments(_AfterChange):
    """Bring back what a run has changed: files, then points, then rows. What somebody changed since is left alone."""

    type: Literal["restore_documents"] = "restore_documents"
    points: int = 0  # that are saved

    action: ClassVar[Action] = Action.CHANGE

    @property
    def saved(self) -> Place:
        """Where the points are that were saved."""
        return self.of.saved

    @property
    def source(self) -> Place:
        """The saved points are read."""
        return self.of.saved

    def reverse(self) -> tuple[Step, ...] | None:
        return None
