"""`/sources`: each source, what it can do, how the watch over it goes, its brake and its snoozes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, HTTPException, Response, params

from unstick.api.call import Call, CurrentCall
from unstick.console.rendering import redirect, render
from unstick.domain.access import Role
from unstick.domain.schedule import Timetable
from unstick.domain.snooze import Snooze
from unstick.domain.wording import Phrase
from unstick.pipeline.braking import release_brake
from unstick.pipeline.overview import SourceOverview, overviews
from unstick.pipeline.snoozing import live_snoozes
from unstick.ports import Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePage:
    """What is shown of a source; nothing but the overview where it doesn't answer."""

    found: SourceOverview
    able: Capabilities | None = None
    witnesses: tuple[str, ...] = ()
    snoozes: Sequence[Snooze] = ()


async def _page(call: Call, found: SourceOverview) -> SourcePage:
    if found.overview is None:
        return SourcePage(found=found)
    async with call.open(found.source) as watched:
        return SourcePage(
            found=found,
            able=watched.source.capabilities,
            witnesses=tuple(each.name for each in watched.witnesses),
            snoozes=await live_snoozes(watched),
        )


async def release(call: CurrentCall, source: str) -> Response:
    """Release the brake: the next unattended sweep may recover as many jobs as it was held from."""
    async with call.open(source) as watched:
        brake = await release_brake(watched, call.actor)
    if brake is None:
        raise HTTPException(409, Phrase("No brake holds source %(source)s.", source=repr(source)))
    call.result["suspects"] = brake.suspects
    return redirect(call.request, "console.sources")


def add_source_pages(router: APIRouter, needs: Callable[[Role], params.Depends], timetable: Timetable | None) -> None:
    """Add the pages to a router."""

    async def sources(call: CurrentCall) -> Response:
        """Show the sources."""
        found = await overviews(call.sources.all, timetable)
        return render(call.request, "sources.html", pages=[await _page(call, each) for each in found])

    router.add_api_route("/sources", sources, name="console.sources", dependencies=[needs(Role.VIEWER)])
    router.add_api_route(
        "/sources/{source}/release-brake",
        release,
        methods=["POST"],
        name="console.brake.release",
        dependencies=[needs(Role.ADMIN)],
    )
