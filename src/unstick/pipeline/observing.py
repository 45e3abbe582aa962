"""One look at a source that changes nothing: how many jobs are open and stuck, by queue and reason, and since when."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from unstick.domain.brake import Brake
from unstick.domain.diagnosis import Reason, suspected_reason
from unstick.domain.events import OTHERS, Held, Observed, QueueReason, QueueState
from unstick.domain.job import JobState
from unstick.domain.suspect import SuspectGroup
from unstick.pipeline.braking import expected_pass
from unstick.pipeline.charges import graces_of
from unstick.pipeline.judging import asks_witnesses, convicted_running
from unstick.pipeline.looking import Scope, take_look, take_scopes
from unstick.pipeline.report import RECOVERIES_WINDOW
from unstick.pipeline.watched import Watched

MOST_QUEUES = 200
"""How many queues with a state or a reason are told apart."""

_Key = TypeVar("_Key", QueueState, QueueReason)


async def observe(watched: Watched) -> Observed:
    """Observe a source; its cost follows the number of open jobs.

    Raises:
        UnstickError: the source or the ledger doesn't answer, or the mapping doesn't fit.
    """
    begun = time.monotonic()
    look = await take_look(watched)
    scopes = await take_scopes(watched, look)
    found = await _stuck(watched, scopes)
    still_open = await watched.source.open_jobs()
    late = await watched.ledger.late_counts(watched.source.name, RECOVERIES_WINDOW)
    brake = None if watched.brakes is None else await watched.brakes.find(watched.source.name)
    watch = None if watched.watches is None else await watched.watches.find(watched.source.name)
    since = (still_open.queued_since, still_open.running_since)
    queued, running = (None if each is None else max(timedelta(0), look.taken_at - each) for each in since)
    return Observed(
        source=watched.source.name,
        at=look.taken_at,
        took=timedelta(seconds=time.monotonic() - begun),
        open_jobs=busiest(still_open.by_queue, QueueState._make),
        stuck=busiest(found.stuck, QueueReason._make),
        undecided=found.undecided,
        exact=found.exact,
        oldest_queued=queued,
        oldest_running=running,
        held=held_by(brake),
        grace_until=await _grace_until(watched, look.taken_at, found.states) if found.states else None,
        late_finishes=late.total,
        workers=still_open.workers,
        swept_at=None if watch is None else watch.swept_at,
    )


def busiest(counts: Mapping[_Key, int], made: Callable[[tuple[str, object]], _Key]) -> Mapping[_Key, int]:
    """Keep the counts of the busiest queues, and add up the others: there may be a queue for every customer."""
    if len(counts) <= MOST_QUEUES:
        return counts
    kept: Counter[_Key] = Counter()
    for place, (key, number) in enumerate(sorted(counts.items(), key=lambda each: (-each[1], str(each[0])))):
        kept[key if place < MOST_QUEUES else made((OTHERS, key[1]))] += number
    return kept


def held_by(brake: Brake | None) -> Held | None:
    """Return what holds a source, None where nothing does."""
    if brake is None or not brake.is_held:
        return None
    return Held(since=brake.at, suspects=brake.suspects, cause=brake.cause)


@dataclass(slots=True, kw_only=True)
class _Stuck:
    """What is stuck, as far as it was counted."""

    stuck: Counter[QueueReason] = field(default_factory=Counter)
    undecided: int = 0
    """What nobody knows enough of."""
    exact: bool = True
    states: list[tuple[Scope, JobState]] = field(default_factory=list)
    """Where it is, each scope's states once."""


async def _stuck(watched: Watched, scopes: Sequence[Scope]) -> _Stuck:
    """Count what is stuck by queue and reason, and what nobody knows enough of."""
    all_found = _Stuck()
    for scope in scopes:
        there = set[JobState]()
        asks = asks_witnesses(watched, scope)
        states = tuple(state for state in scope.look.states if not (asks and state is JobState.RUNNING))
        if states:
            groups = await watched.source.suspects_by_queue(replace(scope.look, states=states))
            all_found.exact &= groups.exact
            for group, number in groups.counts.items():
                all_found.stuck[QueueReason(group.queue, _reason(scope, group))] += number
                there.add(group.state)
        if asks:
            found = await convicted_running(watched, scope)
            all_found.undecided += found.undecided
            all_found.exact &= found.exact
            for each in found.convicted:
                queue = None if each.job is None else each.job.queue
                all_found.stuck[QueueReason(queue, each.diagnosis.reason)] += 1
                there.add(JobState.RUNNING)
        all_found.states += [(scope, state) for state in there]
    return all_found


async def _grace_until(watched: Watched, now: datetime, stuck: Sequence[tuple[Scope, JobState]]) -> datetime | None:
    """Return until when unattended sweeps leave some of what is stuck alone."""
    expected = await expected_pass(watched, now)
    ends = [graces_of(scope, expected).get(state) for scope, state in stuck]
    return max((end for end in ends if end is not None), default=None)


def _reason(scope: Scope, group: SuspectGroup) -> Reason:
    if group.lost:
        return Reason.MESSAGE_LOST
    return Reason.LEASE_EXPIRED if group.lease_expired else suspected_reason(group.state, scope.waiting)
