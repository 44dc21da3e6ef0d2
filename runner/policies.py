"""What `vecrun.yaml` demands of plans, and what of a drift it leaves out: the models of `policies.rules` and `drift`.

What they mean for a plan is `planner/policies.py`, for a drift `planner/observed.py`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from fnmatch import fnmatchcase
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from runner.spec import Name, SpecModel

Pattern = Annotated[str, Field(description="A name, or a pattern with * and ?.")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Clock = Annotated[str, Field(pattern=r"^(([01]\d|2[0-3]):[0-5]\d|24:00)$", examples=["22:00"])]
#: What a drift can be of, beside the parts of a schema.
PLAIN = ("count", "presence", "aliases", "pointers", "connection")
#: A part of a dotted path.
_SEGMENT = re.compile(r'"[^"]*"|[^.]+')
#: A finding's code, or a pattern of codes.
CODE = re.compile(r"V[A-Z][0-9*?]{1,3}")


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns is for `name`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Window(SpecModel):
    """When an apply may begin. A run that began inside may end outside."""

    days: tuple[Day, ...] = Field(DAYS, min_length=1, description="On which days it opens; default: every day.")
    from_: Clock = Field("00:00", alias="from", description="When it opens, by the clock of the time zone.")
    to: Clock = Field("24:00", description="When it closes; not later than from: on the next day.")
    timezone: str = Field("UTC", description="A name of the time zone database.", examples=["Europe/Berlin"])

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        _zone(name)
        return name

    def open(self, at: datetime) -> bool:
        """Whether it is open at this moment, which has a time zone."""
        local = at.astimezone(_zone(self.timezone))
        clock, begins, ends = f"{local:%H:%M}", self.from_, self.to
        today, yesterday = DAYS[local.weekday()], DAYS[(local - timedelta(days=1)).weekday()]
        if begins < ends:
            return today in self.days and begins <= clock < ends
        return (today in self.days and clock >= begins) or (yesterday in self.days and clock < ends)

    def __str__(self) -> str:
        days = "every day" if set(self.days) == {*DAYS} else ", ".join(day for day in DAYS if day in self.days)
        next_day = "" if self.from_ < self.to else " of the next day"
        return f"{days} from {self.from_} to {self.to}{next_day}, {self.timezone}"


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(f"{name!r} is no time zone that this machine knows, such as Europe/Berlin or UTC") from exc


class Requirements(SpecModel):
    """What must be there."""

    approvals: int = Field(0, ge=0, le=20, description="So many people, by name: vecrun apply --approved-by NAME.")
    verify: Literal["count", "sample", "full"] | None = Field(
        None, description="What is written is compared at least so thoroughly."
    )
    accepted: tuple[Annotated[str, Field(pattern=r"^V[A-Z]([0-9]{3}|[0-9*?]{1,3})$")], ...] = Field(
        (),
        description="Findings, by code or pattern, that the job has to accept with a reason, also where a plan only informs.",
        examples=[["VB101"]],
    )


class Rule(SpecModel):
    """A rule for plans. It counts when a plan is made and again, as it stands then, when the plan is applied."""

    name: Name
    environments: tuple[Pattern, ...] = Field(("*",), min_length=1, description="Default: all, and none.")
    jobs: tuple[Pattern, ...] = Field(("*",), min_length=1, description="Names of jobs; default: all.")
    kinds: tuple[Pattern, ...] = Field(("*",), min_length=1, description="Kinds of jobs; default: all.")
    purposes: tuple[Literal["apply", "retry", "rollback"], ...] = Field(
        ("apply", "retry"), min_length=1, description="A rollback is held up only where it is named here."
    )
    when: Literal["always", "changes", "switches", "deletes", "destroys"] = Field(
        "changes",
        description="always: every plan with steps. changes: those that write to a store or a database; a backup does not. "
        "switches: those that switch readers. deletes: those with a step that deletes. destroys: those after which "
        "something is gone for good.",
    )
    require: Requirements = Requirements()
    deny: tuple[str, ...] = Field(
        (), description="Codes of findings, or types of steps: names, or patterns with * and ?. Accepted ones, too.",
        examples=[["VD*", "drop_collection"]],
    )  # fmt: skip
    usd: float | None = Field(None, ge=0, description="Most that it may cost. Cannot be accepted by a job.")
    window: Window | None = None
    reason: str = Field("", description="Shown to those who meet the rule.")

    @model_validator(mode="after")
    def _demands(self) -> Rule:
        wanted = self.require.approvals or self.require.verify or self.require.accepted
        if not (wanted or self.deny or self.window or self.usd is not None):
            raise ValueError("a rule demands something: require, deny, usd or window")
        return self


class Ignored(SpecModel):
    """What of a drift is expected."""

    fields: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1,
        description="count, presence, schema (all of it), or a part of it by its dotted path: settings.NAME, "
        "vectors.NAME.index, payload.NAME. Also aliases, pointers. With * and ?.",
        examples=[["count", "settings.*"]],
    )
    jobs: tuple[Pattern, ...] = Field(("*",), min_length=1, description="Names of jobs; default: all.")
    places: tuple[Pattern, ...] = Field(
        ("*",), min_length=1, description="CONNECTION/COLLECTION, or the name of an alias or pointer; default: all."
    )
    reason: str = ""


class DriftRules(SpecModel):
    """What `vecrun drift`, and a plan of an applied job, leave out. An apply still refuses a plan whose world moved."""

    ignore: tuple[Ignored, ...] = ()

    def leaves_out(self, job: str, place: str, field: str) -> bool:
        """Whether a difference is expected."""
        return any(
            fits(job, one.jobs)
            and fits(place, one.places)
            and (
                any(_covers(wanted, field) for wanted in one.fields)
                or (field not in PLAIN and fits("schema", one.fields))
            )
            for one in self.ignore
        )


def segment(name: str) -> str:
    """A name as a part of a dotted path: in double quotes when it has a dot itself."""
    return '"' + name.replace('"', "'") + '"' if "." in name else name


def _covers(wanted: str, field: str) -> bool:
    """Whether a dotted path is the wanted one or below it, part by part: * stands for one part, whatever dots its name has."""
    parts, patterns = _SEGMENT.findall(field), _SEGMENT.findall(wanted)
    if all(fnmatchcase(part.strip('"'), one.strip('"')) for part, one in zip(parts, patterns, strict=False)):
        return 0 < len(patterns) <= len(parts)
    return False
