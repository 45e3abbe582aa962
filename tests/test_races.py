"""Races that reapers lose, each run in one fixed order on real databases with connections that know nothing of us."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, open_bench
from unstick.admin import AdminService
from unstick.domain.errors import RecoveryStoppedError
from unstick.domain.job import JobId, JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import CHANGES, Action, BatchResult, Outcome
from unstick.domain.suspect import Suspect
from unstick.pipeline.shapes import cleanup_shape
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.pipeline.watched import Watched
from unstick.sql.connections import EngineConnections, SessionConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.ledger import SqlLedger
from unstick.sql.source import SqlSource
from unstick.testing.conformance import Ages, batch_of, look_at, suspects_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database

T = TypeVar("T")
HOUR = timedelta(hours=1)
ROW_LOCKING = ["postgres18", "postgres18-asyncpg", "postgres15", "mariadb"]
POSTGRES = ["postgres18", "postgres18-asyncpg", "postgres15"]
STEPWISE = ["sqlite", "mariadb"]
READING = "AS unlike"
"""What only the statement says that reads who is to be ruled on: the queued jobs first, then the running ones."""
DEADLINE = 15.0


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    opened = await open_bench(database)
    yield opened
    await opened.close()


def on_databases(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("database", names, indirect=True)


# The application's own hands: engines that Unstick never touched.


class HasEngine(Protocol):
    """What works on a database."""

    @property
    def engine(self) -> AsyncEngine: ...


@asynccontextmanager
async def host(bench: HasEngine, **options: Any) -> AsyncIterator[AsyncEngine]:  # noqa: ANN401
    engine = create_async_engine(bench.engine.url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


FINISH = (
    "UPDATE ai_generation_jobs SET status = 'completed', success = true, completed_at = CURRENT_TIMESTAMP "
    "WHERE id = :id AND status = 'running' AND attempt = :attempt"
)
BEAT = "UPDATE ai_generation_jobs SET updated_at = CURRENT_TIMESTAMP WHERE id = :id AND attempt = :attempt"
CLAIM = (
    "UPDATE ai_generation_jobs SET status = 'running', started_at = CURRENT_TIMESTAMP, attempt = attempt + 1 "
    "WHERE id = :id AND status = 'queued' AND attempt = :attempt"
)
RECLAIM = (
    "UPDATE ai_generation_jobs SET attempt = attempt + 1 WHERE id = :id AND status = 'running' AND attempt = :attempt"
)

RECLAIM_NOW = RECLAIM.replace("SET attempt", "SET started_at = CURRENT_TIMESTAMP, attempt")


async def say(connection: AsyncConnection, statement: str, job_id: JobId, attempt: int = 1) -> int:
    """Carry out one of the application's guarded writes; return how many rows it found."""
    result = await connection.execute(sa.text(statement), {"id": job_id, "attempt": attempt})
    return result.rowcount


async def commits(engine: AsyncEngine, statement: str, job_id: JobId) -> int:
    async with engine.begin() as connection:
        return await say(connection, statement, job_id)


def elsewhere(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run work to its end in a thread and loop of its own while everything here stands still."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result(timeout=2 * DEADLINE)


@contextmanager
def after_first(engine: AsyncEngine, fragment: str, act: Callable[[], None]) -> Iterator[list[str]]:
    """Act once, right after our first statement that holds this fragment."""
    seen: list[str] = []

    def hook(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if fragment in statement and not seen:
            seen.append(statement)
            act()

    event.listen(engine.sync_engine, "after_cursor_execute", hook)
    try:
        yield seen
    finally:
        event.remove(engine.sync_engine, "after_cursor_execute", hook)


@contextmanager
def after_each(engine: AsyncEngine, fragment: str, acts: list[Any]) -> Iterator[None]:
    """Act after each of our first statements that hold this fragment, one act after the other."""
    left = list(acts)

    def hook(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if fragment in statement and left:
            left.pop(0)()

    event.listen(engine.sync_engine, "after_cursor_execute", hook)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "after_cursor_execute", hook)
    assert left == []


async def until(condition: Callable[[], Coroutine[Any, Any, bool]], every: float = 0.005) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110 - the condition is the database's
            await asyncio.sleep(every)


WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type='Lock'",
    "mysql": """SELECT count(*) FROM information_schema.processlist AS p
                LEFT JOIN information_schema.innodb_trx AS t ON t.trx_mysql_thread_id = p.id
                WHERE p.db = DATABASE() AND (t.trx_state = 'LOCK WAIT' OR p.state = 'User lock')""",
}


async def somebody_waits(bench: SqlBench) -> bool:
    """Whether a connection to this test's database waits for a lock; the database itself says so."""
    async with bench.engine.connect() as connection:
        statement = WAITING["mysql" if bench.engine.dialect.name in {"mysql", "mariadb"} else "postgresql"]
        return bool((await connection.execute(sa.text(statement))).scalar_one())


async def _is_true(condition: bool) -> bool:
    return condition


async def stuck(bench: SqlBench, number: int, state: JobState = JobState.RUNNING) -> list[JobId]:
    ages = Ages(enqueued=2 * HOUR, started=2 * HOUR if state is JobState.RUNNING else None)
    return [await bench.add(state, ages) for _ in range(number)]


async def decided(bench: SqlBench, action: Action = Action.MARK_FAILED) -> Any:  # noqa: ANN401
    look = await look_at(bench)
    return batch_of(await suspects_of(bench, look), look, action)


async def statuses(bench: SqlBench) -> list[str]:
    return [row["status"] for row in await bench.rows()]


def outcomes(result: BatchResult, ids: list[JobId]) -> list[Outcome]:
    return [result.outcome(job_id) for job_id in ids]


# The worker writes first.


Way = Callable[[SqlBench, Watched], Coroutine[Any, Any, set[JobId]]]


async def by_decision(bench: SqlBench, watched: Watched) -> set[JobId]:
    """One batch of decisions on what was seen; returns what it says it recovered."""
    result = await watched.source.recover(await decided(bench))
    return set(result.applied)


async def by_retry(bench: SqlBench, watched: Watched) -> set[JobId]:
    result = await watched.source.recover(await decided(bench, Action.RETRY))
    return set(result.applied)


async def by_sweep(bench: SqlBench, watched: Watched) -> set[JobId]:
    """A whole sweep: rulings, then a look at what they left; returns what is recorded."""
    report = await sweep(watched, SweepOrder(actor="test"))
    applied = {int(r.job_id) for r in await bench.recoveries() if r.outcome == Outcome.APPLIED}
    assert report.tally.of(outcome=Outcome.APPLIED) == len(applied)
    return {*applied}


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("way", [by_decision, by_retry, by_sweep])
async def test_what_a_worker_has_written_but_not_committed_is_left_at_once(bench: SqlBench, way: Way) -> None:
    """R1, R4, K3: a finish, a beat and a claim in flight; no statement of ours waits for them (SKIP LOCKED)."""
    running = await stuck(bench, 4)
    queued = await stuck(bench, 2, JobState.QUEUED)
    async with host(bench) as app, app.connect() as worker:
        found = [
            await say(worker, FINISH, running[0]),
            await say(worker, BEAT, running[1]),
            await say(worker, CLAIM, queued[0]),
        ]
        # Nothing commits meanwhile: a wait would end in a lock timeout, and that in an error.
        applied = await way(bench, bench.watched())
        await worker.commit()

    assert found == [1, 1, 1]
    assert applied == {running[2], running[3], queued[1]}
    for job_id in (running[0], running[1], queued[0]):
        assert await bench.outcomes(job_id) == [Outcome.LOST_RACE]
    rows = await bench.rows()
    ours = "queued" if way is by_retry else "failed"
    assert [row["status"] for row in rows] == ["completed", "running", ours, ours, "running", ours]
    assert (rows[0]["success"], rows[0]["error_message"]) == (True, None)
    assert rows[4]["attempt"] == 2


async def test_what_changes_between_finding_and_ruling_is_left(bench: SqlBench) -> None:
    """R1, R2, R4: a ruling is applied to the row as it stands, not as it stood when its id was read."""
    if bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(bench.engine)  # the ids are still being read when the others write
    running = await stuck(bench, 5)
    queued = await stuck(bench, 2, JobState.QUEUED)
    over = "UPDATE ai_generation_jobs SET completed_at = CURRENT_TIMESTAMP WHERE id = :id AND attempt = :attempt"
    found: list[int] = []

    async def meanwhile(*writes: tuple[str, JobId]) -> None:
        async with host(bench) as app:
            found.extend([await commits(app, statement, job_id) for statement, job_id in writes])

    ended = ((FINISH, running[0]), (BEAT, running[1]), (RECLAIM_NOW, running[2]), (over, running[3]))
    acts = [lambda: elsewhere(lambda: meanwhile((CLAIM, queued[0]))), lambda: elsewhere(lambda: meanwhile(*ended))]
    with after_each(bench.engine, READING, acts):
        report = await bench.sweep()

    assert found == [1] * 5
    assert report.tally.of(outcome=Outcome.APPLIED) == 2
    assert await statuses(bench) == ["completed", "running", "running", "running", "failed", "running", "failed"]
    assert {r.job_id for r in await bench.recoveries() if r.outcome == Outcome.APPLIED} == {
        str(running[4]),
        str(queued[1]),
    }


@on_databases("sqlite", "postgres18", "mariadb")
async def test_what_a_job_held_is_recorded_to_the_letter_though_that_changed_under_a_ruling(bench: SqlBench) -> None:
    """R2: jobs alike share a record of what they held; one that holds anything else by then gets its own."""
    if bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(bench.engine)  # the ids are still being read when the other writes
    await bench.put(*({"error_message": "timeout"} for _ in range(3)))

    async def meanwhile() -> None:
        async with host(bench) as app, app.begin() as connection:
            await connection.execute(sa.text("UPDATE ai_generation_jobs SET error_message = 'Timeout' WHERE id = 2"))

    with after_each(bench.engine, READING, [lambda: None, lambda: elsewhere(meanwhile)]):
        await bench.sweep()

    held = {record.job_id: json.loads(record.pre_image)["error_message"] for record in await bench.recoveries()}
    assert held == {"1": "timeout", "2": "Timeout", "3": "timeout"}


@on_databases("postgres18")
async def test_a_job_that_lies_by_now_where_one_was_found_is_not_taken_for_it(bench: SqlBench) -> None:
    """R1: a ruling finds its rows by their addresses, and an address that a vacuum frees is given to the next row."""
    await bench.put({}, {})
    addresses: list[str] = []

    async def replace_the_first() -> None:
        async with host(bench, isolation_level="AUTOCOMMIT") as app, app.connect() as connection:
            for statement in (
                "DELETE FROM ai_generation_jobs WHERE id = 1 RETURNING ctid::text",
                "VACUUM ai_generation_jobs",
                "INSERT INTO ai_generation_jobs (status, started_at) VALUES ('running', now()) RETURNING ctid::text",
            ):
                result = await connection.exec_driver_sql(statement)
                addresses.extend(result.scalars() if result.returns_rows else ())

    def before_the_next_transaction() -> None:
        event.listen(bench.engine.sync_engine, "begin", lambda _: elsewhere(replace_the_first), once=True)

    with after_each(bench.engine, READING, [lambda: None, before_the_next_transaction]):
        await bench.sweep()

    assert len(addresses) == 2
    assert addresses[0] == addresses[1]
    assert [(row["id"], row["status"]) for row in await bench.rows()] == [(2, "failed"), (3, "running")]


MOVES = {
    "state": "status = 'queued'",
    "attempt": "attempt = 2",
    "token": "token = 8",
    "worker": "worker = 'another'",
    "progress": "progress = 51",
    "started_at": "started_at = created_at",
    "heartbeat_at": "updated_at = created_at",
    "scheduled_at": "scheduled_at = created_at",
    "enqueued_at": "created_at = started_at",
    "completed_at": "completed_at = CURRENT_TIMESTAMP",
}
"""What may move under a decision while the job goes on looking stuck, or, for the last, running."""


async def test_a_job_of_which_anything_moved_since_the_look_is_left(database: Database) -> None:
    """R1, R2: each column of the fence by itself, to a value as old as the one before."""
    extra: dict[str, Any] = {"token": sa.Integer(), "worker": sa.String(40), "progress": sa.Integer()}
    table = jobs_table(*(sa.Column(name, type_) for name, type_ in extra.items()))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {name: name for name in extra}))
    older = bench.store(await bench.source.clock() - 9 * HOUR)
    row = {"token": 7, "worker": "one", "progress": 50, "attempt": 1, "created_at": older}
    await bench.put(*(row for _ in range(len(MOVES) + 1)))
    batch = await decided(bench)
    async with host(bench) as app, app.begin() as connection:
        for job_id, move in enumerate(MOVES.values(), start=1):
            await connection.execute(sa.text(f"UPDATE ai_generation_jobs SET {move} WHERE id = {job_id}"))
    before = await bench.rows()

    result = await bench.source.recover(batch)

    after = await bench.rows()
    await bench.close()
    assert len(batch.decisions) == len(MOVES) + 1
    assert result.applied == {len(MOVES) + 1}
    assert not result.refused
    assert after[:-1] == before[:-1]


@pytest.mark.parametrize("lent", [False, True], ids=["engine", "session"])
async def test_on_sqlite_a_write_in_flight_is_waited_for_and_then_left(sqlite_database: Database, lent: bool) -> None:
    """R1: the worker holds the one lock there is; we wait for it, see what it wrote, and leave the job."""
    bench = await open_bench(sqlite_database)
    ids = await stuck(bench, 3)
    batch = await decided(bench)
    begun = asyncio.Event()
    async with host(bench) as app, host(bench) as other, app.connect() as worker, AsyncSession(other) as session:
        ours = other if lent else bench.engine
        event.listen(ours.sync_engine, "engine_connect", lambda _connection: begun.set())
        source = SqlSource("main", bench.jobs, SessionConnections(session), ruled_from=1) if lent else bench.source
        assert await say(worker, FINISH, ids[0]) == 1
        recovering = asyncio.create_task(source.recover(batch))
        await until(lambda: _is_true(begun.is_set() or recovering.done()))
        done, _ = await asyncio.wait([recovering], timeout=0.05)
        await worker.commit()
        result = await recovering
    try:
        assert not done
        assert outcomes(result, ids) == [Outcome.LOST_RACE, Outcome.APPLIED, Outcome.APPLIED]
        assert await statuses(bench) == ["completed", "failed", "failed"]
    finally:
        await bench.close()


@on_databases(*POSTGRES)
@pytest.mark.parametrize("way", [by_decision, by_sweep])
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
async def test_what_changes_between_our_snapshot_and_our_lock_is_judged_anew(
    database: Database, way: Way, isolation: str
) -> None:
    """R1, R2, R3: PostgreSQL re-reads a row it locks (EvalPlanQual), and the whole guard is tested on what it finds.

    Above READ COMMITTED it refuses instead, and the batch is tried again with a new snapshot. A row security policy
    makes our write wait inside its own scan, after its snapshot and before any lock.
    """
    bench = await open_bench(database)
    ids = await stuck(bench, 5)
    role = f"app_{bench.engine.url.database}"
    await bench.execute(
        """CREATE FUNCTION gate() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN
             IF strpos(current_query(), 'INSERT INTO unstick_recoveries') > 0 THEN
               PERFORM pg_advisory_xact_lock_shared(4711); END IF;
             RETURN true; END $$""",
        f"CREATE ROLE {role} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
        "ALTER TABLE ai_generation_jobs ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY gated ON ai_generation_jobs USING (gate()) WITH CHECK (true)",
    )
    guarded = open_engine(bench.engine.url.set(username=role).render_as_string(hide_password=False))
    isolated = EngineConnections(guarded.execution_options(isolation_level=isolation))
    source = SqlSource("main", bench.jobs, isolated, ruled_from=1)
    async with host(bench) as app, app.connect() as gatekeeper:
        await gatekeeper.execute(sa.text("SELECT pg_advisory_lock(4711)"))
        await gatekeeper.commit()
        watched = Watched(source=source, ledger=bench.ledger, policy=Policy())
        recovering = asyncio.create_task(way(bench, watched))
        await until(lambda: somebody_waits(bench))
        changed = [
            await commits(app, FINISH, ids[0]),
            await commits(app, BEAT, ids[1]),
            # A worker may claim a job and say that it started whenever it likes: only the attempt tells.
            await commits(app, RECLAIM if way is by_decision else RECLAIM_NOW, ids[2]),
            await commits(app, "UPDATE ai_generation_jobs SET job_type = 'x' WHERE id = :id AND :attempt = 1", ids[3]),
        ]
        assert not recovering.done()
        await gatekeeper.execute(sa.text("SELECT pg_advisory_unlock(4711)"))
        applied = await recovering
    await guarded.dispose()
    rows = await bench.rows()
    recorded = {int(r.job_id) for r in await bench.recoveries() if r.outcome == Outcome.APPLIED}
    await bench.execute(f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")
    await bench.close()

    assert changed == [1, 1, 1, 1]
    # A change that means nothing to us may cost the batch that row, for its version is another; never the sweep.
    expected = {ids[3], ids[4]} if way is by_sweep else {ids[4]} | applied & {ids[3]}
    assert applied == recorded == expected
    assert [row["status"] for row in rows] == [
        "completed", *("failed" if job_id in expected else "running" for job_id in ids[1:])
    ]  # fmt: skip


# We write first.


@pytest.mark.parametrize("way", [by_decision, by_sweep])
async def test_a_finish_that_comes_after_our_write_and_before_our_commit_finds_nothing(
    bench: SqlBench, way: Way
) -> None:
    """R3, R4: exactly one of the two writers wins, whatever the order of commits."""
    ids = await stuck(bench, 2)
    sqlite = bench.engine.dialect.name == "sqlite"
    found: list[int] = []

    async def finish(patience: float) -> None:
        async with host(bench, **({"connect_args": {"timeout": patience}} if sqlite else {})) as app:
            found.append(await commits(app, FINISH, ids[0]))

    pool = ThreadPoolExecutor(1)
    late: list[Future[None]] = []

    def before_our_commit(_connection: Any) -> None:  # noqa: ANN401
        if late or not written:
            return
        late.append(pool.submit(lambda: asyncio.run(finish(DEADLINE))))
        if sqlite:
            with pytest.raises(DBAPIError, match="locked"):
                elsewhere(lambda: finish(0))
        else:
            elsewhere(lambda: until(lambda: _waits_elsewhere(bench), every=0.12))  # InnoDB looks once in 0.1 s

    event.listen(bench.engine.sync_engine, "commit", before_our_commit)
    with after_first(bench.engine, "UPDATE ai_generation_jobs", lambda: None) as written:
        applied = await way(bench, bench.watched())
    await asyncio.to_thread(late[0].result, DEADLINE)
    pool.shutdown()

    assert applied == set(ids)
    assert found == [0]
    assert await statuses(bench) == ["failed", "failed"]


async def _waits_elsewhere(bench: SqlBench) -> bool:
    """`somebody_waits` from another thread, which can't share a pool with this one."""
    async with host(bench) as engine, engine.connect() as connection:
        statement = WAITING["postgresql" if engine.dialect.name == "postgresql" else "mysql"]
        return bool((await connection.execute(sa.text(statement))).scalar_one())


@pytest.mark.parametrize("way", [by_decision, by_sweep])
@pytest.mark.parametrize("lent", [False, True], ids=["engine", "session"])
async def test_on_sqlite_nobody_writes_between_our_comparison_and_our_write(
    sqlite_database: Database, lent: bool, way: Way
) -> None:
    """K7, R1: the write lock is taken before the first read, in a host's session too; or the write would be too old."""
    bench = await open_bench(sqlite_database)
    ids = await stuck(bench, 2)

    async def intrude() -> None:
        async with host(bench, connect_args={"timeout": 0}) as app:
            await commits(app, FINISH, ids[0])

    def act() -> None:
        with pytest.raises(DBAPIError, match="locked"):
            elsewhere(intrude)

    async with host(bench) as app, AsyncSession(app) as session:
        watched = bench.watched()
        if lent:
            connections = SessionConnections(session)
            source = SqlSource("main", bench.jobs, connections, ruled_from=1)
            watched = Watched(source=source, ledger=SqlLedger(connections), policy=Policy())
        comparing = "seen_state" if lent or way is by_decision else "json_each"  # a session isn't ruled for
        with after_first(app if lent else bench.engine, comparing, act) as seen:
            applied = await way(bench, watched)
    await bench.close()

    assert seen[0].startswith("SELECT")
    assert applied == set(ids)


@on_databases("mariadb")
@pytest.mark.parametrize("way", [by_decision, by_sweep])
async def test_on_mariadb_nobody_writes_between_our_comparison_and_our_write(bench: SqlBench, way: Way) -> None:
    """R1: the rows compared are locked until our commit."""
    ids = await stuck(bench, 2)

    async def intrude() -> None:
        async with host(bench) as app, app.connect() as worker:
            await worker.execute(sa.text("SET innodb_lock_wait_timeout = 0"))
            await say(worker, FINISH, ids[0])

    def act() -> None:
        with pytest.raises(DBAPIError, match="Lock wait timeout"):
            elsewhere(intrude)

    with after_first(bench.engine, "FOR UPDATE", act) as seen:
        applied = await way(bench, bench.watched())

    assert "SKIP LOCKED" in seen[0]
    assert applied == set(ids)


@on_databases(*STEPWISE)
async def test_a_job_that_changes_while_it_is_being_recorded_is_not_overwritten(bench: SqlBench) -> None:
    """R1: the write repeats the whole predicate; here a trigger on our own records lets a job beat."""
    ids = await stuck(bench, 3)
    beat = f"UPDATE ai_generation_jobs SET updated_at = CURRENT_TIMESTAMP WHERE id = {ids[1]};"
    recorded = f"COALESCE(NEW.job_id, '{ids[1]}') = '{ids[1]}' AND NEW.outcome = 'applied'"
    when = {
        "sqlite": f"WHEN {recorded} BEGIN {beat} END",
        "mysql": f"FOR EACH ROW BEGIN IF {recorded} THEN {beat} END IF; END",
    }[bench.engine.dialect.name.replace("mariadb", "mysql")]
    await bench.execute(f"CREATE TRIGGER recorded AFTER INSERT ON unstick_recoveries {when}")

    report = await bench.sweep()

    assert await statuses(bench) == ["failed", "running", "failed"]
    assert report.tally.of(outcome=Outcome.APPLIED) == 2
    assert Outcome.APPLIED not in await bench.outcomes(ids[1])


# Many at once.


@dataclass
class Finishers:
    """Workers of the application that finish each its jobs, and remember which they won."""

    engine: AsyncEngine
    started: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    won: set[JobId] = field(default_factory=set)
    lost: set[JobId] = field(default_factory=set)

    async def work(self, ids: list[JobId]) -> None:
        for place, job_id in enumerate(ids):
            if place == 3:
                self.waiting += 1
                if self.waiting == 4:
                    self.started.set()
                await self.go_on.wait()
            (self.won if await commits(self.engine, FINISH, job_id) else self.lost).add(job_id)


async def test_a_hundred_jobs_finished_and_recovered_at_once_have_one_ending_each(bench: SqlBench) -> None:
    """R3, R7, R8, K2, K8: two sweepers, of which none leads, and four workers; rows, records and reports agree."""
    ids = await stuck(bench, 120)
    bench.batches_of(5)
    replica = bench.another()
    vars(replica._connections.dialect)["batch_size"] = 5
    replica_ledger = SqlLedger(EngineConnections(bench.other_engines[0]))
    watched = [bench.watched(), Watched(source=replica, ledger=replica_ledger, policy=Policy())]
    async with host(bench) as app:
        finishers = Finishers(engine=app)

        async def sweeping(each: Watched) -> SweepReport:
            await finishers.started.wait()
            return await sweep(each, SweepOrder(actor="replica"), lambda _: finishers.go_on.set())

        shares = [ids[-1 - start :: -4] for start in range(4)]  # from the far end: they meet in the middle
        working = asyncio.gather(*(finishers.work(share) for share in shares))
        one, other = await asyncio.gather(*(sweeping(each) for each in watched))
        await working

    applied = Counter(r.job_id for r in await bench.recoveries() if r.outcome == Outcome.APPLIED)
    ended = {row["id"]: row["status"] for row in await bench.rows()}
    ours = {job_id for job_id, status in ended.items() if status == "failed"}
    assert set(ended.values()) == {"failed", "completed"}
    assert len(finishers.won) >= 12
    assert finishers.won == set(ids) - ours
    assert finishers.lost == ours & finishers.lost
    assert applied == Counter(str(job_id) for job_id in ours)
    for report in (one, other):
        mine = [r for r in await bench.recoveries() if r.operation_id == report.operation_id]
        told = {outcome.value: report.tally.of(outcome=outcome) for outcome in Outcome}
        recorded = Counter(str(r.outcome) for r in mine)
        assert told == {word: recorded[word] for word in told}
        assert cleanup_shape(report)["cleaned_jobs"]["total"] == recorded["applied"]
        lost = {r.job_id for r in mine if r.outcome == Outcome.LOST_RACE}
        assert len(lost) == recorded["lost_race"]
    everything = sum(cleanup_shape(report)["cleaned_jobs"]["total"] for report in (one, other))
    assert everything == len(ours)


@pytest.mark.parametrize("journal", ["wal", "delete"])
async def test_on_sqlite_many_sweeps_and_writers_lose_no_update_and_meet_no_lock(
    sqlite_database: Database, journal: str
) -> None:
    """K7: our engine, a host's sessions and a host's writers in the driver's default mode, in either journal mode."""
    bench = await open_bench(sqlite_database)
    if journal == "wal":
        await use_write_ahead_log(bench.engine)
    await bench.execute("CREATE TABLE counter (n INTEGER)", "INSERT INTO counter VALUES (0)")
    ids = await stuck(bench, 24)
    bench.batches_of(3)
    async with host(bench) as app:

        async def as_host() -> int:
            async with AsyncSession(app) as session:
                await session.execute(sa.text("SELECT count(*) FROM ai_generation_jobs"))
                shape = await AdminService(session, jobs=bench.jobs, policy=Policy()).cleanup_stuck_jobs()
                return shape["cleaned_jobs"]["total"]

        async def as_service() -> int:
            return (await bench.sweep()).tally.of(outcome=Outcome.APPLIED)

        async def writing(share: list[JobId]) -> int:
            won = 0
            for job_id in share:
                async with app.begin() as connection:
                    await connection.execute(sa.text("UPDATE counter SET n = n + 1"))
                    won += await say(connection, FINISH, job_id)
            return won

        won = await asyncio.gather(
            *(as_service() for _ in range(3)),
            *(as_host() for _ in range(3)),
            *(writing(ids[start::4][::-1]) for start in range(4)),
        )
    async with bench.engine.connect() as connection:
        counted = (await connection.execute(sa.text("SELECT n FROM counter"))).scalar_one()
    ended = Counter(await statuses(bench))
    records = Counter(record.outcome for record in await bench.recoveries())
    audit = Counter(entry.outcome for entry in await bench.audit())
    await bench.close()

    assert counted == 24
    assert sum(won) == 24
    assert ended["completed"] + ended["failed"] == 24
    assert ended["failed"] == sum(won[:6]) == records["applied"]
    assert audit == {"started": 6, "done": 6}


# Locked rows, bounded work.


@on_databases(*ROW_LOCKING)
async def test_a_first_page_of_held_rows_does_not_block_the_rest(bench: SqlBench) -> None:
    """P1, K5: two pages of rows that somebody holds and does nothing with; the next sweep finds them again."""
    ids = await stuck(bench, 9)
    bench.batches_of(3)
    async with host(bench) as app, app.connect() as worker:
        for job_id in ids[:6]:
            await worker.execute(sa.text(f"SELECT 1 FROM ai_generation_jobs WHERE id = {job_id} FOR UPDATE"))
        held = await bench.sweep()
        await worker.rollback()
    free = await bench.sweep()

    counted = [[r.tally.of(outcome=each) for each in (Outcome.APPLIED, Outcome.LOST_RACE)] for r in (held, free)]
    assert counted == [[3, 6], [6, 0]]
    assert await statuses(bench) == ["failed"] * 9


@on_databases("sqlite", "postgres18", "mariadb")
async def test_a_sweep_holds_a_bounded_number_of_pages(bench: SqlBench) -> None:
    """P4: the batch being written, the page read ahead, and never the rest."""
    await bench.put(*({} for _ in range(60)))
    bench.batches_of(10)
    held: list[int] = []

    def count(_looked_at: int) -> None:
        held.append(sum(type(each) is Suspect for each in gc.get_objects()))

    gc.collect()
    before = sum(type(each) is Suspect for each in gc.get_objects())
    await sweep(bench.watched(), SweepOrder(actor="test", action=Action.RETRY), count)

    assert len(held) == 6
    assert 0 < max(held) - before <= 3 * 10


async def test_what_a_transaction_may_cost_the_host_is_bounded(bench: SqlBench) -> None:
    """X4, K4: no statement of ours, and no wait for a lock, goes on for long; a host's session keeps its own bounds.

    Nor is any compiled by PostgreSQL first, which may take seconds.
    """
    bounds: dict[str, dict[str, object]] = {
        "sqlite": {"PRAGMA busy_timeout": 5000},
        "postgresql": {"SHOW statement_timeout": "30s", "SHOW lock_timeout": "5s", "SHOW jit_above_cost": "-1"},
        "mysql": {
            "SELECT @@max_statement_time": 30,
            "SELECT @@innodb_lock_wait_timeout": 5,
            "SELECT @@lock_wait_timeout": 5,
        },
    }
    limits = bounds[bench.engine.dialect.name.replace("mariadb", "mysql")]
    connections = bench.source._connections
    for context in (connections.writing, connections.reading):
        async with context() as (connection, _):
            found = {each: (await connection.execute(sa.text(each))).scalar_one() for each in limits}
        assert found == limits
    async with host(bench) as app, AsyncSession(app) as session:
        before = [(await session.execute(sa.text(each))).scalar_one() for each in limits]
        await session.rollback()
        lent = SessionConnections(session)
        async with lent.writing() as (connection, _):
            inside = {each: (await connection.execute(sa.text(each))).scalar_one() for each in limits}
        after = [(await session.execute(sa.text(each))).scalar_one() for each in limits]
    assert after == before
    if bench.engine.dialect.name != "sqlite":
        assert inside == limits


# A batch is all or nothing.

GATES = {
    "postgresql": (
        """CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.job_type = 'gated' THEN PERFORM pg_advisory_xact_lock(4711); END IF; RETURN NEW; END $$""",
        "CREATE TRIGGER gated BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION gate()",
    ),
    "mysql": (
        """CREATE TRIGGER gated BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW BEGIN
             IF NEW.job_type = 'gated' THEN DO GET_LOCK(CONCAT(DATABASE(), 'gate'), 20); END IF; END""",
    ),
}
SHUT = {"postgresql": "SELECT pg_advisory_lock(4711)", "mysql": "SELECT GET_LOCK(CONCAT(DATABASE(), 'gate'), 0)"}
KILL = {
    "postgresql": """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'""",
    "mysql": """SELECT CONCAT('KILL ', id) FROM information_schema.processlist
                WHERE db = DATABASE() AND state = 'User lock'""",
}


@asynccontextmanager
async def second_batch_in_flight(
    bench: SqlBench, action: Action
) -> AsyncIterator[tuple[asyncio.Task[SweepReport], AsyncConnection]]:
    """A sweep of nine jobs in threes, whose second batch waits in the middle of its write."""
    name = bench.engine.dialect.name.replace("mariadb", "mysql")
    await bench.put(*({"job_type": "gated" if number == 5 else "plain"} for number in range(1, 10)))
    await bench.execute(*GATES[name])
    bench.batches_of(3)
    async with host(bench) as app, app.connect() as gatekeeper:
        await gatekeeper.execute(sa.text(SHUT[name]))
        await gatekeeper.commit()
        sweeping = asyncio.create_task(bench.sweep(action))
        await until(lambda: somebody_waits(bench))
        try:
            yield sweeping, gatekeeper
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)


async def assert_only_the_first_batch_stands(bench: SqlBench, action: Action) -> None:
    done = "failed" if action is Action.MARK_FAILED else "queued"
    assert await statuses(bench) == [done] * 3 + ["running"] * 6
    assert [(r.job_id, r.outcome) for r in await bench.recoveries()] == [(str(n), "applied") for n in (1, 2, 3)]
    started, failed = await bench.audit()
    assert (started.outcome, failed.outcome) == ("started", "failed")
    assert failed.operation_id == started.id
    assert failed.result["applied"] == 3


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("action", CHANGES)
async def test_a_connection_killed_in_the_middle_of_a_batch_leaves_neither_change_nor_record(
    bench: SqlBench, action: Action
) -> None:
    """Promise 2: the batch goes back whole, what was committed before stays, and the error tells how much that is."""
    async with second_batch_in_flight(bench, action) as (sweeping, gatekeeper):
        name = bench.engine.dialect.name.replace("mariadb", "mysql")
        killed = (await gatekeeper.execute(sa.text(KILL[name]))).scalars().all()
        if name == "mysql":
            for statement in killed:
                await gatekeeper.execute(sa.text(statement))
        with pytest.raises(RecoveryStoppedError) as stopped:
            await sweeping

    assert len(killed) == 1
    assert stopped.value.recovered == 3
    await assert_only_the_first_batch_stands(bench, action)


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("action", CHANGES)
async def test_a_sweep_that_is_cancelled_in_the_middle_of_a_batch_leaves_neither_change_nor_record(
    bench: SqlBench, action: Action
) -> None:
    """Promise 2: a service that stops; the audit log says that the operation was interrupted."""
    async with second_batch_in_flight(bench, action) as (sweeping, _):
        sweeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sweeping

    await assert_only_the_first_batch_stands(bench, action)


@pytest.mark.parametrize("action", CHANGES)
async def test_a_sweep_that_is_cancelled_ends_the_batch_under_way_and_counts_it(
    bench: SqlBench, action: Action
) -> None:
    """Promise 2: the operation's end in the audit log tells as many as there are records."""
    await bench.put(*({} for _ in range(9)))
    bench.batches_of(3)
    tasks: list[asyncio.Task[SweepReport]] = []

    def cancel(looked_at: int) -> None:
        if looked_at == 3:
            asyncio.get_running_loop().call_soon(tasks[0].cancel)

    tasks.append(asyncio.create_task(sweep(bench.watched(), SweepOrder(actor="test", action=action), cancel)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]

    _, ended = await bench.audit()
    recorded = sum(record.outcome == Outcome.APPLIED for record in await bench.recoveries())
    assert ended.outcome == "failed"
    assert ended.result["problem"] == "interrupted"
    assert ended.result["applied"] == recorded
    assert 3 <= recorded < 9


@pytest.mark.parametrize("action", CHANGES)
async def test_a_batch_whose_record_cannot_be_written_is_not_carried_out(bench: SqlBench, action: Action) -> None:
    """Promise 2: the recoveries table is gone after the first batch; no job is changed without its record."""
    await bench.put(*({} for _ in range(9)))
    bench.batches_of(3)
    vars(bench.source._connections)["side_by_side"] = False  # a page read ahead would hold on to the table

    async def rename() -> None:
        async with host(bench) as app, app.begin() as connection:
            await connection.execute(sa.text("ALTER TABLE unstick_recoveries RENAME TO gone"))

    def after_a_batch(looked_at: int) -> None:
        if looked_at == 3:
            elsewhere(rename)

    with pytest.raises(RecoveryStoppedError) as stopped:
        await sweep(bench.watched(), SweepOrder(actor="test", action=action), after_a_batch)

    assert stopped.value.recovered == 3
    await bench.execute("ALTER TABLE gone RENAME TO unstick_recoveries")
    await assert_only_the_first_batch_stands(bench, action)
    assert (await bench.sweep()).tally.of(outcome=Outcome.APPLIED) == 6
