"""PostgreSQL's connections say whether a job's worker still holds the one it runs on."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.servers import MissingServerError
from tests.witnessing import statements_of, word, words
from unstick.config import BackendsSettings
from unstick.domain.errors import ConfigurationError
from unstick.domain.evidence import Holding
from unstick.sql.backends import Backends
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.testing.witnesses import WitnessConformance, running_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from tests.servers import Database, Servers
    from unstick.domain.job import Job

ESSAYS = f"essays-{os.getpid()}"
"""A worker's name, apart from those that other processes of this test run give theirs on the same server."""
A_MOMENT = timedelta(microseconds=1)


class Exchange:
    """A PostgreSQL server that workers are connected to."""

    def __init__(self, url: str, **section: Any) -> None:  # noqa: ANN401
        self.engine = open_engine(url)
        self.witness = self.reading(**({"by": "application_name"} | section))
        self.workers: list[psycopg.Connection] = []
        self._last = 0

    def reading(self, **section: Any) -> Backends:  # noqa: ANN401
        return Backends(BackendsSettings.model_validate(section), EngineConnections(self.engine))

    async def clock(self) -> datetime:
        async with EngineConnections(self.engine).reading() as (_, now):
            return now

    def connect(self, name: str, *, database: str | None = None, user: str = "postgres") -> psycopg.Connection:
        """Make a connection, as a worker does before it takes a job."""
        url = self.engine.url
        worker = psycopg.connect(
            host=str(url.query["host"]),
            dbname=database or url.database,
            user=user,
            application_name=name,
            autocommit=True,
        )
        self.workers.append(worker)
        return worker

    async def job(self, worker: str | None, *, age: timedelta = A_MOMENT) -> Job:
        self._last += 1
        return running_job(self._last, await self.clock(), worker=worker, age=age)

    async def close(self) -> None:
        for worker in self.workers:
            worker.close()
        await self.engine.dispose()

    async def gone(self, pid: int) -> None:
        """Wait until the server has ended a backend: it takes notice of a closed connection in its own time."""
        alive = sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        async with self.engine.connect() as connection:
            while (await connection.execute(alive, {"pid": pid})).scalar():
                await connection.rollback()

    @property
    def _next(self) -> str:
        """A worker's name that no other test's has on this server."""
        return f"{self.engine.url.database}-{self._last + 1}"

    # As `WitnessStand`:

    async def held(self) -> Job:
        self.connect(self._next)
        return await self.job(self._next)

    async def released(self) -> Job:
        return await self.job(self._next)

    async def strange(self, number: int) -> Sequence[Job]:
        now = await self.clock()
        return [running_job(f"strange-{each}", now) for each in range(number)]


@pytest.fixture(params=["postgres18", "postgres18-asyncpg", "postgres15"])
async def exchange(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Exchange]:
    try:
        with servers.database(request.param) as database:
            exchange = Exchange(database.url)
            yield exchange
            await exchange.close()
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON {request.param}: {missing}")


class TestBackends(WitnessConformance):
    @pytest.fixture
    def stand(self, exchange: Exchange) -> Exchange:
        return exchange


async def test_a_worker_that_is_killed_has_released_its_job_at_once(exchange: Exchange) -> None:
    worker = exchange.connect(ESSAYS)
    job = await exchange.job(ESSAYS)
    pid = worker.info.backend_pid
    holding, said = await word(exchange.witness, job)
    assert (holding, (said or "").rpartition(" since ")[0]) == (Holding.HELD, f"backend {pid}")

    worker.close()
    await exchange.gone(pid)
    assert await word(exchange.witness, job) == (Holding.RELEASED, f"there is no backend of {ESSAYS}")


async def test_the_time_told_is_that_of_its_last_statement(exchange: Exchange) -> None:
    worker = exchange.connect(ESSAYS)
    job = await exchange.job(ESSAYS)
    before = await exchange.clock()
    worker.execute("SELECT 1")
    at = (await exchange.witness.ask([job], before))[job.id].at
    assert at is not None
    assert before < at < await exchange.clock()


async def test_by_its_number_within_a_longer_name(exchange: Exchange) -> None:
    witness = exchange.reading(by="pid", worker="{host}:{pid}")
    pid = exchange.connect(ESSAYS).info.backend_pid
    jobs = [await exchange.job(name) for name in (f"box:{pid}", f"box:0{pid}", "box:1", f"box-{pid}")]

    said = await witness.ask(jobs, await exchange.clock())

    assert [said[job.id].holding for job in jobs[:3]] == [Holding.HELD, Holding.HELD, Holding.RELEASED]
    assert jobs[3].id not in said


async def test_a_number_that_is_used_anew_is_another_worker(exchange: Exchange) -> None:
    """Item 13: the backend that has the number now began after the job."""
    witness = exchange.reading(by="pid")
    pid = exchange.connect(ESSAYS).info.backend_pid
    holding, said = await word(witness, await exchange.job(str(pid), age=timedelta(hours=1)))
    assert (holding, (said or "")[-37:]) == (Holding.RELEASED, "UTC, after the job: it is another one")


async def test_a_worker_that_connected_anew_has_let_its_job_go(exchange: Exchange) -> None:
    exchange.connect(ESSAYS)
    exchange.connect(ESSAYS)
    holding, _ = await word(exchange.witness, await exchange.job(ESSAYS, age=timedelta(hours=1)))
    assert holding is Holding.RELEASED


async def test_one_of_several_connections_of_a_name_that_is_old_enough_holds(exchange: Exchange) -> None:
    exchange.connect(ESSAYS)
    job = await exchange.job(ESSAYS)
    exchange.connect(ESSAYS)
    assert (await word(exchange.witness, job))[0] is Holding.HELD


async def test_a_connection_made_too_near_the_job_to_tell_is_unknown(exchange: Exchange) -> None:
    worker = exchange.connect(ESSAYS)
    began_at = worker.execute("SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
    assert began_at is not None
    job = replace(await exchange.job(ESSAYS), started_at=began_at[0] - timedelta(seconds=1))
    assert (await word(exchange.witness, job))[0] is Holding.UNKNOWN


async def test_a_name_is_compared_as_postgresql_keeps_it(exchange: Exchange) -> None:
    """It cuts a long name, and shows one with an umlaut in other letters."""
    long = "w" * 80
    exchange.connect(long)
    exchange.connect("wörker")
    long_job, umlaut = await exchange.job(long), await exchange.job("wörker")

    said = await exchange.witness.ask([long_job, umlaut], await exchange.clock())

    assert said[long_job.id].holding is Holding.HELD
    assert umlaut.id not in said


async def test_a_worker_in_another_database_is_unknown(exchange: Exchange) -> None:
    exchange.connect(ESSAYS, database="postgres")
    job = await exchange.job(ESSAYS)
    value = f"backend of {ESSAYS} is connected to another database"
    assert await word(exchange.witness, job) == (Holding.UNKNOWN, value)


async def test_a_role_that_may_not_see_others_convicts_nobody(exchange: Exchange) -> None:
    """Hidden is not gone."""
    role = f"plain_{exchange.engine.url.database}"
    async with exchange.engine.begin() as connection:
        await connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
    plain = Exchange(exchange.engine.url.set(username=role).render_as_string(hide_password=False))
    try:
        exchange.connect("theirs")
        exchange.connect("own", user=role)
        jobs = [await exchange.job(name) for name in ("own", "theirs", "nobodys")]
        said = [await word(plain.witness, job) for job in jobs]
        assert [holding for holding, _ in said] == [Holding.HELD, Holding.UNKNOWN, Holding.UNKNOWN]
        assert [value for _, value in said[1:]] == [
            "backend of theirs is hidden from this role",
            "this role can't see all backends: it lacks pg_read_all_stats",
        ]
        async with exchange.engine.begin() as connection:
            await connection.exec_driver_sql(f"GRANT pg_read_all_stats TO {role}")
        assert await words(plain.witness, jobs) == [Holding.HELD, Holding.HELD, Holding.RELEASED]
    finally:
        await plain.close()
        await exchange.close()
        async with exchange.engine.begin() as connection:
            await connection.exec_driver_sql(f"DROP ROLE {role}")
        await exchange.engine.dispose()


async def test_ten_thousand_jobs_cost_one_statement(exchange: Exchange) -> None:
    exchange.connect(ESSAYS)
    first = await exchange.job(ESSAYS)
    jobs = [first, *(replace(first, id=-number, worker=f"nobody-{number}") for number in range(9_999))]
    with statements_of(exchange.engine) as ran:
        said = await words(exchange.witness, jobs)
    assert said == [Holding.HELD, *[Holding.RELEASED] * 9_999]
    assert len([each for each in ran if "pg_stat_activity" in each]) == 1
    assert len(ran) <= 2


async def test_any_other_database_is_refused(sqlite_database: Database) -> None:
    engine = open_engine(sqlite_database.url, create=True)
    with pytest.raises(ConfigurationError, match="pg_stat_activity, which only PostgreSQL has"):
        Backends(BackendsSettings(by="pid"), EngineConnections(engine))
    await engine.dispose()
