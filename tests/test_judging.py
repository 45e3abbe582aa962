"""Jobs, witnesses, people and sweeps in any order, on a source in memory: each verdict is held against a model.

`UNSTICK_EXAMPLES=2000 pytest --timeout=0 tests/test_judging.py` tries as many lives, other ones each time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from unstick.domain.brake import BrakeLimits, Unattended
from unstick.domain.diagnosis import Reason
from unstick.domain.evidence import PROGRESS, Evidence, Holding
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action, Outcome
from unstick.pipeline.braking import release_brake
from unstick.pipeline.report import StuckReport, report_stuck
from unstick.pipeline.snoozing import SnoozeOrder, snooze
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.pipeline.watched import Watched
from unstick.testing.memory import (
    MemoryBrakes,
    MemoryJobs,
    MemoryLedger,
    MemoryLooks,
    MemorySnoozes,
    MemorySource,
    StoredJob,
)
from unstick.testing.witnesses import FakeWitness

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from unstick.domain.snooze import Snooze

MINUTE = timedelta(minutes=1)
QUEUED_AFTER, RUNNING_AFTER, LONG_AFTER, HUNG_AFTER = 5 * MINUTE, 30 * MINUTE, 120 * MINUTE, 20 * MINUTE
ASKED_AFTER, MOVED_WITHIN, EVERY = MINUTE, 10 * MINUTE, 10 * MINUTE
BRAKE = BrakeLimits(share=0.5, jobs=2)
POLICY = Policy(
    queued_after=QUEUED_AFTER,
    running_after=RUNNING_AFTER,
    rules=(
        Rule(kind="long", running_after=LONG_AFTER),
        Rule(kind="hangs", hung_after=HUNG_AFTER),
        Rule(kind="again", action=Action.RETRY, max_recoveries=1, retry_backoff=timedelta(seconds=1)),
        Rule(kind="asks", ask=True),
        Rule(kind="patient", looks=2),
    ),
)
KINDS = st.sampled_from(["plain", "long", "hangs", "again", "asks", "patient"])
PICKS = st.integers(0, 9)
WHO = st.integers(0, 1)
AT_MOST = 8
"""Jobs that are open at once: enough for the brake, and few enough to meet again."""
MORE = int(os.environ.get("UNSTICK_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=MORE or 100,
    stateful_step_count=40,
    deadline=None,
    database=None,
    # Shrinking takes minutes: whoever wants the shortest life that fails has the time for it.
    phases=tuple(Phase) if MORE else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
_Told = TypeVar("_Told")


@dataclass
class StandsStill:
    """A witness of progress that was told when each job's last moved."""

    moved_at: dict[JobId, datetime] = field(default_factory=dict)
    name: str = PROGRESS

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        return {job.id: self.word(job.id, now) for job in jobs if job.id in self.moved_at}

    def word(self, job_id: JobId, now: datetime) -> Evidence:
        at = self.moved_at.get(job_id)
        lately = at is not None and now - at <= MOVED_WITHIN
        return Evidence(witness=PROGRESS, holding=Holding.HELD if lately else Holding.UNKNOWN, at=at)


class Machine(RuleBasedStateMachine):
    """One life of a platform."""

    met: ClassVar[Counter[str]] = Counter()
    """What came about in all lives together."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.system = MemoryJobs()
        self.progress = StandsStill()
        self.words: tuple[dict[JobId, Holding], ...] = ({}, {})
        self.fakes = tuple(FakeWitness(name=name, words=said) for name, said in zip("ab", self.words, strict=True))
        ledger = MemoryLedger(self.system)
        self.brakes, self.snoozes = MemoryBrakes(), MemorySnoozes(ledger)
        self.watched = Watched(
            source=MemorySource(self.system),
            ledger=ledger,
            policy=POLICY,
            brakes=self.brakes,
            unattended=Unattended(every=EVERY, brake=BRAKE),
            looks=MemoryLooks(),
            snoozes=self.snoozes,
            witnesses=(*self.fakes, self.progress),
        )
        self.found: dict[JobId, tuple[object, ...]] = {}
        """Who the last unattended sweep found stuck that could have acted on them, and how they looked."""

    def teardown(self) -> None:
        self.runner.close()

    def run(self, asked: Coroutine[object, object, _Told]) -> _Told:
        return self.runner.run(asked)

    # The model: said anew, job by job, from what is promised

    def jobs(self, *states: JobState) -> list[Job]:
        return [each.job for each in self.system.jobs.values() if not states or each.job.state in states]

    def said(self, job: Job) -> list[Holding]:
        """Return what all witnesses say of a job; who raises or says nothing knows nothing."""
        fakes = [
            said.get(job.id, Holding.UNKNOWN) if fake.raises is None else Holding.UNKNOWN
            for fake, said in zip(self.fakes, self.words, strict=True)
        ]
        return [*fakes, self.progress.word(job.id, self.system.now).holding]

    def verdict(self, job: Job) -> Reason | None:
        """Return why a job is stuck; None where it isn't, or where nobody knows."""
        if self.is_snoozed(job.id) or job.completed_at is not None:
            return None
        if job.state is JobState.QUEUED:
            return self.waits(job)
        return self.runs(job) if job.state is JobState.RUNNING else None

    def waits(self, job: Job) -> Reason | None:
        since = max(each for each in (job.enqueued_at, job.scheduled_at) if each is not None)
        if since >= self.system.now - QUEUED_AFTER:
            return None
        claimed = [each for each in self.jobs() if each.state is not JobState.QUEUED and each.started_at is not None]
        recent = [each for each in claimed if (each.started_at or since) >= self.system.now - QUEUED_AFTER]
        if len(recent) < 2:
            return Reason.NEVER_CLAIMED
        reached = max(each.enqueued_at for each in claimed if each.enqueued_at is not None)
        return Reason.OVERTAKEN if since < reached else None

    def runs(self, job: Job) -> Reason | None:
        said = self.said(job)
        if Holding.RELEASED in said and Holding.HELD not in said and self.age(job) > ASKED_AFTER:
            return Reason.WORKER_GONE
        return Reason.HUNG if self.hangs(job) else None

    def hangs(self, job: Job) -> bool:
        moved_at, now = self.progress.moved_at.get(job.id), self.system.now
        began_then = job.started_at is not None and now - job.started_at > HUNG_AFTER
        return job.kind == "hangs" and began_then and moved_at is not None and now - moved_at >= HUNG_AFTER

    def is_undecided(self, job: Job) -> bool:
        """Tell whether age accuses a running job, and nobody knows."""
        runs = job.state is JobState.RUNNING and not self.is_snoozed(job.id) and self.verdict(job) is None
        limit = LONG_AFTER if job.kind == "long" else RUNNING_AFTER
        return runs and set(self.said(job)) == {Holding.UNKNOWN} and self.age(job) > limit

    def age(self, job: Job) -> timedelta:
        return self.system.now - max(each for each in (job.started_at, job.heartbeat_at) if each is not None)

    def held(self) -> list[Job]:
        return [job for job in self.jobs(JobState.RUNNING) if Holding.HELD in self.said(job)]

    def is_snoozed(self, job_id: JobId) -> bool:
        return job_id in {each.job_id for each in self.live()}

    def live(self) -> Sequence[Snooze]:
        return self.run(self.snoozes.live("memory", self.system.now))

    def stuck(self) -> dict[JobId, Reason]:
        return {job.id: reason for job in self.jobs() if (reason := self.verdict(job)) is not None}

    # The application and its workers

    def one(self, pick: int, *states: JobState) -> Job | None:
        among = self.jobs(*states)
        return among[pick % len(among)] if among else None

    def write(self, job: Job, **values: object) -> None:
        self.system.put(StoredJob(job=replace(job, **values)))  # type: ignore[arg-type]

    @initialize(kinds=st.lists(KINDS, min_size=3, max_size=AT_MOST))
    def opens(self, kinds: list[str]) -> None:
        for kind in kinds:
            self.appears(kind)

    @rule(kind=KINDS)
    def appears(self, kind: str) -> None:
        if len(self.jobs(JobState.QUEUED, JobState.RUNNING)) < AT_MOST:
            self.enqueue(kind)

    def enqueue(self, kind: str) -> None:
        number, now = len(self.system.jobs) + 1, self.system.now
        self.write(Job(id=number, state=JobState.QUEUED, status="queued", kind=kind, enqueued_at=now))

    @rule(picks=st.lists(PICKS, min_size=1, max_size=4))
    def is_claimed(self, picks: list[int]) -> None:
        for pick in picks:
            job = self.one(pick, JobState.QUEUED)
            if job is not None:
                self.claim(job)

    def claim(self, job: Job) -> None:
        self.write(job, state=JobState.RUNNING, status="running", started_at=self.system.now, worker="w")
        self.progress.moved_at[job.id] = self.system.now

    @rule(kinds=st.lists(KINDS, min_size=1, max_size=3), ended=st.booleans())
    def later_jobs_are_claimed(self, kinds: list[str], ended: bool) -> None:
        """Whoever waits already is passed over."""
        before = set(self.system.jobs)
        self.appears(kinds[0])
        self.time_passes(6)
        for kind in kinds:
            self.enqueue(kind)
        for job in self.jobs(JobState.QUEUED):
            if job.id not in before and job.enqueued_at == self.system.now:
                self.claim(job)
        if ended:
            for job in self.jobs(JobState.RUNNING):
                if job.started_at == self.system.now:
                    self.end(job)

    @rule(pick=PICKS)
    def beats(self, pick: int) -> None:
        job = self.one(pick, JobState.RUNNING)
        if job is not None:
            self.write(job, heartbeat_at=self.system.now)

    @rule(pick=PICKS)
    def progresses(self, pick: int) -> None:
        job = self.one(pick, JobState.RUNNING)
        if job is not None:
            self.progress.moved_at[job.id] = self.system.now

    @rule(pick=PICKS)
    def finishes(self, pick: int) -> None:
        job = self.one(pick, JobState.RUNNING)
        if job is not None:
            self.end(job)

    def end(self, job: Job) -> None:
        self.write(job, state=JobState.SUCCEEDED, status="succeeded", completed_at=self.system.now)

    @rule(span=st.sampled_from([0.1, 0.9, 1.5, 6, 11, 25, 35]))
    def time_passes(self, span: float) -> None:
        self.system.pass_time(span * MINUTE)

    @rule(pick=PICKS, spans=st.lists(st.sampled_from([1.5, 6, 11, 25]), min_size=1, max_size=4))
    def time_passes_and_one_job_beats(self, pick: int, spans: list[float]) -> None:
        for span in spans:
            self.system.pass_time(span * MINUTE)
            self.beats(pick)

    # Witnesses

    @rule(who=WHO, picks=st.lists(PICKS, min_size=1, max_size=5), holding=st.sampled_from([*Holding, None]))
    def a_witness_changes_its_word(self, who: int, picks: list[int], holding: Holding | None) -> None:
        for pick in picks:
            job = self.one(pick, JobState.RUNNING)
            if job is not None and holding is None:
                self.words[who].pop(job.id, None)
            elif job is not None and holding is not None:
                self.words[who][job.id] = holding

    @rule(who=WHO, picks=st.lists(PICKS, min_size=1, max_size=3))
    def workers_die(self, who: int, picks: list[int]) -> None:
        """One witness knows at once; the other may say what it likes."""
        self.a_witness_changes_its_word(who, picks, Holding.RELEASED)
        self.time_passes(11)

    @rule(who=WHO)
    def a_witness_falls_silent(self, who: int) -> None:
        self.words[who].clear()

    @rule(who=WHO, fails=st.booleans())
    def a_witness_fails_or_is_back(self, who: int, fails: bool) -> None:
        self.fakes[who].raises = OSError("no route") if fails else None

    # People

    @rule(pick=PICKS, lasting=st.sampled_from([None, 3 * MINUTE, 60 * MINUTE]))
    def a_person_snoozes_a_job_or_ends_that(self, pick: int, lasting: timedelta | None) -> None:
        job = self.one(pick)
        if job is not None:
            self.run(snooze(self.watched, SnoozeOrder(actor="ann", job_id=job.id, lasting=lasting, reason="why")))

    @rule(then_sweeps=st.booleans())
    def a_person_releases_the_brake(self, then_sweeps: bool) -> None:
        self.run(release_brake(self.watched, "ann"))
        if then_sweeps:
            self.nobody_watches_a_sweep()

    # Sweeps

    def swept(self, order: SweepOrder) -> tuple[SweepReport, dict[JobId, Reason]]:
        """Sweep, and return whom that changed, and why it says so; nobody is changed unrecorded."""
        before, records = dict(self.system.jobs), len(self.system.recoveries)
        report = self.run(sweep(self.watched, order))
        done = [each for each in self.system.recoveries[records:] if each.outcome is Outcome.APPLIED]
        told = {each.job_id: each.reason for each in done}
        self.met.update(f"recovered as {each.reason}" for each in done)
        changed = {job_id for job_id, stored in self.system.jobs.items() if stored != before[job_id]}
        assert changed == set(told)
        assert report.tally.of(outcome=Outcome.APPLIED) == len(told)
        return report, told

    @rule(action=st.sampled_from([None, Action.MARK_FAILED, Action.RETRY]))
    def a_person_sweeps(self, action: Action | None) -> None:
        stuck, undecided = self.stuck(), [job for job in self.jobs() if self.is_undecided(job)]
        retried = {each.job_id for each in self.system.recoveries if each.action is Action.RETRY}
        foreseen = self.run(sweep(self.watched, SweepOrder(actor="ann", action=action, dry_run=True)))
        report, changed = self.swept(SweepOrder(actor="ann", action=action))
        assert set(changed) == set(stuck), "a person's sweep recovers exactly who is stuck"
        for job_id, reason in changed.items():
            assert reason is stuck[job_id] or (reason is Reason.POISON and job_id in retried)
        assert report.tally.of(outcome=Outcome.LEFT) == len(undecided)
        assert foreseen.tally == report.tally

    @rule()
    def nobody_watches_a_sweep(self) -> None:
        stuck, held = self.stuck(), self.run(self.brakes.find("memory"))
        before = {job.id: job for job in self.jobs()}
        looks_like = {job_id: self.looks_of(before[job_id]) for job_id in stuck}
        last = self.run(self.brakes.last_pass("memory"))
        report, changed = self.swept(SweepOrder(actor="cron", unattended=True))
        this = self.run(self.brakes.last_pass("memory"))
        assert this is not None
        in_grace = {
            job_id
            for job_id, reason in stuck.items()
            if this.back_at is not None and this.at - this.back_at < self.grace(before[job_id], reason)
        }
        asks, patient = ({each for each in stuck if before[each].kind == kind} for kind in ("asks", "patient"))
        early = {job_id for job_id in patient if self.found.get(job_id) != looks_like[job_id]}
        may = set(stuck) - in_grace - asks - early

        if held is not None and held.is_held:
            assert report.brake == held, "a held brake holds the next sweep, too"
        if last is None or this.at - last.at > 3 * EVERY:
            assert may == set(), "the first sweep after a gap only observes"
        if report.brake is not None:
            self.met["braked"] += 1
            assert changed == {}, "a braked sweep changes nothing"
        else:
            assert set(changed) <= may, "a grace, a person who is to be asked, and a look that is too few are heeded"
            assert may - patient <= set(changed), "who is stuck is left only for a reason"
        if held is None and report.brake is None:
            still_open = Counter(job.state for job in before.values())
            for state, number in Counter(before[job_id].state for job_id in changed).items():
                assert not BRAKE.hold(number, still_open[state]), "a mass event isn't acted on"
        self.met.update(held_back for held_back, ids in (("grace", in_grace), ("asks", asks), ("early", early)) if ids)
        self.met["let through"] += held is not None and not held.is_held and bool(changed)
        self.met["a second look"] += bool(patient & set(changed))
        self.found = {job_id: looks for job_id, looks in looks_like.items() if job_id not in in_grace}

    @rule(number=st.integers(2, 4), span=st.sampled_from([0.3, 1.5, 6, 11]))
    def nobody_watches_several_sweeps(self, number: int, span: float) -> None:
        for _ in range(number):
            self.time_passes(span)
            self.nobody_watches_a_sweep()

    def looks_of(self, job: Job) -> tuple[object, ...]:
        """Return what tells whether a job has shown any life from one look to the next."""
        return job.state, job.attempt, self.since(job)

    def since(self, job: Job) -> datetime:
        times = (job.enqueued_at, job.scheduled_at, job.started_at, job.heartbeat_at)
        return max(each for each in times if each is not None)

    def grace(self, job: Job, reason: Reason) -> timedelta:
        if job.state is JobState.QUEUED:
            return QUEUED_AFTER
        if reason is Reason.HUNG:
            return HUNG_AFTER
        return LONG_AFTER if job.kind == "long" else RUNNING_AFTER

    # What always holds

    @invariant()
    def the_report_says_what_is_so(self) -> None:
        """Counts agree with lists, and both with the model; nobody is told twice."""
        report: StuckReport = self.run(report_stuck(self.watched, limit=1000))
        told = [(each.job.id, each.diagnosis.reason) for each in (*report.queued, *report.running)]
        assert dict(told) == self.stuck()
        assert len(told) == report.counts.total == report.counts.queued + report.counts.running
        assert len(report.queued) == report.counts.queued
        assert report.undecided == len([job for job in self.jobs() if self.is_undecided(job)])
        self.met["undecided"] += report.undecided > 0
        self.met["held"] += any(self.age(job) > RUNNING_AFTER and self.verdict(job) is None for job in self.held())

    @invariant()
    def nobody_is_retried_for_ever(self) -> None:
        """A kind whose rule retries spends its budget; what a person's own retries add is within the policy's."""
        retried = Counter(
            each.job_id
            for each in self.system.recoveries
            if each.action is Action.RETRY and each.outcome is Outcome.APPLIED
        )
        for job_id, number in retried.items():
            assert number <= (1 if self.system.jobs[job_id].job.kind == "again" else POLICY.max_recoveries)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Witnesses that fail are told each time, and these do so on purpose."""
    caplog.set_level(logging.CRITICAL, "unstick")


def test_no_job_that_is_held_or_that_nobody_knows_of_is_recovered_and_no_other_is_left_whatever_happens(
    quiet: None,
) -> None:
    Machine.met.clear()
    run_state_machine_as_test(Machine if MORE else seed(20261124)(Machine), settings=SETTINGS)
    reasons = (Reason.WORKER_GONE, Reason.HUNG, Reason.NEVER_CLAIMED, Reason.OVERTAKEN, Reason.POISON)
    rest = {"braked", "let through", "grace", "asks", "early", "a second look", "undecided", "held"}
    assert set(+Machine.met) >= {f"recovered as {each}" for each in reasons} | rest, "all of it must have come about"
