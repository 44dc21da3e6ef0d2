"""Tables and columns of a user's database: as they are declared, as they are seen, dropped and brought back; and a dry run of
all that, which leaves nothing (E1, E2, G4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from runner.documents import SqlConfig
from runner.errors import NotFound, Permanent
from runner.mapping import ColumnModel, TableModel
from runner.relational import changes, columns, execute, schema
from runner.relational.opened import RelationalDatabase
from runner.relational.rehearsal import Rehearsal
from tests.e2e.relations import Relations


@pytest.fixture(params=["sqlite", "postgresql"])
def relations(request: pytest.FixtureRequest, tmp_path: Path) -> Relations:
    if request.param == "sqlite":
        return Relations(f"sqlite:///{tmp_path}/app.db")
    return Relations(request.getfixturevalue("pg_database"))


@pytest.fixture
def database(relations: Relations) -> Iterator[RelationalDatabase]:
    with closing(RelationalDatabase(SqlConfig(type="sql", url=relations.url))) as opened:
        yield opened


def column(name: str, type_: str = "text", **more: Any) -> ColumnModel:
    return ColumnModel(name=name, type=type_, **more)


KEY = column("id", "integer", primary_key=True)
EVERY = TableModel(
    name="every",
    columns=(
        KEY,
        column("words", nullable=False, default="it's 100% \\ :x"),
        column("short", "string(20)", unique=True),
        column("big", "bigint", default=12),
        column("flag", "boolean", nullable=False, default=True),
        column("share", "float", default=0.5),
        column("price", "decimal(10,2)"),
        column("day", "date"),
        column("at", "timestamp", default_sql="CURRENT_TIMESTAMP"),
        column("number", "uuid"),
        column("settings", "json", default_sql='\'{"a": "50%"}\''),
        column("data", "bytes"),
        column("parent", "integer", references="parents.id", on_delete="cascade"),
        ColumnModel(name="exact", sql_type="varchar(7)"),
    ),
    unique=(("big", "flag"),),
    indexes=(("day", "at"), ("day",)),
)
PARENTS = TableModel(name="parents", columns=(KEY, column("child", "integer")))


def test_declared_tables_are_as_they_are_declared(database: RelationalDatabase) -> None:
    with database.transaction() as connection:
        assert changes.create(connection, [EVERY, PARENTS]) == 2
        execute(connection, "INSERT INTO parents (id) VALUES (1)")
        execute(connection, "INSERT INTO every (id, parent) VALUES (1, 1)")
    seen = schema.describe(database, "every")
    assert seen is not None
    assert seen.rows == 1
    assert [one.name for one in seen.columns] == [one.name for one in EVERY.columns]
    assert seen.primary_key == ("id",)
    assert {frozenset(one) for one in seen.uniques} == {frozenset({"short"}), frozenset({"big", "flag"})}
    assert [(one.columns, one.table, one.referred, one.on_delete) for one in seen.foreign_keys] == [
        (("parent",), "parents", ("id",), "CASCADE")
    ]
    assert {one.columns for one in seen.indexes} == {("day", "at"), ("day",)}
    nullable = {one.name for one in seen.columns if one.nullable}
    assert nullable == {one.name for one in EVERY.columns if one.nullable and not one.primary_key}
    types = {one.name: one.type.lower() for one in seen.columns}
    if database.engine.dialect.name == "postgresql":
        assert types["number"] == "uuid"
        assert types["at"] == "timestamp with time zone"
        assert types["price"] == "numeric(10,2)"
    assert types["exact"] in ("varchar(7)", "character varying(7)")
    with database.reading() as connection:
        row = connection.execute(sa.text("SELECT words, big, flag, share, settings FROM every")).one()
        assert (row.words, row.big, bool(row.flag), row.share) == ("it's 100% \\ :x", 12, True, 0.5)
        assert "50%" in str(row.settings)
        assert "50%%" not in str(row.settings)


def test_ddl_that_is_shown_makes_the_same_tables(database: RelationalDatabase) -> None:
    with database.transaction() as connection:
        changes.create(connection, [PARENTS, EVERY])
    made = schema.snapshot(database)
    with database.transaction() as connection:
        assert changes.remove(connection, [PARENTS, EVERY]) == 2
    assert schema.snapshot(database) == {}
    with database.transaction() as connection:
        for model in (PARENTS, EVERY):
            for statement in schema.ddl(model, database.engine.dialect):
                execute(connection, statement)
    again = schema.snapshot(database)
    assert schema.differences(made, again) == []
    assert {name: table.looks for name, table in made.items()} == {name: table.looks for name, table in again.items()}


def test_differences_name_what_changed(database: RelationalDatabase, relations: Relations) -> None:
    relations.run("CREATE TABLE a (id INTEGER PRIMARY KEY, gone TEXT, kept TEXT NOT NULL)")
    relations.run("CREATE TABLE b (id INTEGER PRIMARY KEY)")
    before = schema.snapshot(database)
    relations.run("ALTER TABLE a DROP COLUMN gone")
    relations.run("ALTER TABLE a ADD COLUMN came TEXT")
    relations.run("CREATE INDEX by_kept ON a (kept)")
    relations.run("DROP TABLE b")
    relations.run("CREATE TABLE c (id INTEGER PRIMARY KEY)")
    told = [line.lower() for line in schema.differences(before, schema.snapshot(database))]
    assert told[:3] == ["- column a.gone", "+ column a.came text", "+ index of a: by_kept (kept)"]
    assert told[3] == "- table b"
    assert told[4].startswith("+ table c (id integer")


def test_a_table_that_is_there_is_not_made_again(database: RelationalDatabase, relations: Relations) -> None:
    relations.run("CREATE TABLE every (id INTEGER PRIMARY KEY)")
    before = relations.dump()
    with pytest.raises(Permanent, match="is there already: every"), database.transaction() as connection:
        changes.create(connection, [PARENTS, EVERY])
    assert relations.dump() == before


def test_a_table_that_another_references_stays(database: RelationalDatabase, relations: Relations) -> None:
    with database.transaction() as connection:
        changes.create(connection, [PARENTS])
    for theirs, away in (
        ("CREATE TABLE theirs (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parents (id))", "DROP TABLE theirs"),
        ("CREATE VIEW theirs AS SELECT id FROM parents", "DROP VIEW theirs"),
    ):
        relations.run(theirs)
        before = relations.dump()
        with pytest.raises(Permanent), database.transaction() as connection:
            changes.remove(connection, [PARENTS])
        assert relations.dump() == before
        relations.run(away)
    with database.transaction() as connection:
        assert changes.remove(connection, [PARENTS]) == 1


# A column that goes and comes back


Build = Sequence[str]
COLUMNS: dict[str, tuple[Build, Build]] = {
    # name -> (statements that make it on SQLite, on PostgreSQL)
    "plain": (
        ["CREATE TABLE t (id INTEGER PRIMARY KEY, other TEXT, c TEXT)"],
        ["CREATE TABLE t (id int PRIMARY KEY, other text, c json)"],
    ),
    "not null": (
        ["CREATE TABLE t (id INTEGER PRIMARY KEY, other TEXT, c TEXT NOT NULL)"],
        ["CREATE TABLE t (id int PRIMARY KEY, other text, c varchar(99) COLLATE \"C\" CONSTRAINT theirs NOT NULL)"],
    ),
    "default": (
        ["CREATE TABLE t (id INTEGER PRIMARY KEY, other TEXT, c TEXT DEFAULT (upper('50% of')) /* why, */ )"],
        [
            "CREATE TABLE t (id int PRIMARY KEY, other text, c text DEFAULT upper('50%% of'))",
            "COMMENT ON COLUMN t.c IS 'it''s 100%% theirs :x'",
            "ALTER TABLE t ALTER COLUMN c SET STORAGE EXTERNAL, ALTER COLUMN c SET STATISTICS 77",
        ],
    ),
    "constraint": (
        ["CREATE TABLE t (id INTEGER PRIMARY KEY, other TEXT, c TEXT COLLATE NOCASE NOT NULL CHECK (length(c) > 3))"],
        ["CREATE TABLE t (id int PRIMARY KEY, other text, c character(40) NOT NULL)"],
    ),
    "quoted": (
        ['CREATE TABLE t (id INTEGER PRIMARY KEY, "other" TEXT, "c" TEXT /* a, (b */, CHECK (other <> \')\'))'],
        ["CREATE TABLE t (id int PRIMARY KEY, other text, c text CHECK (true))"],
    ),
    "triggers": (
        [
            "CREATE TABLE t (id INTEGER PRIMARY KEY, other TEXT, c TEXT)",
            "CREATE TRIGGER touched AFTER UPDATE ON t BEGIN UPDATE t SET other = 'touched' WHERE id = new.id; END",
        ],
        [
            "CREATE TABLE t (id int PRIMARY KEY, other text, c text)",
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.other := 'touched'; RETURN NEW; END $$",
            "CREATE TRIGGER touched BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch()",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_dropped_column_comes_back_as_it_was(kind: str, database: RelationalDatabase, relations: Relations) -> None:
    for statement in COLUMNS[kind][not relations.sqlite]:
        relations.run(statement)
    for number in range(1, 6):
        relations.run(f"INSERT INTO t (id, other, c) VALUES ({number}, 'o', %s)", f'{{"n":  "{number} 50% é"}}')
    if kind in ("plain", "default"):
        relations.run("INSERT INTO t (id, other, c) VALUES (9, 'o', NULL)")
    before = relations.dump()
    with database.transaction() as connection:
        kept, definition = columns.drop(connection, "t", "c", ["id"], "undo_t")
    assert kept == len(relations.rows("SELECT id FROM t"))
    assert relations.columns("t") == ["id", "other"]
    with database.transaction() as connection:
        done = columns.restore(connection, "t", "c", ["id"], "undo_t", definition)
    assert (done.values, done.deleted, done.new) == (kept, 0, 0)
    assert relations.dump() == before


def test_rows_that_came_and_went_meanwhile(database: RelationalDatabase, relations: Relations) -> None:
    relations.run("CREATE TABLE t (a INTEGER, b VARCHAR(9), c INTEGER DEFAULT 7, z TEXT, PRIMARY KEY (a, b))")
    for a, c in ((1, 10), (2, None), (3, 30)):
        relations.run("INSERT INTO t VALUES (%s, 'k', %s, 'z')", a, c)
    with database.transaction() as connection:
        _, definition = columns.drop(connection, "t", "c", ["a", "b"], "undo_t")
    relations.run("DELETE FROM t WHERE a = 3")
    relations.run("INSERT INTO t VALUES (4, 'k', 'new')")
    with database.transaction() as connection:
        done = columns.restore(connection, "t", "c", ["a", "b"], "undo_t", definition)
    assert (done.values, done.deleted, done.new) == (2, 1, 1)
    assert relations.rows("SELECT a, b, z, c FROM t") == [(1, "k", "z", 10), (2, "k", "z", None), (4, "k", "new", 7)]
    relations.run("INSERT INTO t (a, b) VALUES (5, 'k')")
    assert relations.rows("SELECT c FROM t WHERE a = 5") == [(7,)]
    assert "undo_t" not in relations.tables()


def test_names_with_percent_signs(database: RelationalDatabase, relations: Relations) -> None:
    with database.transaction() as connection:
        execute(connection, 'CREATE TABLE "w%" (id INTEGER PRIMARY KEY, z TEXT, "a%b" TEXT, "a%%b" TEXT)')
        execute(connection, """INSERT INTO "w%" VALUES (1, 'z', 'one', 'two')""")
    before = relations.dump()
    with database.transaction() as connection:
        _, definition = columns.drop(connection, "w%", "a%%b", ["id"], "undo_%s")
    assert relations.columns('"w%"') == ["id", "z", "a%b"]
    assert schema.describe(database, "undo_%s") is not None
    with database.transaction() as connection:
        columns.restore(connection, "w%", "a%%b", ["id"], "undo_%s", definition)
    assert relations.dump() == before


def test_a_row_without_a_key_keeps_its_column(tmp_path: Path) -> None:
    relations = Relations(f"sqlite:///{tmp_path}/app.db")
    relations.run("CREATE TABLE t (id TEXT PRIMARY KEY, c TEXT)")
    relations.run("INSERT INTO t VALUES ('a', 'x'), (NULL, 'precious')")
    before = relations.dump()
    with closing(RelationalDatabase(SqlConfig(type="sql", url=relations.url))) as database:
        assert changes.obstacles(database, "t", "c") == ["1 row has no key: id is NULL there"]
        with pytest.raises(Permanent, match="1 row has no key"), database.transaction() as connection:
            columns.drop(connection, "t", "c", ["id"], "undo_t")
    assert relations.dump() == before


def test_a_default_in_double_quotes_is_no_column(tmp_path: Path) -> None:
    relations = Relations(f"sqlite:///{tmp_path}/app.db")
    relations.run('CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, c DEFAULT "name")')
    relations.run("INSERT INTO t VALUES (1, 'ann', 'x')")
    with closing(RelationalDatabase(SqlConfig(type="sql", url=relations.url))) as database:
        with database.transaction() as connection:
            _, definition = columns.drop(connection, "t", "c", ["id"], "undo_t")
        relations.run("INSERT INTO t VALUES (3, 'bob')")
        with database.transaction() as connection:
            columns.restore(connection, "t", "c", ["id"], "undo_t", definition)
    assert relations.rows("SELECT id, c FROM t") == [(1, "x"), (3, "name")]


def test_the_compression_of_a_column_comes_back(pg_database: str) -> None:
    relations = Relations(pg_database)
    relations.run("CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT COMPRESSION pglz)")
    with closing(RelationalDatabase(SqlConfig(type="sql", url=relations.url))) as database:
        with database.transaction() as connection:
            _, definition = columns.drop(connection, "t", "c", ["id"], "undo_t")
        with database.transaction() as connection:
            columns.restore(connection, "t", "c", ["id"], "undo_t", definition)
    query = "SELECT attcompression::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'c'"
    assert relations.rows(query) == [("p",)]


def test_a_column_that_takes_no_null_waits_for_rows_without_a_value(
    database: RelationalDatabase, relations: Relations
) -> None:
    relations.run("CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT NOT NULL)")
    relations.run("INSERT INTO t VALUES (1, 'one')")
    with database.transaction() as connection:
        _, definition = columns.drop(connection, "t", "c", ["id"], "undo_t")
    relations.run("INSERT INTO t VALUES (2)")
    before = relations.dump()
    with pytest.raises(Permanent, match="1 rows"), database.transaction() as connection:
        columns.restore(connection, "t", "c", ["id"], "undo_t", definition)
    assert relations.dump() == before


def _without_undo(relations: Relations) -> None:
    relations.run("DROP TABLE undo_t")


def _column_again(relations: Relations) -> None:
    relations.run("ALTER TABLE t ADD COLUMN c INTEGER")


@pytest.mark.parametrize(("meanwhile", "says"), [(_without_undo, "undo_t"), (_column_again, "made anew")])
def test_a_way_back_that_is_blocked_changes_nothing(
    meanwhile: Callable[[Relations], None], says: str, database: RelationalDatabase, relations: Relations
) -> None:
    relations.run("CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT)")
    with database.transaction() as connection:
        _, definition = columns.drop(connection, "t", "c", ["id"], "undo_t")
    meanwhile(relations)
    before = relations.dump()
    with pytest.raises((Permanent, NotFound), match=says), database.transaction() as connection:
        columns.restore(connection, "t", "c", ["id"], "undo_t", definition)
    assert relations.dump() == before


OBSTACLES = {
    "key": ("CREATE TABLE t (id INTEGER, c INTEGER, PRIMARY KEY (id, c))", "", "primary key"),
    "unique": ("CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER, UNIQUE (id, c))", "", "unique"),
    "index": ("CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER)", "CREATE INDEX by_c ON t (c)", "by_c"),
    "expression": ("CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER)", "CREATE INDEX by_e ON t (abs(c))", "by_e"),
    "partial": ("CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER)", "CREATE INDEX by_p ON t (id) WHERE c > 1", "by_p"),
    "check": ("CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER, CHECK (c <> id))", "", "t|check"),
    "parent": ("CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER REFERENCES t (id))", "", "references"),
    "child": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER UNIQUE)",
        "CREATE TABLE other (id INTEGER PRIMARY KEY, p INTEGER REFERENCES t (c))", "other|unique",
    ),
    "view": ("CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER)", "CREATE VIEW v AS SELECT c FROM t", "v"),
    "generated": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, b INTEGER, c INTEGER GENERATED ALWAYS AS (b * 2) STORED)", "", "generated"
    ),
    "generating": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, c INTEGER, b INTEGER GENERATED ALWAYS AS (c * 2) STORED)", "", "b"
    ),
}  # fmt: skip


def test_a_column_that_something_needs_is_not_dropped(database: RelationalDatabase, relations: Relations) -> None:
    for kind, (table, more, says) in OBSTACLES.items():
        relations.run("DROP VIEW IF EXISTS v")
        relations.run("DROP TABLE IF EXISTS other")
        relations.run("DROP TABLE IF EXISTS t")
        relations.run(table)
        if more:
            relations.run(more)
        before = relations.dump()
        found = changes.obstacles(database, "t", "c")
        assert any(word in text for text in found for word in says.split("|")), (kind, found)
        with pytest.raises(Permanent, match="cannot be dropped"), database.transaction() as connection:
            columns.drop(connection, "t", "c", ["id"], "undo_t")
        assert relations.dump() == before, kind


def test_a_free_column_has_no_obstacles(database: RelationalDatabase, relations: Relations) -> None:
    relations.run("CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT DEFAULT 'x', d INTEGER)")
    relations.run("CREATE INDEX by_d ON t (d)")
    assert changes.obstacles(database, "t", "c") == []


def test_rows_that_a_policy_hides_stop_a_migration(pg_database: str) -> None:
    relations = Relations(pg_database)
    role = f"narrow_{pg_database.partition('?')[0][-12:]}"
    relations.run(f"CREATE ROLE {role} LOGIN")
    relations.run(f"GRANT CREATE, USAGE ON SCHEMA public TO {role}")
    url = pg_database.replace("postgres:@", f"{role}@")
    try:
        theirs = Relations(url)
        theirs.run("CREATE TABLE t (id int PRIMARY KEY, c text)")
        theirs.run("INSERT INTO t VALUES (1, 'seen'), (2, 'hidden')")
        theirs.run("CREATE POLICY few ON t USING (id < 2)")
        theirs.run("ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        with (
            closing(RelationalDatabase(SqlConfig(type="sql", url=url))) as opened,
            pytest.raises(Permanent, match="row-level security"),
            opened.transaction() as connection,
        ):
            columns.drop(connection, "t", "c", ["id"], "undo_t")
    finally:
        relations.run(f"DROP OWNED BY {role}")
        relations.run(f"DROP ROLE {role}")


# A dry run


def test_a_rehearsal_does_everything_and_leaves_nothing(relations: Relations) -> None:
    relations.run("CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT)")
    relations.run("INSERT INTO t VALUES (1, 'one')")
    before = relations.dump()
    with closing(Rehearsal(SqlConfig(type="sql", url=relations.url))) as rehearsal:
        with rehearsal.transaction(foreign_keys=True) as connection:
            changes.create(connection, [PARENTS])
            execute(connection, "INSERT INTO parents (id) VALUES (5)")
        with pytest.raises(Permanent), rehearsal.transaction() as connection:
            execute(connection, "INSERT INTO parents (id) VALUES (6), (5)")
        with rehearsal.transaction() as connection:
            _, definition = columns.drop(connection, "t", "c", ["id"], "undo_t")

        def count(_: int) -> int:
            seen = schema.describe(rehearsal, "parents")
            assert seen is not None
            return seen.rows

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(count, range(8))) == [1] * 8
        assert "- column t.c" in rehearsal.differences()
        assert any(line.startswith("+ table parents") for line in rehearsal.differences())
        with pytest.raises(Permanent), rehearsal.reading() as connection:
            execute(connection, "DELETE FROM t")
        with rehearsal.alone() as alone:
            assert alone is None
        with rehearsal.transaction() as connection:
            columns.restore(connection, "t", "c", ["id"], "undo_t", definition)
        assert not any("column t" in line for line in rehearsal.differences())
    assert relations.dump() == before


def test_a_planner_cannot_write(relations: Relations) -> None:
    relations.run("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    before = relations.dump()
    with closing(RelationalDatabase(SqlConfig(type="sql", url=relations.url), writes=False)) as opened:
        with pytest.raises(Permanent, match="reading only"), opened.transaction():
            pytest.fail("a transaction was begun")
        with pytest.raises(Permanent, match="reading only"), opened.alone():
            pytest.fail("a connection was given")
        with pytest.raises(Permanent), opened.reading() as connection:
            execute(connection, "INSERT INTO t VALUES (1)")
        assert schema.describe(opened, "t") is not None
    assert relations.dump() == before
