"""The record of what became of recovered jobs: late finishes, successes, and how far follow-ups have come.

Guarantee: a finish is recorded once, for its name is unique, and recorders of one source take turns by the row of its
place. Known weakness: of several recoveries before one finish, the newest that was looked at has its word.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.aftermath import End, How, LateCounts, LateFinish, LateRuns, Recovered
from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import CHANGES, Action, Outcome, Undo
from unstick.ports import FollowUpSpan, RecoveredPage
from unstick.sql.connections import Connections
from unstick.sql.tables import follow_ups, late_finishes, recoveries, successes
from unstick.sql.upserting import upsert

MOST_KINDS = 100
"""Kinds that are counted one by one: a host may have as many as it has jobs."""

_HEADS = 1_000
_LONGEST_KIND = 255


class SqlAftermath:
    """What a SQL ledger keeps of what became of recovered jobs."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def follow_up_span(self, source: str, window: timedelta) -> FollowUpSpan | None:
        """Find the oldest recovery of the window, so that no page ever reads further down than that."""
        async with self._connections.reading() as (connection, now):
            since = now - window
            first = (await connection.execute(_first(since))).scalar()
            if first is None:
                return None
            place = await connection.execute(sa.select(follow_ups.c.recovery_id).where(follow_ups.c.source == source))
            return FollowUpSpan(since=since, first=first, place=place.scalar())

    async def recovered(
        self, source: str, span: FollowUpSpan, *, before: int | None, limit: int, besides: int | None
    ) -> RecoveredPage:
        """Read numbers of jobs first, for one recovery may be of thousands, and then those that fit the page."""
        applied = _applied(source, span, before, besides)
        async with self._connections.reading() as (connection, _):
            heads = (await connection.execute(_heads(applied))).all()
            last = _last_that_fits(heads, limit)
            if last is None:
                return RecoveredPage(jobs=(), number=0, last=None)
            rows = (await connection.execute(_bodies(applied, last))).all()
            known = set((await connection.execute(_known(source, last, heads[0].id))).all())
            known |= set((await connection.execute(_undone(source, last, heads[0].id))).all())
        jobs = [each for row in rows for each in _recovered(row)]
        open_ended = tuple(each for each in jobs if (each.recovery_id, str(each.job_id)) not in known)
        return RecoveredPage(jobs=open_ended, number=len(jobs), last=last)

    async def keep_ends(self, source: str, ends: Sequence[End]) -> tuple[int, int]:
        """Write new ends one source at a time, in one transaction."""
        newest = _newest_word(ends)
        async with self._connections.writing() as (connection, now):
            await connection.execute(self._touch(source, {}, now))
            there = sa.select(successes.c.finish, successes.c.recovery_id).where(successes.c.finish.in_(list(newest)))
            known = {row.finish: row.recovery_id for row in await connection.execute(there.with_for_update())}
            new = [end for name, end in newest.items() if name not in known]
            corrected = [end for name, end in newest.items() if known.get(name, end.recovery_id) < end.recovery_id]
            if new:
                await connection.execute(sa.insert(successes), [_success(source, end, now) for end in new])
            for end in corrected:
                await self._correct(connection, end)
            late = [_late(source, end, now) for end in (*new, *corrected) if end.late]
            if late:
                await connection.execute(sa.insert(late_finishes), late)
        found_late = sum(end.late for end in new)
        return found_late, len(new) - found_late

    async def _correct(self, connection: AsyncConnection, end: End) -> None:
        """Strike what was said of a finish after an older recovery than the one it came after."""
        theirs = successes.c.finish == end.name
        await connection.execute(sa.update(successes).where(theirs).values(recovery_id=end.recovery_id))
        await connection.execute(sa.delete(late_finishes).where(late_finishes.c.finish == end.name))

    async def keep_place(self, source: str, recovery_id: int | None) -> None:
        """Write down to which recovery a round has come."""
        async with self._connections.writing() as (connection, now):
            await connection.execute(self._touch(source, {"recovery_id": recovery_id}, now))

    def _touch(self, source: str, place: Mapping[str, int | None], now: datetime) -> sa.Executable:
        """Write a source's place, which whoever else records of the source waits for."""
        row, again = {"source": source, "at": now, **place}, {"at": now, **place}
        return upsert(self._connections.dialect.name, follow_ups, "source", row, again)

    async def late_counts(self, source: str, window: timedelta) -> LateCounts:
        """Count by how they came to be known, and by kind."""
        async with self._connections.reading() as (connection, now):
            since = now - window
            by_how = (await connection.execute(_count_late(source, since, late_finishes.c.how))).all()
            by_kind = (await connection.execute(_count_late(source, since, late_finishes.c.kind))).all()
        return LateCounts(
            since=since,
            by_how={How(how): number for how, number in by_how},
            by_kind={row[0]: row.number for row in by_kind},
        )

    async def late_finishes(self, source: str, limit: int) -> Sequence[LateFinish]:
        """Read the newest."""
        newest = sa.select(late_finishes).where(late_finishes.c.source == source)
        async with self._connections.reading() as (connection, _):
            rows = await connection.execute(newest.order_by(late_finishes.c.id.desc()).limit(limit))
            return [_late_finish(row) for row in rows]

    async def late_runs(self, source: str, window: timedelta) -> Sequence[LateRuns]:
        """Read the longest of each kind."""
        longest, succeeded = sa.func.max(late_finishes.c.ran_seconds), JobState.SUCCEEDED.value
        async with self._connections.reading() as (connection, now):
            by_kind = _count_late(source, now - window, late_finishes.c.kind).add_columns(longest)
            rows = (await connection.execute(by_kind.where(late_finishes.c.ended == succeeded))).all()
        return [
            LateRuns(kind, number, None if seconds is None else timedelta(seconds=seconds))
            for kind, number, seconds in rows
        ]


def not_before_success() -> sa.ColumnElement[bool]:
    """Hold for recoveries after which their job isn't on record as succeeded."""
    same_job = sa.and_(successes.c.source == recoveries.c.source, successes.c.job_id == recoveries.c.job_id)
    return sa.not_(sa.exists().where(same_job, successes.c.at >= recoveries.c.at).correlate(recoveries))


def newest_recovery(source: str, job_id: JobId) -> sa.ScalarSelect[Any]:
    """Return the newest recovery of a job, as far as it has a record of its own."""
    table = recoveries.alias("newest")
    theirs = (table.c.source == source, table.c.job_id == str(job_id), table.c.outcome == Outcome.APPLIED.value)
    return sa.select(sa.func.max(table.c.id)).where(*theirs).scalar_subquery()


def cut_kind(kind: str | None) -> str | None:
    """Return a kind as it is recorded."""
    return None if kind is None else kind.replace("\0", "")[:_LONGEST_KIND]


def _first(since: datetime) -> sa.Select[Any]:
    # Not the least id: PostgreSQL would look for it from the oldest recovery upwards.
    return (
        sa.select(recoveries.c.id).where(recoveries.c.at >= since).order_by(recoveries.c.at, recoveries.c.id).limit(1)
    )


def _applied(
    source: str, span: FollowUpSpan, before: int | None, besides: int | None
) -> Sequence[sa.ColumnElement[bool]]:
    conditions = [
        recoveries.c.id >= span.first,
        recoveries.c.at >= span.since,
        recoveries.c.source == source,
        recoveries.c.outcome == Outcome.APPLIED.value,
        recoveries.c.action.in_([action.value for action in CHANGES]),
    ]
    if before is not None:
        conditions.append(recoveries.c.id < before)
    if besides is not None:
        conditions.append(recoveries.c.operation_id != besides)
    return conditions


def _heads(applied: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    heads = sa.select(recoveries.c.id, recoveries.c.job_count).where(*applied)
    return heads.order_by(recoveries.c.id.desc()).limit(_HEADS)


def _last_that_fits(heads: Sequence[sa.Row[Any]], limit: int) -> int | None:
    """Return the recovery that brings a page to its limit, or the last there is."""
    number = 0
    for head in heads:
        number += head.job_count
        if number >= limit:
            return int(head.id)
    return int(heads[-1].id) if heads else None


def _bodies(applied: Sequence[sa.ColumnElement[bool]], last: int) -> sa.Select[Any]:
    table = recoveries.c
    columns = (table.id, table.job_id, table.jobs, table.state, table.action, table.at, table.pre_image)
    return sa.select(*columns).where(*applied, table.id >= last).order_by(table.id.desc())


def _known(source: str, lowest: int, highest: int) -> sa.Select[Any]:
    theirs = (successes.c.recovery_id.between(lowest, highest), successes.c.source == source)
    return sa.select(successes.c.recovery_id, successes.c.job_id).where(*theirs)


def _undone(source: str, lowest: int, highest: int) -> sa.Select[Any]:
    """Read which recoveries of which jobs were taken back: what such a job came to since is nobody's late finish."""
    undo = recoveries.c
    theirs = (undo.source == source, undo.action == Undo.UNDO.value, undo.outcome == Outcome.APPLIED.value)
    # An undo is younger than what it takes back, so that the key bounds the search.
    return sa.select(undo.undoes, undo.job_id).where(undo.id > lowest, undo.undoes.between(lowest, highest), *theirs)


def _recovered(row: sa.Row[Any]) -> list[Recovered]:
    """Return the one job of a recovery, or all those that it names."""
    ids = [row.job_id] if row.jobs is None else [job_id for job_id, _ in json.loads(row.jobs)]
    state, action = JobState(row.state), Action(row.action)
    return [Recovered(row.id, job_id, state, action, row.at, row.pre_image) for job_id in ids]


def _newest_word(ends: Sequence[End]) -> dict[str, End]:
    """Return each finish once, as it looks after the newest of the recoveries before it."""
    by_age = sorted(ends, key=lambda end: end.recovery_id)
    return {end.name: end for end in by_age}


def _success(source: str, end: End, now: datetime) -> dict[str, Any]:
    recovered = end.finished.recovered
    return {
        "finish": end.name,
        "source": source,
        "job_id": str(recovered.job_id),
        "recovery_id": recovered.recovery_id,
        "at": now,
    }


def _late(source: str, end: End, now: datetime) -> dict[str, Any]:
    finished = end.finished
    return {
        "source": source,
        "job_id": str(finished.recovered.job_id),
        "kind": cut_kind(finished.kind),
        "how": How.FOUND.value,
        "recovery_id": finished.recovered.recovery_id,
        "worker": cut_kind(finished.worker),
        "attempt": finished.now.number,
        "ended": JobState.SUCCEEDED.value,
        "ran_seconds": None if end.ran is None else end.ran.total_seconds(),
        "finish": end.name,
        "at": now,
    }


def _count_late(source: str, since: datetime, by: sa.Column[Any]) -> sa.Select[Any]:
    number = sa.func.count().label("number")
    recent = sa.select(by, number).where(late_finishes.c.source == source, late_finishes.c.at >= since)
    return recent.group_by(by).order_by(number.desc(), by).limit(MOST_KINDS)


def _late_finish(row: sa.Row[Any]) -> LateFinish:
    return LateFinish(
        job_id=row.job_id,
        kind=row.kind,
        how=How(row.how),
        worker=row.worker,
        attempt=row.attempt,
        ended=JobState(row.ended),
        ran=None if row.ran_seconds is None else timedelta(seconds=row.ran_seconds),
        detail=row.detail,
        recovery_id=row.recovery_id,
        at=row.at,
    )
