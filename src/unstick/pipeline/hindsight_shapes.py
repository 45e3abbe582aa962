"""What is answered about recoveries and thresholds in hindsight, the same by every face."""

from datetime import timedelta

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.aftermath import LateFinish
from unstick.domain.history import ReplayedKind
from unstick.domain.suggestion import Suggestion, as_setting
from unstick.domain.wording import say_instant
from unstick.pipeline.history import ReplayReport, SuggestionReport
from unstick.pipeline.late import LateReport
from unstick.pipeline.shapes import LateFinishesBlock, late_block


class LateFinishShape(TypedDict):
    """One late finish."""

    job_id: str
    kind: str | None
    how: str
    ended: str
    worker: str | None
    attempt: int | None
    ran_seconds: float | None
    detail: str | None
    recovery_id: int | None
    at: str


class LateFinishesShape(TypedDict):
    """Late finishes: counts of the last day, and the newest, newest first, whenever they were."""

    late_finishes: LateFinishesBlock
    newest: list[LateFinishShape]


def late_finishes_shape(report: LateReport) -> LateFinishesShape:
    """Render late finishes."""
    return LateFinishesShape(
        late_finishes=late_block(report.counts), newest=[_late_finish(each) for each in report.newest]
    )


def _late_finish(late: LateFinish) -> LateFinishShape:
    return LateFinishShape(
        job_id=late.job_id,
        kind=late.kind,
        how=late.how.value,
        ended=late.ended.value,
        worker=late.worker,
        attempt=late.attempt,
        ran_seconds=seconds(late.ran),
        detail=late.detail,
        recovery_id=late.recovery_id,
        at=late.at.isoformat(),
    )


def seconds(duration: timedelta | None) -> float | None:
    """Return a duration in seconds, to the millisecond."""
    return None if duration is None else round(duration.total_seconds(), 3)


class FiguresShape(TypedDict):
    """How long the jobs that a suggestion is for took, in seconds."""

    jobs: int
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    longest_seconds: float


class LateRunsShape(TypedDict):
    """Jobs of this kind that were recovered and finished after all."""

    jobs: int
    longest_seconds: float | None


class SuggestionShape(TypedDict):
    """A threshold for the jobs of a kind, of a kind in one queue, or of all; None where too few tell."""

    threshold: str
    kind: str | None
    queue: str | None
    current_seconds: float
    proposed_seconds: float | None
    proposed: str | None
    changes: bool
    why: str
    figures: FiguresShape
    late_finishes: LateRunsShape | None


class SuggestionsShape(TypedDict):
    """What is proposed, from which jobs, and as it would stand in `unstick.toml`."""

    basis: str
    notes: list[str]
    suggestions: list[SuggestionShape]
    toml: str
    generated_at: str


def suggestions_shape(report: SuggestionReport) -> SuggestionsShape:
    """Render what is proposed."""
    found = report.suggestions
    return SuggestionsShape(
        basis=found.basis,
        notes=[CENSORED, BEATING] if report.heartbeats else [CENSORED],
        suggestions=[_suggestion(each) for each in found.items],
        toml=found.toml,
        generated_at=report.at.isoformat(),
    )


CENSORED = (
    "Jobs that would have run longer than the thresholds in force were recovered and are not among those measured; "
    "late finishes are what tells of them."
)
BEATING = "Jobs of this source beat, and age counts from the last beat: a shorter threshold would do for those that do."


def _suggestion(suggestion: Suggestion) -> SuggestionShape:
    figures, late, proposed = suggestion.figures, suggestion.late, suggestion.proposed
    return SuggestionShape(
        threshold=suggestion.threshold,
        kind=suggestion.kind,
        queue=suggestion.queue,
        current_seconds=suggestion.current.total_seconds(),
        proposed_seconds=seconds(proposed),
        proposed=None if proposed is None else as_setting(proposed),
        changes=suggestion.changes,
        why=suggestion.why,
        figures={
            "jobs": figures.jobs,
            "p50_seconds": round(figures.p50.total_seconds(), 3),
            "p95_seconds": round(figures.p95.total_seconds(), 3),
            "p99_seconds": round(figures.p99.total_seconds(), 3),
            "longest_seconds": round(figures.longest.total_seconds(), 3),
        },
        late_finishes=None if late is None else {"jobs": late.number, "longest_seconds": seconds(late.longest)},
    )


class ReplayedShape(TypedDict):
    """What thresholds would have done: `recovered` at most, of `ended`; `succeeded` are those of them that did."""

    ended: int
    recovered: int
    queued: int
    running: int
    succeeded: int


class ReplayedKindShape(ReplayedShape):
    """Likewise for the jobs of one kind."""

    kind: str | None


class SampleShape(TypedDict):
    """Which jobs were looked at."""

    jobs: int
    basis: str
    complete: bool


class ReplayShape(TypedDict):
    """What thresholds would have done to the jobs that ended since; `by_kind` names those most often recovered."""

    since: str
    running_after_seconds: float
    queued_after_seconds: float | None
    sample: SampleShape
    total: ReplayedShape
    by_kind: list[ReplayedKindShape]
    message: str


MOST_KINDS = 100


def replay_shape(report: ReplayReport) -> ReplayShape:
    """Render what thresholds would have done."""
    found = report.replayed
    return ReplayShape(
        since=found.since.isoformat(),
        running_after_seconds=report.running_after.total_seconds(),
        queued_after_seconds=seconds(report.queued_after),
        sample={"jobs": found.sample, "basis": found.basis, "complete": found.complete},
        total=_replayed(found.total),
        by_kind=[{"kind": each.kind, **_replayed(each)} for each in found.kinds[:MOST_KINDS]],
        message=_replay_message(report),
    )


def _replayed(each: ReplayedKind) -> ReplayedShape:
    return ReplayedShape(
        ended=each.ended,
        recovered=each.recovered,
        queued=each.queued,
        running=each.running,
        succeeded=each.succeeded,
    )


def _replay_message(report: ReplayReport) -> str:
    found, total = report.replayed, report.replayed.total
    queued = "" if report.queued_after is None else f" and queued_after {as_setting(report.queued_after)}"
    looked = "all there are" if found.complete else f"{found.basis}; older ones were not looked at"
    limits = f"running_after {as_setting(report.running_after)}{queued}"
    return (
        f"Of {total.ended:,} job(s) that ended since {say_instant(found.since)}, at most {total.recovered:,} would "
        f"have been recovered with {limits}, and {total.succeeded:,} of those succeeded after all. Looked at "
        f"{found.sample:,} jobs: {looked}. A row tells only when a job started and ended: one that beat meanwhile "
        "would have been left alone."
    )
