"""The session in a browser's cookie: whom a page is for, and how the cookie comes and goes."""

from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import URL

from unstick.api.auth import ReadBearer
from unstick.api.problems import Problem, RefusedError
from unstick.console.rendering import SESSION, here, path_to, render_problem
from unstick.domain.access import Principal, Visit
from unstick.pipeline.signing_in import SignedIn, session_principal
from unstick.pipeline.watched import OpenWatched

_COOKIE = "unstick_session"
_HOST_COOKIE = "__Host-unstick_session"
_LONGEST_COOKIE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """How people sign in to the console, where no host's login says who they are."""

    opened: OpenWatched
    """Opens the source whose ledger keeps who gets in."""
    read: ReadBearer
    """Reads the tokens that people sign in with."""

    async def principal(self, request: Request) -> Principal:
        """Return whom the session in the cookie is of, or a bearer's token: the dependency of every page."""
        scheme, sent = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() == "bearer":
            return (await self.read(sent)).principal
        shown = shown_session(request)
        if shown is not None:
            async with self.opened() as watched:
                principal = await session_principal(watched, shown)
            if principal is not None:
                request.scope[SESSION] = shown
                return principal
        raise RefusedError(401, "Sign in first.")


def shown_session(request: Request) -> str | None:
    """Return what the browser shows of its session."""
    shown = request.cookies.get(_cookie(request))
    return shown if shown and len(shown) <= _LONGEST_COOKIE else None


def begin_session(request: Request, signed_in: SignedIn, response: Response) -> Response:
    """Have the browser keep a session: for this console's pages alone, out of reach of any script."""
    response.set_cookie(
        _cookie(request),
        signed_in.secret.text,
        expires=signed_in.expires_at,
        path=_home(request),
        secure=_is_secure(request),
        httponly=True,
        samesite="lax",  # with `strict` a link to the console from a chat would find nobody signed in
    )
    return response


def end_session(request: Request, response: Response) -> Response:
    """Have the browser forget its session."""
    response.delete_cookie(
        _cookie(request), path=_home(request), secure=_is_secure(request), httponly=True, samesite="lax"
    )
    return response


def visit_of(request: Request) -> Visit:
    """Tell where a request comes from, as the server understood it."""
    address = "unknown" if request.client is None else request.client.host
    return Visit(address=address, browser=request.headers.get("user-agent", ""))


def sign_in_first(request: Request, problem: Problem) -> Response:
    """Bring somebody who asks for a page and isn't signed in to where they can, and back after."""
    asks_for_page = request.method == "GET" and request.headers.get("sec-fetch-dest", "document") == "document"
    if problem.status != 401 or not asks_for_page:  # noqa: PLR2004 - HTTP's own number
        return render_problem(request, problem)
    return RedirectResponse(str(URL(path_to(request, "console.sign_in")).include_query_params(next=here(request))), 303)


def _cookie(request: Request) -> str:
    """Name the cookie: browsers take the prefix only with `Secure` and for a whole host."""
    return _HOST_COOKIE if _is_secure(request) and _home(request) == "/" else _COOKIE


def _home(request: Request) -> str:
    return path_to(request, "console.overview")


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"
