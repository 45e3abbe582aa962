"""Recovering one job that a person names: exactly that one, only if it is stuck, and on record with the reason."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests.jobs import SqlBench, make_tables, open_bench
from tests.one_job import KEYS, keyed_bench, whole
from tests.servers import EACH_KIND
from tests.test_races import BEAT, FINISH, ROW_LOCKING, after_first, commits, elsewhere, host, on_databases, say
from tests.test_rulings import REFUSING
from unstick.domain.errors import InvalidRequestError, NotStuckError, RecoveryStoppedError, UnknownJobError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.pipeline.recovering import RecoverOrder, RecoverReport, recover_job
from unstick.pipeline.snoozing import SnoozeOrder, snooze
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.testing.conformance import MINUTE, Ages
from unstick.wiring import watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.servers import Database
    from unstick.domain.job import JobId

DATABASES = EACH_KIND

HOUR = timedelta(hours=1)
STUCK = Ages(enqueued=3 * HOUR, started=2 * HOUR)
HOURS = Policy(queued_after=HOUR, running_after=HOUR)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    opened = await open_bench(database)
    yield opened
    await opened.close()


async def recover(
    bench: SqlBench,
    job_id: JobId,
    action: Action | None = None,
    *,
    policy: Policy | None = None,
    reason: str | None = None,
) -> RecoverReport:
    order = RecoverOrder(actor="ann", role="operator", job_id=job_id, action=action, reason=reason)
    return await recover_job(whole(bench, policy), order)


async def assert_nothing_was_done(bench: SqlBench, before: Sequence[sa.RowMapping]) -> None:
    assert await bench.rows() == before
    assert await bench.audit() == []
    assert await bench.recoveries() == []


@pytest.mark.parametrize("action", CHANGES)
@pytest.mark.parametrize("keys", KEYS)
async def test_recovering_one_job_never_touches_another(database: Database, keys: str, action: Action) -> None:
    """However alike their ids are, and though all of them are stuck; the id comes as text, as a person gives it."""
    bench, ids = await keyed_bench(database, keys)
    await bench.put(*({"id": each} for each in ids))
    before = {row["id"]: row for row in await bench.rows()}

    report = await recover(bench, str(ids[0]), action)

    after = {row["id"]: row for row in await bench.rows()}
    recorded = await bench.recoveries()
    await bench.close()
    assert report.outcome is Outcome.APPLIED
    assert after[ids[0]]["status"] == ("failed" if action is Action.MARK_FAILED else "queued")
    assert [key for key in ids if after[key] != before[key]] == [ids[0]]
    assert [(each.job_id, each.outcome, each.action) for each in recorded] == [(str(ids[0]), "applied", action)]


async def test_it_is_an_operation_of_its_own_with_who_what_and_why(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)

    report = await recover(bench, str(job_id), Action.RETRY, reason=" web-3 was\n  shut down ")

    begun, ended = await bench.audit()
    said = {"source": "main", "job_id": str(job_id), "action": "retry", "reason": "web-3 was shut down"}
    for entry in (begun, ended):
        assert (entry.actor, entry.role, entry.call, entry.parameters) == ("ann", "operator", "jobs.recover", said)
        assert (entry.source, entry.job_id) == ("main", str(job_id))
    assert (begun.outcome, ended.outcome) == ("started", "done")
    assert ended.operation_id == begun.id == report.operation_id
    assert ended.result == {"outcome": "applied", "action": "retry"}
    assert [each.operation_id for each in await bench.recoveries(job_id)] == [begun.id]


NOT_STUCK: Sequence[tuple[JobState, Ages, str]] = (
    (JobState.RUNNING, Ages(started=9 * HOUR, heartbeat=12 * MINUTE), "is running and beat 12 minutes ago"),
    (JobState.RUNNING, Ages(started=12 * MINUTE), "is running and was started 12 minutes ago"),
    (JobState.QUEUED, Ages(enqueued=12 * MINUTE), "is queued and has waited for 12 minutes, of the 1 hour it may"),
    (
        JobState.QUEUED,
        Ages(enqueued=9 * HOUR, scheduled=-(2 * HOUR + 30 * timedelta(seconds=1))),
        "is queued and not due until <time>, in 2 hours",
    ),
    (JobState.SCHEDULED, Ages(enqueued=9 * HOUR), "is scheduled"),
    (JobState.SUCCEEDED, Ages(started=9 * HOUR, completed=12 * MINUTE), "succeeded 12 minutes ago"),
    (JobState.FAILED, Ages(started=9 * HOUR, completed=12 * MINUTE), "failed 12 minutes ago"),
    (JobState.CANCELLED, Ages(started=9 * HOUR), "was cancelled at a time that isn't known"),
    (JobState.RUNNING, Ages(started=9 * HOUR, completed=12 * MINUTE), "says 'running', but it ended 12 minutes ago"),
)


@pytest.mark.parametrize(("state", "ages", "why"), NOT_STUCK, ids=[why for *_, why in NOT_STUCK])
async def test_a_job_that_isnt_stuck_is_refused_with_the_reason_and_nothing_is_done(
    bench: SqlBench, state: JobState, ages: Ages, why: str
) -> None:
    job_id = await bench.add(state, ages)
    await bench.add(JobState.RUNNING, STUCK)
    before = await bench.rows()

    with pytest.raises(NotStuckError) as refused:
        await recover(bench, job_id, Action.MARK_FAILED, policy=HOURS)

    said = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "<time>", str(refused.value))
    assert said == f"Job {job_id} {why}; it isn't stuck."
    await assert_nothing_was_done(bench, before)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"status": "queued", "created_at": None, "started_at": None}, "no time tells since when it waits"),
        ({"status": "running", "started_at": None}, "no time tells its last sign of life"),
        ({"status": "on hold"}, "its state 'on hold' has no meaning under `states`, so no look sees it"),
    ],
)
async def test_a_job_that_cant_be_judged_is_refused_and_says_so(
    bench: SqlBench, row: dict[str, object], why: str
) -> None:
    await bench.put({"id": 7, **row})
    before = await bench.rows()

    with pytest.raises(NotStuckError) as refused:
        await recover(bench, 7, Action.MARK_FAILED)

    assert re.fullmatch(r"Job 7 .*can't be judged.*\.", str(refused.value))
    assert why in str(refused.value)
    assert "isn't stuck" not in str(refused.value)
    await assert_nothing_was_done(bench, before)


async def test_a_job_that_waits_for_its_turn_is_refused_as_backlog(bench: SqlBench) -> None:
    for minutes in (1, 2, 3):
        await bench.add(JobState.RUNNING, Ages(enqueued=6 * HOUR + minutes * MINUTE, started=minutes * MINUTE))
    job_id = await bench.add(JobState.QUEUED, Ages(enqueued=2 * HOUR))
    before = await bench.rows()

    with pytest.raises(NotStuckError, match=r"^Job 4 is queued and has waited for its turn for 2 hours: "):
        await recover(bench, job_id)

    await assert_nothing_was_done(bench, before)


NO_IDS = ["9", "", " 1", "1 ", "01", "1.0", "1_0", "+1", "one", "\N{FULLWIDTH DIGIT ONE}", "-1", "1\0"]


@pytest.mark.parametrize("job_id", [*NO_IDS, str(10**30), str(2**31), str(2**63)])
async def test_an_unknown_job_is_refused_as_such_however_its_id_is_written(bench: SqlBench, job_id: str) -> None:
    await bench.add(JobState.RUNNING, STUCK)
    before = await bench.rows()

    with pytest.raises(UnknownJobError, match="has no job"):
        await recover(bench, job_id)

    await assert_nothing_was_done(bench, before)


async def test_a_job_whose_policy_leaves_it_alone_is_recovered_by_a_person_who_says_how(bench: SqlBench) -> None:
    leave = Policy(rules=(Rule(kind="summary", action=Action.LEAVE),))
    job_id = await bench.add(JobState.RUNNING, STUCK)

    with pytest.raises(InvalidRequestError, match="say mark_failed or retry"):
        await recover(bench, job_id, policy=leave)
    assert await bench.audit() == []
    report = await recover(bench, job_id, Action.MARK_FAILED, policy=leave)

    assert report.outcome is Outcome.APPLIED
    assert (await bench.get(job_id)).job.state is JobState.FAILED


async def test_a_job_that_is_left_to_a_person_or_snoozed_is_recovered_by_one(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    lasting = timedelta(hours=9)
    await snooze(whole(bench), SnoozeOrder(actor="bob", job_id=job_id, reason="being looked at", lasting=lasting))

    report = await recover(bench, job_id, policy=Policy(ask=True, action=Action.RETRY))

    assert report.outcome is Outcome.APPLIED
    assert (await bench.get(job_id)).job.state is JobState.QUEUED


async def test_it_is_judged_by_the_policy_that_governs_it(bench: SqlBench) -> None:
    """A threshold of its kind's own, in which it is not stuck yet, and the action of its kind, once it is."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    patient = Rule(kind="summary", running_after=3 * HOUR, action=Action.RETRY)

    with pytest.raises(NotStuckError, match="was started 2 hours ago"):
        await recover(bench, job_id, policy=Policy(rules=(patient,)))
    report = await recover(bench, job_id, policy=Policy(rules=(replace(patient, running_after=HOUR),)))

    assert report.decision.action is Action.RETRY


async def test_the_recovery_budget_holds_for_a_person_too(bench: SqlBench) -> None:
    """What a sweep retried counts for a person, and what is over the budget is failed as poison."""
    policy = Policy(max_recoveries=2, action=Action.RETRY)
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(policy=policy)
    deeds = []
    for _ in range(2):
        await bench.write(job_id, JobState.RUNNING, STUCK)
        deeds.append((await recover(bench, job_id, policy=policy)).decision)

    assert [(each.action, each.reason) for each in deeds] == [("retry", "silent"), ("mark_failed", "poison")]
    assert (await bench.get(job_id)).job.state is JobState.FAILED


PAGE_READ = {"sqlite": "json_each", "postgresql": "jsonb_array_elements", "mysql": "JSON_TABLE"}


@pytest.mark.parametrize("statement", [FINISH, BEAT], ids=["finish", "beat"])
@pytest.mark.parametrize("action", CHANGES)
async def test_a_job_that_shows_life_between_look_and_write_is_left(
    bench: SqlBench, action: Action, statement: str, database: Database
) -> None:
    """R1: the write of one job is as guarded as a sweep's."""
    if database.backend == "sqlite":
        await use_write_ahead_log(bench.engine)  # the page is still being read when the other writes
    job_id = await bench.add(JobState.RUNNING, STUCK)
    changed: list[Any] = []

    async def meanwhile() -> None:
        async with host(bench) as app:
            assert await commits(app, statement, job_id) == 1
        changed.append(await _row_elsewhere(bench, job_id))

    with after_first(bench.engine, PAGE_READ[database.backend], lambda: elsewhere(meanwhile)) as seen:
        report = await recover(bench, job_id, action)

    assert seen[0].lstrip().startswith("SELECT")
    assert report.outcome is Outcome.LOST_RACE
    assert [dict(await bench.row(job_id))] == changed
    assert await bench.outcomes(job_id) == [Outcome.LOST_RACE]
    assert (await bench.audit())[-1].result == {"outcome": "lost_race", "action": action}


async def test_a_job_that_ends_while_it_is_looked_at_is_refused_as_ended(bench: SqlBench) -> None:
    """The reason is read after the look, not before it: what was read before was stuck."""
    if bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(bench.engine)
    job_id = await bench.add(JobState.RUNNING, STUCK)

    async def meanwhile() -> None:
        async with host(bench) as app:
            assert await commits(app, FINISH, job_id) == 1

    with (
        after_first(bench.engine, "said_error", lambda: elsewhere(meanwhile)) as seen,
        pytest.raises(NotStuckError, match=r"^Job 1 succeeded .*; it isn't stuck\.$"),
    ):
        await recover(bench, job_id)
    assert seen


async def _row_elsewhere(bench: SqlBench, job_id: JobId) -> dict[str, Any]:
    async with host(bench) as app, app.connect() as connection:
        found = await connection.execute(sa.select(bench.table).where(bench.table.c.id == job_id))
        return dict(found.mappings().one())


@on_databases(*ROW_LOCKING)
async def test_a_job_whose_row_somebody_holds_is_left_at_once(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    async with host(bench) as app, app.connect() as worker:
        assert await say(worker, FINISH, job_id) == 1
        report = await recover(bench, job_id)
        await worker.commit()

    assert report.outcome is Outcome.LOST_RACE
    assert (await bench.row(job_id))["status"] == "completed"


async def test_of_two_who_recover_a_job_at_once_one_does(bench: SqlBench) -> None:
    """The other lost the race, or found that it wasn't stuck any more."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    other = replace(whole(bench), source=bench.another())
    orders = [RecoverOrder(actor=actor, job_id=job_id) for actor in ("ann", "bob")]

    done = await asyncio.gather(
        recover_job(whole(bench), orders[0]), recover_job(other, orders[1]), return_exceptions=True
    )

    assert all(isinstance(each, RecoverReport | NotStuckError) for each in done), done
    applied = [each for each in done if isinstance(each, RecoverReport) and each.outcome is Outcome.APPLIED]
    assert len(applied) == 1
    assert (await bench.outcomes(job_id)).count(Outcome.APPLIED) == 1


async def test_what_the_database_refuses_is_recorded_with_what_it_said(bench: SqlBench, database: Database) -> None:
    await bench.put({}, {})
    await bench.execute(*REFUSING[database.backend])

    report = await recover(bench, 2)

    assert report.outcome is Outcome.FAILED
    assert "legal hold" in report.detail
    assert await bench.outcomes(2) == [Outcome.FAILED]
    assert [row["status"] for row in await bench.rows()] == ["running", "running"]


async def test_an_interruption_is_recorded_with_what_the_write_came_to(bench: SqlBench) -> None:
    """The job may be changed already when somebody interrupts: then it says so."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    recovering = asyncio.ensure_future(recover(bench, job_id))

    def interrupt() -> None:
        recovering.cancel()

    with (
        after_first(bench.engine, "INTO unstick_recoveries", interrupt) as seen,
        pytest.raises(asyncio.CancelledError),
    ):
        await recovering

    assert seen
    begun, *ended = await bench.audit()
    outcomes = await bench.outcomes(job_id)
    assert [(each.outcome, each.operation_id) for each in ended] == [("failed", begun.id)]
    assert ended[0].result == {"problem": "interrupted", "outcome": "applied"}
    assert outcomes == [Outcome.APPLIED]


async def test_a_write_that_fails_whole_changes_nothing_and_says_so(sqlite_database: Database) -> None:
    bench = await open_bench(sqlite_database)
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.execute(
        "CREATE TRIGGER full BEFORE INSERT ON unstick_recoveries BEGIN SELECT RAISE(ROLLBACK, 'disk full'); END"
    )
    before = await bench.rows()

    with pytest.raises(RecoveryStoppedError, match=r"Job 1 was not recovered: .*rolled back"):
        await recover(bench, job_id)

    entries = await bench.audit()
    assert await bench.rows() == before
    await bench.close()
    assert [each.outcome for each in entries] == ["started", "failed"]


async def test_where_the_ledger_is_elsewhere_the_intent_goes_first(bench: SqlBench, tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}", create=True)
    await make_tables(engine)
    apart = EngineConnections(engine)
    watched = watch("main", bench.jobs, EngineConnections(bench.engine), Policy(), apart)
    job_id, other = [await bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
    seen: list[str] = []
    event.listen(engine.sync_engine, "after_cursor_execute", lambda *said: seen.append(said[2]))

    report = await recover_job(watched, RecoverOrder(actor="ann", job_id=job_id))

    assert report.outcome is Outcome.APPLIED
    assert [(await bench.get(each)).job.state for each in (job_id, other)] == [JobState.FAILED, JobState.RUNNING]
    async with engine.connect() as connection:
        recorded = (await connection.execute(sa.select(tables.recoveries))).all()
        left = (await connection.execute(sa.select(tables.intents))).all()
    await engine.dispose()
    assert [(each.job_id, each.outcome) for each in recorded] == [(str(job_id), "applied")]
    assert left == []
    assert any(statement.startswith("INSERT INTO unstick_intents") for statement in seen)
