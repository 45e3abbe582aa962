"""The console's router: to include in a host's FastAPI app, with the host's own login, or in the service."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from unstick.api.problems import Problem
from unstick.api.route import recorded_route
from unstick.api.router import gate
from unstick.api.sources import Sources
from unstick.console.audit import add_audit
from unstick.console.cleanup import add_cleanup
from unstick.console.credentials import add_credentials
from unstick.console.files import add_files
from unstick.console.job import add_job
from unstick.console.live import add_live
from unstick.console.operations import add_operations
from unstick.console.origin import from_here
from unstick.console.overview import add_overview
from unstick.console.policy import add_policy
from unstick.console.preferences import add_preferences
from unstick.console.rendering import render_problem
from unstick.console.session import SignIn, sign_in_first
from unstick.console.sign_in import LINK_PATH, add_sign_in
from unstick.console.source_pages import add_source_pages
from unstick.console.stuck import add_stuck
from unstick.domain.access import Secret
from unstick.domain.schedule import Timetable
from unstick.domain.wording import Phrase
from unstick.pipeline.watched import OpenWatched

PREFIX = "/console"
FACE = "console."
"""What the names of the console's routes begin with; the rest is what the audit log calls them."""


def console_router(
    *,
    watched: Mapping[str, OpenWatched],
    principal: Callable[..., Any] | SignIn,
    timetable: Timetable | None = None,
    prefix: str = PREFIX,
    read_only: bool = False,
) -> APIRouter:
    """Return the pages for these sources.

    `principal` is a FastAPI dependency that returns the caller as a `Principal`, or refuses them by raising an
    `HTTPException`; or the console's own sign-in. `timetable` says how often sources are to be observed and swept;
    without it nobody is expected to. Where `read_only`, nothing can be changed. Every page and every change is a call
    in the audit log, as those of the API are.

    Raises:
        ConfigurationError: there is no source.
    """
    sign_in = principal if isinstance(principal, SignIn) else None
    shown = render_problem if sign_in is None else sign_in_first
    pages = APIRouter(route_class=recorded_route(Sources(watched), shown, FACE))
    needs = gate(principal.principal if isinstance(principal, SignIn) else principal, read_only=read_only)
    add_overview(pages, needs, timetable)
    add_stuck(pages, needs)
    add_cleanup(pages, needs)
    add_operations(pages, needs)
    add_audit(pages, needs)
    add_policy(pages, needs)
    add_source_pages(pages, needs, timetable)
    add_live(pages, needs)
    add_job(pages, needs)
    router = APIRouter(prefix=prefix, include_in_schema=False, dependencies=[Depends(from_here)])
    add_files(router)
    add_preferences(router)
    if sign_in is not None:
        add_sign_in(router, sign_in)
        add_credentials(pages, needs)
    router.include_router(pages)
    router.add_api_route("/{elsewhere:path}", _nowhere)
    return router


async def _nowhere(request: Request) -> Response:
    """Show a person the way back; an address of no page is no call, and nothing is recorded."""
    return render_problem(request, Problem(status=404, detail=Phrase("There is no such page.")))


def link_path(secret: Secret) -> str:
    """Return the path of a sign-in link, below the service's own address."""
    return f"{PREFIX}{LINK_PATH}?key={secret.text}"
