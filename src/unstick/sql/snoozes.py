"""Snoozes, in a table of Unstick's own; each change and its audit entry are one transaction."""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.audit import AuditEntry
from unstick.domain.job import JobId
from unstick.domain.snooze import Snooze
from unstick.sql.connections import Connections
from unstick.sql.ledger import audit_row
from unstick.sql.tables import audit, snoozes
from unstick.sql.upserting import upsert

_FORGOTTEN_AFTER = timedelta(days=1)
"""How long after its end a snooze is struck: well beyond what two clocks differ by."""

_made: WeakSet[sa.Engine] = WeakSet()


class SqlSnoozes:
    """Snoozes in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def live(self, source: str, now: datetime) -> Sequence[Snooze]:
        """Return the snoozes of a source that haven't ended by then; none where the table was never made."""
        async with self._connections.reading() as (connection, _):
            if not await self._is_made(connection):
                return ()
            rows = (await connection.execute(_live(source, now).order_by(snoozes.c.until, snoozes.c.id))).all()
        return [_snooze(row) for row in rows]

    async def keep(self, snooze: Snooze, entry: AuditEntry, *, most: int) -> bool:
        """Keep a snooze in place of the job's former one; two at once may exceed the most by one."""
        row = _row(snooze)
        async with self._connections.writing() as (connection, now):
            others = _live(snooze.source, snooze.at).where(snoozes.c.id != row["id"]).subquery("others")
            number = await connection.scalar(sa.select(sa.func.count()).select_from(others))
            if (number or 0) >= most:
                return False
            ended = snoozes.c.until < snooze.at - _FORGOTTEN_AFTER
            await connection.execute(sa.delete(snoozes).where(snoozes.c.source == snooze.source, ended))
            await connection.execute(upsert(self._connections.dialect.name, snoozes, "id", row, row))
            await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
        return True

    async def strike(self, source: str, job_id: JobId, entry: AuditEntry) -> Snooze | None:
        """End a job's snooze, and write the entry whether there was one or not."""
        this = snoozes.c.id == _fingerprint(source, job_id)
        async with self._connections.writing() as (connection, now):
            row = (await connection.execute(sa.select(snoozes).where(this).with_for_update())).one_or_none()
            await connection.execute(sa.delete(snoozes).where(this))
            await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
        return None if row is None else _snooze(row)

    async def _is_made(self, connection: AsyncConnection) -> bool:
        """Tell whether the table is there: a host app may be monitored before Unstick's own tables are made."""
        engine = self._connections.engine
        if engine not in _made and await connection.run_sync(lambda sync: sa.inspect(sync).has_table(snoozes.name)):
            _made.add(engine)
        return engine in _made


def _live(source: str, now: datetime) -> sa.Select[Any]:
    return sa.select(snoozes).where(snoozes.c.source == source, snoozes.c.until > now)


def _row(snooze: Snooze) -> dict[str, Any]:
    return {
        "id": _fingerprint(snooze.source, snooze.job_id),
        "source": snooze.source,
        "job_id": str(snooze.job_id),
        "numeric_id": isinstance(snooze.job_id, int),
        "until": snooze.until,
        "reason": snooze.reason,
        "by": snooze.by[:255],
        "at": snooze.at,
    }


def _snooze(row: sa.Row[Any]) -> Snooze:
    return Snooze(
        source=row.source,
        job_id=int(row.job_id) if row.numeric_id else row.job_id,
        until=row.until,
        reason=row.reason,
        by=row.by,
        at=row.at,
    )


def _fingerprint(source: str, job_id: JobId) -> str:
    return hashlib.sha256(f"{source}\0{job_id}".encode()).hexdigest()
