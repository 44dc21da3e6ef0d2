"""`vecrun demo --reembed`: a small real knowledge base gets a better model, offline, while another process searches it.

wordllama (64 numbers, then 256) becomes all-MiniLM-L6-v2 (384) in PostgreSQL with pgvector; back, and again; then ten
chunks are edited. Every step is the command a user would type, and what it should have done is looked up.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from runner import commands
from runner.demo import evidence
from runner.demo.handbook import FILES, FIRST, LAST, POINTER, QUESTIONS, WIDE, build, open_model
from runner.demo.reader import RESULTS, Reader
from runner.demo.stage import answer, chunks, empty, expect, postgres, say, vecrun
from runner.embedder import Embedder
from runner.state import write_atomically

CHUNK_CHARACTERS, LONGEST_TOPIC = 400, 7_000
EDITED = 10


def run(directory: Path, longest: int = LONGEST_TOPIC) -> None:
    """Everything, with what a user would want to read on the way; of topics with at most `longest` characters. Raises
    Failed when something is not as it should."""
    began = time.monotonic()
    models = {name: open_model(name) for name in ("small", "wide", "minilm")}  # one that is missing is told first
    directory = empty(directory)
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_atomically(directory / name, text)
    with postgres() as url:
        os.environ["VECRUN_DEMO_PG_URL"] = url
        say("A knowledge base in PostgreSQL: Python's own documentation, embedded with wordllama at 64 numbers")
        pieces = list({one.text: one for one in chunks(CHUNK_CHARACTERS, longest)}.values())  # some repeat others
        build(directory, url, pieces, models["small"])
        click.echo(f"{len(pieces):,} chunks in {FIRST}; their rows, and the model they are of, in SQLite")
        _tour(directory, url, models)
    click.echo(
        f"\nAll of it took {time.monotonic() - began:.0f} s. The workspace is in {directory}: look at vecrun.yaml, jobs/ and state/."
    )
    click.echo("demo: ok")


def _tour(directory: Path, url: str, models: Mapping[str, Embedder]) -> None:
    say("1. A wider vector, and a name that readers follow from now on: handbook-live")
    vecrun(directory, "validate")
    vecrun(directory, "apply", "jobs/wider.yaml", "--auto-approve")

    say("2. Another model. What would it take?")
    vecrun(directory, "model-check", "jobs/better.yaml")
    vecrun(directory, "plan", "jobs/better.yaml", "-o", "plans/better.json")
    say("A search before, through the name that readers follow")
    vecrun(directory, "search", POINTER, QUESTIONS[0], "-k", "1")
    old, found_old = evidence.picture(directory, url), _documents(directory)

    say("From now on another process searches all the time: it reads the pointer, and the model that belongs to it")
    reader = Reader(directory, POINTER, QUESTIONS, directory / ".demo" / "searches.jsonl")
    spans: dict[str, tuple[float, float]] = {}
    try:
        expect("the reader searches", reader.wait_for(1))
        with _span(spans, "the run"):
            vecrun(directory, "apply", "plans/better.json")
            expect("the reader goes on", reader.wait_for(len(QUESTIONS)))
        new, found_new = evidence.picture(directory, url), _documents(directory)
        evidence.changed(old, new, models["minilm"].identity().version)
        evidence.compare(found_old, found_new)

        say("Back to the old model: vectors, versions, alias, pointer and info must be what they were")
        with _span(spans, "the rollback"):
            vecrun(directory, "rollback", "better", "--auto-approve")
            expect("the reader goes on", reader.wait_for(len(QUESTIONS)))
        evidence.same(old, evidence.picture(directory, url))

        say("Once more: the vectors were kept, so nothing is embedded twice")
        with _span(spans, "the second run"):
            again = answer(directory, "apply", "jobs/better.yaml", "--unpin", "--auto-approve")
            expect("the reader goes on", reader.wait_for(len(QUESTIONS)))
        _used(again)
        click.echo("(The two requests are the search texts of the quality check, one to each model.)")
        expect("nothing is embedded twice", again["used"]["texts"] == 0)
        expect(
            "the second run makes the same vectors",
            evidence.picture(directory, url).collections[LAST] == new.collections[LAST],
        )
    finally:
        code = reader.stop()
    expect(f"the reader ends well (exit code {code})", code == 0)
    evidence.judge(reader.searches(), spans, {"wide": old.vectors(WIDE), "minilm": new.vectors(LAST)}, models)

    say(f"3. The application edits {EDITED} chunks. The job for changed texts embeds those and no others")
    before = evidence.picture(directory, url)
    edited = _edit(url, [row[0] for row in before.collections[LAST]])
    click.echo(f"Other texts now: {', '.join(edited)}")
    vecrun(directory, "plan", "jobs/edits.yaml")
    done = answer(directory, "apply", "jobs/edits.yaml", "--auto-approve")
    _used(done)
    expect(f"exactly {EDITED} texts are embedded", done["used"]["texts"] == EDITED)
    evidence.only(edited, before.vectors(LAST), evidence.picture(directory, url).vectors(LAST), models["minilm"])
    say("And the second time there is nothing to do")
    vecrun(directory, "plan", "jobs/edits.yaml", "--detailed-exitcode")
    say("A search after")
    vecrun(directory, "search", POINTER, QUESTIONS[0], "-k", "1")
    vecrun(directory, "runs")


@contextlib.contextmanager
def _span(spans: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    began = time.time()
    yield
    spans[name] = (began, time.time())


def _documents(directory: Path) -> list[list[str]]:
    """The documents that each question finds through the pointer, best first, each once."""
    context = commands.open_context(directory)
    found = [commands.search(context, POINTER, question, k=RESULTS) for question in QUESTIONS]
    return [list(dict.fromkeys(hit["payload"]["topic"] for hit in one.hits)) for one in found]


def _used(outcome: Mapping[str, Any]) -> None:
    """What the outcome says about embedding."""
    shown = {key: outcome["used"][key] for key in ("requests", "texts", "tokens", "known")}
    click.echo(f'{{"status": "{outcome["status"]}", "used": {shown}, …}}'.replace("'", '"'))


def _edit(url: str, ids: Sequence[str]) -> dict[str, str]:
    """Other texts for some chunks, as an application writes them: id -> text."""
    import psycopg
    from psycopg import sql

    query = sql.SQL(
        "update {} set payload = jsonb_set(payload, '{{text}}', to_jsonb(%s || (payload ->> 'text'))) "
        "where id = %s returning payload ->> 'text'"
    ).format(sql.Identifier(LAST))
    edited = {}
    with psycopg.connect(url) as server:
        for number in range(EDITED):
            point_id = ids[number * len(ids) // EDITED]
            row = server.execute(query, (f"Revised, note {number + 1}. ", point_id)).fetchone()
            assert row is not None
            edited[point_id] = str(row[0])
    return edited
