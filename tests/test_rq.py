"""Real RQ workers on a real broker, killed and stopped, and what Unstick makes of their jobs."""

from __future__ import annotations

import re
import signal
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.rq_system import RqSystem, open_rq_system, until
from tests.servers import MissingServerError
from tests.test_ledger_elsewhere import ProcessEndedError, killed_before
from unstick.domain.diagnosis import Reason
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.domain.standing import Standing
from unstick.pipeline.late import report_late
from unstick.pipeline.settling import IN_FLIGHT, settle_intents
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.pipeline.verdict import judge
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.sightings import SqlSightings
from unstick.systems.rq.accusing import LOST_AFTER, _sighted
from unstick.systems.rq.source import RqSource
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from unstick.config import Settings
    from unstick.pipeline.verdict import Verdict
    from unstick.pipeline.watched import Watched


@pytest.fixture
def system(broker: str, tmp_path: Path) -> Iterator[RqSystem]:
    try:
        with open_rq_system(broker, tmp_path) as opened:
            yield opened
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON RQ: {missing}")


@asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Watched]:
    await upgrade_database(settings)
    async with open_watched(settings) as watched:
        yield watched


async def verdict_of(watched: Watched, token: str) -> Verdict:
    verdict = await judge(watched, token)
    assert verdict is not None
    return verdict


async def until_stuck(watched: Watched, token: str) -> Verdict:
    """Wait until a job is stuck."""
    while True:
        verdict = await verdict_of(watched, token)
        if verdict.standing is Standing.STUCK:
            return verdict


async def swept(watched: Watched) -> SweepReport:
    return await sweep(watched, SweepOrder(actor="test"))


@pytest.mark.parametrize("action", CHANGES)
async def test_a_killed_workers_job_is_found_and_explained_and_runs_to_its_end_after_its_recovery(
    system: RqSystem, action: Action
) -> None:
    """RQ's own interface sees a failed or a queued job like any other, and takes it from there."""
    system.begin("essay")
    system.do("depend", "after", "essay")
    system.do("depend", "anyway", "essay", allow_failure=True)

    async with watching(system.acting(action)) as watched:
        assert (await verdict_of(watched, "essay")).standing in (Standing.BEATING, Standing.HELD)
        system.signal("essay", signal.SIGKILL)
        verdict = await until_stuck(watched, "essay")
        report = await swept(watched)

    assert verdict.reason is Reason.WORKER_GONE
    assert "its worker is gone: rq says the lease of" in verdict.sentence
    # The worker's own lease runs out within a moment of the job's, before it or after.
    assert re.search("that worker (is not there any more|lives and is not at it)", verdict.sentence)
    assert report.tally.of(outcome=Outcome.APPLIED, reason=Reason.WORKER_GONE) == 1
    shown = system.show("essay")
    assert (shown["started"], shown["executions"]) == (False, 0)
    if action is Action.MARK_FAILED:
        assert (shown["status"], shown["failed"], shown["ended"]) == ("failed", True, True)
        assert shown["result"] == "FAILED"
        assert shown["error"].startswith("Job stuck in running for more than 1 second: its worker is gone")
        assert system.show("after")["status"] == "deferred"
        system.work_off()
        assert system.show("anyway")["status"] == "finished"
        system.do("requeue", "essay")
    else:
        assert (shown["status"], shown["queued"], shown["retries"], shown["failed"]) == ("queued", 1, 1, False)
    system.let_end("essay")
    system.work_off()
    shown = system.show("essay")
    assert (shown["status"], shown["returned"], shown["failed"]) == ("finished", "essay", False)
    assert len(system.begun("essay")) == 2
    assert system.show("after")["status"] == "finished"


async def test_a_job_at_work_for_longer_than_it_may_be_is_left_alone(system: RqSystem) -> None:
    """Its worker renews the lease, and that acquits it however old it gets."""
    system.begin("film")

    async with watching(system.settings(policy={"running_after": "0.2s"})) as watched:
        while (verdict := await verdict_of(watched, "film")).standing is not Standing.HELD:
            assert verdict.standing is Standing.BEATING
        report = await swept(watched)

    assert "its worker still has it: rq says the lease of" in verdict.sentence
    assert report.tally.counts == {}
    system.let_end("film")
    until(lambda: system.show("film")["status"] == "finished")
    assert len(system.begun("film")) == 1


async def test_a_job_that_finishes_between_look_and_write_stays_finished(
    system: RqSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was killed alone: its child goes on, which nothing in RQ tells, and ends just before the write."""
    system.begin("essay")
    system.signal("essay", signal.SIGKILL, child=False)
    move = RqSource._move

    async def finish_first(source: RqSource, orders: Any) -> list[str]:  # noqa: ANN401
        system.let_end("essay")
        until(lambda: system.show("essay")["status"] == "finished")
        return await move(source, orders)

    async with watching(system.settings()) as watched:
        await until_stuck(watched, "essay")
        monkeypatch.setattr(RqSource, "_move", finish_first)
        report = await swept(watched)

    assert report.tally.of(outcome=Outcome.LOST_RACE) == report.tally.of() == 1
    shown = system.show("essay")
    assert (shown["status"], shown["returned"], shown["failed"], shown["queued"]) == ("finished", "essay", False, 0)


@pytest.mark.parametrize("action", CHANGES)
async def test_a_worker_that_wakes_and_finishes_after_the_recovery_is_told_as_late(
    system: RqSystem, action: Action
) -> None:
    """It was stopped, not dead: RQ takes its result, and the report says that the recovery was wrong."""
    system.begin("essay")
    system.signal("essay", signal.SIGSTOP)

    async with watching(system.acting(action)) as watched:
        await until_stuck(watched, "essay")
        assert (await swept(watched)).tally.of(outcome=Outcome.APPLIED) == 1
        system.do("suspend")  # or the same worker would begin the next attempt at once
        system.let_end("essay")
        system.signal("essay", signal.SIGCONT)
        until(lambda: system.show("essay")["status"] == "finished")
        report = await swept(watched)
        told = await report_late(watched)

    assert report.follow_up is not None
    assert report.follow_up.late == 1
    assert [(late.job_id, late.kind) for late in told.newest] == [("essay", "app.work")]


class Ledger:
    """What is on record, read beside Unstick."""

    def __init__(self, system: RqSystem) -> None:
        self.engine: AsyncEngine = open_engine(f"sqlite:///{system.directory / 'ledger.db'}")

    async def outcomes(self) -> list[str]:
        async with self.engine.connect() as connection:
            rows = await connection.execute(sa.select(tables.recoveries.c.outcome).order_by(tables.recoveries.c.id))
            return list(rows.scalars())

    async def intents(self) -> int:
        async with self.engine.connect() as connection:
            return int((await connection.execute(sa.select(sa.func.count()).select_from(tables.intents))).scalar_one())

    async def time_passes(self) -> None:
        """Let intents become older than any batch may be under way."""
        async with self.engine.begin() as connection:
            for row in (await connection.execute(sa.select(tables.intents))).all():
                earlier = sa.update(tables.intents).where(tables.intents.c.id == row.id)
                await connection.execute(earlier.values(at=row.at - IN_FLIGHT - timedelta(minutes=1)))


@asynccontextmanager
async def reading_ledger(system: RqSystem) -> AsyncIterator[Ledger]:
    ledger = Ledger(system)
    yield ledger
    await ledger.engine.dispose()


async def test_a_process_of_ours_that_ends_around_its_write_is_found_out_at_the_next_start(
    system: RqSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First between intent and change, then between change and record: each time the job itself tells which it was."""
    system.begin("essay")
    system.signal("essay", signal.SIGKILL)

    async def end(*_: object) -> list[str]:
        raise ProcessEndedError

    async with watching(system.settings()) as watched, reading_ledger(system) as ledger:
        await until_stuck(watched, "essay")
        with monkeypatch.context() as patch:
            patch.setattr(RqSource, "_move", end)
            with pytest.raises(ProcessEndedError):
                await swept(watched)
        assert (system.show("essay")["status"], await ledger.intents()) == ("started", 1)
        await ledger.time_passes()
    async with watching(system.settings()) as watched, reading_ledger(system) as ledger:
        assert (await ledger.outcomes(), await ledger.intents()) == (["failed"], 0)
        connections = watched.ledger.__dict__["_connections"]
        with killed_before(connections._engine, "DELETE FROM unstick_intents"), pytest.raises(ProcessEndedError):
            await swept(watched)
        assert (system.show("essay")["status"], await ledger.intents()) == ("failed", 1)
        await ledger.time_passes()
        assert await settle_intents(watched) == 1
        assert (await ledger.outcomes(), await ledger.intents()) == (["failed", "applied"], 0)


@pytest.mark.parametrize("queues", [["default"], ["high", "default"]])
async def test_a_job_whose_worker_died_before_it_began_is_known_to_be_lost_at_the_second_look(
    system: RqSystem, queues: list[str]
) -> None:
    """It is in no queue, and says that it is queued; RQ keeps a list of such jobs only for workers of one queue."""
    system.do("enqueue", "essay")
    system.start_worker(*queues, kind="DiesWithAJobInHand" if queues == ["default"] else "DiesBeforeItBegins").wait()

    async with watching(system.acting(Action.RETRY)) as watched:
        assert isinstance(watched.source, RqSource)
        reader = watched.source._reader
        while not await reader.without_worker(await reader.taken(["default"])):
            pass  # until the lease of the worker has run out, where it came so far as to have one
        assert (await swept(watched)).tally.counts == {}
        await seen_a_while_ago(system, watched)
        verdict = await verdict_of(watched, "essay")
        report = await swept(watched)

    assert verdict.reason is Reason.MESSAGE_LOST
    assert verdict.sentence.endswith(
        "its message is lost: a worker took it from its queue and was gone before it began."
    )
    assert report.tally.of(outcome=Outcome.APPLIED, action=Action.RETRY, reason=Reason.MESSAGE_LOST) == 1
    system.work_off()
    shown = system.show("essay")
    assert (shown["status"], shown["retries"]) == ("finished", None)


async def seen_a_while_ago(system: RqSystem, watched: Watched) -> None:
    """Write down how jobs look now as if that had been seen earlier: jobs pass through where these are."""
    assert isinstance(watched.source, RqSource)
    engine = open_engine(f"sqlite:///{system.directory / 'ledger.db'}")
    now = await watched.source.clock()
    reader = watched.source._reader
    passing = [*await reader.taken(await reader.queues())]
    for queue in await reader.queues():
        async for page in reader.deferred(queue, 1_000):
            passing += page.jobs
    async with engine.begin() as connection:
        await connection.execute(sa.delete(tables.sightings))
    sightings = SqlSightings(EngineConnections(engine))
    await sightings.note("rq", [_sighted(each) for each in passing], now - LOST_AFTER)
    await engine.dispose()


async def test_a_waiting_job_is_told_by_what_it_waits_for(system: RqSystem) -> None:
    """A turn, a time, another job, a person, or nothing that will ever come."""
    system.do("enqueue", "parent")
    system.do("enqueue", "waits")
    system.do("enqueue", "later", wait=3600)
    system.do("enqueue", "overdue", wait=0)
    system.do("enqueue", "elsewhere", queue="nobody")
    system.do("depend", "after", "parent")
    system.do("enqueue", "gone")
    system.do("depend", "orphan", "gone")
    system.do("delete", "gone")

    async with watching(system.settings()) as watched:
        for token in ("waits", "overdue"):
            await until_stuck(watched, token)
        await seen_a_while_ago(system, watched)
        said = {
            token: await verdict_of(watched, token)
            for token in ("waits", "later", "overdue", "elsewhere", "after", "orphan")
        }
        assert {token: each.reason or each.standing.value for token, each in said.items()} == {
            "waits": Reason.UNSERVED,
            "later": "scheduled",
            "overdue": Reason.MESSAGE_LOST,
            "elsewhere": Reason.UNSERVED,
            "after": "scheduled",
            "orphan": Reason.MESSAGE_LOST,
        }
        assert "it is due, and no scheduler has put it into its queue" in said["overdue"].sentence
        assert "the jobs that it waits for are not there any more" in said["orphan"].sentence
        await assert_served(system, watched)


async def assert_served(system: RqSystem, watched: Watched) -> None:
    """Workers that a person has suspended take nothing, and a busy one leaves its queue's other jobs to wait."""
    system.do("suspend")
    paused = await verdict_of(watched, "waits")
    assert (paused.standing, paused.reason) == (Standing.PAUSED, None)
    assert "is queued and can't be claimed: its workers are suspended" in paused.sentence
    system.do("resume")
    system.do("enqueue", "long", hold=True, at_front=True)
    system.start_worker()
    until(lambda: system.begun("long"))
    assert (await verdict_of(watched, "waits")).reason is Reason.NEVER_CLAIMED
