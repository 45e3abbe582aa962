"""A jobs system that lives in memory, with a clock that moves when it is told to."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never

from unstick.domain.audit import AuditEntry
from unstick.domain.diagnosis import Reason
from unstick.domain.job import Job, JobClass, JobId, JobState, sign_of_life
from unstick.domain.policy import Ruling
from unstick.domain.queue import Flows, QueueFlow
from unstick.domain.recovery import Action, Batch, BatchResult, Decision, Intent, Outcome, Recovery, Ruled
from unstick.domain.suspect import Look, Page, Position, StuckCounts, Suspect, is_suspect
from unstick.ports import Capabilities, OpenJobs, RecoveryCounts, Usage

PAGE_SIZE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job with what only its end says."""

    job: Job
    success: bool | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRecovery:
    """What came of one decision on a job."""

    operation_id: int
    job_id: JobId
    action: Action
    reason: Reason
    outcome: Outcome
    at: datetime


@dataclass(kw_only=True)
class MemoryJobs:
    """The jobs, the audit log and the recoveries that a `MemorySource` and a `MemoryLedger` share."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    jobs: dict[JobId, StoredJob] = field(default_factory=dict)
    recoveries: list[RecordedRecovery] = field(default_factory=list)
    intents: list[tuple[int, Intent, datetime]] = field(default_factory=list)
    """What is about to be done, with its operation and since when."""
    audit: list[tuple[AuditEntry, int]] = field(default_factory=list)
    """Each entry with how often it was repeated."""

    def put(self, stored: StoredJob) -> None:
        """Add a job, or write over it as its application would."""
        self.jobs[stored.job.id] = stored

    def pass_time(self, duration: timedelta) -> None:
        """Move the clock."""
        self.now += duration


class MemorySource:
    """A `JobSource` over `MemoryJobs`; without `records` it acts as one whose ledger is elsewhere."""

    def __init__(self, system: MemoryJobs, name: str = "memory", *, records: bool = True) -> None:
        self.name = name
        self._system = system
        self.capabilities = Capabilities(
            heartbeats=True,
            attempts=True,
            mark_failed=True,
            retry=True,
            records=records,
            rulings=False,
            reads_beside_writes=True,
        )

    async def clock(self) -> datetime:
        """Return the system's time."""
        return self._system.now

    async def up_since(self) -> datetime | None:
        """Memory has no server that could have been away."""
        return None

    async def open_classes(self) -> frozenset[JobClass]:
        """Tell the kinds and queues of the jobs that are not over."""
        jobs = (stored.job for stored in self._system.jobs.values())
        return frozenset(JobClass(job.kind, job.queue) for job in jobs if job.completed_at is None)

    async def flows(self, look: Look) -> Flows:
        """Tell how queues move, from all jobs that were ever claimed."""
        claimed: defaultdict[str | None, list[Job]] = defaultdict(list)
        for stored in self._system.jobs.values():
            job = stored.job
            if job.started_at is not None and job.enqueued_at is not None and job.state not in _WAITING:
                claimed[job.queue].append(job)
        return Flows(by_queue={queue: _flow(jobs, look) for queue, jobs in claimed.items()})

    async def count_suspects(self, look: Look) -> StuckCounts:
        """Count the suspects exactly."""
        states = [suspect.state for suspect in self._suspects(look)]
        return StuckCounts(queued=states.count(JobState.QUEUED), running=states.count(JobState.RUNNING))

    async def list_suspects(
        self, look: Look, state: JobState, *, limit: int, after: Position | None
    ) -> tuple[Job, ...]:
        """Return a state's suspects, oldest first."""
        found = sorted((s for s in self._suspects(look) if s.state is state), key=_by_age)
        if after is not None:
            found = [suspect for suspect in found if _by_age(suspect) > (after.since, _by_id(after.job_id))]
        return tuple(self._system.jobs[suspect.job_id].job for suspect in found[:limit])

    async def suspects(self, look: Look) -> AsyncIterator[Page]:
        """Yield suspects in pages by ascending id; each page is looked up when it is asked for."""
        last: JobId | None = None
        while page := self._page(look, last):
            yield Page(suspects=page)
            last = page[-1].job_id

    async def recover(self, batch: Batch) -> BatchResult:
        """Write what is unchanged; where it records, record what came of each decision."""
        unchanged = [decision for decision in batch.decisions if self._unchanged(decision.suspect, batch.look)]
        for decision in unchanged:
            self._apply(decision, batch.look)
        result = BatchResult(applied=frozenset(d.suspect.job_id for d in unchanged), refused={})
        if self.capabilities.records:
            self._system.recoveries += [self._record(batch, decision, result) for decision in batch.decisions]
        return result

    async def intend(self, batch: Batch) -> Sequence[Intent]:
        """Tell what carrying out a batch would do, without doing it."""
        unchanged = [decision for decision in batch.decisions if self._unchanged(decision.suspect, batch.look)]
        return [self._intent(decision) for decision in unchanged]

    async def images(self, intents: Sequence[Intent]) -> Mapping[JobId, str]:
        """Return what stands now where these intents would write."""
        jobs = self._system.jobs
        return {each.job_id: _image(jobs[each.job_id].job) for each in intents if each.job_id in jobs}

    async def recover_by_rule(self, ruling: Ruling, look: Look, operation_id: int) -> AsyncIterator[Ruled]:
        """Not here: every decision is made one by one."""
        raise NotImplementedError(f"{self.name} has no rulings: {ruling}, {look}, operation {operation_id}")
        yield Ruled(recovered=0, left=True)

    async def open_jobs(self) -> OpenJobs:
        """Count the jobs that are not over."""
        jobs = [stored.job for stored in self._system.jobs.values() if stored.job.completed_at is None]
        still_open = [job for job in jobs if job.state in _OPEN]
        return OpenJobs(
            by_state=Counter(job.state for job in still_open),
            queued_since=_oldest(sign_of_life(job) for job in still_open if job.state is JobState.QUEUED),
            running_since=_oldest(sign_of_life(job) for job in still_open if job.state is JobState.RUNNING),
        )

    async def usage(self) -> Usage:
        """Sum up all jobs, which memory bounds anyway."""
        jobs = [stored.job for stored in self._system.jobs.values()]
        ran = [job for job in jobs if job.state is JobState.SUCCEEDED]
        durations = [job.completed_at - job.started_at for job in ran if job.completed_at and job.started_at]
        enqueued = [job.enqueued_at for job in jobs if job.enqueued_at is not None]
        return Usage(
            window_jobs=len(jobs),
            window_basis="all jobs in memory",
            oldest_at=min(enqueued, default=None),
            newest_at=max(enqueued, default=None),
            jobs_by_state=Counter(job.state for job in jobs),
            average_duration=sum(durations, timedelta()) / len(durations) if durations else None,
            longest_duration=max(durations, default=None),
            tokens=None,
            cost=None,
        )

    def _suspects(self, look: Look) -> Iterator[Suspect]:
        for stored in self._system.jobs.values():
            since = sign_of_life(stored.job)
            if since is not None and is_suspect(stored.job, look):
                yield Suspect(stored.job.id, stored.job.state, since, (repr(stored),))

    def _page(self, look: Look, last: JobId | None) -> tuple[Suspect, ...]:
        found = sorted(self._suspects(look), key=lambda suspect: _by_id(suspect.job_id))
        rest = found if last is None else [s for s in found if _by_id(s.job_id) > _by_id(last)]
        return tuple(rest[:PAGE_SIZE])

    def _unchanged(self, suspect: Suspect, look: Look) -> bool:
        stored = self._system.jobs.get(suspect.job_id)
        return stored is not None and (repr(stored),) == suspect.seen and is_suspect(stored.job, look)

    def _apply(self, decision: Decision, look: Look) -> None:
        job = self._changed(decision)
        if decision.action is Action.RETRY:
            self._system.put(StoredJob(job=job))
        else:
            self._system.put(StoredJob(job=job, success=False, error=decision.error_message(look)))

    def _changed(self, decision: Decision) -> Job:
        """Return the job as a decision would leave it."""
        job, now = self._system.jobs[decision.suspect.job_id].job, self._system.now
        match decision.action:
            case Action.MARK_FAILED:
                return replace(job, state=JobState.FAILED, status=JobState.FAILED.value, completed_at=now)
            case Action.RETRY:
                started = job.state is JobState.RUNNING
                return replace(
                    job,
                    state=JobState.QUEUED,
                    status=JobState.QUEUED.value,
                    attempt=(job.attempt or 0) + 1 if started else job.attempt,
                    scheduled_at=now + decision.wait,
                    started_at=None,
                    heartbeat_at=None,
                    worker=None,
                )
            case Action.LEAVE:
                return job
            case _:
                assert_never(decision.action)

    def _intent(self, decision: Decision) -> Intent:
        return Intent(
            job_id=decision.suspect.job_id,
            state=decision.suspect.state,
            action=decision.action,
            reason=decision.reason,
            detail=decision.sentence,
            pre_image=_image(self._system.jobs[decision.suspect.job_id].job),
            post_image=_image(self._changed(decision)),
        )

    def _record(self, batch: Batch, decision: Decision, result: BatchResult) -> RecordedRecovery:
        return RecordedRecovery(
            operation_id=batch.operation_id,
            job_id=decision.suspect.job_id,
            action=decision.action,
            reason=decision.reason,
            outcome=result.outcome(decision.suspect.job_id),
            at=self._system.now,
        )


class MemoryLedger:
    """A `Ledger` over `MemoryJobs`."""

    def __init__(self, system: MemoryJobs) -> None:
        self._system = system

    async def append(self, entry: AuditEntry) -> int:
        """Keep an entry; its id is its place, from 1."""
        self._system.audit.append((entry, 1))
        return len(self._system.audit)

    async def count_read(self, entry: AuditEntry) -> None:
        """Keep a call that changed nothing, or count it again where it is there already."""
        for place, (kept, repeats) in enumerate(self._system.audit):
            if kept == entry:
                self._system.audit[place] = (kept, repeats + 1)
                return
        await self.append(entry)

    async def record(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Keep what came of decisions that changed nothing."""
        del source
        self._system.recoveries += [self._recorded(operation_id, each) for each in recoveries]

    async def intend(self, source: str, operation_id: int, intents: Sequence[Intent]) -> None:
        """Keep what is about to be done."""
        del source
        now = self._system.now
        self._system.intents += [(operation_id, replace(each, at=now), now) for each in intents]

    async def settle(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Keep what came of intents, and strike them."""
        await self.record(source, operation_id, recoveries)
        self._strike(operation_id, recoveries)

    async def find_out(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Keep what seems to have come of intents, and strike them; those struck are left."""
        there = {each.job_id for operation, each, _ in self._system.intents if operation == operation_id}
        found = [each for each in recoveries if each.job_id in there]
        await self.record(source, operation_id, found)
        self._strike(operation_id, found)

    def _strike(self, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        struck = {(operation_id, each.job_id) for each in recoveries}
        self._system.intents[:] = [each for each in self._system.intents if (each[0], each[1].job_id) not in struck]

    async def unsettled(self, source: str, older_than: timedelta) -> Mapping[int, Sequence[Intent]]:
        """Return intents by operation that nobody has settled for so long."""
        del source
        old = [each for each in self._system.intents if each[2] <= self._system.now - older_than]
        return {
            operation_id: [each for operation, each, _ in old if operation == operation_id]
            for operation_id, _, _ in old
        }

    def _recorded(self, operation_id: int, recovery: Recovery) -> RecordedRecovery:
        return RecordedRecovery(
            operation_id=operation_id,
            job_id=recovery.job_id,
            action=recovery.action,
            reason=recovery.reason,
            outcome=recovery.outcome,
            at=self._system.now,
        )

    async def spent(self, source: str, job_ids: Sequence[JobId], since: datetime) -> Mapping[JobId, int]:
        """Count the retries applied to each job since then."""
        del source
        retried = [r.job_id for r in self._applied(since) if r.action is Action.RETRY]
        return {job_id: number for job_id, number in Counter(retried).items() if job_id in job_ids}

    async def recoveries(self, source: str, window: timedelta) -> RecoveryCounts:
        """Count what came of the decisions of the window."""
        del source
        since = self._system.now - window
        applied = self._applied(since)
        return RecoveryCounts(
            since=since,
            by_outcome=Counter(r.outcome for r in self._system.recoveries if r.at >= since),
            by_action=Counter(r.action for r in applied),
            by_reason=Counter(r.reason.value for r in applied),
        )

    def _applied(self, since: datetime) -> list[RecordedRecovery]:
        return [r for r in self._system.recoveries if r.at >= since and r.outcome is Outcome.APPLIED]


_WAITING = (JobState.QUEUED, JobState.SCHEDULED)
_OPEN = (JobState.QUEUED, JobState.RUNNING, JobState.SCHEDULED)


def _image(job: Job) -> str:
    return json.dumps(asdict(job), default=str)


def _by_id(job_id: JobId) -> tuple[int, str]:
    """Order numbers before text, each by its own order."""
    return (job_id, "") if isinstance(job_id, int) else (sys.maxsize, job_id)


def _by_age(suspect: Suspect) -> tuple[datetime, tuple[int, str]]:
    return suspect.since, _by_id(suspect.job_id)


def _flow(claimed: Sequence[Job], look: Look) -> QueueFlow:
    recent = [job for job in claimed if job.started_at and job.started_at >= look.horizon(JobState.QUEUED)]
    reached = max(job.enqueued_at for job in claimed if job.enqueued_at is not None)
    return QueueFlow(recent_claims=len(recent), reached=reached)


def _oldest(instants: Iterable[datetime | None]) -> datetime | None:
    return min((instant for instant in instants if instant is not None), default=None)
