"""A jobs system that lives in memory, with a clock that moves when it is told to."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never

from unstick.domain.aftermath import (
    Attempt,
    End,
    Finished,
    How,
    LateCounts,
    LateFinish,
    LateRuns,
    Recovered,
)
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.brake import Brake, Pass
from unstick.domain.diagnosis import Reason
from unstick.domain.events import QueueState
from unstick.domain.job import Job, JobClass, JobId, JobState, sign_of_life
from unstick.domain.policy import Ruling
from unstick.domain.queue import Flows, QueueFlow
from unstick.domain.recovery import (
    Action,
    Batch,
    BatchResult,
    Decision,
    Deed,
    Intent,
    Outcome,
    Recovery,
    Ruled,
    Undo,
)
from unstick.domain.sighting import LOOKS_APART, Sighted, Sighting, Stuck
from unstick.domain.snooze import Snooze
from unstick.domain.story import JobRow
from unstick.domain.suspect import (
    GroupedSuspects,
    Look,
    Mark,
    Page,
    Position,
    Stretch,
    StuckCounts,
    Suspect,
    SuspectGroup,
    is_suspect,
)
from unstick.domain.undo import CLAIMED, GONE, UNRECORDED, Undoable, UndoBatch, UndoPage, UndoResult
from unstick.ports import (
    Capabilities,
    FollowUpSpan,
    Ledger,
    OpenClasses,
    OpenJobs,
    RecoveredPage,
    RecoveryCounts,
    Usage,
)

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
    state: JobState
    action: Deed
    reason: Reason
    outcome: Outcome
    at: datetime
    pre_image: str | None = None
    post_image: str | None = None
    undoes: int | None = None
    """The place of the recovery that was taken back, from 1."""


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
    ends: dict[str, tuple[End, datetime]] = field(default_factory=dict)
    """The known ends of recovered jobs by the name of each, with when it was recorded."""
    place: int | None = None
    """Down to which recovery a round of follow-ups has come."""

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

    async def open_classes(self, most: int | None = None) -> OpenClasses:
        """Tell the kinds and queues of the jobs that are not over, all of which are at hand."""
        del most
        jobs = (stored.job for stored in self._system.jobs.values())
        return OpenClasses(found=frozenset(JobClass(job.kind, job.queue) for job in jobs if job.completed_at is None))

    async def flows(self, look: Look) -> Flows:
        """Tell how queues move, from all jobs that were ever claimed."""
        claimed: defaultdict[str | None, list[Job]] = defaultdict(list)
        for stored in self._system.jobs.values():
            job = stored.job
            if job.started_at is not None and job.enqueued_at is not None and job.state not in _WAITING:
                claimed[job.queue].append(job)
        return Flows(by_queue={queue: _flow(jobs, look) for queue, jobs in claimed.items()})

    async def find(self, job_id: JobId) -> JobRow | None:
        """Return a job as it stands; text finds the job whose id it says."""
        stored = next((each for known, each in self._system.jobs.items() if str(known) == str(job_id)), None)
        if stored is None:
            return None
        return JobRow(
            job_id=stored.job.id,
            read_at=self._system.now,
            status=stored.job.status,
            job=stored.job,
            success=stored.success,
            error=stored.error,
        )

    async def count_suspects(self, look: Look) -> StuckCounts:
        """Count the suspects exactly."""
        states = [suspect.state for suspect in self._suspects(look)]
        return StuckCounts(queued=states.count(JobState.QUEUED), running=states.count(JobState.RUNNING))

    async def suspects_by_queue(self, look: Look) -> GroupedSuspects:
        """Count the suspects by queue."""
        found = self._suspects(look)
        jobs = self._system.jobs
        groups = (SuspectGroup(jobs[s.job_id].job.queue, s.state, s.lease_expired, s.lost is not None) for s in found)
        return GroupedSuspects(counts=Counter(groups))

    async def list_suspects(
        self, look: Look, state: JobState, *, limit: int, after: Position | None
    ) -> tuple[Job, ...]:
        """Return a state's suspects, oldest first."""
        return self._listed(look, state, limit, after)

    def _listed(
        self, look: Look, state: JobState, limit: int, after: Position | None, *, newest_first: bool = False
    ) -> tuple[Job, ...]:
        found = sorted((s for s in self._suspects(look) if s.state is state), key=_by_age)
        if after is not None:
            place = (after.since, _by_id(after.job_id))
            found = [s for s in found if (_by_age(s) < place if newest_first else _by_age(s) > place)]
        if newest_first:
            found.reverse()
        return tuple(self._system.jobs[suspect.job_id].job for suspect in found[:limit])

    async def stretch(
        self, look: Look, state: JobState, *, size: int, after: Mark | None = None, newest_first: bool = False
    ) -> Stretch:
        """Return a state's suspects by their signs of life, after a mark."""
        position = None if after is None else after.position
        jobs = self._listed(look, state, size, position, newest_first=newest_first)
        return Stretch.by_age(jobs, size)

    async def describe(self, look: Look, job_ids: Sequence[JobId]) -> Mapping[JobId, Job]:
        """Return jobs by their ids."""
        del look
        return {each: self._system.jobs[each].job for each in job_ids if each in self._system.jobs}

    async def suspects(self, look: Look) -> AsyncIterator[Page]:
        """Yield suspects in pages by ascending id; each page is looked up when it is asked for."""
        last: JobId | None = None
        while page := self._page(look, last):
            yield Page(suspects=page)
            last = page[-1].job_id

    async def recover(self, batch: Batch) -> BatchResult:
        """Write what is unchanged; where it records, record what came of each decision."""
        unchanged = [decision for decision in batch.decisions if self._unchanged(decision.suspect, batch.look)]
        intents = {decision.suspect.job_id: self._intent(decision, batch.look) for decision in unchanged}
        for intent in intents.values():
            self._system.put(_stored(intent.post_image))
        result = BatchResult(applied=frozenset(intents), refused={})
        if self.capabilities.records:
            self._system.recoveries += [self._record(batch, decision, intents) for decision in batch.decisions]
        return result

    async def undo(self, batch: UndoBatch) -> UndoResult:
        """Put back what is as it was left; where it records, record what came of each undo."""
        intents, lost = await self.intend_undo(batch)
        for intent in intents:
            self._system.put(_stored(intent.post_image))
        if self.capabilities.records:
            done = [intent.came_to(Outcome.APPLIED) for intent in intents]
            left = [e.came_to(Outcome.LOST_RACE, lost[e.job_id]) for e in batch.recoveries if e.job_id in lost]
            self._system.recoveries += [_recorded(batch.operation_id, each, self._system.now) for each in done + left]
        return UndoResult(applied=frozenset(intent.job_id for intent in intents), refused={}, lost=lost)

    async def intend_undo(self, batch: UndoBatch) -> tuple[Sequence[Intent], Mapping[JobId, str]]:
        """Tell what undoing a batch would do, without doing it, and why each other job would be left alone."""
        why = {each.job_id: self._why_not(each) for each in batch.recoveries}
        intents = [
            Intent(
                job_id=each.job_id,
                state=each.state,
                action=Undo.UNDO,
                reason=each.reason,
                detail=each.detail,
                pre_image=each.post_image or "",
                post_image=each.pre_image or "",
                undoes=each.recovery_id,
            )
            for each in batch.recoveries
            if why[each.job_id] is None
        ]
        return intents, {job_id: said for job_id, said in why.items() if said is not None}

    def _why_not(self, undoable: Undoable) -> str | None:
        stored = self._system.jobs.get(undoable.job_id)
        if stored is None:
            return GONE
        if undoable.post_image is None or undoable.pre_image is None:
            return UNRECORDED
        if _image(stored) == undoable.post_image:
            return None
        if undoable.action is Action.RETRY and stored.job.state is JobState.RUNNING:
            return CLAIMED
        return f"it was changed since: status is now {stored.job.status}"

    async def intend(self, batch: Batch) -> Sequence[Intent]:
        """Tell what carrying out a batch would do, without doing it."""
        unchanged = [decision for decision in batch.decisions if self._unchanged(decision.suspect, batch.look)]
        return [self._intent(decision, batch.look) for decision in unchanged]

    async def images(self, intents: Sequence[Intent]) -> Mapping[JobId, str]:
        """Return what stands now where these intents would write."""
        jobs = self._system.jobs
        return {each.job_id: _image(jobs[each.job_id]) for each in intents if each.job_id in jobs}

    async def recover_by_rule(self, ruling: Ruling, look: Look, operation_id: int) -> AsyncIterator[Ruled]:
        """Not here: every decision is made one by one."""
        raise NotImplementedError(f"{self.name} has no rulings: {ruling}, {look}, operation {operation_id}")
        yield Ruled(recovered=0, left=True)

    async def finished_among(self, recovered: Sequence[Recovered]) -> Sequence[Finished]:
        """Return which of these are succeeded now."""
        jobs = {job_id: stored.job for job_id, stored in self._system.jobs.items()}
        there = [(each, jobs[each.job_id]) for each in recovered if each.job_id in jobs]
        return [
            Finished(each, job.kind, job.worker, job.completed_at, Attempt(job.started_at, job.attempt))
            for each, job in there
            if job.state is JobState.SUCCEEDED
        ]

    async def open_jobs(self) -> OpenJobs:
        """Count the jobs that are not over."""
        jobs = [stored.job for stored in self._system.jobs.values() if stored.job.completed_at is None]
        still_open = [job for job in jobs if job.state in _OPEN]
        return OpenJobs(
            queued_since=_oldest(sign_of_life(job) for job in still_open if job.state is JobState.QUEUED),
            running_since=_oldest(sign_of_life(job) for job in still_open if job.state is JobState.RUNNING),
            by_queue=Counter(QueueState(job.queue, job.state) for job in still_open),
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

    def _changed(self, decision: Decision, look: Look) -> StoredJob:
        """Return the job as a decision would leave it."""
        job, now = self._system.jobs[decision.suspect.job_id].job, self._system.now
        match decision.action:
            case Action.MARK_FAILED:
                failed = replace(job, state=JobState.FAILED, status=JobState.FAILED.value, completed_at=now)
                return StoredJob(job=failed, success=False, error=decision.error_message(look))
            case Action.RETRY:
                started = job.state is JobState.RUNNING
                queued = replace(
                    job,
                    state=JobState.QUEUED,
                    status=JobState.QUEUED.value,
                    attempt=(job.attempt or 0) + 1 if started else job.attempt,
                    scheduled_at=now + decision.wait,
                    started_at=None,
                    heartbeat_at=None,
                    worker=None,
                )
                return StoredJob(job=queued)
            case Action.LEAVE:
                return self._system.jobs[decision.suspect.job_id]
            case _:
                assert_never(decision.action)

    def _intent(self, decision: Decision, look: Look) -> Intent:
        return Intent(
            job_id=decision.suspect.job_id,
            state=decision.suspect.state,
            action=decision.action,
            reason=decision.reason,
            detail=decision.sentence,
            pre_image=_image(self._system.jobs[decision.suspect.job_id]),
            post_image=_image(self._changed(decision, look)),
        )

    def _record(self, batch: Batch, decision: Decision, intents: Mapping[JobId, Intent]) -> RecordedRecovery:
        intent = intents.get(decision.suspect.job_id)
        if intent is not None:
            return _recorded(batch.operation_id, intent.came_to(Outcome.APPLIED), self._system.now)
        return RecordedRecovery(
            operation_id=batch.operation_id,
            job_id=decision.suspect.job_id,
            state=decision.suspect.state,
            action=decision.action,
            reason=decision.reason,
            outcome=Outcome.LOST_RACE,
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

    async def count_read(self, entry: AuditEntry, times: int = 1) -> None:
        """Keep a call that changed nothing, or count it again where it is there already."""
        for place, (kept, repeats) in enumerate(self._system.audit):
            if kept == entry:
                self._system.audit[place] = (kept, repeats + times)
                return
        self._system.audit.append((entry, times))

    async def record(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        """Keep what came of decisions that changed nothing."""
        del source
        self._system.recoveries += [_recorded(operation_id, each, self._system.now) for each in recoveries]

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

    async def spent(
        self, source: str, job_ids: Sequence[JobId], since: datetime, *, before_success: bool = False
    ) -> Mapping[JobId, int]:
        """Count the retries applied to each job since then, and since it last succeeded."""
        del source
        over = {} if before_success else {end.finished.recovered.job_id: at for end, at in self._ends()}
        undone = self._undone()
        applied = [r for p, r in enumerate(self._system.recoveries, 1) if r.at >= since and p not in undone]
        done = [r for r in applied if r.outcome is Outcome.APPLIED and r.job_id in job_ids]
        retried = [r for r in done if r.action is Action.RETRY]
        return Counter(r.job_id for r in retried if r.job_id not in over or r.at > over[r.job_id])

    async def follow_up_span(self, source: str, window: timedelta) -> FollowUpSpan | None:
        """Return which recoveries lie within the window; a recovery's id is its place, from 1."""
        del source
        since = self._system.now - window
        recent = [place for place, each in enumerate(self._system.recoveries, 1) if each.at >= since]
        return FollowUpSpan(since=since, first=recent[0], place=self._system.place) if recent else None

    async def recovered(
        self, source: str, span: FollowUpSpan, *, before: int | None, limit: int, besides: int | None
    ) -> RecoveredPage:
        """Return jobs whose recovery was applied, newest first."""
        del source
        above = len(self._system.recoveries) + 1 if before is None else before
        kept = [(place, self._system.recoveries[place - 1]) for place in range(above - 1, span.first - 1, -1)]
        page = [
            Recovered(place, each.job_id, each.state, each.action, each.at)
            for place, each in kept
            if isinstance(each.action, Action) and each.outcome is Outcome.APPLIED and each.operation_id != besides
        ][:limit]
        known = {end.recovery_id for end, _ in self._ends()}
        known |= self._undone()
        jobs = tuple(each for each in page if each.recovery_id not in known)
        return RecoveredPage(jobs=jobs, number=len(page), last=page[-1].recovery_id if page else None)

    async def keep_ends(self, source: str, ends: Sequence[End]) -> tuple[int, int]:
        """Keep ends that aren't kept yet; what is found after the newest recovery counts."""
        del source
        new: dict[str, End] = {}
        for end in sorted(ends, key=lambda end: end.recovery_id):
            known, at = self._system.ends.get(end.name, (None, self._system.now))
            if known is None or end.name in new:
                new[end.name] = end
            if known is None or known.recovery_id < end.recovery_id:
                self._system.ends[end.name] = (end, at)
        late = sum(end.late for end in new.values())
        return late, len(new) - late

    async def keep_place(self, source: str, recovery_id: int | None) -> None:
        """Keep down to which recovery a round has come."""
        del source
        self._system.place = recovery_id

    async def late_counts(self, source: str, window: timedelta) -> LateCounts:
        """Count the late finishes of the window."""
        since = self._system.now - window
        late = [each for each in await self.late_finishes(source, len(self._system.ends)) if each.at >= since]
        by_how, by_kind = Counter(each.how for each in late), Counter(each.kind for each in late)
        return LateCounts(since=since, by_how=by_how, by_kind=by_kind)

    async def late_finishes(self, source: str, limit: int) -> Sequence[LateFinish]:
        """Return the newest late finishes."""
        del source
        late = [(end, at) for end, at in self._ends() if end.late]
        return [_late_finish(end, at) for end, at in reversed(late)][:limit]

    async def late_runs(self, source: str, window: timedelta) -> Sequence[LateRuns]:
        """Return late successes by kind."""
        counts = await self.late_counts(source, window)
        late = await self.late_finishes(source, len(self._system.ends))
        return [
            LateRuns(kind, number, max((each.ran for each in late if each.kind == kind and each.ran), default=None))
            for kind, number in counts.by_kind.items()
        ]

    def _ends(self) -> list[tuple[End, datetime]]:
        return list(self._system.ends.values())

    async def operation(self, operation_id: int) -> AuditEntry | None:
        """Return the entry that began an operation."""
        if not 0 < operation_id <= len(self._system.audit):
            return None
        entry, _ = self._system.audit[operation_id - 1]
        return entry if entry.outcome is AuditOutcome.STARTED else None

    async def undoable(
        self, source: str, operation_id: int, *, after: int = 0, job_id: JobId | None = None
    ) -> UndoPage:
        """Return all of an operation's applied recoveries after a place, or that of one job."""
        del source
        found = [
            self._undoable(place, record)
            for place, record in self._standing()
            if record.operation_id == operation_id and place > after and _is_meant(job_id, record.job_id)
        ]
        return UndoPage(recoveries=tuple(found), last=None)

    async def history(self, source: str, job_id: JobId) -> Sequence[tuple[int, bool]]:
        """Return the operations that recovered a job, the latest first, and whether that was undone."""
        del source
        undone = self._undone()
        return [(r.operation_id, place in undone) for place, r in self._standing() if _is_meant(job_id, r.job_id)][::-1]

    def _standing(self) -> list[tuple[int, RecordedRecovery]]:
        """Return applied recoveries with their places, from 1; undos are none."""
        placed = enumerate(self._system.recoveries, 1)
        return [(p, r) for p, r in placed if r.outcome is Outcome.APPLIED and r.action is not Undo.UNDO]

    def _undone(self) -> set[int]:
        return {r.undoes for r in self._system.recoveries if r.undoes is not None and r.outcome is Outcome.APPLIED}

    def _undoable(self, place: int, record: RecordedRecovery) -> Undoable:
        undone = self._undone()
        later = [p for p, r in self._standing() if p > place and r.job_id == record.job_id and p not in undone]
        return Undoable(
            recovery_id=place,
            operation_id=record.operation_id,
            job_id=record.job_id,
            state=record.state,
            action=Action(record.action),
            reason=record.reason,
            pre_image=record.pre_image,
            post_image=record.post_image,
            undone=place in undone,
            overtaken=bool(later),
        )

    async def recoveries(self, source: str, window: timedelta) -> RecoveryCounts:
        """Count what came of the decisions of the window."""
        del source
        since = self._system.now - window
        applied = self._applied(since)
        return RecoveryCounts(
            since=since,
            by_outcome=Counter(
                r.outcome for r in self._system.recoveries if r.at >= since and r.action is not Undo.UNDO
            ),
            by_action=Counter(Action(r.action) for r in applied),
            by_reason=Counter(r.reason.value for r in applied),
        )

    def _applied(self, since: datetime) -> list[RecordedRecovery]:
        return [record for _, record in self._standing() if record.at >= since]


class MemoryBrakes:
    """Brakes and passes in dicts, by source."""

    def __init__(self) -> None:
        self._brakes: dict[str, Brake] = {}
        self._passes: dict[str, Pass] = {}

    async def find(self, source: str) -> Brake | None:
        """Return the brake of a source, released or not."""
        return self._brakes.get(source)

    async def pull(self, brake: Brake) -> Brake:
        """Hold a source, unless it is held already, and return the brake that holds."""
        there = self._brakes.get(brake.source)
        if there is None or not there.is_held:
            self._brakes[brake.source] = brake
        return self._brakes[brake.source]

    async def release(self, source: str, by: str) -> Brake | None:
        """Release the brake of a source, and return it; None where none was held."""
        there = self._brakes.get(source)
        if there is None or not there.is_held:
            return None
        self._brakes[source] = replace(there, released_at=there.at, released_by=by)
        return self._brakes[source]

    async def strike(self, brake: Brake) -> None:
        """Forget a released brake."""
        if self._brakes.get(brake.source) == brake:
            del self._brakes[brake.source]

    async def last_pass(self, source: str) -> Pass | None:
        """Return the last unattended pass over a source."""
        return self._passes.get(source)

    async def note_pass(self, source: str, this: Pass) -> None:
        """Keep a pass as the last one."""
        self._passes[source] = this


class MemoryLooks:
    """Looks in a dict, by source and job."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, JobId], tuple[Stuck, int, datetime, datetime]] = {}
        """What was found, at how many passes in a row, when the last of them counted, and when it was found last."""

    async def note(self, source: str, jobs: Sequence[Stuck], this: Pass) -> Mapping[JobId, int]:
        """Write down who was found stuck at a pass, and return at how many in a row each was."""
        for job in jobs:
            kept, looks, counted_at, found_at = self._kept.get((source, job.job_id), (None, 0, this.at, this.at))
            in_a_row = kept == job and this.before is not None and found_at >= this.before
            if not in_a_row:
                looks, counted_at = 1, this.at
            elif counted_at <= this.at - LOOKS_APART:
                looks, counted_at = looks + 1, this.at
            self._kept[source, job.job_id] = job, looks, counted_at, this.at
        return {job.job_id: self._kept[source, job.job_id][1] for job in jobs}


class MemorySightings:
    """Sightings in a dict, by source and job."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, JobId], tuple[str, Sighting]] = {}

    async def note(self, source: str, jobs: Sequence[Sighted], now: datetime) -> Mapping[JobId, Sighting]:
        """Write down how jobs look now, and return what is known of each."""
        return {job.job_id: self._note(source, job, now) for job in jobs}

    def _note(self, source: str, job: Sighted, now: datetime) -> Sighting:
        attempt, known = self._kept.get((source, job.job_id), (None, None))
        if known is None or attempt != job.attempt:
            known = Sighting(progress=job.progress, first_seen_at=now, seen_at=now, looks=1)
        elif known.progress != job.progress:
            known = replace(known, progress=job.progress, moved_at=now, moved_from=known.progress)
        if known.seen_at <= now - LOOKS_APART:
            known = replace(known, seen_at=now, looks=known.looks + 1)
        self._kept[source, job.job_id] = job.attempt, known
        return known


class MemorySnoozes:
    """Snoozes in a dict, whose entries go to a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kept: dict[tuple[str, str], Snooze] = {}

    async def live(self, source: str, now: datetime) -> Sequence[Snooze]:
        """Return the snoozes of a source that haven't ended by then."""
        found = (each for each in self._kept.values() if each.source == source and each.until > now)
        return sorted(found, key=lambda each: each.until)

    async def keep(self, snooze: Snooze, entry: AuditEntry, *, most: int) -> bool:
        """Keep a snooze in place of the job's former one."""
        key = (snooze.source, str(snooze.job_id))
        live = await self.live(snooze.source, snooze.at)
        if len([each for each in live if str(each.job_id) != key[1]]) >= most:
            return False
        self._kept[key] = snooze
        await self._ledger.append(entry)
        return True

    async def strike(self, source: str, job_id: JobId, entry: AuditEntry) -> Snooze | None:
        """End a job's snooze."""
        await self._ledger.append(entry)
        return self._kept.pop((source, str(job_id)), None)


_WAITING = (JobState.QUEUED, JobState.SCHEDULED)


def _late_finish(end: End, at: datetime) -> LateFinish:
    finished = end.finished
    return LateFinish(
        job_id=str(finished.recovered.job_id),
        kind=finished.kind,
        how=How.FOUND,
        worker=finished.worker,
        attempt=finished.now.number,
        ended=JobState.SUCCEEDED,
        ran=end.ran,
        detail=None,
        recovery_id=end.recovery_id,
        at=at,
    )


_OPEN = (JobState.QUEUED, JobState.RUNNING, JobState.SCHEDULED)


def _is_meant(asked: JobId | None, job_id: JobId) -> bool:
    """Compare ids as text, as whoever asks by an address or a command line can only say them."""
    return asked is None or str(asked) == str(job_id)


def _recorded(operation_id: int, recovery: Recovery, at: datetime) -> RecordedRecovery:
    return RecordedRecovery(
        operation_id=operation_id,
        job_id=recovery.job_id,
        state=recovery.state,
        action=recovery.action,
        reason=recovery.reason,
        outcome=recovery.outcome,
        at=at,
        pre_image=recovery.pre_image,
        post_image=recovery.post_image,
        undoes=recovery.undoes,
    )


def _image(stored: StoredJob) -> str:
    return json.dumps(asdict(stored), default=str)


def _stored(image: str) -> StoredJob:
    """Read an image back."""
    said = json.loads(image)
    job = said["job"] | {"state": JobState(said["job"]["state"])}
    times = {key: datetime.fromisoformat(at) for key, at in job.items() if key.endswith("_at") and at is not None}
    return StoredJob(job=Job(**{**job, **times}), success=said["success"], error=said["error"])


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
