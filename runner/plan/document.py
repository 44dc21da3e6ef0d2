"""The plan: a value that says everything `apply` will do. Steps are a small closed vocabulary; each knows its reverse.

A plan holds references to connections, never their secrets. Planning twice gives the same plan but for the time
of day and the measured estimates (`identity`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer

from runner.errors import NotFound, PlanRefused
from runner.plan.backup import (
    BackUpPoints,
    BackUpTables,
    CheckBackup,
    LoadTables,
    SealBackup,
    TruncateTables,
    UnloadTables,
)
from runner.plan.batch import (
    CheckDocuments,
    DeleteDocuments,
    EditDocuments,
    ReprocessDocuments,
    RestoreDocuments,
    SelectDocuments,
)
from runner.plan.models import CheckQuality, ReplaceVectors, RestoreVectors, SetModel, SettleFailures
from runner.plan.moves import (
    CatchUp,
    ClearCollection,
    CopyPoints,
    CreateCollection,
    DropCollection,
    FinishCollection,
    Hold,
    RestoreIds,
    RewriteIds,
    SetServing,
    SwitchAlias,
    VerifyPoints,
)
from runner.plan.relational import (
    CheckQueries,
    CreateTables,
    DropColumn,
    EncryptColumns,
    ForgetSteps,
    MapRows,
    RecordSteps,
    RemoveTables,
    RestoreColumn,
    RevertStatements,
    RunStatements,
    UnmapRows,
    VerifyRows,
)
from runner.plan.step import Place
from runner.points import Model
from runner.spec import digest
from runner.store import Problem

FORMAT_VERSION = "1.4"

Step = Annotated[
    CreateCollection | CopyPoints | FinishCollection | VerifyPoints | RewriteIds | RestoreIds | SwitchAlias
    | SetServing | ClearCollection | DropCollection | CatchUp | Hold | ReplaceVectors | RestoreVectors | SetModel
    | SettleFailures | CheckQuality | SelectDocuments | DeleteDocuments | EditDocuments | ReprocessDocuments
    | CheckDocuments | RestoreDocuments | BackUpTables | TruncateTables | LoadTables | UnloadTables | BackUpPoints
    | SealBackup | CheckBackup | CheckQueries | CreateTables | RemoveTables | RunStatements | RevertStatements | MapRows
    | UnmapRows | EncryptColumns | VerifyRows | DropColumn | RestoreColumn | RecordSteps | ForgetSteps,
    Field(discriminator="type"),
]  # fmt: skip


class Observed(Model):
    """A collection, or a relational table, as it was when the plan was made. `count` and `schema_digest` are None when it did not exist."""

    place: Place
    role: Literal["source", "target", "table", "relation"]  # relation: a table of any relational database
    count: int | None
    schema_digest: str | None
    live: bool = False  # it is written to: its count may move
    shape: dict[str, Any] | None = None  # what schema_digest is of; in states, so that a drift can be told in full

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if not self.live:  # plans and states from before it was there stay as they are
            del data["live"]
        if self.shape is None:
            del data["shape"]
        return data


def acceptable(code: str) -> bool:
    """Whether a spec may accept a finding: `accept: [{code, reason}]`."""
    return code.startswith(("VL", "VC")) or code in ("VD101", "VD105", "VD106", "VD107")


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
            blocking=not problem.code.startswith(("VI", "VB")) and not (problem.acceptable and accepted),
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
    purpose: Literal["apply", "rollback", "retry"] = "apply"
    of_run: str | None = None  # the run a rollback undoes, or whose failed items are tried again
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
        """Points to copy, or to look at in place, in all."""
        return sum(
            step.points
            for step in self.steps
            if isinstance(step, CopyPoints) or (isinstance(step, ReplaceVectors) and step.phase == "before")
        )

    @property
    def places(self) -> tuple[set[Place], set[Place]]:
        """Collections that are written, and those that are only read: what a run needs leases for."""
        written = {
            place
            for step in self.steps
            if not isinstance(step, VerifyPoints | CheckQuality)
            for place in (getattr(step, "target", None), getattr(step, "saved", None), *step.written_places)
            if isinstance(place, Place)
        }
        return written, {place for step in self.steps for place in step.read_places} - written

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
            if "of" in step:
                del step["of"]["estimate"]
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
