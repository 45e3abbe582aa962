"""The audit log and the recoveries, in tables of Unstick's own."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from unstick.domain.audit import AuditEntry
from unstick.domain.job import JobId
from unstick.domain.recovery import Action, Outcome
from unstick.ports import RecoveryCounts
from unstick.sql.connections import Connections
from unstick.sql.tables import audit, recoveries

_SHARED_FOR_SECONDS = 60


class SqlLedger:
    """Unstick's record in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def append(self, entry: AuditEntry) -> int:
        """Write one entry of its own and return its id."""
        async with self._connections.writing() as (connection, now):
            result = await connection.execute(sa.insert(audit).values(_row(entry, now)))
            if result.inserted_primary_key is None:
                raise RuntimeError("The database gave the audit entry no id.")
            return int(result.inserted_primary_key[0])

    async def count_read(self, entry: AuditEntry) -> None:
        """Write a call that changed nothing, or raise the count of the same one within the minute."""
        async with self._connections.writing() as (connection, now):
            row = _row(entry, now) | {"fingerprint": _fingerprint(entry, now)}
            await connection.execute(_count_read(self._connections.dialect.name, row))

    async def spent(self, source: str, job_ids: Sequence[JobId], since: datetime) -> Mapping[JobId, int]:
        """Count the retries applied to each job since then, in one statement."""
        by_text = {str(job_id): job_id for job_id in job_ids}
        async with self._connections.reading() as (connection, _):
            rows = await connection.execute(_spent(source, list(by_text), since))
            return {by_text[job_id]: number for job_id, number in rows}

    async def recoveries(self, source: str, window: timedelta) -> RecoveryCounts:
        """Count what came of the decisions of the window."""
        async with self._connections.reading() as (connection, now):
            rows = (await connection.execute(_recoveries_since(source, now - window))).all()
        applied = [row for row in rows if row.outcome == Outcome.APPLIED]
        return RecoveryCounts(
            since=now - window,
            by_outcome=_sums((Outcome(row.outcome), int(row.number)) for row in rows),
            by_action=_sums((Action(row.action), int(row.number)) for row in applied),
            by_reason=_sums((str(row.reason), int(row.number)) for row in applied),
        )


def _row(entry: AuditEntry, now: datetime) -> dict[str, Any]:
    return {
        "operation_id": entry.operation_id,
        "at": now,
        "last_at": now,
        "repeats": 1,
        "actor": entry.actor[:255],
        "role": entry.role,
        "call": entry.call,
        "parameters": dict(entry.parameters),
        "outcome": entry.outcome.value,
        "result": dict(entry.result),
    }


def _fingerprint(entry: AuditEntry, now: datetime) -> str:
    """Name a call by everything that tells it from another, and by the minute."""
    minute = int(now.timestamp()) // _SHARED_FOR_SECONDS
    said = [entry.actor, entry.role, entry.call, entry.outcome, entry.parameters, entry.result, minute]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _count_read(dialect: str, row: dict[str, Any]) -> sa.Executable:
    """Insert, or raise the count where the fingerprint is there: one statement, so that no two callers race."""
    again = {"repeats": audit.c.repeats + 1, "last_at": row["last_at"]}
    if dialect == "mysql":
        return mysql.insert(audit).values(row).on_duplicate_key_update(again)
    if dialect == "postgresql":
        return postgresql.insert(audit).values(row).on_conflict_do_update(index_elements=["fingerprint"], set_=again)
    return sqlite.insert(audit).values(row).on_conflict_do_update(index_elements=["fingerprint"], set_=again)


def _spent(source: str, job_ids: Sequence[str], since: datetime) -> sa.Select[Any]:
    return (
        sa.select(recoveries.c.job_id, sa.func.count())
        .where(
            recoveries.c.source == source,
            recoveries.c.job_id.in_(job_ids),
            recoveries.c.outcome == Outcome.APPLIED.value,
            recoveries.c.action == Action.RETRY.value,
            recoveries.c.at >= since,
        )
        .group_by(recoveries.c.job_id)
    )


def _recoveries_since(source: str, since: datetime) -> sa.Select[Any]:
    groups = (recoveries.c.outcome, recoveries.c.action, recoveries.c.reason)
    return (
        sa.select(*groups, sa.func.sum(recoveries.c.job_count).label("number"))
        .where(recoveries.c.source == source, recoveries.c.at >= since)
        .group_by(*groups)
    )


_Key = TypeVar("_Key")


def _sums(pairs: Iterable[tuple[_Key, int]]) -> dict[_Key, int]:
    sums: dict[_Key, int] = {}
    for key, number in pairs:
        sums[key] = sums.get(key, 0) + number
    return sums
