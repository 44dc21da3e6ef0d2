"""The quality gate: the user's queries, searched with the old and the new model, compared before readers are switched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.errors import VerificationFailed
from runner.executor.flow import retried
from runner.plan import CheckQuality, Place
from runner.points import PointId
from runner.transform import Embedding

if TYPE_CHECKING:
    from runner.executor import Run

#: Queries that are named in the report: those whose results changed most.
SHOWN = 5


def check(run: Run, step: CheckQuality) -> dict[str, Any]:
    """Search, compare, and refuse below the thresholds (VerificationFailed). `before` only records."""
    if run.dry:
        return {"queries": 0}
    before = None
    if step.phase == "after":
        before = _recorded(run, step)
    elif step.old is not None:
        before = _search(run, step.source, step.old, step)
    if step.phase == "before":
        return {"queries": len(step.queries), "hits": before}
    after = _search(run, step.target, step.new, step)
    result = compare(step, before, after)
    run.ledger.write_log(run.run, "info", "quality checked", **{key: result[key] for key in ("overlap", "recall")})
    problems = []
    if step.min_overlap is not None and result["overlap"] is not None and result["overlap"] < step.min_overlap:
        problems.append(
            f"overlap of old and new results is {result['overlap']:.2f}, at least {step.min_overlap:.2f} is asked for"
        )
    if step.min_recall is not None and result["recall"] is not None and result["recall"] < step.min_recall:
        problems.append(f"recall@{step.k} is {result['recall']:.2f}, at least {step.min_recall:.2f} is asked for")
    if problems:
        worst = [f"  {item['overlap']:.2f} {item['query']}" for item in result["worst"]]
        where = "Readers were not switched."
        if step.phase == "after":
            where = f"{step.target} holds the new vectors already, and serves them."
        raise VerificationFailed(
            "The new model finds other documents",
            "\n".join([*problems, *(["queries whose results changed most:", *worst] if worst else [])]),
            f"{where} Undo it: vecrun rollback {run.plan.job}\n"
            "To accept it, change quality in the job after that and apply again: the vectors are kept and cost nothing",
        )
    return result


def compare(step: CheckQuality, before: list[list[PointId]] | None, after: list[list[PointId]]) -> dict[str, Any]:
    """overlap: mean share of old results among the new; recall: of expected ids; None where nothing was given."""
    shares, worst = [], []
    for query, old, new in zip(step.queries, before or [[]] * len(after), after, strict=True):
        if before is not None:
            share = len(set(old) & set(new)) / len(old) if old else 1.0
            shares.append(share)
            worst.append({"overlap": round(share, 4), "query": query.text[:200]})
    return {
        "queries": len(step.queries), "k": step.k,
        "overlap": round(sum(shares) / len(shares), 4) if shares else None,
        "recall": _recall(step, after),
        "recall_before": _recall(step, before) if before is not None else None,
        "worst": sorted(worst, key=lambda item: (item["overlap"], item["query"]))[:SHOWN],
    }  # fmt: skip


def _recall(step: CheckQuality, hits: list[list[PointId]]) -> float | None:
    shares = [
        len(set(query.expect) & set(found)) / len(set(query.expect))
        for query, found in zip(step.queries, hits, strict=True)
        if query.expect
    ]
    return round(sum(shares) / len(shares), 4) if shares else None


def _search(run: Run, place: Place, embed: Embedding, step: CheckQuality) -> list[list[PointId]]:
    store, service = run.world.store(place.connection), run.services.of(embed)
    queries = service.ask_query([query.text for query in step.queries], run.stop)
    hits = retried(lambda: store.search(place.collection, embed.vector, queries, step.k), run.limits, run.stop)
    return [[hit.id for hit in found] for found in hits]


def _recorded(run: Run, step: CheckQuality) -> list[list[PointId]] | None:
    """The results from before the vectors were replaced."""
    for other, row in zip(run.plan.steps, run.ledger.steps_of(run.run), strict=True):
        if isinstance(other, CheckQuality) and other.phase == "before" and other.target == step.target:
            hits: list[list[PointId]] | None = row["result"]["hits"]
            return hits
    return None
