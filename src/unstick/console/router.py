"""The console's router: to include in a host's FastAPI app, with the host's own login, or in the service."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter

from unstick.api.route import recorded_route
from unstick.api.router import gate
from unstick.api.sources import Sources
from unstick.console.audit import add_audit
from unstick.console.cleanup import add_cleanup
from unstick.console.files import add_files
from unstick.console.job import add_job
from unstick.console.live import add_live
from unstick.console.operations import add_operations
from unstick.console.overview import add_overview
from unstick.console.policy import add_policy
from unstick.console.preferences import add_preferences
from unstick.console.rendering import render_problem
from unstick.console.source_pages import add_source_pages
from unstick.console.stuck import add_stuck
from unstick.domain.schedule import Timetable
from unstick.pipeline.watched import OpenWatched

PREFIX = "/console"
FACE = "console."
"""What the names of the console's routes begin with; the rest is what the audit log calls them."""


def console_router(
    *,
    watched: Mapping[str, OpenWatched],
    principal: Callable[..., Any],
    timetable: Timetable | None = None,
    prefix: str = PREFIX,
) -> APIRouter:
    """Return the pages for these sources.

    `principal` is a FastAPI dependency that returns the caller as a `Principal`, or refuses them by raising an
    `HTTPException`. `timetable` says how often sources are to be observed and swept; without it nobody is
    expected to. Every page and every change is a call in the audit log, as those of the API are.

    Raises:
        ConfigurationError: there is no source.
    """
    pages = APIRouter(route_class=recorded_route(Sources(watched), render_problem, FACE))
    needs = gate(principal)
    add_overview(pages, needs, timetable)
    add_stuck(pages, needs)
    add_cleanup(pages, needs)
    add_operations(pages, needs)
    add_audit(pages, needs)
    add_policy(pages, needs)
    add_source_pages(pages, needs, timetable)
    add_live(pages, needs)
    add_job(pages, needs)
    router = APIRouter(prefix=prefix, include_in_schema=False)
    add_files(router)
    add_preferences(router)
    router.include_router(pages)
    return router
