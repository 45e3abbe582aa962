"""The route that records and renders: whatever comes of a call is in the audit log before it is answered.

It does both itself, rather than by middleware or exception handlers, for those belong to the app, and the
router must keep its word in any app that includes it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from unstick.api.call import Call
from unstick.api.problems import Problem, RefusedError, as_json, log_failure, problem_of, says_it_all
from unstick.api.sources import Sources
from unstick.api.together import Together
from unstick.api.words import said
from unstick.domain.audit import AuditOutcome
from unstick.domain.errors import RecoveryStoppedError, UnstickError

Render = Callable[[Request, Problem], Response]
"""Shows a problem to whoever called."""
_Handler = Callable[[Request], Awaitable[Response]]
_UNRECORDED = "This call can't be recorded in the audit log, so it is not answered."
_ANSWERED_ANYWAY = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""Answers that let nobody in and tell nothing of a job, and the one that says as much: recorded where that can be."""


def recorded_route(sources: Sources, render: Render = as_json, face: str = "") -> type[APIRoute]:
    """Return the route class for calls on these sources; a route's name is what the audit log calls it.

    `face` is what names begin with besides, where a call of the same name has another route elsewhere.
    """
    together = Together()
    taken: defaultdict[str, set[str]] = defaultdict(set)
    """Which methods each address takes, by however many routes."""

    class RecordedRoute(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - FastAPI's
            super().__init__(path, endpoint, **options)
            taken[path] |= self.methods or set()

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def answer(request: Request) -> Response:
                return _kept_by_no_cache(await _answer(self.call(request), handler, render))

            return answer

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Answer a method that the call doesn't take, which no handler would ever see, as a call like others."""
            if not self.methods or scope["method"] in self.methods:
                await super().handle(scope, receive, send)
                return
            request = Request(scope, receive)
            error = _wrong_method(request, taken[self.path])
            response = await _answer_error(self.call(request), error, render)
            await _kept_by_no_cache(response)(scope, receive, send)

        def call(self, request: Request) -> Call:
            return Call(self.name.removeprefix(face), request, sources, together)

    return RecordedRoute


def _kept_by_no_cache(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def _wrong_method(request: Request, allowed: Collection[str]) -> HTTPException:
    takes = ", ".join(sorted(allowed))
    return HTTPException(405, f"This address takes {takes}, not {said(request.method)}.", {"Allow": takes})


async def _answer(call: Call, handler: _Handler, render: Render) -> Response:
    try:
        response = await handler(call.request)
    except asyncio.CancelledError:
        if not call.swept:
            await asyncio.shield(_record(call, AuditOutcome.FAILED, {"problem": "interrupted"}))
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded and answered as a problem
        return await _answer_error(call, error, render)
    if call.swept:
        return response
    lost = await _record(call, AuditOutcome.DONE, {"status": response.status_code, **call.result})
    if lost is None:
        return response
    _log_lost(call, lost)
    return render(call.request, _unrecorded(lost))


async def _answer_error(call: Call, error: Exception, render: Render) -> Response:
    if isinstance(error, RefusedError):
        call.name_caller(error.actor, error.role)
    if _is_the_hosts(call, error):
        return await _leave_to_the_host(call, error, render)
    problem = problem_of(_login_first(call, error))
    lost = None
    if not isinstance(error, RecoveryStoppedError):  # of which the sweep has recorded its end
        lost = await _record(call, _outcome(problem), {"status": problem.status, "problem": said(problem.detail)})
    _log(call, problem, error, lost)
    return render(call.request, problem if lost is None else _unrecorded(lost, problem))


def _login_first(call: Call, error: Exception) -> Exception:
    """Whoever isn't known hears nothing of their parameters, nor of those that a host's login wants."""
    if isinstance(error, RequestValidationError) and not call.is_known:
        return RefusedError(401, "Authenticate first.")
    return error


def _is_the_hosts(call: Call, error: Exception) -> bool:
    """Tell whether a host's login failed by an error of the host's own that its app knows to answer."""
    if call.is_known or isinstance(error, UnstickError | RequestValidationError | RefusedError):
        return False
    handlers, _ = call.request.scope.get("starlette.exception_handlers", ({}, {}))
    return any(kind in handlers for kind in type(error).__mro__ if not issubclass(HTTPException, kind))


async def _leave_to_the_host(call: Call, error: Exception, render: Render) -> Response:
    said_so = f"The host's login failed, and the host answers: {type(error).__name__}."
    lost = await _record(call, AuditOutcome.REFUSED, {"problem": said_so})
    if lost is None:
        raise error
    _log_lost(call, lost)
    return render(call.request, _unrecorded(lost))


def _outcome(problem: Problem) -> AuditOutcome:
    return AuditOutcome.FAILED if problem.failed else AuditOutcome.REFUSED


async def _record(call: Call, outcome: AuditOutcome, result: Mapping[str, object]) -> Exception | None:
    """Write the call to the audit log; return why that failed, if it did."""
    try:
        await call.record(outcome, result)
    except Exception as error:  # noqa: BLE001 - the caller of this logs it, beside what it answers
        return error
    return None


def _log(call: Call, problem: Problem, error: Exception, lost: Exception | None) -> None:
    """Log what failed, once a call where the same trouble keeps it from its answer and from the audit log."""
    same_trouble = says_it_all(error) and says_it_all(lost)
    if problem.failed:
        unrecorded = " and is not in the audit log" if same_trouble else ""
        log_failure(f"{_named(call)} is answered {problem.status}{unrecorded}: {problem.detail}", error)
    if lost is not None and not same_trouble:
        _log_lost(call, lost)


def _log_lost(call: Call, lost: Exception) -> None:
    log_failure(f"{_named(call)} can't be recorded in the audit log: {lost}", lost)


def _named(call: Call) -> str:
    return f"The call {call.name} by {call.actor!r}"


def _unrecorded(lost: Exception, problem: Problem | None = None) -> Problem:
    """Say that a call isn't answered; only whoever was let in hears why, and whoever wasn't hears that they weren't."""
    if problem is not None and problem.status in _ANSWERED_ANYWAY:
        return problem
    was_let_in = problem is None or problem.failed
    why = f" {lost}" if was_let_in and isinstance(lost, UnstickError) else ""
    return Problem(status=503, detail=_UNRECORDED + why)
