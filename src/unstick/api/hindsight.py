"""What hindsight tells: which recoveries were wrong, what thresholds would fit, and what one would have done."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, params
from pydantic import Field

from unstick.api.call import CurrentCall
from unstick.api.parameters import Limit, SourceQuery, no_repeats
from unstick.domain.access import Role
from unstick.pipeline.hindsight_shapes import LateFinishesShape, late_finishes_shape
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


def add_hindsight(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    router.add_api_route(
        "/late-finishes",
        late_finishes,
        name="late_finishes",
        operation_id="late_finishes",
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
