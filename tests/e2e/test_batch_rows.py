"""Rollbacks where rows do not simply come back: a key, a value or an id that is taken since, a document that is gone since
(C1-C3, O3). What cannot come back is left alone as a whole, and keeps nothing else from coming back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runner.embedders.hash import hash_vectors
from runner.points import Payloads, PointBatch
from tests.e2e.documents import DIMENSION, SIZE, Library
from tests.e2e.workspace import run

SPLIT = {"parse": True, "split": {"size": SIZE}, "model": "small"}


def agree(library: Library) -> None:
    """Every row of a chunk names a point, every point has one, and every one is of a document that there is."""
    chunks = library.rows("chunks").values()
    assert sorted(str(row["vector_id"]) for row in chunks) == sorted(str(point) for point in library.points())
    assert {row["document_id"] for row in chunks} <= set(library.rows("documents"))


def of(library: Library, name: str) -> tuple[Any, list[dict[str, Any]], dict[Any, str]]:
    """The row of a document, those of its chunks without their keys, and its points with their texts."""
    chunks = [row for row in library.rows("chunks").values() if row["document_id"] == name]
    told = [{key: value for key, value in row.items() if key != "id"} for row in chunks]
    points = {key: said["text"] for key, (_, said) in library.points().items() if said["document_id"] == name}
    return library.rows("documents").get(name), sorted(told, key=lambda row: str(row["pos"])), points


def add(library: Library, name: str, point: int) -> None:
    """As an application does: a document of one chunk."""
    library.sql(
        f"INSERT INTO documents (id, title, body) VALUES ('{name}', 'Anew', 'brand new')",
        f"INSERT INTO chunks (document_id, vector_id, content, pos) VALUES ('{name}', '{point}', 'brand new', 0)",
    )
    payload = {"document_id": name, "text": "brand new", "pos": 0}
    with library.store() as store:
        schema = store.inspect(library.collection)
        assert schema is not None
        vectors = {schema.vectors[0].name: hash_vectors(["brand new"], DIMENSION)}
        store.upsert(library.collection, PointBatch([point], vectors, Payloads([payload])))


def test_one_is_made_again_and_what_another_needs_is_taken(library: Library) -> None:
    library.sql(
        "CREATE UNIQUE INDEX by_place ON chunks (document_id, pos)", "CREATE UNIQUE INDEX by_title ON documents (title)"
    )
    before = of(library, "d0003")
    file = library.of("d0003")[0].file
    library.job("gone", "delete", {"ids": ["d0001", "d0002", "d0003"]}, delete={"files": True})
    library.do("gone")
    add(library, "d0001", 900001)
    library.sql("INSERT INTO documents (id, title) VALUES ('other', 'About 2')")
    found = library.undo("gone")
    assert "2 changed since were left alone" in found.stdout
    said = run("logs", "gone").stdout
    assert "'d0001': a document of this id was made again since" in said
    assert "'d0002': its rows do not fit any more" in said
    assert "documents.title" in said
    agree(library)
    assert of(library, "d0003") == before
    assert (library.ws.root / "files" / file).exists()
    assert of(library, "d0001")[2] == {900001: "brand new"}
    assert of(library, "d0001")[0]["title"] == "Anew"
    assert of(library, "d0002") == (None, [], {})
    assert not (library.ws.root / "files" / library.of("d0002")[0].file).exists()


@pytest.mark.parametrize("late", [False, True])
def test_keys_that_are_given_out_again(library: Library, late: bool) -> None:
    """SQLite gives the keys of the last rows to the next: to chunks of an application, not to those of another job."""
    before, tables = {one.id: of(library, one.id) for one in library.documents}, library.tables()
    library.job("gone", "delete", {"ids": ["d0003"]})
    library.job("anew", "reprocess", {"ids": ["d0000"]}, reprocess=SPLIT)
    keys = {key for key, row in library.rows("chunks").items() if row["document_id"] == "d0003"}
    library.do("gone")
    if late:
        add(library, "late", 900001)
        assert set(library.rows("chunks")) & keys
    came = of(library, "late")
    library.do("anew")
    for name in ("gone", "anew"):
        assert "left alone" not in library.undo(name).stdout
        agree(library)
    assert {one.id: of(library, one.id) for one in library.documents} == before
    assert of(library, "late") == came
    assert late or library.tables() == tables


@pytest.mark.parametrize("operation", ["reprocess", "add_tags"])
def test_a_document_that_an_application_deleted_since(library: Library, operation: str) -> None:
    before = of(library, "d0002")
    given: dict[str, Any] = {"reprocess": SPLIT} if operation == "reprocess" else {"tags": ["x"]}
    library.job("change", operation, {"ids": ["d0001", "d0002"]}, **given)
    library.do("change")
    library.delete_points(list(of(library, "d0001")[2]))
    library.sql("DELETE FROM chunks WHERE document_id = 'd0001'", "DELETE FROM documents WHERE id = 'd0001'")
    found = library.undo("change")
    assert "left alone" in found.stdout
    assert "'d0001': it was deleted since" in run("logs", "change").stdout
    agree(library)
    assert of(library, "d0001") == (None, [], {})
    assert of(library, "d0002") == before


def test_chunk_rows_that_lack_what_the_document_has(library: Library) -> None:
    one = library.of("d0001")[0]
    tags = [*one.tags, "x"]
    for point in one.points:
        library.change_payload(point, tags=tags)
    library.sql(f"UPDATE documents SET tags = '{json.dumps(tags)}' WHERE id = 'd0001'")
    before = library.world()
    library.job("tag", "add_tags", {"ids": ["d0001"]}, tags=["x"])
    library.do("tag")
    assert [row["tags"] for row in of(library, "d0001")[1]] == [tags] * len(one.points)
    library.job("again", "add_tags", {"ids": ["d0001"]}, tags=["x"])
    assert "Nothing to do" in run("plan", "jobs/again.yaml").stdout
    library.undo("tag")
    assert library.world() == before
