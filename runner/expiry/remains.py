"""What a single plan leaves outside the ledger, found and removed: undo tables, saved points, deleted files in the trash.

Only names that vecrun makes, and only where the connection still leads to where the run was. A run that tries failed
items again works with what the run it belongs to keeps, and owns none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TypeVar

from runner import crash
from runner.clauses.spec import saved
from runner.errors import VecrunError
from runner.ledger import Ledger
from runner.plan import (
    Change,
    DeleteDocuments,
    DropColumn,
    EncryptColumns,
    Files,
    LoadTables,
    MapRows,
    Place,
    Plan,
    ReplaceVectors,
    RewriteIds,
    SetModel,
)
from runner.vectors import Vectors
from runner.world import World

Found = TypeVar("Found")

#: Steps that keep rows as they were in a database.
Undoable = RewriteIds | SetModel | Change | LoadTables | MapRows | DropColumn | EncryptColumns
#: Files that are listed, then deleted: so many are known at once, and so many calls are under way.
LISTED, AT_ONCE = 1_000, 8


@dataclass(frozen=True)
class Trash:
    """Deleted files that wait for a rollback."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Remains:
    """What is there, by CONNECTION/name. Rows of undo tables (those of one step as one), saved points, deleted files."""

    tables: dict[str, int] = field(default_factory=dict)
    collections: dict[str, int] = field(default_factory=dict)
    trash: dict[str, Trash] = field(default_factory=dict)


def names(plan: Plan, run: str) -> set[str]:
    """All that a run may have left, as it is named in `Remains`."""
    return {*_undo_names(plan, run), *map(str, _saved_places(plan)), *_trash_names(plan, run)}


def look(plan: Plan, run: str, world: World, needed: set[str]) -> tuple[Remains, list[str]]:
    """(what is there, why something was not looked for). What is `needed` by others is left out."""
    left = list[str]()

    def each(asked: dict[str, Callable[[], Found | None]]) -> dict[str, Found]:
        found = dict[str, Found]()
        for name, ask in asked.items():
            if name in needed:
                continue
            try:
                if moved(plan, world, name.partition("/")[0]):
                    left.append(f"{name} is not looked for: the connection points somewhere else now")
                elif (there := ask()) is not None:
                    found[name] = there
            except VecrunError as exc:
                left.append(f"{name} is not looked for: {exc}")
        return found

    found = Remains(
        each({name: partial(_undo_rows, world, name, step, run) for name, step in _undo_names(plan, run).items()}),
        each({str(place): partial(_points, world, place) for place in _saved_places(plan)}),
        each({name: partial(_deleted_files, world, files, run) for name, files in _trash_names(plan, run).items()}),
    )
    return found, left


def drop(world: World, ledger: Ledger, plan: Plan, run: str, shown: Remains) -> list[str]:
    """Remove what was shown: undo tables, saved points, deleted files. Reasons why something was left. Harmless when
    repeated."""
    left = list[str]()

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except VecrunError as exc:
            left.append(f"{name} of run {run}: {exc}")

    for name, step in _undo_names(plan, run).items():
        if name in shown.tables:
            attempt(name, partial(_forget, world, name, step, run))
            crash.point("gc", "tables")
    for place in _saved_places(plan):
        if str(place) in shown.collections:
            attempt(str(place), partial(_drop_saved, world, ledger, place))
    for name, files in _trash_names(plan, run).items():
        if name in shown.trash:
            attempt(name, partial(_empty, world, files, run))
    return left


def moved(plan: Plan, world: World, connection: str) -> bool:
    """Whether a connection points somewhere else than it did for the run."""
    return world.digest(connection) != plan.connections.get(connection, world.digest(connection))


# Undo tables ----------------------------------------------------------------------------------------------------------


def _undo_names(plan: Plan, run: str) -> dict[str, Undoable]:
    """CONNECTION/undo table -> a step that fills it. A change of documents has several, and is named by the first."""
    found: dict[str, Undoable] = {}
    for step in plan.steps if plan.purpose != "retry" else ():
        if isinstance(step, RewriteIds):
            found[f"{step.chunks.connection}/{step.undo_table}"] = step
        elif isinstance(step, SetModel) and step.phase in ("begin", "end") and step.rows is not None:
            found[f"{step.rows.connection}/{step.undo_table}"] = step
        elif isinstance(step, Change) and step.rows is not None and step.undo is not None:
            found[f"{step.rows.connection}/{step.undo.documents}"] = step
        elif isinstance(step, MapRows | DropColumn | EncryptColumns) and step.undo:
            found[f"{step.connection}/{step.undo}"] = step
        elif isinstance(step, LoadTables):  # where no old rows were kept there still is the record of the load
            found[f"{step.connection}/{step.undo[0][1] if step.undo else f'vecrun_load of {run}'}"] = step
    return found


def _undo_rows(world: World, name: str, step: Undoable, run: str) -> int | None:
    from runner.documents import chunks, model
    from runner.documents import rows as documents

    if isinstance(step, LoadTables):
        from runner.documents import unloading

        return unloading.undo_rows(world.postgres(step.connection), step, run)
    if isinstance(step, MapRows | DropColumn | EncryptColumns):
        from runner.relational import undone

        return undone.undo_rows(world.relational(step.connection), step.undo)
    database = world.database(name.partition("/")[0])
    if isinstance(step, RewriteIds):
        return chunks.undo_rows(database, step.chunks, step.undo_table)
    assert step.rows is not None
    if isinstance(step, SetModel):
        return model.undo_rows(database, step.rows, step.undo_table)
    assert step.undo is not None
    return documents.undo_rows(database, step.rows, step.undo)


def _forget(world: World, name: str, step: Undoable, run: str) -> None:
    from runner.documents import chunks, model
    from runner.documents import rows as documents

    if isinstance(step, LoadTables):
        from runner.documents import unloading

        unloading.forget(world.postgres(step.connection), step, run)
        return
    if isinstance(step, MapRows | DropColumn | EncryptColumns):
        from runner.relational import undone

        undone.forget(world.relational(step.connection), step.undo)
        return
    database = world.database(name.partition("/")[0])
    if isinstance(step, RewriteIds):
        chunks.forget(database, step.chunks, step.undo_table)
    elif isinstance(step, SetModel):
        assert step.rows is not None
        model.forget(database, step.rows, step.undo_table)
    else:
        assert step.rows is not None
        assert step.undo is not None
        documents.forget(database, step.rows, step.undo)


# Saved points ---------------------------------------------------------------------------------------------------------


def _saved_places(plan: Plan) -> list[Place]:
    """Collections that a run made to save points in."""
    steps = plan.steps if plan.purpose != "retry" else ()
    places = {step.saved: None for step in steps if isinstance(step, ReplaceVectors | Change)}
    return [place for place in places if saved(place.collection)]


def _points(world: World, place: Place) -> int | None:
    store = world.store(place.connection)
    return store.count(place.collection) if store.inspect(place.collection) is not None else None


def _drop_saved(world: World, ledger: Ledger, place: Place) -> None:
    world.store(place.connection).drop(place.collection)
    crash.point("gc", "collections")
    Vectors(ledger).forget_place(str(place))


# Deleted files --------------------------------------------------------------------------------------------------------


def _trash_names(plan: Plan, run: str) -> dict[str, Files]:
    """CONNECTION/prefix -> where the files are that a run has deleted."""
    steps = plan.steps if plan.purpose != "retry" else ()
    return {
        f"{step.files.connection}/{step.files.prefix(run)}": step.files
        for step in steps
        if isinstance(step, DeleteDocuments) and step.delete_files and step.files is not None
    }


def _deleted_files(world: World, files: Files, run: str) -> Trash | None:
    count = size = 0
    for found in world.objects(files.connection).list(files.prefix(run)):
        count, size = count + 1, size + found.size
    return Trash(count, size) if count else None


def _empty(world: World, files: Files, run: str) -> None:
    """Each delete is a round trip, so several are under way; the first that fails ends it."""
    objects = world.objects(files.connection)

    def delete(key: str) -> None:
        objects.delete(key)
        crash.point("gc", "trash")

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="trash") as pool:
        for keys in _pages(found.key for found in objects.list(files.prefix(run))):
            for _done in pool.map(delete, keys):
                pass


def _pages(keys: Iterator[str]) -> Iterator[list[str]]:
    while page := list(islice(keys, LISTED)):
        yield page
