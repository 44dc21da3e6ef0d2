"""State documents as rows of PostgreSQL."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import sqlalchemy as sa

from runner.errors import NotFound
from runner.lock import now, owner
from runner.records import Records
from runner.state.documents import SERVING, Document, Fence, State, States, Version, dumps
from runner.tables import state_documents


class StateTable(States):
    """State documents in PostgreSQL, a row for each serial."""

    def __init__(self, records: Records, place: str) -> None:
        self.records, self.place = records, place

    def jobs(self) -> list[str]:
        names = self._query(sa.select(state_documents.c.name).where(_PRESENT, state_documents.c.body != "")).scalars()
        return sorted(name.removeprefix("job:") for name in names if name.startswith("job:"))

    def names(self) -> list[str]:
        found = self._query(sa.select(state_documents.c.name).distinct()).scalars()
        return sorted(name.removeprefix("job:") for name in found if name != _LINEAGE)

    def history(self, name: str) -> list[Version]:
        query = sa.select(state_documents).where(
            state_documents.c.name == _row_name(name), state_documents.c.body != ""
        )
        rows = self._query(query.order_by(state_documents.c.serial.desc())).mappings()
        return [Version(serial=row["serial"], written=row["written"], owner=row["owner"] or "") for row in rows]

    def forget(self, name: str, serials: Iterable[int], fence: Fence) -> None:
        with fence as held, self._writing(name, held) as connection:
            present = self._last(name, connection)
            of_name = (state_documents.c.name == _row_name(name), state_documents.c.serial != present)
            chosen = state_documents.c.serial.in_(list(serials))
            connection.execute(state_documents.delete().where(*of_name, chosen))

    def remove(self, job: str, fence: Fence) -> None:
        with fence as held, self._writing(job, held) as connection:
            text = self._text(job, None, connection)
            if text is None:
                raise NotFound("No state", f"job {job}", "vecrun state list")
            current = self._parsed(job, text, State)
            self._insert(job, current.serial + 1, current.lineage, "", connection)

    def where(self, name: str) -> str:
        return f"{self.place}, {_row_name(name)}"

    def _remedy(self, name: str) -> str:
        return f"Look at the versions before: vecrun state history {name}"

    def _lineage(self, pattern: str) -> str:
        # not of the URL: hosts may reach one database under several names
        query = sa.select(state_documents.c.lineage).where(state_documents.c.name == _LINEAGE)
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "vecrun:" + pattern.format(self._query(query).scalar_one())))

    def _last(self, name: str, connection: sa.Connection | None) -> int:
        query = sa.select(sa.func.max(state_documents.c.serial)).where(state_documents.c.name == _row_name(name))
        return int(self._query(query, connection).scalar() or 0)

    def _query(self, query: sa.Select[Any], connection: sa.Connection | None = None) -> sa.Result[Any]:
        if connection is not None:
            return connection.execute(query).freeze()()
        return self.records.fetch(query)

    def _text(self, name: str, serial: int | None, connection: sa.Connection | None) -> str | None:
        query = sa.select(state_documents.c.body).where(state_documents.c.name == _row_name(name))
        query = query.where(_PRESENT if serial is None else state_documents.c.serial == serial)
        return self._query(query, connection).scalar() or None

    @contextmanager
    def _writing(self, name: str, held: object) -> Iterator[sa.Connection]:
        # in the transaction of the fence: token and document are one write
        with nullcontext(held) if isinstance(held, sa.Connection) else self.records.writing() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"vecrun:{name}"})
            yield connection

    def _put(self, name: str, document: Document, connection: sa.Connection | None) -> None:
        self._insert(name, document.serial, document.lineage, dumps(document), connection)

    def _insert(self, name: str, serial: int, lineage: str, body: str, connection: sa.Connection | None) -> None:
        values = {"name": _row_name(name), "serial": serial, "lineage": lineage, "body": body}
        cast("sa.Connection", connection).execute(
            state_documents.insert().values(**values, written=now(), owner=owner())
        )


_other = state_documents.alias()


_PRESENT = state_documents.c.serial == (
    sa.select(sa.func.max(_other.c.serial)).where(_other.c.name == state_documents.c.name).scalar_subquery()
)


#: The row that names this database, so that plans for another one do not fit; runner/migrations makes it.
_LINEAGE = "lineage"


def _row_name(name: str) -> str:
    return name if name == SERVING else f"job:{name}"


@functools.cache
def shared(url: str, schema: str) -> Records:
    """One engine for all that reads documents in this process."""
    return Records(url, schema)


def shortly(url: sa.URL) -> str:
    port = f":{url.port}" if url.port else ""
    return f"{url.host or url.query.get('host') or 'localhost'}{port}/{url.database}"
