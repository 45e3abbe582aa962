"""The stuck jobs that somebody asked for, by their signs of life, in pages of a bounded number that is looked through.

Where more jobs are stuck, those that began first (or last) are looked through and put in order, then the next ones:
to put all in order would cost as much as they are. What is told of their number says so.
"""

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unstick.domain.errors import InvalidRequestError
from unstick.domain.filter import StuckFilter
from unstick.domain.job import JobClass, JobState
from unstick.domain.suspect import ACCUSED_STATES, NOT_OUR_CURSOR, Look, Mark, Position
from unstick.pipeline.filtering import narrow_by_age
from unstick.pipeline.judging import asks_witnesses, convicted_running
from unstick.pipeline.looking import Scope, take_look, take_scopes
from unstick.pipeline.report import (
    Found,
    check_limit,
    findings_of,
    order_of,
    position_of,
    read_position,
    told_finding,
    with_outlook,
)
from unstick.pipeline.watched import Watched

MOST_SEARCHED = 1_000
"""So many stuck jobs of a state are looked through at once, whatever is asked for."""
MOST_CLASSES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckList:
    """Some of the stuck jobs that were asked for."""

    look: Look
    jobs: tuple[Found, ...]
    number: int
    """How many there are among those that were looked through by now."""
    exact: bool
    """Otherwise there may be more."""
    looked_through: int
    """How many stuck jobs these are from."""
    next_cursor: str | None
    """Continues the list; None where it ends."""
    classes: tuple[JobClass, ...]
    """The kinds and queues of the jobs that were looked through, to choose from, `MOST_CLASSES` at most."""


class _Place(NamedTuple):
    """Where a part of the list goes on."""

    mark: Mark | None = None
    """After which the jobs to look through begin."""
    shown: Position | None = None
    """The last of these that was shown."""
    before: int = 0
    """How many were found in front of the mark."""


class _Part(NamedTuple):
    """What was found of a state in a scope, in the order of the list."""

    place: _Place
    looked_through: Sequence[Found]
    found: Sequence[Found]
    """Those that are meant."""
    rest: Sequence[Found]
    """Those of them that weren't shown."""
    end: Mark | None
    """Where others go on that weren't looked through."""
    exact: bool = True

    def after(self, shown: int) -> _Place:
        """Return where it goes on when so many more were shown."""
        if shown == len(self.rest) and self.end is not None:
            return _Place(mark=self.end, before=self.place.before + len(self.found))
        last = position_of(self.rest[shown - 1].finding.job) if shown else self.place.shown
        return self.place._replace(shown=last)

    def goes_on(self, shown: int) -> bool:
        """Tell whether anything is left when so many more were shown."""
        return shown < len(self.rest) or self.end is not None


async def list_stuck(
    watched: Watched, wanted: StuckFilter, *, limit: int, cursor: str | None = None, newest_first: bool = False
) -> StuckList:
    """List the stuck jobs that are meant, oldest or newest sign of life first; a cursor goes on in the same order.

    Raises:
        InvalidRequestError: the limit is out of range or the cursor isn't one of ours.
    """
    check_limit(limit)
    places = _places(cursor)
    look = await take_look(watched)
    scopes = narrow_by_age(await take_scopes(watched, look), wanted)
    parts = {
        key: await _part(watched, scope, state, wanted, places.get(key, _Place()), newest_first=newest_first)
        for number, scope in enumerate(scopes)
        for state in ACCUSED_STATES
        if (key := f"{state.value}.{number}") and state in scope.look.states
    }
    chosen, next_cursor = _merged(parts, limit, newest_first=newest_first)
    told = await with_outlook(watched, look, chosen)
    return StuckList(
        look=look,
        jobs=tuple(Found(finding, found.policy) for finding, found in zip(told, chosen, strict=True)),
        number=sum(part.place.before + len(part.found) for part in parts.values()),
        exact=all(part.end is None and part.exact for part in parts.values()),
        looked_through=sum(len(part.looked_through) for part in parts.values()),
        next_cursor=next_cursor,
        classes=_classes(parts.values()),
    )


async def _part(
    watched: Watched, scope: Scope, state: JobState, wanted: StuckFilter, place: _Place, *, newest_first: bool
) -> _Part:
    if state is JobState.RUNNING and asks_witnesses(watched, scope):
        running = await convicted_running(watched, scope)
        findings = [finding for each in running.convicted if (finding := told_finding(each, scope)) is not None]
        exact, end = running.exact, None
    else:
        stretch = await watched.source.stretch(
            scope.look, state, size=MOST_SEARCHED, after=place.mark, newest_first=newest_first
        )
        findings, exact, end = findings_of(stretch.jobs, scope), True, stretch.end
    looked_through = [Found(finding, scope.policy) for finding in findings]
    found = [each for each in looked_through if wanted.takes(each.finding.job, each.finding.diagnosis.reason)]
    found.sort(key=_order, reverse=newest_first)
    rest = [each for each in found if _comes_after(each, place.shown, newest_first=newest_first)]
    return _Part(place, looked_through, found, rest, end, exact)


def _order(found: Found) -> tuple[object, ...]:
    return order_of(position_of(found.finding.job))


def _comes_after(found: Found, shown: Position | None, *, newest_first: bool) -> bool:
    if shown is None:
        return True
    place, last = order_of(position_of(found.finding.job)), order_of(shown)
    return place < last if newest_first else place > last


def _merged(parts: Mapping[str, _Part], limit: int, *, newest_first: bool) -> tuple[list[Found], str | None]:
    """Return the first of all parts, and the cursor that goes on after them."""
    each_found = [(key, found) for key, part in parts.items() for found in part.rest]
    each_found.sort(key=lambda each: _order(each[1]), reverse=newest_first)
    chosen = each_found[:limit]
    shown = {key: sum(of is key for of, _ in chosen) for key in parts}
    goes_on = any(part.goes_on(shown[key]) for key, part in parts.items())
    places = {key: part.after(shown[key]) for key, part in parts.items()}
    return [found for _, found in chosen], _cursor(places) if goes_on else None


def _classes(parts: Collection[_Part]) -> tuple[JobClass, ...]:
    jobs = (found.finding.job for part in parts for found in part.looked_through)
    found = {JobClass(job.kind, job.queue) for job in jobs}
    return tuple(sorted(found, key=lambda each: (each.kind or "", each.queue or ""))[:MOST_CLASSES])


def _cursor(places: Mapping[str, _Place]) -> str:
    said = {
        key: [place.mark, None if place.shown is None else [str(place.shown.since), place.shown.job_id], place.before]
        for key, place in places.items()
    }
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode()


def _mark(begun: object, job_id: object) -> Mark:
    if isinstance(job_id, bool) or not isinstance(job_id, int | str) or not isinstance(begun, str | None):
        raise TypeError(begun, job_id)
    return Mark(begun, job_id)


def _places(cursor: str | None) -> dict[str, _Place]:
    """Read a cursor back; raise `InvalidRequestError` where it isn't one of ours."""
    if cursor is None:
        return {}
    try:
        said = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return {
            key: _Place(_mark(*mark) if mark else None, read_position(*shown) if shown else None, int(before))
            for key, (mark, shown, before) in said.items()
        }
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(NOT_OUR_CURSOR) from error
