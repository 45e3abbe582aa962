"""`/stats`: the platform's figures."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, params
from pydantic import TypeAdapter

from unstick.api.call import CurrentCall
from unstick.api.parameters import SourceQuery, no_repeats
from unstick.domain.access import Role
from unstick.pipeline.report import report_stats
from unstick.pipeline.shapes import StatsShape, stats_shape

_STATS = TypeAdapter(StatsShape)


async def platform_stats(call: CurrentCall, query: Annotated[SourceQuery, Query()]) -> Response:
    """Tell the platform's figures: usage over the newest jobs, open and stuck jobs exactly, our recoveries."""

    async def find(_: int) -> bytes:
        async with call.open(query.source) as watched:
            stats = await report_stats(watched)
        return _STATS.dump_json(stats_shape(stats))

    return Response(await call.together.get(query, find), media_type="application/json")


def add_stats(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the call to a router."""
    router.add_api_route(
        "/stats",
        platform_stats,
        response_model=StatsShape,
        name="stats",
        operation_id="platform_stats",
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
