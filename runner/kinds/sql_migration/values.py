"""Every value that a step would encrypt, looked at once while the plan is made: what it is now, and whether it can be done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.ciphers import Cipher
from runner.kinds.sql_migration.survey import Telling
from runner.points import KeyRange

if TYPE_CHECKING:
    from runner.documents.database import Database

#: Rows that are read at once, and keys that are named.
PAGE, NAMED = 1_000, 20
_SIZED = re.compile(r"(?:character varying|varchar|character|char|bpchar|nvarchar|string)\s*\((\d+)\)", re.IGNORECASE)
_CATEGORY = """
SELECT t.typcategory::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(%(table)s) AND a.attname = %(column)s
"""


@dataclass
class Looked:
    """Values that are not NULL. `plain`: in clear; `before`: with the old key; `after`: with the new one already. Keys of the
    first rows with a value that no key opens, and with one that is no text; `longest`: of the texts in clear, in bytes."""

    values: int = 0
    plain: int = 0
    before: int = 0
    after: int = 0
    unreadable: int = 0
    odd: int = 0
    longest: int = 0
    named: list[str] = field(default_factory=list)

    @property
    def todo(self) -> int:
        """Values that would be changed."""
        return self.plain + self.before

    def said(self, cipher: str) -> str:
        """All of them in words."""
        parts = [
            f"{self.plain:,} in clear → encrypted" if self.plain else "",
            f"{self.before:,} with the old key → encrypted with {cipher}" if self.before else "",
            f"{self.after:,} encrypted with {cipher} already" if self.after else "",
            f"{self.unreadable:,} that no key opens" if self.unreadable else "",
            f"{self.odd:,} that are no text" if self.odd else "",
        ]
        return ", ".join(part for part in parts if part) or "none"


def look(
    database: Database, table: str, key: str, columns: Sequence[str], before: Cipher | None, after: Cipher,
    tell: Telling,
) -> Looked:  # fmt: skip
    """Read the columns of a table in the order of its key."""
    from runner.relational import rows
    from runner.relational.encrypting import own

    found = Looked()
    names = tuple(dict.fromkeys((key, *columns)))
    for page in tell(rows.pages(database, table, key, names, None, KeyRange(), None, PAGE)):
        for row in page:
            wrong = False
            for column in columns:
                value = row[column]
                if value is None:
                    continue
                found.values += 1
                if not isinstance(value, str):
                    found.odd += 1
                    wrong = True
                elif own(after, value):
                    found.after += 1
                elif before is None:
                    found.plain += 1
                    found.longest = max(found.longest, len(value.encode("utf-8", "surrogatepass")))
                elif own(before, value):
                    found.before += 1
                    found.longest = max(found.longest, len(before.decrypt(value).encode()))
                else:
                    found.unreadable += 1
                    wrong = True
            if wrong and len(found.named) < NAMED:
                found.named.append(str(row[key]))
    return found


def no_texts(database: Database, table: str, columns: Sequence[str]) -> list[str]:
    """Columns that cannot hold a ciphertext. SQLite lets any column hold one."""
    if database.engine.dialect.name != "postgresql":
        return []
    from runner.relational import quoted

    with database.reading() as connection:
        of = {
            name: connection.exec_driver_sql(
                _CATEGORY, {"table": quoted(connection.dialect, table), "column": name}
            ).scalar()
            for name in columns
        }
    return [name for name, category in of.items() if category not in (None, "S")]


def room(type_: str) -> int | None:
    """Characters that a column takes, by its type; None: any number."""
    found = _SIZED.fullmatch(type_.strip())
    return int(found[1]) if found else None


def length(cipher: Cipher, plain: int) -> int:
    """Characters of a ciphertext of so many bytes."""
    data = 57 + 16 * (plain // 16 + 1) if cipher.algorithm == "fernet" else 28 + plain
    return -(-data // 3) * 4
