"""`/plans`: a cleanup as preview, confirmation and result. What is confirmed is the plan, job by job, and no more."""

from collections import Counter
from collections.abc import Callable

from fastapi import APIRouter, Response, params

from unstick.api.call import CurrentCall
from unstick.api.plans import PlanId
from unstick.console.forms import Form, read_form
from unstick.console.queries import PAGE, CleanupForm
from unstick.console.rendering import redirect, render
from unstick.domain.access import Role
from unstick.pipeline.applying import APPLY_CALL, ApplyOrder, apply_plan
from unstick.pipeline.plan_shapes import show_plan
from unstick.pipeline.report import MAX_LIMIT
from unstick.pipeline.sweep import CLEANUP_CALL, SweepOrder, sweep

_FACE = "console."


async def plan_cleanup(call: CurrentCall, source: str, form: Form) -> Response:
    """Plan the recovery of the stuck jobs that a form means, all of them and not those of a page; change nothing."""
    asked = read_form(form, CleanupForm)
    order = SweepOrder(
        actor=call.actor, role=call.role, action=asked.action, dry_run=True, plan=True, only=asked.wanted
    )
    async with call.open(source) as watched:
        report = await sweep(watched, order)
    if report.plan is None:
        raise RuntimeError("A sweep that was to keep a plan kept none.")
    call.result |= {"plan": report.plan.id, "would_clean": report.plan.jobs, "asked": asked.model_dump(mode="json")}
    return redirect(call.request, "console.plans.read", source=source, plan_id=report.plan.id)


async def show(call: CurrentCall, source: str, plan_id: PlanId) -> Response:
    """Show what a plan would do, or what became of it."""
    async with call.open(source) as watched:
        plan = await show_plan(watched, plan_id, limit=MAX_LIMIT)
        now, able = await watched.source.clock(), watched.source.capabilities
        brake = None if watched.brakes is None else await watched.brakes.find(source)
    return render(
        call.request,
        "plan.html",
        source=source,
        plan=plan,
        rows=plan["rows"][:PAGE],
        sampled=len(plan["rows"]),
        by_reason=Counter(each["reason"] for each in plan["rows"]).most_common(),
        by_action=Counter(each["action"] for each in plan["rows"]).most_common(),
        running=sum(each["state"] == "running" for each in plan["rows"]),
        able=able,
        now=now,
        brake=brake if brake is not None and brake.is_held else None,
    )


async def carry_out(call: CurrentCall, source: str, plan_id: PlanId) -> Response:
    """Do what a plan says, once; a job that isn't as the plan saw it is left alone."""
    async with call.open(source) as watched:
        call.swept = True
        report = await apply_plan(watched, ApplyOrder(plan_id=plan_id, actor=call.actor, role=call.role))
    return redirect(call.request, "console.operations.read", source=source, operation_id=report.operation_id)


def add_cleanup(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the pages to a router."""
    plan = "/plans/{source}/{plan_id}"
    router.add_api_route(
        "/plans/{source}",
        plan_cleanup,
        methods=["POST"],
        name=_FACE + CLEANUP_CALL,
        dependencies=[needs(Role.OPERATOR)],
    )
    router.add_api_route(plan, show, name="console.plans.read", dependencies=[needs(Role.VIEWER)])
    router.add_api_route(
        f"{plan}/apply", carry_out, methods=["POST"], name=_FACE + APPLY_CALL, dependencies=[needs(Role.OPERATOR)]
    )
