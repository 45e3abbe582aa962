"""Recover one job that a person names, by the compare-and-set, budget and records of a sweep.

Guarantee: the write is for that id alone, and demands that the job still is a suspect and as it was looked at; what
came of it is on record as an operation of its own, with the reason. Known weakness: as for a sweep.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from unstick.domain.audit import RECOVER_CALL, AuditEntry, AuditOutcome
from unstick.domain.errors import InvalidRequestError, NotStuckError, RecoveryStoppedError
from unstick.domain.events import JobRecovered
from unstick.domain.job import JobId
from unstick.domain.recovery import LOST_RACE, Action, Decision, Outcome
from unstick.domain.snooze import requested_reason
from unstick.domain.wording import Phrase
from unstick.pipeline.course import record_failure, surely, what_it_hit
from unstick.pipeline.emitting import emit
from unstick.pipeline.looking import Scope
from unstick.pipeline.rescue import Decided, Rescued, decide_page, rescue
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.snoozing import unknown_job
from unstick.pipeline.sweep import refuse_what_cannot_be_done
from unstick.pipeline.verdict import Verdict, judge
from unstick.pipeline.watched import Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverOrder:
    """Who asks for which job to be recovered, how and why; without an action, as its policy says."""

    actor: str
    role: str | None = None
    job_id: JobId
    action: Action | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverReport:
    """What came of it; `operation_id` is its entry in the audit log."""

    job_id: JobId
    at: datetime
    decision: Decision
    """What was decided: a spent budget turns a retry into `mark_failed`."""
    outcome: Outcome
    detail: str
    """What stood in the way, or why it was stuck."""
    operation_id: int


async def recover_job(watched: Watched, order: RecoverOrder) -> RecoverReport:
    """Recover a job if it is stuck now, whether its policy leaves such jobs to a person or it is snoozed.

    Raises:
        InvalidRequestError: the source can't do what is asked, or its policy names no action and nobody else did.
        UnknownJobError: the source has no such job.
        NotStuckError: it isn't stuck; the message says why not.
        RecoveryStoppedError: the write failed and was rolled back.
    """
    reason = requested_reason(order.reason)
    await settle_intents(watched)
    verdict = await judge(watched, order.job_id)
    if verdict is None:
        raise unknown_job(watched, order.job_id)
    if verdict.suspect is None or verdict.scope is None:
        raise NotStuckError(verdict.sentence)
    action = _action(order, verdict, verdict.scope)
    refuse_what_cannot_be_done(watched.source, action)
    decided = await decide_page(watched, verdict.page, verdict.scope, action)
    operation = _Operation(watched=watched, order=order, job_id=verdict.row.job_id, action=action, reason=reason)
    return await operation.carry_out(decided, verdict.scope)


def _action(order: RecoverOrder, verdict: Verdict, scope: Scope) -> Action:
    action = order.action or scope.policy.action
    if action is Action.LEAVE:
        raise InvalidRequestError(
            Phrase(
                "The policy leaves job %(job)s alone and names nothing to do; say mark_failed or retry.",
                job=verdict.row.job_id,
            )
        )
    return action


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    watched: Watched
    order: RecoverOrder
    job_id: JobId
    action: Action
    reason: str | None

    async def carry_out(self, decided: Decided, scope: Scope) -> RecoverReport:
        """Do it between its two entries, the second of which is written however often somebody interrupts."""
        operation_id = await self.watched.ledger.append(self.entry(AuditOutcome.STARTED))
        work = asyncio.ensure_future(rescue(self.watched, decided, scope.look, operation_id))
        try:
            rescued = await asyncio.shield(work)
        except asyncio.CancelledError:
            await surely(self._interrupted(operation_id, work))
            raise
        except Exception as error:
            raise await surely(self._stopped(operation_id, error)) from error
        report = self._report(decided.decisions[0], rescued, scope, operation_id)
        await surely(self._end(report))
        await emit(self.watched, self._event(report))
        return report

    def _event(self, report: RecoverReport) -> JobRecovered:
        return JobRecovered(
            source=self.watched.source.name,
            at=report.at,
            actor=self.order.actor,
            job_id=report.job_id,
            action=report.decision.action,
            reason=report.decision.reason,
            outcome=report.outcome,
            operation_id=report.operation_id,
        )

    def _report(self, decision: Decision, rescued: Rescued, scope: Scope, operation_id: int) -> RecoverReport:
        outcome = _outcome(rescued)
        said = {Outcome.APPLIED: decision.sentence, Outcome.LOST_RACE: LOST_RACE}
        detail = said.get(outcome) or rescued.failures[0].detail
        return RecoverReport(
            job_id=self.job_id,
            at=scope.look.taken_at,
            decision=decision,
            outcome=outcome,
            detail=detail,
            operation_id=operation_id,
        )

    async def _end(self, report: RecoverReport) -> None:
        result = {"outcome": report.outcome.value, "action": report.decision.action.value}
        try:
            await self.watched.ledger.append(self.entry(AuditOutcome.DONE, report.operation_id, result))
        except Exception as error:
            raise RecoveryStoppedError(
                f"The recovery of job {self.job_id} came to {report.outcome.value}, but the end of operation "
                f"{report.operation_id} could not be recorded: {error}",
                recovered=int(report.outcome is Outcome.APPLIED),
            ) from error

    async def _interrupted(self, operation_id: int, work: "asyncio.Future[Rescued]") -> None:
        """Let the one write come to its end, which takes no longer than a guest's statement may, and record both."""
        await asyncio.wait([work])
        failure = work.exception()
        result: dict[str, object] = {"problem": "interrupted" if failure is None else f"interrupted, after: {failure}"}
        if failure is None:
            result["outcome"] = _outcome(work.result()).value
        await record_failure(self.watched.ledger, self.entry(AuditOutcome.FAILED, operation_id, result))

    async def _stopped(self, operation_id: int, error: Exception) -> RecoveryStoppedError:
        entry = self.entry(AuditOutcome.FAILED, operation_id, {"problem": str(error)})
        unrecorded = await record_failure(self.watched.ledger, entry)
        return RecoveryStoppedError(
            f"Job {self.job_id} was not recovered: {error} {what_it_hit(self.watched.source)}.{unrecorded}", recovered=0
        )

    def entry(
        self, outcome: AuditOutcome, operation_id: int | None = None, result: Mapping[str, object] | None = None
    ) -> AuditEntry:
        """Return an entry of this operation."""
        source = self.watched.source.name
        return AuditEntry(
            actor=self.order.actor,
            role=self.order.role,
            call=RECOVER_CALL,
            outcome=outcome,
            parameters={
                "source": source,
                "job_id": str(self.job_id),
                "action": self.action.value,
                "reason": self.reason,
            },
            result=result or {},
            operation_id=operation_id,
            source=source,
            job_id=self.job_id,
        )


def _outcome(rescued: Rescued) -> Outcome:
    """Return what came of the one decision there was."""
    return next(outcome for *_, outcome in rescued.census)
