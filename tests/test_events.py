"""The stream of events: whatever happens, to whoever asks, from where they left off."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from tests.api_support import AUTH, SECRET, assert_problem, bearer, token
from tests.jobs import SqlBench, open_bench
from tests.servers import EACH_KIND
from tests.test_worker import until
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.api.router import admin_router
from unstick.domain.access import Role
from unstick.domain.diagnosis import Reason
from unstick.domain.events import Held, LeadershipChanged, Observed, PipelineEvent, QueueReason, QueueState, Swept
from unstick.domain.job import JobState
from unstick.domain.recovery import Action
from unstick.pipeline.emitting import emit
from unstick.pipeline.event_shapes import _KINDS, event_shape
from unstick.pipeline.recovering import RecoverOrder, recover_job
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.undo import UndoOrder, undo
from unstick.sql.connections import EngineConnections
from unstick.sql.event_log import SqlEventLog
from unstick.sql.tables import events
from unstick.testing.conformance import MINUTE, Ages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.servers import Database
    from unstick.pipeline.watched import Watched

DATABASES = EACH_KIND

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STUCK = Ages(enqueued=100 * MINUTE, started=60 * MINUTE)
PATH = "/api/v1/admin/events"


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


@pytest.fixture
async def light(sqlite_database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(sqlite_database)
    yield bench
    await bench.close()


def logged(bench: SqlBench) -> Watched:
    return replace(bench.watched(), event_log=SqlEventLog(EngineConnections(bench.engine)))


def led(term: int, source: str = "main") -> LeadershipChanged:
    return LeadershipChanged(source=source, holder="test:1:boot", term=term, leads=True)


async def told(bench: SqlBench, after: int = 0, limit: int = 100) -> list[tuple[str, Mapping[str, object]]]:
    log = SqlEventLog(EngineConnections(bench.engine))
    return [(record.kind, record.told) for record in (await log.after("main", after, limit))[0]]


async def test_each_stage_tells_what_it_did(bench: SqlBench) -> None:
    """Sweeps, single recoveries and undos by anybody: with who, how many, and which operation of the audit log."""
    one, _ = [await bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
    watched = logged(bench)
    await recover_job(watched, RecoverOrder(actor="ada", job_id=one))
    swept = await sweep(watched, SweepOrder(actor="grace", action=Action.MARK_FAILED))
    await undo(watched, UndoOrder(actor="eve", operation_id=swept.operation_id))
    await sweep(watched, SweepOrder(actor="grace", dry_run=True))

    found = await told(bench)
    assert [kind for kind, _ in found] == ["job_recovered", "swept", "undone"]
    recovered, done, undone = (said for _, said in found)
    assert (recovered["actor"], recovered["job_id"], recovered["outcome"]) == ("ada", one, "applied")
    assert (done["actor"], done["outcomes"], done["operation_id"]) == ("grace", {"applied": 1}, swept.operation_id)
    assert (undone["actor"], undone["undoes"], undone["outcomes"]) == ("eve", swept.operation_id, {"applied": 1})


async def test_a_sweep_that_did_nothing_is_no_event(light: SqlBench) -> None:
    await sweep(logged(light), SweepOrder(actor="grace"))
    assert await told(light) == []


def test_every_event_has_a_kind_and_is_told_as_json() -> None:
    assert set(_KINDS) == set(get_args(PipelineEvent))
    observed = Observed(
        source="main",
        at=NOON,
        took=timedelta(seconds=1),
        open_jobs={QueueState("mail", JobState.QUEUED): 3},
        stuck={QueueReason(None, Reason.SILENT): 2},
        oldest_running=timedelta(minutes=2),
        held=Held(since=NOON, suspects=9, cause="an outage"),
    )
    kind, said = event_shape(observed)
    assert kind == "observed"
    assert json.loads(json.dumps(said)) == said
    assert (said["stuck"], said["oldest_running_seconds"]) == ([{"queue": None, "reason": "silent", "jobs": 2}], 120.0)


async def test_events_are_read_from_where_a_client_left_off_each_once_in_order(bench: SqlBench) -> None:
    watched = logged(bench)
    for term in range(7):
        await emit(watched, led(term))
    async with bench.engine.begin() as connection:  # PostgreSQL puts what is changed behind all others
        await connection.execute(sa.update(events).where(events.c.id == 1).values(source="main"))
    log = SqlEventLog(EngineConnections(bench.engine))
    seen, last = [], 0
    while (page := await log.after("main", last, 3))[0]:
        seen += [record.told["term"] for record in page[0]]
        last = page[1]
    assert seen == list(range(7))
    assert await log.last("main") == last
    assert await log.last("other") == 0


async def test_another_sources_events_are_passed_over(bench: SqlBench) -> None:
    watched = logged(bench)
    log = SqlEventLog(EngineConnections(bench.engine))
    for term, source in enumerate(("main", "other", "other", "main")):
        await emit(watched, led(term, source))
    assert [record.told["term"] for record in (await log.after("main", 0, 100))[0]] == [0, 3]
    assert [record.told["term"] for record in (await log.after("other", 0, 100))[0]] == [1, 2]


async def test_an_event_that_is_committed_later_than_a_younger_one_is_not_missed(
    postgres_database: Database,
) -> None:
    """Ids are given when a row is written: who reads past a gap would never see what fills it."""
    bench = await open_bench(postgres_database)
    log = SqlEventLog(EngineConnections(bench.engine))
    row = {"source": "main", "kind": "late", "told": "{}"}
    await log.append("main", "first", {})
    async with bench.engine.connect() as slow:
        now = (await slow.execute(sa.text("SELECT now()"))).scalar_one()
        await slow.execute(sa.insert(events).values(row | {"at": now}))
        await log.append("main", "younger", {})
        before = [record.kind for record in (await log.after("main", 0, 10))[0]]
        await slow.commit()
    after = [record.kind for record in (await log.after("main", 0, 10))[0]]
    async with bench.engine.begin() as connection:
        await connection.execute(sa.delete(events).where(events.c.kind == "late"))
        waiting = [record.kind for record in (await log.after("main", 0, 10))[0]]
        await connection.execute(sa.update(events).values(at=now - timedelta(minutes=1)))
    settled = [record.kind for record in (await log.after("main", 0, 10))[0]]
    await bench.close()
    assert (before, after) == (["first"], ["first", "late", "younger"])
    assert (waiting, settled) == (["first", "late", "younger"], ["first", "younger"])


async def test_many_events_of_another_source_keep_nobody_from_their_own(light: SqlBench) -> None:
    watched = logged(light)
    for term in range(10):
        await emit(watched, led(term, "busy"))
    await emit(watched, led(7, "quiet"))
    log, last, found = SqlEventLog(EngineConnections(light.engine)), 0, list[object]()
    for _ in range(4):
        records, last = await log.after("quiet", last, 3)
        found += [record.told["term"] for record in records]
    assert found == [7]


# Over HTTP, with a real server: no test client streams


@asynccontextmanager
async def lend(watched: Watched) -> AsyncIterator[Watched]:
    yield watched


@asynccontextmanager
async def served(bench: SqlBench) -> AsyncIterator[tuple[str, FastAPI]]:
    app = create_app(watched={"main": partial(lend, logged(bench))}, principal=bearer_principal(SECRET, AUTH))
    async with serving(app) as url:
        yield url, app


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    serving = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await until(started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    app.state.stopping = server.should_exit = True
    await asyncio.wait_for(serving, 10)  # however many still listen


@asynccontextmanager
async def listening(url: str, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    sent = bearer(token(Role.VIEWER)) | {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(timeout=20) as caller, caller.stream("GET", url + PATH, headers=sent) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _frames(answer)


async def _frames(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    frame: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        if not line:
            if "id" in frame:
                yield frame
            frame = {}
            continue
        name, _, value = line.partition(": ")
        frame[name] = json.loads(value) if name == "data" else value


async def test_a_client_hears_what_happens_and_goes_on_where_it_left_off(light: SqlBench) -> None:
    watched = logged(light)
    await emit(watched, led(0))
    async with served(light) as (url, _):
        async with listening(url) as frames:
            await emit(watched, led(1))
            first = await anext(frames)
        await emit(watched, led(2))
        async with listening(url, last_event_id=first["id"]) as frames:
            second = await anext(frames)
        async with listening(url, last_event_id="0") as frames:
            everything = [(await anext(frames))["data"]["term"] for _ in range(3)]
    assert (first["event"], first["data"]["term"], first["data"]["source"]) == ("leadership_changed", 1, "main")
    assert second["data"]["term"] == 2
    assert everything == [0, 1, 2]


async def test_a_service_that_stops_waits_for_no_listener(light: SqlBench) -> None:
    """Or it would be killed in the end, without its leases given back."""
    async with served(light) as (url, _):
        caller = httpx.AsyncClient(timeout=20)
        request = caller.build_request("GET", url + PATH, headers=bearer(token(Role.VIEWER)))
        answer = await caller.send(request, stream=True)
        assert answer.status_code == 200
    await caller.aclose()


async def test_in_a_hosts_app_a_stream_ends_by_itself_and_in_the_service_it_goes_on(light: SqlBench) -> None:
    """Nobody tells the host's router that its server stops, which waits for all answers to end."""
    watched = logged(light)
    lasts = timedelta(milliseconds=10)
    routers = (
        admin_router(
            watched={"main": partial(lend, watched)}, principal=bearer_principal(SECRET, AUTH), longest_untold=lasts
        )
        for _ in range(2)
    )
    host, service = (FastAPI(routes=router.routes) for router in routers)
    service.state.stopping = False
    async with serving(host) as host_url, serving(service) as service_url, listening(service_url) as frames:
        async with listening(host_url) as ending:
            assert [frame async for frame in ending] == []
        await emit(watched, led(1))
        assert (await anext(frames))["data"]["term"] == 1


async def test_only_who_may_read_hears_anything_and_a_bad_id_is_refused(light: SqlBench) -> None:
    async with served(light) as (url, _), httpx.AsyncClient(base_url=url) as caller:
        assert_problem(await caller.get(PATH), 401)
        viewer = bearer(token(Role.VIEWER))
        for bad in ("x", "-1", "1e3", "9" * 30, "9" * 5_000):
            assert_problem(await caller.get(PATH, headers=viewer | {"Last-Event-ID": bad}), 422)
    entries = [(entry.call, entry.outcome) for entry in await light.audit()]
    assert ("events", "refused") in entries


async def test_a_stage_goes_on_where_no_event_can_be_kept(light: SqlBench, caplog: pytest.LogCaptureFixture) -> None:
    await light.add(JobState.RUNNING, STUCK)
    async with light.engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE unstick_events"))
    report = await sweep(logged(light), SweepOrder(actor="grace"))
    assert report.tally.of() == 1
    assert f"could not take note of {Swept.__name__}" in caplog.text
