"""What a user writes in a Reembedding."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from runner.clauses.spec import Acceptance, Budget, Cutover, LiveSource, Verify
from runner.plan import InfoRow
from runner.points import Distance, VectorIndex
from runner.settings import MODEL, Duration
from runner.spec import SpecModel


class Text(SpecModel):
    """Where the text of a point is: in its payload, or in the row of the relational table that names it."""

    field: str | None = Field(None, description="Payload field, a key or a dotted path.", examples=["text"])
    column: str | None = Field(None, description="Column of documents.table.", examples=["content"])

    @model_validator(mode="after")
    def _one(self) -> Text:
        if (self.field is None) == (self.column is None):
            raise ValueError("give either field or column")
        return self


class ChunkRows(SpecModel):
    """The relational table whose rows name points: texts come from it, versions are kept in it, or both."""

    connection: str = Field(description="A connection of type sql.")
    table: str
    id_column: str = "id"
    vector_id_column: str = "vector_id"
    version_column: str | None = Field(
        None,
        description="Gets the model's version; rows of changing vectors have none.",
        examples=["embedding_model_version"],
    )
    collection_column: str | None = Field(
        None, description="Column that holds the collection, where a table has several."
    )
    collection_value: str | None = Field(
        None, description="What collection_column holds for these rows; default: the collection's name."
    )


class KnowledgeBase(SpecModel):
    """The row that says which model embeds the queries of a knowledge base."""

    connection: str = Field(description="A connection of type sql.")
    table: str = "knowledge_bases"
    id_column: str = "id"
    id: int | str
    info_column: str = Field(
        "embedding_model_info", description="JSON column; gets provider, model, dimension, version and updated_at."
    )

    @property
    def row(self) -> InfoRow:
        """The same in the words of a plan."""
        return InfoRow(
            connection=self.connection, table=self.table, id_column=self.id_column, id=self.id,
            info_column=self.info_column,
        )  # fmt: skip


class Queries(SpecModel):
    """Search texts that are searched with the old and the new model before readers are switched."""

    queries: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, max_length=1000,
        description="Texts, or {text, expect: [ids of points that should be found]}.",
    )  # fmt: skip
    k: int = Field(10, ge=1, le=100, description="Results that count.")
    min_overlap: float | None = Field(
        None, ge=0, le=1, description="Least mean share of the old results among the new; needs from_model."
    )
    min_recall: float | None = Field(
        None, ge=0, le=1, description="Least mean share of expected points among the new results."
    )

    @model_validator(mode="after")
    def _sound(self) -> Queries:
        for number, query in enumerate(self.queries):
            if isinstance(query, dict):
                text, expect = query.get("text"), query.get("expect", [])
                ids = isinstance(expect, list) and all(isinstance(one, int | str) for one in expect)
                if set(query) - {"text", "expect"} or not isinstance(text, str) or not ids:
                    raise ValueError(f"queries.{number}: a text, or {{text: …, expect: [ids]}}, found {query!r}")
        if self.min_recall is not None and not any(isinstance(one, dict) and one.get("expect") for one in self.queries):
            raise ValueError("min_recall needs queries with expect")
        return self


class Failures(SpecModel):
    """Texts that cannot be embedded."""

    allow: int = Field(
        0, ge=0, description="Go on to the cutover with at most so many; they are listed and can be retried."
    )


class ReembeddingSpec(SpecModel):
    """Spec of a Reembedding."""

    connection: str = Field(description="Store of the collection: a connection of vecrun.yaml.")
    collection: str = Field(
        min_length=1, description="Its name; an alias or a serving pointer is followed when it is planned."
    )
    strategy: Literal["create_new_collection", "replace", "incremental"] = Field(
        "create_new_collection",
        description="create_new_collection: a new one, then readers are switched. replace: all vectors in the same one. "
        "incremental: in the same one, only texts that changed or are of another model.",
    )
    model: str = Field(description="The model to embed with: a name of models in vecrun.yaml.")
    from_model: str | None = Field(
        None, description="The present model, if vecrun.yaml has it: for quality, and for serving."
    )
    to: str = Field(
        "{name}_{model}", description="The new collection; {name} is the present one's, {model} the model's."
    )
    save_to: str | None = Field(
        None,
        description="In place: the connection of the store that keeps the old points; default: that of the collection.",
    )
    vector: str | None = Field(None, description="Which vector, where points have several.")
    text: Text
    documents: ChunkRows | None = None
    knowledge_base: KnowledgeBase | None = None
    version_field: str | None = Field(None, description="Payload field that gets the model's version.")
    distance: Distance | None = Field(None, description="Metric of the new collection; default: the present one's.")
    index: VectorIndex | None = Field(
        None, description="Index of the new collection; default: the present one's settings."
    )
    batch_size: int = Field(256, ge=1, le=10_000, description="Points read, embedded and written at once.")
    verify: Verify = Verify()
    live: LiveSource | None = Field(None, description="When the collection is written to meanwhile.")
    quality: Queries | None = Field(None, description="Checked after embedding, before readers are switched.")
    failures: Failures = Failures()
    budget: Budget = Budget()
    cutover: Cutover | None = Field(
        None, description="The name readers use: an alias, and a serving pointer with its model."
    )
    accept: tuple[Acceptance, ...] = Field(
        (), description="Findings of the plan that are accepted, each with a reason."
    )
    retention: Duration | None = Field(None, description="How long it can be rolled back; default: the workspace's.")

    @model_validator(mode="after")
    def _whole(self) -> ReembeddingSpec:
        if self.text.column is not None and self.documents is None:
            raise ValueError("text.column needs documents: the table it is a column of")
        if self.quality is not None and self.quality.min_overlap is not None and self.from_model is None:
            raise ValueError("quality.min_overlap needs from_model: the old results come from it")
        if self.live is not None and self.verify.mode != "full" and not self.live.hold:
            raise ValueError("verify.mode must be full for a live collection, or live.hold true")
        if self.live is not None and self.live.hold and self.in_place:
            raise ValueError("live.hold is for create_new_collection: in place there is no moment before the switch")
        if self.save_to is not None and not self.in_place:
            raise ValueError("save_to is for replace and incremental: create_new_collection keeps the old collection")
        if self.in_place:
            for name in ("distance", "index"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is for create_new_collection; {self.strategy} keeps the collection as it is"
                    )
        if (field := self.live.field if self.live else None) and field == self.version_field:
            raise ValueError("live.field must rise with every write, and version_field does not")
        return self

    @property
    def in_place(self) -> bool:
        """Whether vectors are replaced in the collection that serves."""
        return self.strategy != "create_new_collection"


def connections(spec: ReembeddingSpec) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Named connections and models of the spec; none are written inline."""
    named = [spec.connection, MODEL + spec.model]
    if spec.from_model is not None:
        named.append(MODEL + spec.from_model)
    if spec.save_to is not None:
        named.append(spec.save_to)
    named += [part.connection for part in (spec.documents, spec.knowledge_base) if part is not None]
    return list(dict.fromkeys(named)), {}
