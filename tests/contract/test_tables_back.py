"""Tables out of a backup: everything comes back bit for bit, what is there is kept unless the step says otherwise, damage is
found before the first write, and a process may die anywhere. PostgreSQL and the steps are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import commands, crash
from runner.backups import manifest
from runner.backups.manifest import Backup, DamagedBackup
from runner.documents import loaded, unloading
from runner.errors import Interrupted, LeaseLost, NotFound, Permanent, PlanRefused, VecrunError, VerificationFailed
from runner.executor import Run, do
from runner.executor.backup import loads
from runner.ledger import UNLIMITED
from runner.plan import BackupFolder, BackUpTables, LoadTables, Plan, TruncateTables, UnloadTables
from runner.sweeper import Sweeper
from runner.world import World
from tests import servers, warm
from tests.conftest import FULL

FOLDER = BackupFolder(connection="store", folder="kb/vector_bak")
UNDO = {"a": "vecrun_undo_00000000aa", "b": "vecrun_undo_00000000bb", "parent": "vecrun_undo_00000000cc"}


class Tables:
    """A workspace with a database and a folder of backups, and the steps that go between them."""

    def __init__(self, root: Path, url: str = "") -> None:
        self.root = root
        if url:
            (root / "files").mkdir()
            text = f"connections:\n  db: {{type: sql, url: '{url}'}}\n  store: {{type: folder, path: ./files}}\n"
            (root / "vecrun.yaml").write_text(f"apiVersion: vecrun/v1\nkind: Workspace\n{text}")
        self.context = commands.open_context(root)
        self.url = str(self.context.settings.resolved("db")["url"])

    def sql(self, *statements: str) -> None:
        servers.sql(self.url, *statements)

    def rows(self, query: str, *given: Any) -> list[Any]:
        with psycopg.connect(self.url) as db:
            return db.execute(query, given or None).fetchall()

    def binary(self, table: str) -> bytes:
        """Everything in a table, as the server sends it in binary form."""
        query = f"COPY (SELECT * FROM {table} ORDER BY 1) TO STDOUT (FORMAT binary)"
        with psycopg.connect(self.url) as db, db.cursor() as cursor, cursor.copy(query) as copy:
            return b"".join(copy)

    def tables(self) -> set[str]:
        return {
            name for (name,) in self.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^vecrun'")
        }

    @contextmanager
    def run(
        self, step: Any, run: str = "r-1", mode: Any = "write", of_run: str | None = None, *, after: Run | None = None
    ) -> Iterator[Run]:  # fmt: skip
        """A run of this name with one step; `after`: beside that one, in the same ledger."""
        plan = Plan(
            tool_version="1", created="", job="kb", kind="VectorRestore", lineage="", serial=0, spec_digest="",
            connections={}, steps=(step,), purpose="rollback" if of_run else "apply", of_run=of_run,
        ).sealed()  # fmt: skip
        with ExitStack() as stack, World(self.context.settings, mode) as world:
            ledger = after.ledger if after is not None else stack.enter_context(Sweeper.temporary())
            lease = ledger.acquire(["kb" if after is None else run], run, UNLIMITED)
            ledger.start_run(lease, plan, plan.dumps())
            yield Run(run, plan, ledger, lease, world, self.context.states, self.context.settings.workspace.limits)

    def do(self, step: Any, run: str = "r-1", mode: Any = "write", of_run: str | None = None) -> dict[str, Any]:
        """Carry out one step."""
        with self.run(step, run, mode, of_run) as made:
            return do(made, 0)

    def backup(self, *names: str, run: str = "r-0") -> Backup:
        self.do(BackUpTables(connection="db", tables=names, into=FOLDER), run)
        with World(self.context.settings, "read") as world:
            found = manifest.of_run(world.objects("store"), FOLDER.folder, run)
        assert found is not None
        return found

    def step(self, backup: Backup, *tables: str | tuple[str, str], **more: Any) -> LoadTables:
        pairs = tuple(item if isinstance(item, tuple) else (item, item) for item in tables)
        undo = tuple((here, UNDO.get(here, "vecrun_undo_00000000dd")) for _table, here in pairs)
        more.setdefault("undo", undo if more.get("existing", "refuse") != "refuse" else ())
        return LoadTables(
            connection="db", tables=pairs, source=FOLDER, backup=backup.id, manifest=backup.digest, **more
        )  # fmt: skip

    def file(self, backup: Backup, table: str) -> Path:
        name = next(item.file for item in backup.tables if item.table == table)
        return self.root / "files" / FOLDER.key(name)


@pytest.fixture
def tables(tmp_path: Path, pg_database: str) -> Tables:
    return Tables(tmp_path, pg_database)


@pytest.fixture
def filled(tables: Tables) -> Tables:
    """A parent of 20 rows and a child of 50, both with keys that the server counts."""
    tables.sql(
        "CREATE TABLE parent (id serial PRIMARY KEY, name text UNIQUE NOT NULL DEFAULT 'x' CHECK (name <> ''))",
        "CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int NOT NULL REFERENCES parent(id) ON DELETE "
        "CASCADE, text text, embedding vector(2), size int GENERATED ALWAYS AS (length(text)) STORED)",
        "CREATE INDEX a_embedding ON a USING hnsw (embedding vector_cosine_ops)",
        "INSERT INTO parent (name) SELECT 'p' || i FROM generate_series(1, 20) i",
        "INSERT INTO a (parent, text, embedding) SELECT i % 20 + 1, 't' || i, ARRAY[i, 1]::vector(2) "
        "FROM generate_series(1, 50) i",
    )
    return tables


# Round trips --------------------------------------------------------------------------------------------------------

NASTY = (
    "", "\\.", "\\.\n", "\n\\.\n", "\\N", "NULL", '"', '""', '"a"', "a,b", "\r", "\r\n", "\n", "\t", " ", "\\", "'", "\ufeff",
    "😀", "é", "e\u0301", "\u2028", "\x01", "\x7f", "{}", "$1", "%s",
)  # fmt: skip
texts = st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


def _floats(width: Any) -> st.SearchStrategy[str]:
    return st.floats(width=width, allow_nan=False, allow_infinity=False).map(repr)


def _vector(width: Any) -> st.SearchStrategy[str]:
    edge = st.sampled_from({16: ("65504", "-0.0", "6e-08"), 32: ("3.4028235e+38", "-0.0", "1e-45", "0.1")}[width])
    return st.lists(_floats(width) | edge, min_size=3, max_size=3).map(lambda one: f"[{','.join(one)}]")


def _sparse(one: dict[int, float]) -> str:
    return "{" + ",".join(f"{key}:{value!r}" for key, value in sorted(one.items())) + "}/1000"


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda value: value != 0)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5,
)  # fmt: skip
documents = values.map(json.dumps).filter(lambda text: "\\u0000" not in text)
#: Spaces, order and doubled keys are part of a json, and of no jsonb.
written = documents | st.sampled_from(('{"b":1,  "a":2}', '{"a":1,"a":2}', " [ 1.0e3 , 1.10 ]\n", '"\\ud83d\\ude00"'))
#: type -> what can stand in a column of it, as text
TYPES: dict[str, st.SearchStrategy[str]] = {
    "varchar": texts,
    "varchar(30)": texts,
    "char(20)": texts.filter(lambda text: len(text.rstrip(" ")) <= 20),
    "json": written,
    "jsonb": documents,
    "uuid": st.uuids().map(str),
    "vector(3)": _vector(32),
    "vector": _vector(32),
    "halfvec(3)": _vector(16),
    "sparsevec(1000)": st.dictionaries(st.integers(1, 1000), numbers, max_size=4).map(_sparse),
    "text[]": st.lists(st.none() | texts, max_size=3).map(
        lambda items: "{" + ",".join("NULL" if one is None else json.dumps(one, ensure_ascii=False) for one in items) + "}"
    ).filter(lambda text: not set(text) & {chr(number) for number in range(0x80) if number < 32 or number == 127} and "\\u" not in text),
    "bytea": st.binary(max_size=10).map(lambda data: "\\x" + data.hex()),
    "real": _floats(32) | st.sampled_from(("NaN", "Infinity", "-Infinity")),
    "double precision": _floats(64),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False).map(str) | st.sampled_from(("NaN", "1.10", "0.000")),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "boolean": st.sampled_from(("t", "f")),
    "varbit": st.text("01", max_size=9),
    "timestamptz": st.datetimes().map(str) | st.sampled_from(("infinity", "4713-01-01 00:00:00 BC")),
    "date": st.dates().map(str),
    "interval": st.sampled_from(("1 year -2 mons 3 days 04:05:06.000007", "-00:00:01", "0")),
    "inet": st.ip_addresses().map(str),
}  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, pg_url: str) -> Iterator[Tables]:
    """A table with a column of every type."""
    servers.sql(pg_url, "CREATE DATABASE test_zoo TEMPLATE with_vector")
    made = Tables(tmp_path_factory.mktemp("zoo"), servers.database(pg_url, "test_zoo"))
    columns = ", ".join(f'"c{number} ""x" {name}' for number, name in enumerate(TYPES))
    made.sql(f"CREATE TABLE a (id int PRIMARY KEY, {columns})", 'CREATE TABLE b ("a,""b" text)')
    yield made
    servers.sql(pg_url, "DROP DATABASE test_zoo WITH (FORCE)")


def _there_and_back(zoo: Tables, table: str) -> None:
    zoo.sql("DROP TABLE IF EXISTS copy", f"DROP TABLE IF EXISTS vecrun_load_{_hash('r-1')}")
    step = zoo.step(zoo.backup(table), (table, "copy"), create=True)
    zoo.do(step)
    assert zoo.binary("copy") == zoo.binary(table)


def _hash(run: str) -> str:
    import hashlib

    return hashlib.sha256(run.encode()).hexdigest()[:8]


often = settings(max_examples=100 if FULL else 10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@often
@given(rows=st.lists(st.tuples(*(st.none() | one for one in TYPES.values())), max_size=6))
def test_every_value_comes_back_bit_for_bit(zoo: Tables, rows: list[tuple[str | None, ...]]) -> None:
    """Given rows with any values that the columns can hold, when they are backed up and loaded into a new table, then the
    server has the same bytes."""
    with psycopg.connect(zoo.url, autocommit=True) as db:
        db.execute("TRUNCATE a")
        marks = ", ".join(f"%s::{name}" for name in TYPES)
        for number, row in enumerate(rows):
            db.execute(f"INSERT INTO a VALUES ({number}, {marks})", row)
    _there_and_back(zoo, "a")


@often
@given(rows=st.lists(st.none() | texts, max_size=15))
def test_a_column_alone_comes_back(zoo: Tables, rows: list[str | None]) -> None:
    """Given a table of one column, where a line may be empty or look like the end of the data, then all comes back."""
    with psycopg.connect(zoo.url, autocommit=True) as db:
        db.execute("TRUNCATE b")
        for text in rows:
            db.execute("INSERT INTO b VALUES (%s)", (text,))
    _there_and_back(zoo, "b")


def test_tables_are_made_as_they_were(filled: Tables) -> None:
    """Given tables that are gone, when they are loaded, then columns, constraints, indexes and counters are as they were."""
    looks = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid IN ('a'::regclass, 'parent'::regclass) ORDER BY 1, 2"
    indexes = "SELECT indexdef FROM pg_indexes WHERE tablename IN ('a', 'parent') ORDER BY 1"
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity, is_generated "
        "FROM information_schema.columns WHERE table_name IN ('a', 'parent') ORDER BY 1, ordinal_position"
    )
    before = [filled.rows(query) for query in (looks, indexes, columns)]
    content = filled.binary("parent"), filled.binary("a")
    backup = filled.backup("a", "parent")
    filled.sql("DROP TABLE a, parent")
    with pytest.raises(NotFound, match="not there"):
        filled.do(filled.step(backup, "a", "parent"))
    result = filled.do(filled.step(backup, "a", "parent", create=True))
    assert result["rows"] == 70
    assert [item["table"] for item in result["tables"]] == ["a", "parent"]
    assert [filled.rows(query) for query in (looks, indexes, columns)] == before
    assert (filled.binary("parent"), filled.binary("a")) == content
    filled.sql("INSERT INTO parent DEFAULT VALUES", "INSERT INTO a (parent) VALUES (21)")
    assert filled.rows("SELECT max(id) FROM a") == [(51,)]


def test_tables_come_under_other_names(filled: Tables) -> None:
    """Given both tables, when they are loaded beside themselves, then the copies refer to each other."""
    backup = filled.backup("a", "parent")
    filled.do(filled.step(backup, ("a", "A 2"), ("parent", "parent2"), create=True))
    assert filled.binary('"A 2"') == filled.binary("a")
    keys = "SELECT confrelid::regclass::text FROM pg_constraint WHERE conrelid = '\"A 2\"'::regclass AND contype = 'f'"
    assert filled.rows(keys) == [("parent2",)]
    filled.sql("DROP TABLE a, parent", "INSERT INTO parent2 DEFAULT VALUES")


def test_one_table_is_made_beside_one_that_is_there(filled: Tables) -> None:
    """Given that only the child is gone, when both are named, then it refers to the parent that is there; alone it is made
    without that."""
    backup, content = filled.backup("a", "parent"), filled.binary("a")
    filled.sql("DROP TABLE a")
    filled.do(filled.step(backup, "a", "parent", create=True, existing="merge"))
    assert filled.binary("a") == content
    keys = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'a'::regclass AND contype = 'f'"
    assert filled.rows(keys) == [(1,)]
    filled.sql("DROP TABLE a")
    filled.do(filled.step(backup, "a", create=True), "r-3")
    assert filled.binary("a") == content
    assert filled.rows(keys) == [(0,)]


def test_the_extension_has_to_be_there(filled: Tables) -> None:
    backup = filled.backup("a", "parent")
    filled.sql("DROP TABLE a", "DROP EXTENSION vector")
    with pytest.raises(Permanent, match="lacks a type") as error:
        filled.do(filled.step(backup, "a", "parent", create=True, existing="merge"))
    assert "CREATE EXTENSION vector" in error.value.hint


def test_odd_tables(tables: Tables) -> None:
    """Given a table without columns, one of partitions and one in another schema, when they come back, then all is there."""
    tables.sql(
        "CREATE SCHEMA s",
        'CREATE TABLE s."o%d" (id bigserial PRIMARY KEY)',
        'INSERT INTO s."o%d" DEFAULT VALUES',
        "CREATE TABLE a ()",
        "INSERT INTO a SELECT FROM generate_series(1, 3)",
        "CREATE TABLE b (id int, at date) PARTITION BY RANGE (id)",
        "CREATE TABLE b1 PARTITION OF b FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE b2 PARTITION OF b DEFAULT",
        "INSERT INTO b SELECT i, now() FROM generate_series(1, 20) i",
    )
    backup, content = tables.backup("a", "b", "s.o%d"), tables.binary("b")
    step = tables.step(backup, "a", "b", "s.o%d", existing="replace")
    assert tables.do(step)["rows"] == 24
    assert tables.binary("b") == content
    tables.do(UnloadTables(of=step), "r-2", of_run="r-1")
    tables.sql('DROP TABLE a, b, s."o%d"')
    tables.do(tables.step(backup, "a", "b", "s.o%d", create=True), "r-3")
    assert tables.binary("b") == content
    assert tables.rows("SELECT count(*) FROM a") == [(3,)]
    tables.sql('INSERT INTO s."o%d" DEFAULT VALUES')


# What is there already ----------------------------------------------------------------------------------------------


def test_rows_that_are_there_are_kept(filled: Tables) -> None:
    """Given a table with rows, when nothing is said about them, then the load is refused and names the ways on."""
    step = filled.step(filled.backup("a", "parent"), "a", "parent")
    before = filled.binary("a")
    with pytest.raises(Permanent, match="not empty") as error:
        filled.do(step)
    assert "public.a holds 50 rows" in error.value.detail
    assert "merge" in error.value.hint
    assert filled.binary("a") == before
    assert filled.tables() == set()


def test_rows_that_came_after_a_truncation(filled: Tables) -> None:
    """Given rows that came since tables were emptied, when that is rolled back, then they stay and the way on is told."""
    filled.backup("a", "parent", run="r-7")
    step = LoadTables(connection="db", tables=(("a", "a"), ("parent", "parent")), source=FOLDER, of_run="r-7")
    with filled.run(TruncateTables(connection="db", tables=("a", "parent"), source=FOLDER), "r-7") as emptied:
        assert do(emptied, 0)["rows"] == 70
        filled.sql("INSERT INTO parent VALUES (1, 'new')")
        with filled.run(step, "r-8", of_run="r-7", after=emptied) as back:
            with pytest.raises(Permanent, match="came since") as error:
                do(back, 0)
            assert "if_not_empty: merge" in error.value.hint
            filled.sql("DELETE FROM parent")
            assert do(back, 0)["rows"] == 70
            assert do(back, 0)["rows"] == 70  # again: it knows that it was done


def test_replace_and_its_way_back(filled: Tables) -> None:
    """Given other rows than those of the backup, when they are replaced, then only the backup's are there; undone, the
    others are back."""
    backup, content = filled.backup("a", "parent"), filled.binary("a")
    filled.sql("DELETE FROM a WHERE id < 10", "UPDATE a SET text = 'other'", "INSERT INTO parent VALUES (100, 'late')")
    before = filled.binary("a"), filled.binary("parent")
    step = filled.step(backup, "a", "parent", existing="replace")
    result = filled.do(step)
    assert result["tables"] == [
        {"table": "a", "rows": 50, "replaced": 41},
        {"table": "parent", "rows": 20, "replaced": 21},
    ]
    assert filled.binary("a") == content
    assert unloading.undo_rows(_postgres(filled), step, "r-1") == 62
    assert len(filled.tables()) == 3
    undo = UnloadTables(of=step)
    assert filled.do(undo, "r-2", of_run="r-1")["rows"] == 62
    assert (filled.binary("a"), filled.binary("parent")) == before
    assert filled.tables() == set()
    assert filled.do(undo, "r-2", of_run="r-1")["rows"] == 0  # again: nothing


def test_merge_and_its_way_back(filled: Tables) -> None:
    """Given rows of both kinds, when the backup is merged, then its rows win and the others stay; undone, all is as it was,
    though a third table refers to rows."""
    backup = filled.backup("a", "parent")
    filled.sql(
        "DELETE FROM a WHERE id < 10",
        "UPDATE a SET text = 'other' WHERE id > 40",
        "INSERT INTO parent VALUES (100, 'late')",
        "CREATE TABLE b (parent int REFERENCES parent)",
        "INSERT INTO b VALUES (100), (1)",
    )
    before = filled.binary("a"), filled.binary("parent")
    step = filled.step(backup, "a", "parent", existing="merge")
    result = filled.do(step)
    assert result["tables"][0] == {"table": "a", "rows": 50, "replaced": 41}
    assert filled.rows("SELECT count(*), count(*) FILTER (WHERE text = 'other') FROM a") == [(50, 0)]
    assert filled.rows("SELECT count(*) FROM parent WHERE name = 'late'") == [(1,)]
    filled.do(UnloadTables(of=step), "r-2", of_run="r-1")
    assert (filled.binary("a"), filled.binary("parent")) == before


def test_what_was_written_since_is_not_undone(filled: Tables) -> None:
    """Given a row that somebody wrote after the load, when it is to be undone, then nothing happens and the table is named."""
    backup = filled.backup("a", "parent")
    step = filled.step(backup, "a", "parent", existing="replace")
    filled.do(step)
    for table, *changes in (
        ("public.a holds 51 rows, not 50", "INSERT INTO a (parent) VALUES (1)"),
        ("public.a holds 51 rows", "UPDATE a SET text = 'mine' WHERE id = 51"),
        ("rows of public.parent changed", "DELETE FROM a WHERE id = 51", "UPDATE parent SET name = name WHERE id = 3"),
        ("public.a holds 49 rows, not 50", "DELETE FROM a WHERE id = 3"),
        ("rows of public.a changed", "INSERT INTO a (parent) VALUES (1)"),
        ("public.a was made anew", "DROP TABLE a", "CREATE TABLE a (id int)"),
    ):
        filled.sql(*changes)
        before = filled.binary("a")
        with pytest.raises(Permanent, match="has written") as error:
            filled.do(UnloadTables(of=step), "r-2", of_run="r-1")
        assert table in error.value.detail
        assert UNDO["a"] in error.value.hint
        assert filled.binary("a") == before


@pytest.mark.parametrize("made", [True, False])
def test_a_load_into_nothing_is_undone(filled: Tables, made: bool) -> None:
    """Given tables that were empty, or not there, when the load is undone, then they are so again."""
    backup = filled.backup("a", "parent")
    filled.sql("DROP TABLE a, parent" if made else "TRUNCATE a, parent")
    step = filled.step(backup, "a", "parent", create=True)
    filled.do(step)
    filled.do(UnloadTables(of=step), "r-2", of_run="r-1")
    assert filled.rows("SELECT to_regclass('a') IS NULL") == [(made,)]
    assert made or filled.rows("SELECT count(*) FROM parent") == [(0,)]
    assert filled.tables() == set()


def test_what_is_kept_for_an_undo_is_dropped(filled: Tables) -> None:
    step = filled.step(filled.backup("a", "parent"), "a", "parent", existing="replace")
    filled.do(step)
    postgres = _postgres(filled)
    unloading.forget(postgres, step, "r-1")
    unloading.forget(postgres, step, "r-1")
    assert unloading.undo_rows(postgres, step, "r-1") is None
    assert filled.tables() == set()


def _postgres(filled: Tables) -> Any:
    return World(filled.context.settings, "write").postgres("db")


def test_a_run_that_lost_its_lease_commits_nothing(filled: Tables) -> None:
    """Given a run whose lease somebody took, when its load comes to the end, then nothing of it stays."""
    step = filled.step(filled.backup("a", "parent"), "a", "parent", existing="replace")
    filled.sql("DELETE FROM a WHERE id < 10")
    before = filled.binary("a")
    with filled.run(step) as run:
        run.ledger.release(run.lease)
        with pytest.raises(LeaseLost):
            do(run, 0)
    assert filled.binary("a") == before
    assert filled.tables() == set()


def test_a_run_that_is_to_stop(filled: Tables) -> None:
    step = filled.step(filled.backup("a", "parent"), "a", "parent", existing="replace")
    with filled.run(step) as run:
        run.stop.set()
        with pytest.raises(Interrupted, match="Interrupted"):
            do(run, 0)
    assert filled.tables() == set()


@pytest.mark.parametrize("existing", ["replace", "merge"])
def test_tables_are_compared_with_their_backup(filled: Tables, existing: Any) -> None:
    """Given what somebody wrote after a load, when tables are compared, then those that differ are named; beside rows that a
    merge left there, a changed one cannot be told."""
    step = filled.step(filled.backup("a", "parent"), "a", "parent", existing=existing)
    filled.sql("INSERT INTO parent VALUES (100, 'late')")
    filled.do(step)
    with filled.run(step, mode="read") as run:
        assert loads.compare(run, step) == {}
        filled.sql("UPDATE parent SET name = 'x' WHERE id = 7", "DELETE FROM a WHERE id = 7")
        found = loads.compare(run, step)
    assert found["a"] == "49 rows are there, the backup has 50"
    assert ("parent" in found) == (existing == "replace")


# What does not fit --------------------------------------------------------------------------------------------------

MISFITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a column is not there": ("ALTER TABLE a DROP COLUMN text CASCADE", {}, "column text of the backup is not there"),
    "a type differs": ("ALTER TABLE parent ALTER name TYPE varchar(9)", {}, "name is character varying.9., in the backup text"),
    "a column needs a value": ("ALTER TABLE parent ADD must int NOT NULL", {}, "must is NOT NULL without a default"),
    "a dimension differs": ("ALTER TABLE a ALTER embedding TYPE vector(3)", {}, r"embedding is vector\(3\)"),
    "a column is not computed here": ("ALTER TABLE a ALTER size DROP EXPRESSION", {}, "size is computed in the backup only"),
    "no key": ("ALTER TABLE a DROP CONSTRAINT a_pkey; INSERT INTO parent VALUES (1); INSERT INTO a (parent) VALUES (1)", {"existing": "merge"}, "a has no primary key"),
    "another table refers": (
        "CREATE TABLE b (p int REFERENCES parent); INSERT INTO parent DEFAULT VALUES", {"existing": "replace"}, "public.b refers to",
    ),
    "a view": ("DROP TABLE a; CREATE VIEW a AS SELECT 1", {}, "is a view"),
    "a circle": ("ALTER TABLE parent ADD a int REFERENCES a", {}, "in a circle"),
    "a unique value is taken": ("INSERT INTO parent VALUES (77, 'p3')", {"existing": "merge"}, "parent_name_key"),
    "a value is refused": ("ALTER TABLE a ADD CHECK (id < 40)", {}, "a_id_check"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named(filled: Tables, case: str) -> None:
    """Given a table that is not what it was, when it is to be filled, then the error names what differs, and nothing is
    written."""
    change, more, match = MISFITS[case]
    backup = filled.backup("a", "parent")
    filled.sql("TRUNCATE a, parent", "ALTER SEQUENCE a_id_seq RESTART", *change.split("; "))
    before = filled.binary("parent")
    with pytest.raises(VecrunError, match=match):
        filled.do(filled.step(backup, "a", "parent", **more))
    assert filled.binary("parent") == before
    assert filled.tables() == set()


def test_a_parent_that_is_not_loaded(filled: Tables) -> None:
    backup = filled.backup("a", "parent")
    filled.sql("TRUNCATE a, parent")
    with pytest.raises(Permanent, match="refer to rows that are not there"):
        filled.do(filled.step(backup, "a"))


def test_a_trigger_that_changes_rows(filled: Tables) -> None:
    """Given a trigger that writes something else, when a backup is loaded, then that is seen and nothing stays."""
    backup = filled.backup("parent")
    filled.sql(
        "TRUNCATE a, parent",
        "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := NEW.name || '!'; RETURN NEW; END $$",
        "CREATE TRIGGER other BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION other()",
    )
    with pytest.raises(VerificationFailed, match="not hold what the backup does"):
        filled.do(filled.step(backup, "parent"))
    assert filled.rows("SELECT count(*) FROM parent") == [(0,)]


def test_deferrable_circles_and_references_to_itself(tables: Tables) -> None:
    tables.sql(
        "CREATE TABLE a (id int PRIMARY KEY, up int REFERENCES a, b int)",
        "CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)",
        "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE",
        "INSERT INTO a VALUES (1, 2, NULL), (2, 1, NULL)",
        "INSERT INTO b VALUES (1, 2)",
        "UPDATE a SET b = 1",
    )
    content = tables.binary("a"), tables.binary("b")
    backup = tables.backup("a", "b")
    tables.sql("TRUNCATE a, b")
    tables.do(tables.step(backup, "a", "b"))
    assert (tables.binary("a"), tables.binary("b")) == content


def test_a_lock_that_cannot_be_had(filled: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given somebody who reads the table in an open transaction, then the load gives up in time, and says why."""
    monkeypatch.setattr(loaded, "PATIENCE", 0.2)
    backup = filled.backup("a", "parent")
    filled.sql("TRUNCATE a, parent")
    with psycopg.connect(filled.url) as reader:
        reader.execute("SELECT 1 FROM a")
        with pytest.raises(Permanent, match="lock could not be had"):
            filled.do(filled.step(backup, "a", "parent"))
    filled.do(filled.step(backup, "a", "parent"))


def test_rights_are_looked_at_first(filled: Tables) -> None:
    """Given a login that may not write, when the load is tried dry, then the right is named."""
    backup = filled.backup("a", "parent")
    filled.sql(
        "TRUNCATE a, parent",
        "DROP ROLE IF EXISTS reads",
        "CREATE ROLE reads LOGIN",
        "GRANT SELECT ON a, parent TO reads",
    )
    settings = (filled.root / "vecrun.yaml").read_text().replace("postgres:@", "reads:@")
    (filled.root / "vecrun.yaml").write_text(settings)
    other = Tables(filled.root)
    try:
        with pytest.raises(Permanent, match=r"lacks a right.*INSERT"):
            other.do(other.step(backup, "a", "parent"), mode="dry")
        filled.sql("GRANT INSERT ON a, parent TO reads", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        with pytest.raises(Permanent, match="may not make a table in schema public"):
            other.do(other.step(backup, "a", "parent"), mode="dry")
    finally:
        filled.sql("DROP OWNED BY reads", "DROP ROLE reads")


# Damage -------------------------------------------------------------------------------------------------------------


def _flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int((len(content) - 1) * at)] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the header": lambda path: _flip(path, 0),
    "a bit in the middle": lambda path: _flip(path, 0.5),
    "the last bit": lambda path: _flip(path, 1),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"9,x\n"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("mode", ["write", "dry"])
def test_damage_is_found_before_the_first_write(filled: Tables, mode: str) -> None:
    """Given a backup with any damage, when it is to be loaded, then the tables keep what they have."""
    backup = filled.backup("a", "parent")
    path = filled.file(backup, "a")
    whole, before = path.read_bytes(), (filled.binary("a"), filled.binary("parent"))
    for name, harm in DAMAGE.items():
        harm(path)
        with pytest.raises(DamagedBackup, match="damaged"):
            filled.do(filled.step(backup, "a", "parent", existing="replace"), mode=mode)
        assert (filled.binary("a"), filled.binary("parent")) == before, name
        path.write_bytes(whole)
    filled.do(filled.step(backup, "a", "parent", existing="replace"), mode=mode)


def test_another_backup_than_planned(filled: Tables) -> None:
    backup = filled.backup("parent")
    with pytest.raises(PlanRefused, match="another one"):
        filled.do(filled.step(backup.model_copy(update={"digest": "0" * 64}), "parent"))
    with pytest.raises(NotFound, match="does not have this table"):
        filled.do(filled.step(backup, "a"))
    with pytest.raises(NotFound, match="No such backup"):
        filled.do(filled.step(backup.model_copy(update={"id": "20200101_000000"}), "parent"))


def test_a_file_that_changes_after_the_check(filled: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a file that is damaged between its check and the load, then everything is rolled back."""
    backup, before = filled.backup("a", "parent"), filled.binary("a")
    path = filled.file(backup, "a")
    monkeypatch.setattr(crash, "point", lambda _step, phase: _flip(path, 0.9) if phase == "locked" else None)
    with pytest.raises(DamagedBackup, match="damaged"):
        filled.do(filled.step(backup, "a", "parent", existing="replace"))
    assert filled.binary("a") == before
    assert filled.tables() == set()


def test_a_dry_run_writes_nothing(filled: Tables) -> None:
    step = filled.step(filled.backup("a", "parent"), "a", "parent", existing="merge")
    before = filled.binary("a")
    assert filled.do(step, mode="dry")["tables"] == []
    assert filled.do(UnloadTables(of=step), mode="dry") == {"tables": [], "rows": 0}
    assert filled.binary("a") == before
    assert filled.tables() == set()


# Killed -------------------------------------------------------------------------------------------------------------


def _killed(filled: Tables, at: str, step: Any, run: str, of_run: str = "") -> None:
    command = [sys.executable, "-m", "tests.contract.test_tables_back", str(filled.root), run, of_run]
    with warm.Popen(command, env=os.environ | {"VECRUN_CRASH_AT": at}, stdin=subprocess.PIPE) as process:
        process.communicate(step.model_dump_json().encode(), timeout=60)
    assert process.returncode == -signal.SIGKILL, at


@pytest.mark.parametrize("existing", ["replace", "merge"])
@pytest.mark.parametrize("phase", ["locked", "loaded", "compared", "committed"])
def test_killed_while_loading(filled: Tables, phase: str, existing: Any) -> None:
    """Given a load that was killed, then the tables hold what they held, or all of the backup; repeated, it is done once."""
    backup = filled.backup("a", "parent")
    filled.sql("DELETE FROM a WHERE id < 10", "INSERT INTO parent VALUES (100, 'late')")
    before = filled.binary("a")
    step = filled.step(backup, "a", "parent", existing=existing)
    _killed(filled, f"load_tables:{phase}", step, "r-1")
    assert (filled.binary("a") == before) == (phase != "committed")
    result = filled.do(step)
    assert result["tables"][0] == {"table": "a", "rows": 50, "replaced": 41}
    assert result["backup"] == backup.id
    assert filled.rows("SELECT count(*) FROM parent") == [(20 if existing == "replace" else 21,)]
    filled.do(UnloadTables(of=step), "r-2", of_run="r-1")
    assert filled.binary("a") == before


@pytest.mark.parametrize("phase", ["locked", "unloaded", "committed"])
def test_killed_while_unloading(filled: Tables, phase: str) -> None:
    backup = filled.backup("a", "parent")
    filled.sql("DELETE FROM a WHERE id < 10")
    before = filled.binary("a")
    step = filled.step(backup, "a", "parent", existing="replace")
    filled.do(step)
    after, undo = filled.binary("a"), UnloadTables(of=step)
    _killed(filled, f"unload_tables:{phase}", undo, "r-2", "r-1")
    assert filled.binary("a") == (before if phase == "committed" else after)
    filled.do(undo, "r-2", of_run="r-1")
    assert filled.binary("a") == before
    assert filled.tables() == set()


@pytest.mark.parametrize("existing", ["refuse", "replace"])
def test_two_that_load_for_one_run(filled: Tables, existing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a load that goes on while the same is begun again, as when its process was taken for dead, then the second one
    waits, and finds it done."""
    backup = filled.backup("a", "parent")
    filled.sql("TRUNCATE a, parent" if existing == "refuse" else "DELETE FROM a WHERE id < 10")
    step = filled.step(backup, "a", "parent", existing=existing)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor(1) as pool:
        second: list[Future[dict[str, Any]]] = []

        def reached(_step: str, phase: str) -> None:
            if phase == "compared":
                second.append(pool.submit(filled.do, step))
                for _ in range(1000):
                    if filled.rows(waiting) != [(0,)] or second[0].done():
                        break
                    time.sleep(0.01)

        monkeypatch.setattr(crash, "point", reached)
        first = filled.do(step)
        assert second[0].result(30) == first
    assert [item["replaced"] for item in first["tables"]] == ([0, 0] if existing == "refuse" else [41, 20])


def main() -> None:
    """Carry out the step that is given as JSON: what is killed."""
    from pydantic import TypeAdapter

    root, run, of_run = sys.argv[1:]
    step = TypeAdapter[LoadTables | UnloadTables](LoadTables | UnloadTables).validate_json(sys.stdin.read())
    Tables(Path(root)).do(step, run, of_run=of_run or None)


if __name__ == "__main__":
    main()
