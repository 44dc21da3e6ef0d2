"""The knowledge base of `vecrun demo --backup`: a text-to-SQL system, trained into LangChain's own tables by its own library.

Descriptions of a shop's database and questions with their SQL, some of them with everything that CSV has to quote.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from runner.demo.stage import Failed, embedded
from runner.embedder import Embedder

COLLECTION = "text-to-sql"
QUESTIONS = (
    "How many orders are there for each status?",
    "Which customers have no email?",
    "What is the average price of products?",
    "How much did we pay to suppliers in each month?",
    "Was steht in der Spalte note?",
)
RESULTS, BATCH = 5, 40

#: table -> column -> type of PostgreSQL
TABLES: Mapping[str, Mapping[str, str]] = {
    "customers": {"name": "text", "email": "text", "country": "text", "credit": "numeric", "joined_at": "timestamptz"},
    "orders": {"status": "text", "total": "numeric", "note": "text", "placed_at": "timestamptz", "channel": "text"},
    "order_lines": {"quantity": "integer", "price": "numeric", "discount": "numeric", "returned_at": "timestamptz"},
    "products": {"title": "text", "price": "numeric", "weight": "real", "category": "text", "listed_at": "timestamptz"},
    "suppliers": {"name": "text", "country": "text", "rating": "integer", "first_delivery": "timestamptz"},
    "payments": {"amount": "numeric", "method": "text", "paid_at": "timestamptz", "reference": "text"},
    "shipments": {"carrier": "text", "cost": "numeric", "sent_at": "timestamptz", "arrived_at": "timestamptz"},
    "employees": {"name": "text", "department": "text", "salary": "numeric", "hired_at": "timestamptz"},
    "tickets": {"subject": "text", "priority": "integer", "opened_at": "timestamptz", "closed_at": "timestamptz"},
    "reviews": {"stars": "integer", "comment": "text", "language": "text", "written_at": "timestamptz"},
}

_TEXT = (
    ("How many {table} are there for each {column}?", 'SELECT "{column}", count(*) FROM "{table}" GROUP BY "{column}"'),
    ("Which {table} have no {column}?", 'SELECT * FROM "{table}" WHERE "{column}" IS NULL OR "{column}" = \'\''),
    ("Which {table} have a {column} like “50 %”?", 'SELECT * FROM "{table}" WHERE "{column}" LIKE \'%50 \\%%\''),
    ("Wie viele verschiedene Werte hat {column} in {table}?", 'SELECT count(DISTINCT "{column}") FROM "{table}"'),
    ("Zeige {table} mit dem längsten Text in {column}", 'SELECT * FROM "{table}" ORDER BY length("{column}") DESC LIMIT 1'),
    ("{table} の {column} を一覧にする", 'SELECT DISTINCT "{column}" FROM "{table}" ORDER BY 1'),
)  # fmt: skip
_NUMBER = (
    ("What is the average {column} of {table}?", 'SELECT avg("{column}") FROM "{table}"'),
    ("What is the sum of {column} over all {table}?", 'SELECT sum("{column}") FROM "{table}"'),
    ("Which five {table} have the highest {column}?", 'SELECT * FROM "{table}"\nORDER BY "{column}" DESC\nLIMIT 5'),
    ("Which {table} have a {column} above the average?", 'SELECT * FROM "{table}"\nWHERE "{column}" >\n\t(SELECT avg("{column}") FROM "{table}")'),
    ("Quel est le {column} médian des {table} ?", 'SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY "{column}") FROM "{table}"'),
    ("Are there {table} whose {column} is negative?", 'SELECT EXISTS (SELECT FROM "{table}" WHERE "{column}" < 0)'),
)  # fmt: skip
_TIME = (
    ("How many {table} are there in each month of {column}?", 'SELECT date_trunc(\'month\', "{column}"), count(*)\nFROM "{table}"\nGROUP BY 1'),
    ("Which {table} have a {column} of the last 30 days?", 'SELECT * FROM "{table}" WHERE "{column}" > now() - interval \'30 days\''),
    ("What is the latest {column} of all {table}?", 'SELECT max("{column}") FROM "{table}"'),
    ("On which weekday is the {column} of most {table}?", 'SELECT to_char("{column}", \'Day\'), count(*) FROM "{table}" GROUP BY 1 ORDER BY 2 DESC LIMIT 1'),
    ("¿Qué {table} no tienen {column}?", 'SELECT * FROM "{table}" WHERE "{column}" IS NULL'),
    ("How long ago was the first {column} of {table}?", 'SELECT age(min("{column}")) FROM "{table}"'),
)  # fmt: skip
_TEMPLATES = {"text": _TEXT, "numeric": _NUMBER, "integer": _NUMBER, "real": _NUMBER, "timestamptz": _TIME}

#: What a reader of CSV may take for something else: an end of data, a NULL, an end of line, an end of a value.
TRAPS = (
    "\\.",
    "A line of its own:\n\\.\nand one after it",
    "\\N is no NULL here, and neither is NULL",
    "",
    ' leading, trailing and "quoted" ',
    'one " and two "" and three """',
    "a,b;c\td\r\ne\rf\ng",
    "\ufeffa byte order mark, a zero\u200bwidth space, a line\u2028separator",
    "Straße, naïve, Ελληνικά, עברית, 日本語, 👩‍🔧 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "{\"json\": \"in a text\", 'sql': 'SELECT ''it''''s'' AS x'}",
)


@dataclass(frozen=True)
class Lesson:
    """One row of LangChain's table, without its vector."""

    text: str
    metadata: dict[str, Any]

    @property
    def id(self) -> str:
        """The same for the same text."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self.text))


@dataclass(frozen=True)
class Hit:
    """What LangChain's search says of a row."""

    id: str
    text: str
    metadata: dict[str, Any]
    score: float


def lessons(tables: int | None = None) -> list[Lesson]:
    """Everything that is taught of the first so many tables of the shop, or of all."""
    found = [Lesson(text, {"kind": "note", "number": number, "tags": []}) for number, text in enumerate(TRAPS)]
    for table, columns in islice(TABLES.items(), tables):
        lines = ",\n".join(f'  "{column}" {kind}' for column, kind in columns.items())
        ddl = f'CREATE TABLE "{table}" (\n  id bigint PRIMARY KEY,\n{lines}\n);'
        found.append(Lesson(ddl, {"kind": "ddl", "table": table, "columns": [*columns]}))
        for column, kind in columns.items():
            about = f"{table}.{column} is {kind}; “{column}” of one of the {table}. It may be NULL."
            found.append(Lesson(about, {"kind": "documentation", "table": table, "type": {"sql": kind, "null": True}}))
            for question, sql in _TEMPLATES[kind]:
                words = {"table": table, "column": column}
                answer = {"kind": "sql", "table": table, "sql": sql.format(**words), "checked_by": None, "weight": 0.1}
                found.append(Lesson(question.format(**words), answer))
    return found


def broken_export(path: Path, taught: Sequence[Lesson]) -> int:
    """Write the file of the next training: every question has the answer of another one, and the file ends in the middle
    of a line. Returns how many whole lines it has."""
    questions = [item for item in taught if item.metadata["kind"] == "sql"]
    shifted = [*questions[7:], *questions[:7]]
    lines = [
        json.dumps({"text": one.text + " (new)", "metadata": other.metadata}, ensure_ascii=False)
        for one, other in zip(questions, shifted, strict=True)
    ]
    whole = len(lines) // 2
    path.write_text("\n".join(lines[:whole]) + "\n" + lines[whole][:30], encoding="utf-8")
    return whole


class Embeddings:
    """A model of vecrun as LangChain wants one."""

    def __init__(self, model: Embedder) -> None:
        self._model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text; the model has none for no text at all."""
        return [[float(number) for number in row] for row in embedded(self._model, [item or "empty" for item in texts])]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return [float(number) for number in self._model.embed([text], "query").vectors[0]]


class Trained:
    """LangChain's PGVector on its two tables, which it makes."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def teach(self, taught: Sequence[Lesson]) -> None:
        """Add them, with their vectors."""
        for start in range(0, len(taught), BATCH):
            some = taught[start : start + BATCH]
            self._store.add_texts(
                [item.text for item in some], [item.metadata for item in some], ids=[item.id for item in some]
            )

    def load(self, path: Path) -> None:
        """Add what a file of JSON lines says, as it is read. ValueError at a line that is no JSON."""
        batch: list[Lesson] = []
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                batch.append(Lesson(**json.loads(line)))
                if len(batch) == BATCH:
                    self.teach(batch)
                    batch = []
        self.teach(batch)

    def answers(self) -> dict[str, list[Hit]]:
        """What LangChain's search finds for each question; once more among the pairs of question and SQL alone."""
        found = {}
        for question in QUESTIONS:
            for label, chosen in ((question, None), (f"{question} (SQL)", {"kind": "sql"})):
                hits = self._store.similarity_search_with_score(question, k=RESULTS, filter=chosen)
                found[label] = [Hit(item.id, item.page_content, item.metadata, score) for item, score in hits]
        return found


@contextmanager
def langchain(url: str, model: Embedder) -> Iterator[Trained]:
    """The knowledge base, opened by LangChain. Failed when its library is not installed."""
    import sqlalchemy

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PGVector is deprecated in favour of PGVectorStore; its tables are in use
            from langchain_postgres.vectorstores import PGVector
    except ModuleNotFoundError as exc:
        raise Failed("A library is missing", f"this demo needs {exc.name}", "pip install langchain-postgres") from exc
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = PGVector(Embeddings(model), connection=engine, collection_name=COLLECTION)
        yield Trained(store)
    finally:
        engine.dispose()
