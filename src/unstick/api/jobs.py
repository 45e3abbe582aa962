"""`/jobs`: what is stuck, and the cleanup."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, params
from pydantic import Field, TypeAdapter

from unstick.api.call import Call, CurrentCall
from unstick.api.parameters import (
    ActionWord,
    Limit,
    SourceQuery,
    ThresholdMinutes,
    TrueOrFalse,
    Word,
    no_body,
    no_repeats,
)
from unstick.domain.access import Role
from unstick.pipeline.report import DEFAULT_LIMIT, report_stuck
from unstick.pipeline.shapes import CleanupShape, StuckShape, cleanup_shape, stuck_shape
from unstick.pipeline.sweep import CLEANUP_CALL, SweepOrder, sweep

_STUCK = TypeAdapter(StuckShape)


class _ThresholdQuery(SourceQuery):
    threshold_minutes: ThresholdMinutes = Field(
        default=None, description="How long a job may be queued; left out, as configured."
    )

    @property
    def queued_after(self) -> timedelta | None:
        return None if self.threshold_minutes is None else timedelta(minutes=self.threshold_minutes)


class StuckQuery(_ThresholdQuery):
    """What `GET /jobs/stuck` takes."""

    limit: Limit = Field(
        default=DEFAULT_LIMIT,
        description="The most jobs in each list; the counts are of all.",
    )
    cursor: Word = Field(default=None, description="`next_cursor` of the page before.")


class CleanupQuery(_ThresholdQuery):
    """What `POST /jobs/cleanup` takes."""

    action: ActionWord = Field(default=None, description="What is done to each job; left out, as configured.")
    dry_run: TrueOrFalse = Field(default=False, description="Count what would be cleaned, and change nothing.")
    plan: TrueOrFalse = Field(
        default=False, description="Only of a dry run: keep what would be cleaned, as a plan that can be applied later."
    )


async def find_stuck_jobs(call: CurrentCall, query: Annotated[StuckQuery, Query()]) -> Response:
    """Tell which jobs are stuck and why: exact counts, and a bounded list a state, oldest first."""

    async def find(_: int) -> bytes:
        async with call.open(query.source) as watched:
            report = await report_stuck(
                watched, queued_after=query.queued_after, limit=query.limit, cursor=query.cursor
            )
        return _STUCK.dump_json(stuck_shape(report))

    return Response(await call.together.get(query, find), media_type="application/json")


async def clean_up_stuck_jobs(call: CurrentCall, query: Annotated[CleanupQuery, Query()]) -> CleanupShape:
    """Recover every stuck job; one that shows life meanwhile is left alone."""
    async with call.open(query.source) as watched:
        call.swept = not query.dry_run
        report = await sweep(watched, _order(call, query))
    shape = cleanup_shape(report)
    if "would_clean" in shape:
        call.result["would_clean"] = shape["would_clean"]
    if "plan" in shape:
        call.result["plan"] = shape["plan"]["id"]
    return shape


def add_jobs(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    router.add_api_route(
        "/jobs/stuck",
        find_stuck_jobs,
        response_model=StuckShape,
        name="jobs.stuck",
        operation_id="find_stuck_jobs",
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
    router.add_api_route(
        "/jobs/cleanup",
        clean_up_stuck_jobs,
        methods=["POST"],
        name=CLEANUP_CALL,
        operation_id="clean_up_stuck_jobs",
        dependencies=[needs(Role.OPERATOR), Depends(no_repeats), Depends(no_body)],
    )


def _order(call: Call, query: CleanupQuery) -> SweepOrder:
    return SweepOrder(
        actor=call.actor,
        role=call.role,
        queued_after=query.queued_after,
        action=query.action,
        dry_run=query.dry_run,
        plan=query.plan,
    )
