"""The story of one job, built from what really happened to it, and read word for word."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.jobs import SqlBench, open_bench
from tests.one_job import KEYS, keyed_bench, whole
from tests.servers import EACH_KIND
from tests.test_rulings import REFUSING
from tests.test_worker import OWN, Shop, shop
from unstick.domain.errors import LateFinishError, NotStuckError, UnknownJobError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action
from unstick.pipeline.job_shapes import story_shape
from unstick.pipeline.recovering import RecoverOrder, recover_job
from unstick.pipeline.snoozing import SnoozeOrder, snooze
from unstick.pipeline.story import Story, tell_story
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql import tables
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections
from unstick.testing.conformance import MINUTE, Ages
from unstick.wiring import watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.domain.job import JobId
    from unstick.pipeline.watched import Watched
    from unstick.worker import Worker

DATABASES = EACH_KIND

__all__ = ["shop"]  # the fixture of the worker kit's own tests

HOUR = timedelta(hours=1)
STUCK = Ages(enqueued=3 * HOUR, started=2 * HOUR)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    opened = await open_bench(database)
    yield opened
    await opened.close()


def kept(shop: Shop, policy: Policy | None = None) -> Watched:
    return watch("main", OWN, EngineConnections(shop.engine), policy or Policy())


def plain(sentence: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "<time>", sentence)


def read(story: Story) -> list[tuple[str, str]]:
    """Return what a story says, and that its events are in the order of their times."""
    assert [each.at for each in story.events] == sorted(each.at for each in story.events)
    return [(each.kind, plain(each.sentence)) for each in story.events]


def named(worker: Worker) -> str:
    return f"{worker.identity.host}:{worker.identity.pid}"


async def test_a_job_that_was_lost_retried_and_finished_reads_in_order(shop: Shop) -> None:
    """Enqueued, claimed, beaten, its lease run out, swept, its late result refused, claimed again and finished."""
    policy = Policy(retry_backoff=timedelta(milliseconds=1))
    watched = kept(shop, policy)
    job_id = await shop.put("essay", key="order-7")
    async with shop.worker() as zombie, shop.worker() as other:
        (stale,) = await zombie.claim()
        running = await tell_story(watched, job_id)
        await _end_lease(shop, zombie)
        stuck = await tell_story(watched, job_id)
        await sweep(watched, SweepOrder(actor="ann", role="operator", action=Action.RETRY))
        with pytest.raises(LateFinishError):
            await zombie.finish(stale)
        await shop.execute(sa.update(tables.jobs).values(scheduled_at=None))
        (fresh,) = await other.claim()
        await other.finish(fresh, {"progress": 100})
        over = await tell_story(watched, str(job_id))
        one, two = named(zombie), named(other)

    assert read(running) == [
        ("enqueued", "It was enqueued."),
        ("worker_began", f"Worker {one} began to work."),
        ("started", f"It was started by {one}."),
        ("worker_beat", f"Worker {one} last beat."),
        ("lease_end", f"The lease of {one} runs out."),
    ]
    assert plain(running.sentence) == f"Job {job_id} is running, and its worker beat just now; it isn't stuck."
    assert running.standing == "held"
    assert plain(stuck.sentence) == (
        f"Job {job_id} is stuck in running: its worker last beat at <time>, and its lease ran out."
    )
    assert stuck.outlook == "A sweep would mark it failed."
    assert read(over) == [
        ("enqueued", "It was enqueued."),
        (
            "recovered",
            "A sweep by ann queued it again: its worker last beat at <time>, and its lease ran out.",
        ),
        ("late_finish", f"{one} came with its result when the job was no longer its own; that was refused."),
        ("started", f"It was started by {two}."),
        ("completed", "It succeeded."),
    ]
    assert re.fullmatch(f"Job {job_id} succeeded (just now|[0-9]+ seconds? ago); it isn't stuck\\.", over.sentence)
    assert over.outlook == "A sweep would do nothing to it."
    overwrote: Any = over.events[1].data["overwrote"]
    assert overwrote["worker"] == zombie.identity.name


async def _end_lease(shop: Shop, worker: Worker) -> None:
    now = await shop.watched.source.clock()
    theirs = tables.leases.c.id == worker.identity.name
    await shop.execute(sa.update(tables.leases).where(theirs).values(expires_at=now))


async def test_what_people_did_to_a_job_reads_in_order(bench: SqlBench) -> None:
    """Snoozed, woken, recovered by name and by ruling; what was refused belongs to it, too."""
    watched = whole(bench)
    job_id = await bench.add(JobState.RUNNING, STUCK)
    bystander = await bench.add(JobState.RUNNING, STUCK)
    ann: Any = {"actor": "ann", "role": "operator", "job_id": str(job_id)}
    await snooze(watched, SnoozeOrder(**ann, reason="the customer is asked", lasting=HOUR))
    snoozed = await tell_story(watched, job_id)
    await snooze(watched, SnoozeOrder(**ann, reason="they answered"))
    await recover_job(watched, RecoverOrder(**ann, action=Action.RETRY, reason="web-3 was shut down"))
    await bench.write(job_id, JobState.RUNNING, Ages(enqueued=3 * HOUR, started=HOUR))
    await sweep(watched, SweepOrder(actor="cron", action=Action.MARK_FAILED))

    story = await tell_story(watched, job_id)

    message = (
        "Job stuck in running for more than 30 minutes: its last sign of life was at <time>. Automatically cleaned up."
    )
    assert read(story) == [
        ("enqueued", "It was enqueued."),
        ("started", "It was started."),
        ("snoozed", "ann had it left alone until <time>: the customer is asked."),
        ("unsnoozed", "ann ended its snooze: they answered."),
        ("recovered", "ann queued it again (web-3 was shut down): its last sign of life was at <time>."),
        ("recovered", "A sweep by cron marked it failed: its last sign of life was at <time>."),
        ("completed", f"It failed: {message}"),
    ]
    assert plain(snoozed.outlook) == "Sweeps leave it alone until <time>: ann snoozed it (the customer is asked)."
    assert plain(snoozed.sentence) == (
        f"Job {job_id} is stuck in running for 2 hours, where 30 minutes may pass: its last sign of life was at <time>."
    )
    assert [kind for kind, _ in read(await tell_story(watched, bystander))] == [
        "enqueued", "started", "recovered", "completed",
    ]  # fmt: skip


async def test_a_race_that_was_lost_and_a_write_that_was_refused_are_told(bench: SqlBench, database: Database) -> None:
    await bench.put({}, {})
    await bench.execute(*REFUSING[database.backend])
    await recover_job(whole(bench), RecoverOrder(actor="ann", job_id=2, action=Action.MARK_FAILED))
    now = await bench.source.clock()
    lost = {"operation_id": 1, "source": "main", "job_id": "2", "state": "running", "action": "retry", "at": now}
    said = {"reason": "silent", "outcome": "lost_race", "detail": "it changed"}
    async with bench.engine.begin() as connection:
        await connection.execute(sa.insert(tables.recoveries).values(**lost, **said))
        await connection.execute(
            sa.insert(tables.intents).values(
                **{**lost, "reason": "silent", "detail": "", "numeric_id": True, "pre_image": "{}", "post_image": "{}"}
            )
        )

    told = dict(read(await tell_story(whole(bench), 2)))

    assert re.fullmatch("ann could not mark it failed: .*legal hold.*", told["recovery_failed"])
    assert told["lost_race"] == "ann was to queue it again, and left it: it changed."
    assert told["intended"] == "ann was about to queue it again; what came of it is not on record yet."


@pytest.mark.parametrize("ruled_from", [1, 500], ids=["ruled", "one by one"])
@pytest.mark.parametrize("keys", KEYS)
async def test_each_job_has_its_own_story_however_alike_their_ids(
    database: Database, keys: str, ruled_from: int
) -> None:
    """Large numbers to the last digit, and text with whatever JSON and LIKE make of it."""
    bench, ids = await keyed_bench(database, keys, ruled_from=ruled_from)
    await bench.put(*({"id": each} for each in ids[:3]))
    await sweep(whole(bench), SweepOrder(actor="cron"))
    await bench.put({"id": ids[3]})

    stories = [await tell_story(whole(bench), str(each)) for each in ids]
    await bench.close()

    kinds = [[kind for kind, _ in read(each)] for each in stories]
    assert kinds == [["enqueued", "started", "recovered", "completed"]] * 3 + [["enqueued", "started"]]
    shapes = json.loads(json.dumps([story_shape(each, ()) for each in stories]))
    assert [each["id"] for each in shapes] == [each if isinstance(each, int) else str(each) for each in ids]


async def test_a_job_that_is_gone_still_has_its_story(bench: SqlBench) -> None:
    for ruled in (True, False):
        job_id = await bench.add(JobState.RUNNING, STUCK)
        await bench.add(JobState.SUCCEEDED, STUCK)  # or SQLite would give the id again
        await bench.sweep(Action.MARK_FAILED if ruled else Action.RETRY)
        await bench.execute(f"DELETE FROM ai_generation_jobs WHERE id = {job_id}")

        story = await tell_story(whole(bench), str(job_id))

        assert [kind for kind, _ in read(story)] == ["recovered"]
        assert story.standing == "gone"
        assert story.sentence == f"Job {job_id} isn't in source 'main' any more; this is what is on record of it."
    with pytest.raises(UnknownJobError, match="Source 'main' has no job 99"):
        await tell_story(whole(bench), "99")


async def test_a_story_is_cut_to_its_newest_events_and_says_so(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(Action.RETRY)
    (first,) = await bench.recoveries(job_id)
    row = {"operation_id": 1, "source": "main", "job_id": str(job_id), "state": "running", "action": "retry"}
    said = {"reason": "silent", "outcome": "lost_race"}
    async with bench.engine.begin() as connection:
        for number in range(1, 6):
            at = first.at + number * timedelta(seconds=1)
            await connection.execute(sa.insert(tables.recoveries).values(**row, **said, detail=f"the {number}.", at=at))

    story = await tell_story(whole(bench), job_id, limit=4)
    all_of_it = await tell_story(whole(bench), job_id)

    assert story.truncated
    assert [each.kind for each in story.events][-1] == "due"
    assert [each.sentence[-6:] for each in story.events[:-1]] == ["the 3.", "the 4.", "the 5."]
    assert not all_of_it.truncated
    assert len(all_of_it.events) == 8


async def test_it_says_which_policy_governs_and_what_a_sweep_would_do(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    rules = (
        Rule(kind="other", action=Action.LEAVE),
        Rule(kind="sum*", running_after=HOUR, action=Action.RETRY, max_recoveries=1),
    )

    async def outlook(policy: Policy) -> str:
        watched = replace(whole(bench, policy), brakes=SqlBrakes(EngineConnections(bench.engine)))
        return (await tell_story(watched, job_id)).outlook

    shape = story_shape(await tell_story(whole(bench, Policy(rules=rules)), job_id), rules)
    leave, ask = Policy(action=Action.LEAVE), Policy(ask=True)
    assert shape["diagnosis"]["policy"] is not None
    assert (shape["diagnosis"]["policy"]["rule"], shape["diagnosis"]["policy"]["matches"]) == (2, {"kind": "sum*"})
    assert shape["diagnosis"]["policy"]["running_after_seconds"] == 3600
    assert re.fullmatch(r"A sweep would queue it again, due \d+ seconds later\.", shape["diagnosis"]["sweep"])
    assert await outlook(leave) == "A sweep would leave it alone, as its policy says."
    assert await outlook(ask) == "A sweep would mark it failed; one that nobody watches would leave it to a person."
    await bench.sweep(policy=Policy(rules=rules))
    await bench.write(job_id, JobState.RUNNING, STUCK)
    assert (await outlook(Policy(rules=rules))).startswith("A sweep would mark it failed as poison: its last sign")


async def test_looking_at_a_job_changes_and_records_nothing(bench: SqlBench) -> None:
    job_id = await bench.add(JobState.RUNNING, STUCK)
    before = await bench.rows()
    await tell_story(whole(bench), job_id)

    assert await bench.rows() == before
    assert (await bench.audit(), await bench.recoveries()) == ([], [])


async def test_a_row_that_cant_be_read_has_a_story_that_says_so(sqlite_database: Database) -> None:
    bench = await open_bench(sqlite_database)
    job_id = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(Action.RETRY)
    await bench.execute("UPDATE ai_generation_jobs SET started_at = 'yesterday', status = 'running'")

    story = await tell_story(whole(bench), job_id)
    with pytest.raises(NotStuckError, match=r"can't be judged: its row can't be read: .*yesterday"):
        await recover_job(whole(bench), RecoverOrder(actor="ann", job_id=job_id))

    await bench.close()
    assert story.standing == "unknown"
    assert [kind for kind, _ in read(story)] == ["recovered"]


async def test_what_is_due_or_waits_is_told(bench: SqlBench) -> None:
    later = await bench.add(JobState.QUEUED, Ages(enqueued=HOUR, scheduled=-HOUR))
    beats = await bench.add(JobState.RUNNING, Ages(enqueued=HOUR, started=20 * MINUTE, heartbeat=10 * MINUTE))
    ended = await bench.add(JobState.CANCELLED, Ages(enqueued=HOUR, started=20 * MINUTE, completed=MINUTE))

    told: list[list[tuple[str, str]]] = [read(await tell_story(whole(bench), each)) for each in (later, beats, ended)]

    assert told == [
        [("enqueued", "It was enqueued."), ("due", "It is due.")],
        [("enqueued", "It was enqueued."), ("started", "It was started."), ("heartbeat", "It last beat.")],
        [("enqueued", "It was enqueued."), ("started", "It was started."), ("completed", "It was cancelled.")],
    ]


async def test_every_instant_of_a_story_is_utc(bench: SqlBench) -> None:
    job_id: JobId = await bench.add(JobState.RUNNING, STUCK)
    await bench.sweep(Action.RETRY)
    story = story_shape(await tell_story(whole(bench), job_id), ())

    instants = [datetime.fromisoformat(each["at"]) for each in story["events"]]
    assert instants
    assert {each.tzinfo for each in instants} == {UTC}
