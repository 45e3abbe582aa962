"""Sweeps that nobody watches: the brake, the grace after a gap in the watch, and what is left to a person."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.jobs import SqlBench, open_bench
from tests.servers import EACH_KIND
from unstick.domain.brake import Brake, BrakeLimits, Pass, Unattended, grace_until, likely_cause, next_pass
from unstick.domain.errors import InvalidRequestError
from unstick.domain.job import Job, JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action, Outcome
from unstick.domain.wording import say_instant
from unstick.pipeline.braking import release_brake, show_brake
from unstick.pipeline.observing import observe
from unstick.pipeline.shapes import cleanup_shape
from unstick.pipeline.story import tell_story
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections
from unstick.sql.tables import passes
from unstick.testing.conformance import Ages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.domain.suspect import Look, Page
    from unstick.pipeline.watched import Watched

DATABASES = EACH_KIND

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EVERY = timedelta(minutes=10)
FEW = Unattended(brake=BrakeLimits(share=0.2, jobs=5))


def ago(minutes: float) -> datetime:
    return NOON - timedelta(minutes=minutes)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


def watched(bench: SqlBench, policy: Policy | None = None, unattended: Unattended = FEW) -> Watched:
    brakes = SqlBrakes(EngineConnections(bench.engine))
    return replace(bench.watched(policy), brakes=brakes, unattended=unattended)


async def nobody_watches(bench: SqlBench, policy: Policy | None = None, **options: Any) -> SweepReport:  # noqa: ANN401
    return await sweep(watched(bench, policy, **options), SweepOrder(actor="cron", unattended=True))


async def has_been_watched(bench: SqlBench) -> None:
    """A pass a minute ago, and no gap since days."""
    now = await bench.source.clock()
    brakes = SqlBrakes(EngineConnections(bench.engine))
    await brakes.note_pass("main", Pass(at=now - timedelta(minutes=1), back_at=now - timedelta(days=3)))
    if await bench.source.up_since() is not None:
        # The test's own server is younger than any threshold.
        later = await bench.source.clock()
        await brakes.note_pass("main", Pass(at=later, back_at=later - timedelta(days=3)))


async def put_silent(bench: SqlBench, number: int, **values: object) -> None:
    await bench.put(*({"created_at": None, **values} for _ in range(number)))


async def put_healthy(bench: SqlBench, number: int) -> None:
    await bench.put(*({} for _ in range(number)), started=timedelta(minutes=1))


async def words(bench: SqlBench) -> list[str]:
    return [row["status"] for row in await bench.rows()]


# The brake


async def test_the_brake_holds_a_mass_event_and_later_sweeps_until_a_person_releases_it(bench: SqlBench) -> None:
    """All beats stopped: an outage, not six stuck jobs (M1, M5, M6). It trips at the number, and stays."""
    await has_been_watched(bench)
    await put_silent(bench, 6)
    held = await nobody_watches(bench)
    assert held.operation_id is None
    assert held.tally.of(outcome=Outcome.BRAKED) == 6
    assert held.brake is not None
    assert held.brake.cause.startswith("an outage: all signs of life stopped together at ")

    await put_silent(bench, 1)
    await put_healthy(bench, 100)
    again = await nobody_watches(bench)
    assert again.brake == held.brake
    assert set(await words(bench)) == {"running"}

    released = await release_brake(watched(bench), "ann")
    assert released is not None
    assert (released.released_by, released.is_held) == ("ann", False)
    done = await nobody_watches(bench)
    assert (done.tally.of(outcome=Outcome.APPLIED), done.brake) == (7, None)
    assert await show_brake(watched(bench)) is None


async def test_a_released_brake_lets_through_as_many_as_the_person_was_shown(bench: SqlBench) -> None:
    await has_been_watched(bench)
    await put_silent(bench, 6)
    await nobody_watches(bench)
    await release_brake(watched(bench), "ann")
    await put_silent(bench, 1)
    held = await nobody_watches(bench)
    assert held.brake is not None
    assert held.brake.suspects == 7
    assert set(await words(bench)) == {"running"}


async def test_a_few_jobs_are_recovered_though_they_are_all_there_are(bench: SqlBench) -> None:
    await has_been_watched(bench)
    await put_silent(bench, 5)
    assert (await nobody_watches(bench)).tally.of(outcome=Outcome.APPLIED) == 5


async def test_many_jobs_are_recovered_where_they_are_a_small_share(bench: SqlBench) -> None:
    await has_been_watched(bench)
    await put_silent(bench, 6)
    await put_healthy(bench, 24)
    assert (await nobody_watches(bench)).tally.of(outcome=Outcome.APPLIED) == 6


async def test_a_large_backlog_doesnt_hide_that_all_running_jobs_are_dead(bench: SqlBench) -> None:
    """The share is one of the jobs in the same state."""
    await has_been_watched(bench)
    await put_silent(bench, 6)
    await bench.put(*({"status": "queued", "started_at": None} for _ in range(60)), started=timedelta(minutes=1))
    assert (await nobody_watches(bench)).tally.of(outcome=Outcome.BRAKED) == 6


async def test_what_a_person_asks_for_is_done_whatever_the_brake_says(bench: SqlBench) -> None:
    await has_been_watched(bench)
    await put_silent(bench, 6)
    await nobody_watches(bench)
    report = await sweep(watched(bench), SweepOrder(actor="ann"))
    assert report.tally.of(outcome=Outcome.APPLIED) == 6
    assert report.brake is None


async def test_two_sweeps_that_pull_the_brake_at_once_pull_one(bench: SqlBench) -> None:
    bench.another()
    brakes = [SqlBrakes(EngineConnections(engine)) for engine in (bench.engine, *bench.other_engines)]
    now = await bench.source.clock()
    wanted = [Brake(source="main", at=now, suspects=n, still_open=9, cause=f"cause {n}") for n in (7, 8)]
    results = await asyncio.gather(*(each.pull(brake) for each, brake in zip(brakes, wanted, strict=True)))
    assert results[0] == results[1]
    assert results[0].cause in ("cause 7", "cause 8")
    released = await asyncio.gather(*(each.release("main", "ann") for each in brakes))
    assert sorted(each is not None for each in released) == [False, True]


async def test_a_mass_event_that_begins_while_it_sweeps_stops_it_and_pulls_the_brake(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await has_been_watched(bench)
    await put_silent(bench, 4)
    bench.batches_of(2)
    policy = Policy(action=Action.RETRY)

    class Surging(type(bench.source)):  # type: ignore[misc]
        """As soon as the first page has been read, a hundred more jobs fall silent."""

        surged = False

        async def suspects(self, look: Look) -> AsyncIterator[Page]:
            async for page in super().suspects(look):
                yield page
                if not self.surged:
                    self.surged = True
                    await put_silent(bench, 100)

    bench.source.__class__ = Surging
    monkeypatch.setattr("unstick.sql.source.STRIDE", 2)
    report = await nobody_watches(bench, policy)
    recovered = report.tally.of(outcome=Outcome.APPLIED)
    assert 9 < recovered < 20
    assert report.brake is not None
    assert report.brake.cause.startswith("a mass event while it swept: 4 were stuck when it began")


async def test_a_held_sweep_is_in_the_audit_log_with_what_seems_to_have_happened(bench: SqlBench) -> None:
    await has_been_watched(bench)
    await put_silent(bench, 6)
    await nobody_watches(bench)
    (entry,) = await bench.audit()
    assert (entry.actor, entry.outcome, entry.parameters["unattended"]) == ("cron", "refused", True)
    assert entry.result["braked"] == 6
    assert "outage" in entry.result["cause"]


# The grace


async def test_the_first_pass_over_a_source_only_observes(bench: SqlBench) -> None:
    """The monitor itself was down until now (M4)."""
    await put_silent(bench, 3)
    report = await nobody_watches(bench)
    assert (report.tally.of(outcome=Outcome.LEFT), report.tally.of(outcome=Outcome.APPLIED)) == (3, 0)
    assert set(await words(bench)) == {"running"}


async def test_jobs_have_one_threshold_of_grace_after_a_gap_in_the_watch(bench: SqlBench) -> None:
    """The database, or the watch, was away for longer than the threshold; then nothing is recovered at once (M1)."""
    now = await bench.source.clock()
    brakes = SqlBrakes(EngineConnections(bench.engine))
    await brakes.note_pass("main", Pass(at=now - timedelta(hours=2), back_at=None))
    await put_silent(bench, 2)
    await bench.put({"status": "queued", "started_at": None}, started=timedelta(minutes=9))

    assert (await nobody_watches(bench)).tally.of(outcome=Outcome.LEFT) == 3
    began = await bench.source.clock()
    await brakes.note_pass("main", Pass(at=began, back_at=began - timedelta(minutes=6)))
    later = await nobody_watches(bench)
    assert later.tally.of(outcome=Outcome.APPLIED, state=JobState.QUEUED) == 1
    assert later.tally.of(outcome=Outcome.LEFT, state=JobState.RUNNING) == 2
    began = await bench.source.clock()
    await brakes.note_pass("main", Pass(at=began, back_at=began - timedelta(minutes=31)))
    assert (await nobody_watches(bench)).tally.of(outcome=Outcome.APPLIED) == 2


async def test_a_server_that_started_since_the_last_pass_has_been_away(bench: SqlBench) -> None:
    up = await bench.source.up_since()
    if bench.engine.dialect.name == "sqlite":
        assert up is None
        return
    assert up is not None
    brakes = SqlBrakes(EngineConnections(bench.engine))
    await brakes.note_pass("main", Pass(at=up - timedelta(seconds=30), back_at=None))
    await put_silent(bench, 1)
    await nobody_watches(bench, unattended=replace(FEW, every=timedelta(days=30)))
    last = await brakes.last_pass("main")
    assert last is not None
    assert last.back_at is not None
    assert abs(last.back_at - up) < timedelta(seconds=2)


@pytest.mark.parametrize(
    ("last", "up_since", "back_at"),
    [
        (None, None, NOON),
        (Pass(at=ago(29)), None, None),
        (Pass(at=ago(30)), None, None),
        (Pass(at=ago(31)), None, NOON),
        (Pass(at=ago(10), back_at=ago(15)), None, ago(15)),
        (Pass(at=ago(10), back_at=ago(15)), ago(11), ago(15)),
        (Pass(at=ago(10), back_at=ago(15)), ago(10), ago(15)),
        (Pass(at=ago(10)), ago(5), ago(5)),
    ],
)
def test_a_pass_begins_a_grace_after_a_gap(last: Pass | None, up_since: datetime | None, back_at: object) -> None:
    this = next_pass(last, NOON, EVERY, up_since)

    assert this == Pass(at=NOON, back_at=back_at)  # type: ignore[arg-type]
    assert this.before == (None if last is None else last.at)


@pytest.mark.parametrize(("seconds", "is_gap"), [(61, False), (62, True)])
def test_a_pass_that_takes_long_is_no_gap_however_short_the_interval(seconds: int, is_gap: bool) -> None:
    """Or each pass would begin the next one's grace, and none would ever act."""
    second = timedelta(seconds=1)
    this = next_pass(Pass(at=NOON - seconds * second), NOON, second, None)
    assert (this.back_at is not None) == is_gap


def test_a_grace_is_one_threshold_long() -> None:
    this = Pass(at=NOON, back_at=ago(5))
    assert [grace_until(this, timedelta(minutes=each)) for each in (4, 5, 6)] == [
        None,
        None,
        NOON + timedelta(minutes=1),
    ]
    assert grace_until(Pass(at=NOON), timedelta(days=1)) is None


async def test_a_grace_is_told_by_the_sweep_the_observation_and_the_job(bench: SqlBench) -> None:
    """Whoever asks why nothing is recovered is told until when, wherever they ask; queued jobs have a longer one."""
    policy = Policy(queued_after=timedelta(hours=2))
    brakes = SqlBrakes(EngineConnections(bench.engine))
    began = await bench.source.clock()
    back = began - timedelta(minutes=6)
    job_id = await bench.add(JobState.RUNNING, Ages(started=timedelta(hours=1)))
    assert "grace" not in (await tell_story(watched(bench, policy), job_id)).outlook  # nobody sweeps it unattended
    await brakes.note_pass("main", Pass(at=began, back_at=back))
    ends = back + timedelta(minutes=30)

    assert (await nobody_watches(bench, policy)).grace_until == ends
    assert (await observe(watched(bench, policy))).grace_until == ends
    said = f"; those that nobody watches leave it alone until {say_instant(ends)}, a grace after the watch or the"
    assert said in (await tell_story(watched(bench, policy), job_id)).outlook
    shown = cleanup_shape(await nobody_watches(bench, policy))
    assert shown["grace_until"] == ends.isoformat()

    await brakes.note_pass("main", Pass(at=began, back_at=began - timedelta(minutes=31)))
    assert (await observe(watched(bench, policy))).grace_until is None
    assert "grace" not in (await tell_story(watched(bench, policy), job_id)).outlook
    assert (await nobody_watches(bench, policy)).grace_until is None


# What is left


async def test_what_needs_a_person_is_left_by_a_sweep_that_nobody_watches_and_done_when_one_asks(
    bench: SqlBench,
) -> None:
    await has_been_watched(bench)
    policy = Policy(rules=(Rule(kind="payment", ask=True),))
    await put_silent(bench, 2, job_type="payment")
    await put_silent(bench, 1)
    report = await nobody_watches(bench, policy)
    assert (report.tally.of(outcome=Outcome.LEFT), report.tally.of(outcome=Outcome.APPLIED)) == (2, 1)
    asked = await sweep(watched(bench, policy), SweepOrder(actor="ann"))
    assert asked.tally.of(outcome=Outcome.APPLIED) == 2


async def test_a_source_without_a_place_for_its_brake_is_not_swept_unattended(sqlite_database: Database) -> None:
    bench = await open_bench(sqlite_database)
    try:
        await put_silent(bench, 1)
        with pytest.raises(InvalidRequestError, match="nowhere to keep a brake"):
            await sweep(bench.watched(), SweepOrder(actor="cron", unattended=True))
        with pytest.raises(InvalidRequestError, match="dry run"):
            await sweep(watched(bench), SweepOrder(actor="cron", unattended=True, dry_run=True))
        assert await words(bench) == ["running"]
    finally:
        await bench.close()


# The likely cause


def running(minutes: float, worker: str | None = None, kind: str = "k", number: int = 0) -> Job:
    return Job(id=number, state=JobState.RUNNING, status="running", kind=kind, started_at=ago(minutes), worker=worker)


def queued(queue: str | None) -> Job:
    return Job(id=0, state=JobState.QUEUED, status="queued", queue=queue, enqueued_at=ago(60))


@pytest.mark.parametrize(
    ("suspects", "others_live", "cause"),
    [
        ([running(40, f"h{n}:1:a") for n in range(9)], False, "an outage: all signs"),
        ([running(40 + 10 * n, "h1:1:a") for n in range(8)] + [running(200, "h2:1:b")], True, "host h1 is gone"),
        ([running(40, f"h{n}:1:a") for n in range(9)], True, "a deploy: 9 workers stopped together"),
        ([running(40) for _ in range(9)], True, "one event"),
        ([running(40 + 10 * n, kind="pdf") for n in range(9)], True, "jobs of kind pdf: they are 9 of 9"),
        ([running(40 + 10 * n, kind=f"k{n}") for n in range(9)], True,
         "nothing that they have in common; their signs of life stopped over 1 hour"),
        ([queued("mail")] * 8 + [queued("pdf")], True, "queue mail is not served"),
        ([running(40 + 10 * n, "h1:1:a") for n in range(8)] + [running(200 + 9 * n, "h2:1:b") for n in (0, 10)], True,
         "host h1 is gone: it had 8 of 10"),
        ([running(40 + 10 * n, "h1:1:a") for n in range(9)], True, "jobs of kind k"),
        ([running(40, "h1:1:a")] * 9, True, "one event"),
        ([running(40, f"h{n % 2}:1:a") for n in range(9)], True, "a deploy: 2 workers stopped together"),
        ([running(40)], True, "one event"),
        ([running(40)] * 7 + [running(each) for each in (38.5, 100, 200)], True, "one event"),
        ([running(40)] * 7 + [running(each) for each in (38, 100, 200)], True, "jobs of kind k"),
        ([running(40)] * 2 + [queued("mail")] * 2, True, "one event"),
        ([running(40)] * 2 + [queued("mail")] * 3, True, "the queue is not served"),
        ([queued("mail"), queued("pdf")], False, "the queue is not served"),
        ([queued(None)], False, "the queue is not served"),
    ],
)  # fmt: skip
def test_the_cause_is_what_they_have_in_common(suspects: list[Job], others_live: bool, cause: str) -> None:
    """M2: a deploy is told as one."""
    assert likely_cause(suspects, others_live=others_live).startswith(cause)


@pytest.mark.parametrize(
    ("suspects", "still_open", "holds"), [(50, 50, False), (51, 51, True), (51, 255, False), (52, 255, True)]
)
def test_the_brake_needs_the_number_and_the_share(suspects: int, still_open: int, holds: bool) -> None:
    assert BrakeLimits().hold(suspects, still_open) is holds


def test_a_brake_lets_nothing_through_until_it_is_released_and_then_as_many_as_were_shown() -> None:
    held = Brake(source="main", at=NOON, suspects=60, still_open=60, cause="an outage")
    released = replace(held, released_at=NOON, released_by="ann")

    assert (held.is_held, released.is_held) == (True, False)
    assert [each.lets(jobs) for each in (held, released) for jobs in (60, 61)] == [False, False, True, False]


def test_a_pass_is_kept_as_one_row() -> None:
    assert [column.name for column in passes.primary_key] == ["source"]
    assert isinstance(passes, sa.Table)
