"""The stuck jobs that somebody asked for, by their signs of life, in pages of a bounded number that is looked through.

Where more jobs are stuck, those that began first (or last) are looked through and put in order, then the next ones:
to put all in order would cost as much as they are. What is told of their number says so.
"""

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from unstick.domain.errors import InvalidRequestError
from unstick.domain.filter import StuckFilter
from unstick.domain.job import Job, JobClass, JobState
from unstick.domain.suspect import NOT_OUR_CURSOR, Look, Mark, Position
from unstick.pipeline.filtering import narrow, narrow_by_age
from unstick.pipeline.judging import convicted_running
from unstick.pipeline.looking import Judge, take_judge, take_look, take_scopes
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
    """What was found of a state, in the order of the list."""

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
    judge = await take_judge(watched, look)
    judge = replace(judge, look=narrow_by_age(judge.look, wanted))
    search = _Search(watched=watched, look=look, judge=judge, wanted=wanted, newest_first=newest_first)
    parts = {state: await search.part(state, places.get(state, _Place())) for state in wanted.states}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    watched: Watched
    look: Look
    judge: Judge
    wanted: StuckFilter
    newest_first: bool

    async def part(self, state: JobState, place: _Place) -> _Part:
        """Look through jobs of a state from a place on."""
        end, exact = None, True
        if state is JobState.RUNNING and self.watched.witnesses:
            looked_through, exact = await self._told_by_witnesses()
        else:
            stretch = await self.watched.source.stretch(
                self.judge.look, state, size=MOST_SEARCHED, after=place.mark, newest_first=self.newest_first
            )
            looked_through, end = self._accused(stretch.jobs), stretch.end
        found = [each for each in looked_through if self.wanted.takes(each.finding.job, each.finding.diagnosis.reason)]
        found.sort(key=_order, reverse=self.newest_first)
        rest = [each for each in found if _comes_after(each, place.shown, newest_first=self.newest_first)]
        return _Part(place, looked_through, found, rest, end, exact)

    def _accused(self, jobs: Sequence[Job]) -> list[Found]:
        scopes = ((job, self.judge.scope_accusing(job)) for job in jobs)
        return [Found(finding, scope.policy) for job, scope in scopes if scope for finding in findings_of([job], scope)]

    async def _told_by_witnesses(self) -> tuple[list[Found], bool]:
        """Return the running jobs that witnesses or age convict, and whether these are all."""
        found, exact = list[Found](), True
        scopes = await take_scopes(self.watched, self.look)
        for scope in await narrow(self.watched, scopes, replace(self.wanted, kind=None, queue=None)):
            if JobState.RUNNING in scope.look.states:
                running = await convicted_running(self.watched, scope)
                findings = (told_finding(each, scope) for each in running.convicted)
                found += [Found(finding, scope.policy) for finding in findings if finding is not None]
                exact &= running.exact
        return found, exact


def _order(found: Found) -> tuple[object, ...]:
    return order_of(position_of(found.finding.job))


def _comes_after(found: Found, shown: Position | None, *, newest_first: bool) -> bool:
    if shown is None:
        return True
    place, last = order_of(position_of(found.finding.job)), order_of(shown)
    return place < last if newest_first else place > last


def _merged(parts: Mapping[JobState, _Part], limit: int, *, newest_first: bool) -> tuple[list[Found], str | None]:
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


def _cursor(places: Mapping[JobState, _Place]) -> str:
    said = {
        state: [place.mark, None if place.shown is None else [str(place.shown.since), place.shown.job_id], place.before]
        for state, place in places.items()
    }
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode()


def _mark(begun: object, job_id: object) -> Mark:
    if isinstance(job_id, bool) or not isinstance(job_id, int | str) or not isinstance(begun, str | None):
        raise TypeError(begun, job_id)
    return Mark(begun, job_id)


def _places(cursor: str | None) -> dict[JobState, _Place]:
    """Read a cursor back; raise `InvalidRequestError` where it isn't one of ours."""
    if cursor is None:
        return {}
    try:
        said = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return {
            JobState(state): _Place(
                _mark(*mark) if mark else None, read_position(*shown) if shown else None, int(before)
            )
            for state, (mark, shown, before) in said.items()
        }
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(NOT_OUR_CURSOR) from error
