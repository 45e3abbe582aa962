"""The worker kit: exclusive claims, signs of life, fenced ends, and a runner, on every database."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs import COLUMNS, declared, jobs_table, make_tables, open_bench
from tests.servers import EACH_KIND
from tests.test_races import POSTGRES, ROW_LOCKING, elsewhere, host, on_databases
from unstick.config import SourceSettings
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import (
    ConfigurationError,
    LateFinishError,
    LeaseLostError,
    LedgerMissingError,
    SourceUnavailableError,
)
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, rule
from unstick.domain.recovery import Action, Outcome, Ruled
from unstick.hosting import host_settings
from unstick.kit import enqueue, open_worker
from unstick.pipeline.looking import take_look
from unstick.pipeline.observing import observe
from unstick.pipeline.report import report_stuck
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.sql import source as source_module
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.ledger import SqlLedger
from unstick.sql.mapping import JobTable
from unstick.sql.queue import SqlJobQueue
from unstick.sql.source import SqlSource
from unstick.testing.conformance import batch_of
from unstick.wiring import worker_on
from unstick.worker import Heartbeat, Heartbeats, Registry, Runner, Worker, this_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.domain.job import JobId
    from unstick.domain.work import ClaimedJob

DATABASES = (*EACH_KIND, "postgres18-asyncpg")  # whose parameters are of the types it thinks

BEAT = timedelta(milliseconds=50)
SELDOM = timedelta(seconds=10)
LEASE = timedelta(seconds=30)
YEARS_AGO = datetime(2020, 1, 1, tzinfo=UTC)
OWN = JobTable.from_settings(SourceSettings())


@dataclass
class Shop:
    """Unstick's own jobs table, and what works on it."""

    url: str
    engine: AsyncEngine
    jobs: JobTable = OWN

    @property
    def watched(self) -> Watched:
        connections = EngineConnections(self.engine)
        source = SqlSource("main", self.jobs, connections)
        return Watched(source=source, ledger=SqlLedger(connections), policy=Policy())

    @property
    def watched_at_once(self) -> Watched:
        """Whose retries wait for next to nothing."""
        return replace(self.watched, policy=Policy(retry_backoff=timedelta(milliseconds=1)))

    @property
    def queue(self) -> SqlJobQueue:
        return SqlJobQueue("main", self.jobs, EngineConnections(self.engine))

    def worker(self, *, every: timedelta = SELDOM, lease: timedelta = LEASE) -> Any:  # noqa: ANN401
        return worker_on("main", self.url, self.jobs, every=every, lease=lease)

    async def put(self, kind: str = "essay", payload: object = None, **options: Any) -> JobId:  # noqa: ANN401
        async with AsyncSession(self.engine) as session:
            queued = await enqueue(session, kind, payload, jobs=self.jobs, **options)
            await session.commit()
            return queued.job_id

    async def row(self, job_id: JobId) -> sa.RowMapping:
        async with self.engine.connect() as connection:
            return (await connection.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id))).mappings().one()

    async def execute(self, statement: sa.Executable) -> Any:  # noqa: ANN401
        async with self.engine.begin() as connection:
            return await connection.execute(statement)

    async def sweep(self, action: Action = Action.RETRY) -> Any:  # noqa: ANN401
        return await sweep(self.watched, SweepOrder(actor="test", action=action))

    async def expire_leases(self) -> None:
        """Let every lease have run out a second ago."""
        now = await self.watched.source.clock()
        await self.execute(sa.update(tables.leases).values(expires_at=now - timedelta(seconds=1)))

    async def holds(self, job_id: JobId, **values: object) -> bool:
        row = await self.row(job_id)
        return all(row[name] == value for name, value in values.items())

    async def has_lease(self, worker: str) -> bool:
        return bool((await self.execute(sa.select(tables.leases.c.id).where(tables.leases.c.id == worker))).all())

    async def vouched_for(self) -> set[str]:
        """Return the workers whose leases hold."""
        now = await self.watched.source.clock()
        return set(
            (await self.execute(sa.select(tables.leases.c.id).where(tables.leases.c.expires_at > now))).scalars()
        )

    async def late(self) -> list[Any]:
        return list(await self.execute(sa.select(tables.late_finishes)))


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    engine = open_engine(database.url, create=True)
    if database.backend == "sqlite":
        await use_write_ahead_log(engine)
    await make_tables(engine, own_jobs=True)
    yield Shop(database.url, engine)
    await engine.dispose()


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - the condition is the database's
            await asyncio.sleep(0.01)


def finish_later(shop: Shop) -> Callable[[JobId], Callable[[], Coroutine[Any, Any, bool]]]:
    def of(job_id: JobId) -> Callable[[], Coroutine[Any, Any, bool]]:
        async def over() -> bool:
            return (await shop.row(job_id))["completed_at"] is not None

        return over

    return of


# Enqueueing


async def test_a_job_and_the_callers_row_commit_together_or_not_at_all(shop: Shop) -> None:
    """The first user's race: a row was committed, and the job it stood for was never scheduled."""
    async with AsyncSession(shop.engine) as session:
        await enqueue(session, "essay", {"n": 1}, jobs=OWN)
        await session.rollback()
    async with AsyncSession(shop.engine) as session:
        kept = await enqueue(session, "essay", {"n": 2}, jobs=OWN)
        await session.commit()

    rows = (await shop.execute(sa.select(tables.jobs))).all()
    assert [(row.id, row.status, row.payload, row.attempt) for row in rows] == [(kept.job_id, "queued", {"n": 2}, 0)]
    age = await shop.watched.source.clock() - rows[0].created_at
    assert abs(age) < timedelta(seconds=5)


async def test_a_key_is_queued_once_by_however_many_callers(shop: Shop) -> None:
    async def ask() -> Any:  # noqa: ANN401
        async with AsyncSession(shop.engine) as session:
            queued = await enqueue(session, "essay", key="order-7", jobs=OWN)
            await session.commit()
            return queued

    answers = await asyncio.gather(*(ask() for _ in range(5)))

    assert len({answer.job_id for answer in answers}) == 1
    assert [answer.created for answer in answers].count(True) == 1
    assert (await shop.execute(sa.select(sa.func.count()).select_from(tables.jobs))).scalar_one() == 1


async def test_a_host_table_takes_jobs_by_its_mapping_and_says_what_it_has_no_column_for(database: Database) -> None:
    table = jobs_table(sa.Column("user_id", sa.String(20), nullable=False), sa.Column("prompt", sa.Text))
    jobs = declared(table, columns=COLUMNS | {"payload": "prompt"})
    bench = await open_bench(database, table, jobs)
    async with AsyncSession(bench.engine) as session:
        queued = await enqueue(session, "quiz", ["a"], values={"user_id": "ada"}, wait=timedelta(hours=1), jobs=jobs)
        with pytest.raises(ConfigurationError, match="'key'"):
            await enqueue(session, "quiz", key="k", values={"user_id": "ada"}, jobs=jobs)
        await session.commit()

    row = await bench.row(queued.job_id)
    await bench.close()
    assert (row["status"], row["job_type"], row["user_id"], row["prompt"]) == ("queued", "quiz", "ada", '["a"]')
    assert row["scheduled_at"] is not None


# Claims


async def test_a_job_is_claimed_by_one_worker_however_many_ask(shop: Shop) -> None:
    ids = [await shop.put() for _ in range(12)]
    async with shop.worker() as one, shop.worker() as other:
        taken = await asyncio.gather(*(each.claim(limit=3) for each in (one, other, one, other, one, other)))

        claimed = [job.id for jobs in taken for job in jobs]
        rest = [job.id for jobs in (await one.claim(limit=12), await other.claim(limit=12)) for job in jobs]
    assert len(claimed) == len(set(claimed))
    assert sorted(claimed + rest) == sorted(ids)


async def test_a_claim_takes_what_is_due_of_the_kinds_asked_for_oldest_first(shop: Shop) -> None:
    first, second = await shop.put("essay"), await shop.put("essay")
    later, other = await shop.put("essay", wait=timedelta(hours=1)), await shop.put("quiz")
    async with shop.worker() as worker:
        claimed = await worker.claim(limit=5, kinds=["essay"])
        (quiz,) = await worker.claim(limit=5)
        none = await worker.claim_one(later)

    assert [job.id for job in claimed] == [first, second]
    assert quiz.id == other
    assert none is None
    row = await shop.row(first)
    assert (row["status"], row["worker"], row["token"], row["attempt"]) == ("running", worker.identity.name, 1, 0)
    assert row["started_at"] is not None


async def test_a_job_that_is_asked_for_by_its_id_is_claimed_and_no_other(shop: Shop) -> None:
    one, wanted, other = [await shop.put() for _ in range(3)]
    async with shop.worker() as worker:
        job = await worker.claim_one(wanted)
        assert job is not None
        assert job.id == wanted
        assert await worker.claim_one(wanted) is None

    assert [(await shop.row(job_id))["status"] for job_id in (one, wanted, other)] == ["queued", "running", "queued"]


async def test_the_oldest_id_is_claimed_first_wherever_its_row_lies(database: Database) -> None:
    """Neither the order in which rows were written nor that of an index is the order of claims."""
    bench = await open_bench(database)
    now = await bench.source.clock()
    for place, job_id in enumerate((3, 1, 2)):
        began = bench.store(now - timedelta(hours=9 - place))
        await bench.put({"id": job_id, "status": "queued", "started_at": began})
    async with worker_on("main", database.url, bench.jobs, every=SELDOM, lease=LEASE) as worker:
        claimed = await worker.claim(limit=2)

    await bench.close()
    assert [job.id for job in claimed] == [1, 2]


@on_databases(*ROW_LOCKING)
async def test_a_claim_passes_over_a_job_that_somebody_holds(shop: Shop) -> None:
    """K3: and doesn't wait for it."""
    held, free = [await shop.put() for _ in range(2)]
    async with shop.worker() as worker, host(shop) as app, app.connect() as holder:
        await holder.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == held).with_for_update())
        while_held = await worker.claim(limit=2)
        await holder.rollback()
        after = await worker.claim(limit=2)

    assert [[job.id for job in claimed] for claimed in (while_held, after)] == [[free], [held]]


@on_databases(*POSTGRES)
async def test_a_job_whose_key_alone_is_held_is_claimed_and_beats(shop: Shop) -> None:
    """K4: a host that writes a line about a job holds the job's key; neither a claim nor a beat changes that."""
    job_id = await shop.put()
    await shop.execute(sa.text("CREATE TABLE lines (job_id bigint REFERENCES jobs)"))
    async with shop.worker(every=BEAT) as worker, host(shop) as app, app.connect() as writer:
        await writer.execute(sa.text(f"INSERT INTO lines VALUES ({job_id})"))
        (job,) = await worker.claim()
        async with worker.heartbeat(job) as beat:
            beat.progress(42)
            await until(lambda: shop.holds(job_id, progress=42))
        await worker.finish(job)
        await writer.rollback()

    assert (await shop.row(job_id))["status"] == "completed"


async def test_a_queued_job_that_is_over_is_not_claimed(shop: Shop) -> None:
    """The contract's rule: what has a completion time is over, whatever its state says."""
    job_id = await shop.put()
    now = await shop.watched.source.clock()
    await shop.execute(sa.update(tables.jobs).values(completed_at=now))
    async with shop.worker() as worker:
        assert not await worker.claim()

    assert (await shop.row(job_id))["status"] == "queued"


async def test_each_claim_has_a_token_larger_than_all_before(database: Database) -> None:
    """R5: or a late end of the attempt before last would fit; a table's own rows may have none yet."""
    table = jobs_table(sa.Column("token", sa.Integer))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"token": "token"}))
    await bench.execute("INSERT INTO ai_generation_jobs (status, attempt) VALUES ('queued', 0)")
    tokens = []
    async with worker_on("main", database.url, bench.jobs, every=BEAT, lease=LEASE) as worker:
        for _ in range(3):
            (job,) = await worker.claim()
            tokens.append((await bench.row(job.id))["token"])
            await worker.requeue(job, counted=False)
            await bench.execute("UPDATE ai_generation_jobs SET scheduled_at = NULL")
    await bench.close()

    assert tokens[0] == 1
    assert tokens[0] < tokens[1] < tokens[2]


def test_a_restarted_process_is_another_worker() -> None:
    """Item 13 of the users' list: a name that survives a restart hides the jobs the first one left."""
    one, other = this_process(), this_process()

    assert (one.host, one.pid) == (other.host, other.pid)
    assert one.name != other.name


async def test_workers_that_begin_together_all_get_their_lease(shop: Shop) -> None:
    """K4: after a deploy each strikes old leases and makes its own; MariaDB's gap locks must not set them at odds."""
    workers = [this_process() for _ in range(40)]

    await asyncio.gather(*(shop.queue.join(worker, LEASE) for worker in workers))

    assert await shop.vouched_for() == {worker.name for worker in workers}


# Ends


@pytest.mark.parametrize("ended", ["finish", "fail", "requeue"])
async def test_a_late_end_is_refused_recorded_and_told(shop: Shop, ended: str) -> None:
    """A zombie's result never lands on a new attempt (section 1, item 4; R5, R6)."""
    job_id = await shop.put()
    async with shop.worker() as zombie, shop.worker() as worker:
        (stale,) = await zombie.claim()
        await shop.execute(sa.update(tables.leases).where(tables.leases.c.id == zombie.identity.name).values(
            expires_at=await shop.watched.source.clock() - timedelta(seconds=1)))  # fmt: skip
        report = await shop.sweep()
        assert report.tally.of(outcome=Outcome.APPLIED, reason=Reason.LEASE_EXPIRED) == 1
        await shop.execute(sa.update(tables.jobs).values(scheduled_at=None))
        (fresh,) = await worker.claim()
        before = await shop.row(job_id)
        late: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "finish": lambda: zombie.finish(stale, {"progress": 100}),
            "fail": lambda: zombie.fail(stale, "too late"),
            "requeue": lambda: zombie.requeue(stale),
        }

        with pytest.raises(LateFinishError, match="taken"):
            await late[ended]()

        assert await shop.row(job_id) == before
        await worker.finish(fresh, {"progress": 100})
    row = await shop.row(job_id)
    assert (row["status"], row["success"], row["progress"], row["attempt"]) == ("completed", True, 100, 1)
    recorded = [(each.job_id, each.worker, each.ended) for each in await shop.late()]
    told = {"finish": "succeeded", "fail": "failed"}
    assert recorded == ([(str(job_id), zombie.identity.name, told[ended])] if ended in told else [])


async def test_an_end_is_written_once_and_another_one_is_late(shop: Shop) -> None:
    """No job is final twice (R3)."""
    await shop.put()
    async with shop.worker() as worker:
        (job,) = await worker.claim()
        await worker.finish(job)
        with pytest.raises(LateFinishError):
            await worker.fail(job, "after all")

    assert (await shop.row(job.id))["status"] == "completed"


async def test_an_end_whose_acknowledgement_was_lost_is_not_late_when_it_is_written_again(shop: Shop) -> None:
    for _ in range(2):
        await shop.put()
    async with shop.worker() as worker:
        finished, failed = await worker.claim(limit=2)
        for _ in range(2):
            await worker.finish(finished)
            await worker.fail(failed, "no such\0 model")

    assert (await shop.row(finished.id))["status"] == "completed"
    assert (await shop.row(failed.id))["error_message"] == "no such model"
    assert await shop.late() == []


async def test_a_job_that_was_failed_by_a_sweep_is_not_taken_for_failed_by_its_worker(shop: Shop) -> None:
    await shop.put()
    async with shop.worker() as worker:
        (job,) = await worker.claim()
        await shop.expire_leases()
        await shop.sweep(Action.MARK_FAILED)
        with pytest.raises(LateFinishError):
            await worker.fail(job, "no such model")

    assert [each.ended for each in await shop.late()] == ["failed"]


async def test_an_old_attempts_end_leaves_the_signs_of_life_of_a_new_one(shop: Shop) -> None:
    """A zombie's release must not strip the new owner, even in one process (R6)."""
    await shop.put()
    async with shop.worker(every=BEAT) as worker:
        (old,) = await worker.claim()
        await shop.execute(sa.update(tables.jobs).values(status="queued"))
        (new,) = await worker.claim()
        async with worker.heartbeat(new) as beat:
            with pytest.raises(LateFinishError):
                await worker.finish(old)
            beat.progress(70)
            await until(lambda: shop.holds(new.id, progress=70))
        await worker.finish(new)

    assert (await shop.row(new.id))["status"] == "completed"


async def test_a_worker_whose_lease_was_struck_is_vouched_for_again_and_keeps_its_jobs(shop: Shop) -> None:
    """It doesn't beat nothing for ever while its jobs look orphaned (L10)."""
    await shop.put()
    async with shop.worker(every=BEAT) as worker:
        (job,) = await worker.claim()
        async with worker.heartbeat(job):
            await shop.execute(sa.delete(tables.leases))
            await until(lambda: shop.has_lease(worker.identity.name))
            await shop.execute(sa.update(tables.jobs).values(started_at=None, updated_at=YEARS_AGO))
            assert (await report_stuck(shop.watched)).counts.total == 0
        await worker.finish(job)

    assert (await shop.row(job.id))["status"] == "completed"


@pytest.mark.parametrize("left", ["claimed", "held"])
async def test_a_job_that_its_worker_neither_runs_nor_ends_is_found_though_the_worker_lives(
    shop: Shop, left: str
) -> None:
    """Its code raised, or never began: the lease of a living process must not vouch for it for ever (L6, L7)."""
    await shop.put()
    async with shop.worker(every=BEAT, lease=2 * BEAT) as worker:
        (job,) = await worker.claim()
        if left == "held":
            with pytest.raises(RuntimeError, match="broken"):
                async with worker.heartbeat(job):
                    raise RuntimeError("broken")
        await until(lambda: shop.holds(job.id, worker=None))
        await shop.execute(sa.update(tables.jobs).values(started_at=YEARS_AGO, updated_at=None))
        report = await report_stuck(shop.watched)
        assert [finding.diagnosis.reason for finding in report.running] == [Reason.SILENT]


async def test_a_job_that_was_let_go_is_still_its_workers_to_end_until_somebody_takes_it(shop: Shop) -> None:
    for _ in range(2):
        await shop.put()
    async with shop.worker(every=BEAT, lease=2 * BEAT) as worker:
        slow, taken = await worker.claim(limit=2)
        await until(lambda: shop.holds(slow.id, worker=None))
        await until(lambda: shop.holds(taken.id, worker=None))
        await worker.finish(slow)
        await shop.execute(sa.update(tables.jobs).where(tables.jobs.c.id == taken.id).values(worker="another"))
        with pytest.raises(LateFinishError):
            await worker.finish(taken)

    rows = [await shop.row(job.id) for job in (slow, taken)]
    assert [(row["status"], row["worker"]) for row in rows] == [("completed", slow.worker), ("running", "another")]


async def test_leases_that_ran_out_long_ago_are_forgotten_and_younger_ones_kept(shop: Shop) -> None:
    now = await shop.watched.source.clock()
    for name, age in (("young", timedelta(days=6)), ("old", timedelta(days=8))):
        row = {"id": name, "host": "h", "pid": 1, "began_at": now - age, "beat_at": now - age, "expires_at": now - age}
        await shop.execute(sa.insert(tables.leases).values(row))
    async with shop.worker() as worker:
        names = set((await shop.execute(sa.select(tables.leases.c.id))).scalars())
    assert names == {"young", worker.identity.name}


@pytest.mark.parametrize("lacking", [set(), {"token"}, {"token", "attempt"}, {"token", "attempt", "worker"}])
async def test_a_host_table_fences_by_whatever_it_has(database: Database, lacking: set[str]) -> None:
    """R2, R5: token, attempt, worker, or else the start of the attempt."""
    extra: dict[str, Any] = {"token": sa.Integer(), "worker": sa.String(200)}
    table = jobs_table(*(sa.Column(name, type_) for name, type_ in extra.items()))
    columns = {key: name for key, name in (COLUMNS | {name: name for name in extra}).items() if key not in lacking}
    jobs = declared(table, columns=columns)
    bench = await open_bench(database, table, jobs)
    if database.backend == "sqlite":
        await use_write_ahead_log(bench.engine)
    await bench.execute("INSERT INTO ai_generation_jobs (status, attempt) VALUES ('queued', 0)")
    async with worker_on("main", database.url, jobs, every=BEAT, lease=LEASE) as one:
        (stale,) = await one.claim()
        await one.requeue(stale, counted=True)
        await bench.execute("UPDATE ai_generation_jobs SET scheduled_at = NULL")
        (fresh,) = await one.claim()
        with pytest.raises(LateFinishError):
            await one.finish(stale)
        await one.finish(fresh)

    rows = await bench.rows()
    await bench.close()
    assert [row["status"] for row in rows] == ["completed"]


async def test_a_token_that_grows_fences_by_itself_though_the_start_is_moved(database: Database) -> None:
    """A host may write the start anew; what is no attempt's fence must not cost the job its end."""
    table = jobs_table(sa.Column("token", sa.Integer))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"token": "token"}))
    await bench.put({"status": "queued", "started_at": None})
    async with worker_on("main", database.url, bench.jobs, every=SELDOM, lease=LEASE) as worker:
        (job,) = await worker.claim()
        await bench.execute("UPDATE ai_generation_jobs SET started_at = created_at")
        await worker.finish(job)

    assert [row["status"] for row in await bench.rows()] == ["completed"]
    await bench.close()


async def test_a_table_without_starts_fences_by_what_else_it_has(database: Database) -> None:
    table = jobs_table()
    columns = {key: name for key, name in COLUMNS.items() if key != "started_at"}
    bench = await open_bench(database, table, declared(table, columns=columns))
    await bench.put({"status": "queued", "started_at": None})
    async with worker_on("main", database.url, bench.jobs, every=SELDOM, lease=LEASE) as worker:
        (job,) = await worker.claim()
        await bench.execute("UPDATE ai_generation_jobs SET attempt = attempt + 1")
        with pytest.raises(LateFinishError):
            await worker.finish(job)

    assert [row["status"] for row in await bench.rows()] == ["running"]
    await bench.close()


@pytest.mark.parametrize(
    ("lacking", "nullable"), [("", True), ("", False), ("scheduled_at", True), ("scheduled_at", False)]
)
async def test_a_job_that_is_handed_back_waits_anew_by_whatever_time_its_table_has(
    database: Database, lacking: str, nullable: bool
) -> None:
    """B3: or the next sweep would find it stuck at once; and no null goes where the table takes none."""
    table = jobs_table()
    table.c.started_at.nullable = nullable
    columns = {key: name for key, name in COLUMNS.items() if key != lacking}
    bench = await open_bench(database, table, declared(table, columns=columns))
    await bench.put({"status": "queued"})
    async with worker_on("main", database.url, bench.jobs, every=SELDOM, lease=LEASE) as worker:
        (job,) = await worker.claim()
        await worker.requeue(job)
    report = await bench.sweep()

    (row,) = await bench.rows()
    await bench.close()
    assert row["status"] == "queued"
    assert (row["started_at"] is None) == (nullable and not lacking)
    assert report.tally.of() == 0


async def test_a_job_that_was_never_counted_has_had_one_attempt_when_it_is_handed_back(database: Database) -> None:
    """B1: an attempt that nobody wrote down was none."""
    table = jobs_table()
    table.c.attempt.nullable, table.c.attempt.server_default = True, None
    bench = await open_bench(database, table)
    await bench.put({"status": "queued", "started_at": None})
    async with worker_on("main", database.url, bench.jobs, every=SELDOM, lease=LEASE) as worker:
        (job,) = await worker.claim()
        await worker.requeue(job, counted=True)

    assert [row["attempt"] for row in await bench.rows()] == [1]
    await bench.close()


async def test_each_end_says_whether_it_was_a_success_and_a_success_clears_the_error(shop: Shop) -> None:
    first, second = [await shop.put() for _ in range(2)]
    async with shop.worker() as worker:
        await worker.requeue((await worker.claim())[0], error="no such model")
        waiting = await shop.row(first)
        await worker.finish((await worker.claim())[0])
        await worker.fail((await worker.claim())[0], "no such model")

    succeeded, failed = await shop.row(first), await shop.row(second)
    assert (waiting["status"], waiting["error_message"]) == ("queued", "no such model")
    assert (succeeded["status"], succeeded["success"], succeeded["error_message"]) == ("completed", True, None)
    assert (failed["status"], failed["success"], failed["error_message"]) == ("failed", False, "no such model")


async def test_a_job_that_is_handed_back_is_not_due_before_its_wait_is_over(shop: Shop) -> None:
    job_id = await shop.put()
    async with shop.worker() as worker:
        await worker.requeue((await worker.claim())[0], wait=timedelta(hours=1))
        now = await shop.watched.source.clock()
        assert not await worker.claim()

    assert timedelta(minutes=59) < (await shop.row(job_id))["scheduled_at"] - now <= timedelta(hours=1)


async def test_an_end_of_a_job_that_somebody_else_ended_is_late_whatever_its_state_says(shop: Shop) -> None:
    """R3: a host may set the completion time and leave the state."""
    await shop.put()
    async with shop.worker() as worker:
        (job,) = await worker.claim()
        now = await shop.watched.source.clock()
        await shop.execute(sa.update(tables.jobs).values(completed_at=now))
        with pytest.raises(LateFinishError):
            await worker.finish(job)

    assert (await shop.row(job.id))["status"] == "running"


# Signs of life


async def test_a_job_whose_worker_lives_is_never_recovered_however_old(shop: Shop) -> None:
    """Section 1, item 1: a healthy long job; the lease acquits what age accuses."""
    job_id = await shop.put()
    async with shop.worker() as worker:
        (job,) = await worker.claim()
        async with worker.heartbeat(job):
            old = await shop.watched.source.clock() - timedelta(hours=5)
            await shop.execute(sa.update(tables.jobs).values(started_at=old, updated_at=old))
            report, stuck = await shop.sweep(), await report_stuck(shop.watched)

    assert (report.tally.of(), stuck.counts.total) == (0, 0)
    assert (await shop.row(job_id))["status"] == "running"


async def test_a_job_whose_lease_ran_out_is_recovered_at_once_however_young(shop: Shop) -> None:
    """Half an hour's silence is for those who can't say more; the finding tells who stopped beating and when."""
    job_id = await shop.put()
    async with shop.worker() as worker:
        await worker.claim()
        await shop.expire_leases()

        stuck = await report_stuck(shop.watched)
        report = await shop.sweep(Action.MARK_FAILED)

    (finding,) = stuck.running
    assert finding.diagnosis.reason is Reason.LEASE_EXPIRED
    assert "its lease ran out" in finding.diagnosis.sentence
    assert [each.holding for each in finding.evidence if each.witness == "lease"] == ["released"]
    assert report.tally.of(reason=Reason.LEASE_EXPIRED, outcome=Outcome.APPLIED) == 1
    row = await shop.row(job_id)
    assert row["status"] == "failed"
    assert row["error_message"].startswith("Job stuck in running for ")
    assert row["error_message"].endswith(" Automatically cleaned up.")


async def test_a_job_whose_worker_has_no_lease_is_judged_by_its_age_alone(shop: Shop) -> None:
    """L3: workers without the kit stand beside those with it."""
    young, old = [await shop.put() for _ in range(2)]
    now = await shop.watched.source.clock()
    for job_id, age in ((young, timedelta(minutes=29)), (old, timedelta(minutes=31))):
        claim = sa.update(tables.jobs).where(tables.jobs.c.id == job_id)
        await shop.execute(claim.values(status="running", worker="plain", started_at=now - age, updated_at=now - age))

    report = await shop.sweep(Action.MARK_FAILED)

    assert (report.tally.of(), report.tally.of(reason=Reason.SILENT, outcome=Outcome.APPLIED)) == (1, 1)
    assert [(await shop.row(job_id))["status"] for job_id in (young, old)] == ["running", "failed"]


async def test_what_age_accuses_too_is_said_to_have_lost_its_lease_where_it_has(shop: Shop) -> None:
    """A ruling by age says nothing of leases; it is given for however few jobs here."""
    await shop.put()
    connections = EngineConnections(shop.engine)
    ruled = replace(shop.watched, source=SqlSource("main", shop.jobs, connections, ruled_from=1))
    async with shop.worker() as worker:
        await worker.claim()
        await shop.expire_leases()
        old = await shop.watched.source.clock() - timedelta(hours=5)
        await shop.execute(sa.update(tables.jobs).values(started_at=old, updated_at=old))
        report = await sweep(ruled, SweepOrder(actor="test", action=Action.MARK_FAILED))

    assert (report.tally.of(), report.tally.of(reason=Reason.LEASE_EXPIRED, outcome=Outcome.APPLIED)) == (1, 1)


async def test_each_job_is_said_to_be_silent_since_its_own_workers_last_beat(shop: Shop) -> None:
    """R2: several leases ran out, and one of them is nobody's who is accused."""
    ids = [await shop.put() for _ in range(3)]
    now = (await shop.watched.source.clock()).replace(microsecond=0)
    beats: dict[JobId, datetime] = {}
    async with shop.worker() as one, shop.worker() as other:
        for place, worker in enumerate((one, other), start=1):
            (job,) = await worker.claim()
            beats[job.id] = now - timedelta(minutes=place)
            of = sa.update(tables.leases).where(tables.leases.c.id == worker.identity.name)
            await shop.execute(of.values(beat_at=beats[job.id], expires_at=beats[job.id]))
        old = now - timedelta(hours=1)
        plain = {"status": "running", "worker": "plain", "started_at": old, "updated_at": old}
        await shop.execute(sa.update(tables.jobs).where(tables.jobs.c.id == ids[2]).values(plain))
        look = await take_look(shop.watched)
        pages = [page async for page in shop.watched.source.suspects(look)]
        stuck = await report_stuck(shop.watched)

    found = {each.job_id: (each.since, each.lease_expired) for page in pages for each in page.suspects}
    assert found == {job_id: (at, True) for job_id, at in beats.items()} | {ids[2]: (old, False)}
    assert {finding.job.id: finding.diagnosis.reason for finding in stuck.running} == {
        ids[0]: Reason.LEASE_EXPIRED, ids[1]: Reason.LEASE_EXPIRED, ids[2]: Reason.SILENT,
    }  # fmt: skip


async def test_jobs_whose_lease_ran_out_are_in_no_rulings_way(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """P1: they are looked at one by one, and a stride full of them doesn't keep the others from being ruled on."""
    monkeypatch.setattr(source_module, "STRIDE", 2)
    ids = [await shop.put() for _ in range(4)]
    source = SqlSource("main", shop.jobs, EngineConnections(shop.engine), ruled_from=1)
    async with shop.worker() as worker:
        await worker.claim(limit=2)
        await shop.expire_leases()
        old = await shop.watched.source.clock() - timedelta(hours=5)
        plain = sa.update(tables.jobs).where(tables.jobs.c.id.in_(ids[2:]))
        await shop.execute(plain.values(status="running", worker="plain"))
        await shop.execute(sa.update(tables.jobs).values(started_at=old, updated_at=old))
        look = await take_look(shop.watched)
        ruling = rule(JobState.RUNNING, look, Policy(), Action.MARK_FAILED)
        assert ruling is not None
        told = [each async for each in source.recover_by_rule(ruling, look, 1)]

    assert told == [Ruled(recovered=2, left=False), Ruled(recovered=0, left=True)]
    assert [(await shop.row(job_id))["status"] for job_id in ids] == ["running", "running", "failed", "failed"]


async def test_a_lease_is_over_at_the_instant_it_names_and_not_before(shop: Shop) -> None:
    await shop.put()
    async with shop.worker() as worker:
        await worker.claim()
        now = await shop.watched.source.clock()
        ends = now.replace(microsecond=0)
        await shop.execute(sa.update(tables.leases).values(expires_at=ends))
        source, look = shop.watched.source, await take_look(shop.watched)

        at_its_end = [page async for page in source.suspects(replace(look, taken_at=ends))]
        before_it = [page async for page in source.suspects(replace(look, taken_at=ends - timedelta(milliseconds=1)))]

    assert [suspect.lease_expired for page in at_its_end for suspect in page.suspects] == [True]
    assert before_it == []


async def test_a_lease_renewed_between_look_and_write_saves_its_jobs(shop: Shop) -> None:
    """R1, R4: the write asks the lease again."""
    await shop.put()
    async with shop.worker() as worker:
        await worker.claim()
        await shop.expire_leases()
        watched = shop.watched
        look = await take_look(watched)
        (page,) = [page async for page in watched.source.suspects(look)]
        await shop.execute(sa.update(tables.leases).values(expires_at=look.taken_at + LEASE))
        result = await watched.source.recover(batch_of(page.suspects, look))

    assert result.applied == frozenset()


async def test_a_job_that_was_taken_learns_it_within_a_beat(shop: Shop) -> None:
    """The coroutine is cancelled and the error raised in its own code, in the block's place."""
    job_id = await shop.put()
    async with shop.worker(every=BEAT) as worker:
        (job,) = await worker.claim()

        async def work() -> None:
            async with worker.heartbeat(job):
                await shop.execute(sa.update(tables.jobs).values(token=99))
                await asyncio.wait_for(asyncio.Event().wait(), 20)

        working = asyncio.create_task(work())
        with pytest.raises(LeaseLostError, match=str(job_id)):
            await working
        assert working.cancelling() == 0


async def test_a_job_in_a_thread_learns_that_it_was_taken_where_it_asks(shop: Shop) -> None:
    await shop.put()
    async with shop.worker(every=BEAT) as worker:
        (job,) = await worker.claim()
        began = threading.Event()

        def work() -> None:
            with worker.heartbeat(job) as beat:
                began.set()
                while True:
                    beat.progress(1)

        working = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.to_thread(began.wait)
        await shop.execute(sa.update(tables.jobs).values(token=99))
        with pytest.raises(LeaseLostError):
            await asyncio.wait_for(working, 20)


async def test_a_cancellation_from_elsewhere_stays_a_cancellation(shop: Shop) -> None:
    await shop.put()
    async with shop.worker() as worker:
        (job,) = await worker.claim()

        async def work() -> None:
            async with worker.heartbeat(job):
                await asyncio.Event().wait()

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working


async def test_beats_go_on_while_a_job_blocks_the_loop(shop: Shop) -> None:
    """L8: a busy job is no dead one; the beats have a thread, a loop and a connection of their own."""
    await shop.put()
    seen: list[Any] = []

    async def look() -> None:
        async with host(shop) as app, app.connect() as connection:
            seen.append((await connection.execute(sa.select(tables.leases.c.beat_at))).scalar_one())

    async with shop.worker(every=BEAT, lease=LEASE) as worker:
        (job,) = await worker.claim()
        async with worker.heartbeat(job):
            elsewhere(look)
            _burn(0.5)
            elsewhere(look)  # before this loop turns again

    before, after = seen
    assert after > before


def _burn(seconds: float) -> None:
    from time import process_time  # noqa: PLC0415

    until_then = process_time() + seconds
    while process_time() < until_then:
        pass


async def test_progress_rides_along_with_the_beats(shop: Shop) -> None:
    job_id = await shop.put()
    async with shop.worker(every=BEAT) as worker:
        (job,) = await worker.claim()
        async with worker.heartbeat(job) as beat:
            beat.progress(42)

            async def arrived() -> bool:
                return bool((await shop.row(job_id))["progress"] == 42)

            await until(arrived)


async def test_a_job_says_nothing_for_another_of_its_worker(shop: Shop) -> None:
    """Two jobs of one worker, claimed together, are fenced by the same values but for their ids."""
    said, silent = [await shop.put() for _ in range(2)]
    async with shop.worker(every=BEAT) as worker:
        jobs = {job.id: job for job in await worker.claim(limit=2)}
        before = await shop.row(silent)
        async with worker.heartbeat(jobs[said]) as beat:
            beat.progress(42)

            async def arrived() -> bool:
                return bool((await shop.row(said))["progress"] == 42)

            await until(arrived)
        assert await shop.row(silent) == before


async def test_a_beat_without_progress_leaves_what_was_told_before(database: Database) -> None:
    """In a table without leases a beat writes to the job's own row."""
    table = jobs_table(sa.Column("progress", sa.Integer))
    jobs = declared(table, columns=COLUMNS | {"progress": "progress"})
    bench = await open_bench(database, table, jobs)
    if database.backend == "sqlite":
        await use_write_ahead_log(bench.engine)
    await bench.execute("INSERT INTO ai_generation_jobs (status, attempt, progress) VALUES ('queued', 0, 7)")
    async with worker_on("main", database.url, jobs, every=BEAT, lease=LEASE) as worker:
        (job,) = await worker.claim()
        seen = [(await bench.row(job.id))["updated_at"]]

        async def moved() -> bool:
            return bool((await bench.row(job.id))["updated_at"] > seen[-1])

        async def arrived() -> bool:
            return bool((await bench.row(job.id))["progress"] == 42)

        async with worker.heartbeat(job) as beat:
            await until(moved)
            assert (await bench.row(job.id))["progress"] == 7
            beat.progress(42)
            await until(arrived)
            seen.append((await bench.row(job.id))["updated_at"])
            await until(moved)

    assert (await bench.row(job.id))["progress"] == 42
    await bench.close()


async def test_a_claim_renews_the_lease_of_its_worker_as_it_was_and_no_others(shop: Shop) -> None:
    """R4: or what was just claimed could be taken at once, where a beat is late."""
    await shop.put()
    async with shop.worker() as one, shop.worker(lease=10 * LEASE) as other:
        long_ago = await shop.watched.source.clock() - timedelta(hours=1)
        for worker, lease in ((one, LEASE), (other, 10 * LEASE)):
            of = sa.update(tables.leases).where(tables.leases.c.id == worker.identity.name)
            await shop.execute(of.values(beat_at=long_ago, expires_at=long_ago + lease))
        await one.claim()
        leases = {row.id: row for row in await shop.execute(sa.select(tables.leases))}

    renewed, left = leases[one.identity.name], leases[other.identity.name]
    assert renewed.beat_at > long_ago + timedelta(minutes=59)
    assert renewed.expires_at - renewed.beat_at == LEASE
    assert (left.beat_at, left.expires_at) == (long_ago, long_ago + 10 * LEASE)


async def test_a_lease_runs_out_with_its_worker_and_with_nothing_else(shop: Shop) -> None:
    async with shop.worker() as one:
        async with shop.worker() as other:
            assert await shop.vouched_for() == {one.identity.name, other.identity.name}
        assert await shop.vouched_for() == {one.identity.name}
    assert await shop.vouched_for() == set()


async def test_a_queue_whose_workers_have_all_stopped_is_unserved_as_one_whose_workers_were_killed(shop: Shop) -> None:
    """What it waits for is a worker, and a sweep that nobody watches leaves it."""
    waiting = await shop.put(values={"created_at": await shop.watched.source.clock() - timedelta(hours=1)})
    workers = [(await observe(shop.watched)).workers]
    async with shop.worker():
        before = await report_stuck(shop.watched)
        workers.append((await observe(shop.watched)).workers)
    after = await report_stuck(shop.watched)
    workers.append((await observe(shop.watched)).workers)
    assert [each.serving("default") for each in workers] == [None, 1, 0]
    assert [(each.job.id, each.diagnosis.reason) for each in before.queued] == [(waiting, Reason.NEVER_CLAIMED)]
    assert [(each.job.id, each.diagnosis.reason) for each in after.queued] == [(waiting, Reason.UNSERVED)]
    assert [each.jobs for each in after.unserved] == [1]


async def test_a_job_that_a_stopped_worker_left_behind_is_found_at_once_and_one_it_claims_later_is_not(
    shop: Shop,
) -> None:
    """Who has left vouches for nothing more; a claim is a sign of life, whoever makes it."""
    left, later = await shop.put(), await shop.put()
    async with shop.worker() as worker:
        await worker.claim()
    report = await report_stuck(shop.watched)
    assert [(each.job.id, each.diagnosis.reason) for each in report.running] == [(left, Reason.LEASE_EXPIRED)]

    assert [job.id for job in await shop.queue.claim(worker.identity, limit=1)] == [later]
    assert (await report_stuck(shop.watched)).running == ()


async def test_a_table_with_only_a_heartbeat_column_beats_there_in_one_statement(database: Database) -> None:
    """And a job that was taken from it is told so all the same."""
    table = jobs_table()
    jobs = declared(table)
    bench = await open_bench(database, table, jobs)
    if database.backend == "sqlite":
        await use_write_ahead_log(bench.engine)
    await bench.execute("INSERT INTO ai_generation_jobs (status, attempt) VALUES ('queued', 0), ('queued', 0)")
    async with worker_on("main", database.url, jobs, every=BEAT, lease=LEASE) as worker:
        one, other = await worker.claim(limit=2)
        before = [row["updated_at"] for row in await bench.rows()]
        async with worker.heartbeat(one):

            async def moved() -> bool:
                return bool((await bench.rows())[0]["updated_at"] > before[0])

            await until(moved)

            async def work() -> None:
                async with worker.heartbeat(other):
                    await bench.execute("UPDATE ai_generation_jobs SET attempt = 5 WHERE id = 2")
                    await asyncio.wait_for(asyncio.Event().wait(), 20)

            with pytest.raises(LeaseLostError):
                await work()
    await bench.close()


async def test_a_table_that_can_show_no_sign_of_life_is_refused_at_the_start(sqlite_database: Database) -> None:
    table = jobs_table()
    jobs = declared(table, columns={key: name for key, name in COLUMNS.items() if key != "heartbeat_at"})
    bench = await open_bench(sqlite_database, table, jobs)
    with pytest.raises(ConfigurationError, match="`heartbeat_at`"):
        async with worker_on("main", sqlite_database.url, jobs, every=BEAT, lease=LEASE):
            pass
    await bench.close()


async def test_a_worker_without_unsticks_own_tables_is_refused_at_the_start(sqlite_database: Database) -> None:
    """A refused end would have nowhere to be recorded, and be tried for ever."""
    table = jobs_table()
    engine = open_engine(sqlite_database.url, create=True)
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
    with pytest.raises(LedgerMissingError, match="unstick db upgrade"):
        async with open_worker(url=sqlite_database.url, jobs=declared(table)):
            raise AssertionError
    await engine.dispose()


async def test_a_worker_told_its_table_and_database_reads_no_configuration(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSTICK_NONSENSE", "1")
    host_settings.cache_clear()
    await shop.put()
    async with open_worker(url=shop.url, jobs=OWN) as worker:
        assert len(await worker.claim()) == 1


def test_a_lease_that_could_not_outlast_a_missed_beat_is_refused() -> None:
    """L5: interval as long as the threshold."""
    with pytest.raises(ValueError, match="longer"):
        Heartbeats(_never, this_process(), every=LEASE, lease=LEASE)


@asynccontextmanager
async def _never() -> AsyncIterator[SqlJobQueue]:
    raise AssertionError
    yield


# The runner


@dataclass
class Ran:
    registry: Registry
    jobs: list[ClaimedJob]


@pytest.fixture
def ran() -> Ran:
    registry, jobs = Registry(), list[Any]()

    @registry.job("essay")
    async def essay(job: ClaimedJob, beat: Heartbeat) -> Mapping[str, object]:
        jobs.append(job)
        beat.progress(50)
        return {"progress": 100}

    @registry.job("counted")
    def counted(job: ClaimedJob, _beat: Heartbeat) -> None:
        jobs.append(job)
        assert threading.current_thread() is not threading.main_thread()

    @registry.job("broken")
    async def broken(job: ClaimedJob, _beat: Heartbeat) -> None:
        jobs.append(job)
        raise RuntimeError("no such model")

    @registry.job("wrong")
    async def wrong(_job: ClaimedJob, _beat: Heartbeat) -> Mapping[str, object]:
        return {"nowhere": 1}

    return Ran(registry, jobs)


def runner(worker: Worker, registry: Registry, **options: Any) -> Runner:  # noqa: ANN401
    quick: dict[str, Any] = {"poll": timedelta(milliseconds=20), "retry_backoff": timedelta(milliseconds=1)}
    return Runner(worker, registry, **(quick | options))


async def test_jobs_run_by_their_kind_on_the_loop_or_in_threads_and_are_finished(shop: Shop, ran: Ran) -> None:
    essay, count = await shop.put("essay", {"title": "On tea"}), await shop.put("counted")
    over = finish_later(shop)
    async with shop.worker() as worker, runner(worker, ran.registry).running():
        await until(over(essay))
        await until(over(count))

    assert {job.id: job.payload for job in ran.jobs} == {essay: {"title": "On tea"}, count: None}
    rows = [await shop.row(job_id) for job_id in (essay, count)]
    assert [(row["status"], row["success"]) for row in rows] == [("completed", True)] * 2
    assert rows[0]["progress"] == 100


async def test_a_handler_that_raises_is_tried_as_often_as_the_job_says_and_then_failed(shop: Shop, ran: Ran) -> None:
    once = await shop.put("broken")
    thrice = await shop.put("broken", values={"max_attempts": 3})
    wrong = await shop.put("wrong")
    over = finish_later(shop)
    async with shop.worker() as worker, runner(worker, ran.registry).running():
        for job_id in (once, thrice, wrong):
            await until(over(job_id))

    assert [job.attempt for job in ran.jobs if job.id == once] == [0]
    assert [job.attempt for job in ran.jobs if job.id == thrice] == [0, 1, 2]
    rows = [await shop.row(job_id) for job_id in (once, thrice, wrong)]
    assert [row["status"] for row in rows] == ["failed"] * 3
    assert [row["error_message"] for row in rows[:2]] == ["RuntimeError: no such model"] * 2
    assert "nowhere" in rows[2]["error_message"]


async def test_whatever_a_handler_raises_stops_no_other_job_and_no_beat(shop: Shop, ran: Ran) -> None:
    """P6: one job at a time, and those that come to grief come first."""
    bad = [await shop.put(kind) for kind in ("broken", "wrong", "broken")]
    good = await shop.put("essay")
    over = finish_later(shop)
    async with shop.worker(every=BEAT) as worker, runner(worker, ran.registry, concurrency=1).running():
        await until(over(good))
        ended_at = (await shop.execute(sa.select(tables.leases.c.beat_at))).scalar_one()

        async def beats() -> bool:
            return bool((await shop.execute(sa.select(tables.leases.c.beat_at))).scalar_one() > ended_at)

        await until(beats)

    assert [(await shop.row(each))["status"] for each in (*bad, good)] == ["failed"] * 3 + ["completed"]


async def test_no_more_jobs_run_at_a_time_than_may(shop: Shop) -> None:
    registry, at_once, most = Registry(), 0, 0
    ids = [await shop.put() for _ in range(6)]

    @registry.job("essay")
    async def essay(_job: ClaimedJob, _beat: Heartbeat) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1

    over = finish_later(shop)
    async with shop.worker() as worker, runner(worker, registry, concurrency=2).running():
        for job_id in ids:
            await until(over(job_id))

    assert most == 2


async def test_a_runner_that_stops_lets_jobs_end_and_hands_back_what_takes_too_long(shop: Shop) -> None:
    """The job handed back is the same attempt, and at once anybody's."""
    registry, began, go = Registry(), asyncio.Event(), asyncio.Event()
    quick, slow = await shop.put("quick"), await shop.put("slow")

    @registry.job("quick")
    async def quick_one(_job: ClaimedJob, _beat: Heartbeat) -> None:
        await go.wait()

    @registry.job("slow")
    async def slow_one(_job: ClaimedJob, _beat: Heartbeat) -> None:
        began.set()
        await asyncio.Event().wait()

    async with shop.worker() as worker:
        loop = runner(worker, registry, drain=timedelta(milliseconds=300))
        running = asyncio.create_task(loop.run())
        await began.wait()
        loop.stop()
        go.set()
        await running

    assert (await shop.row(quick))["status"] == "completed"
    row = await shop.row(slow)
    assert (row["status"], row["attempt"], row["worker"], row["started_at"]) == ("queued", 0, None, None)


async def test_a_job_taken_from_the_runner_is_left_to_whoever_has_it(shop: Shop) -> None:
    registry, stopped = Registry(), asyncio.Event()
    job_id = await shop.put()

    @registry.job("essay")
    async def essay(_job: ClaimedJob, _beat: Heartbeat) -> None:
        await shop.execute(sa.update(tables.jobs).values(token=99, worker="another"))
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with shop.worker(every=BEAT) as worker, runner(worker, registry).running():
        await asyncio.wait_for(stopped.wait(), 20)

    row = await shop.row(job_id)
    assert (row["status"], row["worker"], row["token"]) == ("running", "another", 99)
    assert await shop.late() == []


class AwayAtFirst(SqlJobQueue):
    """A queue whose database doesn't answer the first ends."""

    away = 3

    async def finish(self, job: ClaimedJob, values: Mapping[str, object]) -> bool:
        if self.away:
            self.away -= 1
            raise SourceUnavailableError("away")
        return await super().finish(job, values)


async def test_an_end_is_written_once_the_database_is_back_however_long_it_was_away(
    shop: Shop, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unstick.worker.runner._TELLING", timedelta(0))
    job_id = await shop.put()
    async with shop.worker() as worker:
        queue = AwayAtFirst("main", shop.jobs, EngineConnections(shop.engine))
        other = Worker(queue, worker._heartbeats, worker.identity)
        async with runner(other, ran.registry).running():
            await until(finish_later(shop)(job_id))

    assert (await shop.row(job_id))["status"] == "completed"
    assert await shop.late() == []


@pytest.mark.parametrize("leases", [True, False], ids=["lease", "heartbeat column"])
async def test_a_job_that_holds_its_own_row_keeps_no_beat_of_its_worker_waiting(
    database: Database, leases: bool
) -> None:
    """L4: the job's own long transaction has its row locked; its worker's beats go on, and those of its other jobs."""
    if database.backend == "sqlite":
        return  # there whoever writes has the whole file
    extra: list[sa.Column[Any]] = [
        sa.Column("token", sa.Integer()), sa.Column("worker", sa.String(200)), sa.Column("progress", sa.Integer())
    ]  # fmt: skip
    names = {column.name: column.name for column in extra if leases or column.name != "worker"}
    table = jobs_table(*extra)
    jobs = declared(table, columns=COLUMNS | names)
    bench = await open_bench(database, table, jobs)
    await bench.execute("INSERT INTO ai_generation_jobs (status, attempt) VALUES ('queued', 0), ('queued', 0)")
    shows = sa.select(tables.leases.c.beat_at) if leases else sa.select(table.c.updated_at).where(table.c.id == 2)

    async def sign() -> Any:  # noqa: ANN401
        async with bench.engine.connect() as connection:
            return (await connection.execute(shows)).scalar_one()

    async with worker_on("main", database.url, jobs, every=BEAT, lease=LEASE) as worker:
        one, other = await worker.claim(limit=2)
        async with bench.engine.connect() as mine, worker.heartbeat(one) as beat, worker.heartbeat(other):
            await mine.execute(sa.text("UPDATE ai_generation_jobs SET progress = 10 WHERE id = 1"))
            seen = {await sign()}

            async def beaten() -> bool:
                beat.progress(11)
                seen.add(await sign())
                return len(seen) > 5

            async with asyncio.timeout(4):  # less than a wait for the row takes
                while not await beaten():  # noqa: ASYNC110 - the condition is the database's
                    await asyncio.sleep(0.01)
            await mine.rollback()
    await bench.close()


_IS_BAD = "NEW.job_type = 'bad' AND NEW.status = 'running'"
_RAISE = "RAISE EXCEPTION 'the host says no'; END IF; RETURN NEW;"
_SIGNAL = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the host says no'; END IF;"
_REFUSING = {
    "sqlite": (
        f"CREATE TRIGGER no BEFORE UPDATE ON jobs WHEN {_IS_BAD} BEGIN SELECT RAISE(ABORT, 'the host says no'); END",
    ),
    "postgresql": (
        f"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {_IS_BAD} THEN {_RAISE} END $$",
        "CREATE TRIGGER no BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION no()",
    ),
    "mysql": (f"CREATE TRIGGER no BEFORE UPDATE ON jobs FOR EACH ROW BEGIN IF {_IS_BAD} THEN {_SIGNAL} END",),
}


async def test_a_job_whose_claim_the_database_refuses_stops_no_other_and_no_loop(shop: Shop) -> None:
    """P2: it is at the head of the queue, is told of, and stays queued; those behind it run."""
    for statement in _REFUSING[shop.watched.source._connections.dialect.name]:  # type: ignore[attr-defined]
        async with shop.engine.begin() as connection:
            await connection.exec_driver_sql(statement)
    bad, good = await shop.put("bad"), await shop.put("essay")
    registry = Registry()

    @registry.job("essay")
    async def essay(_job: ClaimedJob, _beat: Heartbeat) -> None: ...

    @registry.job("bad")
    async def never(_job: ClaimedJob, _beat: Heartbeat) -> None:
        raise AssertionError

    async with shop.worker() as worker, runner(worker, registry, concurrency=1).running():
        await until(finish_later(shop)(good))
    assert (await shop.row(bad))["status"] == "queued"


async def test_an_event_loop_that_was_closed_under_a_job_ends_no_beats(shop: Shop) -> None:
    """P6: the job is taken, and nobody is there to be told."""
    taken, _ = await shop.put(), await shop.put()
    async with shop.worker(every=BEAT) as worker:
        one, other = await worker.claim(limit=2)

        def vanish() -> None:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(worker.heartbeat(one).__aenter__())
            loop.close()

        await asyncio.to_thread(vanish)
        async with worker.heartbeat(other) as beat:
            await shop.execute(sa.update(tables.jobs).where(tables.jobs.c.id == taken).values(token=99))
            beat.progress(10)
            await until(lambda: shop.holds(other.id, progress=10))
            beat.progress(20)
            await until(lambda: shop.holds(other.id, progress=20))


@pytest.mark.parametrize("where", ["on the loop", "in a thread"])
async def test_a_handler_that_exits_ends_its_own_job_alone(shop: Shop, where: str) -> None:
    """P6: `sys.exit` in a handler is that job's failure, not its worker's end."""
    registry = Registry()

    @registry.job("on the loop")
    async def on_the_loop(_job: ClaimedJob, _beat: Heartbeat) -> None:
        sys.exit(7)

    @registry.job("in a thread")
    def in_a_thread(_job: ClaimedJob, _beat: Heartbeat) -> None:
        sys.exit(7)

    @registry.job("essay")
    async def essay(_job: ClaimedJob, _beat: Heartbeat) -> None: ...

    exits, good = await shop.put(where), await shop.put("essay")
    async with shop.worker() as worker, runner(worker, registry, concurrency=1).running():
        for job_id in (exits, good):
            await until(finish_later(shop)(job_id))
    assert (await shop.row(exits))["error_message"] == "RuntimeError: the handler called sys.exit(7)"


# Real processes


HANDLERS = """
import time
from pathlib import Path
from unstick import Registry

registry = Registry()

@registry.job("essay")
def essay(job, beat):
    with Path("ran.txt").open("a") as file:
        print(job.id, job.attempt, file=file, flush=True)
    if job.payload == "hang":
        while not Path("go").exists():
            beat.check()
            time.sleep(0.01)
    return {"progress": 100}
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return [sys.executable, "-m", "unstick", "worker", "handlers:registry"]


async def test_unstick_worker_runs_jobs_until_sigterm_and_lets_the_last_one_end(
    tmp_path: Path, command: list[str]
) -> None:
    """On the embedded table, as a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNSTICK_")}
    subprocess.run([*command[:3], "db", "upgrade"], cwd=tmp_path, env=environment, check=True)  # noqa: ASYNC221
    engine = open_engine(f"sqlite:///{tmp_path / 'unstick.db'}")
    shop = Shop(f"sqlite:///{tmp_path / 'unstick.db'}", engine)
    done, hanging = await shop.put(), await shop.put(payload="hang")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)  # noqa: ASYNC220
    over = finish_later(shop)

    async def began() -> bool:
        assert process.poll() is None
        return (tmp_path / "ran.txt").exists() and len((tmp_path / "ran.txt").read_text().splitlines()) == 2

    await until(over(done))
    await until(began)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()

    assert await asyncio.to_thread(process.wait, 30) == 0
    assert (await shop.row(hanging))["status"] == "completed"
    assert await shop.vouched_for() == set()
    await engine.dispose()


@pytest.mark.parametrize("named", ["nowhere:registry", "handlers:nothing", "handlers"])
def test_a_registry_that_is_not_there_is_told_in_one_sentence(tmp_path: Path, command: list[str], named: str) -> None:
    ran = subprocess.run([*command[:4], named], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert named.partition(":")[0] in ran.stderr


async def test_a_killed_workers_job_is_running_again_within_five_seconds(
    postgres_database: Database, tmp_path: Path, command: list[str]
) -> None:
    """SIGKILL; a lease of three seconds, a look every second. None of the others does it in less than thirty."""
    engine = open_engine(postgres_database.url)
    await make_tables(engine, own_jobs=True)
    shop = Shop(postgres_database.url, engine)
    job_id = await shop.put(payload="hang")
    script = (
        "import asyncio, sys\nfrom datetime import timedelta\nfrom handlers import registry\n"
        "from unstick.config import SourceSettings\nfrom unstick.kit import running\n"
        "from unstick.sql.mapping import JobTable\n"
        "async def main():\n"
        "    jobs = JobTable.from_settings(SourceSettings())\n"
        f"    async with running(registry, url={postgres_database.url!r}, jobs=jobs,\n"
        "                       beat_every=timedelta(seconds=1), lease=timedelta(seconds=3)):\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) for _ in range(2)]  # noqa: ASYNC220

    async def running() -> bool:
        return (tmp_path / "ran.txt").exists() and (tmp_path / "ran.txt").read_text() == f"{job_id} 0\n"

    try:
        await until(running)
        first = (await shop.row(job_id))["worker"]
        victim = next(process for process in processes if f":{process.pid}:" in first)
        victim.kill()
        killed_at = asyncio.get_running_loop().time()

        async def again() -> bool:
            await sweep(shop.watched_at_once, SweepOrder(actor="test", action=Action.RETRY))
            await asyncio.sleep(1)
            row = await shop.row(job_id)
            return bool(row["status"] == "running" and row["worker"] != first)

        await until(again)
        took = asyncio.get_running_loop().time() - killed_at
        (tmp_path / "go").touch()
        await until(finish_later(shop)(job_id))
    finally:
        for process in processes:
            process.kill()
            process.wait()
        await engine.dispose()
    assert took < 6
    assert (tmp_path / "ran.txt").read_text().splitlines() == [f"{job_id} 0", f"{job_id} 1"]
