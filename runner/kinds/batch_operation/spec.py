"""What a user writes in a BatchOperation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, StringConstraints, field_validator, model_validator

from runner.clauses.spec import Acceptance, Budget
from runner.conditions import Condition
from runner.edit import Edit
from runner.errors import Permanent
from runner.objects.storage import checked_key
from runner.plan import ChunkRows, DocumentRows, PointFields, Splitter
from runner.settings import MODEL, Duration
from runner.spec import SpecModel

Word = Annotated[str, Field(min_length=1)]
Tokenizer = Literal["cl100k_base", "gpt2", "o200k_base", "p50k_base", "p50k_edit", "r50k_base"]
Operation = Literal["delete", "reprocess", "update_metadata", "add_tags", "remove_tags"]


class Select(SpecModel):
    """Which documents: exactly one of ids, file, where and query."""

    ids: tuple[StrictInt | str, ...] | None = Field(None, min_length=1, description="Ids of documents.")
    file: str | None = Field(
        None, description="A file of ids in the workspace: one a line, the first column of a .csv, or a JSON array."
    )
    where: tuple[Condition, ...] | None = Field(
        None,
        min_length=1,
        description="Documents with a point for which all conditions hold. All points of such a document are meant.",
    )
    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = Field(
        None,
        description="SQL on the database of documents:, run read-only; its first column is the id.",
        examples=["SELECT id FROM documents WHERE owner = 'acme'"],
    )
    missing: Literal["fail", "skip"] = Field(
        "fail", description="Documents of which nothing is there: listed as failed, or as unchanged."
    )

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith(("/", "~")) or ".." in value.split("/")):
            raise ValueError(f"a file of the workspace, such as lists/gone.txt; found {value!r}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Select:
        given = [name for name in ("ids", "file", "where", "query") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of ids, file, where and query, found {', '.join(given) or 'none'}")
        return self


class Points(SpecModel):
    """What the payload of a point says of its document: keys or dotted paths."""

    document_field: str | None = Field(
        "document_id", description="Names the document; null: chunk rows name the points, or each point is a document."
    )
    tags_field: str = Field("tags", description="A list of tags.")
    metadata_field: str | None = Field(
        None, description="The field that holds metadata; null: metadata are the payload's own keys."
    )
    text_field: str | None = Field("text", description="The text of the chunk.")
    position_field: str | None = Field(None, description="The place of the chunk in its document: 0, 1, ….")


class Chunks(SpecModel):
    """The relational table of chunks: each row is of a document and names a point."""

    table: str
    id_column: str = "id"
    document_id_column: str = "document_id"
    vector_id_column: str = "vector_id"
    text_column: str | None = Field(None, examples=["content"])
    position_column: str | None = Field(None, description="The place of the chunk in its document: 0, 1, ….")
    metadata_column: str | None = Field(None, description="JSON object.")
    tags_column: str | None = Field(None, description="JSON list, or an array.")
    collection_column: str | None = Field(
        None, description="Column that holds the collection, where a table has several."
    )
    collection_value: str | None = Field(
        None, description="What collection_column holds for these rows; default: the collection's name."
    )


class Documents(SpecModel):
    """The relational tables of documents and of their chunks."""

    connection: str = Field(description="A connection of type sql.")
    table: str
    id_column: str = "id"
    name_column: str | None = Field(None, description="What a reader knows the document by.")
    file_column: str | None = Field(None, description="Key of the file in object storage.")
    text_column: str | None = Field(None, description="The whole text.")
    metadata_column: str | None = Field(None, description="JSON object.")
    tags_column: str | None = Field(None, description="JSON list, or an array.")
    chunks: Chunks | None = None

    def rows(self, collection: str) -> DocumentRows:
        """The same in the words of a plan."""
        chunks = None
        if self.chunks is not None:
            given = self.chunks.model_dump(exclude={"collection_value"})
            chunks = ChunkRows(**given, collection=self.chunks.collection_value or collection)
        return DocumentRows(**self.model_dump(exclude={"chunks"}), chunks=chunks)


class FileStore(SpecModel):
    """Object storage that holds the files of documents; documents.file_column has their keys."""

    connection: str = Field(description="A connection of type folder or s3.")
    trash: str = Field(
        ".vecrun-trash", min_length=1,
        description="Prefix under which a deleted file is kept until the run cannot be rolled back any more.",
    )  # fmt: skip

    @field_validator("trash")
    @classmethod
    def _is_prefix(cls, trash: str) -> str:
        try:
            checked_key(trash.removesuffix("/"))
        except Permanent as exc:
            raise ValueError(f"this is no prefix of files: {exc.detail}") from exc
        return trash


class Delete(SpecModel):
    """What goes besides the points."""

    rows: bool | None = Field(
        None, description="Rows of the documents and of their chunks; default: yes, where documents: is given."
    )
    files: bool = Field(False, description="The file of each document; needs files: and documents.file_column.")


class MetadataChange(SpecModel):
    """Changes of metadata; applied in the order merge, set, remove. Paths are dotted."""

    merge: dict[str, Any] = Field({}, description="Into what is there, level by level.")
    set: dict[Word, Any] = Field({}, description="path -> the value that replaces what is there.")
    remove: tuple[Word, ...] = Field((), description="Paths.")

    @model_validator(mode="after")
    def _consistent(self) -> MetadataChange:
        Edit(merge=self.merge, set=self.set, remove=self.remove)
        return self


class Split(SpecModel):
    """How a text is cut into chunks."""

    size: int = Field(1000, ge=10, le=100_000, description="Most characters, or tokens, of a chunk.")
    overlap: int = Field(0, ge=0, description="What neighbours share; less than size.")
    unit: Literal["characters", "tokens"] = "characters"
    tokenizer: Tokenizer | Literal[""] = Field(
        "", description="For tokens: an encoding of tiktoken; default: the model's own.", examples=["cl100k_base"]
    )
    markdown: bool = Field(False, description="Cut at headings, lists and blocks of Markdown first.")

    @model_validator(mode="after")
    def _fits(self) -> Split:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be less than size {self.size}")
        return self

    @property
    def splitter(self) -> Splitter:
        """The same in the words of a plan."""
        return Splitter(**self.model_dump())


class Reprocess(SpecModel):
    """How chunks are made anew. parse: from the file; split alone: from documents.text_column; neither: their texts stay,
    and only vectors are made anew."""

    parse: bool = Field(False, description="Take the text out of the file: txt, md, html, pdf, docx.")
    split: Split | None = None
    model: str = Field(description="The model that embeds: a name of models in vecrun.yaml.")
    vector: str | None = Field(None, description="Which vector, where points have several.")
    unchanged: Literal["keep", "embed"] = Field(
        "keep", description="Chunks whose text is there already: keep their points as they are, or embed them again."
    )

    @model_validator(mode="after")
    def _sound(self) -> Reprocess:
        if self.parse and self.split is None:
            raise ValueError("parse needs split: a text has to become chunks")
        return self


class BatchOperationSpec(SpecModel):
    """Spec of a BatchOperation."""

    connection: str = Field(description="Store of the collection: a connection of vecrun.yaml.")
    collection: str = Field(
        min_length=1, description="Its name; an alias or a serving pointer is followed when it is planned."
    )
    operation: Operation
    select: Select
    points: Points = Points()
    documents: Documents | None = None
    files: FileStore | None = None
    delete: Delete = Delete()
    metadata: MetadataChange | None = Field(None, description="For update_metadata.")
    tags: tuple[Word, ...] = Field((), description="For add_tags and remove_tags.")
    reprocess: Reprocess | None = Field(None, description="For reprocess.")
    save_to: str | None = Field(
        None, description="The connection of the store that keeps points as they were; default: that of the collection."
    )
    batch_size: int = Field(
        500, ge=1, le=1_000, description="Documents worked on at once, as far as they have not too many points."
    )
    verify: bool = Field(True, description="Afterwards, compare what each document has become with what was asked for.")
    budget: Budget = Budget()
    accept: tuple[Acceptance, ...] = Field(
        (), description="Findings of the plan that are accepted, each with a reason."
    )
    retention: Duration | None = Field(None, description="How long it can be rolled back; default: the workspace's.")

    @property
    def fields(self) -> PointFields:
        """What payloads say, in the words of a plan."""
        return PointFields(
            document=self.points.document_field, tags=self.points.tags_field, metadata=self.points.metadata_field,
            text=self.points.text_field, position=self.points.position_field,
        )  # fmt: skip

    @model_validator(mode="after")
    def _whole(self) -> BatchOperationSpec:
        needed = {
            "update_metadata": ("metadata", self.metadata), "add_tags": ("tags", self.tags),
            "remove_tags": ("tags", self.tags), "reprocess": ("reprocess", self.reprocess),
        }  # fmt: skip
        if self.operation in needed and not needed[self.operation][1]:
            raise ValueError(f"operation {self.operation} needs {needed[self.operation][0]}")
        unused = {"metadata": self.metadata, "tags": self.tags, "reprocess": self.reprocess}
        mine = needed.get(self.operation, ("", None))[0]
        if extra := [name for name, value in unused.items() if value and name != mine]:
            raise ValueError(f"{extra[0]} is not for operation {self.operation}")
        if self.operation != "delete" and self.delete != Delete():
            raise ValueError(f"delete is not for operation {self.operation}")
        if self.metadata is not None and not (self.metadata.merge or self.metadata.set or self.metadata.remove):
            raise ValueError("metadata needs merge, set or remove")
        self._rows_there()
        return self

    def _rows_there(self) -> None:
        documents = self.documents
        if self.select.query is not None and documents is None:
            raise ValueError("select.query needs documents: it is run on its database")
        if self.delete.files and self.delete.rows is False:
            raise ValueError("delete.files needs delete.rows: rows would name files that are gone")
        if self.select.where is not None and self.points.document_field is None and documents and documents.chunks:
            raise ValueError("select.where needs points.document_field: which document a point is of that is found")
        if self.delete.rows and documents is None:
            raise ValueError("delete.rows needs documents")
        parses = self.reprocess is not None and self.reprocess.parse
        if (self.delete.files or parses) and (self.files is None or documents is None or documents.file_column is None):
            what = "delete.files" if self.delete.files else "reprocess.parse"
            raise ValueError(f"{what} needs files, and documents.file_column, which has their keys")
        if self.reprocess is None:
            return
        if self.reprocess.split is not None and not parses and (documents is None or documents.text_column is None):
            raise ValueError("reprocess.split needs parse, or documents.text_column")
        text = self.points.text_field or (documents and documents.chunks and documents.chunks.text_column)
        if not text:
            raise ValueError("reprocess needs points.text_field, or documents.chunks.text_column")
        if (
            self.reprocess.split is not None
            and self.points.document_field is None
            and not (documents and documents.chunks)
        ):
            raise ValueError("reprocess.split needs points.document_field, or documents.chunks: a document has chunks")


def connections(spec: BatchOperationSpec) -> tuple[list[str], dict[str, dict[str, object]]]:
    """(names of the workspace's connections and models, none inline)."""
    named = [spec.connection, spec.save_to]
    named.append(spec.documents.connection if spec.documents is not None else None)
    named.append(spec.files.connection if spec.files is not None else None)
    named.append(MODEL + spec.reprocess.model if spec.reprocess is not None else None)
    return list(dict.fromkeys(name for name in named if name)), {}
