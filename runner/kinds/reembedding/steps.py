"""From the spec and the live world to steps: embed into a new collection and switch, or in place with the old points saved."""

from __future__ import annotations

from runner.clauses.collection import resolved, saving_problems, vector_of
from runner.clauses.cost import Cost, Work, cost_problems
from runner.clauses.cost import cost as cost_of
from runner.clauses.live import LivePlan
from runner.clauses.spec import notice
from runner.clauses.texts import Choice
from runner.kinds import Draft
from runner.kinds.reembedding import estimate, findings
from runner.kinds.reembedding.change import Change, describe
from runner.kinds.reembedding.spec import ReembeddingSpec
from runner.kinds.reembedding.target import change_of, observed
from runner.plan import (
    CheckQuality,
    CopyPoints,
    CreateCollection,
    Estimate,
    FinishCollection,
    Live,
    Notice,
    Overview,
    Query,
    ReplaceVectors,
    SetModel,
    SetServing,
    SettleFailures,
    Step,
    SwitchAlias,
    VerifyPoints,
)
from runner.state import State
from runner.store import NORMS, Problem, Store
from runner.world import World


def recurring(spec: ReembeddingSpec) -> bool:
    """Whether an applied, unchanged job may have something to do again: texts change."""
    return spec.strategy == "incremental"


def plan_steps(job: str, spec: ReembeddingSpec, world: World, state: State, *, applied: bool) -> Draft:
    """Look at a sample of the texts (incremental: at all of them) and say what has to be done."""
    accepted = {item.code: item.reason for item in spec.accept}
    draft = Draft(retention=spec.retention or "")
    store, place = world.store(spec.connection), resolved(spec.connection, spec.collection, world)
    schema = store.inspect(place.collection)
    assert schema is not None
    embedder, kept = world.embedder(spec.model), world.kept
    identity, found = embedder.identity(), list[Problem]()
    before = vector_of(spec.vector, place, schema)
    if identity.dimension != before.dimension:
        if applied:  # the new collection was made; the job still names the old one
            return draft
        message = f"{before.dimension} dimensions become {identity.dimension}: only a new collection can hold them"
        if spec.in_place:
            message += f", so strategy {spec.strategy} becomes create_new_collection"
            spec = spec.model_copy(update={"strategy": "create_new_collection"})
        found.append(Problem(findings.DIMENSION, message))
    change = change_of(job, spec, world, state, store, place, schema, before, identity)
    if not spec.in_place and 0 < change.points <= kept.count_marked(str(place), before.name, identity.key):
        message = (
            f"all {change.points:,} points are of {spec.model} already; strategy: incremental looks for changed texts"
        )
        draft.notices.append(notice(Problem(findings.ALREADY, message), str(place), accepted))
        return draft
    choice = None
    if spec.strategy == "incremental":
        choice = Choice(world, kept, place, change.embed, change.rows, stale_only=True)
    work = estimate.sample(world, kept, place, change.embed, embedder, choice)
    draft.world.append(observed(place, "target" if spec.in_place else "source", schema, work.points, spec))
    if choice is not None and choice.trusted:
        found.append(findings.trusted(choice.trusted))
    if choice is not None and not work.texts:
        draft.notices += [notice(item, str(place), accepted) for item in found]
        return draft
    found += findings.of_change(change, store, work)
    if not spec.in_place:
        existing = store.inspect(change.target.collection)
        if existing is not None:
            held = store.count(change.target.collection)
            found.append(
                Problem(
                    findings.TARGET_EXISTS,
                    f"{change.target} is there already, with {held:,} points; choose another name with to:",
                )
            )
        draft.world.append(observed(change.target, "target", existing, held if existing is not None else None, spec))
    cost = cost_of(work, embedder)
    found += cost_problems(spec.budget, world, cost)
    _arrange(job, change, world, state, work, cost, draft)
    where = str(place)
    draft.notices = [
        *(notice(item, where, accepted, may_accept=item.code[:2] == "VC") for item in found),
        *draft.notices,
    ]
    live = _live(change)
    if not spec.in_place:
        draft.notices += [notice(item, at, accepted) for item, at in live.problems()]
    draft.notices = [_accepted(item, accepted) for item in draft.notices]
    facts = describe(change, world, work, cost)
    draft.overview = [Overview(source=change.source, target=change.target, facts=tuple(facts))]
    return draft


def _accepted(item: Notice, accepted: dict[str, str]) -> Notice:
    return item.model_copy(update={"accepted": accepted.get(item.code, item.accepted)}) if not item.blocking else item


def _accept(spec: ReembeddingSpec) -> tuple[str, ...]:
    """Findings that stop no batch. That a store scales what the model gives loses nothing of the user's."""
    return tuple(dict.fromkeys([*(item.code for item in spec.accept), NORMS]))


def _live(change: Change) -> LivePlan:
    return LivePlan(change.spec.live, _accept(change.spec), [change])


def _arrange(
    job: str, change: Change, world: World, state: State, work: Work, cost: Cost, draft: Draft
) -> None:  # fmt: skip
    """The order of everything: data, verification, quality, marks away, readers, marks."""
    spec, steps = change.spec, draft.steps
    accept = _accept(spec)
    spent = Estimate(
        seconds=round(cost.seconds, 1) if cost.seconds is not None else None, texts=work.texts, tokens=cost.tokens,
        usd=round(cost.usd, 4) if cost.usd is not None else None,
        bytes=int(work.texts * (4 * change.embed.identity.dimension + work.point_bytes)),
    )  # fmt: skip
    begin, end = _set_model(job, change, world, state, draft)
    settle = SettleFailures(
        source=change.source, target=change.target, saved=change.saved, target_schema=change.schema,
        transform=change.transform, allow=spec.failures.allow, accept=accept,
    )  # fmt: skip
    verify = VerifyPoints(
        source=change.source, target=change.target, target_schema=change.schema, transform=change.transform,
        mode=spec.verify.mode, sample=spec.verify.sample, points=change.points, saved=change.saved,
    )  # fmt: skip
    if change.saved is None:
        live = _live(change)
        steps += [
            CreateCollection(target=change.target, schema=change.schema),
            CopyPoints(
                source=change.source, target=change.target, target_schema=change.schema, transform=change.transform,
                points=change.points, batch_size=spec.batch_size, accept=accept, estimate=spent,
            ),
            settle,
            FinishCollection(target=change.target, schema=change.schema),
            *live.before(),
            verify.model_copy(update={"live": live.of_verification(change)}),
            *([settle] if spec.live is not None else []),
            *_quality(change, "both"),
            *([begin] if begin is not None else []),
            *_cutover(change, world, draft),
            *([end] if end is not None else []),
        ]  # fmt: skip
        if late := live.after(steps):
            steps += [*late, *([_again(end)] if end is not None and change.rows is not None else [])]
        return
    kept = change.schema.model_copy(
        update={
            "name": change.saved.collection,
            "vectors": tuple(item.model_copy(update={"index": None}) for item in change.schema.vectors),
        }
    )
    if change.saved.connection != change.target.connection:
        elsewhere, accepted = world.store(change.saved.connection), {item.code: item.reason for item in spec.accept}
        problems = saving_problems(kept, elsewhere, work.first)
        draft.notices += [notice(item, str(change.saved), accepted) for item in problems]
        kept = elsewhere.fit(kept)[0]
    moving = Live(bound=spec.live.bound, passes=spec.live.passes, accept=accept) if spec.live is not None else None
    replace = ReplaceVectors(
        target=change.target, saved=change.saved, target_schema=change.schema, transform=change.transform,
        choose="stale" if spec.strategy == "incremental" else "all", rows=change.rows, points=change.points,
        batch_size=spec.batch_size, accept=accept, live=moving, estimate=spent,
    )  # fmt: skip
    steps += [
        *_quality(change, "before"),
        CreateCollection(target=change.saved, schema=kept),
        FinishCollection(target=change.saved, schema=kept),
        *([begin] if begin is not None else []),
        replace,
        settle,
        verify.model_copy(update={"live": moving}),
        *([settle] if moving is not None else []),
        *_quality(change, "after"),
        *_cutover(change, world, draft),
        *([end] if end is not None else []),
    ]
    if moving is not None:
        steps.append(replace.model_copy(update={"phase": "after", "estimate": Estimate()}))
        steps += [_again(end)] if end is not None and change.rows is not None else []


def _again(end: SetModel) -> SetModel:
    """The rows of points that were embedded after the switch."""
    return end.model_copy(update={"phase": "again", "info": None, "before": None, "after": None, "before_text": None})


def _set_model(
    job: str, change: Change, world: World, state: State, draft: Draft
) -> tuple[SetModel | None, SetModel | None]:
    """The steps that take marks away and set them; None where nothing is marked."""
    spec, identity = change.spec, change.embed.identity
    if change.rows is None and spec.knowledge_base is None:
        return None, None
    from runner.documents import chunks, model
    from runner.documents import info as model_info

    undo, info, before, text = "", None, None, None
    if change.rows is not None:
        database = world.database(change.rows.connection)
        model.check(database, change.rows)
        if reason := model.holds(database, change.rows, identity.version):
            draft.notices.append(notice(Problem(findings.VERSION_COLUMN, reason), change.rows.connection, {}))
        rows, accepted = model.named(database, change.rows), {item.code: item.reason for item in spec.accept}
        for problem in findings.of_rows(change, rows):
            draft.notices.append(notice(problem, change.rows.connection, accepted))
        undo = chunks.free_name(database, change.rows.table, f"{job}:{state.lineage}:{state.serial}:versions")
    if spec.knowledge_base is not None:
        base = spec.knowledge_base
        info = base.row
        before, text = model_info.as_it_stands(world.database(base.connection), info)
    after = {
        "provider": identity.provider, "model": identity.model, "dimension": identity.dimension,
        "version": identity.version, "collection": change.target.collection,
    }  # fmt: skip
    end = SetModel(
        phase="end", target=change.target, embed=change.embed, rows=change.rows, undo_table=undo, info=info,
        before=before, after={**(before or {}), **after} if info is not None else None, before_text=text,
    )  # fmt: skip
    begin = end.model_copy(update={"phase": "begin", "info": None, "before": None, "after": None, "before_text": None})
    return (begin if change.rows is not None else None), end


def _quality(change: Change, phase: str) -> list[Step]:
    spec = change.spec
    if spec.quality is None or (phase == "before" and spec.from_model is None):
        return []
    quality = spec.quality
    queries = tuple(
        Query(text=item) if isinstance(item, str) else Query(text=item["text"], expect=tuple(item.get("expect", ())))
        for item in quality.queries
    )
    return [
        CheckQuality(
            phase="before" if phase == "before" else "after" if phase == "after" else "both",
            source=change.source, target=change.target, old=change.old, new=change.embed, queries=queries, k=quality.k,
            min_overlap=quality.min_overlap, min_recall=quality.min_recall,
        )
    ]  # fmt: skip


def _cutover(change: Change, world: World, draft: Draft) -> list[Step]:
    """The store's alias, then the workspace's pointers with the model that embeds their queries: in place, all that lead
    to the collection."""
    spec, store, steps = change.spec, world.store(change.target.connection), list[Step]()
    accepted = {item.code: item.reason for item in spec.accept}
    serving, names = world.serving(), list[str]()
    if spec.cutover is not None:
        names.append(spec.cutover.alias.replace("{name}", change.target.collection))
        if store.capabilities().aliases and not spec.in_place:
            steps.append(_alias(change, names[0], store, draft, accepted))
    if spec.in_place:
        names += [name for name, place in sorted(serving.items()) if place == change.target and name not in names]
    for name in names:
        present = world.serving_models().get(name, spec.from_model or "") if name in serving else ""
        if (serving.get(name), present) == (change.target, spec.model):
            continue
        steps.append(
            SetServing(
                name=name, before=serving.get(name), after=change.target, model_before=present, model_after=spec.model
            )
        )
        message = f"readers that follow {name} are switched to {change.target}, and embed queries with {spec.model}"
        if spec.in_place:
            message = (
                f"readers that follow {name} embed queries with {spec.model} when all vectors are replaced, not before"
            )
        draft.notices.append(Notice(code=findings.SWITCHES_READERS, message=message, where=name))
    return steps


def _alias(change: Change, alias: str, store: Store, draft: Draft, accepted: dict[str, str]) -> SwitchAlias:
    made = alias == change.target.collection
    if reason := f"{alias} is made by this job" if made else store.alias_taken(alias):
        problem = Problem(findings.ALIAS_TAKEN, f"{reason}, so it cannot become an alias")
        draft.notices.append(notice(problem, change.target.connection, accepted))
    before = store.aliases().get(alias)
    return SwitchAlias(connection=change.target.connection, alias=alias, before=before, after=change.target.collection)
