"""What is answered about one job: its story, its recovery, and its snooze. Every face answers with these."""

from typing import Literal

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.job import JobId
from unstick.domain.policy import Rule
from unstick.domain.recovery import Outcome
from unstick.domain.snooze import Snooze
from unstick.domain.story import Event, JobRow
from unstick.pipeline.recovering import RecoverReport
from unstick.pipeline.shapes import EvidenceShape, evidence_shape
from unstick.pipeline.snoozing import SnoozeReport
from unstick.pipeline.story import Story
from unstick.pipeline.verdict import Verdict


class SnoozeShape(TypedDict):
    """A job that is left alone, until when and why."""

    source: str
    job_id: int | str
    until: str
    reason: str
    by: str
    at: str


class SnoozesShape(TypedDict):
    """The snoozes that stand, those that end first before others."""

    snoozes: list[SnoozeShape]
    read_at: str


class SnoozedShape(TypedDict):
    """What became of a snooze, or of its end: `snooze` is null where there was none to end."""

    source: str
    job_id: int | str
    snoozed: bool
    snooze: SnoozeShape | None
    at: str
    message: str


class RecoveredShape(TypedDict):
    """What came of the recovery of one job."""

    source: str
    job_id: int | str
    recovered: bool
    action: Literal["mark_failed", "retry"]
    outcome: Literal["applied", "lost_race", "failed"]
    reason: str
    detail: str
    operation_id: int
    at: str
    message: str


class JobNowShape(TypedDict):
    """A job's row as it stands; `payload` is without what stands under keys that name secrets."""

    state: str | None
    status: str
    kind: str | None
    queue: str | None
    attempt: int | None
    max_attempts: int | None
    worker: str | None
    progress: str | None
    payload: object
    error: str | None
    problem: str | None


class GoverningShape(TypedDict):
    """What holds for a job: the policy, with what the rule that governs it says; `rule` counts from 1, null is none."""

    rule: int | None
    matches: dict[str, str]
    action: str
    queued_after_seconds: float
    running_after_seconds: float
    max_recoveries: int
    recovery_window_seconds: float
    ask: bool


class DiagnosisShape(TypedDict):
    """How a job stands now. `reason` says why it is stuck, and `sweep` what a sweep would do to it now."""

    standing: str
    stuck: bool
    reason: str | None
    sentence: str
    evidence: list[EvidenceShape]
    sweep: str
    policy: GoverningShape | None
    snooze: SnoozeShape | None


class EventShape(TypedDict):
    """One thing that happened, or is to happen."""

    at: str
    kind: str
    sentence: str
    data: dict[str, object]


class StoryShape(TypedDict):
    """The story of a job, oldest first; `job` is null where it is gone, `truncated` where there were more events."""

    source: str
    id: int | str
    told_at: str
    diagnosis: DiagnosisShape
    job: JobNowShape | None
    events: list[EventShape]
    truncated: bool


def story_shape(story: Story, rules: tuple[Rule, ...]) -> StoryShape:
    """Render a story, told under these rules."""
    verdict = story.verdict
    return StoryShape(
        source=story.source,
        id=story.job_id,
        told_at=story.told_at.isoformat(),
        diagnosis={
            "standing": story.standing.value,
            "stuck": verdict is not None and verdict.suspect is not None,
            "reason": None if verdict is None or verdict.reason is None else verdict.reason.value,
            "sentence": story.sentence,
            "evidence": [] if verdict is None else [evidence_shape(each) for each in verdict.evidence],
            "sweep": story.outlook,
            "policy": None if verdict is None else _governing(verdict, rules),
            "snooze": None if verdict is None or verdict.snooze is None else snooze_shape(verdict.snooze),
        },
        job=None if verdict is None else _job_now(verdict.row),
        events=[_event(each) for each in story.events],
        truncated=story.truncated,
    )


def snooze_shape(snooze: Snooze) -> SnoozeShape:
    """Render a snooze."""
    return SnoozeShape(
        source=snooze.source,
        job_id=snooze.job_id,
        until=snooze.until.isoformat(),
        reason=snooze.reason,
        by=snooze.by,
        at=snooze.at.isoformat(),
    )


def snoozed_shape(source: str, report: SnoozeReport) -> SnoozedShape:
    """Render what became of a snooze."""
    return SnoozedShape(
        source=source,
        job_id=report.job_id,
        snoozed=report.snoozed,
        snooze=None if report.snooze is None else snooze_shape(report.snooze),
        at=report.at.isoformat(),
        message=_snoozed(report),
    )


def _snoozed(report: SnoozeReport) -> str:
    if report.snoozed and report.snooze is not None:
        return f"Job {report.job_id} is left alone until {report.snooze.until.isoformat(' ', 'seconds')}."
    if report.snooze is None:
        return f"Job {report.job_id} wasn't snoozed."
    return f"Job {report.job_id} is left alone no longer."


def recovered_shape(source: str, report: RecoverReport) -> RecoveredShape:
    """Render what came of a recovery."""
    outcome, action = report.outcome, report.decision.action
    return RecoveredShape(
        source=source,
        job_id=report.job_id,
        recovered=outcome is Outcome.APPLIED,
        action="retry" if action == "retry" else "mark_failed",
        outcome="applied" if outcome is Outcome.APPLIED else "failed" if outcome is Outcome.FAILED else "lost_race",
        reason=report.decision.reason.value,
        detail=report.detail,
        operation_id=report.operation_id,
        at=report.at.isoformat(),
        message=_recovered(report.job_id, report),
    )


def _recovered(job_id: JobId, report: RecoverReport) -> str:
    did = "is queued again" if report.decision.action == "retry" else "is marked failed"
    match report.outcome:
        case Outcome.APPLIED:
            return f"Job {job_id} {did}: {report.detail}."
        case Outcome.LOST_RACE:
            return f"Job {job_id} was not recovered: {report.detail}."
        case _:
            return f"Job {job_id} could not be changed: {report.detail}."


def _governing(verdict: Verdict, rules: tuple[Rule, ...]) -> GoverningShape | None:
    if verdict.scope is None or verdict.row.job is None:
        return None
    policy, rule, look = verdict.scope.policy, verdict.rule, verdict.scope.look
    return GoverningShape(
        rule=None if rule is None else rules.index(rule) + 1,
        matches={} if rule is None else _matches(rule),
        action=policy.action.value,
        queued_after_seconds=look.queued_after.total_seconds(),
        running_after_seconds=look.running_after.total_seconds(),
        max_recoveries=policy.max_recoveries,
        recovery_window_seconds=policy.recovery_window.total_seconds(),
        ask=policy.ask,
    )


def _matches(rule: Rule) -> dict[str, str]:
    said = {"source": rule.source, "queue": rule.queue, "kind": rule.kind}
    return {name: pattern for name, pattern in said.items() if pattern != "*"}


def _job_now(row: JobRow) -> JobNowShape:
    job = row.job
    return JobNowShape(
        state=None if job is None else job.state.value,
        status=row.status,
        kind=None if job is None else job.kind,
        queue=None if job is None else job.queue,
        attempt=None if job is None else job.attempt,
        max_attempts=None if job is None else job.max_attempts,
        worker=None if job is None else job.worker,
        progress=row.progress,
        payload=row.payload,
        error=row.error,
        problem=row.problem,
    )


def _event(event: Event) -> EventShape:
    return EventShape(at=event.at.isoformat(), kind=event.kind, sentence=event.sentence, data=dict(event.data))
