"""The contract's three answers, word for word; more keys may be added, none renamed, moved or dropped.

Every face (AdminService, HTTP, command line) answers with these, so that none can drift from the others.
"""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.aftermath import How, LateCounts
from unstick.domain.brake import Brake
from unstick.domain.diagnosis import Reason
from unstick.domain.evidence import Evidence
from unstick.domain.job import JobClass, JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import CHANGES, Outcome
from unstick.domain.wording import say_duration
from unstick.pipeline.aftermath import FollowUp
from unstick.pipeline.report import Finding, PlatformStats, StuckReport
from unstick.pipeline.sweep import SweepReport
from unstick.pipeline.undo import UndoReport
from unstick.ports import Usage

NO_KIND = "(no kind)"
"""Stands among kinds for jobs that have none."""

_MINUTE = timedelta(minutes=1)


class EvidenceShape(TypedDict):
    """One thing a witness saw."""

    witness: str
    holding: Literal["held", "released", "unknown"]
    at: str | None
    value: str | None


class JobShape(TypedDict):
    """A stuck job and why it is one."""

    id: int | str
    state: Literal["queued", "running"]
    status: str
    kind: str | None
    queue: str | None
    attempt: int | None
    max_attempts: int | None
    worker: str | None
    enqueued_at: str | None
    scheduled_at: str | None
    started_at: str | None
    heartbeat_at: str | None
    stuck_since: str
    age_seconds: float
    reason: str
    sentence: str
    outlook: str | None
    evidence: list[EvidenceShape]


class StuckByState(TypedDict):
    """Exact counts, as shape 1 names them."""

    total: int
    queued_stuck: int
    running_stuck: int


class Recommendations(TypedDict):
    """Whether a cleanup is due."""

    cleanup_needed: bool
    message: str


class UnservedShape(TypedDict):
    """Queues that no living worker serves; `queues` is null where it is all of them."""

    queues: list[str] | None
    jobs: int


class StuckShape(TypedDict):
    """Shape 1: what is stuck now. Counts are exact or say so; each list holds at most `limit` jobs, oldest first."""

    stuck_jobs: StuckByState
    queued_jobs: list[JobShape]
    running_jobs: list[JobShape]
    threshold_minutes: int | float
    monitored_at: str
    recommendations: Recommendations
    running_threshold_minutes: int | float
    unserved_queues: list[UnservedShape]
    undecided_jobs: int
    counts_exact: bool
    snoozed: int
    next_cursor: str | None


class PolicyShape(TypedDict):
    """What holds for jobs of a kind and queue; `rule` counts from 1, and is null where none governs them."""

    source: str
    kind: str | None
    queue: str | None
    rule: int | None
    policy: dict[str, str | int | bool | None]


class CountsByState(TypedDict):
    """Exact counts, as shapes 2 and 3 name them."""

    queued: int
    running: int
    total: int


class FailureShape(TypedDict):
    """A job that couldn't be read or changed, and why."""

    id: int | str
    state: str
    detail: str


class BrakeShape(TypedDict):
    """A brake: how many jobs would have been recovered at once, and what seems to have happened to them."""

    source: str
    at: str
    suspects: int
    open_jobs: int
    cause: str
    released_at: str | None
    released_by: str | None


class FollowUpShape(TypedDict):
    """What became of jobs recovered before: what was found since the last look, or why that failed."""

    looked_at: int
    late_finishes: int
    succeeded: int
    problem: str | None


class PlanRef(TypedDict):
    """A plan that a dry run has kept, or that was applied."""

    id: str
    expires_at: str
    jobs: int


class CleanupShape(TypedDict):
    """Shape 2: what a cleanup did. A dry run changes nothing and has `would_clean`; `plan` where there is one."""

    action: Literal["mark_failed", "retry", "leave"]
    cleaned_jobs: CountsByState
    threshold_minutes: int | float
    cleaned_at: str
    message: str
    running_threshold_minutes: int | float
    dry_run: bool
    outcomes: dict[str, int]
    actions: dict[str, int]
    poison: int
    operation_id: int | None
    failures: list[FailureShape]
    brake: BrakeShape | None
    grace_until: str | None
    follow_up: FollowUpShape | None
    would_clean: NotRequired[CountsByState]
    plan: NotRequired[PlanRef]


class UndoShape(TypedDict):
    """What an undo did. `would_undo` is there in a dry run, which changes nothing."""

    undoes: int
    job: int | str | None
    undone_jobs: CountsByState
    already_undone: int
    undone_at: str
    message: str
    dry_run: bool
    outcomes: dict[str, int]
    operation_id: int | None
    failures: list[FailureShape]
    would_undo: NotRequired[CountsByState]


class UsageWindow(TypedDict):
    """Which jobs the figures of `ai_usage` are over."""

    jobs: int
    basis: str
    oldest_at: str | None
    newest_at: str | None


class AiUsage(TypedDict):
    """Figures over the newest jobs, and what is stuck now (exact)."""

    window: UsageWindow
    jobs_by_state: dict[str, int]
    success_rate: float | None
    average_duration_seconds: float | None
    longest_duration_seconds: float | None
    tokens: int | None
    cost: float | None
    stuck_jobs: CountsByState


class JobsBlock(TypedDict):
    """The jobs that are not over, exactly."""

    open_by_state: dict[str, int]
    oldest_queued_seconds: float | None
    oldest_running_seconds: float | None


class RecoveriesBlock(TypedDict):
    """Our own recoveries since the window began."""

    since: str
    by_outcome: dict[str, int]
    by_action: dict[str, int]
    by_reason: dict[str, int]


class LateFinishesBlock(TypedDict):
    """Late finishes since the window of `recoveries` began; `by_kind` names the most frequent kinds."""

    since: str
    total: int
    by_kind: dict[str, int]
    refused: int
    found: int


class StatsShape(TypedDict):
    """Shape 3: platform statistics."""

    ai_usage: AiUsage
    jobs: JobsBlock
    recoveries: RecoveriesBlock
    late_finishes: LateFinishesBlock
    threshold_minutes: int | float
    running_threshold_minutes: int | float
    generated_at: str


def stuck_shape(report: StuckReport) -> StuckShape:
    """Render shape 1."""
    total = report.counts.total
    found = f"Found {total} stuck job(s). Consider running cleanup." if total else "No stuck jobs found."
    return StuckShape(
        stuck_jobs={"total": total, "queued_stuck": report.counts.queued, "running_stuck": report.counts.running},
        queued_jobs=[job_shape(finding) for finding in report.queued],
        running_jobs=[job_shape(finding) for finding in report.running],
        threshold_minutes=minutes(report.look.queued_after),
        monitored_at=report.look.taken_at.isoformat(),
        recommendations={"cleanup_needed": total > 0, "message": found},
        running_threshold_minutes=minutes(report.look.running_after),
        undecided_jobs=report.undecided,
        counts_exact=report.exact,
        unserved_queues=[
            {"queues": None if each.queues is None else list(each.queues), "jobs": each.jobs}
            for each in report.unserved
        ],
        snoozed=report.snoozed,
        next_cursor=report.next_cursor,
    )


def cleanup_shape(report: SweepReport) -> CleanupShape:
    """Render shape 2."""
    applied = _by_state(report)
    shape = CleanupShape(
        action=report.action.value,
        cleaned_jobs=CountsByState(queued=0, running=0, total=0) if report.dry_run else applied,
        threshold_minutes=minutes(report.look.queued_after),
        cleaned_at=report.look.taken_at.isoformat(),
        message=_cleanup_message(report, applied["total"]),
        running_threshold_minutes=minutes(report.look.running_after),
        dry_run=report.dry_run,
        outcomes={} if report.dry_run else {o.value: report.tally.of(outcome=o) for o in Outcome},
        actions={a.value: report.tally.of(action=a, outcome=Outcome.APPLIED) for a in CHANGES},
        poison=report.tally.of(reason=Reason.POISON, outcome=Outcome.APPLIED),
        operation_id=report.operation_id,
        failures=[{"id": f.job_id, "state": f.state.value, "detail": f.detail} for f in report.failures],
        brake=None if report.brake is None else brake_shape(report.brake),
        grace_until=_iso(report.grace_until),
        follow_up=None if report.follow_up is None else follow_up_shape(report.follow_up),
    )
    if report.dry_run:
        shape["would_clean"] = applied
    if report.plan is not None:
        plan = report.plan
        shape["plan"] = {"id": plan.id, "expires_at": plan.expires_at.isoformat(), "jobs": plan.jobs}
    return shape


def policy_shape(policy: Policy, source: str, jobs: JobClass) -> PolicyShape:
    """Render the policy that governs jobs of a class, durations in words."""
    rule = policy.rule_of(source, jobs)
    governing = asdict(policy.under(rule))
    del governing["rules"]
    return PolicyShape(
        source=source,
        kind=jobs.kind,
        queue=jobs.queue,
        rule=None if rule is None else policy.rules.index(rule) + 1,
        policy={
            name: say_duration(value) if isinstance(value, timedelta) else value for name, value in governing.items()
        },
    )


def brake_shape(brake: Brake) -> BrakeShape:
    """Render a brake."""
    return BrakeShape(
        source=brake.source,
        at=brake.at.isoformat(),
        suspects=brake.suspects,
        open_jobs=brake.still_open,
        cause=brake.cause,
        released_at=_iso(brake.released_at),
        released_by=brake.released_by,
    )


def undo_shape(report: UndoReport) -> UndoShape:
    """Render an undo; `failures` names the jobs that could not be undone, and why."""
    applied = _undone_by_state(report)
    shape = UndoShape(
        undoes=report.undoes,
        job=report.job_id,
        undone_jobs=CountsByState(queued=0, running=0, total=0) if report.dry_run else applied,
        already_undone=report.already,
        undone_at=report.at.isoformat(),
        message=_undo_message(report, applied["total"]),
        dry_run=report.dry_run,
        outcomes={} if report.dry_run else {each.value: report.of(outcome=each) for each in Outcome},
        operation_id=report.operation_id,
        failures=[{"id": each.job_id, "state": each.state.value, "detail": each.detail} for each in report.left],
    )
    if report.dry_run:
        shape["would_undo"] = applied
    return shape


def _undone_by_state(report: UndoReport) -> CountsByState:
    queued = report.of(state=JobState.QUEUED, outcome=Outcome.APPLIED)
    running = report.of(state=JobState.RUNNING, outcome=Outcome.APPLIED)
    return CountsByState(queued=queued, running=running, total=queued + running)


def _undo_message(report: UndoReport, undone: int) -> str:
    left = report.of() - undone
    could_not = f" {left} could not be undone; `failures` says why." if left else ""
    before = f" {report.already} had been undone before." if report.already else ""
    if report.dry_run:
        return f"Would put back {undone} job(s).{could_not}{before} Nothing was changed."
    return f"Put back {undone} job(s).{could_not}{before}"


def stats_shape(stats: PlatformStats) -> StatsShape:
    """Render shape 3."""
    now = stats.look.taken_at
    return StatsShape(
        ai_usage=_ai_usage(stats),
        jobs={
            "open_by_state": {state.value: n for state, n in stats.open_jobs.by_state.items()},
            "oldest_queued_seconds": _age(now, stats.open_jobs.queued_since),
            "oldest_running_seconds": _age(now, stats.open_jobs.running_since),
        },
        recoveries={
            "since": stats.recoveries.since.isoformat(),
            "by_outcome": {outcome.value: n for outcome, n in stats.recoveries.by_outcome.items()},
            "by_action": {action.value: n for action, n in stats.recoveries.by_action.items()},
            "by_reason": dict(stats.recoveries.by_reason),
        },
        late_finishes=late_block(stats.late_finishes),
        threshold_minutes=minutes(stats.look.queued_after),
        running_threshold_minutes=minutes(stats.look.running_after),
        generated_at=now.isoformat(),
    )


def follow_up_shape(found: FollowUp) -> FollowUpShape:
    """Render what a follow-up found."""
    return FollowUpShape(
        looked_at=found.looked_at, late_finishes=found.late, succeeded=found.succeeded, problem=found.problem
    )


def late_block(counts: LateCounts) -> LateFinishesBlock:
    """Render the counts of late finishes."""
    return LateFinishesBlock(
        since=counts.since.isoformat(),
        total=counts.total,
        by_kind={NO_KIND if kind is None else kind: number for kind, number in counts.by_kind.items()},
        refused=counts.by_how.get(How.REFUSED, 0),
        found=counts.by_how.get(How.FOUND, 0),
    )


def job_shape(finding: Finding) -> JobShape:
    """Render one stuck job."""
    job = finding.job
    return JobShape(
        id=job.id,
        state="queued" if job.state is JobState.QUEUED else "running",
        status=job.status,
        kind=job.kind,
        queue=job.queue,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        worker=job.worker,
        enqueued_at=_iso(job.enqueued_at),
        scheduled_at=_iso(job.scheduled_at),
        started_at=_iso(job.started_at),
        heartbeat_at=_iso(job.heartbeat_at),
        stuck_since=finding.since.isoformat(),
        age_seconds=round(finding.age.total_seconds(), 3),
        reason=finding.diagnosis.reason.value,
        sentence=finding.diagnosis.sentence,
        outlook=finding.outlook,
        evidence=[evidence_shape(evidence) for evidence in finding.evidence],
    )


def minutes(duration: timedelta) -> int | float:
    """Return a duration in minutes, a whole number where it is one."""
    exact = duration / _MINUTE
    return int(exact) if exact.is_integer() else round(exact, 3)


def _ai_usage(stats: PlatformStats) -> AiUsage:
    usage = stats.usage
    stuck = stats.stuck
    return AiUsage(
        window={
            "jobs": usage.window_jobs,
            "basis": usage.window_basis,
            "oldest_at": _iso(usage.oldest_at),
            "newest_at": _iso(usage.newest_at),
        },
        jobs_by_state={state.value: n for state, n in usage.jobs_by_state.items()},
        success_rate=_success_rate(usage),
        average_duration_seconds=_seconds(usage.average_duration),
        longest_duration_seconds=_seconds(usage.longest_duration),
        tokens=usage.tokens,
        cost=usage.cost,
        stuck_jobs={"queued": stuck.queued, "running": stuck.running, "total": stuck.total},
    )


def _success_rate(usage: Usage) -> float | None:
    """Succeeded out of those that succeeded or failed; cancelled ones say nothing."""
    succeeded = usage.jobs_by_state.get(JobState.SUCCEEDED, 0)
    ended = succeeded + usage.jobs_by_state.get(JobState.FAILED, 0)
    return round(succeeded / ended, 4) if ended else None


def _by_state(report: SweepReport) -> CountsByState:
    queued = report.tally.of(state=JobState.QUEUED, outcome=Outcome.APPLIED)
    running = report.tally.of(state=JobState.RUNNING, outcome=Outcome.APPLIED)
    return CountsByState(queued=queued, running=running, total=queued + running)


def _cleanup_message(report: SweepReport, applied: int) -> str:
    if report.dry_run:
        return f"Would clean up {applied} stuck job(s). Nothing was changed."
    if report.operation_id is None and report.brake is not None:
        held = report.tally.of(outcome=Outcome.BRAKED)
        return f"The brake holds: {held} stuck job(s) were left alone. It looks like {report.brake.cause}."
    return f"Successfully cleaned up {applied} stuck job(s)." + _left_over(report)


def _left_over(report: SweepReport) -> str:
    lost = report.tally.of(outcome=Outcome.LOST_RACE)
    failed = report.tally.of(outcome=Outcome.FAILED)
    left = report.tally.of(outcome=Outcome.LEFT)
    said = f" {left} were left to a person, or for later." if left and report.plan is None else ""
    said += f" {left} are no longer as they were planned for; they were left alone." if left and report.plan else ""
    said += f" {lost} changed meanwhile, or somebody held their rows; they were left alone." if lost else ""
    return said + (f" {failed} could not be changed; `failures` says why." if failed else "")


def evidence_shape(evidence: Evidence) -> EvidenceShape:
    """Render what a witness saw."""
    return EvidenceShape(
        witness=evidence.witness, holding=evidence.holding.value, at=_iso(evidence.at), value=evidence.value
    )


def _iso(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else round(duration.total_seconds(), 3)


def _age(now: datetime, since: datetime | None) -> float | None:
    return None if since is None else round((now - since).total_seconds(), 3)
