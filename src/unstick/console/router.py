"""The console's router: to include in a host's FastAPI app, with the host's own login, or in the service."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter

from unstick.api.route import recorded_route
from unstick.api.router import gate
from unstick.api.sources import Sources
from unstick.console.files import add_files
from unstick.console.overview import add_overview
from unstick.console.preferences import add_preferences
from unstick.console.rendering import render_problem
from unstick.pipeline.watched import OpenWatched

PREFIX = "/console"


def console_router(
    *, watched: Mapping[str, OpenWatched], principal: Callable[..., Any], prefix: str = PREFIX
) -> APIRouter:
    """Return the pages for these sources.

    `principal` is a FastAPI dependency that returns the caller as a `Principal`, or refuses them by raising an
    `HTTPException`. Every page and every change is a call in the audit log, as those of the API are.

    Raises:
        ConfigurationError: there is no source.
    """
    pages = APIRouter(route_class=recorded_route(Sources(watched), render_problem))
    needs = gate(principal)
    add_overview(pages, needs)
    router = APIRouter(prefix=prefix, include_in_schema=False)
    add_files(router)
    add_preferences(router)
    router.include_router(pages)
    return router
