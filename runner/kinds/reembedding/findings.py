"""What a reviewer must know of a change of the model, and what stands in its way: the findings of this kind."""

from __future__ import annotations

from runner.clauses.cost import Work
from runner.kinds.reembedding.change import Change
from runner.points import Datatype, PointBatch
from runner.store import Problem, Store

#: Codes of this kind.
COLUMNS = "VL203"
ALREADY = "VI117"
FAILING = "VI111"
TOO_LONG = "VI112"
DIMENSION = "VI113"
TRUSTED = "VI114"
ONE_VECTOR = "VI115"
OTHER_ROWS = "VI116"
MIXED = "VB104"
SWITCHES_READERS = "VB101"
OVERWRITES = "VL202"
TARGET_EXISTS = "VX206"
NO_TEXT = "VX207"
ALIAS_TAKEN = "VX204"
VERSION_COLUMN = "VX208"
SHARED_IDS = "VX209"


def of_change(change: Change, store: Store, work: Work) -> list[Problem]:
    """What stands in the way, and what a reviewer must know."""
    spec, found = change.spec, list[Problem]()
    if store.capabilities().shared_ids and (
        change.saved is None or change.saved.connection == change.source.connection
    ):
        message = (
            "ids are unique over all collections there, so no other collection can hold the same points. Strategies replace and "
            "incremental work with save_to: a connection of another store (of type files, for example)"
        )
        found.append(Problem(SHARED_IDS, message))
    if not spec.in_place and (columns := store.columns(change.source.collection)):
        message = (
            f"{', '.join(columns)} are columns of {change.source}, and become keys of payload (jsonb) in {change.target}: SQL "
            "that reads or writes those columns fails after the switch. What goes through vecrun or payloads stays as it is"
        )
        found.append(Problem(COLUMNS, message))
    if not spec.in_place:
        change.schema, problems = store.fit(change.schema)
        found += problems
    else:
        if change.before.datatype is not Datatype.FLOAT32:
            found += [item for item in store.fit(change.schema)[1] if item.code == "VL102"]
        if spec.strategy == "replace":
            message = (
                "until the run is through, points of two models stand side by side, and search results are mixed and partly "
                "meaningless. create_new_collection has no such time"
            )
            found.append(Problem(MIXED, message))
        if spec.live is not None:
            message = (
                "what an application does to a point in the moment in which its vector is replaced is lost (a read and a write "
                "of the whole point, some milliseconds): a change, and a deletion. create_new_collection loses nothing"
            )
            found.append(Problem(OVERWRITES, message))
    found += _payload_problems(change, store, work)
    if work.failing:
        total = sum(work.failing.values())
        if total >= work.sampled and not work.texts:
            found.append(Problem(NO_TEXT, f"no point that was looked at has a text: {'; '.join(sorted(work.failing))}"))
        else:
            seen = "; ".join(f"{why}: {count:,}" for why, count in sorted(work.failing.items()))
            which = "of the texts" if work.exact else f"of {work.sampled:,} texts that were looked at"
            found.append(
                Problem(
                    FAILING, f"{total:,} {which} cannot be embedded: {seen}. failures.allow is {spec.failures.allow:,}"
                )
            )
    if work.too_long:
        which = "texts" if work.exact else f"of {work.sampled:,} texts that were looked at"
        found.append(
            Problem(
                TOO_LONG, f"{work.too_long:,} {which} have more tokens than the model takes (too_long in vecrun.yaml)"
            )
        )
    return found


def trusted(points: int) -> Problem:
    """Points that an incremental run takes as they are."""
    message = (
        f"{points:,} points are taken as they are: their version is the model's, and what text they were made from was never "
        "recorded; edits of them are not seen. strategy: replace looks at all"
    )
    return Problem(TRUSTED, message)


def of_rows(change: Change, named: int) -> list[Problem]:
    """What is said of the rows that carry versions; they name so many points."""
    rows, found = change.rows, list[Problem]()
    if rows is None:
        return found
    column = f"{rows.table}.{rows.version_column}"
    if len(change.schema.vectors) > 1:
        message = (
            f"{column} speaks of the vector {change.before.name!r} alone; another job for another vector of these points "
            "needs a column of its own"
        )
        found.append(Problem(ONE_VECTOR, message))
    if rows.collection_column is None and named > change.points:
        message = (
            f"{rows.table} names {named:,} points, and {change.source} has {change.points:,}: rows of other collections "
            "carry no version while this runs. Give documents.collection_column"
        )
        found.append(Problem(OTHER_ROWS, message))
    return found


def _payload_problems(change: Change, store: Store, work: Work) -> list[Problem]:
    """What of some points the target could not hold, their new vector aside."""
    if work.first is None:
        return []
    batch, _mapped = change.transform.apply(work.first)
    name = change.before.name
    others = tuple(item for item in change.schema.vectors if item.name != name)
    vectors = {key: matrix for key, matrix in batch.vectors.items() if key != name}
    bare = PointBatch(batch.ids, vectors, batch.payloads, batch.sparse, batch.missing, batch.partitions)
    return store.problems(change.schema.model_copy(update={"vectors": others}), bare)
