"""Promise 2 where the ledger can't be in the jobs' database: the intent first, what came of it after, and no gap."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests.jobs import COLUMNS, STATES, SqlBench, jobs_table, make_tables, open_bench
from tests.servers import EACH_KIND
from tests.test_races import FINISH, after_first, commits, elsewhere, host
from unstick.config import LedgerSettings, Settings, SourceSettings
from unstick.domain.audit import AuditOutcome
from unstick.domain.errors import LedgerMissingError, RecoveryStoppedError
from unstick.domain.job import Job, JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.pipeline.settling import IN_FLIGHT, settle_intents
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.ledger import SqlLedger
from unstick.sql.source import SqlSource
from unstick.testing.conformance import MINUTE, Ages
from unstick.testing.memory import MemoryJobs, MemoryLedger, MemorySource, StoredJob
from unstick.wiring import open_watched, upgrade_database, upgrade_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.domain.job import JobId

DATABASES = EACH_KIND

STUCK = Ages(enqueued=100 * MINUTE, started=60 * MINUTE)


class ProcessEndedError(BaseException):
    """What a process that is killed runs into: nothing of ours catches it."""


NOTE = "UPDATE ai_generation_jobs SET error_message = 'step 3 failed' WHERE id = :id AND attempt = :attempt"


@dataclass
class Apart:
    """Jobs in one database, and the ledger in a file of its own."""

    bench: SqlBench
    ledger: AsyncEngine

    @property
    def watched(self) -> Watched:
        source = SqlSource("main", self.bench.jobs, EngineConnections(self.bench.engine), records=False)
        return Watched(source=source, ledger=SqlLedger(EngineConnections(self.ledger)), policy=Policy())

    async def sweep(self, action: Action = Action.MARK_FAILED) -> Any:  # noqa: ANN401
        return await sweep(self.watched, SweepOrder(actor="test", action=action))

    async def statuses(self) -> list[str]:
        return [row["status"] for row in await self.bench.rows()]

    async def recoveries(self) -> Sequence[sa.Row[Any]]:
        return await self._rows(sa.select(tables.recoveries).order_by(tables.recoveries.c.id))

    async def intents(self) -> Sequence[sa.Row[Any]]:
        return await self._rows(sa.select(tables.intents).order_by(tables.intents.c.id))

    async def told(self) -> dict[str, str]:
        return {row.job_id: row.outcome for row in await self.recoveries()}

    async def time_passes(self) -> None:
        """Let intents become older than any batch may be under way."""
        async with self.ledger.begin() as connection:
            for row in await connection.execute(sa.select(tables.intents)):
                earlier = sa.update(tables.intents).where(tables.intents.c.id == row.id)
                await connection.execute(earlier.values(at=row.at - IN_FLIGHT - MINUTE))

    async def _rows(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        async with self.ledger.connect() as connection:
            return list((await connection.execute(statement)).all())


@pytest.fixture
async def apart(database: Database, tmp_path: Path) -> AsyncIterator[Apart]:
    bench = await open_bench(database)
    await bench.execute(*(f"DROP TABLE {name}" for name in ("unstick_audit", "unstick_intents")))
    ledger = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}", create=True)
    await make_tables(ledger)
    yield Apart(bench, ledger)
    await ledger.dispose()
    await bench.close()


@contextmanager
def killed_before(engine: AsyncEngine, statement: str) -> Iterator[None]:
    """End the process right before a statement that begins like this reaches the database."""

    def hook(_c: Any, _cursor: Any, text: str, _p: Any, _context: Any, _many: bool) -> None:  # noqa: ANN401
        if statement in text:
            raise ProcessEndedError

    event.listen(engine.sync_engine, "before_cursor_execute", hook)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", hook)


@pytest.mark.parametrize("action", CHANGES)
async def test_every_change_is_recorded_with_what_it_overwrote(apart: Apart, action: Action) -> None:
    """And nothing of it is in the jobs' own database."""
    running = await apart.bench.add(JobState.RUNNING, STUCK)
    queued = await apart.bench.add(JobState.QUEUED, Ages(enqueued=60 * MINUTE), attempt=0)
    healthy = await apart.bench.add(JobState.RUNNING, Ages(started=MINUTE))

    report = await apart.sweep(action)

    ours = "failed" if action is Action.MARK_FAILED else "queued"
    assert [(await apart.bench.row(job))["status"] for job in (running, queued, healthy)] == [ours, ours, "running"]
    assert report.tally.of(outcome=Outcome.APPLIED) == 2
    records = {row.job_id: row for row in await apart.recoveries()}
    assert records.keys() == {str(running), str(queued)}
    assert {row.outcome for row in records.values()} == {Outcome.APPLIED}
    assert json.loads(records[str(running)].pre_image)["status"] == "running"
    assert json.loads(records[str(queued)].pre_image)["status"] == "queued"
    assert await apart.intents() == []
    assert await apart.bench.recoveries() == []


@pytest.mark.parametrize("moment", ["before the intent", "between intent and change"])
async def test_a_job_that_changed_since_the_look_is_left_and_recorded_as_lost(apart: Apart, moment: str) -> None:
    """R1: neither before the intent nor between it and the write is anything overwritten."""
    changes, stays = [await apart.bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
    if apart.bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(apart.bench.engine)  # or nobody could write while we read

    def finish() -> None:
        elsewhere(lambda: _finish(apart.bench, changes))

    if moment == "before the intent":
        place = after_first(apart.bench.engine, "attempt AS job_attempt", finish)
    else:
        place = after_first(apart.ledger, "INSERT INTO unstick_intents", finish)
    with place as seen:
        report = await apart.sweep()

    assert seen
    assert report.tally.of(outcome=Outcome.LOST_RACE) == 1
    assert await apart.told() == {str(changes): Outcome.LOST_RACE, str(stays): Outcome.APPLIED}
    assert await apart.statuses() == ["completed", "failed"]
    assert await apart.intents() == []


async def test_what_was_overwritten_is_what_stood_there_when_it_was_locked(apart: Apart) -> None:
    """And not what was meant to be overwritten: an undo would write an older word over a newer one."""
    job_id = await apart.bench.add(JobState.RUNNING, STUCK)
    if apart.bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(apart.bench.engine)

    def note() -> None:
        elsewhere(lambda: _note(apart.bench, job_id))

    with after_first(apart.ledger, "INSERT INTO unstick_intents", note) as seen:
        await apart.sweep()

    assert seen
    [record] = await apart.recoveries()
    assert record.outcome == Outcome.APPLIED
    assert json.loads(record.pre_image)["error_message"] == "step 3 failed"


async def _note(bench: SqlBench, job_id: JobId) -> None:
    async with host(bench) as app:
        assert await commits(app, NOTE, job_id) == 1


async def _finish(bench: SqlBench, job_id: JobId) -> None:
    async with host(bench) as app:
        assert await commits(app, FINISH, job_id) == 1


@pytest.mark.parametrize("action", CHANGES)
async def test_a_process_that_ends_before_the_change_leaves_the_job_for_the_next_sweep(
    apart: Apart, action: Action
) -> None:
    """The intent is found at the next start; the job is as it was, and that is recorded."""
    job_id = await apart.bench.add(JobState.RUNNING, STUCK)
    with killed_before(apart.bench.engine, "UPDATE ai_generation_jobs"), pytest.raises(ProcessEndedError):
        await apart.sweep(action)
    assert (await apart.statuses(), len(await apart.intents()), await apart.told()) == (["running"], 1, {})

    assert await settle_intents(apart.watched) == 0  # it may still be under way
    await apart.time_passes()
    assert await settle_intents(apart.watched) == 1

    assert await apart.told() == {str(job_id): Outcome.FAILED}
    assert await apart.intents() == []
    await apart.sweep(action)
    assert Counter(row.outcome for row in await apart.recoveries()) == {Outcome.FAILED: 1, Outcome.APPLIED: 1}


@pytest.mark.parametrize("action", CHANGES)
async def test_a_process_that_ends_after_the_change_is_recorded_as_having_made_it(apart: Apart, action: Action) -> None:
    """The change is committed, its record isn't: the row itself tells, by what was to be written."""
    job_id = await apart.bench.add(JobState.RUNNING, STUCK)
    with killed_before(apart.ledger, "DELETE FROM unstick_intents"), pytest.raises(ProcessEndedError):
        await apart.sweep(action)
    changed = await apart.statuses()
    assert (len(await apart.intents()), await apart.told()) == (1, {})
    await apart.time_passes()

    assert await settle_intents(apart.watched) == 1

    assert changed == ["failed" if action is Action.MARK_FAILED else "queued"]
    assert await apart.told() == {str(job_id): Outcome.APPLIED}
    assert json.loads((await apart.recoveries())[0].pre_image)["status"] == "running"
    assert await apart.intents() == []


@pytest.mark.parametrize(("action", "outcome"), [(Action.MARK_FAILED, "lost_race"), (Action.RETRY, "applied")])
async def test_where_the_job_has_moved_on_a_retry_counts_and_a_failure_does_not(
    apart: Apart, action: Action, outcome: str
) -> None:
    """Nobody can tell any more; the budget must not be cheated, nor a job be called failed that isn't."""
    job_id = await apart.bench.add(JobState.RUNNING, STUCK)
    with killed_before(apart.ledger, "DELETE FROM unstick_intents"), pytest.raises(ProcessEndedError):
        await apart.sweep(action)
    await apart.bench.write(job_id, JobState.RUNNING, Ages(started=timedelta(0)), attempt=7)
    await apart.time_passes()

    await settle_intents(apart.watched)

    assert await apart.told() == {str(job_id): outcome}


@pytest.mark.parametrize("action", CHANGES)
async def test_what_another_sweep_did_meanwhile_is_not_taken_for_ours(apart: Apart, action: Action) -> None:
    """The same change, made by somebody else a moment later: one change, one recovery that says applied."""
    await apart.bench.add(JobState.RUNNING, STUCK)
    with killed_before(apart.bench.engine, "UPDATE ai_generation_jobs"), pytest.raises(ProcessEndedError):
        await apart.sweep(action)
    await apart.sweep(action)
    await apart.time_passes()

    assert await settle_intents(apart.watched) == 1

    assert [row.outcome for row in await apart.recoveries()] == [Outcome.APPLIED, Outcome.LOST_RACE]


async def test_an_intent_settled_by_two_is_recorded_once(apart: Apart) -> None:
    """K: two replicas start at once after a crash."""
    await apart.bench.add(JobState.RUNNING, STUCK)
    with killed_before(apart.ledger, "DELETE FROM unstick_intents"), pytest.raises(ProcessEndedError):
        await apart.sweep()
    await apart.time_passes()

    await asyncio.gather(settle_intents(apart.watched), settle_intents(apart.watched))

    assert [row.outcome for row in await apart.recoveries()] == [Outcome.APPLIED]


async def test_a_ledger_that_goes_away_stops_the_sweep_before_anything_is_changed_unrecorded(apart: Apart) -> None:
    """No intent, no change."""
    await apart.bench.add(JobState.RUNNING, STUCK)
    async with apart.ledger.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE unstick_intents RENAME TO gone"))
        await connection.execute(
            sa.text("CREATE VIEW unstick_intents AS SELECT * FROM gone")  # it can be read, and not written
        )

    with pytest.raises(RecoveryStoppedError, match="recorded as intended") as stopped:
        await apart.sweep()

    assert stopped.value.recovered == 0
    assert await apart.statuses() == ["running"]


async def test_memory_keeps_the_same_promise() -> None:
    """The shipped in-memory source, told that its ledger is elsewhere."""
    system = MemoryJobs()
    source, ledger = MemorySource(system, records=False), MemoryLedger(system)
    watched = Watched(source=source, ledger=ledger, policy=Policy())
    began = system.now - 60 * MINUTE
    system.put(StoredJob(job=Job(id=1, state=JobState.RUNNING, status="running", started_at=began)))

    report = await sweep(watched, SweepOrder(actor="test"))

    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    assert [each.outcome for each in system.recoveries] == [Outcome.APPLIED]
    assert system.intents == []


# By configuration, with real processes.


def settings(database: Database, ledger: Path) -> Settings:
    source = SourceSettings.model_validate(
        {"url": database.url, "table": "ai_generation_jobs", "columns": COLUMNS, "states": STATES}
    )
    return Settings(sources={"main": source}, ledger=LedgerSettings.model_validate({"url": f"sqlite:///{ledger}"}))


async def make_jobs(database: Database) -> None:
    engine = open_engine(database.url, create=True)
    async with engine.begin() as connection:
        await connection.run_sync(jobs_table().metadata.create_all)
    await engine.dispose()


async def test_upgrade_makes_the_ledger_where_it_is_to_be_and_nothing_beside_the_jobs(
    database: Database, tmp_path: Path
) -> None:
    await make_jobs(database)
    said = settings(database, tmp_path / "ledger.db")
    (tmp_path / "ledger.db").touch()
    with pytest.raises(LedgerMissingError, match="the ledger"):
        async with open_watched(said):
            pass

    assert await upgrade_database(said) == ("ledger_0001",)
    assert "unstick_recoveries" in upgrade_sql(said)

    engine = open_engine(database.url)
    async with open_watched(said) as watched, engine.connect() as connection:
        assert (await sweep(watched, SweepOrder(actor="test"))).operation_id == 1
        there = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    await engine.dispose()
    assert [name for name in there if name.startswith("unstick_")] == []


async def test_a_sweep_killed_in_the_middle_is_made_good_by_the_next(
    postgres_database: Database, tmp_path: Path
) -> None:
    """SIGKILL between intent and settlement: every failed job has one record that says so, and no other has one."""
    bench = await open_bench(postgres_database)
    number = 3_000
    await bench.execute(
        "INSERT INTO ai_generation_jobs (status, started_at, attempt)"
        f" SELECT 'running', now() - interval '1 hour', 1 FROM generate_series(1, {number})"
    )
    await bench.close()
    ledger_file = tmp_path / "ledger.db"
    said = settings(postgres_database, ledger_file)
    await upgrade_database(said)
    config = tmp_path / "unstick.toml"
    config.write_text(
        f'[ledger]\nurl = "sqlite:///{ledger_file}"\n[sources.main]\nurl = "{postgres_database.url}"\n'
        'table = "ai_generation_jobs"\n'
        f"columns = {{ {', '.join(f'{key} = {json.dumps(name)}' for key, name in COLUMNS.items())} }}\n"
        f"states = {{ {', '.join(f'{s.value} = {json.dumps(list(words))}' for s, words in STATES.items())} }}\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNSTICK_")} | {
        "UNSTICK_CONFIG": str(config)
    }
    ledger = open_engine(f"sqlite:///{ledger_file}")
    sweeping = subprocess.Popen([sys.executable, "-m", "unstick", "sweep"], env=environment)  # noqa: ASYNC220
    async with asyncio.timeout(60):
        while not await _count(ledger, tables.intents):
            assert sweeping.poll() is None
            await asyncio.sleep(0)
    sweeping.send_signal(signal.SIGKILL)
    assert sweeping.wait() == -signal.SIGKILL

    assert await _count(ledger, tables.intents) > 0
    async with ledger.begin() as connection:
        await connection.execute(sa.update(tables.intents).values(at=sa.text("datetime('now', '-1 hour')")))
    async with open_watched(said) as watched:
        assert await _count(ledger, tables.intents) == 0
        await sweep(watched, SweepOrder(actor="test"))
    async with ledger.connect() as connection:
        applied = Counter(
            (
                await connection.scalars(
                    sa.select(tables.recoveries.c.job_id).where(tables.recoveries.c.outcome == "applied")
                )
            ).all()
        )
        ends = await connection.scalars(sa.select(tables.audit.c.outcome).order_by(tables.audit.c.id))
        assert list(ends) == [AuditOutcome.STARTED, AuditOutcome.STARTED, AuditOutcome.DONE]
    await ledger.dispose()
    assert applied == Counter(str(job_id) for job_id in range(1, number + 1))


async def _count(engine: AsyncEngine, table: sa.Table) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)
