"""What was seen of suspects at earlier looks, in a table of Unstick's own.

Guarantee: one statement writes a whole batch down, whoever else does so at the same time, and one reads it back in the
same transaction. Known weakness: what moves and moves back between two looks hasn't moved.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from unstick.domain.errors import SourceUnavailableError
from unstick.domain.job import JobId
from unstick.domain.sighting import LOOKS_APART, Sighted, Sighting
from unstick.sql import tables
from unstick.sql.connections import Connections
from unstick.sql.rescue import said_by_database
from unstick.sql.tables import sightings

KEPT = timedelta(days=7)
"""A job that was no suspect for so long is forgotten."""
_FORGETS_EVERY_SECONDS = 3600
_TRIES = 3
_GIVEN = {
    "id": sa.String(32),
    "job_id": tables.JobKey,
    "attempt": tables.JobMark,
    "progress": tables.JobMark,
}
_Column = sa.ColumnElement[Any]


class SqlSightings:
    """Sightings in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._forgets_at = 0.0

    async def note(self, source: str, jobs: Sequence[Sighted], now: datetime) -> Mapping[JobId, Sighting]:
        """Write down how jobs look now, and return what is known of each with this look in it."""
        by_key = {key_of(source, job.job_id): job for job in jobs}
        if not by_key:
            return {}
        dialect = self._connections.dialect
        rows = [(key, str(job.job_id), job.attempt, job.progress) for key, job in sorted(by_key.items())]
        given = dialect.rows({name: type_on(type_, dialect.sql) for name, type_ in _GIVEN.items()}).subquery("given")
        write = _write_down(dialect.name, given, source, now)
        read = sa.select(sightings).join_from(given, sightings, sightings.c.id == given.c.id)
        found = await noted(self._connections, rows, write, read)
        await self._forget(source, now - KEPT)
        return {by_key[row.id].job_id: _sighting(row) for row in found}

    async def _forget(self, source: str, before: datetime) -> None:
        """Forget who was no suspect for long, once an hour."""
        if time.monotonic() < self._forgets_at:
            return
        self._forgets_at = time.monotonic() + _FORGETS_EVERY_SECONDS
        async with self._connections.writing() as (connection, _):
            await connection.execute(
                sa.delete(sightings).where(sightings.c.source == source, sightings.c.seen_at < before)
            )


async def noted(
    connections: Connections, rows: Sequence[Sequence[object]], write: sa.Executable, read: sa.Select[Any]
) -> Sequence[sa.Row[Any]]:
    """Write rows down and read them back in one transaction, tried again after a deadlock, three times in all.

    Raises:
        SourceUnavailableError: the database refused, or the last try met a deadlock, too.
    """
    bound = {"unstick_seen": json.dumps(rows)}
    for tries_left in reversed(range(_TRIES)):
        try:
            async with connections.writing() as (connection, _):
                await connection.execute(write, bound)
                found: Sequence[sa.Row[Any]] = (await connection.execute(read, bound)).all()
            break
        except DBAPIError as error:
            if not tries_left or not connections.dialect.is_transient(error):
                raise SourceUnavailableError(said_by_database(error)) from error
    return found


def key_of(source: str, job_id: JobId) -> str:
    """Name a job of a source in a key of any length limit."""
    return hashlib.blake2b(f"{source}\n{job_id}".encode(errors="surrogatepass"), digest_size=16).hexdigest()


def type_on(type_: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
    """Return what a type is on this database: MariaDB compares only text of one collation."""
    return type_.dialect_impl(dialect)


def _sighting(row: sa.Row[Any]) -> Sighting:
    return Sighting(
        progress=row.progress,
        first_seen_at=row.first_seen_at,
        seen_at=row.seen_at,
        looks=row.looks,
        moved_at=row.moved_at,
        moved_from=row.moved_from,
    )


def _write_down(dialect: str, given: sa.Subquery, source: str, now: datetime) -> sa.Executable:
    """Insert, or bring up to date what is there: in ascending order, so that two who do it don't block each other."""
    look = sa.literal(now, tables.UtcDateTime())
    known = {
        "id": given.c.id,
        "source": sa.literal(source, sa.String(63)),
        "job_id": given.c.job_id,
        "attempt": given.c.attempt,
        "progress": given.c.progress,
        "first_seen_at": look,
        "seen_at": look,
        "looks": sa.literal(1, sa.Integer()),
    }
    # Ordered, SQLite doesn't take ON CONFLICT for a join's condition.
    rows = sa.select(*known.values()).order_by(given.c.id)
    if dialect == "mysql":
        insert = mysql.insert(sightings).from_select(list(known), rows)
        return insert.on_duplicate_key_update(_changes({key: _value_of(key) for key in known}, now))
    if dialect == "postgresql":
        upsert = postgresql.insert(sightings).from_select(list(known), rows)
        return upsert.on_conflict_do_update(index_elements=["id"], set_=dict(_changes(upsert.excluded, now)))
    replace = sqlite.insert(sightings).from_select(list(known), rows)
    return replace.on_conflict_do_update(index_elements=["id"], set_=dict(_changes(replace.excluded, now)))


def _value_of(key: str) -> _Column:
    """Return what the row that is there already would have got."""
    return sa.func.values(sightings.c[key], type_=sightings.c[key].type)


def _changes(new: Mapping[str, _Column] | Any, now: datetime) -> list[tuple[str, _Column]]:  # noqa: ANN401
    """Return what becomes of a row that is there, in an order in which nothing is read after it was written.

    MariaDB and MySQL set one after the other, and would compare the new progress with itself.
    """
    old = sightings.c
    moved = old.progress.is_distinct_from(new["progress"])
    counts = old.seen_at <= sa.literal(now - LOOKS_APART, tables.UtcDateTime())
    another = old.attempt != new["attempt"]
    return [
        ("moved_from", sa.case((another, sa.null()), (moved, old.progress), else_=old.moved_from)),
        ("moved_at", sa.case((another, sa.null()), (moved, new["seen_at"]), else_=old.moved_at)),
        ("looks", sa.case((another, sa.literal(1, sa.Integer())), (counts, old.looks + 1), else_=old.looks)),
        ("first_seen_at", sa.case((another, new["first_seen_at"]), else_=old.first_seen_at)),
        ("seen_at", sa.case((sa.or_(another, counts), new["seen_at"]), else_=old.seen_at)),
        ("progress", new["progress"]),
        ("attempt", new["attempt"]),
    ]
