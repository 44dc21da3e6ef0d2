"""A change of the embedding model in a workspace of its own: how it is set up, and what must hold at every moment.

`build`, `edit` and `mend` run in processes of their own (see `nursery`). The metric is Euclidean, so that no store changes
the numbers of a vector; what must hold is in `agreement`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from runner.commands import open_context
from runner.embedder import Embedder, Purpose
from runner.embedders import config_model, open_embedder
from runner.plan import Place
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    Payload,
    Payloads,
    PointBatch,
    PointId,
    VectorField,
)
from tests.faults.scene import JOB, opened, place_of
from tests.faults.truth import PAYLOADS, Truth

#: Texts a request carries: many requests, so that kills hit them.
ITEMS = 16
#: Words a text may have; some texts have more.
WORDS = 40
#: Kinds of payload that every store holds.
KINDS = ("empty", "text", "floats", "lists")
FIELD, VERSION, INFO = "body", "made_by", "embedding_model_info"
Strategy = Literal["create_new_collection", "replace", "incremental"]


@dataclass(frozen=True)
class Change:
    """A change to be disturbed.

    marked: the payload has a version; column: texts are in the table; bare: what rows without a version carry; edited:
    the second incremental run, after texts were edited; bad: texts that the new model does not take; strict: none may be left out; pointer: readers were served
    by name before.
    """

    strategy: Strategy
    store: str
    ids: IdKind
    rows: Literal["", "sqlite", "postgres"] = "sqlite"
    marked: bool = False
    column: bool = False
    bare: str | None = None
    edited: bool = False
    bad: int = 0
    strict: bool = False
    quality: bool = False
    pointer: bool = True
    points: int = 640

    def __str__(self) -> str:
        return f"{'edited' if self.edited else self.strategy.split('_')[0]}: {self.store}"

    @property
    def in_place(self) -> bool:
        return self.strategy != "create_new_collection"


@dataclass(frozen=True)
class Point:
    """A point before and after. `model`: what its vector is of before, made from `old_text`; `bad`: it stays so."""

    id: PointId
    number: int
    old_text: str
    text: str
    model: str
    row: str | None  # the version its rows carry before
    mark: str | None  # the version its payload carries before
    bad: bool


@dataclass(frozen=True)
class Scene:
    """A change with its places. Stored as change.json in the workspace; `edits`: texts were edited; `mended`: those that no
    model takes were."""

    directory: Path
    change: Change
    name: str
    seed: int
    points: int
    batch_size: int
    delay: float
    store: dict[str, Any]
    url: str
    edits: bool = False
    mended: bool = False

    @property
    def target(self) -> str:
        """The collection that serves afterwards."""
        return self.name if self.change.in_place else f"{self.name}_new"

    @property
    def alias(self) -> str:
        return f"{self.name}_live"

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """models of vecrun.yaml. What changes in place has the same dimension."""
        base = {"provider": "hash", "items": ITEMS}
        new = {"dimension": 32, "document_prefix": "passage ", "query_prefix": "passage "}
        return {
            "old": base | {"model": "first", "dimension": 32},
            "ancient": base | {"model": "zeroth", "dimension": 32},
            "new": base | {"model": "first", "text_tokens": WORDS, "delay": self.delay}
            | (new if self.change.in_place else {"dimension": 48}),
        }  # fmt: skip

    @cached_property
    def versions(self) -> dict[str, str]:
        return {
            name: embedder_of(json.dumps(config | {"delay": 0})).identity().version
            for name, config in self.models.items()
        }

    def vectors(self, model: str, texts: Sequence[str], purpose: Purpose = "document") -> Any:
        """float32 of shape (texts, dimension)."""
        config = self.models[model] | {"delay": 0, "text_tokens": None}
        return embedder_of(json.dumps(config)).embed(texts, purpose).vectors

    @cached_property
    def truth(self) -> list[Point]:
        """All points."""
        change, points = self.change, list[Point]()
        for number, point_id in enumerate(Truth(self.seed, change.ids, self.points).point_ids()):
            shown = number - 1 if number % 10 == 9 else number  # some texts are doubled
            old_text = f"chunk {shown} of {shown * 7919 % 1009} tells of rivers and bread {shown % 5}"
            bad = number in _bad_numbers(change.bad)
            if bad:
                old_text += " and so on" * WORDS
            early = change.edited or (change.in_place and number % 5 == 0)
            model = "new" if early and not bad else "ancient" if number % 11 == 4 else "old"
            # nobody has recorded the texts of those that were believed to be right: of them an edit cannot be noticed
            edited = self.edits and number % 6 == 5 and not bad and number not in self.trusted
            text = f"{old_text} edited" if edited else old_text
            if bad and self.mended:
                text, bad = f"mended chunk {number}", False
            none = number % 7 == 3 and not change.edited
            row = change.bare if none else self.versions[model]
            mark = None if number % 7 == 3 and model != "new" else self.versions[model]
            points.append(Point(point_id, number, old_text, text, model, row, mark, bad))
        return points

    @cached_property
    def trusted(self) -> set[int]:
        """Numbers of points that the first incremental run believes to be of the new model, and never looks at."""
        if self.change.strategy != "incremental":
            return set()
        found, new, change = set(), self.versions["new"], self.change
        first = Scene(**vars_of(self) | {"change": _first(change), "edits": False}) if change.edited else self
        for point in first.truth:
            has_row = point.number % 13 != 12 or change.column
            if point.model == "new" and (
                point.row == new and has_row if change.rows else change.marked and point.mark == new
            ):
                found.add(point.number)
        return found

    def batch(self, *, after: bool, vector: str) -> PointBatch:
        """What the collection that serves must hold."""
        chosen = [point for point in self.truth if not (after and point.bad and not self.change.in_place)]
        made = {
            name: self.vectors(name, [point.old_text for point in chosen])
            for name in ("old", "ancient", "new")
            if name != "new" or self.change.in_place
        }
        new = self.vectors("new", [point.text for point in chosen])
        rows = [new[n] if after and not point.bad else made[point.model][n] for n, point in enumerate(chosen)]
        payloads = [
            self.payload(point, self.versions["new"] if after and not point.bad else point.mark) for point in chosen
        ]
        return PointBatch([point.id for point in chosen], {vector: np.stack(rows)}, Payloads(payloads))

    def payload(self, point: Point, mark: str | None) -> Payload:
        found = dict(PAYLOADS[KINDS[point.number % len(KINDS)]](point.number))
        if not self.change.column:
            found[FIELD] = point.text
        if self.change.marked and mark is not None:
            found[VERSION] = mark
        return found


def _bad_numbers(count: int) -> set[int]:
    return {7 + 20 * n for n in range(count)}


@lru_cache(maxsize=16)
def embedder_of(config: str) -> Embedder:
    values = json.loads(config)
    return open_embedder(config_model(values["provider"])(**values))


# -- setting up ----------------------------------------------------------------------------------------------


def build(
    directory: str, change: dict[str, Any], seed: int, points: int, batch_size: int, delay: float, postgres: str
) -> None:  # fmt: skip
    """Make the workspace, the collection and the tables."""
    root = Path(directory)
    root.mkdir(parents=True)
    made = Change(**change | {"ids": IdKind(change["ids"])})
    url = place_of("pgvector", root, postgres)["url"] if made.rows == "postgres" else f"sqlite:///{root / 'app.db'}"
    name = f"F{uuid.uuid4().hex[:8]}"
    scene = Scene(root, made, name, seed, points, batch_size, delay, place_of(made.store, root / "kb", postgres), url)
    _save(scene)
    _write_workspace(scene)
    with opened(scene.store) as store:
        vector = store.capabilities().default_vector_name
        before = Scene(**{**vars_of(scene), "change": _first(made)})
        schema = CollectionSchema(
            name=name, id_kind=made.ids, id_max_length=200 if made.ids is IdKind.STRING else None,
            vectors=(VectorField(name=vector, dimension=32, distance=Distance.EUCLID),),
        )  # fmt: skip
        schema, _ = store.fit(schema)
        store.create(schema)
        batch = before.batch(after=False, vector=schema.vectors[0].name)
        for start in range(0, len(batch), 500):
            store.upsert(name, batch.slice(start, start + 500))
        store.finish(schema)
        if store.capabilities().aliases and made.pointer and not made.in_place:
            store.set_alias(scene.alias, name)
    _fill_tables(before)
    if made.pointer:
        states = open_context(root).states
        place = Place(connection="kb", collection=name)
        update = {"pointers": {scene.alias: place}, "models": {scene.alias: "old"}}
        states.change_serving(lambda serving: serving.model_copy(update=update), contextlib.nullcontext())
    _remember(scene)


def vars_of(scene: Scene) -> dict[str, Any]:
    return {name: getattr(scene, name) for name in Scene.__dataclass_fields__}


def _first(change: Change) -> Change:
    """What stood there before the first of two runs."""
    return Change(**{**asdict(change), "edited": False})


def edit(directory: str) -> None:
    """Between the first and the second incremental run: texts are edited, by the application."""
    scene = Scene(**{**vars_of(load(directory)), "edits": True})
    _save(scene)
    edited = [point for point in scene.truth if point.text != point.old_text]
    with opened(scene.store) as store:
        schema = store.inspect(scene.name)
        assert schema is not None
        held = store.fetch(scene.name, [point.id for point in edited])
        texts = {point.id: point.text for point in edited}
        if not scene.change.column:
            rows = [item | {FIELD: texts[one]} for one, item in zip(held.ids, held.payloads.dicts, strict=True)]
            store.upsert(scene.name, PointBatch(held.ids, held.vectors, Payloads(rows)))
    with database_of(scene) as (database, mark):
        for point in edited:
            database.execute(
                f"update chunks set content = {mark} where vector_id = {mark} and collection = 'kb'",
                (point.text, str(point.id)),
            )
    _remember(scene)


def mend(directory: str, mended: bool) -> None:
    """The application shortens the texts that were too long, or takes that back."""
    before = load(directory)
    scene = Scene(**{**vars_of(before), "mended": mended})
    _save(scene)
    texts = {
        one.id: (one.text, other.text)
        for one, other in zip(before.truth, scene.truth, strict=True)
        if one.text != other.text
    }
    remembered = json.loads((scene.directory / "before.json").read_text())
    with opened(scene.store) as store:
        held = store.fetch(scene.name, list(texts))
        if not scene.change.column:
            rows = [item | {FIELD: texts[one][1]} for one, item in zip(held.ids, held.payloads.dicts, strict=True)]
            store.upsert(scene.name, PointBatch(held.ids, held.vectors, Payloads(rows)))
    with database_of(scene) as (database, mark):
        for old, new in texts.values():
            database.execute(f"update chunks set content = {mark} where content = {mark}", (new, old))
            remembered["tables"] = remembered["tables"].replace(old, new)
    (scene.directory / "before.json").write_text(json.dumps(remembered))


def _save(scene: Scene) -> None:
    data = vars_of(scene) | {"change": asdict(scene.change), "directory": str(scene.directory)}
    (scene.directory / "change.json").write_text(json.dumps(data))


def load(directory: str) -> Scene:
    """The scene of a workspace."""
    data = json.loads((Path(directory) / "change.json").read_text())
    change = Change(**data["change"] | {"ids": IdKind(data["change"]["ids"])})
    return Scene(**data | {"directory": Path(directory), "change": change})


def _write_workspace(scene: Scene) -> None:
    change, mixed = scene.change, [{"code": "VB104", "reason": "looked at"}]
    spec: dict[str, Any] = {
        "connection": "kb", "collection": scene.name, "strategy": change.strategy, "model": "new", "from_model": "old",
        "to": "{name}_new", "text": {"column": "content"} if change.column else {"field": FIELD},
        "batch_size": scene.batch_size, "cutover": {"alias": scene.alias}, "accept": mixed,
        "failures": {"allow": 0 if change.strict else change.bad},
    }  # fmt: skip
    if change.rows:
        spec["documents"] = {
            "connection": "app", "table": "chunks", "version_column": "version", "collection_column": "collection",
            "collection_value": "kb",
        }  # fmt: skip
    elif change.column:
        spec["documents"] = {
            "connection": "app", "table": "chunks", "collection_column": "collection", "collection_value": "kb",
        }  # fmt: skip
    spec["knowledge_base"] = {"connection": "app", "id": 1}
    if change.marked:
        spec["version_field"] = VERSION
    if change.quality:
        texts = [point.text for point in scene.truth[:3] if not point.bad]
        spec["quality"] = {"queries": texts, "k": 5, "min_overlap": 0.0}
    workspace = {
        "apiVersion": "vecrun/v1", "kind": "Workspace",
        "connections": {"kb": scene.store, "app": {"type": "sql", "url": scene.url}},
        "models": scene.models, "limits": {"workers": 2, "retry_delay": 0.1},
        "vectors": {"keep": "0s"},  # else only the first run of a workspace would ask the model
    }  # fmt: skip
    job = {"apiVersion": "vecrun/v1", "kind": "Reembedding", "metadata": {"name": JOB}, "spec": spec}
    (scene.directory / "jobs").mkdir()
    (scene.directory / "vecrun.yaml").write_text(yaml.safe_dump(workspace))
    (scene.directory / "jobs" / f"{JOB}.yaml").write_text(yaml.safe_dump(job))


# -- tables --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def database_of(scene: Scene) -> Iterator[tuple[Any, str]]:
    """(an open database, its mark for a value)"""
    if scene.change.rows != "postgres":
        with contextlib.closing(sqlite3.connect(scene.directory / "app.db", timeout=30)) as database, database:
            yield database, "?"
    else:
        import psycopg

        with psycopg.connect(scene.url) as connection:
            yield connection, "%s"


def chunk_rows(scene: Scene) -> list[tuple[int, str, str | None, str, str | None]]:
    """(id, collection, vector id, text, version): some points have no row, some have two."""
    rows = list[tuple[int, str, str | None, str, str | None]]()
    for point in reversed(scene.truth):
        if point.number % 13 == 12 and not scene.change.column:
            continue
        for _ in range(2 if point.number % 17 == 6 else 1):
            rows.append((len(rows) + 1, "kb", str(point.id), point.text, point.row))
    first = str(scene.truth[0].id)
    return [
        *rows,
        (len(rows) + 1, "another", first, "of another collection", scene.versions["old"]),
        (len(rows) + 2, "kb", "no such id", "of a point that is gone", scene.versions["old"]),
        (len(rows) + 3, "kb", None, "not embedded yet", scene.change.bare),
    ]


def _fill_tables(scene: Scene) -> None:
    kind = "json" if scene.change.rows == "postgres" else "text"
    rule = "" if scene.change.bare is None else " not null default ''"
    with database_of(scene) as (database, mark):
        database.execute(
            "create table chunks (id integer primary key, collection text not null, vector_id text, content text not null,"
            f" version text{rule})"
        )
        database.execute(f"create table knowledge_bases (id integer primary key, name text, {INFO} {kind})")
        marks = ", ".join([mark] * 5)
        database.cursor().executemany(f"insert into chunks values ({marks})", chunk_rows(scene))
        for number in (1, 2):
            info = json.dumps(info_before(scene) | {"number": number})
            database.execute(
                f"insert into knowledge_bases values ({mark}, {mark}, {mark})", (number, f"base {number}", info)
            )


def info_before(scene: Scene) -> dict[str, Any]:
    return {
        "provider": "hash", "model": "first", "dimension": 32, "version": scene.versions["old"],
        "updated_at": "2026-01-02T03:04:05+00:00", "owner": "somebody",
    }  # fmt: skip


def versions_in(scene: Scene) -> list[tuple[int, str, str | None, str | None]]:
    """(row, collection, vector id, version)"""
    with database_of(scene) as (database, _):
        rows = database.execute("select id, collection, vector_id, version from chunks order by id").fetchall()
    return [tuple(row) for row in rows]


def _dump(scene: Scene) -> str:
    """Everything in the relational database, as text."""
    with database_of(scene) as (database, _):
        if scene.change.rows != "postgres":
            return "\n".join(database.iterdump())
        tables = database.execute(
            "select table_name, column_name, data_type from information_schema.columns"
            " where table_schema = 'public' order by 1, 2"
        ).fetchall()
        chunks = database.execute("select * from chunks order by id").fetchall()
        bases = database.execute(f"select id, name, {INFO}::text from knowledge_bases order by id").fetchall()
        return "\n".join(map(repr, [*tables, *chunks, *bases]))


# -- what must hold ------------------------------------------------------------------------------------------


def surroundings(scene: Scene) -> dict[str, Any]:
    """What a change touches beside points."""
    with opened(scene.store) as store:
        names = [name for name in store.collections() if name.startswith(scene.name)]
        aliases = {alias: name for alias, name in store.aliases().items() if alias.startswith(scene.name)}
    serving = open_context(scene.directory).states.serving()
    return {
        "collections": names, "aliases": aliases,
        "pointers": {name: str(place) for name, place in serving.pointers.items()}, "models": serving.models,
        "tables": _dump(scene),
    }  # fmt: skip


def _remember(scene: Scene) -> None:
    (scene.directory / "before.json").write_text(json.dumps(surroundings(scene) | {"marks": marks(scene)}))


def marks(scene: Scene) -> list[list[str]]:
    """What the ledger says of the vectors: [place, id as JSON, key of the model, key of the text]."""
    path = scene.directory / "state" / "ledger.db"
    if not path.exists():
        return []
    ledger = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    with contextlib.closing(ledger), contextlib.suppress(sqlite3.OperationalError):  # killed before there were tables
        return [list(row) for row in ledger.execute("select place, item, model, text from marks order by 1, 2")]
    return []
