"""Documents made anew, and what is easily lost: a second try after a crash, equal chunks, chunks that an application adds
meanwhile, points that two documents share, chunks without a text, and the counts of the report (C2, C4, A4, A7).
"""

from __future__ import annotations

from typing import Any

import pytest

from runner import crash
from runner.embedders.hash import hash_vectors
from runner.errors import VecrunError
from runner.points import Payloads, PointBatch, PointId
from tests.e2e.documents import DIMENSION, SIZE, Document, Library
from tests.e2e.workspace import run

SPLIT = {"parse": True, "split": {"size": SIZE}, "model": "small"}


def renew(library: Library, name: str, *ids: str, **spec: Any) -> None:
    library.job(name, "reprocess", {"ids": list(ids)}, **({"reprocess": SPLIT} | spec))


def says(library: Library, one: Document, *paragraphs: str) -> None:
    library.ws.write(f"files/{one.file}", "\n\n".join(paragraphs))


def texts(library: Library, one: Document) -> list[str]:
    """What the points of a document say, in their order."""
    found = [payload for _vector, payload in library.points().values() if payload["document_id"] == one.id]
    return [payload["text"] for payload in sorted(found, key=lambda payload: payload["pos"])]


def agree(library: Library) -> None:
    """Every point has its row, and every row its point."""
    rows = {str(row["vector_id"]) for row in library.rows("chunks").values()}
    assert rows == {str(point) for point in library.points()}


def shared(library: Library, point: PointId, text: str, document: str) -> None:
    """A row of another document names the point, too."""
    library.sql(
        "CREATE TABLE copied AS SELECT * FROM chunks",
        "DROP TABLE chunks",
        "CREATE TABLE chunks (id INTEGER PRIMARY KEY, document_id, vector_id TEXT, content TEXT, pos INT, tags JSON)",
        "INSERT INTO chunks SELECT id, document_id, vector_id, content, pos, tags FROM copied",
        "DROP TABLE copied",
    )
    with library.transaction() as db:
        db.exec_driver_sql(
            "INSERT INTO chunks (document_id, vector_id, content, pos) VALUES (?, ?, ?, 9)",
            (document, str(point), text),
        )


@pytest.mark.parametrize("shorter", [False, True])
def test_a_second_try_after_rows_were_swapped(library: Library, monkeypatch: pytest.MonkeyPatch, shorter: bool) -> None:
    """The run ends between the rows and the old points, and the file is gone when it goes on: the document fails with the
    points that its rows name. Tried again it is done; a rollback leaves nothing of either try."""
    (one,) = library.of("d0001")
    if shorter:  # nothing new comes: a chunk goes
        says(library, one, *one.paragraphs[:2])
    before, done = library.world(), one.paragraphs[:2] if shorter else one.renewed
    renew(library, "renew", one.id)

    def point(step: str, phase: str) -> None:
        if (step, phase) == ("reprocess_documents", "rows"):
            raise VecrunError("The machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(crash, "point", point)
        library.do("renew", 1)
    file = library.ws.root / "files" / one.file
    kept = file.read_bytes()
    file.unlink()
    for command in (["resume", "renew"], ["retry-failed", "renew", "--auto-approve"]):
        found = run(*command)
        assert found.exit_code == 3, found.output
        assert texts(library, one) == done
        agree(library)
    file.write_bytes(kept)
    edited = next(iter(item for item, (_v, said) in library.points().items() if said["text"] == done[0]))
    library.change_payload(edited, tags=["by hand"])
    found = run("retry-failed", "renew", "--auto-approve")
    assert found.exit_code == 0, found.output
    assert texts(library, one) == done
    assert library.points()[edited][1]["tags"] == ["by hand"]
    agree(library)
    library.change_payload(edited, tags=one.tags)
    library.undo("renew")
    assert library.world() == before


def test_a_text_that_comes_a_second_time(library: Library) -> None:
    """Equal chunks are points of their own, also when an application has deleted the first of them."""
    (one,) = library.of("d0001")
    twice, other = "Twice: a paragraph about rice, longer text.", "Another paragraph about stone, longer text."
    says(library, one, twice, other, twice)
    renew(library, "first", one.id)
    library.do("first")
    (gone,) = [point for point, (_v, said) in library.points().items() if (said["text"], said["pos"]) == (twice, 0)]
    library.delete_points([gone])
    library.sql(f"DELETE FROM chunks WHERE vector_id = '{gone}'")
    before = library.world()
    renew(library, "second", one.id)
    library.do("second")
    assert texts(library, one) == [twice, other, twice]
    agree(library)
    library.undo("second")
    assert library.world() == before


def test_a_chunk_that_comes_meanwhile(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an application adds after the document was read stays, row and point, also after a rollback."""
    (one,) = library.of("d0001")
    came: list[PointId] = []

    def point(step: str, phase: str) -> None:
        if (step, phase) == ("reprocess_documents", "announced") and not came:
            came.append(900001)
            with library.store() as store:
                schema = store.inspect(library.collection)
                assert schema is not None
                vectors = {schema.vectors[0].name: hash_vectors(["late"], DIMENSION)}
                late = Payloads([{"document_id": one.id, "text": "late", "pos": 50}])
                store.upsert(library.collection, PointBatch([*came], vectors, late))
            library.sql(
                "INSERT INTO chunks (document_id, vector_id, content, pos) VALUES ('d0001', '900001', 'late', 50)"
            )

    renew(library, "renew", one.id)
    with monkeypatch.context() as patch:
        patch.setattr(crash, "point", point)
        library.do("renew")
    assert texts(library, one) == [*one.renewed, "late"]
    agree(library)
    library.undo("renew")
    assert texts(library, one) == [*one.paragraphs, "late"]
    agree(library)


def test_a_point_that_two_documents_name(library: Library) -> None:
    """It goes when no row names it any more; until then nobody finds a row whose point is gone."""
    one, two = library.of("d0001", "d0002")
    shared(library, one.points[1], one.paragraphs[1], two.id)
    before, by_rows = library.world(), {"points": {"document_field": None}}
    renew(library, "first", one.id, **by_rows)
    library.do("first")
    assert one.points[1] in library.points()
    agree(library)
    renew(library, "second", two.id, **by_rows)
    library.do("second")
    agree(library)
    library.undo("second")
    library.undo("first")
    assert library.world() == before
    renew(library, "both", one.id, two.id, **by_rows)
    library.do("both")
    assert one.points[1] not in library.points()
    agree(library)
    library.undo("both")
    assert library.world() == before
    renew(library, "apart", one.id, two.id, batch_size=1)  # the second lets it go after the first has tried
    library.do("apart")
    assert one.points[1] not in library.points()
    agree(library)
    library.undo("apart")
    assert library.world() == before


def test_a_chunk_without_a_text(library: Library) -> None:
    """Its vector cannot be made anew: the document fails, and says which point it is."""
    one, two = library.of("d0001", "d0002")
    library.configure(models={"small": {"provider": "hash", "dimension": DIMENSION, "model": "second"}})
    library.change_payload(one.points[0], text=None)
    library.sql(f"UPDATE chunks SET content = NULL WHERE vector_id = '{one.points[0]}'")
    before = library.world()
    renew(library, "renew", one.id, two.id, reprocess={"model": "small"})
    library.do("renew", 3)
    report = library.report("renew")
    assert (report[one.id]["status"], report[two.id]["status"]) == ("failed", "done")
    assert "A chunk has no text" in report[one.id]["error"]
    assert repr(one.points[0]) in report[one.id]["error"]
    library.undo("renew")
    assert library.world() == before


def test_the_summary_counts_as_the_report_does(library: Library) -> None:
    """A document that is as wished is not counted as done, and one that is not there has failed."""
    one, two = library.of("d0001", "d0002")
    says(library, one, *one.paragraphs)
    renew(library, "same", one.id)
    assert "documents: 0 done, 1 unchanged (3 points)" in library.do("same").stdout
    renew(library, "three", one.id, two.id, "nobody")
    assert "documents: 1 done, 1 unchanged, 1 failed" in library.do("three", 3).stdout
    report = library.report("three")
    assert {name: item["status"] for name, item in report.items()} == {
        one.id: "unchanged", two.id: "done", "nobody": "failed"
    }  # fmt: skip
