"""Deadlocks with a host, each made to happen on a real database: what was rolled back is tried again."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests.jobs import SqlBench
from tests.test_races import (
    DEADLINE,
    ROW_LOCKING,
    WAITING,
    bench,
    by_decision,
    by_retry,
    by_sweep,
    decided,
    host,
    on_databases,
    statuses,
    stuck,
    until,
)
from unstick.domain.errors import SourceUnavailableError
from unstick.domain.recovery import Outcome
from unstick.pipeline.undo import UndoOrder, undo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.test_races import Way

__all__ = ["bench"]

TRIES = 3
COUNTED = {
    "postgresql": [
        "CREATE FUNCTION count() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_advisory_xact_lock(7); UPDATE counters SET changes = changes + 1; RETURN NEW; END $$",
        "CREATE TRIGGER counted BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION count()",
        "ALTER DATABASE {0} SET deadlock_timeout = '10ms'",
    ],
    "mysql": [
        "CREATE TRIGGER counted BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW BEGIN "
        "DO GET_LOCK('gate', 10); DO RELEASE_LOCK('gate'); UPDATE counters SET changes = changes + 1; END",
    ],
}
"""A host's trigger that counts changes of jobs in a row of its own, once a gate is open."""
SHUT = {"postgresql": "SELECT pg_advisory_lock(7)", "mysql": "SELECT GET_LOCK('gate', 0)"}
OPEN = {"postgresql": "SELECT pg_advisory_unlock(7)", "mysql": "SELECT RELEASE_LOCK('gate')"}
WEIGHT = {
    "postgresql": "SET LOCAL deadlock_timeout = '1h'",  # who looks for deadlocks is who gives way
    "mysql": "INSERT INTO ballast SELECT seq FROM seq_1_to_1000",  # who wrote less gives way
}


async def count_changes(bench: SqlBench) -> None:
    await bench.execute(
        "CREATE TABLE counters (changes int NOT NULL)",
        "INSERT INTO counters VALUES (0)",
        "CREATE TABLE ballast (n int PRIMARY KEY)",
        *(each.format(bench.engine.url.database) for each in COUNTED[_kind(bench)]),
    )
    await bench.engine.dispose()  # the next connections know the database's new setting


def _kind(bench: SqlBench) -> str:
    return "postgresql" if bench.engine.dialect.name == "postgresql" else "mysql"


@contextmanager
def deadlocked(bench: SqlBench, times: int) -> Iterator[list[str]]:
    """Have a host lock the counter and then job 1, which we lock in the other order; yield our tries."""
    tries: list[str] = []
    rounds: list[Future[None]] = []
    pool = ThreadPoolExecutor(1)

    def hook(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "SKIP LOCKED" not in statement:
            return
        tries.append(statement)
        if rounds:
            rounds[-1].result(DEADLINE)  # or the host might hold the job still, and we would leave it
        if len(rounds) < times:
            ready = threading.Event()
            rounds.append(pool.submit(lambda: asyncio.run(_stand_in_the_way(bench, ready))))
            assert ready.wait(DEADLINE)

    event.listen(bench.engine.sync_engine, "before_cursor_execute", hook)
    try:
        yield tries
    finally:
        event.remove(bench.engine.sync_engine, "before_cursor_execute", hook)
        pool.shutdown()
    assert len(rounds) == times
    for each in rounds:
        each.result()


async def _stand_in_the_way(bench: SqlBench, ready: threading.Event) -> None:
    kind = _kind(bench)
    async with host(bench) as app, app.connect() as gate, app.connect() as rival, app.connect() as looking:
        await gate.execute(sa.text(SHUT[kind]))
        await rival.execute(sa.text(WEIGHT[kind]))
        await rival.execute(sa.text("UPDATE counters SET changes = changes + 1"))
        ready.set()
        await until(lambda: _wait(looking, kind, 1), every=0.12)  # InnoDB looks once in 0.1 s
        second = asyncio.create_task(rival.execute(sa.text("SELECT 1 FROM ai_generation_jobs WHERE id = 1 FOR UPDATE")))
        await until(lambda: _wait(looking, kind, 2), every=0.12)
        await gate.execute(sa.text(OPEN[kind]))
        await second
        await rival.rollback()


async def _wait(looking: AsyncConnection, kind: str, number: int) -> bool:
    """Whether so many connections to this test's database wait for a lock."""
    waiting = (await looking.execute(sa.text(WAITING[kind]))).scalar_one()
    await looking.rollback()  # PostgreSQL would show the same again until the transaction ends
    return bool(waiting == number)


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("way", [by_decision, by_retry])
async def test_a_batch_that_met_a_deadlock_is_tried_again_as_a_whole(bench: SqlBench, way: Way) -> None:
    """K4: the database rolled us back; once the host is through, each job is recovered and recorded, once."""
    ids = await stuck(bench, 3)
    await count_changes(bench)

    with deadlocked(bench, 1) as tries:
        applied = await way(bench, bench.watched())

    assert len(tries) == 2
    assert applied == set(ids)
    assert set(await statuses(bench)) == {"failed" if way is by_decision else "queued"}
    assert [await bench.outcomes(job_id) for job_id in ids] == [[Outcome.APPLIED]] * 3


@on_databases(*ROW_LOCKING)
async def test_a_batch_that_meets_a_deadlock_each_time_is_given_up_with_the_databases_words(bench: SqlBench) -> None:
    """K4: three times in all; nothing is changed, and nothing recorded."""
    await stuck(bench, 2)
    await count_changes(bench)
    batch = await decided(bench)

    with deadlocked(bench, TRIES) as tries, pytest.raises(SourceUnavailableError, match="(?i)deadlock"):
        await bench.source.recover(batch)

    assert len(tries) == TRIES
    assert await statuses(bench) == ["running", "running"]
    assert await bench.recoveries() == []


@on_databases(*ROW_LOCKING)
async def test_an_undo_that_met_a_deadlock_is_tried_again(bench: SqlBench) -> None:
    """K4, promise 6."""
    await stuck(bench, 3)
    before = await bench.rows()
    operation_id = (await bench.sweep()).operation_id
    await count_changes(bench)

    with deadlocked(bench, 1) as tries:
        report = await undo(bench.watched(), UndoOrder(actor="test", operation_id=operation_id))

    assert len(tries) == 2
    assert report.of(outcome=Outcome.APPLIED) == 3
    assert await bench.rows() == before


@on_databases("mariadb")  # PostgreSQL would find the deadlock later than a ruling waits
async def test_a_ruling_that_met_a_deadlock_leaves_its_jobs_to_be_looked_at(bench: SqlBench) -> None:
    """K4: they are recovered all the same, one record each."""
    ids = await stuck(bench, 3)
    await count_changes(bench)

    with deadlocked(bench, 1) as tries:
        applied = await by_sweep(bench, bench.watched())

    assert len(tries) == 2
    assert applied == set(ids)
    assert [await bench.outcomes(job_id) for job_id in ids] == [[Outcome.APPLIED]] * 3
