"""`/`: what is wrong, worst first."""

from collections.abc import Callable

from fastapi import APIRouter, Response, params

from unstick.api.call import CurrentCall
from unstick.console.rendering import render
from unstick.domain.access import Role


async def overview(call: CurrentCall) -> Response:
    """Show what is wrong, worst first, or what was checked and when."""
    return render(call.request, "overview.html")


def add_overview(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the page to a router."""
    router.add_api_route("/", overview, name="console.overview", dependencies=[needs(Role.VIEWER)])
