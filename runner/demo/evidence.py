"""What a re-embedding must have done: everything that stands there before and after, compared exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np

from runner import commands
from runner.demo.handbook import LAST, POINTER, QUESTIONS, WIDE, app_database
from runner.demo.reader import RESULTS, Search
from runner.demo.stage import embedded, expect
from runner.embedder import Embedder
from runner.plan import Place
from runner.stores import config_model, open_store

#: id -> vector, float32 of shape (d,).
Vectors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Picture:
    """Everything a rollback has to bring back, exactly."""

    collections: dict[str, list[tuple[str, str, str]]]  # (id, vector, payload) of every point
    aliases: dict[str, str]
    serving: tuple[dict[str, Place], dict[str, str]]  # pointers and the models of their readers
    chunks: list[tuple[Any, ...]]
    info: str

    def vectors(self, name: str) -> Vectors:
        """Those of a collection."""
        return {key: np.array(text[1:-1].split(","), np.float32) for key, text, _payload in self.collections[name]}


def picture(directory: Path, url: str) -> Picture:
    """What stands there now."""
    import psycopg
    from psycopg import sql

    with open_store(config_model("pgvector")(type="pgvector", url=url)) as store:  # type: ignore[call-arg]
        names, aliases = store.collections(), store.aliases()
    collections = {}
    with psycopg.connect(url) as server:
        for name in names:
            query = sql.SQL("select id, embedding::text, payload::text from {} order by id")
            collections[name] = server.execute(query.format(sql.Identifier(name))).fetchall()
    with app_database(directory) as database:
        rows = database.execute("select * from chunks order by id").fetchall()
        (info,) = database.execute("select embedding_model_info from knowledge_bases").fetchone()
    serving = commands.open_context(directory).states.serving()
    return Picture(collections, aliases, (serving.pointers, serving.models), rows, info)


def changed(old: Picture, new: Picture, version: str) -> None:
    """The run did what it should, as the application sees it."""
    versions = Counter(row[3] for row in new.chunks)
    click.echo(
        f"\nchunks.embedding_model_version: {', '.join(f'{name} in {n:,} rows' for name, n in versions.items())}"
    )
    click.echo(f"knowledge_bases.embedding_model_info: {new.info}")
    click.echo(f"{POINTER}: {new.aliases[POINTER]}, queries with {new.serving[1][POINTER]}")
    expect("every chunk carries the new version", set(versions) == {version})
    expect("readers are switched", new.aliases[POINTER] == LAST and new.serving[1][POINTER] == "minilm")
    expect("the old collection is as it was", new.collections[WIDE] == old.collections[WIDE])
    expect("every point is in the new one", len(new.collections[LAST]) == len(old.collections[WIDE]))


def same(old: Picture, now: Picture) -> None:
    """Nothing of the run is left."""
    for what, before, after in (
        ("vectors and payloads", old.collections, now.collections),
        ("model versions", old.chunks, now.chunks),
        ("alias", old.aliases, now.aliases),
        ("serving pointer", old.serving, now.serving),
        ("model info", old.info, now.info),
    ):
        expect(f"{what} are what they were before", before == after)
    points = sum(len(rows) for rows in now.collections.values())
    click.echo(
        f"\nAs before, byte for byte: {points:,} vectors and payloads, {len(now.chunks):,} versions, alias, pointer, info"
    )


def compare(old: list[list[str]], new: list[list[str]]) -> None:
    """Both models must find the same documents for most questions: that they find something is not enough."""
    agreed = sum(bool(set(a) & set(b)) for a, b in zip(old, new, strict=True))
    wide = max(map(len, QUESTIONS))
    click.echo(
        f"\nDocuments among the first {RESULTS} results; {agreed} of {len(QUESTIONS)} questions find the same one with both models"
    )
    click.echo(f"  {'':{wide}}  {'wordllama, 256':34} MiniLM, 384")
    for question, one, other in zip(QUESTIONS, old, new, strict=True):
        click.echo(f"  {question:{wide}}  {', '.join(one):34} {', '.join(other)}")
    expect("most questions find the same document with both models", agreed > len(QUESTIONS) // 2)


def judge(
    searches: Sequence[Search], spans: dict[str, tuple[float, float]], vectors: Mapping[str, Vectors],
    models: Mapping[str, Embedder],
) -> None:  # fmt: skip
    """Every search of the reader, against all points compared one by one with the same model."""
    right = {name: _nearest(models[name], vectors[name]) for name in vectors}
    places = {"wide": WIDE, "minilm": LAST}
    failed = [one for one in searches if one.error]
    wrong = [
        one for one in searches
        if not one.error and not (
            places.get(one.model) == one.collection and len(set(one.ids)) == RESULTS
            and right[one.model][one.question].issuperset(one.ids)
        )
    ]  # fmt: skip
    during = {
        name: sum(start <= one.at <= end for one in searches) for name, (start, end) in spans.items()
    }  # fmt: skip
    served = [name for name, _group in groupby(one.model for one in searches if not one.error)]
    click.echo(f"\nThe other process: {' → '.join(served)}")
    click.echo("  searches during " + ", ".join(f"{name}: {count:,}" for name, count in during.items()))
    click.echo(f"  searches while it ran: {len(searches):,}, failed: {len(failed):,}, wrong results: {len(wrong):,}")
    for one in [*failed, *wrong][:3]:
        click.echo(f"  {one}")
    expect("no search fails", not failed)
    expect("no search finds anything else than its model finds", not wrong)
    expect("it searched during each of them", all(during.values()))
    expect("readers were switched there, back, and there again", served == ["wide", "minilm", "wide", "minilm"])


def _nearest(model: Embedder, vectors: Vectors) -> list[set[str]]:
    """For each question the ids that may be among the first results; more than RESULTS where scores are equal."""
    ids, matrix = list(vectors), np.stack(list(vectors.values()))
    matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    found = []
    for query in model.embed(QUESTIONS, "query").vectors:
        scores = matrix @ query / np.linalg.norm(query)
        least = np.sort(scores)[-RESULTS] - 1e-5
        found.append({ids[row] for row in np.flatnonzero(scores >= least)})
    return found


def only(edited: dict[str, str], old: Vectors, new: Vectors, model: Embedder) -> None:
    """The vectors of the edited chunks are those of their new texts, and all others are what they were."""
    moved = {point_id for point_id in new if not np.array_equal(old[point_id], new[point_id])}
    wanted = embedded(model, list(edited.values()))
    close = all(np.abs(new[point_id] - row).max() < 1e-5 for point_id, row in zip(edited, wanted, strict=True))
    click.echo(f"{len(moved)} vectors are new, {len(new) - len(moved):,} are what they were, byte for byte")
    expect("the vectors of the edited chunks are new, and no others", moved == set(edited) and old.keys() == new.keys())
    expect("the new vectors are those of the new texts", close)
