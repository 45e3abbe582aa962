"""What a jobs table tells of the past: percentiles of durations, and what a threshold would have done.

All is worked out over a bounded sample, the newest jobs by an index: what is counted by the database, percentiles here.
Known weakness: naive times of a zone that sets its clocks make a job of that hour an hour longer or shorter.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from math import ceil
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

REPLAYED_JOBS = 20_000
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
            rows = (await connection.execute(succeeded(mapped))).all()
        runs = [(_word(row.kind), _word(row.queue), float(row.ran)) for row in rows if _is_length(row.ran)]
        waits = [(None, None, float(row.waited)) for row in rows if _is_length(row.waited)]
        return Durations(
            basis=_basis(mapped, USAGE_JOBS),
            runs=_by_class((kind, None, seconds) for kind, _, seconds in runs),
            runs_by_queue=_by_class(runs) if mapped.has("queue") else (),
            waits=next(iter(_by_class(waits)), None),
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


def succeeded(mapped: MappedTable) -> sa.Select[Any]:
    """Read how long the newest jobs that succeeded ran and waited."""
    sample = _sample(mapped, USAGE_JOBS).subquery("newest")
    told = (sample.c.kind, sample.c.queue, sample.c.ran, sample.c.waited)
    return sa.select(*told).where(sample.c.state.in_(mapped.words(JobState.SUCCEEDED)))


def _is_length(seconds: object) -> bool:
    return seconds is not None and float(str(seconds)) >= 0


def _by_class(lengths: Iterable[tuple[str | None, str | None, float]]) -> tuple[Figures, ...]:
    """Work out the figures of each kind and queue, of the most frequent ones."""
    grouped: defaultdict[tuple[str | None, str | None], list[float]] = defaultdict(list)
    for kind, queue, seconds in lengths:
        grouped[kind, queue].append(seconds)
    frequent = sorted(grouped, key=lambda each: (-len(grouped[each]), str(each)))[:MOST_KINDS]
    return tuple(_figures(*each, sorted(grouped[each])) for each in frequent)


def _figures(kind: str | None, queue: str | None, lengths: Sequence[float]) -> Figures:
    # SQLite tells times as fractions of a day, which are no whole milliseconds.
    told = (*(_at(lengths, share) for share in _PERCENTILES), lengths[-1])
    p50, p95, p99, longest = (timedelta(seconds=round(each, 3)) for each in told)
    return Figures(kind, queue, len(lengths), p50, p95, p99, longest)


def _at(lengths: Sequence[float], share: float) -> float:
    """Return the value at a share of all ranks, between the two nearest ones by straight line."""
    place, part = divmod(share * (len(lengths) - 1), 1)
    low, high = lengths[int(place)], lengths[ceil(share * (len(lengths) - 1))]
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
    rows = _sample(mapped, REPLAYED_JOBS, waits=queued_after is not None)
    sample = rows.add_columns(ended.label("ended")).subquery("newest")
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


def _sample(mapped: MappedTable, number: int, *, waits: bool = True) -> sa.Select[Any]:
    """Read the newest jobs: kind, queue and state, how long each ran, and how long it waited before that if asked."""
    newest, _ = mapped.newest_first
    keys: tuple[ColumnKey, ...] = ("kind", "queue")
    words = [(mapped.column(key) if mapped.has(key) else sa.null()).label(key) for key in keys]
    figures = [_ran(mapped).label("ran"), (_waited(mapped) if waits else sa.null()).label("waited")]
    rows = sa.select(*words, mapped.column("state").label("state"), *figures).select_from(mapped.table)
    return rows.order_by(newest.desc()).limit(number)


def _ran(mapped: MappedTable) -> sa.ColumnElement[Any]:
    return _seconds(mapped, _instant(mapped, "started_at"), _instant(mapped, "completed_at"))


def _waited(mapped: MappedTable) -> sa.ColumnElement[Any]:
    """Return how long a job could have been claimed before it was; one that never was waited until its end."""
    enqueued, scheduled = _instant(mapped, "enqueued_at"), _instant(mapped, "scheduled_at")
    ready = _either(enqueued, scheduled)
    if enqueued is not None and scheduled is not None:
        ready = sa.case((mapped.dialect.seconds_between(enqueued, scheduled) > 0, scheduled), else_=ready)
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
    time: sa.ColumnElement[Any] = sa.type_coerce(column, time_type(mapped, key))
    if len(set(mapped.times.values())) > 1:
        time = mapped.dialect.in_utc(time, form)
    is_time = mapped.dialect.is_time(column)
    if mapped.dialect.name == "postgresql":  # where a time may be infinite, and then nothing can be taken from it
        is_time = sa.and_(is_time, sa.func.isfinite(column))
    return sa.case((is_time, time), else_=sa.null())


def _basis(mapped: MappedTable, number: int) -> Phrase:
    thousands, which = number // 1_000, mapped.newest_first[1]  # which every language parts in its own way
    return Phrase("at most %(thousands)s,000 jobs, %(which)s", thousands=thousands, which=which)


def _replayed(mapped: MappedTable, row: sa.Row[Any]) -> ReplayedKind:
    ended, queued, running = (int(number) for number in (row.ended, row.queued, row.running))
    succeeded = mapped.state_of(row.state) is JobState.SUCCEEDED
    return ReplayedKind(_word(row.kind), ended, queued, running, queued + running if succeeded else 0)


def _word(raw: object) -> str | None:
    return None if raw is None else str(raw).rstrip()
