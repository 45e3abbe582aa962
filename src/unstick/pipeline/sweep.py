"""One pass over a source: find the suspects, say why, decide, recover, record.

Guarantee: a job that changed after it was looked at is left alone, and no job is changed unrecorded; both
hold because the source carries out each batch as one compare-and-set transaction together with its records.
Known weakness: where age is the only witness, a healthy job that is silent for longer than its threshold is
recovered, as the contract says; give such kinds a longer threshold or a heartbeat.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.brake import Brake
from unstick.domain.errors import InvalidRequestError, RecoveryStoppedError
from unstick.domain.job import JobState
from unstick.domain.policy import Ruling, rule
from unstick.domain.recovery import Action, Outcome, Recovery, Tally
from unstick.domain.suspect import Look
from unstick.pipeline.aftermath import FollowUp, follow_up_after
from unstick.pipeline.braking import allow, begin_pass, end_pass
from unstick.pipeline.charges import Charge, charge_of, count_as, count_left
from unstick.pipeline.judging import asks_witnesses
from unstick.pipeline.looking import Scope, take_look, take_scopes
from unstick.pipeline.rescue import Census, CensusKey, Decided, decide_page, foresee, rescue
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.snoozing import left_alone
from unstick.pipeline.watched import Watched
from unstick.ports import JobSource, Ledger

CLEANUP_CALL = "jobs.cleanup"
"""What a sweep is called in the audit log, whoever asked for it."""

Progress = Callable[[int], None]
"""Told the number of jobs looked at so far."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep did, or with `dry_run` would do; `operation_id` is its entry in the audit log."""

    look: Look
    action: Action
    dry_run: bool
    tally: Tally
    operation_id: int | None
    failures: tuple[Recovery, ...] = ()
    """The first `MAX_FAILURES` jobs that couldn't be read or changed, each with the reason; the tally counts all."""
    brake: Brake | None = None
    """What held an unattended sweep, or stopped it on its way."""
    follow_up: FollowUp | None = None
    """What became of jobs recovered before; None where nothing was looked up."""


MAX_FAILURES = 100
_MOMENT_SECONDS = 2
_Ending = TypeVar("_Ending")


async def sweep(watched: Watched, order: SweepOrder, progress: Progress | None = None) -> SweepReport:
    """Look at a source once and recover what is stuck.

    Raises:
        InvalidRequestError: the source can't do what is asked; nothing was changed.
        RecoveryStoppedError: a batch failed and was rolled back whole; it tells how many jobs of earlier
            batches stay recovered.
    """
    if order.unattended and order.dry_run:
        raise InvalidRequestError("A dry run has somebody who reads it: leave out either dry_run or unattended.")
    look = await take_look(watched, order.queued_after)
    this = await begin_pass(watched, look) if order.unattended else None
    scopes = await take_scopes(watched, look)
    action = order.action or watched.policy.action
    charges = [charge_of(scope, asked=order.action, this=this) for scope in scopes]
    for asked in {action, *(charge.action for charge in charges)}:
        refuse_what_cannot_be_done(watched.source, asked)
    if order.dry_run:
        tally = await _foresee(watched, charges, progress)
        return SweepReport(look=look, action=action, dry_run=True, tally=tally, operation_id=None)
    operation = _Operation(watched=watched, order=order, look=look, action=action, charges=charges)
    await settle_intents(watched)
    allowed = await allow(watched, operation.acted_on) if order.unattended else None
    if allowed is not None and allowed.brake is not None:
        return await _held(operation, allowed.brake)
    operation_id = await watched.ledger.append(operation.entry(AuditOutcome.STARTED))
    course = _Course(
        operation=operation,
        operation_id=operation_id,
        progress=progress,
        most=None if allowed is None else allowed.most,
    )
    await _carry_out(course)
    return SweepReport(
        look=look,
        action=action,
        dry_run=False,
        tally=Tally(counts=dict(course.census)),
        operation_id=operation_id,
        failures=tuple(course.failures),
        brake=None if allowed is None else await end_pass(watched, allowed, course.recovered),
        follow_up=await follow_up_after(watched, operation_id, order.actor),
    )


def refuse_what_cannot_be_done(source: JobSource, action: Action) -> None:
    """Refuse what a source can't do. A retry that leaves poison is `mark_failed` in the end, so it needs both."""
    able = source.capabilities
    if not able.mark_failed or (action is Action.RETRY and not able.retry):
        lacking = "retry" if able.mark_failed else "mark_failed"
        raise InvalidRequestError(
            f"Source {source.name!r} can't {lacking} its jobs: its mapping has no word for "
            f"{'queued' if able.mark_failed else 'failed'} jobs under `states`, or no time they would wait from."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    watched: Watched
    order: SweepOrder
    look: Look
    action: Action
    charges: Sequence[Charge]

    @property
    def acted_on(self) -> list[Scope]:
        """What it acts on."""
        return [replace(charge.scope, look=charge.acted_on) for charge in self.charges if charge.acted_on is not None]

    def entry(
        self, outcome: AuditOutcome, operation_id: int | None = None, result: Mapping[str, object] | None = None
    ) -> AuditEntry:
        return AuditEntry(
            actor=self.order.actor,
            role=self.order.role,
            call=CLEANUP_CALL,
            outcome=outcome,
            parameters={
                "source": self.watched.source.name,
                "action": self.action.value,
                "queued_after_seconds": self.look.queued_after.total_seconds(),
                "running_after_seconds": self.look.running_after.total_seconds(),
                **({"unattended": True} if self.order.unattended else {}),
            },
            result=result or {},
            operation_id=operation_id,
        )


async def _foresee(watched: Watched, charges: Sequence[Charge], progress: Progress | None) -> Tally:
    census: Census = Counter()
    for charge in charges:
        census += await count_left(watched, charge)
        async for decided in _decided(watched, charge):
            census += foresee(decided)
            _tell(progress, census)
    return Tally(counts=dict(census))


async def _held(operation: _Operation, brake: Brake) -> SweepReport:
    """Record that a brake held a sweep, and report what it was held from."""
    census: Census = Counter()
    for charge in operation.charges:
        census += await count_left(operation.watched, charge)
        if charge.acted_on is not None:
            census += await count_as(operation.watched, charge, charge.acted_on, Outcome.BRAKED)
    result = _result(census) | {"cause": brake.cause}
    await operation.watched.ledger.append(operation.entry(AuditOutcome.REFUSED, result=result))
    return SweepReport(
        look=operation.look,
        action=operation.action,
        dry_run=False,
        tally=Tally(counts=dict(census)),
        operation_id=None,
        brake=brake,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """How far an operation has come."""

    operation: _Operation
    operation_id: int
    progress: Progress | None
    census: Census = field(default_factory=Counter)
    failures: list[Recovery] = field(default_factory=list)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    most: int | None = None
    """How many it may recover; more are a mass event that began after they were counted."""

    @property
    def is_over(self) -> bool:
        """Tell whether it must not go on."""
        return self.interrupted.is_set() or (self.most is not None and self.recovered > self.most)

    @property
    def recovered(self) -> int:
        return Tally(counts=self.census).of(outcome=Outcome.APPLIED)

    @property
    def said(self) -> str:
        return (
            f"{self.recovered} job(s) recovered before it stay recovered and are in the audit log as operation "
            f"{self.operation_id}."
        )

    def came_to(self, counts: Mapping[CensusKey, int], failures: Sequence[Recovery] = ()) -> None:
        self.census.update(counts)
        self.failures.extend(failures[: MAX_FAILURES - len(self.failures)])
        _tell(self.progress, self.census)

    def end(self, outcome: AuditOutcome, problem: str | None = None) -> AuditEntry:
        result = _result(self.census) | ({} if problem is None else {"problem": problem})
        return self.operation.entry(outcome, self.operation_id, result)


async def _carry_out(course: _Course) -> None:
    """Do the work and record its end, however often somebody interrupts it meanwhile."""
    work = asyncio.ensure_future(_work(course))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await surely(_interrupt(course, work))
        raise
    except Exception as error:
        raise await surely(_stopped(course, error)) from error
    await surely(_end(course))


async def _end(course: _Course) -> None:
    try:
        await course.operation.watched.ledger.append(course.end(AuditOutcome.DONE))
    except Exception as error:
        name = course.operation.watched.source.name
        raise RecoveryStoppedError(
            f"The sweep of source {name!r} was done, but its end could not be recorded: {error} {course.said}",
            recovered=course.recovered,
        ) from error


async def _interrupt(course: _Course, work: asyncio.Future[None]) -> None:
    """Give the batch under way a moment to end and be counted, and record the interruption."""
    course.interrupted.set()
    await asyncio.wait([work], timeout=_MOMENT_SECONDS)
    work.cancel()
    await asyncio.wait([work])
    failure = None if work.cancelled() else work.exception()
    problem = "interrupted" if failure is None else f"interrupted, after this: {failure}"
    await record_failure(course.operation.watched.ledger, course.end(AuditOutcome.FAILED, problem))


async def _stopped(course: _Course, error: Exception) -> RecoveryStoppedError:
    watched = course.operation.watched
    unrecorded = await record_failure(watched.ledger, course.end(AuditOutcome.FAILED, str(error)))
    return RecoveryStoppedError(
        f"The sweep of source {watched.source.name!r} stopped: {error} {what_it_hit(watched.source)}; "
        f"{course.said}{unrecorded}",
        recovered=course.recovered,
    )


async def surely(ending: Coroutine[object, object, _Ending]) -> _Ending:
    """Wait until an end is recorded; a cancellation, be it the tenth, doesn't cut it off and is passed on after."""
    task, cancelled = asyncio.ensure_future(ending), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


async def _work(course: _Course) -> None:
    for charge in course.operation.charges:
        if left := await count_left(course.operation.watched, charge):
            course.came_to(left)
        if await _rule(course, charge):
            await _look_at_each(course, charge)
        if course.is_over:
            return


def what_it_hit(source: JobSource) -> str:
    """Say what becomes of a batch that an error stopped."""
    if source.capabilities.records:
        return "What was under way was rolled back"
    return "What was under way is recorded as intended, and a later sweep finds out what became of it"


async def record_failure(ledger: Ledger, entry: AuditEntry) -> str:
    """Record how an operation failed; where even that fails, return the sentence that says so."""
    try:
        await ledger.append(entry)
    except Exception as error:  # noqa: BLE001 - the first error matters more and is raised by the caller
        return f" Its end could not be recorded: {error}"
    return ""


async def _rule(course: _Course, charge: Charge) -> bool:
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


async def _rule_state(course: _Course, ruling: Ruling, look: Look) -> bool:
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


async def _look_at_each(course: _Course, charge: Charge) -> None:
    """Look at every suspect there is, decide on it, and recover it by compare-and-set."""
    watched, look = course.operation.watched, charge.scope.look
    pages = _decided(watched, charge)
    async for decided in _ahead(pages) if watched.source.capabilities.reads_beside_writes else pages:
        meant = await _meant(course, decided)
        rescued = await rescue(watched, meant, look, course.operation_id)
        course.came_to(rescued.census, rescued.failures)
        if course.is_over:
            return


async def _meant(course: _Course, decided: Decided) -> Decided:
    """Leave out decisions on jobs that a person has left alone meanwhile."""
    look = course.operation.look
    alone = await left_alone(course.operation.watched, look.taken_at) - look.left_alone
    if not alone:
        return decided
    left = [decision for decision in decided.decisions if decision.suspect.job_id in alone]
    course.came_to(Counter((each.suspect.state, Action.LEAVE, each.reason, Outcome.LEFT) for each in left))
    return replace(decided, decisions=tuple(each for each in decided.decisions if each.suspect.job_id not in alone))


async def _decided(watched: Watched, charge: Charge) -> AsyncIterator[Decided]:
    look = charge.acted_on
    if look is None:
        return
    async for page in watched.source.suspects(look):
        yield await decide_page(watched, page, charge.scope, charge.action)


async def _ahead(pages: AsyncIterator[Decided]) -> AsyncIterator[Decided]:
    """Yield pages while the next one is already being read and decided."""
    upcoming = asyncio.ensure_future(anext(pages, None))
    try:
        while (page := await upcoming) is not None:
            upcoming = asyncio.ensure_future(anext(pages, None))
            yield page
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)


def _tell(progress: Progress | None, census: Census) -> None:
    if progress is not None:
        progress(census.total())


def _result(census: Census) -> dict[str, object]:
    tally = Tally(counts=census)
    return {outcome.value: tally.of(outcome=outcome) for outcome in Outcome}
