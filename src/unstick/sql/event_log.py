"""Events kept in a table of Unstick's own, so that a stream of them goes on over restarts and other replicas."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta

import sqlalchemy as sa

from unstick.domain.events import EventRecord
from unstick.sql.connections import Connections
from unstick.sql.tables import events

SETTLED_AFTER = timedelta(seconds=3)
"""How long a number that is missing is waited for: ids are given when a row is written, not when it is committed."""


class SqlEventLog:
    """Events in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def append(self, source: str, kind: str, told: Mapping[str, object]) -> None:
        """Keep an event."""
        async with self._connections.writing() as (connection, now):
            row = {"at": now, "source": source, "kind": kind, "told": json.dumps(told)}
            await connection.execute(sa.insert(events).values(row))

    async def last(self, source: str) -> int:
        """Return the id of the newest event of a source."""
        async with self._connections.reading() as (connection, _):
            newest = sa.select(sa.func.max(events.c.id)).where(events.c.source == source)
            return (await connection.execute(newest)).scalar_one() or 0

    async def after(self, source: str, event_id: int, limit: int) -> tuple[Sequence[EventRecord], int]:
        """Return the next events of a source, up to a number that may still be committed, and how far that is."""
        async with self._connections.reading() as (connection, now):
            chosen = sa.select(events).where(events.c.id > event_id).order_by(events.c.id).limit(limit)
            rows = (await connection.execute(chosen)).all()
        found, expected = [], event_id + 1
        for row in rows:
            if row.id != expected and row.at > now - SETTLED_AFTER:
                break
            expected = row.id + 1
            found.append(EventRecord(id=row.id, at=row.at, source=row.source, kind=row.kind, told=json.loads(row.told)))
        return [each for each in found if each.source == source], expected - 1
