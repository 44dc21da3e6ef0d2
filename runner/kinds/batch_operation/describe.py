"""The lines a reviewer reads about a batch operation."""

from __future__ import annotations

import json
from collections.abc import Sequence

from runner.clauses.selection import Found, Selected
from runner.conditions import Condition
from runner.edit import Edit
from runner.embedder import money
from runner.kinds.batch_operation.reprocess import Renewal
from runner.kinds.batch_operation.spec import BatchOperationSpec
from runner.plan import Fact
from runner.world import World

#: Documents that are shown by name.
SHOWN = 8
#: Longest value of metadata that is shown.
WIDTH = 60


def describe(
    spec: BatchOperationSpec, world: World, selected: Selected, due: Sequence[Found], renewed: Renewal | None, edit: Edit
) -> list[Fact]:  # fmt: skip
    """What a reviewer reads."""
    there = len(selected.documents) - len(selected.missing)
    facts = [
        Fact(label="operation", after=_operation(spec, edit)),
        Fact(label="selected", after=_selection(spec)),
        Fact(label="documents", before=f"{there:,}" + (f", and {len(selected.missing):,} that are not there" if selected.missing else "")),
        Fact(label="points", before=f"{sum(len(one.points) for one in due):,}"),
    ]  # fmt: skip
    if rows := _rows(spec, due):
        facts.append(Fact(label="rows", before=rows))
    if spec.delete.files:
        facts.append(Fact(label="files", before=f"{sum(one.file for one in due):,}"))
    if there > len(due):
        facts.append(Fact(label="as wished already", before=f"{there - len(due):,} documents"))
    if renewed is not None:
        facts += _of_renewal(renewed)
    for number, one in enumerate(due[:SHOWN]):
        name = f"{one.id}" + (f" · {one.name}" if one.name else "")
        points = "1 point" if len(one.points) == 1 else f"{len(one.points):,} points"
        facts.append(Fact(label="for example" if number == 0 else "", before=f"{name} · {points}"))
    if len(due) > SHOWN:
        facts.append(Fact(label="", before=f"… and {len(due) - SHOWN:,} more"))
    retention = spec.retention or world.settings.state.retention
    parts = ["points", *(["rows"] if spec.documents is not None and spec.delete.rows is not False else [])]
    parts += ["files"] if spec.delete.files else []
    what = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    facts.append(Fact(label="kept", after=f"{what} as they were, for {retention} after the run"))
    return facts


def _selection(spec: BatchOperationSpec) -> str:
    given = spec.select
    if given.where is not None:
        return "where " + " and ".join(map(_condition, given.where))
    if given.file is not None:
        return f"ids in {given.file}"
    if given.query is not None:
        return f"query {_cut(' '.join(given.query.split()), 2 * WIDTH)}"
    count = len(given.ids or ())
    return f"{count:,} {'id' if count == 1 else 'ids'} of the job"


def _rows(spec: BatchOperationSpec, due: Sequence[Found]) -> str:
    """How many rows of which tables change; empty if none do."""
    documents = spec.documents
    if documents is None:
        return ""
    chunks, own, theirs = documents.chunks, True, True
    match spec.operation:
        case "delete":
            own = theirs = spec.delete.rows is not False
        case "update_metadata":
            own, theirs = bool(documents.metadata_column), bool(chunks and chunks.metadata_column)
        case "add_tags" | "remove_tags":
            own, theirs = bool(documents.tags_column), bool(chunks and chunks.tags_column)
        case "reprocess":
            wish = spec.reprocess
            own = wish is not None and wish.parse and documents.text_column is not None
            theirs = wish is not None and wish.split is not None
    parts = [f"{sum(one.row is True for one in due):,} in {documents.table}"] if own else []
    if theirs and chunks is not None:
        parts.append(f"{sum(one.chunks for one in due):,} in {chunks.table}")
    return ", ".join(parts)


def _condition(one: Condition) -> str:
    if one.op == "exists":
        return f"{one.field} {'does not exist' if one.value is False else 'exists'}"
    return f"{one.field} {one.op} {_short(one.value)}"


def _operation(spec: BatchOperationSpec, edit: Edit) -> str:
    match spec.operation:
        case "delete":
            more = [
                name
                for name, wanted in (
                    ("rows", spec.documents is not None and spec.delete.rows is not False),
                    ("files", spec.delete.files),
                )
                if wanted
            ]
            return "delete points" + (f", {' and '.join(more)}" if more else "")
        case "add_tags":
            return f"add tags {', '.join(edit.add_tags)}"
        case "remove_tags":
            return f"remove tags {', '.join(edit.remove_tags)}"
        case "update_metadata":
            parts = [f"{'.'.join(path)} = {_short(_at(edit.merge, path))}" for path in _paths(edit.merge)]
            parts += [f"{path} = {_short(value)}" for path, value in edit.set.items()]
            parts += [f"without {path}" for path in edit.remove]
            return f"metadata: {'; '.join(parts)}"
        case "reprocess":
            wish = spec.reprocess
            assert wish is not None
            if wish.split is None:
                return f"embed all chunks again with {wish.model}"
            how = f"chunks of at most {wish.split.size:,} {wish.split.unit}"
            how += f" ({wish.split.tokenizer or wish.model})" if wish.split.unit == "tokens" else ""
            how += f", {wish.split.overlap:,} shared" if wish.split.overlap else ""
            how += ", at headings of Markdown first" if wish.split.markdown else ""
            source = "parse the file" if wish.parse else "take the text of the row"
            kept = (
                "chunks that are there keep their points" if wish.unchanged == "keep" else "all chunks get new vectors"
            )
            return f"{source}, cut it into {how}, embed with {wish.model}; {kept}"


def _of_renewal(renewed: Renewal) -> list[Fact]:
    about = "" if renewed.work.exact else "about "
    cost = "not known" if renewed.cost.usd is None else f"{about}{money(renewed.cost.usd)} USD ({renewed.cost.price})"
    known = f", {renewed.work.known:,} of them kept from before" if renewed.work.known else ""
    return [
        Fact(
            label="chunks afterwards", after=f"{about}{renewed.chunks:,}, of which {renewed.kept:,} are there already"
        ),
        Fact(label="to embed", after=f"{about}{renewed.work.texts:,} texts{known}"),
        Fact(label="tokens", after=f"{about}{renewed.cost.tokens:,} ({renewed.cost.counting})"),
        Fact(label="cost", after=cost),
    ]


def _paths(value: dict[str, object], way: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = list[tuple[str, ...]]()
    for key, item in value.items():
        found += _paths(item, (*way, key)) if isinstance(item, dict) and item else [(*way, key)]
    return found


def _at(value: object, way: tuple[str, ...]) -> object:
    for key in way:
        assert isinstance(value, dict)
        value = value[key]
    return value


def _short(value: object) -> str:
    return _cut(json.dumps(value, ensure_ascii=False), WIDTH)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
