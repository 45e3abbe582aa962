"""Policies by rule, and queues: who waits for their turn, who was passed over, and whom nobody serves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from unstick.cli.output import result_console
from unstick.cli.stuck import render
from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobClass, JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action, Outcome
from unstick.pipeline.looking import take_look, take_scopes
from unstick.pipeline.report import report_stats, report_stuck
from unstick.pipeline.shapes import stuck_shape
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.ledger import SqlLedger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from tests.servers import Database
    from unstick.domain.job import JobId
    from unstick.pipeline.watched import Watched

DATABASES = EACH_KIND


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


LONG = Policy(rules=(Rule(kind="thesis.*", running_after=timedelta(hours=4), queued_after=timedelta(hours=1)),))


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    table = jobs_table(sa.Column("queue", sa.String(40)), sa.Column("worker", sa.String(120)))
    columns = COLUMNS | {"queue": "queue", "worker": "worker"}
    bench = await open_bench(database, table, declared(table, columns=columns))
    yield bench
    await bench.close()


async def put(bench: SqlBench, status: str, *, created: float, started: float | None = None, **values: object) -> int:
    """Insert a job, its ages in minutes, and return its id."""
    now = await bench.source.clock()
    row: dict[str, Any] = {
        "status": status,
        "created_at": now - minutes(created),
        "started_at": None if started is None else now - minutes(started),
        "completed_at": now if status in ("completed", "failed") else None,
        **values,
    }
    async with bench.engine.begin() as connection:
        result = await connection.execute(sa.insert(bench.table).values(row))
        assert result.inserted_primary_key is not None
        return int(result.inserted_primary_key[0])


async def stuck(watched: Watched) -> dict[int, Reason]:
    report = await report_stuck(watched, limit=1000)
    found = {int(each.job.id): each.diagnosis.reason for each in (*report.queued, *report.running)}
    assert report.counts.total == len(found) == (await report_stats(watched)).stuck.total
    return found


async def swept(bench: SqlBench, policy: Policy, action: Action | None = None) -> dict[int, str]:
    """Sweep, and return the words of the jobs that were changed."""
    before = {row["id"]: row["status"] for row in await bench.rows()}
    await bench.sweep(action, policy=policy)
    return {row["id"]: row["status"] for row in await bench.rows() if row["status"] != before[row["id"]]}


# Rules


async def test_a_kind_with_a_longer_threshold_is_left_until_that_is_over(bench: SqlBench) -> None:
    """Healthy long jobs aren't dead: each kind is judged by the first rule that governs it."""
    young = await put(bench, "running", created=130, started=125, job_type="thesis.write")
    old = await put(bench, "running", created=250, started=245, job_type="thesis.write")
    other = await put(bench, "running", created=130, started=125, job_type="summary")
    waiting = await put(bench, "queued", created=30, job_type="thesis.plan")
    expired = await put(bench, "queued", created=90, job_type="thesis.plan")

    assert await stuck(bench.watched(LONG)) == {
        old: Reason.SILENT, other: Reason.SILENT, expired: Reason.NEVER_CLAIMED
    }  # fmt: skip
    assert await swept(bench, LONG) == {old: "failed", other: "failed", expired: "failed"}
    assert {(await bench.row(each))["status"] for each in (young, waiting)} == {"running", "queued"}


async def test_each_kind_comes_to_what_its_rule_says(bench: SqlBench) -> None:
    policy = Policy(
        rules=(
            Rule(kind="mail", action=Action.LEAVE),
            Rule(kind="pdf*", queue="slow", action=Action.RETRY),
            Rule(queue="slow", action=Action.MARK_FAILED),
        ),
        action=Action.RETRY,
    )
    ids = {
        name: await put(bench, "running", created=60, started=60, job_type=kind, queue=queue)
        for name, kind, queue in (
            ("left", "mail", "slow"), ("by kind", "pdf.big", "slow"), ("by queue", "mp3", "slow"),
            ("by neither", "mp3", None), ("letter case", "MAIL", "quick"),
        )
    }  # fmt: skip

    report = await sweep(bench.watched(policy), SweepOrder(actor="test"))

    words = {name: (await bench.row(job_id))["status"] for name, job_id in ids.items()}
    assert words == {
        "left": "running", "by kind": "queued", "by queue": "failed", "by neither": "queued", "letter case": "queued"
    }  # fmt: skip
    assert report.tally.of(outcome=Outcome.LEFT) == 1
    assert report.tally.of(outcome=Outcome.APPLIED, action=Action.RETRY) == 3


async def test_what_a_person_asks_for_goes_before_a_rule_but_for_what_is_to_be_left(bench: SqlBench) -> None:
    policy = Policy(rules=(Rule(kind="mail", action=Action.LEAVE), Rule(kind="pdf", action=Action.MARK_FAILED)))
    mail = await put(bench, "running", created=60, started=60, job_type="mail")
    pdf = await put(bench, "running", created=60, started=60, job_type="pdf")

    assert await swept(bench, policy, Action.RETRY) == {pdf: "queued"}
    assert (await bench.row(mail))["status"] == "running"


async def test_a_kind_that_appears_after_the_look_is_in_nobodys_scope(bench: SqlBench) -> None:
    """It is judged by the next look: nothing may judge it by a rule that isn't its own."""
    await put(bench, "running", created=60, started=60, job_type="summary")
    watched = bench.watched(LONG)
    scopes = await take_scopes(watched, await take_look(watched))
    late = await put(bench, "running", created=130, started=125, job_type="thesis.write")

    found = [suspect.job_id for scope in scopes async for page in bench.source.suspects(scope.look)
             for suspect in page.suspects]  # fmt: skip
    assert late not in found
    assert len(found) == 1


async def test_a_job_begun_as_often_as_its_policy_allows_is_failed_instead_of_tried_again(bench: SqlBench) -> None:
    policy = Policy(action=Action.RETRY, max_attempts=3)
    spare = await put(bench, "running", created=60, started=60, attempt=1)
    spent = await put(bench, "running", created=60, started=60, attempt=2)
    never_begun = await put(bench, "queued", created=60, attempt=2)

    assert await swept(bench, policy) == {spare: "queued", spent: "failed"}
    assert "begun 3 times" in (await bench.row(spent))["error_message"]
    assert (await bench.outcomes(never_begun)) == [Outcome.APPLIED]


async def test_an_explicit_threshold_goes_before_the_policys_and_never_before_a_rules(bench: SqlBench) -> None:
    plain = await put(bench, "queued", created=3, job_type="summary")
    ruled = await put(bench, "queued", created=3, job_type="thesis.plan")

    report = await report_stuck(bench.watched(LONG), queued_after=minutes(1))
    assert [each.job.id for each in report.queued] == [plain]
    assert report.look.queued_after == minutes(1)
    assert ruled not in [each.job.id for each in report.queued]


async def test_pages_of_several_scopes_are_one_list_oldest_first(bench: SqlBench) -> None:
    kinds = ["summary", "thesis.write"]
    ids = [await put(bench, "running", created=500, started=500 - n, job_type=kinds[n % 2]) for n in range(7)]
    seen: list[int] = []
    cursor = None
    for _ in range(len(ids)):
        report = await report_stuck(bench.watched(LONG), limit=2, cursor=cursor)
        seen += [int(each.job.id) for each in report.running]
        cursor = report.next_cursor
        if cursor is None:
            break
    assert seen == ids


def test_globs_know_letter_case_and_jobs_of_no_kind() -> None:
    policy = Policy(rules=(Rule(kind="a*", source="m?in"), Rule(kind="", queue="q")))
    governed = {
        jobs: policy.rule_of("main", JobClass(*jobs))
        for jobs in [("abc", None), ("Abc", None), (None, "q"), (None, None)]
    }
    assert governed == {
        ("abc", None): policy.rules[0], ("Abc", None): None, (None, "q"): policy.rules[1], (None, None): None
    }  # fmt: skip
    assert policy.rule_of("other", JobClass("abc", None)) is None
    assert policy.under(policy.rules[0]) == Policy()
    assert policy.under(Rule(max_attempts=3)) == Policy(max_attempts=3)


# Queues


async def backlog(bench: SqlBench, queue: str = "q", *, claims: int = 2, at: float = 60) -> list[int]:
    """A queue that drains in order: jobs enqueued an hour ago are claimed now, and younger ones wait."""
    for _ in range(claims):
        await put(bench, "running", created=at, started=1, queue=queue)
    return [await put(bench, "queued", created=at - 10 - n, queue=queue) for n in range(5)]


async def test_a_backlog_that_drains_in_order_is_never_touched(bench: SqlBench) -> None:
    """A queued job that was only waiting isn't stuck, however long it waits."""
    waiting = await backlog(bench)

    assert await stuck(bench.watched()) == {}
    for action in (Action.RETRY, Action.MARK_FAILED):
        assert await swept(bench, Policy(), action) == {}
    assert {(await bench.row(each))["status"] for each in waiting} == {"queued"}


async def test_a_job_that_its_queue_has_passed_over_is_stuck_while_the_others_wait(bench: SqlBench) -> None:
    waiting = await backlog(bench)
    lost = await put(bench, "queued", created=90, queue="q")

    assert await stuck(bench.watched()) == {lost: Reason.OVERTAKEN}
    assert await swept(bench, Policy()) == {lost: "failed"}
    assert "jobs that came later were" in (await bench.row(lost))["error_message"]
    assert {(await bench.row(each))["status"] for each in waiting} == {"queued"}


async def test_a_queue_that_moves_doesnt_excuse_another(bench: SqlBench) -> None:
    await backlog(bench, "moving")
    still = [await put(bench, "queued", created=20, queue=queue) for queue in ("still", None)]

    assert await stuck(bench.watched()) == dict.fromkeys(still, Reason.NEVER_CLAIMED)
    assert await swept(bench, Policy()) == dict.fromkeys(still, "failed")


@pytest.mark.parametrize(("claims", "at"), [(1, 60), (0, 60)])
async def test_a_single_claim_makes_no_draining_queue(bench: SqlBench, claims: int, at: float) -> None:
    waiting = await backlog(bench, claims=claims, at=at)
    assert await stuck(bench.watched()) == dict.fromkeys(waiting, Reason.NEVER_CLAIMED)


async def test_claims_of_long_ago_make_no_draining_queue(bench: SqlBench) -> None:
    for _ in range(3):
        await put(bench, "completed", created=60, started=40, queue="q")
    waiting = await put(bench, "queued", created=30, queue="q")
    assert await stuck(bench.watched()) == {waiting: Reason.NEVER_CLAIMED}


async def test_finished_claims_count_as_those_that_still_run(bench: SqlBench) -> None:
    """A worker that ends its jobs at once leaves none that run."""
    for _ in range(2):
        await put(bench, "completed", created=60, started=1, queue="q")
    await put(bench, "queued", created=30, queue="q")
    assert await stuck(bench.watched()) == {}


async def test_a_backlog_is_told_by_the_newest_claims_however_long_it_is(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unstick.sql.statements.FLOW_JOBS", 3)
    for n in range(4):
        await put(bench, "completed", created=300 - n, started=200, queue="q")
    for _ in range(2):
        await put(bench, "completed", created=60, started=1, queue="q")
    lost = await put(bench, "queued", created=200, queue="q")
    for n in range(9):
        await put(bench, "queued", created=30 - n, queue="q")
    assert await stuck(bench.watched()) == {lost: Reason.OVERTAKEN}


async def test_a_slow_queue_drains_however_many_jobs_others_have_claimed_since(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unstick.sql.statements.FLOW_JOBS", 3)
    for _ in range(2):
        await put(bench, "running", created=60, started=4, queue="slow")
    for _ in range(6):
        await put(bench, "running", created=20, started=1, queue="fast")
    await put(bench, "queued", created=30, queue="slow")
    assert await stuck(bench.watched()) == {}


async def test_a_retried_job_waits_from_when_it_was_due(bench: SqlBench) -> None:
    """It isn't passed over by jobs that were claimed while it backed off."""
    waiting = await backlog(bench)
    now = await bench.source.clock()
    due = await put(bench, "queued", created=600, queue="q", scheduled_at=now - minutes(10))
    assert await stuck(bench.watched()) == {}
    assert due not in waiting


async def test_a_table_without_enqueue_times_goes_by_age_alone(database: Database) -> None:
    table = jobs_table()
    columns = {key: name for key, name in COLUMNS.items() if key != "enqueued_at"}
    bench = await open_bench(database, table, declared(table, columns=columns))
    try:
        for _ in range(2):
            await put(bench, "running", created=60, started=1)
        waiting = await put(bench, "queued", created=10, started=10)
        assert await stuck(bench.watched()) == {waiting: Reason.NEVER_CLAIMED}
    finally:
        await bench.close()


async def test_a_stuck_job_whose_budget_is_spent_says_what_a_sweep_would_make_of_it(bench: SqlBench) -> None:
    """Its reason stays; one statement reads the budgets of a page, and none where the policy retries nothing."""
    asked: list[int] = []

    class Counting(SqlLedger):
        async def spent(
            self, source: str, job_ids: Sequence[JobId], since: datetime, *, before_success: bool = False
        ) -> Mapping[JobId, int]:
            asked.append(len(job_ids))
            return await super().spent(source, job_ids, since, before_success=before_success)

    policy = Policy(
        action=Action.RETRY,
        max_recoveries=1,
        retry_backoff=timedelta(microseconds=1),
        rules=(Rule(kind="mail", action=Action.MARK_FAILED), Rule(kind="once", max_attempts=1)),
    )
    spent = [await put(bench, "running", created=60, started=60) for _ in range(2)]
    assert await swept(bench, policy) == dict.fromkeys(spent, "queued")
    async with bench.engine.begin() as connection:
        old = await bench.source.clock() - minutes(60)
        await connection.execute(sa.update(bench.table).values(status="running", started_at=old))
    fresh = await put(bench, "running", created=60, started=60)
    mail = await put(bench, "running", created=60, started=60, job_type="mail")
    once = await put(bench, "running", created=60, started=60, job_type="once")

    watched = replace(bench.watched(policy), ledger=Counting(EngineConnections(bench.engine)))
    report = await report_stuck(watched)
    assert {each.diagnosis.reason for each in report.running} == {Reason.SILENT}
    poison = "its recovery budget is spent: a sweep would mark it failed as poison"
    assert {int(each.job.id): each.outlook for each in report.running} == dict.fromkeys(spent, poison) | {
        fresh: None,
        mail: None,
        once: "it was begun as often as its policy allows: a sweep would mark it failed",
    }
    assert asked == [4]
    assert [job["outlook"] for job in stuck_shape(report)["running_jobs"]].count(poison) == 2
    assert [line for line in render(report, result_console()).splitlines() if "poison" in line] != []

    asked.clear()
    await report_stuck(replace(watched, policy=Policy()))
    assert asked == []
    assert Counter((await swept(bench, policy)).values()) == {"failed": 4, "queued": 1}


async def test_a_queue_that_no_worker_serves_is_told_as_one_finding(bench: SqlBench) -> None:
    """One queue incident, not a finding for each of its jobs; and a sweep that nobody watches leaves them."""
    now = await bench.source.clock()
    lease = {"id": "h:1:a", "host": "h", "pid": 1, "began_at": now, "beat_at": now, "expires_at": now - minutes(3)}
    async with bench.engine.begin() as connection:
        await connection.execute(sa.insert(tables.leases).values(lease))
    waiting = [await put(bench, "queued", created=20, queue=queue) for queue in ("a", "a", "b")]

    report = await report_stuck(bench.watched())
    assert Counter(each.diagnosis.reason for each in report.queued) == {Reason.UNSERVED: 3}
    assert [(each.queues, each.jobs) for each in report.unserved] == [(None, 3)]

    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(tables.leases).values(expires_at=now + minutes(3)))
    assert await stuck(bench.watched()) == dict.fromkeys(waiting, Reason.NEVER_CLAIMED)


async def test_the_write_repeats_that_a_job_is_no_backlog(bench: SqlBench) -> None:
    """What a look accuses under its scope, the write demands once more of the row as it stands."""
    await backlog(bench)
    lost = await put(bench, "queued", created=90, queue="q")
    watched = bench.watched()
    (scope,) = await take_scopes(watched, await take_look(watched))
    reached = scope.look.draining["q"]
    narrower = replace(scope.look, draining={"q": reached - minutes(60)})

    assert (await bench.source.count_suspects(scope.look)).queued == 1
    assert (await bench.source.count_suspects(narrower)).queued == 0
    assert (await bench.source.count_suspects(replace(scope.look, left_alone=frozenset({lost})))).queued == 0
    assert (await bench.source.count_suspects(replace(scope.look, states=(JobState.RUNNING,)))).total == 0
