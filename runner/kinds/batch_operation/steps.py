"""From the spec and the live world to steps: select, save, change, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runner.clauses.collection import free_saved, resolved, saving_problems
from runner.clauses.selection import Selected, file_bytes, select
from runner.clauses.spec import notice
from runner.edit import Edit
from runner.kinds import Draft
from runner.kinds.batch_operation import findings
from runner.kinds.batch_operation.describe import describe
from runner.kinds.batch_operation.reprocess import Renewal, renewal
from runner.kinds.batch_operation.spec import BatchOperationSpec
from runner.plan import (
    Change,
    CheckDocuments,
    CreateCollection,
    DeleteDocuments,
    DocumentRows,
    EditDocuments,
    Estimate,
    Files,
    FinishCollection,
    Observed,
    Overview,
    Place,
    ReprocessDocuments,
    SelectDocuments,
    Selection,
    UndoTables,
)
from runner.points import CollectionSchema, KeyRange, Payload
from runner.spec import digest
from runner.state import State
from runner.store import Store
from runner.world import World

if TYPE_CHECKING:
    from runner.documents.rows import Row


def recurring(_spec: BatchOperationSpec) -> bool:
    """An applied job is over: to do the same again is another job."""
    return False


def plan_steps(job: str, spec: BatchOperationSpec, world: World, state: State, *, applied: bool) -> Draft:  # noqa: ARG001
    """Find the documents, look at a sample of what is to be made anew, and say what has to be done."""
    accepted = {item.code: item.reason for item in spec.accept}
    draft = Draft(retention=spec.retention or "")
    store, place = world.store(spec.connection), resolved(spec.connection, spec.collection, world)
    schema = store.inspect(place.collection)
    assert schema is not None
    rows = _rows(spec, place, world)
    if spec.files is not None:
        world.objects(spec.files.connection)  # a folder that is not there is told before anything is done
    selection, edit = selection_of(spec, world), edit_of(spec)
    selected = select(
        world, place, spec.fields, rows, selection,
        look=lambda payload: _differs(spec, payload, edit), look_row=_looks(rows, edit),
    )  # fmt: skip
    draft.world.append(_observed(place, schema, store))
    where, found = str(place), findings.of_selection(spec, selected, store, place)
    due = [one for one in selected.documents if not one.missing]
    if spec.operation not in ("delete", "reprocess"):
        due = [one for one in due if one.changes]
    renewed = renewal(spec, world, place, schema, rows, due) if spec.reprocess is not None and due else None
    found += findings.of_change(spec, world, place, rows, renewed)
    found += [*findings.of_saving(store, place, schema), *findings.of_files(spec, world)] if due else []
    draft.notices = [notice(item, where, accepted, may_accept=item.code[:2] in ("VC", "VD")) for item in found]
    facts = describe(spec, world, selected, due, renewed, edit)
    draft.overview = [Overview(source=place, target=place, facts=tuple(facts))]
    if due:
        _arrange(job, spec, world, state, draft, place, schema, rows, selection, selected, renewed, accepted)
    return draft


def _arrange(
    job: str, spec: BatchOperationSpec, world: World, state: State, draft: Draft, place: Place,
    schema: CollectionSchema, rows: DocumentRows | None, selection: Selection, selected: Selected,
    renewed: Renewal | None, accepted: dict[str, str],
) -> None:  # fmt: skip
    key = f"{job}:{state.lineage}:{state.serial}"
    at = spec.save_to or place.connection
    keeper = world.store(at)
    saved = Place(connection=at, collection=free_saved(keeper, place.collection, key))
    kept = schema.model_copy(
        update={
            "name": saved.collection,
            "vectors": tuple(item.model_copy(update={"index": None}) for item in schema.vectors),
        }
    )
    if at != place.connection:
        first = next(world.store(place.connection).scan(place.collection, KeyRange(), None, 200), None)
        draft.notices += [notice(item, str(saved), accepted) for item in saving_problems(kept, keeper, first)]
        kept = keeper.fit(kept)[0]
    undo = None
    if rows is not None:
        from runner.documents import rows as tables

        undo = tables.new_undo(world.database(rows.connection), rows, key)
    change = _change(spec, place, schema, rows, selected, saved, undo, renewed)
    draft.steps += [
        SelectDocuments(
            target=place, fields=spec.fields, rows=rows, files=change.files, documents=change.documents,
            points=change.points, selection=selection, selected=selected.digest,
        ),
        CreateCollection(target=saved, schema=kept),
        FinishCollection(target=saved, schema=kept),
        change,
        *([CheckDocuments(of=change)] if spec.verify else []),
    ]  # fmt: skip


def _change(
    spec: BatchOperationSpec, place: Place, schema: CollectionSchema, rows: DocumentRows | None, selected: Selected,
    saved: Place, undo: UndoTables | None, renewed: Renewal | None,
) -> Change:  # fmt: skip
    files = Files(connection=spec.files.connection, trash=spec.files.trash) if spec.files is not None else None
    given = {
        "target": place, "fields": spec.fields, "rows": rows, "files": files,
        "documents": len(selected.documents) - len(selected.missing), "points": selected.points, "saved": saved,
        "target_schema": schema, "undo": undo, "batch_size": spec.batch_size,
        "accept": tuple(item.code for item in spec.accept),
    }  # fmt: skip
    if spec.operation == "delete":
        delete_rows = rows is not None and spec.delete.rows is not False
        return DeleteDocuments.model_validate(
            given
            | {
                "delete_rows": delete_rows,
                "delete_files": spec.delete.files,
                "files": files if spec.delete.files else None,
            }
        )
    if renewed is not None and spec.reprocess is not None:
        wish = spec.reprocess
        split = wish.split.splitter if wish.split is not None else None
        return ReprocessDocuments.model_validate(
            given
            | {
                "parse": wish.parse, "split": split, "embed": renewed.embed, "batch_size": min(spec.batch_size, 50),
                "embed_all": wish.split is None or wish.unchanged == "embed",
                "estimate": Estimate(
                    seconds=renewed.cost.seconds, tokens=renewed.cost.tokens, usd=renewed.cost.usd, texts=renewed.work.texts
                ),
            }
        )  # fmt: skip
    return EditDocuments.model_validate(given | {"files": None, "edit": edit_of(spec)})


def edit_of(spec: BatchOperationSpec) -> Edit:
    """What is done to metadata and tags; nothing for the other operations."""
    if spec.metadata is not None:
        return Edit(merge=spec.metadata.merge, set=spec.metadata.set, remove=spec.metadata.remove)
    if spec.operation == "add_tags":
        return Edit(add_tags=spec.tags)
    return Edit(remove_tags=spec.tags)


def selection_of(spec: BatchOperationSpec, world: World) -> Selection:
    """The selection in the words of a plan; a file of ids is named with its digest."""
    given = spec.select
    named = ""
    if given.file is not None:
        named = digest(file_bytes(world.settings.root / given.file).hex())
    return Selection(
        ids=given.ids, file=given.file, file_digest=named, where=given.where, query=given.query, missing=given.missing
    )


def _differs(spec: BatchOperationSpec, payload: Payload, edit: Edit) -> bool:
    if not (edit.on_metadata or edit.on_tags):
        return False
    try:
        return spec.fields.edited(payload, edit) != payload
    except ValueError:  # the run lists it
        return True


def _looks(rows: DocumentRows | None, edit: Edit) -> Callable[[Row], bool] | None:
    """Whether something is to be done to a row."""
    if rows is None:
        return None
    from runner.documents.rows import would_change

    return lambda row: would_change(row, edit, rows)


def _rows(spec: BatchOperationSpec, place: Place, world: World) -> DocumentRows | None:
    if spec.documents is None:
        return None
    from runner.documents import rows as tables

    rows = spec.documents.rows(place.collection)
    tables.check(world.database(rows.connection), rows)
    return rows


def _observed(place: Place, schema: CollectionSchema, store: Store) -> Observed:
    """Others may write other documents meanwhile: what was selected is compared by itself."""
    return Observed(
        place=place, role="target", count=store.count(place.collection),
        schema_digest=digest(schema.model_dump(mode="json")), live=True,
    )  # fmt: skip
