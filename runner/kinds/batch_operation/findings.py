"""What a reviewer must know of a batch operation, and what stands in its way: the findings of this kind."""

from __future__ import annotations

from runner.clauses.cost import cost_problems
from runner.clauses.selection import Selected
from runner.edit import Edit
from runner.errors import Permanent
from runner.kinds.batch_operation.reprocess import Renewal
from runner.kinds.batch_operation.spec import BatchOperationSpec
from runner.plan import DocumentRows, Place
from runner.points import CollectionSchema, KeyRange
from runner.spec import suggest
from runner.store import NORMS, PRECISION, Problem, Store
from runner.world import World

#: Codes of this kind.
NO_FIELD = "VX210"
FIXED_FIELD = "VX211"
DIMENSION = "VX212"
OTHER_VECTORS = "VX213"
SHARED_IDS = "VX209"
CASCADE = "VD105"
ROWS_STAY = "VB106"
MIXED = "VB104"
STALE_TEXT = "VL204"
NONE_THERE = "VX214"
STRAY = "VI118"
ABSENT = "VI119"
UNPARSED = "VI111"
FINAL = "VI120"
RESTRICTED = "VI121"
OVERWRITES = "VI122"
UNKNOWN_MODEL = "VI123"
FILES = "VB108"
FOREIGN = "VI124"
#: Points whose keys are looked at to say which fields there are.
SAMPLE = 200


def of_selection(spec: BatchOperationSpec, selected: Selected, store: Store, place: Place) -> list[Problem]:
    """Fields that no point has, documents that are not there, points that belong to no document."""
    found = list[Problem]()
    wanted = [item.field for item in spec.select.where or () if item.op not in ("ne", "exists")]
    if spec.select.where is not None and not selected.documents:
        keys = _keys(store, place)
        for name in dict.fromkeys(wanted):
            if keys and name.split(".")[0] not in keys and name not in keys:
                hint = suggest(name, sorted(keys)) or f"there are {', '.join(sorted(keys)[:10])}"
                found.append(Problem(NO_FIELD, f"no point that was looked at has a payload field {name}; {hint}"))
    field = spec.points.document_field
    if field is not None and selected.documents and not selected.points and spec.documents is None:
        keys = _keys(store, place)
        if keys and field.split(".")[0] not in keys and field not in keys:
            hint = suggest(field, sorted(keys)) or f"there are {', '.join(sorted(keys)[:10])}"
            found.append(Problem(NO_FIELD, f"no point that was looked at has a payload field {field}; {hint}"))
    if selected.stray:
        message = (
            f"{selected.stray:,} points match and name no document in {spec.points.document_field}: they are left alone"
        )
        found.append(Problem(STRAY, message))
    if selected.foreign:
        message = (
            f"points that chunk rows name, and that say in {spec.points.document_field} that they are of another document: "
            f"{selected.foreign:,}; they are left alone"
        )
        found.append(Problem(FOREIGN, message))
    missing = selected.missing
    if missing and len(missing) == len(selected.documents) and spec.select.missing == "fail":
        hint = "are the ids right? If they may be gone: missing: skip"
        message = f"none of the {len(missing):,} documents that were asked for is there, {missing[0].id!r} for example; {hint}"
        found.append(Problem(NONE_THERE, message))
    elif missing:
        shown = ", ".join(repr(one.id) for one in missing[:5]) + (", …" if len(missing) > 5 else "")
        what = "listed as failed" if spec.select.missing == "fail" else "listed as unchanged"
        are = "document is" if len(missing) == 1 else "documents are"
        found.append(Problem(ABSENT, f"{len(missing):,} {are} not there, and {what}: {shown}"))
    return found


def _keys(store: Store, place: Place) -> set[str]:
    batch = next(store.find(place.collection, (), SAMPLE), None)
    return {key for item in batch.payloads.dicts for key in item} if batch is not None else set()


def of_change(
    spec: BatchOperationSpec, world: World, place: Place, rows: DocumentRows | None, renewed: Renewal | None,
) -> list[Problem]:  # fmt: skip
    """What the change itself brings."""
    store, found = world.store(place.connection), list[Problem]()
    if store.capabilities().shared_ids and (spec.save_to or place.connection) == place.connection:
        message = (
            "ids are unique over all collections there, so no other collection can keep the points as they were. Name a "
            "connection of another store in save_to (of type files, for example)"
        )
        found.append(Problem(SHARED_IDS, message))
    if spec.operation == "delete":
        retention = spec.retention or world.settings.state.retention
        parts = ["points", *(["rows"] if rows is not None and spec.delete.rows is not False else [])]
        parts += ["files"] if spec.delete.files else []
        kept = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        found.append(
            Problem(FINAL, f"{kept} are kept for {retention} after the run; after that, and vecrun gc, they are gone")
        )
        found += _references(spec, world, rows)
    elif not renewed:
        message = (
            "a point is read and written whole: what an application writes to it in between (some milliseconds) is lost"
        )
        found.append(Problem(OVERWRITES, message))
    found += _fixed(spec)
    if renewed is not None:
        found += _renewed(renewed)
        found += cost_problems(spec.budget, world, renewed.cost)
    return found


def of_saving(store: Store, place: Place, schema: CollectionSchema) -> list[Problem]:
    """What the store would not give back exactly, of what stands there: it was not written by its own rules."""
    batch = next(store.scan(place.collection, KeyRange(), None, SAMPLE), None)
    found = store.problems(schema, batch) if batch is not None else []
    return [one for one in found if one.code in (NORMS, PRECISION)]


def of_files(spec: BatchOperationSpec, world: World) -> list[Problem]:
    """A bucket or folder that does not answer: every document may fail. It may also be a right to list that is not needed."""
    if spec.files is None or not (spec.delete.files or (spec.reprocess is not None and spec.reprocess.parse)):
        return []
    try:
        world.objects(spec.files.connection).health()
    except Permanent as exc:
        return [Problem(FILES, f"{spec.files.connection}: {exc}; documents whose file cannot be reached fail")]
    return []


def _references(spec: BatchOperationSpec, world: World, rows: DocumentRows | None) -> list[Problem]:
    if rows is None:
        return []
    if spec.delete.rows is False:
        message = f"rows of {rows.chunks.table if rows.chunks else rows.table} stay, and speak of points that are gone"
        return [Problem(ROWS_STAY, message)]
    from runner.documents import rows as tables

    found = []
    for sentence in tables.referring(world.database(rows.connection), rows):
        lost = "CASCADE" in sentence or "SET NULL" in sentence or "SET DEFAULT" in sentence
        found.append(Problem(CASCADE if lost else RESTRICTED, sentence))
    return found


def _fixed(spec: BatchOperationSpec) -> list[Problem]:
    """Fields that say which document a point is of, and its text."""
    if spec.metadata is None:
        return []
    given, found = spec.metadata, list[Problem]()
    root = f"{spec.points.metadata_field}." if spec.points.metadata_field is not None else ""
    paths = [f"{root}{'.'.join(path)}." for path in Edit(**given.model_dump()).paths]
    document, text = spec.points.document_field, spec.points.text_field

    def meets(field: str) -> bool:
        return any(f"{field}.".startswith(path) or path.startswith(f"{field}.") for path in paths)

    if document is not None and meets(document):
        found.append(Problem(FIXED_FIELD, f"{document} says which document a point is of, and is not metadata"))
    if text is not None and meets(text):
        found.append(
            Problem(STALE_TEXT, f"{text} is the text that vectors were made from: they stay those of the old text")
        )
    return found


def _renewed(renewed: Renewal) -> list[Problem]:
    found = list[Problem]()
    if renewed.other_vectors:
        message = f"new chunks would have no vector {', '.join(renewed.other_vectors)}: only one can be made"
        found.append(Problem(OTHER_VECTORS, message))
    if renewed.dimension is not None:
        message = f"the model has {renewed.embed.identity.dimension} dimensions, the collection {renewed.dimension}"
        found.append(Problem(DIMENSION, message))
    if renewed.failing:
        seen = "; ".join(f"{name}: {why}" for name, why in renewed.failing[:3])
        message = (
            f"{len(renewed.failing):,} of {renewed.looked:,} documents that were looked at cannot be made anew: {seen}"
        )
        found.append(Problem(UNPARSED, message))
    if renewed.mixed:
        message = (
            f"chunks that stay keep vectors of another model ({renewed.mixed:,} points that were looked at): search results "
            "are mixed. unchanged: embed makes all anew"
        )
        found.append(Problem(MIXED, message))
    elif renewed.unknown:
        message = (
            f"nobody recorded which model made the present vectors; they are taken as those of {renewed.embed.model}"
        )
        found.append(Problem(UNKNOWN_MODEL, message))
    return found
