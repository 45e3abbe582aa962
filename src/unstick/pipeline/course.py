"""An operation that changes jobs, from its first entry in the audit log to its last.

Guarantee: its end is recorded however it comes about, with as many jobs as there are records, and however often
somebody interrupts it meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.errors import LeadershipLostError, RecoveryStoppedError
from unstick.domain.recovery import Action, Outcome, Recovery, Tally
from unstick.domain.suspect import Look
from unstick.pipeline.rescue import Census, CensusKey, Decided
from unstick.pipeline.snoozing import left_alone
from unstick.pipeline.watched import Watched
from unstick.ports import JobSource, Ledger

Progress = Callable[[int], None]
"""Told the number of jobs looked at so far."""

Leads = Callable[[], bool]
"""Tells whether this process still leads the source."""

MAX_FAILURES = 100
_MOMENT_SECONDS = 2
_Ending = TypeVar("_Ending")
_Page = TypeVar("_Page")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is done, for whom, and what the audit log says of it."""

    watched: Watched
    actor: str
    role: str | None
    call: str
    """What was asked for, as the audit log names it."""
    what: str
    """The same, at the beginning of a sentence: `The sweep of source 'main'`."""
    parameters: Mapping[str, object]

    def entry(
        self, outcome: AuditOutcome, operation_id: int | None = None, result: Mapping[str, object] | None = None
    ) -> AuditEntry:
        """Return an entry of the audit log about it."""
        return AuditEntry(
            actor=self.actor,
            role=self.role,
            call=self.call,
            outcome=outcome,
            parameters=self.parameters,
            result=result or {},
            operation_id=operation_id,
        )


class UnderWay(Protocol):
    """An operation that has begun, whatever it does to jobs."""

    @property
    def watched(self) -> Watched:
        """The source it works on, with its ledger."""

    @property
    def interrupted(self) -> asyncio.Event:
        """Set when it is to stop after the batch under way."""

    @property
    def what(self) -> str:
        """What it is, at the beginning of a sentence."""

    @property
    def recovered(self) -> int:
        """How many jobs it has changed."""

    @property
    def said(self) -> str:
        """Say what stays done of it."""

    def end(self, outcome: AuditOutcome, problem: str | None = None) -> AuditEntry:
        """Return the entry that ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How far an operation has come."""

    operation: Operation
    operation_id: int
    progress: Progress | None
    census: Census = field(default_factory=Counter)
    failures: list[Recovery] = field(default_factory=list)
    """The first `MAX_FAILURES` of them."""
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    most: int | None = None
    """How many it may recover; more are a mass event that began after they were counted."""
    leads: Leads | None = None

    @property
    def watched(self) -> Watched:
        """The source it works on, with its ledger."""
        return self.operation.watched

    @property
    def what(self) -> str:
        """What it is, at the beginning of a sentence."""
        return self.operation.what

    @property
    def is_over(self) -> bool:
        """Tell whether it must not go on.

        Raises:
            LeadershipLostError: another process may lead the source by now.
        """
        if self.leads is not None and not self.leads():
            raise LeadershipLostError("This process leads the source no more, and another may sweep it.")
        return self.interrupted.is_set() or (self.most is not None and self.recovered > self.most)

    @property
    def recovered(self) -> int:
        """How many jobs were recovered."""
        return Tally(counts=self.census).of(outcome=Outcome.APPLIED)

    @property
    def said(self) -> str:
        """Say what stays done of it."""
        return (
            f"{self.recovered} job(s) recovered before it stay recovered and are in the audit log as operation "
            f"{self.operation_id}."
        )

    def came_to(self, counts: Mapping[CensusKey, int], failures: Sequence[Recovery] = ()) -> None:
        """Count what came of a batch."""
        self.census.update(counts)
        self.failures.extend(failures[: MAX_FAILURES - len(self.failures)])
        tell(self.progress, self.census)

    def end(self, outcome: AuditOutcome, problem: str | None = None) -> AuditEntry:
        """Return the entry that ends it."""
        result = result_of(self.census) | ({} if problem is None else {"problem": problem})
        return self.operation.entry(outcome, self.operation_id, result)


async def carry_out(course: UnderWay, doing: Coroutine[object, object, None]) -> None:
    """Do the work and record its end, however often somebody interrupts it meanwhile.

    Raises:
        RecoveryStoppedError: a batch failed and was rolled back whole.
    """
    work = asyncio.ensure_future(doing)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await surely(_interrupt(course, work))
        raise
    except Exception as error:
        raise await surely(_stopped(course, error)) from error
    await surely(_end(course))


async def _end(course: UnderWay) -> None:
    try:
        await course.watched.ledger.append(course.end(AuditOutcome.DONE))
    except Exception as error:
        raise RecoveryStoppedError(
            f"{course.what} was done, but its end could not be recorded: {error} {course.said}",
            recovered=course.recovered,
        ) from error


async def _interrupt(course: UnderWay, work: asyncio.Future[None]) -> None:
    """Give the batch under way a moment to end and be counted, and record the interruption."""
    course.interrupted.set()
    await asyncio.wait([work], timeout=_MOMENT_SECONDS)
    work.cancel()
    await asyncio.wait([work])
    failure = None if work.cancelled() else work.exception()
    problem = "interrupted" if failure is None else f"interrupted, after this: {failure}"
    await record_failure(course.watched.ledger, course.end(AuditOutcome.FAILED, problem))


async def _stopped(course: UnderWay, error: Exception) -> RecoveryStoppedError:
    unrecorded = await record_failure(course.watched.ledger, course.end(AuditOutcome.FAILED, str(error)))
    return RecoveryStoppedError(
        f"{course.what} stopped: {error} {what_it_hit(course.watched.source)}; {course.said}{unrecorded}",
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


async def meant(course: Course, decided: Decided, look: Look) -> Decided:
    """Leave out, and count, decisions on jobs that a person has left alone since the look."""
    alone = await left_alone(course.operation.watched, look.taken_at) - look.left_alone
    if not alone:
        return decided
    left = [decision for decision in decided.decisions if decision.suspect.job_id in alone]
    course.came_to(Counter((each.suspect.state, Action.LEAVE, each.reason, Outcome.LEFT) for each in left))
    return replace(decided, decisions=tuple(each for each in decided.decisions if each.suspect.job_id not in alone))


async def ahead(pages: AsyncIterator[_Page]) -> AsyncIterator[_Page]:
    """Yield pages while the next one is already being read."""
    upcoming = asyncio.ensure_future(anext(pages, None))
    try:
        while (page := await upcoming) is not None:
            upcoming = asyncio.ensure_future(anext(pages, None))
            yield page
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)


def tell(progress: Progress | None, census: Census) -> None:
    """Tell whoever watches how many jobs were looked at."""
    if progress is not None:
        progress(census.total())


def result_of(census: Census) -> dict[str, object]:
    """Return what the audit log says of what came of an operation."""
    tally = Tally(counts=census)
    return {outcome.value: tally.of(outcome=outcome) for outcome in Outcome}
