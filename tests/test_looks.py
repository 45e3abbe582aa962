"""Policies that ask for several looks: a job is acted on once so many unattended sweeps in a row found it stuck."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, open_bench
from tests.witnessing import statements_of
from unstick.config import ProgressSettings
from unstick.domain.brake import BrakeLimits, Pass, Unattended
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import InvalidRequestError
from unstick.domain.evidence import Holding
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action, Outcome
from unstick.domain.sighting import LOOKS_APART, Sighted, Stuck
from unstick.domain.suspect import Suspect
from unstick.pipeline import charges
from unstick.pipeline.braking import release_brake
from unstick.pipeline.looking import take_look
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.pipeline.verdict import foretell, judge
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections
from unstick.sql.looks import SqlLooks
from unstick.sql.sightings import KEPT, SqlSightings
from unstick.sql.tables import looks
from unstick.testing.witnesses import FakeWitness
from unstick.witnesses.progress import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.pipeline.watched import Watched
    from unstick.ports import Witness

MINUTE = timedelta(minutes=1)
LONG = timedelta(days=3)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TWICE = Policy(looks=2)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    table = jobs_table(sa.Column("progress", sa.Integer))
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {"progress": "progress"}))
    brakes, now = SqlBrakes(EngineConnections(bench.engine)), await bench.source.clock()
    await brakes.note_pass("main", Pass(at=now, back_at=now - LONG))
    yield bench
    await bench.close()


def watched(bench: SqlBench, policy: Policy, *witnesses: Witness, jobs: int = 50) -> Watched:
    connections = EngineConnections(bench.engine)
    return replace(
        bench.watched(policy),
        brakes=SqlBrakes(connections),
        looks=SqlLooks(connections),
        unattended=Unattended(every=timedelta(days=1), brake=BrakeLimits(jobs=jobs)),
        witnesses=witnesses,
    )


async def nobody_watches(watched: Watched) -> SweepReport:
    return await sweep(watched, SweepOrder(actor="cron", unattended=True))


async def a_while_passes(bench: SqlBench) -> None:
    """Have the looks that were counted be a minute old; the passes stay, for the test's own server is as young."""
    async with bench.engine.begin() as connection:
        for row in (await connection.execute(sa.select(looks))).all():
            earlier = sa.update(looks).where(looks.c.id == row.id).values(counted_at=row.counted_at - MINUTE)
            await connection.execute(earlier)


async def words(bench: SqlBench) -> list[str]:
    return [row["status"] for row in await bench.rows()]


async def test_a_job_is_recovered_by_the_second_sweep_in_a_row_that_finds_it_and_by_a_person_at_once(
    bench: SqlBench,
) -> None:
    await bench.put({}, {"status": "queued", "started_at": None})
    first = await nobody_watches(watched(bench, TWICE))
    assert (first.tally.of(outcome=Outcome.LEFT), first.tally.of(outcome=Outcome.APPLIED)) == (2, 0)
    assert first.tally.of(reason=Reason.SILENT, outcome=Outcome.LEFT) == 1
    await a_while_passes(bench)
    await bench.put({})
    second = await nobody_watches(watched(bench, TWICE))
    assert (second.tally.of(outcome=Outcome.LEFT), second.tally.of(outcome=Outcome.APPLIED)) == (1, 2)
    assert await words(bench) == ["failed", "failed", "running"]

    asked = await sweep(watched(bench, TWICE), SweepOrder(actor="ann"))
    assert asked.tally.of(outcome=Outcome.APPLIED) == 1


async def test_who_was_not_found_at_one_sweep_or_has_shown_life_since_begins_anew(bench: SqlBench) -> None:
    await bench.put({}, {})
    moved, away = [row["id"] for row in await bench.rows()]
    await nobody_watches(watched(bench, TWICE))
    await a_while_passes(bench)
    old = await bench.source.clock() - timedelta(hours=1)
    async with bench.engine.begin() as connection:
        for job_id, values in ((moved, {"updated_at": old}), (away, {"status": "delayed"})):
            await connection.execute(sa.update(bench.table).where(bench.table.c.id == job_id).values(values))
    assert (await nobody_watches(watched(bench, TWICE))).tally.of(outcome=Outcome.APPLIED) == 0
    await a_while_passes(bench)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).values(status="running"))
    assert (await nobody_watches(watched(bench, TWICE))).tally.of(outcome=Outcome.APPLIED) == 1
    assert {row["id"]: row["status"] for row in await bench.rows()} == {moved: "failed", away: "running"}


async def test_each_kind_needs_as_many_looks_as_its_rule_says(bench: SqlBench) -> None:
    policy = Policy(looks=2, rules=(Rule(kind="hasty", looks=1), Rule(kind="slow*", looks=3, action=Action.RETRY)))
    await bench.put({"job_type": "hasty"}, {"job_type": "slow"}, {"job_type": "summary"})
    ended = []
    for _ in range(3):
        await nobody_watches(watched(bench, policy))
        ended.append(await words(bench))
        await a_while_passes(bench)
    assert ended == [
        ["failed", "running", "running"], ["failed", "running", "failed"], ["failed", "queued", "failed"]
    ]  # fmt: skip


async def test_where_one_look_is_enough_nothing_is_read_or_written_of_looks(bench: SqlBench) -> None:
    await bench.put({}, {"job_type": "other"})
    with statements_of(bench.engine) as ran:
        report = await nobody_watches(watched(bench, Policy(rules=(Rule(kind="other", running_after=MINUTE),))))
    assert report.tally.of(outcome=Outcome.APPLIED) == 2
    assert [each for each in ran if "unstick_looks" in each] == []


async def test_the_brake_holds_only_for_those_it_would_act_on_and_a_held_sweep_is_a_look_too(bench: SqlBench) -> None:
    """What seems stuck for one look only pulls no brake; a released one lets through what the person was shown."""
    few = watched(bench, TWICE, jobs=5)
    await bench.put(*[{}] * 6)
    assert (await nobody_watches(few)).brake is None
    for _ in range(2):
        await a_while_passes(bench)
        held = await nobody_watches(few)
        assert held.brake is not None
        assert (held.brake.suspects, held.tally.of(outcome=Outcome.BRAKED)) == (6, 6)
    await release_brake(few, "ann")
    await bench.put({})
    await a_while_passes(bench)
    assert (await nobody_watches(few)).tally.of(outcome=Outcome.APPLIED) == 6
    assert Counter(await words(bench)) == {"failed": 6, "running": 1}


async def test_witnesses_have_their_say_at_each_look_and_a_hung_job_is_marked_by_its_progress(bench: SqlBench) -> None:
    """Beats of a job whose progress stands still are no sign of life that would begin the row of looks anew."""
    await bench.put({}, {"progress": 40})
    gone, hung = [row["id"] for row in await bench.rows()]
    sightings = SqlSightings(EngineConnections(bench.engine))
    now = await bench.source.clock()
    jobs = await bench.source.describe(await take_look(bench.watched()), [hung])
    for ago in (60, 30):
        await sightings.note("main", [Sighted.of(jobs[hung])], now - ago * MINUTE)
    policy = replace(TWICE, hung_after=20 * MINUTE)
    fake = FakeWitness(words={gone: Holding.RELEASED, hung: Holding.HELD})
    all_of_it = watched(bench, policy, Progress(ProgressSettings(), "main", sightings), fake)

    for reached in ("running", "failed"):
        beat = {"updated_at": await bench.source.clock()}
        async with bench.engine.begin() as connection:
            await connection.execute(sa.update(bench.table).where(bench.table.c.id == hung).values(beat))
        await nobody_watches(all_of_it)
        await a_while_passes(bench)
        assert await words(bench) == [reached, reached]
    assert {row.reason for row in await bench.recoveries()} == {Reason.WORKER_GONE, Reason.HUNG}


async def test_more_than_a_sweep_can_keep_in_mind_are_recovered_by_the_next_ones(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charges, "MOST_READY", 4)
    bench.batches_of(2)
    await bench.put(*[{}] * 9)
    done = []
    for _ in range(4):
        done.append((await nobody_watches(watched(bench, TWICE))).tally.of(outcome=Outcome.APPLIED))
        await a_while_passes(bench)
    assert done == [0, 4, 4, 1]


async def test_who_is_left_for_the_grace_and_who_was_not_found_often_enough_are_both_told(bench: SqlBench) -> None:
    now = await bench.source.clock()
    this = Pass(at=now, back_at=now - 10 * MINUTE)
    await SqlBrakes(EngineConnections(bench.engine)).note_pass("main", this)
    await bench.put({}, {"status": "queued", "started_at": None})
    for looked in (0, 1):
        report = await nobody_watches(watched(bench, TWICE))
        assert report.tally.of(state=JobState.RUNNING, outcome=Outcome.LEFT) == 1
        assert report.tally.of(state=JobState.QUEUED, outcome=Outcome.LEFT) == 1 - looked
        assert report.tally.of(state=JobState.QUEUED, outcome=Outcome.APPLIED) == looked
        await a_while_passes(bench)


async def test_a_job_says_how_many_sweeps_must_find_it(bench: SqlBench) -> None:
    await bench.put({})
    (row,) = await bench.rows()
    patient = watched(bench, Policy(looks=3))
    verdict = await judge(patient, row["id"])
    assert verdict is not None
    said = await foretell(patient, verdict)
    assert (
        said
        == "A sweep would mark it failed; those that nobody watches do so once 3 of them in a row have found it stuck."
    )


async def test_a_source_without_a_place_for_looks_is_not_swept_by_a_policy_that_needs_them(bench: SqlBench) -> None:
    await bench.put({})
    with pytest.raises(InvalidRequestError, match="nowhere to keep looks"):
        await nobody_watches(replace(watched(bench, TWICE), looks=None))
    assert await words(bench) == ["running"]


# What is kept


def stuck(job_id: int | str, *, since: datetime = NOON, **values: Any) -> Stuck:  # noqa: ANN401
    return Stuck.of(Suspect(job_id, JobState.RUNNING, since, **values), since)


async def noted(bench: SqlBench, *jobs: Stuck, at: float, before: float | None, source: str = "main") -> list[int]:
    """Note jobs at a pass so many minutes after noon."""
    this = Pass(at=NOON + at * MINUTE, before=None if before is None else NOON + before * MINUTE)
    counted = await SqlLooks(EngineConnections(bench.engine)).note(source, jobs, this)
    return [counted[job.job_id] for job in jobs]


async def test_looks_are_counted_job_by_job_and_pass_by_pass(bench: SqlBench) -> None:
    assert await noted(bench, stuck(1), stuck("x"), at=0, before=None) == [1, 1]
    assert await noted(bench, stuck(1), at=10, before=0) == [2]
    assert await noted(bench, stuck(1), stuck("x"), at=20, before=10) == [3, 1]
    assert await noted(bench, stuck(1), stuck("x"), at=20, before=10, source="other") == [1, 1]
    assert await noted(bench, stuck(1, attempt=2), stuck("x", since=NOON + MINUTE), at=30, before=20) == [1, 1]
    assert await noted(bench, at=40, before=30) == []


async def test_passes_a_moment_apart_are_one_look_and_don_t_break_the_row(bench: SqlBench) -> None:
    moment = LOOKS_APART / MINUTE / 3
    assert await noted(bench, stuck(1), at=0, before=None) == [1]
    assert await noted(bench, stuck(1), at=moment, before=0) == [1]
    assert await noted(bench, stuck(1), at=2 * moment, before=moment) == [1]
    assert await noted(bench, stuck(1), at=3 * moment, before=2 * moment) == [2]


async def test_several_processes_note_the_same_jobs_at_once(bench: SqlBench) -> None:
    ids = [stuck(number) for number in range(200)]
    await noted(bench, *ids, at=0, before=None)
    again = await asyncio.gather(*(noted(bench, *ids, at=5, before=0) for _ in range(4)))
    assert again == [[2] * 200] * 4


async def test_who_was_not_found_for_long_is_forgotten(bench: SqlBench) -> None:
    await noted(bench, stuck(1), at=0, before=None)
    await noted(bench, stuck(2), at=KEPT / MINUTE + 1, before=0)
    async with bench.engine.connect() as connection:
        assert (await connection.execute(sa.select(looks.c.job_id))).scalars().all() == ["2"]
