"""The stuck jobs that somebody asked for, oldest sign of life first, in pages; counts are bounded and say so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from unstick.domain.filter import StuckFilter
from unstick.domain.job import JobClass, JobState
from unstick.domain.suspect import ACCUSED_STATES, Look, Position
from unstick.pipeline.filtering import narrow
from unstick.pipeline.judging import asks_witnesses, convicted_running
from unstick.pipeline.looking import Scope, take_look, take_scopes
from unstick.pipeline.report import (
    Found,
    check_limit,
    decode_cursor,
    encode_positions,
    oldest_found,
    position_of,
    with_outlook,
)
from unstick.pipeline.watched import Watched

MOST_COUNTED = 1_000
"""Beyond so many, jobs aren't counted: to count them all costs as much as they are."""
MOST_SEARCHED = 2_000
"""So many jobs of a state are looked through for a text or a reason that their source can't be asked for."""
MOST_CLASSES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckList:
    """Some of the stuck jobs that were asked for."""

    look: Look
    jobs: tuple[Found, ...]
    number: int
    """How many there are."""
    exact: bool
    """Otherwise there are more."""
    next_cursor: str | None
    """Continues the list; None where it ends."""
    complete: bool
    """Otherwise not all jobs could be searched for the text or reason: what follows is found by going on."""
    classes: tuple[JobClass, ...]
    """The kinds and queues of open jobs, to choose from, `MOST_CLASSES` at most; none where there are too many jobs."""


async def list_stuck(watched: Watched, wanted: StuckFilter, *, limit: int, cursor: str | None = None) -> StuckList:
    """List the stuck jobs that are meant, oldest sign of life first.

    Raises:
        InvalidRequestError: the limit is out of range or the cursor isn't one of ours.
    """
    check_limit(limit)
    positions = decode_cursor(cursor)
    look = await take_look(watched)
    scopes = await narrow(watched, await take_scopes(watched, look), wanted)
    parts = {
        state: await _search(watched, scopes, wanted, state, limit + 1, positions.get(state))
        for state in ACCUSED_STATES
        if cursor is None or state in positions
    }
    chosen, going_on = _merged(parts, limit)
    number, exact = await _count(watched, scopes, wanted, parts, is_all=cursor is None and not going_on)
    told = await with_outlook(watched, look, chosen)
    classes = await watched.source.open_classes() if exact else ()
    return StuckList(
        look=look,
        jobs=tuple(Found(finding, found.policy) for finding, found in zip(told, chosen, strict=True)),
        number=number,
        exact=exact,
        next_cursor=encode_positions(going_on) if going_on else None,
        complete=all(part.complete for part in parts.values()),
        classes=tuple(sorted(classes, key=lambda each: (each.kind or "", each.queue or ""))[:MOST_CLASSES]),
    )


class _Part(NamedTuple):
    """What was found in a state, and how far that was."""

    begun: Position | None
    found: Sequence[Found]
    complete: bool
    """All were looked through, or as many found as were wanted."""
    reached: Position | None
    """The last job that was looked at."""


async def _search(
    watched: Watched, scopes: Sequence[Scope], wanted: StuckFilter, state: JobState, limit: int, after: Position | None
) -> _Part:
    found: list[Found] = []
    searched, begun = 0, after
    size = limit if wanted.text is None and wanted.reason is None else MOST_SEARCHED
    while True:
        read = await oldest_found(watched, scopes, state, size, after)
        found += [each for each in read if wanted.takes(each.finding.job, each.finding.diagnosis.reason)]
        searched += len(read)
        after = position_of(read[-1].finding.job) if read else after
        if len(found) >= limit or len(read) < size:
            return _Part(begun, found[:limit], complete=True, reached=after)
        if searched >= MOST_SEARCHED:
            return _Part(begun, found, complete=False, reached=after)


def _merged(parts: Mapping[JobState, _Part], limit: int) -> tuple[list[Found], dict[JobState, Position | None]]:
    """Return the oldest of all states, and where each goes on from."""
    each_found = [found for part in parts.values() for found in part.found]
    chosen = sorted(each_found, key=lambda each: (each.finding.since, str(each.finding.job.id)))[:limit]
    going_on: dict[JobState, Position | None] = {}
    for state, part in parts.items():
        shown = [each for each in chosen if each.finding.job.state is state]
        if len(shown) < len(part.found):
            going_on[state] = position_of(shown[-1].finding.job) if shown else part.begun
        elif not part.complete and part.reached is not None:
            going_on[state] = part.reached
    return chosen, going_on


async def _count(
    watched: Watched,
    scopes: Sequence[Scope],
    wanted: StuckFilter,
    parts: Mapping[JobState, _Part],
    *,
    is_all: bool,
) -> tuple[int, bool]:
    """Count what is meant, up to `MOST_COUNTED`, and tell whether that is all."""
    if is_all:
        return sum(len(part.found) for part in parts.values()), True
    if wanted.text is not None or wanted.reason is not None:
        return sum(len(part.found) for part in parts.values()), False
    number = 0
    for scope in scopes:
        states = tuple(state for state in scope.look.states if not _asks(watched, scope, state))
        if states:
            counts = await watched.source.count_suspects(replace(scope.look, states=states), MOST_COUNTED + 1)
            number += counts.total
        if len(states) < len(scope.look.states):
            number += len((await convicted_running(watched, scope)).convicted)
        if number > MOST_COUNTED:
            return MOST_COUNTED, False
    return number, True


def _asks(watched: Watched, scope: Scope, state: JobState) -> bool:
    return state is JobState.RUNNING and asks_witnesses(watched, scope)
