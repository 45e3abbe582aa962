"""RQ's jobs behind a real broker: what every source must do, and what RQ's own keys ask of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.rq_jobs import NAME, WORDS, RqBench, open_rq_bench, written
from unstick.cli import main
from unstick.config import Settings, load_settings
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import ConfigurationError, SourceUnavailableError
from unstick.domain.evidence import Holding
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action, Outcome
from unstick.domain.standing import Standing
from unstick.domain.undo import CLAIMED
from unstick.pipeline.observing import observe
from unstick.pipeline.report import report_stats, report_stuck
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.verdict import judge
from unstick.pipeline.watched import Watched
from unstick.systems.rq.accusing import LOST_AFTER, _sighted
from unstick.systems.rq.broker import Broker, number, open_broker, text, texts
from unstick.systems.rq.changes import NOTHING_KEPT
from unstick.systems.rq.reading import MOST_READ, Reader
from unstick.systems.rq.source import RqSource
from unstick.systems.rq.witness import RqExecutions
from unstick.testing.conformance import MINUTE, Ages, JobSourceConformance, batch_of, look_at, suspects_of, undo_of
from unstick.testing.memory import MemoryLedger
from unstick.testing.witnesses import WitnessConformance
from unstick.wiring import guard_table, open_watched, open_worker, upgrade_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from unstick.domain.suspect import Look

STUCK = Ages(enqueued=90 * MINUTE, started=60 * MINUTE)
WAITED = Ages(enqueued=60 * MINUTE)


@pytest.fixture
async def bench(broker: str) -> AsyncIterator[RqBench]:
    async with AsyncExitStack() as stack:
        yield await open_rq_bench(broker, stack)


class TestRqSource(JobSourceConformance):
    """The shipped suite, with a ledger beside it."""


def watched(bench: RqBench, policy: Policy | None = None) -> Watched:
    source, ledger = RqSource(NAME, bench.broker, bench.sightings), MemoryLedger(bench.memory)
    return Watched(source=source, ledger=ledger, policy=policy or Policy(), witnesses=(RqExecutions(bench.broker),))


async def says(bench: RqBench, job_id: JobId, **fields: str) -> None:
    """Write fields of a job's beside those that the bench writes."""
    await bench.broker.ask("HSET", f"rq:job:{job_id}", *itertools.chain.from_iterable(fields.items()))


async def execution_of(bench: RqBench, job_id: JobId) -> str:
    """Return the one execution of a job."""
    members = texts(await bench.broker.ask("ZRANGE", "rq:wip:default", 0, -1))
    (execution,) = [each.partition(":")[2] for each in members if each.startswith(f"{job_id}:")]
    return execution


async def changes_so_far(broker: Broker) -> int:
    """Return how many changes were made to what the broker keeps."""
    told = text(await broker.ask("INFO", "persistence")) or ""
    return int(dict(line.split(":", 1) for line in told.splitlines() if ":" in line)["rdb_changes_since_last_save"])


# Reads


async def test_no_read_changes_anything(bench: RqBench) -> None:
    """RQ's own registries fail and queue jobs as they are counted; ours are read past them."""
    for state in WORDS:
        await bench.add(state, STUCK)
    await bench.broker.ask("RPUSH", "rq:queue:default:intermediate", await bench.add(JobState.QUEUED, WAITED))
    all_of_it, before = watched(bench), await changes_so_far(bench.broker)

    await report_stuck(all_of_it)
    await report_stats(all_of_it)
    await observe(all_of_it)
    for job_id in range(1, len(WORDS) + 1):
        assert await judge(all_of_it, f"job-{job_id:06}") is not None
    report = await sweep(all_of_it, SweepOrder(actor="test", dry_run=True))

    assert report.tally.of(outcome=Outcome.APPLIED) == 3
    assert await changes_so_far(bench.broker) == before


async def test_of_a_million_waiting_jobs_a_bounded_number_is_read(bench: RqBench) -> None:
    """The first in their queue, which workers take first; the counts say that they are a least."""
    await fill(bench.broker, 1_000_000, timedelta(hours=1))
    await bench.broker.ask("CONFIG", "RESETSTAT")

    counts = await bench.source.count_suspects(await look_at(bench))

    assert (counts.queued, counts.exact) == (MOST_READ, False)
    assert await calls_of(bench.broker, "hmget") == MOST_READ
    assert (await bench.source.open_jobs()).by_state[JobState.QUEUED] == 1_000_000
    report = await report_stuck(watched(bench), limit=1)
    assert (report.counts.queued, report.exact) == (MOST_READ, False)
    unasked = await report_stuck(replace(watched(bench), witnesses=()), limit=1)
    assert (unasked.counts.queued, unasked.exact) == (MOST_READ, False)
    assert (await observe(watched(bench))).exact is False


async def fill(broker: Broker, most: int, waited: timedelta) -> None:
    """Put ids into a queue, the first of them with jobs that have waited for so long."""
    script = """
        for number = ARGV[1] + 1, ARGV[1] + 50000 do
          local id = string.format('job-%07d', number)
          redis.call('RPUSH', 'rq:queue:default', id)
          if number <= 20000 then
            redis.call('HSET', 'rq:job:' .. id, 'status', 'queued', 'origin', 'default', 'enqueued_at', ARGV[2])
          end
        end
        redis.call('SADD', 'rq:queues', 'rq:queue:default')
    """
    since = written(await broker.clock() - waited)
    for start in range(0, most, 50_000):
        await broker.ask("EVAL", script, 0, start, since)


async def calls_of(broker: Broker, command: str) -> int:
    told = (text(await broker.ask("INFO", "commandstats")) or "").partition(f"cmdstat_{command}:calls=")[2]
    return int(told.partition(",")[0])


async def test_a_long_queue_of_young_jobs_is_read_no_further_than_its_head(bench: RqBench) -> None:
    """Its list is in order: behind the young there are only younger."""
    await fill(bench.broker, 50_000, timedelta(0))
    await bench.broker.ask("CONFIG", "RESETSTAT")

    counts = await bench.source.count_suspects(await look_at(bench))

    assert (counts.total, counts.exact) == (0, True)
    assert await calls_of(bench.broker, "hmget") == 1_000


async def test_a_job_that_cannot_be_read_is_told_and_the_others_are_recovered(bench: RqBench) -> None:
    """Promise 8: one bad row never stops a sweep."""
    bad, no_job, good = [await bench.add(JobState.QUEUED, WAITED) for _ in range(3)]
    await says(bench, bad, enqueued_at="yesterday")
    await bench.broker.ask("DEL", f"rq:job:{no_job}")
    await bench.broker.ask("SET", f"rq:job:{no_job}", "of another kind")
    await says(bench, good, failure_ttl="long", ttl="", dependency_ids="{")

    report = await sweep(watched(bench), SweepOrder(actor="test"))

    assert [(each.job_id, each.outcome) for each in report.failures] == [(bad, Outcome.FAILED)]
    assert [(await bench.broker.ask("HGET", f"rq:job:{each}", "status")) for each in (bad, good)] == [
        "queued", "failed"
    ]  # fmt: skip


async def test_a_queue_that_drains_is_a_backlog_and_no_job_of_it_is_stuck(bench: RqBench) -> None:
    """Claims within the threshold show it, as long as RQ keeps what came of them."""
    waiting = await bench.add(JobState.QUEUED, WAITED)
    for _ in range(2):
        await bench.add(JobState.SUCCEEDED, Ages(enqueued=90 * MINUTE, started=MINUTE, completed=timedelta(0)))

    verdict = await judge(watched(bench), waiting)

    assert verdict is not None
    assert verdict.standing is Standing.BACKLOG
    assert (await report_stuck(watched(bench))).counts.total == 0


async def test_a_job_that_a_worker_took_a_moment_ago_is_no_suspect(bench: RqBench) -> None:
    """It is in no queue for that moment, however long it waited before; only a second look tells."""
    job_id = await bench.add(JobState.QUEUED, WAITED)
    await bench.broker.ask("LMOVE", "rq:queue:default", "rq:queue:default:intermediate", "LEFT", "RIGHT")
    look = await look_at(bench)

    assert await suspects_of(bench, look) == []
    assert await suspects_of(bench, replace(look, taken_at=look.taken_at + LOST_AFTER - timedelta(seconds=1))) == []
    (lost,) = await suspects_of(bench, replace(look, taken_at=look.taken_at + LOST_AFTER))
    assert (lost.job_id, lost.lost) == (job_id, "a worker took it from its queue and was gone before it began")
    assert [each.lost is not None for each in await listed(bench, look.taken_at + LOST_AFTER)] == [True]


async def listed(bench: RqBench, at: datetime) -> Sequence[Job]:
    look = replace(await look_at(bench), taken_at=at)
    return await bench.source.list_suspects(look, JobState.QUEUED, limit=9, after=None)


async def test_jobs_of_each_queue_are_counted_and_listed_for_their_own_reason(bench: RqBench) -> None:
    """One queue has a worker, and another one none; a lost message is told wherever it was lost."""
    waits, deserted, lost = await bench.add(JobState.QUEUED, WAITED), await in_other_queue(bench), await taken(bench)
    await bench.broker.ask("SADD", "rq:workers:default", "rq:worker:w1")
    await bench.broker.ask("HSET", "rq:worker:w1", "birth", written(await bench.broker.clock()))
    earlier = await bench.broker.clock() - LOST_AFTER
    await bench.sightings.note(
        NAME, [_sighted(each) for each in await Reader(bench.broker).taken(["default"])], earlier
    )

    report, observed = await report_stuck(watched(bench)), await observe(watched(bench))

    assert {each.job.id: each.diagnosis.reason for each in report.queued} == {
        waits: Reason.NEVER_CLAIMED, deserted: Reason.UNSERVED, lost: Reason.MESSAGE_LOST
    }  # fmt: skip
    assert observed.stuck == {
        ("default", Reason.NEVER_CLAIMED): 1, ("other", Reason.UNSERVED): 1, ("default", Reason.MESSAGE_LOST): 1
    }  # fmt: skip
    assert [each.queues for each in report.unserved] == [("other",)]
    assert [observed.workers.serving(queue) for queue in ("default", "other", "gone")] == [1, 0, None]


async def in_other_queue(bench: RqBench) -> JobId:
    job_id = await bench.add(JobState.QUEUED, WAITED)
    await says(bench, job_id, origin="other")
    await bench.broker.ask("LMOVE", "rq:queue:default", "rq:queue:other", "RIGHT", "LEFT")
    await bench.broker.ask("SADD", "rq:queues", "rq:queue:other")
    return job_id


async def test_while_workers_are_suspended_nobody_who_waits_in_a_queue_is_recovered(bench: RqBench) -> None:
    """Nor is who was decided on before; what runs and what is lost is."""
    waits, lost = await bench.add(JobState.QUEUED, WAITED), await taken(bench)
    before = await lost_ones(bench)
    batch = batch_of(await suspects_of(bench, before), before)
    assert [each.suspect.job_id for each in batch.decisions] == [waits, lost]
    await bench.broker.ask("SET", "rq:suspended", 1)

    assert [each.job_id for each in await suspects_of(bench, before)] == [lost]
    assert (await bench.source.recover(batch)).applied == {lost}
    verdict = await judge(watched(bench), waits)
    assert verdict is not None
    assert verdict.standing is Standing.PAUSED


# Writes


async def test_a_job_of_which_an_execution_lives_is_never_changed(bench: RqBench) -> None:
    """Promise 1: whatever its times say, and whoever asks."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)
    execution = await execution_of(bench, job_id)
    await bench.broker.ask("HSET", f"rq:execution:{job_id}:{execution}", "last_heartbeat", "1")

    result = await bench.source.recover(batch)

    assert (result.applied, await bench.outcomes(job_id)) == (frozenset(), [Outcome.LOST_RACE])
    assert (await bench.get(job_id)).job.state is JobState.RUNNING


async def test_a_job_that_a_worker_takes_from_the_queue_between_look_and_write_is_left_alone(bench: RqBench) -> None:
    """Nothing in the job itself tells of it yet."""
    job_id = await bench.add(JobState.QUEUED, WAITED)
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)
    await bench.broker.ask("LPOP", "rq:queue:default")

    result = await bench.source.recover(batch)

    assert (result.applied, await bench.outcomes(job_id)) == (frozenset(), [Outcome.LOST_RACE])
    assert (await bench.get(job_id)).job.state is JobState.QUEUED
    assert await bench.broker.ask("ZSCORE", "rq:failed:default", str(job_id)) is None


async def test_a_job_of_which_rq_would_keep_nothing_is_not_failed(bench: RqBench) -> None:
    """Its failure_ttl says so; what can't be undone or even read again isn't done unasked."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await says(bench, job_id, failure_ttl="0")
    look = await look_at(bench)

    result = await bench.source.recover(batch_of(await suspects_of(bench, look), look))

    assert result.refused == {job_id: NOTHING_KEPT}
    assert (await bench.get(job_id)).job.state is JobState.RUNNING
    assert (await bench.source.recover(batch_of(await suspects_of(bench, look), look, Action.RETRY))).applied == {
        job_id
    }


@pytest.mark.parametrize(("ttl", "kept_for"), [(None, 365 * 24 * 3600), ("60", 60), ("-1", None)])
async def test_a_failed_job_is_kept_for_as_long_as_it_says(
    bench: RqBench, ttl: str | None, kept_for: int | None
) -> None:
    """And no longer: RQ's registry and the job's own keys agree on it."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    if ttl is not None:
        await says(bench, job_id, failure_ttl=ttl)
    look = await look_at(bench)

    await bench.source.recover(batch_of(await suspects_of(bench, look), look))

    left = [number(await bench.broker.ask("TTL", key)) for key in (f"rq:job:{job_id}", f"rq:results:{job_id}")]
    score = float(text(await bench.broker.ask("ZSCORE", "rq:failed:default", str(job_id))) or "nan")
    if kept_for is None:
        assert (left, score) == ([-1, -1], -1)
    else:
        assert all(kept_for - 5 <= each <= kept_for for each in left)
        assert abs(score - look.taken_at.timestamp() - kept_for) < 5


async def test_a_retry_is_put_off_only_where_a_scheduler_lives_to_bring_it_back(bench: RqBench) -> None:
    """Without one it would never be queued again; so it is queued at once."""
    now, later = [await bench.add(JobState.RUNNING, STUCK) for _ in range(2)]
    policy = Policy(action=Action.RETRY)
    await sweep(replace(watched(bench, policy), policy=policy), SweepOrder(actor="test"))
    assert [(await bench.get(each)).job.status for each in (now, later)] == ["queued", "queued"]

    await bench.broker.ask("SET", "rq:scheduler-lock:default", "somebody")
    await bench.write(later, JobState.RUNNING, STUCK)
    await sweep(watched(bench, policy), SweepOrder(actor="test"))

    put_off = (await bench.get(later)).job
    assert put_off.status == "scheduled"
    assert put_off.scheduled_at is not None
    assert timedelta(0) < put_off.scheduled_at - await bench.broker.clock() < 2 * MINUTE


async def taken(bench: RqBench) -> JobId:
    """A job whose worker was gone before it began it: RQ has it nowhere but among the executions."""
    job_id = await bench.add(JobState.RUNNING, WAITED)
    await says(bench, job_id, status="queued")
    return job_id


async def deferred(bench: RqBench, *parents: JobId) -> JobId:
    """A job that waits for others."""
    job_id = await bench.add(JobState.SCHEDULED, WAITED)
    await bench.broker.ask("ZREM", "rq:scheduled:default", str(job_id))
    await bench.broker.ask("ZADD", "rq:deferred:default", 1, str(job_id))
    await says(bench, job_id, status="deferred", dependency_ids=json.dumps(parents or ["gone"]))
    return job_id


async def lost_ones(bench: RqBench) -> Look:
    """Return a look a while after another one, at which whatever is still where jobs only pass through is lost."""
    look = await look_at(bench)
    await suspects_of(bench, look)
    return replace(look, taken_at=look.taken_at + LOST_AFTER)


async def finishes(bench: RqBench, job_id: JobId) -> None:
    await says(bench, job_id, status="finished")


async def renews(bench: RqBench, job_id: JobId) -> None:
    await bench.broker.ask("ZADD", "rq:wip:default", 9e9, f"{job_id}:{await execution_of(bench, job_id)}")


async def is_queued_again(bench: RqBench, job_id: JobId) -> None:
    await bench.broker.ask("RPUSH", "rq:queue:default", str(job_id))


async def is_put_off(bench: RqBench, job_id: JobId) -> None:
    await bench.broker.ask("ZADD", "rq:scheduled:default", 9e9, str(job_id))


async def has_its_parent_back(bench: RqBench, _job_id: JobId) -> None:
    await bench.broker.ask("HSET", "rq:job:gone", "status", "queued")


@pytest.mark.parametrize(
    ("made", "interference"),
    [
        (lambda bench: bench.add(JobState.RUNNING, STUCK), finishes),
        (lambda bench: bench.add(JobState.RUNNING, STUCK), renews),
        (taken, is_queued_again),
        (lambda bench: bench.add(JobState.QUEUED, Ages(scheduled=60 * MINUTE)), is_put_off),
        (deferred, has_its_parent_back),
    ],
)
async def test_the_script_itself_leaves_alone_what_changed_after_all_was_read(
    bench: RqBench,
    made: Callable[[RqBench], Awaitable[JobId]],
    interference: Callable[[RqBench, JobId], Awaitable[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R1: nothing lies between its comparison and its write."""
    job_id, move = await made(bench), RqSource._move
    look = await lost_ones(bench)
    batch = batch_of(await suspects_of(bench, look), look)
    assert [each.suspect.job_id for each in batch.decisions] == [job_id]

    async def interfere(source: RqSource, orders: Sequence[Mapping[str, object]]) -> list[str]:
        await interference(bench, job_id)
        return await move(source, orders)

    monkeypatch.setattr(RqSource, "_move", interfere)
    result = await bench.source.recover(batch)

    assert (result.applied, await bench.outcomes(job_id)) == (frozenset(), [Outcome.LOST_RACE])
    assert await bench.broker.ask("ZSCORE", "rq:failed:default", str(job_id)) is None
    assert await bench.broker.ask("HGET", f"rq:job:{job_id}", "status") != "failed"


async def test_who_passes_through_is_not_lost(bench: RqBench) -> None:
    """A worker is at it, its parent is there, or it is back in its queue: seen twice or not."""
    begins = await taken(bench)
    await bench.broker.ask("HSET", f"rq:execution:{begins}:{await execution_of(bench, begins)}", "job_id", str(begins))
    again = await taken(bench)
    await bench.broker.ask("RPUSH", "rq:queue:default", str(again))
    await deferred(bench, again, "gone")

    look = await lost_ones(bench)

    assert [(each.job_id, each.lost) for each in await suspects_of(bench, look)] == [(again, None)]
    assert [kept.id for kept in await Reader(bench.broker).taken(["default"])] == [begins]


async def test_what_rq_leaves_of_an_earlier_attempt_says_nothing_of_this_one(bench: RqBench) -> None:
    """A job that RQ has queued again bears the start and the end of the attempt before."""
    young = await bench.add(JobState.QUEUED, Ages(enqueued=MINUTE, started=60 * MINUTE, completed=50 * MINUTE))
    old = await bench.add(JobState.QUEUED, Ages(enqueued=40 * MINUTE, started=60 * MINUTE, completed=50 * MINUTE))
    runs = await bench.add(JobState.RUNNING, Ages(enqueued=90 * MINUTE, started=40 * MINUTE, completed=50 * MINUTE))

    assert [each.job_id for each in await suspects_of(bench, await look_at(bench))] == [old, runs]
    assert (await bench.get(young)).job.state is JobState.QUEUED


# Undo


async def failed_with_dependent(bench: RqBench, *, allowed: bool) -> JobId:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    dependent = await bench.add(JobState.SCHEDULED, WAITED)
    await says(bench, dependent, status="deferred", allow_dependency_failures=str(int(allowed)))
    await bench.broker.ask("ZREM", "rq:scheduled:default", str(dependent))
    await bench.broker.ask("ZADD", "rq:deferred:default", 1, str(dependent))
    await bench.broker.ask("SADD", f"rq:job:{job_id}:dependents", str(dependent))
    await bench.broker.ask("SADD", f"rq:job:{dependent}:dependencies", str(job_id))
    look = await look_at(bench)
    assert (await bench.source.recover(batch_of(await suspects_of(bench, look), look))).applied == {job_id}
    return job_id


async def test_an_undo_is_refused_once_the_failure_has_let_a_dependent_go(bench: RqBench) -> None:
    """RQ queues it as soon as a worker looks; it can't be called back."""
    job_id = await failed_with_dependent(bench, allowed=True)
    assert texts(await bench.broker.ask("ZRANGE", "rq:ready:default", 0, -1)) == ["job-000002"]

    result = await bench.source.undo(undo_of(await bench.undoable(job_id)))

    assert result.lost == {job_id: LET_GO}
    assert (await bench.source.intend_undo(undo_of(await bench.undoable(job_id))))[1] == {job_id: LET_GO}
    assert (await bench.get(job_id)).job.state is JobState.FAILED


LET_GO = "a job that waited for it was let go when it failed, and can't be called back"


async def test_a_dependent_that_goes_while_its_job_is_put_back_stops_that(
    bench: RqBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RQ's own maintenance may let it go at any time."""
    job_id, move = await failed_with_dependent(bench, allowed=False), RqSource._move

    async def interfere(source: RqSource, orders: Sequence[Mapping[str, object]]) -> list[str]:
        await bench.broker.ask("DEL", f"rq:job:{job_id}:dependents")
        return await move(source, orders)

    undoable = await bench.undoable(job_id)
    monkeypatch.setattr(RqSource, "_move", interfere)

    assert (await bench.source.undo(undo_of(undoable))).lost == {job_id: LET_GO}


async def test_a_dependent_that_waits_for_another_job_too_isnt_let_go(bench: RqBench) -> None:
    job_id, other = await bench.add(JobState.RUNNING, STUCK), await bench.add(JobState.QUEUED, Ages(enqueued=MINUTE))
    dependent = await deferred(bench, job_id, other)
    await says(bench, dependent, allow_dependency_failures="1")
    await bench.broker.ask("SADD", f"rq:job:{job_id}:dependents", str(dependent))
    await bench.broker.ask("SADD", f"rq:job:{dependent}:dependencies", str(job_id), str(other))
    look = await look_at(bench)

    assert (await bench.source.recover(batch_of(await suspects_of(bench, look), look))).applied == {job_id}

    assert await bench.broker.ask("HGET", f"rq:job:{dependent}", "status") == "deferred"


async def test_an_undo_leaves_who_still_waits_waiting(bench: RqBench) -> None:
    job_id = await failed_with_dependent(bench, allowed=False)

    result = await bench.source.undo(undo_of(await bench.undoable(job_id)))

    assert result.applied == {job_id}
    assert texts(await bench.broker.ask("ZRANGE", "rq:deferred:default", 0, -1)) == ["job-000002"]
    stored = await bench.get(job_id)
    assert (stored.job.state, stored.error) == (JobState.RUNNING, None)
    assert number(await bench.broker.ask("TTL", f"rq:job:{job_id}")) == -1


async def test_an_undo_leaves_alone_what_a_worker_has_just_taken(bench: RqBench) -> None:
    """It still says that it is queued, but it is in no queue any more."""
    job_id = await bench.add(JobState.RUNNING, STUCK)
    look = await look_at(bench)
    await bench.source.recover(batch_of(await suspects_of(bench, look), look, Action.RETRY))
    undoable = await bench.undoable(job_id)
    await bench.broker.ask("LPOP", "rq:queue:default")

    result = await bench.source.undo(undo_of(undoable))

    assert (result.applied, result.lost) == (frozenset(), {job_id: CLAIMED})


async def test_whoever_is_put_back_into_a_queue_comes_first(bench: RqBench) -> None:
    """Its place there is lost, and it has waited longest."""
    job_id = await bench.add(JobState.QUEUED, WAITED)
    await bench.add(JobState.QUEUED, Ages(enqueued=timedelta(0)))
    look = await look_at(bench)
    await bench.source.recover(batch_of(await suspects_of(bench, look), look))

    await bench.source.undo(undo_of(await bench.undoable(job_id)))

    assert texts(await bench.broker.ask("LRANGE", "rq:queue:default", 0, -1))[0] == job_id


# Its witness


@dataclass(kw_only=True)
class Stand:
    """The leases of executions, and hands that give and take them."""

    bench: RqBench
    witness: RqExecutions
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def clock(self) -> datetime:
        return await self.bench.broker.clock()

    async def held(self) -> Job:
        job_id = await self.bench.add(JobState.RUNNING, STUCK)
        key = f"rq:execution:{job_id}:{await execution_of(self.bench, job_id)}"
        await self.bench.broker.ask("HSET", key, "worker_name", "w1")
        await self.bench.broker.ask("EXPIRE", key, 60)
        return await self._job(job_id)

    async def released(self) -> Job:
        return await self._job(await self.bench.add(JobState.RUNNING, STUCK))

    async def strange(self, count: int) -> Sequence[Job]:
        started_at = await self.clock() - timedelta(hours=1)
        return [
            Job(id=f"strange-{next(self.numbers)}", state=JobState.RUNNING, status="started", started_at=started_at)
            for _ in range(count)
        ]

    async def _job(self, job_id: JobId) -> Job:
        return (await self.bench.source.describe(await look_at(self.bench), [job_id]))[job_id]


class TestRqExecutions(WitnessConformance):
    @pytest.fixture
    async def stand(self, bench: RqBench) -> Stand:
        return Stand(bench=bench, witness=RqExecutions(bench.broker))


@pytest.mark.parametrize(
    ("born", "is_at_it", "death", "holding", "words"),
    [
        (120 * MINUTE, True, False, Holding.UNKNOWN, "but that worker lives and says that it is at it"),
        (120 * MINUTE, False, False, Holding.RELEASED, "and that worker lives and is not at it"),
        (120 * MINUTE, True, True, Holding.RELEASED, "and that worker is not there any more"),
        (30 * MINUTE, True, False, Holding.RELEASED, "after the job: it is another one"),
        (50 * MINUTE, True, False, Holding.UNKNOWN, "the job's times don't tell whether it is the same one"),
    ],
)
async def test_a_lease_that_ran_out_is_weighed_against_what_the_worker_says(
    bench: RqBench, born: timedelta, is_at_it: bool, death: bool, holding: Holding, words: str
) -> None:
    """Whoever lives and says that it is at it isn't convicted; another worker of the same name acquits nobody."""
    job_id = await bench.add(JobState.RUNNING, replace(STUCK, heartbeat=40 * MINUTE))
    await says(bench, job_id, worker_name="w1")
    now = await bench.broker.clock()
    await bench.broker.ask("HSET", "rq:worker:w1", "birth", written(now - born), *(["death", "x"] if death else []))
    if is_at_it:
        await bench.broker.ask("SADD", "rq:worker:w1:executions", f"{job_id}:{await execution_of(bench, job_id)}")
    jobs = await bench.source.describe(await look_at(bench), [job_id])

    said = (await RqExecutions(bench.broker).ask(list(jobs.values()), now))[job_id]

    assert said.holding is holding
    assert words in (said.value or "")


async def test_a_lease_holds_by_either_of_two_clocks(bench: RqBench) -> None:
    """By the broker's, which keeps its key, and by the worker's, which wrote its end: each may be wrong alone."""
    by_score = await bench.add(JobState.RUNNING, STUCK)
    end = (await bench.broker.clock() + MINUTE).timestamp()
    await bench.broker.ask("ZADD", "rq:wip:default", end, f"{by_score}:{await execution_of(bench, by_score)}")
    by_neither = await bench.add(JobState.RUNNING, STUCK)
    jobs = await bench.source.describe(await look_at(bench), [by_score, by_neither])

    said = await RqExecutions(bench.broker).ask(list(jobs.values()), await bench.broker.clock())

    assert {job_id: each.holding for job_id, each in said.items()} == {
        by_score: Holding.HELD, by_neither: Holding.RELEASED
    }  # fmt: skip


# The broker


async def test_a_broker_that_does_not_answer_is_told_without_its_password(broker: str) -> None:
    async with open_broker(broker) as opened:
        await opened.ask("CONFIG", "SET", "requirepass", "correct horse")
    wrong = broker.replace("unix://", "unix://:battery@")
    try:
        async with open_broker(wrong) as opened:
            with pytest.raises(SourceUnavailableError) as refused:
                await opened.clock()
        assert "battery" not in str(refused.value)
        async with open_broker(broker.replace("unix://", "unix://:correct%20horse@")) as opened:
            assert await opened.ask("PING") == "PONG"
    finally:
        async with open_broker(broker.replace("unix://", "unix://:correct%20horse@")) as opened:
            await opened.ask("CONFIG", "SET", "requirepass", "")


async def test_a_number_in_the_address_names_a_database_of_the_broker(broker: str) -> None:
    async with open_broker(broker.replace("db=0", "db=3")) as third, open_broker(broker) as first:
        await third.ask("SET", "there", 1)
        assert (await first.ask("EXISTS", "there"), await third.ask("EXISTS", "there")) == (0, 1)


async def test_a_write_whose_answer_is_lost_is_not_done_again(broker: str, tmp_path: Path) -> None:
    """It would find its own change, and take it for somebody else's; an intent is settled by looking instead."""
    behind = urlsplit(broker).path

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_unix_connection(behind)
        while said := await reader.read(65_536):
            to_broker.write(said)
            answer = await from_broker.read(65_536)
            if b"INCR" in said:
                break
            writer.write(answer)
        writer.close()
        to_broker.close()

    socket = tmp_path / "socket"
    async with await asyncio.start_unix_server(pass_on, socket), open_broker(f"unix://{socket}") as cut_off:
        with pytest.raises(SourceUnavailableError):
            await cut_off.ask("INCR", "writes")
    async with open_broker(broker) as opened:
        assert await opened.ask("GET", "writes") == "1"


def test_the_page_on_rq_says_what_works(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file and its commands, with nothing changed but the broker's address."""
    page = PAGE.read_text()
    (configured,), (commands,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("toml", "sh"))
    (tmp_path / "unstick.toml").write_text(configured.replace("redis://localhost:6379/0", broker))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    job_id = asyncio.run(put_a_report(broker))

    told = {command: run(command, monkeypatch, capsys) for command in commands.splitlines()}

    assert [code for code, _ in told.values()] == [0, 1, 0]
    assert f"{job_id}  started  reports.monthly" in told["unstick stuck"][1]
    assert "its worker is gone: rq says the lease of its worker ran out at" in told["unstick stuck"][1]
    assert "retry 1" in told["unstick sweep --dry-run"][1]


PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "rq.md"


async def put_a_report(broker: str) -> JobId:
    async with AsyncExitStack() as stack:
        bench = await open_rq_bench(broker, stack)
        job_id = await bench.add(JobState.RUNNING, STUCK)
        await says(bench, job_id, description="reports.monthly('may')")
        return job_id


def run(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command; return its exit code and what it says."""
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().out


# Its settings


def settings(text: str, directory: Path) -> Settings:
    file = directory / "unstick.toml"
    file.write_text(text)
    return load_settings(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('url = "redis://host"', "with a url of a broker (redis://, rediss://, unix://), and not without one."),
        ('url = "sqlite:///jobs.db"\npreset = "rq"', "with a url of a broker (redis://, rediss://, unix://)"),
        ('url = "redis://host"\npreset = "rq"\ntable = "jobs"', "must not have `table`, which is about a table"),
        ('url = "redis://host"\npreset = "rq"\ntimezone = "UTC"', "must not have `timezone`"),
    ],
)
def test_a_broker_is_named_with_its_system_and_without_a_table(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(f"[sources.mail]\n{text}", tmp_path)

    assert said in str(refused.value)


async def test_what_needs_a_table_or_a_ledger_says_so(tmp_path: Path) -> None:
    """A broker has neither a place for the ledger nor rows for a trigger, a worker's lease or `AdminService`."""
    bare = settings('[sources.mail]\nurl = "redis://nobody.invalid"\npreset = "rq"', tmp_path)

    for refusing, said in (
        (open_watched(bare).__aenter__, "The jobs of source 'mail' are behind a broker"),
        (partial(upgrade_database, bare), "name a database for it"),
        (open_worker(bare).__aenter__, "are run by the workers of their own system"),
        (partial(guard_table, bare), "this takes a jobs table"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            await refusing()
        assert said in str(refused.value)


async def test_a_broker_that_is_not_there_is_told_when_the_source_is_opened(tmp_path: Path) -> None:
    text = f'[sources.mail]\nurl = "unix://{tmp_path}/none"\npreset = "rq"\n[ledger]\nurl = "sqlite:///{tmp_path}/l.db"'
    away = settings(text, tmp_path)
    await upgrade_database(away)

    with pytest.raises(SourceUnavailableError, match="The broker doesn't answer as it should"):
        await open_watched(away).__aenter__()


def test_an_address_that_means_nothing_is_told_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="The broker's address can't be understood"):
        asyncio.run(open_broker("redis://host:port").__aenter__())
