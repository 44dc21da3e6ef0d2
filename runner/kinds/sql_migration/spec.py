"""What a user writes in a SqlMigration."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from runner.ciphers import KeySpec
from runner.clauses.spec import Acceptance
from runner.kinds.sql_migration.checks import problems
from runner.mapper import check_expressions
from runner.mapping import Encrypted, Expectation, Identity, RowMap, TableModel, Word
from runner.settings import Duration
from runner.spec import Misplaced, Name, SpecModel, digest

#: What the name of a key's connection begins with.
KEY = "key:"
#: Words that begin or end a transaction: those are vecrun's.
_TRANSACTION = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|rollback|savepoint|release|abort)\b", re.IGNORECASE
)


class StatementSpec(SpecModel):
    """One statement, and how it is told after a crash whether it has happened. Only needed outside of a transaction."""

    sql: Word
    done: Word | None = Field(
        None, description="A query that gives true, or a number other than 0, when the statement has happened."
    )
    repeat: bool = Field(False, description="It does no harm to run it again.")


def _statement(value: Any) -> Any:
    return {"sql": value} if isinstance(value, str) else value


StatementText = Annotated[StatementSpec, BeforeValidator(_statement, json_schema_input_type=StatementSpec | str)]


class Sql(SpecModel):
    """Statements of SQL, as the database understands them. Each is one statement."""

    forward: tuple[StatementText, ...] = Field(min_length=1)
    rollback: tuple[StatementText, ...] | None = Field(
        None, description="What undoes them; an empty list: there is nothing to undo. Left out: there is no way back."
    )
    transaction: bool = Field(
        True,
        description="false: each statement by itself, for what cannot be in a transaction, such as CREATE INDEX "
        "CONCURRENTLY. Each then says done or repeat.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Sql:
        for one in (*self.forward, *(self.rollback or ())):
            if found := _TRANSACTION.match(one.sql):
                raise ValueError(
                    f"{found[1].upper()}: transactions are vecrun's; leave it out, or say transaction: false"
                )
            if not self.transaction and one.done is None and not one.repeat:
                raise ValueError(
                    "outside of a transaction a statement can be interrupted: say how it is told that it happened (done), "
                    f"or that it may run again (repeat: true): {one.sql[:60]}"
                )
        return self


class BackUp(SpecModel):
    """Columns of a table, copied to a table that is made for it."""

    table: Word
    columns: tuple[Word, ...] = Field(min_length=1, description="Copied with the primary key.")
    to: Word = Field(description="The table that is made.", examples=["embedding_config_backup"])
    where: Word | None = Field(None, description="SQL condition: other rows are not copied.")
    batch_size: int = Field(10_000, ge=1, le=1_000_000)


class Encrypt(SpecModel):
    """Columns of text that are encrypted where they stand. NULL stays NULL."""

    table: Word
    columns: tuple[Word, ...] = Field(min_length=1)
    key: Word = Field(description="A key of `keys`.")
    key_column: Word | None = Field(
        None, description="A column that is unique and never NULL; default: the primary key."
    )
    batch_size: int = Field(1000, ge=1, le=100_000)


class Rotate(SpecModel):
    """Columns that are encrypted with another key from now on."""

    table: Word
    columns: tuple[Word, ...] = Field(min_length=1)
    from_: Word = Field(alias="from", description="The key of `keys` that they are encrypted with.")
    to: Word = Field(description="The new one.")
    key_column: Word | None = Field(
        None, description="A column that is unique and never NULL; default: the primary key."
    )
    batch_size: int = Field(1000, ge=1, le=100_000)


class Drop(SpecModel):
    """A column that goes. Its values are kept beside, until the rollback expires."""

    table: Word
    column: Word


FORMS = ("sql", "create_tables", "back_up", "map", "encrypt", "rotate", "drop_column")


class StepSpec(SpecModel):
    """One step: what it does is one of sql, create_tables, back_up, map, encrypt, rotate, drop_column; or it only checks."""

    name: Name
    description: str = ""
    check: tuple[Expectation, ...] = Field((), description="What has to be true before it.")
    verify: tuple[Expectation, ...] = Field((), description="What has to be true after it.")
    sql: Sql | None = None
    create_tables: tuple[TableModel, ...] | None = Field(None, min_length=1)
    back_up: BackUp | None = None
    map: RowMap | None = None
    encrypt: Encrypt | None = None
    rotate: Rotate | None = None
    drop_column: Drop | None = None

    @field_validator("map")
    @classmethod
    def _readable(cls, value: RowMap | None) -> RowMap | None:
        if value is not None and (found := check_expressions(value)):
            raise ValueError("; ".join(found))
        return value

    @model_validator(mode="after")
    def _one(self) -> StepSpec:
        if len(self.forms) > 1:
            raise ValueError(f"a step does one thing: {' and '.join(self.forms)} are {len(self.forms)} steps")
        if not self.forms and not self.check and not self.verify:
            raise ValueError(
                f"a step does something, or checks something: give one of {', '.join(FORMS)}, check, verify"
            )
        return self

    @property
    def forms(self) -> list[str]:
        """What is given of FORMS."""
        return [form for form in FORMS if getattr(self, form) is not None]

    @property
    def digest(self) -> str:
        """Names what it does; not what is checked around it, nor how it is described."""
        form = self.forms[0]
        given = getattr(self, form)
        parts = given if isinstance(given, tuple) else (given,)
        said = [part.model_dump(mode="json", by_alias=True, exclude={"batch_size", "live"}) for part in parts]
        return digest({form: said})

    @property
    def keys(self) -> set[str]:
        """Names of the keys that it uses."""
        found: set[str] = set()
        if self.encrypt is not None:
            found.add(self.encrypt.key)
        if self.rotate is not None:
            found |= {self.rotate.from_, self.rotate.to}
        for into in self.map.into if self.map is not None else ():
            found |= {
                value.key for value in into.values.values() if isinstance(value, Encrypted | Identity) and value.key
            }
        return found


class SqlMigrationSpec(SpecModel):
    """Spec of a SqlMigration. Steps are done in their order, each once; a later version of the job adds steps at the end."""

    connection: str = Field(description="A connection of type sql.")
    keys: dict[Name, KeySpec] = Field({}, description="Keys for encryption, by reference.")
    steps: tuple[StepSpec, ...] = Field(min_length=1)
    accept: tuple[Acceptance, ...] = Field(
        (), description="Findings of the plan that are accepted, each with a reason."
    )
    retention: Duration | None = Field(
        None, description="How long the migration can be rolled back; default: the workspace's."
    )

    @model_validator(mode="after")
    def _known(self) -> SqlMigrationSpec:
        names = [step.name for step in self.steps]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two steps of one name: {', '.join(doubled)}")
        for number, step in enumerate(self.steps):
            if unknown := sorted(step.keys - {*self.keys}):
                message = f"no such key: {', '.join(unknown)}; keys of the spec: {', '.join(self.keys) or 'none'}"
                raise Misplaced(message, "steps", number, step.forms[0])
        used = {key for step in self.steps for key in step.keys}
        if idle := sorted({*self.keys} - used):
            raise Misplaced(f"no step uses the key {', '.join(idle)}; leave it out", "keys", idle[0])
        if found := [*problems(self.steps)]:
            raise ValueError("; ".join(found))
        return self


def connections(spec: SqlMigrationSpec) -> tuple[list[str], dict[str, dict[str, object]]]:
    """(the workspace's connection, the keys as inline connections of type key)."""
    inline: dict[str, dict[str, object]] = {
        KEY + name: {"type": "key", "name": name, "secret": key.secret, "algorithm": key.algorithm}
        for name, key in spec.keys.items()
    }
    return [spec.connection], inline
