"""Aliases: views that vecrun made and marked, so that it never replaces somebody else's."""

# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.errors import Permanent
from runner.stores.pgvector.table import relation_of

if TYPE_CHECKING:
    from runner.stores.pgvector.connection import Connection

_MARK = "vecrun alias"
_ALIASES = """
SELECT DISTINCT v.relname::text, t.relname::text FROM pg_class v JOIN pg_rewrite r ON r.ev_class = v.oid
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
    AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid
  JOIN pg_class t ON t.oid = d.refobjid
WHERE v.relkind = 'v' AND v.relnamespace = to_regnamespace(quote_ident($1))
  AND obj_description(v.oid, 'pg_class') = $2
"""
_GRANTS = """
SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = $1::oid AND grantee <> relowner
"""


def aliases_of(conn: Connection, schema: str) -> dict[str, str]:
    """alias -> table."""
    return dict(conn.execute(_ALIASES, [schema, _MARK]).fetchall())


def taken(conn: Connection, schema: str, alias: str) -> str:
    """What has the name of an alias that is to be made; empty if nothing has, or it is one of ours."""
    [(oid,)] = conn.execute("SELECT to_regclass($1)::oid::bigint", [relation_of(schema, alias)])
    if oid and alias not in aliases_of(conn, schema):
        return f"{alias} is a table or a view that vecrun did not make"
    return ""


def set_alias(conn: Connection, schema: str, alias: str, name: str | None) -> None:
    """Let the view `alias` show the table `name`, or drop it; readers keep the rights they have on it."""
    import psycopg

    if reason := taken(conn, schema, alias):
        raise Permanent("The name of the alias is taken", reason, "Choose another alias.")
    view = relation_of(schema, alias)
    [(oid,)] = conn.execute("SELECT to_regclass($1)::oid::bigint", [view])
    if name is None:
        conn.execute(f"DROP VIEW IF EXISTS {view}")
        return
    query = f"VIEW {view} AS SELECT * FROM {relation_of(schema, name)}"
    try:
        with conn.transaction():
            conn.execute(f"CREATE OR REPLACE {query}")
    except psycopg.errors.InvalidTableDefinition:  # other columns, such as another dimension
        grants = conn.execute(_GRANTS, [oid]).fetchall()
        conn.execute(f"DROP VIEW {view}")
        conn.execute(f"CREATE {query}")
        for privilege, role in grants:
            conn.execute(f"GRANT {privilege} ON {view} TO {role}")
    conn.execute(f"COMMENT ON VIEW {view} IS '{_MARK}'")
