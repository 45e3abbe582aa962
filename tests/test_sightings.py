"""Progress between looks: what moved is at work, and what stands still is known to since when, on every database."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.jobs import make_tables
from tests.servers import EACH_KIND
from tests.witnessing import statements_of
from unstick.config import ProgressSettings
from unstick.domain.evidence import Holding
from unstick.domain.sighting import Sighted, Sighting
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.sightings import KEPT, SqlSightings
from unstick.sql.tables import sightings
from unstick.testing.witnesses import WitnessConformance, running_job
from unstick.witnesses.progress import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.domain.job import Job, JobId

DATABASES = EACH_KIND

MINUTE = timedelta(minutes=1)


@dataclass(kw_only=True)
class Memory:
    """A ledger, a witness that remembers in it, and a clock that moves when it is told to."""

    engine: AsyncEngine
    now: datetime
    last: int = 0

    def __post_init__(self) -> None:
        self.sightings = SqlSightings(EngineConnections(self.engine))
        self.witness = Progress(ProgressSettings(), "main", self.sightings)

    async def look(self, *jobs: Job, after: timedelta = timedelta(0)) -> list[tuple[Holding, datetime | None, str]]:
        """Let time pass, look, and return what is said of each."""
        self.now += after
        said = await self.witness.ask(jobs, self.now)
        return [(said[job.id].holding, said[job.id].at, said[job.id].value or "") for job in jobs]

    async def note(self, *jobs: Sighted, after: timedelta = timedelta(0), source: str = "main") -> list[Sighting]:
        self.now += after
        seen = await self.sightings.note(source, jobs, self.now)
        return [seen[job.job_id] for job in jobs]

    async def count(self) -> int:
        async with self.engine.connect() as connection:
            return (await connection.execute(sa.select(sa.func.count()).select_from(sightings))).scalar_one()

    # As `WitnessStand`:

    async def clock(self) -> datetime:
        return self.now

    async def held(self) -> Job:
        self.last += 1
        job = running_job(self.last, self.now, progress="40")
        await self.look(job)
        self.now += MINUTE
        return replace(job, progress="55")

    async def released(self) -> Job | None:
        return None

    async def strange(self, number: int) -> Sequence[Job]:
        return [running_job(f"strange-{each}", self.now) for each in range(number)]


@pytest.fixture
async def memory(database: Database) -> AsyncIterator[Memory]:
    engine = open_engine(database.url, create=True)
    await make_tables(engine)
    async with EngineConnections(engine).reading() as (_, now):
        memory = Memory(engine=engine, now=now.replace(microsecond=0))
    yield memory
    await engine.dispose()


class TestProgress(WitnessConformance):
    @pytest.fixture
    def stand(self, memory: Memory) -> Memory:
        return memory


async def test_what_moved_since_the_last_look_is_held(memory: Memory) -> None:
    job = running_job(1, memory.now, progress="40")
    first_seen_at = memory.now
    assert await memory.look(job) == [
        (Holding.UNKNOWN, None, f"progress 40, first seen at {_said(memory.now)} (1 look)")
    ]

    moved = replace(job, progress="55")
    assert await memory.look(moved, after=MINUTE) == [(Holding.HELD, first_seen_at + MINUTE, "progress 40 → 55")]


async def test_what_moved_a_while_ago_is_held_still_and_then_no_more(memory: Memory) -> None:
    """Between two looks of many who look, a busy job seldom moves."""
    job = running_job(1, memory.now, progress="40")
    moved = replace(job, progress="55")
    await memory.look(job)
    await memory.look(moved, after=MINUTE)
    moved_at = memory.now

    assert await memory.look(moved, after=10 * MINUTE) == [(Holding.HELD, moved_at, "progress 40 → 55")]
    value = f"progress 55, unmoved since {_said(moved_at)} (4 looks)"
    assert await memory.look(moved, after=MINUTE) == [(Holding.UNKNOWN, moved_at, value)]


async def test_one_that_beats_without_progress_can_be_told_to_be_hung(memory: Memory) -> None:
    """L7: a heartbeat from beside the job says nothing of the job."""
    job = running_job(1, memory.now, progress="40")
    first_seen_at = memory.now
    await memory.look(job)
    for minute in range(1, 5):
        job = replace(job, heartbeat_at=memory.now + MINUTE)
        value = f"progress 40, unmoved since {_said(first_seen_at)} ({minute + 1} looks)"
        assert await memory.look(job, after=MINUTE) == [(Holding.UNKNOWN, first_seen_at, value)]


@pytest.mark.parametrize(
    "another", [{"attempt": 2}, {"worker": "box:2"}, {"started_at": None}], ids=["attempt", "worker", "start"]
)
async def test_another_attempt_begins_anew(memory: Memory, another: dict[str, object]) -> None:
    """R2: what the attempt before had come to is no move of this one's."""
    job = running_job(1, memory.now, progress="40", attempt=1, worker="box:1")
    await memory.look(job)
    await memory.look(replace(job, progress="55"), after=MINUTE)

    again = replace(job, progress="0", **another)  # type: ignore[arg-type]
    value = f"progress 0, first seen at {_said(memory.now + MINUTE)} (1 look)"
    assert await memory.look(again, after=MINUTE) == [(Holding.UNKNOWN, None, value)]


async def test_a_job_that_says_nothing_of_its_progress_is_unknown(memory: Memory) -> None:
    job = running_job(1, memory.now)
    await memory.look(job)
    value = f"progress unsaid, unmoved since {_said(memory.now)} (2 looks)"
    assert await memory.look(job, after=MINUTE) == [(Holding.UNKNOWN, None, value)]
    assert (await memory.look(replace(job, progress="1"), after=MINUTE))[0][::2] == (
        Holding.HELD,
        "progress unsaid → 1",
    )


@pytest.mark.parametrize(("before", "after"), [("a", "A"), ("é", "e"), ("1", "1.0"), ("x" * 300, "x" * 301)])
async def test_progress_is_compared_to_the_letter(memory: Memory, before: str, after: str) -> None:
    """Whatever the collation holds equal, and however long it is."""
    job = running_job(1, memory.now, progress=before)
    await memory.look(job)
    (said,) = await memory.look(replace(job, progress=after), after=MINUTE)
    assert said[0] is Holding.HELD


async def test_looks_a_moment_apart_are_one(memory: Memory) -> None:
    """Somebody who watches must not use up a job's looks; what moves meanwhile is seen all the same."""
    job = Sighted(job_id=1, attempt="one", progress="40")
    first_seen_at = memory.now
    counts = [
        (await memory.note(job, after=after))[0].looks for after in [timedelta(seconds=each) for each in (0, 5, 5, 25)]
    ]
    assert counts == [1, 1, 1, 2]

    (seen,) = await memory.note(replace(job, progress="41"), after=timedelta(seconds=5))
    assert seen == Sighting(
        progress="41",
        first_seen_at=first_seen_at,
        seen_at=first_seen_at + timedelta(seconds=35),
        looks=2,
        moved_at=memory.now,
        moved_from="40",
    )


async def test_sources_do_not_share_their_jobs(memory: Memory) -> None:
    job = Sighted(job_id=1, attempt="one", progress="40")
    await memory.note(job)
    (other,) = await memory.note(replace(job, progress="41"), after=MINUTE, source="other")
    assert (other.looks, other.moved_at) == (1, None)


async def test_ids_of_any_kind_are_told_apart(memory: Memory) -> None:
    ids: list[JobId] = [1, "a", "A", "it's", "x" * 1_000, "x" * 1_001, "\u00e9", 2**63]
    jobs = [Sighted(job_id=each, attempt="one", progress=str(each)[:10]) for each in ids]
    await memory.note(*jobs)
    seen = await memory.note(*jobs, after=MINUTE)
    assert [(each.looks, each.progress, each.moved_at) for each in seen] == [(2, job.progress, None) for job in jobs]
    assert await memory.count() == len(ids)


async def test_who_was_no_suspect_for_long_is_forgotten_and_nobody_else(memory: Memory) -> None:
    gone, there = (Sighted(job_id=each, attempt="one", progress="40") for each in (1, 2))
    await memory.note(gone, there)
    await memory.note(there, after=KEPT)
    later = Memory(engine=memory.engine, now=memory.now + MINUTE)  # who forgets once an hour begins anew
    await later.note(Sighted(job_id=1, attempt="one", progress="1"), source="other")
    assert await memory.count() == 3

    again = Memory(engine=memory.engine, now=later.now)
    (seen,) = await again.note(there)
    assert (await memory.count(), seen.looks) == (2, 3)


async def test_it_forgets_no_more_than_once_an_hour(memory: Memory) -> None:
    job = Sighted(job_id=1, attempt="one", progress="40")
    await memory.note(job)
    with statements_of(memory.engine) as ran:
        await memory.note(job)
    assert [each for each in ran if each.startswith("DELETE")] == []


@pytest.mark.parametrize("known", [True, False])
async def test_those_who_look_at_once_do_not_block_each_other(memory: Memory, known: bool) -> None:
    """K4: in whatever order they come, and whether or not the jobs were seen before."""
    jobs = [Sighted(job_id=each, attempt="one", progress="40") for each in range(300)]
    others = [SqlSightings(EngineConnections(memory.engine)) for _ in range(4)]
    if known:
        await memory.note(*jobs)

    memory.now = now = memory.now + MINUTE
    orders = [jobs, jobs[::-1], jobs[100:] + jobs[:100], jobs[::3] + jobs[1::3] + jobs[2::3]]
    seen = await asyncio.gather(*(other.note("main", each, now) for other, each in zip(others, orders, strict=True)))

    assert [len(each) for each in seen] == [300] * 4
    assert {each.looks for each in await memory.note(*jobs, after=MINUTE)} == {3 if known else 2}
    assert await memory.count() == 300


async def test_ten_thousand_jobs_cost_two_statements(memory: Memory) -> None:
    jobs = [running_job(each, memory.now, progress="40") for each in range(10_000)]
    await memory.look(*jobs)
    with statements_of(memory.engine) as ran:
        said = await memory.look(*(replace(job, progress="41") for job in jobs), after=MINUTE)
    assert {holding for holding, _, _ in said} == {Holding.HELD}
    assert len([each for each in ran if "unstick_sightings" in each]) == 2
    assert len(ran) <= 4


def _said(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"
