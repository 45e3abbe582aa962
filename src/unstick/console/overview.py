"""`/`: what is wrong, worst first, or what was checked and when."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce

from fastapi import APIRouter, Response, params

from unstick.api.call import Call, CurrentCall
from unstick.console.charts import Chart, Series, columns
from unstick.console.language import Words
from unstick.console.rendering import render, words_for
from unstick.domain.access import Role
from unstick.domain.filter import StuckFilter
from unstick.domain.job import JobState
from unstick.domain.record import Span
from unstick.domain.recovery import Action
from unstick.domain.schedule import Timetable
from unstick.pipeline.listing import StuckList, list_stuck
from unstick.pipeline.overview import Matter, SourceOverview, overviews

_OLDEST = 5
"""So many stuck jobs are shown, the oldest; where they are cheap to find."""
_MOST_QUEUES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenQueue:
    """The open jobs of a queue."""

    source: str
    queue: str
    jobs: Mapping[JobState, int]
    stuck: int
    workers: int | None
    """How many living workers serve it, None where that isn't known."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.jobs.values())


def open_queues(found: Sequence[SourceOverview]) -> list[OpenQueue]:
    """Return the queues of all sources, the fullest first."""
    queues = []
    for each in found:
        if each.overview is None:
            continue
        seen = each.overview.observed
        names = {queue for queue, _ in (*seen.open_jobs, *seen.stuck)}
        queues += [
            OpenQueue(
                source=each.source,
                queue=name or "",
                jobs={state: number for (queue, state), number in seen.open_jobs.items() if queue == name},
                stuck=sum(number for (queue, _), number in seen.stuck.items() if queue == name),
                workers=seen.workers.serving(name),
            )
            for name in names
        ]
    return sorted(queues, key=lambda each: (-each.stuck, -each.total, each.queue))[:_MOST_QUEUES]


def recoveries_chart(words: Words, spans: Sequence[Span]) -> Chart:
    """Draw what was recovered, and what finished after all."""
    _ = words.gettext
    parts = (
        ("failed", _("marked failed"), [each.recovered.get(Action.MARK_FAILED, 0) for each in spans]),
        ("retried", _("queued again"), [each.recovered.get(Action.RETRY, 0) for each in spans]),
        ("late", _("late finishes"), [each.late_finishes for each in spans]),
    )
    return columns(
        [Series(key=key, label=label, values=tuple(values)) for key, label, values in parts],
        [each.begins_at for each in spans],
        words.number,
        _hour,
    )


def _hour(at: datetime) -> str:
    return f"{at:%H:%M}"


def add_overview(router: APIRouter, needs: Callable[[Role], params.Depends], timetable: Timetable | None) -> None:
    """Add the page to a router; `timetable` says how often sources are to be observed and swept."""

    async def overview(call: CurrentCall) -> Response:
        """Show what is wrong with any source, worst first."""
        found = await overviews(call.sources.all, timetable)
        order = list(Matter)
        concerns = sorted((each for one in found for each in one.concerns), key=lambda each: order.index(each.matter))
        return render(
            call.request,
            "overview.html",
            found=found,
            concerns=concerns,
            oldest=await _oldest(call, found),
            queues=open_queues(found),
            chart_figure=recoveries_chart(words_for(call.request), _spans(found)),
        )

    router.add_api_route("/", overview, name="console.overview", dependencies=[needs(Role.VIEWER)])


async def _oldest(call: Call, found: Sequence[SourceOverview]) -> list[tuple[str, StuckList]]:
    lists = []
    for each in found:
        if each.overview is not None and each.overview.just_now and each.overview.observed.stuck_jobs:
            async with call.open(each.source) as watched:
                lists.append((each.source, await list_stuck(watched, StuckFilter(), limit=_OLDEST)))
    return lists


def _spans(found: Sequence[SourceOverview]) -> Sequence[Span]:
    """Add up what was done to all sources."""
    each_spans = [each.overview.spans for each in found if each.overview is not None and each.overview.spans]
    return [reduce(_sum, at_once) for at_once in zip(*each_spans, strict=True)]


def _sum(one: Span, other: Span) -> Span:
    recovered = {
        action: one.recovered.get(action, 0) + other.recovered.get(action, 0)
        for action in (*one.recovered, *other.recovered)
    }
    return Span(
        begins_at=one.begins_at,
        ends_at=one.ends_at,
        recovered=recovered,
        late_finishes=one.late_finishes + other.late_finishes,
    )
