"""From a page of suspects to what came of each: diagnosis, decision, and the guarded write."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unstick.domain.diagnosis import Reason, diagnose, suspected_reason
from unstick.domain.job import JobId, JobState
from unstick.domain.policy import decide
from unstick.domain.recovery import Action, Batch, Decision, Outcome
from unstick.domain.suspect import Look, Page, Unreadable
from unstick.pipeline.watched import Watched
from unstick.ports import JobSource

Census = Counter[tuple[JobState, Action, Reason, Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A page with a decision on each of its suspects."""

    action: Action
    """What was asked for; a spent budget turns single decisions into another."""
    decisions: tuple[Decision, ...]
    unreadable: tuple[Unreadable, ...]


async def decide_page(watched: Watched, page: Page, look: Look, action: Action) -> Decided:
    """Diagnose and decide a whole page; a retry costs one statement a page to read the budgets."""
    spent = await _spent(watched, page, look) if action is Action.RETRY else {}
    decisions = tuple(
        decide(suspect, diagnose(suspect.state, suspect.since), watched.policy, action, spent.get(suspect.job_id, 0))
        for suspect in page.suspects
    )
    return Decided(action=action, decisions=decisions, unreadable=page.unreadable)


def foresee(decided: Decided) -> Census:
    """Count what would be applied if nothing changed meanwhile."""
    return Counter(_key(decision, Outcome.APPLIED) for decision in decided.decisions)


async def rescue(source: JobSource, decided: Decided, look: Look, operation_id: int) -> Census:
    """Carry out a page's decisions, one batch an action, and count what came of them."""
    census: Census = Counter()
    for action, decisions in _by_action(decided.decisions).items():
        batch = Batch(action=action, decisions=decisions, look=look, operation_id=operation_id)
        result = await source.recover(batch)
        census.update(_key(decision, result.outcome(decision.suspect.job_id)) for decision in decisions)
    if decided.unreadable:
        await source.record_unreadable(decided.unreadable, decided.action, operation_id)
        census.update(
            (row.state, decided.action, suspected_reason(row.state), Outcome.FAILED) for row in decided.unreadable
        )
    return census


async def _spent(watched: Watched, page: Page, look: Look) -> Mapping[JobId, int]:
    job_ids = [suspect.job_id for suspect in page.suspects]
    return await watched.ledger.spent(watched.source.name, job_ids, look.taken_at - watched.policy.recovery_window)


def _by_action(decisions: Sequence[Decision]) -> dict[Action, list[Decision]]:
    batches: defaultdict[Action, list[Decision]] = defaultdict(list)
    for decision in decisions:
        batches[decision.action].append(decision)
    return batches


def _key(decision: Decision, outcome: Outcome) -> tuple[JobState, Action, Reason, Outcome]:
    return decision.suspect.state, decision.action, decision.reason, outcome
