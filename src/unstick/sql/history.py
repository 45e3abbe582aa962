"""What a jobs table tells of the past: percentiles of durations, and what a threshold would have done.

All is worked out by the database over a bounded sample, the newest jobs by an index.
Known weakness: naive times of a zone that sets its clocks make a job of that hour an hour longer or shorter.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from unstick.config import ColumnKey
from unstick.domain.errors import ConfigurationError
from unstick.domain.history import Durations, Figures, Replayed, ReplayedKind, by_kind
from unstick.domain.job import JobState
from unstick.domain.wording import Phrase
from unstick.sql.connections import Connections
from unstick.sql.mapping import JobTable, MappedTable
from unstick.sql.reflection import mapped_table
from unstick.sql.statements import USAGE_JOBS, time_type

REPLAYED_JOBS = 100_000
"""How many of the newest jobs a replay counts."""

MOST_KINDS = 200
"""Kinds that get figures of their own, the most frequent ones."""

_PERCENTILES = (0.5, 0.95, 0.99)


class SqlHistory:
    """The past of a SQL table's jobs."""

    def __init__(self, declared: JobTable, connections: Connections) -> None:
        self._declared = declared
        self._connections = connections

    async def durations(self) -> Durations:
        """Measure the newest jobs that succeeded, at most `USAGE_JOBS` of them."""
        async with self._connections.reading() as (connection, _):
            mapped = await mapped_table(self._connections, connection, self._declared)
            runs = (await connection.execute(percentiles(mapped, "ran", ("kind",)))).all()
            by_queue = percentiles(mapped, "ran", ("kind", "queue"))
            queues = (await connection.execute(by_queue)).all() if mapped.has("queue") else []
            waits = (await connection.execute(percentiles(mapped, "waited", ()))).all()
        return Durations(
            basis=_basis(mapped, USAGE_JOBS),
            runs=tuple(_figures(row) for row in runs),
            runs_by_queue=tuple(_figures(row) for row in queues),
            waits=_figures(waits[0]) if waits else None,
        )

    async def replay(
        self, window: timedelta, *, running_after: timedelta | None, queued_after: timedelta | None
    ) -> Replayed:
        """Count the newest jobs that ended within the window, at most `REPLAYED_JOBS` of them.

        Raises:
            ConfigurationError: the table doesn't tell when a job ended.
        """
        async with self._connections.reading() as (connection, now):
            mapped = await mapped_table(self._connections, connection, self._declared)
            if not mapped.has("completed_at"):
                raise ConfigurationError(
                    f"{mapped.declared.full_name} doesn't tell when its jobs ended, so nothing can be replayed; map "
                    f"`completed_at` under `columns`."
                )
            since = now - window
            statement = replayed(mapped, since, running_after=running_after, queued_after=queued_after)
            rows = (await connection.execute(statement)).all()
        sample = sum(row.jobs for row in rows)
        return Replayed(
            since=since,
            basis=_basis(mapped, REPLAYED_JOBS),
            sample=sample,
            complete=sample < REPLAYED_JOBS,
            kinds=tuple(each for each in by_kind([_replayed(mapped, row) for row in rows]) if each.ended),
        )


def percentiles(mapped: MappedTable, figure: str, by: Sequence[ColumnKey]) -> sa.Select[Any]:
    """Work out percentiles of a figure over the newest jobs that succeeded, by kind and queue as told."""
    sample = _sample(mapped, USAGE_JOBS).subquery("newest")
    seconds = sample.c[figure]
    succeeded = sample.c.state.in_(mapped.words(JobState.SUCCEEDED))
    keys = [sample.c[key] if key in by else sa.null().label(key) for key in ("kind", "queue")]
    measured = sa.select(*keys, seconds.label("seconds")).where(succeeded, seconds >= 0)
    grouped = _grouped(mapped, measured.subquery("measured"), by)
    return grouped.order_by(sa.desc("jobs"), *by).limit(MOST_KINDS) if by else grouped.having(sa.func.count() > 0)


def _grouped(mapped: MappedTable, measured: sa.Subquery, by: Sequence[ColumnKey]) -> sa.Select[Any]:
    keys, seconds = [measured.c[key] for key in by], measured.c.seconds
    if mapped.dialect.name == "postgresql":
        exact = [sa.func.percentile_cont(share).within_group(seconds) for share in _PERCENTILES]
        return _of_each(measured, exact).group_by(*keys)
    place = (sa.func.row_number().over(partition_by=keys, order_by=seconds) - 1).label("place")
    number = sa.func.count().over(partition_by=keys).label("number")
    ranked = sa.select(measured, place, number).subquery("ranked")
    return _of_each(ranked, [_between(ranked, share) for share in _PERCENTILES]).group_by(
        *(ranked.c[key] for key in by)
    )


def _of_each(rows: sa.Subquery, found: Sequence[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    """Return a group's figures; its kind and queue, where it has them, are those of any of its rows."""
    keys = [sa.func.max(rows.c[key]).label(key) for key in ("kind", "queue")]
    values = [value.label(f"p{share * 100:g}") for value, share in zip(found, _PERCENTILES, strict=True)]
    return sa.select(*keys, sa.func.count().label("jobs"), *values, sa.func.max(rows.c.seconds).label("longest"))


def _between(ranked: sa.Subquery, share: float) -> sa.ColumnElement[Any]:
    """Return the value at a share of a group's ranks, between the two nearest ones by straight line."""
    at = sa.literal(share, sa.Double) * (ranked.c.number - 1)
    below, above = ranked.c.place <= at, ranked.c.place >= at
    low = sa.func.max(sa.case((below, ranked.c.seconds)))
    high = sa.func.min(sa.case((above, ranked.c.seconds)))
    part = sa.func.max(at) - sa.func.max(sa.case((below, ranked.c.place)))
    return low + (high - low) * part


def replayed(
    mapped: MappedTable, since: datetime, *, running_after: timedelta | None, queued_after: timedelta | None
) -> sa.Select[Any]:
    """Count jobs of the sample by kind and state: all, those that ended since, and those past a threshold."""
    form = mapped.times["completed_at"]
    type_ = time_type(mapped, "completed_at")
    horizons = (sa.literal(value, type_) for value in (form.horizon(since), form.horizon_utc(since)))
    column = mapped.column("completed_at")
    ended = sa.and_(column.is_not(None), mapped.dialect.is_time(column), sa.not_(form.before(column, *horizons)))
    sample = _sample(mapped, REPLAYED_JOBS).add_columns(ended.label("ended")).subquery("newest")
    waited = _exceeds(sample.c.waited, queued_after)
    queued, running = sa.and_(sample.c.ended, waited), sa.and_(sample.c.ended, _exceeds(sample.c.ran, running_after))
    counted = {"ended": sample.c.ended, "queued": queued, "running": sa.and_(running, sa.not_(waited))}
    counts = [sa.func.sum(sa.case((condition, 1), else_=0)).label(name) for name, condition in counted.items()]
    return sa.select(sample.c.kind, sample.c.state, sa.func.count().label("jobs"), *counts).group_by(
        sample.c.kind, sample.c.state
    )


def _exceeds(seconds: sa.ColumnElement[Any], limit: timedelta | None) -> sa.ColumnElement[bool]:
    if limit is None:
        return sa.false()
    return sa.func.coalesce(seconds > sa.literal(limit.total_seconds(), sa.Double), sa.false())


def _sample(mapped: MappedTable, number: int) -> sa.Select[Any]:
    """Read the newest jobs: kind, queue and state, how long each ran, and how long it waited before that."""
    newest, _ = mapped.newest_first
    keys: tuple[ColumnKey, ...] = ("kind", "queue")
    words = [(mapped.column(key) if mapped.has(key) else sa.null()).label(key) for key in keys]
    figures = [_ran(mapped).label("ran"), _waited(mapped).label("waited")]
    rows = sa.select(*words, mapped.column("state").label("state"), *figures).select_from(mapped.table)
    return rows.order_by(newest.desc()).limit(number)


def _ran(mapped: MappedTable) -> sa.ColumnElement[Any]:
    return _seconds(mapped, _instant(mapped, "started_at"), _instant(mapped, "completed_at"))


def _waited(mapped: MappedTable) -> sa.ColumnElement[Any]:
    """Return how long a job could have been claimed before it was; one that never was waited until its end."""
    enqueued, scheduled = _instant(mapped, "enqueued_at"), _instant(mapped, "scheduled_at")
    ready = _either(enqueued, scheduled)
    if enqueued is not None and scheduled is not None:
        ready = sa.case((scheduled > enqueued, scheduled), else_=ready)
    return _seconds(mapped, ready, _either(_instant(mapped, "started_at"), _instant(mapped, "completed_at")))


def _either(one: sa.ColumnElement[Any] | None, other: sa.ColumnElement[Any] | None) -> sa.ColumnElement[Any] | None:
    """Return the first of two times that isn't null."""
    if one is None or other is None:
        return one if one is not None else other
    return sa.func.coalesce(one, other, type_=one.type)


def _seconds(
    mapped: MappedTable, start: sa.ColumnElement[Any] | None, end: sa.ColumnElement[Any] | None
) -> sa.ColumnElement[Any]:
    if start is None or end is None:
        return sa.null()
    return mapped.dialect.seconds_between(start, end)


def _instant(mapped: MappedTable, key: ColumnKey) -> sa.ColumnElement[Any] | None:
    """Return a time that can be taken from any other of the table's; null where it is none."""
    if not mapped.has(key):
        return None
    form, column = mapped.times[key], mapped.column(key)
    time: sa.ColumnElement[Any] = sa.type_coerce(form.comparable(column), time_type(mapped, key))
    if len(set(mapped.times.values())) > 1:
        time = mapped.dialect.in_utc(time, form)
    is_time = mapped.dialect.is_time(column)
    if mapped.dialect.name == "postgresql":  # where a time may be infinite, and then nothing can be taken from it
        is_time = sa.and_(is_time, sa.func.isfinite(column))
    return sa.case((is_time, time), else_=sa.null())


def _basis(mapped: MappedTable, number: int) -> Phrase:
    return Phrase("at most %(number)s jobs, %(which)s", number=float(number), which=mapped.newest_first[1])


def _figures(row: sa.Row[Any]) -> Figures:
    # SQLite tells times as fractions of a day, which are no whole milliseconds.
    lengths = (round(float(each), 3) for each in (row.p50, row.p95, row.p99, row.longest))
    p50, p95, p99, longest = (timedelta(seconds=each) for each in lengths)
    return Figures(_word(row.kind), _word(row.queue), row.jobs, p50, p95, p99, longest)


def _replayed(mapped: MappedTable, row: sa.Row[Any]) -> ReplayedKind:
    ended, queued, running = (int(number) for number in (row.ended, row.queued, row.running))
    succeeded = mapped.state_of(row.state) is JobState.SUCCEEDED
    return ReplayedKind(_word(row.kind), ended, queued, running, queued + running if succeeded else 0)


def _word(raw: object) -> str | None:
    return None if raw is None else str(raw).rstrip()
