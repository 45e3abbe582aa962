"""Unstick's own record, read back in bounded pages."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from unstick.domain.audit import AuditOutcome
from unstick.domain.record import EntryFilter, EntryPage, Recorded, Span
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.sql.connections import Connections
from unstick.sql.tables import audit, late_finishes, recoveries

LOOKED_THROUGH = 5_000
"""So many entries are looked through for a page."""


class SqlRecords:
    """The record in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def entries(self, wanted: EntryFilter, *, before: int | None, limit: int) -> EntryPage:
        """Return the newest entries that are wanted."""
        looked_through = _older(before).limit(LOOKED_THROUGH).subquery("looked_through")
        async with self._connections.reading() as (connection, _):
            chosen = _wanted(looked_through, wanted).limit(limit + 1)
            rows = (await connection.execute(chosen)).all()
            if len(rows) > limit:
                return EntryPage(entries=tuple(map(_recorded, rows[:limit])), next_before=rows[limit - 1].id)
            oldest, number = (await connection.execute(_extent(looked_through))).one()
        return EntryPage(entries=tuple(map(_recorded, rows)), next_before=oldest if number == LOOKED_THROUGH else None)

    async def operation(self, operation_id: int) -> Sequence[Recorded]:
        """Return the entries of an operation."""
        async with self._connections.reading() as (connection, _):
            begun = (await connection.execute(_entry(operation_id))).one_or_none()
            if begun is None:
                return ()
            ends = (await connection.execute(_ends(operation_id))).all()
        return tuple(map(_recorded, [begun, *ends]))

    async def over_time(self, source: str, window: timedelta, spans: int) -> Sequence[Span]:
        """Count by spans of the window."""
        async with self._connections.reading() as (connection, now):
            marks = [now - window + window * place / spans for place in range(spans + 1)]
            recovered = (await connection.execute(_recovered(source, marks))).all()
            late = (await connection.execute(_late(source, marks))).all()
        late_by_place = {int(row.place): int(row.number) for row in late}
        return [
            Span(
                begins_at=marks[place],
                ends_at=marks[place + 1],
                recovered={Action(row.action): int(row.number) for row in recovered if int(row.place) == place},
                late_finishes=late_by_place.get(place, 0),
            )
            for place in range(spans)
        ]


def _older(before: int | None) -> sa.Select[Any]:
    every = sa.select(audit).order_by(audit.c.id.desc())
    return every if before is None else every.where(audit.c.id < before)


def _wanted(entries: sa.Subquery, wanted: EntryFilter) -> sa.Select[Any]:
    chosen = sa.select(entries).order_by(entries.c.id.desc())
    if wanted.actor is not None:
        chosen = chosen.where(entries.c.actor == wanted.actor)
    if wanted.calls is not None:
        chosen = chosen.where(entries.c.call.in_(wanted.calls))
    if wanted.outcome is not None:
        chosen = chosen.where(entries.c.outcome == wanted.outcome.value)
    if wanted.job_id is not None:
        chosen = chosen.where(entries.c.job_id == wanted.job_id)
    if wanted.changes:
        chosen = chosen.where(entries.c.fingerprint.is_(None))  # only reads share a row, and have one
    return chosen


def _extent(entries: sa.Subquery) -> sa.Select[Any, int]:
    return sa.select(sa.func.min(entries.c.id), sa.func.count())


def _entry(entry_id: int) -> sa.Select[Any]:
    return sa.select(audit).where(audit.c.id == entry_id)


def _ends(operation_id: int) -> sa.Select[Any]:
    """Read how an operation ended, which is soon after it began: the table has no index for it but its key."""
    soon = sa.select(audit).where(audit.c.id > operation_id).order_by(audit.c.id).limit(LOOKED_THROUGH)
    after = soon.subquery("after")
    return sa.select(after).where(after.c.operation_id == operation_id).order_by(after.c.id).limit(2)


def _recovered(source: str, marks: Sequence[datetime]) -> sa.Select[Any]:
    table, place = recoveries, _place(recoveries.c.at, marks)
    return (
        sa.select(place, table.c.action, sa.func.sum(table.c.job_count).label("number"))
        .where(
            table.c.source == source,
            table.c.outcome == Outcome.APPLIED.value,
            table.c.action.in_([each.value for each in CHANGES]),
            table.c.at >= marks[0],
        )
        .group_by(sa.text("place"), table.c.action)
    )


def _late(source: str, marks: Sequence[datetime]) -> sa.Select[int, int]:
    table = late_finishes
    counted = sa.select(_place(table.c.at, marks), sa.func.count().label("number"))
    return counted.where(table.c.source == source, table.c.at >= marks[0]).group_by(sa.text("place"))


def _place(at: sa.ColumnElement[datetime], marks: Sequence[datetime]) -> sa.Label[int]:
    """Say in which span an instant is; what came in since the last mark is of the last one."""
    spans = [(at < end, place) for place, end in enumerate(marks[1:-1])]
    return sa.case(*spans, else_=len(marks) - 2).label("place")


def _recorded(row: sa.Row[Any]) -> Recorded:
    return Recorded(
        id=row.id,
        at=row.at,
        last_at=row.last_at,
        repeats=row.repeats,
        actor=row.actor,
        role=row.role,
        call=row.call,
        outcome=AuditOutcome(row.outcome),
        parameters=row.parameters,
        result=row.result,
        source=row.source,
        job_id=row.job_id,
        operation_id=row.operation_id,
    )
