"""What a relational database says when it refuses, without values of rows.

Values stand in more places than PostgreSQL's detail: in messages about data, in what a trigger raises, in contexts. So a message
is shown only where its kind is known to name nothing but objects and statements; of others, only what they are called.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Any

#: Classes of SQLSTATE whose messages speak of objects, statements, rights and the server.
_OF_OBJECTS = frozenset(
    ["08", "0A", "21", "23", "25", "26", "28", "2B", "3D", "3F", "40", "42", "44", "53", "54", "55", "57", "58"]
)
#: Beginnings of messages about data that have no value in them yet.
_OF_DATA = re.compile(
    r"value too long for type [\w ]+(\(\d+\))?|invalid input (syntax|value) for (type|enum) [\w ]+|division by zero"
    r"|(integer|bigint|smallint|numeric field|value) (out of range|overflow)|invalid byte sequence for encoding \"\w+\""
    r"|unsupported Unicode escape sequence|null value not allowed"
)
#: Where in a procedure an error was raised.
_PROCEDURE = re.compile(r'PL/\w+ function ("?[\w.]+"?)(?:\([\w ,."\[\]]*\))? line (\d+)')
#: What SQLite says of statements, of the names in them, and of its file.
_SQLITE = re.compile(
    r"(UNIQUE|NOT NULL|CHECK|FOREIGN KEY) constraint failed|no such |near \"|incomplete input|unrecognized token|ambiguous "
    r"|table |index |view |trigger |duplicate column|cannot |unable to |attempt to write|database |disk |file is not |too many "
    r"|wrong number of |misuse of |foreign key mismatch|datatype mismatch|error in |unknown |malformed JSON$|not authorized"
    r"|You can only execute one|interrupted|default value of |Cannot add |near |all |a |ON CONFLICT|aggregate |row value |sub-select "
    r"|string or blob too big|integer overflow|number of |no tables |out of memory|locking protocol|parser |RETURNING "
)
_NUL = "PostgreSQL text fields cannot contain NUL (0x00) bytes"
_TRIGGER = "SQLITE_CONSTRAINT_TRIGGER"
#: What RAISE says is a literal of the trigger up to this version, and any expression since.
_LITERAL = sqlite3.sqlite_version_info < (3, 47)


def said(exc: BaseException) -> str:
    """The words for an error of SQLAlchemy, or of a driver: the database's own where they name no values."""
    orig: Any = getattr(exc, "orig", None) or exc
    package = type(orig).__module__.partition(".")[0]
    if package in ("psycopg", "psycopg2") and (code := _sqlstate(orig)):
        return _of_postgresql(orig, code)
    if package == "sqlite3":
        return _of_sqlite(orig)
    if package in ("sqlalchemy", "runner"):
        return _one_line(str(orig))  # it speaks of the statement; parameters are hidden
    unreached = type(orig).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")
    if unreached and (package in ("psycopg", "psycopg2") or getattr(exc, "statement", "") is None):
        return _one_line(str(orig))  # no answer of the server
    if _NUL in str(orig):
        return _NUL
    number = next((str(one) for one in getattr(orig, "args", ()) if isinstance(one, int)), "")
    return f"{type(orig).__name__}{f' {number}' if number else ''}; its text may hold values of rows and is not shown"


def _sqlstate(orig: Any) -> str:
    return getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None) or ""


def _of_postgresql(orig: Any, code: str) -> str:
    diag, text = orig.diag, str(orig.diag.message_primary or "")
    context, file = str(diag.context or ""), str(diag.source_file or "")
    name = f"{type(orig).__name__}, SQLSTATE {code}"
    # whoever raises an error in a procedure chooses its text, its code and the names in it
    raised = file.startswith("pl") or (context and code[:2] not in ("22", "23"))
    where = "" if raised else _place(diag, text)
    if raised:
        found = _PROCEDURE.search(context)
        place = f" in {found[1]}, line {found[2]}" if found else ""
        return f"a trigger or procedure raised an error{place} ({name})"
    if code[:2] in _OF_OBJECTS:
        return f"{text}{where}"
    found = _OF_DATA.match(text) if code[:2] == "22" else None
    return f"{found[0]}{where} (SQLSTATE {code})" if found else f"{name}{where}"


def _place(diag: Any, text: str) -> str:
    """Table and column, where the message does not name them."""
    names = [str(one) for one in (diag.table_name, diag.column_name or diag.constraint_name) if one]
    return f" ({'.'.join(names)})" if names and names[-1] not in text else ""


def _of_sqlite(orig: Any) -> str:
    text, name = str(orig), str(getattr(orig, "sqlite_errorname", "") or type(orig).__name__)
    if name == _TRIGGER:
        return text if _LITERAL else f"a trigger raised an error ({name})"
    if "decode to UTF-8" in text:
        return "text that is no UTF-8"
    return text if _SQLITE.match(text) else f"its text may hold values of rows and is not shown ({name})"


def _one_line(text: str) -> str:
    return text.strip().partition("\n")[0]
