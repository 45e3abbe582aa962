"""False signs of life, and false signs of death: who is believed to be alive, and on what."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.jobs import COLUMNS, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from tests.test_races import READING, after_each, elsewhere, host
from tests.test_worker import BEAT, LEASE, runner, shop, until
from unstick.domain.diagnosis import Reason
from unstick.domain.recovery import Action, Outcome
from unstick.pipeline.report import report_stuck
from unstick.sql import tables
from unstick.sql.engine import use_write_ahead_log
from unstick.sql.source import RULED_FROM
from unstick.wiring import worker_on
from unstick.worker import Heartbeat, Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.jobs import SqlBench
    from tests.servers import Database
    from tests.test_worker import Shop
    from unstick.domain.work import ClaimedJob
    from unstick.worker import Worker

DATABASES = EACH_KIND

__all__ = ["shop"]

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@dataclass
class Stand:
    """The first user's table with what a worker writes, and one of the two ways to show a sign of life."""

    bench: SqlBench
    leases: bool

    def worker(self, *, every: timedelta = BEAT, lease: timedelta = LEASE) -> AbstractAsyncContextManager[Worker]:
        url = self.bench.engine.url.render_as_string(hide_password=False)
        return worker_on("main", url, self.bench.jobs, every=every, lease=lease)

    async def queue(self, number: int = 1) -> None:
        await self.bench.execute(*["INSERT INTO ai_generation_jobs (status, attempt) VALUES ('queued', 0)"] * number)

    @property
    def column(self) -> sa.Column[Any]:
        """What says when the only job was last known to live: its worker's lease, or its own heartbeat."""
        column: sa.Column[Any] = tables.leases.c.beat_at if self.leases else self.bench.table.c.updated_at
        return column

    async def sign(self) -> object:
        async with self.bench.engine.connect() as connection:
            return (await connection.execute(sa.select(self.column))).scalar_one()

    async def beats(self, times: int = 3) -> None:
        """Wait until the sign of life has moved so many times."""
        seen: set[object] = set()

        async def often_enough() -> bool:
            seen.add(await self.sign())
            return len(seen) > times

        await until(often_enough)


WRITTEN: dict[str, Any] = {"token": sa.Integer(), "worker": sa.String(200), "progress": sa.Integer()}


@pytest.fixture(params=[True, False], ids=["lease", "heartbeat"])
async def stand(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Stand]:
    opened = await open_stand(database, leases=request.param)
    yield opened
    await opened.bench.close()


@pytest.fixture
async def leased(database: Database) -> AsyncIterator[SqlBench]:
    opened = await open_stand(database, leases=True)
    yield opened.bench
    await opened.bench.close()


async def open_stand(database: Database, *, leases: bool) -> Stand:
    table = jobs_table(*(sa.Column(name, type_) for name, type_ in WRITTEN.items()))
    names = {name: name for name in WRITTEN if leases or name != "worker"}
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | names))
    if database.backend == "sqlite":
        await use_write_ahead_log(bench.engine)
    return Stand(bench, leases)


# Beats


async def test_a_beat_is_a_sign_of_life_though_the_progress_is_the_same(stand: Stand) -> None:
    """L1: the time is written as such, and not left to what moves only when something else does."""
    await stand.queue()
    async with stand.worker() as worker:
        (job,) = await worker.claim()
        async with worker.heartbeat(job) as beat:
            seen: set[object] = set()

            async def thrice_at_the_same_progress() -> bool:
                beat.progress(50)
                if (await stand.bench.row(job.id))["progress"] == 50:
                    seen.add(await stand.sign())
                return len(seen) > 3

            await until(thrice_at_the_same_progress)


async def test_beats_are_seen_while_the_job_holds_a_long_transaction_open(stand: Stand) -> None:
    """L4: they are transactions of their own. SQLite has one writer, so there the job's own transaction only reads."""
    await stand.queue()
    await stand.bench.execute("CREATE TABLE results (n INTEGER)")
    one_writer = stand.bench.engine.dialect.name == "sqlite"
    options: dict[str, Any] = {} if one_writer else {"isolation_level": "REPEATABLE READ"}
    async with stand.worker() as worker, host(stand.bench, **options) as app:
        (job,) = await worker.claim()
        async with worker.heartbeat(job), app.connect() as own:
            await own.exec_driver_sql("BEGIN" if one_writer else "INSERT INTO results VALUES (1)")
            before = (await own.execute(sa.select(stand.column))).scalar_one()
            await stand.beats()
            assert (await own.execute(sa.select(stand.column))).scalar_one() == before
            assert await stand.sign() != before
            await own.rollback()


@pytest.mark.parametrize("kind", ["on the loop", "in a thread"])
async def test_a_handler_that_never_asks_its_heartbeat_is_kept_alive_all_the_same(stand: Stand, kind: str) -> None:
    """L6: to beat is nobody's duty but the kit's."""
    registry, go, released = Registry(), asyncio.Event(), threading.Event()

    @registry.job("on the loop")
    async def _on_the_loop(_job: ClaimedJob, _beat: Heartbeat) -> None:
        await go.wait()

    @registry.job("in a thread")
    def _in_a_thread(_job: ClaimedJob, _beat: Heartbeat) -> None:
        released.wait()

    await stand.queue()
    await stand.bench.execute(f"UPDATE ai_generation_jobs SET job_type = '{kind}'")

    async def runs() -> bool:
        return [row["status"] for row in await stand.bench.rows()] == ["running"]

    async def over() -> bool:
        return [row["status"] for row in await stand.bench.rows()] == ["completed"]

    async with stand.worker() as worker, runner(worker, registry).running():
        try:
            await until(runs)
            await stand.beats()
        finally:
            go.set()
            released.set()
        await until(over)


async def test_a_table_without_leases_hears_of_a_job_only_while_its_block_runs(database: Database) -> None:
    """L7: a job that its worker has left is not kept alive by the beats of the next one."""
    stand = await open_stand(database, leases=False)
    await stand.queue(2)
    async with stand.worker() as worker:
        left, held = await worker.claim(limit=2)
        async with worker.heartbeat(left):
            pass
        before = (await stand.bench.row(left.id))["updated_at"]
        async with worker.heartbeat(held):
            seen: set[object] = set()

            async def beats() -> bool:
                seen.add((await stand.bench.row(held.id))["updated_at"])
                return len(seen) > 3

            await until(beats)
        after = (await stand.bench.row(left.id))["updated_at"]
    await stand.bench.close()
    assert after == before


# Who is asked


@pytest.mark.parametrize("ruled_from", [1, RULED_FROM], ids=["ruled", "each"])
async def test_jobs_of_which_no_lease_speaks_are_counted_listed_and_recovered(
    leased: SqlBench, ruled_from: int
) -> None:
    """L2, K6: the lease is asked of each job, and jobs are not found by their leases."""
    now = await leased.source.clock()
    async with leased.engine.begin() as connection:
        for name, expires in (("alive", now + HOUR), ("silent", now - MINUTE)):
            row = {"id": name, "host": "h", "pid": 1, "began_at": now - HOUR, "beat_at": now - HOUR}
            await connection.execute(sa.insert(tables.leases).values(**row, expires_at=expires))
    workers = [None, "", "unheard of", "silent", "alive"]
    await leased.put(*({"worker": worker} for worker in workers))
    vars(leased.source)["_ruled_from"] = ruled_from

    stuck = await report_stuck(leased.watched())
    report = await leased.sweep()

    assert stuck.counts.running == 4
    assert sorted(str(finding.job.worker) for finding in stuck.running) == ["", "None", "silent", "unheard of"]
    assert report.tally.of(outcome=Outcome.APPLIED) == 4
    assert [row["status"] for row in await leased.rows()] == ["failed"] * 4 + ["running"]


async def test_a_job_that_is_taken_under_a_ruling_by_a_worker_whose_lease_is_over_is_told_so(leased: SqlBench) -> None:
    """R2, L2: it was found by its age alone; of the attempt that stands there now, age knows nothing."""
    if leased.engine.dialect.name == "sqlite":
        await use_write_ahead_log(leased.engine)  # the ids are still being read when the other writes
    await leased.put({}, {})
    now = await leased.source.clock()
    lease = {"id": "over", "host": "h", "pid": 1, "began_at": now - HOUR, "beat_at": now - HOUR}
    taken = sa.update(leased.table).where(leased.table.c.id == 1).values(worker="over", started_at=now, attempt=1)

    async def take() -> None:
        async with host(leased) as app, app.begin() as connection:
            await connection.execute(sa.insert(tables.leases).values(**lease, expires_at=now - MINUTE))
            assert (await connection.execute(taken)).rowcount == 1

    with after_each(leased.engine, READING, [lambda: None, lambda: elsewhere(take)]):
        await leased.sweep()

    assert [(r.job_id, r.reason) for r in await leased.recoveries()] == [
        ("2", Reason.SILENT),
        ("1", Reason.LEASE_EXPIRED),
    ]


async def test_workers_that_never_beat_are_judged_by_age_beside_workers_that_do(leased: SqlBench) -> None:
    """L3: a fleet that is being changed over; the old workers name themselves, and say no more."""
    await leased.execute("INSERT INTO ai_generation_jobs (status, attempt) VALUES ('queued', 0)")
    async with worker_on("main", _url(leased), leased.jobs, every=BEAT, lease=LEASE) as worker:
        (job,) = await worker.claim()
        now = await leased.source.clock()
        async with leased.engine.begin() as connection:
            aged = {"started_at": now - 5 * HOUR, "updated_at": now - 5 * HOUR}
            await connection.execute(sa.update(leased.table).where(leased.table.c.id == job.id).values(aged))
        old = {"worker": "old-1", "updated_at": None}
        await leased.put(old, started=31 * MINUTE)
        await leased.put(old, started=29 * MINUTE)

        report = await leased.sweep()

    assert report.tally.of(reason=Reason.SILENT, outcome=Outcome.APPLIED) == 1
    assert [row["status"] for row in await leased.rows()] == ["running", "failed", "running"]


async def test_a_job_whose_lease_is_gone_is_judged_by_its_age_and_is_no_orphan_at_once(shop: Shop) -> None:
    """L11: leases are struck by their workers alone; what else removes one convicts nobody."""
    young, old = await shop.put(), await shop.put()
    async with shop.worker() as worker:
        assert len(await worker.claim(limit=2)) == 2
        aged = await shop.watched.source.clock() - HOUR
        times = {"started_at": aged, "updated_at": aged}
        await shop.execute(sa.update(tables.jobs).where(tables.jobs.c.id == old).values(times))
        await shop.execute(sa.delete(tables.leases))

        report = await shop.sweep(Action.MARK_FAILED)

    assert report.tally.of(reason=Reason.SILENT, outcome=Outcome.APPLIED) == report.tally.of() == 1
    assert [(await shop.row(each))["status"] for each in (young, old)] == ["running", "failed"]


async def test_no_sweep_removes_a_lease_however_long_it_has_been_over(shop: Shop) -> None:
    """L11: nothing keeps leases for a time that could be shorter than the time between two sweeps."""
    await shop.put()
    async with shop.worker() as worker:
        await worker.claim()
        long_ago = await shop.watched.source.clock() - timedelta(days=400)
        await shop.execute(sa.update(tables.leases).values(beat_at=long_ago, expires_at=long_ago))

        assert (await shop.sweep()).tally.of(reason=Reason.LEASE_EXPIRED) == 1

        assert (await shop.execute(sa.select(tables.leases.c.id))).scalars().all() == [worker.identity.name]


# Whole processes


WORKER = """
import asyncio, sys, time
from datetime import timedelta
from pathlib import Path
from unstick import Registry
from unstick.config import SourceSettings
from unstick.kit import running
from unstick.sql.mapping import JobTable

registry = Registry()

@registry.job("essay")
def essay(job, beat):
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return {"progress": 100}

async def main():
    jobs = JobTable.from_settings(SourceSettings())
    every, lease = timedelta(milliseconds=500), timedelta(seconds=30)
    async with running(registry, url=sys.argv[1], jobs=jobs, concurrency=1, beat_every=every, lease=lease):
        while not Path("go").exists():
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


@pytest.fixture
def process(shop: Shop, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "worker.py").write_text(WORKER)
    started = subprocess.Popen([sys.executable, "worker.py", shop.url], cwd=tmp_path)
    yield started
    started.kill()
    started.wait()


async def test_a_worker_that_slept_through_its_lease_wakes_to_a_job_that_is_anothers(
    shop: Shop, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """L9, L7, R12: a laptop that is closed in the middle of a job; no beat comes from elsewhere meanwhile."""
    job_id = await shop.put()
    await _stop_right_after_a_beat(shop, process, tmp_path / "began")

    await shop.expire_leases()  # the time that passes
    report = await shop.sweep()
    assert report.tally.of(reason=Reason.LEASE_EXPIRED, outcome=Outcome.APPLIED) == 1
    await shop.execute(sa.update(tables.jobs).values(scheduled_at=None))
    async with shop.worker() as other:
        (fresh,) = await other.claim()
        before = await shop.row(job_id)
        (tmp_path / "go").touch()
        os.kill(process.pid, signal.SIGCONT)
        await asyncio.to_thread(process.wait, 60)

        assert process.returncode == 0
        assert await shop.row(job_id) == before
        assert before["worker"] == other.identity.name
        await other.finish(fresh)


async def _stop_right_after_a_beat(shop: Shop, process: subprocess.Popen[bytes], began: Path) -> None:
    """Stop it between two of its transactions, so that it holds nothing of the database's in its sleep."""
    seen: set[object] = set()

    async def beat_again() -> bool:
        assert process.poll() is None
        if await asyncio.to_thread(began.exists):
            seen.update((await shop.execute(sa.select(tables.leases.c.beat_at))).scalars())
        return len(seen) > 1

    while True:
        await until(beat_again)
        os.kill(process.pid, signal.SIGSTOP)
        if await asyncio.to_thread(_is_free, shop.engine.url.database, shop.engine.dialect.name):
            return
        os.kill(process.pid, signal.SIGCONT)  # it was in the middle of the next beat already
        seen.clear()


def _is_free(file: str | None, dialect: str) -> bool:
    """Tell whether nobody is writing to a SQLite file; of a server's rows nobody holds another's."""
    if dialect != "sqlite" or file is None:
        return True
    with closing(sqlite3.connect(file, timeout=0.5, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


def _url(bench: SqlBench) -> str:
    return bench.engine.url.render_as_string(hide_password=False)
