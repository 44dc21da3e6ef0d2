"""What a batch operation promises, for every operation on every store: planning twice gives the same plan and writes nothing;
apply does what was asked for and touches no other document; applied again there is nothing to do; a rollback brings back
points, rows and files byte for byte and leaves nothing behind (C1-C5, A2, A4, A7).

What has to come of it is worked out here by other code than the engine's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner import commands
from runner.embedders.hash import hash_vectors
from runner.errors import PlanRefused
from runner.points import Distance
from runner.store import ConnectionConfig
from tests import worlds
from tests.e2e.documents import DIMENSION, SIZE, TRASH, Document, Library
from tests.e2e.workspace import Workspace

#: Documents: fewer where each point is a commit of its own, or a server is slow.
COUNT = {"qdrant-local": 40, "milvus-server": 60, "milvus-lite": 80, "files": 80, "pgvector": 120}
SPLIT = {"parse": True, "split": {"size": SIZE}, "model": "small"}


@pytest.fixture
def library(edition: str, store_config: ConnectionConfig, prefix: str, tmp_path: Path, request: pytest.FixtureRequest,
            monkeypatch: pytest.MonkeyPatch, reopen: Callable[[], Any]) -> Library:  # fmt: skip
    """Points in this edition, rows in PostgreSQL where that is at hand anyway, else in SQLite."""
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    reopen().close()
    given = {
        key: value
        for key, value in store_config.model_dump().items()
        if key in ("type", "path", "uri", "url", "grpc_port")
    }
    database = ""
    if edition == "pgvector":
        monkeypatch.setenv("VECRUN_TEST_KB", str(given["url"]))
        database, given["url"] = str(given["url"]), "${env:VECRUN_TEST_KB}"
    made = Library(Workspace.create(tmp_path / "ws"), given, edition, database, f"{prefix}Points")
    with made.store() as store:
        if Distance.COSINE in store.capabilities().distances:
            made.distance = Distance.COSINE
    made.configure()
    made.fill(COUNT.get(edition, 300))
    return made


def test_every_operation_there_and_back(library: Library) -> None:
    before = library.world()
    operations = (deleted, reprocessed, metadata_updated, tags_added, tags_removed, grown_and_shrunk)
    for operation in (
        operations[:2] if library.edition == "milvus-server" else operations
    ):  # a collection takes it seconds
        operation(library)
        assert library.world() == before, f"after {operation.__name__} and its rollback"


def test_a_store_whose_ids_are_unique_over_all_collections(
    tmp_path: Path, pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second collection there can keep the points as they were: another store does."""
    monkeypatch.setenv("VECRUN_TEST_KB", pg_database)
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    given = {"type": "pgvector", "url": "${env:VECRUN_TEST_KB}", "layout": "langchain"}
    library = Library(Workspace.create(tmp_path / "ws"), given, "pgvector")
    library.nest("cmetadata", "document")
    library.configure()
    library.fill(30)
    before = library.world()
    deleted(library)
    assert library.world() == before
    for name, operation, more in (
        ("tag", "add_tags", {"tags": ["new"]}), ("change", "update_metadata", {"metadata": {"set": {"source.owner": "x"}}}),
        ("renew", "reprocess", {"reprocess": SPLIT}),
    ):  # fmt: skip
        library.job(name, operation, {"ids": ["d0001", "d0004"]}, **more)
        through(library, name, lambda _outcome: None)
        assert library.world() == before
    library.job("here", "delete", {"ids": ["d0001"]}, save_to=None)
    assert [item.code for item in library.planned("here").notices if item.blocking] == ["VX209"]


def through(library: Library, name: str, check: Callable[[commands.Outcome], None]) -> None:
    """Plan twice, apply, compare, plan again, roll back."""
    before = library.world()
    one, two = library.planned(name), library.planned(name)
    assert one.identity() == two.identity()
    assert not [item for item in one.notices if item.blocking], one.notices
    assert library.world() == before
    outcome = library.applied(two)
    assert outcome.status == "completed"
    assert commands.failures(library.ws.context(), name).items == ()
    check(outcome)
    after = library.world()
    again = library.planned(name)
    assert again.steps == ()
    assert library.world() == after
    assert library.undone(name).status == "completed"


def deleted(library: Library) -> None:
    gone = library.documents[3::7]
    library.ws.write("gone.csv", "document_id,why\n" + "".join(f'{one.id},"asked, twice"\n' for one in gone))
    library.job("forget", "delete", {"file": "gone.csv"}, delete={"rows": True, "files": True})
    points, rows, chunks, files = (
        library.points(),
        library.rows("documents"),
        library.rows("chunks"),
        library.world()["files"],
    )

    def check(outcome: commands.Outcome) -> None:
        lost, names = {point for one in gone for point in one.points}, {one.id for one in gone}
        same_points(library, {point: item for point, item in points.items() if point not in lost})
        assert library.rows("documents") == {key: row for key, row in rows.items() if key not in names}
        assert library.rows("chunks") == {key: row for key, row in chunks.items() if row["document_id"] not in names}
        trash = {f"{TRASH}/{outcome.run}/{one.file}": files[one.file] for one in gone}
        assert library.world()["files"] == trash | {
            name: data for name, data in files.items() if name not in {one.file for one in gone}
        }
        assert outcome.points == len(lost)

    through(library, "forget", check)


def reprocessed(library: Library) -> None:
    chosen = library.documents[1::9]
    library.job("renew", "reprocess", {"ids": [one.id for one in chosen]}, reprocess=SPLIT)
    points, rows, chunks, files = (
        library.points(),
        library.rows("documents"),
        library.rows("chunks"),
        library.world()["files"],
    )

    def check(outcome: commands.Outcome) -> None:
        now, rows_now, chunks_now = library.points(), library.rows("documents"), library.rows("chunks")
        assert library.world()["files"] == files
        names = {one.id for one in chosen}
        others = {point: item for point, item in points.items() if item[1]["document_id"] not in names}
        same_points(
            library, others, among=[point for point, item in now.items() if item[1]["document_id"] not in names]
        )
        assert {key: row for key, row in chunks_now.items() if row["document_id"] not in names} == {
            key: row for key, row in chunks.items() if row["document_id"] not in names
        }
        for one in chosen:
            assert rows_now[one.id] == rows[one.id] | {"body": "\n\n".join(one.renewed)}
            made_anew(library, one, points, now, chunks_now)
        assert {key: row for key, row in rows_now.items() if key not in names} == {
            key: row for key, row in rows.items() if key not in names
        }

    through(library, "renew", check)


def made_anew(library: Library, one: Document, points: Any, now: Any, chunks_now: Any) -> None:
    """Chunks are the paragraphs of the file, in order; those that were there keep point and row."""
    rows = sorted((row for row in chunks_now.values() if row["document_id"] == one.id), key=lambda row: row["pos"])
    assert [(row["pos"], row["content"]) for row in rows] == list(enumerate(one.renewed))
    mine = {str(point): item for point, item in now.items() if item[1]["document_id"] == one.id}
    assert set(mine) == {row["vector_id"] for row in rows}
    held = dict(zip(one.paragraphs, one.points, strict=True))
    for place, text in enumerate(one.renewed):
        vector, payload = mine[rows[place]["vector_id"]]
        assert payload == one.payload(0) | {"text": text, "pos": place}
        if text in held:
            assert rows[place]["vector_id"] == str(held[text])
            assert vector.tobytes() == points[held[text]][0].tobytes()
        else:
            wanted = hash_vectors([text], DIMENSION)[0]
            lengths = np.linalg.norm(vector), np.linalg.norm(wanted)
            np.testing.assert_allclose(vector / lengths[0], wanted / lengths[1], atol=1e-6)


def metadata_updated(library: Library) -> None:
    where = [{"field": "lang", "value": "de"}, {"field": "source.year", "op": "gte", "value": 2022}]
    change = {
        "merge": {"source": {"owner": "nobody"}},
        "set": {"lang": "at", "review.by": "Ähm"},
        "remove": ["source.year", "no.such"],
    }
    library.job("change", "update_metadata", {"where": where}, metadata=change)
    chosen = [one for one in library.documents if one.lang == "de" and one.metadata["source"]["year"] >= 2022]
    assert 0 < len(chosen) < len(library.documents)
    wanted = {"lang": "at", "source": {"owner": "nobody"}, "review": {"by": "Ähm"}}
    edited(library, "change", chosen, lambda payload: payload | wanted, lambda row: row | {"meta": wanted})


def tags_added(library: Library) -> None:
    chosen = [one for one in library.documents if one.number % 4 == 1]
    library.job(
        "tag", "add_tags", {"query": "SELECT id FROM documents WHERE length(title) > 0 AND id IN "
                            f"({', '.join(repr(one.id) for one in chosen)}) ORDER BY title"}, tags=["legal", "draft"],
    )  # fmt: skip

    def after(item: dict[str, Any]) -> dict[str, Any]:
        return item | {"tags": item["tags"] + [tag for tag in ("legal", "draft") if tag not in item["tags"]]}

    edited(library, "tag", chosen, after, after, after)


def tags_removed(library: Library) -> None:
    chosen = [one for one in library.documents if one.number % 5 == 2]
    library.ws.write("some.json", json.dumps([one.id for one in chosen]))
    library.job("untag", "remove_tags", {"file": "some.json"}, tags=["draft", "never"])

    def after(item: dict[str, Any]) -> dict[str, Any]:
        return item | {"tags": [tag for tag in item["tags"] if tag != "draft"]}

    edited(library, "untag", chosen, after, after, after)


def grown_and_shrunk(library: Library) -> None:
    """A plan is stale when its selection is another one, and not when other documents come."""
    before = library.world()
    library.job("late", "add_tags", {"where": [{"field": "lang", "value": "fr"}]}, tags=["late"])
    plan = library.planned("late")
    with library.store() as store:
        schema = store.inspect(library.collection)
        assert schema is not None
        new = Document("new", 3, worlds.ids_of(schema.id_kind, 3, seed=1))  # its language is another one
        library.write_points(store, [(new, 0)])
    library.applied(plan)
    library.undone("late")
    library.job("later", "add_tags", {"where": [{"field": "lang", "value": "fr"}]}, tags=["late"])
    plan = library.planned("later")
    one = next(one for one in library.documents if one.lang == "fr")
    library.delete_points(one.points[:1])
    with pytest.raises(PlanRefused, match="the selection"):
        library.applied(plan)
    with library.store() as store:
        library.write_points(store, [(one, 0), (replace(new, number=2), 0)])
    with pytest.raises(PlanRefused, match="the selection"):
        library.applied(plan)
    library.delete_points(new.points[:1])
    assert library.world() == before


def edited(library: Library, name: str, chosen: list[Document], payload: Any, row: Any, chunk: Any = None) -> None:
    """As it is wished: `payload`, `row` and `chunk` are what an edit makes of one; no vector and no file changes."""
    points, rows, chunks, files = (
        library.points(),
        library.rows("documents"),
        library.rows("chunks"),
        library.world()["files"],
    )
    names = {one.id for one in chosen}

    def check(_outcome: commands.Outcome) -> None:
        same_points(
            library,
            {
                point: (vector, payload(item) if item["document_id"] in names else item)
                for point, (vector, item) in points.items()
            },
        )
        assert library.rows("documents") == {key: row(item) if key in names else item for key, item in rows.items()}
        assert library.rows("chunks") == {
            key: chunk(item) if chunk is not None and item["document_id"] in names else item
            for key, item in chunks.items()
        }
        assert library.world()["files"] == files

    through(library, name, check)


def same_points(library: Library, wanted: Any, among: Any = None) -> None:
    """Ids, payloads and vectors, these to the last bit."""
    now = library.points()
    if among is not None:
        now = {point: now[point] for point in among}
    assert set(now) == set(wanted)
    assert {point: item[1] for point, item in now.items()} == {point: item[1] for point, item in wanted.items()}
    assert [point for point in now if now[point][0].tobytes() != wanted[point][0].tobytes()] == []
