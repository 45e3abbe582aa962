"""What our statements cost the host: none of them reads the finished jobs, however many there are."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests.jobs import declared, jobs_table, open_bench
from unstick.domain.diagnosis import Reason
from unstick.domain.filter import StuckFilter
from unstick.domain.job import JobState
from unstick.domain.recovery import CHANGES, Action
from unstick.domain.suspect import Position
from unstick.pipeline import listing
from unstick.pipeline.aftermath import follow_up
from unstick.pipeline.listing import list_stuck
from unstick.pipeline.report import report_stats, report_stuck
from unstick.sql import source as source_module
from unstick.sql.connections import EngineConnections
from unstick.sql.unmapped import unmapped_words
from unstick.testing.conformance import batch_of, look_at, since_of, suspects_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.jobs import SqlBench
    from tests.servers import Database

JOBS = "ai_generation_jobs"
OURS = "unstick_recoveries"
FINISHED = 20_000
ONE_TO = {
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {0}) SELECT {1} FROM s",
    "postgresql": "SELECT {1} FROM generate_series(1, {0}) AS s(n)",
    "mysql": "SELECT {1} FROM (SELECT seq AS n FROM seq_1_to_{0}) AS s",
}
AGO = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-{0} minutes')",
    "postgresql": "now() - interval '{0} minutes'",
    "mysql": "UTC_TIMESTAMP(6) - INTERVAL {0} MINUTE",
}


@dataclass(frozen=True)
class Said:
    """A statement of ours as the driver got it."""

    text: str
    parameters: Any


@contextmanager
def overheard(bench: SqlBench) -> Iterator[list[Said]]:
    """Everything we say to the database about jobs and recoveries."""
    said: list[Said] = []

    def hook(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:  # noqa: ANN401
        if not many and (JOBS in statement or OURS in statement):
            said.append(Said(statement, parameters))

    event.listen(bench.engine.sync_engine, "before_cursor_execute", hook)
    try:
        yield said
    finally:
        event.remove(bench.engine.sync_engine, "before_cursor_execute", hook)


async def fill(bench: SqlBench, backend: str, job_id: str | None) -> None:
    """Twenty thousand finished jobs and old recoveries, and sixty open jobs of which forty are stuck."""

    def ago(minutes: int) -> str:
        return AGO[backend].format(minutes)

    def several(number: int, into: str, values: str) -> str:
        return f"INSERT INTO {into} " + ONE_TO[backend].format(number, values)

    key, keys = ("id, ", f"{job_id}, ") if job_id else ("", "")
    jobs = f"{JOBS} ({key}status, job_type, created_at, started_at, completed_at, attempt)"
    old, recent = ago(20_000), ago(1)
    await bench.execute(
        several(FINISHED, jobs, f"{keys.format('done')}'completed', 'x', {old}, {old}, {old}, 1"),
        several(20, jobs, f"{keys.format('dead')}'running', 'x', {ago(99)}, {ago(99)}, NULL, 1"),
        several(20, jobs, f"{keys.format('live')}'running', 'x', {recent}, {recent}, NULL, 1"),
        several(20, jobs, f"{keys.format('wait')}'queued', 'x', {ago(99)}, NULL, NULL, 0"),
        several(
            FINISHED,
            f"{OURS} (operation_id, source, job_id, state, action, reason, outcome, detail, at)",
            f"1, 'main', {'CAST(n AS CHAR(20))' if backend == 'mysql' else 'CAST(n AS TEXT)'}, "
            f"'running', 'retry', 'silent', 'applied', '', {old}",
        ),
    )
    analyze = {
        "sqlite": ["ANALYZE"],
        "postgresql": [f"ANALYZE {JOBS}", f"ANALYZE {OURS}"],
        "mysql": [f"ANALYZE TABLE {JOBS}", f"ANALYZE TABLE {OURS}"],
    }
    await bench.execute(*analyze[backend])


async def use_everything(bench: SqlBench) -> None:
    """Every read and every write there is, first pages and later ones, by decision and by ruling."""
    bench.batches_of(15)
    await report_stats(bench.watched())
    await unmapped_words(EngineConnections(bench.engine), bench.jobs)
    await report_stuck(bench.watched(), limit=5)
    look = await look_at(bench)
    for state in (JobState.QUEUED, JobState.RUNNING):
        first = await bench.source.list_suspects(look, state, limit=5, after=None)
        position = Position(since=since_of(first[-1]), job_id=first[-1].id)
        await bench.source.list_suspects(look, state, limit=5, after=position)
        for newest_first in (False, True):
            stretch = await bench.source.stretch(look, state, size=5, newest_first=newest_first)
            await bench.source.stretch(look, state, size=5, after=stretch.end, newest_first=newest_first)
    await bench.source.open_classes(most=5)
    some = (await suspects_of(bench, look))[:6]
    for action, part in zip(CHANGES, (some[:3], some[3:]), strict=True):
        result = await bench.source.recover(batch_of(part, look, action))
        assert len(result.applied) == 3
    assert sum((await bench.sweep(Action.RETRY)).tally.counts.values()) == 34
    await bench.execute(f"UPDATE {JOBS} SET status = 'running', started_at = created_at, scheduled_at = NULL "
                        "WHERE completed_at IS NULL AND job_type = 'x'")  # fmt: skip
    assert sum((await bench.sweep(Action.MARK_FAILED)).tally.counts.values()) == 37
    assert (await follow_up(bench.watched(), whole=True)).looked_at == 40 + 37
    await bench.execute(f"UPDATE {JOBS} SET status = 'completed' WHERE status = 'failed' AND job_type = 'x'")
    assert (await follow_up(bench.watched(), whole=True)).late == 40


async def scans(bench: SqlBench, backend: str, said: Said) -> list[str]:
    """Return what in a statement's plan reads a whole table, its rows or its key's index."""
    newest_only = " LIMIT " in said.text.replace("\n", " ") and "newest" in said.text  # a bounded part of the key
    async with bench.engine.connect() as connection:
        if backend == "sqlite":
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {said.text}", said.parameters)
            found = [str(row.detail) for row in rows]
            whole = [line for line in found if line.startswith(("SCAN ai_gen", "SCAN unstick"))]
            return [line for line in whole if f"{JOBS}_open" not in line and not newest_only]
        if backend == "mysql":
            rows = await connection.exec_driver_sql(f"EXPLAIN {said.text}", said.parameters)
            return [
                f"{row.table}: {row.type} {row.key}"
                for row in rows
                if row.table in (JOBS, OURS) and row.type in ("ALL", "index") and not newest_only
                if not (said.text.startswith("INSERT") and row.table == OURS)
            ]
        if bench.engine.dialect.driver != "asyncpg":
            rows = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {said.text}", said.parameters)
            return list(_whole_scans(rows.scalar_one()[0]["Plan"], newest_only=newest_only))
    # asyncpg prepares: after five runs the plan is one for any values, and this is how to see it.
    conninfo = f"host={bench.engine.url.query['host']} user=postgres dbname={bench.engine.url.database}"
    async with await psycopg.AsyncConnection.connect(conninfo) as simple:
        cursor = await simple.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {said.text}".encode())
        row = await cursor.fetchone()
        assert row is not None
        return list(_whole_scans(row[0][0]["Plan"], newest_only=newest_only))


def _whole_scans(plan: dict[str, Any], *, newest_only: bool) -> Iterator[str]:
    by_condition = any(name in plan for name in ("Index Cond", "TID Cond", "Recheck Cond"))
    partial = plan.get("Index Name") == f"{JOBS}_open"
    bounded = newest_only and "Index Name" in plan
    if plan.get("Relation Name") in (JOBS, OURS) and "Scan" in plan["Node Type"]:
        whole = not (by_condition or partial or bounded)
        if whole:
            yield f"{plan['Node Type']} on {plan['Relation Name']} {plan.get('Index Name', '')}"
    for child in plan.get("Plans", ()):
        yield from _whole_scans(child, newest_only=newest_only)


@pytest.mark.parametrize("keyed", ["by a number", "by a text"])
async def test_no_statement_reads_the_finished_jobs(
    database: Database, monkeypatch: pytest.MonkeyPatch, keyed: str
) -> None:
    """X2: with the index on open jobs that the contract's table has, and in the ledger, whose old rows stay, too."""
    monkeypatch.setattr(source_module, "STRIDE", 12)
    monkeypatch.setattr("unstick.sql.statements.FLOW_JOBS", 20)  # a small part of this table, as of a real one
    table = jobs_table()
    job_id = None
    if keyed == "by a text":
        table = jobs_table(key=sa.Column("id", sa.String(40), primary_key=True))
        table.kwargs.update(mysql_charset="latin1", mysql_collate="latin1_swedish_ci")
        job_id = "'{0}' || n" if database.backend != "mysql" else "CONCAT('{0}', n)"
    bench = await open_bench(database, table, declared(table))
    try:
        await fill(bench, database.backend, job_id)
        with overheard(bench) as everything:
            await use_everything(bench)
        statements = {said.text: said for said in everything if said.text.startswith(("SELECT", "WITH", "INS", "UPD"))}
        statements = {text: said for text, said in statements.items() if "job_type = 'x'" not in text}
        found = {text: await scans(bench, database.backend, said) for text, said in statements.items()}
    finally:
        await bench.close()

    writes = [text for text in statements if f"INSERT INTO {OURS}" in text]
    assert len(writes) >= 3
    assert len(statements) >= 15
    assert {text: whole for text, whole in found.items() if whole} == {}


async def test_what_a_page_of_stuck_jobs_costs_does_not_grow_with_their_number(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the steps that SQLite takes, which are the same on every machine."""
    monkeypatch.setattr(listing, "MOST_SEARCHED", 20)
    monkeypatch.setattr("unstick.sql.statements.FLOW_JOBS", 20)
    table = jobs_table()
    bench = await open_bench(sqlite_database, table, declared(table))
    try:
        taken = []
        for number in (100, 2_000):
            for state, begun in (("queued", "NULL"), ("running", "datetime('now', '-' || (9000 - n) || ' minutes')")):
                values = f"'{state}', 'x', datetime('now', '-9000 minutes'), {begun}, 1"
                into = f"INSERT INTO {JOBS} (status, job_type, created_at, started_at, attempt)"
                await bench.execute(f"{into} {ONE_TO['sqlite'].format(number, values)}")
            taken.append({wanted: await _steps(bench, wanted) for wanted in (*FILTERS, None)})
    finally:
        await bench.close()

    few, many = taken
    assert {wanted: many[wanted] for wanted in many if many[wanted] > 1.5 * few[wanted] + 50} == {}


FILTERS = (StuckFilter(), StuckFilter(kind="none"), StuckFilter(reason=Reason.SILENT, older_than=timedelta(hours=1)))


async def _steps(bench: SqlBench, wanted: StuckFilter | None) -> int:
    """Count by the hundred what it takes to list stuck jobs from either end, or to name some open classes."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    async with bench.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.set_progress_handler(step, 100)
    if wanted is None:
        await bench.source.open_classes(most=20)
    else:
        for newest_first in (False, True):
            page = await list_stuck(bench.watched(), wanted, limit=5, newest_first=newest_first)
            await list_stuck(bench.watched(), wanted, limit=5, cursor=page.next_cursor, newest_first=newest_first)
    return steps
