"""The service's app."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from unstick import __version__
from unstick.api.health import health_router
from unstick.api.problems import log_failure, problem_of
from unstick.api.router import PREFIX, admin_router
from unstick.domain.schedule import Timetable
from unstick.pipeline.watched import OpenWatched

_OPENAPI = "/openapi.json"
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(
    *,
    watched: Mapping[str, OpenWatched],
    principal: Callable[..., Any],
    timetable: Timetable | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
    metrics: APIRouter | None = None,
    console: APIRouter | None = None,
    keeps_tokens: bool = False,
    read_only: bool = False,
) -> FastAPI:
    """Return the service for these sources, with `/metrics` where there are any, and with the console's pages.

    Raises:
        ConfigurationError: there is no source.
    """
    app = FastAPI(
        title="Unstick",
        summary="Finds background jobs that will never finish, says why, and recovers them.",
        version=__version__,
        openapi_url=_OPENAPI,
        docs_url=None,  # both pages load their scripts from somebody else's server
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.include_router(
        admin_router(
            watched=watched,
            principal=principal,
            keeps_tokens=keeps_tokens,
            read_only=read_only,
            timetable=timetable,
        )
    )
    app.include_router(health_router(watched, timetable or Timetable()))
    if metrics is not None:
        app.include_router(metrics)
    if console is not None:
        app.include_router(console)
    app.add_api_route("/", _root(console), response_model=None, include_in_schema=False)
    for kind in (HTTPException, Exception):
        app.add_exception_handler(kind, _render)
    app.add_middleware(_SecurityHeaders)
    return app


def _root(console: APIRouter | None) -> Callable[[Request], Awaitable[Response]]:
    async def root(request: Request) -> Response:
        """Tell a program where the API is, and bring a person to the console."""
        path = request.scope.get("root_path", "")
        if console is not None and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"{path}{console.prefix}/", 303)
        return JSONResponse(
            {"name": "Unstick", "version": __version__, "api": path + PREFIX, "openapi": path + _OPENAPI}
        )

    return root


async def _render(request: Request, error: Exception) -> Response:
    del request
    problem = problem_of(error)
    if problem.failed:
        log_failure(f"A call is answered {problem.status}: {problem.detail}", error)
    return problem.response()


class _SecurityHeaders:
    """Adds the headers to every answer that doesn't bring its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
