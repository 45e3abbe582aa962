"""`/tokens` and `/sessions`: who has a way in, and its end."""

from collections.abc import Callable
from datetime import timedelta

from fastapi import APIRouter, Response, params

from unstick.api.call import Call, CurrentCall
from unstick.console.forms import Form
from unstick.console.rendering import SESSION, redirect, render
from unstick.domain.access import LONGEST_NAME, LONGEST_TOKEN, TOKEN_LASTS, Role, read_secret
from unstick.domain.errors import InvalidRequestError
from unstick.domain.wording import Phrase
from unstick.pipeline.credentials import (
    MAX_LISTED,
    TokenOrder,
    living_sessions,
    living_tokens,
    make_token,
    revoke_session,
    revoke_sessions,
    revoke_token,
)
from unstick.pipeline.watched import Watched


async def show_tokens(call: CurrentCall) -> Response:
    """Show the tokens, and the form that makes one."""
    async with call.open(None) as watched:
        return await _tokens(call, watched)


async def make_a_token(call: CurrentCall, form: Form) -> Response:
    """Make a token, and show what its bearer sends: on this page and never again."""
    async with call.open(None) as watched:
        try:
            made = await make_token(watched, _order(call, form))
        except InvalidRequestError as error:
            return await _tokens(call, watched, status=422, problem=error.args[0])
        call.swept = True
        return await _tokens(call, watched, made=made[1])


async def revoke_a_token(call: CurrentCall, token_id: str) -> Response:
    """Revoke a token, and end the sessions that it opened."""
    async with call.open(None) as watched:
        await revoke_token(watched, call.principal, token_id)
        call.swept = True
    return redirect(call.request, "console.tokens")


async def show_sessions(call: CurrentCall) -> Response:
    """Show one's own sessions, or as an administrator everybody's."""
    async with call.open(None) as watched:
        sessions = await living_sessions(watched, call.principal)
    return render(call.request, "access/sessions.html", sessions=sessions, mine=_own_id(call), most=MAX_LISTED)


async def revoke_a_session(call: CurrentCall, session_id: str) -> Response:
    """End a session."""
    async with call.open(None) as watched:
        await revoke_session(watched, call.principal, session_id)
        call.swept = True
    return redirect(call.request, "console.sessions")


async def revoke_all_sessions(call: CurrentCall, form: Form) -> Response:
    """End all sessions of a name."""
    async with call.open(None) as watched:
        await revoke_sessions(watched, call.principal, form.get("name", ""))
        call.swept = True
    return redirect(call.request, "console.sessions")


def add_credentials(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the pages to a router."""
    admin, anybody = [needs(Role.ADMIN)], [needs(Role.VIEWER)]
    add = router.add_api_route
    add("/tokens", show_tokens, name="console.tokens", dependencies=admin)
    add("/tokens", make_a_token, methods=["POST"], name="console.tokens.make", dependencies=admin)
    add("/tokens/{token_id}/revoke", revoke_a_token, methods=["POST"], name="console.tokens.revoke", dependencies=admin)
    add("/sessions", show_sessions, name="console.sessions", dependencies=anybody)
    add(
        "/sessions/{session_id}/revoke",
        revoke_a_session,
        methods=["POST"],
        name="console.sessions.revoke",
        dependencies=anybody,
    )
    add(
        "/sessions/revoke",
        revoke_all_sessions,
        methods=["POST"],
        name="console.sessions.revoke_all",
        dependencies=anybody,
    )


async def _tokens(
    call: Call, watched: Watched, *, status: int = 200, made: str | None = None, problem: str | None = None
) -> Response:
    return render(
        call.request,
        "access/tokens.html",
        status=status,
        tokens=await living_tokens(watched),
        made=made,
        problem=problem,
        roles=list(Role),
        days=TOKEN_LASTS.days,
        most_days=LONGEST_TOKEN.days,
        longest_name=LONGEST_NAME,
    )


def _own_id(call: Call) -> str | None:
    shown = read_secret(call.request.scope.get(SESSION, ""))
    return None if shown is None else shown.id


def _order(call: Call, form: Form) -> TokenOrder:
    role, days = form.get("role", ""), form.get("days", "")
    if role not in list(Role) or not (days.isascii() and days.isdigit() and len(days) <= len(str(LONGEST_TOKEN.days))):
        raise InvalidRequestError(
            Phrase("Choose a role, and a number of days up to %(days)s.", days=LONGEST_TOKEN.days)
        )
    return TokenOrder(
        actor=call.actor,
        role=call.role,
        name=form.get("name", ""),
        scope=Role(role),
        lasting=timedelta(days=int(days)),
    )
