"""Who of several replicas leads a source: the lease, by the ledger's clock, and what a process knows of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
import time_machine

from tests.jobs import make_tables
from tests.replicas import Replicas, acted_late, late_ends, open_replicas
from tests.test_races import on_databases
from tests.test_worker import until
from unstick.config import SourceSettings
from unstick.domain.policy import Policy
from unstick.pipeline.leadership import Lead
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.leaders import SqlLeaders
from unstick.sql.mapping import JobTable
from unstick.wiring import watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database

LEASE = timedelta(seconds=30)
ALL = ("sqlite", "postgres18", "postgres18-asyncpg", "postgres15", "mariadb", "pgbouncer")


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """A database with Unstick's tables and its own jobs."""
    engine = open_engine(database.url, create=True)
    await make_tables(engine, own_jobs=True)
    if database.backend == "sqlite":
        await use_write_ahead_log(engine)
    yield engine
    await engine.dispose()


def leaders_of(engine: AsyncEngine) -> SqlLeaders:
    return SqlLeaders(EngineConnections(engine))


async def run_out(engine: AsyncEngine) -> None:
    """Have every lease run out now."""
    leaders = tables.leaders
    async with engine.begin() as connection:
        await connection.execute(sa.update(leaders).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))


@on_databases(*ALL)
async def test_of_twelve_that_claim_a_source_at_once_one_gets_it(engine: AsyncEngine) -> None:
    """K1: over connections of their own, and again when the lease has run out."""
    url = engine.url.render_as_string(hide_password=False)
    async with AsyncExitStack() as stack:
        others = [open_engine(url) for _ in range(12)]
        for other in others:
            stack.push_async_callback(other.dispose)
        for term in (1, 2):
            claims = (leaders_of(other).claim("main", f"one {place}", LEASE) for place, other in enumerate(others))
            held = [each for each in await asyncio.gather(*claims) if each is not None]
            assert [each.term for each in held] == [term]
            await run_out(engine)


@on_databases(*ALL)
async def test_who_renews_goes_on_with_their_term_and_who_takes_over_begins_the_next(engine: AsyncEngine) -> None:
    leaders = leaders_of(engine)
    first = await leaders.claim("main", "one", LEASE)
    again = await leaders.claim("main", "one", LEASE)
    refused = await leaders.claim("main", "two", LEASE)
    elsewhere = await leaders.claim("other", "two", LEASE)
    assert first is not None
    assert (first.term, again, refused) == (1, first, None)
    assert elsewhere is not None

    await leaders.release(first)
    second = await leaders.claim("main", "two", LEASE)
    await leaders.release(first)  # which is over, and takes nothing from the next

    assert second is not None
    assert second.term == 2
    assert await leaders.claim("main", "one", LEASE) is None
    await run_out(engine)
    late = await leaders.claim("main", "two", LEASE)
    assert late is not None
    assert late.term == 3, "whoever let it run out can't know that nobody led in between"


@on_databases("sqlite", "postgres18", "mariadb")
async def test_a_process_whose_clock_is_wrong_by_days_takes_nothing_and_keeps_nothing_longer(
    engine: AsyncEngine,
) -> None:
    """C1: the ledger's clock decides."""
    leaders = leaders_of(engine)
    assert await leaders.claim("main", "one", LEASE) is not None
    for skew in (timedelta(days=-3), timedelta(days=3)):
        with time_machine.travel(datetime.now(UTC) + skew, tick=True):
            assert await leaders.claim("main", "two", LEASE) is None
            assert await leaders.claim("main", "one", LEASE) is not None
    async with engine.connect() as connection:
        expires = (await connection.execute(sa.select(tables.leaders.c.expires_at))).scalar_one()
    assert timedelta(0) < expires - datetime.now(UTC) <= LEASE + timedelta(seconds=5)


async def test_who_slept_through_the_end_of_its_lease_knows_before_it_asks(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2: a stopped process wakes up and would go on; its clock that never stands still tells it not to."""
    engine = open_engine(sqlite_database.url, create=True)
    await make_tables(engine, own_jobs=True)
    watched = watch("main", JobTable.from_settings(SourceSettings()), EngineConnections(engine), Policy())
    lead, now = Lead("main", "one", LEASE), 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    assert await lead.keep(watched)
    now += LEASE.total_seconds() - 0.1
    assert (lead.leads, lead.term) == (True, 1)
    now += 0.1
    assert (lead.leads, lead.term) == (False, None)
    assert await lead.keep(watched)
    await engine.dispose()


# With real processes


async def put_stuck(engine: AsyncEngine, number: int = 1) -> list[int]:
    """Queue jobs that nobody will ever claim."""
    ids = []
    async with engine.begin() as connection:
        for _ in range(number):
            row = await connection.execute(sa.insert(tables.jobs).values(job_type="essay", status="queued"))
            assert row.inserted_primary_key is not None
            ids.append(int(row.inserted_primary_key[0]))
    return ids


async def failed(engine: AsyncEngine, ids: list[int]) -> bool:
    async with engine.connect() as connection:
        jobs = sa.select(sa.func.count()).where(tables.jobs.c.id.in_(ids), tables.jobs.c.status == "failed")
        return bool((await connection.execute(jobs)).scalar_one() == len(ids))


async def is_swept(engine: AsyncEngine, number: int = 1) -> None:
    """Queue jobs that get stuck, and wait until they are recovered."""
    ids = await put_stuck(engine, number)
    await until(lambda: failed(engine, ids))


async def have_said_so(replicas: Replicas, number: int) -> bool:
    """Tell whether so many replicas have said that they swept, which each does only after its jobs are recovered."""
    return len({each["pid"] for each in replicas.heard() if each["event"] == "Swept"}) == number


async def led(replicas: Replicas, besides: int | None = None) -> int:
    """Wait until a replica leads."""

    async def somebody() -> bool:
        return replicas.leader(besides) is not None

    await until(somebody)
    pid = replicas.leader(besides)
    assert pid is not None
    return pid


async def assert_no_two_swept_at_once(engine: AsyncEngine) -> None:
    """By the audit log, in the ledger's time: who sweeps acts no more once another has begun; no job is twice done."""
    async with engine.connect() as connection:
        rows = (await connection.execute(sa.select(tables.audit).order_by(tables.audit.c.id))).all()
        done = sa.select(tables.job_recoveries).where(tables.job_recoveries.c.outcome == "applied")
        records = (await connection.execute(done)).all()
    recovered = [record.job_id for record in records]
    assert acted_late(late_ends(rows), records) == []
    assert len(recovered) == len(set(recovered))


@pytest.mark.parametrize(
    ("database", "number"),
    [("sqlite", 1), ("sqlite", 3), ("postgres18", 3), ("postgres18", 12), ("mariadb", 3), ("pgbouncer", 3)],
    indirect=["database"],
)
async def test_when_the_leader_is_killed_another_goes_on_within_the_lease(
    database: Database, engine: AsyncEngine, tmp_path: Path, number: int
) -> None:
    """K1: and never do two sweep at once."""
    # So many on few cores may each be kept waiting for longer than a short lease.
    leads_for = timedelta(seconds=2 if number < 12 else 6)
    with open_replicas(number, database.url, tmp_path, leads_for=leads_for) as replicas:
        leader = await led(replicas)
        await is_swept(engine, 20)

        await until(partial(have_said_so, replicas, 1))
        term = replicas.leads(leader)
        assert term == 1
        if number > 1:
            os.kill(leader, signal.SIGKILL)
            assert replicas.leads(await led(replicas, besides=leader)) == term + 1
        await is_swept(engine, 20)
        await until(partial(have_said_so, replicas, min(number, 2)))
    await assert_no_two_swept_at_once(engine)


@on_databases("sqlite", "postgres18", "mariadb")
async def test_a_leader_that_is_asked_to_stop_gives_its_lease_back_at_once(
    database: Database, engine: AsyncEngine, tmp_path: Path
) -> None:
    with open_replicas(2, database.url, tmp_path, leads_for=timedelta(seconds=20)) as replicas:
        leader = await led(replicas)
        os.kill(leader, signal.SIGTERM)
        await led(replicas, besides=leader)
        told = [each for each in replicas.heard() if each["event"] == "LeadershipChanged"]
        await is_swept(engine)

    assert [(each["pid"] == leader, each["leads"], each["term"]) for each in told] == [
        (True, True, 1), (True, False, 1), (False, True, 2),
    ]  # fmt: skip
    assert told[-1]["at"] - told[0]["at"] < 20, "it waited for the lease to run out"


@on_databases("postgres18")
async def test_a_leader_that_was_stopped_and_goes_on_sweeps_no_more(
    database: Database, engine: AsyncEngine, tmp_path: Path
) -> None:
    """K2: SIGSTOP, another leads, SIGCONT: it finds out before it does anything else."""
    with open_replicas(3, database.url, tmp_path, leads_for=timedelta(seconds=1)) as replicas:
        leader = await led(replicas)
        await is_swept(engine, 5)
        os.kill(leader, signal.SIGSTOP)
        await led(replicas, besides=leader)
        ids = await put_stuck(engine, 5)
        before = len(replicas.heard(leader))
        os.kill(leader, signal.SIGCONT)

        async def knows() -> bool:
            return replicas.leads(leader) is None

        await until(knows)
        await until(lambda: failed(engine, ids))
        since = replicas.heard(leader)[before:]
    lost = next(place for place, each in enumerate(since) if each["event"] == "LeadershipChanged")
    assert [each for each in since[:lost] if each["event"] == "Swept" and each["recovered"]] == []
    await assert_no_two_swept_at_once(engine)
