"""What it costs that 10,000 running jobs say every ten seconds that they live: by lease, in batches, one by one.

Beats follow one another without the ten seconds between: ten minutes' worth take less than one, and autovacuum has
less time than it would have.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from tests.jobs import COLUMNS, declared, jobs_table

from benchmarks.filling import TABLE, Filling
from benchmarks.neighbours import Neighbours, settle
from benchmarks.processor import bytes_written, processor_seconds
from benchmarks.report import Figure, Goal
from unstick.domain.work import BEAT_EVERY, LEASE, Beat, WorkerIdentity
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.queue import SqlJobQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from benchmarks.databases import Database, Site
    from benchmarks.measures import Sizes
    from unstick.domain.work import ClaimedJob

_WORKERS = 100
JOBS_EACH = 100
_BEATS = 60
_BATCHES_EVERY = 2
_ONE_BY_ONE_EVERY = 30
"""Ten minutes of one UPDATE a job take as long as that: it beats with every thirtieth beat of the leases."""
_SHARE = Goal(bound=0.5, unit=" %")
_OF_ONE_BY_ONE = Goal(bound=0.01)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one beat of all jobs cost."""

    statements: int
    cpu: float
    """Seconds of the server's processor."""
    seconds: float
    """At the client, one connection for all."""
    wal: int
    """Bytes."""


@dataclass(kw_only=True)
class Contender:
    """One way to beat, in a database of its own."""

    name: str
    database: Database
    beat: Callable[[], Awaitable[int]]
    """Has all jobs beat once; returns the number of statements."""
    table: str
    """What it writes to."""
    every: int = 1
    bytes_before: int = 0
    costs: list[Cost] = field(default_factory=list)

    async def take_turn(self, number: int) -> None:
        if number % self.every:
            return
        with psycopg.connect(self.database.raw, autocommit=True) as watcher:
            cpu, wal, begin = processor_seconds(watcher), bytes_written(watcher), time.perf_counter()
            statements = await self.beat()
            seconds = time.perf_counter() - begin
            self.costs.append(
                Cost(
                    statements=statements, seconds=seconds,
                    cpu=processor_seconds(watcher) - cpu, wal=bytes_written(watcher) - wal,
                )
            )  # fmt: skip


def heartbeats(site: Site, sizes: Sizes) -> list[Figure]:
    """What it costs the database that 10,000 running jobs say every ten seconds that they live.

    The three ways take turns, beat by beat: the kit's lease for a worker with 100 jobs, the kit's one UPDATE for those
    100 where the table has only a column for heartbeats, and an UPDATE for each job. Beats follow one another without
    the ten seconds between; *busy* is the time that the server computed, of those ten seconds on one core.
    """
    if site.backend != "postgresql":
        return []
    workers, beats = (_WORKERS, _BEATS) if sizes.fewer_stuck >= _WORKERS * JOBS_EACH else (1, 2)
    with ExitStack() as stack:
        lent = stack.enter_context(site.fresh(Filling(finished=0, stuck=0, healthy=0)))
        databases = [stack.enter_context(Neighbours(lent=lent).without_jobs()) for _ in _WAYS]
        return asyncio.run(_beaten(databases, workers, beats))


async def _beaten(databases: list[Database], workers: int, beats: int) -> list[Figure]:
    async with AsyncExitStack() as stack:
        contenders = [
            await stack.enter_async_context(way(database, workers))
            for way, database in zip(_WAYS, databases, strict=True)
        ]
        for each in contenders:
            settle(each.database)
            each.bytes_before = _bytes(each)
        for number in range(beats):
            for each in contenders:
                await each.take_turn(number)
        return _figures(contenders, workers * JOBS_EACH)


@asynccontextmanager
async def _leases(database: Database, workers: int) -> AsyncIterator[Contender]:
    """The kit: one row a worker vouches for its jobs, and it reads which of them it still has."""
    extra = (sa.Column("worker", sa.String(100)), sa.Column("token", sa.Integer))
    async with _kit(database, workers, *extra) as beat:
        yield Contender(name="lease a worker", database=database, beat=beat, table="unstick_leases")


@asynccontextmanager
async def _batches(database: Database, workers: int) -> AsyncIterator[Contender]:
    """The kit where the table has only a column for heartbeats: one UPDATE for all jobs of a worker."""
    async with _kit(database, workers) as beat:
        yield Contender(name="UPDATE a worker", database=database, beat=beat, table=TABLE, every=_BATCHES_EVERY)


@asynccontextmanager
async def _one_by_one(database: Database, workers: int) -> AsyncIterator[Contender]:
    """As it is usually written: each job's own UPDATE, on one connection for all of them."""
    async with _kit(database, workers):
        update = f"UPDATE {TABLE} SET updated_at = now() WHERE id = %s".encode()
        async with await psycopg.AsyncConnection.connect(database.raw, autocommit=True) as connection:
            ids = [row[0] for row in await (await connection.execute(f"SELECT id FROM {TABLE}".encode())).fetchall()]

            async def beat() -> int:
                for job_id in ids:
                    await connection.execute(update, (job_id,))
                return len(ids)

            yield Contender(name="UPDATE a job", database=database, beat=beat, table=TABLE, every=_ONE_BY_ONE_EVERY)


_WAYS = (_leases, _batches, _one_by_one)


@asynccontextmanager
async def _kit(database: Database, workers: int, *extra: sa.Column[Any]) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Lend what has all workers beat once for the jobs they have claimed, by the worker kit's own code."""
    table = jobs_table(*extra, name=TABLE)
    engine = open_engine(database.url)
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
    database.execute(
        f"INSERT INTO {TABLE} (id, status, job_type, created_at) SELECT i, 'queued', 'quiz', now()"
        f" FROM generate_series(1, {workers * JOBS_EACH}) AS i"
    )
    jobs = declared(table, columns=COLUMNS | {column.name: column.name for column in extra})
    queue = SqlJobQueue("main", jobs, EngineConnections(engine))
    held = [await _claimed(queue, number) for number in range(workers)]
    count = _count_statements(engine.sync_engine)

    async def beat() -> int:
        before = len(count)
        for worker, claimed in held:
            still = await queue.beat(worker, LEASE, [Beat(job=job) for job in claimed])
            assert len(still) == len(claimed), f"{worker.name} has lost {len(claimed) - len(still)} jobs"
        return len(count) - before

    yield beat
    await engine.dispose()


async def _claimed(queue: SqlJobQueue, number: int) -> tuple[WorkerIdentity, list[ClaimedJob]]:
    worker = WorkerIdentity(host="bench", pid=number, boot_id="1")
    await queue.join(worker, LEASE)
    claimed = await queue.claim(worker, limit=JOBS_EACH)
    assert len(claimed) == JOBS_EACH
    return worker, list(claimed)


def _count_statements(engine: sa.Engine) -> list[None]:
    """Return a list that grows by one with each statement."""
    sent: list[None] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *_: sent.append(None))
    return sent


def _figures(contenders: list[Contender], jobs: int) -> list[Figure]:
    one_by_one = contenders[-1].costs
    return [figure for each in contenders for figure in _figures_of(each, one_by_one, jobs)]


def _figures_of(contender: Contender, one_by_one: list[Cost], jobs: int) -> list[Figure]:
    costs, every = contender.costs, BEAT_EVERY.total_seconds()
    is_lease = contender.table == "unstick_leases"
    beside = costs[:: _ONE_BY_ONE_EVERY // contender.every]
    ratios = [one.cpu / other.cpu for one, other in zip(beside, one_by_one, strict=True)]
    figure = partial(Figure, database="postgresql", name=f"{contender.name}, {len(costs)} beats")
    measure = f"heartbeats of {jobs:,} jobs"
    busy = partial(
        figure, measure=f"{measure}, database busy", unit="%", values=[100 * cost.cpu / every for cost in costs]
    )
    return [
        *([busy(goal=_SHARE)] if is_lease else []),
        busy(ratios=ratios, against="UPDATE a job", goal=_OF_ONE_BY_ONE if is_lease else None),
        figure(measure=f"{measure}, at the client", unit="%", values=[100 * cost.seconds / every for cost in costs]),
        figure(measure=f"{measure}, statements", unit="a beat", values=[costs[-1].statements]),
        figure(measure=f"{measure}, WAL", unit="B a job", values=[cost.wal / jobs for cost in costs]),
        figure(measure=f"{measure}, HOT", unit="%", values=[_hot(contender)]),
        figure(measure=f"{measure}, bloat", unit="of its size", values=[_bytes(contender) / contender.bytes_before]),
    ]


def _bytes(contender: Contender) -> int:
    return contender.database.count(f"SELECT pg_total_relation_size('{contender.table}')")


def _hot(contender: Contender) -> float:
    """Return the share of updates that changed no index, in per cent."""
    share = "round(1000.0 * n_tup_hot_upd / greatest(n_tup_upd, 1))"
    with psycopg.connect(contender.database.raw) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        row = connection.execute(
            f"SELECT {share} FROM pg_stat_user_tables WHERE relname = '{contender.table}'".encode()
        ).fetchone()
    assert row is not None
    return float(row[0]) / 10
