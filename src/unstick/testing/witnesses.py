"""A witness that says what it is told to, and the behaviour every witness must show, as tests to subclass.

    class TestMyWitness(WitnessConformance):
        @pytest.fixture
        async def stand(self) -> AsyncIterator[WitnessStand]:
            ...

`stand` is a `WitnessStand`: the witness under test, with hands that put jobs into and out of workers'. The tests need
pytest and pytest-asyncio in auto mode.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId, JobState
from unstick.ports import Witness


@dataclass(kw_only=True)
class FakeWitness:
    """A witness by script.

        witness = FakeWitness(words={7: Holding.HELD})
        watched = Watched(source=…, ledger=…, policy=…, witnesses=(witness,))

    Args:
        name: what it is called in findings.
        words: what it says of which job; jobs that aren't in it are left out.
        otherwise: what it says of all others, instead of leaving them out.
        value: its own words, beside each.
        raises: what it raises instead of answering.
        waits_for: what it waits for before it does either; an event that is never set makes it hang.
    """

    name: str = "fake"
    words: Mapping[JobId, Holding] = field(default_factory=dict)
    otherwise: Holding | None = None
    value: str | None = None
    raises: BaseException | None = None
    waits_for: asyncio.Event | None = None
    asked: list[tuple[JobId, ...]] = field(default_factory=list)
    """Whom it was asked about, each time."""

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Answer as scripted."""
        self.asked.append(tuple(job.id for job in jobs))
        if self.waits_for is not None:
            await self.waits_for.wait()
        if self.raises is not None:
            raise self.raises
        said = {job.id: self.words.get(job.id, self.otherwise) for job in jobs}
        return {
            job_id: Evidence(witness=self.name, holding=holding, at=now, value=self.value)
            for job_id, holding in said.items()
            if holding is not None
        }


class WitnessStand(Protocol):
    """A witness under test, and what it is a witness of."""

    @property
    def witness(self) -> Witness:
        """The witness under test."""

    async def clock(self) -> datetime:
        """Return the source's time."""

    async def held(self) -> Job:
        """Return a new running job that a worker has."""

    async def released(self) -> Job | None:
        """Return a new job that says running and that no worker has; None where the witness can never tell so."""

    async def strange(self, number: int) -> Sequence[Job]:
        """Return so many running jobs that the witness can't know anything of."""


class WitnessConformance:
    """What holds for every witness."""

    async def test_it_says_held_of_a_job_that_a_worker_has(self, stand: WitnessStand) -> None:
        """A held job is acquitted by this word."""
        job = await stand.held()

        assert (await _ask(stand, job))[job.id].holding is Holding.HELD

    async def test_it_says_released_of_a_job_that_no_worker_has(self, stand: WitnessStand) -> None:
        """A released job is convicted by this word, at once."""
        job = await stand.released()

        if job is not None:
            assert (await _ask(stand, job))[job.id].holding is Holding.RELEASED

    async def test_it_tells_jobs_of_one_call_apart(self, stand: WitnessStand) -> None:
        """What is said of one job is not said of another."""
        held, released, (strange,) = await stand.held(), await stand.released(), await stand.strange(1)
        jobs = [held, strange, *([released] if released is not None else [])]

        said = await _ask(stand, *jobs)

        assert said[held.id].holding is Holding.HELD
        assert released is None or said[released.id].holding is Holding.RELEASED
        assert strange.id not in said or said[strange.id].holding is Holding.UNKNOWN

    async def test_it_speaks_only_of_the_jobs_it_was_asked_about(self, stand: WitnessStand) -> None:
        """A word on any other job was not asked for, and nobody knows which attempt it is on."""
        asked, unasked = await stand.held(), await stand.held()

        said = await _ask(stand, asked)

        assert set(said) == {asked.id}
        assert unasked.id not in said

    async def test_its_evidence_names_it_and_has_a_zone(self, stand: WitnessStand) -> None:
        """A time without a zone can't be compared with the source's."""
        job = await stand.held()

        evidence = (await _ask(stand, job))[job.id]

        assert evidence.witness == stand.witness.name
        assert evidence.at is None or evidence.at.utcoffset() is not None

    async def test_it_never_convicts_a_job_it_knows_nothing_of(self, stand: WitnessStand) -> None:
        """Silence is UNKNOWN: it says so, or leaves the job out."""
        jobs = await stand.strange(3)

        said = await _ask(stand, *jobs)

        assert {evidence.holding for evidence in said.values()} <= {Holding.UNKNOWN}

    async def test_asked_of_nothing_it_says_nothing(self, stand: WitnessStand) -> None:
        """A page may have no running job on it."""
        assert await _ask(stand) == {}

    async def test_it_can_be_asked_twice_at_once(self, stand: WitnessStand) -> None:
        """Several sources and callers share a witness."""
        one, other = await stand.held(), await stand.held()

        said = await asyncio.gather(_ask(stand, one), _ask(stand, other))

        assert [each[job.id].holding for each, job in zip(said, (one, other), strict=True)] == [Holding.HELD] * 2

    async def test_it_stops_when_it_is_told_to_and_can_be_asked_again(self, stand: WitnessStand) -> None:
        """Whoever takes longer than the deadline is cancelled."""
        job = await stand.held()
        asking = asyncio.ensure_future(_ask(stand, job))
        await asyncio.sleep(0)
        asking.cancel()

        await asyncio.wait([asking], timeout=_SOON_SECONDS)

        assert asking.done()
        assert (await _ask(stand, job))[job.id].holding is Holding.HELD

    async def test_ten_thousand_jobs_are_no_more_than_it_can_answer_in_time(self, stand: WitnessStand) -> None:
        """They are asked about in batches, not one by one."""
        held = await stand.held()
        jobs = [held, *(await stand.strange(9_999))]

        async with asyncio.timeout(_MANY_SECONDS):
            said = await _ask(stand, *jobs)

        assert said[held.id].holding is Holding.HELD


_SOON_SECONDS = 5
_MANY_SECONDS = 20
"""Ten times the deadline, for a machine under test is a busy one."""


async def _ask(stand: WitnessStand, *jobs: Job) -> Mapping[JobId, Evidence]:
    return await stand.witness.ask(jobs, await stand.clock())


def running_job(job_id: JobId, now: datetime, *, age: timedelta = timedelta(hours=1), **known: object) -> Job:
    """Return a job that has been running for so long, with what else is known of it."""
    job = Job(id=job_id, state=JobState.RUNNING, status="running", started_at=now - age)
    return replace(job, **known)  # type: ignore[arg-type]  # the names and types are the caller's
