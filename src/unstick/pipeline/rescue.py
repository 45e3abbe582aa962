"""From a page of suspects to what came of each: diagnosis, decision, and the guarded write."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unstick.domain.diagnosis import Reason, suspected_reason
from unstick.domain.job import JobId, JobState
from unstick.domain.policy import decide
from unstick.domain.recovery import LOST_RACE, Action, Batch, BatchResult, Decision, Intent, Outcome, Recovery
from unstick.domain.suspect import Look, Page, Suspect, Unreadable
from unstick.pipeline.judging import Judged, judge
from unstick.pipeline.looking import Scope
from unstick.pipeline.watched import Watched

CensusKey = tuple[JobState, Action, Reason, Outcome]
Census = Counter[CensusKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A page with a decision on each of its suspects."""

    action: Action
    """What was asked for; a spent budget turns single decisions into another."""
    decisions: tuple[Decision, ...]
    unreadable: tuple[Unreadable, ...]
    undecided: tuple[Suspect, ...] = ()
    """Suspects that nobody knows enough of; they are left alone."""


async def decide_page(watched: Watched, page: Page, scope: Scope, action: Action) -> Decided:
    """Judge and decide a whole page; a retry costs one statement a page to read the budgets."""
    judged = await judge(watched, page, scope)
    spent = await _spent(watched, judged, scope) if action is Action.RETRY else {}
    decisions = tuple(
        decide(each.suspect, each.diagnosis, scope.policy, action, spent.get(each.suspect.job_id, 0))
        for each in judged.convicted
    )
    return Decided(action=action, decisions=decisions, unreadable=judged.unreadable, undecided=judged.undecided)


def foresee(decided: Decided) -> Census:
    """Count what would be applied if nothing changed meanwhile."""
    return Counter(_key(decision, Outcome.APPLIED) for decision in decided.decisions) + _left_alone(decided)


def _left_alone(decided: Decided) -> Census:
    return Counter(
        (suspect.state, Action.LEAVE, suspected_reason(suspect.state), Outcome.LEFT) for suspect in decided.undecided
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescued:
    """What came of a page's decisions."""

    census: Census
    failures: tuple[Recovery, ...]
    """Jobs that couldn't be read or that the database refused to change, with what it said."""


async def rescue(watched: Watched, decided: Decided, look: Look, operation_id: int) -> Rescued:
    """Carry out a page's decisions, one batch an action, and count what came of them."""
    census = _left_alone(decided)
    failures = [_unreadable(row, decided.action) for row in decided.unreadable]
    if failures:
        await watched.ledger.record(watched.source.name, operation_id, failures)
        census.update((each.state, decided.action, each.reason, each.outcome) for each in failures)
    for action, decisions in _by_action(decided.decisions).items():
        batch = Batch(action=action, decisions=decisions, look=look, operation_id=operation_id)
        result = await _recover(watched, batch)
        census.update(_key(decision, result.outcome(decision.suspect.job_id)) for decision in decisions)
        refused = (decision for decision in decisions if decision.suspect.job_id in result.refused)
        failures += [_recovery(each, Outcome.FAILED, result.refused[each.suspect.job_id]) for each in refused]
    return Rescued(census=census, failures=tuple(failures))


async def _recover(watched: Watched, batch: Batch) -> BatchResult:
    """Carry out a batch together with its records, or between an intent and its settlement where that can't be."""
    if watched.source.capabilities.records:
        return await watched.source.recover(batch)
    batch = replace(batch, at=await watched.source.clock())
    intents = {intent.job_id: intent for intent in await watched.source.intend(batch)}
    await watched.ledger.intend(watched.source.name, batch.operation_id, list(intents.values()))
    intended = [decision for decision in batch.decisions if decision.suspect.job_id in intents]
    result = await watched.source.recover(replace(batch, decisions=intended))
    lost = [_recovery(d, Outcome.LOST_RACE, LOST_RACE) for d in batch.decisions if d.suspect.job_id not in intents]
    await watched.ledger.record(watched.source.name, batch.operation_id, lost)
    done = [_outcome_of(intent, result) for intent in intents.values()]
    await watched.ledger.settle(watched.source.name, batch.operation_id, done)
    return result


def _outcome_of(intent: Intent, result: BatchResult) -> Recovery:
    outcome = result.outcome(intent.job_id)
    said = {Outcome.LOST_RACE: LOST_RACE, Outcome.FAILED: result.refused.get(intent.job_id)}
    return intent.came_to(outcome, said.get(outcome), result.pre_images.get(intent.job_id))


def _recovery(decision: Decision, outcome: Outcome, detail: str) -> Recovery:
    return Recovery(
        job_id=decision.suspect.job_id,
        state=decision.suspect.state,
        action=decision.action,
        reason=decision.reason,
        outcome=outcome,
        detail=detail,
    )


def _unreadable(row: Unreadable, action: Action) -> Recovery:
    return Recovery(
        job_id=row.job_id,
        state=row.state,
        action=action,
        reason=suspected_reason(row.state),
        outcome=Outcome.FAILED,
        detail=row.problem,
    )


async def _spent(watched: Watched, judged: Judged, scope: Scope) -> Mapping[JobId, int]:
    job_ids = [each.suspect.job_id for each in judged.convicted]
    since = scope.look.taken_at - scope.policy.recovery_window
    return await watched.ledger.spent(watched.source.name, job_ids, since)


def _by_action(decisions: Sequence[Decision]) -> dict[Action, list[Decision]]:
    batches: defaultdict[Action, list[Decision]] = defaultdict(list)
    for decision in decisions:
        batches[decision.action].append(decision)
    return batches


def _key(decision: Decision, outcome: Outcome) -> CensusKey:
    return decision.suspect.state, decision.action, decision.reason, outcome
