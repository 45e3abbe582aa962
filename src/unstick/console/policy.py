"""`/policy`: what holds for which jobs and what would fit; `/replay`: what thresholds would have done."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, params

from unstick.api.call import CurrentCall
from unstick.api.parameters import no_repeats
from unstick.console.queries import PageQuery, ReplayQuery
from unstick.console.recent import Recent
from unstick.console.rendering import render
from unstick.domain.access import Role
from unstick.domain.job import JobClass
from unstick.domain.policy import Policy
from unstick.pipeline.history import ReplayOrder, ReplayReport, SuggestionReport, replay, report_suggestions

_MOST_CLASSES = 100
_MOST_OPEN = 10_000
"""So many open jobs are asked for their kind and queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What holds for the open jobs of a kind and queue."""

    jobs: JobClass
    rule: int | None
    """The rule that says so, from 1; None where the policy itself does."""
    policy: Policy


def _in_force(base: Policy, source: str, jobs: JobClass) -> InForce:
    rule = base.rule_of(source, jobs)
    return InForce(jobs=jobs, rule=None if rule is None else base.rules.index(rule) + 1, policy=base.under(rule))


def _minutes(number: int | None) -> timedelta | None:
    return None if number is None else timedelta(minutes=number)


def add_policy(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the pages to a router."""
    suggestions, replays = Recent[SuggestionReport](), Recent[ReplayReport]()

    async def policy(call: CurrentCall, query: Annotated[PageQuery, Query()]) -> Response:
        """Show what holds for which jobs, and which thresholds would fit."""
        async with call.open(query.source) as watched:
            source, base = watched.source.name, watched.policy
            known = await watched.source.open_classes(_MOST_OPEN)
            classes = sorted(known.found, key=lambda each: (each.kind or "", each.queue or ""))
            suggested = None
            if watched.history is not None:
                suggested = await suggestions.get(source, partial(report_suggestions, watched))
        return render(
            call.request,
            "policy.html",
            source=source,
            policy=base,
            in_force=[_in_force(base, source, each) for each in classes[:_MOST_CLASSES]],
            more=max(0, len(classes) - _MOST_CLASSES),
            looked_at=None if known.complete else _MOST_OPEN,
            suggested=suggested,
        )

    async def show_replay(call: CurrentCall, query: Annotated[ReplayQuery, Query()]) -> Response:
        """Show what thresholds would have done to the jobs that ended lately."""
        order = ReplayOrder(
            days=query.days, running_after=_minutes(query.running), queued_after=_minutes(query.queued), kind=query.kind
        )
        async with call.open(query.source) as watched:
            source = watched.source.name
            report = await replays.get((source, order), partial(replay, watched, order))
        return render(call.request, "replay.html", source=source, report=report, query=query)

    reading = [needs(Role.VIEWER), Depends(no_repeats)]
    router.add_api_route("/policy", policy, name="console.policy", dependencies=reading)
    router.add_api_route("/replay", show_replay, name="console.replay", dependencies=reading)
