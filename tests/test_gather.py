"""Witnesses are asked all at once and for so long, and none of them can do harm by failing."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from unstick.domain.errors import SourceUnavailableError
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.naming import NamePattern
from unstick.domain.tenure import held_since
from unstick.pipeline.gather import gather
from unstick.testing.witnesses import FakeWitness, WitnessConformance, running_job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
JOBS = [running_job(number, NOW) for number in (1, 2, 3)]
AT_ONCE = timedelta(milliseconds=50)
"""A deadline for those who never answer, however long it is."""


class Answers:
    """A witness that answers with anything at all."""

    name = "odd"

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        del jobs, now
        return self._answer  # type: ignore[return-value]


class Stubborn:
    """A witness that goes on when it is told to stop."""

    name = "stubborn"

    def __init__(self, until: asyncio.Event) -> None:
        self._until = until

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        del jobs, now
        while not self._until.is_set():
            try:
                await self._until.wait()
            except asyncio.CancelledError:
                continue
        raise RuntimeError("far too late")


def said(words: Mapping[JobId, Sequence[Evidence]], job_id: JobId = 1) -> list[tuple[str, Holding, str | None]]:
    return [(each.witness, each.holding, each.value) for each in words[job_id]]


async def test_every_job_has_a_word_of_every_witness_in_their_order() -> None:
    one = FakeWitness(name="one", words={1: Holding.HELD, 3: Holding.RELEASED})
    other = FakeWitness(name="other", words={2: Holding.RELEASED}, value="pid 7")

    words = await gather([one, other], JOBS, NOW)

    unknown = "knows nothing of it"
    assert said(words, 1) == [("one", Holding.HELD, None), ("other", Holding.UNKNOWN, unknown)]
    assert said(words, 2) == [("one", Holding.UNKNOWN, unknown), ("other", Holding.RELEASED, "pid 7")]
    assert said(words, 3) == [("one", Holding.RELEASED, None), ("other", Holding.UNKNOWN, unknown)]
    assert (one.asked, other.asked) == ([(1, 2, 3)], [(1, 2, 3)])


async def test_without_witnesses_or_jobs_there_is_nothing_to_ask() -> None:
    witness = FakeWitness()
    assert await gather([], JOBS, NOW) == {1: (), 2: (), 3: ()}
    assert await gather([witness], [], NOW) == {}
    assert witness.asked == []


async def test_they_are_asked_at_the_same_time() -> None:
    """Each waits until the other has been asked: one after the other, neither would answer."""
    met, asked = asyncio.Event(), []

    class Meets(FakeWitness):
        async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
            asked.append(self.name)
            if len(asked) == 2:
                met.set()
            await met.wait()
            return await super().ask(jobs, now)

    words = await gather(
        [Meets(name="one", otherwise=Holding.HELD), Meets(name="other", otherwise=Holding.HELD)], JOBS, NOW
    )

    assert [holding for _, holding, _ in said(words)] == [Holding.HELD, Holding.HELD]


async def test_one_that_hangs_is_unknown_and_the_others_are_heard() -> None:
    hanging = FakeWitness(name="hanging", otherwise=Holding.RELEASED, waits_for=asyncio.Event())
    async with asyncio.timeout(2):
        words = await gather([hanging, FakeWitness(otherwise=Holding.HELD)], JOBS, NOW, AT_ONCE)

    assert said(words) == [("hanging", Holding.UNKNOWN, "no answer in time"), ("fake", Holding.HELD, None)]


async def test_the_deadline_is_told_in_words() -> None:
    hanging = FakeWitness(waits_for=asyncio.Event())
    words = await gather([hanging], JOBS, NOW, timedelta(seconds=1))
    assert said(words) == [("fake", Holding.UNKNOWN, "no answer within 1 second")]


async def test_one_that_does_not_stop_is_not_waited_for() -> None:
    """Neither by the gather, nor by anybody who would be told of its error later."""
    until, complaints = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    try:
        async with asyncio.timeout(5):
            words = await gather([Stubborn(until)], JOBS, NOW, AT_ONCE)
    finally:
        until.set()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    await asyncio.wait(left)
    del left

    assert said(words) == [("stubborn", Holding.UNKNOWN, "no answer in time")]
    assert complaints == []


async def test_a_late_word_is_not_heard() -> None:
    """It may be of another attempt by now."""
    waits_for = asyncio.Event()

    class Late(FakeWitness):
        async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
            try:
                return await super().ask(jobs, now)
            except asyncio.CancelledError:
                return {job.id: Evidence(witness=self.name, holding=Holding.RELEASED, at=now) for job in jobs}

    words = await gather([Late(waits_for=waits_for)], JOBS, NOW, AT_ONCE)

    assert [holding for _, holding, _ in said(words)] == [Holding.UNKNOWN]


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (RuntimeError("a bug\nof two lines"), "RuntimeError: a bug"),
        (RuntimeError(), "RuntimeError"),
        (asyncio.CancelledError(), "it gave up"),
        (SourceUnavailableError("The database doesn't answer."), "The database doesn't answer."),
        (RuntimeError("x" * 10_000), "RuntimeError: " + "x" * 186),
    ],
)
async def test_one_that_raises_is_unknown_and_the_others_are_heard(error: BaseException, value: str) -> None:
    words = await gather([FakeWitness(name="odd", raises=error), FakeWitness(otherwise=Holding.HELD)], JOBS, NOW)
    assert said(words) == [("odd", Holding.UNKNOWN, value), ("fake", Holding.HELD, None)]


async def test_a_bug_is_logged_once_a_gather(caplog: pytest.LogCaptureFixture) -> None:
    jobs = [running_job(number, NOW) for number in range(1_000)]
    await gather([FakeWitness(raises=RuntimeError("a bug"))], jobs, NOW)

    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info is not None


async def test_a_database_that_does_not_answer_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    await gather([FakeWitness(raises=SourceUnavailableError("The database doesn't answer."))], JOBS, NOW)
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [(logging.WARNING, None)]


SOUND = Evidence(witness="odd", holding=Holding.RELEASED, at=NOW)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {1: Holding.RELEASED},
        {1: replace(SOUND, holding="released")},  # type: ignore[arg-type]
        {1: replace(SOUND, at=NOW.replace(tzinfo=None))},
        {1: replace(SOUND, at="yesterday")},  # type: ignore[arg-type]
        {1: SOUND, 2: None},
    ],
)
async def test_an_answer_that_is_no_evidence_convicts_nobody(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    words = await gather([Answers(answer), FakeWitness(otherwise=Holding.HELD)], JOBS, NOW)

    assert said(words) == [("odd", Holding.UNKNOWN, "its answer is no evidence"), ("fake", Holding.HELD, None)]
    assert len(caplog.records) == 1


async def test_a_word_on_a_job_that_was_not_asked_about_is_not_heard() -> None:
    words = await gather([Answers({1: SOUND, 99: SOUND})], JOBS, NOW)
    assert set(words) == {1, 2, 3}


async def test_a_queued_job_is_not_asked_about() -> None:
    """The worker that it still names had it before: its word would convict a job that only waits."""
    queued = replace(running_job(9, NOW), state=JobState.QUEUED, status="queued")
    witness = FakeWitness(otherwise=Holding.RELEASED)

    words = await gather([witness], [*JOBS, queued], NOW)

    assert witness.asked == [(1, 2, 3)]
    assert said(words, 9) == [("fake", Holding.UNKNOWN, "not asked: the job isn't running")]


async def test_cancelling_passes_through_and_stops_every_witness() -> None:
    stopped, asked = [], asyncio.Event()

    class Told(FakeWitness):
        async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
            asked.set()
            try:
                return await super().ask(jobs, now)
            finally:
                stopped.append(self.name)

    witnesses = [Told(name=name, waits_for=asyncio.Event()) for name in ("one", "other")]
    gathering = asyncio.ensure_future(gather(witnesses, JOBS, NOW, timedelta(minutes=5)))
    await asked.wait()
    gathering.cancel()

    with pytest.raises(asyncio.CancelledError):
        await gathering
    while left := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
        await asyncio.wait(left)
    assert sorted(stopped) == ["one", "other"]


# Which worker is which


@pytest.mark.parametrize(
    ("began", "started", "beat", "holding"),
    [
        (-10, 0, None, Holding.HELD),
        (0, 0, None, Holding.HELD),
        (1, 0, None, Holding.UNKNOWN),  # within what two clocks may differ
        (3, 0, None, Holding.RELEASED),
        (3, 0, 10, Holding.UNKNOWN),  # somebody has written the row since
        (13, 0, 10, Holding.RELEASED),
        (0, None, 10, Holding.HELD),
        (13, None, 10, Holding.RELEASED),
        (0, None, None, Holding.UNKNOWN),
    ],
)
def test_a_worker_that_began_after_the_job_is_another(
    began: int, started: int | None, beat: int | None, holding: Holding
) -> None:
    """Item 13: a restarted worker of the same name, or a number used anew, must not vouch for another's job."""
    job = replace(JOBS[0], started_at=_at(started), heartbeat_at=_at(beat))
    assert held_since(NOW + timedelta(seconds=began), job) is holding


def _at(second: int | None) -> datetime | None:
    return None if second is None else NOW + timedelta(seconds=second)


@pytest.mark.parametrize(
    ("pattern", "name", "read"),
    [
        ("{host}:{pid}", "box:12", {"host": "box", "pid": "12"}),
        ("{host}:{pid}", "box:12:ab", None),
        ("{host}:{pid}:{any}", "box:12:ab", {"host": "box", "pid": "12"}),
        ("{host}:{pid}", "box:\u0661", None),
        ("{host}:{pid}", "box:12\n", None),
        ("{pid}@{host}", "12@box.example", {"host": "box.example", "pid": "12"}),
        ("celery({pid}).{any}", "celery(7).x", {"pid": "7"}),
        ("worker-{application_name}", "worker-a{b}", {"application_name": "a{b}"}),
        ("{pid}", "99999999999", None),
    ],
)
def test_a_name_is_read_by_its_pattern(pattern: str, name: str, read: Any) -> None:  # noqa: ANN401
    assert NamePattern(pattern).read(name) == read


@pytest.mark.parametrize("pattern", ["{hots}", "{pid}:{pid}", "{}"])
def test_a_pattern_with_an_unknown_place_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"may have \{host\}, \{pid\}"):
        NamePattern(pattern)


# The fake that is shipped keeps the rules that are shipped with it.


class FakeStand:
    def __init__(self) -> None:
        self._words: dict[JobId, Holding] = {}
        self._last = 0
        self.witness = FakeWitness(words=self._words)

    async def clock(self) -> datetime:
        return NOW

    async def held(self) -> Job:
        return self._job(Holding.HELD)

    async def released(self) -> Job:
        return self._job(Holding.RELEASED)

    async def strange(self, number: int) -> Sequence[Job]:
        return [running_job(f"strange-{each}", NOW) for each in range(number)]

    def _job(self, holding: Holding) -> Job:
        self._last += 1
        self._words[self._last] = holding
        return running_job(self._last, NOW)


class TestFakeWitness(WitnessConformance):
    @pytest.fixture
    def stand(self) -> FakeStand:
        return FakeStand()
