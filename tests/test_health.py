"""Health: for load balancers and monitors, by the health+json draft, with no token and no secret in it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from tests.api_support import client, opened_by_failing
from tests.jobs import SqlBench, open_bench
from tests.servers import EACH_KIND
from unstick.api.health import health_router
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import ConfigurationError, LedgerMissingError, SourceUnavailableError
from unstick.domain.events import Held, Observed, QueueReason
from unstick.domain.health import Check, Health, WatchRecord, checks_of, worst
from unstick.domain.queue import Workers
from unstick.domain.schedule import Every, Timetable
from unstick.pipeline import health as health_module
from unstick.sql.connections import EngineConnections
from unstick.sql.tables import watches
from unstick.sql.watches import SqlWatches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.pipeline.watched import OpenWatched, Watched

DATABASES = EACH_KIND

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
TIMETABLE = Timetable(observe=Every(MINUTE), clean=Every(10 * MINUTE))
WELL = WatchRecord(
    at=NOON,
    began_at=NOON - timedelta(days=9),
    observed_at=NOON - MINUTE,
    observed=Observed(source="main", at=NOON - MINUTE, took=SECOND, open_jobs={}, stuck={}),
    swept_at=NOON - 9 * MINUTE,
)


def found(record: WatchRecord | None) -> dict[str, Check]:
    return {check.name: check for check in checks_of(record, TIMETABLE)}


def healths(record: WatchRecord | None) -> dict[str, str]:
    return {name: check.health.value for name, check in found(record).items()}


def test_a_watch_that_is_kept_and_sees_nothing_stuck_passes() -> None:
    assert healths(WELL) == {"stuck": "pass", "brake": "pass", "observation": "pass", "sweep": "pass"}
    assert all(check.said is None for check in found(WELL).values())


@pytest.mark.parametrize(("ago", "health"), [(30 * MINUTE, "pass"), (30 * MINUTE + SECOND, "fail")])
def test_a_sweep_that_has_not_succeeded_for_three_intervals_fails(ago: timedelta, health: str) -> None:
    """The reaper that died in silence shows."""
    assert healths(replace(WELL, swept_at=NOON - ago))["sweep"] == health
    never = replace(WELL, swept_at=None, began_at=NOON - ago)
    assert healths(never)["sweep"] == health


def test_an_observation_that_failed_for_three_intervals_fails_and_says_no_more_than_anybody_may_hear() -> None:
    record = replace(WELL, observed_at=NOON - 3 * MINUTE - SECOND, problem="postgresql://ada:secret@db-7 is away")
    check = found(record)["observation"]
    assert check.health is Health.FAIL
    since = "it was not observed since 2026-01-01 11:56:59 UTC, 3 minutes 1 second ago"
    assert check.said == f"{since}; the last try failed, and the log says why"
    assert found(replace(WELL, problem="it was away"))["observation"].health is Health.WARN


def test_a_source_that_was_never_watched_fails() -> None:
    assert healths(None) == {"observation": "fail"}


def test_stuck_jobs_and_a_brake_warn_with_their_numbers() -> None:
    """The contract: a health check that warns of stuck jobs."""
    stuck = {
        QueueReason("mail", Reason.SILENT): 2,
        QueueReason(None, Reason.SILENT): 1,
        QueueReason("a", Reason.HUNG): 1,
    }
    held = Held(since=NOON, suspects=99, cause="an outage")
    observed = Observed(source="main", at=NOON, took=SECOND, open_jobs={}, stuck=stuck, held=held)
    checks = found(replace(WELL, observed=observed))
    assert (checks["stuck"].health, checks["stuck"].value) == (Health.WARN, 4)
    assert checks["stuck"].said == "4 job(s) are stuck: 3 silent, 1 hung; `unstick stuck --source main` lists them"
    assert checks["brake"].health is Health.WARN
    assert "99 jobs were stuck at once; it looks like an outage" in (checks["brake"].said or "")


def test_a_grace_is_told_with_the_stuck_jobs_that_wait_for_its_end() -> None:
    stuck = {QueueReason("mail", Reason.SILENT): 2}
    observed = Observed(
        source="main", at=NOON, took=SECOND, open_jobs={}, stuck=stuck, grace_until=NOON + timedelta(minutes=30)
    )
    said = found(replace(WELL, observed=observed))["stuck"].said or ""
    assert said.endswith(
        "; unattended sweeps leave some until 2026-01-01 12:30:00 UTC, a grace after the watch or the database was away"
    )


def test_the_worst_of_several_is_what_is_told() -> None:
    assert worst([]) is Health.PASS
    assert worst([Health.PASS, Health.WARN]) is Health.WARN
    assert worst([Health.WARN, Health.FAIL, Health.PASS]) is Health.FAIL


# Over HTTP


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


@asynccontextmanager
async def lend(watched: Watched) -> AsyncIterator[Watched]:
    yield watched


def kept(bench: SqlBench) -> Watched:
    return replace(bench.watched(), watches=SqlWatches(EngineConnections(bench.engine)))


def app_over(**sources: OpenWatched) -> FastAPI:
    app = FastAPI()
    app.include_router(health_router(sources, TIMETABLE))
    return app


async def asked(app: FastAPI, path: str) -> tuple[int, dict[str, Any]]:
    async with client(app) as caller:
        answer = await caller.get(path)
    assert answer.headers["content-type"] == "application/health+json"
    assert answer.headers["cache-control"] == "no-store"
    shape: dict[str, Any] = answer.json()
    return answer.status_code, shape


async def test_a_source_and_a_ledger_that_answer_are_ready(bench: SqlBench) -> None:
    app = app_over(main=partial(lend, kept(bench)))
    assert (await asked(app, "/health/live"))[1]["status"] == "pass"
    status, shape = await asked(app, "/health/ready")
    assert (status, shape["status"]) == (200, "pass")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SourceUnavailableError("postgresql://ada:secret@db-7/app is away"), "doesn't answer"),
        (LedgerMissingError("of postgresql://ada:secret@db-7/app"), "unstick db upgrade"),
        (ConfigurationError("in postgresql://ada:secret@db-7/app"), "its configuration doesn't fit"),
    ],
)
async def test_a_source_in_trouble_is_503_with_the_reason_and_no_address(
    bench: SqlBench, error: Exception, said: str
) -> None:
    app = app_over(main=partial(lend, kept(bench)), mail=opened_by_failing(error))
    status, shape = await asked(app, "/health/ready")
    assert (status, shape["status"]) == (503, "fail")
    by_source = {check["componentId"]: check for check in shape["checks"]["source:answer"]}
    assert by_source["main"]["status"] == "pass"
    assert said in by_source["mail"]["output"]
    assert "secret" not in str(shape)
    assert "db-7" not in str(shape)


async def test_a_source_that_is_silent_is_not_waited_for_long(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "ANSWERS_WITHIN", timedelta(milliseconds=100))
    bench = await open_bench(sqlite_database)

    @asynccontextmanager
    async def silent() -> AsyncIterator[Watched]:
        await asyncio.Event().wait()
        yield kept(bench)

    status, shape = await asked(app_over(main=silent), "/health/ready")
    await bench.close()
    assert (status, shape["status"]) == (503, "fail")


async def test_the_ledger_that_lost_its_tables_is_not_ready(bench: SqlBench) -> None:
    async with bench.engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE unstick_watches"))
    status, shape = await asked(app_over(main=partial(lend, kept(bench))), "/health/ready")
    assert (status, shape["status"]) == (503, "fail")


async def test_a_source_that_lost_its_table_is_not_ready(bench: SqlBench) -> None:
    async with bench.engine.begin() as connection:
        await connection.execute(sa.text(f"DROP TABLE {bench.table.name}"))
    status, shape = await asked(app_over(main=partial(lend, kept(bench))), "/health/ready")
    assert (status, shape["status"]) == (503, "fail")


async def test_stuck_jobs_warn_and_a_watch_that_is_not_kept_is_503_only_where_asked(bench: SqlBench) -> None:
    watched = kept(bench)
    assert watched.watches is not None
    stuck = {QueueReason("mail", Reason.SILENT): 2}
    workers = Workers(living=2, by_queue={None: 1, "mail": 0})
    observed = Observed(source="main", at=NOON, took=SECOND, open_jobs={}, stuck=stuck, workers=workers)
    await watched.watches.note_observed(observed)
    record = await watched.watches.find("main")
    assert record is not None
    assert record.observed == observed
    await watched.watches.note_swept("main")
    app = app_over(main=partial(lend, watched))
    assert [(await asked(app, f"/health/jobs{query}"))[0] for query in ("", "?strict=true")] == [200, 200]
    _, shape = await asked(app, "/health/jobs")
    assert shape["status"] == "warn"
    assert shape["checks"]["source:stuck"][0]["observedValue"] == 2

    old = datetime(2020, 1, 1, tzinfo=UTC)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(watches).values(swept_at=old))
    assert [(await asked(app, f"/health/jobs{query}"))[0] for query in ("", "?strict=true")] == [200, 503]
    assert (await asked(app, "/health/jobs"))[1]["status"] == "fail"
