"""A plan is done as it was made and no more: each of its jobs as it was seen, no other, once, and only if genuine."""

from __future__ import annotations

import asyncio
import gc
import json
import uuid
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from tests.api_support import AUTH, SECRET, assert_problem, client
from tests.jobs import AWARE, COLUMNS, NAIVE, SqlBench, declared, jobs_table, make_tables, open_bench
from tests.servers import EACH_KIND
from tests.test_plans import AGO, ONE_TO
from tests.test_races import FINISH, MOVES, commits, elsewhere, host, on_databases
from tests.test_rulings import REFUSING
from tests.test_snoozes import put_to_sleep
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.config import ProgressSettings
from unstick.domain.access import Role
from unstick.domain.audit import AuditOutcome
from unstick.domain.brake import Brake
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import (
    ConfigurationError,
    InvalidRequestError,
    PlanRefusedError,
    RecoveryStoppedError,
    UnknownPlanError,
)
from unstick.domain.evidence import Holding
from unstick.domain.job import JobClass, JobState
from unstick.domain.plan import (
    Plan,
    PlannedPage,
    PlannedScope,
    Terms,
    derive_key,
    page_text,
    read_page_text,
    read_terms,
    sign_page,
    sign_plan,
    terms_text,
)
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import CHANGES, Action, Decision, Outcome, Recovery
from unstick.domain.sighting import Sighted
from unstick.domain.suspect import Look, Suspect
from unstick.pipeline import planning as planning_module
from unstick.pipeline.applying import ApplyOrder, apply_plan
from unstick.pipeline.looking import take_look
from unstick.pipeline.plan_shapes import show_plan
from unstick.pipeline.planning import KEPT_FOR, find_plan
from unstick.pipeline.shapes import cleanup_shape
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.pipeline.watched import Planning, Watched
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections, SessionConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.ledger import SqlLedger
from unstick.sql.plans import SqlPlans
from unstick.sql.sightings import SqlSightings
from unstick.sql.snoozes import SqlSnoozes
from unstick.sql.source import SqlSource
from unstick.sql.tables import leases, plan_pages, plans, recoveries
from unstick.testing.conformance import MINUTE, Ages, look_at, suspects_of
from unstick.testing.witnesses import FakeWitness
from unstick.wiring import plan_key, watch
from unstick.witnesses.progress import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.domain.audit import AuditEntry
    from unstick.pipeline.snoozing import SnoozeReport

DATABASES = EACH_KIND

KEY = derive_key(b"the secret of one installation")
STUCK = Ages(enqueued=100 * MINUTE, started=60 * MINUTE)
WAITING = Ages(enqueued=60 * MINUTE)


def watched_on(
    bench: SqlBench,
    *,
    policy: Policy | None = None,
    key: bytes = KEY,
    lifetime: timedelta = 15 * MINUTE,
    mapping: str = "",
    ledger: AsyncEngine | None = None,
) -> Watched:
    """The bench's source with a place to keep plans in, beside its ledger."""
    connections = EngineConnections(ledger or bench.engine)
    return replace(
        bench.watched(policy),
        source=bench.source
        if ledger is None
        else SqlSource("main", bench.jobs, bench.source._connections, records=False),
        ledger=SqlLedger(connections),
        planning=Planning(plans=SqlPlans(connections), key=lambda: key, mapping=mapping, lifetime=lifetime),
    )


async def made(watched: Watched, action: Action | None = None, actor: str = "ada") -> Plan:
    report = await sweep(watched, SweepOrder(actor=actor, action=action, dry_run=True, plan=True))
    assert report.plan is not None
    return report.plan


async def applied(watched: Watched, plan: Plan, actor: str = "grace") -> SweepReport:
    return await apply_plan(watched, ApplyOrder(plan_id=plan.id, actor=actor, role="operator"))


def came_to(report: SweepReport) -> dict[Outcome, int]:
    return {outcome: n for outcome in Outcome if (n := report.tally.of(outcome=outcome))}


async def statuses(bench: SqlBench) -> list[str]:
    return [row["status"] for row in await bench.rows()]


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


@pytest.fixture
async def light(sqlite_database: Database) -> AsyncIterator[SqlBench]:
    """One database, for what no database does differently."""
    bench = await open_bench(sqlite_database)
    yield bench
    await bench.close()


# What the plan says, and no more.


@pytest.mark.parametrize("action", CHANGES)
async def test_a_plan_is_done_as_it_says_and_what_got_stuck_since_is_not_touched(
    bench: SqlBench, action: Action
) -> None:
    running, queued = await bench.add(JobState.RUNNING, STUCK), await bench.add(JobState.QUEUED, WAITING)
    healthy = await bench.add(JobState.RUNNING, Ages(started=MINUTE))
    watched = watched_on(bench)
    plan = await made(watched, action)
    since = [await bench.add(JobState.RUNNING, STUCK), await bench.add(JobState.QUEUED, WAITING)]
    await bench.write(healthy, JobState.RUNNING, STUCK)
    untouched = [await bench.row(job) for job in (healthy, *since)]
    assert await statuses(bench) == ["running", "queued", "running", "running", "queued"]
    assert await bench.audit() == []

    report = await applied(watched, plan)

    ours = "failed" if action is Action.MARK_FAILED else "queued"
    assert [(await bench.row(job))["status"] for job in (running, queued)] == [ours, ours]
    assert [await bench.row(job) for job in (healthy, *since)] == untouched
    assert came_to(report) == {Outcome.APPLIED: 2}
    records = await bench.recoveries()
    assert {(int(r.job_id), r.outcome, r.action, r.operation_id) for r in records} == {
        (job, "applied", action.value, report.operation_id) for job in (running, queued)
    }
    assert json.loads(next(r for r in records if r.job_id == str(running)).pre_image)["status"] == "running"


async def test_an_application_is_an_operation_of_its_own_in_the_audit_log(light: SqlBench) -> None:
    await light.add(JobState.RUNNING, STUCK)
    watched = watched_on(light)
    plan = await made(watched)

    report = await applied(watched, plan)

    started, done = await light.audit()
    assert (started.id, done.operation_id) == (report.operation_id, report.operation_id)
    assert (started.outcome, done.outcome) == (AuditOutcome.STARTED, AuditOutcome.DONE)
    assert {(each.actor, each.role, each.call) for each in (started, done)} == {("grace", "operator", "plans.apply")}
    assert (started.parameters["plan"], started.parameters["jobs"]) == (plan.id, 1)
    assert done.result["applied"] == 1
    kept = await find_plan(watched, plan.id)
    assert (kept.applied_by, kept.operation_id, kept.state) == ("grace", report.operation_id, "applied")


async def test_a_plan_of_nothing_does_nothing(light: SqlBench) -> None:
    watched = watched_on(light)
    plan = await made(watched)
    await light.add(JobState.RUNNING, STUCK)

    assert came_to(await applied(watched, plan)) == {}
    assert await statuses(light) == ["running"]


async def test_a_job_of_which_anything_moved_since_the_plan_is_left(database: Database) -> None:
    """R1, R2: each column of the fence by itself, to a value as old as the one before."""
    extra: dict[str, Any] = {"token": sa.Integer(), "worker": sa.String(40), "progress": sa.Integer()}
    table = jobs_table(*(sa.Column(name, type_) for name, type_ in extra.items()))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {name: name for name in extra}))
    older = bench.store(await bench.source.clock() - timedelta(hours=9))
    row = {"token": 7, "worker": "one", "progress": 50, "attempt": 1, "created_at": older}
    await bench.put(*(row for _ in range(len(MOVES) + 1)))
    watched = watched_on(bench)
    plan = await made(watched)
    async with host(bench) as app, app.begin() as connection:
        for job_id, move in enumerate(MOVES.values(), start=1):
            await connection.execute(sa.text(f"UPDATE ai_generation_jobs SET {move} WHERE id = {job_id}"))
    before = await bench.rows()

    report = await applied(watched, plan)

    after = await bench.rows()
    recorded = Counter(r.outcome for r in await bench.recoveries())
    await bench.close()
    assert plan.jobs == len(MOVES) + 1
    assert came_to(report) == {Outcome.APPLIED: 1, Outcome.LOST_RACE: len(MOVES)}
    assert recorded == {"applied": 1, "lost_race": len(MOVES)}
    assert after[:-1] == before[:-1]
    assert after[-1]["status"] == "failed"


async def test_a_job_that_is_gone_or_is_another_now_is_left(bench: SqlBench) -> None:
    gone, again, stays = [await bench.add(JobState.RUNNING, STUCK) for _ in range(3)]
    watched = watched_on(bench)
    plan = await made(watched)
    await bench.execute(f"DELETE FROM ai_generation_jobs WHERE id = {gone}")
    await bench.write(again, JobState.RUNNING, Ages(enqueued=100 * MINUTE, started=90 * MINUTE))

    report = await applied(watched, plan)

    assert came_to(report) == {Outcome.APPLIED: 1, Outcome.LOST_RACE: 2}
    assert (await bench.row(again))["status"] == "running"
    assert (await bench.row(stays))["status"] == "failed"


async def test_a_job_whose_worker_beat_since_the_plan_is_left_though_its_lease_ran_out_again(
    database: Database,
) -> None:
    """A beat moves the lease and not the job's row: the plan's own look at the lease tells."""
    worker = sa.Column("worker", sa.String(255))
    table = jobs_table(worker)
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"worker": "worker"}))
    now = await bench.source.clock()
    for name in ("dead", "back"):
        await bench.put({"worker": name}, started=MINUTE)
        row = {"id": name, "host": "host", "pid": 1, "began_at": now - 9 * MINUTE, "beat_at": now - 2 * MINUTE}
        async with bench.engine.begin() as connection:
            await connection.execute(sa.insert(leases).values({**row, "expires_at": now - MINUTE}))
    watched = watched_on(bench)
    plan = await made(watched)
    looked_at = read_terms(plan.terms).look.taken_at
    beat = {"beat_at": looked_at + timedelta(microseconds=1), "expires_at": looked_at + timedelta(microseconds=2)}
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(leases).where(leases.c.id == "back").values(beat))
    assert (await bench.source.count_suspects(await look_at(bench))).running == 2

    report = await applied(watched, plan)

    rows = {row["worker"]: row["status"] for row in await bench.rows()}
    await bench.close()
    assert plan.jobs == 2
    assert came_to(report) == {Outcome.APPLIED: 1, Outcome.LOST_RACE: 1}
    assert rows == {"dead": "failed", "back": "running"}


async def test_queued_jobs_whose_queue_drains_by_now_are_left_to_wait_for_their_turn(bench: SqlBench) -> None:
    waiting = await bench.add(JobState.QUEUED, WAITING)
    watched = watched_on(bench)
    plan = await made(watched)
    for _ in range(2):  # the workers are back, and have come to jobs that are older
        await bench.add(JobState.RUNNING, Ages(enqueued=90 * MINUTE, started=MINUTE))

    report = await applied(watched, plan)

    assert came_to(report) == {Outcome.LOST_RACE: 1}
    assert (await bench.row(waiting))["status"] == "queued"


AT = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
TYPES: dict[str, tuple[str, Any, Any, Any]] = {
    "decimal": ("attempt", sa.Numeric(14, 4), "1234567890.0001", "1234567890.0002"),
    "large number": ("attempt", sa.BigInteger(), 9_007_199_254_740_993, 9_007_199_254_740_992),
    "uuid": ("token", sa.Uuid(), uuid.UUID(int=2**127 + 1), uuid.UUID(int=2**127)),
    "text": ("token", sa.String(80), "caf\N{LATIN SMALL LETTER E WITH ACUTE}\t\"q\" \\ '\N{PILE OF POO}' ", "cafe"),
    "empty text": ("worker", sa.Text(), "", None),
    "truth": ("progress", sa.Boolean(), True, False),
    "null": ("progress", sa.Integer(), None, 0),
    "aware time": ("started_at", AWARE, AT, AT + timedelta(microseconds=1)),
    "naive time": ("started_at", NAIVE, AT.replace(tzinfo=None), AT.replace(tzinfo=None) + timedelta(microseconds=1)),
}
"""A column of the fence by its key, its type, what it holds, and what is another value of it."""


TEXT_TIMES = [
    "2026-01-02T03:04:05.678901+02:00",
    "2026-01-02 03:04:05",
    "2026-01-02T03:04:05.678Z",
    "2026-01-02 03:04:05.678901",
]


@pytest.mark.parametrize("held", TYPES)
async def test_what_was_seen_is_found_again_to_the_letter_whatever_its_type(database: Database, held: str) -> None:
    """The fence is kept as JSON, in the form in which the database reads that of any batch."""
    key, type_, value, other = TYPES[held]
    await assert_found_again(database, key, type_, value, other)


@pytest.mark.parametrize("value", TEXT_TIMES)
async def test_a_time_that_sqlite_keeps_as_text_is_found_again_to_the_letter(
    sqlite_database: Database, value: str
) -> None:
    """The same instant in another spelling is another value: somebody wrote it since."""
    other = value.replace("T", " ") if "T" in value else value.replace(" ", "T")
    await assert_found_again(sqlite_database, "started_at", sa.String(40), value, other)


async def assert_found_again(database: Database, key: str, type_: Any, value: object, other: object) -> None:  # noqa: ANN401
    """Of two jobs that held the same when they were planned, the one that holds it still is recovered."""
    table = jobs_table(sa.Column("odd", type_))
    columns = {each: name for each, name in COLUMNS.items() if each != "attempt"} | {key: "odd"}
    bench = await open_bench(database, table, declared(table, columns=columns))
    await bench.put({"odd": value}, {"odd": value})
    watched = watched_on(bench)
    plan = await made(watched)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(table).where(table.c.id == 2).values(odd=other))

    report = await applied(watched, plan)

    left = await statuses(bench)
    await bench.close()
    assert plan.jobs == 2
    assert (came_to(report), left) == ({Outcome.APPLIED: 1, Outcome.LOST_RACE: 1}, ["failed", "running"])


@pytest.mark.parametrize(
    ("type_", "ids"),
    [
        (sa.BigInteger(), [2**63 - 2, 2**63 - 1]),
        (sa.Uuid(), [uuid.UUID(int=5), uuid.UUID(int=2**128 - 1)]),
        (sa.String(60), ["1", "O'Neill \\ \N{PILE OF POO}"]),
    ],
    ids=["number", "uuid", "text"],
)
async def test_a_planned_job_is_found_by_its_key_whatever_its_type(
    database: Database,
    type_: Any,  # noqa: ANN401
    ids: list[Any],
) -> None:
    table = jobs_table(key=sa.Column("id", type_, primary_key=True))
    bench = await open_bench(database, table, declared(table))
    await bench.put(*({"id": job_id} for job_id in ids))
    watched = watched_on(bench)
    plan = await made(watched)

    report = await applied(watched, plan)

    shown = await show_plan(watched, plan.id)
    left = await statuses(bench)
    await bench.close()
    assert came_to(report) == {Outcome.APPLIED: 2}
    assert left == ["failed", "failed"]
    # Where a database has no type for it, a UUID is kept as its digits alone.
    assert {str(row["id"]).replace("-", "") for row in shown["rows"]} == {str(each).replace("-", "") for each in ids}


async def test_a_key_of_mariadbs_own_uuid_type_is_found_again(mariadb_database: Database) -> None:
    """Its driver wants a UUID, and a plan has its text."""
    table = jobs_table(key=sa.Column("id", sa.String(36), primary_key=True))
    bench = await open_bench(mariadb_database, table, declared(table))
    await bench.execute("ALTER TABLE ai_generation_jobs MODIFY id UUID NOT NULL")
    await bench.put({"id": str(uuid.UUID(int=5))})
    watched = watched_on(bench)

    report = await applied(watched, await made(watched))

    await bench.close()
    assert came_to(report) == {Outcome.APPLIED: 1}


async def test_bytes_where_text_belongs_are_never_taken_for_text(light: SqlBench) -> None:
    """SQLite lets them in; JSON doesn't know them, so the job is left rather than guessed at."""
    await light.execute("ALTER TABLE ai_generation_jobs ADD COLUMN worker TEXT")
    jobs = declared(light.table, columns=COLUMNS | {"worker": "worker"})
    light.source = SqlSource("main", jobs, EngineConnections(light.engine))
    await light.put({}, {})
    await light.execute("UPDATE ai_generation_jobs SET worker = x'ff00' WHERE id = 1")
    watched = watched_on(light)

    report = await applied(watched, await made(watched))

    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    assert await statuses(light) == ["running", "failed"]


# Only a genuine plan.

TAMPERED: dict[str, str] = {
    "its source": "UPDATE unstick_plans SET source = 'other'",
    "its maker": "UPDATE unstick_plans SET made_by = 'mallory'",
    "when it was made": "UPDATE unstick_plans SET made_at = '2026-01-01 00:00:00.000000'",
    "its expiry": "UPDATE unstick_plans SET expires_at = '2099-01-01 00:00:00.000000'",
    "its action": """UPDATE unstick_plans SET terms = REPLACE(terms, '"action":"mark_failed"', '"action":"retry"')""",
    "its thresholds": """UPDATE unstick_plans SET terms = REPLACE(terms, '"running_after":1', '"running_after":0')""",
    "its budget": "UPDATE unstick_plans SET terms = REPLACE(terms, ',3,', ',9,')",
    "how many jobs": "UPDATE unstick_plans SET jobs = 4",
    "fewer pages": "UPDATE unstick_plans SET pages = 1",
    "more pages": "UPDATE unstick_plans SET pages = 3",
    "its signature": "UPDATE unstick_plans SET signature = '" + "0" * 64 + "'",
    "no ascii in its signature": "UPDATE unstick_plans SET signature = '\N{LATIN SMALL LETTER E WITH ACUTE}'",
    "no signature": "UPDATE unstick_plans SET signature = NULL",
    "its last page's jobs": (
        """UPDATE unstick_plan_pages SET content = REPLACE(content, '"mark_failed"', '"retry"') WHERE number = 1"""
    ),
    "a page's signature": "UPDATE unstick_plan_pages SET signature = '" + "0" * 64 + "' WHERE number = 1",
    "a page less": "DELETE FROM unstick_plan_pages WHERE number = 1",
    "a page in the other's place": (
        "UPDATE unstick_plan_pages SET number = 5 WHERE number = 0;"
        "UPDATE unstick_plan_pages SET number = 0 WHERE number = 1;"
        "UPDATE unstick_plan_pages SET number = 1 WHERE number = 5"
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
async def test_a_plan_that_was_changed_is_refused_whole(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Two pages, the second of which is the one that was changed: not even the first is done."""
    monkeypatch.setattr(planning_module, "PAGE", 2)
    await bench.put({}, {}, {})
    watched = watched_on(bench)
    plan = await made(watched)
    kept = await _kept(bench)
    await bench.execute(*TAMPERED[what].split(";"))
    assert await _kept(bench) != kept

    with pytest.raises(PlanRefusedError, match=r"was changed|never finished"):
        await applied(watched, plan)

    assert await statuses(bench) == ["running"] * 3
    assert (await bench.recoveries(), await bench.audit()) == ([], [])


async def _kept(bench: SqlBench) -> list[Any]:
    async with bench.engine.connect() as connection:
        heads = (await connection.execute(sa.select(plans))).all()
        return [*heads, *(await connection.execute(sa.select(plan_pages).order_by(plan_pages.c.number))).all()]


async def test_a_page_of_another_plan_is_refused_in_this_one(light: SqlBench) -> None:
    await light.put({})
    watched = watched_on(light)
    first = await made(watched)
    await light.put({})
    second = await made(watched)
    await light.execute(
        "UPDATE unstick_plan_pages SET (content, signature) = "
        f"(SELECT content, signature FROM unstick_plan_pages WHERE plan_id = '{second.id}') "
        f"WHERE plan_id = '{first.id}'"
    )

    with pytest.raises(PlanRefusedError, match="was changed"):
        await applied(watched, first)
    assert await statuses(light) == ["running", "running"]


async def test_a_plan_signed_with_another_key_is_refused(light: SqlBench) -> None:
    await light.put({})
    plan = await made(watched_on(light, key=derive_key(b"the secret of another installation")))

    with pytest.raises(PlanRefusedError, match="another secret key"):
        await applied(watched_on(light), plan)
    assert await statuses(light) == ["running"]


async def test_a_plan_of_another_source_is_refused_with_its_name(light: SqlBench) -> None:
    await light.put({})
    plan = await made(watched_on(light))
    other = replace(watched_on(light), source=SqlSource("other", light.jobs, EngineConnections(light.engine)))

    with pytest.raises(PlanRefusedError, match="is about source 'main'"):
        await applied(other, plan)
    assert await statuses(light) == ["running"]


async def test_a_plan_made_by_another_mapping_is_refused(light: SqlBench) -> None:
    """What was seen would be held against other columns."""
    await light.put({})
    plan = await made(watched_on(light, mapping="of yesterday"))

    with pytest.raises(PlanRefusedError, match="another mapping"):
        await applied(watched_on(light, mapping="of today"), plan)
    assert await statuses(light) == ["running"]


async def test_a_plan_that_changes_while_it_is_applied_is_stopped_where_it_changed(
    light: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is checked again as it is done."""
    monkeypatch.setattr(planning_module, "PAGE", 1)
    vars(light.source._connections)["side_by_side"] = False  # so that no page is read ahead
    await light.put({}, {}, {})
    watched = watched_on(light)
    plan = await made(watched)
    change = """UPDATE unstick_plan_pages SET content = REPLACE(content, 'mark_failed', 'retry') WHERE number > 0"""

    def after_a_page(done: int) -> None:
        if done == 1:
            elsewhere(lambda: _execute_apart(light, change))

    with pytest.raises(RecoveryStoppedError, match="was changed") as stopped:
        await apply_plan(watched, ApplyOrder(plan_id=plan.id, actor="grace"), after_a_page)

    assert stopped.value.recovered == 1
    assert await statuses(light) == ["failed", "running", "running"]
    assert [each.outcome for each in await light.audit()] == ["started", "failed"]


async def _execute_apart(bench: SqlBench, statement: str) -> None:
    async with host(bench) as app, app.begin() as connection:
        await connection.execute(sa.text(statement))


async def test_a_plan_that_was_never_finished_is_refused(light: SqlBench) -> None:
    """Whoever made it was cut off between two pages."""
    await light.put({})
    watched = watched_on(light)
    with cut_off_before(light.engine, "UPDATE unstick_plans SET jobs"), pytest.raises(CutOffError):
        await made(watched)
    async with light.engine.connect() as connection:
        plan_id = await connection.scalar(sa.select(plans.c.id))

    with pytest.raises(PlanRefusedError, match="never finished"):
        await apply_plan(watched, ApplyOrder(plan_id=str(plan_id), actor="grace"))
    assert await statuses(light) == ["running"]


async def test_an_unknown_plan_is_told_so(light: SqlBench) -> None:
    with pytest.raises(UnknownPlanError, match="no plan"):
        await apply_plan(watched_on(light), ApplyOrder(plan_id="0" * 32, actor="grace"))
    with pytest.raises(UnknownPlanError, match="no plan"):
        await apply_plan(light.watched(), ApplyOrder(plan_id="0" * 32, actor="grace"))


async def test_without_a_secret_key_no_plan_is_made(light: SqlBench) -> None:
    await light.put({})
    watched = watched_on(light)
    assert watched.planning is not None
    lacking = replace(watched, planning=replace(watched.planning, key=lambda: plan_key(None)))

    with pytest.raises(ConfigurationError, match="UNSTICK_SECRET_KEY"):
        await made(lacking)
    with pytest.raises(ConfigurationError, match="needs at least 32"):
        plan_key(SecretStr("short"))
    assert await _kept(light) == []


async def test_a_plan_is_made_by_a_dry_run_only(light: SqlBench) -> None:
    await light.put({})
    with pytest.raises(InvalidRequestError, match="dry run"):
        await sweep(watched_on(light), SweepOrder(actor="ada", plan=True))
    with pytest.raises(InvalidRequestError, match="nowhere to keep"):
        await made(light.watched())
    assert await statuses(light) == ["running"]


def test_the_key_is_derived_as_rfc_5869_says() -> None:
    """Its third test case: no salt, no info."""
    derived = derive_key(bytes.fromhex("0b" * 22), b"")
    assert derived.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert derive_key(bytes.fromhex("0b" * 22)) != derived


def test_nothing_moves_from_one_part_of_what_is_signed_to_the_next() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    plan = Plan(id="p", source="s", made_by="m", made_at=at, expires_at=at, terms="{}", jobs=12, pages=3)
    assert sign_plan(KEY, plan) != sign_plan(KEY, replace(plan, jobs=1, pages=23))
    assert sign_page(KEY, "p", 1, "1[]") != sign_page(KEY, "p", 11, "[]")


def test_every_part_of_a_look_is_kept() -> None:
    """A part that is added later and not kept would widen what is applied; this sample has none as it is by default."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
    look = Look(
        taken_at=at,
        queued_after=timedelta(microseconds=1),
        running_after=timedelta(days=365, microseconds=7),
        classes=frozenset({JobClass("essay", None), JobClass(None, "slow")}),
        draining={None: at, "slow": at + MINUTE},
        left_alone=frozenset({7, "seven"}),
        only=frozenset({8, "eight"}),
        by_start=True,
        states=(JobState.RUNNING,),
    )
    bare = Look(taken_at=at, queued_after=MINUTE, running_after=MINUTE)
    assert [each.name for each in fields(Look) if getattr(look, each.name) == getattr(bare, each.name)] == ["taken_at"]
    scope = PlannedScope(
        look=look,
        max_recoveries=2,
        recovery_window=timedelta(microseconds=3),
        hung_after=timedelta(microseconds=5),
    )
    terms = Terms(look=look, action=Action.RETRY, mapping="m", scopes=(scope,))

    assert read_terms(terms_text(terms)) == terms


def test_every_part_of_a_decision_is_kept() -> None:
    suspect = Suspect("a", JobState.QUEUED, datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC), ("a", 1, None), True)
    wait = timedelta(seconds=30, microseconds=1)
    decision = Decision(suspect, Action.RETRY, Reason.OVERTAKEN, "it could have been", wait)

    assert read_page_text(page_text(3, [decision])) == PlannedPage(scope=3, decisions=(decision,))


# Words said since.


async def test_a_running_job_that_a_witness_acquits_by_now_is_left_and_the_record_says_why(bench: SqlBench) -> None:
    """Between the preview and the confirmation a worker may have come back."""
    back, gone = [await bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
    queued = await bench.add(JobState.QUEUED, WAITING)
    witness = FakeWitness(words={back: Holding.RELEASED, gone: Holding.RELEASED}, value="of the shop")
    watched = replace(watched_on(bench), witnesses=(witness,))
    plan = await made(watched)
    before = await bench.row(back)
    now_says = FakeWitness(words={back: Holding.HELD, gone: Holding.RELEASED}, value="of the shop")

    report = await applied(replace(watched, witnesses=(now_says,)), plan)

    assert plan.jobs == 3
    assert await bench.row(back) == before
    assert [(await bench.row(job_id))["status"] for job_id in (gone, queued)] == ["failed", "failed"]
    assert came_to(report) == {Outcome.APPLIED: 2, Outcome.LEFT: 1}
    (record,) = await bench.recoveries(back)
    assert (record.outcome, record.operation_id) == ("left", report.operation_id)
    assert "it is no longer stuck: " in record.detail
    assert "of the shop" in record.detail


async def test_a_running_job_of_which_no_witness_knows_by_now_is_left(light: SqlBench) -> None:
    job_id = await light.add(JobState.RUNNING, STUCK)
    watched = replace(watched_on(light), witnesses=(FakeWitness(otherwise=Holding.RELEASED),))
    plan = await made(watched)

    report = await applied(replace(watched, witnesses=(FakeWitness(raises=OSError("no route")),)), plan)

    assert came_to(report) == {Outcome.LEFT: 1}
    assert (await light.row(job_id))["status"] == "running"


async def test_a_hung_job_that_moves_by_now_is_left_and_one_that_still_hangs_is_done(database: Database) -> None:
    """L7: hung is judged by progress, whatever life a job shows; so it is when a plan is applied."""
    table = jobs_table(sa.Column("progress", sa.Integer))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"progress": "progress"}))
    await bench.put({"progress": 40}, {"progress": 40})
    hung, moving = [row["id"] for row in await bench.rows()]
    sightings, now = SqlSightings(EngineConnections(bench.engine)), await bench.source.clock()
    await _update(bench, sa.true(), updated_at=bench.store(now))
    witness = Progress(ProgressSettings(), "main", sightings)
    watched = replace(watched_on(bench, policy=Policy(hung_after=20 * MINUTE)), witnesses=(witness,))
    jobs = await bench.source.describe(await take_look(watched), [hung, moving])
    for ago in (30, 15):
        await sightings.note("main", [Sighted.of(job) for job in jobs.values()], now - ago * MINUTE)
    plan = await made(watched)
    await _update(bench, bench.table.c.id == moving, progress=41)

    report = await applied(watched, plan)

    found = {row["id"]: row["status"] for row in await bench.rows()}
    await bench.close()
    assert plan.jobs == 2
    assert found == {hung: "failed", moving: "running"}
    assert report.tally.of(reason=Reason.HUNG, outcome=Outcome.APPLIED) == 1


async def _update(bench: SqlBench, where: sa.ColumnElement[bool], **values: object) -> None:
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).where(where).values(values))


async def test_a_job_that_a_person_has_left_alone_meanwhile_is_left(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One snooze is made before the plan is applied, and one when the first job of it is done."""
    if bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(bench.engine)  # the next page is read ahead while the person writes
    monkeypatch.setattr(planning_module, "PAGE", 1)
    ids = [await bench.add(JobState.RUNNING, STUCK) for _ in range(5)]
    watched = replace(watched_on(bench), snoozes=SqlSnoozes(EngineConnections(bench.engine)))
    plan = await made(watched)
    await put_to_sleep(bench, ids[1])
    slept: list[SnoozeReport] = []

    async def person() -> None:
        engine = open_engine(bench.engine.url.render_as_string(hide_password=False))
        source = SqlSource("main", bench.jobs, EngineConnections(engine))
        there = SqlBench(engine=engine, table=bench.table, jobs=bench.jobs, source=source)
        slept.append(await put_to_sleep(there, ids[3]))
        await there.close()

    def progress(seen: int) -> None:
        if seen >= 1 and not slept:
            elsewhere(person)

    report = await apply_plan(watched, ApplyOrder(plan_id=plan.id, actor="grace"), progress)

    assert await statuses(bench) == ["failed", "running", "failed", "running", "failed"]
    assert (report.tally.of(outcome=Outcome.APPLIED), report.tally.of(outcome=Outcome.LEFT)) == (3, 2)
    assert report.tally.of(outcome=Outcome.LOST_RACE) == 0
    assert "it is snoozed by now; it was left alone" in {row.detail for row in await bench.recoveries()}


# Once, and in time.


async def test_a_plan_that_expired_is_refused(bench: SqlBench) -> None:
    """By the database's clock."""
    await bench.put({})
    watched = watched_on(bench, lifetime=timedelta(0))
    plan = await made(watched)

    with pytest.raises(PlanRefusedError, match="expired at"):
        await applied(watched, plan)
    assert await statuses(bench) == ["running"]
    assert await bench.audit() == []


async def test_a_plan_is_good_for_a_quarter_of_an_hour(light: SqlBench) -> None:
    plan = await made(watched_on(light))
    assert plan.expires_at - plan.made_at == timedelta(minutes=15)
    assert Planning(plans=SqlPlans(EngineConnections(light.engine)), key=lambda: KEY).lifetime == timedelta(minutes=15)


async def test_a_plan_applied_twice_is_refused_with_the_operation_that_did_it(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    watched = watched_on(bench)
    plan = await made(watched)
    first = await applied(watched, plan)
    await bench.write(job_id, JobState.RUNNING, STUCK)  # as the plan saw it, or nearly

    with pytest.raises(PlanRefusedError, match=rf"applied by grace at .* as operation {first.operation_id}\."):
        await applied(watched, plan, "mallory")
    assert await statuses(bench) == ["running"]
    assert len(await bench.audit()) == 2


async def test_of_two_that_apply_a_plan_at_once_one_does(bench: SqlBench) -> None:
    """Both have found it good before either claims it."""
    await bench.put(*({} for _ in range(20)))
    watched = watched_on(bench)
    other = watched_on(bench)
    plan = await made(watched)
    both_there = asyncio.Barrier(2)

    results = await asyncio.gather(
        *(applied(_meeting_before_the_claim(each, both_there), plan) for each in (watched, other)),
        return_exceptions=True,
    )

    done = [each for each in results if isinstance(each, SweepReport)]
    refused = [each for each in results if isinstance(each, PlanRefusedError)]
    assert (len(done), len(refused)) == (1, 1)
    assert came_to(done[0]) == {Outcome.APPLIED: 20}
    assert f"operation {done[0].operation_id}" in str(refused[0])
    assert [each.outcome for each in await bench.audit()] == ["started", "done"]
    assert Counter(r.job_id for r in await bench.recoveries()) == {str(n): 1 for n in range(1, 21)}


class MeetingPlans(SqlPlans):
    """Plans whose claims wait until as many have come to theirs as are expected."""

    barrier: asyncio.Barrier

    async def claim(self, plan: Plan, entry: AuditEntry) -> int | None:
        await self.barrier.wait()
        return await super().claim(plan, entry)


def _meeting_before_the_claim(watched: Watched, barrier: asyncio.Barrier) -> Watched:
    planning = watched.planning
    assert planning is not None
    assert isinstance(planning.plans, SqlPlans)
    meeting = MeetingPlans(planning.plans._connections)
    meeting.barrier = barrier
    return replace(watched, planning=replace(planning, plans=meeting))


class CutOffError(BaseException):
    """What a process that is killed runs into: nothing of ours catches it."""


@contextmanager
def cut_off_before(engine: AsyncEngine, fragment: str, times: int = 1) -> Iterator[None]:
    """End the process right before the so-manieth statement of ours that holds this."""
    seen = 0

    def hook(_c: Any, _cursor: Any, text: str, _p: Any, _context: Any, _many: bool) -> None:  # noqa: ANN401
        nonlocal seen
        seen += fragment in text
        if seen >= times:
            raise CutOffError

    event.listen(engine.sync_engine, "before_cursor_execute", hook)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", hook)


async def test_a_plan_whose_application_was_killed_is_not_applied_again(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done stays done and recorded; the answer names the operation, and a new plan has the rest."""
    monkeypatch.setattr(planning_module, "PAGE", 2)
    await bench.put(*({} for _ in range(6)))
    watched = watched_on(bench)
    plan = await made(watched)
    with cut_off_before(bench.engine, "UPDATE ai_generation_jobs", times=2), pytest.raises(CutOffError):
        await applied(watched, plan)
    left = await statuses(bench)
    (started,) = await bench.audit()

    with pytest.raises(PlanRefusedError, match=rf"operation {started.id}, whose end isn't recorded"):
        await applied(watched, plan)

    assert left == await statuses(bench) == ["failed"] * 2 + ["running"] * 4
    assert came_to(await applied(watched, await made(watched))) == {Outcome.APPLIED: 4}
    assert Counter(r.job_id for r in await bench.recoveries()) == {str(n): 1 for n in range(1, 7)}


async def test_a_claim_that_was_cut_off_leaves_the_plan_to_be_applied(bench: SqlBench) -> None:
    """The claim and the entry that begins the operation are one transaction: there is no plan applied by nobody."""
    await bench.put({})
    watched = watched_on(bench)
    plan = await made(watched)
    with cut_off_before(bench.engine, "INSERT INTO unstick_audit"), pytest.raises(CutOffError):
        await applied(watched, plan)
    assert await bench.audit() == []

    assert came_to(await applied(watched, plan)) == {Outcome.APPLIED: 1}


async def test_an_application_that_is_cancelled_ends_the_page_under_way_and_records_its_end(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning_module, "PAGE", 3)
    await bench.put(*({} for _ in range(9)))
    watched = watched_on(bench)
    plan = await made(watched)
    tasks: list[asyncio.Task[SweepReport]] = []

    def cancel(done: int) -> None:
        if done == 3:
            asyncio.get_running_loop().call_soon(tasks[0].cancel)

    order = ApplyOrder(plan_id=plan.id, actor="grace")
    tasks.append(asyncio.create_task(apply_plan(watched, order, cancel)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]

    _, ended = await bench.audit()
    recorded = sum(record.outcome == Outcome.APPLIED for record in await bench.recoveries())
    assert (ended.outcome, ended.result["problem"], ended.result["applied"]) == ("failed", "interrupted", recorded)
    assert 3 <= recorded < 9


async def test_plans_that_expired_a_day_ago_are_struck_when_one_is_made(
    light: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applied ones too, and a few at a time; who asks within the day still hears what became of one."""
    monkeypatch.setattr(planning_module, "STRUCK_AT_ONCE", 2)
    await light.put({})
    watched = watched_on(light)
    old = {(await made(watched)).id for _ in range(3)}
    await apply_plan(watched, ApplyOrder(plan_id=min(old), actor="grace"))
    await light.put({})
    await light.execute("UPDATE unstick_plans SET expires_at = '2020-01-01 00:00:00.000000'")
    recent = await made(watched_on(light, lifetime=MINUTE - KEPT_FOR))
    assert len(await _ids(light, plans.c.id) - {recent.id}) == 1

    newest = await made(watched)

    assert await _ids(light, plans.c.id) == await _ids(light, plan_pages.c.plan_id) == {recent.id, newest.id}


async def _ids(bench: SqlBench, column: sa.Column[str]) -> set[str]:
    async with bench.engine.connect() as connection:
        return set(await connection.scalars(sa.select(column)))


# Budgets, scopes, brakes, and a ledger elsewhere.


async def test_a_plan_cannot_overdraw_a_budget(bench: SqlBench) -> None:
    """The retries were spent while the plan waited; to fail the job isn't what was planned, so it is left."""
    spent, good = await bench.add(JobState.RUNNING, STUCK), await bench.add(JobState.RUNNING, STUCK)
    watched = watched_on(bench)
    plan = await made(watched, Action.RETRY)
    before = await bench.row(spent)
    retried = Recovery(
        job_id=spent, state=JobState.RUNNING, action=Action.RETRY, reason=Reason.SILENT, outcome=Outcome.APPLIED,
        detail="by somebody else",
    )  # fmt: skip
    await watched.ledger.record("main", 77, [retried] * 3)

    report = await applied(watched, plan)

    assert await bench.row(spent) == before
    assert (await bench.row(good))["status"] == "queued"
    assert came_to(report) == {Outcome.APPLIED: 1, Outcome.LEFT: 1}
    (record,) = [r for r in await bench.recoveries(spent) if r.operation_id == report.operation_id]
    assert (record.outcome, record.action) == ("left", "retry")
    assert "recovered 3 times within 3 days" in record.detail
    assert cleanup_shape(report)["message"].endswith(" 1 are no longer as they were planned for; they were left alone.")


async def test_poison_is_planned_as_poison(light: SqlBench) -> None:
    job_id = await light.add(JobState.RUNNING, STUCK)
    watched = watched_on(light, policy=Policy(max_recoveries=0))
    plan = await made(watched, Action.RETRY)

    report = await applied(watched, plan)

    assert [(row["action"], row["reason"]) for row in (await show_plan(watched, plan.id))["rows"]] == [
        ("mark_failed", "poison")
    ]
    assert cleanup_shape(report)["poison"] == 1
    assert (await light.row(job_id))["status"] == "failed"


RULES = (
    Rule(kind="thesis", running_after=120 * MINUTE, action=Action.RETRY, max_recoveries=1),
    Rule(kind="kept", action=Action.LEAVE),
)


async def test_each_job_is_planned_and_done_as_its_own_rule_says(bench: SqlBench) -> None:
    hours = timedelta(hours=1)
    for kind, started in (("summary", hours), ("thesis", hours), ("thesis", 3 * hours), ("kept", 3 * hours)):
        await bench.put({"job_type": kind}, started=started)
    watched = watched_on(bench, policy=Policy(rules=RULES))
    plan = await made(watched)
    planned = {row["id"]: row["action"] for row in (await show_plan(watched, plan.id))["rows"]}

    report = await applied(watched, plan)

    assert planned == {1: "mark_failed", 3: "retry"}
    assert came_to(report) == {Outcome.APPLIED: 2}
    assert await statuses(bench) == ["failed", "running", "queued", "running"]


async def test_the_budget_of_a_job_is_that_of_its_own_rule(light: SqlBench) -> None:
    for kind in ("summary", "thesis"):
        await light.put({"job_type": kind}, started=timedelta(hours=3))
    watched = watched_on(light, policy=Policy(rules=RULES, action=Action.RETRY))
    plan = await made(watched)
    retried = Recovery(
        job_id=1, state=JobState.RUNNING, action=Action.RETRY, reason=Reason.SILENT, outcome=Outcome.APPLIED, detail=""
    )
    await watched.ledger.record("main", 77, [retried, replace(retried, job_id=2)])

    assert came_to(await applied(watched, plan)) == {Outcome.APPLIED: 1, Outcome.LEFT: 1}
    assert await statuses(light) == ["queued", "running"]


async def test_a_held_brake_does_not_hold_what_a_person_applies(light: SqlBench) -> None:
    await light.put({}, {})
    brakes = SqlBrakes(EngineConnections(light.engine))
    watched = replace(watched_on(light), brakes=brakes)
    plan = await made(watched)
    now = await light.source.clock()
    await brakes.pull(Brake(source="main", at=now, suspects=2, still_open=2, cause="an outage"))
    held = await sweep(watched, SweepOrder(actor="cron", unattended=True))

    report = await applied(watched, plan)

    assert held.brake is not None
    assert came_to(report) == {Outcome.APPLIED: 2}
    kept = await brakes.find("main")
    assert kept is not None
    assert kept.is_held


@pytest.mark.parametrize("action", CHANGES)
async def test_with_the_ledger_elsewhere_the_plan_is_there_too(
    database: Database, tmp_path: Path, action: Action
) -> None:
    """Intents first, as in any sweep; what changed meanwhile is left, and nothing of it is beside the jobs."""
    bench = await open_bench(database)
    await bench.execute(*(f"DROP TABLE {name}" for name in ("unstick_audit", "unstick_intents", "unstick_plans")))
    ledger = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}", create=True)
    await make_tables(ledger)
    await bench.put(*({} for _ in range(3)))
    watched = watched_on(bench, ledger=ledger)
    plan = await made(watched, action)
    async with host(bench) as app:
        assert await commits(app, FINISH.replace("attempt = :attempt", ":attempt = 1"), 2) == 1
    await bench.put({})

    report = await applied(watched, plan)

    async with ledger.connect() as connection:
        recorded = Counter((await connection.scalars(sa.select(recoveries.c.outcome))).all())
    left = await statuses(bench)
    await ledger.dispose()
    await bench.close()
    ours = "failed" if action is Action.MARK_FAILED else "queued"
    assert left == [ours, "completed", ours, "running"]
    assert came_to(report) == {Outcome.APPLIED: 2, Outcome.LOST_RACE: 1}
    assert recorded == {"applied": 2, "lost_race": 1}


async def test_a_row_that_the_database_refuses_does_not_stop_the_others(bench: SqlBench) -> None:
    await bench.put(*({} for _ in range(3)))
    await bench.execute(*REFUSING[bench.engine.dialect.name.replace("mariadb", "mysql")])
    watched = watched_on(bench)

    report = await applied(watched, await made(watched))

    assert came_to(report) == {Outcome.APPLIED: 2, Outcome.FAILED: 1}
    assert [(each.job_id, "legal hold" in each.detail) for each in report.failures] == [(2, True)]


@on_databases("sqlite", "postgres18")
async def test_ten_thousand_jobs_are_planned_and_done_in_bounded_memory(bench: SqlBench) -> None:
    """P4: a page and the one read ahead of it, and never the rest; no statement holds them all."""
    number = 10_000
    await bench.execute(
        "INSERT INTO ai_generation_jobs (status, created_at, started_at, attempt) "
        + ONE_TO[_backend(bench)].format(number, f"'running', {AGO[_backend(bench)].format(99)}, "
                                                 f"{AGO[_backend(bench)].format(99)}, 1")
    )  # fmt: skip
    watched = watched_on(bench)
    held: list[int] = []
    gc.collect()
    before = _suspects_in_memory()

    def count(_looked_at: int) -> None:
        held.append(_suspects_in_memory() - before)

    with longest_statement(bench.engine) as longest:
        report = await sweep(watched, SweepOrder(actor="ada", dry_run=True, plan=True), count)
        plan, while_made = report.plan, max(held)
        assert plan is not None
        held.clear()
        done = await apply_plan(watched, ApplyOrder(plan_id=plan.id, actor="grace"), count)

    assert (plan.jobs, plan.pages) == (number, number // 1_000)
    assert came_to(done) == {Outcome.APPLIED: number}
    page = bench.source._connections.dialect.batch_size
    assert 0 < while_made <= 3 * page
    assert len(held) == plan.pages
    assert 0 < max(held) <= 3 * 1_000
    assert longest[0] < 2**20


def _backend(bench: SqlBench) -> str:
    return bench.engine.dialect.name.replace("mariadb", "mysql")


def _suspects_in_memory() -> int:
    return sum(isinstance(each, Suspect) for each in gc.get_objects())


@contextmanager
def longest_statement(engine: AsyncEngine) -> Iterator[list[int]]:
    """How many characters the longest parameter of a statement about plans had."""
    longest = [0]

    def hook(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:  # noqa: ANN401
        if "unstick_plan" in statement:
            values = parameters.values() if isinstance(parameters, dict) else parameters
            longest[0] = max([longest[0], *(len(str(value)) for value in values)])

    event.listen(engine.sync_engine, "before_cursor_execute", hook)
    try:
        yield longest
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", hook)


# Reading one, and the faces.


async def test_a_plan_is_read_a_page_at_a_time_with_what_was_seen(
    light: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning_module, "PAGE", 2)
    await light.put(*({} for _ in range(5)))
    watched = watched_on(light)
    plan = await made(watched)

    seen, cursor, sizes = [], None, []
    while True:
        shown = await show_plan(watched, plan.id, limit=3, cursor=cursor)
        seen += [row["id"] for row in shown["rows"]]
        sizes.append(len(shown["rows"]))
        cursor = shown["next_cursor"]
        if cursor is None:
            break

    assert (seen, sizes) == ([1, 2, 3, 4, 5], [3, 2])
    assert shown["plan"] == {"id": plan.id, "expires_at": plan.expires_at.isoformat(), "jobs": 5}
    assert (shown["state"], shown["made_by"], shown["threshold_minutes"]) == ("open", "ada", 5)
    row = shown["rows"][0]
    assert row["state"] == "running"
    assert (row["reason"], row["action"]) == ("silent", "mark_failed")
    assert row["sentence"].startswith("its last sign of life was at ")
    assert datetime.fromisoformat(row["since"]) == (await suspects_of(light, await look_at(light)))[0].since


async def test_a_plan_that_was_changed_is_not_shown(light: SqlBench) -> None:
    """Nobody is to be shown other jobs than those that would be recovered."""
    await light.put({})
    watched = watched_on(light)
    plan = await made(watched)
    await light.execute("UPDATE unstick_plan_pages SET content = REPLACE(content, 'running', 'queued')")

    with pytest.raises(PlanRefusedError, match="was changed"):
        await show_plan(watched, plan.id)


PLANS = "/api/v1/admin/plans"
PLAN = "/api/v1/admin/jobs/cleanup?dry_run=true&plan=true"


def service(watched: Watched) -> FastAPI:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        yield watched

    return create_app(watched={"main": opened}, principal=bearer_principal(SECRET, AUTH))


async def test_the_api_makes_shows_and_applies_a_plan(light: SqlBench) -> None:
    await light.put({}, {})
    app = service(watched_on(light))
    async with client(app, Role.OPERATOR) as operator, client(app, Role.VIEWER) as viewer:
        said = (await operator.post(PLAN)).json()
        plan_id = said["plan"]["id"]
        shown = (await viewer.get(f"{PLANS}/{plan_id}?limit=1")).json()
        done = (await operator.post(f"{PLANS}/{plan_id}/apply")).json()
        again = assert_problem(await operator.post(f"{PLANS}/{plan_id}/apply"), 409)

    assert (said["dry_run"], said["would_clean"]["total"], said["plan"]["jobs"]) == (True, 2, 2)
    assert ([row["id"] for row in shown["rows"]], shown["next_cursor"]) == ([1], "0.1")
    assert done["cleaned_jobs"] == {"queued": 0, "running": 2, "total": 2}
    assert (done["dry_run"], done["plan"]["id"]) == (False, plan_id)
    assert f"operation {done['operation_id']}" in again["detail"]
    assert await statuses(light) == ["failed", "failed"]


async def test_a_plan_is_made_and_applied_on_a_host_apps_own_session(bench: SqlBench) -> None:
    """One connection, one transaction after another, and the secret of the settings."""
    await bench.put({}, {}, {})
    async with host(bench) as app, AsyncSession(app) as session:
        watched = watch("main", bench.jobs, SessionConnections(session), Policy(), secret=lambda: SECRET)
        plan = await made(watched)
        report = await applied(watched, plan)
        with pytest.raises(PlanRefusedError, match="applied by grace"):
            await applied(watched, plan)

    assert came_to(report) == {Outcome.APPLIED: 3}
    assert await statuses(bench) == ["failed"] * 3


async def test_every_call_about_a_plan_is_in_the_audit_log_with_its_id(light: SqlBench) -> None:
    await light.put({})
    app = service(watched_on(light))
    async with client(app, Role.OPERATOR) as operator:
        plan_id = (await operator.post(PLAN)).json()["plan"]["id"]
        await operator.get(f"{PLANS}/{plan_id}")
        await operator.post(f"{PLANS}/{plan_id}/apply")
        await operator.post(f"{PLANS}/{plan_id}/apply")

    said = [(each.call, each.outcome) for each in await light.audit()]
    assert said == [
        ("jobs.cleanup", "done"),
        ("plans.read", "done"),
        ("plans.apply", "started"),
        ("plans.apply", "done"),
        ("plans.apply", "refused"),
    ]
    plan, read, started, _, refused = await light.audit()
    assert (plan.result["plan"], plan.parameters) == (plan_id, {"dry_run": "true", "plan": "true"})
    assert read.parameters == refused.parameters == {"plan_id": plan_id}
    assert started.parameters["plan"] == plan_id
    assert refused.result["status"] == 409


async def test_a_viewer_reads_plans_and_neither_makes_nor_applies_one(light: SqlBench) -> None:
    await light.put({})
    watched = watched_on(light)
    plan = await made(watched)
    app = service(watched)
    async with client(app, Role.VIEWER) as viewer, client(app) as nobody:
        assert (await viewer.get(f"{PLANS}/{plan.id}")).status_code == 200
        assert_problem(await viewer.post(PLAN), 403)
        assert_problem(await viewer.post(f"{PLANS}/{plan.id}/apply"), 403)
        for method, path in (("GET", f"{PLANS}/{plan.id}"), ("POST", f"{PLANS}/{plan.id}/apply"), ("POST", PLAN)):
            assert_problem(await nobody.request(method, path), 401)

    assert await statuses(light) == ["running"]
    assert await _ids(light, plans.c.id) == {plan.id}


async def test_what_means_nothing_is_refused_and_changes_nothing(light: SqlBench) -> None:
    await light.put({})
    watched = watched_on(light)
    plan = await made(watched)
    async with client(service(watched), Role.ADMIN) as caller:
        for path in ("?plan=true", "?plan=true&dry_run=false", "?plan=yes&dry_run=true"):
            assert_problem(await caller.post(f"/api/v1/admin/jobs/cleanup{path}"), 422)
        for path in (f"{plan.id}/apply?dry_run=true", f"{plan.id[:-1]}/apply", f"{plan.id.upper()}/apply", "%00/apply"):
            assert_problem(await caller.post(f"{PLANS}/{path}"), 422)
        for query in ("cursor=1", "cursor=-1.0", "limit=0"):
            assert_problem(await caller.get(f"{PLANS}/{plan.id}?{query}"), 422)
        assert_problem(await caller.post(f"{PLANS}/{'0' * 32}/apply"), 404)
        assert_problem(await caller.get(f"{PLANS}/{'0' * 32}"), 404)
    assert await statuses(light) == ["running"]
