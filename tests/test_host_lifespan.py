"""The router in a host app: nothing else has to be called, and the app's table is watched on the app's own sessions."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.jobs import make_tables
from tests.servers import EACH_KIND
from tests.test_admin_service import Base, Host
from tests.test_http_witness import answer, serving
from tests.test_worker import until
from unstick import Policy
from unstick.admin import admin_router, health_router
from unstick.domain.access import Principal, Role
from unstick.domain.brake import Pass
from unstick.hosting import host_settings
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections, SessionConnections
from unstick.sql.tables import audit, events, leaders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from tests.test_http_witness import Request

DATABASES = EACH_KIND

HOUR = timedelta(hours=1)
SOON = Policy(queued_after=timedelta(milliseconds=1), running_after=timedelta(milliseconds=1))


async def anybody() -> Principal:
    return Principal(name="ada", role=Role.ADMIN)


@pytest.fixture
async def host(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setenv("UNSTICK_SWEEP__OBSERVE_EVERY", "0.5s")
    monkeypatch.setenv("UNSTICK_SWEEP__CLEAN_EVERY", "0.5s")
    host_settings.cache_clear()
    engine = create_async_engine(database.url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield Host(engine)
    await engine.dispose()
    host_settings.cache_clear()


def app_of(host: Host) -> FastAPI:
    app = FastAPI()
    app.include_router(admin_router(host.sessions, auth=anybody, jobs=host.jobs, policy=SOON))
    app.include_router(health_router(host.sessions, jobs=host.jobs, policy=SOON))
    return app


async def status_of(app: FastAPI, path: str) -> tuple[int, str]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host.test") as caller:
        answer = await caller.get(path)
    return answer.status_code, answer.json()["status"]


async def test_stuck_jobs_of_a_host_app_are_cleaned_up_while_it_runs(host: Host) -> None:
    """The contract: cleanup by itself, in the service's lifespan; and in the app's, where the router is in it."""
    await make_tables(host.engine)
    connections = EngineConnections(host.engine)
    async with connections.reading() as (_, now):
        await SqlBrakes(connections).note_pass("main", Pass(at=now, back_at=now - timedelta(days=3)))
    job_id = await host.add("queued", age=HOUR)
    app = app_of(host)
    async with app.router.lifespan_context(app):

        async def cleaned() -> bool:
            return (await host.job(job_id)).status == "failed"

        await until(cleaned)
        health = await status_of(app, "/health/jobs")
        ready = await status_of(app, "/health/ready")

    assert health[0] == 200
    assert health[1] in {"pass", "warn"}
    assert ready == (200, "pass")
    assert await host.count(audit) == 2
    async with host.engine.connect() as connection:
        holder = await connection.scalar(sa.select(leaders.c.holder))
    assert holder is None, "the lease wasn't given back when the app stopped"


async def test_an_app_whose_database_lacks_our_tables_runs_and_is_told_once(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(host)
    async with app.router.lifespan_context(app):
        assert await status_of(app, "/health/live") == (200, "pass")
        assert await status_of(app, "/health/ready") == (503, "fail")

        async def told() -> bool:
            return "can't be watched" in caplog.text

        await until(told)
    assert caplog.text.count("can't be watched") == 1
    assert "unstick db upgrade" in caplog.text


async def test_a_host_app_tells_of_stuck_jobs_on_its_own_sessions(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer({}))

    async def told() -> bool:
        async with host.engine.connect() as connection:
            kinds = await connection.scalars(sa.select(events.c.kind))
            return "notified" in set(kinds)

    await make_tables(host.engine)
    await host.add("queued", age=HOUR)
    async with serving(respond) as receiver:
        # Seldom, so that the runner is idle when the app stops: drivers don't bear to be cut off.
        monkeypatch.setenv("UNSTICK_SWEEP__CLEAN_EVERY", "1h")
        monkeypatch.setenv("UNSTICK_ALERTS__CHANNELS__OPS__URL", receiver.url)
        monkeypatch.setenv("UNSTICK_ALERTS__CHANNELS__OPS__SECRET", "a channel's secret of thirty-two bytes")
        host_settings.cache_clear()
        app = app_of(host)
        async with app.router.lifespan_context(app):
            await until(told)
    [request] = receiver.requests
    assert b'"change": "opened"' in request.body
    assert b'"what": "never_claimed"' in request.body


async def test_who_is_stopped_in_the_middle_of_a_statement_on_a_hosts_session_is_stopped(
    mariadb_database: Database,
) -> None:
    """The connection is spoilt by that, which must not be told in place of it: an app could never end."""
    engine = create_async_engine(mariadb_database.url)
    asked = asyncio.Event()

    @sa.event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _asked(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "SLEEP" in statement:
            asyncio.get_running_loop().call_soon(asked.set)

    async def work() -> None:
        async with AsyncSession(engine) as session, SessionConnections(session).writing() as (connection, _):
            await connection.execute(sa.text("SELECT SLEEP(5)"))

    task = asyncio.create_task(work())
    await asyncio.wait_for(asked.wait(), 20)
    task.cancel()
    [ended] = await asyncio.gather(task, return_exceptions=True)
    await engine.dispose()
    assert isinstance(ended, asyncio.CancelledError)
