"""What the ledger knows of recoveries that could be undone, and of those that were."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobId, JobState
from unstick.domain.policy import SINCE
from unstick.domain.recovery import Action, Outcome
from unstick.domain.undo import Undoable, UndoPage
from unstick.sql.statements import Predicate
from unstick.sql.tables import audit, recoveries

_ROWS = 1_000
"""Records read at once; one of a ruling counts as many as it has jobs."""


def is_undone() -> Predicate:
    """Hold for a record of one job that an undo took back."""
    undo = recoveries.alias("undo")
    return (
        sa.exists()
        .where(
            undo.c.source == recoveries.c.source,
            undo.c.job_id == recoveries.c.job_id,
            undo.c.undoes == recoveries.c.id,
            undo.c.outcome == Outcome.APPLIED.value,
        )
        .correlate(recoveries)
    )


async def operation(connection: AsyncConnection, operation_id: int) -> AuditEntry | None:
    """Return the entry that began an operation."""
    begun = sa.select(audit).where(audit.c.id == operation_id, audit.c.outcome == AuditOutcome.STARTED.value)
    row = (await connection.execute(begun)).one_or_none()
    if row is None:
        return None
    return AuditEntry(
        actor=row.actor,
        role=row.role,
        call=row.call,
        outcome=AuditOutcome(row.outcome),
        parameters=row.parameters,
        result=row.result,
    )


async def undoable(
    connection: AsyncConnection, source: str, operation_id: int, after: int, job_id: JobId | None
) -> UndoPage:
    """Return a page of an operation's applied recoveries, or those of one job."""
    ids, more = await _page(connection, operation_id, after, job_id)
    rows = (
        await connection.execute(sa.select(recoveries).where(recoveries.c.id.in_(ids)).order_by(recoveries.c.id))
    ).all()
    found = [each for row in rows for each in _by_job(row, job_id)]
    known = await _histories(connection, source, found)
    return UndoPage(
        recoveries=tuple(known[str(each.job_id)].seen(each) if str(each.job_id) in known else each for each in found),
        last=ids[-1] if more else None,
    )


async def _page(
    connection: AsyncConnection, operation_id: int, after: int, job_id: JobId | None
) -> tuple[list[int], bool]:
    """Return the next records, as many as are bounded in jobs, and whether there may be more."""
    records = (
        sa.select(recoveries.c.id, recoveries.c.job_count)
        .where(recoveries.c.operation_id == operation_id, recoveries.c.id > after)
        .where(recoveries.c.outcome == Outcome.APPLIED.value)
        .order_by(recoveries.c.id)
        .limit(_ROWS)
    )
    if job_id is not None:
        records = records.where(sa.or_(recoveries.c.job_id == str(job_id), recoveries.c.job_id.is_(None)))
    rows = (await connection.execute(records)).all()
    ids: list[int] = []
    jobs = 0
    for row in rows:
        if ids and jobs + row.job_count > _ROWS:
            return ids, True
        ids.append(row.id)
        jobs += row.job_count
    return ids, len(rows) == _ROWS


def _by_job(row: sa.Row[Any], only: JobId | None) -> Iterator[Undoable]:
    for job_id, since in json.loads(row.jobs) if row.jobs is not None else [(row.job_id, None)]:
        if only is not None and str(job_id) != str(only):
            continue
        post_image = row.post_image
        if since is not None and post_image is not None:
            # A time has no character that JSON would have to escape.
            post_image = post_image.replace(SINCE, since[:_SECOND].replace("T", " "))
        yield Undoable(
            recovery_id=row.id,
            operation_id=row.operation_id,
            job_id=job_id,
            state=JobState(row.state),
            action=Action(row.action),
            reason=Reason(row.reason),
            pre_image=row.pre_image,
            post_image=post_image,
        )


_RULINGS = 10
"""Records of rulings held at once: each may have thousands of jobs."""
_SECOND = len("2026-11-23 21:24:13")


@dataclass(slots=True)
class _History:
    """The applied recoveries of one job, with the operation of each, and which of them were undone."""

    recovered: dict[int, int] = field(default_factory=dict)
    undone: set[int] = field(default_factory=set)

    def seen(self, one: Undoable) -> Undoable:
        """Tell of a recovery whether it was undone, or another one came after it and stands."""
        later = (recovery_id for recovery_id in self.recovered if recovery_id > one.recovery_id)
        return Undoable(
            recovery_id=one.recovery_id,
            operation_id=one.operation_id,
            job_id=one.job_id,
            state=one.state,
            action=one.action,
            reason=one.reason,
            pre_image=one.pre_image,
            post_image=one.post_image,
            undone=one.recovery_id in self.undone,
            overtaken=any(each not in self.undone for each in later),
        )


async def standing(connection: AsyncConnection, source: str, found: Sequence[Undoable]) -> dict[str, Undoable]:
    """Look at recoveries once more: which of them were undone or overtaken meanwhile."""
    known = await _histories(connection, source, found)
    return {str(each.job_id): known[str(each.job_id)].seen(each) for each in found if str(each.job_id) in known}


async def history(connection: AsyncConnection, source: str, job_id: JobId) -> list[tuple[int, bool]]:
    """Return the operations that recovered a job, the latest first, and whether that was undone."""
    known = (await _recorded(connection, source, [str(job_id)])).get(str(job_id), _History())
    latest_first = sorted(known.recovered.items(), reverse=True)
    return [(operation_id, recovery_id in known.undone) for recovery_id, operation_id in latest_first]


async def _histories(connection: AsyncConnection, source: str, found: Sequence[Undoable]) -> Mapping[str, _History]:
    """Return what was recorded of jobs since the first of these recoveries, which are of one operation."""
    if not found:
        return {}
    # Rulings are the only records that no index leads to by job: those of its own operation say nothing new.
    earliest, own = min(each.recovery_id for each in found), found[0].operation_id
    return await _recorded(connection, source, [str(each.job_id) for each in found], earliest=earliest, leave_out=own)


async def _recorded(
    connection: AsyncConnection,
    source: str,
    job_ids: Collection[str],
    *,
    earliest: int = 0,
    leave_out: int | None = None,
) -> Mapping[str, _History]:
    found: dict[str, _History] = {}
    applied = sa.and_(
        recoveries.c.source == source, recoveries.c.outcome == Outcome.APPLIED.value, recoveries.c.id >= earliest
    )
    columns = (recoveries.c.id, recoveries.c.operation_id, recoveries.c.undoes)
    single = sa.select(*columns, recoveries.c.job_id).where(applied, recoveries.c.job_id.in_(job_ids))
    for row in await connection.execute(single):
        of_job = found.setdefault(row.job_id, _History())
        if row.undoes is None:
            of_job.recovered[row.id] = row.operation_id
        else:
            of_job.undone.add(row.undoes)
    wanted = set(job_ids)
    ruled = sa.select(*columns, recoveries.c.jobs).where(applied, recoveries.c.job_id.is_(None))
    if leave_out is not None:
        ruled = ruled.where(recoveries.c.operation_id != leave_out)
    async with connection.stream(ruled.execution_options(yield_per=_RULINGS)) as rulings:
        async for row in rulings:
            for job_id in wanted.intersection(str(job[0]) for job in json.loads(row.jobs)):
                found.setdefault(job_id, _History()).recovered[row.id] = row.operation_id
    return found
