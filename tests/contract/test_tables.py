"""Tables out of PostgreSQL: every value as it is, all of one moment, and emptied only behind a whole backup of exactly the
rows that are there (D1, D2, D3, D5; issue 6, lines 2 and 4).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.backups import manifest
from runner.backups.manifest import Backup
from runner.documents import copying, truncating
from runner.documents.postgres import Postgres
from runner.errors import Permanent
from runner.objects import FolderConfig
from runner.objects.storage import open_objects
from tests import servers
from tests.e2e.workspace import Workspace, run

SETTINGS = """\
apiVersion: vecrun/v1
kind: Workspace
connections:
  app: {type: sql, url: "%s"}
  backups: {type: folder, path: "%s"}
"""
JOB = """\
apiVersion: vecrun/v1
kind: VectorBackup
metadata: {name: nightly}
spec:
  tables: {connection: app, names: [parents, points], truncate: [points]}
  to: {connection: backups}
"""
TABLES = (
    "CREATE TABLE parents (id int PRIMARY KEY, name text)",
    "CREATE TABLE points (id int PRIMARY KEY, parent int REFERENCES parents, embedding vector(3), document text)",
    "INSERT INTO parents SELECT i, 'p' || i FROM generate_series(1, 3) i",
    "INSERT INTO points SELECT i, 1, '[1,2,3]', 'd' || i FROM generate_series(1, 200) i",
)
_FIELD = re.compile(r'("(?:[^"]|"")*"|[^",\r\n]*)([,\n])')
APPLY = ("apply", "jobs/move.yaml", "--auto-approve")


def parsed(text: str) -> list[tuple[str, list[str | None]]]:
    """(row as it stands there, its fields) of a CSV as PostgreSQL writes it: NULL is empty, "" is quoted."""
    rows, fields, start, at = [], list[str | None](), 0, 0
    while at < len(text):
        found = _FIELD.match(text, at)
        assert found is not None, text[at : at + 100]
        raw, end = found.groups()
        fields.append(raw[1:-1].replace('""', '"') if raw.startswith('"') else raw or None)
        at = found.end()
        if end == "\n":
            rows.append((text[start:at], fields))
            fields, start = [], at
    return rows


@dataclass
class Out:
    """A table as it came out."""

    source: copying.Source
    tally: copying.Tally
    data: bytes
    snapshot: str

    @property
    def kept(self) -> manifest.TableFile:
        return manifest.TableFile(
            table=self.source.table, shape=self.source.shape, rows=self.tally.rows, snapshot=self.snapshot
        )


def copied(postgres: Postgres, *tables: str, meanwhile: Callable[[], None] = lambda: None) -> list[Out]:
    """Tables as a backup reads them; `meanwhile` happens between its snapshot and its first row."""
    found = []
    with copying.snapshot(postgres, tables) as shared:
        meanwhile()
        for source in shared.sources:
            if source.error is not None:
                raise source.error
            assert source.shape is not None
            tally = copying.Tally()
            with copying.reader(postgres, shared, source.shape) as connection:
                select = f"SELECT {source.shape.columns_sql} FROM {source.shape.sql}"
                data = b"".join(copying.csv(connection, select, tally))
                found.append(Out(source, tally, data, copying.versions(connection, source.shape)))
    return found


@pytest.fixture
def filled(pg_database: str) -> str:
    servers.sql(pg_database, *TABLES)
    return pg_database


@dataclass
class Nightly:
    """A workspace with the job, its database and the folder of its backups."""

    ws: Workspace
    url: str
    store: Path

    @property
    def folder(self) -> Path:
        return self.store / "nightly" / "vector_bak"

    def count(self, table: str = "points") -> int:
        with psycopg.connect(self.url) as db:
            row = db.execute(f"SELECT count(*) FROM {table}").fetchone()  # type: ignore[arg-type]
            assert row is not None
            return int(row[0])

    def backups(self) -> list[Backup]:
        with open_objects(FolderConfig(type="folder", path=str(self.store))) as objects:
            folder = "nightly/vector_bak"
            return [manifest.read(objects, folder, item) for item in manifest.ids(objects, folder)]

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def expected_files(self) -> set[str]:
        """What the manifests name, and nothing else."""
        named = {name for backup in self.backups() for name in (*backup.files, f"backup_{backup.id}.json")}
        return named | {"vector_backup_log.txt"}

    def log(self) -> str:
        return (self.folder / "vector_backup_log.txt").read_text()


Opened = Callable[[Path, str], Nightly]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A workspace, where commands are given from now on, with backups in a folder and tables in a database."""

    def open_here(store: Path, url: str) -> Nightly:
        store.mkdir(exist_ok=True)
        ws = Workspace.create(tmp_path / "ws", SETTINGS % (url, store), JOB)
        monkeypatch.chdir(ws.root)
        return Nightly(ws, url, store)

    return open_here


@pytest.fixture
def nightly(opened: Opened, tmp_path: Path, filled: str) -> Nightly:
    return opened(tmp_path / "store", filled)


# Out ----------------------------------------------------------------------------------------------------------------

PIECES = [
    '"',
    "\n",
    "\r",
    "\r\n",
    "\\.",
    "\n\\.\n",
    ",",
    "\\N",
    "'",
    "\t",
    " ",
    "NULL",
    "\x01",
    "🙂",
    "e\u0301",
    "\uffff",
    "{}",
]
SIGNS = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(SIGNS, max_size=5), max_size=6).map("".join)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
F32 = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.401298464324817e-45, -1.1754942106924411e-38, 3.4028234663852886e38, 0.1]
)
F16 = st.floats(width=16, allow_nan=False, allow_infinity=False)


def lists(values: st.SearchStrategy[float]) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=3, max_size=3).map(lambda item: "[" + ",".join(map(repr, item)) + "]")


ROWS = st.lists(
    st.fixed_dictionaries({
        "a_text": st.none() | TEXTS,
        "a_varchar": st.none() | TEXTS,
        "a_json": st.none() | JSONS.map(lambda item: f'{{"k": {json.dumps(item)},  "k":1}}'),
        "a_jsonb": st.none() | JSONS.map(json.dumps),
        "a_vector": st.none() | lists(F32),
        "a_halfvec": st.none() | lists(F16),
        "a_sparsevec": st.none()
        | st.dictionaries(st.integers(1, 5), F32.filter(bool), max_size=5).map(
            lambda item: "{" + ",".join(f"{key}:{value!r}" for key, value in sorted(item.items())) + "}/5"
        ),
        "a_bit": st.none() | st.text("01", min_size=5, max_size=5),
        "a_double": st.none() | st.floats(),
        "a_real": st.none() | F32,
        "a_bytea": st.none() | st.binary(max_size=20),
        "a_numeric": st.none() | st.decimals(allow_nan=False, allow_infinity=False),
        "a_uuid": st.none() | st.uuids(),
        "an_array": st.none() | st.lists(st.none() | TEXTS, max_size=3),
        "a_time": st.none()
        | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5.75))])).filter(
            lambda item: 1 < item.year < 9999
        ),
    }),
    min_size=1, max_size=4,
)  # fmt: skip
TYPES = {
    "a_text": "text", "a_varchar": "varchar", "a_json": "json", "a_jsonb": "jsonb", "a_vector": "vector(3)",
    "a_halfvec": "halfvec(3)", "a_sparsevec": "sparsevec(5)", "a_bit": "bit(5)", "a_double": "double precision",
    "a_real": "real", "a_bytea": "bytea", "a_numeric": "numeric", "a_uuid": "uuid", "an_array": "text[]",
    "a_time": "timestamptz",
}  # fmt: skip


def bits(text: str, kind: type[np.floating[Any]]) -> bytes:
    """The numbers of a vector as their bits."""
    return np.array([float(item) for item in text.strip("[]").split(",")], kind).tobytes()


def sparse_bits(text: str) -> list[tuple[str, bytes]]:
    inside = text.partition("}")[0].strip("{")
    return [
        (key, bits(value, np.float32)) for key, _, value in (item.partition(":") for item in inside.split(",") if item)
    ]


def same(name: str, given: Any, text: str | None) -> bool:
    """Whether the text of a field stands for exactly the value that was given."""
    if given is None or text is None:
        return given is None and text is None
    match name:
        case "a_vector":
            return bits(given, np.float32) == bits(text, np.float32)
        case "a_halfvec":
            return bits(given, np.float16) == bits(text, np.float16)
        case "a_sparsevec":
            return sparse_bits(given) == sparse_bits(text)
        case "a_jsonb":
            return bool(json.loads(given) == json.loads(text))
        case "a_double":
            return (math.isnan(given) and text == "NaN") or np.float64(text).tobytes() == np.float64(given).tobytes()
        case "a_real":
            return bits(repr(given), np.float32) == bits(text, np.float32)
        case "a_bytea":
            return bool(text == "\\x" + given.hex())
        case "a_numeric":
            return bool(type(given)(text) == given)
        case "a_time":
            return bool(type(given).fromisoformat(text) == given)
        case "an_array":
            raise AssertionError("compared by the server")
        case _:
            return bool(text == str(given))


@pytest.fixture
def zoo(pg_database: str) -> str:
    """A database with the table, whose own settings write values otherwise."""
    name = pg_database.partition("?")[0].rpartition("/")[2]
    servers.sql(
        pg_database,
        f"CREATE TABLE zoo ({', '.join(f'{name} {kind}' for name, kind in TYPES.items())})",
        *(
            f"ALTER DATABASE {name} SET {setting}"
            for setting in (
                "datestyle = 'German'", "extra_float_digits = -5", "timezone = 'Asia/Kathmandu'", "bytea_output = 'escape'"
            )
        ),
    )  # fmt: skip
    return pg_database


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_every_value_comes_out_as_it_is(zoo: str, rows: list[dict[str, Any]]) -> None:
    with psycopg.connect(zoo, autocommit=True) as db:
        db.execute("TRUNCATE zoo")
        slots = ", ".join(f"%({name})s::{kind}" for name, kind in TYPES.items())
        db.cursor().executemany(f"INSERT INTO zoo VALUES ({slots})", rows)  # type: ignore[arg-type]
        (out,) = copied(Postgres(zoo), "zoo")
        got = parsed(out.data.decode())
        arrays = [item[1][[*TYPES].index("an_array")] for item in got[1:]]
        back = [db.execute("SELECT %s::text[]", (item,)).fetchone() for item in arrays]
    assert got[0][1] == [*TYPES]
    assert len(got) - 1 == len(rows) == out.tally.rows
    for given_row, (_raw, fields), array in zip(rows, got[1:], back, strict=True):
        for name, field in zip(TYPES, fields, strict=True):
            if name != "an_array":
                assert same(name, given_row[name], field), (name, given_row[name], field)
        assert array == (given_row["an_array"],)
    assert (out.tally.bytes, out.tally.sha256) == (len(out.data), hashlib.sha256(out.data).hexdigest())
    total = sum(int.from_bytes(hashlib.sha256(raw.encode()).digest()[:16], "big") for raw, _ in got[1:])
    assert out.tally.rows_digest == f"{total % 2**128:032x}"


def test_the_digest_of_rows_does_not_depend_on_their_order(pg_database: str) -> None:
    rows = "FROM generate_series(1, 20000) i ORDER BY"
    servers.sql(
        pg_database, f"CREATE TABLE up AS SELECT i, repeat('x', 60) t {rows} i",
        f"CREATE TABLE down AS SELECT i, repeat('x', 60) t {rows} -i", f"CREATE TABLE odd AS SELECT i + 1 AS i, repeat('x', 60) t {rows} i",
    )  # fmt: skip
    up, down, odd = copied(Postgres(pg_database), "up", "down", "odd")
    assert up.tally.bytes > 2**20, "in several pieces"
    assert up.tally.rows_digest == down.tally.rows_digest != odd.tally.rows_digest
    assert up.tally.sha256 != down.tally.sha256


def test_tables_of_odd_shapes(pg_database: str) -> None:
    servers.sql(
        pg_database,
        "CREATE TABLE none ()", "INSERT INTO none DEFAULT VALUES", "INSERT INTO none DEFAULT VALUES",
        "CREATE TABLE empty (a int, b text)",
        "CREATE TABLE wide (a text)", "INSERT INTO wide VALUES (repeat('w', 5000000)), (NULL), ('')",
        'CREATE TABLE "Odd ""name"", with é" ("Col ""1""" int, g int GENERATED ALWAYS AS ("Col ""1""" * 2) STORED)',
        'INSERT INTO "Odd ""name"", with é" VALUES (4)',
        "CREATE TABLE parted (a int, b text) PARTITION BY RANGE (a)",
        "CREATE TABLE parted1 PARTITION OF parted FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE parted2 (gone int, b text, a int)", "ALTER TABLE parted2 DROP COLUMN gone",
        "ALTER TABLE parted ATTACH PARTITION parted2 FOR VALUES FROM (10) TO (20)",
        "INSERT INTO parted SELECT i, 'x' FROM generate_series(0, 19) i",
    )  # fmt: skip
    postgres, odd = Postgres(pg_database), 'Odd "name", with é'
    none, empty, wide, named, parted = copied(postgres, "none", "empty", "wide", odd, "parted")
    assert (none.data, none.tally.rows) == (b"\n\n\n", 2)
    assert (empty.data, empty.tally.rows) == (b"a,b\n", 0)
    assert wide.tally.rows == 3
    assert [row[1] for row in parsed(wide.data.decode())[1:]] == [["w" * 5_000_000], [None], [""]]
    assert named.data == b'"Col ""1"""\n4\n'
    assert sorted(parsed(parted.data.decode())[1:]) == sorted((f"{i},x\n", [str(i), "x"]) for i in range(20))
    for out in (none, empty, wide, named, parted):
        described = postgres.describe(out.source.table)
        assert described is not None
        assert described.rows == out.tally.rows
        assert described.csv_bytes == pytest.approx(len(out.data), rel=0.2, abs=10)
    truncating.truncate(
        postgres, [item.kept for item in (none, wide, named, parted)], lambda _transaction: None, nullcontext
    )
    for out in (none, wide, named, parted):
        described = postgres.describe(out.source.table)
        assert described is not None
        assert described.rows == 0


def test_all_tables_are_of_one_moment(filled: str) -> None:
    """What is written meanwhile is in none of the files, and nobody can empty a table before it was read."""

    def meanwhile() -> None:
        servers.sql(
            filled, "INSERT INTO parents VALUES (9, 'new'); INSERT INTO points VALUES (900, 9, '[0,0,0]', 'new')"
        )
        servers.sql(filled, "UPDATE points SET document = 'changed' WHERE id = 1", "DELETE FROM points WHERE id = 2")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            servers.sql(filled, "SET lock_timeout = '50ms'; TRUNCATE points")

    parents, points = copied(Postgres(filled), "parents", "points", meanwhile=meanwhile)
    assert [row[1][0] for row in parsed(parents.data.decode())[1:]] == ["1", "2", "3"]
    rows = {row[1][0]: row[1][3] for row in parsed(points.data.decode())[1:]}
    assert rows == {str(i): f"d{i}" for i in range(1, 201)}


def test_a_load_that_is_under_way_is_waited_for(filled: str) -> None:
    """TRUNCATE is seen at once by older snapshots, the rows that follow it are not: between them a table looks empty."""
    with psycopg.connect(filled) as loader, ThreadPoolExecutor(1) as pool:
        loader.execute("TRUNCATE points")
        loader.execute("INSERT INTO points VALUES (1, 1, '[0,0,0]', 'loaded'), (2, 1, '[0,0,0]', 'loaded')")
        asked = pool.submit(copied, Postgres(filled), "parents", "points")
        with psycopg.connect(filled, autocommit=True) as watcher:
            while watcher.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is None:
                assert not asked.done()
        loader.commit()
        assert [item.tally.rows for item in asked.result(60)] == [3, 2]


def test_who_waits_to_empty_a_table_does_not_stop_the_backup(filled: str) -> None:
    """He waits for the snapshot; whoever asks for the table after him would wait for him."""
    with ThreadPoolExecutor(1) as pool:
        asked = []

        def meanwhile() -> None:
            asked.append(pool.submit(servers.sql, filled, "SET lock_timeout = '60s'", "TRUNCATE points"))
            with psycopg.connect(filled, autocommit=True) as watcher:
                while watcher.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is None:
                    assert not asked[0].done()

        parents, points = copied(Postgres(filled), "parents", "points", meanwhile=meanwhile)
        assert [parents.tally.rows, points.tally.rows] == [3, 200]
        asked[0].result(60)
    assert copied(Postgres(filled), "points")[0].tally.rows == 0


def test_a_table_that_cannot_be_read_stops_no_other(filled: str) -> None:
    servers.sql(
        filled, "DROP ROLE IF EXISTS clerk", "CREATE ROLE clerk LOGIN", "GRANT SELECT ON parents, points TO clerk",
        "CREATE TABLE secret (a int)", "GRANT SELECT (a) ON secret TO clerk",
        "ALTER TABLE points ENABLE ROW LEVEL SECURITY", "CREATE POLICY few ON points USING (id < 100)",
        "CREATE VIEW seen AS SELECT * FROM parents", "GRANT SELECT ON seen TO clerk",
    )  # fmt: skip
    try:
        clerk = Postgres(filled.replace("postgres:@", "clerk:@"))
        with copying.snapshot(clerk, ("secret", "nowhere", "points", "seen", "parents")) as shared:
            errors = {item.table: item.error for item in shared.sources}
        summaries = {table: error.summary if error else "" for table, error in errors.items()}
        assert summaries == {
            "secret": "The login lacks a right", "nowhere": "No such table",
            "points": "Row level security hides rows from this login", "seen": "Only tables are backed up", "parents": "",
        }  # fmt: skip
        found = clerk.describe("points")
        assert found is not None
        assert (set(found.rights), found.rows, found.shape.hidden_rows) == ({"select"}, None, True)
    finally:
        servers.sql(filled, "DROP OWNED BY clerk", "DROP ROLE clerk")


# Emptied ------------------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, ...]] = {
    "inserted": ("INSERT INTO points VALUES (900, 1, '[0,0,0]', 'new')",),
    "updated": ("UPDATE points SET document = 'other' WHERE id = 7",),
    "updated to the same": ("UPDATE points SET document = document WHERE id = 7",),
    "updated in a savepoint": (
        "BEGIN; SAVEPOINT a; UPDATE points SET document = 'other' WHERE id = 7; RELEASE a; COMMIT",
    ),
    "deleted": ("DELETE FROM points WHERE id = 7",),
    "one out, one in": ("DELETE FROM points WHERE id = 7; INSERT INTO points VALUES (900, 1, '[0,0,0]', 'new')",),
    "out, and in again the same": (
        "BEGIN; CREATE TEMP TABLE aside AS SELECT * FROM points WHERE id = 7; DELETE FROM points WHERE id = 7",
        "INSERT INTO points SELECT * FROM aside; COMMIT",
    ),
    "loaded anew": (
        "BEGIN; CREATE TEMP TABLE aside AS SELECT * FROM points; TRUNCATE points",
        "INSERT INTO points SELECT * FROM aside; COMMIT",
    ),
    "emptied": ("DELETE FROM points",),
    "made anew": (
        "CREATE TABLE aside AS SELECT * FROM points",
        "DROP TABLE points",
        "ALTER TABLE aside RENAME TO points",
    ),
    "another column": ("ALTER TABLE points ADD COLUMN more int DEFAULT 5",),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_emptied_after_a_change(filled: str, change: str) -> None:
    postgres = Postgres(filled)
    (points,) = copied(postgres, "points")
    servers.sql(filled, *CHANGES[change])
    before = copied(postgres, "points")[0].data
    with pytest.raises(truncating.Changed, match="points") as caught:
        truncating.truncate(postgres, [points.kept], lambda _transaction: None, nullcontext)
    assert "Nothing was emptied" in caught.value.hint
    assert copied(postgres, "points")[0].data == before


def test_what_a_savepoint_wrote_while_the_backup_began_is_not_emptied(filled: str) -> None:
    """Its transaction has a lower number than the newest that the snapshot saw end, its row another number, and the count is
    the same: only the rows themselves tell."""
    postgres = Postgres(filled)
    with psycopg.connect(filled) as writer:
        writer.execute("SELECT txid_current()")
        writer.execute("SAVEPOINT a")
        writer.execute("UPDATE points SET document = 'other' WHERE id = 7")
        writer.execute("RELEASE a")
        servers.sql(filled, "UPDATE points SET document = 'seen' WHERE id = 8")  # a later one, which the backup has
        (points,) = copied(postgres, "points")
        writer.commit()
    with pytest.raises(truncating.Changed, match="some were changed"):
        truncating.truncate(postgres, [points.kept], lambda _transaction: None, nullcontext)


def test_what_changes_no_row_hinders_nothing(filled: str) -> None:
    postgres = Postgres(filled)
    (points,) = copied(postgres, "points")
    servers.sql(filled, "VACUUM (FREEZE) points", "ANALYZE points", "BEGIN; SELECT * FROM points FOR UPDATE; COMMIT")
    servers.sql(
        filled, "BEGIN; UPDATE points SET document = 'x'; ROLLBACK", "VACUUM points", "CREATE INDEX ON points (parent)"
    )
    noted: list[str] = []
    truncating.truncate(postgres, [points.kept], noted.append, nullcontext)
    assert truncating.outcome(postgres, noted[0]) == "committed"
    assert truncating.outcome(postgres, "999999999999") == ""
    assert copied(postgres, "points")[0].tally.rows == 0


def test_a_table_that_others_refer_to_is_emptied_only_with_them(filled: str) -> None:
    postgres = Postgres(filled)
    parents, points = copied(postgres, "parents", "points")
    with pytest.raises(Permanent, match=r"public\.parents: public\.points"):
        truncating.truncate(postgres, [parents.kept], lambda _transaction: None, nullcontext)
    found = postgres.describe("parents")
    assert found is not None
    assert [(item.table, item.on_delete, item.rows) for item in found.shape.referenced_by] == [
        ("public.points", "no action", 200)
    ]
    truncating.truncate(postgres, [parents.kept, points.kept], lambda _transaction: None, nullcontext)
    assert [item.tally.rows for item in copied(postgres, "parents", "points")] == [0, 0]


def test_a_lock_that_cannot_be_had_and_a_trigger_that_fills(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres = Postgres(filled)
    (points,) = copied(postgres, "points")
    monkeypatch.setattr(truncating, "_LOCK_TIMEOUT", "100ms")
    with psycopg.connect(filled) as reader:
        reader.execute("SELECT * FROM points LIMIT 1")
        with pytest.raises(Permanent, match="A lock could not be had in time"):
            truncating.truncate(postgres, [points.kept], lambda _transaction: None, nullcontext)
    servers.sql(
        filled,
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO points VALUES (1); RETURN NULL; "
        "END $$",
        "CREATE TRIGGER fill AFTER TRUNCATE ON points EXECUTE FUNCTION fill()",
    )
    with pytest.raises(Permanent, match="Rows remain"):
        truncating.truncate(postgres, [points.kept], lambda _transaction: None, nullcontext)
    assert copied(postgres, "points")[0].tally.rows == 200


# The whole job ------------------------------------------------------------------------------------------------------


def test_a_backup_and_what_it_tells(nightly: Nightly) -> None:
    done = run("apply", nightly.ws.job, "--auto-approve", "--json")
    assert done.exit_code == 0, done.output
    (backup,) = nightly.backups()
    assert nightly.files() == nightly.expected_files()
    assert {item.file for item in backup.tables} == {f"parents_{backup.id}.csv", f"points_{backup.id}.csv"}
    for item in backup.tables:
        data = (nightly.folder / item.file).read_bytes()
        assert (item.bytes, item.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert item.rows == len(parsed(data.decode())) - 1
    assert (nightly.count("parents"), nightly.count("points")) == (3, 0)
    with nightly.ws.context().ledger(reading=True) as ledger:
        lines = ledger.read_log(backup.run)
    told = next(line["details"] for line in lines if line["message"] == f"backup {backup.id}: complete")
    assert [(item["table"], item["row_count"], item["file_size"], item["backup_file"]) for item in told["tables"]] == [
        (item.table, item.rows, item.bytes, item.file) for item in backup.tables
    ]
    assert (told["rows"], told["backup_directory"]) == (203, "backups/nightly/vector_bak")
    log = nightly.log()
    for words in (
        f"backup {backup.id}, task nightly, run {backup.run}", "result: complete", "duration: ", "table parents: 3 rows",
        f"table points: 200 rows, {backup.tables[1].bytes:,} bytes, points_{backup.id}.csv",
        "table points: 200 rows before, 0 after",
    ):  # fmt: skip
        assert words in log


def test_a_dry_run_writes_and_empties_nothing(nightly: Nightly) -> None:
    done = run("apply", nightly.ws.job, "--dry-run")
    assert done.exit_code == 0, done.output
    assert not nightly.folder.exists()
    assert nightly.count() == 200


@pytest.mark.parametrize(
    "at",
    [
        "back_up_tables:written",
        "back_up_tables:manifest",
        pytest.param("back_up_tables:table", marks=pytest.mark.long),
        pytest.param("back_up_tables:recorded", marks=pytest.mark.long),
        pytest.param("truncate_tables:locked", marks=pytest.mark.long),
        "truncate_tables:truncated",
        pytest.param("truncate_tables:after", marks=pytest.mark.long),
    ],
)
def test_killed_and_gone_on_with(nightly: Nightly, at: str) -> None:
    died = nightly.ws.process(*APPLY, env={"VECRUN_CRASH_AT": at})
    assert died.returncode == -9, died.stderr
    assert nightly.count() == (0 if at == "truncate_tables:after" else 200)
    went_on = run("resume", "nightly")
    assert went_on.exit_code == 0, went_on.output
    assert nightly.count() == 0
    assert nightly.files() == nightly.expected_files(), "nothing is left of the first attempt that no manifest names"
    backup = nightly.backups()[-1]
    assert (backup.whole, [item.rows for item in backup.tables]) == (True, [3, 200])
    assert nightly.log().count(f"truncate after backup {backup.id}") == 1


def test_what_was_loaded_after_the_truncation_stays(nightly: Nightly) -> None:
    """Killed between the commit and the record of it; then somebody loads. To go on does not empty it a second time."""
    died = nightly.ws.process(*APPLY, env={"VECRUN_CRASH_AT": "truncate_tables:committed"})
    assert died.returncode == -9, died.stderr
    assert nightly.count() == 0
    servers.sql(nightly.url, "INSERT INTO points VALUES (1, 1, '[0,0,0]', 'loaded since')")
    went_on = run("resume", "nightly")
    assert went_on.exit_code == 0, went_on.output
    assert nightly.count() == 1


def test_stopped_halfway_and_gone_on_with(nightly: Nightly) -> None:
    servers.sql(nightly.url, "INSERT INTO parents SELECT i, repeat('x', 1900) FROM generate_series(10, 60000) i")
    with nightly.ws.start(*APPLY) as process:
        while not list(nightly.store.glob("nightly/vector_bak/parents_*.tmp")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert {name.partition("_")[0] for name in nightly.files()} <= {"claim"}
    assert nightly.count() == 200
    went_on = run("resume", "nightly")
    assert went_on.exit_code == 0, went_on.output
    assert (nightly.count(), nightly.files()) == (0, nightly.expected_files())


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": damage_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(item, marks=[] if item == "a bit" else [pytest.mark.long]) for item in DAMAGES]
)
def test_nothing_is_emptied_when_the_backup_was_damaged_since(nightly: Nightly, damage: str) -> None:
    died = nightly.ws.process(*APPLY, env={"VECRUN_CRASH_AT": "back_up_tables:recorded"})
    assert died.returncode == -9, died.stderr
    DAMAGES[damage](next(nightly.folder.glob("points_*.csv")))
    refused = run("resume", "nightly")
    assert refused.exit_code == 1, refused.output
    assert "A file of a backup is" in refused.output
    assert nightly.count() == 200
    assert "FAILED, nothing was emptied" in nightly.log()


def test_nothing_is_emptied_when_a_row_came_after_the_backup(nightly: Nightly) -> None:
    died = nightly.ws.process(*APPLY, env={"VECRUN_CRASH_AT": "back_up_tables:recorded"})
    assert died.returncode == -9, died.stderr
    servers.sql(nightly.url, "INSERT INTO points VALUES (900, 1, '[0,0,0]', 'new')")
    refused = run("resume", "nightly")
    assert refused.exit_code == 1, refused.output
    assert "200 rows in the backup, 201 now" in refused.output
    assert nightly.count() == 201
    assert "vecrun resume nightly" in refused.output
    assert nightly.count() == 201
    again = run("apply", nightly.ws.job, "--auto-approve")  # the next night: a new backup, with the new row
    assert again.exit_code == 0, again.output
    assert (nightly.count(), [item.rows for item in nightly.backups()[-1].tables]) == (0, [3, 201])


def test_a_login_that_may_empty_and_not_fill_again_is_told(opened: Opened, tmp_path: Path, filled: str) -> None:
    servers.sql(
        filled, "CREATE ROLE empties LOGIN", "GRANT SELECT, TRUNCATE ON ALL TABLES IN SCHEMA public TO empties",
        "GRANT USAGE, CREATE ON SCHEMA public TO empties",
    )  # fmt: skip
    try:
        url = filled.replace("postgres:@", "empties:@")
        told = run("plan", opened(tmp_path / "to", url).ws.job)
        assert "GRANT INSERT ON public.points before it is needed" in told.output
    finally:
        servers.sql(filled, "DROP OWNED BY empties", "DROP ROLE empties")


def test_a_table_that_fails_halfway_stops_no_other_and_nothing_is_emptied(nightly: Nightly) -> None:
    servers.sql(
        nightly.url, "CREATE TYPE colour AS ENUM ('red', 'blue')", "ALTER TABLE parents ADD COLUMN colour colour",
        "INSERT INTO parents SELECT i, repeat('x', 90), 'red' FROM generate_series(10, 30000) i",
        "INSERT INTO parents VALUES (99999, 'last', 'blue')",
        "DELETE FROM pg_enum WHERE enumlabel = 'blue'",  # a value that the server cannot write any more
    )  # fmt: skip
    failed = run("apply", nightly.ws.job, "--auto-approve")
    assert failed.exit_code == 3, failed.output
    assert "1 of 2 tables could not be backed up" in failed.output
    assert "The others are kept" in failed.output
    assert "invalid internal value for enum" in failed.output
    (backup,) = nightly.backups()
    parents, points = backup.tables
    assert "invalid internal value" in parents.error
    assert (parents.file, points.rows, points.error) == ("", 200, "")
    assert nightly.files() == nightly.expected_files(), "no temporary file, and no half one"
    assert hashlib.sha256((nightly.folder / points.file).read_bytes()).hexdigest() == points.sha256
    assert nightly.count() == 200
    assert "table parents: FAILED" in nightly.log()
    servers.sql(nightly.url, "DELETE FROM parents WHERE id = 99999")  # mended
    went_on = run("resume", "nightly")
    assert went_on.exit_code == 0, went_on.output
    assert (nightly.count(), len(nightly.backups())) == (0, 2)


def test_a_right_that_is_gone_by_then(opened: Opened, tmp_path: Path, filled: str) -> None:
    servers.sql(
        filled,
        "CREATE ROLE keeper LOGIN",
        "GRANT SELECT ON parents TO keeper",
        "GRANT SELECT, TRUNCATE ON points TO keeper",
    )
    try:
        nightly = opened(tmp_path / "store", filled.replace("postgres:@", "keeper:@"))
        died = nightly.ws.process(*APPLY, env={"VECRUN_CRASH_AT": "back_up_tables:recorded"})
        assert died.returncode == -9, died.stderr
        servers.sql(filled, "REVOKE TRUNCATE ON points FROM keeper")
        refused = run("resume", "nightly")
        assert refused.exit_code == 1, refused.output
        assert "The login lacks a right" in refused.output
        assert nightly.count() == 200
    finally:
        servers.sql(filled, "DROP OWNED BY keeper", "DROP ROLE keeper")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small(opened: Opened, tmp_path: Path, small_disk: Path, filled: str) -> None:
    nightly = opened(small_disk, filled)
    planned = run("plan", nightly.ws.job, "-o", tmp_path / "plan.json")
    assert planned.exit_code == 0, planned.output
    (small_disk / "other").write_bytes(bytes(3_300_000))  # by now the estimate does not fit any more
    refused = run("apply", tmp_path / "plan.json", "--auto-approve")
    assert refused.exit_code == 1, refused.output
    assert "There is not enough room for the backup" in refused.output
    assert "give the run up: vecrun rollback nightly. Then vecrun gc" in refused.output
    assert not nightly.folder.exists()
    assert nightly.count() == 200


def test_a_disk_that_is_full_halfway(opened: Opened, small_disk: Path, filled: str) -> None:
    """One row is larger than all others together, so that no sample sees it."""
    servers.sql(
        filled, "INSERT INTO parents SELECT i, 'p' FROM generate_series(10, 60000) i",
        "INSERT INTO parents SELECT 99999, string_agg(md5(i::text), '') FROM generate_series(1, 150000) i",
    )  # fmt: skip
    nightly = opened(small_disk, filled)
    failed = run("apply", nightly.ws.job, "--auto-approve")
    assert failed.exit_code == 3, failed.output
    assert "The disk is full" in failed.output
    (backup,) = nightly.backups()
    assert [bool(item.error) for item in backup.tables] == [True, False]
    assert nightly.files() == nightly.expected_files()
    assert nightly.count() == 200


def test_into_s3(tmp_path: Path, filled: str, s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"b{tmp_path.name[-20:].replace('_', '-')}x".lower()
    s3.client().create_bucket(Bucket=bucket)
    values = s3.connection(bucket)
    for name in ("access_key_id", "secret_access_key"):
        monkeypatch.setenv(name.upper(), values[name])
        values[name] = f"${{env:{name.upper()}}}"
    connection = json.dumps(values)
    ws = Workspace.create(
        tmp_path / "ws", SETTINGS.replace('{type: folder, path: "%s"}', "%s") % (filled, connection), JOB
    )
    monkeypatch.chdir(ws.root)
    servers.sql(filled, "INSERT INTO parents SELECT i, repeat('y', 100) FROM generate_series(10, 60000) i")
    done = run("apply", ws.job, "--auto-approve")
    assert done.exit_code == 0, done.output
    keys = [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert sorted(re.sub(r"_\d{8}_\d{6}", "", key) for key in keys) == [
        f"nightly/vector_bak/{name}" for name in ("backup.json", "parents.csv", "points.csv", "vector_backup_log.txt")
    ]
    servers.sql(
        filled, "CREATE TYPE colour AS ENUM ('red', 'blue')", "ALTER TABLE parents ADD COLUMN colour colour",
        "INSERT INTO parents VALUES (99999, 'last', 'blue')", "DELETE FROM pg_enum WHERE enumlabel = 'blue'",
        "INSERT INTO points VALUES (1, 1, '[0,0,0]', 'new')",
    )  # fmt: skip
    failed = run("apply", ws.job, "--auto-approve")
    assert failed.exit_code == 3, failed.output
    assert "invalid internal value for enum" in failed.output, "the error of the database, not of the storage"
    more = [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert not [key for key in set(more) - set(keys) if "parents" in key]
