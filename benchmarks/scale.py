"""What grows when a table is parted by time and many replicas watch it: measured where it can be tried here.

`benchmarks.model` takes these figures further than this machine goes.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from tests.jobs import COLUMNS, STATES

from benchmarks.filling import TABLE, Filling
from benchmarks.measures import percentile
from benchmarks.neighbours import Neighbours, settle, write_config
from benchmarks.processor import bytes_written, processor_seconds
from benchmarks.report import Figure, Goal
from benchmarks.service import metered
from unstick.config import load_settings
from unstick.domain.leadership import LEADS_FOR
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.leaders import SqlLeaders
from unstick.wiring import open_watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.databases import Database, Site
    from benchmarks.measures import Sizes
    from unstick.pipeline.watched import Watched

YEAR, DECADE = 12, 120
"""Months, each a partition of its own."""
_DAYS = 30
_HEALTHY = 1_000
_REPLICAS = 100
_SECONDS = 4
_LOOKS = 20
MEASURE = "beyond this machine"


def scale(site: Site, sizes: Sizes) -> list[Figure]:
    """What a look asks of a table that is parted by month, and what it costs that replicas ask for one lease.

    The tables are unlogged, for only reading is measured. A look is a whole sweep that plans and changes nothing, by a
    preset with `parted_by`, for the key of a parted table has the time in it; what is told is the database's part.
    """
    if site.backend != "postgresql":
        return []
    many, few = sizes.histories[-1], sizes.histories[0]
    replicas = min(_REPLICAS, sizes.stuck // 10)
    with site.fresh(Filling(finished=0, stuck=0, healthy=0)) as lent:
        neighbours = Neighbours(lent=lent)
        with (
            _parted(neighbours, few, YEAR) as year,
            _parted(neighbours, few, DECADE) as decade,
            _parted(neighbours, many, YEAR) as large,
        ):
            figures = asyncio.run(_looked(year, decade, large, few, many))
            figures += [_scanned(large, many)]
            figures += asyncio.run(_kept(year))
        figures += asyncio.run(_led(lent, replicas, _SECONDS if sizes.rounds > 1 else 0.5))
    return figures


# The looks


@contextmanager
def _parted(neighbours: Neighbours, rows: int, months: int) -> Iterator[Database]:
    """Lend a table of finished jobs with a partition for each month, and healthy open ones in the newest."""
    with neighbours.without_jobs() as database:
        preset = database.config.with_suffix(".preset.toml")
        preset.write_text(_preset())
        write_config(database.config, {"url": database.url, "preset": str(preset)})
        database.execute(_CREATE, *_partitions(rows, months), _open_jobs(), *_INDEXES)
        settle(database)
        yield database


_CREATE = f"""
CREATE TABLE {TABLE} (
    id bigint NOT NULL, status varchar(20) NOT NULL, job_type varchar(50) NOT NULL, created_at timestamptz NOT NULL,
    scheduled_at timestamptz, started_at timestamptz, updated_at timestamptz, completed_at timestamptz,
    success boolean, error_message text, attempt integer NOT NULL DEFAULT 1
) PARTITION BY RANGE (created_at)
"""
_INDEXES = (
    f"ALTER TABLE {TABLE} ADD PRIMARY KEY (id, created_at)",
    f"CREATE INDEX ON {TABLE} (status, started_at) WHERE completed_at IS NULL",
)


def _partitions(rows: int, months: int) -> Iterator[str]:
    """Each takes its rows for itself: through the parent it would take half as long again."""
    each = rows // months
    for month in range(months):
        part = f"{TABLE}_{month}"
        since, until = (f"date_trunc('day', now()) - interval '{(month + after) * _DAYS - 2} days'" for after in (1, 0))
        yield f"""
            DO $$ BEGIN EXECUTE format(
                'CREATE UNLOGGED TABLE {part} PARTITION OF {TABLE} FOR VALUES FROM (%L) TO (%L)', {since}, {until}
            ); END $$
        """
        yield f"""
            INSERT INTO {part} (id, status, job_type, created_at, started_at, updated_at, completed_at, success)
            SELECT {month * each} + i, 'completed', 'quiz', at, at, at, at, true
            FROM (SELECT i, {since} + interval '{_DAYS - 2} days' * i / {each} AS at
                  FROM generate_series(1, {each}) AS i) AS job
        """


def _open_jobs() -> str:
    return f"""
        INSERT INTO {TABLE} (id, status, job_type, created_at, started_at, updated_at)
        SELECT -i, 'running', 'quiz', now(), now(), now() FROM generate_series(1, {_HEALTHY}) AS i
    """


def _preset() -> str:
    """Say of a host's parted table what a preset says: the only place where `parted_by` can be said."""
    columns = "\n".join(f'{key} = "{name}"' for key, name in COLUMNS.items())
    states = "\n".join(f"{state.value} = {list(words)}" for state, words in STATES.items())
    return f"""
system = "a host's jobs, parted by month"
databases = ["postgresql"]
table = "{TABLE}"
parted_by = "enqueued_at"
open = "{{jobs}}.completed_at IS NULL"
[columns]
{columns}
[states]
{states}
"""


async def _looked(year: Database, decade: Database, large: Database, few: int, many: int) -> list[Figure]:
    """Look at the three in turn."""
    asked: list[tuple[str, Any]] = []
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_watched(load_settings(each.config))) for each in (year, decade, large)
        ]
        for each in opened:
            await _look(each)
        with _asked_of(asked):
            await _look(opened[-1])
        turns = [[await _look(each) for each in opened] for _ in range(_LOOKS)]
    at_year, at_decade, at_large = (list(taken) for taken in zip(*turns, strict=True))
    figure = partial(Figure, measure=MEASURE, database="postgresql", unit="ms")
    return [
        figure(name=f"a look, {YEAR} partitions", at=f"{few:,}", values=at_year),
        figure(
            name=f"a look, {DECADE} partitions", at=f"{few:,}", values=at_decade,
            ratios=_over(at_decade, at_year), against=f"{YEAR} partitions",
        ),
        figure(
            name=f"a look, {YEAR} partitions", at=f"{many:,}", values=at_large,
            ratios=_over(at_large, at_year), against=f"{few:,}", goal=Goal(bound=1.3),
        ),
        figure(
            name="partitions that a look reads from end to end", at=f"{many:,}", unit="partitions",
            values=[_scans(large, asked)], goal=Goal(bound=0, unit=" partitions"),
        ),
    ]  # fmt: skip


async def _look(watched: Watched) -> float:
    """Return the milliseconds of a look's statements."""
    with metered() as spent:
        report = await sweep(watched, SweepOrder(actor="benchmark", dry_run=True))
    assert not report.tally.of(), "nothing was stuck"
    return sum(spent)


@contextmanager
def _asked_of(asked: list[tuple[str, Any]]) -> Iterator[None]:
    """Note the statements about the jobs' table that are sent within the block."""

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if TABLE in statement:
            asked.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def _scans(database: Database, asked: Sequence[tuple[str, Any]]) -> int:
    """Count the partitions of finished jobs that these statements are going to read from end to end."""
    with psycopg.connect(database.raw) as connection:
        plans = [
            "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}".encode(), parameters).fetchall())
            for statement, parameters in asked
        ]
    assert plans
    return sum(plan.count(f"Seq Scan on {TABLE}") for plan in plans)


def _scanned(database: Database, rows: int) -> Figure:
    """What reads the whole table: a look without an index that has only what is open."""
    read = f"SET LOCAL max_parallel_workers_per_gather = 0; SELECT count(*) FROM {TABLE} WHERE success IS NULL"
    seconds = database.execute(*read.split("; "))
    return Figure(
        measure=MEASURE, database="postgresql", name="one scan of the whole table", at=f"{rows:,}", unit="ms",
        values=[1000 * seconds],
    )  # fmt: skip


# What is kept


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What sweeps left behind."""

    seconds: float
    written: float
    kept: float


async def _kept(database: Database) -> list[Figure]:
    """Sweep with nothing stuck, and then with a thousand stuck jobs."""
    async with open_watched(load_settings(database.config)) as watched:
        await sweep(watched, SweepOrder(actor="benchmark"))
        idle = await _swept(database, watched, _LOOKS)
        database.execute(
            f"UPDATE {TABLE} SET started_at = now() - interval '2 hours', updated_at = now() - interval '2 hours'"
            f" WHERE completed_at IS NULL"
        )
        busy = await _swept(database, watched, 1)
    figure = partial(Figure, measure=MEASURE, database="postgresql")
    jobs = _HEALTHY
    return [
        figure(name="a sweep with nothing stuck, processor", unit="ms", values=[1000 * idle.seconds]),
        figure(name="a sweep with nothing stuck, written ahead", unit="B", values=[idle.written]),
        figure(name="a sweep with nothing stuck, kept", unit="B", values=[idle.kept]),
        figure(name="a recovered job, processor", unit="ms", values=[1000 * busy.seconds / jobs]),
        figure(name="a recovered job, written ahead", unit="B", values=[busy.written / jobs]),
        figure(name="a recovered job, kept", unit="B", values=[busy.kept / jobs]),
    ]


async def _swept(database: Database, watched: Watched, times: int) -> Spent:
    """Return what one of so many sweeps cost."""
    with psycopg.connect(database.raw, autocommit=True) as watcher:
        seconds, written, kept = processor_seconds(watcher), bytes_written(watcher), _own_bytes(watcher)
        for _ in range(times):
            await sweep(watched, SweepOrder(actor="benchmark"))
        return Spent(
            seconds=(processor_seconds(watcher) - seconds) / times,
            written=(bytes_written(watcher) - written) / times,
            kept=(_own_bytes(watcher) - kept) / times,
        )


def _own_bytes(watcher: psycopg.Connection[Any]) -> int:
    """Return how large Unstick's own tables are, with their indexes."""
    row = watcher.execute(
        "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relname LIKE 'unstick%'"
    ).fetchone()
    assert row is not None
    return int(row[0])


# Who leads


async def _led(database: Database, replicas: int, seconds: float) -> list[Figure]:
    """Have replicas ask for one source's lease again and again, each on a connection of its own."""
    async with AsyncExitStack() as stack:
        engines = [open_engine(database.url) for _ in range(replicas)]
        for each in engines:
            stack.push_async_callback(each.dispose)
        leaders = [SqlLeaders(EngineConnections(each)) for each in engines]
        await asyncio.gather(*(_ask(each, f"replica {place}", 0) for place, each in enumerate(leaders)))
        with psycopg.connect(database.raw, autocommit=True) as watcher:
            before, begin = processor_seconds(watcher), time.perf_counter()
            waits = await asyncio.gather(
                *(_ask(each, f"replica {place}", seconds) for place, each in enumerate(leaders))
            )
            took, spent = time.perf_counter() - begin, processor_seconds(watcher) - before
    taken = [wait for each in waits for wait in each]
    figure = partial(Figure, measure=MEASURE, database="postgresql", at=f"{replicas} replicas")
    return [
        figure(name="askings for one lease", unit="a second", values=[len(taken) / took]),
        figure(name="an asking for a lease, median", unit="ms", values=[median(taken)]),
        figure(name="an asking for a lease, p99", unit="ms", values=[percentile([0, *taken], 99)]),
        figure(name="an asking for a lease, processor", unit="ms", values=[1000 * spent / len(taken)]),
    ]


async def _ask(leaders: SqlLeaders, holder: str, seconds: float) -> list[float]:
    """Return the milliseconds that each asking took."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        begin = time.perf_counter()
        await leaders.claim("main", holder, LEADS_FOR + timedelta(minutes=1))
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def _over(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]
