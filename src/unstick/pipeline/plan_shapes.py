"""A plan as every face shows it: its head, and its jobs in pages."""

import re
from typing import Literal

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.errors import InvalidRequestError
from unstick.domain.recovery import Decision
from unstick.pipeline.planning import find_plan, read_page, terms_of
from unstick.pipeline.report import DEFAULT_LIMIT, check_limit
from unstick.pipeline.shapes import PlanRef, minutes
from unstick.pipeline.watched import Watched


class PlannedJobShape(TypedDict):
    """What was seen of a job, and what is to be done to it."""

    id: int | str
    state: Literal["queued", "running"]
    since: str
    reason: str
    sentence: str
    action: Literal["mark_failed", "retry", "leave"]


class PlanShape(TypedDict):
    """A plan; `rows` are at most `limit` of its jobs."""

    plan: PlanRef
    source: str
    state: Literal["open", "applied", "expired"]
    made_by: str
    made_at: str
    applied_by: str | None
    applied_at: str | None
    operation_id: int | None
    action: Literal["mark_failed", "retry", "leave"]
    threshold_minutes: int | float
    running_threshold_minutes: int | float
    looked_at: str
    rows: list[PlannedJobShape]
    next_cursor: str | None


async def show_plan(
    watched: Watched, plan_id: str, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
) -> PlanShape:
    """Read a plan and some of its jobs.

    Raises:
        InvalidRequestError: the limit is out of range or the cursor isn't one of ours.
        UnknownPlanError: there is none of that id.
        PlanRefusedError: it was changed since it was made.
    """
    page, row = _place(cursor)
    check_limit(limit)
    plan = await find_plan(watched, plan_id)
    rows: list[PlannedJobShape] = []
    while page < plan.pages and len(rows) < limit:
        decisions = (await read_page(watched, plan, page)).decisions
        taken = decisions[row : row + limit - len(rows)]
        rows += [_row(each) for each in taken]
        row += len(taken)
        if row >= len(decisions):
            page, row = page + 1, 0
    terms = terms_of(plan)
    return PlanShape(
        plan={"id": plan.id, "expires_at": plan.expires_at.isoformat(), "jobs": plan.jobs},
        source=plan.source,
        state=plan.state.value,
        made_by=plan.made_by,
        made_at=plan.made_at.isoformat(),
        applied_by=plan.applied_by,
        applied_at=None if plan.applied_at is None else plan.applied_at.isoformat(),
        operation_id=plan.operation_id,
        action=terms.action.value,
        threshold_minutes=minutes(terms.look.queued_after),
        running_threshold_minutes=minutes(terms.look.running_after),
        looked_at=terms.look.taken_at.isoformat(),
        rows=rows,
        next_cursor=f"{page}.{row}" if page < plan.pages else None,
    )


def _place(cursor: str | None) -> tuple[int, int]:
    """Return the page and the row in it that a cursor names."""
    if cursor is None:
        return 0, 0
    said = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", cursor)
    if said is None:
        raise InvalidRequestError("cursor is not one this service gave out; leave it out to start anew.")
    return int(said[1]), int(said[2])


def _row(decision: Decision) -> PlannedJobShape:
    suspect = decision.suspect
    return PlannedJobShape(
        id=suspect.job_id,
        state="queued" if suspect.state == "queued" else "running",
        since=suspect.since.isoformat(),
        reason=decision.reason.value,
        sentence=decision.sentence,
        action=decision.action.value,
    )
