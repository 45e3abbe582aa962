"""What hosts do to a sweep: triggers, partitions, sessions of their own, impatience, and what they keep in a row."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, make_tables, open_bench
from tests.servers import EACH_KIND
from tests.test_ledger_elsewhere import STUCK, Apart, ProcessEndedError, apart, killed_before
from tests.test_races import DEADLINE, GATES, SHUT, host, on_databases, somebody_waits, until
from unstick.admin import AdminService
from unstick.domain.errors import ConfigurationError, PendingChangesError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql.connections import EngineConnections, SessionConnections
from unstick.sql.engine import open_engine
from unstick.sql.source import SqlSource
from unstick.testing.conformance import MINUTE, Ages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database

DATABASES = EACH_KIND

__all__ = ["apart"]

POSTGRES = ["postgres18", "postgres18-asyncpg", "postgres15"]


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    opened = await open_bench(database)
    yield opened
    await opened.close()


def trigger(body: str) -> list[str]:
    return [
        f"CREATE FUNCTION host() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        "CREATE TRIGGER host BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION host()",
    ]


# Triggers


@on_databases(*POSTGRES)
async def test_the_sign_of_life_on_record_is_the_one_before_our_write(bench: SqlBench) -> None:
    """A trigger that keeps `updated_at` up to date moves it with our write; the evidence is what it was."""
    await bench.execute(*trigger("NEW.updated_at = now(); RETURN NEW;"))
    job_id = await bench.add(JobState.RUNNING, Ages(started=300 * MINUTE, heartbeat=120 * MINUTE))
    since = (await bench.row(job_id))["updated_at"]

    await bench.sweep()

    (record,) = await bench.recoveries(job_id)
    said = f"{since:%Y-%m-%d %H:%M:%S} UTC"
    assert said in record.detail
    assert said in (await bench.row(job_id))["error_message"]


@on_databases(*POSTGRES)
@pytest.mark.parametrize("action", CHANGES)
async def test_a_row_that_a_trigger_keeps_as_it_was_is_not_recorded_as_recovered(
    bench: SqlBench, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 2; and the sweep ends, however many such rows there are."""
    from unstick.sql import source  # noqa: PLC0415

    monkeypatch.setattr(source, "STRIDE", 3)
    await bench.put(*({"job_type": "kept" if number % 2 else "plain"} for number in range(8)))
    await bench.execute(*trigger("IF OLD.job_type = 'kept' THEN RETURN OLD; END IF; RETURN NEW;"))

    async with asyncio.timeout(DEADLINE):
        report = await bench.sweep(action)

    assert report.tally.of(outcome=Outcome.APPLIED) == 4
    applied = {record.job_id for record in await bench.recoveries() if record.outcome == Outcome.APPLIED}
    assert applied == {"1", "3", "5", "7"}


@on_databases(*POSTGRES)
async def test_a_policy_that_refuses_a_row_stops_no_other(database: Database) -> None:
    """P2: SQLSTATE 42501 is a row's fault where row security says it."""
    bench = await open_bench(database)
    await bench.put({}, {"job_type": "theirs"}, {})
    role = f"app_{bench.engine.url.database}"
    await bench.execute(
        f"CREATE ROLE {role} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
        "ALTER TABLE ai_generation_jobs ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY ours ON ai_generation_jobs USING (true) WITH CHECK (job_type <> 'theirs')",
    )
    engine = open_engine(bench.engine.url.set(username=role).render_as_string(hide_password=False))
    bench.source = SqlSource("main", bench.jobs, EngineConnections(engine), ruled_from=1)
    report = await bench.sweep()
    await engine.dispose()
    await bench.execute(f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")
    await bench.close()

    assert (report.tally.of(outcome=Outcome.APPLIED), report.tally.of(outcome=Outcome.FAILED)) == (2, 1)
    assert [failure.job_id for failure in report.failures] == [2]


# Tables


@on_databases(*POSTGRES)
async def test_a_held_row_of_one_partition_is_in_the_way_of_no_other(bench: SqlBench) -> None:
    """An address is one row's only within one table."""
    await bench.execute(
        "ALTER TABLE ai_generation_jobs RENAME TO old",
        "CREATE TABLE ai_generation_jobs (LIKE old INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF ai_generation_jobs FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE high PARTITION OF ai_generation_jobs FOR VALUES FROM (100) TO (1000)",
    )
    await bench.put({"id": 1}, {"id": 2}, {"id": 101}, {"id": 102})
    async with host(bench) as app, app.begin() as worker:
        await worker.execute(sa.text("SELECT * FROM ai_generation_jobs WHERE id = 1 FOR UPDATE"))
        report = await bench.sweep()

    assert report.tally.of(outcome=Outcome.APPLIED) == 3
    assert [row["status"] for row in await bench.rows()] == ["running", "failed", "failed", "failed"]


async def test_an_error_of_any_length_is_no_obstacle_and_is_kept_whole(database: Database) -> None:
    """Promise 6: what undo puts back is what there was; on MariaDB a TEXT column would cut it at 64 KiB."""
    from sqlalchemy.dialects import mysql  # noqa: PLC0415

    said = sa.Column("said", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"))
    table = jobs_table(said)
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"error": "said"}))
    long = "ж" * 70_000
    await bench.put({"said": long}, {"said": long}, {})

    report = await bench.sweep()

    assert report.tally.of(outcome=Outcome.APPLIED) == 3
    images = {record.job_id: json.loads(record.pre_image)["said"] for record in await bench.recoveries()}
    await bench.close()
    assert images == {"1": long, "2": long, "3": None}


async def test_bytes_where_an_error_belongs_are_reported_and_stop_no_other(sqlite_database: Database) -> None:
    """P2: SQLite keeps anything in any column."""
    bench = await open_bench(sqlite_database)
    await bench.put({}, {}, {})
    await bench.execute("UPDATE ai_generation_jobs SET error_message = x'ff00' WHERE id = 2")

    report = await bench.sweep()

    await bench.close()
    assert (report.tally.of(outcome=Outcome.APPLIED), report.tally.of(outcome=Outcome.FAILED)) == (2, 1)


# Sessions


@on_databases(*POSTGRES)
async def test_a_hosts_own_transaction_goes_on_with_its_own_limits(bench: SqlBench) -> None:
    """A session bound to a connection with a transaction of its own, as in most test suites."""
    await bench.put({}, {})
    limits = sa.text("SELECT current_setting('lock_timeout'), current_setting('statement_timeout'), "
                     "current_setting('synchronous_commit'), current_setting('enable_seqscan'), "
                     "current_setting('jit_above_cost')")  # fmt: skip
    async with host(bench) as app, app.connect() as connection:
        outer = await connection.begin()
        await connection.execute(sa.text("SET LOCAL lock_timeout = '7s'"))
        before = (await connection.execute(limits)).one()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            service = AdminService(session, jobs=bench.jobs, policy=Policy())
            await service.monitor_stuck_jobs()
            await service.cleanup_stuck_jobs()
        after = (await connection.execute(limits)).one()
        await outer.rollback()

    assert after == before
    assert {row["status"] for row in await bench.rows()} == {"running"}


async def test_a_session_without_transactions_is_refused(bench: SqlBench) -> None:
    """Each of our statements would stand alone: a change could be committed without its record."""
    await bench.put({})
    async with host(bench, isolation_level="AUTOCOMMIT") as app, AsyncSession(app) as session:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await AdminService(session, jobs=bench.jobs, policy=Policy()).cleanup_stuck_jobs()

    assert [row["status"] for row in await bench.rows()] == ["running"]


async def test_a_session_inside_a_block_of_its_own_is_refused_in_one_sentence(bench: SqlBench) -> None:
    await bench.put({})
    async with host(bench) as app, AsyncSession(app) as session:
        with pytest.raises(PendingChangesError, match="outside of the block"):
            await _clean_within_a_block(session, bench)

    assert [row["status"] for row in await bench.rows()] == ["running"]


async def _clean_within_a_block(session: AsyncSession, bench: SqlBench) -> None:
    async with session.begin():
        await session.execute(sa.text("SELECT 1"))
        await AdminService(session, jobs=bench.jobs, policy=Policy()).cleanup_stuck_jobs()


async def test_a_hosts_session_keeps_nothing_of_a_write_that_failed(bench: SqlBench) -> None:
    """Promise 2: or the caller's next commit would make a change stand whose record was never written."""
    await bench.put({})
    async with host(bench) as app, AsyncSession(app) as session:
        with pytest.raises(ProcessEndedError):
            await _fail_within(SessionConnections(session))
        assert not session.in_transaction()
        await session.commit()

    assert [row["status"] for row in await bench.rows()] == ["running"]


async def _fail_within(connections: SessionConnections) -> None:
    async with connections.writing() as (connection, _):
        await connection.execute(sa.text("UPDATE ai_generation_jobs SET status = 'failed'"))
        raise ProcessEndedError


# Impatience


@on_databases("postgres18", "mariadb")
async def test_a_sweep_that_is_cancelled_again_and_again_still_records_its_end(bench: SqlBench) -> None:
    """Cancel scopes cancel on every turn of the loop; nothing of ours may go on alone after."""
    name = bench.engine.dialect.name.replace("mariadb", "mysql")
    await bench.put(*({"job_type": "gated" if number == 5 else "plain"} for number in range(1, 10)))
    await bench.execute(*GATES[name])
    bench.batches_of(3)
    async with host(bench) as app, app.connect() as gatekeeper:
        await gatekeeper.execute(sa.text(SHUT[name]))
        await gatekeeper.commit()
        sweeping = asyncio.create_task(bench.sweep())
        await until(lambda: somebody_waits(bench))
        async with asyncio.timeout(DEADLINE):
            while not sweeping.done():
                sweeping.cancel()
                await asyncio.sleep(0.01)
        others = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert sweeping.cancelled()
    assert others == set()
    started, ended = await bench.audit()
    assert (started.outcome, ended.outcome, ended.result["problem"]) == ("started", "failed", "interrupted")
    recorded = [record for record in await bench.recoveries() if record.outcome == Outcome.APPLIED]
    assert ended.result["applied"] == len(recorded) == 3


# A ledger elsewhere


async def test_who_carried_an_intent_out_has_the_last_word(apart: Apart) -> None:
    """Suspended for longer than anybody waits, between intent and change: another found out too soon."""
    job_id = await apart.bench.add(JobState.RUNNING, STUCK)
    watched = apart.watched

    async def suspended() -> None:
        await apart.time_passes()
        assert await settle_intents(apart.watched) == 1

    recover = watched.source.recover

    async def resumed(batch: Any) -> Any:  # noqa: ANN401
        await suspended()
        return await recover(batch)

    vars(watched.source)["recover"] = resumed
    await sweep(watched, SweepOrder(actor="test"))

    assert (await apart.bench.row(job_id))["status"] == "failed"
    assert [row.outcome for row in await apart.recoveries()] == [Outcome.FAILED, Outcome.APPLIED]
    assert await apart.intents() == []


async def test_the_pre_image_is_what_was_overwritten_not_what_was_intended_to_be(apart: Apart) -> None:
    """A host that notes an error between intent and change doesn't lose it from the record."""
    job_id = await apart.bench.add(JobState.RUNNING, STUCK)
    watched = apart.watched
    recover = watched.source.recover

    async def after_the_host(batch: Any) -> Any:  # noqa: ANN401
        await apart.bench.execute("UPDATE ai_generation_jobs SET error_message = 'second'")
        return await recover(batch)

    vars(watched.source)["recover"] = after_the_host
    await sweep(watched, SweepOrder(actor="test"))

    (record,) = await apart.recoveries()
    assert (record.job_id, json.loads(record.pre_image)["error_message"]) == (str(job_id), "second")


async def test_a_state_that_the_database_fills_up_with_blanks_is_recognised(
    postgres_database: Database,
    tmp_path: Any,  # noqa: ANN401
) -> None:
    """CHAR(12): the row says more blanks than we wrote."""
    bench = await open_bench(postgres_database)
    await bench.execute("ALTER TABLE ai_generation_jobs ALTER COLUMN status TYPE char(12)")
    ledger = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}", create=True)
    await make_tables(ledger)
    there = Apart(bench, ledger)
    await bench.add(JobState.RUNNING, STUCK)
    with killed_before(ledger, "DELETE FROM unstick_intents"), pytest.raises(ProcessEndedError):
        await there.sweep()
    await there.time_passes()

    await settle_intents(there.watched)

    assert [row.outcome for row in await there.recoveries()] == [Outcome.APPLIED]
    await ledger.dispose()
    await bench.close()
