"""What is struck when it has been kept long enough, and what never is unless the operator says so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.util import await_only

from tests.jobs import SqlBench, open_bench
from tests.servers import EACH_KIND
from unstick.config import RetentionSettings
from unstick.domain.job import JobState
from unstick.domain.retention import Retention
from unstick.domain.sighting import Sighted
from unstick.pipeline.looking import take_look
from unstick.pipeline.pruning import prune
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql import retention as retention_module
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.event_log import SqlEventLog
from unstick.sql.retention import SqlPruner
from unstick.sql.sightings import SqlSightings
from unstick.testing.conformance import MINUTE, Ages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.pipeline.watched import Watched

DATABASES = EACH_KIND

DAY = timedelta(days=1)
STUCK = Ages(enqueued=100 * MINUTE, started=60 * MINUTE)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


def pruned_by(bench: SqlBench, retention: Retention) -> Watched:
    return replace(bench.watched(), pruner=SqlPruner(EngineConnections(bench.engine)), retention=retention)


async def age(bench: SqlBench, column: sa.Column[object], by: timedelta) -> None:
    """Have all rows of a table be older."""
    now = await bench.source.clock()
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(column.table).values({column.name: now - by}))


async def count(bench: SqlBench, table: sa.Table) -> int:
    async with bench.engine.connect() as connection:
        return int((await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one())


async def kept_for(bench: SqlBench) -> None:
    """A recovery, its audit entries, events and a sighting."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    watched = replace(bench.watched(), event_log=SqlEventLog(EngineConnections(bench.engine)))
    now = await bench.source.clock()
    jobs = await bench.source.describe(await take_look(watched), [job_id])
    await SqlSightings(EngineConnections(bench.engine)).note("main", [Sighted.of(jobs[job_id])], now)
    await sweep(watched, SweepOrder(actor="ada"))


async def test_events_and_sightings_go_and_the_record_of_what_was_done_stays(bench: SqlBench) -> None:
    await kept_for(bench)
    for column in (tables.events.c.at, tables.sightings.c.seen_at, tables.recoveries.c.at, tables.audit.c.at):
        await age(bench, column, 1000 * DAY)

    pruned = await prune(pruned_by(bench, Retention()), "runner")

    assert dict(pruned.rows) == {"unstick_events": 1, "unstick_sightings": 1}
    assert (await count(bench, tables.audit), await count(bench, tables.recoveries)) == (3, 1)
    entry = (await bench.audit())[-1]
    assert (entry.call, entry.actor, entry.result) == ("db.prune", "runner", dict(pruned.rows))


async def test_the_audit_log_goes_only_as_far_as_the_operator_says(bench: SqlBench) -> None:
    await kept_for(bench)
    for column in (tables.recoveries.c.at, tables.audit.c.at):
        await age(bench, column, 100 * DAY)
    await bench.add(JobState.RUNNING, STUCK)
    await sweep(bench.watched(), SweepOrder(actor="ada"))

    pruned = await prune(pruned_by(bench, Retention(audit=99 * DAY)), "ada")

    assert dict(pruned.rows) == {"unstick_recoveries": 1, "unstick_audit": 2}
    assert [entry.call for entry in await bench.audit()] == ["jobs.cleanup", "jobs.cleanup", "db.prune"]
    assert await count(bench, tables.recoveries) == 1


async def test_what_is_younger_stays_and_nothing_is_said_of_nothing(bench: SqlBench) -> None:
    await kept_for(bench)
    for column, kept in ((tables.events.c.at, 7), (tables.sightings.c.seen_at, 30), (tables.audit.c.at, 40)):
        await age(bench, column, kept * DAY - MINUTE)

    pruned = await prune(pruned_by(bench, Retention(audit=40 * DAY)), "runner")

    assert pruned.total == 0
    assert [entry.call for entry in await bench.audit()] == ["jobs.cleanup", "jobs.cleanup"]


async def test_alerts_that_are_over_go_and_open_ones_stay(bench: SqlBench) -> None:
    """What channels were told of them is struck by whoever delivers."""
    now = await bench.source.clock()
    for subject, resolved in (("open", None), ("over", now - 8 * DAY)):
        alert = {
            "subject": subject, "id": subject, "source": "main", "what": "silent", "opened_at": now - 9 * DAY,
            "seen_at": now, "jobs": 1, "sentence": "", "notified_jobs": 0, "resolved_at": resolved,
        }  # fmt: skip
        async with bench.engine.begin() as connection:
            await connection.execute(sa.insert(tables.alerts).values(alert))

    pruned = await prune(pruned_by(bench, Retention()), "runner")

    assert dict(pruned.rows) == {"unstick_alerts": 1}
    async with bench.engine.connect() as connection:
        assert list(await connection.scalars(sa.select(tables.alerts.c.subject))) == ["open"]


async def test_much_is_struck_a_bounded_number_at_a_time(bench: SqlBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 10)
    log = SqlEventLog(EngineConnections(bench.engine))
    for _ in range(25):
        await log.append("main", "observed", {})
    await age(bench, tables.events.c.at, 8 * DAY)
    await log.append("main", "observed", {})
    struck: list[int] = []

    def note(_connection: object, cursor: sa.engine.interfaces.DBAPICursor, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM unstick_events"):
            struck.append(cursor.rowcount)

    sa.event.listen(bench.engine.sync_engine, "after_cursor_execute", note)
    pruned = await prune(pruned_by(bench, Retention()), "runner")
    sa.event.remove(bench.engine.sync_engine, "after_cursor_execute", note)

    assert struck == [10, 10, 5]
    assert dict(pruned.rows) == {"unstick_events": 25}
    assert await count(bench, tables.events) == 1


async def test_who_strikes_keeps_nobody_from_writing_beside(mariadb_database: Database) -> None:
    """MariaDB and MySQL lock all that a statement reads: that must be no more than what it strikes."""
    bench = await open_bench(mariadb_database)
    log, pruner = SqlEventLog(EngineConnections(bench.engine)), SqlPruner(EngineConnections(bench.engine))
    for _ in range(25):
        await log.append("main", "observed", {})
    await age(bench, tables.events.c.at, 8 * DAY)
    for _ in range(5):
        await log.append("main", "young", {})
    struck, go_on = asyncio.Event(), asyncio.Event()

    def hold(_connection: sa.Connection) -> None:
        struck.set()
        await_only(go_on.wait())

    async def strike() -> list[tuple[str, int]]:
        return [each async for each in pruner.prune(Retention())]

    beside = open_engine(mariadb_database.url)
    sa.event.listen(bench.engine.sync_engine, "commit", hold)
    striking = asyncio.create_task(strike())
    try:
        await asyncio.wait_for(struck.wait(), 20)
        async with beside.begin() as connection:
            await connection.exec_driver_sql("SET innodb_lock_wait_timeout = 1")
            young = sa.update(tables.events).where(tables.events.c.kind == "young", tables.events.c.id == 30)
            changed = await connection.execute(young.values(kind="changed"))
            new = {"at": await bench.source.clock(), "source": "main", "kind": "new", "told": "{}"}
            await connection.execute(sa.insert(tables.events).values(new))
    finally:
        go_on.set()
        found = await striking
    await beside.dispose()
    assert changed.rowcount == 1
    assert found == [("unstick_events", 25)]
    assert await count(bench, tables.events) == 6
    await bench.close()


async def test_what_was_struck_is_on_record_though_it_was_cut_off(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 10)
    log = SqlEventLog(EngineConnections(bench.engine))
    for _ in range(25):
        await log.append("main", "observed", {})
    await age(bench, tables.events.c.at, 8 * DAY)
    real = SqlPruner(EngineConnections(bench.engine))

    class Cut:
        async def prune(self, retention: Retention) -> AsyncIterator[tuple[str, int]]:
            async for struck in real.prune(retention):
                yield struck
                raise TimeoutError

    with pytest.raises(TimeoutError):
        await prune(replace(bench.watched(), pruner=Cut()), "runner")

    assert await count(bench, tables.events) == 15
    assert (await bench.audit())[-1].result == {"unstick_events": 10}


@pytest.mark.parametrize("said", ["29d", "0s", "for ever"])
def test_an_audit_log_that_budgets_and_undo_need_is_not_struck(said: str) -> None:
    with pytest.raises(ValueError, match="audit"):
        RetentionSettings.model_validate({"audit": said})
