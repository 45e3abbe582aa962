"""The audit log and the recoveries, in tables of Unstick's own."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from unstick.domain.audit import AuditEntry
from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import Action, Intent, Outcome, Recovery, Undo, deed
from unstick.domain.undo import UndoPage
from unstick.ports import RecoveryCounts
from unstick.sql import tables, undone
from unstick.sql.aftermath import SqlAftermath, not_before_success
from unstick.sql.connections import Connections
from unstick.sql.tables import audit, recoveries
from unstick.sql.upserting import upsert

_SHARED_FOR_SECONDS = 60
_AT_ONCE = 10_000


class SqlLedger(SqlAftermath):
    """Unstick's record in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        self._connections = connections

    async def append(self, entry: AuditEntry) -> int:
        """Write one entry of its own and return its id."""
        async with self._connections.writing() as (connection, now):
            result = await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
            return new_id(result)

    async def count_read(self, entry: AuditEntry, times: int = 1) -> None:
        """Write a call that changed nothing, or raise the count of the same one within the minute."""
        async with self._connections.writing() as (connection, now):
            row = audit_row(entry, now) | {"fingerprint": _fingerprint(entry, now), "repeats": times}
            await connection.execute(_count_read(self._connections.dialect.name, row))

    async def record(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Write what came of decisions that changed nothing."""
        if not recoveries:
            return
        async with self._connections.writing() as (connection, now):
            await connection.execute(sa.insert(tables.recoveries), recovery_rows(source, operation_id, recoveries, now))

    async def intend(self, source: str, operation_id: int, intents: Sequence[Intent]) -> None:
        """Write what is about to be done; it is committed when this returns."""
        if not intents:
            return
        async with self._connections.writing() as (connection, now):
            await connection.execute(sa.insert(tables.intents), _intent_rows(source, operation_id, intents, now))

    async def settle(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Write what came of intents and strike them, in one transaction."""
        if not recoveries:
            return
        theirs = _intents_of(source, operation_id, [str(each.job_id) for each in recoveries])
        async with self._connections.writing() as (connection, now):
            rows = recovery_rows(source, operation_id, recoveries, now)
            await connection.execute(sa.insert(tables.recoveries), rows)
            await connection.execute(sa.delete(tables.intents).where(theirs))

    async def find_out(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Write what seems to have come of intents and strike them; one that isn't there any more is left."""
        theirs = _intents_of(source, operation_id, [str(each.job_id) for each in recoveries])
        async with self._connections.writing() as (connection, now):
            there = set(await connection.scalars(sa.select(tables.intents.c.job_id).where(theirs).with_for_update()))
            settled = [each for each in recoveries if str(each.job_id) in there]
            if settled:
                rows = recovery_rows(source, operation_id, settled, now)
                await connection.execute(sa.insert(tables.recoveries), rows)
                await connection.execute(sa.delete(tables.intents).where(theirs))

    async def unsettled(self, source: str, older_than: timedelta) -> Mapping[int, Sequence[Intent]]:
        """Return intents by operation that nobody has settled for so long, the oldest `_AT_ONCE` of them."""
        table = tables.intents
        async with self._connections.reading() as (connection, now):
            old = sa.select(table).where(table.c.source == source, table.c.at <= now - older_than)
            rows = (await connection.execute(old.order_by(table.c.at, table.c.id).limit(_AT_ONCE))).all()
        by_operation: dict[int, list[Intent]] = {}
        for row in rows:
            by_operation.setdefault(row.operation_id, []).append(_intent(row))
        return by_operation

    async def spent(
        self, source: str, job_ids: Sequence[JobId], since: datetime, *, before_success: bool = False
    ) -> Mapping[JobId, int]:
        """Count the retries applied to each job since then, in one statement."""
        by_text = {str(job_id): job_id for job_id in job_ids}
        statement = _spent(source, list(by_text), since)
        if not before_success:
            statement = statement.where(not_before_success())
        async with self._connections.reading() as (connection, _):
            rows = await connection.execute(statement)
            return {by_text[job_id]: number for job_id, number in rows}

    async def operation(self, operation_id: int) -> AuditEntry | None:
        """Return the entry that began an operation."""
        async with self._connections.reading() as (connection, _):
            return await undone.operation(connection, operation_id)

    async def undoable(
        self, source: str, operation_id: int, *, after: int = 0, job_id: JobId | None = None
    ) -> UndoPage:
        """Return a page of an operation's applied recoveries, or those of one job."""
        async with self._connections.reading() as (connection, _):
            return await undone.undoable(connection, source, operation_id, after, job_id)

    async def history(self, source: str, job_id: JobId) -> Sequence[tuple[int, bool]]:
        """Return the operations that recovered a job, the latest first, and whether that was undone."""
        async with self._connections.reading() as (connection, _):
            return await undone.history(connection, source, job_id)

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


def recovery_rows(
    source: str, operation_id: int, recoveries: Sequence[Recovery], now: datetime
) -> list[dict[str, Any]]:
    """Return recoveries as rows of the ledger, one a job."""
    return [
        {
            "operation_id": operation_id,
            "source": source,
            "job_id": str(each.job_id),
            "state": each.state.value,
            "action": each.action.value,
            "reason": each.reason.value,
            "outcome": each.outcome.value,
            "detail": each.detail,
            "pre_image": each.pre_image,
            "post_image": each.post_image,
            "undoes": each.undoes,
            "at": now,
        }
        for each in recoveries
    ]


def new_id(inserted: sa.CursorResult[Any]) -> int:
    """Return the id that the database gave to an audit entry."""
    if inserted.inserted_primary_key is None:
        raise RuntimeError("The database gave the audit entry no id.")
    return int(inserted.inserted_primary_key[0])


def _intent_rows(source: str, operation_id: int, intents: Sequence[Intent], now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "operation_id": operation_id,
            "source": source,
            "job_id": str(each.job_id),
            "numeric_id": isinstance(each.job_id, int),
            "state": each.state.value,
            "action": each.action.value,
            "reason": each.reason.value,
            "detail": each.detail,
            "pre_image": each.pre_image,
            "post_image": each.post_image,
            "undoes": each.undoes,
            "at": now,
        }
        for each in intents
    ]


def _intent(row: sa.Row[Any]) -> Intent:
    return Intent(
        job_id=int(row.job_id) if row.numeric_id else row.job_id,
        state=JobState(row.state),
        action=deed(row.action),
        reason=Reason(row.reason),
        detail=row.detail,
        pre_image=row.pre_image,
        post_image=row.post_image,
        undoes=row.undoes,
        at=row.at,
    )


def _intents_of(source: str, operation_id: int, job_ids: Sequence[str]) -> sa.ColumnElement[bool]:
    table = tables.intents
    return sa.and_(table.c.source == source, table.c.operation_id == operation_id, table.c.job_id.in_(job_ids))


def audit_row(entry: AuditEntry, now: datetime) -> dict[str, Any]:
    """Return an entry as a row of the audit log."""
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
        "source": entry.source,
        "job_id": None if entry.job_id is None else str(entry.job_id),
    }


def _fingerprint(entry: AuditEntry, now: datetime) -> str:
    """Name a call by everything that tells it from another, and by the minute."""
    minute = int(now.timestamp()) // _SHARED_FOR_SECONDS
    said = [entry.actor, entry.role, entry.call, entry.outcome, entry.parameters, entry.result, minute]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _count_read(dialect: str, row: dict[str, Any]) -> sa.Executable:
    """Insert, or raise the count where the fingerprint is there."""
    again = {"repeats": audit.c.repeats + row["repeats"], "last_at": row["last_at"]}
    return upsert(dialect, audit, "fingerprint", row, again)


def _spent(source: str, job_ids: Sequence[str], since: datetime) -> sa.Select[Any]:
    return (
        sa.select(recoveries.c.job_id, sa.func.count())
        .where(
            recoveries.c.source == source,
            recoveries.c.job_id.in_(job_ids),
            recoveries.c.outcome == Outcome.APPLIED.value,
            recoveries.c.action == Action.RETRY.value,
            recoveries.c.at >= since,
            sa.not_(undone.is_undone()),
        )
        .group_by(recoveries.c.job_id)
    )


def _recoveries_since(source: str, since: datetime) -> sa.Select[Any]:
    groups = (recoveries.c.outcome, recoveries.c.action, recoveries.c.reason)
    return (
        sa.select(*groups, sa.func.sum(recoveries.c.job_count).label("number"))
        .where(recoveries.c.source == source, recoveries.c.at >= since, recoveries.c.action != Undo.UNDO.value)
        .group_by(*groups)
    )


_Key = TypeVar("_Key")


def _sums(pairs: Iterable[tuple[_Key, int]]) -> dict[_Key, int]:
    sums: dict[_Key, int] = {}
    for key, number in pairs:
        sums[key] = sums.get(key, 0) + number
    return sums
