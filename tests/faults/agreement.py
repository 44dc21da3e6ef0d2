"""Whether vectors and what is said of them agree: `moment`, whenever a process died; `ended`, once a run has ended.

Vectors are compared with what the model gives for the text, byte by byte. Both run in processes of their own (see
`nursery`).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import asdict, dataclass
from typing import Any

from runner import commands
from runner.commands import open_context
from runner.points import KeyRange
from runner.store import Store
from runner.vectors import text_key
from tests.faults.change import (
    INFO,
    VERSION,
    Scene,
    chunk_rows,
    database_of,
    embedder_of,
    info_before,
    load,
    marks,
    surroundings,
    versions_in,
)
from tests.faults.scene import JOB, opened
from tests.faults.truth import Counts, compare


@dataclass(frozen=True)
class Held:
    """A point as a store holds it: the models that give its vector for one of its texts."""

    models: frozenset[str]
    made: frozenset[tuple[str, str]]  # (model, text)
    mark: str | None


def _held(scene: Scene, store: Store, name: str, findings: list[str]) -> dict[str, Held]:
    """Point id as text -> what it holds. A vector that none of the models gives is a finding."""
    wanted = {str(point.id): point for point in scene.truth}
    sure: dict[bytes, set[tuple[str, str]]] = {}
    texts = sorted({text for point in scene.truth for text in (point.old_text, point.text)})
    for model in scene.models:
        for text, vector in zip(texts, scene.vectors(model, texts), strict=True):
            sure.setdefault(vector.tobytes(), set()).add((model, text))
    found: dict[str, Held] = {}
    for batch in store.scan(name, KeyRange(), None, 500):
        (vector,) = batch.vectors
        for row, point_id in enumerate(batch.ids):
            point = wanted[str(point_id)]
            made = {
                (model, text)
                for model, text in sure.get(batch.vectors[vector][row].tobytes(), set())
                if text in (point.old_text, point.text)
            }
            if not made:
                findings.append(f"{name}: {point_id!r} has a vector of no model for its text")
            mark = batch.payloads.dicts[row].get(VERSION)
            found[str(point_id)] = Held(frozenset(model for model, _ in made), frozenset(made), mark)
    return found


def moment(directory: str) -> dict[str, Any]:
    """What must hold whenever a process dies: marks and vectors agree, and search finds."""
    scene, findings = load(directory), list[str]()
    by_version = {version: name for name, version in scene.versions.items()}
    serving = open_context(scene.directory).states.serving()
    with opened(scene.store) as store:
        names = [name for name in store.collections() if name.startswith(scene.name)]
        # a collection on its way may not be readable yet, but then nobody reads it
        held = {name: _held(scene, store, name, findings) for name in names}
        pointer = serving.pointers.get(scene.alias)
        readers = (pointer.collection if pointer else "", store.aliases().get(scene.alias, ""))
        serve = set(filter(None, readers)) or {scene.name}
    compared = 0
    for number, collection, vector_id, version in versions_in(scene) if scene.change.rows else ():
        if collection != "kb" or not version or vector_id is None or vector_id not in held[scene.name]:
            continue
        compared += 1
        model = by_version[version]
        for name in serve:
            one = held[name].get(vector_id)
            if one is None and model != "new":
                continue  # it could not be embedded; its vector stands in the old collection
            if one is None or model not in one.models:
                what = sorted(one.models) if one else "missing"
                findings.append(f"row {number} says {model}, the vector of {vector_id!r} in {name} is {what}")
    for name, points in held.items():
        for point_id, one in points.items() if scene.change.marked else ():
            compared += 1
            if one.mark is not None and by_version[one.mark] not in one.models:
                findings.append(f"{name}: {point_id!r} says {by_version[one.mark]}, its vector is {sorted(one.models)}")
    findings += _wrong_marks(scene, held)
    findings += _search(scene, held)
    return {"compared": compared, "findings": findings[:6]}


def _wrong_marks(scene: Scene, held: dict[str, dict[str, Held]]) -> list[str]:
    """Marks of the ledger that say something else than the vectors. One may be missing, but never be wrong."""
    keys = {
        embedder_of(json.dumps(config | {"delay": 0})).identity().key: name for name, config in scene.models.items()
    }
    texts = {text_key(text): text for point in scene.truth for text in (point.old_text, point.text)}
    findings = []
    for place, item, model, text in marks(scene):
        if not model:
            continue  # it is being written
        points = held.get(place.partition("/")[2])
        if points is None:
            continue  # it was dropped just now; forgetting it comes next
        one = points.get(str(json.loads(item)))
        if one is None or (keys[model], texts[text]) not in one.made:
            what = sorted(one.models) if one else "missing"
            findings.append(f"the ledger says {place} {item} is {keys[model]} of {texts[text]!r}; it is {what}")
    return findings


def _search(scene: Scene, held: dict[str, dict[str, Held]]) -> list[str]:
    """Through the pointer, with the model it names: it works, and an exact text comes first where its vector is that model's."""
    context, findings = open_context(scene.directory), list[str]()
    serving = context.states.serving()
    place, model = serving.pointers.get(scene.alias), serving.models.get(scene.alias)
    if place is None:
        return []
    if model is None:
        return [f"{scene.alias} has no model"]
    points = held[place.collection]
    for point in [point for point in scene.truth if not point.bad][:: max(1, len(scene.truth) // 4)]:
        found = commands.search(context, scene.alias, point.text, k=3)
        if len(found.hits) != 3:
            findings.append(f"search found {len(found.hits)} points")
        if (model, point.text) not in points[str(point.id)].made:
            if scene.change.in_place or point.model == "ancient":
                continue  # of another model: search finds those of its own
            findings.append(f"{scene.alias} serves {place} with {model}, and its vectors are not of that model")
        same = {str(other.id) for other in scene.truth if other.text == point.text}
        if not same & {str(hit["id"]) for hit in found.hits[:1]}:
            findings.append(f"search for the text of {point.id!r} finds {[hit['id'] for hit in found.hits]}")
    return findings


def ended(directory: str, after: bool) -> dict[str, Any]:
    """Compare everything with the truth, after the change or after its rollback."""
    scene, findings, counts = load(directory), list[str](), Counts()
    before, now = json.loads((scene.directory / "before.json").read_text()), surroundings(scene)
    in_place, new = scene.change.in_place, scene.versions["new"]
    with opened(scene.store) as store:
        schema = store.inspect(scene.name)
        assert schema is not None
        vector = schema.vectors[0].name
        if after:
            counts += compare(store, scene.target, scene.batch(after=True, vector=vector))
        if not (after and in_place):
            counts += compare(store, scene.name, scene.batch(after=False, vector=vector))
        aliased = store.capabilities().aliases and not in_place
        saved = [name for name in now["collections"] if "__saved_" in name and name not in before["collections"]]
    expected = dict(before)
    if after:
        place = {scene.alias: f"kb/{scene.target}"}
        expected |= {
            "collections": sorted({*before["collections"], scene.target, *saved}),
            "aliases": {scene.alias: scene.target} if aliased else before["aliases"],
            "pointers": before["pointers"] | place, "models": before["models"] | {scene.alias: "new"},
        }  # fmt: skip
        if in_place and len(saved) != 1:
            findings.append(f"saved collections: {saved}")
        findings += _rows_after(scene) + _info_after(scene, new)
        del expected["tables"]
    for key, wanted in expected.items():
        if key != "marks" and now[key] != wanted:
            findings.append(f"{key}: {_difference(wanted, now[key])}")
    findings += _marks_ended(scene, before["marks"], after=after)
    status = open_context(scene.directory).states.load(JOB).status
    if status not in (("applied",) if after or scene.change.edited else ("new", "rolled_back")):
        findings.append(f"the state document says {status}")
    findings += _paid_twice(scene)
    return {"counts": asdict(counts), "findings": findings[:8]}


def _difference(wanted: Any, found: Any) -> str:
    if isinstance(wanted, str):
        lines = (set(wanted.splitlines()), set(found.splitlines()))
        return f"missing {sorted(lines[0] - lines[1])[:3]}, there is {sorted(lines[1] - lines[0])[:3]}"
    return f"expected {str(wanted)[:300]}, found {str(found)[:300]}"


def _rows_after(scene: Scene) -> list[str]:
    """Rows of embedded points carry the new version, all others what they had."""
    bad = {str(point.id) for point in scene.truth if point.bad}
    known = {str(point.id) for point in scene.truth}
    wanted = []
    for number, collection, vector_id, _, version in chunk_rows(scene):
        made = scene.change.rows and collection == "kb" and vector_id in known and vector_id not in bad
        wanted.append((number, collection, vector_id, scene.versions["new"] if made else version))
    wrong = [pair for pair in zip(wanted, versions_in(scene), strict=True) if pair[0] != pair[1]]
    return [f"{len(wrong)} rows are wrong: expected {one}, found {other}" for one, other in wrong[:2]]


def _info_after(scene: Scene, version: str) -> list[str]:
    with database_of(scene) as (database, _):
        rows = dict(database.execute(f"select id, {INFO} from knowledge_bases").fetchall())
    one, other = (json.loads(rows[n]) if isinstance(rows[n], str) else rows[n] for n in (1, 2))
    findings = [] if other == info_before(scene) | {"number": 2} else [f"the other knowledge base's info is {other}"]
    wanted = info_before(scene) | {
        "number": 1, "dimension": scene.models["new"]["dimension"], "version": version, "collection": scene.target,
    }  # fmt: skip
    stamp = one.pop("updated_at")
    del wanted["updated_at"]
    if one != wanted or stamp <= info_before(scene)["updated_at"]:
        findings.append(f"the knowledge base's info is {one}, {stamp}")
    return findings


def _marks_ended(scene: Scene, before: list[list[str]], *, after: bool) -> list[str]:
    """Every embedded point is recorded, so that an edit is noticed; after a rollback what was recorded before is."""
    found = marks(scene)
    if blank := [one for one in found if not one[2]]:
        return [f"{len(blank)} marks were left open, {blank[0]}"]
    if not after:
        lost = [one for one in before if one not in found]
        return [f"{len(lost)} marks are lost, {lost[0]}"] if lost else []
    key = embedder_of(json.dumps(scene.models["new"] | {"delay": 0})).identity().key
    there = {(place, item, model, text) for place, item, model, text in found}
    lost_ids = [
        point.id
        for point in scene.truth
        if not point.bad and point.number not in scene.trusted
        and (f"kb/{scene.target}", json.dumps(point.id), key, text_key(point.text)) not in there
    ]  # fmt: skip
    return [f"{len(lost_ids)} points are not recorded as embedded, {lost_ids[:3]}"] if lost_ids else []


def _paid_twice(scene: Scene) -> list[str]:
    """The ledger counts what the provider was asked for: each text at most once a run, whatever was killed, and after
    an edit just those that were edited."""
    points = [point for point in scene.truth if not point.bad]
    texts = {text for point in points for text in (point.old_text, point.text)}
    edited = {point.text for point in points if point.text != point.old_text}
    with contextlib.closing(sqlite3.connect(scene.directory / "state" / "ledger.db")) as ledger:
        key = embedder_of(json.dumps(scene.models["new"] | {"delay": 0})).identity().key
        query = (
            "select r.created, u.texts from usage u join runs r on r.run = u.run where u.model = ? order by r.created"
        )
        counts = [int(row[1]) for row in ledger.execute(query, (key,))]
    if scene.edits and any(count > len(edited) for count in counts[1:]):
        return [f"{max(counts[1:])} texts were embedded after {len(edited)} were edited"]
    used = max(counts, default=0)
    return [f"{used} texts were embedded and kept, of {len(texts)} different ones"] if used > len(texts) else []
