"""The router: to include in a host's FastAPI app, with the host's own login, or in the service."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, params
from starlette.types import Lifespan

from unstick.api.audit import add_audit
from unstick.api.brakes import add_brakes
from unstick.api.call import CurrentCall
from unstick.api.events import LONGEST_UNTOLD, add_events
from unstick.api.hindsight import add_hindsight
from unstick.api.job import add_job
from unstick.api.jobs import add_jobs
from unstick.api.listing import add_listing
from unstick.api.overview import add_overview
from unstick.api.plans import add_plans
from unstick.api.problems import PROBLEMS
from unstick.api.route import recorded_route
from unstick.api.sources import Sources
from unstick.api.stats import add_stats
from unstick.api.tokens import add_tokens
from unstick.api.undo import add_undo
from unstick.domain.access import Role
from unstick.domain.schedule import Timetable
from unstick.pipeline.watched import OpenWatched

PREFIX = "/api/v1/admin"


def admin_router(
    *,
    watched: Mapping[str, OpenWatched],
    principal: Callable[..., Any],
    lifespan: Lifespan[Any] | None = None,
    keeps_tokens: bool = False,
    read_only: bool = False,
    timetable: Timetable | None = None,
    longest_untold: timedelta = LONGEST_UNTOLD,
) -> APIRouter:
    """Return the router for these sources.

    A stream of events ends after `longest_untold`, unless the app's `state.stopping` tells whether its server stops.

    `principal` is a FastAPI dependency that returns the caller as a `Principal`, or refuses them by raising an
    `HTTPException`: `bearer_principal`, or the host's own. Where it takes tokens that the ledger keeps, they are made
    and revoked here, too. If `read_only`, nothing can be changed. `timetable` says how often sources are to be observed
    and swept; without it nobody is expected to.

    Raises:
        ConfigurationError: there is no source.
    """
    router = APIRouter(
        prefix=PREFIX,
        tags=["unstick"],
        route_class=recorded_route(Sources(watched)),
        responses=PROBLEMS,
        lifespan=lifespan,
    )
    needs = gate(principal, read_only=read_only)
    add_jobs(router, needs)
    add_plans(router, needs)
    add_listing(router, needs)
    add_stats(router, needs)
    add_overview(router, needs, timetable)
    add_audit(router, needs)
    add_brakes(router, needs)
    add_undo(router, needs)
    add_hindsight(router, needs)
    add_job(router, needs)
    add_events(router, needs, longest_untold)
    if keeps_tokens:
        add_tokens(router, needs)
    return router


def gate(principal: Callable[..., Any], *, read_only: bool = False) -> Callable[[Role], params.Depends]:
    """Return what makes a call need a role.

    It is a dependency of the route, not of the function: those are resolved before any parameter is read, so
    that nobody learns from a 422 what they may not call.
    """

    def needs(role: Role) -> params.Depends:
        async def admit(call: CurrentCall, caller: Annotated[object, Depends(principal)]) -> None:
            call.read_only = read_only
            call.admit(caller, role)

        return params.Depends(admit)

    return needs
