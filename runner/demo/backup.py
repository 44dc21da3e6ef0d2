"""`vecrun demo --backup`: LangChain's own tables are backed up and emptied, the next load fails, and the backup comes back.

A text-to-SQL system whose training texts stand in PostgreSQL with pgvector, written and searched by LangChain's own library.
Every step is the command a user would type; rows, files and what the search finds are compared exactly.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from runner.demo.stage import answer, empty, expect, postgres, say, vecrun
from runner.demo.training import Hit, Trained, broken_export, langchain, lessons
from runner.embedders import config_model, open_embedder
from runner.state import write_atomically

COLLECTION, EMBEDDING = "langchain_pg_collection", "langchain_pg_embedding"
FOLDER = Path("backups", "training-backup", "vector_bak")

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace

connections:
  app-db:
    type: sql
    url: ${env:VECRUN_DEMO_PG_URL}    # where LangChain's tables are
  backups:
    type: folder                      # or s3
    path: ./backups
"""

BACKUP = f"""\
apiVersion: vecrun/v1
kind: VectorBackup
metadata:
  name: training-backup
  description: Before each training the old one is saved, and its table is emptied.
spec:
  tables:
    connection: app-db
    names: [{COLLECTION}, {EMBEDDING}]
    truncate: true
  to: {{connection: backups}}
  keep: {{last: 7, daily: 14}}
"""

RESTORE = """\
apiVersion: vecrun/v1
kind: VectorRestore
metadata:
  name: training-restore
  description: The training of before, in place of whatever is there.
spec:
  from:
    connection: backups
    folder: training-backup/vector_bak
    backup: latest
  tables:
    connection: app-db
    names: all
    if_not_empty: replace
"""

FILES = {
    "vecrun.yaml": SETTINGS,
    "jobs/training-backup.yaml": BACKUP,
    "jobs/training-restore.yaml": RESTORE,
    ".gitignore": "/.demo/\n/backups/\n/state/\n",
}

Answers = Mapping[str, list[Hit]]


@dataclass(frozen=True)
class Picture:
    """Everything that stands in the database, as text, exactly."""

    collections: list[tuple[Any, ...]]
    embeddings: list[tuple[Any, ...]]
    tables: list[str]  # of LangChain, and undo tables


def run(directory: Path, tables: int | None = None) -> None:
    """Everything, with what a user would want to read on the way; taught are the first so many tables of the shop, or all.
    Raises Failed when something is not as it should."""
    began = time.monotonic()
    given: dict[str, Any] = {"provider": "wordllama", "dimension": 256}
    model = open_embedder(config_model("wordllama")(**given))
    directory = empty(directory)
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_atomically(directory / name, text)
    (directory / "backups").mkdir()
    taught = lessons(tables)
    with postgres() as url:
        os.environ["VECRUN_DEMO_PG_URL"] = url
        with langchain(url, model) as system:
            say("A text-to-SQL system: LangChain makes its tables and fills them with what it is trained with")
            system.teach(taught)
            click.echo(f"{len(taught):,} texts in {EMBEDDING}: descriptions of tables, and questions with their SQL")
            _tour(directory, url, system, broken_export(directory / ".demo" / "next-training.jsonl", taught))
    click.echo(
        f"\nAll of it took {time.monotonic() - began:.0f} s. The workspace is in {directory}: look at vecrun.yaml, jobs/, "
        "backups/ and state/."
    )
    click.echo("demo: ok")


def _tour(directory: Path, url: str, system: Trained, lines: int) -> None:
    vecrun(directory, "validate")
    vecrun(directory, "connections", "test")
    first, found = _picture(url), system.answers()
    say("What LangChain's search finds; it is written down, with ids, metadata and scores")
    _show(found)

    say("1. The next training is due: the old one is saved, and its table emptied")
    vecrun(directory, "plan", "jobs/training-backup.yaml", "-o", "plans/training-backup.json")
    vecrun(directory, "apply", "plans/training-backup.json", "--auto-approve")
    _expect_emptied(first, _picture(url))
    saved = _expect_files(directory, first)
    say("Nothing has changed since, so there is nothing to back up")
    vecrun(directory, "plan", "jobs/training-backup.yaml", "--detailed-exitcode")

    say(f"2. The next training fails: its file has wrong answers, and ends in the middle of line {lines + 1}")
    _fail(system, directory / ".demo" / "next-training.jsonl")
    half = _picture(url)
    expect("some wrong rows are there", 0 < len(half.embeddings) <= lines)
    wrong = system.answers()
    _show(wrong)
    expect("the search finds something else", all(wrong[question] != found[question] for question in found))

    say("3. Is the backup good? All of it is read")
    vecrun(directory, "backup", "check", "training-backup", "--read-data")
    say("It comes back, in place of the wrong rows")
    vecrun(directory, "plan", "jobs/training-restore.yaml", "-o", "plans/training-restore.json")
    vecrun(directory, "apply", "plans/training-restore.json", "--auto-approve")
    _expect_back(first, _picture(url))
    _expect_found(found, system.answers())

    say("4. That can be undone, too: the wrong rows are what somebody wants to look at")
    vecrun(directory, "rollback", "training-restore", "--auto-approve")
    _expect_as_before(half, _picture(url))
    expect("the search finds what it found then", system.answers() == wrong)
    say("And once more")
    vecrun(directory, "apply", "jobs/training-restore.yaml", "--unpin", "--auto-approve")
    _expect_back(first, _picture(url))
    _expect_found(found, system.answers())

    say("5. The training is to be tried again: the same job, so a second backup, and an empty table")
    full = _picture(url)
    done = answer(directory, "apply", "jobs/training-backup.yaml", "--auto-approve")
    _expect_emptied(full, _picture(url))
    _expect_same_rows(saved, done)
    say("What would go by now? Nothing of the backups: `keep` holds the last seven")
    vecrun(directory, "gc", "--dry-run")
    vecrun(directory, "runs")


def _expect_emptied(before: Picture, after: Picture) -> None:
    click.echo(f"\n{EMBEDDING}: {len(before.embeddings):,} rows before, {len(after.embeddings)} after")
    expect(f"{EMBEDDING} is empty", before.embeddings != [] and after.embeddings == [])
    expect(f"{COLLECTION} is as it was", before.collections == after.collections and len(after.collections) == 1)
    expect("no table came or went", before.tables == after.tables)


def _expect_files(directory: Path, before: Picture) -> Path:
    """The files of the backup, read by Python's own csv and hashlib. Returns its manifest."""
    folder = directory / FOLDER
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    say(f"What is in {folder.relative_to(directory)}")
    for name, content in files.items():
        click.echo(f"  {len(content):>9,} bytes  {name}")
    click.echo(files["vector_backup_log.txt"].decode())
    (name,) = (one for one in files if one.startswith("backup_"))
    manifest = {item["table"]: item for item in json.loads(files[name])["tables"]}
    expect("no temporary file is left", not any(one.endswith(".tmp") for one in files))
    for table, rows in ((COLLECTION, before.collections), (EMBEDDING, before.embeddings)):
        item = manifest[table]
        digest = hashlib.sha256(files[item["file"]]).hexdigest()
        expect(f"the manifest has the digest of {item['file']}", item["sha256"] == digest)
        read = list(csv.DictReader(io.StringIO(files[item["file"]].decode(), newline="")))
        expect(f"{item['file']} has all rows", len(read) == item["rows"] == len(rows))
        key, shown = ("uuid", "name") if table == COLLECTION else ("id", "document")
        place = 1 if table == COLLECTION else 3
        values = {row[key]: row[shown] for row in read}
        expect(f"{item['file']} has every text", values == {row[0]: row[place] for row in rows})
    return folder / name


def _expect_same_rows(first: Path, done: Mapping[str, Any]) -> None:
    """The second backup has the rows of the first one, and the figures that `apply --json` gives are those of its files."""
    saved, emptied = (step["result"] for step in done["steps"])
    for item in [*saved["tables"], *emptied["truncated"]]:
        click.echo(f"  {json.dumps(item)}")
    second = first.with_name(f"backup_{saved['backup']}.json")
    before, after = (json.loads(path.read_bytes())["tables"] for path in (first, second))
    same = [item["rows_digest"] for item in before] == [item["rows_digest"] for item in after]
    expect("both backups have the same rows", second != first and same)
    for item, known in zip(saved["tables"], after, strict=True):
        size = first.with_name(item["backup_file"]).stat().st_size
        expect(f"the figures of {item['table']} are those of its file", item["file_size"] == size == known["bytes"])
        expect(f"the rows of {item['table']} are those of the manifest", item["row_count"] == known["rows"])
    click.echo(f"{first.name} and {second.name}: the same rows, by their digests")


def _fail(system: Trained, path: Path) -> None:
    try:
        system.load(path)
    except ValueError as exc:
        click.echo(f"{type(exc).__name__}: {exc}")
        return
    expect("the training fails", holds=False)


def _expect_back(first: Picture, now: Picture) -> None:
    _rows("the collection", first.collections, now.collections)
    _rows("every row", first.embeddings, now.embeddings)
    click.echo(f"\nAs before, byte for byte: {len(now.embeddings):,} rows, {len(now.collections)} collection")


def _expect_as_before(before: Picture, now: Picture) -> None:
    _rows("the collection", before.collections, now.collections)
    _rows("every row", before.embeddings, now.embeddings)
    expect("no table is left that was not there", before.tables == now.tables)
    click.echo(f"\nAs it was after the failed training, byte for byte: {len(now.embeddings):,} rows")


def _rows(what: str, before: list[tuple[Any, ...]], now: list[tuple[Any, ...]]) -> None:
    expect(f"{what} is what it was", before == now)


def _expect_found(before: Answers, now: Answers) -> None:
    expect("LangChain's search finds the same: ids, texts, metadata and scores", before == now)
    hits = sum(len(one) for one in now.values())
    click.echo(
        f"LangChain's search finds the same: {len(now)} searches, {hits} hits with ids, texts, metadata and scores"
    )


def _show(answers: Answers) -> None:
    for question, hits in answers.items():
        if question.endswith("(SQL)"):
            sql = " ".join(str(hits[0].metadata["sql"]).split())
            click.echo(f"  {hits[0].score:.3f}  {hits[0].text}\n         {sql}")


def _picture(url: str) -> Picture:
    import psycopg

    with psycopg.connect(url) as server:
        collections = server.execute("SELECT uuid::text, name, cmetadata::text FROM langchain_pg_collection ORDER BY 1")
        embeddings = server.execute(
            "SELECT id, collection_id::text, embedding::text, document, cmetadata::text FROM langchain_pg_embedding ORDER BY 1"
        )
        tables = server.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        )
        return Picture(collections.fetchall(), embeddings.fetchall(), [row[0] for row in tables])
