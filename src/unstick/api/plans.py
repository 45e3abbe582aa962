"""`/plans`: the recovery of some of the stuck jobs, planned, read and applied; and what dry runs have planned."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, params
from pydantic import Field

from unstick.api.call import CurrentCall
from unstick.api.listing import FilterQuery
from unstick.api.parameters import ActionWord, Limit, SourceQuery, Word, no_body, no_repeats
from unstick.domain.access import Role
from unstick.domain.filter import StuckFilter
from unstick.pipeline.applying import APPLY_CALL, ApplyOrder, apply_plan
from unstick.pipeline.plan_shapes import PlanShape, show_plan
from unstick.pipeline.report import DEFAULT_LIMIT
from unstick.pipeline.shapes import CleanupShape, cleanup_shape
from unstick.pipeline.sweep import CLEANUP_CALL, SweepOrder, sweep

PlanId = Annotated[str, Path(description="What a dry run with `plan` answered.", pattern="^[0-9a-f]{32}$")]


class PlanQuery(SourceQuery):
    """What `GET /plans/{plan_id}` takes."""

    limit: Limit = Field(default=DEFAULT_LIMIT, description="The most jobs in `rows`; the count is exact.")
    cursor: Word = Field(default=None, description="`next_cursor` of the page before.")


class PlanCleanupQuery(FilterQuery):
    """What `POST /plans` takes."""

    action: ActionWord = Field(default=None, description="What is done to each job; left out, as configured.")

    @property
    def wanted(self) -> StuckFilter:
        """What a job must be."""
        return StuckFilter(queue=self.queue, kind=self.kind, reason=self.reason, older_than=self.older_than)


async def plan_cleanup(call: CurrentCall, query: Annotated[PlanCleanupQuery, Query()]) -> CleanupShape:
    """Plan the recovery of all stuck jobs that are meant, to be applied as it was found; change nothing."""
    order = SweepOrder(
        actor=call.actor, role=call.role, action=query.action, dry_run=True, plan=True, only=query.wanted
    )
    async with call.open(query.source) as watched:
        shape = cleanup_shape(await sweep(watched, order))
    call.result |= {"plan": shape["plan"]["id"], "would_clean": shape["would_clean"]}
    return shape


async def read_plan(call: CurrentCall, plan_id: PlanId, query: Annotated[PlanQuery, Query()]) -> PlanShape:
    """Tell what a plan saw of each job and would do to it, and what became of the plan."""
    async with call.open(query.source) as watched:
        return await show_plan(watched, plan_id, limit=query.limit, cursor=query.cursor)


async def carry_out_plan(call: CurrentCall, plan_id: PlanId, query: Annotated[SourceQuery, Query()]) -> CleanupShape:
    """Do what a plan says and no more, once; a job that isn't as the plan saw it is left alone."""
    async with call.open(query.source) as watched:
        call.swept = True
        report = await apply_plan(watched, ApplyOrder(plan_id=plan_id, actor=call.actor, role=call.role))
    return cleanup_shape(report)


def add_plans(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the calls to a router."""
    router.add_api_route(
        "/plans",
        plan_cleanup,
        methods=["POST"],
        name=CLEANUP_CALL,
        operation_id="plan_cleanup",
        dependencies=[needs(Role.OPERATOR), Depends(no_repeats), Depends(no_body)],
    )
    router.add_api_route(
        "/plans/{plan_id}",
        read_plan,
        name="plans.read",
        operation_id="read_plan",
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
    router.add_api_route(
        "/plans/{plan_id}/apply",
        carry_out_plan,
        methods=["POST"],
        name=APPLY_CALL,
        operation_id="apply_plan",
        dependencies=[needs(Role.OPERATOR), Depends(no_repeats), Depends(no_body)],
    )
