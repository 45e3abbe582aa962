"""What is on record of single jobs: recoveries, intents, late results, and what people ordered.

Each table has a reader of its own; `story_readers` names them all.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from unstick.domain.audit import RECOVER_CALL, SNOOZE_CALL, UNSNOOZE_CALL, AuditOutcome
from unstick.domain.job import JobId, JobState
from unstick.domain.policy import SINCE
from unstick.domain.recovery import Action, Outcome
from unstick.domain.story import Event
from unstick.domain.wording import say_worker
from unstick.ports import StoryReader
from unstick.sql.connections import Connections
from unstick.sql.tables import audit, intents, job_recoveries, late_finishes, recoveries

_DEEDS: Mapping[str, tuple[str, str]] = {
    Action.MARK_FAILED: ("mark it failed", "marked it failed"),
    Action.RETRY: ("queue it again", "queued it again"),
    "undo": ("put it back as it was", "put it back as it was"),
}
"""What was done, or was to be done, by the word of its record."""
_ORDERS: Mapping[str, str] = {
    RECOVER_CALL: "recover it",
    SNOOZE_CALL: "have it left alone",
    UNSNOOZE_CALL: "have it left alone no longer",
    "jobs.undo": "undo its recovery",
}
"""What was asked for of one job, by the name of the call."""
_OPERATIONS: Mapping[str, str] = {"jobs.cleanup": "A sweep by ", "jobs.undo": "An undo by "}
_MOST_RULINGS = 50
"""No job comes up in more batches than a few; each that may have it is read whole."""
_SAFE = re.compile("[A-Za-z0-9_.:@-]+")
"""Ids that every database writes alike in JSON."""


def story_readers(connections: Connections) -> tuple[StoryReader, ...]:
    """Return who is asked for the story of a job, in a ledger's database."""
    return (
        OrdersRead(connections),
        IntentsRead(connections),
        RecoveriesRead(connections),
        LateFinishesRead(connections),
    )


class RecoveriesRead:
    """Tells what was done to a job, what was tried, and who ordered it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def events(self, source: str, job_id: JobId, limit: int) -> Sequence[Event]:
        """Return the newest decisions on a job."""
        text = str(job_id)
        async with self._connections.reading() as (connection, _):
            if not _SAFE.fullmatch(text):
                rows = (await connection.execute(_of_job(job_recoveries, source, text, limit))).all()
                return [_recovered(row, row.detail) for row in rows]
            alone = (await connection.execute(_of_job(recoveries, source, text, limit))).all()
            ruled = (await connection.execute(_rulings_naming(source, text))).all()
        return [*(_recovered(row, row.detail) for row in alone), *_ruled(ruled, text)]


def _of_job(table: sa.Table, source: str, job_id: str, limit: int) -> sa.Select[Any]:
    ordered = table.c.recovery_id if table is job_recoveries else table.c.id
    found = _with_order(table, table.c).where(table.c.source == source, table.c.job_id == job_id)
    return found.order_by(ordered.desc()).limit(limit)


def _rulings_naming(source: str, job_id: str) -> sa.Select[Any]:
    """Read the batches that may name a job: to expand them all would cost as much as all that was ever ruled on."""
    jobs = recoveries.c.jobs
    named = sa.or_(*(jobs.contains(f"[{said},", autoescape=True) for said in (job_id, f'"{job_id}"')))
    found = _with_order(recoveries, recoveries.c).where(recoveries.c.source == source, jobs.is_not(None), named)
    return found.order_by(recoveries.c.id.desc()).limit(_MOST_RULINGS)


def _with_order(table: sa.Table, columns: Any) -> sa.Select[Any]:  # noqa: ANN401 - a collection of columns
    order = (audit.c.actor.label("actor"), audit.c.call.label("call"), audit.c.parameters.label("parameters"))
    return sa.select(*columns, *order).select_from(table.outerjoin(audit, audit.c.id == table.c.operation_id))


def _ruled(rows: Sequence[sa.Row[Any]], job_id: str) -> Iterator[Event]:
    for row in rows:
        since = next((since for named, since in json.loads(row.jobs) if str(named) == job_id), None)
        if since is not None:
            yield _recovered(row, row.detail.replace(SINCE, since[:19].replace("T", " ")))


def _recovered(row: sa.Row[Any], detail: str) -> Event:
    do, did = _DEEDS.get(row.action, (row.action, row.action))
    detail = detail.rstrip().rstrip(".")
    reason = (row.parameters or {}).get("reason")
    why = f" ({reason})" if reason else ""
    said = {
        Outcome.APPLIED: ("recovered", f"{_who(row)} {did}{why}: {detail}."),
        Outcome.LOST_RACE: ("lost_race", f"{_who(row)} was to {do}{why}, and left it: {detail}."),
        Outcome.FAILED: ("recovery_failed", f"{_who(row)} could not {do}{why}: {detail}."),
    }
    kind, sentence = said[Outcome(row.outcome)]
    if kind == "recovered" and row.action == "undo":
        kind = "undone"
    data = {name: getattr(row, name) for name in ("operation_id", "state", "action", "reason", "outcome", "actor")}
    overwrote = None if row.pre_image is None else json.loads(row.pre_image)
    return Event(at=row.at, kind=kind, sentence=sentence, data={**data, "why": reason, "overwrote": overwrote})


def _who(row: sa.Row[Any]) -> str:
    if row.actor is None:
        return "A sweep"
    operation = _OPERATIONS.get(row.call, "")
    return f"{operation}{row.actor}"


class IntentsRead:
    """Tells what is about to be done to a job, or was when its process ended."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def events(self, source: str, job_id: JobId, limit: int) -> Sequence[Event]:
        """Return what nobody has said yet what came of it."""
        async with self._connections.reading() as (connection, _):
            rows = (await connection.execute(_of_job(intents, source, str(job_id), limit))).all()
        return [_intended(row) for row in rows]


def _intended(row: sa.Row[Any]) -> Event:
    do, _ = _DEEDS.get(row.action, (row.action, row.action))
    sentence = f"{_who(row)} was about to {do}; what came of it is not on record yet."
    data = {name: getattr(row, name) for name in ("operation_id", "state", "action", "reason", "actor")}
    return Event(at=row.at, kind="intended", sentence=sentence, data=data)


class LateFinishesRead:
    """Tells of results that came when their job had been taken from the worker."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def events(self, source: str, job_id: JobId, limit: int) -> Sequence[Event]:
        """Return the newest late finishes."""
        theirs = late_finishes.c.source == source, late_finishes.c.job_id == str(job_id)
        newest = sa.select(late_finishes).where(*theirs).order_by(late_finishes.c.id.desc()).limit(limit)
        async with self._connections.reading() as (connection, _):
            rows = (await connection.execute(newest)).all()
        return [_late(row) for row in rows]


def _late(row: sa.Row[Any]) -> Event:
    result = "its result" if row.ended == JobState.SUCCEEDED else f"its failure ({row.detail})"
    sentence = f"{say_worker(row.worker)} came with {result} when the job was no longer its own; that was refused."
    data = {name: getattr(row, name) for name in ("worker", "attempt", "ended", "detail")}
    return Event(at=row.at, kind="late_finish", sentence=sentence, data=data)


class OrdersRead:
    """Tells what people ordered about one job, and what of that was refused."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def events(self, source: str, job_id: JobId, limit: int) -> Sequence[Event]:
        """Return the newest orders; what a recovery came to is its own event."""
        snoozes = sa.and_(audit.c.call.in_((SNOOZE_CALL, UNSNOOZE_CALL)), audit.c.outcome == AuditOutcome.DONE.value)
        undone = audit.c.outcome.in_((AuditOutcome.REFUSED.value, AuditOutcome.FAILED.value))
        newest = (
            sa.select(audit)
            .where(audit.c.source == source, audit.c.job_id == str(job_id))
            .where(sa.or_(snoozes, sa.and_(undone, audit.c.call.in_(_ORDERS))))
            .order_by(audit.c.id.desc())
            .limit(limit)
        )
        async with self._connections.reading() as (connection, _):
            rows = (await connection.execute(newest)).all()
        return [_ordered(row) for row in rows]


def _ordered(row: sa.Row[Any]) -> Event:
    reason = row.parameters.get("reason")
    why = f": {reason}" if reason else ""
    data = {"actor": row.actor, "role": row.role, "call": row.call, "outcome": row.outcome, "why": reason}
    if row.outcome != AuditOutcome.DONE:
        how = "was refused" if row.outcome == AuditOutcome.REFUSED else "failed"
        problem = str(row.result.get("problem", "")).rstrip().rstrip(".")
        sentence = f"{row.actor} asked to {_ORDERS[row.call]}, which {how}: {problem}."
        return Event(at=row.at, kind=row.outcome, sentence=sentence, data=data)
    if row.call == UNSNOOZE_CALL:
        return Event(at=row.at, kind="unsnoozed", sentence=f"{row.actor} ended its snooze{why}.", data=data)
    until = str(row.result["until"])
    said = f"{row.actor} had it left alone until {until[:19].replace('T', ' ')} UTC{why}."
    return Event(at=row.at, kind="snoozed", sentence=said, data={**data, "until": until})
