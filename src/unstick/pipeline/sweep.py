"""One pass over a source: find the suspects, say why, decide, recover, record.

Guarantee: a job that changed after it was looked at is left alone, and no job is changed unrecorded; both
hold because the source carries out each batch as one compare-and-set transaction together with its records.
Known weakness: where age is the only witness, a healthy job that is silent for longer than its threshold is
recovered, as the contract says; give such kinds a longer threshold or a heartbeat.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import InvalidRequestError, RecoveryStoppedError
from unstick.domain.job import JobState
from unstick.domain.policy import Ruling, rule
from unstick.domain.recovery import Action, Outcome, Tally
from unstick.domain.suspect import ACCUSED_STATES, Look
from unstick.pipeline.rescue import Census, Decided, decide_page, foresee, rescue
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep did, or with `dry_run` would do; `operation_id` is its entry in the audit log."""

    look: Look
    action: Action
    dry_run: bool
    tally: Tally
    operation_id: int | None


async def sweep(watched: Watched, order: SweepOrder, progress: Progress | None = None) -> SweepReport:
    """Look at a source once and recover what is stuck.

    Raises:
        InvalidRequestError: the source can't do what is asked; nothing was changed.
        RecoveryStoppedError: a batch failed and was rolled back whole; it tells how many jobs of earlier
            batches stay recovered.
    """
    look = await take_look(watched, order.queued_after)
    action = order.action or watched.policy.action
    _refuse_what_cannot_be_done(watched.source, action)
    if order.dry_run:
        tally = await _foresee(watched, look, action, progress)
        return SweepReport(look=look, action=action, dry_run=True, tally=tally, operation_id=None)
    operation = _Operation(watched=watched, order=order, look=look, action=action)
    operation_id = await watched.ledger.append(operation.entry(AuditOutcome.STARTED))
    tally = await _carry_out(operation, operation_id, progress)
    return SweepReport(look=look, action=action, dry_run=False, tally=tally, operation_id=operation_id)


def _refuse_what_cannot_be_done(source: JobSource, action: Action) -> None:
    """A retry that leaves poison is `mark_failed` in the end, so it needs both."""
    able = source.capabilities
    if not able.mark_failed or (action is Action.RETRY and not able.retry):
        lacking = "retry" if able.mark_failed else "mark_failed"
        raise InvalidRequestError(
            f"Source {source.name!r} can't {lacking} its jobs: its mapping has no word for "
            f"{'queued' if able.mark_failed else 'failed'} jobs under `states`, or no time they would wait from."
        )


async def take_look(watched: Watched, queued_after: timedelta | None = None) -> Look:
    """Read the source's clock and fix the thresholds for one pass."""
    return Look(
        taken_at=await watched.source.clock(),
        queued_after=watched.policy.queued_after if queued_after is None else queued_after,
        running_after=watched.policy.running_after,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    watched: Watched
    order: SweepOrder
    look: Look
    action: Action

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
            },
            result=result or {},
            operation_id=operation_id,
        )


async def _foresee(watched: Watched, look: Look, action: Action, progress: Progress | None) -> Tally:
    census: Census = Counter()
    async for decided in _decided(watched, look, action):
        census += foresee(decided)
        _tell(progress, census)
    return Tally(counts=dict(census))


async def _carry_out(operation: _Operation, operation_id: int, progress: Progress | None) -> Tally:
    watched = operation.watched
    census: Census = Counter()

    def end(outcome: AuditOutcome, problem: str | None = None) -> AuditEntry:
        result = _result(census) | ({} if problem is None else {"problem": problem})
        return operation.entry(outcome, operation_id, result)

    try:
        if await _rule(operation, operation_id, census, progress):
            await _look_at_each(operation, operation_id, census, progress)
        await watched.ledger.append(end(AuditOutcome.DONE))
    except asyncio.CancelledError:
        await asyncio.shield(watched.ledger.append(end(AuditOutcome.FAILED, "interrupted")))
        raise
    except Exception as error:
        recovered = Tally(counts=census).of(outcome=Outcome.APPLIED)
        unrecorded = await _record_failure(watched.ledger, end(AuditOutcome.FAILED, str(error)))
        raise RecoveryStoppedError(
            f"The sweep of source {watched.source.name!r} stopped: {error} The batch it hit was rolled back; "
            f"{recovered} job(s) recovered before it stay recovered and are in the audit log as operation "
            f"{operation_id}.{unrecorded}",
            recovered=recovered,
        ) from error
    return Tally(counts=dict(census))


async def _record_failure(ledger: Ledger, entry: AuditEntry) -> str:
    """Record how an operation failed; where even that fails, return the sentence that says so."""
    try:
        await ledger.append(entry)
    except Exception as error:  # noqa: BLE001 - the first error matters more and is raised by the caller
        return f" Its end could not be recorded: {error}"
    return ""


async def _rule(operation: _Operation, operation_id: int, census: Census, progress: Progress | None) -> bool:
    """Recover what needs no looking at one by one, and tell whether anything is left."""
    left = False
    for state in ACCUSED_STATES:
        ruling = _ruling(operation, state)
        if ruling is None:
            left = True
            continue
        async for ruled in operation.watched.source.recover_by_rule(ruling, operation.look, operation_id):
            census[state, ruling.action, ruling.reason, Outcome.APPLIED] += ruled.recovered
            left |= ruled.left
            _tell(progress, census)
    return left


def _ruling(operation: _Operation, state: JobState) -> Ruling | None:
    if not operation.watched.source.capabilities.rulings:
        return None
    return rule(state, operation.look, operation.watched.policy, operation.action)


async def _look_at_each(operation: _Operation, operation_id: int, census: Census, progress: Progress | None) -> None:
    """Look at every suspect there is, decide on it, and recover it by compare-and-set."""
    source = operation.watched.source
    pages = _decided(operation.watched, operation.look, operation.action)
    async for decided in _ahead(pages) if source.capabilities.reads_beside_writes else pages:
        census.update(await rescue(source, decided, operation.look, operation_id))
        _tell(progress, census)


async def _decided(watched: Watched, look: Look, action: Action) -> AsyncIterator[Decided]:
    async for page in watched.source.suspects(look):
        yield await decide_page(watched, page, look, action)


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
