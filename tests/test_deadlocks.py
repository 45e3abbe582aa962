"""Deadlocks with a host, each made to happen on a real database: what was rolled back is tried again."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs import COLUMNS, declared, jobs_table, open_bench
from tests.test_races import (
    DEADLINE,
    HOUR,
    ROW_LOCKING,
    WAITING,
    after_first,
    bench,
    by_decision,
    by_retry,
    by_sweep,
    decided,
    elsewhere,
    host,
    on_databases,
    statuses,
    stuck,
    until,
)
from tests.test_rulings import REFUSING
from unstick.domain.errors import SourceUnavailableError
from unstick.domain.recovery import Outcome
from unstick.domain.sighting import Sighted
from unstick.pipeline.undo import UndoOrder, undo
from unstick.sql.connections import EngineConnections, SessionConnections
from unstick.sql.queue import SqlJobQueue
from unstick.sql.sightings import SqlSightings
from unstick.sql.source import SqlSource
from unstick.worker import this_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.jobs import SqlBench
    from tests.servers import Database
    from tests.test_races import Way
    from unstick.domain.job import JobId

__all__ = ["bench"]

COUNTED = {
    "postgresql": [
        (
            "CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.id = {refused} THEN RAISE 'legal hold'; END IF; IF NEW.id = {counted} THEN "
            "PERFORM pg_advisory_xact_lock(7); UPDATE counters SET changes = changes + 1; END IF; RETURN NEW; END $$"
        ),
        "CREATE TRIGGER counted BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION count_change()",
        "ALTER DATABASE {database} SET deadlock_timeout = '10ms'",
    ],
    "mysql": [
        (
            "CREATE TRIGGER counted BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW BEGIN "
            "IF NEW.id = {refused} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'legal hold'; END IF; "
            "IF NEW.id = {counted} THEN DO GET_LOCK('gate', 10); DO RELEASE_LOCK('gate'); "
            "UPDATE counters SET changes = changes + 1; END IF; END"
        ),
    ],
}
"""A host's trigger that counts a job's changes in a row of its own, once a gate is open, and refuses another's."""
SHUT = {"postgresql": "SELECT pg_advisory_lock(7)", "mysql": "SELECT GET_LOCK('gate', 0)"}
OPEN = {"postgresql": "SELECT pg_advisory_unlock(7)", "mysql": "SELECT RELEASE_LOCK('gate')"}
WEIGHT = {
    "postgresql": "SET LOCAL deadlock_timeout = '1h'",  # who looks for deadlocks is who gives way
    "mysql": "INSERT INTO ballast SELECT seq FROM seq_1_to_1000",  # who wrote less gives way
}


async def count_changes(bench: SqlBench, *, of: int = 1, refuse: int = 0) -> None:
    await bench.execute(
        "CREATE TABLE counters (changes int NOT NULL)",
        "INSERT INTO counters VALUES (0)",
        "CREATE TABLE ballast (n int PRIMARY KEY)",
        *(
            each.format(counted=of, refused=refuse, database=bench.engine.url.database)
            for each in COUNTED[_kind(bench)]
        ),
    )
    await bench.engine.dispose()  # the next connections know the database's new setting


def _kind(bench: SqlBench) -> str:
    return "postgresql" if bench.engine.dialect.name == "postgresql" else "mysql"


@dataclass(frozen=True)
class Rival:
    """A host's transaction, which locks two rows in the other order than ours does."""

    first: str = "UPDATE counters SET changes = changes + 1"
    second: str = "SELECT 1 FROM ai_generation_jobs WHERE id = 1 FOR UPDATE"


@contextmanager
def deadlocked(bench: SqlBench, *at: int, rival: Rival = Rival(), within: str = "SKIP LOCKED") -> Iterator[list[str]]:
    """Have a rival in the way of some of our writes, the first being 1; yield them all, who are told by a fragment."""
    writes: list[str] = []
    rounds: list[Future[None]] = []
    pool = ThreadPoolExecutor(1)

    def hook(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if within not in statement:
            return
        writes.append(statement)
        if rounds:
            rounds[-1].result(DEADLINE)  # or the host might hold the job still, and we would leave it
        if len(writes) in at:
            ready = threading.Event()
            rounds.append(pool.submit(lambda: asyncio.run(_stand_in_the_way(bench, rival, ready))))
            assert ready.wait(DEADLINE)

    event.listen(bench.engine.sync_engine, "before_cursor_execute", hook)
    try:
        yield writes
    finally:
        event.remove(bench.engine.sync_engine, "before_cursor_execute", hook)
        pool.shutdown()
    assert len(rounds) == len(at)
    for each in rounds:
        each.result()


async def _stand_in_the_way(bench: SqlBench, rival: Rival, ready: threading.Event) -> None:
    kind = _kind(bench)
    async with host(bench) as app, app.connect() as gate, app.connect() as other, app.connect() as looking:
        await gate.execute(sa.text(SHUT[kind]))
        await other.execute(sa.text(WEIGHT[kind]))
        await other.execute(sa.text(rival.first))
        ready.set()
        await until(lambda: _wait(looking, kind, 1), every=0.12)  # InnoDB looks once in 0.1 s
        second = asyncio.create_task(other.execute(sa.text(rival.second)))
        await until(lambda: _wait(looking, kind, 2), every=0.12)
        await gate.execute(sa.text(OPEN[kind]))
        await second
        await other.rollback()


async def _wait(looking: AsyncConnection, kind: str, number: int) -> bool:
    """Whether so many connections to this test's database wait for a lock."""
    waiting = (await looking.execute(sa.text(WAITING[kind]))).scalar_one()
    await looking.rollback()  # PostgreSQL would show the same again until the transaction ends
    return bool(waiting == number)


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("way", [by_decision, by_retry])
@pytest.mark.parametrize("lent", [False, True], ids=["engine", "session"])
async def test_a_batch_that_met_a_deadlock_is_tried_again_as_a_whole(bench: SqlBench, way: Way, lent: bool) -> None:
    """K4: the database rolled us back; once the host is through, each job is recovered and recorded, once."""
    ids = await stuck(bench, 3)
    await count_changes(bench)

    async with AsyncSession(bench.engine) as session:
        source = SqlSource("main", bench.jobs, SessionConnections(session)) if lent else bench.source
        with deadlocked(bench, 1) as writes:
            applied = await way(bench, replace(bench.watched(), source=source))

    assert len(writes) == 2
    assert applied == set(ids)
    assert set(await statuses(bench)) == {"failed" if way is by_decision else "queued"}
    assert [await bench.outcomes(job_id) for job_id in ids] == [[Outcome.APPLIED]] * 3


@on_databases(*ROW_LOCKING)
async def test_what_stood_before_a_deadlock_is_done_again_not_taken_for_done(bench: SqlBench) -> None:
    """R7: a row was refused, and half of the batch written, when the database rolled all of it back."""
    ids = await stuck(bench, 4)
    await count_changes(bench, of=3, refuse=1)
    batch = await decided(bench)

    # All four, then 1 and 2, 1, 2, and then 3 and 4; and the same once more.
    with deadlocked(bench, 5, rival=Rival(second=Rival.second.replace("id = 1", "id = 3"))) as writes:
        result = await bench.source.recover(batch)

    assert await statuses(bench) == ["running", "failed", "failed", "failed"]
    assert (set(result.applied), list(result.refused)) == ({*ids[1:]}, [ids[0]])
    assert [await bench.outcomes(job_id) for job_id in ids] == [[Outcome.FAILED], *[[Outcome.APPLIED]] * 3]
    assert len(writes) == 10


@on_databases(*ROW_LOCKING)
async def test_a_batch_that_meets_a_deadlock_each_time_is_given_up_with_the_databases_words(bench: SqlBench) -> None:
    """K4: three times in all; nothing is changed, and nothing recorded."""
    await stuck(bench, 2)
    await count_changes(bench)
    batch = await decided(bench)

    with deadlocked(bench, 1, 2, 3) as writes, pytest.raises(SourceUnavailableError, match=r"(?i)deadlock"):
        await bench.source.recover(batch)

    assert len(writes) == 3
    assert await statuses(bench) == ["running", "running"]
    assert await bench.recoveries() == []


@on_databases(*ROW_LOCKING)
async def test_an_undo_that_met_a_deadlock_is_tried_again(bench: SqlBench) -> None:
    """K4, promise 6."""
    await stuck(bench, 3)
    before = await bench.rows()
    operation_id = (await bench.sweep()).operation_id
    await count_changes(bench)

    with deadlocked(bench, 1) as writes:
        report = await undo(bench.watched(), UndoOrder(actor="test", operation_id=operation_id))

    assert len(writes) == 2
    assert report.of(outcome=Outcome.APPLIED) == 3
    assert await bench.rows() == before


@on_databases("mariadb")  # PostgreSQL would find the deadlock later than a ruling waits
async def test_a_ruling_that_met_a_deadlock_leaves_its_jobs_to_be_looked_at(bench: SqlBench) -> None:
    """K4: they are recovered all the same, one record each."""
    ids = await stuck(bench, 3)
    await count_changes(bench)

    with deadlocked(bench, 1) as writes:
        applied = await by_sweep(bench, bench.watched())

    assert len(writes) == 2
    assert applied == set(ids)
    assert [await bench.outcomes(job_id) for job_id in ids] == [[Outcome.APPLIED]] * 3


GATED = {
    "postgresql": [
        (
            "CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.id = '{first}' THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NEW; END $$"
        ),
        "CREATE TRIGGER gated BEFORE UPDATE ON unstick_sightings FOR EACH ROW EXECUTE FUNCTION pass_gate()",
    ],
    "mysql": [
        (
            "CREATE TRIGGER gated BEFORE UPDATE ON unstick_sightings FOR EACH ROW BEGIN "
            "IF NEW.id = '{first}' THEN DO GET_LOCK('gate', 10); DO RELEASE_LOCK('gate'); END IF; END"
        ),
    ],
}


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("times", [1, 3])
async def test_what_was_seen_is_written_down_though_somebody_locked_it_in_another_order(
    bench: SqlBench, times: int
) -> None:
    """K4: three times in all, and then the database's words are told."""
    sightings = SqlSightings(EngineConnections(bench.engine))
    seen = [Sighted(job_id=job_id, attempt="1", progress="7") for job_id in (1, 2)]
    now = await bench.source.clock()
    await sightings.note("main", seen, now)
    await count_changes(bench)
    async with bench.engine.connect() as connection:
        first, second = (await connection.execute(sa.text("SELECT id FROM unstick_sightings ORDER BY id"))).scalars()
    await bench.execute(*(each.format(first=first) for each in GATED[_kind(bench)]))
    lock = "SELECT 1 FROM unstick_sightings WHERE id = '{}' FOR UPDATE"
    rival = Rival(lock.format(second), lock.format(first))

    with deadlocked(bench, *range(1, times + 1), rival=rival, within="INTO unstick_sightings") as writes:
        if times < 3:
            known = await sightings.note("main", seen, now + HOUR)
            assert {job_id: sighting.looks for job_id, sighting in known.items()} == {1: 2, 2: 2}
        else:
            with pytest.raises(SourceUnavailableError, match=r"(?i)deadlock"):
                await sightings.note("main", seen, now + HOUR)

    assert len(writes) == min(times + 1, 3)


async def isolate_snapshots(bench: SqlBench) -> None:
    """Have MariaDB refuse to lock a row that is newer than our snapshot (1020), as it does from 11.6 on."""

    @event.listens_for(bench.engine.sync_engine, "connect")
    def _as_in_11_6(connection: Any, _record: object) -> None:  # noqa: ANN401
        cursor = connection.cursor()
        cursor.execute("SET innodb_snapshot_isolation = ON")
        cursor.close()

    await bench.engine.dispose()


@on_databases("mariadb")
async def test_a_batch_that_meets_what_is_newer_than_its_snapshot_is_tried_again_as_a_whole(database: Database) -> None:
    """K4: 1020 is no fault of a row's, and took back what stood before it, as a deadlock does: three times in all."""
    table = jobs_table(sa.Column("worker", sa.String(100)))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"worker": "worker"}))
    await bench.put(*({"worker": "theirs", "attempt": 1} for _ in range(3)))  # whose leases the first lock looks for
    batch = await decided(bench)
    await bench.execute(*REFUSING["mysql"])
    await isolate_snapshots(bench)
    locks: list[str] = []

    def told(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "SKIP LOCKED" in statement:
            locks.append(statement)

    event.listen(bench.engine.sync_engine, "before_cursor_execute", told)
    with claimed_under_snapshots(bench, 3, times=2):
        result = await bench.source.recover(batch)

    rows, recorded = await statuses(bench), [await bench.outcomes(job_id) for job_id in (1, 2, 3)]
    await bench.close()
    assert len(locks) == 3 + 3 + 5  # all, 1, 2 with 3; twice, and then all, 1, 2 with 3, 2, 3
    assert (set(result.applied), list(result.refused)) == ({1}, [2])
    assert rows == ["failed", "running", "running"]
    assert recorded == [[Outcome.APPLIED], [Outcome.FAILED], [Outcome.LOST_RACE]]


@contextmanager
def claimed_under_snapshots(bench: SqlBench, job_id: JobId, *, times: int) -> Iterator[None]:
    """Have a claim of a job under way when our transaction begins, and committed once we have written another."""
    claims: list[tuple[Future[None], threading.Event]] = []
    pool = ThreadPoolExecutor(1)

    async def claim(wrote: threading.Event, goes_on: threading.Event) -> None:
        async with host(bench) as app, app.begin() as connection:
            await connection.execute(
                sa.text("UPDATE ai_generation_jobs SET attempt = attempt + 1 WHERE id = :id"), {"id": job_id}
            )
            wrote.set()
            assert await asyncio.to_thread(goes_on.wait, DEADLINE)

    def hook(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "UTC_TIMESTAMP" in statement and len(claims) < times:
            wrote, goes_on = threading.Event(), threading.Event()
            claims.append((pool.submit(lambda: asyncio.run(claim(wrote, goes_on))), goes_on))
            assert wrote.wait(DEADLINE)
        if "RELEASE SAVEPOINT" in statement:
            claims[-1][1].set()
            claims[-1][0].result(DEADLINE)

    event.listen(bench.engine.sync_engine, "after_cursor_execute", hook)
    try:
        yield
    finally:
        event.remove(bench.engine.sync_engine, "after_cursor_execute", hook)
        pool.shutdown()
    assert len(claims) == times


@on_databases("mariadb")
async def test_an_end_that_meets_what_is_newer_than_its_snapshot_may_be_written_again(bench: SqlBench) -> None:
    """From 11.6 on MariaDB refuses to lock such a row (1020): that is no fault of the job's, and may pass."""
    await isolate_snapshots(bench)
    worker = this_process()
    queue = SqlJobQueue("main", bench.jobs, EngineConnections(bench.engine))
    await bench.put({"status": "queued", "started_at": None})
    (job,) = await queue.claim(worker, limit=1)
    recovery = (
        "INSERT INTO unstick_recoveries "
        "(operation_id, source, job_id, state, action, reason, outcome, detail, at) VALUES "
        "(1, 'main', '1', 'running', 'mark_failed', 'silent', 'applied', '', UTC_TIMESTAMP(6))"
    )
    await bench.execute("UPDATE ai_generation_jobs SET status = 'failed'", recovery)

    async def again() -> None:
        async with host(bench) as app, app.begin() as connection:
            await connection.execute(sa.text(recovery))

    newer = after_first(bench.engine, "SELECT EXISTS", lambda: elsewhere(again))
    with newer as seen, pytest.raises(SourceUnavailableError, match="changed since"):
        await queue.finish(job, {})
    written = await queue.finish(job, {})

    assert seen
    assert not written
