"""`/stuck`: the stuck jobs that somebody asks for, in one list."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, params
from pydantic import Field, WithJsonSchema

from unstick.api.call import CurrentCall
from unstick.api.parameters import Limit, SourceQuery, StuckReason, ThresholdMinutes, Word, no_repeats
from unstick.domain.access import Role
from unstick.domain.filter import StuckFilter
from unstick.pipeline.listing import list_stuck
from unstick.pipeline.listing_shapes import StuckListShape, stuck_list_shape
from unstick.pipeline.report import DEFAULT_LIMIT


class FilterQuery(SourceQuery):
    """Which of the stuck jobs are meant; what is left out asks nothing."""

    queue: Word = Field(default=None, description="Only queues that this pattern names, such as `mail*`.")
    kind: Word = Field(default=None, description="Only kinds that this pattern names, such as `thesis.*`.")
    reason: StuckReason = Field(default=None, description="Only jobs that are stuck for this reason.")
    older_than_minutes: ThresholdMinutes = Field(
        default=None, description="Only jobs that have shown no sign of life for so long."
    )

    @property
    def older_than(self) -> timedelta | None:
        """The age that is asked for."""
        return None if self.older_than_minutes is None else timedelta(minutes=self.older_than_minutes)


class StuckListQuery(FilterQuery):
    """What `GET /stuck` takes."""

    text: Word = Field(
        default=None, description="Only jobs whose id, kind, queue or worker contains this, in whatever letter case."
    )
    sort: Annotated[Literal["oldest", "newest"], WithJsonSchema({"type": "string", "enum": ["oldest", "newest"]})] = (
        Field(default="oldest", description="Which last sign of life comes first.")
    )
    limit: Limit = Field(default=DEFAULT_LIMIT, description="The most jobs in the list.")
    cursor: Word = Field(default=None, description="`next_cursor` of the page before, of the same query.")

    @property
    def wanted(self) -> StuckFilter:
        """What a job must be."""
        return StuckFilter(
            queue=self.queue, kind=self.kind, reason=self.reason, older_than=self.older_than, text=self.text
        )


async def list_stuck_jobs(call: CurrentCall, query: Annotated[StuckListQuery, Query()]) -> StuckListShape:
    """List the stuck jobs that are asked for, each with why it is stuck, by their last signs of life."""
    newest_first = query.sort == "newest"
    async with call.open(query.source) as watched:
        listed = await list_stuck(
            watched, query.wanted, limit=query.limit, cursor=query.cursor, newest_first=newest_first
        )
    return stuck_list_shape(listed)


def add_listing(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the call to a router."""
    router.add_api_route(
        "/stuck",
        list_stuck_jobs,
        name="jobs.stuck",
        operation_id="list_stuck_jobs",
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
