"""Evidence decides: who holds a job acquits it, who knows that its worker is gone convicts it at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from unstick.config import ProgressSettings
from unstick.domain.brake import BrakeLimits, Pass, Unattended
from unstick.domain.diagnosis import STUCK, Reason, diagnose, diagnose_hung
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action, Outcome
from unstick.domain.sighting import Sighted
from unstick.domain.standing import Standing
from unstick.pipeline import judging
from unstick.pipeline.looking import take_look
from unstick.pipeline.report import report_stats, report_stuck
from unstick.pipeline.story import tell_story
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.verdict import judge
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections
from unstick.sql.sightings import SqlSightings
from unstick.sql.tables import leases
from unstick.testing.witnesses import FakeWitness
from unstick.witnesses.progress import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.pipeline.watched import Watched
    from unstick.ports import Witness

DATABASES = EACH_KIND


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    table = jobs_table(sa.Column("worker", sa.String(120)), sa.Column("progress", sa.Integer))
    bench = await open_bench(
        database, table, declared(table, columns=COLUMNS | {"worker": "worker", "progress": "progress"})
    )
    yield bench
    await bench.close()


async def put(bench: SqlBench, *ages: float, **values: object) -> list[int]:
    """Insert running jobs that were begun so many minutes ago."""
    now, ids = await bench.source.clock(), []
    for age in ages:
        row = {"status": "running", "created_at": now - minutes(age), "started_at": now - minutes(age), **values}
        async with bench.engine.begin() as connection:
            result = await connection.execute(sa.insert(bench.table).values(row))
            assert result.inserted_primary_key is not None
            ids.append(int(result.inserted_primary_key[0]))
    return ids


def asking(bench: SqlBench, *witnesses: Witness, policy: Policy | None = None) -> Watched:
    return replace(bench.watched(policy), witnesses=witnesses)


async def stuck(watched: Watched) -> dict[int, Reason]:
    report = await report_stuck(watched, limit=1000)
    found = {int(each.job.id): each.diagnosis.reason for each in (*report.queued, *report.running)}
    assert report.counts.total == len(found) == (await report_stats(watched)).stuck.total
    return found


async def words_after_sweep(bench: SqlBench, watched: Watched, action: Action | None = None) -> dict[int, str]:
    await sweep(watched, SweepOrder(actor="test", action=action))
    return {int(row["id"]): row["status"] for row in await bench.rows()}


@pytest.mark.parametrize("action", [Action.MARK_FAILED, Action.RETRY])
async def test_who_is_held_is_never_touched_however_old(bench: SqlBench, action: Action) -> None:
    """A healthy long job at ten times the threshold."""
    held, gone = await put(bench, 300, 300)
    watched = asking(bench, FakeWitness(words={held: Holding.HELD, gone: Holding.RELEASED}))

    assert await stuck(watched) == {gone: Reason.WORKER_GONE}
    words = await words_after_sweep(bench, watched, action)
    assert words == {held: "running", gone: {"mark_failed": "failed", "retry": "queued"}[action]}


async def test_whose_worker_is_gone_is_stuck_long_before_the_threshold_and_not_at_once_after_its_claim(
    bench: SqlBench,
) -> None:
    """R4: whoever has just been claimed must have had time to show."""
    fresh, young = await put(bench, 0.5, 2)
    witness = FakeWitness(otherwise=Holding.RELEASED, value="no such process")

    assert await stuck(asking(bench, witness)) == {young: Reason.WORKER_GONE}
    assert await words_after_sweep(bench, asking(bench, witness)) == {fresh: "running", young: "failed"}
    message = (await bench.row(young))["error_message"]
    assert "its worker is gone: fake says no such process; its last sign of life was at" in message


async def test_where_witnesses_know_nothing_a_job_is_left_alone_and_told(bench: SqlBench) -> None:
    """UNKNOWN leaves it alone, and nobody overlooks it."""
    old, young = await put(bench, 300, 5)
    watched = asking(bench, FakeWitness(words={}))

    report = await report_stuck(watched)
    assert (report.counts.total, report.undecided) == (0, 1)
    swept = await sweep(watched, SweepOrder(actor="test"))
    assert (swept.tally.of(outcome=Outcome.APPLIED), swept.tally.of(outcome=Outcome.LEFT)) == (0, 1)
    assert {row["id"]: row["status"] for row in await bench.rows()} == {old: "running", young: "running"}


async def test_one_word_that_acquits_goes_before_any_that_convict(bench: SqlBench) -> None:
    (job,) = await put(bench, 300)
    gone, held = (
        FakeWitness(name="gone", otherwise=Holding.RELEASED),
        FakeWitness(name="held", words={job: Holding.HELD}),
    )
    assert await stuck(asking(bench, gone, held)) == {}
    assert await stuck(asking(bench, gone)) == {job: Reason.WORKER_GONE}


async def test_a_witness_that_fails_convicts_nobody(bench: SqlBench) -> None:
    (job,) = await put(bench, 300)
    watched = asking(bench, FakeWitness(raises=RuntimeError("no")))
    assert await stuck(watched) == {}
    assert await words_after_sweep(bench, watched) == {job: "running"}


async def test_each_finding_shows_every_witnesss_word_with_value_and_time(bench: SqlBench) -> None:
    (job,) = await put(bench, 300)
    watched = asking(
        bench, FakeWitness(name="a", otherwise=Holding.RELEASED, value="gone"), FakeWitness(name="b", words={})
    )
    (finding,) = (await report_stuck(watched)).running
    told = [(each.witness, each.holding, each.value) for each in finding.evidence]
    assert told == [
        ("row.enqueued_at", Holding.UNKNOWN, None),
        ("row.started_at", Holding.UNKNOWN, None),
        ("a", Holding.RELEASED, "gone"),
        ("b", Holding.UNKNOWN, "knows nothing of it"),
    ]
    assert finding.job.id == job


async def test_queued_jobs_are_judged_without_witnesses(bench: SqlBench) -> None:
    witness = FakeWitness(otherwise=Holding.HELD)
    now = await bench.source.clock()
    await bench.put({"status": "queued", "started_at": None, "created_at": now - minutes(9)})
    assert set((await stuck(asking(bench, witness))).values()) == {Reason.NEVER_CLAIMED}
    assert witness.asked == []


async def test_pages_of_convicted_jobs_go_on_where_the_last_one_ended(bench: SqlBench) -> None:
    ids = await put(bench, *(100 - n for n in range(5)))
    watched = asking(bench, FakeWitness(otherwise=Holding.RELEASED))
    seen: list[int] = []
    cursor = None
    for _ in range(5):
        report = await report_stuck(watched, limit=2, cursor=cursor)
        seen += [int(each.job.id) for each in report.running]
        cursor = report.next_cursor
        if cursor is None:
            break
    assert seen == ids


async def test_a_bounded_number_of_jobs_is_asked_about_and_the_report_says_so(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "MOST_ASKED", 4)
    bench.batches_of(2)
    await put(bench, *(100 - n for n in range(9)))
    witness = FakeWitness(otherwise=Holding.RELEASED)
    report = await report_stuck(asking(bench, witness))
    assert (report.counts.running, report.exact) == (4, False)
    await sweep(asking(bench, witness), SweepOrder(actor="test"))
    assert Counter(row["status"] for row in await bench.rows()) == {"failed": 9}


async def test_the_brake_counts_who_is_convicted_and_not_who_is_asked_about(bench: SqlBench) -> None:
    held = await put(bench, *([300] * 9))
    gone = await put(bench, 300)
    watched = replace(
        asking(bench, FakeWitness(words=dict.fromkeys(held, Holding.HELD), otherwise=Holding.RELEASED)),
        brakes=SqlBrakes(EngineConnections(bench.engine)),
        unattended=Unattended(brake=BrakeLimits(share=0.2, jobs=5)),
    )
    now = await bench.source.clock()
    assert watched.brakes is not None
    await watched.brakes.note_pass("main", Pass(at=now, back_at=now - timedelta(days=3)))
    report = await sweep(watched, SweepOrder(actor="cron", unattended=True))
    assert (report.brake, report.tally.of(outcome=Outcome.APPLIED)) == (None, 1)
    assert (await bench.row(gone[0]))["status"] == "failed"


# Hung


async def beat(bench: SqlBench, **values: object) -> datetime:
    now = await bench.source.clock()
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).values(updated_at=now, **values))
    return now


async def test_a_job_that_beats_without_progress_is_hung_after_its_time_and_one_that_moves_is_not(
    bench: SqlBench,
) -> None:
    """A heartbeat from beside the job says nothing of the job (L7)."""
    hung, moving = await put(bench, 120, 120, progress=40)
    sightings = SqlSightings(EngineConnections(bench.engine))
    policy = Policy(hung_after=minutes(20))
    watched = asking(bench, Progress(ProgressSettings(), "main", sightings), policy=policy)

    now = await beat(bench)
    jobs = await bench.source.describe(await take_look(watched), [hung, moving])
    for ago in (30, 15):
        await sightings.note("main", [Sighted.of(job) for job in jobs.values()], now - minutes(ago))
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).where(bench.table.c.id == moving).values(progress=41))

    assert await stuck(watched) == {hung: Reason.HUNG}
    assert await words_after_sweep(bench, watched) == {hung: "failed", moving: "running"}
    assert (
        "it shows signs of life, but no progress: progress says progress 40, unmoved since"
        in ((await bench.row(hung))["error_message"])
    )


async def seen_standing_still(bench: SqlBench, ids: list[int], *, ago: float) -> None:
    """Have jobs looked at so many minutes ago, and once since, with the progress they have now."""
    sightings, now = SqlSightings(EngineConnections(bench.engine)), await bench.source.clock()
    jobs = await bench.source.describe(await take_look(bench.watched()), ids)
    for age in (ago, ago / 2):
        await sightings.note("main", [Sighted.of(job) for job in jobs.values()], now - minutes(age))


def asking_of_progress(bench: SqlBench, *witnesses: Witness, hung_after: float = 20) -> Watched:
    progress = Progress(ProgressSettings(), "main", SqlSightings(EngineConnections(bench.engine)))
    return asking(bench, progress, *witnesses, policy=Policy(hung_after=minutes(hung_after)))


async def test_a_hung_job_is_told_since_when_its_progress_stands_still_and_not_when_it_last_beat(
    bench: SqlBench,
) -> None:
    (job,) = await put(bench, 120, progress=40)
    await seen_standing_still(bench, [job], ago=50)
    await beat(bench)
    watched = asking_of_progress(bench)

    (finding,) = (await report_stuck(watched)).running
    assert finding.diagnosis.reason is Reason.HUNG
    assert minutes(50) <= finding.age < minutes(51)
    assert finding.since == finding.evidence[-1].at
    verdict = await judge(watched, job)
    assert verdict is not None
    assert verdict.sentence.startswith(f"Job {job} is stuck in running for 50 minutes, where 20 minutes may pass: ")


@pytest.mark.parametrize(
    ("holding", "reason"),
    [(Holding.RELEASED, Reason.WORKER_GONE), (Holding.UNKNOWN, Reason.HUNG), (Holding.HELD, Reason.HUNG)],
)
async def test_a_job_that_hangs_and_is_accused_by_age_too_is_one_stuck_job(
    bench: SqlBench, holding: Holding, reason: Reason
) -> None:
    """In counts, lists, dry runs, plans and at the brake; and nobody says besides that nothing is known of it."""
    jobs = await put(bench, *([120] * 4), progress=40)
    await seen_standing_still(bench, jobs, ago=50)
    watched = asking_of_progress(bench, FakeWitness(otherwise=holding))

    assert await stuck(watched) == dict.fromkeys(jobs, reason)
    assert (await report_stuck(watched)).undecided == 0
    foreseen = await sweep(watched, SweepOrder(actor="test", dry_run=True))
    assert (foreseen.tally.of(reason=reason), foreseen.tally.of()) == (4, 4)

    brakes = SqlBrakes(EngineConnections(bench.engine))
    now = await bench.source.clock()
    await brakes.note_pass("main", Pass(at=now, back_at=now - timedelta(days=3)))
    braked = replace(watched, brakes=brakes, unattended=Unattended(brake=BrakeLimits(share=0, jobs=4)))
    report = await sweep(braked, SweepOrder(actor="cron", unattended=True))
    assert (report.brake, report.tally.of(reason=reason), report.tally.of()) == (None, 4, 4)


async def test_a_job_whose_lease_ran_out_while_it_hung_is_one_stuck_job(bench: SqlBench) -> None:
    """One whose lease holds, and that a witness says nobody has, is hung: age has no say in it."""
    expired, held = await put(bench, 120, 120, progress=40)
    now = await bench.source.clock()
    async with bench.engine.begin() as connection:
        for job_id, end in ((expired, now - minutes(1)), (held, now + minutes(5))):
            name = f"h:{job_id}:a"
            lease = {"id": name, "host": "h", "pid": job_id, "began_at": now, "beat_at": now - minutes(2)}
            await connection.execute(sa.insert(leases).values(lease | {"expires_at": end}))
            await connection.execute(sa.update(bench.table).where(bench.table.c.id == job_id).values(worker=name))
    await seen_standing_still(bench, [expired, held], ago=50)
    watched = asking_of_progress(bench, FakeWitness(words={held: Holding.RELEASED}))
    assert await stuck(watched) == {expired: Reason.LEASE_EXPIRED, held: Reason.HUNG}


# One job


@pytest.mark.parametrize(
    ("age", "holding", "standing"),
    [
        (300, Holding.RELEASED, Standing.STUCK),
        (300, Holding.HELD, Standing.HELD),
        (300, Holding.UNKNOWN, Standing.UNDECIDED),
        (0.1, Holding.HELD, Standing.BEATING),
    ],
)
async def test_whoever_asks_for_one_job_hears_the_witnesses_words_on_it(
    bench: SqlBench, age: float, holding: Holding, standing: Standing
) -> None:
    job, other = await put(bench, age, 300)
    witness = FakeWitness(words={job: holding, other: Holding.RELEASED}, value="so it is")
    story = await tell_story(asking(bench, witness), job)

    assert story.standing is standing
    assert story.verdict is not None
    assert [(each.holding, each.value) for each in story.verdict.evidence if each.witness == "fake"] == [
        (holding, "so it is")
    ]
    assert set(witness.asked) == {(job,)}


async def test_without_a_time_for_it_nobody_is_hung(bench: SqlBench) -> None:
    await put(bench, 120, progress=40)
    sightings = SqlSightings(EngineConnections(bench.engine))
    watched = asking(bench, Progress(ProgressSettings(), "main", sightings))
    await beat(bench)
    assert await stuck(watched) == {}


# The pure decision


def test_every_reason_is_of_a_job_that_is_stuck_or_of_one_that_is_not() -> None:
    assert set(Reason) - STUCK == {
        Reason.HELD, Reason.BEATING, Reason.BACKLOG, Reason.PAUSED, Reason.BLOCKED, Reason.SCHEDULED
    }  # fmt: skip


def word(holding: Holding, at: datetime | None = None, name: str = "w") -> Evidence:
    return Evidence(witness=name, holding=holding, at=at, value="so")


@pytest.mark.parametrize(
    ("words", "lease_expired", "reason"),
    [
        ([], False, Reason.SILENT),
        ([], True, Reason.LEASE_EXPIRED),
        ([Holding.UNKNOWN], False, Reason.SILENT),
        ([Holding.UNKNOWN], True, Reason.LEASE_EXPIRED),
        ([Holding.RELEASED], False, Reason.WORKER_GONE),
        ([Holding.UNKNOWN, Holding.RELEASED], False, Reason.WORKER_GONE),
        ([Holding.RELEASED, Holding.HELD], False, Reason.HELD),
        ([Holding.HELD], True, Reason.HELD),
    ],
)
def test_the_verdict_on_a_running_job(words: list[Holding], lease_expired: bool, reason: Reason, at: datetime) -> None:
    said = [word(holding) for holding in words]
    diagnosis = diagnose(JobState.RUNNING, at, lease_expired=lease_expired, words=said)
    assert diagnosis.reason is reason


@pytest.fixture
def at() -> datetime:
    return datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_queued_job_is_judged_by_its_queue_whatever_words_there_are(at: datetime) -> None:
    diagnosis = diagnose(JobState.QUEUED, at, waiting=Reason.OVERTAKEN, words=[word(Holding.HELD)])
    assert diagnosis.reason is Reason.OVERTAKEN


@pytest.mark.parametrize(("still", "hung"), [(19, False), (20, True), (21, True)])
def test_hung_is_who_stands_still_for_so_long(still: int, hung: bool, at: datetime) -> None:
    words = [word(Holding.HELD), word(Holding.UNKNOWN, at - minutes(still), "progress")]
    assert (diagnose_hung(words, at, minutes(20)) is not None) is hung
    assert diagnose_hung([word(Holding.UNKNOWN, None, "progress")], at, minutes(20)) is None
    assert diagnose_hung([word(Holding.HELD, at - minutes(99), "progress")], at, minutes(20)) is None
    assert diagnose_hung([], at, minutes(20)) is None


def test_a_rule_may_say_when_a_kind_hangs() -> None:
    policy = Policy(rules=(Rule(kind="x", hung_after=minutes(5)),))
    assert policy.under(policy.rules[0]).hung_after == minutes(5)
