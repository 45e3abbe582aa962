"""A source and a ledger in memory, and the app on them, for the tests of the API."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from unstick.api.auth import bearer_principal, mint_token
from unstick.api.factory import create_app
from unstick.api.router import admin_router
from unstick.config import AuthSettings
from unstick.domain.access import Role
from unstick.domain.aftermath import End, Finished, How, LateCounts, LateFinish, LateRuns, Recovered
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.events import QueueState
from unstick.domain.history import Durations, Figures, Replayed, ReplayedKind
from unstick.domain.job import Job, JobClass, JobId, JobState, sign_of_life
from unstick.domain.policy import Policy, Ruling
from unstick.domain.queue import Flows
from unstick.domain.record import EntryFilter, EntryPage, Recorded, Span
from unstick.domain.recovery import Action, Batch, BatchResult, Intent, Recovery, Ruled
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
from unstick.domain.undo import UndoBatch, UndoPage, UndoResult
from unstick.pipeline.watched import OpenWatched, Watched
from unstick.ports import Capabilities, FollowUpSpan, OpenClasses, OpenJobs, RecoveredPage, RecoveryCounts, Usage
from unstick.testing.memory import MemoryBrakes, MemorySnoozes

NOW = datetime(2026, 11, 23, 21, 0, tzinfo=UTC)
SECRET = SecretStr("a secret that is long enough for HS512 as well: sixty-four bytes or more")
AUTH = AuthSettings()
STUCK = "/api/v1/admin/jobs/stuck"
CLEANUP = "/api/v1/admin/jobs/cleanup"
STATS = "/api/v1/admin/stats"
JOB = "/api/v1/admin/jobs/main/2"
SNOOZES = "/api/v1/admin/snoozes"
CALLS_ON_ONE = {
    "jobs.story": ("GET", JOB),
    "jobs.recover": ("POST", f"{JOB}/recover"),
    "jobs.snooze": ("POST", f"{JOB}/snooze"),
    "jobs.unsnooze": ("DELETE", f"{JOB}/snooze"),
    "snoozes": ("GET", SNOOZES),
}
UNDO_OPERATION = "/api/v1/admin/operations/{operation_id}/undo"
UNDO_JOB = "/api/v1/admin/jobs/{source}/{job_id}/undo"
LATE = "/api/v1/admin/late-finishes"
SUGGESTIONS = "/api/v1/admin/suggestions"
REPLAY = "/api/v1/admin/replay"
LIST = "/api/v1/admin/stuck"
OVERVIEW = "/api/v1/admin/overview"
AUDIT = "/api/v1/admin/audit"
EXPORT = "/api/v1/admin/audit/export"
PLANS = "/api/v1/admin/plans"
CALLS = {
    "jobs.stuck": ("GET", STUCK),
    "jobs.cleanup": ("POST", CLEANUP),
    "stats": ("GET", STATS),
    "late_finishes": ("GET", LATE),
    "suggestions": ("GET", SUGGESTIONS),
    "replay": ("GET", REPLAY),
    "overview": ("GET", OVERVIEW),
    "audit": ("GET", AUDIT),
}


def job(job_id: JobId, state: JobState, minutes: float) -> Job:
    """Make a job whose last sign of life is that old."""
    return Job(id=job_id, state=state, status=state.value, started_at=NOW - timedelta(minutes=minutes))


@dataclass
class MemorySource:
    """Jobs in a dict, one page of two at a time; `failure` is raised by the batch that would be `fail_at`."""

    name: str = "main"
    jobs: dict[JobId, Job] = field(default_factory=dict)
    failure: Exception | None = None
    fail_at: int | None = None
    batches: int = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            heartbeats=True,
            attempts=True,
            mark_failed=True,
            retry=True,
            records=True,
            rulings=False,
            reads_beside_writes=False,
        )

    async def clock(self) -> datetime:
        if self.failure is not None and self.fail_at is None:
            raise self.failure
        return NOW

    async def find(self, job_id: JobId) -> JobRow | None:
        found = next((job for known, job in self.jobs.items() if str(known) == str(job_id)), None)
        if found is None:
            return None
        return JobRow(job_id=found.id, read_at=await self.clock(), status=found.status, job=found)

    async def count_suspects(self, look: Look, most: int | None = None) -> StuckCounts:
        states = Counter(suspect.state for suspect in self._accused(look)[:most])
        return StuckCounts(queued=states[JobState.QUEUED], running=states[JobState.RUNNING])

    async def suspects_by_queue(self, look: Look) -> GroupedSuspects:
        found = self._accused(look)
        groups = Counter(SuspectGroup(self.jobs[s.job_id].queue, s.state, s.lease_expired) for s in found)
        return GroupedSuspects(counts=groups)

    async def list_suspects(
        self, look: Look, state: JobState, *, limit: int, after: Position | None
    ) -> tuple[Job, ...]:
        found = sorted((s for s in self._accused(look) if s.state is state), key=lambda s: (s.since, str(s.job_id)))
        rest = (s for s in found if after is None or (s.since, str(s.job_id)) > (after.since, str(after.job_id)))
        return tuple(self.jobs[suspect.job_id] for suspect in rest)[:limit]

    async def stretch(
        self, look: Look, state: JobState, *, size: int, after: Mark | None = None, newest_first: bool = False
    ) -> Stretch:
        found = await self.list_suspects(look, state, limit=len(self.jobs), after=None)
        ordered = found[::-1] if newest_first else found
        ids = [job.id for job in ordered]
        begin = 0 if after is None else ids.index(after.position.job_id) + 1
        return Stretch.by_age(ordered[begin:][:size], size)

    async def suspects(self, look: Look) -> AsyncIterator[Page]:
        found = self._accused(look)
        for start in range(0, len(found), 2):
            yield Page(suspects=tuple(found[start : start + 2]))

    async def recover(self, batch: Batch) -> BatchResult:
        if self.failure is not None and self.batches == self.fail_at:
            raise self.failure
        self.batches += 1
        state = JobState.FAILED if batch.action is Action.MARK_FAILED else JobState.SCHEDULED
        ids = [decision.suspect.job_id for decision in batch.decisions]
        self.jobs.update({job_id: replace(self.jobs[job_id], state=state, completed_at=NOW) for job_id in ids})
        return BatchResult(applied=frozenset(ids), refused={})

    async def recover_by_rule(self, ruling: Ruling, look: Look, operation_id: int) -> AsyncIterator[Ruled]:
        raise AssertionError((ruling, look, operation_id))
        yield Ruled(recovered=0, left=True)

    async def intend(self, batch: Batch) -> Sequence[Intent]:
        raise AssertionError(batch)

    async def images(self, intents: Sequence[Intent]) -> Mapping[JobId, str]:
        raise AssertionError(intents)

    async def describe(self, look: Look, job_ids: Sequence[JobId]) -> Mapping[JobId, Job]:
        del look
        return {each: self.jobs[each] for each in job_ids if each in self.jobs}

    async def up_since(self) -> datetime | None:
        return None

    async def open_classes(self, most: int | None = None) -> OpenClasses:
        del most
        return OpenClasses(found=frozenset(JobClass(job.kind, job.queue) for job in self.jobs.values()))

    async def flows(self, look: Look) -> Flows:
        del look
        return Flows(by_queue={})

    async def undo(self, batch: UndoBatch) -> UndoResult:
        raise AssertionError(batch)

    async def intend_undo(self, batch: UndoBatch) -> tuple[Sequence[Intent], Mapping[JobId, str]]:
        raise AssertionError(batch)

    async def finished_among(self, recovered: Sequence[Recovered]) -> Sequence[Finished]:
        raise AssertionError(recovered)

    async def open_jobs(self) -> OpenJobs:
        jobs = Counter(QueueState(job.queue, job.state) for job in self.jobs.values() if job.completed_at is None)
        return OpenJobs(by_queue=jobs, queued_since=None, running_since=None)

    async def usage(self) -> Usage:
        return Usage(
            window_jobs=len(self.jobs),
            window_basis="all jobs",
            oldest_at=None,
            newest_at=None,
            jobs_by_state=Counter(job.state for job in self.jobs.values()),
            average_duration=None,
            longest_duration=None,
            tokens=None,
            cost=None,
        )

    def _accused(self, look: Look) -> list[Suspect]:
        return [
            Suspect(job.id, job.state, since)
            for job in self.jobs.values()
            if is_suspect(job, look) and (since := sign_of_life(job)) is not None
        ]


@dataclass
class MemoryLedger:
    """Entries in a list, and reads counted by who, what and what came of it."""

    entries: list[AuditEntry] = field(default_factory=list)
    reads: dict[str, tuple[AuditEntry, int]] = field(default_factory=dict)
    failure: Exception | None = None
    late: list[LateFinish] = field(default_factory=list)

    async def append(self, entry: AuditEntry) -> int:
        if self.failure is not None:
            raise self.failure
        self.entries.append(entry)
        return len(self.entries)

    async def count_read(self, entry: AuditEntry, times: int = 1) -> None:
        if self.failure is not None:
            raise self.failure
        key = json.dumps([entry.actor, entry.role, entry.call, entry.outcome, entry.parameters, entry.result])
        _, count = self.reads.get(key, (entry, 0))
        self.reads[key] = (entry, count + times)

    async def record(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        raise AssertionError((source, operation_id, recoveries))

    async def intend(self, source: str, operation_id: int, intents: Sequence[Intent]) -> None:
        raise AssertionError((source, operation_id, intents))

    async def settle(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        raise AssertionError((source, operation_id, recoveries))

    async def find_out(self, source: str, operation_id: int, recoveries: Sequence[Recovery]) -> None:
        raise AssertionError((source, operation_id, recoveries))

    async def unsettled(self, source: str, older_than: timedelta) -> Mapping[int, Sequence[Intent]]:
        raise AssertionError((source, older_than))

    async def spent(
        self,
        source: str,  # noqa: ARG002
        job_ids: Sequence[JobId],  # noqa: ARG002
        since: datetime,  # noqa: ARG002
        *,
        before_success: bool = False,  # noqa: ARG002
    ) -> Mapping[JobId, int]:
        return {}

    async def operation(self, operation_id: int) -> AuditEntry | None:
        entry = self.entries[operation_id - 1] if 0 < operation_id <= len(self.entries) else None
        return entry if entry is not None and entry.outcome is AuditOutcome.STARTED else None

    async def undoable(
        self,
        source: str,  # noqa: ARG002
        operation_id: int,  # noqa: ARG002
        *,
        after: int = 0,  # noqa: ARG002
        job_id: JobId | None = None,  # noqa: ARG002
    ) -> UndoPage:
        return UndoPage(recoveries=(), last=None)

    async def history(self, source: str, job_id: JobId) -> Sequence[tuple[int, bool]]:  # noqa: ARG002
        return ()

    async def follow_up_span(self, source: str, window: timedelta) -> FollowUpSpan | None:  # noqa: ARG002
        return None

    async def recovered(
        self, source: str, span: FollowUpSpan, *, before: int | None, limit: int, besides: int | None
    ) -> RecoveredPage:
        raise AssertionError((source, span, before, limit, besides))

    async def keep_ends(self, source: str, ends: Sequence[End]) -> tuple[int, int]:
        raise AssertionError((source, ends))

    async def keep_place(self, source: str, recovery_id: int | None) -> None:
        raise AssertionError((source, recovery_id))

    async def late_counts(self, source: str, window: timedelta) -> LateCounts:  # noqa: ARG002
        return LateCounts(since=NOW - window, by_how={How.FOUND: len(self.late)}, by_kind={"essay": len(self.late)})

    async def late_finishes(self, source: str, limit: int) -> Sequence[LateFinish]:  # noqa: ARG002
        return self.late[:limit]

    async def late_runs(self, source: str, window: timedelta) -> Sequence[LateRuns]:  # noqa: ARG002
        return ()

    async def recoveries(self, source: str, window: timedelta) -> RecoveryCounts:  # noqa: ARG002
        return RecoveryCounts(since=NOW - window, by_outcome={}, by_action={}, by_reason={})

    @property
    def rows(self) -> list[AuditEntry]:
        """Every row, of calls that changed something and of those that didn't."""
        return [*self.entries, *(entry for entry, _ in self.reads.values())]


@dataclass
class MemoryRecords:
    """A ledger's entries read back."""

    ledger: MemoryLedger

    async def entries(self, wanted: EntryFilter, *, before: int | None, limit: int) -> EntryPage:
        del wanted
        found = [_recorded(number, each) for number, each in enumerate(self.ledger.entries, 1)]
        older = [each for each in reversed(found) if before is None or each.id < before]
        return EntryPage(entries=tuple(older[:limit]), next_before=older[limit - 1].id if len(older) > limit else None)

    async def operation(self, operation_id: int) -> Sequence[Recorded]:
        raise AssertionError(operation_id)

    async def over_time(self, source: str, window: timedelta, spans: int) -> Sequence[Span]:
        del source, window, spans
        return ()


def _recorded(number: int, entry: AuditEntry) -> Recorded:
    return Recorded(
        id=number, at=NOW, last_at=NOW, repeats=1, actor=entry.actor, role=entry.role, call=entry.call,
        outcome=entry.outcome, parameters=entry.parameters, result=entry.result,
    )  # fmt: skip


@dataclass
class MemoryHistory:
    """One kind of fifty jobs, of which a threshold would have recovered as many as it has minutes."""

    async def durations(self) -> Durations:
        minute = timedelta(minutes=1)
        essays = Figures("essay", None, 50, minute, 2 * minute, 3 * minute, 4 * minute)
        return Durations(basis="all jobs", runs=(essays,), runs_by_queue=(), waits=None)

    async def replay(
        self, window: timedelta, *, running_after: timedelta | None, queued_after: timedelta | None
    ) -> Replayed:
        queued, running = (
            0 if each is None else each // timedelta(minutes=1) for each in (queued_after, running_after)
        )
        kinds = (ReplayedKind("essay", 50, queued, running, 1), ReplayedKind("quiz", 5, 0, 0, 0))
        return Replayed(since=NOW - window, basis="all jobs", sample=55, complete=True, kinds=kinds)


@dataclass
class World:
    """A source with two stuck jobs and one healthy, its ledger, and how it is opened."""

    source: MemorySource = field(
        default_factory=lambda: MemorySource(
            jobs={
                1: job(1, JobState.QUEUED, 7),
                2: job(2, JobState.RUNNING, 45),
                3: job(3, JobState.RUNNING, 1),
                4: job(4, JobState.QUEUED, 90),
            }
        )
    )
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    policy: Policy = field(default_factory=Policy)
    snoozes: MemorySnoozes = field(init=False)

    def __post_init__(self) -> None:
        self.snoozes = MemorySnoozes(self.ledger)

    @property
    def open(self) -> OpenWatched:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Watched]:
            yield Watched(
                source=self.source,
                ledger=self.ledger,
                policy=self.policy,
                history=MemoryHistory(),
                snoozes=self.snoozes,
                brakes=MemoryBrakes(),
                records=MemoryRecords(self.ledger),
            )

        return opened

    def states(self) -> dict[JobId, JobState]:
        """Return every job's state, to tell whether anything was changed."""
        return {job_id: job.state for job_id, job in self.source.jobs.items()}


def service(world: World, **others: World) -> FastAPI:
    """Return the service on these worlds; the first is `main`."""
    watched = {"main": world.open, **{name: other.open for name, other in others.items()}}
    return create_app(watched=watched, principal=bearer_principal(SECRET, AUTH))


def host(world: World, principal: Callable[..., Any]) -> FastAPI:
    """Return a host application that includes the router under its own login."""
    app = FastAPI()
    app.include_router(admin_router(watched={"main": world.open}, principal=principal))
    return app


def client(app: FastAPI, role: Role | None = None) -> httpx.AsyncClient:
    """Return a client whose every call bears a token of this role; without one, none."""
    headers = {} if role is None else bearer(token(role))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://unstick.test", headers=headers)


def token(role: Role, subject: str = "ada") -> str:
    """Return a good token."""
    return mint_token(SECRET, role=role, subject=subject, lifetime=timedelta(minutes=5), auth=AUTH)


def bearer(sent: str) -> dict[str, str]:
    """Return the header that bears a token."""
    return {"Authorization": f"Bearer {sent}"}


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Assert that an answer is a whole RFC 9457 problem, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail"} <= set(problem)
    assert problem["status"] == status
    assert problem["detail"]
    return problem


def opened_by_failing(error: Exception) -> OpenWatched:
    """Return a source that can't be opened."""

    def opened() -> AbstractAsyncContextManager[Watched]:
        raise error

    return opened
