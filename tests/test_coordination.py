"""Sweepers, workers and each other: no lock is needed to be right, none is kept, and none is waited for job by job."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.servers import EACH_KIND
from tests.test_liveness import leased, open_stand
from tests.test_races import (
    DEADLINE,
    FINISH,
    ROW_LOCKING,
    WAITING,
    after_first,
    bench,
    commits,
    elsewhere,
    host,
    on_databases,
    statuses,
    stuck,
)
from tests.test_races import until as until_told
from tests.test_worker import BEAT, LEASE, SELDOM, shop, until
from unstick.admin import AdminService
from unstick.domain.errors import LateFinishError, LeaseLostError, SourceUnavailableError
from unstick.domain.policy import Policy
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.domain.work import Beat, WorkerIdentity
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import WRITES, open_engine
from unstick.sql.queue import SqlJobQueue
from unstick.sql.source import RULED_FROM
from unstick.wiring import worker_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.jobs import SqlBench
    from tests.servers import Database
    from tests.test_worker import Shop
    from unstick.domain.job import JobId

DATABASES = EACH_KIND

__all__ = ["bench", "leased", "shop"]

HOUR = timedelta(hours=1)
T = TypeVar("T")


def url_of(bench: SqlBench) -> str:
    return bench.engine.url.render_as_string(hide_password=False)


@asynccontextmanager
async def queue_on(bench: SqlBench) -> AsyncIterator[SqlJobQueue]:
    """The jobs as the worker kit sees them, through connections of its own."""
    engine = open_engine(url_of(bench))
    try:
        yield SqlJobQueue("main", bench.jobs, EngineConnections(engine))
    finally:
        await engine.dispose()


# Any moment


NUMBER = 45
"""More jobs than a sweep executes statements before its write."""

Deed = Callable[[SqlJobQueue, int], Coroutine[Any, Any, bool]]


def worker_number(number: int) -> WorkerIdentity:
    return WorkerIdentity(host="h", pid=number, boot_id="b")


async def _with_leases_over(bench: SqlBench) -> Deed:
    now = await bench.source.clock()
    for number in range(1, NUMBER + 1):
        await bench.put({"worker": worker_number(number).name}, started=timedelta(minutes=1))
    beat_at = now - timedelta(minutes=2)
    async with bench.engine.begin() as connection:
        for number in range(1, NUMBER + 1):
            row = {"id": worker_number(number).name, "host": "h", "pid": number, "began_at": beat_at}
            row |= {"beat_at": beat_at, "expires_at": now - timedelta(minutes=1)}
            await connection.execute(sa.insert(tables.leases).values(row))

    async def beat(queue: SqlJobQueue, number: int) -> bool:
        await queue.beat(worker_number(number), LEASE, ())
        return True

    return beat


async def _with_old_heartbeats(bench: SqlBench) -> Deed:
    await bench.put(*({"status": "queued", "started_at": None} for _ in range(NUMBER)))
    async with queue_on(bench) as queue:
        claimed = {job.id: job for job in await queue.claim(worker_number(1), limit=NUMBER)}
    old = bench.store(await bench.source.clock() - HOUR)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).values(started_at=old, updated_at=old))

    async def beat(queue: SqlJobQueue, number: int) -> bool:
        return await queue.beat(worker_number(1), LEASE, [Beat(job=claimed[number])]) == {number}

    return beat


async def _waiting(bench: SqlBench) -> Deed:
    for number in range(1, NUMBER + 1):  # each longer than those before, which overtake it: no backlog waits its turn
        waited = HOUR + number * timedelta(minutes=1)
        await bench.put({"status": "queued", "started_at": None}, started=waited)

    async def claim(queue: SqlJobQueue, number: int) -> bool:
        return bool(await queue.claim(worker_number(number), limit=1, job_id=number))

    return claim


@pytest.mark.parametrize("ruled_from", [1, RULED_FROM], ids=["ruled", "each"])
@pytest.mark.parametrize(
    ("deeds", "leases"),
    [(_with_leases_over, True), (_with_old_heartbeats, False), (_waiting, True)],
    ids=["lease", "heartbeat", "claim"],
)
async def test_a_beat_or_a_claim_at_any_moment_before_the_write_is_heeded(
    database: Database, deeds: Callable[[SqlBench], Coroutine[Any, Any, Deed]], leases: bool, ruled_from: int
) -> None:
    """R10, R11: after each statement of one sweep another job gives its sign of life, until the sweep locks any."""
    bench = (await open_stand(database, leases=leases)).bench
    vars(bench.source)["_ruled_from"] = ruled_from
    deed = await deeds(bench)
    done: list[int] = []
    failed: list[int] = []

    with aside(bench) as (queue, run):

        def act() -> None:
            number = len(done) + 1
            done.append(number)
            if not run(lambda: deed(queue, number)):
                failed.append(number)

        with after_each_statement_before_the_write(bench.engine, act):
            report = await bench.sweep()

    rows = await bench.rows()
    await bench.close()
    assert failed == []
    assert 5 < len(done) < NUMBER
    assert [row["id"] for row in rows if row["status"] != "failed"] == done
    assert report.tally.of(outcome=Outcome.APPLIED) == NUMBER - len(done)


@contextmanager
def aside(bench: SqlBench) -> Iterator[tuple[SqlJobQueue, Callable[[Callable[[], Coroutine[Any, Any, bool]]], bool]]]:
    """A worker in a thread and loop of its own, that works while all else stands still."""
    engine, loop = open_engine(url_of(bench)), asyncio.Runner()
    with ThreadPoolExecutor(1) as pool:

        def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
            return pool.submit(lambda: loop.run(work())).result(DEADLINE)

        yield SqlJobQueue("main", bench.jobs, EngineConnections(engine)), run
        run(engine.dispose)
        pool.submit(loop.close).result(DEADLINE)


@contextmanager
def after_each_statement_before_the_write(engine: AsyncEngine, act: Callable[[], None]) -> Iterator[None]:
    """Act after each of our statements until one locks or writes jobs; on SQLite not while we hold its one lock."""
    writing = False

    def before(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        nonlocal writing
        writing |= "UPDATE ai_generation_jobs" in statement or "FOR UPDATE" in statement

    def after(connection: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        locked = engine.dialect.name == "sqlite" and connection.get_execution_options().get(WRITES, False)
        if not writing and not locked:
            act()

    event.listen(engine.sync_engine, "before_cursor_execute", before)
    event.listen(engine.sync_engine, "after_cursor_execute", after)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", before)
        event.remove(engine.sync_engine, "after_cursor_execute", after)


async def test_the_attempt_that_a_retry_replaces_is_stopped_by_its_next_beat_and_ends_nothing(shop: Shop) -> None:
    """R12: two attempts may overlap for as long as a beat, no more; what the first one comes to is refused."""
    job_id = await shop.put()
    async with shop.worker(every=BEAT) as first, shop.worker() as second:
        (job,) = await first.claim()

        async def work() -> None:
            async with first.heartbeat(job):
                await asyncio.Event().wait()

        working = asyncio.create_task(work())

        async def replaced() -> bool:
            await shop.expire_leases()
            return bool((await shop.sweep()).tally.of(outcome=Outcome.APPLIED))

        with beats_held_up():
            await until(replaced)
            await shop.execute(sa.update(tables.jobs).values(scheduled_at=None))
            (fresh,) = await second.claim()
        with pytest.raises(LeaseLostError):
            await asyncio.wait_for(working, DEADLINE)
        before = await shop.row(job_id)
        with pytest.raises(LateFinishError):
            await first.finish(job)

        assert await shop.row(job_id) == before
        assert (before["status"], before["worker"], before["attempt"]) == ("running", fresh.worker, 1)


@contextmanager
def beats_held_up() -> Iterator[None]:
    """Have workers' beats wait before their transactions begin; one that is under way comes to its end."""
    go_on = threading.Event()
    first = ("BEGIN IMMEDIATE", "SELECT statement_timestamp", "SELECT UTC_TIMESTAMP")

    def hold_up(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if threading.current_thread().name == "unstick-heartbeats" and statement.startswith(first):
            go_on.wait(DEADLINE)

    event.listen(sa.Engine, "before_cursor_execute", hold_up)
    try:
        yield
    finally:
        go_on.set()
        event.remove(sa.Engine, "before_cursor_execute", hold_up)


# Locks


async def test_nothing_of_ours_is_locked_between_two_transactions(bench: SqlBench) -> None:
    """K1, K2: no lock outlives its transaction, be it of a sweep or of a worker; so none can be lost with a connection.

    The server itself says so, after each batch of a sweep and while a worker has a job; and nothing asks for a lock
    of the kind that MariaDB doesn't tell of.
    """
    asked: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        asked.append(statement.lower())

    event.listen(sa.Engine, "before_cursor_execute", note)
    await bench.put(*({} for _ in range(6)))
    bench.batches_of(2)
    vars(bench.source._connections)["side_by_side"] = False  # a page read ahead would be a transaction
    seen: list[Sequence[object]] = []

    def after_a_batch(_looked_at: int) -> None:
        elsewhere(look)

    async def look() -> None:
        found = await locks(bench)
        for _ in range(10):
            if not found:
                break
            await asyncio.sleep(0.12)  # InnoDB looks once in 0.1 s, whoever asks; nothing of ours moves meanwhile
            found = await locks(bench)
        seen.append(found)

    for action in (Action.RETRY, Action.MARK_FAILED):
        await sweep(bench.watched(), SweepOrder(actor="test", action=action), after_a_batch)
        await bench.execute("UPDATE ai_generation_jobs SET status = 'running', started_at = created_at")
    await bench.execute("UPDATE ai_generation_jobs SET status = 'queued', completed_at = NULL, scheduled_at = NULL")
    async with worker_on("main", url_of(bench), bench.jobs, every=SELDOM, lease=LEASE) as worker:
        assert await worker.claim()
        await look()
    event.remove(sa.Engine, "before_cursor_execute", note)

    assert seen == [[]] * 7
    assert any("update ai_generation_jobs" in statement for statement in asked)
    assert [s for s in asked for word in ("get_lock", "advisory", "lock table") if word in s] == []


LOCKS = {
    "postgresql": """SELECT l.locktype, l.mode, a.query FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
                     WHERE a.datname = current_database() AND a.backend_type = 'client backend'
                       AND pid <> pg_backend_pid()""",
    "mysql": """SELECT p.id, p.info FROM information_schema.processlist AS p
                JOIN information_schema.innodb_trx AS t ON t.trx_mysql_thread_id = p.id
                WHERE p.db = DATABASE() AND p.id <> CONNECTION_ID()""",
}


async def locks(bench: SqlBench) -> Sequence[object]:
    """What connections to this test's database hold, as the server says; SQLite's file is had by who asks for it."""
    name = bench.engine.dialect.name
    async with host(bench) as app, app.connect() as connection:
        if name != "sqlite":
            statement = LOCKS["postgresql" if name == "postgresql" else "mysql"]
            return (await connection.execute(sa.text(statement))).all()
        try:
            await connection.exec_driver_sql("PRAGMA busy_timeout = 0")
            await connection.exec_driver_sql("BEGIN EXCLUSIVE")
        except DBAPIError as error:
            return [str(error)]
        await connection.rollback()
        return []


CUT = {
    "postgresql": """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()""",
    "mysql": """SELECT CONCAT('KILL ', id) FROM information_schema.processlist
                WHERE db = DATABASE() AND id <> CONNECTION_ID()""",
}


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("action", CHANGES)
async def test_a_sweep_that_loses_its_connections_midway_trusts_nothing_it_knew(
    bench: SqlBench, action: Action
) -> None:
    """K2: it goes on with new ones; a job that was finished in between, though it was read before, is left."""
    ids = await stuck(bench, 9)
    bench.batches_of(3)
    if action is Action.RETRY:  # a page that is read ahead would be cut off, which is an error; a ruling reads none
        vars(bench.source._connections)["side_by_side"] = False
    name = "postgresql" if bench.engine.dialect.name == "postgresql" else "mysql"
    cut: list[int] = []

    async def meanwhile() -> None:
        async with host(bench) as app:
            async with app.connect() as connection:
                found = (await connection.execute(sa.text(CUT[name]))).scalars().all()
                cut.append(len(found))
                for statement in found if name == "mysql" else ():
                    await connection.execute(sa.text(statement))
            assert await commits(app, FINISH, ids[7]) == 1

    def after_a_batch(_looked_at: int) -> None:
        if not cut:
            elsewhere(meanwhile)

    report = await sweep(bench.watched(), SweepOrder(actor="test", action=action), after_a_batch)

    assert cut[0] > 0
    assert report.tally.of(outcome=Outcome.APPLIED) == 8
    ours = "failed" if action is Action.MARK_FAILED else "queued"
    assert await statuses(bench) == [ours] * 7 + ["completed", ours]


@on_databases("pgbouncer")
async def test_behind_a_pgbouncer_that_pools_transactions_sweeps_and_workers_do_as_ever(bench: SqlBench) -> None:
    """K1: each transaction is given another of the server's connections, and nothing of ours is kept on any."""
    async with each_connection(bench) as settings:
        pass
    async with bench.engine.connect() as connection:
        backends = set[int]()
        for _ in range(POOLED):
            backends.add((await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one())
            await connection.rollback()
    ids = await stuck(bench, 12)
    bench.batches_of(2)
    replica = bench.another()
    vars(replica._connections.dialect)["batch_size"] = 2
    watched = [bench.watched(), replace(bench.watched(), source=replica)]
    orders = [SweepOrder(actor="test", action=Action.RETRY), SweepOrder(actor="test")]

    reports = await asyncio.gather(*(sweep(one, order) for one, order in zip(watched, orders, strict=True)))
    async with AsyncSession(bench.engine) as session:
        monitored = await AdminService(session, jobs=bench.jobs, policy=Policy()).monitor_stuck_jobs()
    await bench.put({"status": "queued", "started_at": None})
    async with worker_on("main", url_of(bench), bench.jobs, every=BEAT, lease=LEASE) as worker:
        (job,) = await worker.claim()
        async with worker.heartbeat(job):
            seen: set[object] = set()

            async def beats() -> bool:
                seen.add((await bench.row(job.id))["updated_at"])
                return len(seen) > POOLED

            await until(beats)
        await worker.finish(job)

    assert len(backends) > 1
    applied = Counter(r.job_id for r in await bench.recoveries() if r.outcome == Outcome.APPLIED)
    assert applied == Counter(str(job_id) for job_id in ids)
    assert sum(report.tally.of(outcome=Outcome.APPLIED) for report in reports) == 12
    assert monitored["stuck_jobs"]["total"] == 0
    assert (await bench.row(job.id))["status"] == "completed"
    assert await locks(bench) == []
    async with each_connection(bench) as after:
        assert after == settings


POOLED = 4
"""How many connections to the server there are behind tests/servers.py's pgbouncer."""


@asynccontextmanager
async def each_connection(bench: SqlBench) -> AsyncIterator[list[Sequence[object]]]:
    """Have all of the server's connections at once, each in a transaction, and read what we set for a transaction."""
    names = ("lock_timeout", "statement_timeout", "enable_seqscan", "enable_indexscan", "jit")
    limits = sa.text("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(bench.engine.connect()) for _ in range(POOLED)]
        yield [tuple((await connection.execute(limits)).one()) for connection in opened]


@on_databases(*ROW_LOCKING)
async def test_a_job_that_a_claim_skipped_is_claimed_when_it_is_free(bench: SqlBench) -> None:
    """K5: SKIP LOCKED forgets nothing, though who held the row did nothing with it."""
    await bench.put(*({"status": "queued", "started_at": None} for _ in range(3)))
    async with queue_on(bench) as queue, host(bench) as app, app.connect() as holder:
        for job_id in (1, 3):
            await holder.execute(sa.text(f"SELECT 1 FROM ai_generation_jobs WHERE id = {job_id} FOR UPDATE"))
        while_held = await queue.claim(worker_number(1), limit=3)
        await holder.rollback()
        then = await queue.claim(worker_number(1), limit=3)

    assert [[job.id for job in jobs] for jobs in (while_held, then)] == [[2], [1, 3]]


@on_databases(*ROW_LOCKING)
async def test_a_sweep_and_a_beat_of_the_job_it_has_in_hand_both_come_to_an_end(leased: SqlBench) -> None:
    """K4: the beat wants the lease and then the job; neither waits for the other in turn, and one of them is right."""
    await leased.put({"status": "queued", "started_at": None})
    beating: list[Future[frozenset[JobId]]] = []
    pool = ThreadPoolExecutor(1)

    async def beat() -> frozenset[JobId]:
        async with queue_on(leased) as queue:
            try:
                return await queue.beat(worker_number(1), LEASE, [Beat(job=job, progress=50)])
            except SourceUnavailableError:
                return frozenset()

    async def it_waits_or_is_over() -> bool:
        async with host(leased) as app, app.connect() as connection:
            waiting = WAITING["postgresql" if leased.engine.dialect.name == "postgresql" else "mysql"]
            return beating[0].done() or bool((await connection.execute(sa.text(waiting))).scalar_one())

    def with_the_job_in_hand() -> None:
        beating.append(pool.submit(lambda: asyncio.run(beat())))
        elsewhere(lambda: until_told(it_waits_or_is_over, every=0.12))  # InnoDB looks once in 0.1 s

    async with queue_on(leased) as queue:
        await queue.join(worker_number(1), LEASE)
        (job,) = await queue.claim(worker_number(1), limit=1)
    async with leased.engine.begin() as connection:
        over = await leased.source.clock() - HOUR
        await connection.execute(sa.update(tables.leases).values(expires_at=over))
    locking = "UPDATE ai_generation_jobs" if leased.engine.dialect.name == "postgresql" else "FOR UPDATE"
    with after_first(leased.engine, locking, with_the_job_in_hand):
        report = await leased.sweep()
    await asyncio.to_thread(beating[0].result, DEADLINE)
    pool.shutdown()
    held = await beat()  # a beat in the midst of the write can't know yet

    assert report.tally.of(outcome=Outcome.APPLIED) == (0 if held else 1)
    assert await statuses(leased) == (["running"] if held else ["failed"])


# What it costs


@pytest.mark.parametrize("action", CHANGES)
async def test_what_a_sweep_asks_and_waits_for_grows_with_batches_and_not_with_jobs(
    bench: SqlBench, action: Action
) -> None:
    """P5: as many statements for thirty jobs as for three, be their rows free or held; nothing is waited for by job."""

    async def asked(number: int, *, held: bool) -> int:
        said: list[str] = []

        def note(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
            said.append(statement)

        await bench.put(*({} for _ in range(number)))
        async with host(bench) as app, app.connect() as holder:
            if held:
                await holder.execute(sa.text("SELECT 1 FROM ai_generation_jobs FOR UPDATE"))
            event.listen(bench.engine.sync_engine, "before_cursor_execute", note)
            report = await bench.sweep(action)
            event.remove(bench.engine.sync_engine, "before_cursor_execute", note)
        assert report.tally.of(outcome=Outcome.LOST_RACE if held else Outcome.APPLIED) == report.tally.of() == number
        await bench.execute("DELETE FROM ai_generation_jobs")
        return len(said)

    await bench.sweep(action)  # the table is read once
    await asked(3, held=False)  # and what became of a sweep's jobs is looked up by the next one
    for held in (False, True) if bench.engine.dialect.name != "sqlite" else (False,):
        few, many = await asked(3, held=held), await asked(30, held=held)
        assert few == many
