"""Striking what has been kept long enough, a bounded number of rows a transaction."""

from collections.abc import Iterator
from datetime import timedelta

import sqlalchemy as sa

from unstick.domain.retention import Pruned, Retention
from unstick.sql import tables
from unstick.sql.connections import Connections

BATCH = 1_000


class SqlPruner:
    """Old rows of Unstick's own tables in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def prune(self, retention: Retention) -> Pruned:
        """Strike all that is older, by the ledger's clock; it can be cut off and gone on with at any time."""
        rows = {}
        for column, age in _old(retention):
            struck = await self._strike(column, age)
            if struck:
                rows[column.table.name] = struck
        return Pruned(rows=rows)

    async def _strike(self, column: sa.Column[object], age: timedelta) -> int:
        table, total = column.table, 0
        (key,) = table.primary_key.columns
        while True:
            async with self._connections.writing() as (connection, now):
                # A derived table: MariaDB and MySQL take no LIMIT in a subquery of IN.
                some = sa.select(key).where(column < now - age).order_by(column).limit(BATCH).subquery("some_old")
                done = await connection.execute(sa.delete(table).where(key.in_(sa.select(some.c[key.name]))))
            total += done.rowcount
            if done.rowcount < BATCH:
                return total


def _old(retention: Retention) -> Iterator[tuple[sa.Column[object], timedelta]]:
    """Yield by which time of which table what is kept for how long."""
    yield tables.events.c.at, retention.events
    yield tables.snoozes.c.until, retention.events
    yield tables.alerts.c.resolved_at, retention.events
    yield tables.sightings.c.seen_at, retention.sightings
    if retention.audit is not None:
        # What refers to another goes first, so that whoever is cut off leaves nothing that hangs in the air.
        yield tables.late_finishes.c.at, retention.audit
        yield tables.successes.c.at, retention.audit
        yield tables.recoveries.c.at, retention.audit
        yield tables.audit.c.at, retention.audit
