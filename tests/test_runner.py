"""The loop that observes and sweeps sources again and again, whatever happens to any of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.jobs import SqlBench, open_bench
from tests.servers import EACH_KIND
from tests.test_worker import until
from unstick.config import Cron, SweepSettings
from unstick.domain.brake import BrakeLimits, Pass, Unattended
from unstick.domain.errors import RecoveryStoppedError, SourceUnavailableError
from unstick.domain.events import LeadershipChanged, ObservationFailed, Observed, PipelineEvent, SweepFailed, Swept
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action, Outcome
from unstick.domain.schedule import Every, Timetable
from unstick.pipeline import emitting as emitting_module
from unstick.pipeline import runner as runner_module
from unstick.pipeline.runner import Runner
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections
from unstick.sql.event_log import SqlEventLog
from unstick.sql.leaders import SqlLeaders
from unstick.sql.retention import SqlPruner
from unstick.sql.tables import events
from unstick.sql.watches import SqlWatches
from unstick.telemetry.log import LogListener
from unstick.testing.conformance import MINUTE, Ages
from unstick.wiring import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database, MortalPostgres
    from unstick.domain.retention import Retention
    from unstick.pipeline.watched import OpenWatched, Watched
    from unstick.ports import Leaders

DATABASES = EACH_KIND

OFTEN = Timetable(observe=Every(timedelta(milliseconds=20)), clean=Every(timedelta(milliseconds=40)))
HOUR = timedelta(hours=1)
STUCK = Ages(enqueued=100 * MINUTE, started=60 * MINUTE)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


@pytest.fixture
async def light(sqlite_database: Database) -> AsyncIterator[SqlBench]:
    """One database, for what no database does differently."""
    bench = await open_bench(sqlite_database)
    yield bench
    await bench.close()


@dataclass
class Heard:
    """A listener that remembers, and can be waited for."""

    events: list[PipelineEvent] = field(default_factory=list)

    async def hear(self, event: PipelineEvent) -> None:
        self.events.append(event)

    def count(self, kind: type[PipelineEvent], source: str = "main") -> int:
        return sum(isinstance(event, kind) and event.source == source for event in self.events)

    async def wait(self, kind: type[PipelineEvent], number: int = 1, source: str = "main") -> None:
        async def enough() -> bool:
            return self.count(kind, source) >= number

        await until(enough)


def kept(bench: SqlBench, heard: Heard, policy: Policy | None = None) -> Watched:
    connections = EngineConnections(bench.engine)
    return replace(
        bench.watched(policy),
        brakes=SqlBrakes(connections),
        leaders=SqlLeaders(connections),
        watches=SqlWatches(connections),
        unattended=Unattended(every=10 * MINUTE, brake=BrakeLimits(jobs=1000)),
        listeners=(heard,),
    )


async def has_been_watched(bench: SqlBench, ago: timedelta = timedelta(0)) -> None:
    """A pass so long ago, and no gap in the watch since days."""
    now = await bench.source.clock()
    passed = Pass(at=now - ago, back_at=now - timedelta(days=3))
    await SqlBrakes(EngineConnections(bench.engine)).note_pass("main", passed)


@asynccontextmanager
async def lend(watched: Watched) -> AsyncIterator[Watched]:
    yield watched


@asynccontextmanager
async def kept_up(timetable: Timetable = OFTEN, **sources: Watched | OpenWatched) -> AsyncIterator[None]:
    opened = {name: each if callable(each) else partial(lend, each) for name, each in sources.items()}
    async with running(Runner(opened, timetable, holder="test:1:boot")):
        yield


async def test_a_source_is_observed_and_swept_and_nobody_has_to_ask(bench: SqlBench) -> None:
    """The contract: cleanup by itself. Of a table past whose server nobody has watched, it first only observes."""
    queued, running_job = await bench.add(JobState.QUEUED, STUCK), await bench.add(JobState.RUNNING, STUCK)
    heard = Heard()
    await has_been_watched(bench)
    if await bench.source.up_since() is not None:
        policy = Policy(queued_after=timedelta(milliseconds=1), running_after=timedelta(milliseconds=1))
    else:
        policy = Policy()
    timetable = Timetable(observe=OFTEN.observe, clean=Every(timedelta(milliseconds=40)))
    async with kept_up(timetable, main=kept(bench, heard, policy)):
        await heard.wait(Observed)

        async def both() -> bool:
            return [row["status"] for row in await bench.rows()] == ["failed", "failed"]

        await until(both)
    seen = next(event for event in heard.events if isinstance(event, Observed))
    assert (seen.stuck_jobs, sum(seen.open_jobs.values())) == (2, 2)
    assert {int(r.job_id) for r in await bench.recoveries()} == {queued, running_job}
    assert Counter(entry.actor for entry in await bench.audit()) == {"runner": 2}


@pytest.mark.parametrize("trouble", ["dead", "silent", "broken"])
async def test_a_source_in_trouble_delays_no_other(
    light: SqlBench, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """X2: and is told once, however often it is tried."""

    @asynccontextmanager
    async def bad() -> AsyncIterator[Watched]:
        tries.append(1)
        if trouble == "silent":
            await asyncio.Event().wait()
        raise SourceUnavailableError("It is away.") if trouble == "dead" else ZeroDivisionError("a bug")
        yield

    tries: list[int] = []
    heard = Heard()
    lease = timedelta(milliseconds=90)
    opened: dict[str, OpenWatched] = {"bad": bad, "main": partial(lend, kept(light, heard))}
    async with running(Runner(opened, OFTEN, holder="test:1:boot", leads_for=lease)):
        await heard.wait(Observed, 5)
        await heard.wait(Swept, 3)

        async def tried() -> bool:
            return len(tries) >= 3

        await until(tried)
    said = [record.getMessage() for record in caplog.records if "'bad'" in record.getMessage()]
    assert len(said) == 1
    assert "can't be watched" in said[0]


async def test_a_source_that_is_away_for_a_while_is_told_and_then_goes_on(light: SqlBench) -> None:
    heard, away = Heard(), True
    real = light.source.flows

    async def flows(*given: Any) -> Any:  # noqa: ANN401
        if away:
            raise SourceUnavailableError("The database doesn't answer.")
        return await real(*given)

    vars(light.source)["flows"] = flows
    watched = kept(light, heard)
    assert watched.watches is not None
    async with kept_up(main=watched):
        await heard.wait(ObservationFailed, 2)
        await heard.wait(SweepFailed)
        record = await watched.watches.find("main")
        away = False
        await heard.wait(Observed)
        await heard.wait(Swept)

        async def clear() -> bool:
            assert watched.watches is not None
            found = await watched.watches.find("main")
            return found is not None and found.problem is None

        await until(clear)
    assert record is not None
    assert record.problem == "The database doesn't answer."


async def test_rounds_that_were_missed_are_made_up_for_by_one(light: SqlBench) -> None:
    """After a night in which nobody swept, one sweep, and the next a whole interval later."""
    heard = Heard()
    await has_been_watched(light, ago=8 * HOUR)
    async with kept_up(Timetable(observe=OFTEN.observe, clean=Every(10 * MINUTE)), main=kept(light, heard)):
        await heard.wait(Observed, 5)
    assert heard.count(Swept) == 1


async def test_whoever_starts_anew_sweeps_when_it_is_due_and_not_before(light: SqlBench) -> None:
    heard = Heard()
    await has_been_watched(light, ago=9 * MINUTE)
    async with kept_up(Timetable(observe=OFTEN.observe, clean=Every(10 * MINUTE)), main=kept(light, heard)):
        await heard.wait(Observed, 5)
    assert heard.count(Swept) == 0


async def test_a_sweep_that_takes_too_long_is_cut_off_and_the_next_one_comes(
    light: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "ROUND_MAY_TAKE", timedelta(milliseconds=200))
    await light.add(JobState.RUNNING, STUCK)
    await has_been_watched(light)
    hangs, real = True, light.source.count_suspects

    async def count(*given: Any) -> Any:  # noqa: ANN401
        if hangs:
            await asyncio.Event().wait()
        return await real(*given)

    vars(light.source)["count_suspects"] = count
    heard = Heard()
    async with kept_up(main=kept(light, heard)):
        await heard.wait(SweepFailed)
        hangs = False
        await heard.wait(Swept)
    failed = next(event for event in heard.events if isinstance(event, SweepFailed))
    assert "it took longer than" in failed.problem
    assert (await light.rows())[0]["status"] == "failed"


async def test_an_observation_that_takes_too_long_is_cut_off_and_told_and_the_next_one_comes(
    light: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "ROUND_MAY_TAKE", timedelta(milliseconds=200))
    hangs, real = True, light.source.open_jobs

    async def open_jobs(*given: Any) -> Any:  # noqa: ANN401
        if hangs:
            await asyncio.Event().wait()
        return await real(*given)

    vars(light.source)["open_jobs"] = open_jobs
    heard = Heard()
    async with kept_up(main=kept(light, heard)):
        await heard.wait(ObservationFailed)
        hangs = False
        await heard.wait(Observed)
    failed = next(event for event in heard.events if isinstance(event, ObservationFailed))
    assert failed.problem.startswith("no answer within")


async def test_old_records_are_struck_and_a_prune_that_takes_too_long_is_cut_off_and_gone_on_with(
    light: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps nobody from sweeping."""
    monkeypatch.setattr(runner_module, "ROUND_MAY_TAKE", timedelta(milliseconds=200))
    monkeypatch.setattr(runner_module, "_PRUNED_FIRST", timedelta(0))
    connections, heard = EngineConnections(light.engine), Heard()
    await SqlEventLog(connections).append("main", "old", {})
    async with light.engine.begin() as connection:
        await connection.execute(sa.update(events).values(at=datetime(2020, 1, 1, tzinfo=UTC)))
    pruner, hangs = SqlPruner(connections), asyncio.Event()
    real = pruner.prune

    async def prune(retention: Retention) -> AsyncIterator[tuple[str, int]]:
        if not hangs.is_set():
            hangs.set()
            await asyncio.Event().wait()
        async for struck in real(retention):
            yield struck

    async def is_struck() -> bool:
        async with light.engine.connect() as connection:
            return not (await connection.execute(sa.select(events.c.id))).all()

    vars(pruner)["prune"] = prune
    async with kept_up(main=replace(kept(light, heard), pruner=pruner)):
        await asyncio.wait_for(hangs.wait(), 20)
        await heard.wait(Swept, heard.count(Swept) + 1)
        await until(is_struck)


async def test_who_is_stopped_in_the_middle_of_a_sweep_records_its_end_and_gives_the_lease_back(
    light: SqlBench,
) -> None:
    """R9: the audit log has no sweep without an end."""
    ids = [await light.add(JobState.RUNNING, STUCK) for _ in range(6)]
    await has_been_watched(light)
    light.batches_of(2)
    reached, real = asyncio.Event(), light.source.recover_by_rule

    async def recover(*given: Any) -> Any:  # noqa: ANN401
        async for ruled in real(*given):
            yield ruled
            reached.set()
            await asyncio.sleep(3600)

    vars(light.source)["recover_by_rule"] = recover
    heard = Heard()
    watched = kept(light, heard)
    async with kept_up(main=watched):
        await asyncio.wait_for(reached.wait(), 20)
    entries = [(entry.outcome, entry.result.get("applied")) for entry in await light.audit()]
    assert entries == [("started", None), ("failed", 2)]
    assert len(await light.recoveries()) == 2 < len(ids)
    assert [event.leads for event in heard.events if isinstance(event, LeadershipChanged)] == [True, False]
    assert watched.leaders is not None
    assert await watched.leaders.claim("main", "another", HOUR) is not None


async def test_a_source_that_is_silent_holds_up_neither_the_stop_nor_the_hand_over_of_another(
    mortal: MortalPostgres, mortal_database: Database, light: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a statement, for which its driver would wait ten seconds, or for ever."""
    monkeypatch.setattr(runner_module, "_ENDS_WITHIN_SECONDS", 0.5)
    away, heard, users = Heard(), Heard(), Counter[str]()
    bench, watched = await open_bench(mortal_database), kept(light, heard)
    leaders = watched.leaders
    assert leaders is not None

    @asynccontextmanager
    async def silent() -> AsyncIterator[Watched]:
        users["now"] += 1
        yield kept(bench, away)
        users["now"] -= 1

    async def in_use() -> bool:
        return users["now"] > 0

    async def handed_over() -> float:
        await until(lambda: is_free(leaders))
        return time.monotonic()

    async with AsyncExitStack() as stack:
        async with kept_up(silent=silent, main=watched):
            await away.wait(Observed)
            await heard.wait(Observed)
            await stack.enter_async_context(mortal.silence())
            await until(in_use)
            other = asyncio.create_task(handed_over())
        stopped = time.monotonic()
    left = asyncio.all_tasks() - {asyncio.current_task(), other}
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 20)
    await bench.close()
    assert await other < stopped


async def is_free(leaders: Leaders) -> bool:
    return await leaders.claim("main", "another", HOUR) is not None


async def test_a_sweep_that_does_nothing_says_and_records_nothing(
    light: SqlBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="unstick")
    heard = Heard()
    watched = replace(kept(light, heard), listeners=(heard, LogListener()))
    async with kept_up(main=watched):
        await heard.wait(Swept, 3)
        said = [record.getMessage() for record in caplog.records]
    assert said == ["This process leads source 'main', term 1"]
    assert await light.audit() == []


async def test_a_listener_that_fails_stops_neither_the_sweep_nor_the_others(
    light: SqlBench, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def hear(self, event: PipelineEvent) -> None:
            raise RuntimeError(f"no more paper for {event}")

    heard = Heard()
    watched = replace(kept(light, heard), listeners=(Broken(), heard))
    async with kept_up(main=watched):
        await heard.wait(Observed, 2)
        await heard.wait(Swept)
    assert "Broken could not take note of Observed" in caplog.text


async def test_a_process_that_leads_no_more_recovers_no_further_batch(light: SqlBench) -> None:
    """K2: its lease is lost in the middle of a sweep; what was committed stays, and the end says why."""
    for _ in range(6):
        await light.add(JobState.RUNNING, STUCK)
    await has_been_watched(light)
    light.batches_of(2)
    seen: list[int] = []
    heard = Heard()
    with pytest.raises(RecoveryStoppedError, match="leads the source no more") as stopped:
        await sweep(
            kept(light, heard), SweepOrder(actor="runner", unattended=True), seen.append, leads=lambda: not seen
        )
    assert stopped.value.recovered == 2
    assert Counter(row["status"] for row in await light.rows()) == {"failed": 2, "running": 4}
    assert heard.count(SweepFailed) == 1


# When it is due


def test_a_schedule_may_be_a_duration_or_a_cron_expression() -> None:
    said = SweepSettings.model_validate({"observe_every": "30s", "clean_every": "*/15 8-17 * * 1-5"})
    timetable = said.timetable()
    assert timetable.observe == Every(timedelta(seconds=30))
    assert timetable.clean == Cron("*/15 8-17 * * 1-5")
    friday = datetime(2026, 1, 2, 17, 45, tzinfo=UTC)
    assert timetable.clean.after(friday) == datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
    assert timetable.clean.apart == timedelta(days=2, hours=14, minutes=15)
    assert said.unattended().every == timetable.clean.apart


@pytest.mark.parametrize("said", ["* * *", "61 * * * *", "0 0 30 2 *", "never ever", "0s", "-1m", 5, None])
def test_a_schedule_that_never_comes_true_is_refused(said: object) -> None:
    with pytest.raises(ValueError, match="clean_every"):
        SweepSettings.model_validate({"clean_every": said})


async def test_what_was_observed_is_there_for_every_replica(bench: SqlBench) -> None:
    """Each number of an observation, from the record, as it was."""
    await bench.add(JobState.QUEUED, STUCK)
    await bench.add(JobState.RUNNING, STUCK)
    await bench.add(JobState.RUNNING, Ages(started=MINUTE))
    heard = Heard()
    watched = kept(bench, heard)
    async with kept_up(Timetable(observe=Every(HOUR), clean=Every(HOUR)), main=watched):
        await heard.wait(Observed)
        await heard.wait(Swept)
    assert watched.watches is not None
    record = await watched.watches.find("main")
    assert record is not None
    observed = next(event for event in heard.events if isinstance(event, Observed))
    assert record.observed == replace(observed, swept_at=None)  # which the record tells by itself
    assert record.observed_at is not None
    assert record.swept_at is not None
    assert record.began_at <= record.observed_at <= record.at


async def test_nothing_is_done_to_who_is_stuck_when_the_policy_leaves_them(light: SqlBench) -> None:
    """Observation and alerts alone: `action = "leave"`."""
    await light.add(JobState.RUNNING, STUCK)
    await has_been_watched(light)
    heard = Heard()
    async with kept_up(main=kept(light, heard, Policy(action=Action.LEAVE))):
        await heard.wait(Swept, 2)
    swept = next(event for event in heard.events if isinstance(event, Swept))
    assert swept.tally.of(outcome=Outcome.LEFT) == 1
    assert (await light.rows())[0]["status"] == "running"
    async with light.engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT count(*) FROM unstick_audit"))).scalar_one() == 0


async def test_an_error_of_our_own_ends_no_watch(light: SqlBench, caplog: pytest.LogCaptureFixture) -> None:
    """A reaper that dies in silence is what nobody wants."""

    class Broken(Every):
        def after(self, last: datetime) -> datetime:
            if len(asked) < 2:
                asked.append(last)
                raise ZeroDivisionError("a bug in a schedule")
            return super().after(last)

    asked: list[datetime] = []
    heard = Heard()
    timetable = Timetable(observe=Broken(timedelta(milliseconds=20)), clean=Every(timedelta(milliseconds=40)))
    async with kept_up(timetable, main=kept(light, heard)):
        await heard.wait(Observed, 4)
        await heard.wait(Swept, 2)
    assert len(asked) == 2
    assert caplog.text.count("a bug in a schedule") >= 1


async def test_a_sweep_that_was_done_is_told_though_it_can_not_be_kept(
    light: SqlBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the record of the watch nor the stream of events stands between a sweep and its listeners."""
    await light.add(JobState.RUNNING, STUCK)
    await has_been_watched(light)
    async with light.engine.begin() as connection:
        for table in ("unstick_watches", "unstick_events"):
            await connection.execute(sa.text(f"DROP TABLE {table}"))
    heard = Heard()
    watched = replace(kept(light, heard), event_log=SqlEventLog(EngineConnections(light.engine)))

    report = await sweep(watched, SweepOrder(actor="cron", unattended=True))

    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    assert heard.count(Swept) == 1
    assert "could not be kept that source 'main' was swept" in caplog.text


async def test_a_sweep_that_failed_is_told_though_its_ledger_takes_nothing(light: SqlBench) -> None:
    """A disk that is full, or a standby that is read only: whoever watches must hear of it."""
    await light.add(JobState.RUNNING, STUCK)
    await has_been_watched(light)
    async with light.engine.begin() as connection:
        for table in ("unstick_watches", "unstick_audit"):
            await connection.execute(sa.text(f"DROP TABLE {table}"))
    heard = Heard()
    with pytest.raises(Exception, match="unstick_audit"):
        await sweep(kept(light, heard), SweepOrder(actor="cron", unattended=True))
    assert heard.count(SweepFailed) == 1


async def test_a_long_sweep_keeps_nobody_from_observing(light: SqlBench) -> None:
    await light.add(JobState.RUNNING, STUCK)
    await has_been_watched(light)
    sweeping = asyncio.Event()

    async def follow(*given: Any) -> Any:  # noqa: ANN401
        sweeping.set()
        await asyncio.Event().wait()
        yield given

    vars(light.source)["recover_by_rule"] = follow
    heard = Heard()
    async with kept_up(main=kept(light, heard)):
        await asyncio.wait_for(sweeping.wait(), 20)
        await heard.wait(Observed, heard.count(Observed) + 3)
    assert heard.count(Swept) == 0


async def test_a_listener_that_never_comes_back_is_not_waited_for(
    light: SqlBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent:
        async def hear(self, event: PipelineEvent) -> None:
            del event
            await asyncio.Event().wait()

    monkeypatch.setattr(emitting_module, "TAKES_AT_MOST_SECONDS", 0.05)
    heard = Heard()
    watched = replace(kept(light, heard), listeners=(Silent(), heard))
    async with kept_up(main=watched):
        await heard.wait(Observed, 2)
    assert "Silent took too long to take note of Observed" in caplog.text
