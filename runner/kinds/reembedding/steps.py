"""From the spec and the live world to steps: embed into a new collection and switch, or in place with the old points saved."""

from __future__ import annotations

from runner.clauses.live import LivePlan
from runner.clauses.spec import notice, saved_name
from runner.clauses.texts import Choice
from runner.embedder import ModelIdentity, money
from runner.errors import NotFound, Permanent
from runner.kinds import Draft
from runner.kinds.reembedding import estimate
from runner.kinds.reembedding.change import Change, describe
from runner.kinds.reembedding.spec import ReembeddingSpec
from runner.plan import (
    CheckQuality,
    CopyPoints,
    CreateCollection,
    Estimate,
    FinishCollection,
    InfoRow,
    Live,
    Notice,
    Observed,
    Overview,
    Place,
    Query,
    ReplaceVectors,
    SetModel,
    SetServing,
    SettleFailures,
    Step,
    SwitchAlias,
    VerifyPoints,
    VersionRows,
)
from runner.points import CollectionSchema, Datatype, PayloadField, PayloadType, PointBatch, VectorField
from runner.settings import duration_seconds
from runner.spec import digest, suggest
from runner.state import State
from runner.store import NORMS, Problem, Store
from runner.transform import Embedding, TextColumn, Transform
from runner.world import World

#: Codes of this kind.
COST = "VC101"
TIME = "VC102"
NO_PRICE = "VI110"
FAILING = "VI111"
TOO_LONG = "VI112"
DIMENSION = "VI113"
MIXED = "VB104"
SWITCHES_READERS = "VB101"
OVERWRITES = "VL202"
TARGET_EXISTS = "VX206"
NO_TEXT = "VX207"
ALIAS_TAKEN = "VX204"
VERSION_COLUMN = "VX208"


def recurring(spec: ReembeddingSpec) -> bool:
    """Whether an applied, unchanged job may have something to do again: texts change."""
    return spec.strategy == "incremental"


def plan_steps(job: str, spec: ReembeddingSpec, world: World, state: State) -> Draft:
    """Look at a sample of the texts (incremental: at all of them) and say what has to be done."""
    accepted = {item.code: item.reason for item in spec.accept}
    draft = Draft(retention=spec.retention or "")
    store, place = world.store(spec.connection), resolved(spec, world)
    schema = store.inspect(place.collection)
    assert schema is not None
    embedder, kept = world.embedder(spec.model), world.kept
    identity, found = embedder.identity(), list[Problem]()
    before = vector_of(spec, place, schema)
    if identity.dimension != before.dimension:
        if state.status == "applied" and recurring(
            spec
        ):  # the new collection was made; the job still names the old one
            return draft
        message = f"{before.dimension} dimensions become {identity.dimension}: only a new collection can hold them"
        if spec.in_place:
            message += f", so strategy {spec.strategy} becomes create_new_collection"
            spec = spec.model_copy(update={"strategy": "create_new_collection"})
        found.append(Problem(DIMENSION, message))
    change = change_of(job, spec, world, state, store, place, schema, before, identity)
    choice = None
    if spec.strategy == "incremental":
        choice = Choice(world, kept, place, change.embed, change.rows, stale_only=True)
    work = estimate.sample(world, kept, place, change.embed, embedder, choice)
    draft.world.append(_observed(place, "target" if spec.in_place else "source", schema, work.points, spec))
    if choice is not None and not work.texts:
        return draft
    found += _problems(change, store, work)
    if not spec.in_place:
        existing = store.inspect(change.target.collection)
        if existing is not None:
            held = store.count(change.target.collection)
            found.append(
                Problem(
                    TARGET_EXISTS,
                    f"{change.target} is there already, with {held:,} points; choose another name with to:",
                )
            )
        draft.world.append(_observed(change.target, "target", existing, held if existing is not None else None, spec))
    cost = estimate.cost(work, embedder)
    found += _of_cost(spec, world, cost)
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


def resolved(spec: ReembeddingSpec, world: World) -> Place:
    """The collection that is meant: by its name, an alias of the store, or a serving pointer."""
    store = world.store(spec.connection)
    existing, aliases = store.collections(), store.aliases()
    if spec.collection in existing or store.inspect(spec.collection) is not None:
        return Place(connection=spec.connection, collection=spec.collection)
    name = aliases.get(spec.collection)
    pointer = world.serving().get(spec.collection)
    if name is None and pointer is not None and pointer.connection == spec.connection:
        name = pointer.collection
    if name is None or store.inspect(name) is None:
        raise NotFound(
            "No such collection", f"{spec.collection!r} in {spec.connection}",
            suggest(spec.collection, [*existing, *aliases]) or "there are no collections",
        )  # fmt: skip
    return Place(connection=spec.connection, collection=name)


def vector_of(spec: ReembeddingSpec, place: Place, schema: CollectionSchema) -> VectorField:
    """The vector that is to be made anew."""
    names = [item.name for item in schema.vectors]
    if spec.vector is not None and spec.vector not in names:
        raise NotFound("No such vector", f"{spec.vector!r} in {place}", suggest(spec.vector, names))
    if not names or (spec.vector is None and len(names) > 1):
        known = ", ".join(map(repr, names)) or "no dense vector"
        raise Permanent("Which vector is to be made anew?", f"{place} has {known}", "Say it in the job: vector: NAME")
    return schema.vector(spec.vector if spec.vector is not None else names[0])


def _old(spec: ReembeddingSpec, world: World, before: VectorField) -> Embedding | None:
    """How queries are embedded for the present vectors. Permanent when from_model cannot have made them."""
    if spec.from_model is None:
        return None
    identity = world.embedder(spec.from_model).identity()
    if identity.dimension != before.dimension:
        raise Permanent(
            "The present vectors are of another model",
            f"from_model {spec.from_model} has {identity.dimension} dimensions, the collection {before.dimension}",
            "Name the model that made them, or leave from_model out",
        )
    return Embedding(model=spec.from_model, identity=identity, vector=before.name, field=spec.text.field)


def change_of(
    job: str, spec: ReembeddingSpec, world: World, state: State, store: Store, place: Place, schema: CollectionSchema,
    before: VectorField, identity: ModelIdentity,
) -> Change:  # fmt: skip
    """What is to be done to a collection, in the words of a plan."""
    column = None
    if spec.text.column is not None:
        assert spec.documents is not None
        documents = spec.documents
        column = TextColumn(
            connection=documents.connection, table=documents.table, vector_id_column=documents.vector_id_column,
            text_column=spec.text.column, collection_column=documents.collection_column,
            collection=documents.collection_value or place.collection,
        )  # fmt: skip
        from runner.documents import texts

        texts.check(world.database(documents.connection), column)
    embed = Embedding(
        model=spec.model, identity=identity, vector=before.name, field=spec.text.field, column=column,
        version_field=spec.version_field,
        budget=spec.budget.usd if COST not in {item.code for item in spec.accept} else None,
    )  # fmt: skip
    transform = Transform(embed=embed)
    if (field := spec.version_field) is not None:
        transform = Transform(drop=(field,), set={field: identity.version}, embed=embed)
    target, saved, wish = place, None, schema
    if spec.in_place:
        key = f"{job}:{state.lineage}:{state.serial}"
        saved = Place(connection=place.connection, collection=_free(store, place.collection, key))
    else:
        name = spec.to.replace("{name}", place.collection).replace("{model}", _word(spec.model))
        target = Place(connection=place.connection, collection=name)
        wish = _wish(spec, schema, before, identity, target)
    rows = None
    if spec.documents is not None and spec.documents.version_column is not None:
        documents = spec.documents
        rows = VersionRows(
            connection=documents.connection, table=documents.table, id_column=documents.id_column,
            vector_id_column=documents.vector_id_column, version_column=documents.version_column or "",
            collection_column=documents.collection_column, collection=documents.collection_value or place.collection,
        )  # fmt: skip
    switches = not spec.in_place and spec.cutover is not None
    return Change(
        spec, place, target, saved, wish, before, transform, embed, _old(spec, world, before), rows,
        store.count(place.collection), switches,
    )  # fmt: skip


def _free(store: Store, name: str, key: str) -> str:
    """A name for the saved points that no collection has: a rolled back run may have left none, an applied one has."""
    while store.inspect(saved_name(name, key)) is not None:
        key += "+"
    return saved_name(name, key)


def _word(name: str) -> str:
    """A model's name as every store takes it in a collection's."""
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in name)


def _wish(
    spec: ReembeddingSpec, schema: CollectionSchema, before: VectorField, identity: ModelIdentity, target: Place
) -> CollectionSchema:
    """The present collection with another vector."""
    made = before.model_copy(
        update={
            "dimension": identity.dimension, "datatype": Datatype.FLOAT32,
            "distance": spec.distance or before.distance, "index": spec.index or before.index,
        }
    )  # fmt: skip
    payload = schema.payload
    if spec.version_field is not None and payload and spec.version_field not in {item.name for item in payload}:
        payload = (*payload, PayloadField(name=spec.version_field, type=PayloadType.KEYWORD))
    vectors = tuple(made if item.name == before.name else item for item in schema.vectors)
    return schema.model_copy(update={"name": target.collection, "vectors": vectors, "payload": payload})


def _observed(
    place: Place, role: str, schema: CollectionSchema | None, count: int | None, spec: ReembeddingSpec
) -> Observed:
    return Observed(
        place=place, role="source" if role == "source" else "target", count=count,
        schema_digest=digest(schema.model_dump(mode="json")) if schema is not None else None,
        live=spec.live is not None and schema is not None,
    )  # fmt: skip


def _problems(change: Change, store: Store, work: estimate.Work) -> list[Problem]:
    """What stands in the way, and what a reviewer must know."""
    spec, found = change.spec, list[Problem]()
    if not spec.in_place:
        change.schema, problems = store.fit(change.schema)
        found += problems
    else:
        if change.before.datatype is not Datatype.FLOAT32:
            found += [item for item in store.fit(change.schema)[1] if item.code == "VL102"]
        if spec.strategy == "replace":
            message = (
                "until the run is through, points of two models stand side by side, and search finds only those of the model "
                "it asks with. create_new_collection has no such time"
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


def _payload_problems(change: Change, store: Store, work: estimate.Work) -> list[Problem]:
    """What of some points the target could not hold, their new vector aside."""
    if work.first is None:
        return []
    batch, _mapped = change.transform.apply(work.first)
    name = change.before.name
    others = tuple(item for item in change.schema.vectors if item.name != name)
    vectors = {key: matrix for key, matrix in batch.vectors.items() if key != name}
    bare = PointBatch(batch.ids, vectors, batch.payloads, batch.sparse, batch.missing, batch.partitions)
    return store.problems(change.schema.model_copy(update={"vectors": others}), bare)


def _of_cost(spec: ReembeddingSpec, world: World, cost: estimate.Cost) -> list[Problem]:
    policies, found = world.settings.workspace.policies, list[Problem]()
    most = min((value for value in (spec.budget.usd, policies.usd) if value is not None), default=None)
    if cost.usd is None and cost.tokens:
        found.append(Problem(NO_PRICE, f"about {cost.tokens:,} tokens; {cost.price}"))
    if most is not None and cost.usd is not None and cost.usd > most:
        found.append(Problem(COST, f"embedding costs about {money(cost.usd)} USD; at most {money(most)} is allowed"))
    times = [duration_seconds(value) for value in (spec.budget.time, policies.time) if value is not None]
    if times and cost.seconds is not None and cost.seconds > min(times):
        found.append(Problem(TIME, f"embedding takes longer than the {min(times) / 60:,.0f} minutes that are allowed"))
    return found


def _accept(spec: ReembeddingSpec) -> tuple[str, ...]:
    """Findings that stop no batch. That a store scales what the model gives loses nothing of the user's."""
    return tuple(dict.fromkeys([*(item.code for item in spec.accept), NORMS]))


def _live(change: Change) -> LivePlan:
    return LivePlan(change.spec.live, _accept(change.spec), [change])


def _arrange(
    job: str, change: Change, world: World, state: State, work: estimate.Work, cost: estimate.Cost, draft: Draft
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
        *_quality(change, "after"),
        *_cutover(change, world, draft),
        *([end] if end is not None else []),
    ]
    if moving is not None:
        steps.append(replace.model_copy(update={"phase": "after", "estimate": Estimate()}))
        steps += [_again(end)] if end is not None and change.rows is not None else []


def _again(end: SetModel) -> SetModel:
    """The rows of points that were embedded after the switch."""
    return end.model_copy(update={"phase": "again", "info": None, "before": None, "after": None})


def _set_model(
    job: str, change: Change, world: World, state: State, draft: Draft
) -> tuple[SetModel | None, SetModel | None]:
    """The steps that take marks away and set them; None where nothing is marked."""
    spec, identity = change.spec, change.embed.identity
    if change.rows is None and spec.knowledge_base is None:
        return None, None
    from runner.documents import chunks, model

    undo, info, before = "", None, None
    if change.rows is not None:
        database = world.database(change.rows.connection)
        model.check(database, change.rows)
        if reason := model.holds(database, change.rows, identity.version):
            draft.notices.append(notice(Problem(VERSION_COLUMN, reason), change.rows.connection, {}))
        undo = chunks.free_name(database, change.rows.table, f"{job}:{state.lineage}:{state.serial}:versions")
    if spec.knowledge_base is not None:
        base = spec.knowledge_base
        info = InfoRow(
            connection=base.connection,
            table=base.table,
            id_column=base.id_column,
            id=base.id,
            info_column=base.info_column,
        )
        before = model.info(world.database(base.connection), info)
    after = {
        "provider": identity.provider, "model": identity.model, "dimension": identity.dimension,
        "version": identity.version, "collection": change.target.collection,
    }  # fmt: skip
    end = SetModel(
        phase="end", target=change.target, embed=change.embed, rows=change.rows, undo_table=undo, info=info,
        before=before, after={**(before or {}), **after} if info is not None else None,
    )  # fmt: skip
    begin = end.model_copy(update={"phase": "begin", "info": None, "before": None, "after": None})
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
    """The store's alias, then the workspace's pointer with the model that embeds its queries."""
    spec, store = change.spec, world.store(change.target.connection)
    if spec.cutover is None:
        return []
    alias, steps = spec.cutover.alias.replace("{name}", change.target.collection), list[Step]()
    accepted = {item.code: item.reason for item in spec.accept}
    if store.capabilities().aliases and not spec.in_place:
        if alias in {*store.collections(), change.target.collection}:
            problem = Problem(ALIAS_TAKEN, f"{alias} is a collection there, so it cannot become an alias")
            draft.notices.append(notice(problem, spec.connection, accepted))
        before = store.aliases().get(alias)
        steps.append(
            SwitchAlias(connection=spec.connection, alias=alias, before=before, after=change.target.collection)
        )
    serving = world.serving().get(alias)
    present = world.serving_models().get(alias, spec.from_model or "") if serving is not None else ""
    steps.append(
        SetServing(
            name=alias, before=serving, after=change.target,
            model_before=present, model_after=spec.model,
        )
    )  # fmt: skip
    message = f"readers that follow {alias} are switched to {change.target}, and embed queries with {spec.model}"
    if spec.in_place:
        message = f"readers that follow {alias} embed queries with {spec.model} when all vectors are replaced, not before"
    draft.notices.append(Notice(code=SWITCHES_READERS, message=message, where=alias))
    return steps
