"""A snoozed job is nobody's suspect until its snooze ends, by the clock that judges it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import time_machine
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs import SqlBench, open_bench
from tests.one_job import KEYS, keyed_bench, whole
from tests.servers import EACH_KIND
from tests.test_races import elsewhere
from unstick.admin import AdminService
from unstick.domain.errors import InvalidRequestError, TooManySnoozesError, UnknownJobError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action, Outcome
from unstick.domain.snooze import MAX_SNOOZES
from unstick.pipeline.report import report_stats, report_stuck
from unstick.pipeline.snoozing import SnoozeOrder, SnoozeReport, live_snoozes, snooze
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.snoozes import SqlSnoozes
from unstick.sql.source import RULED_FROM, SqlSource
from unstick.testing.conformance import MINUTE, Ages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.domain.job import JobId

DATABASES = EACH_KIND

HOUR = timedelta(hours=1)
STUCK = Ages(enqueued=3 * HOUR, started=2 * HOUR)
WAITING = Ages(enqueued=2 * HOUR)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    opened = await open_bench(database)
    yield opened
    await opened.close()


async def put_to_sleep(
    bench: SqlBench, job_id: JobId, lasting: timedelta | None = HOUR, reason: str | None = "the customer is asked"
) -> SnoozeReport:
    order = SnoozeOrder(actor="ann", role="operator", job_id=job_id, reason=reason, lasting=lasting)
    return await snooze(whole(bench), order)


async def stuck_ids(bench: SqlBench) -> set[Any]:
    report = await report_stuck(whole(bench))
    listed = {finding.job.id for finding in (*report.queued, *report.running)}
    assert report.counts.total == len(listed)
    return listed


@pytest.mark.parametrize("keys", KEYS)
async def test_a_snoozed_job_is_in_no_report_and_no_count(database: Database, keys: str) -> None:
    """And the report says how many there are of them, were they not snoozed."""
    bench, ids = await keyed_bench(database, keys)
    await bench.put(*({"id": each} for each in ids))
    names = [each if isinstance(each, int) else str(each) for each in ids]
    before = await stuck_ids(bench)
    await put_to_sleep(bench, str(ids[0]))

    report, stats = await report_stuck(whole(bench)), await report_stats(whole(bench))
    left = await stuck_ids(bench)
    await bench.close()

    assert before == set(names)
    assert left == set(names[1:])
    assert report.snoozed == 1
    assert stats.stuck.total == 3


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("action", [Action.MARK_FAILED, Action.RETRY])
@pytest.mark.parametrize("ruled_from", [1, RULED_FROM], ids=["ruled", "one by one"])
async def test_no_sweep_touches_a_snoozed_job(database: Database, keys: str, action: Action, ruled_from: int) -> None:
    bench, ids = await keyed_bench(database, keys, ruled_from=ruled_from)
    await bench.put(*({"id": each} for each in ids))
    await put_to_sleep(bench, str(ids[1]))
    dry = await sweep(whole(bench), SweepOrder(actor="test", action=action, dry_run=True))

    report = await sweep(whole(bench), SweepOrder(actor="test", action=action))

    states = {row["id"]: row["status"] for row in await bench.rows()}
    recorded = {each.job_id for each in await bench.recoveries()}
    await bench.close()
    done = "failed" if action is Action.MARK_FAILED else "queued"
    assert states == {each: "running" if each == ids[1] else done for each in ids}
    assert report.tally.of(outcome=Outcome.APPLIED) == dry.tally.of(outcome=Outcome.APPLIED) == 3
    assert recorded == {str(each) for each in ids} - {str(ids[1])}


async def test_a_job_that_is_snoozed_but_not_stuck_is_not_counted_as_such(bench: SqlBench) -> None:
    healthy = await bench.add(JobState.RUNNING, Ages(started=MINUTE))
    await put_to_sleep(bench, healthy)

    assert (await report_stuck(whole(bench))).snoozed == 0


async def test_a_snooze_ends_by_the_database_and_not_by_our_clock(bench: SqlBench) -> None:
    """C1: a process whose clock is days ahead, or behind, ends nothing and lengthens nothing."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    for skew in (timedelta(days=-3), timedelta(days=3)):
        with time_machine.travel(datetime.now(UTC) + skew, tick=True):
            report = await put_to_sleep(bench, job_id)
            assert await stuck_ids(bench) == set()
        assert report.snooze is not None
        assert abs(report.snooze.until - await bench.source.clock() - HOUR) < MINUTE

    assert report.snooze is not None
    snoozes, end = SqlSnoozes(EngineConnections(bench.engine)), report.snooze.until
    moment = timedelta(microseconds=1)
    assert [each.job_id for each in await snoozes.live("main", end - moment)] == [job_id]
    assert await snoozes.live("main", end) == []
    await _move_ends(bench, -HOUR)
    assert await stuck_ids(bench) == {job_id}


async def _move_ends(bench: SqlBench, by: timedelta) -> None:
    now = await bench.source.clock()
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(tables.snoozes).values(until=now + HOUR + by - timedelta(seconds=1)))


async def test_whoever_ends_a_snooze_has_its_job_found_again(bench: SqlBench) -> None:
    job_id, other = [await bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
    await put_to_sleep(bench, job_id)
    await put_to_sleep(bench, other)

    ended = await put_to_sleep(bench, str(job_id), None, None)
    again = await put_to_sleep(bench, job_id, None, None)

    assert (ended.snoozed, ended.snooze is None, again.snooze) == (False, False, None)
    assert await stuck_ids(bench) == {job_id}


async def test_the_latest_order_wins_and_a_job_has_one_snooze(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await put_to_sleep(bench, job_id, 9 * HOUR, "first")
    await put_to_sleep(bench, job_id, HOUR, "second")

    (kept,) = await live_snoozes(whole(bench))

    assert (kept.job_id, kept.reason, kept.by) == (job_id, "second", "ann")
    assert kept.until - kept.at == HOUR
    async with bench.engine.connect() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(tables.snoozes)) == 1


async def test_each_order_is_in_the_audit_log_with_who_and_why(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    made = await put_to_sleep(bench, str(job_id), HOUR, "  the customer\n is asked ")
    await put_to_sleep(bench, job_id, None, "they answered")

    first, second = await bench.audit()
    assert made.snooze is not None
    assert (first.actor, first.role, first.call, first.outcome) == ("ann", "operator", "jobs.snooze", "done")
    said = {"source": "main", "job_id": str(job_id), "seconds": 3600.0, "reason": "the customer is asked"}
    assert first.parameters == said
    assert first.result == {"until": made.snooze.until.isoformat()}
    assert (second.call, second.parameters["reason"]) == ("jobs.unsnooze", "they answered")
    assert {(each.source, each.job_id) for each in (first, second)} == {("main", str(job_id))}


async def test_a_snooze_is_not_kept_unless_its_entry_is(sqlite_database: Database) -> None:
    """Promise 2, for what keeps jobs from being recovered, too."""
    bench = await open_bench(sqlite_database)
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.execute(
        "CREATE TRIGGER full BEFORE INSERT ON unstick_audit BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    with pytest.raises(sa.exc.IntegrityError, match="disk full"):
        await put_to_sleep(bench, job_id)

    assert await live_snoozes(whole(bench)) == []
    await bench.close()


@pytest.mark.parametrize("reason", [None, "", " \n", "x" * 501])
async def test_without_a_reason_or_with_a_book_nothing_is_snoozed(bench: SqlBench, reason: str | None) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    with pytest.raises(InvalidRequestError):
        await put_to_sleep(bench, job_id, HOUR, reason)

    assert await live_snoozes(whole(bench)) == []
    assert await bench.audit() == []


@pytest.mark.parametrize("lasting", [HOUR, None], ids=["snooze", "end"])
async def test_a_job_that_isnt_there_can_neither_be_snoozed_nor_woken(
    bench: SqlBench, lasting: timedelta | None
) -> None:
    for job_id in ("9", "one"):
        with pytest.raises(UnknownJobError, match=f"has no job {job_id}"):
            await put_to_sleep(bench, job_id, lasting)
    assert await bench.audit() == []


async def test_the_snooze_of_a_job_that_is_gone_can_be_ended(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await put_to_sleep(bench, job_id)
    await bench.execute("DELETE FROM ai_generation_jobs")

    ended = await put_to_sleep(bench, str(job_id), None)

    assert ended.snooze is not None
    assert await live_snoozes(whole(bench)) == []


async def test_an_id_that_cant_be_one_of_this_tables_is_ignored(bench: SqlBench) -> None:
    """The table was another once, or somebody wrote there: no look may fail for that."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await _fill(bench, ["one", str(10**30), str(2**40), "1.5", "\N{FULLWIDTH DIGIT ONE}"])

    assert await stuck_ids(bench) == {job_id}
    assert (await report_stuck(whole(bench))).snoozed == 0


async def test_so_many_may_be_snoozed_and_no_more(bench: SqlBench) -> None:
    """Every look names them all; the one who asks for one more hears why, and a snoozed job can be snoozed anew."""
    jobs = [await bench.add(JobState.RUNNING, STUCK) for _ in range(3)]
    await put_to_sleep(bench, jobs[0])
    await _fill(bench, [str(10_000 + number) for number in range(MAX_SNOOZES - 1)])

    with pytest.raises(TooManySnoozesError, match=f"{MAX_SNOOZES} jobs of source 'main' are snoozed"):
        await put_to_sleep(bench, jobs[1])
    again = await put_to_sleep(bench, jobs[0], 2 * HOUR)
    report = await sweep(whole(bench), SweepOrder(actor="test"))

    assert again.snoozed
    assert len(await live_snoozes(whole(bench))) == MAX_SNOOZES
    assert report.tally.of(outcome=Outcome.APPLIED) == 2
    assert [row["status"] for row in await bench.rows()] == ["running", "failed", "failed"]


async def _fill(bench: SqlBench, ids: list[str], until: timedelta = HOUR) -> None:
    now = await bench.source.clock()
    row = {"source": "main", "numeric_id": False, "until": now + until, "reason": "-", "by": "-", "at": now}
    async with bench.engine.begin() as connection:
        rows = [{"id": f"{number}", "job_id": job_id, **row} for number, job_id in enumerate(ids)]
        await connection.execute(sa.insert(tables.snoozes), rows)


async def test_what_has_ended_is_struck_now_and_then(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await _fill(bench, ["7", "8"], timedelta(days=-2))
    await put_to_sleep(bench, job_id)

    async with bench.engine.connect() as connection:
        assert list(await connection.scalars(sa.select(tables.snoozes.c.job_id))) == [str(job_id)]


@pytest.mark.parametrize("action", [Action.MARK_FAILED, Action.RETRY], ids=["ruled", "one by one"])
async def test_a_sweep_under_way_leaves_who_is_snoozed_before_its_batch_is_written(
    bench: SqlBench, action: Action
) -> None:
    """It asks again before each batch: the jobs after the snoozed one are recovered all the same."""
    if bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(bench.engine)  # the next page is read ahead while the person writes
    ids = [await bench.add(JobState.RUNNING, STUCK) for _ in range(5)]
    bench.batches_of(1)
    made: list[SnoozeReport] = []

    async def person() -> None:
        engine = open_engine(bench.engine.url.render_as_string(hide_password=False))
        source = SqlSource("main", bench.jobs, EngineConnections(engine))
        there = SqlBench(engine=engine, table=bench.table, jobs=bench.jobs, source=source)
        made.append(await put_to_sleep(there, ids[3]))
        await there.close()

    def progress(seen: int) -> None:
        if seen >= 1 and not made:
            elsewhere(person)

    report = await sweep(whole(bench), SweepOrder(actor="test", action=action), progress)

    done = "failed" if action is Action.MARK_FAILED else "queued"
    assert [row["status"] for row in await bench.rows()] == [done, done, done, "running", done]
    assert report.tally.of(outcome=Outcome.APPLIED) == 4
    assert {each.job_id for each in await bench.recoveries()} == {str(each) for each in ids} - {str(ids[3])}


async def test_one_sources_snoozes_are_not_anothers(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await put_to_sleep(bench, job_id)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(tables.snoozes).values(source="other"))

    assert await stuck_ids(bench) == {job_id}


async def test_a_host_app_honours_snoozes_and_is_monitored_before_their_table_is_made(bench: SqlBench) -> None:
    jobs = [await bench.add(JobState.QUEUED, WAITING) for _ in range(2)]
    await put_to_sleep(bench, jobs[0])
    async with AsyncSession(bench.engine) as session:
        service = AdminService(session, jobs=bench.jobs, policy=Policy())
        monitored = await service.monitor_stuck_jobs()
        cleaned = await service.cleanup_stuck_jobs()
    other = open_engine(bench.engine.url.render_as_string(hide_password=False))
    async with other.begin() as connection:
        await connection.run_sync(tables.snoozes.drop)
    async with AsyncSession(other) as session:
        without = await AdminService(session, jobs=bench.jobs, policy=Policy()).monitor_stuck_jobs()
    await other.dispose()

    assert (monitored["stuck_jobs"]["total"], monitored["snoozed"]) == (1, 1)
    assert cleaned["cleaned_jobs"]["total"] == 1
    assert without["stuck_jobs"]["total"] == 1
