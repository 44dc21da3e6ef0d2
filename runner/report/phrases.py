"""The words for plans, used by the text, the Markdown and the HTML form alike, so that all say the same."""

from __future__ import annotations

from runner.embedder import money
from runner.plan import (
    BackUpPoints,
    BackUpTables,
    CatchUp,
    Change,
    CheckBackup,
    CheckDocuments,
    CheckQuality,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DeleteDocuments,
    DropCollection,
    EditDocuments,
    Fact,
    FinishCollection,
    Hold,
    LoadTables,
    Notice,
    OfDatabase,
    Overview,
    Plan,
    ReplaceVectors,
    ReprocessDocuments,
    RestoreDocuments,
    RestoreIds,
    RestoreVectors,
    RewriteIds,
    SealBackup,
    SelectDocuments,
    SetModel,
    SetServing,
    SettleFailures,
    Step,
    SwitchAlias,
    TruncateTables,
    UnloadTables,
    VerifyPoints,
    acceptable,
    reversed_steps,
)
from runner.points import CollectionSchema
from runner.report import relational, words
from runner.report.words import joined as _and

number, counted, size, duration, about = words.number, words.counted, words.size, words.duration, words.about


def heading(move: Overview) -> str:
    """What happens to a collection, in two names or one; or the database, whose tables the facts name."""
    if not move.source.collection:
        return f"database {move.source.connection}"
    return f"{move.source}, in place" if move.source == move.target else f"{move.source} → {move.target}"


def step_line(step: Step) -> str:
    """One step as a sentence without its symbol."""
    match step:
        case OfDatabase():
            return relational.step_line(step)
        case CreateCollection():
            vectors = ", ".join(f"{item.dimension} × {item.datatype}, {item.distance}" for item in step.schema_.vectors)
            return f"create collection {step.target} ({vectors or 'no dense vector'})"
        case CopyPoints() if step.transform.embed is not None:
            model = step.transform.embed.model
            return f"embed the texts of {number(step.points)} points of {step.source} with {model}, into {step.target}"
        case CopyPoints():
            some = "up to " if step.transform.where else ""
            return f"copy {some}{number(step.points)} points from {step.source} to {step.target}"
        case FinishCollection():
            return f"build the indexes of {step.target} ({index_text(step.schema_)})"
        case VerifyPoints():
            what = {"full": "every point", "sample": f"{number(step.sample)} sampled points", "count": "the counts"}[
                step.mode
            ]
            if step.live is not None and step.saved is not None:
                return (
                    f"verify {what} of {step.target} against its text; what was written meanwhile is embedded and compared "
                    f"again, until a pass meets at most {number(step.live.bound)} such points; stop here if one still differs"
                )
            if step.live is not None:
                return (
                    f"verify {what} of {step.target} against {step.source}; what moved meanwhile is copied and compared again, "
                    f"until a pass meets at most {number(step.live.bound)} such points; stop here if one still differs"
                )
            if step.saved is not None:
                return f"verify {what} of {step.target} against its text; stop here if anything differs"
            return f"verify {what} of {step.target} against {step.source}; stop here if anything differs"
        case CatchUp(phase="before"):
            until = f"at most {number(step.live.bound)} points" if step.live.bound else "nothing"
            return (
                f"bring over what was written to {step.source} since, {_by(step)}; until a pass repairs {until}, "
                f"in at most {step.live.passes} passes"
            )
        case CatchUp():
            what = "new points, newer contents and deletions" if step.live.field else "new points"
            rows = f", with their rows in {step.chunks.table}" if step.chunks else ""
            return (
                f"bring over what was written to {step.source} up to the switch, {_by(step)}: {what}{rows}; until a pass "
                f"finds nothing, in at most {step.live.passes} passes"
            )
        case Hold():
            sources = ", ".join(str(source) for source, _target in step.collections)
            return f"wait until the writers of {sources} are stopped and an operator says so: vecrun resume"
        case RewriteIds():
            where = f"{step.chunks.connection}: {step.chunks.table}.{step.chunks.vector_id_column}"
            return (
                f"rewrite point ids in {where} (up to {number(step.rows)} rows); old ids are kept in {step.undo_table}"
            )
        case RestoreIds():
            return f"restore the old point ids in {step.chunks.connection}: {step.chunks.table}.{step.chunks.vector_id_column}"
        case SwitchAlias():
            if step.after is None:
                return f"remove alias {step.alias} of {step.connection} (it points to {step.before})"
            return f"point alias {step.alias} of {step.connection} to {step.after} (before: {step.before or 'no such alias'})"
        case SetServing():
            if step.after is None:
                return f"clear serving pointer {step.name} (it is {step.before})"
            if step.model_after and step.before == step.after:
                before = f" (before: {step.model_before})" if step.model_before else ""
                return f"let readers of serving pointer {step.name} embed queries with {step.model_after}{before}"
            if step.model_after is not None:
                query = f"queries are embedded with {step.model_after}" if step.model_after else "no model is named"
                before = f"{step.before or 'not set'}{f', {step.model_before}' if step.model_before else ''}"
                return f"set serving pointer {step.name} to {step.after}; {query} (before: {before})"
            return f"set serving pointer {step.name} to {step.after} (before: {step.before or 'not set'})"
        case ClearCollection():
            held = f", {number(step.points)} points" if step.points is not None else ""
            return f"delete every point of {step.target}{held}; the collection stays"
        case DropCollection():
            held = f" with {number(step.points)} points" if step.points is not None else ""
            return f"drop collection {step.target}{held} ({step.why})"
        case ReplaceVectors(phase="after"):
            return f"replace the vectors of what was written to {step.target} up to the switch, in passes until nothing is found"
        case ReplaceVectors():
            which = (
                "of changed texts and other models" if step.choose == "stale" else f"of {number(step.points)} points"
            )
            embed = step.transform.embed
            assert embed is not None
            return f"replace the vectors {which} in {step.target} with those of {embed.model}; old points go to {step.saved} first"
        case RestoreVectors():
            held = f" of {number(step.points)} points" if step.points else ""
            return (
                f"put the old vectors{held} back into {step.target}, out of {step.saved}, where the points still exist"
            )
        case SettleFailures():
            if step.of_run is not None:
                return f"try the failed items of run {step.of_run} again, into {step.target}"
            allowed = f"more than {number(step.allow)}" if step.allow else "any"
            return f"stop here if {allowed} of the texts could not be embedded; they are listed and can be tried again"
        case CheckQuality(phase="before"):
            return f"search {step.source} with {len(step.queries)} queries, to compare afterwards"
        case CheckQuality():
            return f"search {step.target} with {len(step.queries)} queries{_thresholds(step)}"
        case SetModel():
            return _set_model(step)
        case SelectDocuments():
            if step.of_run is not None:
                return f"take the documents of run {step.of_run} that failed"
            return (
                f"find {counted(step.documents, 'document')} with {counted(step.points, 'point')}; stop here if they are others "
                "than planned"
            )
        case DeleteDocuments():
            what = _and(["points", *(["rows"] if step.delete_rows else []), *(["files"] if step.delete_files else [])])
            return f"delete {_documents(step)}: {what}; {_kept(step)} first"
        case EditDocuments():
            what = _and([*(["metadata"] if step.edit.on_metadata else []), *(["tags"] if step.edit.on_tags else [])])
            return f"change the {what} of {_documents(step)}{_in_rows(step)}; {_kept(step)} first"
        case ReprocessDocuments():
            how = "make the chunks" if step.split is not None else "make the vectors"
            return (
                f"{how} of {_documents(step)}{_in_rows(step)} anew, with {step.embed.model}; old ones go when the new ones are in; "
                f"{_kept(step)} first"
            )
        case CheckDocuments():
            return f"compare what became of {counted(step.documents, 'document')} with what was asked for; stop here if it differs"
        case RestoreDocuments():
            files = isinstance(step.of, DeleteDocuments) and step.of.delete_files
            parts = ["points", *(["rows"] if _tables(step.of) else []), *(["files"] if files else [])]
            return f"bring back {_and(parts)} of {counted(step.documents, 'document')} as they were, where nobody changed them since"
        case BackUpTables():
            return f"back up {_and(list(step.tables))} ({counted(step.rows, 'row')}) as CSV into {step.into}, and read it back"
        case TruncateTables():
            return (
                f"empty {_and(list(step.tables))} ({counted(step.rows, 'row')}); not unless the backup is whole, and the rows are "
                "exactly those in it"
            )
        case LoadTables():
            return _load(step)
        case UnloadTables():
            tables = _and([here for _table, here in step.of.tables])
            back = f", out of {_and([undo for _here, undo in step.of.undo])}" if step.of.undo else ""
            return f"make {tables} what they were before{back}; not if somebody wrote to them since"
        case BackUpPoints():
            earlier = f"; files that did not change since backup {step.previous} are shared" if step.previous else ""
            return f"back up {counted(step.points, 'point')} of {step.source} as Parquet into {step.into}{earlier}"
        case SealBackup():
            return f"read every file back, compare it with what was read, and write the manifest into {step.into}"
        case CheckBackup():
            some = f" ({_and(list(step.names))})" if step.names else ""
            return f"read backup {step.backup} of {step.source}{some} and compare it with its manifest; stop here if anything is amiss"
    raise AssertionError(step)


def _load(step: LoadTables) -> str:
    tables = _and([here if table == here else f"{here} (from {table})" for table, here in step.tables])
    source = (
        f"backup {step.backup}" if step.backup else f"the backup of run {step.of_run}" if step.of_run else "that backup"
    )
    how = {
        "refuse": "if they are empty" if len(step.tables) > 1 else "if it is empty",
        "merge": "whose rows of the same key are replaced",
        "replace": "in place of all rows that are there",
    }[step.existing]
    kept = f"; old rows go to {_and([undo for _here, undo in step.undo])} first" if step.undo else ""
    return f"fill {tables}, {how}, with {counted(step.rows, 'row')} of {source}, and compare{kept}"


def _documents(step: Change) -> str:
    return f"{counted(step.documents, 'document')} of {step.target} ({counted(step.points, 'point')})"


def _in_rows(step: Change) -> str:
    tables = _tables(step)
    return f", and their rows in {_and(tables)}" if tables else ""


def _tables(step: Change) -> list[str]:
    """The tables whose rows a step changes."""
    rows = step.rows
    if rows is None:
        return []
    match step:
        case DeleteDocuments():
            wanted = (step.delete_rows, step.delete_rows)
        case EditDocuments():
            meta, tags = step.edit.on_metadata, step.edit.on_tags
            wanted = tuple(  # type: ignore[assignment]
                one is not None and bool((meta and one.metadata_column) or (tags and one.tags_column))
                for one in (rows, rows.chunks)
            )
        case _:
            wanted = (step.parse and rows.text_column is not None, step.split is not None)
    tables = [rows.table] if wanted[0] else []
    return [*tables, rows.chunks.table] if wanted[1] and rows.chunks is not None else tables


def _kept(step: Change) -> str:
    """Where what is changed goes first."""
    parts = [f"points go to {step.saved}"]
    if step.undo is not None and step.rows is not None and (tables := _tables(step)):
        names = {step.rows.table: step.undo.documents}
        parts.append(f"rows to {_and([names.get(table, step.undo.chunks) for table in tables])}")
    parts += (
        [f"files to {step.files.trash}/"]
        if isinstance(step, DeleteDocuments) and step.delete_files and step.files
        else []
    )
    return ", ".join(parts)


def _thresholds(step: CheckQuality) -> str:
    asked = [f"overlap with the old results ≥ {step.min_overlap}"] if step.min_overlap is not None else []
    asked += [f"recall@{step.k} ≥ {step.min_recall}"] if step.min_recall is not None else []
    return f"; stop here unless {' and '.join(asked)}" if asked else "; the result is reported"


def _set_model(step: SetModel) -> str:
    rows = f"{step.rows.connection}: {step.rows.table}.{step.rows.version_column}" if step.rows is not None else ""
    info = f"{step.info.table}.{step.info.info_column} of {step.info.id}" if step.info is not None else ""
    version, since = step.embed.identity.version, " since" if step.phase == "again" else ""
    match step.phase:
        case "open":
            return f"from here on {rows} carries no version for a point while its vector is written; old ones are kept in {step.undo_table}"
        case "begin":
            return f"take the version away in {rows} while vectors change; old ones are kept in {step.undo_table}"
        case "end" | "again":
            return "; ".join(
                part
                for part in (
                    f"set {rows} to {version} for points that were embedded{since}" if rows else "",
                    f"set the model info {info}" if info else "",
                )
                if part
            )
        case "reopen":
            return "; ".join(
                part
                for part in (
                    f"take the version away in {rows} while vectors go back" if rows else "",
                    f"put the model info {info} back" if info else "",
                )
                if part
            )
        case "restore":
            return f"put the old versions back in {rows}"


def _by(step: CatchUp) -> str:
    return f"by {step.live.field}" if step.live.field else "by ids and content"


def index_text(schema: CollectionSchema) -> str:
    """Indexes of a collection in a few words."""
    parts = []
    for item in schema.vectors:
        if item.index is None:
            parts.append("none")
            continue
        shown = {"m": item.index.m, "ef_construction": item.index.ef_construction}
        parts.append(
            " ".join([item.index.type, *(f"{key}={value}" for key, value in shown.items() if value is not None)])
        )
    parts += [f"payload {item.name}" for item in schema.payload if item.indexed]
    return ", ".join(parts) or "none"


def estimate(step: Step) -> str:
    """What the probe says a step needs; empty where nothing was measured."""
    parts = []
    embeds = step.estimate.tokens is not None
    if step.estimate.seconds is not None:
        parts.append(about(step.estimate.seconds) if embeds else f"reading alone {duration(step.estimate.seconds)}")
    if step.estimate.tokens is not None:
        parts.append(f"{number(step.estimate.tokens)} tokens")
    if step.estimate.usd:
        parts.append(f"{money(step.estimate.usd)} USD")
    if step.estimate.bytes is not None:
        parts.append(f"about {size(step.estimate.bytes)} of data")
    return ", ".join(parts)


def fact_text(fact: Fact) -> str:
    """before → after, or the one of them there is."""
    if fact.before and fact.after and fact.before != fact.after:
        return f"{fact.before} → {fact.after}"
    return fact.after or fact.before


def unchanged(fact: Fact) -> bool:
    """Whether a fact is the same before and after."""
    return bool(fact.before) and fact.before == fact.after


def notice_text(notice: Notice) -> str:
    """A finding in one line."""
    seen = f" ({notice.seen})" if notice.seen else ""
    return f"{notice.where}: {notice.message}{seen}" if notice.where else notice.message + seen


def notice_state(notice: Notice) -> str:
    """What became of a finding."""
    if notice.blocking:
        wanted = acceptable(notice.code)
        way = f"; if it is wanted, in the spec: accept: [{{code: {notice.code}, reason: why}}]" if wanted else ""
        if notice.code.startswith("VP"):
            way = "; no job can accept it: policies of vecrun.yaml"
        if notice.code.startswith("VC"):
            way = f"; raise budget in the job or, above policies of vecrun.yaml, accept: [{{code: {notice.code}, reason: why}}]"
        return f"not accepted: apply will refuse{way}"
    asked = "apply asks for it" if notice.code.startswith("VP") else "for your information"
    return f"accepted: {notice.accepted}" if notice.accepted else asked


def summary(plan: Plan) -> str:
    """The last line of a plan."""
    if not plan.steps and plan.blocked:
        return "Nothing can be done before the findings are mended."
    if not plan.steps:
        moved = "Nothing to do by this spec, but the world moved since it was applied."
        return moved if plan.drift else "Nothing to do."
    if tables := relational.summary(plan):
        return tables
    count = {"create": 0, "change": 0, "switch": 0, "delete": 0}
    for step in plan.steps:
        match step:
            case CreateCollection():
                count["create"] += 1
            case LoadTables() | UnloadTables():
                count["change"] += 1
            case TruncateTables():
                count["delete"] += 1
            case RewriteIds() | RestoreIds() | CatchUp() | ReplaceVectors() | RestoreVectors() | SetModel():
                count["change"] += 1
            case SwitchAlias() | SetServing():
                count["switch"] += 1
            case DropCollection() | ClearCollection():
                count["delete"] += 1
    embedding = [step for step in plan.steps if step.estimate.tokens is not None]
    seconds = sum(step.estimate.seconds or 0 for step in plan.steps)
    data = sum(step.estimate.bytes or 0 for step in plan.steps)
    what = f"{number(plan.points)} points to copy"
    if any(isinstance(step, RestoreVectors) for step in plan.steps):
        points = sum(step.points for step in plan.steps if isinstance(step, RestoreVectors))
        what = f"{number(points)} old vectors to put back"
    documents = [step for step in plan.steps if isinstance(step, Change | RestoreDocuments)]
    if documents:
        verb = "to bring back" if plan.purpose == "rollback" else "to change" if not _deletes(plan) else "to delete"
        what = f"{counted(documents[0].documents, 'document')} {verb}"
    if tables := _of_tables(plan):
        what = tables
    if plan.purpose == "retry":
        what = "the failed items to try again"
    if embedding:
        texts = f"{number(sum(step.estimate.texts or 0 for step in embedding))} texts to embed"
        what = f"{what}, {texts}" if documents else texts
    text = f"Plan: {count['create']} to create, {what}, {count['change']} to change, "
    text += f"{count['switch']} to switch, {count['delete']} to delete."
    if embedding:
        tokens, usd = sum(step.estimate.tokens or 0 for step in embedding), [step.estimate.usd for step in embedding]
        cost = f", {money(sum(value or 0 for value in usd))} USD" if None not in usd else ", at a price nobody knows"
        took = duration(seconds) if all(step.estimate.seconds is not None for step in embedding) else "time not known"
        text += f" About {number(tokens)} tokens{cost}, {took}."
    elif data:
        measured = any(step.estimate.seconds is not None for step in plan.steps)
        took = f" Reading alone takes {duration(seconds)} as measured just now;" if measured else ""
        text += f"{took} about {size(data)} of data." if took else f" About {size(data)} of data."
    return text


def _of_tables(plan: Plan) -> str:
    """How much is backed up, or comes back out of a backup; empty for other plans."""
    rows = [step for step in plan.steps if isinstance(step, BackUpTables | LoadTables)]
    points = [step.points for step in plan.steps if isinstance(step, BackUpPoints)]
    if rows:
        verb = "to back up" if isinstance(rows[0], BackUpTables) else "to fill in"
        return f"{counted(sum(step.rows for step in rows), 'row')} {verb}"
    if points:
        return f"{counted(sum(points), 'point')} to back up"
    if any(isinstance(step, UnloadTables) for step in plan.steps):
        return "tables to bring back"
    return ""


def _deletes(plan: Plan) -> bool:
    return any(isinstance(step, DeleteDocuments) for step in plan.steps)


def way_back(plan: Plan) -> list[str]:
    """How it can be undone, in sentences."""
    if not plan.steps or plan.purpose == "rollback":
        return []
    if plan.purpose == "retry":
        return [f"It is undone with run {plan.of_run}: vecrun rollback {plan.job}"]
    undo, irreversible = reversed_steps(plan.steps)
    if irreversible:
        return ["There is no way back after: " + "; ".join(step_line(step) for step in irreversible)]
    if not undo:
        return ["There is nothing to undo: what it writes stays, and nothing else is changed."]
    lines = [f"For {plan.retention} after the run: vecrun rollback {plan.job}. It would, in this order:"]
    lines += [f"  {step.action} {step_line(step)}" for step in undo]
    sources = sorted({str(step.source) for step in plan.steps if isinstance(step, CopyPoints)})
    if sources:
        lines.append(f"The source is only read, never changed: {', '.join(sources)}")
    return lines


def destroyed(plan: Plan) -> list[str]:
    """What is gone for good after the plan."""
    return [step.destroys for step in plan.steps if step.destroys]
