"""Versions in the user's rows and the model info of a knowledge base (issue 4): never wrong while vectors change, only the
rows of points that are tried, and back exactly as they stood, in SQLite and PostgreSQL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from runner.embedders.hash import hash_vectors
from runner.points import CollectionSchema, Distance, IdKind, Payloads, PointBatch, VectorField
from tests.e2e.knowledge import BEFORE, OLD, Knowledge, Server, old_vectors, text_of
from tests.e2e.workspace import Workspace, run

MADE = "hash:plain:8"


class Tables:
    """The relational side, whichever database it is."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)

    def do(self, *statements: str) -> list[Any]:
        """Rows of the last one."""
        with self.engine.begin() as connection:
            for statement in statements:
                found = connection.exec_driver_sql(statement)
            return [tuple(row) for row in found] if found.returns_rows else []

    def names(self) -> set[str]:
        return set(sa.inspect(self.engine).get_table_names())


@pytest.fixture
def kb(ws: Workspace) -> Knowledge:
    made = Knowledge(ws, Server("http://127.0.0.1:1"))
    made.models["plain"] = {"provider": "hash", "model": "plain", "dimension": OLD}
    made.configure()
    return made


@pytest.fixture(params=["sqlite", "postgresql"])
def tables(request: pytest.FixtureRequest, kb: Knowledge) -> Tables:
    """Without tables yet; the workspace's connection `app`."""
    if request.param == "sqlite":
        return Tables(f"sqlite:///{kb.ws.root}/app.db")
    url = str(request.getfixturevalue("pg_database"))
    kb.configure(connections={"kb": kb.connection, "app": {"type": "sql", "url": url}})
    return Tables(url)


def job(kb: Knowledge, name: str = "change", **spec: Any) -> None:
    kb.job(name, **{"model": "plain", "knowledge_base": None, "cutover": None, "to": "docs_new"} | spec)


def done(*args: str, status: int = 0) -> str:
    found = run(*args)
    assert found.exit_code == status, found.stdout + found.stderr
    return found.stdout


def notices(kb: Knowledge) -> list[dict[str, Any]]:
    """What the plan says."""
    found: list[dict[str, Any]] = json.loads(done("plan", "jobs/change.yaml", "--json"))["plan"]["notices"]
    return found


def chunks(tables: Tables, rows: Sequence[tuple[str, str]], columns: str, before: str = BEFORE) -> None:
    """The table chunks, with rows of (vector id, text)."""
    values = ", ".join(f"({n}, '{one}', '{text}', '{before}')" for n, (one, text) in enumerate(rows))
    tables.do(f"CREATE TABLE chunks ({columns})", f"INSERT INTO chunks VALUES {values}")


# -- whose rows --------------------------------------------------------------------------------------------------------


def test_a_second_try_touches_its_own_rows_alone(kb: Knowledge) -> None:
    """What others have set since the run stays: in rows of its points, and of other collections in the same table."""
    kb.fill({f"p{n}": text_of(n) for n in range(5)} | {"bad": "", "worse": ""})
    with kb.database() as db:
        db.execute("INSERT INTO chunks (vector_id, embedding_model_version) VALUES ('z1', 'first'), ('z2', 'first')")
    job(kb, failures={"allow": 2})
    done("apply", "jobs/change.yaml", "--auto-approve", status=3)
    with kb.database() as db:
        db.execute("UPDATE chunks SET embedding_model_version = 'theirs' WHERE vector_id IN ('p0', 'z1')")
    before = kb.versions()
    kb.say({"bad": "mended"})
    done("retry-failed", "change", "--auto-approve", status=3)
    assert kb.versions() == before | {"bad": MADE}
    assert before["p0"] == before["z1"] == "theirs"
    assert (before["p1"], before["worse"], before["z2"]) == (MADE, BEFORE, "first")
    done("rollback", "change", "--auto-approve")
    wanted = dict.fromkeys(before, BEFORE) | {"p0": "theirs", "z1": "theirs", "z2": "first"}
    assert kb.versions() == wanted


@pytest.mark.parametrize("at", ["replace:opened", "settle_failures:written"])
@pytest.mark.parametrize("way", ["resume", "rollback"])
def test_a_second_try_that_is_killed(kb: Knowledge, at: str, way: str) -> None:
    """From before the vector is written its row carries no version, and after an undone try, too: nobody knows which."""
    kb.fill({f"p{n}": text_of(n) for n in range(5)} | {"bad": ""})
    before = kb.world()
    job(kb, failures={"allow": 1})
    done("apply", "jobs/change.yaml", "--auto-approve", status=3)
    assert kb.versions()["bad"] == BEFORE
    kb.say({"bad": "mended"})
    died = kb.ws.process("retry-failed", "change", "--auto-approve", env={"VECRUN_CRASH_AT": at})
    assert died.returncode == -9, died.stdout + died.stderr
    assert kb.versions()["bad"] is None
    assert ("bad" in kb.points("docs_new")) == (at == "settle_failures:written")
    if way == "resume":
        done("resume", "change")
        assert set(kb.versions().values()) == {MADE}
    else:
        done("rollback", "change", "--auto-approve", "--wait", "40s")
        assert kb.versions() == dict.fromkeys(kb.texts, MADE) | {"bad": None}
    done("rollback", "change", "--auto-approve")
    assert set(kb.versions().values()) == {BEFORE}
    assert kb.world()["tables"] == before["tables"]


def test_rows_that_come_while_vectors_are_replaced(kb: Knowledge) -> None:
    """An application adds a point and rewrites others with the old model meanwhile; killed at every write, no row says
    the old model of a new vector."""
    kb.fill(40)
    job(kb, strategy="replace", live={"bound": 0}, accept=[{"code": "VL202", "reason": "wanted"}], to=None)
    died = kb.ws.process(
        "apply", "jobs/change.yaml", "--auto-approve", env={"VECRUN_CRASH_AT": "replace_vectors:after_write:2"}
    )
    assert died.returncode == -9, died.stdout + died.stderr
    edited = {"a0": "an added text", "p000": "a rewritten text", "p039": "another one"}
    with kb.store() as store:
        store.upsert("docs", PointBatch(list(edited), {"": old_vectors(list(edited.values()))},
                                        Payloads([{"text": text} for text in edited.values()])))  # fmt: skip
    with kb.database() as db:
        db.execute("INSERT INTO chunks (vector_id, embedding_model_version) VALUES ('a0', ?)", (BEFORE,))
        db.execute("UPDATE chunks SET embedding_model_version = ? WHERE vector_id IN ('p000', 'p039')", (BEFORE,))
    kb.texts.update(edited)
    met = False
    for _ in range(20):
        found = kb.ws.process(
            "resume", "change", "--wait", "40s", env={"VECRUN_CRASH_AT": "replace_vectors:after_write"}
        )
        held, says = kb.points("docs"), kb.versions()
        for one, text in kb.texts.items():
            new = hash_vectors([text], OLD, "plain")[0].tobytes() == held[one][0].tobytes()
            assert says[str(one)] != (BEFORE if new else MADE), one
            met |= new and one in edited
        if found.returncode == 0:
            break
        assert found.returncode == -9, found.stdout + found.stderr
    assert met
    assert set(kb.versions().values()) == {MADE}
    done("rollback", "change", "--auto-approve")
    assert set(kb.versions().values()) == {BEFORE}


# -- the model info, letter for letter ---------------------------------------------------------------------------------


INFOS = (None, "", "null", '{ "b": 1,\n "a" : 2.50, "b2": "ü" }', '{"version": "1"}')
#: (database, type of the column, what it can hold). An empty text is JSON for SQLite alone.
STANDING = [
    (database, kind, info)
    for database in ("sqlite", "postgresql")
    for kind in ("TEXT NOT NULL", "TEXT", "JSON", "JSON NOT NULL", "JSONB")
    for info in INFOS
    if not (info is None and "NOT NULL" in kind) and not (info == "" and "JSON" in kind and database == "postgresql")
]


@pytest.mark.parametrize(("tables", "kind", "info"), STANDING, indirect=["tables"])
def test_the_info_comes_back_letter_for_letter(kb: Knowledge, tables: Tables, kind: str, info: str | None) -> None:
    kb.fill(3)
    given = "NULL" if info is None else f"'{info}'"
    tables.do(
        "DROP TABLE IF EXISTS knowledge_bases",
        f"CREATE TABLE knowledge_bases (id INTEGER PRIMARY KEY, embedding_model_info {kind})",
        f"INSERT INTO knowledge_bases VALUES (1, {given})",
    )
    stands = "SELECT CAST(embedding_model_info AS TEXT), embedding_model_info IS NULL FROM knowledge_bases"
    before = tables.do(stands)
    job(kb, documents=None, knowledge_base={"connection": "app", "id": 1})
    done("apply", "jobs/change.yaml", "--auto-approve")
    assert json.loads(tables.do(stands)[0][0])["version"] == MADE
    done("rollback", "change", "--auto-approve")
    assert tables.do(stands) == before


# -- columns that give back another form -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "kind", "version"),
    [("postgresql", "CHAR(10)", "CHAR(40)"), ("sqlite", "TEXT COLLATE NOCASE", "VARCHAR(40)")], indirect=["tables"],
)  # fmt: skip
def test_ids_in_another_form(kb: Knowledge, tables: Tables, kind: str, version: str) -> None:
    """char(n) pads ids and versions with blanks; a collation that takes no notice of case gives back other letters."""
    texts = {f"p{n:03}": text_of(n) for n in range(20)}
    kb.fill(texts)
    tables.do("DROP TABLE IF EXISTS chunks")
    rows = [(one.upper() if "NOCASE" in kind else one, text) for one, text in texts.items()]
    chunks(tables, rows, f"id INTEGER PRIMARY KEY, vector_id {kind}, content TEXT, embedding_model_version {version}")
    before = tables.do("SELECT * FROM chunks ORDER BY id")
    job(kb, strategy="incremental", text={"column": "content"}, to=None)
    done("apply", "jobs/change.yaml", "--auto-approve")
    says = {row[0].strip() for row in tables.do("SELECT embedding_model_version FROM chunks")}
    assert says == {MADE}
    held = kb.points("docs")
    for one, text in texts.items():
        assert held[one][0].tobytes() == hash_vectors([text], OLD, "plain")[0].tobytes()
    done("plan", "jobs/change.yaml", "--detailed-exitcode")  # nothing has changed
    tables.do("UPDATE chunks SET content = 'edited in the table' WHERE id = 4")
    done("plan", "jobs/change.yaml", "--detailed-exitcode", status=2)
    tables.do(f"UPDATE chunks SET content = '{texts['p004']}' WHERE id = 4")
    done("rollback", "change", "--auto-approve")
    assert tables.do("SELECT * FROM chunks ORDER BY id") == before


def test_columns_without_a_type(kb: Knowledge) -> None:
    """SQLite: an undo table holds what such a column holds, as it is: integers as keys, and versions."""
    tables = Tables(f"sqlite:///{kb.ws.root}/app.db")
    texts = {f"p{n}": text_of(n) for n in range(5)}
    kb.fill(texts)
    tables.do("DROP TABLE chunks")
    chunks(tables, list(texts.items()), "id, vector_id, content, embedding_model_version")
    before = kb.world()
    job(kb)
    done("apply", "jobs/change.yaml", "--auto-approve")
    assert set(kb.versions().values()) == {MADE}
    done("rollback", "change", "--auto-approve")
    assert kb.world() == before


# -- what a plan refuses, and says -------------------------------------------------------------------------------------

PLAIN = "id INTEGER PRIMARY KEY, vector_id TEXT, content TEXT, embedding_model_version TEXT"
FOREIGN = (
    f"{PLAIN} REFERENCES models (name)",
    ("CREATE TABLE models (name VARCHAR(40) PRIMARY KEY)", f"INSERT INTO models VALUES ('{BEFORE}')"),
    f"models.name, which has no '{MADE}'",
    f"INSERT INTO models VALUES ('{MADE}')",
)


@pytest.mark.parametrize(
    ("tables", "columns", "beside", "reason", "mend"),
    [
        ("sqlite", *FOREIGN),
        ("postgresql", *FOREIGN),
        ("sqlite", "id INTEGER, vector_id TEXT, content TEXT, embedding_model_version TEXT", (),
         "chunks.id does not tell rows apart: 5 rows, 4 values", "UPDATE chunks SET id = 77 WHERE vector_id = 'p4'"),
        ("postgresql", "id INTEGER PRIMARY KEY, vector_id TEXT, content TEXT, embedding_model_version made_by",
         (f"CREATE TYPE made_by AS ENUM ('{BEFORE}')",), f"which has no label '{MADE}'",
         f"ALTER TYPE made_by ADD VALUE '{MADE}'"),
    ],
    ids=["a foreign key", "a foreign key, PostgreSQL", "an id that is not one", "an enum"], indirect=["tables"],
)  # fmt: skip
def test_a_column_that_cannot_say_it(
    kb: Knowledge, tables: Tables, columns: str, beside: Sequence[str], reason: str, mend: str
) -> None:
    """VX208 tells why; once that is mended the change goes through and back."""
    texts = {f"p{n}": text_of(n) for n in range(5)}
    kb.fill(texts)
    tables.do("DROP TABLE IF EXISTS chunks", *beside)
    chunks(tables, list(texts.items()), columns)
    if "tell rows apart" in reason:
        tables.do("UPDATE chunks SET id = 3 WHERE vector_id = 'p4'")
    job(kb)
    found = next(item for item in notices(kb) if item["code"] == "VX208")
    assert reason in found["message"]
    assert found["blocking"]
    tables.do(mend)
    before, names = tables.do("SELECT * FROM chunks ORDER BY vector_id"), tables.names()
    done("apply", "jobs/change.yaml", "--auto-approve")
    assert tables.do("SELECT DISTINCT embedding_model_version FROM chunks") == [(MADE,)]
    done("rollback", "change", "--auto-approve")
    assert tables.do("SELECT * FROM chunks ORDER BY vector_id") == before
    assert tables.names() == names


def test_rows_of_other_collections_are_told(kb: Knowledge) -> None:
    """VI116, only where the table names more points than there are, and nothing limits it to the collection."""
    kb.fill(5)
    job(kb)
    assert "VI116" not in {item["code"] for item in notices(kb)}
    with kb.database() as db:
        db.execute("ALTER TABLE chunks ADD COLUMN of TEXT DEFAULT 'docs'")
        db.execute("INSERT INTO chunks (vector_id, of) VALUES ('z1', 'other')")
    found = next(item for item in notices(kb) if item["code"] == "VI116")
    assert not found["blocking"]
    assert "chunks names 6 points, and kb/docs has 5" in found["message"]
    documents = {"connection": "app", "table": "chunks", "version_column": "embedding_model_version"}
    job(kb, documents=documents | {"collection_column": "of"})
    assert "VI116" not in {item["code"] for item in notices(kb)}


def test_one_of_several_vectors(kb: Knowledge) -> None:
    """VI115: the version column speaks of one of them."""
    kb.fill(2)
    vectors = tuple(VectorField(name=name, dimension=OLD, distance=Distance.EUCLID) for name in ("title", "body"))
    schema = CollectionSchema(name="two", id_kind=IdKind.STRING, vectors=vectors)
    with kb.store() as store:
        store.create(schema)
        matrix = old_vectors(["a text"])
        store.upsert("two", PointBatch(["p0"], {"title": matrix, "body": matrix}, Payloads([{"text": "a text"}])))
        store.finish(schema)
    job(kb, collection="two", vector="body", to="two_new")
    found = next(item for item in notices(kb) if item["code"] == "VI115")
    assert not found["blocking"]
    assert "speaks of the vector 'body' alone" in found["message"]
    job(kb, collection="two", vector="body", to="two_new", documents=None)
    assert "VI115" not in {item["code"] for item in notices(kb)}
