"""What a reviewer must know of a migration, and what stands in its way: the findings of this kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from runner.kinds.sql_migration.spec import SqlMigrationSpec, StepSpec
from runner.mapper import columns_read
from runner.mapping import Encrypted, Into
from runner.plan import Notice, Told

#: Codes of this kind.
UNKNOWN = "VX240"
HALF = "VX241"
CHANGED = "VX242"
UNMET = "VX243"
RULE = "VX244"
IN_THE_WAY = "VX245"
OTHER_KEY = "VX246"
NO_KEY = "VX247"
STAYS = "VX248"
LOSES = "VD107"
GOES = "VB115"
RECORDED = "VI150"
NO_WAY_BACK = "VI151"
PLAIN = "VI152"
LEFT_IN_CLEAR = "VI153"
UNSEEN = "VI154"
LEFT_OUT = "VI155"
NOT_MEANT = "VI156"
MOVES = "VI157"
ASKED_LATER = "VI158"
PIECEWISE = "VI159"
FILLED = "VI160"
BUSY = "VI161"
NOTHING = "VI172"
NO_TEXT = "VX267"
UNREADABLE = "VX268"
TOO_SHORT = "VX269"
NOT_THERE = "VX270"
DIFFERING = "VX271"


def blocking(code: str, message: str, where: str) -> Notice:
    """A finding that nobody can accept."""
    return Notice(code=code, message=message, where=where, blocking=True)


def told(told: tuple[Told, ...], left: int, where: str, table: str) -> list[Notice]:
    """What rules say of the rows of a table: those that stop it, those that are left out, those that are not meant."""
    found = list[Notice]()
    for one in told:
        what = _items(one)
        match one.otherwise:
            case "fail":
                way = (
                    "say malformed: skip"
                    if "cannot be computed (" in one.message
                    else "let the rule say otherwise: skip"
                )
                message = f"{one.message}: {what} of {table}, {_named(one)}. Mend them, or {way}"
                found.append(blocking(RULE, message, where))
            case "skip":
                message = (
                    f"{one.message}: {what} of {table} would be left out and listed (vecrun failures), {_named(one)}"
                )
                found.append(Notice(code=LEFT_OUT, message=message, where=where))
            case _:
                found.append(Notice(code=NOT_MEANT, message=f"{one.message}: {what} of {table}, not meant", where=where))  # fmt: skip
    if left and sum(one.otherwise == "skip" for one in told) > 1:
        message = f"altogether {_rows(left)} of {table} would be left out, as a whole or in part"
        found.append(Notice(code=LEFT_OUT, message=message, where=where))
    return found


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _items(one: Told) -> str:
    if one.items == one.rows:
        return _rows(one.rows)
    return f"{one.items:,} times in {_rows(one.rows)}"


def _named(one: Told) -> str:
    more = one.rows - len(one.first)
    return f"{'key' if one.rows == 1 else 'keys'} {', '.join(one.first)}" + (f" and {more:,} more" if more > 0 else "")


def loses(table: str, column: str, lost: int, undo: str, where: str, accepted: Mapping[str, str]) -> Notice:
    """A column whose values were not all used."""
    values = f"{lost:,} {'value' if lost == 1 else 'values'}"
    gone = "it is" if lost == 1 else "they are"
    message = (
        f"{table}.{column} is dropped, with {values} of rows that were left out: {gone} gone with {undo}, when the rollback "
        "expires"
    )
    reason = accepted.get(LOSES, "")
    return Notice(code=LOSES, message=message, where=where, accepted=reason, blocking=not reason)


def plain_text(spec: SqlMigrationSpec, pending: Sequence[StepSpec], undo: Mapping[str, str]) -> list[Notice]:
    """Where what gets encrypted stands in clear afterwards. `undo`: table -> undo table of a column of it that is dropped."""
    found = list[Notice]()
    for step in pending:
        if step.back_up is not None and (by := _encrypted(spec, step.back_up.table, step.back_up.columns)):
            message = (
                f"{step.back_up.to} keeps {', '.join(step.back_up.columns)} of {step.back_up.table} as it is: what step {by} "
                "encrypts stands there in plain text until you drop it"
            )
            found.append(Notice(code=PLAIN, message=message, where=step.name))
        if (drop := step.drop_column) is not None and _encrypted(spec, drop.table, (drop.column,)):
            kept = undo.get(drop.table, "the undo table")
            message = (
                f"{kept} keeps the values of {drop.column} as they are, in plain text, until the rollback expires and vecrun gc "
                "removes it"
            )
            found.append(Notice(code=PLAIN, message=message, where=step.name))
        if step.map is not None and any(map(_encrypts, step.map.into)):
            drops = [one.drop_column for one in spec.steps if one.drop_column is not None]
            if not any(drop.table == step.map.from_ for drop in drops):
                message = f"{step.map.from_} keeps what is encrypted: no step drops a column of it, so it stays there in plain text"
                found.append(Notice(code=LEFT_IN_CLEAR, message=message, where=step.name))
    return found


def _encrypts(into: Into) -> bool:
    return any(isinstance(value, Encrypted) for value in into.values.values())


def _encrypted(spec: SqlMigrationSpec, table: str, columns: Collection[str]) -> str:
    """The step that encrypts what stands in columns of a table; empty if none does."""
    for step in spec.steps:
        if step.encrypt is not None and step.encrypt.table == table and {*step.encrypt.columns} & {*columns}:
            return step.name
        if step.map is not None and step.map.from_ == table and any(map(_encrypts, step.map.into)):
            read = columns_read(step.map)
            if read is None or {*read} & {*columns}:
                return step.name
    return ""


def half(what: str) -> str:
    """The sentence of a migration that did not come to its end, with the way out."""
    return (
        f"{what}. Finish it, or roll it back, in the workspace that began it; or bring the database by hand to where a step ends, "
        "and record that: vecrun stamp JOB.yaml --through STEP"
    )


def unknown(what: str, *, recorded: bool) -> Notice:
    """The database is not as it is when a step is to come: where nothing is recorded, it was migrated by hand, perhaps."""
    if recorded:
        message = f"{what}. Somebody else was here since: mend it, or record the step as done: vecrun stamp JOB.yaml"
        return Notice(code=IN_THE_WAY, message=message, blocking=True)
    message = (
        f"{what}, and no step of this job is recorded there: an unknown database. If it was migrated by hand, record that: "
        "vecrun stamp JOB.yaml. If not, remove what is in the way, or choose another connection"
    )
    return Notice(code=UNKNOWN, message=message, blocking=True)
