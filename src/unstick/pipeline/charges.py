"""What is to be done to the jobs of each scope, and what is left as it is.

Guarantee: where a policy asks for several looks, an unattended sweep acts on nobody who wasn't found stuck by so many
in a row, and is held by the brake for those alone on whom it would act. Where it asks for one, nothing is kept or read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from unstick.domain.brake import Pass, grace_until
from unstick.domain.diagnosis import Reason, suspected_reason
from unstick.domain.errors import InvalidRequestError
from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import Action, Outcome, Tally
from unstick.domain.sighting import Stuck
from unstick.domain.suspect import ACCUSED_STATES, Look
from unstick.pipeline.judging import count_stuck, judge
from unstick.pipeline.looking import Scope
from unstick.pipeline.rescue import Census
from unstick.pipeline.watched import Watched

MOST_READY = 10_000
"""How many jobs of a scope a sweep acts on where they had to be found several times; the next one acts on more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What is to be done to the suspects of a scope."""

    scope: Scope
    action: Action
    left: tuple[JobState, ...] = ()
    """The states in which its suspects are left as they are."""
    graces: Mapping[JobState, datetime] = field(default_factory=dict)
    """Those of them in which they are because the watch over them or their database was away, and until when."""
    ready: frozenset[JobId] | None = None
    """The suspects that were found stuck often enough; None where once is."""
    early: Census = field(default_factory=Counter)
    """Those that weren't yet."""

    @property
    def acted_on(self) -> Look | None:
        """The look at those suspects that something is done to, None where they all are left."""
        states = tuple(state for state in self.scope.look.states if state not in self.left)
        if not states or (self.ready is not None and not self.ready):
            return None
        look = replace(self.scope.look, states=states)
        return look if self.ready is None else replace(look, only=self.ready)


def charge_of(scope: Scope, *, asked: Action | None, this: Pass | None) -> Charge:
    """Say what is done to a scope: what was asked for, or else its policy; what its policy leaves alone is left.

    Where nobody watches, so is what the policy leaves to a person, what waits in a queue that nobody serves, and what
    has a grace after a gap in the watch.
    """
    if scope.policy.action is Action.LEAVE or (this is not None and scope.policy.ask):
        return Charge(scope=scope, action=Action.LEAVE, left=scope.look.states)
    graces = graces_of(scope, this)
    left = set(graces)
    if this is not None and scope.waiting is Reason.UNSERVED:
        left.add(JobState.QUEUED)
    return Charge(
        scope=scope,
        action=asked or scope.policy.action,
        left=tuple(state for state in scope.look.states if state in left),
        graces=graces,
    )


def end_of_graces(charges: Sequence[Charge], tally: Tally) -> datetime | None:
    """Return until when some of the jobs that were left have a grace, None where none has."""
    left = {state for state in ACCUSED_STATES if tally.of(state=state, outcome=Outcome.LEFT)}
    return max((end for charge in charges for state, end in charge.graces.items() if state in left), default=None)


def graces_of(scope: Scope, this: Pass | None) -> Mapping[JobState, datetime]:
    """Return the states whose suspects have a grace at a pass, and until when."""
    if this is None:
        return {}
    ends = {state: grace_until(this, _grace(scope, state)) for state in scope.look.states}
    return {state: end for state, end in ends.items() if end is not None}


def _grace(scope: Scope, state: JobState) -> timedelta:
    """Return how long jobs are left alone after a gap: their threshold, though witnesses are asked of them sooner."""
    if state is JobState.RUNNING and scope.hung_after is None:
        return scope.policy.running_after
    return scope.look.threshold(state)


async def heed_looks(watched: Watched, charge: Charge, this: Pass | None) -> Charge:
    """Narrow a charge to who was found stuck at as many unattended passes in a row as its policy asks for.

    Raises:
        InvalidRequestError: there is nowhere to keep how often that was.
    """
    look, needed = charge.acted_on, charge.scope.policy.looks
    if this is None or look is None or needed == 1:
        return charge
    if watched.looks is None:
        raise InvalidRequestError(f"Source {watched.source.name!r} has nowhere to keep looks: leave `looks` at 1.")
    ready, early = set[JobId](), Census()
    async for page in watched.source.suspects(look):
        found = (await judge(watched, page, charge.scope)).convicted
        stuck = [Stuck.of(each.suspect, each.since) for each in found]
        looks = await watched.looks.note(watched.source.name, stuck, this)
        for suspect, diagnosis, *_ in found:
            if looks[suspect.job_id] >= needed and len(ready) < MOST_READY:
                ready.add(suspect.job_id)
            else:
                early[suspect.state, Action.LEAVE, diagnosis.reason, Outcome.LEFT] += 1
    return replace(charge, ready=frozenset(ready), early=early)


async def count_left(watched: Watched, charge: Charge) -> Census:
    """Count the suspects that are left as they are."""
    if not charge.left:
        return Counter(charge.early)
    return charge.early + await count_as(watched, charge, replace(charge.scope.look, states=charge.left), Outcome.LEFT)


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
