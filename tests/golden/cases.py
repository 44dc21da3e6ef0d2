"""The workspaces of the golden plans: files stores with fixed points, so that each plan is always the same."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runner import commands
from runner.plan import Plan
from runner.points import (
    CollectionSchema,
    Distance,
    IdKind,
    PayloadField,
    PayloadType,
    PointBatch,
    VectorField,
    VectorIndex,
)
from runner.report import markdown, text
from tests import worlds
from tests.e2e.knowledge import Knowledge, Server, text_of
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
}


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


def forms(name: str) -> dict[str, str]:
    """File name -> content, for the three forms of a plan."""
    with workspace() as ws:
        made = CASES[name](ws)
        shown = {f"{name}.txt": text.plan(made) + "\n", f"{name}.md": markdown.plan(made), f"{name}.json": made.dumps()}
        return {file: normal(content, ws) for file, content in shown.items()}


def normal(content: str, ws: Workspace) -> str:
    content = content.replace(str(ws.root), "/WORKSPACE")
    for pattern, instead in CHANGING:
        content = re.sub(pattern, instead, content)
    return content
