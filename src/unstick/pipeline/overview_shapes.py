"""What is answered about how things stand: each source, what is wrong with it, and what was done over time."""

from collections.abc import Sequence

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.record import Span
from unstick.domain.recovery import CHANGES
from unstick.pipeline.hindsight_shapes import seconds
from unstick.pipeline.overview import Concern, Overview, SourceOverview
from unstick.pipeline.shapes import BrakeShape, brake_shape


class OpenJobsShape(TypedDict):
    """The open jobs of a queue in a state; the queue is null where the source has none."""

    queue: str | None
    state: str
    jobs: int


class StuckJobsShape(TypedDict):
    """The jobs of a queue that are stuck for a reason."""

    queue: str | None
    reason: str
    jobs: int


class SpanShape(TypedDict):
    """What was done within a span of time: applied recoveries by action, and jobs that finished after all."""

    begins_at: str
    ends_at: str
    recovered: dict[str, int]
    late_finishes: int


class OverviewShape(TypedDict):
    """How a source stands; where it has many open jobs, as it was last observed: then `just_now` is false.

    `series` are the spans of the last day, the oldest first; none where no record can be read back.
    """

    observed_at: str
    just_now: bool
    age_seconds: float
    stuck_jobs: int
    stuck: list[StuckJobsShape]
    open_jobs: list[OpenJobsShape]
    undecided_jobs: int
    counts_exact: bool
    oldest_queued_seconds: float | None
    oldest_running_seconds: float | None
    late_finishes: int
    unmapped_words: list[str]
    brake: BrakeShape | None
    series: list[SpanShape]


class QueueShape(TypedDict):
    """How many of a concern's jobs are in a queue."""

    queue: str
    jobs: int


class ConcernShape(TypedDict):
    """One thing that is wrong with a source; `reason` and `queues` are of stuck jobs."""

    matter: str
    jobs: int
    reason: str | None
    queues: list[QueueShape]
    detail: str | None


class SourceOverviewShape(TypedDict):
    """A source: how it stands, null where it doesn't answer, and what is wrong with it, worst first."""

    source: str
    overview: OverviewShape | None
    concerns: list[ConcernShape]


class OverviewsShape(TypedDict):
    """The sources that were asked for."""

    sources: list[SourceOverviewShape]


def overviews_shape(found: Sequence[SourceOverview]) -> OverviewsShape:
    """Render how sources stand."""
    return OverviewsShape(
        sources=[
            SourceOverviewShape(
                source=each.source,
                overview=None if each.overview is None else _overview(each.overview),
                concerns=[_concern(concern) for concern in each.concerns],
            )
            for each in found
        ]
    )


def _overview(found: Overview) -> OverviewShape:
    seen = found.observed
    return OverviewShape(
        observed_at=seen.at.isoformat(),
        just_now=found.just_now,
        age_seconds=round(found.age.total_seconds(), 3),
        stuck_jobs=seen.stuck_jobs,
        stuck=[{"queue": queue, "reason": reason.value, "jobs": jobs} for (queue, reason), jobs in seen.stuck.items()],
        open_jobs=[{"queue": queue, "state": state.value, "jobs": n} for (queue, state), n in seen.open_jobs.items()],
        undecided_jobs=seen.undecided,
        counts_exact=seen.exact,
        oldest_queued_seconds=seconds(seen.oldest_queued),
        oldest_running_seconds=seconds(seen.oldest_running),
        late_finishes=seen.late_finishes,
        unmapped_words=list(found.unmapped),
        brake=None if found.brake is None else brake_shape(found.brake),
        series=[_span(each) for each in found.spans],
    )


def _span(span: Span) -> SpanShape:
    return SpanShape(
        begins_at=span.begins_at.isoformat(),
        ends_at=span.ends_at.isoformat(),
        recovered={action.value: span.recovered.get(action, 0) for action in CHANGES},
        late_finishes=span.late_finishes,
    )


def _concern(concern: Concern) -> ConcernShape:
    return ConcernShape(
        matter=concern.matter.value,
        jobs=concern.jobs,
        reason=None if concern.reason is None else concern.reason.value,
        queues=[{"queue": queue, "jobs": jobs} for queue, jobs in concern.queues],
        detail=concern.said if concern.trouble is None else concern.trouble.value,
    )
