"""The plan: a value that says everything `apply` will do. Steps are a small closed vocabulary; each knows its reverse.

A plan holds references to connections, never their secrets. Planning twice gives the same plan but for the time
of day and the measured estimates (`identity`).
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer

from runner.errors import NotFound, PlanRefused
from runner.points import CollectionSchema, Model
from runner.spec import digest
from runner.store import Problem
from runner.transform import Transform

FORMAT_VERSION = "1.0"


class Action(StrEnum):
    """What a step does to the world, with the symbol a reader sees."""

    CREATE = "+"
    CHANGE = "~"
    DELETE = "-"
    SWITCH = ">"
    CHECK = "="


class Estimate(Model):
    """Seconds and bytes a step will need at least; None where nothing could be measured."""

    seconds: float | None = None
    bytes: int | None = None


class Place(Model):
    """A collection of a connection."""

    connection: str
    collection: str

    def __str__(self) -> str:
        return f"{self.connection}/{self.collection}"


class StepBase(Model):
    """What all steps have. `destroys` counts points that are gone afterwards and stand nowhere else."""

    estimate: Estimate = Estimate()

    action: ClassVar[Action]

    @property
    def destroys(self) -> str:
        """What is lost for good by this step; empty if nothing is."""
        return ""

    def reverse(self) -> tuple[Step, ...] | None:
        """The steps that undo this one, () when there is nothing to undo, None when it is irreversible."""
        return ()


class CreateCollection(StepBase):
    """Make an empty collection."""

    type: Literal["create_collection"] = "create_collection"
    target: Place
    schema_: CollectionSchema = Field(alias="schema")

    model_config = Model.model_config | {"populate_by_name": True}

    action: ClassVar[Action] = Action.CREATE

    def reverse(self) -> tuple[Step, ...] | None:
        return (DropCollection(target=self.target, why="made by the run that is rolled back", copy_of_source=True),)


class CopyPoints(StepBase):
    """Read every point of the source, transform it, write it to the target. The target starts empty."""

    type: Literal["copy_points"] = "copy_points"
    source: Place
    target: Place
    target_schema: CollectionSchema
    transform: Transform = Transform()
    points: int
    batch_size: int = 1000
    accept: tuple[str, ...] = ()
    creates_target: bool = True

    action: ClassVar[Action] = Action.CREATE

    def reverse(self) -> tuple[Step, ...] | None:
        if self.creates_target:
            return ()  # dropping the collection undoes both
        return (ClearCollection(target=self.target),)


class FinishCollection(StepBase):
    """Build the indexes and make the collection searchable."""

    type: Literal["finish_collection"] = "finish_collection"
    target: Place
    schema_: CollectionSchema = Field(alias="schema")

    model_config = Model.model_config | {"populate_by_name": True}

    action: ClassVar[Action] = Action.CREATE


class Live(Model):
    """A source that is written to meanwhile. `field`: the target's name of the payload field that every write raises."""

    field: str | None = None
    bound: int = 100  # go on when a pass had to repair at most so many points
    passes: int = 10  # at most so many; then the run stops
    accept: tuple[str, ...] = ()


class VerifyPoints(StepBase):
    """Compare source and target; a difference stops the run before anything is switched.

    With `live` a point that differs is copied again and compared again, and only what differs then stops the run.
    """

    type: Literal["verify_points"] = "verify_points"
    source: Place
    target: Place
    target_schema: CollectionSchema
    transform: Transform = Transform()
    mode: Literal["count", "sample", "full"] = "full"
    sample: int = 100
    points: int = 0
    live: Live | None = None

    action: ClassVar[Action] = Action.CHECK


class ChunkTable(Model):
    """The user's relational table whose rows name points. `where` limits it to one collection's rows."""

    connection: str
    table: str
    id_column: str
    vector_id_column: str
    collection_column: str | None = None


class RewriteIds(StepBase):
    """Replace old point ids by new ones in a relational table, from the mapping the copy recorded.

    Old values go into `undo_table` of the same database in the same transaction.
    """

    type: Literal["rewrite_ids"] = "rewrite_ids"
    chunks: ChunkTable
    undo_table: str
    collections: tuple[tuple[str, str], ...]  # (source collection, target collection), those whose ids are mapped
    rows: int

    action: ClassVar[Action] = Action.CHANGE

    def reverse(self) -> tuple[Step, ...] | None:
        return (RestoreIds(chunks=self.chunks, undo_table=self.undo_table, rows=self.rows),)


class CatchUp(StepBase):
    """Bring over what was written to the source since, in passes over all of it.

    Before the cutover the target is made equal. After it the target is written to as well: there a pass only adds what
    was never there, and with a field replaces what is older and deletes what the source deleted.
    """

    type: Literal["catch_up"] = "catch_up"
    phase: Literal["before", "after"]
    source: Place
    target: Place
    target_schema: CollectionSchema
    transform: Transform = Transform()
    points: int = 0
    live: Live
    chunks: ChunkTable | None = None  # after the cutover: rows that came late follow their points, too
    undo_table: str = ""

    action: ClassVar[Action] = Action.CHANGE


class Hold(StepBase):
    """Stop as `paused` until an operator resumes: the writers of these sources are stopped first."""

    type: Literal["hold"] = "hold"
    collections: tuple[tuple[Place, Place], ...]  # (source, target)

    action: ClassVar[Action] = Action.CHECK


class RestoreIds(StepBase):
    """Put the old point ids back from the undo table, and remove that table."""

    type: Literal["restore_ids"] = "restore_ids"
    chunks: ChunkTable
    undo_table: str
    rows: int

    action: ClassVar[Action] = Action.CHANGE

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class SwitchAlias(StepBase):
    """Point an alias of a store at another collection (None: no alias)."""

    type: Literal["switch_alias"] = "switch_alias"
    connection: str
    alias: str
    before: str | None
    after: str | None

    action: ClassVar[Action] = Action.SWITCH

    def reverse(self) -> tuple[Step, ...] | None:
        return (SwitchAlias(connection=self.connection, alias=self.alias, before=self.after, after=self.before),)


class SetServing(StepBase):
    """Set the workspace's own pointer: which store and collection serve under a name."""

    type: Literal["set_serving"] = "set_serving"
    name: str
    before: Place | None
    after: Place | None

    action: ClassVar[Action] = Action.SWITCH

    def reverse(self) -> tuple[Step, ...] | None:
        return (SetServing(name=self.name, before=self.after, after=self.before),)


class ClearCollection(StepBase):
    """Delete every point of a collection and keep the collection."""

    type: Literal["clear_collection"] = "clear_collection"
    target: Place
    points: int | None = None

    action: ClassVar[Action] = Action.DELETE

    def reverse(self) -> tuple[Step, ...] | None:
        return None


class DropCollection(StepBase):
    """Delete a collection with everything in it. `copy_of_source`: its points still stand in the source."""

    type: Literal["drop_collection"] = "drop_collection"
    target: Place
    why: str
    points: int | None = None
    copy_of_source: bool = False

    action: ClassVar[Action] = Action.DELETE

    @property
    def destroys(self) -> str:
        if self.copy_of_source:
            return ""
        return f"{self.target}" + (f" with {self.points:,} points" if self.points is not None else "")

    def reverse(self) -> tuple[Step, ...] | None:
        return None


Step = Annotated[
    CreateCollection | CopyPoints | FinishCollection | VerifyPoints | RewriteIds | RestoreIds | SwitchAlias
    | SetServing | ClearCollection | DropCollection | CatchUp | Hold,
    Field(discriminator="type"),
]  # fmt: skip


class Observed(Model):
    """A collection as it was when the plan was made. `count` and `schema_digest` are None when it did not exist."""

    place: Place
    role: Literal["source", "target"]
    count: int | None
    schema_digest: str | None
    live: bool = False  # it is written to: its count may move

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if not self.live:  # plans and states from before it was there stay as they are
            del data["live"]
        return data


class Notice(Model):
    """Something a reviewer must see. `blocking`: apply refuses until the spec accepts it or it is mended."""

    code: str
    message: str
    where: str = ""
    seen: str = ""  # where the probe met it; another probe may meet it elsewhere
    accepted: str = ""  # the reason given in the spec
    blocking: bool = False

    @classmethod
    def of(cls, problem: Problem, where: str, accepted: str) -> Notice:
        """A problem a store reported, with the reason the spec gives for accepting it, if any."""
        seen = ""
        if problem.ids:
            seen = f"{problem.count:,} in the sample, such as {', '.join(repr(item) for item in problem.ids[:2])}"
        return cls(
            code=problem.code,
            message=problem.message,
            where=", ".join(part for part in (where, problem.field) if part),
            seen=seen,
            accepted=accepted if problem.acceptable else "",
            blocking=not problem.code.startswith("VI") and not (problem.acceptable and accepted),
        )


class Fact(Model):
    """One line a reviewer reads about a collection: a label and what it is before and after."""

    label: str
    before: str = ""
    after: str = ""


class Overview(Model):
    """What happens to one collection, for the reader; the steps are what is executed."""

    source: Place
    target: Place
    facts: tuple[Fact, ...]


class Plan(Model):
    """Ordered steps with all that a reader and `apply` need. `plan_digest` covers all of it."""

    format_version: str = FORMAT_VERSION
    tool_version: str
    created: str
    job: str
    kind: str
    description: str = ""
    purpose: Literal["apply", "rollback"] = "apply"
    of_run: str | None = None  # the run a rollback undoes
    environment: str = ""
    lineage: str
    serial: int
    spec_digest: str
    connections: dict[str, str]  # name -> digest of what the workspace says about it
    inline: dict[str, dict[str, Any]] = {}  # connections written in the spec, references unresolved
    world: tuple[Observed, ...] = ()
    overview: tuple[Overview, ...] = ()
    steps: tuple[Step, ...] = ()
    notices: tuple[Notice, ...] = ()
    drift: tuple[str, ...] = ()
    retention: str = "30d"
    plan_digest: str = ""

    @property
    def blocked(self) -> bool:
        """Whether a notice forbids applying it."""
        return any(item.blocking for item in self.notices)

    @property
    def points(self) -> int:
        """Points to copy in all."""
        return sum(step.points for step in self.steps if isinstance(step, CopyPoints))

    @property
    def places(self) -> tuple[set[Place], set[Place]]:
        """Collections that are written, and those that are only read: what a run needs leases for."""
        written = {
            place
            for step in self.steps
            if isinstance(place := getattr(step, "target", None), Place) and not isinstance(step, VerifyPoints)
        }
        return written, {step.source for step in self.steps if isinstance(step, CopyPoints)} - written

    def sealed(self) -> Plan:
        """The same plan with its digest filled in."""
        return self.model_copy(update={"plan_digest": self.computed_digest()})

    def computed_digest(self) -> str:
        """sha256 over the whole plan but the digest itself."""
        return digest(self.model_dump(mode="json", by_alias=True, exclude={"plan_digest"}))

    def identity(self) -> str:
        """sha256 over what the plan does: the same for two plans that differ in time and in what a probe saw."""
        data = self.model_dump(mode="json", by_alias=True, exclude={"plan_digest", "created", "overview"})
        for step in data["steps"]:
            del step["estimate"]
        for notice in data["notices"]:
            del notice["seen"]
        return digest(data)

    def dumps(self) -> str:
        """The plan file: JSON, indented, with a trailing newline."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"


def reversed_steps(steps: tuple[Step, ...]) -> tuple[list[Step], list[Step]]:
    """(steps that undo `steps`, last first; steps that cannot be undone)."""
    undo: list[Step] = []
    irreversible: list[Step] = []
    for step in reversed(steps):
        back = step.reverse()
        if back is None:
            irreversible.append(step)
        else:
            undo.extend(back)
    return undo, irreversible


_PLAN = TypeAdapter(Plan)


def loads(text: str, file: str) -> Plan:
    """Read a plan file. PlanRefused when it is cut, of a newer major version, or was altered by hand."""
    try:
        data = json.loads(text)
        version = str(data["format_version"])
    except (ValueError, KeyError, TypeError) as exc:
        raise PlanRefused(
            "This is not a whole plan file", f"{file}: {exc}", "Make it again with vecrun plan JOB.yaml -o FILE"
        ) from exc
    if not version.split(".", maxsplit=1)[0].isdigit() or int(version.split(".", maxsplit=1)[0]) > int(
        FORMAT_VERSION.split(".", maxsplit=1)[0]
    ):
        raise PlanRefused(
            "The plan file has a newer format",
            f"{file}: format_version {version}, this vecrun reads {FORMAT_VERSION}",
            "Use the vecrun version that made it, or plan again with this one",
        )
    try:
        plan = _PLAN.validate_python(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        newer = version != FORMAT_VERSION
        raise PlanRefused(
            "The plan file has a newer format" if newer else "The plan file was altered",
            f"{file}: {place}: {first['msg']}" + (f" (format_version {version})" if newer else ""),
            "Make it again with vecrun plan",
        ) from exc
    # over the file as it is: a key that came later is not in old plans, and its default is no alteration
    if digest({key: value for key, value in data.items() if key != "plan_digest"}) != plan.plan_digest:
        raise PlanRefused(
            "The plan file was altered",
            f"{file}: its content does not match its plan_digest {plan.plan_digest}",
            "A plan is applied exactly as it was reviewed. Change the job spec and plan again",
        )
    return plan


def read(path: Path) -> Plan:
    """`loads` from a file; NotFound when there is none."""
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except OSError as exc:
        raise NotFound("No such plan file", f"{path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise PlanRefused(
            "This is not a whole plan file", f"{path}: not UTF-8 text", "Make it again with vecrun plan"
        ) from exc
