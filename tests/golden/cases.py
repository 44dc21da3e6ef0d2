"""The workspaces of the golden plans: files stores with fixed points, so that each plan is always the same."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from runner import commands
from runner.plan import Plan
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    PayloadField,
    Payloads,
    PayloadType,
    PointBatch,
    VectorField,
    VectorIndex,
)
from runner.report import html, markdown, text
from tests import worlds
from tests.e2e import migrating
from tests.e2e.knowledge import Knowledge, Server, text_of
from tests.e2e.relations import Relations
from tests.e2e.workspace import JOB, Workspace

HERE = Path(__file__).parent


def put(ws: Workspace, name: str, count: int, store: str = "a", unit: bool = True) -> None:
    """A collection with an index and declared fields."""
    index = VectorIndex(type="hnsw", m=16, ef_construction=100)
    schema = CollectionSchema(
        name=name, id_kind=IdKind.INT,
        vectors=(VectorField(name="text", dimension=8, distance=Distance.COSINE, index=index),),
        payload=(
            PayloadField(name="document_id", type=PayloadType.KEYWORD, indexed=True),
            PayloadField(name="chunk", type=PayloadType.INTEGER),
        ),
    )  # fmt: skip
    batch: PointBatch = worlds.points(schema, count, unit=unit)
    with ws.store(store) as opened:
        opened.create(schema)
        if count:
            opened.upsert(name, batch)
        opened.finish(schema)


def simple(ws: Workspace) -> Plan:
    """One collection, with a cutover."""
    put(ws, "kb", 40)
    return ws.plan()


def everything(ws: Workspace) -> Plan:
    """Several collections, changed on the way, ids mapped, the source deleted at the end, one alias moved."""
    for name in ("kb_de", "kb_en"):
        put(ws, name, 20)
    put(ws, "old", 3, store="b")
    with ws.store("b") as store:
        store.set_alias("live-kb_de_v2", "old")
    with ws.store("a") as store:
        store.set_alias("reader", "kb_en")
    ws.write(
        "jobs/move.yaml",
        JOB.split("  collections:")[0]
        + "  collections:\n"
        + "    - from: 'kb_*'\n      to: '{name}_v2'\n      vectors: {text: body}\n      index: {body: {type: hnsw, m: 32}}\n"
        + "      payload: {drop: [seed], rename: {document_id: doc}, cast: {score: string}, set: {tenant: 'a|b'}}\n"
        + "      where: [{field: active, value: true}]\n      ids: {mode: uuid5}\n"
        + "  cutover: {alias: 'live-{name}'}\n  verify: {mode: sample, sample: 10}\n  source_after: delete\n  retention: 12h\n"
        + "  accept: [{code: VD101, reason: moved for good}]\n",
    )
    return ws.plan()


def live(ws: Workspace) -> Plan:
    """A source that is written to, with ids that are mapped; without a field, so that it is not accepted yet."""
    put(ws, "kb", 40)
    ws.write("jobs/move.yaml", JOB.replace("to: kb2", "to: kb2\n      ids: {mode: uuid5}") + "  live: {bound: 10}\n")
    return ws.plan()


def hold(ws: Workspace) -> Plan:
    """The same by a field, with a hold before the cutover; the source is deleted at the end."""
    put(ws, "kb", 40)
    ws.write(
        "jobs/move.yaml",
        JOB + "  live: {field: chunk, hold: true}\n  source_after: delete\n  accept: [{code: VD101, reason: moved}]\n",
    )
    return ws.plan()


def blocked(ws: Workspace) -> Plan:
    """A target with other dimensions and points in it."""
    put(ws, "kb", 40)
    ws.fill(3, store="b", name="kb2", dimension=4, vector="")
    return ws.plan()


def rollback(ws: Workspace) -> Plan:
    """The way back, with points in the target that came later."""
    put(ws, "kb", 40)
    ws.apply()
    with ws.store("b") as store:
        schema = store.inspect("kb2")
        assert schema is not None
        store.upsert("kb2", worlds.points(schema, 2, seed=9, unit=True))
    return commands.plan_rollback(ws.context(), "move")


def knowledge(ws: Workspace) -> Knowledge:
    """A knowledge base with models; texts of one that was refused, and of ten that are the same."""
    models = {
        "wide": {"provider": "hash", "model": "wide", "dimension": 16, "text_tokens": 20, "price": 20},
        "same": {"provider": "hash", "model": "same", "dimension": 8, "text_tokens": 20, "tokens_per_minute": 100_000},
    }
    made = Knowledge(ws, Server("http://127.0.0.1:9"), models=models)
    made.configure()
    made.fill({f"p{number:03}": text_of(number % 30) for number in range(40)})
    made.say({"p003": "much " * 30})
    return made


def embed(ws: Workspace) -> Plan:
    """Another model with other dimensions: a new collection, of one that is written to. It costs more than allowed."""
    kb = knowledge(ws)
    kb.job(
        model="wide", live={"bound": 10}, budget={"usd": 0.001}, failures={"allow": 1},
        quality={"queries": ["rice", {"text": "train", "expect": ["p001"]}], "k": 5, "min_overlap": 0.3, "min_recall": 1.0},
    )  # fmt: skip
    return commands.plan(ws.context(), ws.root / "jobs" / "change.yaml")


def replace(ws: Workspace) -> Plan:
    """Vectors replaced in place, in a collection that is written to."""
    kb = knowledge(ws)
    kb.job(model="same", strategy="replace", live={}, version_field="model", text={"column": "content"})
    return commands.plan(ws.context(), ws.root / "jobs" / "change.yaml")


def incremental(ws: Workspace) -> Plan:
    """Some texts were edited since."""
    kb = knowledge(ws)
    kb.job(model="same", strategy="incremental", cutover=None, knowledge_base=None, failures={"allow": 1})
    context, job = ws.context(), ws.root / "jobs" / "change.yaml"
    commands.apply(context, commands.plan(context, job))
    kb.say({"p007": "another text", "p008": "one more"})
    return commands.plan(context, job)


def put_back(ws: Workspace) -> Plan:
    """The way back from vectors replaced in place."""
    kb = knowledge(ws)
    kb.job(model="same", strategy="replace", failures={"allow": 1})
    context = ws.context()
    commands.apply(context, commands.plan(context, ws.root / "jobs" / "change.yaml"))
    return commands.plan_rollback(context, "change")


def retry(ws: Workspace) -> Plan:
    """Another try for a text that was refused."""
    kb = knowledge(ws)
    kb.job(model="wide", failures={"allow": 1})
    context = ws.context()
    commands.apply(context, commands.plan(context, ws.root / "jobs" / "change.yaml"))
    made = commands.plan_retry(context, "change")
    assert made is not None
    return made


#: Of jobs on documents.
DOCUMENTS = """\
apiVersion: vecrun/v1
kind: BatchOperation
metadata: {{name: batch}}
spec:
  connection: a
  collection: kb
  documents:
    connection: app
    table: documents
    name_column: title
    file_column: file
    tags_column: tags
    chunks: {{table: chunks, text_column: content, position_column: position}}
  files: {{connection: library}}
  points: {{position_field: position}}
  {more}
"""


def documents(ws: Workspace, more: str) -> commands.Context:
    """A dozen documents of two chunks: points, rows and files; a table that refers to them."""
    schema = CollectionSchema(
        name="kb", id_kind=IdKind.STRING, vectors=(VectorField(name="", dimension=8, distance=Distance.COSINE),)
    )
    payloads = [
        {
            "document_id": f"d{number // 2}",
            "position": number % 2,
            "text": f"text {number}",
            "words": number,
            "tags": ["a"],
        }
        for number in range(24)
    ]
    batch = PointBatch(
        [f"p{number:02}" for number in range(24)], {"": np.eye(24, 8, dtype=np.float32)}, Payloads(payloads)
    )
    batch.vectors[""][8:] = 0.5
    with ws.store("a") as opened:
        opened.create(schema)
        opened.upsert("kb", batch)
        opened.finish(schema)
    with contextlib.closing(sqlite3.connect(ws.root / "app.db")) as database, database:
        database.executescript(
            "create table documents (id text primary key, title text, file text, tags json);"
            "create table chunks (id integer primary key, document_id text references documents, vector_id text,"
            " content text, position integer);"
            "create table quotes (id integer primary key, document_id text references documents on delete cascade);"
        )
        rows = [(f"d{number}", f"Title {number}", f"d{number}.txt", '["a"]') for number in range(12)]
        database.executemany("insert into documents values (?, ?, ?, ?)", rows)
        database.executemany(
            "insert into chunks (document_id, vector_id, content, position) values (?, ?, ?, ?)",
            [(f"d{number // 2}", f"p{number:02}", f"text {number}", number % 2) for number in range(24)],
        )
    for number in range(12):
        ws.write(f"library/d{number}.txt", f"text {2 * number}\n\nanother text {number}, longer than it was before")
    text = (ws.root / "vecrun.yaml").read_text()
    more_connections = "  app: {type: sql, url: 'sqlite:///./app.db'}\n  library: {type: folder, path: ./library}\n"
    models = "models:\n  same: {provider: hash, dimension: 8}\n"
    ws.write("vecrun.yaml", text.replace("connections:\n", "connections:\n" + more_connections, 1) + models)
    ws.write("jobs/batch.yaml", DOCUMENTS.format(more=more))
    return ws.context()


def planned(context: commands.Context, ws: Workspace) -> Plan:
    """The plan of the job on documents."""
    return commands.plan(context, ws.root / "jobs" / "batch.yaml")


def documents_delete(ws: Workspace) -> Plan:
    """Documents of a file of ids, with rows and files; one is not there, and another table refers to them."""
    ws.write("gone.txt", "d1\nd2\nd3\nd99\n")
    return planned(
        documents(ws, "operation: delete\n  delete: {files: true}\n  select: {file: gone.txt}\n  retention: 7d"), ws
    )


def documents_edit(ws: Workspace) -> Plan:
    """Metadata of documents that a filter finds; all of them, with more than can be shown."""
    more = "operation: update_metadata\n  metadata: {merge: {reviewed: {by: legal}}, set: {status: final}, remove: [words]}\n"
    return planned(documents(ws, more + "  select: {where: [{field: words, op: gte, value: 2}]}"), ws)


def documents_reprocess(ws: Workspace) -> Plan:
    """Chunks out of files; one chunk of each document stays."""
    more = "operation: reprocess\n  reprocess: {parse: true, split: {size: 50}, model: same}\n"
    return planned(documents(ws, more + "  select: {query: \"select id from documents where id <= 'd2'\"}"), ws)


def documents_back(ws: Workspace) -> Plan:
    """The way back from tags that were added."""
    context = documents(ws, "operation: add_tags\n  tags: [b]\n  select: {ids: [d1, d2]}")
    commands.apply(context, planned(context, ws))
    return commands.plan_rollback(context, "batch")


def migration(ws: Workspace, *steps: str, accept: str = "") -> migrating.Migration:
    """A migration of a relational database, with rows that a rule leaves out."""
    os.environ["MIGRATION_KEY"] = migrating.KEY
    made = migrating.Migration.begin(ws.root, Relations("sqlite:///./app.db"))
    made.fill()
    made.add(100, "{broken")
    made.steps(*steps, otherwise="skip", accept=accept)
    return made


def sql(ws: Workspace) -> Plan:
    """Tables, a copy, rows with encryption, a column that goes, SQL without a way back; a column that is encrypted in place."""
    final = migrating.LABEL[: migrating.LABEL.index("        rollback:")].replace("name: label", "name: final")
    return migration(ws, *migrating.ALL, migrating.LABEL, migrating.ENCRYPT, final).plan()


def sql_back(ws: Workspace) -> Plan:
    """The way back from all of it, with a row that came since."""
    made = migration(ws, *migrating.ALL, migrating.LABEL, accept="VD107")
    made.apply()
    made.relations.run("INSERT INTO accounts VALUES ('x', 'theirs', 'y')")
    return made.back()


CASES: dict[str, Callable[[Workspace], Plan]] = {
    "simple": simple,
    "everything": everything,
    "live": live,
    "hold": hold,
    "blocked": blocked,
    "rollback": rollback,
    "embed": embed,
    "replace": replace,
    "incremental": incremental,
    "put-back": put_back,
    "retry": retry,
    "documents-delete": documents_delete,
    "documents-edit": documents_edit,
    "documents-reprocess": documents_reprocess,
    "documents-back": documents_back,
    "sql": sql,
    "sql-back": sql_back,
}

#: Those that are kept as pages, too.
PAGES = ("blocked", "documents-delete", "sql")


@contextmanager
def workspace() -> Iterator[Workspace]:
    """A workspace that is the current folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        made = Workspace.create(Path(folder))
        os.chdir(folder)
        try:
            yield made
        finally:
            os.chdir(before)


#: What differs between two runs or machines, and what stands there instead.
CHANGING = (
    (r"sha256:[0-9a-f]{64}", "sha256:…"),
    (r"plan `[0-9a-f]{12}`", "plan `…`"),
    (r"spec `[0-9a-f]{12}`", "spec `…`"),
    (r"r-\d{8}-\d{6}-[0-9a-f]{6}", "r-RUN"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", "TIME"),
    (r'"(lineage|tool_version)": "[^"]*"', r'"\1": "…"'),
    (r'"(seconds|bytes)": [\d.]+', r'"\1": 0'),
    (r"([Rr]eading alone (takes )?)(under )?[\d.]+ (s|min|h)\b", r"\1…"),
    (r"(about )[\d.]+ (bytes|kB|MB)\b", r"\1…"),
    (r"vecrun_undo_[0-9a-f]{10}", "vecrun_undo_…"),
    (r"__saved_[0-9a-f]{8}", "__saved_…"),
    (r"[\d,]+ texts a second", "… texts a second"),
    (r"(about |under )[\d.,]+ (s|min|h)\b", "…"),
)
#: The same of pages. Their style and their script are no part of the plan.
CHANGING_PAGES = (
    (r"(?s)<(style|script)>.*?</\1>", r"<\1>…</\1>"),
    (r"sha256-[\w+/=]+", "sha256-…"),
    (r"<dt>Plan</dt><dd><code>[0-9a-f]{12}<", "<dt>Plan</dt><dd><code>…<"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "TIME"),
    (r"lineage <code>[^<]*<", "lineage <code>…<"),
    (r'(content="|<dd>)vecrun [\w.+-]+', r"\1vecrun …"),
)


def forms(name: str) -> dict[str, str]:
    """File name -> content, for the forms of a plan."""
    with workspace() as ws:
        made = CASES[name](ws)
        shown = {f"{name}.txt": text.plan(made) + "\n", f"{name}.md": markdown.plan(made), f"{name}.json": made.dumps()}
        if name in PAGES:
            page = html.plan(made, f"plans/{name}.json")
            for pattern, instead in CHANGING_PAGES:
                page = re.sub(pattern, instead, page)
            shown[f"{name}.html"] = page
        return {file: normal(content, ws) for file, content in shown.items()}


def normal(content: str, ws: Workspace) -> str:
    content = content.replace(str(ws.root), "/WORKSPACE")
    for pattern, instead in CHANGING:
        content = re.sub(pattern, instead, content)
    return content
