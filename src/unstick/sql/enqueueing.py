"""Jobs put into a table within the caller's own transaction, so that a row of theirs and its job can't part."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.config import ColumnKey
from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.domain.work import Enqueued, NewJob
from unstick.sql.connections import Connections
from unstick.sql.endings import at
from unstick.sql.mapping import JobTable, MappedTable
from unstick.sql.reading import plain_id
from unstick.sql.reflection import mapped_table


async def enqueue(connections: Connections, connection: AsyncConnection, declared: JobTable, job: NewJob) -> Enqueued:
    """Insert a job; one whose key is there already is left as it is, and found.

    Raises:
        ConfigurationError: the table has no column for what is asked.
    """
    if connections.dialect.name == "sqlite":
        # A transaction that reads first finds, too late to wait for it, that somebody else has written since.
        await connection.execute(_nothing(declared))
    mapped = await mapped_table(connections, connection, declared)
    row = _row(mapped, job, await connections.dialect.clock(connection))
    if job.key is None:
        return await _insert(connection, mapped, row)
    _need_unique(mapped)
    try:
        async with connection.begin_nested():
            return await _insert(connection, mapped, row)
    except IntegrityError:
        there = (await connection.execute(_by_key(mapped, job.key))).scalar()
        if there is None:  # it was something else that the database refused
            raise
        return Enqueued(job_id=plain_id(there), created=False)


def _nothing(declared: JobTable) -> sa.Update:
    """Write nothing to the table, which takes the database's write lock."""
    key = declared.columns["id"]
    table = sa.table(declared.name, sa.column(key), schema=declared.schema)
    return sa.update(table).values({key: table.c[key]}).where(sa.false())


async def _insert(connection: AsyncConnection, mapped: MappedTable, row: Mapping[str, Any]) -> Enqueued:
    inserted = await connection.execute(sa.insert(mapped.table).values(row))
    if inserted.inserted_primary_key is None:
        raise RuntimeError("The database gave the job no id.")
    return Enqueued(job_id=plain_id(inserted.inserted_primary_key[0]), created=True)


def _row(mapped: MappedTable, job: NewJob, now: datetime) -> dict[str, Any]:
    row: dict[str, Any] = {mapped.stored("state").name: mapped.word(JobState.QUEUED)}
    if mapped.has("enqueued_at"):
        row[mapped.stored("enqueued_at").name] = at(mapped, "enqueued_at", now)
    if job.payload is not None:
        column = _need(mapped, "payload")
        row[column.name] = job.payload if isinstance(column.type, sa.JSON) else json.dumps(job.payload)
    if job.wait is not None:
        row[_need(mapped, "scheduled_at").name] = at(mapped, "scheduled_at", now + job.wait)
    said: dict[ColumnKey, str | None] = {"kind": job.kind, "key": job.key, "queue": job.queue}
    row |= {_need(mapped, key).name: value for key, value in said.items() if value is not None}
    return row | dict(job.values)


def _need(mapped: MappedTable, key: ColumnKey) -> sa.Column[Any]:
    if not mapped.has(key):
        raise ConfigurationError(
            f"The mapping of {mapped.declared.full_name} names no column for {key!r}, which this job needs."
        )
    return mapped.stored(key)


def _need_unique(mapped: MappedTable) -> None:
    key = mapped.stored("key")
    unique = [set(index.columns.keys()) for index in mapped.table.indexes if index.unique]
    unique += [set(c.columns.keys()) for c in mapped.table.constraints if isinstance(c, sa.UniqueConstraint)]
    if {key.name} not in unique:
        raise ConfigurationError(
            f"Column {key.name!r} of {mapped.declared.full_name} isn't unique by itself, so a key can't keep a job "
            f"from being queued twice."
        )


def _by_key(mapped: MappedTable, key: str) -> sa.Select[Any]:
    """Find the job of a key as it is now: a transaction's older snapshot may not have it."""
    return sa.select(mapped.column("id")).where(mapped.column("key") == key).with_for_update(read=True)
