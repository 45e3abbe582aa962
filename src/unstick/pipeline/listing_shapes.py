"""What is answered about the stuck jobs that somebody asked for."""

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.pipeline.listing import StuckList
from unstick.pipeline.shapes import JobShape, job_shape, minutes


class JobClassShape(TypedDict):
    """The jobs of a kind and queue."""

    kind: str | None
    queue: str | None


class StuckListShape(TypedDict):
    """Some of the stuck jobs that were asked for, in one list by their last sign of life.

    `total` counts those among the stuck jobs that were looked through by now, `looked_through` of them. Where
    `total_exact` is false there may be more: whatever else there is comes by going on with `next_cursor`. `classes` are
    the kinds and queues of the jobs that were looked through, to choose from, a bounded number of them.
    """

    jobs: list[JobShape]
    total: int
    total_exact: bool
    looked_through: int
    next_cursor: str | None
    classes: list[JobClassShape]
    threshold_minutes: int | float
    running_threshold_minutes: int | float
    looked_at: str


def stuck_list_shape(listed: StuckList) -> StuckListShape:
    """Render a list of stuck jobs."""
    return StuckListShape(
        jobs=[job_shape(each.finding) for each in listed.jobs],
        total=listed.number,
        total_exact=listed.exact,
        looked_through=listed.looked_through,
        next_cursor=listed.next_cursor,
        classes=[{"kind": each.kind, "queue": each.queue} for each in listed.classes],
        threshold_minutes=minutes(listed.look.queued_after),
        running_threshold_minutes=minutes(listed.look.running_after),
        looked_at=listed.look.taken_at.isoformat(),
    )
