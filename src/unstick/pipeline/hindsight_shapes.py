"""What is answered about recoveries and thresholds in hindsight, the same by every face."""

from datetime import timedelta

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.aftermath import LateFinish
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
