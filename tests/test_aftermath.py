"""What became of recovered jobs: late finishes are found once each, and a success gives a budget back."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, make_tables, open_bench
from tests.servers import EACH_KIND
from tests.test_ledger_elsewhere import Apart
from tests.test_plans import AGO, ONE_TO, overheard
from unstick.admin import AdminService
from unstick.domain.aftermath import Attempt, Finished, How, LateFinish, Recovered, end_of, is_late
from unstick.domain.audit import AuditOutcome
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import InvalidRequestError
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.domain.work import LEASE, WorkerIdentity
from unstick.pipeline import aftermath
from unstick.pipeline.aftermath import FOLLOW_UP_CALL, FollowUp, follow_up
from unstick.pipeline.late import report_late
from unstick.pipeline.report import report_stats
from unstick.pipeline.shapes import stats_shape
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.ledger import SqlLedger
from unstick.sql.queue import SqlJobQueue
from unstick.sql.source import RULED_FROM
from unstick.testing.conformance import MINUTE, Ages
from unstick.testing.memory import MemoryJobs, MemoryLedger, MemorySource, StoredJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.servers import Database

DATABASES = EACH_KIND

NOW = datetime(2026, 11, 23, 21, tzinfo=UTC)
HOUR = timedelta(hours=1)
STUCK = Ages(enqueued=100 * MINUTE, started=60 * MINUTE)
SECOND = timedelta(seconds=1)


@pytest.fixture(params=[1, RULED_FROM], ids=["by ruling", "one by one"])
async def bench(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[SqlBench]:
    """Jobs failed by ruling share a recovery, those failed one by one have each its own."""
    bench = await open_bench(database, ruled_from=request.param)
    yield bench
    await bench.close()


@asynccontextmanager
async def opened(database: Database, table: sa.Table | None = None, **mapped: Any) -> AsyncIterator[SqlBench]:  # noqa: ANN401
    table = table if table is not None else jobs_table()
    bench = await open_bench(database, table, declared(table, **mapped))
    yield bench
    await bench.close()


async def write(bench: SqlBench, job_id: JobId, **values: object) -> None:
    """Write some columns of a job, as a worker that knows nothing of the recovery does."""
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).where(bench.table.c.id == job_id).values(values))


async def finish(bench: SqlBench, job_id: JobId, **values: object) -> None:
    """End a job as succeeded, and leave all else in its row as it is."""
    now = await bench.source.clock()
    await write(bench, job_id, **{"status": "completed", "success": True, "completed_at": now, **values})


async def claim(bench: SqlBench, job_id: JobId, **values: object) -> None:
    """Begin a new attempt, which is a moment after the recovery however coarse the clock is."""
    began = await bench.source.clock() + SECOND
    await write(bench, job_id, **{"status": "running", "started_at": began, "completed_at": None, **values})


async def late(bench: SqlBench) -> list[Any]:
    async with bench.engine.connect() as connection:
        return list(await connection.execute(sa.select(tables.late_finishes).order_by(tables.late_finishes.c.id)))


async def successes(bench: SqlBench) -> list[Any]:
    async with bench.engine.connect() as connection:
        return list(await connection.execute(sa.select(tables.successes)))


async def found(bench: SqlBench) -> FollowUp:
    return await follow_up(bench.watched())


# Late finishes


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
async def test_a_failed_job_that_turns_out_finished_is_found_once(bench: SqlBench, state: JobState) -> None:
    """With its kind, how it was found, the recovery it came after, and how long its attempt ran."""
    ages = STUCK if state is JobState.RUNNING else Ages(enqueued=60 * MINUTE)
    ids = [await bench.add(state, ages) for _ in range(3)]
    await bench.sweep()
    await write(bench, ids[1], job_type="essay")
    await finish(bench, ids[1])

    assert await found(bench) == FollowUp(looked_at=3, late=1)
    assert await found(bench) == FollowUp(looked_at=3)

    span = await bench.ledger.follow_up_span("main", HOUR)
    assert span is not None
    page = await bench.ledger.recovered("main", span, before=None, limit=10, besides=None)
    assert {each.job_id for each in page.jobs} & {ids[1], str(ids[1])} == set()
    [row] = await late(bench)
    assert (row.source, row.job_id, row.kind, row.how, row.ended) == (
        "main",
        str(ids[1]),
        "essay",
        "found",
        "succeeded",
    )
    [recovery] = await bench.recoveries(ids[1])
    assert row.recovery_id == recovery.recovery_id
    if state is JobState.RUNNING:
        assert 60 * 60 <= row.ran_seconds < 61 * 60
    else:
        assert row.ran_seconds is None


async def test_a_job_that_nobody_claimed_since_it_was_queued_again_finished_late(bench: SqlBench) -> None:
    """Whether its row is as the retry left it, or its old worker wrote back what it had read."""
    old = await bench.source.clock() - HOUR
    as_left, as_before, waiting = [await bench.add(JobState.RUNNING, STUCK, attempt=1) for _ in range(3)]
    await bench.sweep(Action.RETRY)
    await finish(bench, as_left)
    await finish(bench, as_before, started_at=bench.store(old), attempt=1)

    assert await found(bench) == FollowUp(looked_at=3, late=2)
    assert await found(bench) == FollowUp(looked_at=3)

    assert {row.job_id for row in await late(bench)} == {str(as_left), str(as_before)}
    assert all(60 * 60 <= row.ran_seconds < 61 * 60 for row in await late(bench))
    assert (await bench.row(waiting))["status"] == "queued"


@pytest.mark.parametrize("action", CHANGES)
async def test_the_success_of_a_new_attempt_is_not_late(bench: SqlBench, action: Action) -> None:
    """Queued again by a retry or by its owner, claimed, and finished by whoever claimed it."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(action)
    await claim(bench, job_id)
    running = await found(bench)
    await finish(bench, job_id)

    assert [running, await found(bench), await found(bench)] == [
        FollowUp(looked_at=1),
        FollowUp(looked_at=1, succeeded=1),
        FollowUp(looked_at=1),
    ]
    assert await late(bench) == []
    assert [row.job_id for row in await successes(bench)] == [str(job_id)]


@pytest.mark.parametrize("status", ["failed", "running", "queued", "cancelled"])
async def test_a_job_that_is_anything_but_succeeded_has_no_known_end(bench: SqlBench, status: str) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep()
    await write(bench, job_id, status=status)

    assert await found(bench) == FollowUp(looked_at=1)
    assert (await late(bench), await successes(bench)) == ([], [])


async def test_two_followers_at_once_record_each_finish_once(bench: SqlBench) -> None:
    """And what both say they found is what there was."""
    ids = [await bench.add(JobState.RUNNING, STUCK) for _ in range(40)]
    await bench.sweep()
    for job_id in ids[:20]:
        await finish(bench, job_id)
    for job_id in ids[20:]:
        await claim(bench, job_id)
        await finish(bench, job_id)
    others = [replace(bench.watched(), source=bench.another()) for _ in range(3)]
    others = [replace(each, ledger=SqlLedger(each.source._connections)) for each in others]  # type: ignore[attr-defined]

    told = await asyncio.gather(*(follow_up(each) for each in others))

    assert (sum(each.late for each in told), sum(each.succeeded for each in told)) == (20, 20)
    assert Counter(row.job_id for row in await late(bench)) == {str(job_id): 1 for job_id in ids[:20]}
    assert Counter(row.job_id for row in await successes(bench)) == {str(job_id): 1 for job_id in ids}


async def test_one_finish_after_two_recoveries_is_one_late_finish_of_the_newer(bench: SqlBench) -> None:
    """Failed, queued again by its owner, failed again, and then it finished."""
    job_id = await bench.add(JobState.QUEUED, Ages(enqueued=60 * MINUTE))
    await bench.sweep()
    await write(bench, job_id, status="queued", completed_at=None)
    await bench.sweep()
    await finish(bench, job_id)

    assert await found(bench) == FollowUp(looked_at=2, late=1)
    assert await found(bench) == FollowUp(looked_at=2)

    newest = max(record.recovery_id for record in await bench.recoveries(job_id))
    assert [row.recovery_id for row in await late(bench)] == [newest]


async def test_what_is_found_after_the_newest_recovery_corrects_what_an_older_one_made_of_it(bench: SqlBench) -> None:
    """A follower that had passed the newest recovery before the finish came saw only the older one."""
    job_id = await bench.add(JobState.QUEUED, Ages(enqueued=60 * MINUTE))
    await bench.sweep()
    await write(bench, job_id, status="running", completed_at=None, started_at=bench.store(NOW))
    await bench.sweep(Action.RETRY)
    await claim(bench, job_id)
    await finish(bench, job_id)
    older, newer = sorted(record.recovery_id for record in await bench.recoveries(job_id))
    span = await bench.ledger.follow_up_span("main", HOUR)
    assert span is not None
    page = await bench.ledger.recovered("main", span, before=newer, limit=10, besides=None)
    ends = [end_of("main", each) for each in await bench.source.finished_among(page.jobs)]
    assert [(end.recovery_id, end.late) for end in ends] == [(older, True)]
    assert await bench.ledger.keep_ends("main", ends) == (1, 0)

    await found(bench)

    assert await late(bench) == []
    assert [row.recovery_id for row in await successes(bench)] == [newer]


async def test_a_job_that_finishes_late_twice_is_counted_twice(bench: SqlBench) -> None:
    """The second time after a recovery of its own."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    for _ in range(2):
        await bench.sweep()
        await finish(bench, job_id)
        await found(bench)
        await write(bench, job_id, status="running", completed_at=None)

    assert len(await late(bench)) == 2


async def test_only_recoveries_that_were_applied_within_the_window_are_looked_at(bench: SqlBench) -> None:
    """Not older ones, and not a race that was lost."""
    ids = [await bench.add(JobState.RUNNING, STUCK) for _ in range(3)]
    await bench.sweep()
    for job_id in ids:
        await finish(bench, job_id)
    recent = sa.update(tables.recoveries)
    async with bench.engine.begin() as connection:
        await connection.execute(recent.values(at=await bench.source.clock() - 73 * HOUR))
    assert await found(bench) == FollowUp()
    async with bench.engine.begin() as connection:
        await connection.execute(recent.values(at=await bench.source.clock(), outcome=Outcome.LOST_RACE.value))
    assert await found(bench) == FollowUp()
    async with bench.engine.begin() as connection:
        await connection.execute(recent.values(outcome=Outcome.APPLIED.value))
    await bench.add(JobState.RUNNING, STUCK)
    newest = (await bench.sweep()).operation_id
    async with bench.engine.begin() as connection:
        younger = recent.where(tables.recoveries.c.operation_id == newest)
        await connection.execute(younger.values(at=await bench.source.clock() - 73 * HOUR))
    assert (await found(bench)).looked_at == 3
    assert len(await late(bench)) == 3


async def test_recoveries_are_followed_up_for_as_long_as_the_longest_window_of_any_rule_is(bench: SqlBench) -> None:
    """Or the budget of a kind with a longer one would never be given back for a success that came later."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(Action.RETRY)
    await claim(bench, job_id)
    await finish(bench, job_id)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(tables.recoveries).values(at=await bench.source.clock() - 80 * HOUR))

    elsewhere, here = (Rule(source=name, recovery_window=100 * HOUR) for name in ("other", "ma*"))
    assert await follow_up(bench.watched(Policy(rules=(elsewhere,)))) == FollowUp()
    assert await follow_up(bench.watched(Policy(rules=(elsewhere, here)))) == FollowUp(looked_at=1, succeeded=1)


async def test_a_row_that_cannot_be_read_hides_no_other(sqlite_database: Database) -> None:
    async with opened(sqlite_database) as bench:
        broken, whole = [await bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
        await bench.sweep()
        await finish(bench, broken)
        await finish(bench, whole)
        await bench.execute(f"UPDATE ai_generation_jobs SET started_at = 'soon' WHERE id = {broken}")

        await found(bench)

        assert [row.job_id for row in await late(bench)] == [str(whole)]


async def test_a_row_that_cannot_even_be_fetched_hides_no_other(postgres_database: Database) -> None:
    """A year beyond what Python knows."""
    async with opened(postgres_database) as bench:
        ids = [await bench.add(JobState.RUNNING, STUCK) for _ in range(5)]
        await bench.sweep()
        for job_id in ids:
            await finish(bench, job_id)
        await bench.execute(f"UPDATE ai_generation_jobs SET completed_at = '12000-01-01' WHERE id = {ids[2]}")

        await found(bench)

        assert {row.job_id for row in await late(bench)} == {str(each) for each in ids} - {str(ids[2])}


async def test_a_token_tells_a_claim_from_a_late_finish_where_no_start_is_kept(database: Database) -> None:
    """A retry takes the token from its old worker; whoever claims it then takes another."""
    columns = {key: name for key, name in COLUMNS.items() if key not in ("started_at", "attempt")} | {"token": "fence"}
    async with opened(database, jobs_table(sa.Column("fence", sa.Integer)), columns=columns) as bench:
        beating = Ages(enqueued=100 * MINUTE, heartbeat=60 * MINUTE)
        as_left, claimed, as_before = [await bench.add(JobState.RUNNING, beating) for _ in range(3)]
        for job_id in (as_left, claimed, as_before):
            await write(bench, job_id, fence=4)
        await bench.sweep(Action.RETRY)
        await finish(bench, as_left)
        await finish(bench, claimed, fence=6)
        await finish(bench, as_before, fence=4)

        assert await found(bench) == FollowUp(looked_at=3, late=2, succeeded=1)
        assert {row.job_id for row in await late(bench)} == {str(as_left), str(as_before)}


RETRIED = Recovered(1, 7, JobState.RUNNING, Action.RETRY, NOW)
FAILED = RETRIED._replace(action=Action.MARK_FAILED)
NEVER = Recovered(1, 7, JobState.QUEUED, Action.RETRY, NOW)
BEFORE, AFTER = NOW - HOUR, NOW + HOUR
RULES: Mapping[str, tuple[Finished, bool]] = {
    "failed, and it began before": (Finished(FAILED, None, None, AFTER, Attempt(BEFORE)), True),
    "failed, and it began after": (Finished(FAILED, None, None, AFTER, Attempt(AFTER)), False),
    "failed, and no start is kept": (Finished(FAILED, None, None, AFTER, Attempt(), tells_start=False), True),
    "failed as never claimed, and it began after": (
        Finished(FAILED._replace(state=JobState.QUEUED), None, None, AFTER, Attempt(AFTER)),
        True,
    ),
    "retried, and it began after": (Finished(RETRIED, None, None, AFTER, Attempt(AFTER, 2), Attempt(BEFORE, 1)), False),
    "retried, and no start": (Finished(RETRIED, None, None, AFTER, Attempt(None, 2), Attempt(BEFORE, 1)), True),
    "retried, and the old start": (Finished(RETRIED, None, None, AFTER, Attempt(BEFORE, 2), Attempt(BEFORE, 1)), True),
    "retried, and its worker counted a claim": (
        Finished(RETRIED, None, None, AFTER, Attempt(None, 3), Attempt(BEFORE, 1)),
        False,
    ),
    "never ran, and its worker counted a claim": (
        Finished(NEVER, None, None, AFTER, Attempt(None, 1), Attempt(None, 0)),
        False,
    ),
    "retried, and the number it had before": (
        Finished(RETRIED, None, None, AFTER, Attempt(None, 1), Attempt(None, 1), tells_start=False),
        True,
    ),
    "retried, and only the number the retry gave it": (
        Finished(RETRIED, None, None, AFTER, Attempt(None, 2), Attempt(None, 1), tells_start=False),
        False,
    ),
    "retried, and another word for a token": (
        Finished(RETRIED, None, None, AFTER, Attempt(None, None, "b"), Attempt(None, None, "a"), tells_token=True),
        False,
    ),
    "retried, and a number for a token that the retry itself took": (
        Finished(RETRIED, None, None, AFTER, Attempt(token=5), Attempt(token=4), tells_token=True),
        True,
    ),
    "retried, and a number for a token beyond that": (
        Finished(RETRIED, None, None, AFTER, Attempt(token=6), Attempt(token=4), tells_token=True),
        False,
    ),
    "retried, and the first numbers for a token": (
        Finished(RETRIED, None, None, AFTER, Attempt(token=1), Attempt(), tells_token=True),
        True,
    ),
    "retried, and the first number beyond the retry's own": (
        Finished(RETRIED, None, None, AFTER, Attempt(token=2), Attempt(), tells_token=True),
        False,
    ),
    "failed, and it began in that moment": (Finished(FAILED, None, None, AFTER, Attempt(NOW)), True),
    "retried, and no token any more": (
        Finished(
            RETRIED, None, None, AFTER, Attempt(), Attempt(None, None, "a"), tells_start=False, tells_token=True
        ),
        True,
    ),
    "retried, and nothing tells": (Finished(RETRIED, None, None, AFTER, Attempt(), tells_start=False), False),
}  # fmt: skip


@pytest.mark.parametrize("case", RULES)
def test_whose_finish_it_is(case: str) -> None:
    finished, expected = RULES[case]
    assert is_late(finished) is expected


def test_a_finish_has_one_name_whichever_recovery_it_is_found_after() -> None:
    done = Finished(RETRIED, None, None, AFTER, Attempt(BEFORE, 2, 5), Attempt(BEFORE, 1, 4))
    others = (
        *(done._replace(completed_at=NOW), done._replace(recovered=RETRIED._replace(job_id=8))),
        *(done._replace(now=now) for now in (Attempt(NOW, 2, 5), Attempt(BEFORE, 3, 5), Attempt(BEFORE, 2, 6))),
    )
    untold = done._replace(completed_at=None, now=Attempt())
    later = RETRIED._replace(recovery_id=2, at=NOW + HOUR)

    assert end_of("main", done._replace(recovered=later)).name == end_of("main", done).name
    assert len({end_of("main", each).name for each in (done, *others)} | {end_of("other", done).name}) == 7
    assert end_of("main", untold._replace(recovered=later)).name != end_of("main", untold).name


def test_how_long_an_attempt_ran_is_told_where_both_its_ends_are() -> None:
    done = Finished(FAILED, None, None, AFTER, Attempt(None), Attempt(BEFORE))
    another = done._replace(recovered=RETRIED, now=Attempt(number=3), before=Attempt(BEFORE, 1))

    assert end_of("main", done).ran == 2 * HOUR
    assert end_of("main", done._replace(now=Attempt(NOW - 2 * HOUR))).ran == 3 * HOUR
    assert end_of("main", done._replace(before=None)).ran is None
    assert end_of("main", done._replace(completed_at=None)).ran is None
    assert not is_late(another)
    assert end_of("main", another).ran is None


# The recovery budget


async def stuck_again(bench: SqlBench, job_id: JobId) -> None:
    """The job was claimed, or queued again by its owner, and is silent since an hour."""
    old = bench.store(await bench.source.clock() - HOUR)
    await write(bench, job_id, status="running", started_at=old, updated_at=old, completed_at=None, scheduled_at=None)


async def retries_until_poison(bench: SqlBench, job_id: JobId) -> int:
    for number in range(10):
        report = await bench.sweep(Action.RETRY)
        if report.tally.of(reason=Reason.POISON):
            return number
        await stuck_again(bench, job_id)
    raise AssertionError("it is retried for ever")


async def test_a_job_that_succeeded_gets_its_whole_budget_back_and_one_that_did_not_becomes_poison(
    bench: SqlBench,
) -> None:
    """B2: the counter is reset by a success. B3: and by nothing else."""
    lucky, unlucky = [await bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
    for _ in range(2):
        await bench.sweep(Action.RETRY)
        for job_id in (lucky, unlucky):
            await stuck_again(bench, job_id)
    await claim(bench, lucky)
    await finish(bench, lucky)
    assert await found(bench) == FollowUp(looked_at=4, succeeded=1)

    await write(bench, unlucky, status="cancelled")
    await stuck_again(bench, lucky)
    assert await retries_until_poison(bench, lucky) == 3

    await stuck_again(bench, unlucky)
    assert await retries_until_poison(bench, unlucky) == 1


async def test_a_sweep_gives_back_the_budget_of_who_succeeded_before_it(bench: SqlBench) -> None:
    """B2: without anybody asking for it."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    for _ in range(3):
        await bench.sweep(Action.RETRY)
        await stuck_again(bench, job_id)
    await claim(bench, job_id)
    await finish(bench, job_id)

    report = await bench.sweep(Action.RETRY)

    assert report.follow_up == FollowUp(looked_at=3, succeeded=1)
    await stuck_again(bench, job_id)
    assert await retries_until_poison(bench, job_id) == 3


async def test_who_asks_what_was_done_to_a_job_hears_of_retries_before_its_success_too(bench: SqlBench) -> None:
    """An intent that nobody settled must not be taken for the one retry there was."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(Action.RETRY)
    await claim(bench, job_id)
    await finish(bench, job_id)
    await found(bench)
    since = await bench.source.clock() - HOUR

    assert await bench.ledger.spent("main", [job_id], since) == {}
    assert await bench.ledger.spent("main", [job_id], since, before_success=True) == {job_id: 1}


async def test_a_success_in_one_source_gives_nothing_back_in_another(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(Action.RETRY)
    await claim(bench, job_id)
    await finish(bench, job_id)
    await found(bench)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(tables.successes).values(source="other"))

    assert await bench.ledger.spent("main", [job_id], await bench.source.clock() - HOUR) == {job_id: 1}


# Sweeps


async def test_a_sweep_follows_up_what_others_did_and_leaves_what_it_did_itself(bench: SqlBench) -> None:
    """Nothing can have become of jobs that were recovered a moment ago."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    first = await bench.sweep()
    await finish(bench, job_id)
    await bench.add(JobState.RUNNING, STUCK)

    second = await bench.sweep()

    assert (first.follow_up, second.follow_up) == (FollowUp(), FollowUp(looked_at=1, late=1))


async def test_a_dry_run_records_nothing(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep()
    await finish(bench, job_id)

    report = await sweep(bench.watched(), SweepOrder(actor="test", dry_run=True))

    assert report.follow_up is None
    assert await late(bench) == []


async def test_a_follow_up_that_fails_fails_no_sweep_and_is_told_and_recorded(bench: SqlBench) -> None:
    first = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep()
    await finish(bench, first)
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.execute("DROP TABLE unstick_successes")

    report = await bench.sweep()

    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    assert (await bench.row(job_id))["status"] == "failed"
    assert report.follow_up is not None
    assert "unstick_successes" in (report.follow_up.problem or "")
    entries = [(entry.call, entry.outcome) for entry in await bench.audit()]
    assert entries[-2:] == [("jobs.cleanup", AuditOutcome.DONE), (FOLLOW_UP_CALL, AuditOutcome.FAILED)]


async def test_a_pass_is_bounded_and_the_next_one_goes_on_from_there(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a round is over, however the recoveries are recorded; then the newest come first again."""
    monkeypatch.setattr(aftermath, "JOBS_A_PASS", 4)
    monkeypatch.setattr(aftermath, "_JOBS_A_PAGE", 2)
    bench.batches_of(2)
    ids = [await bench.add(JobState.RUNNING, STUCK) for _ in range(10)]
    await bench.sweep()
    for job_id in ids:
        await finish(bench, job_id)

    passes = [await found(bench) for _ in range(3)]

    assert [(each.looked_at, each.late, each.over) for each in passes] == [(4, 4, False), (4, 4, False), (2, 2, True)]
    assert {row.job_id for row in await late(bench)} == {str(job_id) for job_id in ids}
    assert (await found(bench)).looked_at == 4
    whole = await follow_up(bench.watched(), whole=True)
    assert (whole.looked_at, whole.over) == (10, True)


async def test_a_source_behind_the_session_of_a_host_is_followed_up(bench: SqlBench) -> None:
    """AdminService tells what it found, and counts it in the platform's figures."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep()
    await finish(bench, job_id)
    async with AsyncSession(bench.engine) as session:
        service = AdminService(session, jobs=bench.jobs)
        cleaned = await service.cleanup_stuck_jobs()
        stats = await service.get_platform_stats()

    assert cleaned["follow_up"] == {"looked_at": 1, "late_finishes": 1, "succeeded": 0, "problem": None}
    block = stats["late_finishes"]
    assert (block["total"], block["found"], block["refused"], block["by_kind"]) == (1, 1, 0, {"summary": 1})


async def test_late_finishes_are_found_where_the_ledger_is_elsewhere(database: Database, tmp_path: Path) -> None:
    async with opened(database) as bench:
        ledger = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}", create=True)
        await make_tables(ledger)
        apart = Apart(bench, ledger)
        failed = await bench.add(JobState.RUNNING, STUCK)
        await apart.sweep()
        retried = await bench.add(JobState.RUNNING, STUCK)
        await apart.sweep(Action.RETRY)
        await finish(bench, failed)
        await claim(bench, retried)
        await finish(bench, retried)

        assert await follow_up(apart.watched) == FollowUp(looked_at=2, late=1, succeeded=1)
        [row] = await apart._rows(sa.select(tables.late_finishes))
        assert row.job_id == str(failed)
        await ledger.dispose()


# What is shown


async def test_counts_are_by_kind_and_how_and_the_newest_come_first(bench: SqlBench) -> None:
    for kind in ("essay", "essay", "quiz"):
        job_id = await bench.add(JobState.RUNNING, STUCK)
        await bench.sweep()
        await finish(bench, job_id, job_type=kind)
        await found(bench)

    report = await report_late(bench.watched(), limit=2)

    assert (report.counts.total, report.counts.by_kind) == (3, {"essay": 2, "quiz": 1})
    assert [(each.kind, each.how) for each in report.newest] == [("quiz", How.FOUND), ("essay", How.FOUND)]
    block = stats_shape(await report_stats(bench.watched()))["late_finishes"]
    assert (block["total"], block["found"], block["refused"]) == (3, 3, 0)
    for limit in (0, 1001):
        with pytest.raises(InvalidRequestError):
            await report_late(bench.watched(), limit)


async def test_a_refused_end_is_recorded_with_kind_recovery_and_how_long_it_ran(database: Database) -> None:
    """By the kit: the job was queued again while its worker was still at it."""
    async with opened(database) as bench:
        job_id = await bench.add(JobState.QUEUED, Ages(enqueued=MINUTE))
        queue = SqlJobQueue("main", bench.jobs, EngineConnections(bench.engine))
        worker = WorkerIdentity(host="here", pid=1, boot_id="a")
        await queue.join(worker, LEASE)
        [job] = await queue.claim(worker, limit=1)
        started = await bench.source.clock() - HOUR
        await write(bench, job_id, started_at=bench.store(started), updated_at=bench.store(started))
        await bench.sweep(Action.RETRY)

        assert not await queue.finish(job, {})

        [row] = await late(bench)
        [recovery] = await bench.recoveries(job_id)
        assert (row.kind, row.how, row.recovery_id) == ("summary", "refused", recovery.recovery_id)
        assert 0 <= row.ran_seconds < 60
        counts = (await report_late(bench.watched())).counts
        assert counts.by_how == {How.REFUSED: 1}


# In memory, for those who write a source


async def test_the_ledger_in_memory_tells_the_same() -> None:
    system = MemoryJobs()
    watched = Watched(source=MemorySource(system), ledger=MemoryLedger(system), policy=Policy())
    for job_id in (1, 2):
        job = _job(job_id, system.now)
        system.put(StoredJob(job=job))
    await sweep(watched, SweepOrder(actor="test", action=Action.RETRY))
    system.pass_time(MINUTE)
    old, new = system.jobs[1].job, system.jobs[2].job
    over = {"state": JobState.SUCCEEDED, "status": "succeeded", "completed_at": system.now}
    system.put(StoredJob(job=replace(old, **over)))  # type: ignore[arg-type]
    system.put(StoredJob(job=replace(new, started_at=system.now, **over)))  # type: ignore[arg-type]

    assert await follow_up(watched) == FollowUp(looked_at=2, late=1, succeeded=1)
    assert await follow_up(watched) == FollowUp(looked_at=2)

    [found_late] = (await report_late(watched)).newest
    assert isinstance(found_late, LateFinish)
    assert found_late.job_id == "1"
    assert await watched.ledger.spent("memory", [1, 2], system.now - HOUR) == {}
    assert await watched.ledger.spent("memory", [1, 2], system.now - HOUR, before_success=True) == {1: 1, 2: 1}


def _job(job_id: int, now: datetime) -> Job:
    return Job(id=job_id, state=JobState.RUNNING, status="running", started_at=now - HOUR, attempt=1)


# A hundred thousand


@pytest.mark.timeout(400)
async def test_a_mass_recovery_is_followed_up_in_bounded_passes_whatever_the_history(database: Database) -> None:
    """100,000 jobs of one operation: each late finish once, and no more statements for all that lies before it."""
    backend = database.backend
    async with opened(database) as bench:
        old, older = (AGO[backend].format(minutes) for minutes in (99, 20_000))
        jobs = ONE_TO[backend].format(MANY, f"'running', {old}, {old}, 1")
        history = ONE_TO[backend].format(MANY, f"1, 'main', '7', 'running', 'retry', 'silent', 'applied', '', {older}")
        ours = "unstick_recoveries (operation_id, source, job_id, state, action, reason, outcome, detail, at)"
        await bench.execute(
            f"INSERT INTO {ours} {history}",
            f"INSERT INTO ai_generation_jobs (status, created_at, started_at, attempt) {jobs}",
        )
        await bench.sweep()
        finished = sa.update(bench.table).where(bench.table.c.id % 1000 == 0).values(status="completed")
        async with bench.engine.begin() as connection:
            await connection.execute(finished)

        with overheard(bench) as said:
            first = await found(bench)
            rest = await follow_up(bench.watched(), whole=True)

        batch = bench.source._connections.dialect.batch_size
        assert aftermath.JOBS_A_PASS <= first.looked_at < aftermath.JOBS_A_PASS + 2 * 5_000
        assert (rest.looked_at, first.late + rest.late) == (MANY, MANY // 1000)
        assert Counter(row.job_id for row in await late(bench)).most_common(1)[0][1] == 1
        assert len(said) <= (first.looked_at + rest.looked_at) // min(batch, 5_000) * 4 + 10


MANY = 100_000
