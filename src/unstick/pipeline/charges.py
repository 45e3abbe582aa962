"""What is to be done to the jobs of each scope, and what is left as it is."""

from collections import Counter
from dataclasses import dataclass, replace

from unstick.domain.brake import Pass, in_grace
from unstick.domain.diagnosis import Reason, suspected_reason
from unstick.domain.job import JobState
from unstick.domain.recovery import Action, Outcome
from unstick.domain.suspect import Look
from unstick.pipeline.judging import count_stuck
from unstick.pipeline.looking import Scope
from unstick.pipeline.rescue import Census
from unstick.pipeline.watched import Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What is to be done to the suspects of a scope."""

    scope: Scope
    action: Action
    left: tuple[JobState, ...] = ()
    """The states in which its suspects are left as they are."""

    @property
    def acted_on(self) -> Look | None:
        """The look at those suspects that something is done to, None where they all are left."""
        states = tuple(state for state in self.scope.look.states if state not in self.left)
        return replace(self.scope.look, states=states) if states else None


def charge_of(scope: Scope, *, asked: Action | None, this: Pass | None) -> Charge:
    """Say what is done to a scope: what was asked for, or else its policy; what its policy leaves alone is left.

    Where nobody watches, so is what the policy leaves to a person, what waits in a queue that nobody serves, and what
    has a grace after a gap in the watch.
    """
    if scope.policy.action is Action.LEAVE or (this is not None and scope.policy.ask):
        return Charge(scope=scope, action=Action.LEAVE, left=scope.look.states)
    left: set[JobState] = set()
    if this is not None:
        left |= {state for state in scope.look.states if in_grace(this, scope.look.threshold(state))}
        left |= {JobState.QUEUED} if scope.waiting is Reason.UNSERVED else set()
    action = asked or scope.policy.action
    return Charge(scope=scope, action=action, left=tuple(state for state in scope.look.states if state in left))


async def count_left(watched: Watched, charge: Charge) -> Census:
    """Count the suspects that are left as they are."""
    if not charge.left:
        return Counter()
    return await count_as(watched, charge, replace(charge.scope.look, states=charge.left), Outcome.LEFT)


async def count_as(watched: Watched, charge: Charge, look: Look, outcome: Outcome) -> Census:
    """Count suspects that are not acted on."""
    found = (await count_stuck(watched, [replace(charge.scope, look=look)])).stuck
    counts = {JobState.QUEUED: found.queued, JobState.RUNNING: found.running}
    action = Action.LEAVE if outcome is Outcome.LEFT else charge.action
    return Counter(
        {
            (state, action, suspected_reason(state, charge.scope.waiting), outcome): number
            for state, number in counts.items()
            if number
        }
    )
