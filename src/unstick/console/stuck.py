"""`/stuck`: the stuck jobs, each with the sentence that says why."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, params

from unstick.api.call import CurrentCall
from unstick.api.parameters import no_repeats
from unstick.console.queries import PAGE, StuckQuery
from unstick.console.rendering import render
from unstick.domain.access import Role
from unstick.domain.diagnosis import STUCK, Reason
from unstick.pipeline.listing import list_stuck


async def stuck(call: CurrentCall, query: Annotated[StuckQuery, Query()]) -> Response:
    """List stuck jobs, oldest sign of life first, by what the address asks for."""
    async with call.open(query.source) as watched:
        source, able = watched.source.name, watched.source.capabilities
        listed = await list_stuck(watched, query.wanted, limit=PAGE, cursor=query.cursor)
    return render(
        call.request,
        "stuck.html",
        source=source,
        able=able,
        listed=listed,
        query=query,
        kinds=sorted({each.kind for each in listed.classes if each.kind}),
        queues=sorted({each.queue for each in listed.classes if each.queue}),
        reasons=[each for each in Reason if each in STUCK and each is not Reason.POISON],
    )


def add_stuck(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the page to a router."""
    router.add_api_route(
        "/stuck", stuck, name="console.jobs.stuck", dependencies=[needs(Role.VIEWER), Depends(no_repeats)]
    )
