"""`/stuck`: the stuck jobs, each with the sentence that says why."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, params

from unstick.api.call import CurrentCall
from unstick.api.parameters import no_repeats
from unstick.console.queries import PAGE, StuckQuery
from unstick.console.recent import Recent
from unstick.console.rendering import render
from unstick.domain.access import Role
from unstick.domain.diagnosis import STUCK, Reason
from unstick.pipeline.listing import StuckList, list_stuck
from unstick.pipeline.snoozing import live_snoozes
from unstick.pipeline.watched import Watched


async def _list(watched: Watched, query: StuckQuery, recent: Recent[StuckList]) -> StuckList:
    """List what is asked for; what was dear is told again until an event is on record or a snooze changes."""
    log, source = watched.event_log, watched.source.name
    newest = 0 if log is None else await log.last(source)
    snoozed = frozenset(each.job_id for each in await live_snoozes(watched))
    wanted = query.wanted
    return await recent.get(
        (source, wanted, query.cursor, newest, snoozed),
        lambda: list_stuck(watched, wanted, limit=PAGE, cursor=query.cursor),
    )


def add_stuck(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the page to a router."""
    recent = Recent[StuckList]()

    async def stuck(call: CurrentCall, query: Annotated[StuckQuery, Query()]) -> Response:
        """List stuck jobs, oldest sign of life first, by what the address asks for."""
        async with call.open(query.source) as watched:
            source, able = watched.source.name, watched.source.capabilities
            listed = await _list(watched, query, recent)
            now = await watched.source.clock()
        return render(
            call.request,
            "stuck.html",
            source=source,
            able=able,
            listed=listed,
            now=now,
            query=query,
            kinds=sorted({each.kind for each in listed.classes if each.kind}),
            queues=sorted({each.queue for each in listed.classes if each.queue}),
            reasons=[each for each in Reason if each in STUCK and each is not Reason.POISON],
        )

    router.add_api_route(
        "/stuck", stuck, name="console.jobs.stuck", dependencies=[needs(Role.VIEWER), Depends(no_repeats)]
    )
