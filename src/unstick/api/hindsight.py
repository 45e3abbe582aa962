"""What hindsight tells: which recoveries were wrong, what thresholds would fit, and what one would have done."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, params
from pydantic import Field

from unstick.api.call import CurrentCall
from unstick.api.parameters import Days, Limit, SourceQuery, ThresholdMinutes, Word, no_repeats
from unstick.domain.access import Role
from unstick.pipeline.hindsight_shapes import (
    LateFinishesShape,
    ReplayShape,
    SuggestionsShape,
    late_finishes_shape,
    replay_shape,
    suggestions_shape,
)
from unstick.pipeline.history import DEFAULT_DAYS, ReplayOrder, replay, report_suggestions
from unstick.pipeline.late import report_late
from unstick.pipeline.report import DEFAULT_LIMIT


class LateQuery(SourceQuery):
    """What `GET /late-finishes` takes."""

    limit: Limit = Field(default=DEFAULT_LIMIT, description="The most late finishes in the list.")


async def late_finishes(call: CurrentCall, query: Annotated[LateQuery, Query()]) -> LateFinishesShape:
    """Tell which recovered jobs finished after all: counts of the last day, and the newest by name."""
    async with call.open(query.source) as watched:
        report = await report_late(watched, query.limit)
    return late_finishes_shape(report)


class ReplayQuery(SourceQuery):
    """What `GET /replay` takes."""

    days: Days = Field(default=DEFAULT_DAYS, description="Jobs that ended within so many days are counted.")
    running_after_minutes: ThresholdMinutes = Field(
        default=None, description="How long a job may run; left out, as configured."
    )
    queued_after_minutes: ThresholdMinutes = Field(
        default=None, description="How long a job may wait; left out, waiting jobs are left alone."
    )
    kind: Word = Field(default=None, description="Only kinds that this pattern names, such as `thesis.*`.")


async def suggestions(call: CurrentCall, query: Annotated[SourceQuery, Query()]) -> SuggestionsShape:
    """Propose thresholds by how long jobs took and which were recovered wrongly, with the reasons in numbers."""
    async with call.open(query.source) as watched:
        report = await report_suggestions(watched)
    return suggestions_shape(report)


async def replayed(call: CurrentCall, query: Annotated[ReplayQuery, Query()]) -> ReplayShape:
    """Tell what a threshold would have done to the jobs that ended lately, and how many of those succeeded."""
    order = ReplayOrder(
        days=query.days,
        running_after=_minutes(query.running_after_minutes),
        queued_after=_minutes(query.queued_after_minutes),
        kind=query.kind,
    )
    async with call.open(query.source) as watched:
        report = await replay(watched, order)
    return replay_shape(report)


def _minutes(number: int | None) -> timedelta | None:
    return None if number is None else timedelta(minutes=number)


def add_hindsight(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    calls = (("/late-finishes", late_finishes), ("/suggestions", suggestions), ("/replay", replayed))
    for path, call in calls:
        name = path.strip("/").replace("-", "_")
        router.add_api_route(
            path, call, name=name, operation_id=name, dependencies=[needs(Role.VIEWER), Depends(no_repeats)]
        )
