"""`/overview`: how sources stand, what is wrong with them, and what was done over the last day."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, params
from pydantic import Field

from unstick.api.call import CurrentCall
from unstick.api.parameters import SourceQuery, Word, no_repeats
from unstick.domain.access import Role
from unstick.domain.schedule import Timetable
from unstick.pipeline.overview import overviews
from unstick.pipeline.overview_shapes import OverviewsShape, overviews_shape


class OverviewQuery(SourceQuery):
    """What `GET /overview` takes."""

    source: Word = Field(default=None, description="Only this source; left out, all of them.")


def add_overview(router: APIRouter, needs: Callable[[Role], params.Depends], timetable: Timetable | None) -> None:
    """Add the call to a router; `timetable` says how often sources are to be observed and swept."""

    async def tell_overview(call: CurrentCall, query: Annotated[OverviewQuery, Query()]) -> OverviewsShape:
        """Tell how each source stands, what is wrong with it, worst first, and what was done, hour by hour."""
        sources = call.sources.all if query.source is None else {query.source: call.sources.named(query.source)}
        return overviews_shape(await overviews(sources, timetable))

    router.add_api_route(
        "/overview",
        tell_overview,
        name="overview",
        operation_id="tell_overview",
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
