"""`POST /preferences`: the language and the theme that a person chose, kept in their browser and nowhere else."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

from unstick.console import language, rendering
from unstick.console.forms import Form

_KEPT_SECONDS = 365 * 24 * 3600


async def keep_preferences(request: Request, form: Form) -> RedirectResponse:
    """Keep what a person chose, and bring them back to where they were."""
    home = rendering.path_to(request, "console.overview")
    back = RedirectResponse(local_path(form.get("back", ""), home), 303)
    chosen = (
        (language.COOKIE, form.get("language", ""), language.LANGUAGES),
        (rendering.THEME_COOKIE, form.get("theme", ""), rendering.THEMES),
    )
    for cookie, word, known in chosen:
        if word in known:
            back.set_cookie(
                cookie, word, max_age=_KEPT_SECONDS, path=home, httponly=True, samesite="lax", secure=_secure(request)
            )
    return back


def local_path(asked: str, otherwise: str) -> str:
    """Return a path of this server's to go back to; anything else, such as another server's address, is not gone to."""
    is_local = asked.startswith("/") and asked[1:2] not in ("/", "\\") and asked.isprintable()
    return asked if is_local else otherwise


def _secure(request: Request) -> bool:
    return request.url.scheme == "https"


def add_preferences(router: APIRouter) -> None:
    """Add the call to a router; a person may choose before they sign in."""
    router.add_api_route("/preferences", keep_preferences, methods=["POST"], name="console.preferences")
