"""Batch operations undone after somebody else has changed the same documents: what is theirs stays and is told, all else
comes back; nothing that may be a new upload is deleted (C4).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.embedders.hash import hash_vectors
from runner.points import Payloads, PointBatch, PointId
from tests.e2e.documents import DIMENSION, SIZE, TRASH, Library
from tests.e2e.workspace import run

SPLIT = {"parse": True, "split": {"size": SIZE}, "model": "small"}
FILES: dict[str, Any] = {"delete": {"rows": True, "files": True}}


def of_document(library: Library, name: str) -> dict[PointId, Any]:
    return {point: item for point, (_, item) in library.points().items() if item.get("document_id") == name}


def agree(library: Library) -> None:
    """Points and chunk rows name each other."""
    rows = library.rows("chunks").values()
    assert sorted(str(point) for point in library.points()) == sorted(row["vector_id"] for row in rows)
    assert {row["document_id"] for row in rows} <= set(library.rows("documents"))


def add(library: Library, name: str, point: PointId, text: str) -> None:
    """An application adds a point of a document."""
    with library.store() as store:
        schema = store.inspect(library.collection)
        assert schema is not None
        vectors = {schema.vectors[0].name: hash_vectors([text], DIMENSION)}
        payloads = Payloads([{"document_id": name, "text": text, "pos": 0, "tags": []}])
        store.upsert(library.collection, PointBatch([point], vectors, payloads))


def add_again(library: Library, name: str) -> None:
    """An application adds a document with one chunk."""
    add(library, name, 900001, "again")
    library.sql(
        f"INSERT INTO documents (id, title) VALUES ('{name}', 'Again {name}')",
        f"INSERT INTO chunks (document_id, vector_id, content, pos) VALUES ('{name}', '900001', 'again', 0)",
    )


def meanwhile(monkeypatch: pytest.MonkeyPatch, step: str, phase: str, action: Callable[[], object]) -> None:
    """Do something once, when a run reaches a crash point."""
    waiting = [action]

    def point(at: str, reached: str) -> None:
        if (at, reached) == (step, phase) and waiting:
            waiting.pop()()

    monkeypatch.setattr("runner.crash.point", point)


def log_of(name: str) -> str:
    return run("logs", name).stdout


class Killed(BaseException):
    """A process that ends at once."""


def killed(library: Library, monkeypatch: pytest.MonkeyPatch, name: str, step: str, phase: str) -> None:
    def end() -> None:
        raise Killed

    plan = library.planned(name)
    with monkeypatch.context() as patch:
        meanwhile(patch, step, phase, end)
        with pytest.raises(Killed):
            library.applied(plan)


# One document stands in the way of no other --------------------------------------------------------------------------------


def test_a_key_that_no_file_can_have(library: Library) -> None:
    library.sql("UPDATE documents SET file = 'sub//d0002.txt' WHERE id = 'd0002'")
    before = library.world()
    library.job("forget", "delete", {"ids": ["d0001", "d0002"]}, **FILES)
    library.do("forget", status=3)
    library.undo("forget")
    assert library.world() == before


@pytest.mark.parametrize("trash", ["/", "a//b", ".", "../out"])
def test_a_trash_that_is_no_prefix(library: Library, trash: str) -> None:
    library.job("forget", "delete", {"ids": ["d0001"]}, **FILES, files={"connection": "library", "trash": trash})
    found = run("validate", "jobs/forget.yaml")
    assert found.exit_code == 14
    assert "spec.files.trash: this is no prefix of files" in found.stderr


def test_a_document_that_was_made_again(library: Library) -> None:
    """Its row, points and file are theirs as a whole; the others come back."""
    library.sql("CREATE UNIQUE INDEX place ON chunks (document_id, pos)")
    library.job("forget", "delete", {"ids": ["d0001", "d0002"]}, **FILES)
    before = of_document(library, "d0002")
    library.do("forget")
    add_again(library, "d0001")
    assert "1 changed since were left alone" in library.undo("forget").stdout
    assert set(of_document(library, "d0001")) == {900001}
    assert of_document(library, "d0002") == before
    agree(library)
    files = library.world()["files"]
    assert "sub/d0001.txt" not in files
    assert "sub/d0002.txt" in files
    log = log_of("forget")
    assert "left alone: 'd0001': a document of this id was made again since" in log


def test_rows_that_do_not_fit_any_more(library: Library) -> None:
    """Another document has the title now: points do not stand there without their rows."""
    library.sql("CREATE UNIQUE INDEX title ON documents (title)")
    library.job("forget", "delete", {"ids": ["d0001", "d0002"]})
    library.do("forget")
    library.sql("INSERT INTO documents (id, title) VALUES ('other', 'About 1')")
    library.undo("forget")
    assert not of_document(library, "d0001")
    assert of_document(library, "d0002")
    agree(library)
    assert "'d0001': its rows do not fit any more" in log_of("forget")


def test_made_again_where_there_are_no_rows(library: Library) -> None:
    alone: dict[str, Any] = {"documents": None, "files": None}
    library.job("forget", "delete", {"ids": ["d0001", "d0002"]}, **alone)
    before = of_document(library, "d0002")
    library.do("forget")
    add(library, "d0001", 900001, "again")
    assert "1 changed since were left alone" in library.undo("forget").stdout
    assert set(of_document(library, "d0001")) == {900001}
    assert of_document(library, "d0002") == before


@pytest.mark.parametrize("how", ["anew", "vectors"])
def test_a_document_that_was_deleted_since(library: Library, how: str) -> None:
    before = of_document(library, "d0002")
    library.configure(models={"small": {"provider": "hash", "dimension": DIMENSION, "model": "second"}})
    wish = SPLIT if how == "anew" else {"model": "small"}
    library.job("renew", "reprocess", {"ids": ["d0001", "d0002"]}, reprocess=wish)
    library.do("renew")
    library.delete_points(list(of_document(library, "d0001")))
    library.sql("DELETE FROM chunks WHERE document_id = 'd0001'", "DELETE FROM documents WHERE id = 'd0001'")
    library.undo("renew")
    assert not of_document(library, "d0001")
    assert of_document(library, "d0002") == before
    agree(library)
    assert "'d0001': it was deleted since" in log_of("renew")


# A delete that failed, or was killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["retry", "rollback"])
def test_a_document_that_could_not_be_deleted(library: Library, way: str) -> None:
    """What was saved of it then is not how it is later."""
    (one,) = library.of("d0001")
    library.sql("CREATE TABLE notes (document REFERENCES documents (id))", "INSERT INTO notes VALUES ('d0001')")
    library.job("forget", "delete", {"ids": ["d0001", "d0002"]})
    library.do("forget", status=3)
    for point in one.points:
        library.change_payload(point, tags=["hold"])
    library.sql("DELETE FROM notes")
    if way == "retry":
        before = of_document(library, "d0001")
        assert run("retry-failed", "forget", "--auto-approve").exit_code == 0
        assert not of_document(library, "d0001")
    else:
        library.delete_points([one.points[0]])
        library.sql(f"DELETE FROM chunks WHERE vector_id = '{one.points[0]}'")
        before = of_document(library, "d0001")
    library.undo("forget")
    assert of_document(library, "d0001") == before
    assert of_document(library, "d0002")
    agree(library)


def test_a_file_that_came_in_its_place(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the end; a new file under the key is not taken for the one that was copied."""
    kept = library.ws.root / "files/sub/d0001.txt"
    old = kept.read_bytes()
    library.job("forget", "delete", {"ids": ["d0001"]}, **FILES)
    killed(library, monkeypatch, "forget", "delete_documents", "files")
    kept.write_text("another file")
    assert run("resume", "forget").exit_code == 3
    assert kept.read_text() == "another file"
    assert "Another file has come in its place" in library.report("forget")["d0001"]["error"]
    assert [path.read_bytes() for path in Path("files", TRASH).rglob("*") if path.is_file()] == [old]
    assert "1 changed since were left alone" in library.undo("forget").stdout
    assert kept.read_text() == "another file"
    agree(library)


def test_a_file_that_many_documents_share(library: Library) -> None:
    library.sql("UPDATE documents SET file = 'sub/d0001.txt'")
    before = library.world()
    library.job("forget", "delete", {"ids": [one.id for one in library.documents]}, **FILES, batch_size=2)
    library.do("forget")
    assert "sub/d0001.txt" not in library.world()["files"]
    library.undo("forget")
    assert library.world() == before


# Points that are another document's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["document_id", None])
def test_a_point_that_two_documents_name(library: Library, field: str | None) -> None:
    """It stays with the document that is still there, and goes with the last one."""
    (one,) = library.of("d0001")
    library.sql(
        "CREATE TABLE other (id INTEGER PRIMARY KEY, document_id, vector_id TEXT, content TEXT, pos INT, tags JSON)",
        "INSERT INTO other SELECT id, document_id, vector_id, content, pos, tags FROM chunks",
        f"INSERT INTO other (document_id, vector_id, content, pos) VALUES ('d0002', '{one.points[0]}', 'shared', 9)",
    )
    before = library.world()
    more: dict[str, Any] = {"documents": {"chunks": {"table": "other"}}, "points": {"document_field": field}}
    for name, ids in (("one", ["d0001"]), ("both", ["d0001", "d0002"]))[0 if field else 1 :]:
        library.job(name, "delete", {"ids": ids}, batch_size=1, **more, accept=[{"code": "VD105", "reason": "copied"}])
        library.sql("CREATE TABLE waiting AS SELECT * FROM chunks", "DELETE FROM chunks")
        library.do(name)
        assert (one.points[0] in library.points()) == (name == "one")
        assert library.report(name)["d0001"]["points"] == (2 if name == "one" else 3 if field else 2)
        library.sql("INSERT INTO chunks SELECT * FROM waiting", "DROP TABLE waiting")
        library.undo(name)
        assert library.world() == before


def test_points_that_were_not_there_are_not_counted(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = library.of("d0001")
    library.job("forget", "delete", {"ids": ["d0001"]})
    with monkeypatch.context() as patch:
        meanwhile(patch, "read", "after_read", lambda: library.delete_points([one.points[0]]))
        library.do("forget")
    assert library.report("forget")["d0001"]["points"] == 2


def test_points_that_come_where_there_are_no_rows(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go with their document, are counted, and come back with it."""
    library.job("forget", "delete", {"ids": ["d0001"]}, documents=None, files=None)
    before = library.world()
    with monkeypatch.context() as patch:
        meanwhile(patch, "delete_documents", "points", lambda: add(library, "d0001", 900001, "late"))
        library.do("forget")
    assert not of_document(library, "d0001")
    assert library.report("forget")["d0001"]["points"] == 4
    library.undo("forget")
    assert len(of_document(library, "d0001")) == 4
    library.delete_points([900001])
    assert library.world()["tables"] == before["tables"]


# What was written since --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["anew", "vectors"])
def test_payloads_that_were_changed_since(library: Library, how: str) -> None:
    """Positions and vectors go back, whatever else was written stays; a text that is another one keeps its vector."""
    (one,) = library.of("d0001")
    before = library.points()
    library.configure(models={"small": {"provider": "hash", "dimension": DIMENSION, "model": "second"}})
    library.job("renew", "reprocess", {"ids": ["d0001"]}, reprocess=SPLIT if how == "anew" else {"model": "small"})
    library.do("renew")
    kept = [point for point in one.points if point in library.points()]
    assert kept
    for point in kept:
        library.change_payload(point, tags=["hold"])
    corrected = kept[-1]
    if how == "vectors":
        library.change_payload(corrected, text="by hand")
    held = library.points()
    library.undo("renew")
    after = library.points()
    for point in kept:
        vector, payload = before[point]
        if how == "vectors" and point == corrected:
            assert after[point][1] == payload | {"tags": ["hold"], "text": "by hand"}
            assert (after[point][0] == held[point][0]).all()
        else:
            assert after[point][1] == payload | {"tags": ["hold"]}
            assert (after[point][0] == vector).all()
    assert ("'d0001': a text was changed since" in log_of("renew")) == (how == "vectors")


def test_new_chunks_that_were_changed_since(library: Library) -> None:
    """They go with the text that they are of, and it is told; those that nobody touched are not counted."""
    (one,) = library.of("d0001")
    before = library.world()
    library.job("renew", "reprocess", {"ids": ["d0001", "d0002"]}, reprocess=SPLIT)
    library.do("renew")
    new = [point for point in of_document(library, "d0001") if point not in one.points]
    library.change_payload(new[0], tags=["hold"])
    library.change_payload(new[1], text=f"by hand {uuid.uuid4()}")
    assert "2 changed since were left alone" in library.undo("renew").stdout
    assert library.world() == before
    assert "left alone: 'd0001': a new chunk was changed since" in log_of("renew")
