"""One pass over a source: find the suspects, say why, decide, recover, record.

Guarantee: a job that changed after it was looked at is left alone, and no job is changed unrecorded; both
hold because the source carries out each batch as one compare-and-set transaction together with its records.
Known weakness: where age is the only witness, a healthy job that is silent for longer than its threshold is
recovered, as the contract says; give such kinds a longer threshold or a heartbeat.
"""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from unstick.domain.audit import AuditOutcome
from unstick.domain.brake import Brake
from unstick.domain.errors import InvalidRequestError
from unstick.domain.events import SweepFailed, Swept, Trigger
from unstick.domain.filter import StuckFilter
from unstick.domain.job import JobState
from unstick.domain.plan import Plan
from unstick.domain.policy import Ruling, rule
from unstick.domain.recovery import Action, Outcome, Recovery, Tally
from unstick.domain.suspect import Look
from unstick.pipeline.aftermath import FollowUp, follow_up_after
from unstick.pipeline.braking import allow, begin_pass, end_pass
from unstick.pipeline.charges import Charge, charge_of, count_as, count_left, end_of_graces, heed_looks
from unstick.pipeline.course import Course, Leads, Operation, Progress, ahead, carry_out, meant, result_of, tell
from unstick.pipeline.emitting import emit
from unstick.pipeline.filtering import narrow
from unstick.pipeline.judging import asks_witnesses
from unstick.pipeline.looking import Scope, take_look, take_scopes
from unstick.pipeline.observing import held_by
from unstick.pipeline.planning import Draft, begin_plan
from unstick.pipeline.rescue import Census, Decided, decide_page, foresee, rescue
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.snoozing import left_alone
from unstick.pipeline.watched import Watched
from unstick.ports import JobSource

_log = logging.getLogger("unstick")

CLEANUP_CALL = "jobs.cleanup"
"""What a sweep is called in the audit log, whoever asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOrder:
    """Who asks for a sweep, and with what; what is None comes from the policy."""

    actor: str
    role: str | None = None
    queued_after: timedelta | None = None
    action: Action | None = None
    dry_run: bool = False
    unattended: bool = False
    """Nobody watches it: the brake, the grace after a gap and what is left to a person hold it back."""
    plan: bool = False
    """Keep what a dry run finds, so that exactly that can be done later."""
    only: StuckFilter | None = None
    """Plan for these stuck jobs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep did, or with `dry_run` would do; `operation_id` is its entry in the audit log.

    It has none where nothing was to be done: a dry run, one that the brake held, one that nobody watches and nothing
    is stuck for.
    """

    look: Look
    action: Action
    dry_run: bool
    tally: Tally
    operation_id: int | None
    failures: tuple[Recovery, ...] = ()
    """The first `MAX_FAILURES` jobs that couldn't be read or changed, each with the reason; the tally counts all."""
    brake: Brake | None = None
    """What held an unattended sweep, or stopped it on its way."""
    grace_until: datetime | None = None
    """Until when unattended sweeps leave some jobs alone, for the watch over them or their database was away."""
    follow_up: FollowUp | None = None
    """What became of jobs recovered before; None where nothing was looked up."""
    plan: Plan | None = None
    """What a dry run has kept, or what was applied."""


async def sweep(
    watched: Watched, order: SweepOrder, progress: Progress | None = None, *, leads: Leads | None = None
) -> SweepReport:
    """Look at a source once and recover what is stuck; where `leads` is given, only as long as that says yes.

    Raises:
        InvalidRequestError: the source can't do what is asked; nothing was changed.
        RecoveryStoppedError: a batch failed and was rolled back whole, or this process leads the source no more; it
            tells how many jobs of earlier batches stay recovered.
    """
    begun = time.monotonic()
    try:
        report = await _sweep(watched, order, progress, leads)
    except Exception as error:
        if not order.dry_run:
            await _tell_of_failure(watched, order, error, timedelta(seconds=time.monotonic() - begun))
        raise
    if not order.dry_run:
        await emit(watched, swept(watched, order, report, timedelta(seconds=time.monotonic() - begun)))
        if order.unattended:
            await _note_swept(watched)
    return report


async def _note_swept(watched: Watched) -> None:
    """Keep for all replicas that the source was swept; a sweep that was done is done, though that can't be kept."""
    if watched.watches is None:
        return
    try:
        await watched.watches.note_swept(watched.source.name)
    except Exception as error:  # noqa: BLE001 - whatever it is, the sweep was done
        _log.warning("It could not be kept that source %r was swept: %s", watched.source.name, error)


async def _tell_of_failure(watched: Watched, order: SweepOrder, error: Exception, took: timedelta) -> None:
    name = watched.source.name
    event = SweepFailed(source=name, took=took, trigger=trigger_of(order), actor=order.actor, problem=str(error))
    await emit(watched, event)
    if order.unattended:
        await note_problem(watched, str(error))


async def note_problem(watched: Watched, problem: str) -> None:
    """Keep for all replicas why nobody looked at a source or swept it, where that can be kept."""
    if watched.watches is None:
        return
    try:
        await watched.watches.note_problem(watched.source.name, problem)
    except Exception:  # noqa: BLE001 - the trouble itself was told
        _log.debug("Nor could it be kept why source %r has trouble", watched.source.name, exc_info=True)


def trigger_of(order: SweepOrder) -> Trigger:
    """Tell who has a source swept."""
    return Trigger.UNATTENDED if order.unattended else Trigger.REQUESTED


def swept(watched: Watched, order: SweepOrder, report: SweepReport, took: timedelta) -> Swept:
    """Return what listeners are told of a sweep."""
    return Swept(
        source=watched.source.name,
        at=report.look.taken_at,
        took=took,
        trigger=trigger_of(order),
        actor=order.actor,
        action=report.action,
        tally=report.tally,
        operation_id=report.operation_id,
        held=held_by(report.brake),
        late_finishes=0 if report.follow_up is None else report.follow_up.late,
    )


async def _sweep(watched: Watched, order: SweepOrder, progress: Progress | None, leads: Leads | None) -> SweepReport:
    if order.unattended and order.dry_run:
        raise InvalidRequestError("A dry run has somebody who reads it: leave out either dry_run or unattended.")
    if order.plan and not order.dry_run:
        raise InvalidRequestError("A plan is made by a dry run: ask for dry_run, too, or leave out plan.")
    if order.only is not None and (not order.plan or order.only.text is not None):
        raise InvalidRequestError("Only a plan can be of some stuck jobs alone, and of those that contain no text.")
    look = await take_look(watched, order.queued_after)
    this = await begin_pass(watched, look) if order.unattended else None
    scopes = await take_scopes(watched, look)
    if order.only is not None:
        scopes = await narrow(watched, scopes, order.only)
    action = order.action or watched.policy.action_for(watched.source.name)
    charges = [await heed_looks(watched, charge_of(scope, asked=order.action, this=this), this) for scope in scopes]
    for asked in {action, *(charge.action for charge in charges)}:
        refuse_what_cannot_be_done(watched.source, asked)
    if order.dry_run:
        draft = await begin_plan(watched, order.actor, look, action, charges) if order.plan else None
        tally = await _foresee(watched, charges, progress, draft, order.only)
        plan = None if draft is None else await draft.finish()
        return SweepReport(look=look, action=action, dry_run=True, tally=tally, operation_id=None, plan=plan)
    operation = _operation(watched, order, look, action)
    await settle_intents(watched)
    allowed = await allow(watched, _acted_on(charges)) if order.unattended else None
    report = SweepReport(
        look=look,
        action=action,
        dry_run=False,
        tally=Tally(counts={}),
        operation_id=None,
    )
    if allowed is not None and allowed.brake is not None:
        tally = await _held(operation, charges, allowed.brake)
        return replace(report, tally=tally, grace_until=end_of_graces(charges, tally), brake=allowed.brake)
    if allowed is not None and not allowed.suspects:
        tally = await _left(watched, charges)
        ended, found = await end_pass(watched, allowed, 0), await follow_up_after(watched, None, order.actor)
        grace = end_of_graces(charges, tally)
        return replace(report, tally=tally, grace_until=grace, brake=ended, follow_up=found)
    operation_id = await watched.ledger.append(operation.entry(AuditOutcome.STARTED))
    course = Course(
        operation=operation,
        operation_id=operation_id,
        progress=progress,
        most=None if allowed is None else allowed.most,
        leads=leads,
    )
    await carry_out(course, _work(course, charges))
    tally = Tally(counts=dict(course.census))
    return replace(
        report,
        tally=tally,
        grace_until=end_of_graces(charges, tally),
        operation_id=operation_id,
        failures=tuple(course.failures),
        brake=None if allowed is None else await end_pass(watched, allowed, course.recovered),
        follow_up=await follow_up_after(watched, operation_id, order.actor),
    )


def refuse_what_cannot_be_done(source: JobSource, action: Action) -> None:
    """Refuse what a source can't do. A retry that leaves poison is `mark_failed` in the end, so it needs both."""
    able = source.capabilities
    if able.read_only is not None:
        raise InvalidRequestError(f"Source {source.name!r} is only read: {able.read_only}")
    if not able.mark_failed or (action is Action.RETRY and not able.retry):
        lacking = "retry" if able.mark_failed else "mark_failed"
        raise InvalidRequestError(
            f"Source {source.name!r} can't {lacking} its jobs: its mapping has no word for "
            f"{'queued' if able.mark_failed else 'failed'} jobs under `states`, or no time they would wait from."
        )


def _operation(watched: Watched, order: SweepOrder, look: Look, action: Action) -> Operation:
    return Operation(
        watched=watched,
        actor=order.actor,
        role=order.role,
        call=CLEANUP_CALL,
        what=f"The sweep of source {watched.source.name!r}",
        parameters={
            "source": watched.source.name,
            "action": action.value,
            "queued_after_seconds": look.queued_after.total_seconds(),
            "running_after_seconds": look.running_after.total_seconds(),
            **({"unattended": True} if order.unattended else {}),
        },
    )


def _acted_on(charges: Sequence[Charge]) -> list[Scope]:
    return [replace(charge.scope, look=charge.acted_on) for charge in charges if charge.acted_on is not None]


async def _foresee(
    watched: Watched,
    charges: Sequence[Charge],
    progress: Progress | None,
    draft: Draft | None,
    only: StuckFilter | None,
) -> Tally:
    census: Census = Counter()
    for scope, charge in enumerate(charges):
        census += await count_left(watched, charge)
        async for each in _decided(watched, charge):
            decided = each if only is None else _meant(each, only)
            census += foresee(decided)
            if draft is not None:
                await draft.add(scope, decided)
            tell(progress, census)
    return Tally(counts=dict(census))


def _meant(decided: Decided, only: StuckFilter) -> Decided:
    meant = tuple(each for each in decided.decisions if only.reason in (None, each.reason))
    return replace(decided, decisions=meant)


async def _left(watched: Watched, charges: Sequence[Charge]) -> Tally:
    """Count what is left as it is: of a sweep with nothing to do, nothing is recorded."""
    census: Census = Counter()
    for charge in charges:
        census += await count_left(watched, charge)
    return Tally(counts=dict(census))


async def _held(operation: Operation, charges: Sequence[Charge], brake: Brake) -> Tally:
    """Record that a brake held a sweep, and return what it was held from."""
    census: Census = Counter()
    for charge in charges:
        census += await count_left(operation.watched, charge)
        if charge.acted_on is not None:
            census += await count_as(operation.watched, charge, charge.acted_on, Outcome.BRAKED)
    result = result_of(census) | {"cause": brake.cause}
    await operation.watched.ledger.append(operation.entry(AuditOutcome.REFUSED, result=result))
    return Tally(counts=dict(census))


async def _work(course: Course, charges: Sequence[Charge]) -> None:
    for charge in charges:
        if left := await count_left(course.operation.watched, charge):
            course.came_to(left)
        if await _rule(course, charge):
            await _look_at_each(course, charge)
        if course.is_over:
            return


async def _rule(course: Course, charge: Charge) -> bool:
    """Recover what needs no looking at one by one, and tell whether anything is left."""
    look, left, watched = charge.acted_on, False, course.operation.watched
    if look is None:
        return False
    for state in look.states:
        ruling = _ruling(watched, charge, look, state)
        left |= ruling is None or await _rule_state(course, ruling, look)
        if course.is_over:
            return False
    return left


async def _rule_state(course: Course, ruling: Ruling, look: Look) -> bool:
    """Apply a ruling, begun anew with another look where a person has jobs left alone meanwhile."""
    watched, left = course.operation.watched, False
    while True:
        look = replace(look, left_alone=look.left_alone | await left_alone(watched, look.taken_at))
        async for ruled in watched.source.recover_by_rule(ruling, look, course.operation_id):
            course.came_to({(ruling.state, ruling.action, ruling.reason, Outcome.APPLIED): ruled.recovered})
            left |= ruled.left
            if course.is_over:
                return left
            if not await left_alone(watched, look.taken_at) <= look.left_alone:
                break
        else:
            return left


def _ruling(watched: Watched, charge: Charge, look: Look, state: JobState) -> Ruling | None:
    asks = state is JobState.RUNNING and asks_witnesses(watched, charge.scope)
    if asks or not watched.source.capabilities.rulings:
        return None
    return rule(state, look, charge.scope.policy, charge.action, charge.scope.waiting)


async def _look_at_each(course: Course, charge: Charge) -> None:
    """Look at every suspect there is, decide on it, and recover it by compare-and-set."""
    watched, look = course.operation.watched, charge.scope.look
    pages = _decided(watched, charge)
    async for decided in ahead(pages) if watched.source.capabilities.reads_beside_writes else pages:
        rescued = await rescue(watched, await meant(course, decided, look), look, course.operation_id)
        course.came_to(rescued.census, rescued.failures)
        if course.is_over:
            return


async def _decided(watched: Watched, charge: Charge) -> AsyncIterator[Decided]:
    look = charge.acted_on
    if look is None:
        return
    async for page in watched.source.suspects(look):
        yield await decide_page(watched, page, charge.scope, charge.action)
