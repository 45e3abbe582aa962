"""At how many unattended passes in a row jobs were found stuck, in a table of Unstick's own.

Guarantee: one statement writes a whole page down, whoever else does so at the same time, and one reads it back in the
same transaction; passes that several processes make at once count as one.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from unstick.domain.brake import Pass
from unstick.domain.job import JobId
from unstick.domain.sighting import LOOKS_APART, Stuck
from unstick.sql import tables
from unstick.sql.connections import Connections
from unstick.sql.sightings import KEPT, key_of, noted, type_on
from unstick.sql.tables import looks

_FORGETS_EVERY_SECONDS = 3600
_GIVEN = {"id": sa.String(32), "job_id": tables.JobKey, "mark": tables.JobMark}
_Column = sa.ColumnElement[Any]


class SqlLooks:
    """Looks in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._forgets_at = 0.0

    async def note(self, source: str, jobs: Sequence[Stuck], this: Pass) -> Mapping[JobId, int]:
        """Write down who was found stuck at a pass, and return at how many in a row each was, this one included."""
        by_key = {key_of(source, job.job_id): job for job in jobs}
        if not by_key:
            return {}
        dialect = self._connections.dialect
        rows = [(key, str(job.job_id), job.mark) for key, job in sorted(by_key.items())]
        types = {name: type_on(type_, dialect.sql) for name, type_ in _GIVEN.items()}
        given = dialect.rows(types).subquery("given")
        write = _write_down(dialect.name, given, source, this)
        read = sa.select(looks.c.id, looks.c.looks).join_from(given, looks, looks.c.id == given.c.id)
        found = await noted(self._connections, rows, write, read)
        await self._forget(source, this.at - KEPT)
        return {by_key[row.id].job_id: row.looks for row in found}

    async def _forget(self, source: str, before: datetime) -> None:
        """Forget who hasn't been found for long, once an hour."""
        if time.monotonic() < self._forgets_at:
            return
        self._forgets_at = time.monotonic() + _FORGETS_EVERY_SECONDS
        async with self._connections.writing() as (connection, _):
            await connection.execute(sa.delete(looks).where(looks.c.source == source, looks.c.found_at < before))


def _write_down(dialect: str, given: sa.Subquery, source: str, this: Pass) -> sa.Executable:
    """Insert, or count on what is there: in ascending order, so that two who do it don't block each other."""
    at = sa.literal(this.at, tables.UtcDateTime())
    new: dict[str, _Column] = {
        "id": given.c.id,
        "source": sa.literal(source, sa.String(63)),
        "job_id": given.c.job_id,
        "mark": given.c.mark,
        "looks": sa.literal(1, sa.Integer()),
        "counted_at": at,
        "found_at": at,
    }
    # Ordered, SQLite doesn't take ON CONFLICT for a join's condition.
    rows = sa.select(*new.values()).order_by(given.c.id)
    if dialect == "mysql":
        insert = mysql.insert(looks).from_select(list(new), rows)
        mark = sa.func.values(looks.c.mark, type_=looks.c.mark.type)
        return insert.on_duplicate_key_update(_changes(mark, this))
    if dialect == "postgresql":
        upsert = postgresql.insert(looks).from_select(list(new), rows)
        changes = _changes(upsert.excluded["mark"], this)
        return upsert.on_conflict_do_update(index_elements=["id"], set_=dict(changes))
    replace = sqlite.insert(looks).from_select(list(new), rows)
    return replace.on_conflict_do_update(index_elements=["id"], set_=dict(_changes(replace.excluded["mark"], this)))


def _changes(mark: _Column, this: Pass) -> list[tuple[str, _Column]]:
    """Return what becomes of a row that is there, in an order in which nothing is read after it was written.

    MariaDB and MySQL set one after the other.
    """
    old, instant = looks.c, tables.UtcDateTime()
    at, one = sa.literal(this.at, instant), sa.literal(1, sa.Integer())
    # Whoever was not found at the pass before, or has shown life since, begins anew.
    missed = sa.true() if this.before is None else old.found_at < sa.literal(this.before, instant)
    anew = sa.or_(missed, old.mark != mark)
    counts = old.counted_at <= sa.literal(this.at - LOOKS_APART, instant)
    return [
        ("looks", sa.case((anew, one), (counts, old.looks + 1), else_=old.looks)),
        ("counted_at", sa.case((sa.or_(anew, counts), at), else_=old.counted_at)),
        ("found_at", at),
        ("mark", mark),
    ]
