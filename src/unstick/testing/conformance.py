"""The behaviour every `JobSource` must show, as tests to subclass.

    class TestMySource(JobSourceConformance):
        @pytest.fixture
        async def bench(self) -> AsyncIterator[Bench]:
            ...

`bench` is a `Bench`: the source under test with the hands of the application that owns its jobs. The tests need
pytest and pytest-asyncio in auto mode. A source that lacks a capability says so, and what needs it is left out.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from unstick.domain.aftermath import Recovered, is_late
from unstick.domain.diagnosis import diagnose
from unstick.domain.job import Job, JobId, JobState, sign_of_life
from unstick.domain.policy import Policy, decide
from unstick.domain.recovery import Action, Batch, BatchResult, Outcome
from unstick.domain.suspect import ACCUSED_STATES, Look, Mark, Position, Suspect
from unstick.domain.undo import CLAIMED, Undoable, UndoBatch
from unstick.ports import JobSource
from unstick.testing.memory import StoredJob

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """A job's times, each as its age by the source's clock; None where it never happened, negative for the future."""

    enqueued: timedelta | None = None
    scheduled: timedelta | None = None
    started: timedelta | None = None
    heartbeat: timedelta | None = None
    completed: timedelta | None = None


class Bench(Protocol):
    """A source under test, and the application that owns its jobs."""

    @property
    def source(self) -> JobSource:
        """The source under test."""

    def another(self) -> JobSource:
        """Return a second source over the same jobs, with connections of its own."""

    async def add(self, state: JobState, ages: Ages, *, attempt: int = 1) -> JobId:
        """Add a job as the application would; ids ascend."""

    async def write(self, job_id: JobId, state: JobState, ages: Ages, *, attempt: int = 1) -> None:
        """Write over a job as the application would, committed when this returns."""

    async def get(self, job_id: JobId) -> StoredJob:
        """Read a job back."""

    async def outcomes(self, job_id: JobId) -> list[Outcome]:
        """Return the recorded outcomes of a job, in the order they came."""

    async def undoable(self, job_id: JobId) -> Undoable:
        """Return the last recovery of a job, as its record would have it undone."""


class JobSourceConformance:
    """What holds for every source, on every database."""

    async def test_counts_follow_the_contract(self, bench: Bench) -> None:
        """A job is counted if it is queued or running, past its threshold, and not completed."""
        for state, ages, _ in CASES:
            await bench.add(state, ages)
        expected = {state: sum(stuck for each, _, stuck in CASES if each is state) for state in ACCUSED_STATES}

        counts = await bench.source.count_suspects(await look_at(bench))

        assert (counts.queued, counts.running) == (expected[JobState.QUEUED], expected[JobState.RUNNING])

    async def test_each_suspect_is_yielded_once_by_ascending_id(self, bench: Bench) -> None:
        """Pages, lists and counts speak of the same jobs."""
        ids = [(await bench.add(state, ages), stuck) for state, ages, stuck in CASES]

        found = [suspect.job_id for suspect in await suspects_of(bench, await look_at(bench))]

        assert found == [job_id for job_id, stuck in ids if stuck]

    async def test_a_suspect_says_since_when(self, bench: Bench) -> None:
        """A running job is judged by the later of start and heartbeat, a queued one by when it could be claimed."""
        await bench.add(JobState.RUNNING, Ages(started=90 * MINUTE, heartbeat=40 * MINUTE))
        await bench.add(JobState.QUEUED, Ages(enqueued=90 * MINUTE, scheduled=20 * MINUTE))
        look = await look_at(bench)

        ages = [round((look.taken_at - suspect.since) / MINUTE) for suspect in await suspects_of(bench, look)]

        assert ages == [40, 20]

    async def test_a_look_at_single_jobs_sees_no_other_and_who_is_left_alone_is_not_seen(self, bench: Bench) -> None:
        """Counts, lists, pages and the write itself agree on it; ids that no job has are nobody's."""
        one, other, last = [await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE)) for _ in range(3)]
        look = await look_at(bench)
        only = replace(look, only=frozenset({one, "no such job"}))
        without = replace(look, left_alone=frozenset({one, "no such job"}))
        batch = batch_of(await suspects_of(bench, look), look)

        for narrowed, ids in ((only, [one]), (without, [other, last])):
            listed = await bench.source.list_suspects(narrowed, JobState.RUNNING, limit=9, after=None)
            assert [job.id for job in listed] == ids
            assert [suspect.job_id for suspect in await suspects_of(bench, narrowed)] == ids
            assert (await bench.source.count_suspects(narrowed)).total == len(ids)
        assert (await bench.source.recover(replace(batch, look=only))).applied == {one}
        assert [(await bench.get(job_id)).job.state for job_id in (other, last)] == [JobState.RUNNING] * 2
        assert (await bench.source.recover(replace(batch, look=without))).applied == {other, last}

    async def test_a_job_is_found_whatever_its_state_by_its_id_as_text(self, bench: Bench) -> None:
        """What is found bears the source's own id, and says of each state what is known."""
        for state, ages, _ in CASES:
            job_id = await bench.add(state, ages)
            found = await bench.source.find(str(job_id))
            assert found is not None
            assert found.job is not None
            stored = (await bench.get(job_id)).job
            assert (found.job_id, found.job.id, found.job.state) == (job_id, job_id, stored.state)
            assert stored.state is state or ages.scheduled is not None  # some systems have a word for what isn't due
            assert found.job.completed_at == stored.completed_at
        assert await bench.source.find("no such job") is None

    async def test_a_list_is_by_age_and_continues_where_it_ended(self, bench: Bench) -> None:
        """A position continues a list with neither gap nor repetition."""
        ages = [30, 50, 20, 50, 40]
        ids = [await bench.add(JobState.QUEUED, Ages(enqueued=age * MINUTE)) for age in ages]
        look = await look_at(bench)

        oldest = await _listed(bench, look)

        by_age = {ids[0]: 30, ids[1]: 50, ids[2]: 20, ids[3]: 50, ids[4]: 40}
        assert sorted(oldest, key=ids.index) == ids
        assert [by_age[job_id] for job_id in oldest] == [50, 50, 40, 30, 20]

    async def test_stretches_from_either_end_hold_every_suspect_once(self, bench: Bench) -> None:
        """Whatever they are ordered by, some of which they may share, or not have at all."""
        begun = [None, 50 * MINUTE, 40 * MINUTE, None, 40 * MINUTE, None]
        ids = [await bench.add(JobState.QUEUED, Ages(enqueued=90 * MINUTE, started=each)) for each in begun]
        look = await look_at(bench)

        for newest_first in (False, True):
            for size in (1, 2, 5, 9):
                found = await _in_stretches(bench, look, size, newest_first=newest_first)
                assert sorted(found, key=ids.index) == ids

    async def test_mark_failed_ends_the_job_as_the_contract_says(self, bench: Bench) -> None:
        """State, success, completion time and a message that says why."""
        job_id = await bench.add(JobState.RUNNING, Ages(started=2 * 60 * MINUTE))

        result = await recover_all(bench)

        stored = await bench.get(job_id)
        assert result.applied == {job_id}
        assert stored.job.state is JobState.FAILED
        assert stored.success is False
        assert abs(completed_at(stored) - await bench.source.clock()) < MINUTE
        assert (stored.error or "").startswith("Job stuck in running for more than 30 minutes: ")
        assert (stored.error or "").endswith("Automatically cleaned up.")
        assert await bench.outcomes(job_id) == [Outcome.APPLIED]

    async def test_retry_queues_a_new_attempt_that_is_not_stuck(self, bench: Bench) -> None:
        """A retried job waits anew: the next look doesn't find it (R4, R9)."""
        job_id = await bench.add(JobState.RUNNING, Ages(enqueued=9 * 60 * MINUTE, started=60 * MINUTE), attempt=2)

        result = await recover_all(bench, Action.RETRY)

        stored = await bench.get(job_id)
        assert result.applied == {job_id}
        assert (stored.job.state, stored.job.attempt, stored.job.completed_at) == (JobState.QUEUED, 3, None)
        assert await suspects_of(bench, await look_at(bench)) == []

    async def test_retrying_a_job_that_never_started_costs_no_attempt(self, bench: Bench) -> None:
        """What never ran didn't fail: the application's own attempts are for its own failures."""
        job_id = await bench.add(JobState.QUEUED, Ages(enqueued=60 * MINUTE), attempt=0)

        await recover_all(bench, Action.RETRY)

        assert (await bench.get(job_id)).job.attempt == 0
        assert await suspects_of(bench, await look_at(bench)) == []

    async def test_a_job_that_finishes_between_look_and_write_stays_finished(self, bench: Bench) -> None:
        """R1: the write repeats the state it saw."""
        ran = Ages(started=60 * MINUTE)
        finished = Ages(started=60 * MINUTE, completed=timedelta(0))
        await self._assert_left_alone(bench, ran, JobState.SUCCEEDED, finished)

    async def test_a_job_that_beats_between_look_and_write_is_left_alone(self, bench: Bench) -> None:
        """R1: the write repeats the sign of life it saw."""
        ran = Ages(started=60 * MINUTE, heartbeat=40 * MINUTE)
        beating = Ages(started=60 * MINUTE, heartbeat=timedelta(0))
        await self._assert_left_alone(bench, ran, JobState.RUNNING, beating)

    async def test_a_job_retried_and_claimed_again_between_look_and_write_is_left_alone(self, bench: Bench) -> None:
        """R2: the state is the same again, but the attempt is another."""
        ran = Ages(started=60 * MINUTE)
        await self._assert_left_alone(bench, ran, JobState.RUNNING, ran, attempt=2)

    async def test_a_job_claimed_again_with_the_same_attempt_is_left_alone(self, bench: Bench) -> None:
        """R2: the state and attempt are the same again, but the start is another, even where it is old."""
        ran, again = Ages(started=60 * MINUTE), Ages(started=50 * MINUTE)
        await self._assert_left_alone(bench, ran, JobState.RUNNING, again)

    async def test_a_job_claimed_a_moment_ago_is_no_suspect(self, bench: Bench) -> None:
        """R4: a claim restarts the clock, however long the job waited."""
        await bench.add(JobState.RUNNING, Ages(enqueued=9 * 60 * MINUTE, started=timedelta(0)))

        assert await suspects_of(bench, await look_at(bench)) == []

    async def test_a_recovered_job_is_not_recovered_again(self, bench: Bench) -> None:
        """R9: the next sweep finds nothing left to do, and the old decision doesn't apply twice."""
        job_id = await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE))
        look = await look_at(bench)
        batch = batch_of(await suspects_of(bench, look), look)

        first, second = await bench.source.recover(batch), await bench.source.recover(batch)

        assert first.applied == {job_id}
        assert second.applied == frozenset()
        assert await suspects_of(bench, await look_at(bench)) == []
        assert await bench.outcomes(job_id) == [Outcome.APPLIED, Outcome.LOST_RACE]

    async def test_what_was_seen_holds_after_a_trip_through_json(self, bench: Bench) -> None:
        """A plan keeps it so: the job that is as it was seen is recovered, and the one that moved is left."""
        stays, moves = [await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE)) for _ in range(2)]
        look = await look_at(bench)
        suspects = await suspects_of(bench, look)
        kept = [each._replace(seen=tuple(json.loads(json.dumps(each.seen, default=str)))) for each in suspects]
        await bench.write(moves, JobState.RUNNING, Ages(started=50 * MINUTE))

        result = await bench.source.recover(batch_of(kept, look))

        assert result.applied == {stays}
        assert result.outcome(moves) is Outcome.LOST_RACE

    async def test_of_two_sweepers_one_recovers_each_job(self, bench: Bench) -> None:
        """R7: what was written is counted by the one who wrote it, and recorded once."""
        ids = {await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE)) for _ in range(20)}
        look = await look_at(bench)
        batch = batch_of(await suspects_of(bench, look), look)

        one, other = await asyncio.gather(bench.source.recover(batch), bench.another().recover(batch))

        assert one.applied | other.applied == ids
        assert one.applied & other.applied == frozenset()
        for job_id in ids:
            assert (await bench.outcomes(job_id)).count(Outcome.APPLIED) == 1

    async def test_undo_puts_a_failed_job_back_as_it_was(self, bench: Bench) -> None:
        """Promise 6: state, success, completion time and error are what they were."""
        await self._assert_put_back(bench, Action.MARK_FAILED)

    async def test_undo_puts_a_retried_job_back_as_it_was(self, bench: Bench) -> None:
        """Promise 6: state, attempt and all its times are what they were, and it runs again."""
        await self._assert_put_back(bench, Action.RETRY)

    async def test_undo_leaves_alone_what_was_claimed_since(self, bench: Bench) -> None:
        """Promise 6: it is as somebody else left it."""
        job_id, stays = await self._recovered(bench, Action.RETRY), await bench.add(JobState.RUNNING, RAN)
        await bench.write(job_id, JobState.RUNNING, Ages(started=timedelta(0)), attempt=2)
        changed = await bench.get(job_id)

        result = await bench.source.undo(undo_of(await bench.undoable(job_id)))

        assert result.applied == frozenset()
        assert list(result.lost.values()) == [CLAIMED]
        assert await bench.get(job_id) == changed
        assert (await bench.get(stays)).job.state is JobState.RUNNING
        assert await bench.outcomes(job_id) == [Outcome.APPLIED, Outcome.LOST_RACE]

    async def test_undoing_twice_undoes_once(self, bench: Bench) -> None:
        """Promise 6: the second one finds the job as the first one left it, and says so."""
        job_id = await self._recovered(bench, Action.MARK_FAILED)
        batch = undo_of(await bench.undoable(job_id))

        first, second = await bench.source.undo(batch), await bench.source.undo(batch)

        assert (len(first.applied), len(second.applied)) == (1, 0)
        assert (await bench.get(job_id)).job.state is JobState.RUNNING
        assert await bench.outcomes(job_id) == [Outcome.APPLIED, Outcome.APPLIED, Outcome.LOST_RACE]

    async def test_of_two_undos_at_once_one_puts_each_job_back(self, bench: Bench) -> None:
        """Promise 6: each job is put back, and recorded, once."""
        ids = [await bench.add(JobState.RUNNING, RAN) for _ in range(10)]
        await recover_all(bench)
        batch = undo_of(*[await bench.undoable(job_id) for job_id in ids])

        one, other = await asyncio.gather(bench.source.undo(batch), bench.another().undo(batch))

        assert len(one.applied) + len(other.applied) == len(ids)
        assert one.applied & other.applied == frozenset()
        for job_id in ids:
            assert (await bench.get(job_id)).job.state is JobState.RUNNING
            assert (await bench.outcomes(job_id)).count(Outcome.APPLIED) == 2

    async def _recovered(self, bench: Bench, action: Action) -> JobId:
        job_id = await bench.add(JobState.RUNNING, RAN)
        assert (await recover_all(bench, action)).applied == {job_id}
        return job_id

    async def _assert_put_back(self, bench: Bench, action: Action) -> None:
        job_id = await bench.add(JobState.RUNNING, RAN)
        before = await bench.get(job_id)
        await recover_all(bench, action)
        assert await bench.get(job_id) != before

        result = await bench.source.undo(undo_of(await bench.undoable(job_id)))

        assert await bench.get(job_id) == before
        assert (len(result.applied), result.refused, result.lost) == (1, {}, {})
        assert await bench.outcomes(job_id) == [Outcome.APPLIED, Outcome.APPLIED]

    async def test_of_recovered_jobs_those_that_succeeded_are_told_with_their_times(self, bench: Bench) -> None:
        """What tells a late finish from another attempt: start, completion, and the number of the attempt."""
        ran = Ages(started=60 * MINUTE)
        finished, failed, running = [await bench.add(JobState.RUNNING, ran, attempt=2) for _ in range(3)]
        await recover_all(bench)
        at = await bench.source.clock()
        await bench.write(finished, JobState.SUCCEEDED, Ages(started=60 * MINUTE, completed=MINUTE), attempt=2)
        await bench.write(running, JobState.RUNNING, Ages(started=timedelta(0)), attempt=3)
        recovered = [
            Recovered(number, job_id, JobState.RUNNING, Action.MARK_FAILED, at)
            for number, job_id in enumerate((finished, failed, running, finished))
        ]

        told = await bench.source.finished_among(recovered)

        assert sorted(each.recovered.recovery_id for each in told) == [0, 3]
        stored = await bench.get(finished)
        assert {each.now.number for each in told} == {2}
        assert {each.completed_at for each in told} == {completed_at(stored)}
        assert all(is_late(each) for each in told)

    async def _assert_left_alone(
        self, bench: Bench, before: Ages, state: JobState, after: Ages, *, attempt: int = 1
    ) -> None:
        job_id = await bench.add(JobState.RUNNING, before)
        bystander = await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE))
        look = await look_at(bench)
        batch = batch_of(await suspects_of(bench, look), look)
        await bench.write(job_id, state, after, attempt=attempt)
        changed = await bench.get(job_id)

        result = await bench.source.recover(batch)

        assert await bench.get(job_id) == changed
        assert result.applied == {bystander}
        assert result.outcome(job_id) is Outcome.LOST_RACE
        assert await bench.outcomes(job_id) == [Outcome.LOST_RACE]


RAN = Ages(enqueued=100 * MINUTE, started=60 * MINUTE, heartbeat=40 * MINUTE)
CASES: Sequence[tuple[JobState, Ages, bool]] = (
    (JobState.QUEUED, Ages(enqueued=6 * MINUTE), True),
    (JobState.QUEUED, Ages(enqueued=4 * MINUTE), False),
    (JobState.QUEUED, Ages(enqueued=60 * MINUTE, started=6 * MINUTE), True),
    (JobState.QUEUED, Ages(enqueued=60 * MINUTE, started=4 * MINUTE), False),
    (JobState.QUEUED, Ages(enqueued=60 * MINUTE, scheduled=6 * MINUTE), True),
    (JobState.QUEUED, Ages(enqueued=60 * MINUTE, scheduled=4 * MINUTE), False),
    (JobState.QUEUED, Ages(enqueued=60 * MINUTE, scheduled=-60 * MINUTE), False),
    (JobState.QUEUED, Ages(scheduled=6 * MINUTE), True),
    (JobState.QUEUED, Ages(), False),
    (JobState.QUEUED, Ages(enqueued=6 * MINUTE, completed=MINUTE), False),
    (JobState.RUNNING, Ages(started=31 * MINUTE), True),
    (JobState.RUNNING, Ages(started=29 * MINUTE), False),
    (JobState.RUNNING, Ages(started=9 * 60 * MINUTE, heartbeat=31 * MINUTE), True),
    (JobState.RUNNING, Ages(started=9 * 60 * MINUTE, heartbeat=29 * MINUTE), False),
    (JobState.RUNNING, Ages(started=29 * MINUTE, heartbeat=9 * 60 * MINUTE), False),
    (JobState.RUNNING, Ages(heartbeat=31 * MINUTE), True),
    (JobState.RUNNING, Ages(enqueued=9 * 60 * MINUTE), False),
    (JobState.RUNNING, Ages(started=31 * MINUTE, completed=MINUTE), False),
    (JobState.SUCCEEDED, Ages(started=60 * MINUTE, completed=MINUTE), False),
    (JobState.FAILED, Ages(started=60 * MINUTE, completed=MINUTE), False),
    (JobState.CANCELLED, Ages(started=60 * MINUTE), False),
    (JobState.SCHEDULED, Ages(enqueued=60 * MINUTE), False),
)
"""Jobs by state and ages, and whether the contract's default thresholds accuse them."""


async def look_at(bench: Bench, policy: Policy | None = None) -> Look:
    """Read the source's clock with the policy's thresholds, the contract's where none is given."""
    thresholds = policy or Policy()
    return Look(
        taken_at=await bench.source.clock(),
        queued_after=thresholds.queued_after,
        running_after=thresholds.running_after,
    )


async def suspects_of(bench: Bench, look: Look) -> list[Suspect]:
    """Read all suspects of a look."""
    return [suspect async for page in bench.source.suspects(look) for suspect in page.suspects]


def batch_of(suspects: Sequence[Suspect], look: Look, action: Action = Action.MARK_FAILED) -> Batch:
    """Decide the same action on all of them."""
    policy = Policy()
    decisions = [decide(suspect, diagnose(suspect.state, suspect.since), policy, action, 0) for suspect in suspects]
    return Batch(action=action, decisions=decisions, look=look, operation_id=1)


def undo_of(*recoveries: Undoable) -> UndoBatch:
    """Ask for these recoveries to be undone."""
    return UndoBatch(recoveries=recoveries, operation_id=2)


async def _listed(bench: Bench, look: Look) -> list[JobId]:
    """Return the ids of a list of queued suspects, read two at a time."""
    listed: list[JobId] = []
    position: Position | None = None
    while page := await bench.source.list_suspects(look, JobState.QUEUED, limit=2, after=position):
        listed += [job.id for job in page]
        position = Position(since=since_of(page[-1]), job_id=page[-1].id)
    return listed


async def _in_stretches(bench: Bench, look: Look, size: int, *, newest_first: bool) -> list[JobId]:
    """Return the ids of all stretches of queued suspects, none of which is longer than it may be."""
    found: list[JobId] = []
    mark: Mark | None = None
    while True:
        stretch = await bench.source.stretch(look, JobState.QUEUED, size=size, after=mark, newest_first=newest_first)
        assert len(stretch.jobs) <= size
        found += [job.id for job in stretch.jobs]
        mark = stretch.end
        if mark is None:
            return found


async def recover_all(bench: Bench, action: Action = Action.MARK_FAILED) -> BatchResult:
    """Recover all suspects of a look in one batch."""
    look = await look_at(bench)
    return await bench.source.recover(batch_of(await suspects_of(bench, look), look, action))


def since_of(job: Job) -> datetime:
    """Return the sign of life a suspect is judged by; it must have one."""
    since = sign_of_life(job)
    assert since is not None
    return since


def completed_at(stored: StoredJob) -> datetime:
    """Return when a job ended; it must have."""
    assert stored.job.completed_at is not None
    return stored.job.completed_at
