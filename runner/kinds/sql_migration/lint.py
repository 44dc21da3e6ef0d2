"""What can be said of a SqlMigration without its database, and which findings it can accept."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runner.kinds.sql_migration.findings import LEFT_IN_CLEAR, LOSES, NO_WAY_BACK, PLAIN
from runner.kinds.sql_migration.spec import SqlMigrationSpec, StepSpec
from runner.mapper import columns_read
from runner.mapping import Encrypted, Identity, RowMap
from runner.plan import Notice

#: Findings of its plan that it may accept.
ACCEPTABLE = frozenset({LOSES})
#: Statements that take data away.
TAKES_AWAY = "VI145"
#: An id that gives a secret away.
GUESSABLE = "VI146"
#: A name of `let` that nothing uses.
UNUSED = "VI147"
#: SQL that no transaction can hold.
NEEDS_NONE = "VI175"
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_TAKES = re.compile(
    r"\b(drop\s+(?:table|schema|database)|truncate|delete\s+from|alter\s+table\s.+?\bdrop\b)",
    re.IGNORECASE | re.DOTALL,
)

_ALONE = re.compile(
    r"\s*((?:create\s+(?:unique\s+)?index|drop\s+index|reindex\s+\w+)\s+concurrently|vacuum)\b", re.IGNORECASE
)


def lint(spec: SqlMigrationSpec) -> list[Notice]:
    """Findings; `where` is a field of the spec."""
    found = list[Notice]()
    for number, step in enumerate(spec.steps):
        found += _of_sql(step, f"steps.{number}.sql")
        if step.map is not None:
            found += _of_map(step.map, f"steps.{number}.map")
    return [*found, *_in_clear(spec)]


def _of_sql(step: StepSpec, where: str) -> Iterator[Notice]:
    if step.sql is None:
        return
    if step.sql.transaction:
        for field, given in (("forward", step.sql.forward), ("rollback", step.sql.rollback or ())):
            for number, one in enumerate(given):
                if match := _ALONE.match(_COMMENT.sub(" ", one.sql)):
                    what = " ".join(match[1].upper().split())
                    message = f"PostgreSQL does not run {what} in a transaction; say transaction: false"
                    yield Notice(code=NEEDS_NONE, message=message, where=f"{where}.{field}.{number}")
    if step.sql.rollback is None:
        message = f"there is no way back from step {step.name}; give rollback, [] where there is nothing to undo"
        yield Notice(code=NO_WAY_BACK, message=message, where=where)
    if not step.sql.rollback:
        for number, one in enumerate(step.sql.forward):
            if match := _TAKES.search(_COMMENT.sub(" ", one.sql)):
                what = " ".join(match[1].upper().split()[:2])
                message = (
                    f"{what} takes data away, and nothing brings it back; copy it first (back_up), or use drop_column"
                )
                yield Notice(code=TAKES_AWAY, message=message, where=f"{where}.forward.{number}")


def _of_map(rows: RowMap, where: str) -> Iterator[Notice]:
    texts = " ".join([*rows.let.values(), *(rule.rule for rule in rows.rules), *map(str, rows.each.values())])
    for number, into in enumerate(rows.into):
        secrets = {value.encrypt for value in into.values.values() if isinstance(value, Encrypted)}
        for column, value in into.values.items():
            parts = value.uuid_from if isinstance(value, Identity) else ()
            texts += " " + " ".join([*parts, value if isinstance(value, str) else getattr(value, "encrypt", "")])
            at = f"{where}.into.{number}.values.{column}"
            if isinstance(value, Identity) and value.key is None and secrets & {*parts}:
                message = "the id is made of a value that is encrypted: without a key whoever guesses the value can tell it by the id"
                yield Notice(code=GUESSABLE, message=message, where=at)
            elif isinstance(value, str) and value in secrets:
                message = f"{into.table}.{column} holds in clear what another column of the same row has encrypted"
                yield Notice(code=LEFT_IN_CLEAR, message=message, where=at)
    for name in rows.let:
        if not re.search(rf"\b{name}\b", texts):
            yield Notice(code=UNUSED, message=f"no expression uses {name}", where=f"{where}.let.{name}")


def _in_clear(spec: SqlMigrationSpec) -> Iterator[Notice]:
    """Copies of what the job encrypts."""
    encrypted = dict[str, set[str] | None]()  # table -> columns; None: it cannot be told which
    for step in spec.steps:
        if step.encrypt is not None:
            encrypted.setdefault(step.encrypt.table, set())
            encrypted[step.encrypt.table] = {*(encrypted[step.encrypt.table] or ()), *step.encrypt.columns}
        if step.map is not None and any(
            isinstance(v, Encrypted) for into in step.map.into for v in into.values.values()
        ):
            read = columns_read(step.map)
            known = encrypted.get(step.map.from_, set())
            encrypted[step.map.from_] = None if read is None or known is None else known | {*read}
    for number, step in enumerate(spec.steps):
        if step.back_up is None or step.back_up.table not in encrypted:
            continue
        columns = encrypted[step.back_up.table]
        kept = [name for name in step.back_up.columns if columns is None or name in columns]
        if kept:
            message = f"{step.back_up.to} keeps {', '.join(kept)} in clear, which the job encrypts; drop it when it is not needed any more"
            yield Notice(code=PLAIN, message=message, where=f"steps.{number}.back_up")
