"""Striking what has been kept long enough, a bounded number of rows a transaction."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from unstick.domain.retention import Retention
from unstick.domain.sign_in_failures import KNOWN_FOR
from unstick.sql import tables
from unstick.sql.connections import Connections

BATCH = 1_000


class SqlPruner:
    """Old rows of Unstick's own tables in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def prune(self, retention: Retention) -> AsyncIterator[tuple[str, int]]:
        """Strike all that is older, by the ledger's clock, and yield of which table how many went in each batch."""
        for column, age in _old(retention):
            async for struck in self._strike(column, age):
                yield column.table.name, struck

    async def _strike(self, column: sa.Column[object], age: timedelta) -> AsyncIterator[int]:
        table = column.table
        (key,) = table.primary_key.columns
        while True:
            async with self._connections.writing() as (connection, now):
                # Key by key: for a subquery, and for many keys of few rows, MariaDB and MySQL read, and lock, all rows.
                some = sa.select(key).where(column < now - age).order_by(column).limit(BATCH)
                old = list(await connection.scalars(some))
                if old:
                    await connection.execute(_by_key(table, key), [{"old": each} for each in old])
            if old:
                yield len(old)
            if len(old) < BATCH:
                return


def _by_key(table: sa.Table, key: sa.Column[Any]) -> sa.Delete:
    return sa.delete(table).where(key == sa.bindparam("old"))


def _old(retention: Retention) -> Iterator[tuple[sa.Column[object], timedelta]]:
    """Yield by which time of which table what is kept for how long."""
    yield tables.events.c.at, retention.events
    yield tables.snoozes.c.until, retention.events
    yield tables.alerts.c.resolved_at, retention.events
    yield tables.credentials.c.expires_at, retention.events
    yield tables.sign_in_failures.c.at, KNOWN_FOR
    yield tables.sightings.c.seen_at, retention.sightings
    if retention.audit is not None:
        # What refers to another goes first, so that whoever is cut off leaves nothing that hangs in the air.
        yield tables.late_finishes.c.at, retention.audit
        yield tables.successes.c.at, retention.audit
        yield tables.recoveries.c.at, retention.audit
        yield tables.audit.c.at, retention.audit
