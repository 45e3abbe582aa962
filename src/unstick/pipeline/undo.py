"""Undo: take recoveries of one operation or one job back, where each job is still as the recovery left it.

Guarantee: a job that changed since is left alone and named, and no job is put back unrecorded; both hold because the
source carries out each batch as one compare-and-set transaction together with its records.
Known weakness: a job that is put back is as stuck as it was found, and the next sweep that is asked to recover it will.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import (
    InvalidRequestError,
    NothingToUndoError,
    UnknownRecoveryError,
)
from unstick.domain.events import Undone
from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import Intent, Outcome, Recovery
from unstick.domain.undo import HELD, OVERTAKEN, Undoable, UndoBatch, UndoResult
from unstick.domain.wording import Phrase
from unstick.pipeline.course import Progress, carry_out
from unstick.pipeline.emitting import emit
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.watched import Watched

UNDO_CALL = "jobs.undo"
"""What an undo is called in the audit log, whoever asked for it."""
MAX_LEFT = 100
"""How many jobs that could not be undone are named."""
BATCH = 1_000
"""Jobs put back in one transaction."""
LARGEST_OPERATION = 2**63 - 1

Census = Counter[tuple[JobState, Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoOrder:
    """Who asks for an undo, and of what: an operation, a job of it, or the last recovery of a job."""

    actor: str
    role: str | None = None
    operation_id: int | None = None
    job_id: JobId | None = None
    reason: str | None = None
    """Why, in the words of who asks; for the audit log."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoReport:
    """What an undo did, or with `dry_run` would do; `operation_id` is its own entry in the audit log."""

    at: datetime
    undoes: int
    """The operation whose recoveries it took back."""
    job_id: JobId | None
    dry_run: bool
    counts: Mapping[tuple[JobState, Outcome], int]
    """By the state that each job was to go back to."""
    already: int
    """Recoveries that were undone before."""
    operation_id: int | None
    left: tuple[Recovery, ...]
    """The first `MAX_LEFT` jobs that could not be undone, each with the reason; the counts are of all."""

    def of(self, *, state: JobState | None = None, outcome: Outcome | None = None) -> int:
        """Count what matches every word given."""
        return sum(n for (s, o), n in self.counts.items() if state in (None, s) and outcome in (None, o))


async def undo(watched: Watched, order: UndoOrder, progress: Progress | None = None) -> UndoReport:
    """Put jobs back as one operation found them.

    Raises:
        InvalidRequestError: the operation is an undo itself, or neither an operation nor a job was named.
        UnknownRecoveryError: no such operation or recovery is on record.
        NothingToUndoError: all of it was undone already, or nothing was recovered.
        RecoveryStoppedError: a batch failed and was rolled back whole; it tells how many of earlier ones stay undone.
    """
    if not order.dry_run:
        await settle_intents(watched)
    undoes = await _operation_meant(watched, order)
    begun = _Course(watched=watched, order=order, undoes=undoes, at=await watched.source.clock(), progress=progress)
    batches = _batches(begun)
    first = await anext(batches, None)
    if first is None:
        raise _nothing(begun)
    if order.dry_run:
        await _foresee(begun, first, batches)
        return begun.report()
    operation_id = begun.operation_id = await watched.ledger.append(begun.end(AuditOutcome.STARTED))
    await carry_out(begun, _work(begun, operation_id, first, batches))
    report = begun.report()
    await emit(watched, _event(watched, order, report, operation_id))
    return report


def _event(watched: Watched, order: UndoOrder, report: UndoReport, operation_id: int) -> Undone:
    return Undone(
        source=watched.source.name,
        at=report.at,
        actor=order.actor,
        undoes=report.undoes,
        outcomes={outcome: number for outcome in Outcome if (number := report.of(outcome=outcome))},
        operation_id=operation_id,
    )


async def _operation_meant(watched: Watched, order: UndoOrder) -> int:
    """Return the operation whose recoveries are to be undone; a job's last one where none is named."""
    source = watched.source.name
    if order.operation_id is None:
        if order.job_id is None:
            raise InvalidRequestError("Name an operation or a job whose recovery is to be undone.")
        history = await watched.ledger.history(source, order.job_id)
        if not history:
            raise UnknownRecoveryError(_unrecovered(Phrase("job %(job)s", job=order.job_id), source))
        standing = [operation_id for operation_id, undone in history if not undone]
        if not standing:
            raise NothingToUndoError(
                Phrase("Nothing is left to undo: every recovery of job %(job)s was undone.", job=order.job_id)
            )
        return standing[0]
    begun = None
    if 0 < order.operation_id <= LARGEST_OPERATION:
        begun = await watched.ledger.operation(order.operation_id)
    if begun is None or begun.parameters.get("source", source) != source:
        raise UnknownRecoveryError(unknown_operation(order.operation_id, source))
    if begun.call == UNDO_CALL:
        raise InvalidRequestError(
            Phrase(
                "Operation %(n)s is an undo, which can't be undone; a sweep recovers what is stuck again.",
                n=order.operation_id,
            )
        )
    return order.operation_id


def _unrecovered(what: Phrase, source: str) -> Phrase:
    return Phrase("No recovery of %(what)s of source %(source)s is on record.", what=what, source=repr(source))


def unknown_operation(operation_id: int, source: str) -> Phrase:
    """Say that there is no such operation."""
    return Phrase("There is no operation %(n)s of source %(source)s on record.", n=operation_id, source=repr(source))


def _nothing(course: "_Course") -> Exception:
    job, operation = course.order.job_id, course.undoes
    what = Phrase("operation %(n)s", n=operation)
    if job is not None:
        what = Phrase("job %(job)s in operation %(n)s", job=job, n=operation)
    if course.already:
        said = Phrase("Nothing is left to undo: every recovery of %(what)s was undone already.", what=what)
        return NothingToUndoError(said)
    if job is None:
        return NothingToUndoError(Phrase("There is nothing to undo: operation %(n)s recovered no job.", n=operation))
    return UnknownRecoveryError(_unrecovered(what, course.watched.source.name))


@dataclass(kw_only=True)
class _Course:
    """How far an undo has come."""

    watched: Watched
    order: UndoOrder
    undoes: int
    at: datetime
    progress: Progress | None
    census: Census = field(default_factory=Counter)
    already: int = 0
    left: list[Recovery] = field(default_factory=list)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    operation_id: int | None = None
    """Its own entry in the audit log; None until it has begun."""

    def end(self, outcome: AuditOutcome, problem: str | None = None) -> AuditEntry:
        """Return the entry that ends it, or begins it where there is none yet."""
        result: dict[str, object] = {}
        if self.operation_id is not None:
            result |= {each.value: self._number(each) for each in Outcome} | {"already": self.already}
        asked = {"source": self.watched.source.name, "operation": self.undoes}
        said = {"job": self.order.job_id, "reason": self.order.reason}
        return AuditEntry(
            actor=self.order.actor,
            role=self.order.role,
            call=UNDO_CALL,
            outcome=outcome,
            parameters=asked | {key: value for key, value in said.items() if value is not None},
            result=result if problem is None else result | {"problem": problem},
            operation_id=self.operation_id,
        )

    def came_to(self, done: Sequence[Undoable], left: Sequence[Recovery]) -> None:
        self.census.update((each.state, Outcome.APPLIED) for each in done)
        self.census.update((each.state, each.outcome) for each in left)
        self.left.extend(left[: MAX_LEFT - len(self.left)])
        if self.progress is not None:
            self.progress(self.census.total())

    @property
    def what(self) -> str:
        return f"The undo of operation {self.undoes}"

    @property
    def recovered(self) -> int:
        return self._number(Outcome.APPLIED)

    @property
    def said(self) -> str:
        return (
            f"{self.recovered} job(s) undone before it stay undone and are in the audit log as operation "
            f"{self.operation_id}."
        )

    def report(self) -> UndoReport:
        return UndoReport(
            at=self.at,
            undoes=self.undoes,
            job_id=self.order.job_id,
            dry_run=self.order.dry_run,
            counts=dict(self.census),
            already=self.already,
            operation_id=self.operation_id,
            left=tuple(self.left),
        )

    def _number(self, outcome: Outcome) -> int:
        return sum(number for (_, each), number in self.census.items() if each is outcome)


async def _batches(course: _Course) -> AsyncIterator[Sequence[Undoable]]:
    """Yield what may be undone in bounded batches, and count what was undone before."""
    ledger, source, after = course.watched.ledger, course.watched.source.name, 0
    while True:
        page = await ledger.undoable(source, course.undoes, after=after, job_id=course.order.job_id)
        left = [each for each in page.recoveries if not each.undone]
        course.already += len(page.recoveries) - len(left)
        for start in range(0, len(left), BATCH):
            yield left[start : start + BATCH]
        if page.last is None:
            return
        after = page.last


Batches = AsyncIterator[Sequence[Undoable]]


async def _each(first: Sequence[Undoable], others: Batches) -> Batches:
    yield first
    async for batch in others:
        yield batch


async def _foresee(course: _Course, first: Sequence[Undoable], others: Batches) -> None:
    async for batch in _each(first, others):
        tried, left = _overtaken(batch)
        _, why = await course.watched.source.intend_undo(UndoBatch(recoveries=tried, operation_id=course.undoes))
        left += [each.came_to(Outcome.LOST_RACE, why[each.job_id]) for each in tried if each.job_id in why]
        course.came_to([each for each in tried if each.job_id not in why], left)


async def _work(course: _Course, operation_id: int, first: Sequence[Undoable], others: Batches) -> None:
    async for batch in _each(first, others):
        course.came_to(*await _undo(course.watched, batch, operation_id))
        if course.interrupted.is_set():
            return


def _overtaken(batch: Sequence[Undoable]) -> tuple[list[Undoable], list[Recovery]]:
    """Leave out jobs that a later recovery changed: as they are now, they aren't as this one left them."""
    left = [each.came_to(Outcome.LOST_RACE, OVERTAKEN) for each in batch if each.overtaken]
    return [each for each in batch if not each.overtaken], left


async def _undo(
    watched: Watched, batch: Sequence[Undoable], operation_id: int
) -> tuple[Sequence[Undoable], Sequence[Recovery]]:
    """Undo a batch, and return what was undone and the records of what was not."""
    tried, overtaken = _overtaken(batch)
    await watched.ledger.record(watched.source.name, operation_id, overtaken)
    result = await _put_back(watched, UndoBatch(recoveries=tried, operation_id=operation_id))
    left = [
        each.came_to(Outcome.FAILED, result.refused[each.job_id])
        if each.job_id in result.refused
        else each.came_to(Outcome.LOST_RACE, result.lost[each.job_id])
        for each in tried
        if each.job_id not in result.applied
    ]
    return [each for each in tried if each.job_id in result.applied], overtaken + left


async def _put_back(watched: Watched, batch: UndoBatch) -> UndoResult:
    """Carry out a batch together with its records, or between an intent and its settlement where that can't be."""
    source, ledger = watched.source, watched.ledger
    if source.capabilities.records or not batch.recoveries:
        return await source.undo(batch)
    intents, why = await source.intend_undo(batch)
    intended = {each.job_id: each for each in intents}
    await ledger.intend(source.name, batch.operation_id, intents)
    tried = [each for each in batch.recoveries if each.job_id in intended]
    result = await source.undo(replace(batch, recoveries=tried))
    left = [each.came_to(Outcome.LOST_RACE, why[each.job_id]) for each in batch.recoveries if each.job_id in why]
    await ledger.record(source.name, batch.operation_id, left)
    await ledger.settle(source.name, batch.operation_id, [_outcome_of(each, result) for each in intents])
    return replace(result, lost={**why, **result.lost})


def _outcome_of(intent: Intent, result: UndoResult) -> Recovery:
    if intent.job_id in result.applied:
        return intent.came_to(Outcome.APPLIED)
    if intent.job_id in result.refused:
        return intent.came_to(Outcome.FAILED, result.refused[intent.job_id])
    return intent.came_to(Outcome.LOST_RACE, result.lost.get(intent.job_id, HELD))
