"""What must hold of documents: `moment`, whenever a process has died; `ended`, once a run has ended.

What a document becomes is taken from one run that nobody disturbed (`remember`), after it was held against the texts that
the documents were made from. All three run in processes of their own (see `nursery`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from runner.commands import open_context
from runner.documents import SqlConfig
from runner.documents import rows as tables
from runner.documents.database import Database
from runner.plan import Change, UndoTables
from tests.faults.papers import LOST_FILES, TRASH, Scene, Text, load, picture, report
from tests.faults.scene import JOB
from tests.faults.truth import Counts


def remember(directory: str) -> list[str]:
    """After a run that nobody disturbed: what it made of the world is what all others must make of it."""
    scene = load(directory)
    after, said = picture(scene), report(scene)
    (scene.directory / "after.json").write_text(json.dumps(after | {"report": said}))
    before = json.loads((scene.directory / "before.json").read_text())
    return _meaning(scene, before, after, {row[0]: row[1] for row in said})


def _meaning(scene: Scene, before: dict[str, Any], after: dict[str, Any], said: dict[str, str]) -> list[str]:
    """Whether the undisturbed run did what it was asked for."""
    findings, task = list[str](), scene.task
    if sorted(said) != sorted(scene.wanted):
        findings.append(f"the report names {len(said)} documents, {len(scene.wanted)} were selected")
    if said.get("nobody") != "failed":
        findings.append(f"a document that is not there is {said.get('nobody')}")
    of = defaultdict[str, list[dict[str, Any]]](list)
    for point, (vectors, payload) in after["points"].items():
        of[json.loads(payload)["document_id"]].append(json.loads(payload) | {"_id": point, "_vectors": vectors})
    for one in scene.texts:
        mine = sorted(of[one.id], key=lambda item: item["position"])
        rows = [row for row in after["chunks"].values() if row[1] == one.id]
        touched = one.id in scene.wanted and said[one.id] == "done"
        if not touched or task.edits or task.operation == "embed":
            right = [item["text"] for item in mine] == one.old
        elif task.operation == "delete":
            right = not mine and not rows and one.id not in after["documents"] and one.file not in after["files"]
        else:
            right = [item["text"] for item in mine] == one.paragraphs and all("lang" in item for item in mine)
        right = right and {item["_id"] for item in mine} == {row[2] for row in rows}
        right = right and [row[3] for row in sorted(rows, key=lambda row: row[4])] == [item["text"] for item in mine]
        if touched and task.operation == "tags":
            right = right and all({"seen", "x"} <= set(item["tags"]) for item in mine)
            right = right and {"seen", "x"} <= set(json.loads(after["documents"][one.id][5]))
        if touched and task.operation == "metadata":
            right = right and all(item["lang"] == "fr" and "page" not in item for item in mine)
            right = right and json.loads(after["documents"][one.id][4])["source"]["by"] == "audit"
        model = "second" if touched and task.operation == "embed" else "first"
        made = scene.vectors(model, [item["text"] for item in mine]) if mine else []
        right = right and all(
            vector.tobytes().hex() in item["_vectors"] for vector, item in zip(made, mine, strict=True)
        )
        if not right:
            findings.append(f"undisturbed: {one.id} ({said.get(one.id)}) is {mine}, {rows}")
    wrong = [one.id for one in scene.texts if one.id in scene.wanted and said[one.id] != _expected(scene, one)]
    if wrong:
        findings.append(f"undisturbed: {[(one, said[one]) for one in wrong]} are not as expected")
    if before["points"] == after["points"]:
        findings.append("undisturbed: nothing has changed")
    return findings[:5]


def _expected(scene: Scene, one: Text) -> str:
    operation = scene.task.operation
    if operation == "parse" and (one.file is None or one.number in LOST_FILES):
        return "failed"
    if scene.task.chunked and one.old == one.paragraphs:
        return "unchanged"
    return "unchanged" if operation == "embed" and not one.old else "done"


# -- what must hold ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runs:
    """What the ledger says: undo tables of runs that can still be undone, and every run."""

    undo: list[UndoTables]
    names: set[str]


def _runs(scene: Scene) -> _Runs:
    undo, names = list[UndoTables](), set[str]()
    for run, plan in scene.runs():
        names.add(run)
        for step in plan.steps:
            change = step if isinstance(step, Change) else getattr(step, "of", None)
            if isinstance(change, Change) and change.undo is not None and change.undo not in undo:
                undo.append(change.undo)
    return _Runs(undo, names)


def moment(directory: str) -> dict[str, Any]:
    """What must hold whenever a process has died, before anything goes on."""
    scene = load(directory)
    before = json.loads((scene.directory / "before.json").read_text())
    path = scene.directory / "after.json"
    after = json.loads(path.read_text()) if path.exists() else before
    runs, findings = _runs(scene), list[str]()
    database = Database(SqlConfig(type="sql", url=scene.url))
    try:
        explained, saved_files = set[str](), set[str]()
        for undo in runs.undo:
            explained |= tables.explained(database, scene.rows, undo)
            saved_files |= _saved_files(scene, undo)
    finally:
        database.close()
    now = picture(scene)
    claimed = set(now["chunks"])
    lacking = [point for point in claimed if point not in now["points"]]
    findings += [f"{len(lacking)} rows claim points that are not there: {lacking[:3]}"] if lacking else []
    stray = [point for point in now["points"] if point not in claimed | explained]
    findings += [f"{len(stray)} points that no row explains: {stray[:3]}"] if stray else []
    findings += _files(scene, now, saved_files, runs.names)
    findings += _states(scene, before, after, now)
    return {"compared": len(now["points"]), "findings": findings[:6]}


def _saved_files(scene: Scene, undo: UndoTables) -> set[str]:
    """Files that rows of an undo table name."""
    with scene.database() as (database, _):
        try:
            rows = database.execute(f'select file from "{undo.documents}"').fetchall()
        except Exception:  # of either driver: the table is not there
            return set()
    return {row[0] for row in rows if row[0] is not None}


def _files(scene: Scene, now: dict[str, Any], saved: set[str], runs: set[str]) -> list[str]:
    """Each file a row names is there, and each file that is there is named, by a row or by a row that was taken out."""
    lost = {one.file for one in scene.texts if one.number in LOST_FILES}
    named = {row[2] for row in now["documents"].values() if row[2] is not None} - lost
    findings = [f"the file of a row is gone: {one}" for one in named if one not in now["files"]]
    for key in now["files"]:
        run, _, rest = key.removeprefix(f"{TRASH}/").partition("/") if key.startswith(f"{TRASH}/") else ("", "", key)
        if (run and run not in runs) or rest not in named | saved:
            findings.append(f"file {key} is of nobody")
    findings += [
        f"file {key} of a row that was taken out is neither there nor in the trash"
        for key in saved - lost - named
        if key not in now["files"] and not any(one.endswith(f"/{key}") for one in now["files"])
    ]
    return findings[:3]


def _states(scene: Scene, before: dict[str, Any], after: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Every point and row is as it was or as it will be; a document has all its chunks of one time; rows are not ahead of
    their points."""
    findings = []
    for what in ("points", "documents"):
        for key, found in now[what].items():
            if found not in (before[what].get(key), after[what].get(key)):
                findings.append(f"{what} {key} is neither as before nor as after: {found}")
    for key, found in now["chunks"].items():
        if found[1:] not in [world["chunks"][key][1:] for world in (before, after) if key in world["chunks"]]:
            findings.append(f"row of {key} is neither as before nor as after: {found}")
    chunks = [_by_document(world) for world in (before, after)]
    if scene.task.operation != "delete":
        for one in scene.texts:
            wanted = [world.get(one.id, set()) for world in chunks]
            if not any(ids <= set(now["points"]) for ids in wanted):
                findings.append(f"{one.id} has neither all its old chunks nor all its new ones")
    if scene.task.edits:
        for key, row in now["documents"].items():
            if row != before["documents"][key]:
                late = [one for one in chunks[1].get(key, ()) if now["points"][one] != after["points"][one]]
                findings += [f"the row of {key} says what its point {late[0]} does not"] if late else []
        for key, row in now["chunks"].items():
            if row != before["chunks"][key] and now["points"][key] != after["points"][key]:
                findings.append(f"the chunk row of {key} says what the point does not")
    return findings


def _by_document(world: dict[str, Any]) -> dict[str, set[str]]:
    found = defaultdict[str, set[str]](set)
    for point, (_, payload) in world["points"].items():
        found[json.loads(payload)["document_id"]].add(point)
    return found


def ended(directory: str, after: bool) -> dict[str, Any]:
    """Compare everything with what it must be, after an apply or after its rollback."""
    scene, findings, counts = load(directory), list[str](), Counts()
    before = json.loads((scene.directory / "before.json").read_text())
    wanted = json.loads((scene.directory / "after.json").read_text()) if after else before
    now = picture(scene)
    for what in ("points", "documents", "chunks", "files"):
        one, other = (_comparable(what, world[what], before, after=after) for world in (wanted, now))
        counts.compared += len(one)
        lost, more = [key for key in one if key not in other], [key for key in other if key not in one]
        changed = [key for key in one if key in other and one[key] != other[key]]
        counts.lost, counts.doubled = counts.lost + len(lost), counts.doubled + len(more)
        counts.changed += len(changed)
        counts.examples += [f"{what}: {key} is lost" for key in lost[:2]] + [
            f"{what}: {key} is new" for key in more[:2]
        ]
        counts.examples += [f"{what}: {key}: expected {one[key]}, found {other[key]}" for key in changed[:2]]
    lengths = [len(world[what]) for world in (wanted, now) for what in ("collections", "tables")]
    if lengths[:2] != lengths[2:] or (
        not after and (now["tables"], now["collections"]) != (before["tables"], before["collections"])
    ):
        findings.append(f"there are {now['collections']} and {now['tables']}")
    if after and (said := report(scene)) != wanted["report"]:
        differ = [pair for pair in zip(wanted["report"], said, strict=False) if pair[0] != pair[1]]
        findings.append(f"the report is of {len(said)} documents and differs: {differ[:2]}")
    status = open_context(scene.directory).states.load(JOB).status
    if status not in (("applied",) if after else ("new", "rolled_back")):
        findings.append(f"the state document says {status}")
    counts.examples = counts.examples[:6]
    return {"counts": asdict(counts), "findings": findings}


def _comparable(what: str, found: dict[str, Any], before: dict[str, Any], *, after: bool) -> dict[str, Any]:
    """Without the names that each run chooses itself: keys of new rows, and the run's folder in the trash."""
    if after and what == "chunks":
        return {key: row if key in before["chunks"] else row[1:] for key, row in found.items()}
    if after and what == "files":
        return {
            f"{TRASH}/RUN/{key.split('/', 2)[2]}" if key.startswith(f"{TRASH}/") else key: text
            for key, text in found.items()
        }
    return found
