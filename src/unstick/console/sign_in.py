"""`/sign-in`, `/sign-in/link`, `/sign-out`: the pages that nobody needs a session for."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from unstick.api.auth import ReadBearer
from unstick.api.problems import RefusedError, log_failure, problem_of
from unstick.console.forms import Form
from unstick.console.preferences import local_path
from unstick.console.rendering import path_to, render, render_problem
from unstick.console.session import SignIn, begin_session, end_session, shown_session, visit_of
from unstick.domain.access import Bearer
from unstick.domain.errors import SignInRefusedError, TooManyFailuresError, UnstickError
from unstick.pipeline.signing_in import SignedIn, sign_in_by_bearer, sign_in_by_link, sign_in_by_password, sign_out
from unstick.pipeline.watched import Watched

LINK_PATH = "/sign-in/link"
_NOT_YET = {"refused": False, "wait": 0}
_REFERRER = {"Referrer-Policy": "strict-origin"}
"""Not even a file of ours, which a proxy logs, is asked for with the link in `Referer`."""


async def show_sign_in(request: Request) -> Response:
    """Show where to sign in."""
    return _sign_in_page(request, request.query_params)


async def show_link(request: Request) -> Response:
    """Show the button that uses a link: who only looks at it, such as a chat's preview, doesn't use it up."""
    page = render(request, "access/link.html", key=request.query_params.get("key", ""), **_NOT_YET)
    page.headers.update(_REFERRER)
    return page


def add_sign_in(router: APIRouter, sign_in: SignIn) -> None:
    """Add the pages to a router."""

    async def send_sign_in(request: Request, form: Form) -> Response:
        """Begin a session by password or token, and go on to the page that was asked for."""
        begin = _by_token(sign_in.read, form) if form.get("token") else _by_password(form)
        again = partial(_sign_in_page, request, form)
        return await _begin(request, sign_in, begin, again, _next(request, form))

    async def use_link(request: Request, form: Form) -> Response:
        """Begin a session by a link, which is then used up."""
        again = partial(render, request, "access/link.html", key="")
        return await _begin(request, sign_in, _by_link(form), again, _home(request))

    async def send_sign_out(request: Request) -> Response:
        """End the session."""
        shown = shown_session(request)
        if shown is not None:
            try:
                async with sign_in.opened() as watched:
                    await sign_out(watched, shown, visit_of(request))
            except UnstickError as error:
                return _failed(request, error)
        return end_session(request, RedirectResponse(path_to(request, "console.sign_in"), 303))

    router.add_api_route("/sign-in", show_sign_in, name="console.sign_in")
    router.add_api_route("/sign-in", send_sign_in, methods=["POST"], name="console.send_sign_in")
    router.add_api_route(LINK_PATH, show_link, name="console.link")
    router.add_api_route(LINK_PATH, use_link, methods=["POST"], name="console.use_link")
    router.add_api_route("/sign-out", send_sign_out, methods=["POST"], name="console.sign_out")


_Begin = Callable[[Watched, Request], Awaitable[SignedIn]]


def _by_password(form: Mapping[str, str]) -> _Begin:
    async def begin(watched: Watched, request: Request) -> SignedIn:
        return await sign_in_by_password(watched, form.get("name", ""), form.get("password", ""), visit_of(request))

    return begin


def _by_token(read: ReadBearer, form: Mapping[str, str]) -> _Begin:
    async def begin(watched: Watched, request: Request) -> SignedIn:
        return await sign_in_by_bearer(watched, await _read(read, form["token"].strip()), visit_of(request))

    return begin


async def _read(read: ReadBearer, sent: str) -> Bearer | None:
    try:
        return await read(sent)
    except RefusedError:
        return None


def _by_link(form: Mapping[str, str]) -> _Begin:
    async def begin(watched: Watched, request: Request) -> SignedIn:
        return await sign_in_by_link(watched, form.get("key", ""), visit_of(request))

    return begin


async def _begin(
    request: Request, sign_in: SignIn, begin: _Begin, again: Callable[..., Response], then: str
) -> Response:
    try:
        async with sign_in.opened() as watched:
            signed_in = await begin(watched, request)
    except (SignInRefusedError, TooManyFailuresError) as error:
        problem = problem_of(error)
        wait = error.seconds if isinstance(error, TooManyFailuresError) else 0
        page = again(status=problem.status, refused=True, wait=wait)
        page.headers.update(problem.headers)
        return page
    except UnstickError as error:
        return _failed(request, error)
    return begin_session(request, signed_in, RedirectResponse(then, 303))


def _sign_in_page(
    request: Request, said: Mapping[str, str], *, status: int = 200, refused: bool = False, wait: int = 0
) -> Response:
    return render(
        request,
        "access/sign_in.html",
        status=status,
        refused=refused,
        wait=wait,
        next=_next(request, said),
        name=said.get("name", ""),
        by_token=bool(said.get("token")),
    )


def _failed(request: Request, error: UnstickError) -> Response:
    problem = problem_of(error)
    log_failure(f"{request.method} {request.url.path} is answered {problem.status}: {problem.detail}", error)
    return render_problem(request, problem)


def _next(request: Request, said: Mapping[str, str]) -> str:
    """Return the page to go on to: one of the console's own, or else its first."""
    home = _home(request)
    asked = local_path(said.get("next", ""), home)
    return asked if asked.startswith(home) else home


def _home(request: Request) -> str:
    return path_to(request, "console.overview")
