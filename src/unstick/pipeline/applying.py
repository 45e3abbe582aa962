"""A plan applied: exactly its jobs, each only if it still is as the plan saw it.

Guarantee: a job that isn't in the plan is never touched. One that is, is written to only where its fence is as it was
seen and the plan's own look still accuses it, so that a beat of its worker since acquits it; where its queue has begun
to drain, a witness acquits it or a person wants it left alone, it is left, too. A plan is applied once: the claim of it
and the entry that begins the operation are one transaction.
Known weakness: who applied a plan and was cut off leaves the rest of it undone; a new plan has what is left.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from unstick.domain.audit import AuditOutcome
from unstick.domain.errors import PlanRefusedError, UnstickError
from unstick.domain.job import JobId, JobState
from unstick.domain.plan import Plan, PlannedScope, PlanState, Terms
from unstick.domain.recovery import Action, Decision, Outcome, Recovery, Tally
from unstick.domain.suspect import Look, Page
from unstick.domain.wording import Phrase, say_duration, say_instant
from unstick.pipeline.course import Course, Operation, Progress, ahead, carry_out, meant
from unstick.pipeline.emitting import emit
from unstick.pipeline.judging import judge
from unstick.pipeline.looking import Scope, take_look
from unstick.pipeline.planning import find_plan, kept_plans, pages_of, terms_of
from unstick.pipeline.rescue import Decided, rescue
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.sweep import SweepOrder, SweepReport, swept
from unstick.pipeline.watched import Watched

APPLY_CALL = "plans.apply"
"""What the application of a plan is called in the audit log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOrder:
    """Who applies which plan."""

    plan_id: str
    actor: str
    role: str | None = None


async def apply_plan(watched: Watched, order: ApplyOrder, progress: Progress | None = None) -> SweepReport:
    """Do what a plan says and no more. It isn't held by a brake: a person who has seen the plan has decided.

    Raises:
        UnknownPlanError: there is none of that id.
        PlanRefusedError: it was changed, expired or was applied already; nothing was changed.
        RecoveryStoppedError: a batch failed and was rolled back whole.
    """
    plan = await find_plan(watched, order.plan_id)
    async for _ in pages_of(watched, plan):
        pass  # all of it is found genuine before anything is done
    terms = terms_of(plan)
    if terms.mapping != kept_plans(watched).mapping:
        raise PlanRefusedError(
            Phrase("Plan %(plan)s was made by another mapping of the source: make a new one.", plan=plan.id)
        )
    await settle_intents(watched)
    now = await take_look(watched)
    draining = (await watched.source.flows(replace(now, queued_after=terms.look.queued_after))).draining()
    looks = [
        replace(scope.look, draining=draining, left_alone=scope.look.left_alone | now.left_alone)
        for scope in terms.scopes
    ]
    operation = _operation(watched, order, plan, terms)
    operation_id = await kept_plans(watched).plans.claim(plan, operation.entry(AuditOutcome.STARTED))
    if operation_id is None:
        raise await _refusal(watched, plan)
    course = Course(operation=operation, operation_id=operation_id, progress=progress)
    applying = _Applying(course=course, plan=plan, terms=terms, looks=looks, now=now)
    begun = time.monotonic()
    await carry_out(course, applying.work())
    report = SweepReport(
        look=replace(terms.look, taken_at=now.taken_at),
        action=terms.action,
        dry_run=False,
        tally=Tally(counts=dict(course.census)),
        operation_id=operation_id,
        failures=tuple(course.failures),
        plan=plan,
    )
    took = timedelta(seconds=time.monotonic() - begun)
    await emit(watched, swept(watched, SweepOrder(actor=order.actor, role=order.role), report, took))
    return report


def _operation(watched: Watched, order: ApplyOrder, plan: Plan, terms: Terms) -> Operation:
    return Operation(
        watched=watched,
        actor=order.actor,
        role=order.role,
        call=APPLY_CALL,
        what=f"The application of plan {plan.id}",
        parameters={
            "source": watched.source.name,
            "plan": plan.id,
            "action": terms.action.value,
            "jobs": plan.jobs,
            "queued_after_seconds": terms.look.queued_after.total_seconds(),
            "running_after_seconds": terms.look.running_after.total_seconds(),
        },
    )


async def _refusal(watched: Watched, plan: Plan) -> UnstickError:
    """Say why a plan couldn't be claimed."""
    plan = await find_plan(watched, plan.id)
    if plan.state is PlanState.APPLIED and plan.operation_id is not None and plan.applied_at is not None:
        said = f"Plan {plan.id} was applied by {plan.applied_by} at {say_instant(plan.applied_at)}"
        if await kept_plans(watched).plans.has_ended(plan.operation_id):
            return PlanRefusedError(f"{said}: the audit log has it as operation {plan.operation_id}.")
        return PlanRefusedError(
            f"{said} as operation {plan.operation_id}, whose end isn't recorded: it is under way, or was cut off. "
            "Make a new plan for what it left."
        )
    return PlanRefusedError(
        Phrase("Plan %(plan)s expired at %(at)s: make a new one.", plan=plan.id, at=plan.expires_at)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Applying:
    course: Course
    plan: Plan
    terms: Terms
    looks: list[Look]
    """At the jobs of each scope, as the plan looked, and with what is to be left alone by now."""
    now: Look

    async def work(self) -> None:
        course, watched = self.course, self.course.operation.watched
        pages = pages_of(watched, self.plan)
        async for page in ahead(pages) if watched.source.capabilities.reads_beside_writes else pages:
            planned, look = self.terms.scopes[page.scope], self.looks[page.scope]
            awake = await self._left_by(_snoozed(page.decisions, look), page.decisions)
            stuck = await self._left_by(await self._acquitted(awake, planned, look), awake)
            due = await self._left_by(await self._overdrawn(stuck, planned), stuck)
            decided = Decided(action=self.terms.action, decisions=due, unreadable=())
            rescued = await rescue(watched, await meant(course, decided, look), look, course.operation_id)
            course.came_to(rescued.census, rescued.failures)
            if course.is_over:
                return

    async def _left_by(self, why: Mapping[JobId, str], decisions: Sequence[Decision]) -> tuple[Decision, ...]:
        """Leave out, and record, decisions that something speaks against by now."""
        course, watched = self.course, self.course.operation.watched
        if not why:
            return tuple(decisions)
        left = [each for each in decisions if each.suspect.job_id in why]
        records = [_left(each, why[each.suspect.job_id]) for each in left]
        await watched.ledger.record(watched.source.name, course.operation_id, records)
        course.came_to(Counter((each.suspect.state, each.action, each.reason, Outcome.LEFT) for each in left))
        return tuple(each for each in decisions if each.suspect.job_id not in why)

    async def _acquitted(self, decisions: Sequence[Decision], planned: PlannedScope, look: Look) -> Mapping[JobId, str]:
        """Ask the witnesses of running jobs again, and return what they say of those that aren't stuck by now."""
        watched = self.course.operation.watched
        running = tuple(each.suspect for each in decisions if each.suspect.state is JobState.RUNNING)
        if not watched.witnesses:
            return {}
        scope = Scope(
            look=replace(look, taken_at=self.now.taken_at), policy=watched.policy, hung_after=planned.hung_after
        )
        judged = await judge(watched, Page(suspects=running), scope)
        said = {each.suspect.job_id: each.diagnosis.sentence for each in judged.spared}
        convicted = {each.suspect.job_id for each in judged.convicted}
        return {
            suspect.job_id: f"it is no longer stuck: {said.get(suspect.job_id, 'it makes progress')}"
            for suspect in running
            if suspect.job_id not in convicted
        }

    async def _overdrawn(self, decisions: Sequence[Decision], planned: PlannedScope) -> Mapping[JobId, str]:
        """Find retries of jobs whose budget was spent since: to fail them isn't what was planned."""
        retries = [each.suspect.job_id for each in decisions if each.action is Action.RETRY]
        watched, since = self.course.operation.watched, self.now.taken_at - planned.recovery_window
        spent = await watched.ledger.spent(watched.source.name, retries, since) if retries else {}
        return {
            job_id: f"it was recovered {spent[job_id]} times within {say_duration(planned.recovery_window)} by now, "
            "which is all that its budget allows"
            for job_id in retries
            if spent.get(job_id, 0) >= planned.max_recoveries
        }


def _snoozed(decisions: Sequence[Decision], look: Look) -> Mapping[JobId, str]:
    """Find jobs that a person has snoozed since the plan was made."""
    snoozed = (each.suspect.job_id for each in decisions if each.suspect.job_id in look.left_alone)
    return dict.fromkeys(snoozed, "it is snoozed by now")


def _left(decision: Decision, why: str) -> Recovery:
    return Recovery(
        job_id=decision.suspect.job_id,
        state=decision.suspect.state,
        action=decision.action,
        reason=decision.reason,
        outcome=Outcome.LEFT,
        detail=f"{why}; it was left alone",
    )
