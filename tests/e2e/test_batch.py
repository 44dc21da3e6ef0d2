"""Batch operations and what goes wrong with them, through the command line: a document that fails says why and stops no other,
what has failed is as it was before, and a rollback brings everything back (C1-C5; C4 and A2, A4, A7-A9 with documents).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from runner import commands
from runner.embedders.hash import hash_vectors
from runner.points import Payloads, PointBatch
from tests import servers
from tests.e2e.documents import DIMENSION, SIZE, TRASH, Library
from tests.e2e.test_workers import Team
from tests.e2e.workspace import Workspace, run
from tests.faults.ledger_watch import LedgerWatch

SPLIT = {"parse": True, "split": {"size": SIZE}, "model": "small"}
#: operation -> what it takes beside the selection.
OPERATIONS: dict[str, dict[str, Any]] = {
    "delete": {"delete": {"rows": True, "files": True}},
    "reprocess": {"reprocess": SPLIT},
    "update_metadata": {"metadata": {"set": {"lang": "it"}}},
    "add_tags": {"tags": ["new"]},
    "remove_tags": {"tags": ["draft"]},
}


@pytest.fixture
def library(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Twelve documents."""
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    made = Library(ws)
    made.configure()
    made.fill(12)
    return made


def every(library: Library) -> dict[str, Any]:
    """Selects all documents."""
    return {"ids": [one.id for one in library.documents]}


def refused(found: Result, code: int, *words: str) -> None:
    """The command failed with this exit code, and says all of `words`."""
    assert found.exit_code == code, found.output
    for word in words:
        assert word in found.stderr, f"{word!r} is not in:\n{found.stderr}"
    assert "Traceback" not in found.output


def plan(name: str) -> Result:
    return run("plan", f"jobs/{name}.yaml")


def errors_of(name: str) -> dict[str, str]:
    """id as text -> why it failed."""
    found = run("failures", name, "--json")
    return {str(one["item"]): one["error"] for one in json.loads(found.stdout)["items"]}


def of_document(world: dict[str, Any], name: str) -> dict[Any, Any]:
    """The points of a document."""
    return {key: item for key, item in world["points"].items() if json.loads(item[1])["document_id"] == name}


# Which documents ------------------------------------------------------------------------------------------------------


def test_ids_that_nothing_is_known_of(library: Library) -> None:
    before = library.world()
    library.job("tag", "add_tags", {"ids": ["d0001", "nope", "d0002"]}, tags=["new"])
    shown = plan("tag").stdout
    assert "documents    2, and 1 that are not there" in shown
    assert "VI119 kb/Docs: 1 document is not there, and listed as failed: 'nope'" in shown
    assert "1 item failed: vecrun failures tag · vecrun retry-failed tag" in library.do("tag", 3).stdout
    assert errors_of("tag") == {"nope": "there is no such document"}
    report = library.report("tag")
    assert {key: one["status"] for key, one in report.items()} == {"d0001": "done", "d0002": "done", "nope": "failed"}
    assert run("retry-failed", "tag", "--auto-approve").exit_code == 3
    library.undo("tag")
    assert library.world() == before


def test_ids_that_may_be_gone(library: Library) -> None:
    before = library.world()
    library.job("tag", "add_tags", {"ids": ["d0001", "nope"], "missing": "skip"}, tags=["new"])
    library.do("tag")
    assert library.report("tag")["nope"]["status"] == "unchanged"
    library.undo("tag")
    assert library.world() == before
    library.job("gone", "delete", {"ids": ["nope"], "missing": "skip"})
    assert "Nothing to do." in library.do("gone").stdout


def test_none_of_the_ids_is_there(library: Library) -> None:
    """A wrong file of ids is not taken for a deletion that is done."""
    library.ws.write("ids.csv", "id;why\nd0001;asked\n")
    library.job("forget", "delete", {"file": "ids.csv"})
    refused(
        run("apply", "jobs/forget.yaml", "--auto-approve"), 1, "VX214", "'d0001;asked' for example", "missing: skip"
    )


@pytest.mark.parametrize("given", ["number", "text"])
def test_numbers_and_texts_are_the_same_ids(ws: Workspace, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """Rows hold integers; payloads hold integers, or texts."""
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    library = Library(ws)
    library.configure()
    library.fill(ids=list(range(100, 108)))
    if given == "text":
        for one in library.documents:
            for point in one.points:
                library.change_payload(point, document_id=str(one.id))
    before = library.world()
    library.ws.write("ids.txt", "# asked for\n\n103\n104\n")
    library.job("forget", "delete", {"file": "ids.txt"}, delete={"files": True})
    library.do("forget")
    assert set(library.rows("documents")) == {100, 101, 102, 105, 106, 107}
    assert {str(item["document_id"]) for _, item in library.points().values()} == {
        "100",
        "101",
        "102",
        "105",
        "106",
        "107",
    }
    library.undo("forget")
    assert library.world() == before


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ([{"field": "lnag", "value": "de"}], "payload field lnag; did you mean lang?"),
        ([{"field": "lang", "value": "de"}, {"field": "scroe", "op": "gt", "value": 3}], "payload field scroe; did you mean score?"),
    ],
)  # fmt: skip
def test_a_filter_on_a_field_that_no_point_has(library: Library, where: Any, told: str) -> None:
    library.job("tag", "add_tags", {"where": where}, tags=["new"])
    assert f"VX210 kb/Docs: no point that was looked at has a {told}" in plan("tag").stdout
    refused(run("apply", "jobs/tag.yaml", "--auto-approve"), 1, "VX210", told)


def test_a_filter_that_finds_nothing(library: Library) -> None:
    library.job("tag", "add_tags", {"where": [{"field": "lang", "value": "xx"}]}, tags=["new"])
    found = library.do("tag")
    assert "VX210" not in found.stdout
    assert "Nothing to do." in found.stdout


@pytest.mark.parametrize(
    ("name", "data", "code", "told"),
    [
        ("ids.txt", b"", 1, ("A file of ids is empty", "ids.txt", "One id a line, or a JSON array")),
        ("ids.txt", b"# none\n\n", 1, ("A file of ids is empty",)),
        ("ids.csv", b"id,why\n", 1, ("A file of ids is empty",)),
        ("ids.txt", b"d0001\ncaf\xe9\n", 1, ("A file of ids is not UTF-8 text", "byte 9")),
        ("ids.json", b'["d0001", ', 1, ("A file of ids is no JSON array",)),
        ("ids.json", b'{"ids": ["d0001"]}', 1, ("A file of ids is no JSON array", "it holds dict")),
        ("ids.json", b'["d0001", 2.5]', 1, ("A file of ids holds something else", "2.5", "Ids are texts or integers")),
        ("other.txt", b"d0001", 10, ("No such file of ids", "ids.txt")),
    ],
)
def test_a_file_of_ids_that_is_none(library: Library, name: str, data: bytes, code: int, told: tuple[str, ...]) -> None:
    library.ws.write(name, data)
    library.job("forget", "delete", {"file": name.replace("other", "ids")})
    refused(plan("forget"), code, *told)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELEC id FROM documents", 'near "SELEC": syntax error'),
        ("SELECT id FROM nowhere", "no such table: nowhere"),
        ("DELETE FROM documents", "attempt to write a readonly database"),
        ("INSERT INTO documents (id, title) VALUES ('x', 'y') RETURNING id", "attempt to write a readonly database"),
        ("SELECT id FROM documents; DELETE FROM documents", "You can only execute one statement at a time"),
    ],
)
def test_a_query_that_does_not_read(library: Library, query: str, told: str) -> None:
    before = library.world()
    library.job("forget", "delete", {"query": query})
    refused(
        plan("forget"),
        1,
        "The query does not run",
        told,
        "Give one SELECT whose first column is the id of the document",
    )
    assert library.world() == before


def test_the_selection_moves_between_plan_and_apply(library: Library) -> None:
    """Grown or shrunk it is refused; what happens to other documents does not matter."""
    before = library.world()
    library.job("forget", "delete", {"where": [{"field": "lang", "value": "fr"}]})
    run("plan", "jobs/forget.yaml", "-o", "plans/forget.json")
    grown = library.documents[0].points[0]
    library.change_payload(grown, lang="fr")
    refused(
        run("apply", "plans/forget.json"),
        12,
        "the selection: 5 documents with 12 points now, 4 with 10 when the plan was made",
    )
    library.change_payload(grown, lang="de")
    (point, *_rest), saved = library.documents[2].points, library.documents[2]
    library.delete_points([point])
    refused(run("apply", "plans/forget.json"), 12, "the selection: 4 documents with 9 points now")
    with library.store() as store:
        library.write_points(store, [(saved, 0)])
    assert library.world() == before
    library.change_payload(grown, score=99)
    library.delete_points(library.documents[1].points)
    assert run("apply", "plans/forget.json").exit_code == 0
    assert {item["lang"] for _, item in library.points().values()} == {"de", "en"}


# Documents whose points, rows and files lack something ------------------------------------------------------------------


def test_chunk_rows_name_the_points(library: Library) -> None:
    """document_field: null. Payloads may say what they like."""
    for one in library.documents:
        for point in one.points:
            library.change_payload(point, document_id=None)
    before = library.world()
    for name, operation, after in (("forget", "delete", 9), ("renew", "reprocess", 12), ("tag", "add_tags", 12)):
        library.job(
            name,
            operation,
            {"ids": ["d0001", "d0004", "d0007"]},
            points={"document_field": None},
            **OPERATIONS[operation],
        )
        library.do(name)
        assert len(library.rows("documents")) == after
        named = {row["vector_id"] for row in library.rows("chunks").values()}
        assert {str(point) for point in library.points()} == named
        assert run("verify", name).exit_code == 0
        library.undo(name)
        assert library.world() == before
    library.job(
        "tag2", "add_tags", {"where": [{"field": "lang", "value": "de"}]}, points={"document_field": None}, tags=["x"]
    )
    refused(run("validate", "jobs/tag2.yaml"), 14, "select.where needs points.document_field")


def test_each_point_is_a_document(library: Library) -> None:
    """No rows, no chunks: ids are those of points."""
    before, points = library.world(), library.points()
    some = [one.points[0] for one in library.documents[:3]]
    alone: dict[str, Any] = {"documents": None, "files": None, "points": {"document_field": None}}
    library.job("forget", "delete", {"ids": [str(some[0]), *some[1:]]}, **alone)
    library.do("forget")
    assert set(library.points()) == set(points) - set(some)
    library.undo("forget")
    library.job("tag", "add_tags", {"where": [{"field": "lang", "value": "fr"}]}, tags=["new"], **alone)
    library.do("tag")
    wanted = {point for point, (_, item) in points.items() if item["lang"] == "fr"}
    assert {point for point, (_, item) in library.points().items() if "new" in item["tags"]} == wanted
    library.undo("tag")
    assert library.world() == before
    library.change_payload(some[0], text="Another text of its own.")
    before = library.world()
    library.job("renew", "reprocess", {"ids": some}, reprocess={"model": "small"}, **alone)
    library.do("renew")
    assert library.points()[some[0]][0].tobytes() == hash_vectors(["Another text of its own."], DIMENSION)[0].tobytes()
    library.undo("renew")
    assert library.world() == before


def test_points_and_rows_that_do_not_agree(library: Library) -> None:
    """A point without a row gets one, a row without a point makes way; new vectors alone leave all rows as they are."""
    library.sql("DELETE FROM chunks WHERE document_id = 'd0002' AND pos = 0")
    library.delete_points([library.documents[3].points[0]])
    before = library.world()
    library.job("renew", "reprocess", {"ids": ["d0002", "d0003"]}, reprocess=SPLIT)
    library.do("renew")
    for one in library.of("d0002", "d0003"):
        rows = [row for row in library.rows("chunks").values() if row["document_id"] == one.id]
        assert [row["content"] for row in sorted(rows, key=lambda row: row["pos"])] == one.renewed
        held = {str(point) for point, (_, item) in library.points().items() if item["document_id"] == one.id}
        assert held == {row["vector_id"] for row in rows}
    library.undo("renew")
    assert library.world() == before
    library.job("again", "reprocess", {"ids": ["d0002", "d0003"]}, reprocess={"model": "small"})
    library.do("again")
    assert library.world()["tables"]["chunks"] == before["tables"]["chunks"]
    library.undo("again")
    assert library.world() == before


def test_bad_files_among_good_ones(library: Library) -> None:
    """Each says what is wrong with it, the rest is done; mended, just those are tried again; and all of it goes back."""

    def file(number: int, data: bytes | None, ending: str = ".txt") -> None:
        one = library.documents[number]
        (library.ws.root / "files" / one.file).unlink(missing_ok=True)
        name = one.file.replace(".txt", ending)
        library.sql(f"UPDATE documents SET file = '{name}' WHERE id = '{one.id}'")
        if data is not None:
            library.ws.write(f"files/{name}", data)

    file(1, b"%PDF-1.4 broken", ".pdf")
    file(2, None)
    file(3, b"")
    file(4, b"\x00\x01\x02\x03", ".xyz")
    file(5, b"PK\x03\x04broken", ".docx")
    file(6, b" \n\n ")
    library.sql(
        "UPDATE documents SET file = NULL WHERE id = 'd0007'",
        "UPDATE documents SET file = '../../x.txt' WHERE id = 'd0008'",
    )
    before = library.world()
    library.job("renew", "reprocess", every(library), reprocess=SPLIT)
    assert (
        "VI111 kb/Docs: 8 of 12 documents that were looked at cannot be made anew: About 1: A file is corrupt"
        in plan("renew").stdout
    )
    assert "4 done, 8 failed" in library.do("renew", 3).stdout
    errors = errors_of("renew")
    for number, told in enumerate(
        (
            "A file is corrupt: sub/d0001.pdf", "No such file: sub/d0002.txt", "There is no text in it: d0003: sub/d0003.txt",
            "The kind of a file is not known: sub/d0004.xyz", "A file is corrupt: sub/d0005.docx",
            "There is no text in it: d0006: sub/d0006.txt", "The document has no file: d0007", "This is no key of a file: '../../x.txt'",
        ), 1,
    ):  # fmt: skip
        assert errors[f"d{number:04}"].startswith(told)
    after = library.world()
    for name in errors:
        assert of_document(after, name) == of_document(before, name)
    rows = list(csv.DictReader(io.StringIO(run("report", "renew", "--format", "csv").stdout)))
    assert {row["document"]: row["error"] for row in rows if row["status"] == "failed"} == errors
    assert run("report", "renew", "--format", "json", "-o", "out.json").exit_code == 0
    items = json.loads(Path("out.json").read_text())["items"]
    assert [(item["document"], item["status"], item["error"]) for item in items] == [
        (row["document"], row["status"], row["error"]) for row in rows
    ]
    for number in (2, 3):
        file(number, "\n\n".join(library.documents[number].renewed).encode())
    tried = run("retry-failed", "renew", "--auto-approve")
    assert tried.exit_code == 3
    assert "2 done, 6 failed" in tried.stdout
    assert set(errors_of("renew")) == {f"d{number:04}" for number in (1, 4, 5, 6, 7, 8)}
    done = library.world()
    assert of_document(done, "d0000") == of_document(after, "d0000")
    assert len(of_document(done, "d0003")) == len(library.documents[3].renewed)
    library.undo("renew")
    assert {key: value for key, value in library.world().items() if key != "files"} == {
        key: value for key, value in before.items() if key != "files"
    }
    assert not [name for name in library.world()["files"] if name.startswith(TRASH)]


def test_a_bucket_without_rights(ws: Workspace, s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read only cannot delete: nothing of such a document is touched. Who may do nothing is told so, too."""
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    admin = s3.client()
    admin.create_bucket(Bucket="batch")
    library = Library(ws)
    for who in ("reader", "writer", "nobody", "admin"):
        key, secret = s3.keys[who]
        monkeypatch.setenv(f"VECRUN_TEST_{who.upper()}", key)
        monkeypatch.setenv(f"VECRUN_TEST_{who.upper()}_SECRET", secret)
    given = {
        who: s3.connection("batch", who)
        | {
            "access_key_id": f"${{env:VECRUN_TEST_{who.upper()}}}",
            "secret_access_key": f"${{env:VECRUN_TEST_{who.upper()}_SECRET}}",
        }
        for who in ("reader", "writer", "nobody", "admin")
    }
    library.configure(connections=given, limits={"retry_delay": 0.01, "retries": 1})
    library.fill(4)
    for one in library.documents:
        admin.put_object(Bucket="batch", Key=one.file, Body="\n\n".join(one.renewed).encode())
    before = library.world()

    def forget(who: str, status: int) -> None:
        library.job(f"forget-{who}", "delete", every(library), delete={"files": True}, files={"connection": who})
        library.do(f"forget-{who}", status)

    def refuses(name: str, word: str) -> None:
        errors = errors_of(name)
        assert all(
            errors[one.id].startswith(f"No right to {word} a file: ") and one.file in errors[one.id]
            for one in library.documents
        ), errors
        assert library.world()["points"] == before["points"]

    forget("reader", 3)
    refuses("forget-reader", "copy")
    library.undo("forget-reader")
    library.job("renew", "reprocess", every(library), reprocess=SPLIT, files={"connection": "nobody"})
    library.do("renew", 3)
    refuses("renew", "read")
    library.undo("renew")
    assert library.world() == before
    forget("admin", 0)
    kept = [item["Key"] for item in admin.list_objects_v2(Bucket="batch")["Contents"]]
    assert len(kept) == 4
    assert all(key.startswith(TRASH) for key in kept)
    library.undo("forget-admin")
    assert library.world() == before
    assert [item["Key"] for item in admin.list_objects_v2(Bucket="batch")["Contents"]] == [
        one.file for one in library.documents
    ]
    forget("nobody", 3)
    refuses("forget-nobody", "copy")
    library.undo("forget-nobody")  # their rows stand, so nothing of them went
    assert library.world() == before


# Values that do not fit ---------------------------------------------------------------------------------------------------


def test_metadata_and_tags_that_cannot_be_changed(library: Library) -> None:
    """In a payload, or in a row: that document is as before, in both."""
    library.change_payload(library.documents[1].points[1], lang={"code": "de"})
    library.change_payload(library.documents[2].points[0], tags="draft")
    library.sql(
        "UPDATE documents SET meta = '[1]' WHERE id = 'd0003'", "UPDATE documents SET tags = 'draft' WHERE id = 'd0004'",
        "UPDATE documents SET meta = '{\"lang\"' WHERE id = 'd0005'",
    )  # fmt: skip
    before = library.world()
    library.job("deep", "update_metadata", {"ids": ["d0001", "d0006"]}, metadata={"set": {"lang.code": "it"}})
    library.do("deep", 3)
    assert set(errors_of("deep")) == {"d0001", "d0006"}
    assert "lang.code: lang is str, and holds no keys" in errors_of("deep")["d0006"]
    assert library.world()["points"] == before["points"]
    library.undo("deep")
    library.job("change", "update_metadata", every(library), metadata={"set": {"lang": "it"}})
    library.do("change", 3)
    errors, after = errors_of("change"), library.world()
    assert errors == {
        "d0003": "The metadata are no object: documents.meta of document d0003 is '[1]'",
        "d0005": "The metadata are no JSON: documents.meta of document d0005: Expecting ':' delimiter: line 1 column 8 (char 7)",
    }
    for one in library.documents:
        changed = of_document(after, one.id) != of_document(before, one.id)
        assert changed == (one.id not in errors), one.id
    library.sql("UPDATE documents SET meta = '{}' WHERE id IN ('d0003', 'd0005')")
    assert run("retry-failed", "change", "--auto-approve").exit_code == 0
    library.undo("change")
    library.sql(
        "UPDATE documents SET meta = '[1]' WHERE id = 'd0003'",
        "UPDATE documents SET meta = '{\"lang\"' WHERE id = 'd0005'",
    )
    assert library.world() == before
    library.job("tag", "add_tags", every(library), tags=["new"])
    library.do("tag", 3)
    assert "payload field tags is str, and no list of tags" in errors_of("tag")["d0002"]
    assert "The tags are no JSON: documents.tags of document d0004" in errors_of("tag")["d0004"]
    after = library.world()
    assert [one.id for one in library.documents if of_document(after, one.id) == of_document(before, one.id)] == [
        "d0002",
        "d0004",
    ]
    library.undo("tag")
    assert library.world() == before


def test_rows_that_refuse_new_chunks(library: Library) -> None:
    """The points of such a document are the old ones, and no others: nothing is doubled, now or after the rollback."""
    library.sql(
        "CREATE TRIGGER no BEFORE INSERT ON chunks WHEN NEW.content LIKE '%of 0002%' BEGIN SELECT raise(ABORT, 'not this one'); END"
    )
    before = library.world()
    library.job("renew", "reprocess", {"ids": ["d0001", "d0002", "d0003"]}, reprocess=SPLIT)
    library.do("renew", 3)
    assert "not this one" in errors_of("renew")["d0002"]
    after = library.world()
    assert of_document(after, "d0002") == of_document(before, "d0002")
    assert len(of_document(after, "d0001")) == len(library.documents[1].renewed)
    assert run("retry-failed", "renew", "--auto-approve").exit_code == 3
    assert library.world() == after
    library.sql("DROP TRIGGER no")
    assert run("retry-failed", "renew", "--auto-approve").exit_code == 0
    assert len(of_document(library.world(), "d0002")) == len(library.documents[2].renewed)
    library.undo("renew")
    assert library.world() == before


def test_a_column_that_must_have_a_value(library: Library) -> None:
    """A new chunk row takes over what it can; where that cannot be, the document fails and says which column it is."""
    library.sql(
        "CREATE TABLE new (id INTEGER PRIMARY KEY, document_id NOT NULL, vector_id TEXT, content TEXT, pos INT, tags JSON, "
        "code TEXT NOT NULL UNIQUE)",
        "INSERT INTO new SELECT id, document_id, vector_id, content, pos, tags, 'code ' || id FROM chunks",
        "DROP TABLE chunks",
        "ALTER TABLE new RENAME TO chunks",
    )
    before = library.world()
    library.job("renew", "reprocess", {"ids": ["d0001"]}, reprocess=SPLIT)
    library.do("renew", 3)
    assert "chunks.code" in errors_of("renew")["d0001"]
    assert library.world()["points"] == before["points"]
    library.undo("renew")
    assert library.world() == before


def test_a_file_that_two_documents_share(library: Library) -> None:
    """It goes with the last of them."""
    library.sql("UPDATE documents SET file = 'sub/d0001.txt' WHERE id = 'd0002'")
    before = library.world()
    for name, given, there in (("one", ["d0001"], True), ("both", ["d0001", "d0002"], False)):
        library.job(name, "delete", {"ids": given}, delete={"files": True})
        library.do(name)
        assert ("sub/d0001.txt" in library.world()["files"]) == there
        library.undo(name)
        assert library.world() == before


def test_what_a_store_or_a_database_cannot_hold(
    ws: Workspace, pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a document fails as a whole, and what it holds is told to nobody."""
    monkeypatch.setenv("VECRUN_TEST_KB", pg_database)
    monkeypatch.setenv("VECRUN_TEST_APP", pg_database)
    library = Library(ws, {"type": "pgvector", "url": "${env:VECRUN_TEST_KB}"}, "pgvector", pg_database)
    library.configure()
    library.fill(4)
    library.sql("ALTER TABLE documents ADD CONSTRAINT no CHECK (id <> 'd0002' OR NOT 'bad' = ANY (tags))")
    before = library.world()
    library.job("null", "update_metadata", every(library), metadata={"set": {"code": "a\0b"}})
    library.do("null", 3)
    assert all("jsonb keeps no NUL character" in error for error in errors_of("null").values())
    assert len(errors_of("null")) == 4
    library.undo("null")
    assert library.world() == before
    library.job("tag", "add_tags", every(library), tags=["bad"])
    library.do("tag", 3)
    (error,) = errors_of("tag").values()
    assert 'violates check constraint "no"' in error
    assert "Paragraph" not in error
    assert of_document(library.world(), "d0002") == of_document(before, "d0002")
    assert of_document(library.world(), "d0001") != of_document(before, "d0001")
    library.undo("tag")
    assert library.world() == before
    for query in (
        "DELETE FROM documents RETURNING id",
        "SELECT id FROM documents; DROP TABLE chunks",
        "SELECT nextval('chunks_id_seq')",
    ):
        library.job("forget", "delete", {"query": query})
        refused(plan("forget"), 1, "The query does not run", "Give one SELECT")
    assert library.world() == before


def test_foreign_keys_of_other_tables(library: Library) -> None:
    """One that keeps a row from going fails that document alone; one that takes rows along has to be accepted."""
    library.sql(
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, document_id TEXT REFERENCES documents (id))",
        "INSERT INTO notes VALUES (1, 'd0002')",
    )
    before = library.world()
    library.job("forget", "delete", {"ids": ["d0001", "d0002", "d0003"]}, delete={"files": True})
    assert (
        "VI121 kb/Docs: notes.document_id refers to documents.id (ON DELETE NO ACTION): a document that is named there"
        in plan("forget").stdout
    )
    library.do("forget", 3)
    assert "FOREIGN KEY constraint failed" in errors_of("forget")["d0002"]
    after = library.world()
    assert of_document(after, "d0002") == of_document(before, "d0002")
    assert "sub/d0002.txt" in after["files"]
    assert not of_document(after, "d0001")
    assert "sub/d0001.txt" not in after["files"]
    library.sql("DELETE FROM notes")
    assert run("retry-failed", "forget", "--auto-approve").exit_code == 0
    assert not of_document(library.world(), "d0002")
    library.sql("INSERT INTO notes VALUES (1, 'd0002')")
    library.undo("forget")
    assert library.world() == before
    library.sql(
        "DROP TABLE notes",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, document_id TEXT REFERENCES documents (id) ON DELETE CASCADE)",
    )
    refused(
        run("apply", "jobs/forget.yaml", "--auto-approve", "--unpin"),
        1,
        "VD105",
        "its rows would be deleted, too, and not come back",
        "accept: [{code: VD105",
    )
    accept = [{"code": "VD105", "reason": "notes may go"}]
    library.job("forget2", "delete", {"ids": ["d0001"]}, accept=accept)
    library.do("forget2")


# The job itself -------------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "operation": ("deleet", {}, "spec.operation: should be 'delete', 'reprocess', 'update_metadata', 'add_tags' or 'remove_tags', found 'deleet' (did you mean delete?)"),
    "no tags": ("add_tags", {}, "spec: operation add_tags needs tags"),
    "tags": ("delete", {"tags": ["x"]}, "spec: tags is not for operation delete"),
    "no metadata": ("update_metadata", {"metadata": {}}, "spec: metadata needs merge, set or remove"),
    "no file column": ("delete", {"delete": {"files": True}, "documents": {"file_column": None}}, "spec: delete.files needs files, and documents.file_column, which has their keys"),
    "no files": ("reprocess", {"reprocess": SPLIT, "files": None}, "spec: reprocess.parse needs files, and documents.file_column"),
    "no split": ("reprocess", {"reprocess": {"parse": True, "model": "small"}}, "spec.reprocess: parse needs split: a text has to become chunks"),
    "overlap": ("reprocess", {"reprocess": SPLIT | {"split": {"size": 10, "overlap": 10}}}, "spec.reprocess.split: overlap 10 must be less than size 10"),
    "model": ("reprocess", {"reprocess": SPLIT | {"model": "smal"}}, "spec.reprocess.model: vecrun.yaml has no model 'smal' (did you mean small?"),
    "query": ("delete", {"select": {"query": "SELECT 1"}, "documents": None, "files": None}, "spec: select.query needs documents: it is run on its database"),
    "two": ("delete", {"select": {"ids": ["a"], "file": "x"}}, "spec.select: give exactly one of ids, file, where and query, found ids, file"),
    "no ids": ("delete", {"select": {"ids": []}}, "spec.select.ids: should be a list of at least 1, found an empty one"),
    "yes": ("delete", {"select": {"ids": [True]}}, "spec.select.ids.0: should be a whole number or text, found True"),
    "in": ("delete", {"select": {"where": [{"field": "a", "op": "in", "value": "x"}]}}, "spec.select.where.0: op in needs a list as its value, found 'x'"),
    "key": ("add_tags", {"tags": ["x"], "documents": {"titel_column": "x"}}, "spec.documents.titel_column: unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_job_that_is_wrong(ws: Workspace, case: str) -> None:
    library = Library(ws)
    library.configure()
    library.__dict__["shared_ids"] = False
    operation, more, told = WRONG[case]
    more = dict(more)
    path = library.job("wrong", operation, more.pop("select", {"ids": ["d0001"]}), **more)
    path.write_text(yaml.safe_dump(json.loads(path.read_text()), sort_keys=False))
    found = run("validate", "jobs/wrong.yaml")
    assert found.exit_code == 14, found.output
    (line,) = found.stderr.strip().splitlines()
    assert re.fullmatch(r"jobs/wrong\.yaml:\d+: " + re.escape(told) + ".*", line), line


def test_tables_columns_and_connections_that_are_not_there(library: Library) -> None:
    before = library.world()
    library.configure(connections={"gone": {"type": "folder", "path": "./gone"}})
    cases: list[tuple[dict[str, Any], int, tuple[str, ...]]] = [
        ({"documents": {"table": "documnts"}}, 10, ("No such table", "documnts in sqlite")),
        ({"documents": {"chunks": {"table": "chnks"}}}, 10, ("No such table", "chnks in sqlite")),
        ({"documents": {"name_column": "titel"}}, 10, ("No such column", "documents.titel", "did you mean title?")),
        (
            {"documents": {"chunks": {"table": "chunks", "vector_id_column": "vectr"}}},
            10,
            ("No such column", "chunks.vectr"),
        ),
        ({"documents": {"metadata_column": "length"}}, 1, ("A column cannot hold metadata", "documents.length is INT")),
        ({"documents": {"connection": "kb"}}, 1, ("This connection is no relational database", "kb has type files")),
        ({"files": {"connection": "kb"}}, 1, ("This connection is no object storage", "kb has type files")),
        ({"files": {"connection": "gone"}}, 1, ("The folder does not exist", "gone")),
        ({"connection": "app"}, 1, ("This connection is no vector store", "app has type sql")),
        ({"save_to": "app"}, 1, ("This connection is no vector store", "app has type sql")),
        ({"collection": "Dcos"}, 10, ("Dcos", "did you mean Docs?")),
    ]
    for more, code, told in cases:
        library.job("tag", "add_tags", {"ids": ["d0001"]}, tags=["x"], **more)
        refused(plan("tag"), code, *told)
    for change in ({"set": {"document_id": "x"}}, {"remove": ["document_id"]}, {"merge": {"document_id": {"a": 1}}}):
        library.job("edit", "update_metadata", {"ids": ["d0001"]}, metadata=change)
        refused(
            run("apply", "jobs/edit.yaml", "--auto-approve"),
            1,
            "VX211 kb/Docs: document_id says which document a point is of",
        )
    assert library.world() == before


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_dry_run_writes_nothing(library: Library, operation: str) -> None:
    before = library.world()
    library.job("try", operation, every(library), **OPERATIONS[operation])
    for more in ((), ("--sample", "2")):
        found = run("apply", "jobs/try.yaml", "--auto-approve", "--dry-run", *more)
        assert found.exit_code == 0, found.output
        assert re.search(r"dry run read and transformed \d+ points and wrote nothing", found.stdout)
    assert library.world() == before
    assert library.ws.state("try") == {}
    assert run("runs", "try").exit_code == 10 or "try" not in run("runs").stdout


# In the middle of it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["delete", "reprocess", "add_tags"])
def test_stopped_in_the_middle(library: Library, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused and gone on with it is as if nothing had been; cancelled and rolled back it never was."""
    before = library.world()
    for name in ("paused", "cancelled"):
        library.job(name, operation, every(library), batch_size=1, **OPERATIONS[operation])
    asked_in_the_middle(library, monkeypatch, "paused", "pause")
    middle = library.world()
    changed = [one for one in library.documents if of_document(middle, one.id) != of_document(before, one.id)]
    assert 0 < len(changed) < len(library.documents)
    assert run("resume", "paused").exit_code == 0
    assert run("verify", "paused").exit_code == 0
    assert {one["status"] for one in library.report("paused").values()} <= {"done", "unchanged"}
    library.undo("paused")
    assert library.world() == before
    asked_in_the_middle(library, monkeypatch, "cancelled", "cancel")
    assert library.world() != before
    library.undo("cancelled")
    assert library.world() == before


def asked_in_the_middle(library: Library, monkeypatch: pytest.MonkeyPatch, name: str, wish: str) -> None:
    """Apply; after a few documents somebody asks for a pause, or to cancel, and the work is slow from then on."""
    reached = 0

    def point(step: str, phase: str) -> None:
        nonlocal reached
        if phase in ("points", "rows") and step.endswith("_documents"):
            reached += 1
            if reached == 6:
                commands.control(library.ws.context(), name, wish)
            if reached >= 6:
                time.sleep(0.1)

    with monkeypatch.context() as patch:
        patch.setattr("runner.crash.point", point)
        found = run("apply", f"jobs/{name}.yaml", "--auto-approve")
    assert found.exit_code == 130, found.output


def test_saved_in_another_store(library: Library) -> None:
    before = library.world()
    library.job("forget", "delete", {"ids": ["d0001"]}, save_to="keep")
    library.do("forget")
    assert [name for name in library.world()["collections"] if name.startswith("keep/Docs__saved_")]
    assert library.world()["collections"][0] == "Docs"
    library.undo("forget")
    assert library.world() == before


def test_what_an_application_writes_afterwards_stays(library: Library) -> None:
    one, two = library.of("d0001", "d0002")
    library.job("change", "update_metadata", {"ids": ["d0001", "d0002"]}, metadata={"set": {"lang": "it"}})
    library.do("change")
    library.change_payload(one.points[0], score=99)
    library.change_payload(one.points[1], lang="es")
    library.delete_points([one.points[2]])
    library.sql(
        "UPDATE documents SET title = 'New' WHERE id = 'd0001'",
        "UPDATE documents SET meta = '{\"lang\": \"pt\"}' WHERE id = 'd0002'",
    )
    found = library.undo("change")
    assert "3 changed since were left alone" in found.stdout
    points, rows = library.points(), library.rows("documents")
    assert points[one.points[0]][1] == one.payload(0) | {"score": 99}
    assert points[one.points[1]][1] == one.payload(1) | {"lang": "es"}
    assert one.points[2] not in points
    assert points[two.points[0]][1] == two.payload(0)
    assert (rows["d0001"]["title"], rows["d0001"]["meta"], rows["d0002"]["meta"]) == (
        "New",
        one.metadata,
        {"lang": "pt"},
    )


def test_rolled_back_in_another_order(library: Library) -> None:
    """Jobs on other documents do not matter; one that changed the same since is undone first."""
    before = library.world()
    library.job("one", "add_tags", {"ids": ["d0001", "d0002"]}, tags=["x"])
    library.job("two", "reprocess", {"ids": ["d0003"]}, reprocess=SPLIT)
    library.job("three", "delete", {"ids": ["d0002"]})
    for name in ("one", "two", "three"):
        library.do(name)
    after = library.world()
    refused(
        run("rollback", "one", "--auto-approve"),
        1,
        "VD103 kb/Docs: job three changed some of the same documents since",
        "vecrun rollback three",
    )
    assert library.world() == after
    for name in ("three", "one", "two"):
        library.undo(name)
    assert library.world() == before


# Payloads of others ---------------------------------------------------------------------------------------------------------


def test_payloads_as_langchain_writes_them(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the text is one level down: paths of the job say so."""
    monkeypatch.setenv("VECRUN_TEST_APP", "")
    library = Library(ws)
    library.nest("metadata", "page_content")
    library.configure()
    library.fill(6)
    bare = {key: item for key, item in library.documents[1].payload(0).items() if key not in ("text", "tags")}
    library.change_payload(library.documents[1].points[0], metadata=bare)
    before, (first, second) = library.world(), library.of("d0001", "d0002")
    select = {"ids": [first.id, second.id]}
    library.job("tag", "add_tags", select, tags=["new"])
    library.do("tag")
    points = library.points()
    assert points[first.points[0]][1]["metadata"]["tags"] == ["new"]
    assert points[second.points[0]][1] == {"page_content": second.paragraphs[0], "metadata": {
        key: item for key, item in second.payload(0).items() if key != "text"} | {"tags": ["new"]}}  # fmt: skip
    library.undo("tag")
    assert library.world() == before
    library.job("change", "update_metadata", select, metadata={"set": {"source.owner": "x"}})
    library.do("change")
    assert library.points()[first.points[1]][1]["metadata"]["source"] == {"owner": "x", "year": 2021}
    library.undo("change")
    assert library.world() == before
    library.job("renew", "reprocess", select, reprocess=SPLIT)
    library.do("renew")
    held = sorted(
        (item["metadata"]["pos"], item["page_content"])
        for _, item in library.points().values()
        if item["metadata"]["document_id"] == "d0002"
    )
    assert held == list(enumerate(second.renewed))
    library.undo("renew")
    assert library.world() == before
    library.job("edit", "update_metadata", select, metadata={"merge": {"document_id": "x"}})
    refused(
        run("apply", "jobs/edit.yaml", "--auto-approve"), 1, "VX211 kb/Docs: metadata.document_id says which document"
    )


# Workers --------------------------------------------------------------------------------------------------------------------


def test_workers_and_one_is_killed(ws: Workspace, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, each with a partition; one is killed in the middle. All is done once, and comes back."""
    name = f"batch_{uuid.uuid4().hex[:10]}"
    servers.sql(pg_url, f"CREATE DATABASE {name}", f"CREATE DATABASE {name}_app")
    database, app = (servers.database(pg_url, one) for one in (name, f"{name}_app"))
    monkeypatch.setenv("VECRUN_TEST_APP", app)
    with contextlib.ExitStack() as ending:
        for one in (name, f"{name}_app"):
            ending.callback(servers.sql, pg_url, f"DROP DATABASE {one} WITH (FORCE)")
        redis = ending.enter_context(servers.redis_server())
        library = Library(ws, database_url=app)
        library.configure(
            state={"database": database}, broker={"url": redis.url, "namespace": name},
            limits={"lease_seconds": 5, "retry_delay": 0.1, "workers": 2},
        )  # fmt: skip
        library.fill(1000)
        before = library.world()
        library.job("forget", "delete", every(library), batch_size=20)
        ledger = LedgerWatch(database)
        ending.callback(ledger.close)
        team = Team(ws, ledger, ending.enter_context(contextlib.ExitStack()))
        first, _second = team.worker(), team.worker()
        applying = team.start("apply", "jobs/forget.yaml", "--auto-approve")
        working = """select count(*) from partitions p join workers w on w.worker = p.worker
            where p.status = 'running' and p.step = 3 and p.done > 0 and w.pid = %s"""
        team.until(lambda: ledger.query(working, first.pid)[0][0] == 1, of=applying)
        first.kill()
        team.ends(applying, 0, 60)
        assert ledger.query("select count(*) from partitions where step = 3")[0][0] == 2
        assert library.points() == {}
        assert library.rows("documents") == {}
        report = library.report("forget").values()
        assert [(one["status"], one["rows"]) for one in report] == [
            ("done", 1 + len(one.points)) for one in library.documents
        ]
        team.ends(team.start("rollback", "forget", "--auto-approve"), 0, 60)
        assert library.world() == before


def test_a_point_that_comes_while_its_document_is_deleted(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application adds points, one with a row and one before its row: nobody knows whether that is a new upload, so both
    stay, and it is told."""
    one, two = library.of("d0001", "d0002")
    library.job("forget", "delete", {"ids": ["d0001", "d0002"]})
    came: list[str] = []

    def point(step: str, phase: str) -> None:
        if (step, phase) == ("delete_documents", "points") and not came:
            came.append("late")
            with library.store() as store:
                schema = store.inspect(library.collection)
                assert schema is not None
                vectors = {schema.vectors[0].name: hash_vectors(["late", "again"], DIMENSION)}
                payloads = [{"document_id": one.id, "text": "late"}, {"document_id": two.id, "text": "again"}]
                store.upsert(library.collection, PointBatch(["late-1", "again-1"], vectors, Payloads(payloads)))
            library.sql("INSERT INTO documents (id, title) VALUES ('d0002', 'Made again')")

    with monkeypatch.context() as patch:
        patch.setattr("runner.crash.point", point)
        library.do("forget")
    assert (
        "points without a row came since for deleted documents: 1, of 'd0001'. They stay"
        in run("logs", "forget").stdout
    )
    points = library.points()
    assert points["late-1"][1] == {"document_id": "d0001", "text": "late"}
    assert points["again-1"][1] == {"document_id": "d0002", "text": "again"}
    library.undo("forget")
    points = library.points()
    assert points["late-1"][1] == {"document_id": "d0001", "text": "late"}
    assert points[one.points[0]][1] == one.payload(0)
    assert points["again-1"][1] == {"document_id": "d0002", "text": "again"}
    assert two.points[0] not in points  # it was made again


def test_edits_that_say_a_place_twice(library: Library) -> None:
    library.job("twice", "update_metadata", {"ids": ["d0001"]}, metadata={"set": {"x.y": 1, "x": 5}})
    found = run("validate", "jobs/twice.yaml")
    assert found.exit_code == 14
    assert "x and x.y are changed both: name each place once" in found.output


def test_odd_places_come_back(library: Library) -> None:
    """Keys with a dot, a number where an object is merged into, null: while an application changes another key."""
    one = library.of("d0001")[0]
    library.change_payload(one.points[0], **{"a.b": 1, "source": 5})
    library.sql("UPDATE documents SET meta = '{\"a.b\": 1, \"source\": 5}' WHERE id = 'd0001'")
    change = {"merge": {"source": {"x": 1}}, "remove": ["a.b"]}
    library.job("change", "update_metadata", {"ids": ["d0001"]}, metadata=change)
    library.job("tag", "add_tags", {"ids": ["d0001"]}, tags=["x", "x"])
    library.do("tag")
    assert library.points()[one.points[0]][1]["tags"].count("x") == 1
    library.do("change")
    library.change_payload(one.points[0], score=99)
    library.undo("change")
    library.undo("tag")
    wanted = one.payload(0) | {"a.b": 1, "source": 5, "score": 99}
    assert library.points()[one.points[0]][1] == wanted
    assert library.rows("documents")["d0001"]["meta"] == {"a.b": 1, "source": 5}


def test_a_second_try_after_another_job(library: Library) -> None:
    """What a later job did is undone after the job whose second try came later still."""
    before = library.world()
    library.ws.write(f"files/{library.of('d0002')[0].file}", "")
    library.job("anew", "reprocess", {"ids": ["d0001", "d0002"]}, **OPERATIONS["reprocess"])
    library.do("anew", status=3)
    library.job("tag", "add_tags", {"ids": ["d0002"]}, tags=["x"])
    library.do("tag")
    library.ws.write(f"files/{library.of('d0002')[0].file}", "\n\n".join(library.of("d0002")[0].renewed))
    assert run("retry-failed", "anew", "--auto-approve").exit_code == 0
    refused = run("rollback", "tag", "--auto-approve")
    assert refused.exit_code == 1
    assert "job anew changed some of the same documents since" in refused.output
    library.undo("anew")
    library.undo("tag")
    assert library.world() == before


def test_ids_that_are_hardly_numbers(library: Library) -> None:
    library.job("odd", "add_tags", {"ids": ["--5", "-", "9" * 5000, "d0001"]}, tags=["x"])
    library.do("odd", status=3)
    assert library.report("odd")["d0001"]["status"] == "done"
