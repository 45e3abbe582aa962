"""Guards that no other test would miss: each of these fails when one of them is taken out."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs import COLUMNS, declared, jobs_table, open_bench
from tests.test_bad_rows import assert_told_apart
from tests.test_races import (
    DEADLINE,
    HOUR,
    POSTGRES,
    READING,
    ROW_LOCKING,
    _waits_elsewhere,
    after_each,
    after_first,
    bench,
    elsewhere,
    host,
    on_databases,
    say,
    statuses,
    stuck,
    until,
)
from tests.test_rulings import REFUSING
from unstick.admin import AdminService
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import PendingChangesError, SourceUnavailableError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, backoff, rule
from unstick.domain.recovery import CHANGES, Action, Intent, Outcome, Recovery, settled
from unstick.pipeline.settling import IN_FLIGHT, settle_intents
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.sql import source as source_module
from unstick.sql import tables
from unstick.sql.connections import EngineConnections, SessionConnections
from unstick.sql.dialects import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.ledger import SqlLedger
from unstick.sql.queue import SqlJobQueue
from unstick.sql.source import SqlSource
from unstick.testing.conformance import MINUTE, batch_of, look_at, suspects_of
from unstick.worker import this_process

if TYPE_CHECKING:
    from tests.jobs import SqlBench
    from tests.servers import Database
    from unstick.domain.work import ClaimedJob

__all__ = ["bench"]


async def change(bench: SqlBench, *statements: str) -> None:
    async with host(bench) as app, app.begin() as connection:
        for statement in statements:
            assert (await connection.execute(sa.text(statement))).rowcount == 1


# What a ruling overwrites is what its record says it overwrote.


async def test_what_a_ruling_would_overwrite_is_still_what_its_record_says(database: Database) -> None:
    """0007: jobs that stay suspects while their state's word, success or error changes are left to be looked at."""
    table = jobs_table()
    if database.backend == "sqlite":
        table.c.error_message.type = sa.Text(collation="NOCASE")  # as MariaDB's columns are without being told
    bench = await open_bench(database, table)
    if database.backend == "sqlite":
        await use_write_ahead_log(bench.engine)  # the ids are still being read when the others write
    await bench.put(*({"error_message": "Timeout"} for _ in range(5)))
    await bench.put(*({"status": "queued"} for _ in range(2)))
    jobs = "UPDATE ai_generation_jobs SET"
    moves = (
        f"{jobs} error_message = 'timeout' WHERE id = 1",
        f"{jobs} error_message = NULL WHERE id = 2",
        f"{jobs} success = false WHERE id = 3",
        f"{jobs} status = 'pending' WHERE id = 6",
    )

    # The queued ones are read first.
    acts = [lambda: elsewhere(lambda: change(bench, moves[3])), lambda: elsewhere(lambda: change(bench, *moves[:3]))]
    with after_each(bench.engine, READING, acts):
        report = await bench.sweep()

    images = {int(record.job_id): json.loads(record.pre_image) for record in await bench.recoveries()}
    await bench.close()
    assert report.tally.of(outcome=Outcome.APPLIED) == 7
    held = {number: (image["status"], image["success"], image["error_message"]) for number, image in images.items()}
    assert held == {
        1: ("running", None, "timeout"),
        2: ("running", None, None),
        3: ("running", False, "Timeout"),
        4: ("running", None, "Timeout"),
        5: ("running", None, "Timeout"),
        6: ("pending", None, None),
        7: ("queued", None, None),
    }


# Locks.

LIMITS = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"


@on_databases(*POSTGRES)
async def test_a_ruling_waits_a_moment_for_a_row_then_leaves_it_out_and_each_left_is_looked_at(bench: SqlBench) -> None:
    """K3, 0007: 100 ms for the batch, then without the held row, then that row by itself; the server says so.

    Many rows held for less than a moment each would add up: the first try has a bound as a whole, too.
    """
    ids = await stuck(bench, 3)
    bounds: list[tuple[str, ...]] = []

    def hook(connection: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "UPDATE ai_generation_jobs" in statement:
            bounds.append(connection.exec_driver_sql(LIMITS).one())

    event.listen(bench.engine.sync_engine, "before_cursor_execute", hook)
    async with host(bench) as app, app.connect() as worker:
        await worker.execute(sa.text(f"SELECT 1 FROM ai_generation_jobs WHERE id = {ids[0]} FOR UPDATE"))
        report = await bench.sweep()
        await worker.rollback()
    event.remove(bench.engine.sync_engine, "before_cursor_execute", hook)

    async with bench.engine.connect() as connection:
        shared = (await connection.execute(sa.select(tables.recoveries.c.outcome, tables.recoveries.c.job_count))).all()
    assert bounds == [("100ms", "5s"), ("5s", "30s"), ("5s", "30s")]
    assert [tuple(record) for record in shared] == [("applied", 2), ("lost_race", 1)]
    assert [report.tally.of(outcome=each) for each in (Outcome.APPLIED, Outcome.LOST_RACE)] == [2, 1]
    assert await statuses(bench) == ["running", "failed", "failed"]


@on_databases(*POSTGRES)
async def test_a_row_that_only_a_foreign_key_holds_is_recovered(bench: SqlBench) -> None:
    """K4: a host that writes a line about a job holds the job's key; we change no key, and take no lock that would."""
    ids = await stuck(bench, 3)
    await bench.execute("CREATE TABLE lines (job_id int REFERENCES ai_generation_jobs)")
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)
    ruling = rule(JobState.RUNNING, look, Policy(), Action.MARK_FAILED)
    assert ruling is not None
    async with host(bench) as app, app.connect() as worker, app.connect() as other:
        await worker.execute(sa.text(f"INSERT INTO lines VALUES ({ids[0]})"))
        one = await bench.source.recover(replace(batch, decisions=batch.decisions[:1]))
        await worker.execute(sa.text(f"INSERT INTO lines VALUES ({ids[1]})"))
        await other.execute(sa.text(f"SELECT 1 FROM ai_generation_jobs WHERE id = {ids[2]} FOR UPDATE"))
        ruled = [each.recovered async for each in bench.source.recover_by_rule(ruling, look, 1)]
        await other.rollback()
        await worker.rollback()

    assert one.applied == {ids[0]}
    assert ruled == [1]
    assert await statuses(bench) == ["failed", "failed", "running"]


@pytest.mark.parametrize("action", CHANGES)
async def test_in_partitions_where_rows_share_an_address_each_is_itself(
    postgres_database: Database, action: Action
) -> None:
    """R1: `ctid` tells rows of one partition apart, and no more."""
    bench = await open_bench(postgres_database)
    await partition(bench)
    await bench.put(*({"id": number} for number in range(1, 9)))
    healthy = bench.store(await bench.source.clock())
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).where(bench.table.c.id % 2 == 0).values(started_at=healthy))
        places = await connection.execute(sa.text("SELECT ctid::text, count(*) FROM ai_generation_jobs GROUP BY ctid"))
        assert max(number for _, number in places) == 2

    report = await bench.sweep(action)

    ours = "failed" if action is Action.MARK_FAILED else "queued"
    assert await statuses(bench) == [ours, "running"] * 4
    applied = [record.job_id for record in await bench.recoveries() if record.outcome == Outcome.APPLIED]
    await bench.close()
    assert sorted(applied) == ["1", "3", "5", "7"]
    assert report.tally.of(outcome=Outcome.APPLIED) == 4


async def test_no_job_is_passed_over_that_shares_its_address_with_the_last_of_a_stride(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: a table of partitions is read by its key, for after an address there may be another row of the same."""
    monkeypatch.setattr(source_module, "STRIDE", 1)
    bench = await open_bench(postgres_database)
    await partition(bench)
    await bench.put(*({"id": number, "error_message": f"of {number}"} for number in range(1, 9)))

    report = await bench.sweep()

    assert await statuses(bench) == ["failed"] * 8
    await bench.close()
    assert report.tally.of(outcome=Outcome.APPLIED) == 8


async def partition(bench: SqlBench) -> None:
    """Put the jobs' table into two partitions."""
    part = "CREATE TABLE p{0} PARTITION OF ai_generation_jobs FOR VALUES WITH (MODULUS 2, REMAINDER {0})"
    await bench.execute(
        "ALTER TABLE ai_generation_jobs RENAME TO whole",
        "CREATE TABLE ai_generation_jobs (LIKE whole INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY HASH (id)",
        part.format(0),
        part.format(1),
    )


# What a batch meets.


@on_databases("postgres18")
async def test_a_row_that_takes_longer_than_a_guest_may_stops_no_other(bench: SqlBench) -> None:
    """P2: a batch that is too slow is written in halves, until the row that makes it so stands alone."""
    ids = await stuck(bench, 2)
    await bench.execute(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF NEW.id = {ids[1]} THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END $$",
        "CREATE TRIGGER slow BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION slowly()",
    )
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)

    def hurry(connection: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "'statement_timeout'" in statement:
            connection.exec_driver_sql("SET LOCAL statement_timeout = '1s'")

    event.listen(bench.engine.sync_engine, "after_cursor_execute", hurry)
    result = await bench.source.recover(batch)

    assert result.applied == {ids[0]}
    assert "statement timeout" in result.refused[ids[1]]
    assert await statuses(bench) == ["failed", "running"]


@on_databases("mariadb")
async def test_a_connection_that_is_gone_is_told_as_such_and_no_row_is_blamed(bench: SqlBench) -> None:
    """Promise 2: the driver's error for it has no number; nothing more is tried on that connection."""
    await stuck(bench, 2)
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)

    def hang_up(connection: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "UPDATE ai_generation_jobs" in statement:
            connection.connection.driver_connection.close()

    event.listen(bench.engine.sync_engine, "before_cursor_execute", hang_up)
    with pytest.raises(SourceUnavailableError, match="doesn't answer"):
        await bench.source.recover(batch)

    assert await statuses(bench) == ["running", "running"]
    assert await bench.recoveries() == []


# A retry.


async def test_a_retry_takes_the_token_counts_what_had_begun_and_stays_within_the_apps_own_limit(
    database: Database,
) -> None:
    """R4, R6, B4: a late worker's fenced finish finds nothing; a job that never ran has lost no attempt."""
    extra = (sa.Column("token", sa.Integer), sa.Column("worker", sa.String(40)), sa.Column("max_attempts", sa.Integer))
    table = jobs_table(*extra)
    names = {name: name for name in ("token", "worker", "max_attempts")}
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | names))
    now = await bench.source.clock()
    silent = bench.store(now - HOUR)
    row = {"worker": "w", "token": 7, "attempt": 1, "max_attempts": 3, "updated_at": silent}
    await bench.put(
        row,
        row | {"attempt": 3},
        row | {"attempt": 5},
        row | {"max_attempts": None},
        row | {"token": None},
        row | {"status": "queued", "started_at": None, "attempt": 1},
    )
    async with host(bench) as app, app.begin() as worker:
        finish = "UPDATE ai_generation_jobs SET status = 'completed' WHERE id = :id AND token = 7 AND :attempt = 1"
        await bench.sweep(Action.RETRY)
        late = [await say(worker, finish, job_id) for job_id in (1, 2, 3, 4, 6)]

    rows = await bench.rows()
    await bench.close()
    assert late == [0] * 5
    assert [row["token"] for row in rows] == [8, 8, 8, 8, 1, 8]
    assert [row["attempt"] for row in rows] == [2, 3, 5, 2, 2, 1]
    assert {(row["status"], row["worker"], row["started_at"], row["updated_at"]) for row in rows} == {
        ("queued", None, None, None)
    }


async def test_a_retry_counts_from_nothing_where_no_attempt_was_ever_counted(database: Database) -> None:
    """B4: an attempt that nobody wrote down was none, and one that never began isn't written down."""
    table = jobs_table(sa.Column("max_attempts", sa.Integer))
    table.c.attempt.nullable, table.c.attempt.server_default = True, None
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"max_attempts": "max_attempts"}))
    await bench.put({}, {"max_attempts": 1}, {"max_attempts": 0}, {"status": "queued", "started_at": None})

    report = await bench.sweep(Action.RETRY)

    assert report.tally.of(outcome=Outcome.APPLIED) == 4
    assert [row["attempt"] for row in await bench.rows()] == [1, 1, 0, None]
    await bench.close()


async def test_a_token_that_is_no_number_is_taken_away(database: Database) -> None:
    """R4: what the late worker holds must not match any more."""
    table = jobs_table(sa.Column("token", sa.String(40)))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"token": "token"}))
    await bench.put({"token": "mine"})

    await bench.sweep(Action.RETRY)

    assert [row["token"] for row in await bench.rows()] == [None]
    await bench.close()


@pytest.mark.parametrize("lacking", [set(), {"scheduled_at"}, {"scheduled_at", "started_at"}])
async def test_a_retried_job_waits_anew_by_whatever_time_its_table_has(database: Database, lacking: set[str]) -> None:
    """B3: or the next sweep would find it stuck at once, until its budget is spent."""
    table = jobs_table()
    columns = {key: name for key, name in COLUMNS.items() if key not in lacking}
    bench = await open_bench(database, table, declared(table, columns=columns))
    silent = bench.store(await bench.source.clock() - 2 * HOUR)
    await bench.put({"status": "queued", "started_at": None}, {"updated_at": silent})

    first, second = await bench.sweep(Action.RETRY), await bench.sweep(Action.RETRY)

    await bench.close()
    assert (first.tally.of(outcome=Outcome.APPLIED), second.tally.of()) == (2, 0)


async def test_a_retry_leaves_no_null_where_the_table_takes_none(database: Database) -> None:
    """P2: a start that may not be missing is the retry's, and a worker or a token that is no number stays."""
    table = jobs_table(*(sa.Column(name, sa.String(20), nullable=False) for name in ("token", "worker")))
    table.c.started_at.nullable = table.c.updated_at.nullable = False
    names = {name: name for name in ("token", "worker")}
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | names))
    before = await bench.source.clock()
    await bench.put({"token": "a", "worker": "w", "updated_at": bench.store(before - 2 * HOUR)})

    report = await bench.sweep(Action.RETRY)

    (row,) = await bench.rows()
    await bench.close()
    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    assert (row["status"], row["token"], row["worker"]) == ("queued", "a", "w")
    restarted = bench._aware(row["started_at"])
    assert restarted is not None
    assert restarted >= before
    assert row["started_at"] == row["updated_at"]


async def test_each_retry_is_due_later_than_the_one_before(bench: SqlBench) -> None:
    """B1: the wait of the policy, by the database's clock, spread by a quarter, doubled with each recovery."""
    [job_id] = await stuck(bench, 1)
    waits: list[float] = []
    for _ in range(3):
        before = await bench.source.clock()
        await bench.sweep(Action.RETRY)
        due = bench._aware((await bench.row(job_id))["scheduled_at"])
        assert due is not None
        waits.append((due - before) / timedelta(seconds=30))
        then = bench.store(before - HOUR)
        async with bench.engine.begin() as connection:
            again = {"status": "running", "started_at": then, "scheduled_at": None}
            await connection.execute(sa.update(bench.table).values(again))

    # What the sweep itself takes comes on top: at most the tenth of a wait.
    assert [0.75 * 2**n <= wait <= 1.35 * 2**n for n, wait in enumerate(waits)] == [True] * 3


def test_a_wait_doubles_up_to_an_hour_and_parts_a_herd() -> None:
    first = timedelta(seconds=30)
    waits = [[backoff(job_id, spent, first) / first for job_id in range(200)] for spent in range(30)]

    for spent, herd in enumerate(waits):
        middle = min(2**spent, 120)
        assert all(0.75 * middle <= wait <= 1.25 * middle for wait in herd)
        assert max(herd) - min(herd) > 0.4 * middle


# A budget.


async def test_a_budget_is_of_one_source_one_window_and_of_retries_that_were_applied(bench: SqlBench) -> None:
    """B1, B2: neither another source's job of the same id, nor what failed, nor what is long ago, spends it."""
    [job_id] = await stuck(bench, 1)
    now = await bench.source.clock()
    own = {"operation_id": 1, "source": "main", "job_id": str(job_id), "state": "running", "action": "retry",
           "reason": "silent", "outcome": "applied", "detail": "", "at": now}  # fmt: skip
    others: list[dict[str, Any]] = [
        {"source": "another"}, {"action": "mark_failed"}, {"outcome": "lost_race"}, {"outcome": "failed"},
        {"at": now - timedelta(hours=73)}, {"job_id": f"{job_id}0"},
    ]  # fmt: skip
    async with bench.engine.begin() as connection:
        await connection.execute(sa.insert(tables.recoveries), [own | other for other in others for _ in range(3)])
        await connection.execute(sa.insert(tables.recoveries), [own | {"at": now - timedelta(hours=71)}] * 2)

    first = await bench.sweep(Action.RETRY)
    async with bench.engine.begin() as connection:
        again = {"status": "running", "started_at": bench.store(now - HOUR), "scheduled_at": None}
        await connection.execute(sa.update(bench.table).values(again))
    second = await bench.sweep(Action.RETRY)

    assert first.tally.of(action=Action.RETRY, outcome=Outcome.APPLIED) == 1
    assert second.tally.of(action=Action.MARK_FAILED, reason=Reason.POISON, outcome=Outcome.APPLIED) == 1


async def test_a_job_failed_as_poison_stays_failed_and_its_budget_stays_spent(database: Database) -> None:
    """B3, B1: neither a sweep nor a late worker queues it again; who does so by hand gets no new budget with it."""
    table = jobs_table(sa.Column("token", sa.Integer), sa.Column("worker", sa.String(200)))
    jobs = declared(table, columns=COLUMNS | {"token": "token", "worker": "worker"})
    bench = await open_bench(database, table, jobs)
    await bench.put({"status": "queued", "started_at": None})
    queue, me = SqlJobQueue("main", jobs, EngineConnections(bench.engine)), this_process()
    claims: list[ClaimedJob] = []
    told: list[tuple[Action, Reason]] = []

    async def crashes() -> None:
        """Claim the job and never be heard of again."""
        await bench.execute("UPDATE ai_generation_jobs SET scheduled_at = NULL")
        claims.extend(await queue.claim(me, limit=1))
        long_ago = bench.store(await bench.source.clock() - HOUR)
        async with bench.engine.begin() as connection:
            await connection.execute(sa.update(table).values(started_at=long_ago, updated_at=long_ago))
        report = await bench.sweep(Action.RETRY)
        told.extend((action, reason) for (_, action, reason, _), number in report.tally.counts.items() if number)

    for _ in range(Policy().max_recoveries + 1):
        await crashes()
    poisoned = await bench.rows()
    again = await bench.sweep(Action.RETRY)
    late = [await queue.requeue(each, HOUR, error=None, counted=False) for each in claims]
    late += [await queue.finish(each, {}) for each in claims]
    nothing = await queue.claim(me, limit=1)
    unmoved = await bench.rows()
    await bench.execute("UPDATE ai_generation_jobs SET status = 'queued', completed_at = NULL")
    await crashes()

    last = await bench.rows()
    await bench.close()
    assert len(claims) == 5
    assert told == [(Action.RETRY, Reason.SILENT)] * 3 + [(Action.MARK_FAILED, Reason.POISON)] * 2
    assert again.tally.of() == 0
    assert late == [False] * 8
    assert nothing == ()
    assert unmoved == poisoned
    assert [row["status"] for row in (*poisoned, *last)] == ["failed"] * 2


# A host's own session.


USERS = sa.table("users", sa.column("name"))
WRITES: dict[str, sa.Executable] = {
    "insert": sa.insert(USERS).values(name="eve"),
    "update": sa.update(USERS).values(name="eve"),
    "delete": sa.delete(USERS),
    "text": sa.text("\n DELETE FROM users"),
    "text behind a with": sa.text("WITH one AS (SELECT 'ada' AS n) INSERT INTO users SELECT n FROM one"),
}


@pytest.mark.parametrize("way", WRITES)
async def test_whatever_a_caller_executed_is_pending(bench: SqlBench, way: str) -> None:
    """0003: a cleanup commits, so that nothing of the caller's may be uncommitted; after a rollback it isn't."""
    await stuck(bench, 1)
    await bench.execute("CREATE TABLE users (name varchar(20))", "INSERT INTO users VALUES ('ada')")
    async with host(bench) as app, AsyncSession(app) as db:
        service = AdminService(db, jobs=bench.jobs, policy=Policy())
        if way == "text behind a with" and bench.engine.dialect.name != "postgresql":
            way = "text"  # MariaDB writes it the other way round, and SQLite's driver begins no transaction for it
        await db.execute(WRITES[way])
        with pytest.raises(PendingChangesError):
            await service.cleanup_stuck_jobs()
        await db.rollback()
        names = list(await db.scalars(sa.text("SELECT name FROM users")))
        cleaned = (await service.cleanup_stuck_jobs())["cleaned_jobs"]["total"]

    assert (names, cleaned) == (["ada"], 1)


async def test_what_a_caller_wrote_within_a_savepoint_is_pending_when_the_savepoint_is_over(bench: SqlBench) -> None:
    """0003: only the end of the whole transaction ends what is pending, be a savepoint released or rolled back."""
    await stuck(bench, 1)
    await bench.execute("CREATE TABLE users (name varchar(20))", "INSERT INTO users VALUES ('ada')")
    async with host(bench) as app, AsyncSession(app) as db:
        service = AdminService(db, jobs=bench.jobs, policy=Policy())
        await db.execute(WRITES["insert"])
        async with db.begin_nested():
            await db.execute(sa.text("SELECT 1"))
        with pytest.raises(PendingChangesError):
            await service.cleanup_stuck_jobs()
        inner = await db.begin_nested()
        await inner.rollback()
        with pytest.raises(PendingChangesError):
            await service.cleanup_stuck_jobs()
        await db.rollback()
        assert list(await db.scalars(sa.text("SELECT name FROM users"))) == ["ada"]


@on_databases(*POSTGRES)
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
async def test_a_hosts_connection_is_given_back_with_its_own_plans_waits_and_commits(
    bench: SqlBench, held: bool
) -> None:
    """A guest: what a ruling sets (no scans, commits that aren't waited for) ends with its transaction."""
    ids = await stuck(bench, 2)
    names = ("enable_seqscan", "enable_indexscan", "enable_bitmapscan", "enable_hashjoin", "synchronous_commit",
             "jit", "jit_above_cost", "lock_timeout", "statement_timeout")  # fmt: skip
    ask = sa.text("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    async with host(bench, pool_size=1, max_overflow=0) as app, host(bench) as other, other.connect() as worker:
        if held:
            await worker.execute(sa.text(f"SELECT 1 FROM ai_generation_jobs WHERE id = {ids[0]} FOR UPDATE"))
        async with AsyncSession(app) as session:
            before = tuple((await session.execute(ask)).one())
            connections = SessionConnections(session)
            source = SqlSource("main", bench.jobs, connections, ruled_from=1)
            await session.rollback()
            await sweep(Watched(source=source, ledger=SqlLedger(connections), policy=Policy()), SweepOrder(actor="t"))
            after = tuple((await session.execute(ask)).one())

    assert after == before
    assert (await statuses(bench))[1] == "failed"


async def test_what_a_caller_executed_on_the_sessions_own_connection_is_pending(bench: SqlBench) -> None:
    """0003: past the session itself, as bulk inserts and hand-written statements go."""
    await stuck(bench, 1)
    await bench.execute("CREATE TABLE users (name varchar(20))")
    async with host(bench) as app, AsyncSession(app) as db:
        await (await db.connection()).execute(sa.insert(USERS).values(name="eve"))
        with pytest.raises(PendingChangesError):
            await AdminService(db, jobs=bench.jobs, policy=Policy()).cleanup_stuck_jobs()

    assert await statuses(bench) == ["running"]


# A ledger elsewhere. Here it is in the jobs' own database, and isn't told so: what is tried are its own locks.


def apart(bench: SqlBench, name: str = "main") -> Watched:
    source = SqlSource(name, bench.jobs, bench.source._connections, records=False)
    return Watched(source=source, ledger=bench.ledger, policy=Policy())


def an_intent(job_id: int | str, action: Action = Action.MARK_FAILED) -> Intent:
    return Intent(job_id=job_id, state=JobState.RUNNING, action=action, reason=Reason.SILENT, detail="said",
                  pre_image='{"status": "running"}', post_image='{"status": "failed"}')  # fmt: skip


async def test_two_that_settle_an_intent_at_once_record_it_once(bench: SqlBench) -> None:
    """0008: the second waits for the first, wherever the ledger is, and then finds nothing to record."""
    ledger, intent = bench.ledger, an_intent(1)
    await ledger.intend("main", 1, [intent])
    came = [intent.came_to(Outcome.APPLIED)]
    pool = ThreadPoolExecutor(1)
    second: list[Future[None]] = []

    async def settle_too() -> None:
        engine = open_engine(bench.engine.url.render_as_string(hide_password=False))
        try:
            await SqlLedger(EngineConnections(engine)).find_out("main", 1, came)
        finally:
            await engine.dispose()

    def meanwhile() -> None:
        second.append(pool.submit(lambda: asyncio.run(settle_too())))
        if bench.engine.dialect.name != "sqlite":  # which has but one lock, that is taken before anything is read
            elsewhere(lambda: until(waits_or_has_ended, every=0.12))

    async def waits_or_has_ended() -> bool:
        return second[0].done() or await _waits_elsewhere(bench)

    with after_first(bench.engine, "FROM unstick_intents", meanwhile) as seen:
        await ledger.find_out("main", 1, came)
    await asyncio.to_thread(second[0].result, DEADLINE)
    pool.shutdown()

    assert seen
    assert [record.outcome for record in await bench.recoveries()] == [Outcome.APPLIED]


async def test_settling_strikes_the_intents_of_its_own_source_and_operation_only(bench: SqlBench) -> None:
    """0008: two sources share a ledger, and have a job of the same id each."""
    ledger, intent = bench.ledger, an_intent(1)
    for source, operation_id in (("main", 1), ("main", 2), ("another", 1)):
        await ledger.intend(source, operation_id, [intent])

    await ledger.settle("main", 1, [intent.came_to(Outcome.APPLIED)])

    async with bench.engine.connect() as connection:
        columns = (tables.intents.c.source, tables.intents.c.operation_id)
        left = {tuple(row) for row in await connection.execute(sa.select(*columns))}
    assert left == {("main", 2), ("another", 1)}
    found = [await ledger.unsettled(source, timedelta(0)) for source in ("main", "another", "nobody")]
    assert [list(each) for each in found] == [[2], [1], []]


async def test_a_source_settles_no_other_sources_intents(bench: SqlBench) -> None:
    """0008: or it would look for another's job in its own table, and find that it had moved on."""
    await bench.ledger.intend("another", 1, [an_intent(1)])
    async with bench.engine.begin() as connection:
        row = (await connection.execute(sa.select(tables.intents.c.at))).one()
        await connection.execute(sa.update(tables.intents).values(at=row.at - IN_FLIGHT - MINUTE))

    assert await settle_intents(apart(bench)) == 0
    assert await bench.recoveries() == []


@on_databases(*ROW_LOCKING)  # on SQLite nobody writes while the intents are written to the same file
async def test_without_an_intent_nothing_is_changed(bench: SqlBench) -> None:
    """0008: a job that had moved when the intents were written, and is then as it was seen again, has none."""
    await stuck(bench, 2)
    move = "UPDATE ai_generation_jobs SET attempt = {} WHERE id = 1"
    away = after_first(bench.engine, "attempt AS job_attempt", lambda: elsewhere(lambda: change(bench, move.format(2))))
    back = after_first(
        bench.engine, "INSERT INTO unstick_intents", lambda: elsewhere(lambda: change(bench, move.format(1)))
    )

    with away as moved, back as returned:
        report = await sweep(apart(bench), SweepOrder(actor="test"))

    assert moved
    assert returned
    assert await statuses(bench) == ["running", "failed"]
    assert Counter(record.outcome for record in await bench.recoveries()) == {"applied": 1, "lost_race": 1}
    assert report.tally.of(outcome=Outcome.LOST_RACE) == 1


def test_an_intent_may_be_under_way_longer_than_a_statement_and_its_waits() -> None:
    """0008: what is still at work must not be settled by another."""
    assert timedelta(milliseconds=3 * (STATEMENT_TIMEOUT_MS + LOCK_TIMEOUT_MS)) < IN_FLIGHT


LIVES = {
    "as we would have left it": ('{"at": "2026-01-01T10:00:00.4+00:00", "s": "failed"}', "applied", "applied"),
    "failed by another, a moment later": (
        '{"s": "failed", "at": "2026-01-01T10:00:00.5+00:00"}',
        "lost_race",
        "applied",
    ),
    "failed by another, later": ('{"s": "failed", "at": "2026-01-01 10:00:05"}', "lost_race", "applied"),
    "as it was": ('{"s": "running", "at": null}', "failed", "failed"),
    "moved on": ('{"s": "completed", "at": "2026-01-01 10:00:00"}', "lost_race", "applied"),
    "with less than we wrote": ('{"s": "failed"}', "lost_race", "applied"),
    "with more than we wrote": ('{"s": "failed", "at": "2026-01-01 10:00:00", "x": 1}', "lost_race", "applied"),
    "gone": (None, "lost_race", "lost_race"),
}


@pytest.mark.parametrize("image", LIVES)
@pytest.mark.parametrize("action", CHANGES)
def test_what_became_of_an_intent_is_told_by_its_row(action: Action, image: str) -> None:
    """0008: each thing that may stand there, and what it means for a failure and for a retry."""
    intent = replace(
        an_intent(1, action),
        pre_image='{"s": "running", "at": null}',
        post_image='{"s": "failed", "at": "2026-01-01T10:00:00.4+00:00"}',
    )
    stands, failing, retrying = LIVES[image]

    recovery: Recovery = settled(intent, stands, 0)
    after_another: Recovery = settled(intent, stands, 1)

    assert recovery.outcome == (failing if action is Action.MARK_FAILED else retrying)
    assert after_another.outcome == failing
    assert recovery.pre_image == intent.pre_image


# A pass comes to its end.


@on_databases(*POSTGRES)
async def test_suspects_come_by_ascending_id_wherever_their_rows_lie(bench: SqlBench) -> None:
    """The order in which a person reads what would be done; the server's own plan has another."""
    name = bench.engine.url.database
    await bench.execute(
        *(f"ALTER DATABASE {name} SET {way} = off" for way in ("enable_nestloop", "enable_mergejoin")),
        "INSERT INTO ai_generation_jobs (id, status, started_at) "
        "SELECT n, 'running', now() - interval '2 hours' FROM generate_series(1000, 1, -1) AS n",
        "ANALYZE ai_generation_jobs",
    )
    await bench.engine.dispose()

    found = await suspects_of(bench, await look_at(bench))

    assert [each.job_id for each in found] == [*range(1, 1001)]


async def test_suspects_beyond_the_first_stride_are_looked_at_once_each(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: a stride that is full to the last is followed by another, which begins after it."""
    monkeypatch.setattr(source_module, "STRIDE", 4)
    ids = await stuck(bench, 8)
    bench.batches_of(3)

    found = [suspect.job_id for suspect in await suspects_of(bench, await look_at(bench))]

    assert found == ids


async def test_what_an_early_batch_of_a_ruling_left_is_looked_at_though_the_last_left_nothing(
    bench: SqlBench,
) -> None:
    """P1: a job that a trigger refuses is reported, whichever batch it was in."""
    await stuck(bench, 5)
    bench.batches_of(2)
    name = bench.engine.dialect.name.replace("mariadb", "mysql")
    await bench.execute(*(each.replace("NEW.id = 2", "NEW.id = 1") for each in REFUSING[name]))

    report = await bench.sweep()

    assert [failure.job_id for failure in report.failures] == [1]
    assert await statuses(bench) == ["running", "failed", "failed", "failed", "failed"]


# Times that are none.


@on_databases("mariadb")
async def test_dates_without_a_day_or_without_a_month_are_reported_and_the_rest_recovered(bench: SqlBench) -> None:
    """P2: MariaDB keeps either, and reckons no age from them."""
    await bench.put({}, {}, {}, {})
    await bench.execute(
        "SET sql_mode = ''",
        "UPDATE ai_generation_jobs SET started_at = '2026-05-00 00:00:00' WHERE id = 2",
        "UPDATE ai_generation_jobs SET started_at = '2025-00-07 00:00:00' WHERE id = 3",
        "SET sql_mode = DEFAULT",
    )

    await assert_told_apart(bench, good={1, 4}, unreadable={2, 3}, either=set(), untouched=set())


@on_databases("sqlite")
async def test_bytes_that_look_like_a_time_are_reported_and_the_rest_recovered(bench: SqlBench) -> None:
    """P2: SQLite takes a blob for its text."""
    await bench.put({}, {}, {})
    await bench.execute("UPDATE ai_generation_jobs SET started_at = CAST('2020-01-01 00:00:00' AS BLOB) WHERE id = 2")

    await assert_told_apart(bench, good={1, 3}, unreadable={2}, either=set(), untouched=set())


@on_databases("sqlite", "postgres15", "mariadb")  # PostgreSQL's own packages bring citext along
async def test_errors_that_their_column_takes_for_the_same_share_no_record(database: Database) -> None:
    """0007: each pre-image is exact, whatever the host's column compares by."""
    table = jobs_table()
    loose = {"sqlite": "NOCASE", "mysql": "utf8mb4_general_ci"}
    table.c.error_message.type = sa.Text(collation=loose.get(database.backend))
    bench = await open_bench(database, table)
    if database.backend == "postgresql":
        await bench.execute("CREATE EXTENSION citext", "ALTER TABLE ai_generation_jobs ALTER error_message TYPE citext")
    said = ["Timeout", "timeout", "Timeout"]
    await bench.put(*({"error_message": each} for each in said))

    await bench.sweep()

    images = {int(record.job_id): json.loads(record.pre_image) for record in await bench.recoveries()}
    await bench.close()
    assert [images[number]["error_message"] for number in (1, 2, 3)] == said


async def test_a_sweep_settles_what_an_earlier_one_left_before_it_looks(bench: SqlBench) -> None:
    """0008: no restart is needed, and a retry that was carried out counts before the next is decided."""
    [job_id] = await stuck(bench, 1)
    intent = replace(
        an_intent(job_id, Action.RETRY),
        pre_image='{"status": "running", "error_message": "as it was seen"}',
        post_image='{"status": "queued", "error_message": null}',
    )
    await bench.ledger.intend("main", 1, [intent])
    async with bench.engine.begin() as connection:
        row = (await connection.execute(sa.select(tables.intents.c.at))).one()
        await connection.execute(sa.update(tables.intents).values(at=row.at - IN_FLIGHT - MINUTE))
    watched = replace(apart(bench), policy=Policy(max_recoveries=1))

    report = await sweep(watched, SweepOrder(actor="test", action=Action.RETRY))

    assert report.tally.of(reason=Reason.POISON, outcome=Outcome.APPLIED) == 1
    told = [(record.action, record.outcome) for record in await bench.recoveries()]
    assert told == [("retry", "applied"), ("mark_failed", "applied")]


@pytest.mark.parametrize("action", CHANGES)
async def test_a_sweep_that_is_cancelled_while_it_commits_counts_what_it_committed(
    bench: SqlBench, action: Action
) -> None:
    """Promise 2: the commit is under way when the service is told to stop; it isn't cut off, and nothing follows it."""
    await stuck(bench, 9)
    bench.batches_of(3)
    written: list[str] = []
    tasks: list[asyncio.Task[Any]] = []

    def wrote(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "UPDATE ai_generation_jobs" in statement:
            written.append(statement)

    def stop(_connection: Any) -> None:  # noqa: ANN401
        if written and not tasks[0].cancelling():
            tasks[0].cancel()

    event.listen(bench.engine.sync_engine, "after_cursor_execute", wrote)
    event.listen(bench.engine.sync_engine, "commit", stop)
    tasks.append(asyncio.create_task(bench.sweep(action)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    event.remove(bench.engine.sync_engine, "commit", stop)
    event.remove(bench.engine.sync_engine, "after_cursor_execute", wrote)

    recorded = [record.outcome for record in await bench.recoveries()]
    _, ended = await bench.audit()
    assert (ended.outcome, ended.result["problem"]) == ("failed", "interrupted")
    assert recorded == [Outcome.APPLIED] * ended.result["applied"] == [Outcome.APPLIED] * 3


async def test_a_sweep_of_which_every_job_is_refused_comes_to_its_end(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: more than a stride of them: what a ruling left is not ruled on again."""
    monkeypatch.setattr(source_module, "STRIDE", 2)
    await stuck(bench, 5)
    name = bench.engine.dialect.name.replace("mariadb", "mysql")
    await bench.execute(*(each.replace("NEW.id = 2", "NEW.id > 0") for each in REFUSING[name]))

    async with asyncio.timeout(DEADLINE):
        report = await bench.sweep()

    assert report.tally.of(outcome=Outcome.FAILED) == 5


async def test_a_sweep_that_is_cancelled_twice_records_its_end_all_the_same(bench: SqlBench) -> None:
    """Promise 2: somebody is impatient while the end is being written down."""
    await stuck(bench, 4)
    bench.batches_of(2)
    said: list[str] = []
    tasks: list[asyncio.Task[Any]] = []

    def stop(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "INSERT INTO unstick_audit" in statement or "UPDATE ai_generation_jobs" in statement:
            said.append(statement)
            if len(said) > 1 and len(cancelled) < 2 and ("unstick_audit" in statement) == bool(cancelled):
                cancelled.append(tasks[0].cancel())

    cancelled: list[bool] = []
    event.listen(bench.engine.sync_engine, "before_cursor_execute", stop)
    tasks.append(asyncio.create_task(bench.sweep()))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    event.remove(bench.engine.sync_engine, "before_cursor_execute", stop)

    assert cancelled == [True, True]
    await until(lambda: _has_ended(bench))
    _, ended = await bench.audit()
    assert (ended.outcome, ended.result["problem"]) == ("failed", "interrupted")


async def _has_ended(bench: SqlBench) -> bool:
    return len(await bench.audit()) == 2
